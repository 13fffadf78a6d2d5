"""Greedy non-maximum suppression with static shapes, exact at every threshold."""

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array


def nms(
    boxes: Array, scores: Array, labels: Array, valid: Array, *, iou_threshold: float, max_detections: int
) -> tuple[Array, Array]:
    """Keeps the best box, drops those of its class that overlap it more than the threshold, and repeats.

    Exactly greedy: a dropped box drops no other. Ties go to the lower index. One round per kept box: each costs one row
    of IoU, so that few of many (100 of 5000) need no matrix of all pairs; the loop ends with the last box.

    Args:
        boxes: [T, 4] float xyxy.
        scores: [T] float; NaN counts as invalid.
        labels: [T] int; boxes of different labels never touch each other.
        valid: [T] bool.
        iou_threshold: a box with a larger IoU is dropped.
        max_detections: D.

    Returns:
        indices: [D] int32 into the candidates, best score first; 0 where not kept.
        kept: [D] bool.
    """
    chex.assert_shape(boxes, (None, 4))
    chex.assert_equal_shape([scores, labels, valid])

    def keep_best(state):
        step, remaining, indices = state
        best = jnp.argmax(remaining)
        iou = box_ops.pairwise_iou(boxes[best][None], boxes)[0]  # [T]
        dropped = (iou > iou_threshold) & (labels == labels[best])
        # The box itself goes too, even where it is empty and its IoU with itself 0.
        remaining = jnp.where(dropped, -jnp.inf, remaining).at[best].set(-jnp.inf)
        return step + 1, remaining, indices.at[step].set(best)

    def any_left(state):
        step, remaining, _ = state
        return (step < max_detections) & (remaining > -jnp.inf).any()

    remaining = jnp.where(valid & ~jnp.isnan(scores), scores, -jnp.inf)
    state = 0, remaining, jnp.zeros(max_detections, jnp.int32)
    count, _, indices = jax.lax.while_loop(any_left, keep_best, state)
    return indices, jnp.arange(max_detections) < count
