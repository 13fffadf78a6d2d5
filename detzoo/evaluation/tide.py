"""What a detector gets wrong: TIDE's six kinds of error, and the AP that each of them costs (arXiv:2008.08115).

    ground truth (a COCO dict), detections (a COCO results list): the same as for `evaluation.coco`
      -> image by image: the 100 best detections, of all classes, find objects of their class
      -> each detection that found none is an error of one kind; an object that no detection found may be missed
      -> AP at the foreground threshold, and AP after one kind of error is fixed: the difference is the kind's dAP
      -> `error_breakdown`

In the order of their scores, each detection finds the object of its class that it overlaps most among those not found yet, if
their IoU is at least `foreground_iou` (f). For a detection that finds none, `own` is its highest IoU with an object of its
class, found or not, `other` that with an object of another class. Its kind is the first of these that holds; b is `background_iou`:

    localization     b <= own <= f            fixed: it finds this object
    classification   other >= f               fixed: it finds this object, as a detection of the object's class
    duplicate        own > f                  fixed: it is removed
    background       own and other <= b       fixed: it is removed
    both             all others               fixed: it is removed

The sixth kind are missed objects: those not found that no classification or localization error aims at. Fixed, they need not
be found. If several such errors aim at one object that was not found, only the detection with the best score finds it when its
kind is fixed, even if they are of both kinds. The others, and those that aim at a found object, are removed. Two more fixes
overlap with these kinds:

    false_positives  all false positives are ranked behind all hits
    false_negatives  objects that were not found need not be found

Crowds do not count as objects. A detection that found no object, and has more than the share f of its area in a crowd of its
class, is neither right nor wrong; but it has a kind, is counted in it, and may find an object in a fix. So is one that found no
object, of a class that the image is not annotated for exhaustively (`federated`).

Differences from COCO's AP50: a class with detections but no objects counts, with AP 0; so a fix that removes its last
detection takes the class out of the mean. The limit of 100 detections is per image, not per class and image. Among
objects with equal IoU the first is found. A crowd must be overlapped by more than f; exactly f is not enough. Whether a recall
reaches a hundredth is decided with integers.

Differences from tidecv: none where all scores differ. Detections with equal scores keep their order (of the images, then of the
list) in every computation. tidecv keeps it for AP, but after a fix it ranks the remaining errors before hits with their score.
That lowers dAP, and tidecv sets a negative dAP to 0; here dAP is never negative. Without any class, AP is None; tidecv divides
by zero.
"""

import functools
from collections import defaultdict
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from detzoo.evaluation.coco import check_inputs
from detzoo.evaluation.federated import is_judged
from detzoo.evaluation.overlaps import box_overlaps, mask_overlaps
from detzoo.evaluation.precision import best_precision

ERRORS = ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
MAX_DETECTIONS = 100  # per image
_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND, _ = range(len(ERRORS))
_NONE = -1  # no kind, no object


class _Judged(NamedTuple):
    """The N detections that count, the highest score first, and the G objects.

    labels: [N] int, index of the class.
    hits: [N] bool, whether it found an object.
    ignored: [N] bool, whether it lies in a crowd, or the image does not tell whether it is right; never a hit.
    kinds: [N] int, index in ERRORS, or -1 for a hit.
    targets: [N] int, the object that a classification or localization error aims at, else -1.
    object_labels: [G] int.
    found: [G] bool.
    """

    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray
    object_labels: np.ndarray
    found: np.ndarray


def error_breakdown(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    kind: str = 'bbox',
    *,
    foreground_iou: float = 0.5,
    background_iou: float = 0.1,
) -> dict[str, Any]:
    """Sorts errors into TIDE's kinds and computes the AP that each kind costs; no input is changed.

    Args:
      ground_truth, detections: as `coco_metrics` takes them. Among equal scores the earlier image comes first.
      kind: 'bbox' for boxes, 'segm' for masks.
      foreground_iou: least IoU at which a detection finds an object, in 0..1.
      background_iou: largest IoU at which a detection counts as background, above 0 and below `foreground_iou`.

    Returns:
      `{'AP': at foreground_iou, 'dAP': {name: AP gained}, 'counts': {name: number}}` with the names of ERRORS,
      'false_positives' and 'false_negatives'. AP is in 0..1, or None without objects and detections; dAP is
      >= 0, or None where the fix leaves neither objects nor detections. The kinds of detections count those in crowds,
      'false_positives' does not.

    Raises:
      ValueError: the kind is unknown, the thresholds are not 0 < background < foreground <= 1, masks of an image differ in
        size, or see `coco_metrics`.
    """
    if not 0 < background_iou < foreground_iou <= 1:
        raise ValueError(
            f'thresholds must be 0 < background < foreground <= 1, not background {background_iou}, '
            f'foreground {foreground_iou}'
        )
    check_inputs(ground_truth, detections, kind)
    judged = _judge(ground_truth, detections, kind, foreground_iou, background_iou)
    objects = np.bincount(judged.object_labels, minlength=len(ground_truth['categories']))  # [K]
    fixed = _fixable(judged)
    aimed_at = np.zeros(len(judged.found), bool)
    aimed_at[judged.targets[fixed]] = True
    missed, unfound = ~judged.found & ~aimed_at, ~judged.found

    def average(chosen: np.ndarray, labels: np.ndarray, hits: np.ndarray, excused: np.ndarray) -> float | None:
        fewer = np.bincount(judged.object_labels[excused], minlength=len(objects))
        return _mean_average_precision(labels[chosen], hits[chosen], objects - fewer)

    counted = np.flatnonzero(~judged.ignored)
    unfixed = (judged.labels, judged.hits)
    nobody = np.zeros_like(missed)
    value = average(counted, *unfixed, nobody)
    after = {}
    for number, name in enumerate(ERRORS[:-1]):
        repaired = fixed & (judged.kinds == number)
        labels = judged.labels.copy()
        labels[repaired] = judged.object_labels[judged.targets[repaired]]
        chosen = ~judged.ignored & (judged.kinds != number) | repaired
        after[name] = average(chosen, labels, judged.hits | repaired, nobody)
    after['missed'] = average(counted, *unfixed, missed)
    right_first = counted[np.argsort(~judged.hits[counted], kind='stable')]
    after['false_positives'] = average(right_first, *unfixed, nobody)
    after['false_negatives'] = average(counted, *unfixed, unfound)

    counts = {name: int((judged.kinds == number).sum()) for number, name in enumerate(ERRORS)}
    counts['missed'] = int(missed.sum())
    counts['false_positives'] = int((~judged.hits & ~judged.ignored).sum())
    counts['false_negatives'] = int(unfound.sum())
    gains = {name: None if value is None or fix is None else fix - value for name, fix in after.items()}
    return {'AP': value, 'dAP': gains, 'counts': counts}


def _judge(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, foreground: float, background: float
) -> _Judged:
    """Matches the detections of each image to its objects, and finds the kind of error of the others."""
    label_of = {category['id']: label for label, category in enumerate(ground_truth['categories'])}
    rows_of, results_of = defaultdict(list), defaultdict(list)
    for table, rows in ((rows_of, ground_truth['annotations']), (results_of, detections)):
        for row in rows:
            table[row['image_id']].append(row)

    def labels(rows: list[dict[str, Any]]) -> np.ndarray:
        return np.array([label_of[row['category_id']] for row in rows], np.int64)

    overlaps = box_overlaps if kind == 'bbox' else functools.partial(mask_overlaps, truth=hotcoco.COCO(ground_truth))
    scores, parts, object_labels, found = [np.zeros(0)], [], [labels([])], [np.zeros(0, bool)]
    total = 0  # number of objects in the images so far
    for image in ground_truth['images']:
        rows = rows_of[image['id']]
        results = sorted(results_of[image['id']], key=lambda row: -row['score'])[:MAX_DETECTIONS]
        crowd = np.array([bool(row.get('iscrowd', 0)) for row in rows], bool)
        row_labels, result_labels = labels(rows), labels(results)
        iou = overlaps(results, rows, crowd)  # [n, m]; for crowds, the share of the detection inside
        same_class = result_labels[:, None] == row_labels
        matched, kinds, targets = _judge_image(iou[:, ~crowd], same_class[:, ~crowd], foreground, background)
        present = {row['category_id'] for row in rows}
        unjudged = np.array([not is_judged(image, present, row['category_id']) for row in results], bool)
        ignored = ((iou > foreground) & same_class & crowd).any(axis=1) | unjudged
        hits = matched >= 0
        taken = np.zeros((~crowd).sum(), bool)
        taken[matched[hits]] = True
        targets = np.where(targets >= 0, targets + total, _NONE)
        scores.append(np.array([row['score'] for row in results], np.float64))
        parts.append((result_labels, hits, ignored & ~hits, kinds, targets))
        object_labels.append(row_labels[~crowd])
        found.append(taken)
        total += len(taken)

    order = np.argsort(-np.concatenate(scores), kind='stable')
    nothing = (labels([]), np.zeros(0, bool), np.zeros(0, bool), labels([]), labels([]))
    columns = [np.concatenate(column)[order] for column in zip(nothing, *parts, strict=True)]
    return _Judged(*columns, np.concatenate(object_labels), np.concatenate(found))


def _judge_image(
    iou: np.ndarray, same_class: np.ndarray, foreground: float, background: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches the detections of an image and sorts the others into kinds.

    Args:
      iou: [n, m] float64, IoU of the detections, the highest score first, and the objects.
      same_class: [n, m] bool, whether a detection and an object have the same class.

    Returns:
      [n] int each: the object that the detection found, or -1; the kind of error, or -1 for a hit; the object that a
      localization or classification error aims at, or -1.
    """
    # An object that nothing overlaps is appended, so that argmax always has one to choose.
    own, other = (np.pad(np.where(chosen, iou, 0), ((0, 0), (0, 1))) for chosen in (same_class, ~same_class))
    own_iou, other_iou = own.max(axis=1), other.max(axis=1)
    matched = np.full(len(iou), _NONE)
    free = own.copy()
    for row in np.flatnonzero(own_iou >= foreground):
        best = free[row].argmax()
        if free[row, best] >= foreground:
            matched[row] = best
            free[:, best] = 0
    kinds = np.select(
        [
            matched >= 0,
            (background <= own_iou) & (own_iou <= foreground),
            other_iou >= foreground,
            own_iou > foreground,
            np.maximum(own_iou, other_iou) <= background,
        ],
        [_NONE, _LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        default=_BOTH,
    )
    aims = [kinds == _LOCALIZATION, kinds == _CLASSIFICATION]
    return matched, kinds, np.select(aims, [own.argmax(axis=1), other.argmax(axis=1)], default=_NONE)


def _fixable(judged: _Judged) -> np.ndarray:
    """Selects the detections that find an object when their kind is fixed: for each object not found, the best that aims at it.

    Returns:
      [N] bool.
    """
    aiming = np.flatnonzero(judged.targets >= 0)
    aiming = aiming[~judged.found[judged.targets[aiming]]]
    fixed = np.zeros(len(judged.targets), bool)
    fixed[aiming[np.unique(judged.targets[aiming], return_index=True)[1]]] = True
    return fixed


def _mean_average_precision(labels: np.ndarray, hits: np.ndarray, objects: np.ndarray) -> float | None:
    """Averages precision over 101 recalls and the classes that have objects or detections.

    Args:
      labels: [n] int, classes of detections, the best one first.
      hits: [n] bool.
      objects: [K] int, number of objects to be found in each class.

    Returns:
      AP in 0..1, or None if no class has objects or detections.
    """
    classes = np.count_nonzero((objects > 0) | (np.bincount(labels, minlength=len(objects)) > 0))
    values = [_average_precision(hits[labels == label], objects[label]) for label in np.flatnonzero(objects)]
    return sum(values) / int(classes) if classes else None


def _average_precision(hits: np.ndarray, objects: int) -> float:
    """Averages, over recalls 0, .01, ... 1, the best precision at this recall or a higher one; it is 0 beyond the highest recall.

    Args:
      hits: [n] bool, the detections of a class, the best one first.
      objects: number of objects of the class, > 0.
    """
    found, best = best_precision(hits)
    reached = np.searchsorted(100 * found, np.arange(101) * objects)
    return float(np.append(best, 0)[reached].mean())
