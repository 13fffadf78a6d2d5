"""The figures that an experiment asks for: one number over another, with a point for each group."""

from typing import Any

from detzoo.errors import listed
from detzoo.report import points
from detzoo.report.document import Drawing, Paragraph
from detzoo.report.findings import Findings
from detzoo.report.text import over
from detzoo.report.values import MEASURED, error_bar, label_of, value_of


def figure_blocks(findings: Findings) -> list[Any]:
    """Draws the figures that the experiment asks for."""
    blocks = []
    for number, axes in enumerate(findings.sweep['figures'], start=1):
        blocks += scatter(findings, f'figure-{number}', **axes)
    return blocks


def scatter(
    findings: Findings,
    name: str,
    x: str,
    y: str,
    log: bool = False,
    pareto: bool = False,
    batch: int = 1,
    ordered: bool = False,
) -> list[Drawing | Paragraph]:
    """Draws a point for each group (see `sweep.Axes`), or says why there is none."""
    x_label, y_label = label_of(findings, x, batch), label_of(findings, y, batch)
    shown, absent = [], []
    for group in findings.groups:
        at, height = value_of(findings, group, x, batch), value_of(findings, group, y, batch)
        if at is None or height is None or isinstance(height, str):
            absent += [group.name] if group.finished else []
        else:
            shown.append(points.Point(group.name, group.series, at, height, *error_bar(findings, group, y)))
    if not shown:
        why = 'costs were not measured' if {x, y} & MEASURED and not findings.costs else 'no group has both'
        return [Paragraph(f'No figure of {y_label} over {x_label}: {why}.')]
    caption = f'{y_label} over {x_label}.'
    if any(point.low is not None for point in shown):
        interval = f'95 % interval over {over(findings)}'
        caption += f' Bars: the {interval if y == findings.judged else "standard deviation over seeds"}.'
    if pareto:
        caption += ' Grey: the Pareto front of these numbers.'
    if absent:
        caption += f' Not shown because a number is missing: {listed(absent)}.'
    places = '; '.join(f'{point.group} {_short(point.y)} at {_short(point.x)}' for point in shown)
    alt = f'{y_label} over {x_label}: {places}.'
    figure = points.scatter(shown, findings.looks, x_label, y_label, log=log, pareto=pareto, ordered=ordered)
    return [Drawing(name, caption, alt, figure)]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f'{value:.4g}'
