"""The only place that knows files, ragged lists and the data's own ids: `catalog` opens data, `records` says what they are."""
