"""VOC's AP: by hand, and against a literal loop over inclusive pixel corners."""

from fractions import Fraction

import numpy as np
import pytest

from detzoo.evaluation import format_voc_table, voc_metrics
from detzoo.evaluation.coco import coco_metrics


def truth(*objects, images=2, categories=1):
    """A COCO dict of (image_id, category_id, box xywh, difficult)."""
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3], iscrowd=int(difficult))
        for i, (image, category, box, difficult) in enumerate(objects, start=1)
    ]
    return dict(
        images=[dict(id=i) for i in range(1, images + 1)],
        categories=[dict(id=i, name=f'class {i}') for i in range(1, categories + 1)],
        annotations=annotations,
    )


def results(*detections):
    """COCO results of (image_id, category_id, box xywh, score)."""
    return [dict(image_id=i, category_id=c, bbox=list(box), score=score) for i, c, box, score in detections]


def boxes_of(ground_truth, detections):
    return voc_metrics(ground_truth, detections)['boxes']


A, B, FAR = (0, 0, 20, 20), (40, 0, 20, 20), (80, 80, 9, 9)


def test_voc_metrics_by_hand():
    # Three objects; found are one, none, one: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    ground_truth = truth((1, 1, A, False), (1, 1, B, False), (2, 1, A, False))
    found = results((2, 1, A, 0.7), (1, 1, FAR, 0.8), (1, 1, B, 0.9))
    # Of recalls 0, .1, ... 1, four are at most 1/3 with precision 1; .4, .5, .6 have 2/3; then nothing.
    expected = {'AP_2007': (4 * 1 + 3 * 2 / 3) / 11, 'AP_2010': (1 + 2 / 3) / 3}
    metrics = voc_metrics(ground_truth, found)
    assert metrics['boxes'] == pytest.approx(expected)
    assert metrics['per_class'] == {'class 1': pytest.approx(expected)} and metrics['images'] == 2


def test_voc_metrics_reach_a_recall_of_exactly_three_tenths():
    # 3 of 10 found: recalls 0, .1, .2 and .3, though 3 * 0.1 is more than 0.3 in floating point.
    ground_truth = truth(*((1, 1, (30 * i, 0, 20, 20), False) for i in range(10)))
    found = results(*((1, 1, (30 * i, 0, 20, 20), 0.9) for i in range(3)))
    assert boxes_of(ground_truth, found) == pytest.approx({'AP_2007': 4 / 11, 'AP_2010': 0.3})


def test_voc_metrics_count_an_object_once():
    ground_truth = truth((1, 1, A, False))
    found = results((1, 1, A, 0.9), (1, 1, A, 0.8))
    assert boxes_of(ground_truth, found) == {'AP_2007': 1, 'AP_2010': 1}  # the second comes after all is found
    ground_truth = truth((1, 1, A, False), (2, 1, A, False))
    found = results((1, 1, A, 0.9), (1, 1, A, 0.8), (2, 1, A, 0.7))
    assert boxes_of(ground_truth, found)['AP_2010'] == pytest.approx((1 + 2 / 3) / 2)


def test_voc_metrics_do_not_give_a_detection_to_the_second_best_object():
    # Two objects 5 apart. Both detections overlap the first most (1 and 19/21), the second by 15/25 and 16/24 as well.
    ground_truth = truth((1, 1, A, False), (1, 1, (5, 0, 20, 20), False))
    found = results((1, 1, A, 0.9), (1, 1, (1, 0, 20, 20), 0.8))
    assert boxes_of(ground_truth, found)['AP_2010'] == pytest.approx(1 / 2)
    assert coco_metrics(ground_truth, found)['boxes']['AP50'] == pytest.approx(1)  # where it takes the other


def test_voc_metrics_ignore_difficult_objects():
    ground_truth = truth((1, 1, A, True), (1, 1, B, False))
    # Twice on the difficult one, then a hit: neither hits nor false positives, and it need not be found.
    found = results((1, 1, A, 0.9), (1, 1, A, 0.8), (1, 1, B, 0.7))
    assert boxes_of(ground_truth, found) == {'AP_2007': 1, 'AP_2010': 1}
    # A detection that overlaps the difficult one most is ignored, though it overlaps another one by half.
    ground_truth = truth((1, 1, A, True), (1, 1, (5, 0, 20, 20), False))
    assert boxes_of(ground_truth, results((1, 1, (1, 0, 20, 20), 0.9)))['AP_2010'] == 0


def test_voc_metrics_count_detections_on_images_without_objects():
    # The best score finds nothing: precision is 1/2 at the first hit and 2/3 at the second, so 2/3 at either recall or beyond.
    ground_truth = truth((1, 1, A, False), (1, 1, B, False), (1, 1, FAR, True), images=2)
    found = results((2, 1, B, 0.9), (1, 1, B, 0.8), (1, 1, A, 0.7))
    assert boxes_of(ground_truth, found)['AP_2010'] == pytest.approx(2 / 3)


def test_voc_metrics_take_objects_for_easy_unless_they_say_otherwise():
    ground_truth = truth((1, 1, A, False), (1, 1, B, False))
    for row in ground_truth['annotations']:
        del row['iscrowd']
    assert boxes_of(ground_truth, results((1, 1, A, 0.9)))['AP_2010'] == 0.5


@pytest.mark.parametrize('width, hit', [(10, True), (9.9, False)])
def test_voc_metrics_count_an_overlap_of_just_a_half(width, hit):
    found = results((1, 1, (0, 0, width, 20), 0.9))
    assert boxes_of(truth((1, 1, A, False)), found)['AP_2010'] == hit


def test_voc_metrics_take_equal_scores_in_order():
    ground_truth = truth((1, 1, A, False))
    first, second = (1, 1, A, 0.5), (1, 1, FAR, 0.5)
    assert boxes_of(ground_truth, results(first, second))['AP_2010'] == 1
    assert boxes_of(ground_truth, results(second, first))['AP_2010'] == 0.5


def test_voc_metrics_average_classes_that_are_there():
    ground_truth = truth((1, 1, A, False), (1, 2, A, False), (1, 3, A, True), categories=4)
    found = results((1, 1, A, 0.9), (1, 2, FAR, 0.9), (1, 3, A, 0.9), (1, 4, A, 0.9))
    metrics = voc_metrics(ground_truth, found)
    assert metrics['boxes'] == {'AP_2007': 0.5, 'AP_2010': 0.5}
    assert [metrics['per_class'][f'class {i}']['AP_2010'] for i in (1, 2, 3, 4)] == [1, 0, None, None]


def test_voc_metrics_without_detections_or_objects():
    assert boxes_of(truth((1, 1, A, False)), []) == {'AP_2007': 0, 'AP_2010': 0}
    assert boxes_of(truth(), results((1, 1, A, 0.9))) == {'AP_2007': None, 'AP_2010': None}
    assert boxes_of(truth((1, 1, A, True)), []) == {'AP_2007': None, 'AP_2010': None}


def test_voc_metrics_leave_out_annotations_of_other_images():
    ground_truth = truth((1, 1, A, False), (2, 1, A, False))
    ground_truth['images'] = ground_truth['images'][:1]
    assert boxes_of(ground_truth, results((1, 1, A, 0.9)))['AP_2010'] == 1


@pytest.mark.parametrize(
    'bad, words',
    [
        (results((3, 1, A, 0.9)), 'image_id 3'),
        (results((1, 2, A, 0.9)), 'category_id 2'),
        (results((1, 1, A, float('nan'))), 'must be finite'),
    ],
)
def test_voc_metrics_refuse(bad, words):
    with pytest.raises(ValueError, match=words):
        voc_metrics(truth((1, 1, A, False)), bad)


def devkit_ap(objects, detections):
    """AP of a class as the devkits compute it, on (xmin, ymin, xmax, ymax) pixels that both belong to the box.

    objects: (image, corners, difficult); detections: (image, corners, score).
    """
    used, hits, misses = set(), [], []
    for image, box, _ in sorted(detections, key=lambda row: -row[2]):
        most, best = -1, None
        for index, (other_image, other, _) in enumerate(objects):
            if other_image != image:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in (box, other)]
                overlap = Fraction(width * height, sum(areas) - width * height)
                if overlap > most:
                    most, best = overlap, index
        hit = miss = 0
        if most >= Fraction(1, 2):
            if not objects[best][2]:
                hit, miss = (0, 1) if best in used else (1, 0)
                used.add(best)
        else:
            miss = 1
        hits.append(hit)
        misses.append(miss)
    positives = sum(not difficult for _, _, difficult in objects)
    found, wrong = np.cumsum(hits), np.cumsum(misses)
    recall = [Fraction(int(n), positives) for n in found]
    precision = [n / max(n + m, 1) for n, m in zip(found.tolist(), wrong.tolist())]
    at_tenths = [max([p for p, r in zip(precision, recall) if r >= Fraction(t, 10)], default=0) for t in range(11)]
    corners = [(Fraction(0), 0.0), *zip(recall, precision), (Fraction(1), 0.0)]
    envelope = [max(p for _, p in corners[i:]) for i in range(len(corners))]
    area = sum(float(corners[i][0] - corners[i - 1][0]) * envelope[i] for i in range(1, len(corners)))
    return sum(at_tenths) / 11, area


@pytest.mark.parametrize('seed', range(12))
def test_voc_metrics_equal_the_devkit(seed):
    rng = np.random.RandomState(seed)
    objects, detections = [], []

    def corners(x, y, side):
        return [int(v) for v in (x, y, x + side + rng.randint(-2, 3), y + side + rng.randint(-2, 3))]

    for image in (1, 2, 3):
        for _ in range(rng.randint(1, 8)):
            x, y, side = *rng.randint(1, 60, 2), rng.randint(5, 30)
            objects.append((image, corners(x, y, side), bool(rng.rand() < 0.25)))
            for _ in range(rng.randint(0, 4)):
                dx, dy = rng.randint(-side // 3, side // 3 + 1, 2)
                detections.append((image, corners(x + dx, y + dy, side), int(rng.randint(1, 12)) / 12))
    objects.append((1, [200, 200, 220, 220], False))

    def xywh(box):  # pixels from 1, both corners inside -> continuous
        return (box[0] - 1, box[1] - 1, box[2] - box[0] + 1, box[3] - box[1] + 1)

    ground_truth = truth(*((image, 1, xywh(box), difficult) for image, box, difficult in objects), images=3)
    found = results(*((image, 1, xywh(box), score) for image, box, score in detections))
    metrics = boxes_of(ground_truth, found)
    assert (metrics['AP_2007'], metrics['AP_2010']) == pytest.approx(devkit_ap(objects, detections), abs=1e-12)
    assert 0 < metrics['AP_2010'] < 1


def test_format_voc_table_prints_the_means_and_the_classes():
    ground_truth = truth((1, 1, A, False), (1, 2, A, False), categories=3)
    lines = format_voc_table(voc_metrics(ground_truth, results((1, 2, A, 0.9)))).splitlines()
    assert lines[:3] == [
        'VOC, 2 images, IoU 0.5',
        ' mAP of 2007 (11 recalls)  = 0.500',
        ' mAP of 2010 on (area)     = 0.500',
    ]
    assert [line.split() for line in lines[5:]] == [
        ['class', '2', '1.000', '1.000'],
        ['class', '1', '0.000', '0.000'],
        ['class', '3', '-', '-'],
    ]
