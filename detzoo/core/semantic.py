"""Labels of pixels, painted from objects, and what a segmenter is trained with.

    ground truth of one image -> `paint`: for each pixel of the canvas the row of its object, NEGATIVE or IGNORE
      -> `separate`, so that objects that touch have background between them (U-Net)
      -> `pixel_labels`: 0..K-1, K for background, IGNORE                       -> `pixel_cross_entropy`
      -> `border_weights`: heavy where background is narrow between two objects (U-Net)

Rows are those of the ground truth, as a matcher's (see `matching`). Fully convolutional networks, 1411.4038; U-Net, 1505.04597.
"""

import math

import chex
import jax
import jax.numpy as jnp

from detzoo.core.masks import mask_targets
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.types import Array, GroundTruth

NO_OBJECT = -1  # in place of a row, where fewer than two objects are in reach
MAX_REACH = 90  # pixels: twice its square and a row fit 31 bits
_ROW_BITS = 16
_ROW_MASK = 2**_ROW_BITS - 1
_NOTHING = 2**30 + _ROW_MASK  # further away than any object, with a row that none has
_REACH = 4  # deviations of the border weights' Gaussian; beyond, a weight is less than 0.04 % of its height


def painting_order(gt: GroundTruth) -> Array:
    """Orders the objects of one image from the largest to the smallest: [M] int32 rows.

    An object's size is the area of its mask, square pixels. Of equal objects the earlier row comes first; rows that are padding
    or crowds come first of all.

    Raises:
        ValueError: the ground truth has no masks.
    """
    if gt.masks is None:
        raise ValueError('the ground truth has no masks, from which labels of pixels are painted: load it with masks')
    width, height = gt.boxes[:, 2] - gt.boxes[:, 0], gt.boxes[:, 3] - gt.boxes[:, 1]
    area = gt.masks.astype(jnp.float32).mean(axis=(1, 2)) * width * height
    return jnp.argsort(jnp.where(gt.valid & ~gt.crowd, -area, -jnp.inf), stable=True).astype(jnp.int32)


def paint(gt: GroundTruth, window: Array, canvas: tuple[int, int]) -> Array:
    """Paints the objects of one image on its canvas: each pixel belongs to one object at most.

    The largest object is painted first and the smallest last, so that a small object stays visible on a large one. A pixel
    belongs to an object if its centre does (see `masks.mask_targets`). Pixels in the box of a crowd that belong to no object,
    and all pixels outside of the window, are ignored; the others are background.

    It takes two matrix products an object, one object after the other, and carries no gradient.

    Args:
        gt: ground truth of the image with masks, M rows.
        window: [4] float xyxy, where the image lies on the canvas.
        canvas: H, W.

    Returns:
        [H, W] int32, a row of gt, NEGATIVE for background, or IGNORE.

    Raises:
        ValueError: the ground truth has no masks.
    """
    height, width = canvas
    in_rows = _between(gt.boxes[:, 1::2], height) & (gt.valid & gt.crowd)[:, None]  # [M, H]
    in_crowd = (in_rows[:, :, None] & _between(gt.boxes[:, 0::2], width)[:, None]).any(axis=0)
    whole = jnp.array([[0, 0, width, height]], jnp.float32)

    def paint_one(painted: Array, thing: tuple[Array, ...]) -> tuple[Array, None]:
        row, mask, box, is_object = thing
        matched = jnp.where(is_object, 0, NO_OBJECT)[None]
        covered = mask_targets(mask[None], box[None], matched, whole, size=canvas)[0] > 0
        return jnp.where(covered, row, painted), None

    order = painting_order(gt)
    things = (x[order] for x in (gt.masks, gt.boxes, gt.valid & ~gt.crowd))
    painted, _ = jax.lax.scan(paint_one, jnp.where(in_crowd, IGNORE, NEGATIVE), (order, *things))
    inside = _between(window[1::2], height)[:, None] & _between(window[0::2], width)
    return jnp.where(inside, painted, IGNORE)


def _between(ends: Array, length: int) -> Array:
    """Tells which pixels' centres lie between two ends: [..., 2] -> [..., length] bool."""
    centers = jnp.arange(length) + 0.5
    return (centers > ends[..., :1]) & (centers < ends[..., 1:])


def separate(rows: Array, order: Array) -> Array:
    """Puts a line of background between objects that touch (U-Net, 1505.04597, section 3).

    Of two neighbours, straight or diagonal, that belong to two objects, the pixel of the one that was painted first becomes
    background. So the connected components of what is left are single objects.

    Args:
        rows: [H, W] int32, see `paint`.
        order: [M], see `painting_order`.

    Returns:
        [H, W] int32, likewise.
    """
    chex.assert_rank([rows, order], [2, 1])
    if not len(order):
        return rows
    place = jnp.where(rows >= 0, jnp.argsort(order)[jnp.maximum(rows, 0)], NO_OBJECT).astype(jnp.int32)
    latest = jax.lax.reduce_window(place, jnp.int32(NO_OBJECT), jax.lax.max, (3, 3), (1, 1), 'SAME')
    return jnp.where((rows >= 0) & (latest > place), NEGATIVE, rows)


def pixel_labels(rows: Array, gt: GroundTruth, *, background: int) -> Array:
    """Looks up the class of each pixel.

    Args:
        rows: [H, W] int32, see `paint`.
        gt: ground truth of the image, M rows.
        background: label of background.

    Returns:
        [H, W] int32, a label of gt, that of background, or IGNORE.
    """
    if not len(gt.labels):
        return jnp.where(rows == NEGATIVE, background, rows)
    return jnp.where(rows >= 0, gt.labels[jnp.maximum(rows, 0)], jnp.where(rows == NEGATIVE, background, IGNORE))


def pixel_cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes the softmax cross-entropy of each pixel.

    Args:
        logits: [..., C] float.
        labels: [...] int, 0..C-1, or IGNORE.

    Returns:
        [...] float, >= 0; 0 where the label is IGNORE.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    of_label = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(axis=-1)
    return jnp.where(labels == IGNORE, 0, jax.nn.logsumexp(logits, axis=-1) - of_label)


def border_weights(rows: Array, *, height: float, sigma: float) -> Array:
    """Computes the weights of background between objects, height * exp(-(d1 + d2)^2 / (2 sigma^2)) (1505.04597, equation 2).

    d1 and d2 are the distances to the nearest pixels of the nearest object and of the second nearest one, pixels.

    Args:
        rows: [H, W] int32, see `paint`.
        height: the paper's w0.
        sigma: deviation, pixels, at most 22.

    Returns:
        [H, W] float32, >= 0; 0 in objects, where the pixel is ignored, and where d2 is more than four deviations.
    """
    reach = math.ceil(_REACH * sigma)
    (first, second), _ = nearest_two(rows, reach)
    weight = height * jnp.exp(-((jnp.sqrt(first) + jnp.sqrt(second)) ** 2) / (2 * sigma**2))
    return jnp.where((rows == NEGATIVE) & (second <= reach**2), weight, 0)


def nearest_two(rows: Array, reach: int) -> tuple[Array, Array]:
    """Finds for each pixel the two nearest objects, exactly, as far as they are in reach.

    First the two nearest in the pixel's column are found, then the two nearest among those of all columns in reach: an object
    that is third in a column is third at best. A squared distance and a row are one number, so that the least of two is the
    nearer.

    Args:
        rows: [H, W] int32, see `paint`; at most 65535 objects.
        reach: largest distance that is wanted, pixels, at most MAX_REACH. A pixel's distances are right if they are at most that.

    Returns:
        [2, H, W] float32, the squared distances to the nearest and the second nearest object, infinity for none; and [2, H, W]
        int32, these objects' rows, NO_OBJECT for none.
    """
    chex.assert_rank(rows, 2)
    if reach > MAX_REACH:
        raise ValueError(f'reach is {reach}: it must be at most {MAX_REACH}')
    own = jnp.where(rows >= 0, rows, _NOTHING).astype(jnp.int32)[None]
    in_columns = _spread(own, axis=1, reach=min(reach, rows.shape[0] - 1))
    found = _spread(in_columns, axis=2, reach=min(reach, rows.shape[1] - 1))
    there = found < _NOTHING
    return jnp.where(there, found >> _ROW_BITS, jnp.inf), jnp.where(there, found & _ROW_MASK, NO_OBJECT)


def _spread(keys: Array, *, axis: int, reach: int) -> Array:
    """Finds the two nearest objects among those of the pixels along an axis.

    Args:
        keys: [n, H, W] int32, n objects of each pixel: squared distances and rows, see `nearest_two`.
        axis: 1 or 2.
        reach: how far away the pixels are at most.

    Returns:
        [2, H, W] int32, likewise.
    """
    length = keys.shape[axis]
    pads = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(keys, pads, constant_values=_NOTHING)

    def merge(found: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        first, second = found
        away = (start - reach) ** 2 << _ROW_BITS
        for key in jax.lax.dynamic_slice_in_dim(padded, start, length, axis) + away:
            same = (key ^ first) & _ROW_MASK == 0
            second = jnp.where(same, second, jnp.minimum(second, jnp.maximum(first, key)))
            first = jnp.minimum(first, key)
        return (first, second), None

    nothing = jnp.full(keys.shape[1:], _NOTHING, jnp.int32)
    starts = jnp.arange(2 * reach + 1, dtype=jnp.int32)
    return jnp.stack(jax.lax.scan(merge, (nothing, nothing), starts)[0])
