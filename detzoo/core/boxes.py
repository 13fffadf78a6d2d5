"""Geometry of axis-aligned boxes: formats, areas, overlaps, clipping.

Boxes are xyxy in continuous pixels, so a box's width is x2 - x1. Every function takes any number of leading axes except
the pairwise ones, which take the boxes of one image.
"""

import chex
import jax.numpy as jnp

from detzoo.types import Array


def xyxy_to_cxcywh(boxes: Array) -> Array:
    """Converts corners to centres and sizes.

    Args:
        boxes: [..., 4] float, xyxy.

    Returns:
        [..., 4] float: centre x, centre y, width, height.
    """
    corner_min, corner_max = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([(corner_min + corner_max) / 2, corner_max - corner_min], axis=-1)


def cxcywh_to_xyxy(boxes: Array) -> Array:
    """Converts centres and sizes to corners: the inverse of `xyxy_to_cxcywh`.

    Args:
        boxes: [..., 4] float: centre x, centre y, width, height.

    Returns:
        [..., 4] float, xyxy.
    """
    center, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_xywh(boxes: Array) -> Array:
    """Converts corners to the top left corner and the size, as in COCO's files.

    Args:
        boxes: [..., 4] number, xyxy; numpy or JAX. The result is of the same kind and dtype.

    Returns:
        [..., 4]: left, top, width, height.
    """
    corner_min, corner_max = boxes[..., :2], boxes[..., 2:]
    return boxes.__array_namespace__().concat([corner_min, corner_max - corner_min], axis=-1)


def xywh_to_xyxy(boxes: Array) -> Array:
    """Converts the top left corner and the size to corners: the inverse of `xyxy_to_xywh`.

    Args:
        boxes: [..., 4] number: left, top, width, height; numpy or JAX. The result is of the same kind and dtype.

    Returns:
        [..., 4], xyxy.
    """
    corner_min, size = boxes[..., :2], boxes[..., 2:]
    return boxes.__array_namespace__().concat([corner_min, corner_min + size], axis=-1)


def area(boxes: Array) -> Array:
    """Computes areas; a box whose corners are in the wrong order has area 0.

    Args:
        boxes: [..., 4] float, xyxy.

    Returns:
        [...] float, square pixels, >= 0.
    """
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return size[..., 0] * size[..., 1]


def intersection(boxes1: Array, boxes2: Array) -> Array:
    """Computes the area that two boxes share.

    Args:
        boxes1: [..., 4] float, xyxy.
        boxes2: [..., 4] float, xyxy; leading axes broadcast.

    Returns:
        [...] float, square pixels, >= 0.
    """
    corner_min = jnp.maximum(boxes1[..., :2], boxes2[..., :2])
    corner_max = jnp.minimum(boxes1[..., 2:], boxes2[..., 2:])
    size = jnp.maximum(corner_max - corner_min, 0)
    return size[..., 0] * size[..., 1]


def iou(boxes1: Array, boxes2: Array) -> Array:
    """Computes the intersection over union of two boxes.

    Args:
        boxes1: [..., 4] float, xyxy.
        boxes2: [..., 4] float, xyxy; leading axes broadcast.

    Returns:
        [...] float in 0..1; 0 where both boxes are empty.
    """
    shared = intersection(boxes1, boxes2)
    union = area(boxes1) + area(boxes2) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def pairwise_iou(boxes1: Array, boxes2: Array) -> Array:
    """Computes the intersection over union of each box of one list with each box of the other.

    Args:
        boxes1: [M, 4] float, xyxy.
        boxes2: [A, 4] float, xyxy.

    Returns:
        [M, A] float in 0..1; 0 where both boxes are empty.
    """
    chex.assert_shape([boxes1, boxes2], (None, 4))
    return iou(boxes1[:, None], boxes2[None, :])


def pairwise_coverage(boxes1: Array, boxes2: Array) -> Array:
    """Computes the share of each box of the second list that lies inside each box of the first.

    COCO's rule for crowds: the intersection is divided by the box's own area, since a crowd's extent says nothing about its
    members.

    Args:
        boxes1: [M, 4] float, xyxy: the regions, for example crowds.
        boxes2: [A, 4] float, xyxy.

    Returns:
        [M, A] float in 0..1; 0 where the second box is empty.
    """
    chex.assert_shape([boxes1, boxes2], (None, 4))
    own = area(boxes2)[None, :]
    return jnp.where(own > 0, intersection(boxes1[:, None], boxes2[None, :]) / jnp.where(own > 0, own, 1), 0)


def clip(boxes: Array, window: Array) -> Array:
    """Moves corners that lie outside a window onto its border.

    Args:
        boxes: [..., 4] float, xyxy.
        window: [4] float, xyxy.

    Returns:
        [..., 4] float; a box that lies wholly outside ends with area 0.
    """
    chex.assert_shape(window, (4,))
    return jnp.clip(boxes, jnp.tile(window[:2], 2), jnp.tile(window[2:], 2))
