"""AP^r: a slow oracle written from its definition, and cases by hand in which it differs from VOC's and COCO's AP."""

import numpy as np
import pycocotools.mask
import pytest

from detzoo.evaluation.region import THRESHOLDS, format_region_table, region_metrics

SIZE = (12, 40)


def encode(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def block(left, width, top=0, height=10):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def row(image, category, mask, **more):
    return dict(image_id=image, category_id=category, bbox=[0.0, 0.0, 1.0, 1.0], segmentation=encode(mask)) | more


def split_of(objects, images=1, categories=1):
    annotations = [
        row(image, category, mask, id=number, iscrowd=int(crowd), area=int(mask.sum()))
        for number, (image, category, mask, crowd) in enumerate(objects, 1)
    ]
    return dict(
        images=[dict(id=number, height=SIZE[0], width=SIZE[1]) for number in range(1, images + 1)],
        categories=[dict(id=number, name=f'class {number}') for number in range(1, categories + 1)],
        annotations=annotations,
    )


def results_of(*rows):
    return [row(image, category, mask, score=score) for image, category, mask, score in rows]


def oracle(truth, results, category, threshold):
    """Detections one by one, masks compared pixel by pixel, and the curve's area summed between recalls."""

    def pixels(each):
        return pycocotools.mask.decode(each['segmentation']).astype(bool)

    things = [each for each in truth['annotations'] if each['category_id'] == category]
    taken, flags = set(), []
    for found in sorted((each for each in results if each['category_id'] == category), key=lambda each: -each['score']):
        best, which, in_crowd = 0, None, False
        for thing in things:
            if thing['image_id'] != found['image_id']:
                continue
            shared = (pixels(thing) & pixels(found)).sum()
            if thing['iscrowd']:
                in_crowd |= shared / pixels(found).sum() > threshold
            elif thing['id'] not in taken and shared / (pixels(thing) | pixels(found)).sum() > best:
                best, which = shared / (pixels(thing) | pixels(found)).sum(), thing['id']
        if best > threshold:
            taken.add(which)
            flags.append(1)
        elif not in_crowd:
            flags.append(0)
    positives = sum(not thing['iscrowd'] for thing in things)
    hits = np.cumsum(flags)
    area, recall = 0.0, 0.0
    for index, flag in enumerate(flags):
        if flag:
            reached = hits[index] / positives
            area += (reached - recall) * max(hits[i] / (i + 1) for i in range(index, len(flags)))
            recall = reached
    return area


@pytest.mark.parametrize('seed', range(4))
def test_region_metrics_equal_the_oracle(seed):
    rng = np.random.RandomState(seed)
    objects, results = [], []
    for image in (1, 2, 3):
        for _ in range(rng.randint(2, 7)):
            left, width, category = rng.randint(0, 30), rng.randint(3, 10), rng.randint(1, 3)
            objects.append((image, category, block(left, width), rng.rand() < 0.15))
            for _ in range(rng.randint(0, 4)):
                moved = block(max(0, left + rng.randint(-2, 3)), width, rng.randint(3))
                results.append((image, category if rng.rand() < 0.8 else 3 - category, moved, rng.randint(1, 9) / 9))
    truth, found = split_of(objects, images=3, categories=2), results_of(*results)
    metrics = region_metrics(truth, found)
    for category in (1, 2):
        expected = [oracle(truth, found, category, threshold) for threshold in THRESHOLDS]
        of_class = metrics['per_class'][f'class {category}']
        assert of_class['APr_50'] == pytest.approx(expected[4], abs=1e-12)
        assert of_class['APr_70'] == pytest.approx(expected[6], abs=1e-12)
        assert of_class['APr_vol'] == pytest.approx(np.mean(expected), abs=1e-12)
    assert 0 < metrics['masks']['APr_vol'] < 1


def masks_of(truth, results):
    return region_metrics(truth, results)['masks']


def test_region_metrics_let_a_second_detection_take_the_next_object():
    # The second detection has an IoU of 9 / 11 with the first object, which is taken, and of 7 / 13 with the other one.
    truth = split_of([(1, 1, block(0, 10), False), (1, 1, block(4, 10), False)])
    twice = results_of((1, 1, block(0, 10), 0.9), (1, 1, block(1, 10), 0.8))
    assert masks_of(truth, twice)['APr_50'] == 1 and masks_of(truth, twice)['APr_70'] == 0.5
    truth = split_of([(1, 1, block(0, 10), False), (1, 1, block(20, 10), False)])
    assert masks_of(truth, results_of((1, 1, block(0, 10), 0.9), (1, 1, block(0, 10), 0.8)))['APr_50'] == 0.5


def test_region_metrics_ask_for_more_than_the_threshold():
    truth = split_of([(1, 1, block(0, 10), False)])
    assert masks_of(truth, results_of((1, 1, block(0, 5), 0.9))) == {  # an IoU of 0.5: a hit at .1 to .4
        'APr_50': 0,
        'APr_70': 0,
        'APr_vol': pytest.approx(4 / 9),
    }


def test_region_metrics_ignore_what_lies_in_a_crowd():
    truth = split_of([(1, 1, block(0, 10), False), (1, 1, block(20, 10), True)])
    found = results_of((1, 1, block(21, 5), 0.9), (1, 1, block(0, 10), 0.8))
    assert masks_of(truth, found)['APr_50'] == 1
    assert masks_of(truth, results_of((1, 1, block(12, 5), 0.9)) + found)['APr_50'] == 0.5


def test_region_metrics_without_objects_or_detections():
    truth = split_of([(1, 1, block(0, 10), False), (1, 2, block(0, 10), True)], categories=2)
    metrics = region_metrics(truth, [])
    assert metrics['masks'] == {'APr_50': 0, 'APr_70': 0, 'APr_vol': 0}
    assert set(metrics['per_class']['class 2'].values()) == {None}
    lines = format_region_table(metrics).splitlines()
    assert lines[1:4] == [
        ' AP^r at IoU 0.5          = 0.000',
        ' AP^r at IoU 0.7          = 0.000',
        ' AP^r_vol, IoU 0.1 to 0.9 = 0.000',
    ]
