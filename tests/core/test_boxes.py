"""Box geometry: hand-computed values, inverses, and loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import boxes

PAIRWISE = {
    'intersection': lambda boxes1, boxes2: boxes.intersection(boxes1[:, None], boxes2[None, :]),
    'iou': boxes.pairwise_iou,
    'coverage': boxes.pairwise_coverage,
}
compiled = {name: jax.jit(function) for name, function in PAIRWISE.items()}
clip, area = jax.jit(boxes.clip), jax.jit(boxes.area)
xyxy_to_cxcywh, cxcywh_to_xyxy = jax.jit(boxes.xyxy_to_cxcywh), jax.jit(boxes.cxcywh_to_xyxy)


def random_boxes(count, seed, side=12):
    """Whole coordinates, so that ties, touching, identical and empty boxes all occur."""
    corners = np.random.RandomState(seed).randint(0, side, (count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def oracle(name, boxes1, boxes2):
    """One pair at a time, in float64."""
    result = np.zeros((len(boxes1), len(boxes2)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(boxes1.tolist()):
        for j, (bx1, by1, bx2, by2) in enumerate(boxes2.tolist()):
            width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
            shared = width * height if width > 0 and height > 0 else 0.0
            first, second = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
            below = {'intersection': 1, 'iou': first + second - shared, 'coverage': second}[name]
            result[i, j] = shared / below if below > 0 else 0
    return result


def test_xyxy_to_cxcywh_by_hand():
    # Corners (2, 3) and (6, 11): centre ((2 + 6) / 2, (3 + 11) / 2), size (6 - 2, 11 - 3).
    np.testing.assert_array_equal(xyxy_to_cxcywh(np.float32([2.0, 3, 6, 11])), [4, 7, 4, 8])


def test_cxcywh_to_xyxy_by_hand():
    np.testing.assert_array_equal(cxcywh_to_xyxy(np.float32([4.0, 7, 4, 8])), [2, 3, 6, 11])


def test_cxcywh_to_xyxy_inverts_xyxy_to_cxcywh():
    original = random_boxes(24, 0).reshape(2, 12, 4)  # any leading axes
    np.testing.assert_array_equal(cxcywh_to_xyxy(xyxy_to_cxcywh(original)), original)


def test_area_by_hand():
    # (6 - 2) * (11 - 3) = 32; a line has none; nor have corners in the wrong order, in one axis or in both.
    given = np.float32([[2.0, 3, 6, 11], [2, 3, 2, 11], [6, 3, 2, 11], [6, 11, 2, 3]])
    np.testing.assert_array_equal(area(given), [32, 0, 0, 0])


def test_intersection_by_hand():
    # [1, 2] x [1, 2] is shared by the first two; boxes that only touch share nothing.
    one = np.float32([[0.0, 0, 2, 2]])
    np.testing.assert_array_equal(compiled['intersection'](one, np.float32([[1, 1, 3, 3], [2, 0, 4, 2]])), [[1, 0]])


def test_pairwise_iou_by_hand():
    one = np.float32([[0.0, 0, 2, 2]])
    # Shifted by (1, 1): 1 / (4 + 4 - 1). Itself: 1. Four times as large around it: 4 / 16. Touching: 0. Far: 0.
    others = np.float32([[1.0, 1, 3, 3], [0, 0, 2, 2], [-1, -1, 3, 3], [2, 0, 4, 2], [50, 50, 60, 60]])
    np.testing.assert_allclose(compiled['iou'](one, others), [[1 / 7, 1, 1 / 4, 0, 0]], rtol=1e-6)


def test_pairwise_iou_is_symmetric():
    first, second = random_boxes(7, 1), random_boxes(9, 2)
    np.testing.assert_array_equal(compiled['iou'](first, second), compiled['iou'](second, first).T)


def test_pairwise_iou_of_empty_boxes_is_zero_with_finite_gradient():
    empty = jnp.zeros((2, 4))
    np.testing.assert_array_equal(compiled['iou'](empty, empty), np.zeros((2, 2)))
    gradient = jax.jit(jax.grad(lambda x: boxes.pairwise_iou(x, empty).sum()))(empty)
    assert np.isfinite(gradient).all()


def test_pairwise_coverage_by_hand():
    region = np.float32([[0.0, 0, 10, 10]])
    # Half in: 50 / 100, whatever the region's size. All in: 1. The other way round (a box around the region): 100 /
    # 400.
    others = np.float32([[5.0, 0, 15, 10], [2, 2, 3, 3], [-5, -5, 15, 15], [4, 4, 4, 9]])  # the last is empty
    np.testing.assert_allclose(compiled['coverage'](region, others), [[0.5, 1, 0.25, 0]], rtol=1e-6)


@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_equals_loops(name):
    first, second = random_boxes(20, 3), random_boxes(30, 4)
    ours = compiled[name](first, second)
    np.testing.assert_allclose(ours, oracle(name, first, second), rtol=1e-6)
    np.testing.assert_allclose(PAIRWISE[name](first, second), ours, rtol=1e-6)  # without jit


@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_ignores_other_rows(name):
    first, second = random_boxes(20, 3), random_boxes(30, 4)
    padded = np.concatenate([first, np.zeros((9, 4), np.float32)])
    np.testing.assert_array_equal(compiled[name](padded, second)[:20], compiled[name](first, second))


@pytest.mark.parametrize('name', PAIRWISE)
def test_pairwise_without_boxes(name):
    assert compiled[name](np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32)).shape == (0, 3)


@pytest.mark.parametrize('name', ['iou', 'coverage'])
def test_pairwise_refuses_a_batch(name):
    with pytest.raises(AssertionError):
        PAIRWISE[name](jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)))


def test_clip_by_hand():
    window = np.float32([10.0, 20, 30, 60])
    given = np.float32([[0.0, 0, 100, 100], [12, 25, 20, 40], [5, 30, 15, 70]])
    np.testing.assert_array_equal(clip(given, window), [[10, 20, 30, 60], [12, 25, 20, 40], [10, 30, 15, 60]])


def test_clip_leaves_no_area_outside_of_the_window():
    window = np.float32([10.0, 20, 30, 60])
    outside = np.float32(
        [[0.0, 30, 9, 40], [31, 30, 40, 40], [15, 0, 20, 20], [15, 60, 20, 90]]
    )  # left, right, above, below
    np.testing.assert_array_equal(area(clip(outside, window)), np.zeros(4))


def test_clip_equals_loops():
    window = np.array([2, 3, 9, 7], np.float32)
    given = random_boxes(40, 5)
    expected = [[min(max(v, window[i % 2]), window[2 + i % 2]) for i, v in enumerate(row)] for row in given.tolist()]
    clipped = clip(given, window)
    np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(boxes.clip(clipped, window), clipped)  # twice is once, and without jit the same


@pytest.mark.parametrize(
    'make', [lambda x: np.array(x, np.float64), lambda x: jnp.array(x, jnp.float32)], ids=['numpy', 'jax']
)
def test_xywh_to_xyxy_by_hand_keeps_the_kind_of_array(make):
    xywh = make([[[10, 20, 30, 5]], [[1 / 3, 0, 0, 7]]])  # any leading axes; the second box has no width
    xyxy = boxes.xywh_to_xyxy(xywh)
    assert type(xyxy) is type(xywh) and xyxy.dtype == xywh.dtype
    np.testing.assert_array_equal(xyxy, make([[[10, 20, 40, 25]], [[1 / 3, 0, 1 / 3, 7]]]))
    np.testing.assert_array_equal(boxes.xyxy_to_xywh(xyxy), xywh)
