"""Which class a group takes for which: confusion matrices, and a table of the most frequent confusions."""

from typing import Any

import numpy as np

from detzoo.errors import listed
from detzoo.evaluation.confusion import MIN_IOU
from detzoo.report import matrices
from detzoo.report.document import Drawing, Paragraph, Table
from detzoo.report.findings import Confused, Findings, Part, parts_by_truth
from detzoo.report.quality import DRAWN
from detzoo.report.text import mark_best, percent

LONGEST = 24  # characters of a class's name in a matrix
LISTED = 3  # confusions of a group in the table


def confusion_blocks(findings: Findings) -> list[Any]:
    """Draws a confusion matrix of each group, and lists what is most often taken for what."""
    if not findings.confusions:
        return []
    what = 'mask' if findings.judged.startswith('mask_') else 'box'
    text = Paragraph(
        f'Each detection, the best score first, takes the object whose {what} it overlaps most among those not taken yet, whatever '
        f'its class, at an IoU of {MIN_IOU} or more. Objects that are not taken are missed; detections that take none lie on '
        'background, unless they lie in a crowd. Detections count from the score on at which F1, of all classes and at the same '
        'IoU, is highest.'
    )
    return [text, *(block for part in parts_by_truth(findings) for block in _confusions_of(findings, part))]


def _confusions_of(findings: Findings, part: Part) -> list[Any]:
    groups = {group.name: findings.confusions[group.name] for group in part.groups if group.name in findings.confusions}
    if not groups:
        return []
    names = next(iter(groups.values())).class_names
    tables = [_fate_table(groups, part, findings.images[part.truth]['images']), *_most_frequent(groups, part)]
    if len(names) > DRAWN:
        return [Paragraph(f'{len(names)} classes are too many for a matrix{part.where}.'), *tables]
    shares = {name: _shares(confused.counts) for name, confused in groups.items()}
    objects = next(iter(groups.values())).counts[:-1].sum(axis=1)  # the same for all groups
    short = [name if len(name) <= LONGEST else f'{name[: LONGEST - 1]}…' for name in names]
    rows = [*(f'{name} ({count:.0f})' for name, count in zip(short, objects, strict=True)), 'background']
    together = [list(shares)] if len(rows) <= matrices.FEW else [[name] for name in shares]
    blocks: list[Any] = []
    for number, members in enumerate(together, start=1):
        caption = (
            f'Of the objects of each class (how many){part.where}, the percentage that is detected as each class, the mean over '
            'seeds. Last column: missed. Last row: of the detections of each class, the percentage that lies on background.'
        )
        alt = f'Confusion matrices{part.where}: {listed(members)}. The table below sums them up.'
        figure = matrices.confusions({name: shares[name] for name in members}, rows, [*short, 'missed'])
        blocks.append(Drawing(f'confusions-{number}{part.suffix}', caption, alt, figure))
    return [*blocks, *tables]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Divides the rows of objects by the number of objects, and the row of background by the number of detections.

    Args:
        counts: [K + 1, K + 1], see `confusion.confusion_matrix`.

    Returns:
        [K + 1, K + 1] float64 in 0..1, NaN where there are no objects, or no detections.
    """
    total = np.vstack([np.broadcast_to(counts[:-1].sum(axis=1)[:, None], counts[:-1].shape), counts.sum(axis=0)])
    total[-1, -1] = 0  # those are no detections, but all missed objects
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _fate_table(groups: dict[str, Confused], part: Part, images: int) -> Table:
    """Makes a table of what becomes of the objects: detected as what they are, as another class, or missed."""
    rows, values = [], []
    for name, (_, counts, thresholds) in groups.items():
        objects = max(1, counts[:-1].sum())
        right, missed, background = np.trace(counts) / objects, counts[:-1, -1].sum() / objects, counts[-1].sum()
        values.append([100 * right])
        rows.append(
            [
                name,
                percent(right),
                percent(1 - right - missed),
                percent(missed),
                f'{background / images:.2f}',
                ', '.join(f'{threshold:.2f}' for threshold in thresholds),
            ]
        )
    mark_best(rows, values, [1])
    caption = (
        f'What becomes of the objects{part.where}, percent, and how many detections of an image lie on background.'
    )
    columns = ['group', 'right', 'of another class', 'missed', 'on background', 'scores from']
    return Table(caption, columns, rows)


def _most_frequent(groups: dict[str, Confused], part: Part) -> list[Table]:
    """Lists the largest cells between two different classes."""
    rows = []
    for group, (names, counts, _) in groups.items():
        between = counts[:-1, :-1] * (1 - np.eye(len(names)))
        for cell in np.argsort(-between, axis=None, kind='stable')[:LISTED]:
            true, found = divmod(int(cell), len(names))
            if between[true, found]:
                share = between[true, found] / counts[true].sum()
                rows.append([group, names[true], names[found], f'{between[true, found]:.1f}', percent(share)])
    caption = f'The most frequent confusions of two classes{part.where}, the mean over seeds.'
    columns = ['group', 'object', 'detected as', 'how many', '% of the objects']
    return [Table(caption, columns, rows, words=columns[1:3], folded=True)] if rows else []
