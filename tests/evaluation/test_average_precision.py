"""Average precision of weighted images: the evaluator and slow loops are its oracles."""

import copy

import numpy as np
import pytest
from drawn_matches import make_matches, random_case

from detzoo.evaluation import coco_metrics, statistics
from detzoo.evaluation.statistics import THRESHOLDS, average_precision, match_images


def slow_average_precision(matches, weights, rows):
    """Walks down all detections, one at a time."""
    values = []
    for found, objects in zip(matches.classes, matches.objects):
        count = sum(weight * number for weight, number in zip(weights, objects))
        if count == 0:
            continue
        for row in rows:
            right = wrong = 0.0
            curve = []
            for image, hit, ignored in zip(found.images, found.hits[row], found.ignored[row]):
                right += weights[image] if hit else 0
                wrong += weights[image] if not hit and not ignored else 0
                if right + wrong > 0:
                    curve.append((right / count, right / (right + wrong)))
            best = [max((p for r, p in curve if r >= point), default=0) for point in np.linspace(0, 1, 101)]
            values.append(np.mean(best))
    return np.mean(values)


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('kind, section', [('bbox', 'boxes'), ('segm', 'masks')])
def test_average_precision_of_unit_weights_equals_coco_metrics(kind, section, seed, monkeypatch, capfd):
    monkeypatch.setattr(statistics, '_IMAGES', 5 if seed % 2 else 250)
    ground_truth, detections = random_case(seed, masks=kind == 'segm')
    before = copy.deepcopy((ground_truth, detections))
    matches = match_images(ground_truth, detections, kind)
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ('', '')
    expected = coco_metrics(ground_truth, detections, [kind])[section]
    images = len(ground_truth['images'])
    for name, thresholds in {'AP': THRESHOLDS, 'AP50': [0.5], 'AP75': [0.75]}.items():
        assert 0.05 < expected[name] < 0.95
        value = average_precision(matches, thresholds=thresholds)
        assert value == pytest.approx(expected[name], abs=1e-9)
        assert average_precision(matches, np.ones(images), thresholds) == value


def test_match_images_gives_hits_ignored_and_objects():
    def annotation(i, image_id, category_id, box, crowd=0):
        row = {'id': i, 'image_id': image_id, 'category_id': category_id, 'bbox': box, 'iscrowd': crowd}
        return {**row, 'area': box[2] * box[3]}

    ground_truth = {
        'images': [{'id': i, 'width': 99, 'height': 99} for i in (9, 4, 6)],
        'categories': [{'id': i, 'name': str(i)} for i in (7, 3)],
        'annotations': [annotation(0, 9, 3, [0, 0, 10, 10]), annotation(1, 9, 3, [30, 30, 40, 40], crowd=1)],
    }
    ground_truth['annotations'].append(annotation(2, 4, 3, [0, 0, 10, 10]))
    detections = [
        {'image_id': 9, 'category_id': 3, 'bbox': [0.0, 0.0, 10.0, 7.2], 'score': 0.5},  # IoU 0.72: a hit up to .70
        {'image_id': 9, 'category_id': 3, 'bbox': [40.0, 40.0, 10.0, 10.0], 'score': 0.9},  # in the crowd
        {'image_id': 6, 'category_id': 3, 'bbox': [0.0, 0.0, 10.0, 10.0], 'score': 0.5},  # of nothing
    ]
    matches = match_images(ground_truth, detections)
    assert matches.image_ids == (4, 6, 9)
    assert matches.objects.tolist() == [[1, 0, 1], [0, 0, 0]]  # category 3, then 7
    found, absent = matches.classes
    assert found.scores.tolist() == [0.9, 0.5, 0.5]
    assert found.images.tolist() == [2, 1, 2]  # of the equal scores that of image 6 is first
    assert found.hits.tolist() == [[False, False, i < 5] for i in range(10)]
    assert found.ignored.tolist() == [[True, False, False]] * 10
    assert absent.hits.shape == absent.ignored.shape == (10, 0)


def test_match_images_without_detections_is_an_ap_of_zero():
    ground_truth, _ = random_case(0)
    assert average_precision(match_images(ground_truth, [])) == 0
    ground_truth['annotations'] = []
    assert np.isnan(average_precision(match_images(ground_truth, [])))


def test_match_images_refuses():
    ground_truth, detections = random_case(0)
    with pytest.raises(ValueError, match="kind must be 'bbox' or 'segm', not 'boxes'"):
        match_images(ground_truth, detections, 'boxes')
    with pytest.raises(ValueError, match='no images'):
        match_images({**ground_truth, 'images': []}, [])
    with pytest.raises(ValueError, match="no 'segmentation'"):
        match_images(ground_truth, detections, 'segm')
    with pytest.raises(ValueError, match='image_id -1 is not in'):
        match_images(ground_truth, [{**detections[0], 'image_id': -1}])
    with pytest.raises(ValueError, match='have the id'):
        match_images({**ground_truth, 'images': ground_truth['images'] * 2}, detections)


def test_average_precision_by_hand():
    # In order of scores: the object of image 0, a mistake in image 1, the object of image 1.
    matches = make_matches([[1, 1]], [(0, True), (1, False), (1, True)])
    weights = {(1, 2): (34 + 67 * 3 / 5) / 101}  # recall 1/3 (points 0 ... .33), precision 1; then recall 1, 3 of 5
    weights |= {(1, 0): 1, (0, 1): 1 / 2, (0, 5): 1 / 2}
    weights[1, 1] = (51 + 50 * 2 / 3) / 101
    for weight, expected in weights.items():
        assert average_precision(matches, weight) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(average_precision(matches, (0, 0)))
    values = average_precision(matches, np.array([*weights, (0, 0)]))
    assert values == pytest.approx([*weights.values(), np.nan], abs=1e-12, nan_ok=True)


def test_average_precision_leaves_out_classes_without_objects_that_count():
    matches = make_matches([[1, 0], [0, 2], [0, 0]], [(0, True)], [(1, False), (1, True)], [(0, False)])
    found_half = 51 / 2 / 101  # one of two objects, at a precision of one half
    assert average_precision(matches) == pytest.approx((1 + found_half) / 2)
    assert average_precision(matches, [1, 0]) == 1
    assert average_precision(matches, [0, 1]) == pytest.approx(found_half)


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_equals_a_slow_loop(seed, monkeypatch):
    monkeypatch.setattr(statistics, '_BLOCK', 300)  # blocks of a few weightings
    matches = match_images(*random_case(seed))
    assert any(found.ignored.any() for found in matches.classes)
    random = np.random.RandomState(seed)
    weights = np.concatenate([random.poisson(1, (8, 12)), random.rand(4, 12) * random.randint(2, size=(4, 12))])
    for rows in (range(10), [4]):
        expected = [slow_average_precision(matches, weight, rows) for weight in weights]
        values = average_precision(matches, weights, [THRESHOLDS[row] for row in rows])
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert len(set(expected)) > 8


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_of_whole_weights_is_that_of_copied_images(seed):
    # The copies of a detection follow each other, as with weights, if their ids do and it has its score for itself.
    ground_truth, detections = random_case(seed, tied=False)
    matches = match_images(ground_truth, detections)
    weights = np.random.RandomState(seed).randint(4, size=len(matches.image_ids))
    copies = dict(zip(matches.image_ids, weights))

    def copied(rows, key):
        return [{**row, key: 10 * row[key] + i} for row in rows for i in range(copies[row[key]])]

    annotations = [{**row, 'id': i} for i, row in enumerate(copied(ground_truth['annotations'], 'image_id'))]
    larger = {**ground_truth, 'images': copied(ground_truth['images'], 'id'), 'annotations': annotations}
    expected = coco_metrics(larger, copied(detections, 'image_id'))['boxes']
    assert average_precision(matches, weights) == pytest.approx(expected['AP'], abs=1e-9)
    assert average_precision(matches, weights, [0.75]) == pytest.approx(expected['AP75'], abs=1e-9)
    assert abs(average_precision(matches) - expected['AP']) > 1e-3


def test_average_precision_keeps_copies_of_a_detection_together():
    # One score, a hit and a mistake: copied images give hit, mistake, hit, mistake; weights hit, hit, mistake, mistake.
    matches = make_matches([[1]], [(0, True), (0, False)])
    copied = make_matches([[1, 1]], [(0, True), (0, False), (1, True), (1, False)])
    assert average_precision(matches, [2]) == 1
    assert average_precision(copied) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_average_precision_refuses():
    matches = make_matches([[1, 1]], [(0, True)])
    for weights in (np.ones(3), np.ones((2, 1)), np.ones((1, 1, 2)), 1):
        with pytest.raises(ValueError, match=r'weights must be \[2\] or \[S, 2\]'):
            average_precision(matches, weights)
    for weights in ([1, -1], [1, np.nan], [np.inf, 1]):
        with pytest.raises(ValueError, match='finite and not negative'):
            average_precision(matches, weights)
    for thresholds in ([], [0.5, 0.51]):
        with pytest.raises(ValueError, match='thresholds must be some of'):
            average_precision(matches, thresholds=thresholds)
