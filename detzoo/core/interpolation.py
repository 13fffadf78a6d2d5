"""Linear interpolation as a product of matrices: the weights of all cells at each point."""

import jax.numpy as jnp

from detzoo.types import Array


def linear_weights(points: Array, cells: int) -> Array:
    """Computes the weights of linear interpolation along an axis: 1 at a cell's centre, falling to 0 at its neighbours'.

    Args:
        points: [...] float, in cells: whole numbers are centres of cells.
        cells: S, number of cells.

    Returns:
        [..., S] float. Beyond the outermost centres the weights fall to 0, too.
    """
    return jnp.maximum(1 - abs(points[..., None] - jnp.arange(cells)), 0)
