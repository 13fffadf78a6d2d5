"""Recall of objects whatever their class: by hand, by a slow loop, and by pycocotools."""

import contextlib
import copy
import io

import hotcoco
import numpy as np
import pytest
from drawn_matches import random_case, results, truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detzoo.evaluation import format_recall, object_recall
from detzoo.evaluation.coco import AREAS
from detzoo.evaluation.overlaps import box_overlaps, mask_overlaps
from detzoo.evaluation.recall import COUNTS
from detzoo.evaluation.statistics import THRESHOLDS


def pycocotools_recall(ground_truth, detections, kind):
    """What pycocotools finds: its `summarize` cannot have four numbers of detections, so its table is averaged here."""
    detections = copy.deepcopy(detections)
    if kind == 'segm':
        for row in detections:
            del row['bbox']  # or it takes the area from the box
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        for row in coco.dataset['annotations']:
            row['id'] += 1  # pycocotools never matches the id 0
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(detections), kind)
        evaluator.params.useCats, evaluator.params.maxDets = 0, list(COUNTS)
        evaluator.evaluate()
        evaluator.accumulate()
    recall = evaluator.eval['recall']  # [T, 1, A, M]
    return {
        area: {
            f'AR{count}': None if recall[0, 0, a, m] < 0 else recall[:, 0, a, m].mean()
            for m, count in enumerate(COUNTS)
        }
        for a, area in enumerate(AREAS)
    }


@pytest.mark.parametrize('kind, tied', [('bbox', True), ('bbox', False), ('segm', False)])
def test_object_recall_equals_pycocotools(kind, tied):
    for seed in range(3):
        ground_truth, detections = random_case(seed, masks=kind == 'segm', tied=tied)
        found = object_recall(ground_truth, detections, kind)
        expected = pycocotools_recall(ground_truth, detections, kind)
        assert list(found['recall']) == list(AREAS)
        for area in AREAS:
            assert found['recall'][area] == pytest.approx(expected[area], abs=1e-12)
        if kind == 'bbox':  # an image has 130 detections and more
            assert found['recall']['all']['AR1'] < found['recall']['all']['AR10'] < found['recall']['all']['AR1000']
            assert found['per_image'] == len(detections) / 12


def slow_recall(ground_truth, detections, count, overlaps):
    """Goes through thresholds, images and detections one by one; no crowds, no ties."""
    found = 0
    for threshold in THRESHOLDS:
        for image in ground_truth['images']:
            free = [row for row in ground_truth['annotations'] if row['image_id'] == image['id']]
            mine = [row for row in detections if row['image_id'] == image['id']]
            for row in sorted(mine, key=lambda row: -row['score'])[:count]:
                ious = overlaps([row], free, np.zeros(len(free), bool))[0] if free else np.zeros(0)
                if ious.max(initial=0) >= threshold:
                    free.pop(int(ious.argmax()))
                    found += 1
    return found / len(THRESHOLDS) / len(ground_truth['annotations'])


@pytest.mark.parametrize('masks', [False, True])
def test_object_recall_equals_a_slow_loop(masks):
    ground_truth, detections = random_case(4, masks=masks, tied=False)
    ground_truth['annotations'] = [row for row in ground_truth['annotations'] if not row['iscrowd']]
    compared = hotcoco.COCO(ground_truth)
    overlaps = (lambda *rows: mask_overlaps(*rows, compared)) if masks else box_overlaps
    recall = object_recall(ground_truth, detections, 'segm' if masks else 'bbox')['recall']['all']
    for count in COUNTS:
        assert recall[f'AR{count}'] == pytest.approx(slow_recall(ground_truth, detections, count, overlaps), abs=1e-12)


def at(*values):
    return dict(zip(('AR1', 'AR10', 'AR100', 'AR1000'), values, strict=True))


def test_object_recall_by_hand():
    # Two objects of two classes and a crowd. The best detection has the wrong class and IoU 20 x 18 / 400 = .9, which reaches
    # 9 of the 10 thresholds; the eleventh finds the other object exactly; the others lie in the crowd.
    ground_truth = truth((1, 1, (0, 0, 20, 20)), (1, 2, (40, 0, 50, 50)), (1, 1, (0, 60, 40, 40), True), images=1)
    others = [(1, 1, (1, 61, 30, 30), 0.8 - 0.01 * i) for i in range(9)]
    detections = results((1, 2, (0, 0, 20, 18), 0.9), *others, (1, 1, (40, 0, 50, 50), 0.1))
    found = object_recall(ground_truth, detections)
    assert found['images'] == 1 and found['per_image'] == 11
    assert found['recall']['all'] == pytest.approx(at(0.45, 0.45, 0.95, 0.95))
    assert found['recall']['small'] == pytest.approx(at(0.9, 0.9, 0.9, 0.9))
    assert found['recall']['medium'] == pytest.approx(at(0, 0, 1, 1))
    assert found['recall']['large'] == at(None, None, None, None)
    assert format_recall(found) == (
        'recall of objects whatever their class, IoU 0.50:0.95, 1 images, 11.0 detections an image\n'
        'best of an image        1       10      100     1000\n'
        'all objects         0.450    0.450    0.950    0.950\n'
        'small objects       0.900    0.900    0.900    0.900\n'
        'medium objects      0.000    0.000    1.000    1.000\n'
        'large objects           -        -        -        -'
    )


def test_object_recall_counts_more_than_100_detections():
    ground_truth = truth(*((1, 1, (5 * (i % 20), 5 * (i // 20), 4, 4)) for i in range(200)), images=1)
    detections = results(*((1, 2, row['bbox'], 1 - i / 1000) for i, row in enumerate(ground_truth['annotations'])))
    assert object_recall(ground_truth, detections)['recall']['all'] == pytest.approx(at(0.005, 0.05, 0.5, 1))
    assert object_recall(ground_truth, [])['recall']['all'] == at(0, 0, 0, 0)
