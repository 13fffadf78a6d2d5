"""Bilinear samples of feature maps, reduced to the bins of RoIs, and their gradient.

    sample points along y and along x -> two cells and weights each -> gathers, summed sample by sample
    gradient: RoI by RoI, added to one gradient of all cells

`roi_features` computes the points. The formulations were chosen by scripts/dev/benchmark_roi_features.py, on a CPU.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from detzoo.types import Array

# Samples of a bin per step of a loop. If all were unrolled, XLA would fuse their gathers into every use of the result.
UNROLLED_SAMPLES = 2


class _Taps(NamedTuple):
    """The two cells on either side of each sample point, along y (axis 1: 0) and x.

    index: [R, 2, size, s, 2] int32, row or column.
    weight: [R, 2, size, s, 2] float in 0..1.
    share: [R, 2, s] float: 1 / number of samples, 0 for samples that are not used.
    """

    index: Array
    weight: Array
    share: Array


def pool_samples(cells: Array, start: Array, sides: Array, points: Array, count: Array, reduce: str) -> Array:
    """Pools bilinear samples at the crossings of points along y and x.

    Args:
        cells: [N, C] float.
        start: [R] int32, the first cell of each RoI's level.
        sides: [R, 2] int32, height and width of each RoI's level, cells.
        points: [R, 2, size, s] float, in cells; whole numbers are centres.
        count: [R, 2] int: how many of the s points are used.
        reduce: 'average' or 'max'.

    Returns:
        [R, size, size, C].
    """
    last = (sides - 1)[..., None, None]
    inside = (points >= -1) & (points <= last + 1)
    points = jnp.clip(points, 0, last)
    low = jnp.floor(points).astype(jnp.int32)
    fraction = points - low
    samples = jnp.arange(points.shape[-1])
    taps = _Taps(
        index=jnp.stack([low, jnp.minimum(low + 1, last)], axis=-1),
        weight=jnp.where(inside[..., None], jnp.stack([1 - fraction, fraction], axis=-1), 0),
        share=(samples < count[..., None]) / jnp.maximum(count, 1)[..., None].astype(points.dtype),
    )
    return _combine(reduce, cells, start, sides[:, 1], taps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(reduce: str, cells: Array, start: Array, width: Array, taps: _Taps) -> Array:
    """Reduces the samples of each bin: [R, size, size, C]. start and width [R] are those of the RoIs' levels."""
    rois, _, size, samples, _ = taps.index.shape
    shape = (rois, size, size, cells.shape[-1])
    dtype = jnp.promote_types(cells.dtype, jnp.float32)

    def add(number: Array, total: Array) -> Array:
        value, share = _sample(number, cells, start, width, taps)
        return total + share * value

    def compare(number: Array, best: Array) -> Array:
        value, share = _sample(number, cells, start, width, taps)
        return jnp.where(share > 0, jnp.maximum(value, best), best)

    step, initial = (add, 0) if reduce == 'average' else (compare, -jnp.inf)
    unroll = min(samples**2, UNROLLED_SAMPLES)
    result = jax.lax.fori_loop(0, samples**2, step, jnp.full(shape, initial, dtype), unroll=unroll)
    used = (taps.share > 0).any(axis=2).all(axis=1)[:, None, None, None]
    return jnp.where(used, result, 0).astype(cells.dtype)


def _sample(number: Array, cells: Array, start: Array, width: Array, taps: _Taps) -> tuple[Array, Array]:
    """Interpolates one of the s x s samples of each bin: [R, size, size, C], and its share of the average [R, 1, 1, 1]."""
    dtype = jnp.promote_types(cells.dtype, jnp.float32)
    row, column = jnp.divmod(number, taps.index.shape[3])
    y, x = taps.index[:, 0, :, row], taps.index[:, 1, :, column]  # [R, size, 2]
    weight_y, weight_x = taps.weight[:, 0, :, row], taps.weight[:, 1, :, column]
    value = 0
    for i in (0, 1):
        for j in (0, 1):
            cell = start[:, None, None] + y[:, :, None, i] * width[:, None, None] + x[:, None, :, j]
            weight = weight_y[:, :, None, i] * weight_x[:, None, :, j]
            value += weight[..., None].astype(dtype) * cells[cell].astype(dtype)
    share = taps.share[:, 0, row] * taps.share[:, 1, column]
    return value, share[:, None, None, None].astype(dtype)


def _combine_forward(reduce: str, *arguments):
    return _combine(reduce, *arguments), arguments


def _combine_backward(reduce: str, arguments, gradient: Array):
    """Adds the gradient of the bins to the cells, RoI by RoI and sample by sample."""
    cells, *rois = arguments
    samples = rois[-1].index.shape[3]
    numbers = jnp.arange(samples**2)
    dtype = jnp.promote_types(cells.dtype, jnp.float32)

    def add_roi(total: Array, roi) -> tuple[Array, None]:
        (start, width, taps), gradient = roi
        gradient = gradient.astype(dtype)
        one = jax.tree.map(lambda x: x[None], (start, width, taps))

        if reduce == 'max':  # sample again: storing the index of the largest sample takes more memory and time

            def used(number: Array) -> Array:
                value, share = _sample(number, cells, *one)
                return jnp.where(share > 0, value, -jnp.inf)[0]

            values = jax.lax.map(used, numbers)  # [s * s, size, size, C]
            first = jnp.where(values == values.max(axis=0), numbers[:, None, None, None], samples**2)
            which = first.min(axis=0)  # [size, size, C]

        def add_sample(number: Array, total: Array) -> Array:
            row, column = jnp.divmod(number, samples)
            (y, x), (weight_y, weight_x) = (
                (both[0, :, row], both[1, :, column]) for both in (taps.index, taps.weight)
            )  # [size, 2]
            share = (taps.share[0, row] * taps.share[1, column]).astype(dtype)
            if reduce == 'average':
                chosen = gradient * share
            else:
                chosen = jnp.where((share > 0) & (which == number), gradient, 0)
            weight = weight_y[:, :, None, None] * weight_x
            cell = start + y[:, :, None, None] * width + x  # [size, 2, size, 2]
            return total.at[cell].add(weight[..., None].astype(dtype) * chosen[:, None, :, None])

        return jax.lax.fori_loop(0, samples**2, add_sample, total), None

    total, _ = jax.lax.scan(add_roi, jnp.zeros(cells.shape, dtype), (tuple(rois), gradient))
    return total.astype(cells.dtype), None, None, None


_combine.defvjp(_combine_forward, _combine_backward)
