"""Matching: which anchor is trained towards which ground-truth box.

A matcher returns [A] int32: the row of the ground truth an anchor is positive for, NEGATIVE, or IGNORE.
"""

import chex
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array, GroundTruth

NEGATIVE = -1
IGNORE = -2
TIE = 1e-6  # IoUs relatively this close are one value: a compiled program may round one expression in two ways
CROWD_COVERAGE = 0.5  # what lies at least half inside a crowd is neither an object nor background


def match_by_threshold(
    anchors: Array, gt: GroundTruth, *, positive_iou: float, negative_iou: float, match_best_anchors: bool
) -> Array:
    """Matches each anchor to the box it overlaps most (RetinaNet, 1708.02002, section 4; Faster R-CNN, 1506.01497, 3.1.2).

    An anchor with IoU >= positive_iou is positive for its best box, below negative_iou negative, ignored between.
    With match_best_anchors, all anchors that tie for the best IoU of some box are positive as well, each for *its own*
    best box, so that no object goes without. Crowds are never matched; anchors that are not positive and lie at least
    half inside a crowd are ignored.

    Args:
        anchors: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.
        positive_iou: in 0..1.
        negative_iou: in 0..positive_iou.
        match_best_anchors: whether each box gets its best anchors, however small the (non-zero) IoU.

    Returns:
        matched: [A] int32, a row of gt, NEGATIVE or IGNORE.
    """
    chex.assert_shape([anchors, gt.boxes], (None, 4))
    candidate = gt.valid & ~gt.crowd
    iou = jnp.where(candidate[:, None], box_ops.pairwise_iou(gt.boxes, anchors), -1)  # [M, A]
    best_iou = iou.max(axis=0, initial=-1)  # [A]
    positive = best_iou >= positive_iou
    if match_best_anchors:
        best_of_box = iou.max(axis=1, initial=-1, keepdims=True)  # [M, 1]
        positive |= ((iou >= best_of_box * (1 - TIE)) & (best_of_box > 0)).any(axis=0)
    unmatched = jnp.where(best_iou < negative_iou, NEGATIVE, IGNORE)
    unmatched = jnp.where(inside_crowd(anchors, gt), IGNORE, unmatched)
    return jnp.where(positive, iou.argmax(axis=0), unmatched).astype(jnp.int32)


def inside_crowd(boxes: Array, gt: GroundTruth) -> Array:
    """Tells which boxes lie at least half inside a crowd of the ground truth.

    Args:
        boxes: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.

    Returns:
        [A] bool.
    """
    crowd = (gt.valid & gt.crowd)[:, None]
    return (crowd & (box_ops.pairwise_coverage(gt.boxes, boxes) >= CROWD_COVERAGE)).any(axis=0)
