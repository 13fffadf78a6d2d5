"""From the scores and boxes of all anchors to detections: candidates, clip, class-aware NMS."""

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
    """

    score: Array
    label: Array
    row: Array


def postprocess(
    scores: Array,
    boxes: Array,
    window: Array,
    *,
    select: Callable[[Array], Candidates],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    min_size: float = 0.0,
    clip_before_nms: bool = True,
) -> Detections:
    """Selects, clips and prunes the boxes of one image.

    Args:
        scores: [A, K] float, probabilities in 0..1, or logits; candidates are ranked by them.
        boxes: [A, 4] float xyxy, or [A, K, 4]: a box for each class.
        window: [4] float xyxy, to which boxes are clipped.
        select: scores -> candidates: `top_per_level` or `top_per_class`.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        min_size: smallest width and height of a clipped box, pixels; boxes without area are always dropped.
        clip_before_nms: whether boxes are clipped before the NMS, or only what it keeps (darknet).

    Returns:
        Detections of one image. Their candidates_dropped counts the pairs of anchor and class over the score threshold that
        `select` left out.
    """
    chex.assert_shape(boxes, (scores.shape[0], 4) if boxes.ndim == 2 else (*scores.shape, 4))
    score, label, row = select(scores)  # [T]
    over_threshold, considered = ((x > score_threshold).sum(dtype=jnp.int32) for x in (scores, score))
    boxes = boxes[row] if boxes.ndim == 2 else boxes[row, label]
    clipped = box_ops.clip(boxes, window)
    boxes = clipped if clip_before_nms else boxes
    large = (box_ops.area(boxes) > 0) & (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=-1)
    valid = (score > score_threshold) & large
    indices, kept = nms(boxes, score, label, valid, iou_threshold=iou_threshold, max_detections=max_detections)
    boxes = clipped[indices]
    if not clip_before_nms:
        kept &= (box_ops.area(boxes) > 0) & (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=-1)
    return Detections(
        boxes=jnp.where(kept[:, None], boxes, 0),
        scores=jnp.where(kept, score[indices], 0),
        labels=jnp.where(kept, label[indices], 0),
        valid=kept,
        candidates_dropped=over_threshold - considered,
    )


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
    picked, start = [], 0
    for size in level_sizes:
        score, label, row = _top_pairs(scores[start : start + size], count)
        picked.append((score, label, row + start))
        start += size
    return Candidates(*map(jnp.concatenate, zip(*picked)))


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
    return Candidates(score.reshape(-1), label.reshape(-1), row.reshape(-1))


def _top_pairs(scores: Array, count: int) -> Candidates:
    """Finds the best (anchor, class) pairs of [A, K] scores: score, label and anchor row, each [min(count, A * K)].

    Two small top-k replace one over A * K: each of the best `count` pairs belongs to one of the `count` anchors whose best
    scores are highest.
    """
    num_anchors, num_classes = scores.shape
    _, rows = jax.lax.top_k(scores.max(axis=1), min(count, num_anchors))
    # Ascending rows, so that ties are broken as in one top-k over all pairs.
    rows = jnp.sort(rows)
    score, pair = jax.lax.top_k(scores[rows].reshape(-1), min(count, rows.size * num_classes))
    return Candidates(score, (pair % num_classes).astype(jnp.int32), rows[pair // num_classes])
