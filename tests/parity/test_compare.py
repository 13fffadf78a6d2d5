"""Comparing the detections of two implementations, by hand."""

import numpy as np
import pytest

from detzoo.parity.compare import count_partners, match_detections


def detections_of(scores, shift=0):
    """Boxes far apart, the best first, the last one `shift` boxes aside."""
    corners = 20 * np.arange(len(scores))
    corners[-1] += 20 * shift
    boxes = np.stack([corners, corners, corners + 10, corners + 10], axis=1).astype(np.float32)
    return dict(boxes=boxes, labels=np.zeros(len(scores), np.int32), scores=np.float32(scores))


@pytest.mark.parametrize(
    'theirs, limit, tied',
    [
        ([0.9, 0.5, 0.5001], 3, 1),  # the limit cuts a list in which 0.5 and 0.5001 may stand in either order
        ([0.9, 0.5, 0.51], 3, 0),  # this one should be there
        ([0.9, 0.5, 0.5001], 4, 0),  # nothing was cut
    ],
)
def test_detections_that_tie_for_the_last_place_may_be_others(theirs, limit, tied):
    agreement = match_detections(detections_of([0.9, 0.5, 0.5], shift=1), detections_of(theirs), limit=limit)
    assert (agreement.matched, agreement.tied) == (2, tied) and agreement.holds() == bool(tied)


@pytest.mark.parametrize('height, shift, apart', [(1, 0.005, 0), (1, 0.02, 1), (100, 0.02, 0)])
def test_boxes_are_the_same_by_their_iou_or_to_a_hundredth_of_a_pixel(height, shift, apart):
    found = dict(boxes=np.float32([[0, 0, 50, height]]), labels=np.zeros(1, int), scores=np.ones(1))
    other = found | dict(boxes=found['boxes'] + np.float32([0, 0, 0, shift]))
    agreement = match_detections(other, found, limit=9)
    assert (agreement.matched, agreement.apart) == (1, apart) and agreement.holds() == (not apart)


@pytest.mark.parametrize('shift, cut', [(0.001, 0), (-0.001, 1)])
def test_masks_are_compared_where_they_are_pasted_into_the_same_pixels(shift, cut):
    # With its border of a pixel of 28 the box reaches from 55 to 85; from 54.999, it is cut to 54 and 84.
    found = dict(
        boxes=np.float32([[56, 56, 84, 84]]), labels=np.zeros(1, int), scores=np.ones(1), masks=np.ones((1, 9, 9), bool)
    )
    other = found | dict(boxes=found['boxes'] + np.float32(shift), masks=~found['masks'])
    agreement = match_detections(other, found, limit=9)
    assert (agreement.matched, agreement.cut, agreement.min_mask_iou) == (1, cut, cut) and agreement.holds() == bool(
        cut
    )


def test_detections_that_are_fewer_are_no_agreement():
    agreement = match_detections(detections_of([0.9]), detections_of([0.9, 0.5, 0.5]), limit=3)
    assert (agreement.ours, agreement.theirs, agreement.matched) == (1, 3, 1) and not agreement.holds()


def test_count_partners_by_hand():
    def row(image_id, x, category_id=1, score=0.9):
        return dict(image_id=image_id, category_id=category_id, bbox=[x, 0, 10, 10], score=score)

    exact = [row(1, 0), row(1, 20, score=0.2), row(2, 0), row(3, 0)]
    static = [row(1, 2, score=0.1), row(1, 20, category_id=2), row(2, 6), row(4, 0), row(1, 1, score=0.05)]
    # One has a partner, nearer by a pixel than another; the rest another class, an IoU of 1 / 4, or none.
    assert count_partners(exact, static, score=0.0) == (1, 4, pytest.approx(9 / 11))
    assert count_partners(exact, static, score=0.5) == (1, 3, pytest.approx(9 / 11))
    assert count_partners([], static, score=0.0) == (0, 0, 0.0)
