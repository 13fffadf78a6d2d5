"""The only place that knows files, ragged lists and the data's own ids. See `records` for the flow."""
