"""The tables of docs/performance.md, and its picture, from the file of results.

A table stands in the page between `<!-- table: SECTION -->` and `<!-- end -->`; all other text is written by hand.
"""

import re
from collections.abc import Mapping
from typing import Any

from peers.results import Ratio, Results, fastest, peers_of, ratio, was_busy
from peers.turns import OURS

WITH_MEMORY = ('predict', 'train')
BUSY = '†'
BLOCK = re.compile(r'(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)', re.DOTALL)


def fill(text: str, results: Results) -> str:
    """Replaces all tables of a page."""
    return BLOCK.sub(lambda match: f'{match[1]}\n{table(match[2], results)}\n{match[4]}', text)


def table(section: str, results: Results) -> str:
    """Writes the table of a section, or of the runs, as Markdown that ends with a line break."""
    if section == 'runs':
        return runs_table(results)
    rows = [row for row in results.rows if row['section'] == section]
    if not rows:
        return 'Not measured yet.\n'
    columns = ['', OURS, 'peer', 'ratio', 'lowest to highest', 'rounds', 'run']
    columns[6:6] = ['GB, detzoo', 'GB, peer'] if section in WITH_MEMORY else []
    lines = [columns, ['---'] * len(columns)]
    for row in rows:
        for kind in peers_of(row):
            label, compared = compare(row, kind)
            cells = [row['name'], median(row, OURS), f'{label} {median(row, label)}', f'**{compared.medians:.2f}**']
            cells += [f'{compared.lowest:.2f} to {compared.highest:.2f}', str(compared.rounds)]
            if section in WITH_MEMORY:
                cells += [f'{row["sides"][side]["memory_mb"] / 1000:.1f}' for side in (OURS, label)]
            mark = f' {BUSY}' if was_busy(row, results.runs[row['run']]) else ''
            lines.append([*cells, f'{row["run"] + 1}{mark}'])
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def compare(row: Mapping[str, Any], kind: str) -> tuple[str, Ratio]:
    """Compares detzoo with the fastest side of a kind: (its label, the ratio)."""
    label = fastest(row, kind)
    return label, ratio(row['sides'][OURS]['seconds'], row['sides'][label]['seconds'])


def median(row: Mapping[str, Any], label: str) -> str:
    """Writes the median of a side's seconds."""
    times = sorted(row['sides'][label]['seconds'])
    middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
    return f'{middle:.2f} s' if middle >= 1 else f'{1000 * middle:.3g} ms'


def runs_table(results: Results) -> str:
    """Writes what is known of each run."""
    if not results.runs:
        return 'None yet.\n'
    lines = []
    for number, run in enumerate(results.runs, 1):
        versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
        lines.append(
            f'{number}. {run["date"]}, commit {run["commit"]}, `{run["command"]}`: {run["machine"]}, {run["memory_gb"]} GB, '
            f'{run["system"]}, {run["threads"]} threads, load average before {run["load"]:.2f}; Python {run["python"]}, '
            f'{versions}\n'
        )
    return ''.join(lines)
