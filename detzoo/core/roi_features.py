"""Features of regions: RoIAlign, RoIPool, RoIWarp and spatial pyramid pooling, over one level or a pyramid of them.

    levels of one image -> one list of cells; for each RoI, where its level begins and how wide it is
    RoIAlign, RoIWarp: sample points along y and along x -> `roi_samples`
    RoIPool: the rows and columns of each bin -> `roi_cells`; spatial pyramid pooling: RoIPool with several numbers of bins

A RoI has a cost on its own level only. Gradients go to the features, not to the RoIs (`stop_gradient`). Sums and weights
are float64 if the features are, else float32, also for features in half precision. A RoI with a coordinate that is not
finite gives zeros; coordinates beyond a million pixels are clipped to a million.

RoIPool: Fast R-CNN, 1504.08083, section 2.1. RoIAlign: Mask R-CNN, 1703.06870, section 3. RoIWarp: Multi-task Network
Cascades, 1512.04412, section 3.2, as ablated in Mask R-CNN, table 2c. Spatial pyramid pooling: SPP-net, 1406.4729, section 2.2.
Levels: FPN, 1612.03144, section 4.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core import boxes as box_ops
from detzoo.core.roi_cells import pool_cells
from detzoo.core.roi_samples import pool_samples
from detzoo.types import Array

LEVEL_TOLERANCE = 1e-6  # levels; a side of exactly 224 pixels, rounded down a little, still belongs to the level of 224
FARTHEST = 2.0**20  # pixels; a cell's index times the number of bins still fits an int32


def assign_levels(
    rois: Array, *, min_level: int, max_level: int, canonical_size: float = 224, canonical_level: int = 4
) -> Array:
    """Assigns RoIs to the levels of a pyramid by their size (FPN, 1612.03144, section 4.2, equation 1).

    Level k = floor(canonical_level + log2(sqrt(area) / canonical_size)), clipped; a RoI with an area of 0 or NaN gets min_level.

    Args:
        rois: [R, 4] float xyxy, pixels.
        min_level: the finest level; level k has stride 2^k.
        max_level: the coarsest level.
        canonical_size: side of a square at canonical_level, pixels.
        canonical_level: level of a square of canonical_size.

    Returns:
        level: [R] int32 in 0..max_level - min_level: 0 is min_level.
    """
    chex.assert_shape(rois, (None, 4))
    # The side is compared with the least side of each further level, since a logarithm would be rounded.
    levels = np.arange(min_level + 1, max_level + 1)
    sides = canonical_size * 2.0 ** (levels - canonical_level - LEVEL_TOLERANCE)
    side = jnp.sqrt(box_ops.area(rois))
    return (side[:, None] >= sides.astype(side.dtype)).sum(axis=1, dtype=jnp.int32)


def roi_align(
    levels: Sequence[Array],
    rois: Array,
    level: Array,
    *,
    strides: Sequence[float],
    output_size: int,
    samples_per_bin: int,
    aligned: bool,
    max_samples_per_bin: int = 4,
    reduce: str = 'average',
) -> Array:
    """Pools RoIs from bilinear samples, without rounding any coordinate (Mask R-CNN, 1703.06870, section 3).

    Each RoI has output_size x output_size equal bins, and each bin samples_per_bin x samples_per_bin points in its interior,
    evenly spread. A sample is interpolated between the centres of the four nearest cells. Beyond the outermost centres it has
    the border's value for one cell, and is 0 farther out.

    Args:
        levels: L times [h, w, C] float, features.
        rois: [R, 4] float xyxy, pixels of the canvas.
        level: [R] int32 in 0..L-1, which level a RoI is pooled from.
        strides: L numbers, pixels a cell.
        output_size: bins along a side.
        samples_per_bin: points along a side of a bin. 0: along each side as many as the bin has cells, rounded up
            (`adaptive_samples`), but at most max_samples_per_bin; the cost is that of max_samples_per_bin.
        aligned: True (detectron2): cell i has its centre at pixel (i + 0.5) * stride, and a RoI may have any size. False
            (the original code, and torchvision's default): cell i has its centre at pixel i * stride, half a cell off, and
            a RoI is at least one cell wide and high.
        max_samples_per_bin: largest number of points along a side of a bin where samples_per_bin is 0.
        reduce: 'average' or 'max' over the samples of a bin; among equal maxima the first gets the gradient.

    Returns:
        [R, output_size, output_size, C], the dtype of the features.

    Raises:
        ValueError: if a number of samples, of bins or of strides, or `reduce`, cannot be.
    """
    _check(levels, strides, output_size, reduce)
    if samples_per_bin < 0 or max_samples_per_bin < 1:
        raise ValueError(
            f'samples_per_bin {samples_per_bin}, max_samples_per_bin {max_samples_per_bin}: a bin needs points'
        )
    cells, frame = _flatten(levels, rois, level, strides)
    start, extent = _extent(rois, frame.stride, aligned)  # [R, 2]
    if samples_per_bin:
        samples, count = samples_per_bin, jnp.full(start.shape, samples_per_bin)
    else:
        samples = max_samples_per_bin
        count = jnp.minimum(_samples_needed(extent, output_size), samples)
    points = _sample_points(start, extent, count, output_size, samples)
    return pool_samples(_sides(levels), cells, frame.start, frame.sides, points, count, reduce)


def adaptive_samples(rois: Array, level: Array, *, strides: Sequence[float], output_size: int, aligned: bool) -> Array:
    """Counts the samples that `roi_align` would take along the longer side of a bin with samples_per_bin 0 and no limit.

    A metric uses it to count the RoIs that need more than max_samples_per_bin.

    Args:
        rois: [R, 4] float xyxy, pixels of the canvas.
        level: [R] int32.
        strides: strides of the levels, pixels.
        output_size: bins along a side.
        aligned: as in `roi_align`.

    Returns:
        [R] int32, 0 for an empty RoI.
    """
    chex.assert_shape(rois, (None, 4))
    stride = jnp.asarray(strides, _coordinates(rois).dtype)[level]
    return _samples_needed(_extent(rois, stride, aligned)[1], output_size).max(axis=1)


def roi_warp(
    levels: Sequence[Array],
    rois: Array,
    level: Array,
    *,
    strides: Sequence[float],
    output_size: int,
    samples_per_bin: int,
    reduce: str = 'average',
) -> Array:
    """Crops RoIs to whole cells, and pools bilinear samples of the crop (the RoIWarp of Mask R-CNN, table 2c).

    Like RoIPool it quantises: the corners, divided by the stride, are rounded (half away from zero), and the crop has
    all cells from the first corner's to the second's, both included, hence at least one. Like RoIAlign it samples: the
    crop, whose cell i spans i..i+1 with its centre in the middle, has output_size x output_size equal bins of
    samples_per_bin x samples_per_bin points. Each point is interpolated between the four nearest centres *of the crop*:
    cells outside of it have no influence, and its edge has the border's value. Where a crop leaves the map, samples farther
    than one cell from the map's outermost centres are 0. (1512.04412 interpolates to a grid, then takes the maximum over
    2 x 2: samples_per_bin 2, reduce 'max'.)

    Args:
        levels: L times [h, w, C] float, features.
        rois: [R, 4] float xyxy, pixels of the canvas.
        level: [R] int32 in 0..L-1, which level a RoI is pooled from.
        strides: L numbers, pixels a cell.
        output_size: bins along a side.
        samples_per_bin: points along a side of a bin, >= 1.
        reduce: 'average' or 'max' over the samples of a bin; among equal maxima the first gets the gradient.

    Returns:
        [R, output_size, output_size, C], the dtype of the features.

    Raises:
        ValueError: if a number of samples, of bins or of strides, or `reduce`, cannot be.
    """
    _check(levels, strides, output_size, reduce)
    if samples_per_bin < 1:
        raise ValueError(f'samples_per_bin {samples_per_bin}: a bin needs points')
    cells, frame = _flatten(levels, rois, level, strides)
    first, count = _quantize(rois, frame.stride)  # [R, 2]
    dtype = _coordinates(rois).dtype
    start, extent = first.astype(dtype) - 0.5, count.astype(dtype)  # from edge to edge; whole numbers are centres
    samples = jnp.full(first.shape, samples_per_bin)
    points = _sample_points(start, extent, samples, output_size, samples_per_bin)
    inside = jnp.clip(points, first[..., None, None], (first + count - 1)[..., None, None])
    return pool_samples(_sides(levels), cells, frame.start, frame.sides, inside, samples, reduce)


def roi_pool(
    levels: Sequence[Array], rois: Array, level: Array, *, strides: Sequence[float], output_size: int
) -> Array:
    """Rounds RoIs to whole cells, and takes the maximum over the cells of each bin (Fast R-CNN, 1504.08083, section 2.1).

    The corners, divided by the stride, are rounded (half away from zero), and the RoI has the n cells from the first
    corner's to the second's, both included, hence at least one. Bin i of k has cells floor(i n / k) up to
    ceil((i + 1) n / k), computed exactly, so bins may share cells. Cells outside of the map do not count, and a bin without
    cells in the map is 0. The gradient goes to the first maximum in row-major order. (Code that computes i n / k in
    float32 sometimes takes another cell: torchvision does for 57 cells and 7 bins.)

    A RoI takes a step for each cell of its largest bin, and a step gathers output_size^2 rows. So a RoI as large as the map
    reads each cell of the map about once, and again the cells that bins share. For the gradient, one int32 is kept
    for each value of the result.

    Args:
        levels: L times [h, w, C] float, features.
        rois: [R, 4] float xyxy, pixels of the canvas.
        level: [R] int32 in 0..L-1, which level a RoI is pooled from.
        strides: L numbers, pixels a cell.
        output_size: bins along a side.

    Returns:
        [R, output_size, output_size, C], the dtype of the features.

    Raises:
        ValueError: if a number of bins or of strides cannot be.
    """
    _check(levels, strides, output_size)
    cells, frame = _flatten(levels, rois, level, strides)
    first, count = _quantize(rois, frame.stride)  # [R, 2]
    bins = jnp.arange(output_size, dtype=jnp.int32)
    count = count[..., None]
    low, high = bins * count // output_size, -(-(bins + 1) * count // output_size)  # [R, 2, output_size]
    limit = frame.sides[..., None]
    low, high = (jnp.clip(x + first[..., None], 0, limit) for x in (low, high))
    return pool_cells(cells, frame.start, frame.sides[:, 1], low, high)


def pyramid_pool(
    levels: Sequence[Array], rois: Array, level: Array, *, strides: Sequence[float], output_sizes: Sequence[int]
) -> Array:
    """Takes the maximum over the cells of each bin of a pyramid of bins (SPP-net, 1406.4729, section 2.2).

    Each RoI is divided as `roi_pool` does, once for each number of bins along a side.

    Args:
        levels: L times [h, w, C] float, features.
        rois: [R, 4] float xyxy, pixels of the canvas.
        level: [R] int32 in 0..L-1, which level a RoI is pooled from.
        strides: L numbers, pixels a cell.
        output_sizes: bins along a side, for each level of the pyramid of bins.

    Returns:
        [R, 1, n, C], the dtype of the features: all n bins in one row, in the order of output_sizes.

    Raises:
        ValueError: if a number of bins or of strides cannot be.
    """
    pooled = [roi_pool(levels, rois, level, strides=strides, output_size=size) for size in output_sizes]
    return jnp.concatenate([x.reshape(len(rois), 1, x.shape[1] ** 2, x.shape[3]) for x in pooled], axis=2)


class _Frame(NamedTuple):
    """The place of each RoI's level among all cells: its start [R], its height and width [R, 2], and its stride [R]."""

    start: Array
    sides: Array
    stride: Array


def _check(levels: Sequence[Array], strides: Sequence[float], output_size: int, reduce: str = 'average') -> None:
    """Refuses impossible arguments."""
    if not len(levels) == len(strides) > 0:
        raise ValueError(f'{len(levels)} levels have {len(strides)} strides')
    if output_size < 1:
        raise ValueError(f'output_size {output_size}: a RoI needs bins')
    if reduce not in ('average', 'max'):
        raise ValueError(f"reduce {reduce!r}: 'average' or 'max'")


def _coordinates(rois: Array) -> Array:
    """Clips RoIs, stops their gradient and makes them float32 at least; RoIs that are not finite are moved far outside."""
    rois = jax.lax.stop_gradient(rois)
    rois = rois.astype(jnp.promote_types(rois.dtype, jnp.float32))
    return jnp.where(jnp.isfinite(rois).all(axis=-1, keepdims=True), jnp.clip(rois, -FARTHEST, FARTHEST), -FARTHEST)


def _sides(levels: Sequence[Array]) -> tuple[tuple[int, int], ...]:
    """Lists the height and width of each level, cells."""
    return tuple(x.shape[:2] for x in levels)


def _flatten(levels: Sequence[Array], rois: Array, level: Array, strides: Sequence[float]) -> tuple[Array, _Frame]:
    """Joins levels into one list of cells [N, C], and looks up the frame of each RoI."""
    chex.assert_shape(levels, (None, None, levels[0].shape[-1]))
    chex.assert_shape(rois, (None, 4))
    chex.assert_shape(level, (len(rois),))
    sides = np.array(_sides(levels), np.int32)
    starts = np.cumsum([0, *sides.prod(axis=1)])[:-1].astype(np.int32)
    cells = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in levels])
    stride = jnp.asarray(strides, _coordinates(rois).dtype)
    return cells, _Frame(jnp.asarray(starts)[level], jnp.asarray(sides)[level], stride[level])


def _extent(rois: Array, stride: Array, aligned: bool) -> tuple[Array, Array]:
    """Computes the start and the extent of RoIs along y and x, in cells, each [R, 2]. Whole numbers are centres of cells."""
    x1, y1, x2, y2 = jnp.split(_coordinates(rois) / stride[:, None], 4, axis=1)
    start, end = jnp.concatenate([y1, x1], axis=1), jnp.concatenate([y2, x2], axis=1)
    return start - (0.5 if aligned else 0), jnp.maximum(end - start, 0 if aligned else 1)


def _quantize(rois: Array, stride: Array) -> tuple[Array, Array]:
    """Rounds RoIs to whole cells: the first cell and the number of cells along y and x, each [R, 2] int32."""
    x1, y1, x2, y2 = jnp.split(round_ratio(_coordinates(rois), stride[:, None]), 4, axis=1)
    start, end = jnp.concatenate([y1, x1], axis=1), jnp.concatenate([y2, x2], axis=1)
    return start, jnp.maximum(end - start + 1, 1)


def round_ratio(values: Array, divisor: Array | float) -> Array:
    """Divides values of any shape by a positive divisor, and rounds half away from zero: int32, of the same shape."""
    whole = jnp.floor(abs(values) / divisor)
    # The remainder decides: a compiled division by a constant is an inexact multiplication.
    whole += 2 * (abs(values) - whole * divisor) >= divisor
    return (jnp.sign(values) * whole).astype(jnp.int32)


def _samples_needed(extent: Array, output_size: int) -> Array:
    """Counts a sample for each cell of a bin, and one for the rest of it: int32, with the shape of extent."""
    needed = jnp.ceil(extent / output_size)
    return (needed - ((needed - 1) * output_size >= extent)).astype(jnp.int32)  # the division may be inexact


def _sample_points(start: Array, extent: Array, count: Array, output_size: int, samples: int) -> Array:
    """Spreads samples over bins, evenly.

    Args:
        start: [R, 2] float, y and x.
        extent: [R, 2] float.
        count: [R, 2] int, points along a side of a bin, <= samples.
        output_size: bins along a side.
        samples: s.

    Returns:
        [R, 2, output_size, s] float; points from count on are not used.
    """
    start, size, count = (x[..., None, None] for x in (start, extent / output_size, jnp.maximum(count, 1)))
    return start + (jnp.arange(output_size)[:, None] + (jnp.arange(samples) + 0.5) / count.astype(size.dtype)) * size
