"""How well groups detect: training curves, precision and recall, AP of classes, kinds of errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detzoo.errors import listed
from detzoo.evaluation.tide import ERRORS
from detzoo.report import plots
from detzoo.report.document import Drawing, Paragraph, Table
from detzoo.report.findings import Findings, Group, Part, parts_by_truth
from detzoo.report.text import mark_best, mean, name_of, one_digit, percent

DRAWN = 100  # largest number of classes in a figure of all


def training_blocks(findings: Findings) -> list[Any]:
    """Draws loss and validation over steps."""
    if not findings.curves:
        return []
    metric, curves = name_of(findings.judged), []
    for group, stored in findings.curves:
        training, validation = stored['training'], stored['validation']
        values = _numbers(validation.get(findings.judged, [None] * len(validation['step'])))
        curves.append(
            plots.Curve(group, training['step'], _numbers(training['loss']), validation['step'], 100 * values)
        )
    caption = (
        f'Training loss, averaged over some steps, and {metric} on the validation images. Each line is a run. Losses of '
        'different detectors cannot be compared.'
    )
    last = (f'{curve.group} {percent(curve.validation[-1] / 100)}' for curve in curves if len(curve.validation))
    alt = f'Training loss and validation {metric} over steps. Last {metric}: {"; ".join(last)}.'
    return [Drawing('training', caption, alt, plots.training_curves(curves, findings.looks, f'{metric}, %'))]


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def precision_blocks(findings: Findings) -> list[Any]:
    """Draws precision over recall, of the mean over classes and, if there are few, of each class."""
    return [block for part in parts_by_truth(findings) for block in _precision_of(findings, part)]


def _precision_of(findings: Findings, part: Part) -> list[Any]:
    curves = {group.name: findings.precision[group.name] for group in part.groups if group.name in findings.precision}
    if not curves:
        return []
    names = list(next(iter(curves.values())))
    of = 'masks' if findings.judged.startswith('mask_') else 'boxes'
    keys = 'recall', 'precision@50', 'precision@75'
    means = {
        group: {key: np.mean([curve[key] for curve in classes.values()], axis=0) for key in keys}
        for group, classes in curves.items()
    }
    areas = '; '.join(
        f'{group} {" and ".join(percent(mean[key].mean()) for key in keys[1:])}' for group, mean in means.items()
    )
    caption = (
        f'Precision over recall of {of}{part.where}, the mean over classes and seeds, at IoU 0.50 and 0.75. The areas below '
        'are AP50 and AP75.'
    )
    alt = f'Precision-recall curves{part.where}. Areas below at IoU 0.50 and 0.75: {areas}.'
    blocks: list[Any] = [
        Drawing(f'precision-recall{part.suffix}', caption, alt, plots.mean_pr_curves(means, findings.looks))
    ]
    if len(names) > plots.MANY:
        return [*blocks, Paragraph(f'{len(names)} classes are too many for a figure of each; their AP is below.')]
    if len(names) > 1:
        of_classes = {name: {group: classes[name] for group, classes in curves.items()} for name in names}
        caption = f'Precision over recall of each class{part.where}, the mean over seeds.'
        alt = f'Precision-recall curves of {listed(names)}{part.where}; their AP is in the table of classes.'
        figure = plots.class_pr_curves(of_classes, findings.looks)
        blocks.append(Drawing(f'precision-recall-classes{part.suffix}', caption, alt, figure))
    return blocks


def class_blocks(findings: Findings) -> list[Any]:
    """Draws AP by class, and makes a table of it."""
    return [block for part in parts_by_truth(findings) for block in _classes_of(findings, part)]


def _classes_of(findings: Findings, part: Part) -> list[Any]:
    key = 'mask_AP' if findings.judged.startswith('mask_') else 'AP'
    names = list(dict.fromkeys(name for group in part.groups for run in group.finished for name in run.per_class))
    if len(names) < 2:
        return []
    values = {name: {group.name: _class_mean(group, name, key) for group in part.groups} for name in names}
    rows = []
    for name, of_groups in values.items():
        cells = [[one_digit(value)] for value in of_groups.values()]
        mark_best(cells, [[value] for value in of_groups.values()], [0])
        rows.append([name, *(cell for (cell,) in cells)])
    caption = f'{name_of(key)} of each class{part.where}, percent, the mean over seeds.'
    table = Table(caption, ['class', *(group.name for group in part.groups)], rows)
    missing = all(np.isnan(value) for of_groups in values.values() for value in of_groups.values())
    if missing or len(names) > DRAWN:
        return [table]
    figure = plots.class_dots(values, findings.looks, f'{name_of(key)}, %')
    return [Drawing(f'classes{part.suffix}', caption, f'{caption} The numbers are in the table below.', figure), table]


def _class_mean(group: Group, name: str, key: str) -> float:
    """Averages a metric of a class over seeds, in percent; NaN if it is missing."""
    return 100 * mean([value for run in group.finished if (value := run.per_class.get(name, {}).get(key)) is not None])


def error_blocks(findings: Findings) -> list[Any]:
    """Draws the kinds of errors, and makes a table of them."""
    if not findings.errors:
        return []
    ap50 = 'mask AP50' if findings.judged.startswith('mask_') else 'AP50'
    text = Paragraph(
        f'The cost of each kind of error: the {ap50} that fixing it alone would gain (TIDE, arXiv 2008.08115). '
        'A detection may have the wrong class, the wrong place, or both, be a duplicate, or lie on background; an object may be '
        'missed. The gains do not add up. The largest one shows where there is most to gain.'
    )
    kinds = {name: {kind: of[kind] for kind in ERRORS} for name, of in findings.errors.items()}
    caption = f'Points of {ap50} that each kind of error costs, the mean over seeds.'
    alt = caption + ' The numbers are in the table below.'
    figure = plots.error_bars(kinds, findings.looks, f'points of {ap50}')
    columns = [*ERRORS, 'false_positives', 'false_negatives']
    rows = [
        [name, *(f'{percent(of[kind] / 100)} ({findings.counts[name][kind]:.0f})' for kind in columns)]
        for name, of in findings.errors.items()
    ]
    mark_best(
        rows,
        [[of[kind] for kind in columns] for of in findings.errors.values()],
        range(1, 1 + len(columns)),
        most=False,
    )
    table = Table(
        f'{caption} In parentheses: how many there are.', ['group', *(kind.replace('_', ' ') for kind in columns)], rows
    )
    return [text, Drawing('errors', caption, alt, figure), table]
