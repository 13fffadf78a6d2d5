"""COCO evaluation: average precision and recall of boxes and masks, for all classes and for each (arXiv:1405.0312).

    ground truth (a COCO dict), detections (a COCO results list)
      -> checked, since an unknown id would quietly lower the numbers
      -> precision [T, R, K, A, M] and recall [T, K, A, M] by the evaluator
      -> `coco_metrics`: the twelve numbers and AP per class    -> `format_table`
      -> `pr_curves`: precision over recall                     -> `detzoo.visualize.plot_pr_curves`

    T  IoU thresholds .50, .55, ... .95        A  areas: all, small < 32^2, medium < 96^2 <= large, square pixels
    R  recall points 0, .01, ... 1             M  detections a class and image: 1, 10, 100
    K  categories in the order of their ids

The images listed in the ground truth are evaluated; annotations of other images are ignored. So
`{**ground_truth, 'images': some}` evaluates some of the images. A number that is undefined is None (pycocotools: -1), for
example the AP of a class without annotations (crowds do not count).

A ground truth whose images are annotated for some of the classes only is evaluated as LVIS does, see `federated`: one count M, 300
detections an image, in place of COCO's three, and `coco_metrics` has LVIS's 13 numbers, with the AP of rare, common and frequent
classes. They equal those of lvis-api.

Differences from pycocotools: an annotation whose id is 0 can be matched (there it counts as a false positive as well as a
miss), an empty list of detections is an AP of 0 (there an error), and masks are always small, medium or large by
their own area (there by the area of the box where a detection carries both).
"""

import gzip
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np

from detzoo.evaluation.federated import FREQUENCIES, is_federated, without_lists
from detzoo.files import as_path, new_file, unpacked

_SECTIONS = {'bbox': 'boxes', 'segm': 'masks'}
_THRESHOLDS = {'0.50:0.95': slice(None), '0.50': 0, '0.75': 5}  # axis T
AREAS = ('all', 'small', 'medium', 'large')  # axis A
_COUNTS = (1, 10, 100)  # axis M
_TWELVE = {
    'AP': ('Precision', '0.50:0.95', 'all', 100),
    'AP50': ('Precision', '0.50', 'all', 100),
    'AP75': ('Precision', '0.75', 'all', 100),
    'APs': ('Precision', '0.50:0.95', 'small', 100),
    'APm': ('Precision', '0.50:0.95', 'medium', 100),
    'APl': ('Precision', '0.50:0.95', 'large', 100),
    'AR1': ('Recall', '0.50:0.95', 'all', 1),
    'AR10': ('Recall', '0.50:0.95', 'all', 10),
    'AR100': ('Recall', '0.50:0.95', 'all', 100),
    'ARs': ('Recall', '0.50:0.95', 'small', 100),
    'ARm': ('Recall', '0.50:0.95', 'medium', 100),
    'ARl': ('Recall', '0.50:0.95', 'large', 100),
}
_LVIS = {
    **{name: (what, iou, area, 300) for name, (what, iou, area, _) in _TWELVE.items() if name.startswith('AP')},
    **dict.fromkeys(('APr', 'APc', 'APf'), ('Precision', '0.50:0.95', 'all', 300)),
    'AR300': ('Recall', '0.50:0.95', 'all', 300),
    **{name: (what, iou, area, 300) for name, (what, iou, area, _) in _TWELVE.items() if name in ('ARs', 'ARm', 'ARl')},
}


def coco_metrics(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], kinds: Sequence[str] = ('bbox',)
) -> dict[str, Any]:
    """Evaluates detections as COCO does; no input is changed and nothing is printed.

    Args:
      ground_truth: a COCO dict: `images` (id), `categories` (id, name) and `annotations` (id, image_id, category_id,
        bbox as xywh in pixels, area in square pixels, iscrowd, and for masks segmentation).
      detections: COCO results: image_id, category_id, bbox as xywh in pixels, score, and for masks segmentation (RLE).
        Pass scores and boxes in float64, since rounding makes new ties. Among equal scores the earlier detection comes first.
      kinds: 'bbox' for boxes, 'segm' for masks, or both.

    Returns:
      `{'images': count, 'boxes': {...}, 'masks': {...}, 'per_class': {name: {...}}}` with AP, AP50, AP75, APs, APm, APl,
      AR1, AR10, AR100, ARs, ARm and ARl for boxes and masks, each in 0..1 or None; per class AP and AP50 of boxes,
      mask_AP and mask_AP50 of masks. Only the requested kinds are included. With a federated ground truth there are APr, APc, APf
      and AR300 in place of AR1, AR10 and AR100.

    Raises:
      ValueError: a kind, image_id or category_id is unknown, a score or box is not finite, an id or name is used
        twice, or an area, a mask, or a list of a federated ground truth is missing.
    """
    if not kinds or not set(kinds) <= set(_SECTIONS):
        raise ValueError(f"kinds must be some of 'bbox' and 'segm', not {kinds!r}")
    names = _class_names(ground_truth)
    metrics = {'images': len(ground_truth['images'])}
    per_class = {name: {} for name in names}
    for kind in kinds:
        precision, recall = precision_recall(ground_truth, detections, kind)
        metrics[_SECTIONS[kind]] = _summary(precision, recall, ground_truth)
        prefix = 'mask_' if kind == 'segm' else ''
        for name, class_precision in zip(names, _per_class(precision), strict=True):
            per_class[name][f'{prefix}AP'] = mean_present(class_precision)
            per_class[name][f'{prefix}AP50'] = mean_present(class_precision[_THRESHOLDS['0.50']])
    return {**metrics, 'per_class': per_class}


def class_agnostic(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Maps all categories to one, 'object': its metrics say how well objects are found, whatever their class.

    The metrics are those of pycocotools with `useCats = 0`. No detection is suppressed: an object detected once in each of two
    classes is one hit and one false positive, and 100 detections count per image, not per class.

    Raises:
      ValueError: as `coco_metrics`.
    """
    check_inputs(ground_truth, detections)

    def one_category(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Order decides between equal scores and between equal IoUs, and pycocotools concatenates the categories.
        return [{**row, 'category_id': 1} for row in sorted(rows, key=lambda row: row['category_id'])]

    annotations = one_category(ground_truth['annotations'])
    categories = [{'id': 1, 'name': 'object'}]
    everywhere = without_lists(ground_truth)  # classes that an image is not annotated for are one with the others
    return {**everywhere, 'categories': categories, 'annotations': annotations}, one_category(detections)


def pr_curves(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str = 'bbox'
) -> dict[str, dict[str, np.ndarray] | None]:
    """Computes precision over recall of the boxes, or masks, of each class, at IoU 0.5 and 0.75.

    Args:
      ground_truth: a COCO dict, with segmentations for 'segm'.
      detections: COCO results, likewise.
      kind: 'bbox' or 'segm'.

    Returns:
      {name: {'recall': [101] 0, .01, ... 1, 'precision@50': [101], 'precision@75': [101]}}, float64 in 0..1. Precision is the
      best one at this recall or a higher one, and 0 beyond the highest recall. A class without annotations has None.

    Raises:
      ValueError: as `coco_metrics`.
    """
    names = _class_names(ground_truth)
    precision, _ = precision_recall(ground_truth, detections, kind)
    recall = np.linspace(0, 1, precision.shape[1])
    curves = {}
    for name, class_precision in zip(names, _per_class(precision), strict=True):
        at50, at75 = class_precision[_THRESHOLDS['0.50']], class_precision[_THRESHOLDS['0.75']]
        absent = at50[0] < 0
        curves[name] = None if absent else {'recall': recall, 'precision@50': at50, 'precision@75': at75}
    return curves


def format_table(metrics: dict[str, Any]) -> str:
    """Writes the metrics of `coco_metrics` as COCO's twelve lines, or LVIS's thirteen, and a table of classes, the best AP first.

    If the metrics have 'pixels', 'panoptic' and 'counts', as a segmenter's do, they come first. If they have 'candidates_dropped',
    a last line says how many there were.
    """
    blocks = [_pixel_tables(metrics['pixels'], metrics['panoptic'])] if 'pixels' in metrics else []
    if 'counts' in metrics:
        error, bias = (metrics['counts'][name] for name in ('count_error', 'count_bias'))
        blocks.append(
            f'number of objects in an image: mean absolute error {show(error)}, mean of found minus true {show(bias)}'
        )
    for section in (name for name in _SECTIONS.values() if name in metrics):
        lines = [f'{section}, {metrics["images"]} images']
        numbers = metrics[section]
        for name, (what, iou, area, count) in (_LVIS if 'APr' in numbers else _TWELVE).items():
            title = f'{"Average " + what:<18} (A{what[0]})'
            classes = f', {FREQUENCIES[name[-1]]} classes' if name in ('APr', 'APc', 'APf') else ''
            value = show(numbers[name]) + classes
            lines.append(f' {title} @[ IoU={iou:<9} | area={area:>6} | maxDets={count:>3} ] = {value}')
        blocks.append('\n'.join(lines))
    if metrics['per_class']:
        blocks.append(class_table(metrics['per_class']))
    if metrics.get('candidates_dropped'):
        blocks.append(
            f'{metrics["candidates_dropped"]:.1f} candidates an image were over the score threshold, but not among the '
            'pre_nms_topk best: raise pre_nms_topk to consider them'
        )
    return '\n\n'.join(blocks)


def _pixel_tables(pixels: dict[str, Any], panoptic: dict[str, Any]) -> str:
    """Writes the results of `semantic_metrics` and `panoptic_quality`: those of all classes, and a table of classes."""
    lines = ['pixels, and panoptic quality of instances']
    lines += [f' {name:<16} = {show(value)}' for name, value in {**pixels, **panoptic}.items() if name != 'per_class']
    rows = {
        name: {**of_class, 'PQ': panoptic['per_class'].get(name, {}).get('PQ')}  # background has none
        for name, of_class in pixels['per_class'].items()
    }
    return '\n'.join(lines) + '\n\n' + class_table(rows)


def write_detections(path: str | os.PathLike, detections: list[dict[str, Any]]) -> None:
    """Writes COCO results as gzipped JSON: complete or not at all, and the same bytes for the same detections.

    Raises:
      ValueError: a number is not finite.
    """
    text = json.dumps(detections, allow_nan=False, separators=(',', ':'))
    with new_file(path) as scratch:
        scratch.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def read_detections(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads what `write_detections` wrote.

    Raises:
      ValueError: it is no gzipped JSON, was cut short, or would take too much memory.
    """
    return json.loads(unpacked(as_path(path).read_bytes()))


def precision_recall(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, counts: Sequence[int] = _COUNTS
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the evaluator: precision [T, R, K, A, M] and recall [T, K, A, M], float64 in 0..1 or -1 where absent.

    Args:
      ground_truth, detections: see `coco_metrics`.
      kind: 'bbox' for boxes, 'segm' for masks.
      counts: [M] numbers of detections a class and image, ascending; a federated ground truth has its own, see `federated`.

    Raises:
      ValueError: as `coco_metrics`.
    """
    check_inputs(ground_truth, detections, kind)
    if kind == 'segm':
        ground_truth = {**ground_truth, 'annotations': [with_region(row) for row in ground_truth['annotations']]}
        # If a result has a box, the evaluator takes its area from there, even when it compares masks.
        detections = [{key: value for key, value in row.items() if key != 'bbox'} for row in detections]
    truth = hotcoco.COCO(ground_truth)
    federated = is_federated(ground_truth)
    evaluator = hotcoco.COCOeval(truth, truth.load_res(detections), kind, lvis_style=federated)
    if not federated:
        evaluator.params.max_dets = list(counts)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval['precision'], evaluator.eval['recall']


def _summary(precision: np.ndarray, recall: np.ndarray, ground_truth: dict[str, Any]) -> dict[str, float | None]:
    """Averages precision [T, R, K, A, M] and recall [T, K, A, M] into COCO's twelve numbers, or LVIS's thirteen."""
    values, numbers = {'Precision': precision, 'Recall': recall}, {}
    federated = is_federated(ground_truth)
    for name, (what, iou, area, count) in (_LVIS if federated else _TWELVE).items():
        at = 0 if federated else _COUNTS.index(count)
        chosen = values[what][_THRESHOLDS[iou], ..., AREAS.index(area), at]  # [..., K]
        if name in ('APr', 'APc', 'APf'):
            chosen = chosen[..., [category['frequency'] == name[-1] for category in _categories(ground_truth)]]
        numbers[name] = mean_present(chosen)
    return numbers


def _per_class(precision: np.ndarray) -> np.ndarray:
    """Selects from precision [T, R, K, A, M] the values of all areas and the largest count: [K, T, R]."""
    return np.moveaxis(precision[..., AREAS.index('all'), -1], 2, 0)


def mean_present(values: np.ndarray) -> float | None:
    """Averages precision or recall without the absent ones (-1); None if all are absent."""
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _categories(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists the categories along axis K."""
    return sorted(ground_truth['categories'], key=lambda category: category['id'])


def _class_names(ground_truth: dict[str, Any]) -> list[str]:
    """Lists the names along axis K."""
    return [category['name'] for category in _categories(ground_truth)]


def check_inputs(ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str = 'bbox') -> None:
    """Refuses inputs that cannot be evaluated, or would quietly lower the numbers.

    Args:
      ground_truth, detections: see `coco_metrics`.
      kind: 'bbox' for boxes, 'segm' for masks.

    Raises:
      ValueError: as `coco_metrics`.
    """
    if kind not in _SECTIONS:
        raise ValueError(f"kind must be 'bbox' or 'segm', not {kind!r}")
    _check_ground_truth(ground_truth)
    _check_detections(ground_truth, detections)
    if kind == 'segm':
        _check_masks(ground_truth, detections)


def _check_ground_truth(ground_truth: dict[str, Any]) -> None:
    """Refuses rows that would be counted twice, skipped or put into the wrong range of areas."""
    for table, key in (('images', 'id'), ('categories', 'id'), ('categories', 'name'), ('annotations', 'id')):
        for value, count in Counter(row[key] for row in ground_truth[table]).most_common(1):
            if count > 1:
                raise ValueError(f'ground truth: {count} {table} have the {key} {value!r}')
    categories = {category['id'] for category in ground_truth['categories']}
    for row in ground_truth['annotations']:
        if row['category_id'] not in categories:
            raise ValueError(f'annotation {row["id"]}: category_id {row["category_id"]!r} is not in the categories')
        if 'area' not in row:
            raise ValueError(f"annotation {row['id']}: it has no 'area'")


def _check_detections(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    """Refuses detections that could not match any object, or cannot be ranked."""
    images = {image['id'] for image in ground_truth['images']}
    categories = {category['id'] for category in ground_truth['categories']}
    for index, row in enumerate(detections):
        if row['image_id'] not in images:
            raise ValueError(f'detection {index}: image_id {row["image_id"]!r} is not in the ground truth')
        if row['category_id'] not in categories:
            raise ValueError(f'detection {index}: category_id {row["category_id"]!r} is not in the ground truth')
        if not all(map(math.isfinite, (row['score'], *row['bbox']))):
            raise ValueError(f'detection {index}: score {row["score"]} and box {row["bbox"]} must be finite')


def _check_masks(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    """Refuses rows without a mask, which would quietly match nothing; a crowd needs none."""
    files = {image['id']: image.get('file_name', image['id']) for image in ground_truth['images']}
    objects = [row for row in ground_truth['annotations'] if row['image_id'] in files and not row.get('iscrowd')]
    without = [row for row in objects if not row.get('segmentation')]
    if without:
        raise ValueError(
            f'annotation {without[0]["id"]} of image {files[without[0]["image_id"]]}: masks are evaluated, but it has no '
            f"'segmentation' ({len(without)} of {len(objects)} objects have none); give every object a mask, mark those without as "
            'crowds, or evaluate boxes only (data.mask_size=0)'
        )
    for index, row in enumerate(detections):
        if not row.get('segmentation'):
            raise ValueError(f"detection {row.get('id', index)}: masks are evaluated, but it has no 'segmentation'")


def with_region(row: dict[str, Any]) -> dict[str, Any]:
    """Gives a crowd without a mask its box as the region."""
    if row.get('segmentation') or not row.get('iscrowd'):
        return row
    x, y, w, h = row['bbox']
    return {**row, 'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def class_table(per_class: dict[str, dict[str, float | None]]) -> str:
    """Aligns the metrics of classes in columns, the best first and absent ones last."""
    columns = list(next(iter(per_class.values())))
    width = max(len('class'), *map(len, per_class))

    def rank(name: str) -> float:
        value = per_class[name][columns[0]]
        return math.inf if value is None else -value

    lines = ['  '.join([f'{"class":<{width}}', *(f'{column:>9}' for column in columns)])]
    for name in sorted(per_class, key=rank):
        lines.append('  '.join([f'{name:<{width}}', *(f'{show(per_class[name][column]):>9}' for column in columns)]))
    return '\n'.join(lines)


def show(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
