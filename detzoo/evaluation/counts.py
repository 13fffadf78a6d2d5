"""How many objects are counted in an image, against how many there are.

    annotations without crowds of an image     -> a number    \\
    results with a score of at least so much   -> a number     -> `count_metrics`: the mean error over images

Which object is where does not matter, and neither does its class: an error of one hides another that goes the other way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from detzoo.evaluation.coco import check_inputs, with_region
from detzoo.evaluation.overlaps import box_overlaps, mask_overlaps

IN_CROWD = 0.5  # share of a result in a crowd, above which it is not counted


def count_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str = 'bbox', *, score_threshold: float = 0.5
) -> dict[str, float | None]:
    """Compares the number of results of each image with its number of objects.

    Results that lie by more than half in crowds are not counted, since crowds have no number.

    Args:
        ground_truth: a COCO dict.
        results: COCO results.
        kind: 'bbox' or 'segm': what decides whether a result lies in a crowd.
        score_threshold: results with a lower score are not counted.

    Returns:
        {'count_error': mean absolute error of the number of objects of an image, 'count_bias': mean of results minus objects, below
        0 where too few are found}; None without images.

    Raises:
        ValueError: as `coco.coco_metrics`.
    """
    check_inputs(ground_truth, results, kind)
    truth = None
    if kind == 'segm':
        ground_truth = {**ground_truth, 'annotations': [*map(with_region, ground_truth['annotations'])]}
        truth = hotcoco.COCO(ground_truth)
    rows = _by_image(ground_truth, ground_truth['annotations'])
    found = _by_image(ground_truth, [row for row in results if row['score'] >= score_threshold])
    errors = []
    for image in ground_truth['images']:
        crowds = [row for row in rows[image['id']] if row.get('iscrowd', 0)]
        counted = _outside(found[image['id']], crowds, truth)
        errors.append(counted - (len(rows[image['id']]) - len(crowds)))
    if not errors:
        return {'count_error': None, 'count_bias': None}
    return {'count_error': float(np.mean(np.abs(errors))), 'count_bias': float(np.mean(errors))}


def _by_image(ground_truth: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Groups annotations or results by the images of a ground truth; those of other images are left out."""
    groups: dict[Any, list[dict[str, Any]]] = {image['id']: [] for image in ground_truth['images']}
    for row in rows:
        if row['image_id'] in groups:
            groups[row['image_id']].append(row)
    return groups


def _outside(found: list[dict[str, Any]], crowds: list[dict[str, Any]], truth: hotcoco.COCO | None) -> int:
    """Counts the results of an image that do not lie in one of its crowds; with a truth by masks, else by boxes."""
    if not found or not crowds:
        return len(found)
    all_crowds = np.ones(len(crowds), bool)
    inside = (
        box_overlaps(found, crowds, all_crowds) if truth is None else mask_overlaps(found, crowds, all_crowds, truth)
    )
    return int((inside.max(axis=1) <= IN_CROWD).sum())
