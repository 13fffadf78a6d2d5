"""Confusion matrices: by hand, by hotcoco where its rule is the same, and what the ground truth itself gives."""

import hotcoco
import numpy as np
import pytest
from drawn_matches import make_matches, random_case, results, truth

from detzoo.evaluation.confusion import UNSCORED, best_threshold, confusion_matrix
from detzoo.evaluation.statistics import match_images

A, B, FAR = (0, 0, 20, 20), (40, 0, 20, 20), (80, 80, 9, 9)


def matrix(objects, detections, score_threshold=0.0, **how):
    return confusion_matrix(truth(*objects), results(*detections), score_threshold=score_threshold, **how).tolist()


def test_confusion_matrix_by_hand():
    objects = (1, 1, A), (1, 2, B), (2, 2, A), (2, 1, B)
    detections = (
        (1, 2, A, 0.9),  # class 1 taken for class 2
        (1, 1, A, 0.8),  # the right class, but the object is taken: background
        (1, 2, B, 0.7),  # right
        (1, 1, FAR, 0.6),  # background
        (2, 2, (0, 0, 20, 9), 0.5),  # IoU .45: background, and its object is missed
        (2, 1, B, 0.1),  # below the threshold: its object is missed
    )
    assert matrix(objects, detections, 0.5) == [[0, 1, 1], [0, 1, 1], [2, 1, 0]]
    assert matrix(objects, detections, 0.05) == [[1, 1, 0], [0, 1, 1], [2, 1, 0]]
    assert matrix(objects, detections, 0.5, min_iou=0.45) == [[0, 1, 1], [0, 2, 0], [2, 0, 0]]
    assert matrix(objects, detections, 0.95) == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]
    assert matrix((), detections[:1]) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]] and not np.any(matrix((), ()))


def test_confusion_matrix_gives_the_best_object_to_the_best_score():
    objects = (1, 1, (0, 0, 20, 20)), (1, 2, (0, 0, 20, 16))  # their IoU is .8
    # The first takes the object that it overlaps most, not that of its class; the second is left with the other.
    assert matrix(objects, [(1, 2, (0, 0, 20, 19), 0.9), (1, 2, (0, 0, 20, 16), 0.8)]) == [
        [0, 1, 0],
        [0, 1, 0],
        [0] * 3,
    ]
    # Of two objects in one place it takes that of its class, whichever is listed first.
    for first, second in ((1, 2), (2, 1)):
        assert matrix([(1, first, A), (1, second, A)], [(1, 2, A, 0.9)]) == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_confusion_matrix_ignores_crowds():
    crowd = (1, 2, (40, 0, 40, 40), True)
    inside, half, less = (45, 5, 10, 10), (30, 0, 20, 20), (29, 0, 20, 20)
    assert (
        matrix([crowd], [(1, 1, inside, 0.9), (1, 1, half, 0.9)]) == [[0] * 3] * 3
    )  # a crowd of any class, never missed
    assert matrix([crowd], [(1, 1, less, 0.9)]) == [[0] * 3, [0] * 3, [1, 0, 0]]
    assert matrix([(1, 1, inside), crowd], [(1, 1, inside, 0.9)] * 2) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_confusion_matrix_of_the_ground_truth_is_diagonal(kind):
    ground_truth, _ = random_case(3, masks=kind == 'segm')
    detections = [{**row, 'score': 1.0} for row in ground_truth['annotations']]
    ids = sorted(category['id'] for category in ground_truth['categories'])
    objects = [row['category_id'] for row in ground_truth['annotations'] if not row['iscrowd']]
    expected = np.diag([objects.count(category) for category in ids] + [0])
    found = confusion_matrix(ground_truth, detections, kind, score_threshold=1.0)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() > 20 and found.dtype == np.int64


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_confusion_matrix_equals_hotcoco_without_crowds_and_ties(kind):
    total = 0
    for seed in range(6):
        ground_truth, detections = random_case(seed, masks=kind == 'segm', tied=False)
        ground_truth['annotations'] = [row for row in ground_truth['annotations'] if not row['iscrowd']]
        evaluator = hotcoco.COCOeval(hotcoco.COCO(ground_truth), hotcoco.COCO(ground_truth).load_res(detections), kind)
        expected = evaluator.confusion_matrix(iou_thr=0.5, max_det=10_000, min_score=0.3)
        assert expected['cat_ids'] == sorted(expected['cat_ids'])
        found = confusion_matrix(ground_truth, detections, kind, score_threshold=0.3)
        np.testing.assert_array_equal(found, expected['matrix'])
        total += found
    assert total[:-1, :-1].sum() > np.trace(total) + 3 and total[-1].sum() > 3 and total[:, -1].sum() > 3


def test_best_threshold_by_hand():
    # 4 objects. In the order of scores 5, 4, 3, 2, 1: hit, wrong, hit, wrong, wrong -> F1 2/5, 2/6, 4/7, 4/8, 4/9.
    matches = make_matches([[2, 2]], [(0, True), (0, False), (1, True), (1, False), (0, False)])
    assert best_threshold(matches) == 3
    ignored = matches.classes[0].ignored.copy()
    ignored[:, 1] = True  # in a crowd: it does not count
    crowded = matches._replace(classes=(matches.classes[0]._replace(ignored=ignored),))
    assert best_threshold(crowded) == 3
    tied = matches.classes[0]._replace(scores=np.array([5.0, 3.0, 3.0, 3.0, 1.0]))  # 2/5, 4/8, 4/9: all of 3 or none
    assert best_threshold(matches._replace(classes=(tied,))) == 3
    worse = matches.classes[0]._replace(scores=np.array([5.0, 3.0, 3.0, 3.0, 3.0]))  # 2/5, 4/9
    assert best_threshold(matches._replace(objects=np.array([[1, 0]]), classes=(worse,))) == 5  # 2/2, 4/6
    assert best_threshold(make_matches([[1]], [])) == UNSCORED


def test_best_threshold_takes_all_classes_together():
    ground_truth, detections = random_case(5)
    matches = match_images(ground_truth, detections)
    hits = np.concatenate([found.hits[0] for found in matches.classes])
    scores = np.concatenate([np.where(found.ignored[0], -1, found.scores) for found in matches.classes])

    def f1(threshold):
        chosen = scores >= threshold
        return 2 * hits[chosen].sum() / (chosen.sum() + matches.objects.sum())

    best = max(sorted(set(scores[scores >= 0]), reverse=True), key=f1)  # the first of several
    assert best_threshold(matches) == best and len(set(scores)) == 8
