"""Metrics of pixels and segments, against loops written from their definitions and against hotcoco."""

import hotcoco
import numpy as np
import pycocotools.mask
import pytest

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.evaluation import coco_metrics
from detzoo.evaluation.semantic import (
    confusion_matrix,
    instances_of,
    label_map,
    paint_annotations,
    paint_results,
    panoptic_quality,
    semantic_metrics,
    without_overlaps,
)

SIZE, IDS = (24, 30), (3, 8, 9)


def encode(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def decode(row):
    return pycocotools.mask.decode(row['segmentation']).astype(bool)


def block(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def annotation(number, mask, category=3, image=1, crowd=0, with_mask=True):
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    whole = dict(id=number, image_id=image, category_id=category, bbox=[float(x) for x in box], iscrowd=crowd)
    return whole | dict(area=int(mask.sum())) | (dict(segmentation=encode(mask)) if with_mask else {})


def draw_segments(rng, image, count, *, scored, first):
    """Blocks that overlap, of random classes."""
    rows = []
    for number in range(first, first + count):
        height, width = rng.randint(3, 10, 2)
        mask = block(rng.randint(SIZE[0] - height), rng.randint(SIZE[1] - width), height, width)
        row = annotation(number, mask, IDS[rng.randint(3)], image, int(not scored and rng.uniform() < 0.2))
        rows.append(row | (dict(score=float(rng.uniform())) if scored else {}))
    return rows


def shifted(row, rng):
    """An object found a pixel beside its place."""
    mask = np.roll(decode(row), rng.randint(-1, 2, 2), axis=(0, 1))
    return annotation(row['id'], mask, row['category_id'], row['image_id']) | dict(score=float(rng.uniform(0.3, 1)))


def draw_split(seed, images=20):
    rng, annotations, results = np.random.RandomState(seed), [], []
    for image in range(1, images + 1):
        mine = draw_segments(rng, image, rng.randint(0, 7), scored=False, first=100 * image)
        annotations += mine
        results += [shifted(row, rng) for row in mine if rng.uniform() < 0.8]
        results += draw_segments(rng, image, rng.randint(0, 3), scored=True, first=0)
    truth = dict(
        images=[dict(id=image, height=SIZE[0], width=SIZE[1]) for image in range(1, images + 1)],
        categories=[dict(id=number, name=f'class {number}') for number in IDS],
        annotations=annotations,
    )
    return truth, results


def test_paint_annotations_by_hand():
    rows = [
        annotation(1, block(2, 2, 2, 2), 9),  # small, on the large one
        annotation(2, block(0, 0, 10, 10), 3),
        annotation(3, block(0, 8, 24, 4), 8, crowd=1, with_mask=False),
        annotation(4, block(20, 0, 2, 2) | block(23, 29, 1, 1), 8, crowd=1),
    ]
    expected = np.full(SIZE, NEGATIVE)
    expected[:, 8:12] = 2
    expected[20:22, :2] = expected[23, 29] = 3
    expected[:10, :10] = 1
    expected[2:4, 2:4] = 0
    painted = paint_annotations(rows, SIZE)
    np.testing.assert_array_equal(painted, expected)
    labels = label_map(painted, rows, IDS)
    assert [labels[i, j] for i, j in ((2, 2), (0, 0), (15, 9), (20, 0), (23, 0))] == [2, 0, IGNORE, IGNORE, 3]
    assert (label_map(paint_annotations([], SIZE), [], IDS) == 3).all()
    with pytest.raises(ValueError, match='annotation 7 of image 1 has no mask'):
        paint_annotations([annotation(7, block(0, 0, 2, 2), with_mask=False)], SIZE)


def test_confusion_matrix_and_metrics_by_hand():
    #                  true 0: 3 of 4 right, one taken for 1; true 1: 1 of 2; class 2 predicted once, never there; 3 absent
    truth, predicted = np.array([0, 0, 0, 0, 1, 1, IGNORE, IGNORE]), np.array([0, 0, 0, 1, 1, 2, 3, 0])
    confusion = confusion_matrix(truth, predicted, 4)
    assert confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    metrics = semantic_metrics(confusion, 'abcd')
    assert metrics['pixel_accuracy'] == pytest.approx(4 / 6)
    assert metrics['mean_accuracy'] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics['mean_iou'] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert metrics['weighted_iou'] == pytest.approx((4 * 3 / 4 + 2 * 1 / 3) / 6)
    assert metrics['per_class'] == {
        'a': {'iou': pytest.approx(3 / 4), 'accuracy': pytest.approx(3 / 4)},
        'b': {'iou': pytest.approx(1 / 3), 'accuracy': pytest.approx(1 / 2)},
        'c': {'iou': 0.0, 'accuracy': None},
        'd': {'iou': None, 'accuracy': None},
    }


def test_semantic_metrics_of_nothing_are_none():
    metrics = semantic_metrics(np.zeros((2, 2), int), 'ab')
    assert {metrics[name] for name in ('pixel_accuracy', 'mean_accuracy', 'mean_iou', 'weighted_iou')} == {None}


def test_semantic_metrics_equal_hotcocos():
    rng = np.random.RandomState(0)
    truth, predicted = rng.randint(0, 5, (2, 40, 50)), rng.randint(0, 5, (2, 40, 50))
    predicted[truth > 2] = truth[truth > 2]
    truth[:, :5] = IGNORE
    metrics = semantic_metrics(sum(confusion_matrix(t, p, 5) for t, p in zip(truth, predicted)), 'abcde')
    evaluator = hotcoco.semantic.SemanticEval(5)
    evaluator.update(np.where(truth == IGNORE, 255, truth), predicted)
    theirs = evaluator.report()['metrics']
    for ours, name in (
        ('pixel_accuracy', 'aAcc'),
        ('mean_accuracy', 'mAcc'),
        ('mean_iou', 'mIoU'),
        ('weighted_iou', 'fwIoU'),
    ):
        assert metrics[ours] == pytest.approx(theirs[name], abs=1e-12)


def test_instances_of_are_the_components_of_each_class():
    probabilities = np.full((*SIZE, 4), 0.1, np.float32)
    for mask, label, share in (
        (block(0, 0, 4, 4), 0, 0.7),
        (block(4, 4, 3, 3), 0, 0.5),  # touches the first at a corner alone
        (block(0, 4, 3, 5), 1, 0.6),  # touches the first along a side, in another class
        (block(20, 20, 1, 1), 2, 0.7),
    ):
        probabilities[mask, label] = share
    probabilities[probabilities.max(axis=-1) < 0.2, 3] = 0.7
    probabilities[1, 1, 0] = 0.9
    found = instances_of(probabilities.argmax(-1), probabilities.max(-1), 5, IDS)
    assert [row['category_id'] for row in found] == [3, 9, 8, 3]
    assert [row['bbox'] for row in found] == [[0, 0, 4, 4], [20, 20, 1, 1], [4, 0, 5, 3], [4, 4, 3, 3]]
    assert [row['score'] for row in found] == pytest.approx([(15 * 0.7 + 0.9) / 16, 0.7, 0.6, 0.5])
    np.testing.assert_array_equal(decode(found[0]), block(0, 0, 4, 4))
    assert {row['image_id'] for row in found} == {5}
    assert len(instances_of(probabilities.argmax(-1), probabilities.max(-1), 5, IDS, min_pixels=2)) == 3
    assert instances_of(np.full(SIZE, 3), np.ones(SIZE), 5, IDS) == []


def test_instances_of_the_truth_are_found_completely():
    masks = [block(0, 0, 5, 6), block(10, 10, 4, 4), block(5, 20, 9, 8)]
    rows = [annotation(number, mask, IDS[number % 3]) for number, mask in enumerate(masks, 1)]
    truth = dict(
        images=[dict(id=1, height=SIZE[0], width=SIZE[1])],
        categories=[dict(id=number, name=str(number)) for number in IDS],
        annotations=rows,
    )
    labels = label_map(paint_annotations(rows, SIZE), rows, IDS)
    results = instances_of(labels, np.ones(SIZE), 1, IDS)
    assert coco_metrics(truth, results, ('bbox', 'segm'))['masks']['AP'] == pytest.approx(1)
    quality = panoptic_quality(truth, results)
    assert quality['PQ'] == quality['SQ'] == quality['RQ'] == 1


def test_without_overlaps_gives_pixels_to_the_highest_score():
    first, second, third = block(0, 0, 10, 10), block(0, 5, 10, 10), block(0, 4, 10, 4)
    results = [
        annotation(n, mask) | dict(score=score)
        for n, (mask, score) in enumerate(((second, 0.5), (third, 0.4), (first, 0.9)))
    ]
    kept = without_overlaps(results, min_visible=0.5)
    assert [row['score'] for row in kept] == [0.9, 0.5]
    np.testing.assert_array_equal(decode(kept[1]), second & ~first)
    assert [row['score'] for row in without_overlaps(results, min_visible=0.51)] == [
        0.9
    ]  # which leaves its place to none
    assert without_overlaps([]) == []


def test_paint_results_gives_pixels_their_class():
    results = [annotation(0, block(0, 0, 2, 3), 9), annotation(0, block(5, 5, 4, 4), 3)]
    expected = np.full(SIZE, 3)
    expected[:2, :3], expected[5:9, 5:9] = 2, 0
    np.testing.assert_array_equal(paint_results(results, SIZE, IDS), expected)
    assert (paint_results([], SIZE, IDS) == 3).all()


def quality_by_loops(truth, results, score_threshold):
    """Segments of each image, matched pair by pair (1801.00868, section 4.1)."""
    counts = {category: [0.0, 0, 0, 0] for category in IDS}  # sum of IoUs, matches, only found, only there
    for image in truth['images']:
        rows = [row for row in truth['annotations'] if row['image_id'] == image['id']]
        owner = np.full(SIZE, -1)
        for index in sorted(
            range(len(rows)), key=lambda i: (not rows[i]['iscrowd'], -rows[i]['area'] * (not rows[i]['iscrowd']))
        ):
            owner[decode(rows[index])] = index
        segments, free = [], np.ones(SIZE, bool)
        for row in sorted((r for r in results if r['image_id'] == image['id']), key=lambda row: -row['score']):
            left = decode(row) & free
            if row['score'] >= score_threshold and left.any() and left.sum() >= decode(row).sum() / 2:
                segments.append((row['category_id'], left))
                free &= ~left
        matched = set()
        for category, segment in segments:
            hit = None
            for index, row in enumerate(rows):
                mask = owner == index
                if row['category_id'] == category and not row['iscrowd'] and mask.any():
                    iou = (mask & segment).sum() / (mask | segment).sum()
                    hit = (index, iou) if iou > 0.5 else hit
            crowd = np.isin(
                owner, [i for i, row in enumerate(rows) if row['iscrowd'] and row['category_id'] == category]
            )
            if hit is not None:
                matched.add(hit[0])
                counts[category][0] += hit[1]
                counts[category][1] += 1
            elif (segment & crowd).sum() <= segment.sum() / 2:
                counts[category][2] += 1
        for index, row in enumerate(rows):
            if not row['iscrowd'] and (owner == index).any() and index not in matched:
                counts[row['category_id']][3] += 1
    return {category: (total / (tp + (fp + fn) / 2), tp, fp, fn) for category, (total, tp, fp, fn) in counts.items()}


@pytest.mark.parametrize('seed', range(3))
def test_panoptic_quality_equals_loops(seed):
    truth, results = draw_split(seed)
    found, expected = panoptic_quality(truth, results, score_threshold=0.4), quality_by_loops(truth, results, 0.4)
    for category, (quality, hits, extra, missed) in expected.items():
        assert min(hits, extra, missed) > 0
        assert found['per_class'][f'class {category}']['PQ'] == pytest.approx(quality, abs=1e-9)
        assert found['per_class'][f'class {category}']['RQ'] == pytest.approx(hits / (hits + (extra + missed) / 2))
    assert found['PQ'] == pytest.approx(np.mean([row[0] for row in expected.values()]), abs=1e-9)


def test_panoptic_quality_by_hand():
    truth = dict(
        images=[dict(id=1, height=SIZE[0], width=SIZE[1])],
        categories=[dict(id=number, name=str(number)) for number in IDS],
        annotations=[
            annotation(1, block(0, 0, 5, 5)),
            annotation(2, block(10, 10, 6, 6)),
            annotation(3, block(0, 20, 10, 10), crowd=1),
        ],
    )
    results = [
        annotation(0, block(0, 0, 4, 5)) | dict(score=0.9),  # IoU 0.8
        annotation(0, block(2, 22, 4, 4)) | dict(score=0.8),  # in the crowd
        annotation(0, block(10, 0, 4, 4)) | dict(score=0.49),  # left out
        annotation(0, block(18, 0, 4, 4), 8) | dict(score=0.9),  # of a class that is not there
    ]
    found = panoptic_quality(truth, results)
    assert found['per_class'] == {
        '3': {'PQ': pytest.approx(0.8 / 1.5), 'SQ': pytest.approx(0.8), 'RQ': pytest.approx(1 / 1.5)},
        '8': {'PQ': 0.0, 'SQ': 0.0, 'RQ': 0.0},
        '9': {'PQ': None, 'SQ': None, 'RQ': None},
    }
    assert found['PQ'] == pytest.approx(0.8 / 3)
    assert panoptic_quality(truth, [])['PQ'] == 0
