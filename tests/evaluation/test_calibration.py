"""Reliability: by hand, by hotcoco, and what a calibrated detector gets."""

import hotcoco
import numpy as np
import pytest
from drawn_matches import make_matches, random_case

from detzoo.evaluation.calibration import BINS, FLOOR, expected_calibration_error, pooled, reliability
from detzoo.evaluation.statistics import match_images


def scored(*classes):
    """Matches of detections (score, hit) of classes."""
    matches = make_matches([[1]] * len(classes), *([(0, hit) for _, hit in rows] for rows in classes))
    scores = [np.array([score for score, _ in rows], float) for rows in classes]
    return matches._replace(classes=tuple(found._replace(scores=s) for found, s in zip(matches.classes, scores)))


def test_reliability_by_hand():
    # Bins are open below and closed above: .5 is in (.4, .5], .31 in (.3, .4], 1 in (.9, 1]; .04 is left out.
    found = reliability(scored([(1.0, True), (0.31, False), (0.04, True)], [(0.5, True), (0.35, True), (0.06, False)]))
    assert found.counts.tolist() == [1, 0, 0, 2, 1, 0, 0, 0, 0, 1]
    assert found.hits.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(found.confidence[[0, 3, 4, 9]], [0.06, 0.33, 0.5, 1])
    np.testing.assert_allclose(found.precision[[0, 3, 4, 9]], [0, 0.5, 1, 1])
    assert np.isnan(found.precision[1]) and np.isnan(found.confidence[1])
    # |0 - .06| + |1 - .66| + |1 - .5| + |1 - 1|, of 5 detections
    assert expected_calibration_error(found) == pytest.approx((0.06 + 0.34 + 0.5) / 5)
    twice = pooled([found, found])
    assert twice.counts.tolist() == (2 * found.counts).tolist()
    assert expected_calibration_error(twice) == pytest.approx(expected_calibration_error(found))


def test_reliability_leaves_out_detections_in_crowds():
    matches = scored([(0.9, True), (0.8, False)])
    ignored = np.zeros_like(matches.classes[0].hits)
    ignored[:, 1] = True
    found = reliability(matches._replace(classes=(matches.classes[0]._replace(ignored=ignored),)))
    assert found.counts.sum() == 1 and expected_calibration_error(found) == pytest.approx(0.1)


def test_no_detections_have_no_calibration():
    found = reliability(make_matches([[1]], []))
    assert found.counts.tolist() == [0] * BINS and expected_calibration_error(found) is None


def test_a_calibrated_detector_has_almost_no_error():
    random = np.random.RandomState(0)
    scores = random.uniform(FLOOR, 1, 20_000)
    found = reliability(scored(list(zip(scores, random.rand(len(scores)) < scores))))
    assert found.counts.min() > 500
    np.testing.assert_allclose(found.precision, found.confidence, atol=0.07)
    assert expected_calibration_error(found) < 0.02
    overconfident = reliability(scored(list(zip(scores, random.rand(len(scores)) < scores / 2))))
    assert expected_calibration_error(overconfident) == pytest.approx(scores.mean() / 2, abs=0.01)


def test_reliability_equals_hotcoco():
    for seed in range(3):
        ground_truth, detections = random_case(seed, tied=False)
        detections = [row for row in detections if row['score'] >= FLOOR]
        evaluator = hotcoco.COCOeval(
            hotcoco.COCO(ground_truth), hotcoco.COCO(ground_truth).load_res(detections), 'bbox'
        )
        evaluator.evaluate()
        expected = evaluator.calibration(n_bins=BINS, iou_threshold=0.5)
        found = reliability(match_images(ground_truth, detections))
        assert [row['count'] for row in expected['bins']] == found.counts.tolist()
        assert expected_calibration_error(found) == pytest.approx(expected['ece'], abs=1e-12)
