"""Averages of bilinear samples as matrix products, for TPUs: gathers and scatters are slow there, and products are cheap.

    RoIs -> parts of n, each of one level [h, w, C]
    weights of columns [n, size, w] x level -> [n, size, h, C], x weights of rows [n, size, h] -> [n, size, size, C]
    gradient: for some rows of a level, for some RoIs, the transposed products, added to [rows, w, C]

The parts are as small as a chip's own memory, and images take turns. A value that is not finite spreads to all RoIs. Chosen
by the compiler's estimate for a TPU v5e, see docs/performance_tpu.md.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from detzoo.types import Array

PART = 2**24  # numbers of the product between, [n, size, h, C], that are made at once

Sides = Sequence[tuple[int, int]]


def average_samples(sides: Sides, cells: Array, start: Array, index: Array, weight: Array) -> Array:
    """Adds up the cells of each bin of RoIs, with weights along y times weights along x.

    Args:
        sides: height and width of each level, cells.
        cells: [N, C] float, the cells of all levels, level after level.
        start: [R] int32, the first cell of each RoI's level.
        index: [R, 2, size, k] int32, row or column of the cells that a bin reads along y (axis 1: 0) and x.
        weight: [R, 2, size, k] float, their weights; they are rounded to the dtype of the cells.

    Returns:
        [R, size, size, C], the dtype of the cells.
    """
    size, dtype = index.shape[2], cells.dtype
    if not len(start):
        return jnp.zeros((0, size, size, cells.shape[1]), dtype)
    count = PART // (size * max(height for height, _ in sides) * cells.shape[1])  # RoIs at once
    count = max(1, min(count, len(start)))

    @jax.custom_batching.sequential_vmap
    def of_image(levels: list[Array], start: Array, index: Array, weight: Array) -> Array:
        def pool(features: Array, index: Array, weight: Array) -> Array:
            rows, columns = (_weights(index[:, i], weight[:, i], features.shape[i], dtype) for i in (0, 1))
            part = _product('njw,hwc->njhc', columns, features).astype(dtype)
            return _product('nih,njhc->nijc', rows, part).astype(dtype)

        def pool_part(part: tuple[Array, Array]) -> Array:
            number, rois = part
            return jax.lax.switch(number, branches, index[rois], weight[rois])

        nothing = jnp.zeros((count, size, size, cells.shape[1]), dtype)
        branches = [*(partial(pool, features) for features in levels), lambda index, weight: nothing]
        place, numbers = _divide(start[:, None] == _starts(sides), count)
        rois = jnp.zeros(len(numbers) * count, jnp.int32).at[place].set(jnp.arange(len(start), dtype=jnp.int32))
        pooled = jax.lax.map(pool_part, (numbers, rois.reshape(len(numbers), count)))
        pooled = pooled.reshape(len(rois), *nothing.shape[1:])
        if len(levels) == 1:  # the RoIs have kept their order
            return pooled[: len(start)]
        chosen = jax.nn.one_hot(place, len(rois), dtype=dtype)  # a product is faster than a gather, and exact
        return _product('rp,pijc->rijc', chosen, pooled).astype(dtype)

    levels = [part.reshape(*side, cells.shape[1]) for part, side in zip(jnp.split(cells, _starts(sides)[1:]), sides)]
    return of_image(levels, start, index, weight)


def cells_gradient(sides: Sides, cells: Array, start: Array, index: Array, weight: Array, gradient: Array) -> Array:
    """Computes the gradient of the cells [N, C] from that of the bins [R, size, size, C]; for the rest see `average_samples`."""

    @jax.custom_batching.sequential_vmap
    def of_image(start: Array, index: Array, weight: Array, gradient: Array) -> list[Array]:
        levels = []
        for first, side in zip(_starts(sides), sides):
            here = jnp.where((start == first)[:, None, None, None], weight, 0)
            rows, columns = (_weights(index[:, i], here[:, i], side[i], cells.dtype) for i in (0, 1))
            levels.append(_level_gradient(rows, columns, gradient.astype(cells.dtype)))
        return levels

    levels = of_image(start, index, weight, gradient)
    return jnp.concatenate([features.reshape(-1, cells.shape[1]) for features in levels])


def _level_gradient(rows: Array, columns: Array, gradient: Array) -> Array:
    """Computes the gradient of a level [h, w, C] from the weights of its rows [R, size, h] and columns [R, size, w]."""
    (rois, size, height), width, channels = rows.shape, columns.shape[2], gradient.shape[3]
    if not rois:
        return jnp.zeros((height, width, channels), gradient.dtype)
    # For fewer rows at once the gradient of the bins is read more often, and for fewer RoIs the sum: both as little as can be.
    row = size * channels
    rows_at_once = min(height, max(1, math.isqrt(size * PART // (4 * width * channels)), PART // (rois * row)))
    rois_at_once = min(rois, max(1, PART // (rows_at_once * row)))

    def divide(x: Array, axis: int, count: int) -> Array:
        """Divides an axis into equal parts of at most `count`, padded with zeros: [parts, ...]."""
        parts = -(-x.shape[axis] // count)
        count = -(-x.shape[axis] // parts)
        padding = [(0, 0)] * x.ndim
        padding[axis] = 0, parts * count - x.shape[axis]
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], parts, count, *x.shape[axis + 1 :]), axis, 0)

    others = tuple(divide(x, 0, rois_at_once) for x in (columns, gradient))

    def of_rows(rows: Array) -> Array:
        def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
            rows, columns, gradient = part
            spread = _product('nih,nijc->njhc', rows, gradient).astype(gradient.dtype)
            return total + _product('njw,njhc->hwc', columns, spread), None

        dtype = jnp.promote_types(gradient.dtype, jnp.float32)
        total = jnp.zeros((rows.shape[2], width, channels), dtype)
        return jax.lax.scan(add, total, (divide(rows, 0, rois_at_once), *others))[0].astype(gradient.dtype)

    level = jax.lax.map(of_rows, divide(rows, 2, rows_at_once))
    return level.reshape(-1, width, channels)[:height]


def _starts(sides: Sides) -> np.ndarray:
    """Computes the first cell of each level."""
    return np.cumsum([0, *map(math.prod, sides)])[:-1].astype(np.int32)


def _divide(of_level: Array, count: int) -> tuple[Array, Array]:
    """Finds places for RoIs in parts of `count` places, so that each part has RoIs of one level only.

    Args:
        of_level: [R, L] bool, the level of each RoI.
        count: places in a part.

    Returns:
        place: [R] int32, the place of each RoI among those of all parts.
        numbers: [parts] int32, the level of each part, or L for a part without RoIs.
    """
    rois, levels = of_level.shape
    ends = jnp.cumsum(-(-of_level.sum(axis=0) // count))  # the part after the last one of each level
    first = count * jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    place = jnp.where(of_level, first + of_level.cumsum(axis=0) - 1, 0).sum(axis=1, dtype=jnp.int32)
    parts = -(-rois // count) + levels - 1  # the last part of each level may have free places
    return place, (jnp.arange(parts)[:, None] >= ends).sum(axis=1, dtype=jnp.int32)


def _weights(index: Array, weight: Array, cells: int, dtype: np.dtype) -> Array:
    """Lays the weights [n, size, k] of cells with an index along a side with all cells: [n, size, cells]."""
    here = index[..., None] == jnp.arange(cells)
    return jnp.where(here, weight[..., None], 0).sum(axis=2).astype(dtype)


def _product(axes: str, x: Array, y: Array) -> Array:
    """Multiplies arrays and adds up in float32 at least; factors in float32 are not rounded."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(axes, x, y, precision='highest', preferred_element_type=dtype)
