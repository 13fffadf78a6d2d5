"""How many objects an image's best boxes find, whatever their class: the recall of proposals (arXiv:1502.05082).

    ground truth (a COCO dict), detections or proposals (a COCO results list): the same as for `evaluation.coco`
      -> all classes as one (`coco.class_agnostic`) -> recall [T, 1, A, M] by the evaluator
      -> `object_recall`: its mean over the IoU thresholds .50, .55, ... .95    -> `format_recall`, `recall_numbers`

    A  areas: all, small, medium, large        M  boxes an image: the best 1, 10, 100, 1000

An image with fewer boxes than M is judged by all that it has, so that AR at 1000 equals AR at 100 for a detector that keeps 100.
"""

from typing import Any

from detzoo.evaluation.coco import AREAS, class_agnostic, mean_present, precision_recall, show

COUNTS = (1, 10, 100, 1000)  # axis M
# Recalls among the metrics of an evaluation, by their keys, and what the names of their numbers begin with.
RECALLS = {'recall': 'object_', 'mask_recall': 'mask_object_', 'proposal_recall': 'proposal_'}


def object_recall(ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str = 'bbox') -> dict[str, Any]:
    """Computes the average recall of an image's best boxes, whatever their class; no input is changed.

    Args:
      ground_truth, detections: see `coco_metrics`.
      kind: 'bbox' for boxes, 'segm' for masks.

    Returns:
      `{'images': count, 'per_image': detections an image, 'recall': {area: {'AR1', 'AR10', 'AR100', 'AR1000'}}}` with the areas
      'all', 'small', 'medium' and 'large'; each AR is in 0..1, or None without objects of that area.

    Raises:
      ValueError: as `coco_metrics`.
    """
    _, recall = precision_recall(*class_agnostic(ground_truth, detections), kind, COUNTS)
    images = len(ground_truth['images'])
    return {
        'images': images,
        'per_image': len(detections) / max(1, images),
        'recall': {
            area: {f'AR{count}': mean_present(recall[:, :, a, m]) for m, count in enumerate(COUNTS)}
            for a, area in enumerate(AREAS)
        },
    }


def recall_numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Names the numbers of the recalls among the metrics of an evaluation, for objects of all areas.

    Args:
      metrics: for each of RECALLS that was computed, a result of `object_recall`; other keys are left out.

    Returns:
      'object_AR1', ... 'object_AR1000' of the boxes of detections, 'mask_object_AR1', ... of their masks, and 'proposal_AR1', ...
      of the boxes of proposals.
    """
    return {
        prefix + name: value
        for key, prefix in RECALLS.items()
        if key in metrics
        for name, value in metrics[key]['recall']['all'].items()
    }


def is_recall(name: str) -> bool:
    """Tells whether `recall_numbers` may have a number of this name."""
    return any(name == f'{prefix}AR{count}' for prefix in RECALLS.values() for count in COUNTS)


def format_recall(found: dict[str, Any], what: str = 'detections') -> str:
    """Writes the result of `object_recall` as a table: a row for each area, a column for each number of boxes.

    Args:
      found: a result of `object_recall`.
      what: what finds the objects, for the title.
    """
    lines = [
        f'recall of objects whatever their class, IoU 0.50:0.95, {found["images"]} images, '
        f'{found["per_image"]:.1f} {what} an image',
        '  '.join([f'{"best of an image":<16}', *(f'{count:>7}' for count in COUNTS)]),
    ]
    for area, recall in found['recall'].items():
        lines.append('  '.join([f'{area + " objects":<16}', *(f'{show(recall[f"AR{count}"]):>7}' for count in COUNTS)]))
    return '\n'.join(lines)
