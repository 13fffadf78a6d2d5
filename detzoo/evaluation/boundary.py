"""Boundary AP: COCO's AP of masks, in which only what lies near an object's outline counts (2103.16562).

    a mask -> its band along the outline, 2 % of the image's diagonal wide
    IoU of two masks -> the least of it and the IoU of their bands -> COCO's matching and AP

The IoU of large masks says little about their outlines. With crowds the IoU of masks stands alone. Masks are small, medium or large
by their own area, as in `coco`.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask

from detzoo.evaluation.coco import check_inputs, show

WIDTH = 0.02  # of a band, of the image's diagonal
_NAMES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Cuts a mask [h, w] bool to the pixels that are at most `width` pixels, straight or diagonal, inside its outline.

    The border of the image is an outline too.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


def band_width(size: Sequence[int]) -> int:
    """Computes the width of the bands in an image of (height, width), pixels, at least one."""
    return max(1, round(WIDTH * float(np.hypot(*size))))


def boundary_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Evaluates masks by boundary AP.

    Args:
        ground_truth: a COCO dict with masks as run lengths, and the sizes of images.
        results: COCO results with masks.

    Returns:
        AP, AP50, AP75, APs, APm and APl in 0..1, or None for a number that is undefined.

    Raises:
        ValueError: as `coco.coco_metrics`.
    """
    check_inputs(ground_truth, results, 'segm')
    # Pycocotools cannot match an annotation whose id is 0, and writes into what it is given.
    rows = [{**row, 'id': number} for number, row in enumerate(ground_truth['annotations'], 1)]
    found = [
        {'id': number, 'iscrowd': 0, 'area': float(pycocotools.mask.area(row['segmentation'])), **row}
        for number, row in enumerate(results, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _BoundaryEval(_indexed(ground_truth, rows), _indexed(ground_truth, found), 'segm')
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(_NAMES, evaluator.stats)}


def format_boundary(metrics: dict[str, float | None]) -> str:
    """Writes the result of `boundary_metrics` as one line."""
    return 'boundary ' + ', '.join(f'{name} {show(value)}' for name, value in metrics.items())


def _indexed(ground_truth: dict[str, Any], annotations: list[dict[str, Any]]) -> pycocotools.coco.COCO:
    """Makes pycocotools' index of annotations."""
    index = pycocotools.coco.COCO()
    index.dataset = {**ground_truth, 'annotations': annotations}
    index.createIndex()
    return index


class _BoundaryEval(pycocotools.cocoeval.COCOeval):
    """Pycocotools' evaluator with another IoU, the one method of it that is replaced."""

    def computeIoU(self, image_id: int, category_id: int) -> np.ndarray | list:  # noqa: N802
        """Computes [D, G], the least of both IoUs of each result, the best scores first, and each annotation."""
        truth, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not truth or not found:
            return []
        order = np.argsort([-row['score'] for row in found], kind='mergesort')[: self.params.maxDets[-1]]
        sides = [[found[i]['segmentation'] for i in order], [row['segmentation'] for row in truth]]
        crowd = [int(row['iscrowd']) for row in truth]
        whole = pycocotools.mask.iou(*sides, crowd)
        bands = pycocotools.mask.iou(*([_band(mask) for mask in side] for side in sides), crowd)
        return np.where(np.array(crowd, bool), whole, np.minimum(whole, bands))


def _band(encoded: dict[str, Any]) -> dict[str, Any]:
    """Cuts a mask, as run lengths, to its `boundary`."""
    band = boundary(pycocotools.mask.decode(encoded).astype(bool), band_width(encoded['size']))
    return pycocotools.mask.encode(np.asfortranarray(band.astype(np.uint8)))
