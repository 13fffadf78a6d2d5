"""The costs of prediction: figures of accuracy over time and memory, and tables of stages and batch sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from detzoo.errors import listed
from detzoo.report import plots
from detzoo.report.document import Drawing, Paragraph, Table
from detzoo.report.figures import scatter
from detzoo.report.findings import Findings, Group
from detzoo.report.text import counted
from detzoo.report.values import PRICES, price_of


def cost_columns(findings: Findings) -> dict[str, Callable[[Group], float]]:
    """Makes columns of costs for the table of results, at the smallest batch size: {head: function of a group}."""
    if not findings.costs:
        return {}
    batch = min(batch for of_group in findings.costs.values() for batch in of_group)

    def column(name: str) -> Callable[[Group], float]:
        return lambda group: np.nan if (price := price_of(findings, group, name, batch)) is None else price

    return {'ms': column('seconds'), 'peak MiB': column('peak_bytes')}


def cost_blocks(findings: Findings) -> list[Any]:
    """Draws accuracy over time and memory, and makes tables of the costs of prediction and of its stages."""
    estimated = [_estimate_table(findings.estimates)] if findings.estimates else []
    if not findings.costs:
        return estimated
    measured = [row for of_group in findings.costs.values() for row in of_group.values()]
    batch = min(row['batch'] for row in measured)
    devices = listed(dict.fromkeys(f'{row["device"]}, {row["dtype"]}' for row in measured))
    blocks: list[Any] = [
        Paragraph(
            f'Costs of prediction on {devices}, by trained detectors on validation images. Times are medians of many runs after a '
            'warm-up, for all images at once. The time of a stage is that of the program which ends with it, minus that of the '
            'program which ends before it, so that a stage with almost nothing to do may come out below 0. Its peak memory is '
            'that of the program which ends with it.'
        )
    ]
    drawn = {(axes['x'], axes['y'], axes['batch']) for axes in findings.sweep['figures']}
    for name, cost, pareto in (('speed-accuracy', 'seconds', True), ('memory-accuracy', 'peak_bytes', False)):
        if (cost, findings.judged, batch) not in drawn:
            blocks += scatter(findings, name, cost, findings.judged, log=True, pareto=pareto, batch=batch)
    rows = {name: of_group[batch] for name, of_group in findings.costs.items() if batch in of_group}
    times = {
        name: {stage['stage']: max(0.0, 1e3 * stage['p50_seconds']) for stage in row['stages']}
        for name, row in rows.items()
    }
    caption = f'Time of {counted(batch, "image")} by stage, ms.'
    figure = plots.stage_bars(times, 'ms')
    blocks.append(Drawing('stages', caption, f'{caption} The numbers are in the table below.', figure))
    return [*blocks, _stage_table(rows, batch), _cost_table(measured), *estimated]


def _stage_table(rows: Mapping[str, dict[str, Any]], batch: int) -> Table:
    """Makes a table of the stages of groups."""
    cells = [
        [
            f'{name}, {stage["stage"]}',
            f'{1e3 * stage["p50_seconds"]:.2f}',
            f'{100 * stage["p50_seconds"] / row["p50_seconds"]:.0f}',
            f'{stage["parameters"] / 1e6:.3f}',
            f'{stage["flops"] / 1e9:.3f}',
            f'{stage["peak_bytes"] / 2**20:.1f}',
        ]
        for name, row in rows.items()
        for stage in row['stages']
    ]
    caption = f'Stages of predicting {counted(batch, "image")}.'
    return Table(caption, ['stage', 'ms', '% of time', 'M params', 'GFLOPs', 'peak MiB'], cells, folded=True)


def _cost_table(measured: Sequence[dict[str, Any]]) -> Table:
    """Makes a table of groups and batch sizes."""
    cells = []
    for row in measured:
        times = (row[f'{part}{quantile}_seconds'] for part in ('', 'network_', 'post_') for quantile in ('p50', 'p90'))
        height, width = row['canvas']
        cells.append(
            [
                row['name'],
                str(row['batch']),
                f'{height} x {width}',
                *(f'{1e3 * seconds:.2f}' for seconds in times),
                f'{PRICES["flops"].of(row):.2f}',
                f'{PRICES["peak_bytes"].of(row):.1f}',
                f'{row["compile_seconds"]:.1f}',
            ]
        )
    caption = 'Median (p50) and 90 % quantile (p90) of times in ms: of all of prediction, of the network, and of post-processing.'
    columns = ['group', 'images', 'canvas', 'p50', 'p90', 'network p50', 'network p90', 'post p50', 'post p90']
    return Table(caption, [*columns, 'GFLOPs an image', 'peak MiB', 'compile s'], cells)


def _estimate_table(estimates: Sequence[dict[str, Any]]) -> Table:
    """Makes a table of the TPU compiler's estimates."""
    cells = [
        [
            row['name'],
            f'{row["chips"]} x {row["topology"]}',
            str(row['images'] // row['chips']),
            f'{1e3 * row["total_seconds"]:.3f}',
            f'{row["flops"] / 1e9:.2f}',
            f'{row["peak_bytes"] / 2**20:.1f}',
            ', '.join(f'{stage} {1e3 * seconds:.3f}' for stage, seconds in row['seconds'].items()),
        ]
        for row in estimates
    ]
    caption = (
        'Prediction on TPUs as their compiler estimates it; nothing was measured. Times are lower bounds: sorts, reshapes and '
        'collectives have no figure. FLOPs and memory are those of one chip.'
    )
    columns = ['group', 'chips', 'images a chip', 'ms', 'GFLOPs', 'peak MiB', 'ms by stage']
    return Table(caption, columns, cells, words=['chips', 'ms by stage'])
