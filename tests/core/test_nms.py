"""NMS: exactly greedy, against the definition as a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import nms as nms_module

nms = jax.jit(nms_module.nms, static_argnames='max_detections')
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def run(boxes, scores, labels=None, valid=None, *, iou_threshold=0.5, max_detections=8):
    """The rows that are kept, in order, as a list. Few rows are padded to 8, so that one program serves many tests."""
    boxes, scores = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    labels = np.zeros(len(scores), np.int32) if labels is None else np.array(labels, np.int32)
    valid = np.ones(len(scores), bool) if valid is None else np.array(valid)
    if len(scores) < 8:
        boxes, scores, labels, valid = (
            np.concatenate([x, np.zeros((8 - len(x), *x.shape[1:]), x.dtype)]) for x in (boxes, scores, labels, valid)
        )
    indices, kept = nms(boxes, scores, labels, valid, iou_threshold=iou_threshold, max_detections=max_detections)
    indices, kept = np.asarray(indices), np.asarray(kept)
    assert indices.shape == kept.shape == (max_detections,) and indices.dtype == np.int32
    count = int(kept.sum())
    assert kept[:count].all() and not indices[count:].any()  # padding comes last, and its index is 0
    return indices[:count].tolist()


def oracle(boxes, scores, labels, valid, iou_threshold, max_detections):
    """Greedy NMS by its definition: a box is dropped if one that was kept, of its class, overlaps it too much."""

    def iou(first, second):
        width, height = (
            min(first[2], second[2]) - max(first[0], second[0]),
            min(first[3], second[3]) - max(first[1], second[1]),
        )
        shared = width * height if width > 0 and height > 0 else 0.0
        union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
        return shared / union if union > 0 else 0.0

    boxes = np.asarray(boxes, np.float64).tolist()
    usable = [i for i in range(len(boxes)) if valid[i] and not np.isnan(scores[i])]
    kept = []
    for i in sorted(usable, key=lambda i: (-scores[i], i)):
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= iou_threshold for j in kept):
            kept.append(i)
    return kept[:max_detections]


def random_case(seed, count=48):
    """Clusters of boxes with whole coordinates (exact, tying IoUs), few score values, and all that is odd."""
    rng = np.random.RandomState(seed)
    center = rng.randint(0, 30, (6, 2))[rng.randint(0, 6, count)] + rng.randint(-2, 3, (count, 2))
    boxes = np.concatenate([center, center + rng.randint(0, 9, (count, 2))], axis=1).astype(
        np.float32
    )  # some are empty
    boxes[5] = boxes[6]
    scores = (rng.randint(1, 12, count) / np.float32(12)).astype(np.float32)
    scores[rng.uniform(size=count) < 0.1] = np.nan
    return boxes, scores, rng.randint(0, 2, count).astype(np.int32), rng.uniform(size=count) < 0.9


# Three boxes of 10 x 10, each shifted by 4 from the one before: A and B share 60 of 140, B and C too, A and C 20 of
# 180.
CHAIN = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]


def test_nms_chain_keeps_what_a_dropped_box_overlaps():
    # IoU AB = BC = .43, AC = .11. At .3 A drops B, and B, dropped, must not drop C.
    assert run(CHAIN, [0.9, 0.8, 0.7], iou_threshold=0.3) == [0, 2]


def test_nms_by_hand():
    assert run(CHAIN, [0.9, 0.8, 0.7], iou_threshold=0.5) == [0, 1, 2]
    assert run(CHAIN, [0.9, 0.8, 0.7], iou_threshold=0.1) == [0]
    assert run(CHAIN, [0.7, 0.9, 0.8], iou_threshold=0.3) == [1]  # the middle one drops both
    assert run(CHAIN, [0.7, 0.8, 0.9], iou_threshold=0.3) == [2, 0]  # best score first


def test_nms_keeps_a_box_whose_iou_equals_the_threshold():
    # 10 x 10 and its lower half: IoU 50 / 100, not more than .5. A third of a pixel more is.
    assert run([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8]) == [0, 1]
    assert run([[0, 0, 10, 10], [0, 0, 10, 5.33]], [0.9, 0.8]) == [0]


def test_nms_gives_ties_to_the_lower_row():
    assert run(CHAIN, [0.5, 0.5, 0.5], iou_threshold=0.3) == [0, 2]


def test_nms_keeps_one_of_identical_boxes():
    assert run([[2, 2, 8, 8]] * 5, [0.1, 0.3, 0.9, 0.9, 0.2], iou_threshold=0.9) == [2]


def test_nms_lets_classes_alone():
    assert run([[2, 2, 8, 8]] * 4, [0.6, 0.7, 0.8, 0.9], [5, 3, 5, 3]) == [3, 2]


def test_nms_leaves_out_nan_minus_infinity_and_invalid():
    scores = [np.nan, 0.3, -np.inf, 0.9, 0.2]
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(5)]
    assert run(boxes, scores, valid=[True, True, True, False, True]) == [1, 4]


def test_nms_takes_any_finite_score():
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(4)]
    assert run(boxes, [-3, 1e30, 0, -1e30]) == [1, 2, 0, 3]  # logits will do


def test_nms_keeps_an_empty_box_once():
    # Its IoU with anything, itself included, is 0: it must not be picked again and again.
    assert run([[3, 3, 3, 9], [0, 0, 10, 10], [3, 3, 3, 9]], [0.9, 0.8, 0.7]) == [0, 1, 2]


def test_nms_does_not_let_a_nan_box_drop_others():
    assert run([[np.nan] * 4, [0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8, 0.7]) == [0, 1]


@pytest.mark.parametrize('valid', [True, False])
def test_nms_of_nothing(valid):
    scores = [np.nan] * 3 if valid else [0.9, 0.8, 0.7]
    assert run(CHAIN, scores, valid=[valid] * 3) == []


@pytest.mark.parametrize('iou_threshold', THRESHOLDS)
def test_nms_equals_loops(iou_threshold):
    for seed in range(12):
        case = random_case(seed)
        expected = oracle(*case, iou_threshold, 48)
        assert run(*case, iou_threshold=iou_threshold, max_detections=48) == expected, f'seed {seed}'


def test_nms_with_fewer_detections_is_the_beginning():
    case = random_case(0)
    every = run(*case, iou_threshold=0.3, max_detections=48)
    assert len(every) > 5
    assert run(*case, iou_threshold=0.3, max_detections=5) == every[:5]


def test_nms_is_the_same_with_more_padding():
    case = random_case(0)
    padded = [np.concatenate([x, np.zeros((16, *x.shape[1:]), x.dtype)]) for x in case]  # zeros: not valid
    padded[1][48:] = 1  # though with the best score
    expected = run(*case, iou_threshold=0.3, max_detections=48)
    assert run(*padded, iou_threshold=0.3, max_detections=64) == expected


def test_nms_under_vmap_equals_one_image_at_a_time():
    # Images end after unlike numbers of rounds; the third has nothing.
    cases = [random_case(seed) for seed in range(4)]
    cases[2][3][:] = False
    batch = [np.stack(x) for x in zip(*cases)]
    function = functools.partial(nms_module.nms, iou_threshold=0.3, max_detections=48)
    indices, kept = jax.jit(jax.vmap(function))(*batch)
    for i, case in enumerate(cases):
        expected = run(*case, iou_threshold=0.3, max_detections=48)
        assert indices[i][kept[i]].tolist() == expected
    assert not kept[2].any()


def test_nms_without_jit():
    case = [jnp.asarray(x) for x in random_case(0)]
    arguments = {'iou_threshold': 0.3, 'max_detections': 48}
    for ours, jitted in zip(nms_module.nms(*case, **arguments), nms(*case, **arguments)):
        np.testing.assert_array_equal(ours, jitted)


def test_nms_refuses_unequal_counts():
    with pytest.raises(AssertionError):
        nms(*(x[: 48 - i] for i, x in enumerate(random_case(0))), iou_threshold=0.3, max_detections=4)
