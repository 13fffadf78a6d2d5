"""Matching: every rule by hand, then all of them against exact fractions on random boxes full of ties."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import matching
from detzoo.core.anchors import cell_anchors
from detzoo.core.matching import IGNORE, NEGATIVE

compiled = jax.jit(matching.match_by_threshold, static_argnames='match_best_anchors')
inside_crowd = jax.jit(matching.inside_crowd)
ROWS, ANCHORS = 8, 36  # the shapes for which everything is compiled once


def match(anchors, gt, function=compiled, **kwargs):
    """Matches after adding rows of padding and anchors without area, and forgets what those get."""
    padded = np.zeros((ANCHORS, 4), np.float32)
    padded[: len(anchors)] = anchors
    gt = gt._replace(**{name: pad_rows(getattr(gt, name)) for name in ('boxes', 'labels', 'valid', 'crowd')})
    return np.asarray(function(padded, gt, **kwargs))[: len(anchors)]


def pad_rows(x):
    return np.concatenate([x, np.zeros((ROWS - len(x), *x.shape[1:]), x.dtype)])


match_all = functools.partial(match, positive_iou=0.5, negative_iou=0.4, match_best_anchors=False)
compiled_best = functools.partial(compiled, positive_iou=0.5, negative_iou=0.4, match_best_anchors=True)
match_best = functools.partial(match, positive_iou=0.5, negative_iou=0.4, match_best_anchors=True)


def boxes_of(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def shared_area(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def oracle(anchors, gt, positive_iou, negative_iou, match_best_anchors):
    """The rules one anchor at a time, in exact fractions: boxes must have whole coordinates."""
    anchors, boxes = anchors.astype(int).tolist(), gt.boxes.astype(int).tolist()
    rows = [m for m in range(len(boxes)) if gt.valid[m] and not gt.crowd[m]]
    crowds = [m for m in range(len(boxes)) if gt.valid[m] and gt.crowd[m]]
    iou = {}
    for m in rows:
        for a, anchor in enumerate(anchors):
            shared = shared_area(boxes[m], anchor)
            iou[m, a] = Fraction(shared, area(boxes[m]) + area(anchor) - shared)
    best_of_box = {m: max(iou[m, a] for a in range(len(anchors))) for m in rows}
    matched = []
    for a, anchor in enumerate(anchors):
        best = max(rows, key=lambda m: (iou[m, a], -m), default=None)  # ties go to the lower row
        best_iou = -1 if best is None else iou[best, a]
        forced = match_best_anchors and any(iou[m, a] == best_of_box[m] > 0 for m in rows)
        if best_iou >= Fraction(positive_iou) or forced:
            matched.append(best)
        elif any(2 * shared_area(boxes[m], anchor) >= area(anchor) for m in crowds):
            matched.append(IGNORE)
        else:
            matched.append(NEGATIVE if best_iou < Fraction(negative_iou) else IGNORE)
    return matched


def random_case(make_ground_truth, seed, rows=ROWS):
    """Anchors on a lattice and boxes of whole pixels: many equal IoUs, and unequal ones are no closer than 4e-6."""
    rng = np.random.RandomState(seed)
    centers = np.stack(np.meshgrid([3, 7, 11], [3, 7, 11]), axis=-1).reshape(-1, 1, 2)
    halves = np.array([[1, 1], [2, 2], [3, 2], [2, 3]])
    anchors = np.concatenate([centers - halves, centers + halves], axis=-1).reshape(-1, 4).astype(np.float32)
    corner = rng.randint(0, 11, (rng.randint(0, 6), 2))
    boxes = np.concatenate([corner, corner + rng.randint(1, 6, corner.shape)], axis=1)
    return anchors, make_ground_truth(boxes, crowd=rng.uniform(size=len(boxes)) < 0.3, rows=rows)


def test_match_by_threshold_by_hand(make_ground_truth):
    # Anchors inside a 10 x 10 box, full width: IoU is height / 10. The positive threshold is inclusive, the negative
    # not.
    anchors = boxes_of([0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 4], [0, 0, 10, 3.5], [20, 20, 30, 30])
    gt = make_ground_truth([[0, 0, 10, 10]], rows=3)
    assert match_all(anchors, gt).tolist() == [0, IGNORE, IGNORE, NEGATIVE, NEGATIVE]


def test_match_by_threshold_takes_the_best_box_and_the_lower_row_of_equals(make_ground_truth):
    anchors = boxes_of([0, 0, 10, 10])
    boxes = [[0, 0, 10, 6], [0, 0, 10, 9], [0, 1, 10, 10]]  # IoU .6, .9, .9
    assert match_all(anchors, make_ground_truth(boxes)).tolist() == [1]


def test_match_best_anchors_makes_all_that_tie_positive_for_their_own_best_box(make_ground_truth):
    # The small box overlaps anchor 0 and, mirrored at x = 11, anchor 1: IoU 4 / (80 + 16 - 4) with both, its best. Both
    # become positive, but anchor 0 stays with the large box (IoU .8): the small one doesn't take it away, whether it
    # comes first or last. Anchor 2 touches nothing.
    anchors = boxes_of([0, 0, 10, 8], [12, 0, 22, 8], [40, 40, 50, 50])
    large, small = [0, 0, 10, 10], [9, 0, 13, 4]
    assert match_best(anchors, make_ground_truth([large, small])).tolist() == [0, 1, NEGATIVE]
    assert match_best(anchors, make_ground_truth([small, large])).tolist() == [1, 0, NEGATIVE]
    assert match_all(anchors, make_ground_truth([large, small])).tolist() == [0, NEGATIVE, NEGATIVE]


def test_match_best_anchors_can_leave_a_box_without_an_anchor(make_ground_truth):
    # The only anchor is the best of both boxes, and its own best is box 0.
    gt = make_ground_truth([[0, 0, 10, 10], [0, 0, 10, 3]])
    assert match_best(boxes_of([0, 0, 10, 9]), gt).tolist() == [0]


def test_match_best_anchors_overrides_ignore(make_ground_truth):
    gt = make_ground_truth([[0, 0, 10, 10]])
    assert match_best(boxes_of([0, 0, 10, 4.5], [0, 0, 10, 4.25]), gt).tolist() == [0, IGNORE]


@pytest.mark.parametrize('padding', [[0, 0, 0, 0], [0, 0, 10, 10], [np.nan] * 4], ids=['zeros', 'box', 'nan'])
def test_match_best_anchors_ignores_padding_rows(make_ground_truth, padding):
    # The best IoU of a padding row, 0 or -1, ties for every anchor: one such row must not make all of them positive.
    anchors = boxes_of([0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50])
    gt = make_ground_truth([[20, 20, 30, 28]], rows=2)
    gt.boxes[1] = padding
    assert match_best(anchors, gt).tolist() == [NEGATIVE, 0, NEGATIVE]


def test_match_best_anchors_leaves_a_box_that_overlaps_no_anchor_without(make_ground_truth):
    anchors = boxes_of([0, 0, 10, 10], [20, 20, 30, 30])
    assert match_best(anchors, make_ground_truth([[60, 60, 70, 70]])).tolist() == [NEGATIVE, NEGATIVE]


def test_match_best_anchors_of_a_tiny_box_are_those_that_overlap_it(make_ground_truth):
    # A sliver of .01 x .01 pixels, say an object cut by a crop: its best IoU, 1e-4 / 1024 = 1e-7, is smaller than what
    # counts as a tie, and so is its distance to 0, the IoU of every other anchor.
    anchors = boxes_of([0, 0, 32, 32], [40, 40, 72, 72], [80, 0, 112, 32])
    assert match_best(anchors, make_ground_truth([[5, 5, 5.01, 5.01]])).tolist() == [0, NEGATIVE, NEGATIVE]


def test_match_best_anchors_of_a_tiny_box_are_not_all_that_overlap_it(make_ground_truth):
    # As above: 1e-4 / 16^2 = 4e-7 is four times the 1e-7 of the larger anchor, hence no tie.
    anchors = boxes_of([0, 0, 32, 32], [0, 0, 16, 16])
    assert match_best(anchors, make_ground_truth([[5, 5, 5.01, 5.01]])).tolist() == [NEGATIVE, 0]


def test_match_by_threshold_never_matches_a_crowd(make_ground_truth):
    # The anchor is the crowd itself, IoU 1, but it is ignored. Valid objects beside it are matched as ever.
    anchors = boxes_of([0, 0, 10, 10], [20, 0, 30, 10])
    gt = make_ground_truth([[0, 0, 10, 10], [20, 0, 30, 9]], crowd=[True, False])
    assert match_best(anchors, gt).tolist() == [IGNORE, 1]


def test_match_by_threshold_ignores_what_lies_half_inside_a_crowd(make_ground_truth):
    # Shares inside the crowd: 5/10, 4/10, all of it; the last is negative by IoU (16 / 100) and ignored all the same.
    anchors = boxes_of([5, 0, 15, 10], [6, 0, 16, 10], [2, 2, 6, 6])
    gt = make_ground_truth([[0, 0, 10, 10]], crowd=[True], rows=3)
    assert match_best(anchors, gt).tolist() == [IGNORE, NEGATIVE, IGNORE]


def test_match_by_threshold_keeps_positives_inside_a_crowd(make_ground_truth):
    gt = make_ground_truth([[0, 0, 40, 40], [10, 10, 20, 20]], crowd=[True, False])
    anchors = boxes_of([10, 10, 20, 20], [10, 10, 20, 15], [30, 30, 40, 40])  # IoU 1, .5 and 0 with the object
    assert match_all(anchors, gt).tolist() == [1, 1, IGNORE]


def test_match_by_threshold_takes_no_crowd_from_padding(make_ground_truth):
    gt = make_ground_truth([], rows=2)
    gt.boxes[0], gt.crowd[0] = [0, 0, 40, 40], True
    assert match_best(boxes_of([0, 0, 10, 10]), gt).tolist() == [NEGATIVE]


@pytest.mark.parametrize('match_best_anchors', [False, True])
def test_match_by_threshold_equals_loops(make_ground_truth, match_best_anchors):
    seen = set()
    for seed in range(60):
        anchors, gt = random_case(make_ground_truth, seed)
        # .5 is exact. .3 is not, but float32 rounds 3 / 10 as it rounds the threshold, so that equality survives.
        ours = match(anchors, gt, positive_iou=0.5, negative_iou=0.3, match_best_anchors=match_best_anchors).tolist()
        assert ours == oracle(anchors, gt, '0.5', '0.3', match_best_anchors), f'seed {seed}'
        seen.update(ours)
    assert {NEGATIVE, IGNORE, 0, 1, 2, 3} <= seen  # the cases are not trivial


def test_match_by_threshold_is_the_same_with_more_padding(make_ground_truth):
    for seed in range(10):
        (anchors, gt), (_, padded) = (random_case(make_ground_truth, seed, rows=rows) for rows in (ROWS, 12))
        count = gt.valid.sum()
        padded.boxes[count:] = anchors[: 12 - count]  # what a row that isn't valid holds doesn't matter
        padded.crowd[-2:] = True
        for function in (compiled_best, inside_crowd):
            np.testing.assert_array_equal(function(anchors, gt), function(anchors, padded))


def test_match_by_threshold_of_nothing_is_negative(make_ground_truth):
    anchors = boxes_of([0, 0, 10, 10], [20, 20, 30, 30])
    assert match_best(anchors, make_ground_truth([], rows=4)).tolist() == [NEGATIVE, NEGATIVE]


def test_match_by_threshold_without_jit(make_ground_truth):
    anchors, gt = random_case(make_ground_truth, 1)
    ours = matching.match_by_threshold(anchors, gt, positive_iou=0.5, negative_iou=0.4, match_best_anchors=True)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, match_best(anchors, gt))
    np.testing.assert_array_equal(matching.inside_crowd(anchors, gt), inside_crowd(anchors, gt))


def test_match_by_threshold_refuses_a_batch(make_ground_truth):
    with pytest.raises(AssertionError):
        compiled_best(np.zeros((1, 2, 4), np.float32), make_ground_truth([]))


def test_inside_crowd_by_hand(make_ground_truth):
    # Shares inside the crowd: .5 counts, .49 doesn't. An object is no crowd. Two crowds don't add up: .4 and .4.
    gt = make_ground_truth([[0, 0, 10, 10], [50, 0, 60, 10], [16, 0, 30, 10]], crowd=[True, False, True], rows=5)
    boxes = boxes_of([5, 0, 15, 10], [5.1, 0, 15.1, 10], [50, 0, 60, 10], [6, 0, 16, 10], [6, 0, 20, 1])
    assert inside_crowd(boxes, gt).tolist() == [True, False, False, False, False]


def test_inside_crowd_equals_loops(make_ground_truth):
    for seed in range(20):
        anchors, gt = random_case(make_ground_truth, seed)
        expected = [
            any(
                valid and crowd and 2 * shared_area(region, anchor) >= area(anchor)
                for region, valid, crowd in zip(gt.boxes.tolist(), gt.valid, gt.crowd)
            )
            for anchor in anchors.tolist()
        ]
        assert inside_crowd(anchors, gt).tolist() == expected


# By cell: canvas 32 x 32, two levels of stride 16 and 8; anchors of 8 x 8 and 12 x 6 on the fine one, 16 x 16 on the
# coarse one. Level by level, cells row by row: rows 0..31 are fine (2 a cell), 32..35 coarse.
CELL_ANCHORS, CELL_STRIDES = cell_anchors((32, 32), [(4, 4), (2, 2)], [((8, 8), (12, 6)), ((16, 16),)])
by_cell = jax.jit(matching.match_by_cell)
FAR = np.tile(np.float32([1000, 1000, 1001, 1001]), (len(CELL_ANCHORS), 1))  # predictions that overlap nothing


def match_cells(gt, predicted=FAR, ignore_iou=0.6):
    return tuple(map(np.asarray, by_cell(CELL_ANCHORS, CELL_STRIDES, predicted, gt, ignore_iou=ignore_iou)))


def test_match_by_cell_takes_the_most_alike_anchor_of_the_centres_cells(make_ground_truth):
    # Centres (13, 21): fine column 1, row 2, coarse column 0, row 1. 8 x 8 is the first anchor's shape; 12 x 6 the
    # second's; 15 x 15 is most like 16 x 16.
    for width, height, expected in ((8, 8, (2 * 4 + 1) * 2), (12, 6, (2 * 4 + 1) * 2 + 1), (15, 15, 32 + 2)):
        gt = make_ground_truth([[13 - width / 2, 21 - height / 2, 13 + width / 2, 21 + height / 2]], rows=3)
        matched, taken = match_cells(gt)
        assert (np.flatnonzero(matched != NEGATIVE) == [expected]).all() and matched[expected] == 0
        assert taken.tolist() == [expected, len(CELL_ANCHORS), len(CELL_ANCHORS)]


def test_match_by_cell_takes_the_first_of_equals(make_ground_truth):
    anchors, strides = cell_anchors((32, 32), [(4, 4)], [((8, 4), (4, 8))])
    gt = make_ground_truth([[2, 2, 6, 6]])  # 4 x 4: a half of either
    matched, _ = by_cell(anchors, strides, FAR[: len(anchors)], gt, ignore_iou=0.6)
    assert np.flatnonzero(np.asarray(matched) >= 0) == [0]


def test_match_by_cell_gives_an_anchor_to_the_last_box(make_ground_truth):
    gt = make_ground_truth([[8, 8, 16, 16], [9, 9, 17, 17], [9, 8, 16, 16]], rows=4)
    matched, taken = match_cells(gt)
    anchor = (1 * 4 + 1) * 2
    assert taken[:3].tolist() == [anchor] * 3
    assert matched[anchor] == 2 and (matched >= 0).sum() == 1


def test_match_by_cell_matches_a_box_unlike_all_anchors(make_ground_truth):
    # The paper's rule has no threshold: each object has an anchor.
    matched, _ = match_cells(make_ground_truth([[0, 3, 32, 4]]))
    assert (matched >= 0).sum() == 1


def test_match_by_cell_ignores_predictions_on_objects(make_ground_truth):
    predicted = FAR.copy()
    predicted[5], predicted[6] = (0, 0, 8, 8), (0, 0, 8, 4)
    gt = make_ground_truth([[0, 0, 8, 8]])  # IoU 1 and 1/2
    matched, _ = match_cells(gt, predicted)
    assert matched[0] == 0 and matched[5] == IGNORE and matched[6] == NEGATIVE
    matched, _ = match_cells(gt, predicted, ignore_iou=0.5)
    assert matched[6] == NEGATIVE  # more than the threshold, not equal to it
    matched, _ = match_cells(gt, predicted, ignore_iou=0.49)
    assert matched[6] == IGNORE
    predicted[0] = (0, 0, 8, 8)
    assert match_cells(gt, predicted)[0][0] == 0  # what is taken stays positive


def test_match_by_cell_ignores_anchors_and_predictions_in_crowds(make_ground_truth):
    gt = make_ground_truth([[0, 0, 16, 16]], crowd=[True])
    predicted = FAR.copy()
    predicted[-1] = (2, 2, 6, 6)
    matched, taken = match_cells(gt, predicted)
    # Both anchors of four fine cells, a coarse one, and the one that predicts a box in the crowd.
    assert set(np.flatnonzero(matched == IGNORE)) == {0, 1, 2, 3, 8, 9, 10, 11, 32, 35}
    assert (matched < 0).all() and taken[0] == len(CELL_ANCHORS)


def test_match_by_cell_without_objects(make_ground_truth):
    matched, taken = match_cells(make_ground_truth([], rows=4))
    assert (matched == NEGATIVE).all() and (taken == len(CELL_ANCHORS)).all()


def test_last_winner_by_hand():
    best, candidate = np.array([3, 1, 3, 0, 1]), np.array([True, True, True, True, False])
    assert matching.last_winner(best, candidate, 5).tolist() == [3, 1, NEGATIVE, 2, NEGATIVE]
    assert matching.last_winner(best[:0], candidate[:0], 2).tolist() == [NEGATIVE, NEGATIVE]


# Each anchor to its best box, then each box to its best anchor, which it takes away from others (SSD).
match_at = functools.partial(match, function=jax.jit(matching.match_and_reassign, static_argnames='bipartite'))
match_reassign = functools.partial(match_at, positive_iou=0.5)


def test_match_and_reassign_by_hand(make_ground_truth):
    # Anchors of the box's full width: IoU is height / 10. From .5 on an anchor is positive; nothing lies between.
    anchors = boxes_of([0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], [20, 20, 30, 30])
    assert match_reassign(anchors, make_ground_truth([[0, 0, 10, 10]], rows=3)).tolist() == [0, 0, NEGATIVE, NEGATIVE]


def test_match_and_reassign_gives_an_object_below_the_threshold_its_best_anchor(make_ground_truth):
    # IoU 10 / 100 with the first, 10 / 64 with the second.
    anchors = boxes_of([0, 0, 10, 10], [0, 0, 8, 8])
    assert match_reassign(anchors, make_ground_truth([[0, 0, 5, 2]])).tolist() == [NEGATIVE, 0]


def test_match_and_reassign_takes_the_first_of_tied_anchors(make_ground_truth):
    # The box lies in the middle between two anchors, IoU 20 / 140 with each: RetinaNet would match both.
    anchors = boxes_of([0, 0, 8, 10], [12, 0, 20, 10])
    assert match_reassign(anchors, make_ground_truth([[6, 0, 14, 10]])).tolist() == [0, NEGATIVE]


def test_match_and_reassign_takes_an_anchor_away_from_a_better_box(make_ground_truth):
    # Both overlap anchor 0 most, the large one by .8, the small one by 4 / 84; the last has it. The large one keeps
    # anchor 1, IoU 60 / 100, if it isn't the last: reassigning gives one anchor, the threshold any number.
    anchors = boxes_of([0, 0, 10, 8], [0, 0, 10, 6])
    large, small = [0, 0, 10, 10], [9, 5, 12, 8]
    assert match_reassign(anchors, make_ground_truth([large, small])).tolist() == [1, 0]
    assert match_reassign(anchors, make_ground_truth([small, large])).tolist() == [1, 1]


def test_match_and_reassign_can_leave_a_box_without_an_anchor(make_ground_truth):
    gt = make_ground_truth([[0, 0, 10, 10], [0, 0, 10, 3], [0, 0, 10, 2]])
    assert match_reassign(boxes_of([0, 0, 10, 9]), gt).tolist() == [2]


@pytest.mark.parametrize('padding', [[0, 0, 0, 0], [0, 0, 10, 10], [np.nan] * 4], ids=['zeros', 'box', 'nan'])
def test_match_and_reassign_ignores_padding_rows(make_ground_truth, padding):
    # A padding row overlaps the first anchor most, by 0 or by -1: it must not take it.
    gt = make_ground_truth([[0, 0, 10, 8]], rows=3)
    gt.boxes[1:] = padding
    assert match_reassign(boxes_of([0, 0, 10, 10], [20, 20, 30, 30]), gt).tolist() == [0, NEGATIVE]


def test_match_and_reassign_leaves_a_box_that_overlaps_no_anchor_without(make_ground_truth):
    gt = make_ground_truth([[0, 0, 10, 8], [60, 60, 70, 70]])
    assert match_reassign(boxes_of([0, 0, 10, 10], [20, 20, 30, 30]), gt).tolist() == [0, NEGATIVE]


def test_match_and_reassign_never_matches_a_crowd(make_ground_truth):
    # Anchor 0 is the crowd itself; 1 lies in it, but an object's best anchor is positive; 2 lies half in it.
    anchors = boxes_of([0, 0, 40, 40], [10, 10, 20, 20], [35, 0, 45, 10], [46, 0, 56, 10])
    gt = make_ground_truth([[0, 0, 40, 40], [10, 10, 20, 13]], crowd=[True, False])
    assert match_reassign(anchors, gt).tolist() == [IGNORE, 1, IGNORE, NEGATIVE]


def test_match_and_reassign_equals_loops(make_ground_truth):
    seen, taken_away = set(), 0
    for seed in range(200):
        anchors, gt = random_case(make_ground_truth, seed)
        anchors = anchors[seed % 5 :: 5]  # so few that objects compete for them
        before = oracle(anchors, gt, '0.25', '0.25', match_best_anchors=False)
        expected = list(before)
        for m, box in enumerate(gt.boxes.astype(int).tolist()):
            if gt.valid[m] and not gt.crowd[m]:
                shared = [shared_area(box, anchor) for anchor in anchors.astype(int).tolist()]
                both = [area(box) + area(anchor) for anchor in anchors.astype(int).tolist()]
                iou = [Fraction(s, b - s) for s, b in zip(shared, both)]
                if max(iou) > 0:
                    expected[iou.index(max(iou))] = m  # one after the other: the last stays
        ours = match_at(anchors, gt, positive_iou=0.25).tolist()
        assert ours == expected, f'seed {seed}'
        seen.update(ours)
        taken_away += sum(new != old >= 0 for new, old in zip(expected, before))
    assert {NEGATIVE, IGNORE, 0, 1, 2, 3} <= seen and taken_away > 5  # the cases are not trivial


@pytest.mark.parametrize('bipartite', [False, True])
def test_match_and_reassign_of_nothing_and_without_jit(make_ground_truth, bipartite):
    anchors, gt = random_case(make_ground_truth, 1)
    ours = matching.match_and_reassign(anchors, gt, positive_iou=0.5, bipartite=bipartite)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, match_reassign(anchors, gt, bipartite=bipartite))
    nothing = make_ground_truth([], rows=4)
    assert match_reassign(anchors, nothing, bipartite=bipartite).tolist() == [NEGATIVE] * len(anchors)
    for rows, count in ((0, 3), (3, 0)):
        assert matching.match_bipartite(jnp.zeros((rows, count))).tolist() == [NEGATIVE] * count


# The same, but each box takes an anchor of its own, the best pair first (MultiBox, the code of SSD's authors).
match_pairs = functools.partial(match_reassign, bipartite=True)


def test_match_bipartite_gives_each_box_an_anchor_of_its_own(make_ground_truth):
    # Both boxes overlap anchor 0 most, by .8 and .5; anchor 1 by .5 and .4: the large box keeps the first, whatever the order.
    anchors = boxes_of([0, 0, 10, 8], [0, 0, 10, 5])
    large, small = [0, 0, 10, 10], [0, 2, 10, 6]
    assert match_pairs(anchors, make_ground_truth([large, small])).tolist() == [0, 1]
    assert match_pairs(anchors, make_ground_truth([small, large])).tolist() == [1, 0]
    assert match_reassign(anchors, make_ground_truth([large, small])).tolist() == [
        1,
        0,
    ]  # the last takes it, by default


def test_match_bipartite_takes_the_first_of_equal_pairs(make_ground_truth):
    anchors, box = boxes_of([0, 0, 8, 10], [12, 0, 20, 10]), [6, 0, 14, 10]
    assert match_pairs(anchors, make_ground_truth([box])).tolist() == [0, NEGATIVE]
    assert match_pairs(anchors, make_ground_truth([box, box])).tolist() == [0, 1]


def test_match_bipartite_without_an_anchor_to_spare(make_ground_truth):
    # One anchor, three boxes: the best has it. A box that overlaps nothing takes nothing.
    gt = make_ground_truth([[0, 0, 10, 3], [0, 0, 10, 8], [60, 60, 70, 70]])
    assert match_pairs(boxes_of([0, 0, 10, 9]), gt).tolist() == [1]
    assert match_pairs(boxes_of([0, 0, 10, 9], [30, 30, 40, 40]), gt).tolist() == [1, NEGATIVE]


def test_match_bipartite_equals_loops(make_ground_truth):
    competed = 0
    for seed in range(200):
        anchors, gt = random_case(make_ground_truth, seed)
        anchors = anchors[seed % 5 :: 5]
        expected = oracle(anchors, gt, '0.25', '0.25', match_best_anchors=False)
        iou = {}
        for m in np.flatnonzero(gt.valid & ~gt.crowd).tolist():
            for a, anchor in enumerate(anchors.astype(int).tolist()):
                box = gt.boxes[m].astype(int).tolist()
                shared = shared_area(box, anchor)
                iou[a, m] = Fraction(shared, area(box) + area(anchor) - shared)
        firsts = [max((iou[key], -key[0]) for key in iou if key[1] == m)[1] for m in {m for _, m in iou}]
        competed += len(firsts) - len(set(firsts))
        while iou and max(iou.values()) > 0:
            a, m = min(iou, key=lambda key: (-iou[key], key))
            expected[a] = m
            iou = {key: value for key, value in iou.items() if key[0] != a and key[1] != m}
        assert match_at(anchors, gt, positive_iou=0.25, bipartite=True).tolist() == expected, f'seed {seed}'
    assert competed > 50  # boxes that want one anchor
