"""The best evaluation of a run, by one of its metrics.

It is found in the log, and in nothing else: whoever reads the same log again, after a run was cut and went on, finds the same.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detzoo.run.metrics import read_metrics

LOWER = ('loss', 'candidates_dropped', 'count_error')  # metrics of which lower values are better


class Best(NamedTuple):
    """The best of a run's evaluations.

    step: the step of the first evaluation with the best value; 0 if none has a value.
    since: number of evaluations after it; of all evaluations if none has a value.
    """

    step: int
    since: int


def find_best(rows: Sequence[Mapping[str, Any]], metric: str) -> Best:
    """Finds the best evaluation among the lines of a log.

    Args:
        rows: the lines; those without an evaluation are left out.
        metric: name of a metric, such as 'AP'. A value of None, as of an AP without objects, is no better than another.
    """
    evaluations = [row for row in rows if 'validation/loss' in row]
    sign = -1 if metric in LOWER else 1
    values = [
        (sign * row[f'validation/{metric}'], -index) for index, row in enumerate(evaluations) if _has(row, metric)
    ]
    if not values:
        return Best(0, len(evaluations))
    index = -max(values)[1]
    return Best(evaluations[index]['step'], len(evaluations) - 1 - index)


def best_step(workdir: str | os.PathLike, metric: str | None) -> int:
    """Finds the step of a workdir's best checkpoint.

    Args:
        workdir: folder of the run.
        metric: the run's `training.keep_best`.

    Raises:
        FileNotFoundError: the run keeps none, or was not evaluated yet.
    """
    if metric is None:
        raise FileNotFoundError(
            f'{workdir} keeps no best checkpoint, since its training.keep_best is None: give a step, or take the newest'
        )
    step = find_best(read_metrics(workdir), metric).step
    if not step:
        raise FileNotFoundError(
            f'{workdir} has no best checkpoint yet: no evaluation in its metrics.jsonl has {metric!r}'
        )
    return step


def _has(row: Mapping[str, Any], metric: str) -> bool:
    return row.get(f'validation/{metric}') is not None
