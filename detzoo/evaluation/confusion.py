"""Which class a detector takes for which: a confusion matrix of detections and objects.

    ground truth (a COCO dict), detections (a COCO results list): the same as for `evaluation.coco`
      -> `best_threshold`: the score from which on detections count
      -> image by image: each detection, the best score first, takes the object that it overlaps most, whatever its class
      -> `confusion_matrix` [K + 1, K + 1]; `confuse` does both -> Confusion

A detection takes an object that no detection before it has taken, at an IoU of `min_iou` or more; of objects with equal IoU one of
its own class, then the first. An object that is not taken is missed; a detection that takes none lies on background. Crowds are
no objects: a detection that takes none, and has the share `min_iou` of its area or more in a crowd of any class, does not count.
Neither does one that takes none, of a class that the image is not annotated for exhaustively (`federated`).

So an object detected once in each of two classes is one hit or one confusion, and one detection on background.
"""

import functools
from collections import defaultdict
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from detzoo.evaluation.coco import check_inputs
from detzoo.evaluation.federated import is_judged
from detzoo.evaluation.overlaps import box_overlaps, mask_overlaps
from detzoo.evaluation.statistics import THRESHOLDS, Matches

MIN_IOU = 0.5
UNSCORED = 0.5  # the threshold where there are no detections


class Confusion(NamedTuple):
    """A confusion matrix, and the score threshold of its detections.

    counts: [K + 1, K + 1] int64, see `confusion_matrix`.
    """

    counts: np.ndarray
    score_threshold: float


def confuse(ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, matches: Matches) -> Confusion:
    """Counts what the detections take the objects for, at the score threshold with the highest F1.

    Args:
      ground_truth, detections, kind: see `confusion_matrix`.
      matches: the same detections, see `statistics.match_images`.

    Raises:
      ValueError: see `confusion_matrix`.
    """
    threshold = best_threshold(matches)
    return Confusion(confusion_matrix(ground_truth, detections, kind, score_threshold=threshold), threshold)


def best_threshold(matches: Matches) -> float:
    """Finds the score threshold with the highest F1 of all classes together, at IoU 0.5; of several, the highest score.

    F1 = 2 hits / (detections + objects), where a hit has the right class and detections in crowds do not count.

    Args:
      matches: see `statistics.match_images`.
    """
    at = THRESHOLDS.index(MIN_IOU)
    counted = [~found.ignored[at] for found in matches.classes]
    scores = np.concatenate([found.scores[chosen] for found, chosen in zip(matches.classes, counted, strict=True)])
    hits = np.concatenate([found.hits[at][chosen] for found, chosen in zip(matches.classes, counted, strict=True)])
    if not len(scores):
        return UNSCORED
    order = np.argsort(-scores, kind='stable')
    scores, found = scores[order], np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(scores) + 1) + matches.objects.sum())
    last_of_score = np.append(scores[1:] != scores[:-1], True)  # a threshold takes all detections of a score or none
    return float(scores[np.where(last_of_score, f1, -1).argmax()])


def confusion_matrix(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    kind: str = 'bbox',
    *,
    score_threshold: float,
    min_iou: float = MIN_IOU,
) -> np.ndarray:
    """Counts which class the detections give to the objects of each class; no input is changed.

    Args:
      ground_truth, detections: see `coco_metrics`.
      kind: 'bbox' for boxes, 'segm' for masks.
      score_threshold: detections with lower scores do not count.
      min_iou: least IoU at which a detection takes an object, above 0.

    Returns:
      [K + 1, K + 1] int64. Row k: the objects of class k, in the order of the ids, by the class of the detection that took them;
      the last column has those that were missed. The last row has the detections on background. Its last cell is 0.

    Raises:
      ValueError: masks of an image differ in size, or see `coco_metrics`.
    """
    check_inputs(ground_truth, detections, kind)
    ids = sorted(category['id'] for category in ground_truth['categories'])
    label_of = {category_id: label for label, category_id in enumerate(ids)}
    overlaps = box_overlaps if kind == 'bbox' else functools.partial(mask_overlaps, truth=hotcoco.COCO(ground_truth))
    rows_of, results_of = defaultdict(list), defaultdict(list)
    for table, rows in ((rows_of, ground_truth['annotations']), (results_of, detections)):
        for row in rows:
            table[row['image_id']].append(row)
    matrix = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    for image in ground_truth['images']:
        rows = rows_of[image['id']]
        results = sorted(
            (row for row in results_of[image['id']] if row['score'] >= score_threshold), key=lambda row: -row['score']
        )
        crowd = np.array([bool(row.get('iscrowd', 0)) for row in rows], bool)
        true, found = (np.array([label_of[row['category_id']] for row in table], np.int64) for table in (rows, results))
        iou = overlaps(results, rows, crowd)  # [n, m]; for crowds, the share of the detection inside
        true = true[~crowd]
        taken = _take(iou[:, ~crowd], found[:, None] == true, min_iou)
        hit = taken >= 0
        np.add.at(matrix, (true[taken[hit]], found[hit]), 1)
        np.add.at(matrix, (true[np.setdiff1d(np.arange(len(true)), taken)], -1), 1)
        in_crowd = (iou[:, crowd] >= min_iou).any(axis=1)
        present = {row['category_id'] for row in rows}
        judged = np.array([is_judged(image, present, row['category_id']) for row in results], bool)
        np.add.at(matrix, (-1, found[~hit & ~in_crowd & judged]), 1)
    return matrix


def _take(iou: np.ndarray, same_class: np.ndarray, min_iou: float) -> np.ndarray:
    """Gives each detection of an image, the best score first, the free object that it overlaps most.

    Args:
      iou, same_class: [n, m] float64 and bool, of detections and objects.

    Returns:
      [n] int, the object of each detection, or -1.
    """
    taken = np.full(len(iou), -1)
    free = iou.copy()
    for row in np.flatnonzero(iou.max(axis=1, initial=0) >= min_iou):
        best = np.flatnonzero(free[row] == free[row].max())
        column = best[same_class[row, best].argmax()]
        if free[row, column] >= min_iou:
            taken[row] = column
            free[:, column] = -1
    return taken
