"""Masks of objects: what a mask head is trained towards, and from its output to the pixels of an image.

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

from detzoo.types import Array

AVERAGED_SAMPLES = 8  # along a side of a cell, of a target that is an average
LEGACY_SHIFT = 0.5  # pixels: a pixel's value lies at its corner
PADDING = 1  # cells of zeros around a mask that is pasted as torchvision does


def mask_targets(
    gt_masks: Array, gt_boxes: Array, matched: Array, rois: Array, *, size: int, threshold: float = 0.5
) -> Array:
    """Resamples ground-truth masks from the frames of their boxes to those of RoIs (Mask R-CNN, 1703.06870, section 3).

    A target is 1 where the mask at the centre of the RoI's cell, interpolated between the four nearest centres of the
    mask's cells, is at least the threshold; outside of the mask's box it is 0. So a target is a point of the shape, as
    when polygons are drawn on the RoI's grid (detectron2).

    As two small matrix products a RoI. Carries no gradient.

    Args:
        gt_masks: [M, S, S] float or bool, 0..1, each in the frame of its box.
        gt_boxes: [M, 4] float xyxy.
        matched: [R] int, the row of the ground truth of each RoI; below 0 there is none.
        rois: [R, 4] float xyxy.
        size: cells along a side of a target.
        threshold: in 0..1.

    Returns:
        [R, size, size] float32, 0 or 1; 0 where there is no ground truth, no area, or a coordinate is not finite.
    """
    weights = _weights_along(_point_weights, gt_masks, gt_boxes, matched, rois, size)
    inside = weights[1].any(axis=2)[:, :, None] & weights[0].any(axis=2)[:, None, :]
    return (inside & (_resample(gt_masks, matched, *weights) >= threshold)).astype(jnp.float32)


def average_mask_targets(gt_masks: Array, gt_boxes: Array, matched: Array, rois: Array, *, size: int) -> Array:
    """Averages ground-truth masks over the cells of RoIs, as torchvision does: without a threshold.

    A cell's average is that of RoIAlign with as many samples along a side as the cell has pixels, rounded up, but at most
    `AVERAGED_SAMPLES`, and at legacy coordinates: half a pixel off (see `roi_features.roi_align`, aligned False).

    Args:
        gt_masks, gt_boxes, matched, rois, size: see `mask_targets`. The masks are taken as if each cell were a pixel:
            for masks of as many cells as their boxes have pixels these are torchvision's targets, but for RoIs with cells
            of more than `AVERAGED_SAMPLES` pixels, and at the right and lower border of the image, where torchvision
            repeats the last pixel.

    Returns:
        [R, size, size] float32 in 0..1; 0 where there is no ground truth, no area, or a coordinate is not finite.
    """
    return _resample(gt_masks, matched, *_weights_along(_average_weights, gt_masks, gt_boxes, matched, rois, size))


def _weights_along(
    weights: Callable[..., Array], gt_masks: Array, gt_boxes: Array, matched: Array, rois: Array, size: int
) -> tuple[Array, Array]:
    """How the values at the centres of a mask's cells add up to those of a RoI's, along x and y: two of [R, size, S]."""
    chex.assert_shape([rois, gt_boxes], (None, 4))
    chex.assert_shape(gt_masks, (len(gt_boxes), None, gt_masks.shape[1]))
    chex.assert_shape(matched, (len(rois),))
    if not len(gt_boxes):
        return (jnp.zeros((len(rois), size, gt_masks.shape[1]), jnp.float32),) * 2
    # No gradient, and no NaN in a product: what is not finite has weight 0 everywhere.
    rois, boxes = jax.lax.stop_gradient((rois, gt_boxes[jnp.maximum(matched, 0)]))
    usable = (matched >= 0)[:, None, None] & jnp.isfinite(rois).all(axis=1)[:, None, None]
    return tuple(jnp.where(usable, weights(rois[:, i::2], boxes[:, i::2], size, gt_masks.shape[1]), 0) for i in (0, 1))


def _resample(gt_masks: Array, matched: Array, weight_x: Array, weight_y: Array) -> Array:
    """Adds up masks with weights along x and y: [R, size, size] float32."""
    if not len(gt_masks):
        return jnp.zeros((*weight_x.shape[:2], weight_x.shape[1]), jnp.float32)
    masks = jax.lax.stop_gradient(gt_masks[jnp.maximum(matched, 0)]).astype(jnp.float32)
    return jnp.einsum('riy,ryx,rjx->rij', weight_y, masks, weight_x, precision='highest')


def _point_weights(spans: Array, frames: Array, size: int, cells: int) -> Array:
    """Weights of linear interpolation at the centres of a RoI's cells.

    Args:
        spans: [R, 2] float, the first and last coordinate of a RoI.
        frames: [R, 2] float, those of the mask.
        size: points along the RoI.
        cells: S, of the mask.

    Returns:
        [R, size, S] float, 0 in all cells for a point outside of the frame.
    """
    (first, last), (low, high) = ((x[:, :1], x[:, 1:]) for x in (spans, frames))
    point = first + (last - first) * (jnp.arange(size) + 0.5) / size  # [R, size]
    inside = (last > first) & (high > low) & (point >= low) & (point <= high)
    place = jnp.clip(_place(point, low, high, cells), 0, cells - 1)  # the border's value goes on to its edge
    return jnp.where(inside[..., None], _tent(place, cells), 0)


def _average_weights(spans: Array, frames: Array, size: int, cells: int) -> Array:
    """Weights of the averages over a RoI's cells, of arguments and shape as `_point_weights`."""
    (first, last), (low, high) = ((x[:, :1], x[:, 1:]) for x in (spans, frames))
    extent = jnp.maximum(last - first, 1)  # pixels
    count = jnp.clip(jnp.ceil(extent / size), 1, AVERAGED_SAMPLES)[..., None]
    samples = jnp.arange(AVERAGED_SAMPLES)
    bins = jnp.arange(size)[:, None] + (samples + 0.5) / count  # [R, size, samples]
    point = first[..., None] + extent[..., None] / size * bins + LEGACY_SHIFT
    tent = _tent(_place(point, low[..., None], high[..., None], cells), cells)  # [R, size, samples, S]
    average = jnp.where((samples < count)[..., None], tent, 0).sum(axis=2) / count
    return jnp.where((high > low)[..., None], average, 0)


def _place(point: Array, low: Array, high: Array, cells: int) -> Array:
    """Where points lie among the cells of a mask that spans low..high: whole numbers are centres."""
    extent = high - low
    return (point - low) / jnp.where(extent > 0, extent, 1) * cells - 0.5


def _tent(place: Array, cells: int) -> Array:
    """The weights of linear interpolation: 1 at a cell's centre, 0 from its neighbours' on; a new last axis [S]."""
    return jnp.maximum(1 - abs(place[..., None] - jnp.arange(cells)), 0)


def paste_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    image_size: Sequence[int],
    *,
    convention: str = 'centers',
    threshold: float = 0.5,
) -> np.ndarray:
    """Pastes masks into images: runs on the host, mask by mask, and works inside of its box only.

    Args:
        masks: [D, m, m] float, probabilities in the frames of the boxes.
        boxes: [D, 4] float xyxy, pixels of the image.
        image_size: H, W.
        convention: 'centers': a pixel has the probability at its centre, interpolated between the four nearest centres of the
            mask's cells, with zeros around the mask and nothing outside of the box (detectron2); or 'torchvision': see
            `torchvision_frames`. A mask of ones is as large as its box by the first; by the second it is about a pixel larger.
        threshold: a pixel with at least that is part of the object (with more, by torchvision's convention).

    Returns:
        [D, H, W] bool.

    Raises:
        ValueError: if the counts differ, a box is not finite, or there is no such convention.
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
        # Not numpy's products: for these small ones BLAS would wake its threads, beside those of the detector.
        along_rows = cv2.gemm(row_weights, mask, 1, None, 0)
        pasted[rows, columns] = cv2.gemm(along_rows, column_weights, 1, None, 0, flags=cv2.GEMM_2_T) >= threshold


def _pixel_weights(low: float, high: float, pixels: int, cells: int) -> tuple[slice, np.ndarray]:
    """Weights of linear interpolation between a mask's cells at the centres of the pixels from low to high.

    Returns:
        the pixels with centres in [low, high), of 0..pixels - 1, and [n, cells] float32: their weights.
    """
    first, end = (int(np.clip(np.ceil(edge - 0.5), 0, pixels)) for edge in (low, high))
    place = (np.arange(first, end) + 0.5 - low) / max(high - low, 1e-9) * cells - 0.5
    weights = np.maximum(1 - abs(place[:, None] - np.arange(cells)), 0)
    return slice(first, end), weights.astype(np.float32)


def torchvision_frames(boxes: np.ndarray, size: int) -> np.ndarray:
    """Says which whole pixels a mask reaches by torchvision's convention; a box that moves a little may win or lose a row of them.

    The mask gets a border of zeros, the box grows with it, and its corners are cut to whole pixels, towards zero. The mask is
    resized, bilinearly, to these pixels, the last ones included.

    Args:
        boxes: [D, 4] float xyxy, pixels of the image.
        size: m, of masks without their border.

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
