"""Whether the scores of a group are what they look like: reliability curves and calibration errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detzoo.errors import listed
from detzoo.evaluation.calibration import BINS, FLOOR, Reliability, expected_calibration_error
from detzoo.report import plots
from detzoo.report.document import Drawing, Paragraph, Table
from detzoo.report.findings import Findings, Group, Part, parts_by_truth
from detzoo.report.text import mark_best, percent


def confidence_blocks(findings: Findings) -> list[Any]:
    """Draws precision over confidence, and makes a table of calibration errors."""
    if not findings.reliability:
        return []
    what = 'mask' if findings.judged.startswith('mask_') else 'box'
    text = Paragraph(
        f'A detector is calibrated if its scores are probabilities: of the detections with a score of 0.7, seven in ten are right '
        f'(arXiv 1706.04599; of detections, 2004.13546). Right means that the {what} finds an object of its class at IoU 0.5. '
        f'Detections are in {BINS} bins of their scores; those with scores below {FLOOR} or in crowds are left out. The expected '
        'calibration error is the mean over detections of the difference between the confidence and the precision of their bin.'
    )
    return [text, *(block for part in parts_by_truth(findings) for block in _confidence_of(findings, part))]


def _confidence_of(findings: Findings, part: Part) -> list[Any]:
    groups = [group for group in part.groups if group.name in findings.reliability]
    if not groups:
        return []
    curves = {group.name: _curve(findings.reliability[group.name]) for group in groups}
    caption = (
        f'Left: precision over confidence{part.where}. On the dotted line scores are probabilities; below it the detector is too '
        'sure of itself. Right: how many of the detections have which confidence. Detections of all seeds together.'
    )
    alt = f'Reliability curves{part.where}: {listed(curves)}. The table below sums them up.'
    figure = plots.reliability_curves(curves, findings.looks)
    return [Drawing(f'reliability{part.suffix}', caption, alt, figure), _table(findings, part, groups)]


def _curve(found: Reliability) -> dict[str, np.ndarray]:
    share = found.counts / max(1, found.counts.sum())
    return dict(confidence=found.confidence, precision=found.precision, share=np.where(share > 0, share, np.nan))


def _table(findings: Findings, part: Part, groups: Sequence[Group]) -> Table:
    """Makes a table of groups: what their scores promise, and what they hold."""
    rows, errors = [], []
    for group in groups:
        found = findings.reliability[group.name]
        total, images = found.counts.sum(), findings.images[part.truth]['images'] * len(group.finished)
        error = expected_calibration_error(found)
        errors.append([np.nan if error is None else 100 * error])
        means = [values.sum() / total if total else None for values in (found.scores, found.hits)]
        rows.append([group.name, percent(error), *map(percent, means), f'{total / images:.1f}'])
    mark_best(rows, errors, [1], most=False)
    caption = f'Calibration{part.where}, percent, the detections of all seeds together.'
    columns = ['group', 'expected calibration error', 'mean confidence', 'precision', 'detections an image']
    return Table(caption, columns, rows)
