"""Crops of an image, warped to one size: what R-CNN shows its network of each proposal (arXiv 1311.2524, section 2.1).

boxes -> with context, rounded to whole pixels -> the pixels inside the window, and where they lie in the crop
  -> one sample point a pixel of the crop -> `roi_samples` -> [R, size, size, C]
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from detzoo.core.roi_features import round_ratio
from detzoo.core.roi_samples import pool_samples
from detzoo.types import Array

FARTHEST = 2.0**18  # pixels; boxes are clipped to it, so that all counts of pixels fit an int32
OUTSIDE = -2.0  # a coordinate at which there is nothing to sample


class _Spans(NamedTuple):
    """The pixels that crops show along one axis, and where in the crop: all [R] int32.

    first, count: the first pixel of the image that is seen, and how many are.
    start, length: the first pixel of the crop that shows them, and how many do.
    """

    first: Array
    count: Array
    start: Array
    length: Array


def warp_crops(image: Array, window: Array, boxes: Array, *, size: int, context: int) -> Array:
    """Warps boxes of an image, with some context around them, to squares of one size (1311.2524, section 2.1 and appendix A).

    A box grows about its centre until its context is `context` pixels of the crop on each side, and is rounded to whole pixels.
    Width and height are scaled apart. Pixels are interpolated between their four neighbours, those inside of the grown box and
    the window alone; nothing is averaged where a crop is smaller than its box. What lies outside of the window is 0.

    Args:
        image: [H, W, C] float, normalised.
        window: [4] float xyxy, where the image lies on the canvas.
        boxes: [R, 4] float xyxy, pixels of the canvas.
        size: pixels along a side of a crop.
        context: pixels of the crop, on each side, that show what surrounds the box.

    Returns:
        [R, size, size, C], the dtype of the image.

    Raises:
        ValueError: the context leaves no pixel for the box.
    """
    if not 0 <= 2 * context < size:
        raise ValueError(
            f'context is {context}: a crop of {size} pixels must have pixels left between two such margins'
        )
    chex.assert_shape([image, window, boxes], [(None, None, None), (4,), (None, 4)])
    height, width, channels = image.shape
    points = jnp.stack([_points(_spans(boxes, window, axis, size, context), size) for axis in (1, 0)], axis=1)
    sides = jnp.broadcast_to(jnp.array([height, width], jnp.int32), (len(boxes), 2))
    start, once = jnp.zeros(len(boxes), jnp.int32), jnp.ones_like(sides)
    cells = jnp.asarray(image).reshape(-1, channels)
    return pool_samples(((height, width),), cells, start, sides, points[..., None], once, 'average')


def _spans(boxes: Array, window: Array, axis: int, size: int, context: int) -> _Spans:
    """Finds the pixels that crops show along an axis, 0 for x."""
    origin = jnp.floor(window[axis] + 0.5).astype(jnp.int32)  # pixels whose centre lies in the window
    pixels = jnp.ceil(window[axis + 2] - 0.5).astype(jnp.int32) - origin
    low, high = (jnp.clip(boxes[:, i] - origin, -FARTHEST, FARTHEST) for i in (axis, axis + 2))
    low, high = (jnp.where(jnp.isfinite(low + high), x, 0) for x in (low, high))
    # Edges of the grown box, as ratios so that halves are exact. As in the authors' code pixels of the image count from 1 where
    # they are rounded, and with context the last pixel is the one that its edge is rounded to.
    inner = size - 2 * context
    first, last = (
        round_ratio((low + high) * inner + sign * (high - low) * size + 2 * inner, 2 * inner) - 1 for sign in (-1, 1)
    )
    last = last if context else last - 1
    extent = jnp.maximum(last - first + 1, 1)
    seen = jnp.maximum(first, 0)
    count = jnp.maximum(jnp.minimum(last + 1, pixels) - seen, 0)
    start, length = (_share_of(x, size, extent) for x in (jnp.maximum(-first, 0), count))
    return _Spans(origin + seen, count, start, jnp.minimum(length, size - start))


def _share_of(pixels: Array, size: int, extent: Array) -> Array:
    """Rounds pixels * size / extent, for whole numbers, halves up."""
    return (2 * pixels * size + extent) // (2 * extent)


def _points(spans: _Spans, size: int) -> Array:
    """Computes where each pixel of crops is sampled along an axis: [R, size]; whole numbers are centres of pixels."""
    first, count, start, length = (x[:, None] for x in spans)
    place = jnp.arange(size) - start
    point = first + (place + 0.5) * count / jnp.maximum(length, 1) - 0.5
    point = jnp.clip(point, first, first + count - 1)
    return jnp.where((place >= 0) & (place < length), point, OUTSIDE)
