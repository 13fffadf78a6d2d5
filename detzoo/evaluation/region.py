"""AP^r: VOC's average precision of regions, as *Simultaneous Detection and Segmentation* defines it (arXiv 1407.1808).

    ground truth (a COCO dict), detections (a COCO results list), both with masks
      -> each class by itself: detections in the order of their scores take objects, by the IoU of masks
      -> precision over recall -> the area under the curve, as VOC's from 2010 on
      -> `region_metrics`: at 0.5 and 0.7, and the mean over .1, .2, ... .9 (AP^r_vol)    -> `format_region_table`

Differences from `voc`: a detection takes the object that it overlaps most *among those not taken yet*, so that a second detection
of an object may find its neighbour; the IoU must exceed the threshold, and that of exactly 0.5 is no hit.

Difference from the authors' code, which knows no crowds: a detection that is no hit and lies in a crowd of its class, by a share
above the threshold, does not count.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from detzoo.evaluation.coco import check_inputs, class_table, show, with_region
from detzoo.evaluation.overlaps import mask_overlaps
from detzoo.evaluation.precision import best_precision

THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))
_AT = {'APr_50': [4], 'APr_70': [6], 'APr_vol': range(len(THRESHOLDS))}  # thresholds that each number averages


def region_metrics(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluates masks by AP^r; no input is changed.

    Args:
        ground_truth: see `coco_metrics`, with masks; `iscrowd` marks what does not count.
        detections: see `coco_metrics`, with masks. Among equal scores the earlier detection comes first.

    Returns:
        {'images': count, 'masks': {'APr_50', 'APr_70', 'APr_vol'}, 'per_class': {name: the same}}, each in 0..1, or None for a
        class without objects; `masks` has the means over the other classes.

    Raises:
        ValueError: as `coco_metrics`.
    """
    check_inputs(ground_truth, detections, 'segm')
    ground_truth = {**ground_truth, 'annotations': [*map(with_region, ground_truth['annotations'])]}
    truth = hotcoco.COCO(ground_truth)
    images = {image['id'] for image in ground_truth['images']}
    objects = [row for row in ground_truth['annotations'] if row['image_id'] in images]
    per_class = {}
    for category in sorted(ground_truth['categories'], key=lambda category: category['id']):
        of_class = ([row for row in rows if row['category_id'] == category['id']] for rows in (objects, detections))
        values = region_precision(*of_class, truth)
        per_class[category['name']] = {
            name: None if values is None else float(values[list(at)].mean()) for name, at in _AT.items()
        }
    means = {}
    for name in _AT:
        present = [numbers[name] for numbers in per_class.values() if numbers[name] is not None]
        means[name] = float(np.mean(present)) if present else None
    return {'images': len(images), 'masks': means, 'per_class': per_class}


def region_precision(
    objects: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], truth: hotcoco.COCO
) -> np.ndarray | None:
    """Computes the AP of a class at each of the THRESHOLDS: [9] float64 in 0..1, or None if it has no objects.

    Args:
        objects: annotations of the class.
        detections: results of the class.
        truth: a ground truth that has their images.
    """
    positives = sum(not row.get('iscrowd', 0) for row in objects)
    if not positives:
        return None
    order = np.argsort([-row['score'] for row in detections], kind='stable')
    hits, ignored = np.zeros((2, len(THRESHOLDS), len(detections)), bool)
    for places, overlaps, crowd in _images(objects, [detections[i] for i in order], truth):
        for at, threshold in enumerate(THRESHOLDS):
            hits[at, places], ignored[at, places] = _take(overlaps, crowd, threshold)
    values = []
    for of_threshold, left_out in zip(hits, ignored):
        counted = of_threshold[~left_out]
        values.append(best_precision(counted)[1][counted].sum() / positives)  # recall grows by 1 / positives a hit
    return np.array(values)


def _images(
    objects: Sequence[Mapping[str, Any]], ordered: Sequence[Mapping[str, Any]], truth: hotcoco.COCO
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compares the masks of each image that has detections and objects.

    Returns:
        [d] int places of the image's detections in `ordered`, their overlaps with its objects [d, g], and [g] bool, crowds.
    """
    objects_of: dict[Any, list[Mapping[str, Any]]] = {}
    for row in objects:
        objects_of.setdefault(row['image_id'], []).append(row)
    places_of: dict[Any, list[int]] = {}
    for place, row in enumerate(ordered):
        places_of.setdefault(row['image_id'], []).append(place)
    compared = []
    for image_id in places_of.keys() & objects_of.keys():
        places, there = np.array(places_of[image_id]), objects_of[image_id]
        crowd = np.array([bool(row.get('iscrowd', 0)) for row in there])
        compared.append((places, mask_overlaps([ordered[i] for i in places], there, crowd, truth), crowd))
    return compared


def _take(overlaps: np.ndarray, crowd: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Lets detections take objects one after the other.

    Args:
        overlaps: [d, g] in 0..1, the best score first; with a crowd the share of the detection in it.
        crowd: [g] bool.
        threshold: IoU that a hit exceeds.

    Returns:
        [d] bool whether each is a hit, and whether it does not count.
    """
    free, hits, ignored = ~crowd, np.zeros(len(overlaps), bool), np.zeros(len(overlaps), bool)
    for row, overlap in enumerate(overlaps):
        best = np.where(free, overlap, -1).argmax()
        hits[row] = free[best] and overlap[best] > threshold
        free[best] &= not hits[row]
        ignored[row] = not hits[row] and (overlap[crowd] > threshold).any()
    return hits, ignored


def format_region_table(metrics: dict[str, Any]) -> str:
    """Writes the metrics of `region_metrics` as three lines and a table of classes, the best first."""
    masks = metrics['masks']
    return '\n'.join(
        [
            f'AP^r of masks, {metrics["images"]} images',
            f' AP^r at IoU 0.5          = {show(masks["APr_50"])}',
            f' AP^r at IoU 0.7          = {show(masks["APr_70"])}',
            f' AP^r_vol, IoU 0.1 to 0.9 = {show(masks["APr_vol"])}',
            '',
            class_table(metrics['per_class']),
        ]
    )
