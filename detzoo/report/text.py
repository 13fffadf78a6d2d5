"""The text of numbers and lists of words in a report."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from detzoo.report.document import Cell
from detzoo.report.findings import Findings
from detzoo.sweeps.store import Result

SIZES = 'APs', 'APm', 'APl'
NOT = 'not distinguishable'
OVER = {True: 'images only', False: 'images and trainings'}  # whether a group of one seed is involved


def percent(value: float | None) -> str:
    """Writes 0.4123 as 41.2."""
    return '–' if value is None or np.isnan(value) else f'{100 * value:.1f}'


def name_of(metric: str) -> str:
    """Writes mask_AP50 as mask AP50, mask_object_AR10 as mask object AR10, APs with the size in words, mean_iou as mean IoU."""
    name = metric.removeprefix('mask_')
    sizes = {'APs': 'AP small', 'APm': 'AP medium', 'APl': 'AP large'}
    name = sizes.get(name, name).replace('_', ' ').replace(' iou', ' IoU')
    return ('mask ' if metric.startswith('mask_') else '') + name


def p_value(p: float) -> str:
    """Writes a p-value with three digits."""
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def code(value: Any) -> str:
    """Writes a value or a message as code."""
    return '`' + (value if isinstance(value, str) and value else json.dumps(value)).replace('`', "'") + '`'


def counted(number: int, noun: str) -> str:
    """Writes 1 run, 2 runs."""
    return f'{number} {noun}' + ('' if number == 1 else 's')


def mean(values: Sequence[float]) -> float:
    """Averages values; NaN where there are none."""
    return float(np.mean(values)) if len(values) else np.nan


def deviation_of(values: Sequence[float]) -> float | None:
    """Estimates the standard deviation over seeds from a sample; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """Writes numbers of seeds as mean and standard deviation, with so many digits; none as a dash."""
    if not len(values):
        return '–'
    deviation = deviation_of(values)
    return f'{mean(values):.{digits}f}' + ('' if deviation is None else f' ± {deviation:.{digits}f}')


def span(low: float, high: float, sign: str = '') -> str:
    """Writes an interval of 0..1 in percent: 41.2 to 43.0."""
    return f'{100 * low:{sign}.1f} to {100 * high:{sign}.1f}'


def one_digit(value: float) -> str:
    """Writes a number with one digit, and NaN as a dash."""
    return '–' if np.isnan(value) else f'{value:.1f}'


def mark_best(
    rows: list[list[Any]],
    values: Sequence[Sequence[float]],
    columns: Sequence[int],
    most: bool = True,
    digits: int = 1,
) -> None:
    """Marks the best number of each column, unless all numbers look the same.

    Args:
        rows: cells of a table, changed in place.
        values: the numbers of each row in these columns; NaN if one is missing.
        columns: positions of the columns in a row.
        most: whether the largest number is the best.
        digits: how many digits are shown, by which numbers are told apart.
    """
    for place, column in enumerate(columns):
        shown = np.array([np.round(row[place], digits) for row in values], float)
        if len(set(shown[~np.isnan(shown)])) > 1:
            best = np.nanmax(shown) if most else np.nanmin(shown)
            for row, value in zip(rows, shown):
                row[column] = Cell(row[column], best=bool(value == best))


def over(findings: Findings) -> str:
    """Says whether intervals are over images only, or over images and trainings."""
    kinds = {OVER[group.over_images] for group in findings.groups if group.name in findings.intervals}
    return ' or, of one seed, '.join(sorted(kinds))


def failure(run: Result) -> str:
    """Says why a run failed."""
    return f'{run.run} failed: {code(run.reason)}'
