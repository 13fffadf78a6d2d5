"""Bilinear samples of feature maps, reduced to the bins of RoIs, and their gradient.

    sample points along y and along x -> two cells and weights each -> gathers, summed sample by sample
    gradient: RoI by RoI, or on a GPU all RoIs at once, added to one gradient of all cells
    averages on a TPU -> `roi_products`

`roi_features` computes the points. The formulations were chosen by scripts/dev/benchmark_roi_features.py, on a
CPU; those for GPUs by reasoning.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from detzoo.core import roi_products
from detzoo.types import Array

FEWEST_CHANNELS = 8  # of products on TPUs


class _Taps(NamedTuple):
    """The two cells on either side of each sample point, along y (axis 1: 0) and x.

    index: [R, 2, size, s, 2] int32, row or column.
    weight: [R, 2, size, s, 2] float in 0..1.
    share: [R, 2, s] float: 1 / number of samples, 0 for samples that are not used.
    """

    index: Array
    weight: Array
    share: Array


def pool_samples(
    levels: tuple[tuple[int, int], ...],
    cells: Array,
    start: Array,
    sides: Array,
    points: Array,
    count: Array,
    reduce: str,
) -> Array:
    """Pools bilinear samples at the crossings of points along y and x.

    Args:
        levels: height and width of each level, cells.
        cells: [N, C] float, level after level.
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
    return _combine(reduce, levels, cells, start, sides[:, 1], taps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _combine(
    reduce: str, levels: tuple[tuple[int, int], ...], cells: Array, start: Array, width: Array, taps: _Taps
) -> Array:
    """Reduces the samples of each bin: [R, size, size, C]. start and width [R] are those of the RoIs' levels."""
    few, all_of_two = (functools.partial(_reduce_samples, reduce, unroll) for unroll in (2, 4))
    tpu = functools.partial(_average_as_product, levels) if _suits_products(reduce, cells) else few
    return jax.lax.platform_dependent(cells, start, width, taps, cuda=all_of_two, tpu=tpu, default=few)


def _combine_forward(reduce: str, levels: tuple[tuple[int, int], ...], *arguments):
    return _combine(reduce, levels, *arguments), arguments


def _combine_backward(reduce: str, levels: tuple[tuple[int, int], ...], arguments, gradient: Array):
    """Computes the gradient of the cells. On a GPU all RoIs are added at once: a step of a loop costs a launch of kernels."""
    at_once, one_by_one = (functools.partial(add, reduce) for add in (_cells_gradient, _cells_gradient_one_by_one))
    tpu = functools.partial(_cells_gradient_as_product, levels) if _suits_products(reduce, arguments[0]) else one_by_one
    total = jax.lax.platform_dependent(*arguments, gradient, cuda=at_once, tpu=tpu, default=one_by_one)
    return total, None, None, None


_combine.defvjp(_combine_forward, _combine_backward)


def _suits_products(reduce: str, cells: Array) -> bool:
    """Tells whether a TPU takes products; its compiler aborts at those of the 3 channels of an image."""
    return reduce == 'average' and cells.shape[-1] >= FEWEST_CHANNELS


def _average_as_product(
    levels: tuple[tuple[int, int], ...], cells: Array, start: Array, width: Array, taps: _Taps
) -> Array:
    """Averages the samples of each bin, as `_combine`, with `roi_products`."""
    del width
    return roi_products.average_samples(levels, cells, start, *_bin_weights(taps))


def _cells_gradient_as_product(
    levels: tuple[tuple[int, int], ...], cells: Array, start: Array, width: Array, taps: _Taps, gradient: Array
) -> Array:
    """Computes the gradient of the cells [N, C] for averages, with `roi_products`."""
    del width
    return roi_products.cells_gradient(levels, cells, start, *_bin_weights(taps), gradient)


def _bin_weights(taps: _Taps) -> tuple[Array, Array]:
    """Joins the samples of a bin: the index and the weight of the cells that it reads along y and x, [R, 2, size, 2 s]."""
    weight = taps.weight * taps.share[:, :, None, :, None]
    return tuple(x.reshape(*x.shape[:3], 2 * x.shape[3]) for x in (taps.index, weight))


def _reduce_samples(reduce: str, unroll: int, cells: Array, start: Array, width: Array, taps: _Taps) -> Array:
    """Reduces the samples of each bin, as `_combine`, `unroll` of them in each step of a loop.

    If all were unrolled, XLA's CPU compiler would fuse their gathers into every use of the result.
    """
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
    unroll = min(samples**2, unroll)
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


def _cells_gradient(reduce: str, cells: Array, start: Array, width: Array, taps: _Taps, gradient: Array) -> Array:
    """Adds the gradient of the bins [R, size, size, C] to the cells, all RoIs at once: [N, C]."""
    total = jnp.zeros(cells.shape, jnp.promote_types(cells.dtype, jnp.float32))
    return _add_gradient(reduce, total, cells, start, width, taps, gradient).astype(cells.dtype)


def _cells_gradient_one_by_one(
    reduce: str, cells: Array, start: Array, width: Array, taps: _Taps, gradient: Array
) -> Array:
    """Adds the gradient of the bins [R, size, size, C] to the cells, RoI by RoI: [N, C]."""

    def add_roi(total: Array, roi) -> tuple[Array, None]:
        return _add_gradient(reduce, total, cells, *jax.tree.map(lambda x: x[None], roi)), None

    total = jnp.zeros(cells.shape, jnp.promote_types(cells.dtype, jnp.float32))
    return jax.lax.scan(add_roi, total, (start, width, taps, gradient))[0].astype(cells.dtype)


def _add_gradient(
    reduce: str, total: Array, cells: Array, start: Array, width: Array, taps: _Taps, gradient: Array
) -> Array:
    """Adds the gradient of the bins of some RoIs to a total [N, C], sample by sample."""
    samples, gradient = taps.index.shape[3], gradient.astype(total.dtype)
    if reduce == 'max':
        which = _largest_sample(cells, start, width, taps)

    def add_sample(number: Array, total: Array) -> Array:
        row, column = jnp.divmod(number, samples)
        y, x = taps.index[:, 0, :, row], taps.index[:, 1, :, column]  # [R, size, 2]
        weight_y, weight_x = taps.weight[:, 0, :, row], taps.weight[:, 1, :, column]
        share = (taps.share[:, 0, row] * taps.share[:, 1, column])[:, None, None, None].astype(total.dtype)
        if reduce == 'average':
            chosen = gradient * share
        else:
            chosen = jnp.where((share > 0) & (which == number), gradient, 0)
        weight = weight_y[:, :, :, None, None] * weight_x[:, None, None]  # [R, size, 2, size, 2]
        start_of, width_of = (values[:, None, None, None, None] for values in (start, width))
        cell = start_of + y[:, :, :, None, None] * width_of + x[:, None, None]
        return total.at[cell].add(weight[..., None].astype(total.dtype) * chosen[:, :, None, :, None])

    return jax.lax.fori_loop(0, samples**2, add_sample, total)


def _largest_sample(cells: Array, start: Array, width: Array, taps: _Taps) -> Array:
    """Finds the number of the first largest sample of each bin: [R, size, size, C] int32, -1 where no sample is used.

    The gradient samples again: storing the numbers takes more memory and time.
    """
    rois, _, size, samples, _ = taps.index.shape
    shape = (rois, size, size, cells.shape[-1])

    def compare(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, which = state
        value, share = _sample(number, cells, start, width, taps)
        better = (share > 0) & (value > best)
        return jnp.where(better, value, best), jnp.where(better, number, which)

    initial = jnp.full(shape, -jnp.inf, jnp.promote_types(cells.dtype, jnp.float32)), jnp.full(shape, -1, jnp.int32)
    return jax.lax.fori_loop(0, samples**2, compare, initial)[1]
