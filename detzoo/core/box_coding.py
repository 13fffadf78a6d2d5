"""Box coding: boxes to the deltas from anchors that a head regresses, and back."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array

MAX_LOG_SCALE = math.log(1000 / 16)  # a box may grow 62.5 times at most: keeps exp finite (Faster R-CNN's own code)


def encode(boxes: Array, anchors: Array, *, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Expresses boxes relative to anchors (R-CNN, 1311.2524, appendix C).

    tx = (x - xa) / wa, ty = (y - ya) / ha, tw = log(w / wa), th = log(h / ha), each times its weight.

    Args:
        boxes: [A, 4] float xyxy, with width and height > 0.
        anchors: [A, 4] float xyxy, with width and height > 0.
        weights: factors of the four deltas.

    Returns:
        [A, 4] float: deltas of centre x, centre y, width, height.
    """
    chex.assert_equal_shape([boxes, anchors])
    target, anchor = box_ops.xyxy_to_cxcywh(boxes), box_ops.xyxy_to_cxcywh(anchors)
    shift = (target[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    scale = jnp.log(target[..., 2:] / anchor[..., 2:])
    return jnp.concatenate([shift, scale], axis=-1) * jnp.asarray(weights, boxes.dtype)


def decode(deltas: Array, anchors: Array, *, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Applies deltas to anchors: the inverse of `encode` up to the limit on growth.

    Args:
        deltas: [A, 4] float, as `encode` returns them.
        anchors: [A, 4] float xyxy.
        weights: factors of the four deltas, those of `encode`.

    Returns:
        [A, 4] float xyxy; the width or height of an extreme delta may round to 0.
    """
    chex.assert_equal_shape([deltas, anchors])
    anchor = box_ops.xyxy_to_cxcywh(anchors)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    center = deltas[..., :2] * anchor[..., 2:] + anchor[..., :2]
    size = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor[..., 2:]
    return box_ops.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))


def encode_cells(boxes: Array, anchors: Array, strides: Array) -> Array:
    """Expresses boxes relative to anchors that stand in the middle of grid cells (YOLO9000, 1612.08242, section 2).

    tx, ty: position of a box's centre in the cell, in cells from the top left corner; tw = log(w / wa), th = log(h / ha).

    Args:
        boxes: [A, 4] float xyxy, with width and height > 0.
        anchors: [A, 4] float xyxy, with width and height > 0.
        strides: [A, 2] float, width and height of each anchor's cell, pixels.

    Returns:
        [A, 4] float: tx, ty (0..1 where the centre lies in the cell), tw, th.
    """
    chex.assert_equal_shape([boxes, anchors])
    target, anchor = box_ops.xyxy_to_cxcywh(boxes), box_ops.xyxy_to_cxcywh(anchors)
    place = (target[..., :2] - anchor[..., :2]) / strides + 0.5
    scale = jnp.log(target[..., 2:] / anchor[..., 2:])
    return jnp.concatenate([place, scale], axis=-1)


def decode_cells(outputs: Array, anchors: Array, strides: Array) -> Array:
    """Turns a network's outputs into boxes: a sigmoid keeps the centre in its cell, an exponential scales the anchor.

    With the logits of tx and ty it is the inverse of `encode_cells`, up to the limit on growth.

    Args:
        outputs: [A, 4] float: logits of tx and ty; tw, th.
        anchors: [A, 4] float xyxy.
        strides: [A, 2] float, pixels.

    Returns:
        [A, 4] float xyxy.
    """
    chex.assert_equal_shape([outputs, anchors])
    anchor = box_ops.xyxy_to_cxcywh(anchors)
    center = anchor[..., :2] + (jax.nn.sigmoid(outputs[..., :2]) - 0.5) * strides
    size = jnp.exp(jnp.minimum(outputs[..., 2:], MAX_LOG_SCALE)) * anchor[..., 2:]
    return box_ops.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))
