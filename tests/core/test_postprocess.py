"""Postprocessing: against a loop over all pairs of anchor and class, and rule by rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import postprocess as module

LEVELS = (20, 8, 2)
CLASSES = 3
WINDOW = np.float32([0, 0, 24, 20])
TOPK = [1, 6, 1000]  # fewer than anchors; fewer than pairs of the first level only; more than there are


def run(scores, boxes, window, *, level_sizes, pre_nms_topk, **rest):
    """Postprocesses what is best per level."""
    select = functools.partial(module.top_per_level, level_sizes=level_sizes, count=pre_nms_topk)

    def decode(candidates):
        own = candidates.row if boxes.ndim == 2 else (candidates.row, candidates.label)
        return jnp.asarray(boxes)[own]

    return module.postprocess(scores, window, select=select, decode=decode, **rest)


compiled = jax.jit(run, static_argnames=('level_sizes', 'pre_nms_topk', 'max_detections'))


def postprocess(*case, level_sizes=LEVELS, pre_nms_topk=6, score_threshold=0.05, iou_threshold=0.5, max_detections=12):
    """Passes every argument on, since one left to its default would be another program."""
    return compiled(
        *case,
        level_sizes=level_sizes,
        pre_nms_topk=pre_nms_topk,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )


def random_case(seed):
    """Scores in sixteenths (exact, many ties) and whole boxes, some of them outside of the window."""
    rng = np.random.RandomState(seed)
    count = sum(LEVELS)
    corner = rng.randint(-6, 24, (count, 2))
    boxes = np.concatenate([corner, corner + rng.randint(1, 9, (count, 2))], axis=1).astype(np.float32)
    scores = (rng.randint(0, 17, (count, CLASSES)) / 16).astype(np.float32)
    return scores, boxes


def oracle(scores, boxes, window, pre_nms_topk, score_threshold, iou_threshold, max_detections):
    """The list of (box, score, label), best first: every pair is sorted, no two-stage top-k."""
    candidates, start = [], 0
    for size in LEVELS:
        pairs = [(a, k) for a in range(start, start + size) for k in range(CLASSES)]
        pairs.sort(key=lambda pair: -scores[pair])  # stable: ties stay in order
        for a, k in pairs[:pre_nms_topk]:
            box = [float(v) for v in boxes[a]]
            box = [min(max(v, window[i % 2]), window[2 + i % 2]) for i, v in enumerate(box)]
            candidates.append((box, scores[a, k], k))
        start += size

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    def iou(first, second):
        shared = area([*np.maximum(first[:2], second[:2]), *np.minimum(first[2:], second[2:])])
        return shared / (area(first) + area(second) - shared)

    kept = []
    candidates = [c for c in candidates if c[1] > score_threshold and area(c[0]) > 0]
    for box, score, label in sorted(candidates, key=lambda c: -c[1]):
        if all(label != k or iou(box, other) <= iou_threshold for other, _, k in kept):
            kept.append((box, score, label))
    return kept[:max_detections]


def left_out(scores, pre_nms_topk, score_threshold):
    """Counts the pairs over the threshold that are not among the best of their level."""
    levels = np.split(scores, np.cumsum(LEVELS)[:-1])
    return sum((np.sort(level, axis=None)[::-1][pre_nms_topk:] > score_threshold).sum() for level in levels)


def listed(detections):
    """The valid rows as a list like the oracle's; the others must be zeros at the end."""
    count = int(detections.valid.sum())
    assert detections.valid[:count].all()
    assert not any(np.any(x[count:]) for x in (detections.boxes, detections.scores, detections.labels))
    return list(zip(*(np.asarray(x)[:count].tolist() for x in detections[:3])))


@pytest.mark.parametrize('pre_nms_topk', TOPK)
def test_postprocess_equals_loops(pre_nms_topk):
    for seed in range(8):
        case = random_case(seed)
        for score_threshold, iou_threshold in ((0.0, 0.3), (0.5, 0.5)):
            ours = postprocess(
                *case, WINDOW, pre_nms_topk=pre_nms_topk, score_threshold=score_threshold, iou_threshold=iou_threshold
            )
            expected = oracle(*case, WINDOW, pre_nms_topk, score_threshold, iou_threshold, 12)
            assert listed(ours) == expected, f'seed {seed}'
            assert ours.candidates_dropped == left_out(case[0], pre_nms_topk, score_threshold), f'seed {seed}'
    assert (ours.candidates_dropped > 0) == (pre_nms_topk < 1000)
    assert ours.boxes.shape == (12, 4) and ours.labels.dtype == np.int32 and ours.masks is None


@pytest.mark.parametrize('count', [1, 4, 7, 30, 10_000])
def test_top_per_level_equals_one_top_k_over_all_pairs(count):
    top = jax.jit(functools.partial(module.top_per_level, level_sizes=[20], count=count))
    for seed in range(12):
        rng = np.random.RandomState(seed)
        scores = (rng.randint(0, 2 + seed, (20, 5)) / 16).astype(np.float32)  # from two values, mostly ties, to many
        expected, pair = jax.lax.top_k(scores.reshape(-1), min(count, 100))
        score, label, row, last = top(scores)
        assert last.tolist() == ([expected[-1]] if count < 100 else [])
        np.testing.assert_array_equal(score, expected)
        np.testing.assert_array_equal(label, pair % 5)
        np.testing.assert_array_equal(row, pair // 5)


@pytest.mark.parametrize('count', [1, 7, 20, 100])
def test_top_per_class_equals_sorting_each_class(count):
    rng = np.random.RandomState(0)
    scores = (rng.randint(0, 9, (20, 5)) / 16).astype(np.float32)
    score, label, row, last = jax.jit(functools.partial(module.top_per_class, count=count))(scores)
    assert last.tolist() == (score.reshape(5, count)[:, -1].tolist() if count < 20 else [])
    expected = [(scores[a, k], k, a) for k in range(5) for a in sorted(range(20), key=lambda a: -scores[a, k])[:count]]  # noqa: B023
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, (score, label, row))))) == expected


def one_level(rows, **kwargs):
    """Runs postprocess on rows of (box, [score of each class]); the other anchors and classes score 0."""
    boxes, scores = np.zeros((4, 4), np.float32), np.zeros((4, CLASSES), np.float32)
    for i, (box, score) in enumerate(rows):
        boxes[i], scores[i, : len(score)] = box, score
    window = np.float32(kwargs.pop('window', [0, 0, 100, 100]))
    return listed(postprocess(scores, boxes, window, level_sizes=(4,), **kwargs))


def test_postprocess_score_threshold_is_exclusive():
    rows = [([0, 0, 8, 8], [0.25]), ([20, 0, 28, 8], [0.5]), ([40, 0, 48, 8], [0.75])]
    assert [score for _, score, _ in one_level(rows, score_threshold=0.5)] == [0.75]


def test_postprocess_clips_before_nms():
    # On the canvas IoU is 64 / (80 + 144 - 64) = .4; inside either window one box is most of the other, or the same.
    rows = [([0, 0, 10, 8], [0.75]), ([-10, 0, 8, 8], [0.5])]
    assert len(one_level(rows, window=[-50, 0, 50, 50])) == 2
    assert one_level(rows) == [([0, 0, 10, 8], 0.75, 0)]
    assert one_level(rows, window=[0, 0, 4, 6]) == [([0, 0, 4, 6], 0.75, 0)]


def test_postprocess_drops_what_lies_outside_of_the_window():
    rows = [([60, 0, 70, 10], [0.75]), ([0, 0, 10, 10], [0.5]), ([50, 0, 60, 10], [0.25])]
    assert one_level(rows, window=[0, 0, 50, 50]) == [([0, 0, 10, 10], 0.5, 0)]  # the last one only touches it


def test_postprocess_lets_an_anchor_have_several_classes():
    rows = [([0, 0, 8, 8], [0.25, 0.75, 0.5]), ([0, 0, 8, 8], [0.125, 0.5, 0.625])]
    # Of class 1 the first anchor's is better, of class 2 the second's; the two boxes are one place.
    expected = [([0, 0, 8, 8], 0.75, 1), ([0, 0, 8, 8], 0.625, 2), ([0, 0, 8, 8], 0.25, 0)]
    assert one_level(rows) == expected


def test_postprocess_keeps_candidates_of_each_level():
    # With two a level, the second level's scores don't have to stand against the first's; its rows find their own
    # boxes.
    boxes = np.float32([[10 * i, 0, 10 * i + 8, 8] for i in range(6)])
    scores = np.float32([[0.9], [0.8], [0.7], [0.1], [0.3], [0.2]])
    window = np.float32([0, 0, 100, 100])
    found = postprocess(scores, boxes, window, level_sizes=(3, 3), pre_nms_topk=2)
    assert [box[0] for box, _, _ in listed(found)] == [0, 10, 40, 50]


def test_postprocess_of_nothing():
    _, boxes = random_case(0)
    found = postprocess(np.zeros((30, CLASSES), np.float32), boxes, WINDOW, score_threshold=0.0)
    assert listed(found) == []


def test_postprocess_in_an_empty_window():
    assert listed(postprocess(*random_case(0), np.zeros(4, np.float32))) == []


def test_postprocess_drops_what_is_not_finite():
    scores, boxes = random_case(0)
    scores[:] = 0.5
    assert listed(postprocess(scores, boxes, WINDOW)) != []
    assert listed(postprocess(scores, np.full_like(boxes, np.nan), WINDOW)) == []
    assert listed(postprocess(np.full_like(scores, np.nan), boxes, WINDOW)) == []


def test_postprocess_with_more_detections_only_pads():
    case = random_case(1)
    fewer, more = (listed(postprocess(*case, WINDOW, max_detections=count)) for count in (4, 12))
    assert len(more) > 4 and fewer == more[:4]


def test_postprocess_is_the_same_with_anchors_that_score_nothing():
    scores, boxes = random_case(2)
    expected = listed(postprocess(scores, boxes, WINDOW))
    padded = [np.concatenate([x, np.zeros((5, x.shape[1]), np.float32)]) for x in (scores, boxes)]
    assert listed(postprocess(*padded, WINDOW, level_sizes=(*LEVELS[:2], 7))) == expected


def test_postprocess_without_jit():
    scores, boxes = (jnp.asarray(x[:4]) for x in random_case(3))
    arguments = {'pre_nms_topk': 6, 'score_threshold': 0.05, 'iou_threshold': 0.5, 'max_detections': 12}
    ours = run(scores, boxes, jnp.asarray(WINDOW), level_sizes=(4,), **arguments)
    assert listed(ours) == listed(postprocess(scores, boxes, WINDOW, level_sizes=(4,))) != []


def test_postprocess_takes_each_classes_own_box():
    scores, boxes = random_case(3)
    own = np.stack([boxes + shift for shift in (0, 1, 2)], axis=1)  # [A, K, 4]
    found = postprocess(scores, own, WINDOW, iou_threshold=1.0, pre_nms_topk=5)
    assert found.valid.sum() > 5 and len(set(np.asarray(found.labels))) > 1
    for box, score, label in zip(*(np.asarray(x)[found.valid] for x in found[:3])):
        moved = np.clip(boxes + label, WINDOW[[0, 1, 0, 1]], WINDOW[[2, 3, 2, 3]])
        assert ((moved == box).all(axis=1) & (scores[:, label] == score)).any()
    same = np.repeat(boxes[:, None], CLASSES, axis=1)
    jax.tree.map(np.testing.assert_array_equal, postprocess(scores, same, WINDOW), postprocess(scores, boxes, WINDOW))


def test_postprocess_drops_boxes_below_the_smallest_size():
    boxes = np.float32(
        [[2, 2, 5, 9], [2, 2, 4.9, 9], [8, 2, 12, 4], [20, 4, 30, 9]]
    )  # the last is 4 wide once it is clipped
    found = run(np.float32([[0.9], [0.8], [0.7], [0.6]]), boxes, WINDOW, level_sizes=(4,), pre_nms_topk=4, iou_threshold=0.9,
                score_threshold=0.0, max_detections=4, min_size=3.0)  # fmt: skip
    assert found.scores[found.valid].tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize('clip_before_nms', [True, False])
def test_postprocess_drops_what_clipping_makes_too_small(clip_before_nms):
    # In the window 5 x 10 pixels are left of the first, 2 x 10 of the second, 10 x 2 of the third; the fourth is whole.
    boxes = np.float32([[5, 0, 20, 10], [8, 0, 20, 10], [0, 8, 10, 20], [1, 1, 5, 5]])
    found = run(np.float32([[0.9], [0.8], [0.7], [0.6]]), boxes, np.float32([0, 0, 10, 10]), level_sizes=(4,), pre_nms_topk=4,
                iou_threshold=0.9, score_threshold=0.0, max_detections=4, min_size=3.0,
                clip_before_nms=clip_before_nms)  # fmt: skip
    np.testing.assert_array_equal(found.boxes[found.valid], [[5, 0, 10, 10], [1, 1, 5, 5]])


@pytest.mark.parametrize('clip_before_nms, kept', [(True, [[0, 0, 10, 10], [6, 1, 10, 9]]), (False, [[0, 0, 10, 10]])])
def test_postprocess_clips_before_or_after_the_nms(clip_before_nms, kept):
    # Whole, the first two overlap by 112 / 200; cut to the window, by 32 / 100. Nothing of the third is in the window.
    boxes = np.float32([[0, 0, 20, 10], [6, 1, 20, 9], [11, 0, 30, 10]])
    scores = np.float32([[0.9], [0.8], [0.7]])
    found = run(scores, boxes, np.float32([0, 0, 10, 10]), level_sizes=(3,), pre_nms_topk=3, score_threshold=0.1,
                iou_threshold=0.5, max_detections=3, clip_before_nms=clip_before_nms)  # fmt: skip
    np.testing.assert_array_equal(found.boxes[found.valid], kept)
    assert (found.scores[~found.valid] == 0).all()


def test_postprocess_counts_candidates_that_a_class_has_no_room_for():
    # Of three anchors over the threshold two find room in class 0, and the only one in class 1; class 2 has none.
    scores = np.float32([[0.9, 0.1, 0], [0.8, 0.7, 0.1], [0.6, 0.1, 0], [0.1, 0, 0]])
    boxes = jnp.asarray(np.float32([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]]))

    def dropped(count, score_threshold=0.5):
        return module.postprocess(
            scores,
            np.float32([0, 0, 100, 100]),
            select=functools.partial(module.top_per_class, count=count),
            decode=lambda candidates: boxes[candidates.row],
            score_threshold=score_threshold,
            iou_threshold=0.5,
            max_detections=1,
        ).candidates_dropped

    assert dropped(2) == 1 and dropped(2).dtype == np.int32
    assert [int(dropped(count)) for count in (1, 3)] == [2, 0]  # what is no detection for lack of rows is not counted
    assert dropped(2, score_threshold=0.6) == 0  # the threshold is exclusive


def test_postprocess_counts_what_each_image_of_a_batch_drops():
    """One image has no room for its candidates, two have just enough, the last has a score that is not a number."""
    scores = np.full((4, sum(LEVELS), CLASSES), 0.25, np.float32)
    scores[0, :20], scores[1, :2], scores[2, 20:22] = 0.75, 0.75, 0.75
    scores[3, :20], scores[3, 0, 0] = 0.75, np.nan
    boxes = random_case(0)[1]
    arguments = dict(level_sizes=LEVELS, pre_nms_topk=6, score_threshold=0.5, iou_threshold=0.5, max_detections=12)
    batched = jax.jit(jax.vmap(lambda scores: run(scores, boxes, WINDOW, **arguments).candidates_dropped))
    assert batched(scores).tolist() == [60 - 6, 0, 0, 60 - 6]


def test_postprocess_drops_candidates_behind_one_that_is_not_a_number():
    """The only candidate of the level is not a number, and says nothing about those that were left out."""
    scores = np.float32([[np.nan], [0.9], [0.8], [0.1]])
    boxes = random_case(0)[1][:4]
    found = postprocess(scores, boxes, WINDOW, level_sizes=(4,), pre_nms_topk=1, score_threshold=0.5)
    assert found.candidates_dropped == 2 and not found.valid.any()
