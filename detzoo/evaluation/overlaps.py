"""IoU of COCO detections with COCO annotations, by boxes or by masks."""

from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask

Rows = list[dict[str, Any]]


def box_overlaps(detections: Rows, objects: Rows, crowd: np.ndarray) -> np.ndarray:
    """Computes the IoU of boxes.

    Args:
        detections: n COCO results.
        objects: m COCO annotations.
        crowd: [m] bool, True for objects with which the share of the detection inside the object is computed instead.

    Returns:
        [n, m] float64 in 0..1.
    """
    boxes = (np.array([row['bbox'] for row in rows], np.float64).reshape(-1, 4) for rows in (detections, objects))
    return _overlaps(*boxes, crowd)


def mask_overlaps(detections: Rows, objects: Rows, crowd: np.ndarray, truth: hotcoco.COCO) -> np.ndarray:
    """Computes the IoU of masks.

    Args:
        detections, objects, crowd: see `box_overlaps`; all of one image.
        truth: a ground truth that has the image.

    Returns:
        [n, m] float64 in 0..1.

    Raises:
        ValueError: the masks differ in size.
    """
    iou = _overlaps(*([truth.ann_to_rle(row) for row in rows] for rows in (detections, objects)), crowd)
    if (iou < 0).any():  # pycocotools returns -1 where masks differ in size
        raise ValueError(f'image {detections[0]["image_id"]}: its masks differ in size')
    return iou


def _overlaps(detections: Any, objects: Any, crowd: np.ndarray) -> np.ndarray:
    return np.reshape(pycocotools.mask.iou(detections, objects, crowd.astype(np.uint8)), (len(detections), len(crowd)))
