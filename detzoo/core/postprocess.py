"""From the scores of all anchors to detections.

scores [A, K] -> select: the candidates -> decode: the boxes of these alone -> clip -> class-aware NMS -> detections
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.core.nms import nms
from detzoo.types import Array, Detections


class Candidates(NamedTuple):
    """The candidates for the NMS.

    score: [T] float.
    label: [T] int32.
    row: [T] int32, the anchor.
    last: [G] float, the lowest score that was taken from each level or class of which something was left out.
    """

    score: Array
    label: Array
    row: Array
    last: Array


def postprocess(
    scores: Array,
    window: Array,
    *,
    select: Callable[[Array], Candidates],
    decode: Callable[[Candidates], Array],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    min_size: float = 0.0,
    clip_before_nms: bool = True,
) -> Detections:
    """Selects, clips and prunes the boxes of one image.

    Args:
        scores: [A, K] float, probabilities in 0..1, or logits; candidates are ranked by them.
        window: [4] float xyxy, to which boxes are clipped.
        select: scores -> candidates: `top_per_level` or `top_per_class`.
        decode: candidates -> their boxes, [T, 4] float xyxy.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        min_size: smallest width and height of a clipped box, pixels; boxes without area are always dropped.
        clip_before_nms: whether boxes are clipped before the NMS, or only what it keeps (darknet).

    Returns:
        Detections of one image. Their candidates_dropped counts the pairs of anchor and class over the score threshold that
        `select` left out.
    """
    candidates = select(scores)
    score, label = candidates.score, candidates.label  # [T]
    boxes = decode(candidates)
    chex.assert_shape(boxes, (len(score), 4))
    clipped = box_ops.clip(boxes, window)
    boxes = clipped if clip_before_nms else boxes
    large = (box_ops.area(boxes) > 0) & (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=-1)
    valid = (score > score_threshold) & large
    # Boxes may have a gradient; the choice among them has none.
    ranked = jax.lax.stop_gradient((boxes, score))
    indices, kept = nms(*ranked, label, valid, iou_threshold=iou_threshold, max_detections=max_detections)
    boxes = clipped[indices]
    if not clip_before_nms:
        kept &= (box_ops.area(boxes) > 0) & (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=-1)
    return Detections(
        boxes=jnp.where(kept[:, None], boxes, 0),
        scores=jnp.where(kept, score[indices], 0),
        labels=jnp.where(kept, label[indices], 0),
        valid=kept,
        candidates_dropped=_count_dropped(*jax.lax.stop_gradient((scores, candidates)), score_threshold),
    )


def _count_dropped(scores: Array, candidates: Candidates, score_threshold: float) -> Array:
    """Counts the pairs of anchor and class over the threshold that are not among the candidates: [] int32.

    A level or class whose last candidate is not over the threshold left out none, so there is rarely anything to count. A loop
    of at most one round skips the pass over all scores then. `vmap` would turn a `cond` into one that always counts.
    """

    def count(_: Array, none: Array) -> Array:
        # Without the barrier the compiler moves the sum, which is the same in all rounds, out of the loop.
        in_round, _ = jax.lax.optimization_barrier((scores, none))
        over_threshold, considered = ((x > score_threshold).sum(dtype=jnp.int32) for x in (in_round, candidates.score))
        return over_threshold - considered

    full = ~(candidates.last <= score_threshold).all()  # NaN is no bound
    return jax.lax.fori_loop(0, full.astype(jnp.int32), count, jnp.int32(0))


def top_per_level(scores: Array, *, level_sizes: Sequence[int], count: int) -> Candidates:
    """Takes the best (anchor, class) pairs of each pyramid level (RetinaNet, 1708.02002, section 4.1, inference).

    Args:
        scores: [A, K] float.
        level_sizes: number of anchors of each level, in order.
        count: pairs taken per level; a level with fewer gives all of them.

    Returns:
        candidates, T = the sum of min(count, anchors of the level * K).
    """
    chex.assert_equal(sum(level_sizes), scores.shape[0])
    best = scores.max(axis=1)  # of all levels at once: on a CPU the slice of a level would be a copy
    picked, last, start = [], [], 0
    for size in level_sizes:
        picked.append(_top_pairs(scores, best, start, size, count))
        if count < size * scores.shape[1]:
            last.append(picked[-1][0].min())  # not [-1]: XLA then sorts the whole level
        start += size
    return Candidates(*map(jnp.concatenate, zip(*picked)), jnp.array(last, scores.dtype))


def top_per_class(scores: Array, *, count: int) -> Candidates:
    """Takes the best anchors of each class (SSD's released code and torchvision's).

    Args:
        scores: [A, K] float.
        count: anchors taken per class.

    Returns:
        candidates, T = K * min(count, A), class after class.
    """
    num_anchors, num_classes = scores.shape
    score, row = jax.lax.top_k(scores.T, min(count, num_anchors))  # [K, count]
    label = jnp.broadcast_to(jnp.arange(num_classes, dtype=jnp.int32)[:, None], row.shape)
    last = score.min(axis=1) if count < num_anchors else score[:, :0].reshape(-1)
    return Candidates(score.reshape(-1), label.reshape(-1), row.reshape(-1), last)


def _top_pairs(scores: Array, best: Array, start: int, size: int, count: int) -> tuple[Array, Array, Array]:
    """Finds the best (anchor, class) pairs of a level: score, label and anchor row, each [min(count, size * K)].

    Two small top-k replace one over A * K: each of the best `count` pairs belongs to one of the `count` anchors whose best
    scores are highest.

    Args:
        scores: [A, K] float, of all levels.
        best: [A] float, the best score of each anchor.
        start: row of the level's first anchor.
        size: number of the level's anchors.
        count: pairs taken.
    """
    num_classes = scores.shape[1]
    score, rows = jax.lax.top_k(best[start : start + size], min(count, size))
    if num_classes == 1:
        return score, jnp.zeros_like(rows), start + rows
    # Ascending rows, so that ties are broken as in one top-k over all pairs.
    rows = start + jnp.sort(rows)
    score, pair = jax.lax.top_k(scores[rows].reshape(-1), min(count, rows.size * num_classes))
    return score, (pair % num_classes).astype(jnp.int32), rows[pair // num_classes]
