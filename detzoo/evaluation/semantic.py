"""Pixels and segments: the metrics of segmenters, and those by which they are compared with instance segmentation.

    annotations of an image -> `paint_annotations` -> `label_map`, [h, w] labels     \\
    predicted labels [h, w]                                                           -> `confusion_matrix` -> `semantic_metrics`
    labels and their scores -> `instances_of`: connected components as COCO results -> mask AP (`coco.coco_metrics`), and
      -> `panoptic_quality`, of these and of the results of any detector of masks
    results of a detector of masks -> `without_overlaps` -> `paint_results`: predicted labels [h, w], as a segmenter's

All is computed on the image's own pixels. Labels are 0..K-1 and K for background; IGNORE marks pixels that do not count.
The metrics are those of 1411.4038, section 5, and panoptic quality that of 1801.00868.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import hotcoco
import numpy as np
import pycocotools.mask

from detzoo.core.matching import IGNORE, NEGATIVE

MAX_INSTANCES = 1000  # an image; a network that has learnt little may give noise


def paint_annotations(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Paints the annotations of an image, as `core.semantic.paint` does: crowds first, then the largest object, the smallest last.

    Args:
        annotations: the image's, as COCO's; objects have masks as run lengths. A crowd without a mask covers its box.
        size: (height, width) of the image.

    Returns:
        [h, w] int32, index of the annotation that a pixel belongs to, or NEGATIVE.

    Raises:
        ValueError: an object has no mask.
    """
    painted = np.full(size, NEGATIVE, np.int32)
    masks = [_mask_of(annotation, size) for annotation in annotations]
    areas = [0 if annotation['iscrowd'] else mask.sum() for annotation, mask in zip(annotations, masks)]
    crowds = [index for index, annotation in enumerate(annotations) if annotation['iscrowd']]
    objects = [index for index, annotation in enumerate(annotations) if not annotation['iscrowd']]
    for index in (*crowds, *sorted(objects, key=lambda index: -areas[index])):
        painted[masks[index]] = index
    return painted


def _mask_of(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Decodes an annotation's mask, [h, w] bool."""
    if annotation.get('segmentation'):
        return pycocotools.mask.decode(annotation['segmentation']).astype(bool)
    if not annotation['iscrowd']:
        raise ValueError(
            f'annotation {annotation["id"]} of image {annotation["image_id"]} has no mask, from which pixels get their classes: '
            'give every object a mask, or mark this one as a crowd'
        )
    x, y, width, height = annotation['bbox']
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
    return (rows > y) & (rows < y + height) & (columns > x) & (columns < x + width)


def label_map(painted: np.ndarray, annotations: Sequence[Mapping[str, Any]], category_ids: Sequence[int]) -> np.ndarray:
    """Looks up the class of each painted pixel.

    Args:
        painted: [h, w], see `paint_annotations`.
        annotations: the image's.
        category_ids: [K], id of each label in the data.

    Returns:
        [h, w] int32: 0..K-1, K for background, IGNORE in a crowd.
    """
    labels = [IGNORE if each['iscrowd'] else list(category_ids).index(each['category_id']) for each in annotations]
    return np.array([*labels, len(category_ids)], np.int32)[painted]  # NEGATIVE is the last


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the pixels of each true class by the class that is predicted; those to ignore are left out.

    Args:
        truth, predicted: [...] int labels; IGNORE in truth alone.
        classes: C, background included.

    Returns:
        [C, C] int64, true class first.
    """
    counted = truth != IGNORE
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def semantic_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Computes the four metrics of a confusion matrix (1411.4038, section 5).

    Args:
        confusion: [C, C], the sum of all images' `confusion_matrix`.
        class_names: C names, that of background included.

    Returns:
        {'pixel_accuracy', 'mean_accuracy', 'mean_iou', 'weighted_iou', 'per_class': {name: {'iou', 'accuracy'}}}, in 0..1, or None
        where nothing counts. A class that is neither true nor predicted anywhere is left out of means; one that is predicted but
        not there has an IoU of 0, and no accuracy. `weighted_iou` weighs IoUs by the pixels of their true class.
    """
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy, iou = _ratio(hits, true), _ratio(hits, true + predicted - hits)
    there = true > 0
    return {
        'pixel_accuracy': _number(_ratio(hits.sum(), true.sum())),
        'mean_accuracy': _mean(accuracy),
        'mean_iou': _mean(iou),
        'weighted_iou': _number(_ratio((true[there] * iou[there]).sum(), true.sum())),
        'per_class': {
            name: {'iou': _number(i), 'accuracy': _number(a)}
            for name, i, a in zip(class_names, iou, accuracy, strict=True)
        },
    }


def _ratio(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Divides, NaN where the total is 0."""
    return np.where(np.equal(total, 0), np.nan, count / np.maximum(total, 1))


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    """Averages values without those that are NaN; None if all are."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def instances_of(
    labels: np.ndarray, scores: np.ndarray, image_id: int, category_ids: Sequence[int], *, min_pixels: int = 1
) -> list[dict[str, Any]]:
    """Takes the connected components of each class as instances.

    Pixels are neighbours along rows and columns, not diagonally.

    Args:
        labels: [h, w] of the image's pixels, 0..K.
        scores: [h, w], the probability of each pixel's label.
        image_id: the image's id.
        category_ids: [K], id of each label in the data.
        min_pixels: smaller components are left out.

    Returns:
        COCO results, the best score first, with masks that do not overlap and their boxes; the score is the mean of the
        component's pixels. Of more than MAX_INSTANCES the best are kept.
    """
    components, found = {}, []
    for label in np.intersect1d(labels, np.arange(len(category_ids))).tolist():
        count, components[label], stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        sums = np.bincount(components[label].ravel(), scores.astype(np.float64).ravel(), minlength=count)
        for number in range(1, count):  # 0 is what has another label
            *box, pixels = stats[number].tolist()
            if pixels >= min_pixels:
                found.append((float(sums[number] / pixels), label, number, box))
    found.sort(key=lambda row: -row[0])
    return [
        {
            'image_id': int(image_id),
            'category_id': int(category_ids[label]),
            'bbox': [float(x) for x in box],
            'score': score,
            'segmentation': _run_lengths(components[label] == number),
        }
        for score, label, number, box in found[:MAX_INSTANCES]
    ]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask [h, w] bool as COCO's compressed run lengths."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def without_overlaps(results: Sequence[Mapping[str, Any]], *, min_visible: float = 0.5) -> list[dict[str, Any]]:
    """Gives each pixel of an image to one result, the one of highest score, as panoptic quality wants it.

    Args:
        results: COCO results of one image, with masks.
        min_visible: a result of which a smaller share is left is dropped, and takes no pixel.

    Returns:
        results with what is left of their masks, the highest score first.
    """
    kept, taken = [], None
    for result in sorted(results, key=lambda result: -result['score']):
        mask = pycocotools.mask.decode(result['segmentation']).astype(bool)
        taken = np.zeros_like(mask) if taken is None else taken
        left = mask & ~taken
        if left.any() and left.sum() >= min_visible * mask.sum():
            taken |= left
            kept.append({**result, 'segmentation': _run_lengths(left)})
    return kept


def paint_results(
    results: Sequence[Mapping[str, Any]], size: tuple[int, int], category_ids: Sequence[int]
) -> np.ndarray:
    """Gives each pixel the class of a result, as a segmenter gives it one.

    Args:
        results: COCO results of one image, with masks that do not overlap, see `without_overlaps`.
        size: (height, width) of the image.
        category_ids: [K], id of each label in the data.

    Returns:
        [h, w] int32, 0..K-1, K for background.
    """
    labels = np.full(size, len(category_ids), np.int32)
    for result in results:
        labels[pycocotools.mask.decode(result['segmentation']).astype(bool)] = list(category_ids).index(
            result['category_id']
        )
    return labels


def panoptic_quality(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    score_threshold: float = 0.5,
    min_visible: float = 0.5,
) -> dict[str, Any]:
    """Computes the panoptic quality of things (1801.00868, section 4): how many are found, and how exactly.

    A result matches an object of its class if their IoU exceeds 0.5. PQ is the sum of these IoUs over the number of matches, half
    of the results and half of the objects without one: SQ, the mean IoU of matches, times RQ, an F1 score. Objects that overlap
    are painted as for labels, see `paint_annotations`; an object that others hide is left out. Background does not count. Crowds
    are neither found nor missed, and a result that lies by more than half in crowds of its class does not count.

    Args:
        ground_truth: a COCO dict with masks.
        results: COCO results with masks.
        score_threshold: results with a lower score are left out.
        min_visible: see `without_overlaps`.

    Returns:
        {'PQ', 'SQ', 'RQ', 'per_class': {name: {'PQ', 'SQ', 'RQ'}}} in 0..1, means over classes that are there or found; None for
        one that is not.

    Raises:
        ValueError: an object has no mask.
    """
    ids = [image['id'] for image in ground_truth['images']]
    annotations, found = ({image_id: [] for image_id in ids} for _ in range(2))
    for row in ground_truth['annotations']:
        if row['image_id'] in annotations:
            annotations[row['image_id']].append(row)
    for row in results:
        if row['score'] >= score_threshold:
            found[row['image_id']].append(row)
    background = max((category['id'] for category in ground_truth['categories']), default=0) + 1
    truth_segments, segments = [], []
    for image in ground_truth['images']:
        size = image['height'], image['width']
        visible = _visible(annotations[image['id']], size)
        kept = without_overlaps(found[image['id']], min_visible=min_visible)
        truth_segments += _with_background(visible, image['id'], size, background)
        segments += _with_background(kept, image['id'], size, background)
    return _quality(ground_truth, truth_segments, segments, background)


def _visible(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Cuts annotations to their painted pixels, and leaves out those that have none.

    The crowds of a class become one, since the evaluator looks at one only.
    """
    painted, rows, masks = paint_annotations(annotations, size), {}, {}
    for index, row in enumerate(annotations):
        key = ('crowds', row['category_id']) if row['iscrowd'] else index
        rows[key], masks[key] = row, masks.get(key, False) | (painted == index)
    return [{**rows[key], 'segmentation': _run_lengths(mask)} for key, mask in masks.items() if mask.any()]


def _with_background(
    segments: list[dict[str, Any]], image_id: int, size: tuple[int, int], background: int
) -> list[dict[str, Any]]:
    """Adds a segment of all other pixels. Pixels in no true segment would be void, where nothing that is found is wrong."""
    rest = np.ones(size, bool)
    for row in segments:
        rest &= ~pycocotools.mask.decode(row['segmentation']).astype(bool)
    if not rest.any():
        return segments
    return [*segments, {'image_id': image_id, 'category_id': background, 'segmentation': _run_lengths(rest)}]


def _quality(
    ground_truth: Mapping[str, Any],
    truth_segments: Sequence[dict[str, Any]],
    segments: Sequence[dict[str, Any]],
    background: int,
) -> dict[str, Any]:
    """Runs the evaluator on segments that do not overlap."""
    things = [{**category, 'isthing': 1} for category in ground_truth['categories']]
    categories = [*things, {'id': background, 'name': 'background', 'isthing': 0}]

    def side(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        numbered = [
            {'iscrowd': 0, **row, 'id': number, 'area': int(pycocotools.mask.area(row['segmentation']))}
            for number, row in enumerate(rows, 1)
        ]
        return {'images': ground_truth['images'], 'categories': categories, 'annotations': numbered}

    evaluator = hotcoco.panoptic.PanopticEval(side(truth_segments), side(segments))
    evaluator.evaluate()
    found = evaluator.results()

    def shown(row: Mapping[str, float]) -> dict[str, float | None]:
        return {name: None if row[name.lower()] < 0 else row[name.lower()] for name in ('PQ', 'SQ', 'RQ')}

    per_class = {category['name']: shown(found['per_class'][category['id']]) for category in things}
    return {**shown(found['Things']), 'per_class': per_class}
