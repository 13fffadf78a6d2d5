"""The training curves of a run, short enough to be kept with its results."""

from typing import Any

import numpy as np

POINTS = 300  # largest number of points of a curve


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Makes the curves of a run from the lines of its metrics.jsonl; the training loss is averaged down to POINTS points.

    Steps that were skipped have no loss.
    """
    training = [row for row in rows if row.get('loss') is not None]
    parts = np.array_split(np.arange(len(training)), min(POINTS, max(1, len(training))))
    parts = [part for part in parts if len(part)]
    validation = [row for row in rows if 'validation/loss' in row]
    names = ['step', *(name for name in (validation[0] if validation else {}) if name.startswith('validation/'))]
    return dict(
        training=dict(
            step=[training[part[-1]]['step'] for part in parts],
            loss=[float(np.mean([training[index]['loss'] for index in part])) for part in parts],
        ),
        validation={name.removeprefix('validation/'): [row[name] for row in validation] for name in names},
    )
