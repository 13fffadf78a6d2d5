"""Greedy non-maximum suppression with static shapes, exact at every threshold.

    candidates -> sorted by score -> tile by tile: drop the boxes that kept ones of earlier tiles overlap, then settle the tile
      -> until enough are kept, or none is left -> indices into the candidates

Chosen by scripts/dev/benchmark_nms.py, on a CPU, for both uses: about 100 of 1000 candidates, and 1000 of 2000 or more.
"""

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array

TILE = 256  # candidates decided at once


def nms(
    boxes: Array, scores: Array, labels: Array, valid: Array, *, iou_threshold: float, max_detections: int
) -> tuple[Array, Array]:
    """Keeps the best box, drops the boxes of its class that overlap it by more than the threshold, and repeats.

    Exactly greedy: a dropped box drops no other. Among equal scores the lower index comes first.

    Args:
        boxes: [T, 4] float xyxy.
        scores: [T] float; NaN and minus infinity count as invalid.
        labels: [T] int; a box drops only boxes with its own label.
        valid: [T] bool.
        iou_threshold: a box with a larger IoU is dropped.
        max_detections: D.

    Returns:
        indices: [D] int32 into the candidates, best score first; 0 where not kept.
        kept: [D] bool.
    """
    chex.assert_shape(boxes, (None, 4))
    chex.assert_equal_shape([scores, labels, valid])
    valid = valid & (scores > -jnp.inf)  # not NaN either
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)  # [T]
    tiles = -(-len(order) // TILE)

    def tiled(x: Array) -> Array:
        """Sorts candidates, best first, and pads them to whole tiles: [tiles, TILE, ...]."""
        x = jnp.pad(jnp.asarray(x)[order], [(0, tiles * TILE - len(order))] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tiles, TILE, *x.shape[1:])

    boxes, labels, valid = tiled(boxes), tiled(labels), tiled(valid)

    def conflicts(tile: Array, other: Array) -> Array:
        """Which boxes of a tile and of another cannot both be kept: [TILE, TILE] bool."""
        overlap = box_ops.pairwise_iou(boxes[tile], boxes[other]) > iou_threshold
        return overlap & (labels[tile][:, None] == labels[other][None, :])

    def decide_tile(state: tuple[Array, Array]) -> tuple[Array, Array]:
        tile, kept = state

        def drop(earlier: Array, candidate: Array) -> Array:
            return candidate & ~(conflicts(earlier, tile) & kept[earlier][:, None]).any(axis=0)

        candidate = jax.lax.fori_loop(0, tile, drop, valid[tile])
        return tile + 1, kept.at[tile].set(_settle(conflicts(tile, tile), candidate))

    def unfinished(state: tuple[Array, Array]) -> Array:
        tile, kept = state
        return (tile < tiles) & valid[tile, 0] & (kept.sum() < max_detections)  # all after an invalid one are invalid

    _, kept = jax.lax.while_loop(unfinished, decide_tile, (0, jnp.zeros_like(valid)))
    kept = kept.reshape(-1)[: len(order)]
    place = jnp.where(kept, jnp.cumsum(kept) - 1, max_detections)  # the last tile may keep more than fit
    indices = jnp.zeros(max_detections, jnp.int32).at[place].set(order, mode='drop')
    return indices, jnp.arange(max_detections) < kept.sum()


def _settle(conflict: Array, candidate: Array) -> Array:
    """Keeps each candidate that conflicts with no earlier kept one.

    Repeats "kept unless an earlier kept box conflicts" until nothing changes. After n rounds the first n rows are
    final, so the fixpoint is the greedy choice; it takes as many rounds as the longest chain of conflicts.

    Args:
        conflict: [TILE, TILE] bool.
        candidate: [TILE] bool.

    Returns:
        [TILE] bool.
    """
    conflict = jnp.triu(conflict, 1)

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = state
        new = candidate & ~(conflict & kept[:, None]).any(axis=0)
        return new, (new != kept).any()

    return jax.lax.while_loop(lambda state: state[1], again, (candidate, True))[0]
