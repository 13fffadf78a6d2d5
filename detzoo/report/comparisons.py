"""Which groups differ: a table of pairs, or a matrix if there are many pairs."""

from typing import Any

from detzoo.report.document import Cell, Paragraph, Table
from detzoo.report.findings import Findings
from detzoo.report.text import NOT, OVER, counted, name_of, p_value, span

PAIRS = 28  # pairs of 8 groups; more are shown as a matrix


def comparison_blocks(findings: Findings) -> list[Any]:
    """Makes a table of all pairs, or a matrix if there are many."""
    if not findings.pairs:
        return []
    metric = name_of(findings.judged)
    how = []
    if not all(pair.over_images for pair in findings.pairs):
        how.append(
            f'Over images and trainings: the error of a difference in {metric} combines its variance over images, from resamples '
            'that are the same for all trainings, with the variance over the trainings of each group. Interval and p-value are '
            "those of Student's t with Satterthwaite's degrees of freedom (`crossed_test` in `detzoo/evaluation/statistics.py`)."
        )
    if any(pair.over_images for pair in findings.pairs):
        how.append(
            f'Over images only, where a group has one seed: the interval of a difference in {metric} is from a bootstrap with the '
            f'same images for both groups, the p-value from {findings.permutations} random swaps of their detections, image by '
            'image. The difference is between these trained networks, not between their methods.'
        )
    how.append(f'p-values are adjusted by Holm for {counted(len(findings.pairs), "comparison")}.')
    table = _matrix(findings, metric) if len(findings.pairs) > PAIRS else _pair_table(findings, metric)
    return [Paragraph(' '.join(how)), table]


def _pair_table(findings: Findings, metric: str) -> Table:
    rows = []
    for pair in findings.pairs:
        test = pair.comparison
        rows.append(
            [
                f'{pair.group} − {pair.other}',
                Cell(f'{100 * test.difference:+.1f}', best=pair.differ),
                span(test.low, test.high, '+'),
                OVER[pair.over_images],
                p_value(test.p_value),
                p_value(pair.adjusted),
                Cell(NOT, faint=True)
                if not pair.differ
                else 'these networks differ'
                if pair.over_images
                else 'different',
            ]
        )
    columns = ['pair', f'difference in {metric}', '95 % interval', 'over', 'p', 'p, adjusted', 'verdict']
    caption = f'Differences in {metric}, percentage points.'
    if any(pair.over_images for pair in findings.pairs):
        caption += (
            ' Over images only, interval, p-values and verdict are of the trained networks, not of their methods.'
        )
    return Table(caption, columns, rows, words=['over', 'verdict'])


def _matrix(findings: Findings, metric: str) -> Table:
    found = {(pair.group, pair.other): pair for pair in findings.pairs}
    names = list(dict.fromkeys(name for pair in findings.pairs for name in (pair.other, pair.group)))

    def cell(row: str, column: str) -> Cell:
        pair, sign = (found[row, column], 1) if (row, column) in found else (found.get((column, row)), -1)
        if pair is None:
            return Cell('–', faint=True)
        text = f'{100 * sign * pair.comparison.difference:+.1f}' + ('†' if pair.over_images else '')
        return Cell(text, best=True) if pair.differ else Cell(f'{text} n.d.', faint=True)

    rows = [[row, *(cell(row, column) for column in names)] for row in names]
    caption = f'{metric} of the row minus that of the column, percentage points. Bold: different; n.d.: {NOT}.'
    if any(pair.over_images for pair in findings.pairs):
        caption += ' †: over images only, of the trained networks, not of their methods.'
    return Table(caption, ['group', *names], rows)
