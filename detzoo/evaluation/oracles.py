"""What a detector would reach if a stage of it never erred: true masks for its detections, and the table of all stages.

    detections and ground truth, as for `evaluation.coco` -> `with_true_masks` -> detections
    metrics of each row -> `format_oracles`

The other stages need the detector's network, see `detectors.oracles`; `inference.oracles` makes all rows.
"""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask

from detzoo.evaluation.coco import show
from detzoo.evaluation.overlaps import box_overlaps

COVERS = 0.5  # IoU from which on a detection is one of an object


def with_true_masks(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives detections the masks of their objects, as far as these lie in the boxes of the detections.

    The object of a detection is that of its class whose box overlaps it most, by an IoU of at least a half. A detection without
    an object keeps its mask.

    Args:
        ground_truth: a COCO dict; its masks are compressed RLE.
        detections: a COCO results list.

    Returns:
        the detections, in their order.
    """
    objects = collections.defaultdict(list)
    for row in ground_truth['annotations']:
        if not row['iscrowd']:
            objects[row['image_id'], row['category_id']].append(row)
    return [_with_true_mask(found, objects[found['image_id'], found['category_id']]) for found in detections]


def _with_true_mask(detection: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Gives a detection the mask of one of the objects of its image and class, if it has one."""
    overlaps = box_overlaps([detection], objects, np.zeros(len(objects), bool))[0]
    if overlaps.max(initial=0) < COVERS:
        return detection
    mask = pycocotools.mask.decode(objects[overlaps.argmax()]['segmentation'])
    x, y, width, height = detection['bbox']
    inside = np.zeros_like(mask)
    left, right, top, bottom = (max(0, int(np.ceil(edge - 0.5))) for edge in (x, x + width, y, y + height))
    inside[top:bottom, left:right] = mask[top:bottom, left:right]  # pixels whose centres lie in the box
    rle = pycocotools.mask.encode(np.asfortranarray(inside))
    return {**detection, 'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()}}


def format_oracles(rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Writes a table of what each stage is worth.

    Args:
        rows: {what is given: {'boxes' and 'masks': {'AP', 'AP50', 'AP75'}}}.
    """
    names = 'AP', 'AP50', 'AP75'
    width = max(map(len, (*rows, 'given')))
    lines = [
        f'{"given":<{width}}  ' + '  '.join(f'{f"{kind} {name}":>9}' for kind in ('box', 'mask') for name in names)
    ]
    for given, metrics in rows.items():
        values = [show(metrics[kind][name]) for kind in ('boxes', 'masks') for name in names]
        lines.append(f'{given:<{width}}  ' + '  '.join(f'{value:>9}' for value in values))
    return '\n'.join(lines)
