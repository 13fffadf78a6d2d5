"""The maximum over the cells of each bin of RoIs, and its gradient.

    rows and columns of each bin -> the maximum over its cells, one cell after the other, RoI by RoI
    gradient: RoI by RoI, added to one gradient of all cells
    on a GPU: all RoIs at once, forward and backward

`roi_features` computes the bins. The formulations were chosen by scripts/dev/benchmark_roi_features.py, on a
CPU; those for GPUs by reasoning.
"""

import functools

import jax
import jax.numpy as jnp

from detzoo.types import Array

POOLED_AT_ONCE = 8  # RoIs that are pooled together on a CPU: as fast as one by one, in fewer steps


@jax.custom_vjp
def pool_cells(cells: Array, start: Array, width: Array, low: Array, high: Array) -> Array:
    """Takes the maximum over the cells of each bin.

    Args:
        cells: [N, C] float.
        start: [R] int32, the first cell of the RoI's level.
        width: [R] int32, the width of the RoI's level, cells.
        low: [R, 2, size] int32, the first row and column of each bin.
        high: [R, 2, size] int32, the row and column after the last.

    Returns:
        [R, size, size, C].
    """
    return _pool_cells_forward(cells, start, width, low, high)[0]


def _bin_cell(step: Array, start: Array, width: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Finds the step-th cell of each bin of a RoI, in row-major order of the largest bin: ([size, size], whether there is one)."""
    columns = jnp.max(high[1] - low[1])
    y, x = low[0] + step // columns, low[1] + step % columns
    exists = (y < high[0])[:, None] & (x < high[1])
    return start + jnp.where(exists, y[:, None] * width + x, 0), exists


def _steps(low: Array, high: Array) -> Array:
    """Counts the cells of the largest bin of a RoI."""
    return jnp.maximum(high - low, 0).max(axis=1).prod()


def _pool_cells_forward(cells: Array, start: Array, width: Array, low: Array, high: Array):
    size = low.shape[2]

    def pool(roi) -> tuple[Array, Array]:
        def compare(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            best, where = state
            cell, exists = _bin_cell(step, *roi)
            value = cells[cell]  # [size, size, C]
            better = exists[..., None] & (value > best)
            return jnp.where(better, value, best), jnp.where(better, cell[..., None], where)

        shape = (size, size, cells.shape[1])
        state = jnp.full(shape, -jnp.inf, cells.dtype), jnp.full(shape, -1, jnp.int32)
        best, where = jax.lax.fori_loop(0, _steps(roi[2], roi[3]), compare, state)
        return jnp.where(where >= 0, best, 0), where

    some = functools.partial(jax.lax.map, pool, batch_size=POOLED_AT_ONCE)
    result, where = jax.lax.platform_dependent((start, width, low, high), cuda=jax.vmap(pool), default=some)
    return result, (cells, start, width, low, high, where)


def _pool_cells_backward(saved, gradient: Array):
    """Adds the gradient of the bins to the cells that hold the maxima."""
    cells, start, width, low, high, where = saved
    gradient = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))

    def add_roi(total: Array, roi) -> tuple[Array, None]:
        *bins, where, gradient = roi

        def add_step(step: Array, total: Array) -> Array:
            cell, exists = _bin_cell(step, *bins)
            chosen = exists[..., None] & (where == cell[..., None])
            return total.at[cell].add(jnp.where(chosen, gradient, 0))

        return jax.lax.fori_loop(0, _steps(bins[2], bins[3]), add_step, total), None

    def one_by_one(*rois: Array) -> Array:
        return jax.lax.scan(add_roi, jnp.zeros(cells.shape, gradient.dtype), rois)[0]

    def at_once(*rois: Array) -> Array:
        *_, where, gradient = rois
        row = jnp.where(where >= 0, where, len(cells))  # out of bounds, so that it is dropped
        return jnp.zeros(cells.shape, gradient.dtype).at[row, jnp.arange(cells.shape[1])].add(gradient, mode='drop')

    total = jax.lax.platform_dependent(start, width, low, high, where, gradient, cuda=at_once, default=one_by_one)
    return total.astype(cells.dtype), None, None, None, None


pool_cells.defvjp(_pool_cells_forward, _pool_cells_backward)
