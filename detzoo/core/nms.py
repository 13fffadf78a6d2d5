"""Greedy non-maximum suppression with static shapes, exact at every threshold.

    candidates -> sorted by score -> tile by tile: drop the boxes that kept ones of earlier tiles overlap, then settle the tile
      -> until enough are kept, or none is left -> indices into the candidates

Chosen by scripts/dev/benchmark_nms.py, on a CPU, for both uses: about 100 of 1000 candidates, and 1000 of 2000 or more. There
tiles of 256 took 1.0 to 1.4 times as long, tiles of 64 0.8 to 1.3 times. The tiles for GPUs and TPUs are larger by reasoning; no
other size was tried there.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array

CPU_TILE = 128  # candidates decided at once on a CPU
TILE = 256  # on a TPU
GPU_TILE = 2048  # on a GPU, where a step of a loop costs more than a comparison of many boxes
GPU_ROUNDS = 4  # rounds of `_settle` between two questions whether it has ended, each of which waits for the GPU


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
    limits = dict(iou_threshold=iou_threshold, max_detections=max_detections)
    kept = jax.lax.platform_dependent(
        *(jnp.asarray(x)[order] for x in (boxes, labels, valid)),
        cpu=partial(_keep, tile_size=CPU_TILE, rounds=1, **limits),
        cuda=partial(_keep, tile_size=GPU_TILE, rounds=GPU_ROUNDS, **limits),
        default=partial(_keep, tile_size=TILE, rounds=1, **limits),
    )
    place = jnp.where(kept, jnp.cumsum(kept) - 1, max_detections)  # the last tile may keep more than fit
    indices = jnp.zeros(max_detections, jnp.int32).at[place].set(order, mode='drop')
    return indices, jnp.arange(max_detections) < kept.sum()


def _keep(
    boxes: Array,
    labels: Array,
    valid: Array,
    *,
    iou_threshold: float,
    max_detections: int,
    tile_size: int,
    rounds: int,
) -> Array:
    """Decides which candidates are kept, tile by tile, until there are enough.

    Args:
        boxes, labels, valid: as for `nms`, in order of score, the invalid last.
        iou_threshold, max_detections: as for `nms`.
        tile_size: candidates decided at once.
        rounds: see `_settle`.

    Returns:
        [T] bool; all after the first max_detections may be False.
    """
    count = len(boxes)
    tile_size = max(1, min(tile_size, count))
    tiles = -(-count // tile_size)

    def tiled(x: Array) -> Array:
        """Pads candidates to whole tiles: [tiles, tile_size, ...]."""
        x = jnp.pad(x, [(0, tiles * tile_size - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tiles, tile_size, *x.shape[1:])

    boxes, labels, valid = tiled(boxes), tiled(labels), tiled(valid)

    def conflicts(tile: Array, other: Array) -> Array:
        """Which boxes of a tile and of another cannot both be kept: [tile_size, tile_size] bool."""
        overlap = box_ops.pairwise_iou(boxes[tile], boxes[other]) > iou_threshold
        return overlap & (labels[tile][:, None] == labels[other][None, :])

    def decide_tile(state: tuple[Array, Array]) -> tuple[Array, Array]:
        tile, kept = state

        def drop(earlier: Array, candidate: Array) -> Array:
            return candidate & ~(conflicts(earlier, tile) & kept[earlier][:, None]).any(axis=0)

        candidate = jax.lax.fori_loop(0, tile, drop, valid[tile])
        return tile + 1, kept.at[tile].set(_settle(conflicts(tile, tile), candidate, rounds))

    def unfinished(state: tuple[Array, Array]) -> Array:
        tile, kept = state
        return (tile < tiles) & valid[tile, 0] & (kept.sum() < max_detections)  # all after an invalid one are invalid

    _, kept = jax.lax.while_loop(unfinished, decide_tile, (0, jnp.zeros_like(valid)))
    return kept.reshape(-1)[:count]


def _settle(conflict: Array, candidate: Array, rounds: int) -> Array:
    """Keeps each candidate that conflicts with no earlier kept one.

    Repeats "kept unless an earlier kept box conflicts" until nothing changes. After k rounds the first k rows are
    final, so the fixpoint is the greedy choice; it takes as many rounds as the longest chain of conflicts.

    Args:
        conflict: [n, n] bool.
        candidate: [n] bool.
        rounds: rounds between two questions whether anything changed.

    Returns:
        [n] bool.
    """
    conflict = jnp.triu(conflict, 1)

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        new, _ = state
        for _ in range(rounds):
            old, new = new, candidate & ~(conflict & new[:, None]).any(axis=0)
        return new, (new != old).any()

    return jax.lax.while_loop(lambda state: state[1], again, (candidate, True))[0]
