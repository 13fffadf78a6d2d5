"""The error breakdown: by hand, and equal to tidecv's numbers, which scripts/dev/make_tide_fixtures.py stored."""

import copy
import gzip
import json
import pathlib

import numpy as np
import pycocotools.mask
import pytest
from drawn_matches import results, truth

from detzoo.evaluation.tide import ERRORS, error_breakdown

FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures' / 'tide.json.gz'
SHORT_NAMES = {
    'classification': 'Cls',
    'localization': 'Loc',
    'both': 'Both',
    'duplicate': 'Dupe',
    'background': 'Bkg',
    'missed': 'Miss',
    'false_positives': 'FalsePos',
    'false_negatives': 'FalseNeg',
}
ZEROS = dict.fromkeys(SHORT_NAMES, 0)

A, B, FAR = (0, 0, 20, 20), (40, 0, 20, 20), (80, 80, 9, 9)
QUARTER_A, QUARTER_B = (0, 0, 20, 5), (40, 0, 20, 5)  # inside, so IoU 1/4


@pytest.fixture(scope='module')
def golden():
    return json.loads(gzip.decompress(FIXTURE.read_bytes()))['cases']


def breakdown_as(expected, case):
    """The breakdown of a stored case with the settings of a stored result."""
    thresholds = {name: expected[name] for name in ('foreground_iou', 'background_iou')}
    return error_breakdown(case['ground_truth'], case['detections'], expected['kind'], **thresholds)


def assert_equal_tidecv(breakdown, expected):
    assert breakdown['AP'] == pytest.approx(expected['AP'] / 100, abs=1e-10)
    gains = {SHORT_NAMES[name]: 100 * gain for name, gain in breakdown['dAP'].items()}
    assert gains == pytest.approx(expected['errors'], abs=1e-8)
    assert {SHORT_NAMES[name]: breakdown['counts'][name] for name in ERRORS} == expected['counts']


@pytest.mark.parametrize('name, count', [('boxes', 2), ('limited', 2), ('edges', 2), ('masks', 4)])
def test_error_breakdown_equals_tidecv(golden, name, count):
    case = golden[name]
    assert len(case['results']) == count
    for expected in case['results']:
        assert_equal_tidecv(breakdown_as(expected, case), expected)


def test_error_breakdown_keeps_the_order_of_equal_scores(golden):
    case = golden['ties']
    assert len(case['results']) == len(case['in_order']) == 2
    for tied, in_order in zip(case['results'], case['in_order']):
        breakdown = breakdown_as(tied, case)
        # As tidecv on scores that differ and are in the same order; on the tied ones it gives only AP and counts alike.
        assert_equal_tidecv(breakdown, in_order)
        assert breakdown['AP'] == pytest.approx(tied['AP'] / 100, abs=1e-10)
        assert tied['counts'] == in_order['counts'] and tied['errors'] != pytest.approx(in_order['errors'], abs=1)


@pytest.mark.parametrize(
    'objects, detections, ap, gains, counts',
    [
        pytest.param(
            # Class 1 has an object and no detection, class 2 the reverse: AP 0 each. Fixed, class 2 has nothing left and
            # class 1 is found. An object at which an error aims is not missed, though it is a false negative; without
            # it class 1 has nothing left, and class 2 still has AP 0.
            [(1, 1, A)],
            [(1, 2, A, 0.9)],
            0,
            {'classification': 1},
            {'classification': 1, 'false_positives': 1, 'false_negatives': 1},
            id='classification',
        ),
        pytest.param(
            # The same of class 1 alone, at IoU 1/4.
            [(1, 1, A)],
            [(1, 1, QUARTER_A, 0.9)],
            0,
            {'localization': 1},
            {'localization': 1, 'false_positives': 1, 'false_negatives': 1},
            id='localization',
        ),
        pytest.param(
            # Class 1: wrong, right: precision 1/2 at all recalls. Class 2: nothing found. AP (1/2 + 0) / 2. Without the
            # wrong one, or with it in the last place, it is (1 + 0) / 2; without B to be found, 1/2 of class 1 alone.
            [(1, 1, A), (1, 2, B)],
            [(1, 1, QUARTER_B, 0.9), (1, 1, A, 0.8)],
            1 / 4,
            {'both': 1 / 4, 'missed': 1 / 4, 'false_positives': 1 / 4, 'false_negatives': 1 / 4},
            {'both': 1, 'missed': 1, 'false_positives': 1, 'false_negatives': 1},
            id='both',
        ),
        pytest.param(
            # Right, wrong, right: precision 1 at the 51 recalls up to 1/2, then 2/3 at 50.
            [(1, 1, A), (2, 1, A)],
            [(1, 1, A, 0.9), (1, 1, A, 0.8), (2, 1, A, 0.7)],
            (51 + 50 * 2 / 3) / 101,
            {'duplicate': 50 / 3 / 101, 'false_positives': 50 / 3 / 101},
            {'duplicate': 1, 'false_positives': 1},
            id='duplicate',
        ),
        pytest.param(
            # Wrong, right: precision 1/2 at all recalls.
            [(1, 1, A)],
            [(1, 1, FAR, 0.9), (1, 1, A, 0.8)],
            1 / 2,
            {'background': 1 / 2, 'false_positives': 1 / 2},
            {'background': 1, 'false_positives': 1},
            id='background',
        ),
        pytest.param(
            # One of two found: precision 1 at the 51 recalls up to 1/2, then 0.
            [(1, 1, A), (2, 1, A)],
            [(1, 1, A, 0.9)],
            51 / 101,
            {'missed': 50 / 101, 'false_negatives': 50 / 101},
            {'missed': 1, 'false_negatives': 1},
            id='missed',
        ),
        pytest.param(
            # Both aim at A; the better one finds it when it is fixed, and class 2 is gone then: 1.
            # When the other is fixed, it is removed, and nothing is found.
            [(1, 1, A)],
            [(1, 2, A, 0.9), (1, 1, QUARTER_A, 0.8)],
            0,
            {'classification': 1},
            {'classification': 1, 'localization': 1, 'false_positives': 2, 'false_negatives': 1},
            id='two kinds, classification first',
        ),
        pytest.param(
            # As before, but class 2 stays when localisation is fixed: (1 + 0) / 2.
            [(1, 1, A)],
            [(1, 2, A, 0.8), (1, 1, QUARTER_A, 0.9)],
            0,
            {'localization': 1 / 2},
            {'classification': 1, 'localization': 1, 'false_positives': 2, 'false_negatives': 1},
            id='two kinds, localization first',
        ),
        pytest.param(
            # Class 1 has AP 1, class 2 only the detection. A is found, so the fix removes it: class 2 is gone.
            [(1, 1, A)],
            [(1, 2, A, 0.9), (1, 1, A, 0.8)],
            1 / 2,
            {'classification': 1 / 2},
            {'classification': 1, 'false_positives': 1},
            id='classification of a found object',
        ),
        pytest.param(
            # IoU 1/4 with its own class is asked before IoU 1 with another one. AP 0 of both classes. Fixed, class 1
            # has 1, so 1/2; B of class 2 is missed, and without it only class 1, with 0, is left.
            [(1, 1, (0, 0, 20, 80)), (1, 2, A)],
            [(1, 1, A, 0.9)],
            0,
            {'localization': 1 / 2},
            {'localization': 1, 'missed': 1, 'false_positives': 1, 'false_negatives': 2},
            id='localization before classification',
        ),
    ],
)
def test_error_breakdown_by_hand(objects, detections, ap, gains, counts):
    breakdown = error_breakdown(truth(*objects), results(*detections))
    assert breakdown['AP'] == pytest.approx(ap)
    assert breakdown['dAP'] == pytest.approx(ZEROS | gains)
    assert breakdown['counts'] == ZEROS | counts


def test_error_breakdown_of_perfect_detections():
    objects = [(1, 1, A), (1, 2, B), (2, 1, A)]
    found = results(*((*thing, 0.9 - i / 10) for i, thing in enumerate(objects)))
    assert error_breakdown(truth(*objects), found) == {'AP': 1, 'dAP': ZEROS, 'counts': ZEROS}


def test_error_breakdown_without_detections():
    breakdown = error_breakdown(truth((1, 1, A), (1, 1, B), (2, 2, A)), [])
    assert breakdown['AP'] == 0 and breakdown['counts'] == ZEROS | {'missed': 3, 'false_negatives': 3}
    # Nothing is left to average when no object need be found.
    assert breakdown['dAP'] == ZEROS | {'missed': None, 'false_negatives': None}


def test_error_breakdown_without_objects():
    assert error_breakdown(truth(), []) == {'AP': None, 'dAP': dict.fromkeys(ZEROS), 'counts': ZEROS}
    breakdown = error_breakdown(truth(), results((1, 1, A, 0.9), (2, 2, A, 0.8)))
    assert breakdown['AP'] == 0 and breakdown['counts'] == ZEROS | {'background': 2, 'false_positives': 2}
    assert breakdown['dAP'] == ZEROS | {'background': None}


def test_error_breakdown_ignores_what_lies_in_a_crowd():
    crowd = (0, 40, 100, 60)
    ground_truth = truth((1, 1, A), (1, 1, crowd, True))
    # Before the hit, two in the crowd: neither right nor wrong, but counted as background. The crowd need not be found.
    breakdown = error_breakdown(ground_truth, results((1, 1, FAR, 0.9), (1, 1, FAR, 0.8), (1, 1, A, 0.7)))
    assert breakdown == {'AP': 1, 'dAP': ZEROS, 'counts': ZEROS | {'background': 2}}
    # Just half inside, or of another class: not ignored. Wrong, wrong, right: precision 1/3; class 2 has 0.
    half = (0, 30, 20, 20)
    breakdown = error_breakdown(ground_truth, results((1, 1, half, 0.9), (1, 1, half, 0.8), (1, 1, A, 0.7)))
    assert breakdown['AP'] == pytest.approx(1 / 3) and breakdown['counts']['false_positives'] == 2
    breakdown = error_breakdown(ground_truth, results((1, 2, FAR, 0.9), (1, 1, A, 0.7)))
    assert breakdown['AP'] == pytest.approx(1 / 2) and breakdown['counts']['false_positives'] == 1


def test_error_breakdown_fixes_what_lies_in_a_crowd():
    # IoU 15 * 15 / (2 * 20 * 20 - 15 * 15) = 0.39 with the object, all inside the crowd: no false positive, but when
    # localisation is fixed it finds the object.
    breakdown = error_breakdown(truth((1, 1, A), (1, 1, (0, 0, 40, 40), True)), results((1, 1, (5, 5, 20, 20), 0.9)))
    counts = {'localization': 1, 'false_negatives': 1}
    # Without the object nothing is left: the detection does not count.
    gains = {'localization': 1, 'false_negatives': None}
    assert breakdown == {'AP': 0, 'dAP': ZEROS | gains, 'counts': ZEROS | counts}


@pytest.mark.parametrize('share, name', [(0.3, 'localization'), (0.29, 'background'), (0.7, 'localization')])
def test_error_breakdown_includes_both_thresholds_in_localization(share, name):
    # The second detection, of the object that the first one finds, has this IoU.
    found = results((1, 1, A, 0.9), (1, 1, (0, 0, 20, 20 * share), 0.8))
    counts = error_breakdown(truth((1, 1, A)), found, foreground_iou=0.7, background_iou=0.3)['counts']
    assert counts == ZEROS | {name: 1, 'false_positives': 1}


def test_error_breakdown_changes_no_input_and_leaves_out_other_images():
    ground_truth = truth((1, 1, A), (3, 1, A))
    found = results((1, 1, A, 0.5), (1, 1, FAR, 0.9))
    before = copy.deepcopy((ground_truth, found))
    assert error_breakdown(ground_truth, found)['counts']['false_negatives'] == 0
    assert (ground_truth, found) == before


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(detections=results((3, 1, A, 0.9))), 'image_id 3'),
        (dict(detections=results((1, 7, A, 0.9))), 'category_id 7'),
        (dict(detections=results((1, 1, A, float('nan')))), 'must be finite'),
        (dict(ground_truth=truth((1, 7, A))), 'category_id 7'),
        (dict(kind='masks'), "'bbox' or 'segm', not 'masks'"),
        (dict(kind='segm'), "no 'segmentation'"),
        (dict(foreground_iou=0.1), 'background 0.1, foreground 0.1'),
        (dict(background_iou=0), 'background 0, foreground 0.5'),
        (dict(foreground_iou=50), 'foreground 50'),
    ],
)
def test_error_breakdown_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        error_breakdown(**{'ground_truth': truth((1, 1, A)), 'detections': [], **arguments})


def test_error_breakdown_refuses_masks_of_different_sizes():
    ground_truth, found = truth((1, 1, A)), results((1, 1, A, 0.9))
    for rows, side in ((ground_truth['annotations'], 100), (found, 50)):
        mask = np.zeros((side, side), np.uint8, order='F')
        mask[:20, :20] = 1
        rows[0]['segmentation'] = pycocotools.mask.encode(mask)
    with pytest.raises(ValueError, match='image 1: its masks differ'):
        error_breakdown(ground_truth, found, 'segm')
