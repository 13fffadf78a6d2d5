"""Masks of objects: the targets of a mask head, and its outputs pasted into images.

    ground truth [S, S] in the frame of its box -> mask_targets -> [size, size] in the frame of a RoI
    probabilities [m, m] in the frame of a detection -> paste_masks, on the host -> [H, W] of the image

Mask R-CNN, 1703.06870, section 3.
"""

from collections.abc import Callable, Sequence

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core.interpolation import linear_weights
from detzoo.types import Array

AVERAGED_SAMPLES = 8  # largest number of samples along a side of a cell, in `average_mask_targets`
LEGACY_SHIFT = 0.5  # pixels: a pixel's value lies at its corner
PADDING = 1  # cells of zeros around a mask that is pasted as torchvision does


def mask_targets(
    gt_masks: Array,
    gt_boxes: Array,
    matched: Array,
    rois: Array,
    *,
    size: int | tuple[int, int],
    threshold: float = 0.5,
) -> Array:
    """Resamples ground-truth masks from the frames of their boxes to those of RoIs (Mask R-CNN, 1703.06870, section 3).

    A target is 1 where the mask at the centre of the RoI's cell, interpolated between the four nearest centres of the
    mask's cells, is at least the threshold; outside of the mask's box it is 0. So a target says whether one point lies in
    the object, as when polygons are drawn on the RoI's grid (detectron2).

    It takes two small matrix products per RoI, and carries no gradient.

    Args:
        gt_masks: [M, S, S] float or bool, 0..1, each in the frame of its box.
        gt_boxes: [M, 4] float xyxy.
        matched: [R] int, the row of the ground truth of each RoI; below 0: none.
        rois: [R, 4] float xyxy.
        size: cells along a side of a target; or its rows and columns.
        threshold: mask value from which on a target is 1, in 0..1.

    Returns:
        [R, size, size] or [R, rows, columns] float32, 0 or 1; 0 where there is no ground truth, no area, or a coordinate is
        not finite.
    """
    weights = _weights_along(_point_weights, gt_masks, gt_boxes, matched, rois, size)
    inside = weights[1].any(axis=2)[:, :, None] & weights[0].any(axis=2)[:, None, :]
    return (inside & (_resample(gt_masks, matched, *weights) >= threshold)).astype(jnp.float32)


def average_mask_targets(gt_masks: Array, gt_boxes: Array, matched: Array, rois: Array, *, size: int) -> Array:
    """Averages ground-truth masks over the cells of RoIs, without a threshold, as torchvision does.

    A cell's average is that of RoIAlign in legacy coordinates, half a pixel off (see `roi_features.roi_align`, aligned False).
    The number of samples along a side of a cell is its size in pixels, rounded up, but at most `AVERAGED_SAMPLES`.

    Args:
        gt_masks, gt_boxes, matched, rois, size: see `mask_targets`. Each cell of a mask is treated as a pixel. So if masks have
            a cell for each pixel of their boxes, the targets equal torchvision's, with two exceptions: RoIs whose cells have
            more than `AVERAGED_SAMPLES` pixels, and the right and lower border of the image, where torchvision repeats the
            last pixel.

    Returns:
        [R, size, size] float32 in 0..1; 0 where there is no ground truth, no area, or a coordinate is not finite.
    """
    return _resample(gt_masks, matched, *_weights_along(_average_weights, gt_masks, gt_boxes, matched, rois, size))


def _weights_along(
    weights: Callable[..., Array],
    gt_masks: Array,
    gt_boxes: Array,
    matched: Array,
    rois: Array,
    size: int | tuple[int, int],
) -> tuple[Array, Array]:
    """Computes the weights of a mask's cells in those of a RoI, along x, [R, columns, S], and along y, [R, rows, S]."""
    rows, columns = (size, size) if isinstance(size, int) else size
    chex.assert_shape([rois, gt_boxes], (None, 4))
    chex.assert_shape(gt_masks, (len(gt_boxes), None, gt_masks.shape[1]))
    chex.assert_shape(matched, (len(rois),))
    if not len(gt_boxes):
        return tuple(jnp.zeros((len(rois), count, gt_masks.shape[1]), jnp.float32) for count in (columns, rows))
    # No gradient; and weight 0 wherever a coordinate is not finite, so that no product is NaN.
    rois, boxes = jax.lax.stop_gradient((rois, gt_boxes[jnp.maximum(matched, 0)]))
    usable = (matched >= 0)[:, None, None] & jnp.isfinite(rois).all(axis=1)[:, None, None]
    return tuple(
        jnp.where(usable, weights(rois[:, i::2], boxes[:, i::2], count, gt_masks.shape[1]), 0)
        for i, count in enumerate((columns, rows))
    )


def _resample(gt_masks: Array, matched: Array, weight_x: Array, weight_y: Array) -> Array:
    """Adds up masks with weights along x and y: [R, rows, columns] float32."""
    if not len(gt_masks):
        return jnp.zeros((len(weight_y), weight_y.shape[1], weight_x.shape[1]), jnp.float32)
    masks = jax.lax.stop_gradient(gt_masks[jnp.maximum(matched, 0)]).astype(jnp.float32)
    return jnp.einsum('riy,ryx,rjx->rij', weight_y, masks, weight_x, precision='highest')


def _point_weights(spans: Array, frames: Array, size: int, cells: int) -> Array:
    """Computes the weights of linear interpolation at the centres of a RoI's cells.

    Args:
        spans: [R, 2] float, the first and last coordinate of a RoI.
        frames: [R, 2] float, the first and last coordinate of the mask.
        size: points along the RoI.
        cells: S, cells along the mask.

    Returns:
        [R, size, S] float, 0 in all cells for a point outside of the frame.
    """
    (first, last), (low, high) = ((x[:, :1], x[:, 1:]) for x in (spans, frames))
    point = first + (last - first) * (jnp.arange(size) + 0.5) / size  # [R, size]
    inside = (last > first) & (high > low) & (point >= low) & (point <= high)
    place = jnp.clip(_place(point, low, high, cells), 0, cells - 1)  # the border's value goes on to its edge
    return jnp.where(inside[..., None], linear_weights(place, cells), 0)


def _average_weights(spans: Array, frames: Array, size: int, cells: int) -> Array:
    """Computes the weights of the averages over a RoI's cells; arguments and shape are those of `_point_weights`."""
    (first, last), (low, high) = ((x[:, :1], x[:, 1:]) for x in (spans, frames))
    extent = jnp.maximum(last - first, 1)  # pixels
    count = jnp.clip(jnp.ceil(extent / size), 1, AVERAGED_SAMPLES)[..., None]
    samples = jnp.arange(AVERAGED_SAMPLES)
    bins = jnp.arange(size)[:, None] + (samples + 0.5) / count  # [R, size, samples]
    point = first[..., None] + extent[..., None] / size * bins + LEGACY_SHIFT
    tent = linear_weights(_place(point, low[..., None], high[..., None], cells), cells)  # [R, size, samples, S]
    average = jnp.where((samples < count)[..., None], tent, 0).sum(axis=2) / count
    return jnp.where((high > low)[..., None], average, 0)


def _place(point: Array, low: Array, high: Array, cells: int) -> Array:
    """Converts points to cells of a mask that spans low..high; whole numbers are centres of cells."""
    extent = high - low
    return (point - low) / jnp.where(extent > 0, extent, 1) * cells - 0.5


def resample_masks(masks: Array, frames: Array, boxes: Array, *, size: int) -> Array:
    """Moves masks from one frame to another, by linear interpolation at the centres of the new cells.

    Args:
        masks: [D, m, m] float.
        frames: [D, 4] float xyxy, where the masks lie.
        boxes: [D, 4] float xyxy, the new frames.
        size: cells along a side.

    Returns:
        [D, size, size] float32; 0 outside of the old frame, or where there is no area. It carries no gradient.
    """
    rows = jnp.arange(len(masks))
    return _resample(masks, rows, *_weights_along(_point_weights, masks, frames, rows, boxes, size))


def tight_boxes(masks: Array, frames: Array, *, threshold: float) -> tuple[Array, Array]:
    """Finds the boxes around the parts of masks that reach a threshold.

    An edge lies where the largest value of the rows, or columns, interpolated between the centres of cells, passes the threshold.
    A mask that reaches it in the first cell begins with its frame.

    Args:
        masks: [D, m, m] float.
        frames: [D, 4] float xyxy, where the masks lie.
        threshold: value from which on a cell belongs to the object.

    Returns:
        boxes [D, 4] float xyxy, and [D] bool, whether there is any such cell; without one the box is the frame.
    """
    chex.assert_shape(frames, (len(masks), 4))
    cells = masks.shape[1]

    def begin(values: Array) -> Array:
        """Where [D, m] values pass the threshold first, in cells from the left edge of the first one."""
        first = (values >= threshold).argmax(axis=1)
        below, above = (
            jnp.take_along_axis(values, jnp.maximum(index, 0)[:, None], axis=1)[:, 0] for index in (first - 1, first)
        )
        rise = jnp.where(above > below, above - below, 1)
        return jnp.where(first > 0, first - 0.5 + (threshold - below) / rise, 0)

    low, extent = frames[:, :2], frames[:, 2:] - frames[:, :2]
    along = [masks.max(axis=1), masks.max(axis=2)]  # x, y: [D, m]
    first = jnp.stack([begin(values) for values in along], axis=1) / cells
    last = 1 - jnp.stack([begin(values[:, ::-1]) for values in along], axis=1) / cells
    return jnp.concatenate([low + first * extent, low + last * extent], axis=1), (masks >= threshold).any(axis=(1, 2))


def mask_features(features: Array, masks: Array) -> Array:
    """Weighs the features of RoIs by masks in the same frames (MNC, 1512.04412, section 3.3; CFM, 1412.1283).

    Args:
        features: [R, s, s, C] float.
        masks: [R, m, m] float in 0..1, or bool. At the centre of each cell of the features the mask is interpolated between the
            four nearest centres of its own cells.

    Returns:
        [R, s, s, C], the dtype of the features.
    """
    chex.assert_shape(masks, (len(features), None, masks.shape[1]))
    shape = features.shape[:3]
    resized = jax.image.resize(masks.astype(features.dtype), shape, 'linear', antialias=False, precision='highest')
    return features * resized[..., None]


def paste_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    image_size: Sequence[int],
    *,
    convention: str = 'centers',
    threshold: float = 0.5,
) -> np.ndarray:
    """Pastes masks into images, one at a time, on the host; only the pixels in a mask's box are computed.

    Args:
        masks: [D, m, m] float, probabilities in the frames of the boxes.
        boxes: [D, 4] float xyxy, pixels of the image.
        image_size: H, W.
        convention: 'centers' (detectron2): a pixel has the probability at its centre, interpolated between the four nearest
            centres of the mask's cells, with zeros around the mask and nothing outside of the box. 'torchvision': see
            `torchvision_frames`. A mask of ones fills its box with 'centers', and is about a pixel larger with 'torchvision'.
        threshold: probability that a pixel of the object must reach; with 'torchvision' it must exceed it.

    Returns:
        [D, H, W] bool.

    Raises:
        ValueError: the numbers of masks and boxes differ, a box is not finite, or the convention is unknown.
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes)
    if masks.ndim != 3 or boxes.shape != (len(masks), 4) or masks.shape[1] != masks.shape[2]:
        raise ValueError(f'masks {masks.shape} and boxes {boxes.shape}: not [D, m, m] and [D, 4]')
    if not np.isfinite(boxes).all():
        raise ValueError('a box is not finite')
    if convention not in PASTES:
        raise ValueError(f'convention is {convention!r}: use one of {", ".join(map(repr, PASTES))}')
    result = np.zeros((len(masks), *image_size), bool)
    for pasted, mask, box in zip(result, masks, boxes):
        PASTES[convention](pasted, mask, box, threshold)
    return result


def _paste_at_centers(pasted: np.ndarray, mask: np.ndarray, box: np.ndarray, threshold: float) -> None:
    """Draws a mask [m, m] into an image [H, W] bool: see `paste_masks`, 'centers'."""
    (rows, row_weights), (columns, column_weights) = (
        _pixel_weights(box[axis], box[axis + 2], pasted.shape[1 - axis], len(mask)) for axis in (1, 0)
    )
    if row_weights.size and column_weights.size:
        # cv2.gemm instead of numpy's products: they are small, and numpy's BLAS threads would compete with the detector's.
        along_rows = cv2.gemm(row_weights, mask, 1, None, 0)
        pasted[rows, columns] = cv2.gemm(along_rows, column_weights, 1, None, 0, flags=cv2.GEMM_2_T) >= threshold


def _pixel_weights(low: float, high: float, pixels: int, cells: int) -> tuple[slice, np.ndarray]:
    """Computes the weights of linear interpolation between a mask's cells at the centres of the pixels from low to high.

    Returns:
        the slice of 0..pixels - 1 whose centres are in [low, high), and their weights [n, cells] float32.
    """
    first, end = (int(np.clip(np.ceil(edge - 0.5), 0, pixels)) for edge in (low, high))
    place = (np.arange(first, end) + 0.5 - low) / max(high - low, 1e-9) * cells - 0.5
    weights = np.maximum(1 - abs(place[:, None] - np.arange(cells)), 0)
    return slice(first, end), weights.astype(np.float32)


def torchvision_frames(boxes: np.ndarray, size: int) -> np.ndarray:
    """Computes the whole pixels that a mask is resized to by torchvision's convention.

    The mask gets a border of zeros, the box grows with it, and its corners are cut to whole pixels, towards zero. The mask is
    resized, bilinearly, to these pixels, the last ones included. A box that moves a little may gain or lose a row of pixels.

    Args:
        boxes: [D, 4] float xyxy, pixels of the image.
        size: m, side of a mask without its border, cells.

    Returns:
        [D, 4] int64 xyxy, the last pixels included.
    """
    boxes = boxes.astype(np.float32)
    center, half = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5), (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
    half = half * np.float32((size + 2 * PADDING) / size)
    return np.concatenate([center - half, center + half], axis=1).astype(np.int64)


def _paste_as_torchvision(pasted: np.ndarray, mask: np.ndarray, box: np.ndarray, threshold: float) -> None:
    """Draws a mask [m, m] into an image [H, W] bool: see `torchvision_frames`."""
    height, width = pasted.shape
    x1, y1, x2, y2 = torchvision_frames(box[None], len(mask))[0].tolist()
    size = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    left, right, top, bottom = max(x1, 0), min(x2 + 1, width), max(y1, 0), min(y2 + 1, height)
    if left < right and top < bottom:
        resized = cv2.resize(np.pad(mask, PADDING), size, interpolation=cv2.INTER_LINEAR)
        pasted[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1] > threshold


PASTES = {'centers': _paste_at_centers, 'torchvision': _paste_as_torchvision}
