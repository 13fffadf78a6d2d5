"""From dense scores and deltas to detections: top-k, decode, clip, class-aware NMS."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.core.nms import nms
from detzoo.types import Array, Detections


def postprocess(
    scores: Array,
    deltas: Array,
    anchors: Array,
    window: Array,
    *,
    level_sizes: Sequence[int],
    decode: Callable[[Array, Array], Array],
    pre_nms_topk: int,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Selects, decodes and prunes the boxes of one image.

    Args:
        scores: [A, K] float in 0..1.
        deltas: [A, 4] float.
        anchors: [A, 4] float xyxy.
        window: [4] float xyxy, what boxes are clipped to.
        level_sizes: how many of the A anchors each pyramid level has, in order.
        decode: (deltas [n, 4], anchors [n, 4]) -> boxes [n, 4].
        pre_nms_topk: candidates kept per level.
        score_threshold: candidates at or below it are dropped.
        iou_threshold: of the NMS within a class.
        max_detections: D.

    Returns:
        Detections of one image.
    """
    chex.assert_shape([deltas, anchors], (scores.shape[0], 4))
    chex.assert_equal(sum(level_sizes), scores.shape[0])
    anchors = jnp.asarray(anchors)
    picked, start = [], 0
    for size in level_sizes:
        score, label, row = _top_candidates(scores[start : start + size], pre_nms_topk)
        picked.append((score, label, row + start))
        start += size
    score, label, row = (jnp.concatenate(parts) for parts in zip(*picked))  # [T]
    boxes = box_ops.clip(decode(deltas[row], anchors[row]), window)
    valid = (score > score_threshold) & (box_ops.area(boxes) > 0)
    indices, kept = nms(boxes, score, label, valid, iou_threshold=iou_threshold, max_detections=max_detections)
    return Detections(
        boxes=jnp.where(kept[:, None], boxes[indices], 0),
        scores=jnp.where(kept, score[indices], 0),
        labels=jnp.where(kept, label[indices], 0),
        valid=kept,
    )


def _top_candidates(scores: Array, count: int) -> tuple[Array, Array, Array]:
    """Finds the best (anchor, class) pairs of [A, K] scores: score, label and anchor row, each [min(count, A * K)].

    Two small top-k instead of one over A * K: a pair among the best `count` belongs to one of the `count` anchors with
    the best highest score.
    """
    num_anchors, num_classes = scores.shape
    _, rows = jax.lax.top_k(scores.max(axis=1), min(count, num_anchors))
    # Ascending rows, so that ties fall as they would in one top-k over all pairs.
    rows = jnp.sort(rows)
    score, pair = jax.lax.top_k(scores[rows].reshape(-1), min(count, rows.size * num_classes))
    return score, (pair % num_classes).astype(jnp.int32), rows[pair // num_classes]
