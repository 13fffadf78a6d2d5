"""Evaluation of ground truths that are annotated for some of the classes only: by hand, and lvis-api's numbers.

scripts/dev/make_lvis_fixtures.py stored the numbers of lvis-api.
"""

import gzip
import json
import pathlib

import pytest
from drawn_matches import federated_case, results, truth

from detzoo.evaluation import class_agnostic, coco_metrics, format_table, object_recall
from detzoo.evaluation.confusion import confusion_matrix
from detzoo.evaluation.federated import is_federated, without_lists
from detzoo.evaluation.statistics import average_precision, match_images
from detzoo.evaluation.tide import error_breakdown

FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures' / 'lvis.json.gz'
A, B, FAR = (0, 0, 20, 20), (40, 0, 20, 20), (70, 70, 20, 20)


@pytest.mark.parametrize('case', json.loads(gzip.decompress(FIXTURE.read_bytes())), ids=['tied', 'boxes', 'masks'])
def test_federated_metrics_equal_lvis_api(case):
    metrics = coco_metrics(case['ground_truth'], case['detections'], (case['kind'],))
    numbers = metrics['boxes' if case['kind'] == 'bbox' else 'masks']
    expected = {
        name.replace('@300', '').replace('AR', 'AR300', name == 'AR@300'): x for name, x in case['results'].items()
    }
    assert list(numbers) == list(expected) and list(numbers)[6:10] == ['APr', 'APc', 'APf', 'AR300']
    for name, value in expected.items():
        assert (-1 if numbers[name] is None else numbers[name]) == pytest.approx(value, abs=1e-12), name
    plain = coco_metrics(without_lists(case['ground_truth']), case['detections'], (case['kind'],))
    assert plain['boxes' if case['kind'] == 'bbox' else 'masks']['AP'] < numbers['AP'] - 0.01


def hand_case():
    """Image 1 has class 1, and class 2 is absent; image 2 has some of the objects of class 2; nothing is known of class 3."""
    ground_truth = truth((1, 1, A), (2, 2, A), categories=3)
    for category, frequency in zip(ground_truth['categories'], 'rcf'):
        category['frequency'] = frequency
    for image, absent, inexhaustive in zip(ground_truth['images'], ([2], []), ([], [2])):
        image |= {'neg_category_ids': absent, 'not_exhaustive_category_ids': inexhaustive}
    wrong = (1, 2, B, 0.9), (1, 1, B, 0.8)
    unknown = (2, 1, B, 0.95), (2, 3, B, 0.95), (1, 3, A, 0.95), (2, 2, FAR, 0.95)
    return ground_truth, wrong, unknown


def test_federated_metrics_by_hand():
    ground_truth, wrong, unknown = hand_case()
    found = (1, 1, A, 0.5), (2, 2, A, 0.5)
    # A wrong detection before the right one halves the precision. What the images do not tell of makes no difference.
    for detections in ((*wrong, *found), (*wrong, *unknown, *found)):
        metrics = coco_metrics(ground_truth, results(*detections))
        numbers = metrics['boxes']
        assert {name: numbers[name] for name in ('AP', 'APr', 'APc', 'APf')} == pytest.approx(
            {'AP': 0.5, 'APr': 0.5, 'APc': 0.5, 'APf': None}
        )
        assert metrics['per_class']['class 1']['AP'] == pytest.approx(0.5)
        assert metrics['per_class']['class 3']['AP'] is None
        lines = format_table(metrics).splitlines()
        assert len([line for line in lines if 'maxDets=300' in line]) == 13
        assert lines[7].endswith('= 0.500, rare classes') and lines[9].endswith('= -, frequent classes')
    assert coco_metrics(ground_truth, results(*unknown, *found))['boxes']['AP'] == pytest.approx(1)
    assert coco_metrics(without_lists(ground_truth), results(*unknown, *found))['boxes']['AP'] < 1


def test_errors_and_confusions_leave_out_what_images_do_not_tell_of():
    ground_truth, wrong, unknown = hand_case()
    found = (1, 1, A, 0.5), (2, 2, A, 0.5)
    errors = error_breakdown(ground_truth, results(*wrong, *unknown, *found))
    assert errors['counts']['false_positives'] == 2 and errors['AP'] == pytest.approx(0.5)
    assert (
        error_breakdown(without_lists(ground_truth), results(*wrong, *unknown, *found))['counts']['false_positives']
        == 6
    )
    matrix = confusion_matrix(ground_truth, results(*wrong, *unknown[:2], unknown[3], *found), score_threshold=0)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_matches_of_a_federated_ground_truth_have_its_ap():
    for seed in range(2):
        ground_truth, detections = federated_case(seed, tied=False)
        matches = match_images(ground_truth, detections)
        expected = coco_metrics(ground_truth, detections)['boxes']['AP']
        assert float(average_precision(matches)) == pytest.approx(expected, abs=1e-12)


def test_recall_of_objects_takes_all_classes_as_one():
    ground_truth, detections = federated_case(1)
    assert object_recall(ground_truth, detections) == object_recall(without_lists(ground_truth), detections)
    assert 'AR100' in coco_metrics(*class_agnostic(ground_truth, detections))['boxes']
    assert all('neg_category_ids' in image for image in ground_truth['images'])  # no input is changed


def test_the_ground_truth_itself_has_an_ap_of_1():
    ground_truth, _ = federated_case(2)
    detections = [{**row, 'score': 0.5} for row in ground_truth['annotations']]
    numbers = coco_metrics(ground_truth, detections)['boxes']
    assert [numbers[name] for name in ('AP', 'APr', 'APc', 'AR300')] == pytest.approx([1] * 4)


def test_is_federated_refuses_half_of_the_lists():
    ground_truth, *_ = hand_case()
    assert is_federated(ground_truth) and not is_federated(truth((1, 1, A))) and not is_federated({'images': []})
    del ground_truth['categories'][1]['frequency']
    with pytest.raises(ValueError, match='category 2: its frequency must be one of r, c, f'):
        coco_metrics(ground_truth, [])
    del ground_truth['images'][1]['not_exhaustive_category_ids']
    with pytest.raises(ValueError, match='image 2: other images have not_exhaustive_category_ids, this one has none'):
        coco_metrics(ground_truth, [])
