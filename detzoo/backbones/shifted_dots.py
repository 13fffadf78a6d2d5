"""Convolutions as products of matrices: one for each place of the kernel, with the cells of x that this place reads.

A kernel of one place (1x1) is one product. `columns=True` puts the cells of all places side by side first ("im2col") and needs one
product for any kernel, which pays if there are few cells.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from detzoo.types import Array


class Geometry(NamedTuple):
    """Where a convolution reads: its strides, its padding (before, after) and its dilation, rows first."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]


def convolve(x: Array, kernel: Array, geometry: Geometry, *, columns: bool = False) -> Array:
    """Convolves x [B, h, w, C] with a kernel [rows, columns, C, D]: [B, H, W, D]."""
    sizes = result_sizes(x.shape[1:3], kernel.shape[:2], geometry)
    read = [cells for _, cells in cells_read(x, kernel.shape[:2], sizes, geometry)]
    if columns:
        result = _matrix(jnp.concatenate(read, axis=-1)) @ kernel.reshape(-1, kernel.shape[-1])
    else:
        matrices = kernel.reshape(-1, *kernel.shape[2:])
        result = sum(_matrix(cells) @ matrix for cells, matrix in zip(read, matrices))
    return result.reshape(len(x), *sizes, -1)


def kernel_gradient(
    x: Array, gradient: Array, sides: tuple[int, int], geometry: Geometry, *, columns: bool = False
) -> Array:
    """Computes the gradient for a kernel of rows x columns = sides from x and the gradient of the result."""
    read = [cells for _, cells in cells_read(x, sides, gradient.shape[1:3], geometry)]
    if columns:
        products = _matrix(jnp.concatenate(read, axis=-1)).T @ _matrix(gradient)
    else:
        products = jnp.stack([_matrix(cells).T @ _matrix(gradient) for cells in read])
    return products.reshape(*sides, x.shape[-1], gradient.shape[-1])


def input_gradient(gradient: Array, kernel: Array, sizes: tuple[int, int], geometry: Geometry) -> Array:
    """Computes the gradient [B, h, w, C] for x from that of the result; sizes: (h, w).

    With stride s, cells whose coordinates have the same remainder by s are written by the same places of the kernel: there are
    s * s such phases.
    """
    rows, columns = (_phases(axis, kernel.shape[axis], geometry) for axis in (0, 1))
    cells = [-(-size // stride) for size, stride in zip(sizes, geometry.strides)]  # of a phase
    pads = [_reach(phases, count, size) for phases, count, size in zip((rows, columns), cells, gradient.shape[1:3])]
    padded = jnp.pad(gradient, ((0, 0), *pads, (0, 0)))
    nothing = jnp.zeros((len(gradient) * cells[0] * cells[1], kernel.shape[2]), gradient.dtype)

    def phase(vertical: Sequence[tuple[int, int]], horizontal: Sequence[tuple[int, int]]) -> Array:
        total = nothing
        for i, shift_y in vertical:
            for j, shift_x in horizontal:
                top, left = pads[0][0] + shift_y, pads[1][0] + shift_x
                part = padded[:, top : top + cells[0], left : left + cells[1]]
                total += _matrix(part) @ kernel[i, j].T
        return total.reshape(len(gradient), cells[0], 1, cells[1], 1, -1)

    parts = [[phase(vertical, horizontal) for horizontal in columns] for vertical in rows]
    whole = jnp.concatenate([jnp.concatenate(row, axis=4) for row in parts], axis=2)
    whole = whole.reshape(len(gradient), cells[0] * geometry.strides[0], cells[1] * geometry.strides[1], -1)
    return whole[:, : sizes[0], : sizes[1]]


def result_sizes(sizes: Sequence[int], sides: Sequence[int], geometry: Geometry) -> tuple[int, int]:
    """Computes the height and width of the result of a kernel with these sides."""
    extents = [(side - 1) * dilation + 1 for side, dilation in zip(sides, geometry.dilation)]
    padded = [size + sum(pads) for size, pads in zip(sizes, geometry.padding)]
    return tuple((size - extent) // stride + 1 for size, extent, stride in zip(padded, extents, geometry.strides))


def cells_read(
    x: Array, sides: Sequence[int], sizes: Sequence[int], geometry: Geometry
) -> Iterator[tuple[tuple[int, int], Array]]:
    """Cuts the cells [B, *sizes, C] that each place of a kernel reads."""
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    spans = [(size - 1) * stride + 1 for size, stride in zip(sizes, geometry.strides)]
    for i, j in np.ndindex(*sides):
        top, left = i * geometry.dilation[0], j * geometry.dilation[1]
        cells = x[:, top : top + spans[0] : geometry.strides[0], left : left + spans[1] : geometry.strides[1]]
        yield (i, j), cells


def _phases(axis: int, side: int, geometry: Geometry) -> list[list[tuple[int, int]]]:
    """Lists, for each phase of an axis, the places of the kernel that write to it, and which result each one comes from.

    Returns:
        for each phase: (place, shift) pairs: the cell at stride * n + phase gets the result at n + shift.
    """
    stride, before, dilation = geometry.strides[axis], geometry.padding[axis][0], geometry.dilation[axis]
    offsets = [[(place, phase + before - place * dilation) for place in range(side)] for phase in range(stride)]
    return [[(place, offset // stride) for place, offset in phase if offset % stride == 0] for phase in offsets]


def _reach(phases: Sequence[Sequence[tuple[int, int]]], count: int, size: int) -> tuple[int, int]:
    """Computes the zeros before and after a gradient of a size, so that all phases of `count` cells can be read from it."""
    shifts = [shift for phase in phases for _, shift in phase]
    return max(0, -min(shifts)), max(0, max(shifts) + count - size)


def _matrix(cells: Array) -> Array:
    """Lists cells: [B, h, w, C] -> [B * h * w, C]."""
    return cells.reshape(-1, cells.shape[-1])
