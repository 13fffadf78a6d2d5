"""The table of groups with their metrics, and the one of published metrics."""

from typing import Any

import numpy as np

from detzoo.errors import listed
from detzoo.report.costs import cost_columns
from detzoo.report.document import Paragraph, Table
from detzoo.report.findings import OBJECTS, Findings, Group
from detzoo.report.text import OVER, SIZES, failure, mark_best, mean, mean_and_deviation, name_of, one_digit, over, span
from detzoo.sweeps.store import FAILED


def result_blocks(findings: Findings) -> list[Any]:
    """Makes the table of groups, and the one of published metrics."""
    metrics, judged = findings.sweep['metrics'], findings.judged
    prefix = 'mask_' if judged.startswith('mask_') else ''
    sizes = [prefix + size for size in SIZES if prefix + size not in metrics]
    shown = [*metrics, *(size for size in sizes if any(group.values(size) for group in findings.groups))]
    before = ['group', 'seeds', *map(name_of, shown), '95 % interval', 'over', 'steps', 'minutes', 'M params']
    costs = cost_columns(findings)
    rows, values, errors, prices, notes = [], [], [], [], {}
    for number, group in enumerate(findings.groups):
        runs, interval = group.finished, findings.intervals.get(group.name)
        values.append([mean(group.values(metric)) for metric in shown if metric not in OBJECTS])
        errors.append([mean(group.values('count_error'))])
        prices.append([price(group) for price in costs.values()])
        rows.append(
            [
                group.name,
                str(len(runs)) if len(runs) == len(group.runs) else f'{len(runs)} of {len(group.runs)}',
                *(mean_and_deviation(group.values(metric), 1 + (metric in OBJECTS)) for metric in shown),
                span(interval.low, interval.high) if interval else '–',
                OVER[group.over_images] if interval else '–',
                ', '.join(str(steps) for steps in sorted({run.steps for run in runs})) or '–',
                one_digit(mean([run.seconds / 60 for run in runs])),
                f'{runs[0].parameters / 1e6:.2f}' if runs else '–',
                *map(one_digit, prices[-1]),
            ]
        )
        if failed := [failure(run) for run in group.runs if run.status == FAILED]:
            notes[number] = '; '.join(failed)
    mark_best(rows, values, [column for column, metric in enumerate(shown, 2) if metric not in OBJECTS])
    if 'count_error' in shown:
        mark_best(rows, errors, [2 + shown.index('count_error')], most=False, digits=2)
    mark_best(rows, prices, range(len(before), len(before) + len(costs)), most=False)
    caption = (
        f'Metrics in percent, mean and standard deviation over seeds, the highest in bold; the interval is of '
        f'{name_of(judged)}, over {over(findings)}. '
        'Minutes are those of one run; the machine may have done other things at the same time.'
    )
    if 'count_error' in shown:
        caption += (
            ' Count error is the mean absolute error of the number of objects in an image, the lowest in bold; count bias is the '
            'mean of found minus true.'
        )
    if costs:
        caption += ' The last two columns are time and memory of prediction.'
    blocks: list[Any] = [Table(caption, [*before, *costs], rows, words=['over'], notes=notes)]
    if shared := [run for group in findings.groups for run in group.finished if run.trained]:
        trainings = listed(dict.fromkeys(run.trained for run in shared))
        blocks.append(Paragraph(f'These runs share the training of {trainings}: {listed(run.run for run in shared)}.'))
    return [*blocks, *_published(findings)]


def _published(findings: Findings) -> list[Table]:
    """Makes a table of measured and published metrics, each with its difference from the first group."""
    metrics = [
        metric for metric in findings.sweep['metrics'] if any(metric in _of_paper(group) for group in findings.groups)
    ]
    if not metrics:
        return []
    first = findings.groups[0]
    rows = []
    for group in findings.groups:
        row = [group.name]
        for metric in metrics:
            here, there = mean(group.values(metric)), mean(first.values(metric))
            row.append('–' if np.isnan(here) else f'{here:.1f}' + _gain(here - there, group is first))
            paper, base = _of_paper(group).get(metric), _of_paper(first).get(metric)
            row.append(
                '–' if paper is None else f'{paper:.1f}' + ('' if base is None else _gain(paper - base, group is first))
            )
        rows.append(row)
    columns = ['group', *(f'{name_of(metric)} {what}' for metric in metrics for what in ('here', 'published'))]
    caption = f'Measured here and published, percent; in parentheses the difference to {first.name}.'
    return [Table(caption, columns, rows)]


def _of_paper(group: Group) -> dict[str, float]:
    return group.runs[0].published


def _gain(difference: float, first: bool) -> str:
    return '' if first or np.isnan(difference) else f' ({difference:+.1f})'
