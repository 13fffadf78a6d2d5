"""Work for what is there: heads run on the proposals, detections and positive RoIs that are valid, not on all places for them.

    rows [N, ...], valid [N] -> chunks of equal size -> a loop over all chunks, which runs a chunk if it has a valid row
      -> results [N, ...], those of a chunk without a valid row 0

Shapes stay static, the work is dynamic, and the program says how much it can be: the loop has a fixed number of rounds, so that
`detzoo.costs` counts all places. Valid rows need not come first, and a row need not know its image, so that each image of a batch
costs what it needs.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.types import Array

# Largest chunks, rows. Processor time of one thread of a CPU in milliseconds, with all rows at once and in chunks:
# 1000 proposals through two fully connected layers of 1024: 284 at once; 293 in chunks of 250 and 311 in chunks of 125 if all
# are valid, 147 and 116 if 300 are. On COCO most images fill their places for proposals.
# 100 masks of 14 x 14 cells through four convolutions of 256: 1304 at once; 1138 in chunks of 10 if all are valid, 234 if 17 are.
BOXES = 250
MASKS = 10
TRAINED_MASKS = 16  # with gradients
CROPS = 64  # of an image, each through a whole network


def without_training(module: nn.Module) -> Callable[[Array], Any]:
    """Makes a function of rows [N, ...] from a bound module that is called with rows, which count, and `train`.

    A loop of JAX can call it, which it cannot call a bound module.
    """
    unbound, variables = module.unbind()
    return lambda x: unbound.apply(variables, x, None, train=False)


def map_valid(function: Callable[..., Any], rows: tuple[Array, ...], valid: Array, *, size: int) -> Any:
    """Applies a function of rows to the chunks that have a valid row, on a CPU; elsewhere to all rows at once.

    GPUs and TPUs want large products, and a branch between chunks makes them wait; the loop was measured on a CPU only.

    Args:
        function, rows, valid, size: see `map_chunks`.

    Returns:
        a tree of arrays [N, ...]. Rows that are not valid hold 0, or the function's result.
    """
    if len(valid) <= size:
        return function(*rows)

    def in_chunks(valid: Array, *rows: Array) -> Any:
        return map_chunks(function, rows, valid, size=size)

    return jax.lax.platform_dependent(valid, *rows, cpu=in_chunks, default=lambda valid, *rows: function(*rows))


def map_chunks(function: Callable[..., Any], rows: tuple[Array, ...], valid: Array, *, size: int) -> Any:
    """Applies a function of rows to the chunks that have a valid row, one after the other: memory is that of one chunk.

    Args:
        function: maps arrays [n, ...] to a tree of arrays [n, ...], row by row.
        rows: its arguments, [N, ...] each.
        valid: [N] bool, rows whose results are needed.
        size: largest number of rows of a chunk. With no more rows than that there is no loop.

    Returns:
        a tree of arrays [N, ...]. Rows that are not valid hold 0, or the function's result.
    """
    if len(valid) <= size:
        return function(*rows)
    needed, *chunks = (_split(x, size) for x in (valid, *rows))

    def run(chunk: tuple[Array, ...]) -> Any:
        needed, *rows = chunk
        result = jax.eval_shape(function, *rows)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)
        return jax.lax.cond(needed.any(), function, lambda *_: zeros, *rows)

    results = jax.lax.map(run, (needed, *chunks))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(valid)], results)


def _split(x: Array, size: int) -> Array:
    """Splits rows [N, ...] into chunks of at most `size` rows, as few and as small as can be: [chunks, n, ...], padded with 0."""
    chunks = -(-len(x) // size)
    size = -(-len(x) // chunks)
    x = jnp.pad(x, [(0, chunks * size - len(x)), *[(0, 0)] * (x.ndim - 1)])
    return x.reshape(chunks, size, *x.shape[1:])
