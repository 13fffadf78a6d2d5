"""Figures of confusion matrices, in the look of `plots`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from detzoo.report.plots import HUES, INK, MANY, WIDTH, new_figure, settings, shaded

FEW = 7  # largest number of rows of a matrix beside which there is room for others


def confusions(matrices: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draws a matrix of shares for each group, the diagonal in blue, everything else in red; large ones without numbers.

    Args:
        matrices: {group: [n, n] float64 in 0..1, NaN for no number}.
        rows, columns: n names.
    """
    with settings():
        n, across = len(rows), min(3, len(matrices)) if len(rows) <= FEW else 1
        width = WIDTH if n <= 2 * MANY else WIDTH * 1.6  # that many names want room
        cell = min(0.5, (width / across - 0.09 * max(map(len, rows))) / n)  # inches
        down = math.ceil(len(matrices) / across)
        labels = 0.075 * max(map(len, columns)) * (2 if len(matrices) % across else 1)
        figure, panels = new_figure(
            0.5 + down * (0.4 + cell * n) + labels, width=width, rows=down, columns=across, squeeze=False
        )
        size = min(8.5, 0.85 * 72 * cell)
        for index, axes in enumerate(panels.flat):
            axes.set_visible(index < len(matrices))
        for index, (axes, (group, shares)) in enumerate(zip(panels.flat, matrices.items())):
            axes.set_title(group)
            _matrix(axes, shares, 0 if n > 2 * MANY else min(size, 7.5))
            axes.set_xticks(range(n), columns, rotation=90, fontsize=size)
            axes.set_yticks(range(n), rows, fontsize=size)
            # Names stand beside the first panel of a row, and below the last one of a column.
            axes.tick_params(labelleft=index % across == 0, labelbottom=index + across >= len(matrices))
        panels[0, 0].set_ylabel('object')
        panels[-1, 0].set_xlabel('detected as')
        return figure


def _matrix(axes: Axes, shares: np.ndarray, size: float) -> None:
    """Draws the cells of a matrix that are half a percent or more, with numbers of a size in points; 0 for none."""
    n = len(shares)
    cells = np.argwhere(np.nan_to_num(shares) >= 0.005)
    hues = [HUES[0] if row == column else HUES[3] for row, column in cells]
    colors = [shaded(hue, 0.95 * (1 - shares[row, column])) for hue, (row, column) in zip(hues, cells)]
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    axes.add_collection(
        PolyCollection(cells[:, None, ::-1] + corners, facecolors=colors, edgecolors='none', clip_on=False)
    )
    for row, column in cells if size else ():
        share = shares[row, column]
        ink = 'white' if share > 0.6 else INK
        axes.text(column, row, f'{100 * share:.0f}', ha='center', va='center', fontsize=size, color=ink)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect='equal')
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0)
    axes.grid(visible=False)
