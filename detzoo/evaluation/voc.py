"""PASCAL VOC evaluation: average precision of boxes at IoU 0.5, as the challenges of 2007 and of 2010 on define it.

    ground truth (a COCO dict), detections (a COCO results list): the same as for `evaluation.coco`
      -> each class by itself: detections in the order of their scores, hit, miss or ignored
      -> precision over recall -> AP of 2007 (mean at 11 recalls) and of 2010 on (area under the curve)
      -> `voc_metrics` -> `format_voc_table`

Differences from COCO's AP50: a detection is compared only with the object it overlaps most, and is a false positive if that
object was found already, even if its IoU with another object is 0.5 or more; precision is not sampled at 101 recalls; the
number of detections has no limit but the detector's own.

Objects marked `difficult` are ignored; here they have `iscrowd` (see `data.readers.voc`). VOC adds 1 to the sides of boxes
since it counts the pixels that a box includes; in continuous coordinates (xmin - 1 to xmax) this is the plain IoU.

Difference from the devkits: whether a recall reaches 0.3, 0.6 or 0.7 is decided with integers. In the devkits a sum of rounded
tenths lies just above these values, and a recall of exactly 3/10 falls short.
"""

from typing import Any

import numpy as np

from detzoo.evaluation.coco import check_inputs, class_table, show
from detzoo.evaluation.overlaps import box_overlaps
from detzoo.evaluation.precision import best_precision

MIN_IOU = 0.5


def voc_metrics(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluates boxes as VOC does; no input is changed.

    Args:
      ground_truth: see `coco_metrics`; `iscrowd` marks difficult objects.
      detections: see `coco_metrics`. Among equal scores the earlier detection comes first.

    Returns:
      `{'images': count, 'boxes': {'AP_2007', 'AP_2010'}, 'per_class': {name: {'AP_2007', 'AP_2010'}}}`, each in 0..1, or
      None for a class whose objects are all difficult, or that has none; `boxes` has the means over the other classes.

    Raises:
      ValueError: an image_id or category_id is unknown, a score or box is not finite, or an id or name is used twice.
    """
    check_inputs(ground_truth, detections)
    images = {image['id'] for image in ground_truth['images']}
    objects = [row for row in ground_truth['annotations'] if row['image_id'] in images]
    per_class = {}
    for category in sorted(ground_truth['categories'], key=lambda category: category['id']):
        of_class = [[row for row in rows if row['category_id'] == category['id']] for rows in (objects, detections)]
        per_class[category['name']] = dict(zip(('AP_2007', 'AP_2010'), average_precision(*of_class)))
    means = {}
    for name in ('AP_2007', 'AP_2010'):
        values = [numbers[name] for numbers in per_class.values() if numbers[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return {'images': len(images), 'boxes': means, 'per_class': per_class}


def average_precision(
    objects: list[dict[str, Any]], detections: list[dict[str, Any]]
) -> tuple[float | None, float | None]:
    """Computes the AP of a class, as defined in 2007 and from 2010 on.

    Args:
      objects: annotations of the class.
      detections: results of the class.

    Returns:
      both APs, in 0..1, or None if the class has no objects, or only difficult ones.
    """
    positives = sum(not row.get('iscrowd', 0) for row in objects)
    if not positives:
        return None, None
    hits = _hits(objects, detections)
    found, best = best_precision(hits)
    at_tenths = [best[10 * found >= tenths * positives][:1].sum() for tenths in range(11)]  # 0 beyond the last recall
    return float(np.mean(at_tenths)), float(best[hits].sum() / positives)  # recall grows by 1 / positives at each hit


def format_voc_table(metrics: dict[str, Any]) -> str:
    """Writes the metrics of `voc_metrics` as two lines and a table of classes, the best first."""
    boxes = metrics['boxes']
    return '\n'.join(
        [
            f'VOC, {metrics["images"]} images, IoU 0.5',
            f' mAP of 2007 (11 recalls)  = {show(boxes["AP_2007"])}',
            f' mAP of 2010 on (area)     = {show(boxes["AP_2010"])}',
            '',
            class_table(metrics['per_class']),
        ]
    )


def _hits(objects: list[dict[str, Any]], detections: list[dict[str, Any]]) -> np.ndarray:
    """Tells for each detection of a class, the best score first, whether it is a hit, without those on difficult objects.

    Returns:
      [n] bool, n <= len(detections).
    """
    rows_of: dict[Any, list[int]] = {}
    for row, thing in enumerate(objects):
        rows_of.setdefault(thing['image_id'], []).append(row)
    detections_of: dict[Any, list[int]] = {}
    for index, detection in enumerate(detections):
        detections_of.setdefault(detection['image_id'], []).append(index)

    matched = np.full(len(detections), -1)  # the object that each overlaps most, if their IoU is at least 0.5
    for image_id in detections_of.keys() & rows_of.keys():
        rows, indices = np.array(rows_of[image_id]), np.array(detections_of[image_id])
        of_image = [detections[i] for i in indices], [objects[i] for i in rows]
        iou = box_overlaps(*of_image, np.zeros(len(rows), bool))
        matched[indices] = np.where(iou.max(axis=1) >= MIN_IOU, rows[iou.argmax(axis=1)], -1)

    order = np.argsort([-detection['score'] for detection in detections], kind='stable')
    matched = matched[order]
    difficult = np.array([bool(row.get('iscrowd', 0)) for row in objects] + [False])  # the last entry stands for -1
    matched = matched[~difficult[matched]]
    hits = np.zeros(len(matched), bool)
    hits[np.unique(matched, return_index=True)[1]] = True  # the first detection of each object
    return hits & (matched >= 0)
