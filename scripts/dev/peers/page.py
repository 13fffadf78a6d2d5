"""The tables of docs/performance.md, and its picture, from the file of results.

A table stands in the page between `<!-- table: SECTION -->` and `<!-- end -->`; all other text is written by hand. The picture
shows the ratios of the sections `DRAWN` as bars on a logarithmic scale.
"""

import html
import math
import re
from collections.abc import Mapping
from typing import Any

from peers.results import Ratio, Results, fastest, peers_of, ratio, was_busy
from peers.turns import OURS

FOUND = {'predict': 'detections', 'train': 'positives'}  # the column of whole models, which also have memory
BUSY = '†'
PICTURE = 'images/performance.svg'
DRAWN = {
    'predict': 'Prediction',
    'train': 'Training step',
    'operations': 'Operations',
    'trunk': 'Trunk',
    'yolo': 'YOLO, OpenCV',
    'evaluation': 'COCO evaluation, pycocotools',
    'onnx': 'ONNX Runtime',
}
SCALE = 1 / 4, 32  # the ratios at the ends; bars end there
AXIS, OCTAVE, LINE = 400, 52, 20  # pixels: the left end of the scale, a factor of two, a row
BLOCK = re.compile(r'(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)', re.DOTALL)


def fill(text: str, results: Results) -> str:
    """Replaces all tables of a page."""
    return BLOCK.sub(lambda match: f'{match[1]}\n{table(match[2], results)}\n{match[4]}', text)


def table(section: str, results: Results) -> str:
    """Writes the table of a section, the list of the runs, or the link to the picture, as Markdown that ends with a line break."""
    if section == 'runs':
        return runs_table(results)
    if section == 'picture':
        return f'![The ratios of the tables below, as bars]({PICTURE})\n' if results.rows else 'Not measured yet.\n'
    rows = [row for row in results.rows if row['section'] == section]
    if not rows:
        return 'Not measured yet.\n'
    columns = ['', OURS, 'peer', 'ratio', 'lowest to highest', 'rounds', 'run']
    columns[6:6] = [FOUND[section], 'GB, detzoo', 'GB, peer'] if section in FOUND else []
    lines = [columns, ['---'] * len(columns)]
    for row in rows:
        for kind in peers_of(row):
            label, compared = compare(row, kind)
            cells = [row['name'], median(row, OURS), f'{label} {median(row, label)}', f'**{compared.medians:.2f}**']
            cells += [f'{compared.lowest:.2f} to {compared.highest:.2f}', str(compared.rounds)]
            if section in FOUND:
                cells += [
                    found(row, label),
                    *(f'{row["sides"][side]["memory_mb"] / 1000:.1f}' for side in (OURS, label)),
                ]
            mark = f' {BUSY}' if was_busy(row, results.runs[row['run']]) else ''
            lines.append([*cells, f'{row["run"] + 1}{mark}'])
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def compare(row: Mapping[str, Any], kind: str) -> tuple[str, Ratio]:
    """Compares detzoo with the fastest side of a kind: (its label, the ratio)."""
    label = fastest(row, kind)
    return label, ratio(row['sides'][OURS]['seconds'], row['sides'][label]['seconds'])


def found(row: Mapping[str, Any], label: str) -> str:
    """Writes what both sides worked on: detections, and of how many proposals; positive RoIs or anchors, of detzoo and the peer."""
    if 'detections' in row['facts']:
        proposals = row['sides'][label]['facts'].get('proposals')
        return str(row['facts']['detections']) + (f' of {proposals} proposals' if proposals else '')
    counts = [row['sides'][side]['facts'].get('positives') for side in (OURS, label)]
    return ' / '.join(f'{count:.0f}' for count in counts if count is not None)


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
            f'{run["system"]}, {run["threads"]} threads, load average before {run["load"]:.2f}, '
            f'{run["busy"]:.2f} cores busy; Python {run["python"]}, '
            f'{versions}\n'
        )
    return ''.join(lines)


def draw(results: Results) -> str:
    """Draws the ratios of the sections `DRAWN`, SVG."""
    parts, y = [], LINE
    for section, title in DRAWN.items():
        bars = [
            (row['name'] + (f', {kind}' if kind not in ('torchvision', title.split(', ')[-1]) else ''), kind, row)
            for row in results.rows
            if row['section'] == section
            for kind in peers_of(row)
        ]
        if bars:
            parts.append(f'<text x="{AXIS - 8}" y="{y + 14}" class="title">{title}</text>')
            y += LINE
        for name, kind, row in bars:
            parts.append(draw_bar(name, compare(row, kind)[1].medians, y))
            y += LINE
    ends = [math.log2(end) for end in SCALE]
    lines = [
        f'<path d="M{place(2**power)} {LINE}V{y}" class="{"one" if power == 0 else "line"}"/>'
        f'<text x="{place(2**power)}" y="{y + 16}" class="tick">{2**power:g}</text>'
        for power in range(round(ends[0]), round(ends[1]) + 1)
    ]
    width, height = place(SCALE[1]) + 60, y + 28
    style = (
        'text{font:12px sans-serif;fill:#222}.title{font-weight:bold;text-anchor:end}.name{text-anchor:end}'
        '.tick{text-anchor:middle;fill:#666}.line{stroke:#ddd}.one{stroke:#666}.ahead{fill:#3b76af}.behind{fill:#d1702a}'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><style>{style}</style>'
    return '\n'.join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *lines, *parts, '</svg>\n'])


def draw_bar(name: str, value: float, y: int) -> str:
    """Draws the bar of a ratio, from 1 on, with its name before it and its value behind."""
    left, right = sorted([place(1), place(value)])
    return (
        f'<text x="{AXIS - 8}" y="{y + 14}" class="name">{html.escape(name)}</text>'
        f'<rect x="{left}" y="{y + 3}" width="{right - left}" height="{LINE - 6}" class="{"ahead" if value >= 1 else "behind"}"/>'
        f'<text x="{right + 5}" y="{y + 14}">{value:.2f}</text>'
    )


def place(value: float) -> int:
    """Computes where a ratio lies on the scale, pixels."""
    low, high = SCALE
    return round(AXIS + OCTAVE * math.log2(min(max(value, low), high) / low))
