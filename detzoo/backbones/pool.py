"""Max pooling, whose gradient on CPUs does not go through XLA's select-and-scatter."""

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool(x: jax.Array, size: int, stride: int, padding: str | int) -> jax.Array:
    """Takes the maximum of square windows, with `nn.max_pool` or on a CPU with slices; both agree to the last bit.

    The gradient goes to the first maximum of a window, row by row, as in torch. On CPUs XLA scatters it one window after the
    other, which takes many times as long. Only of a NaN in a window the two make different gradients.

    Args:
        x: [B, h, w, C].
        size: side of the window, cells.
        stride: stride of the window, cells.
        padding: 'SAME', 'VALID', or the padding on each side in cells.

    Returns:
        [B, h', w', C].
    """
    window, strides = (size, size), (stride, stride)
    if isinstance(padding, int):
        pads = ((padding, padding),) * 2
    else:
        pads = tuple(jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding))
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _maximum_of_slices(x, size, stride, pads),
        default=lambda x: nn.max_pool(x, window, strides, pads),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _maximum_of_slices(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    """Computes `max_pool` as the maximum of the windows' first cells, of their second cells, and so on."""
    return functools.reduce(jnp.maximum, _slices(x, size, stride, padding))


def _forward(x: jax.Array, size: int, stride: int, padding: Padding) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Computes `max_pool`, and for the gradient which cell of each window is the first maximum, [B, h', w', C] uint8."""
    cells = _slices(x, size, stride, padding)
    best = next(cells)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for cell, value in enumerate(cells, 1):
        winner = jnp.where(value > best, jnp.uint8(cell), winner)
        best = jnp.where(value > best, value, best)
    # An empty array carries the shape of x.
    return _maximum_of_slices(x, size, stride, padding), (winner, jnp.empty((0, *x.shape[1:3])))


def _backward(
    size: int, stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    """Sums for each cell the gradients of the windows of which it is the first maximum, in the order of the windows.

    The cells of a phase have the same row and column modulo the stride, so that the same offsets in their windows. All cells of
    a phase are computed at once.
    """
    winner, (_, *shape) = saved[0], saved[1].shape
    (top, _), (left, _) = padding
    last = -(-size // stride) - 1  # the windows over a cell are at most last + 1 in a row, and in a column
    rows, columns = -(-(shape[0] + top) // stride), -(-(shape[1] + left) // stride)  # of a phase

    def widened(values: jax.Array, filler: int) -> jax.Array:
        """Surrounds the windows with those that would lie outside, which give nothing."""
        margins = ((last, rows - values.shape[1], 0), (last, columns - values.shape[2], 0))
        return jax.lax.pad(values, jnp.array(filler, values.dtype), ((0, 0, 0), *margins, (0, 0, 0)))

    winner, gradient = widened(winner, size * size), widened(gradient, 0)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((len(gradient), rows, columns, gradient.shape[-1]), gradient.dtype)
        for i in range(row, size, stride)[::-1]:
            for j in range(column, size, stride)[::-1]:
                above, before = last - i // stride, last - j // stride
                here = (slice(None), slice(above, above + rows), slice(before, before + columns))
                total += jnp.where(winner[here] == i * size + j, gradient[here], 0)
        return total

    phases = [jnp.stack([phase(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    whole = jnp.stack(phases, axis=2).reshape(len(gradient), rows * stride, columns * stride, gradient.shape[-1])
    return (whole[:, top : top + shape[0], left : left + shape[1]],)


_maximum_of_slices.defvjp(_forward, _backward)


def _slices(x: jax.Array, size: int, stride: int, padding: Padding) -> Iterator[jax.Array]:
    """Yields for each cell of a window, row by row, that cell of all windows: [B, h', w', C]; the padding is -inf."""
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*ends, 0) for ends in padding), (0, 0, 0)))
    spans = [(length - size) // stride * stride + 1 for length in x.shape[1:3]]
    for i in range(size):
        for j in range(size):
            yield x[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
