"""Labels of pixels painted from objects, and the weights of borders, against loops and scipy's distances."""

import functools
import math

import jax
import numpy as np
import pytest
from scipy import ndimage

from detzoo.core import semantic
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.types import GroundTruth

CANVAS, SIDE, ROWS = (40, 56), 6, 7
paint = jax.jit(semantic.paint, static_argnames='canvas')
separate = jax.jit(semantic.separate)
border_weights = jax.jit(semantic.border_weights, static_argnames=('height', 'sigma'))


def draw_objects(seed, rows=ROWS):
    """Objects with ragged masks that overlap, a crowd, a row of padding, and a window that leaves out a border."""
    rng = np.random.RandomState(seed)
    corner, size = rng.uniform(-4, 40, (ROWS, 2)), rng.uniform(4, 25, (ROWS, 2))
    gt = GroundTruth(
        boxes=np.concatenate([corner, corner + size], axis=1).astype(np.float32),
        labels=rng.randint(0, 3, ROWS).astype(np.int32),
        valid=np.arange(ROWS) != 4,
        crowd=np.arange(ROWS) == 2,
        dropped=np.int32(0),
        cropped=np.int32(0),
        masks=rng.uniform(size=(ROWS, SIDE, SIDE)) < 0.7,
    )
    gt.boxes[4], gt.labels[4], gt.crowd[4] = [np.nan, 0, 1e9, 3], 1000, True
    more = rows - ROWS
    padded = {
        name: np.pad(x, ((0, more),) + ((0, 0),) * (x.ndim - 1)) for name, x in gt._asdict().items() if np.ndim(x)
    }
    return gt._replace(**padded), np.float32([0, 0, 50, 38])


def mask_value(mask, box, y, x):
    """A mask's value at a point of its box, interpolated between the centres of its cells."""
    at = [(y - box[1]) / (box[3] - box[1]) * SIDE - 0.5, (x - box[0]) / (box[2] - box[0]) * SIDE - 0.5]
    at = [min(max(p, 0), SIDE - 1) for p in at]
    low = [min(int(p), SIDE - 2) for p in at]
    (a, b), (i, j) = [p - q for p, q in zip(at, low)], low
    upper, lower = ((1 - b) * mask[k, j] + b * mask[k, j + 1] for k in (i, i + 1))
    return (1 - a) * upper + a * lower


def paint_by_loops(gt, window):
    painted = np.full(CANVAS, NEGATIVE)
    objects = [row for row in range(len(gt.valid)) if gt.valid[row] and not gt.crowd[row]]
    area = {row: gt.masks[row].mean() * np.prod(gt.boxes[row, 2:] - gt.boxes[row, :2]) for row in objects}
    for i in range(CANVAS[0]):
        for j in range(CANVAS[1]):
            y, x = i + 0.5, j + 0.5
            for row in np.flatnonzero(gt.valid & gt.crowd):
                x1, y1, x2, y2 = gt.boxes[row]
                if x1 < x < x2 and y1 < y < y2:
                    painted[i, j] = IGNORE
            for row in sorted(objects, key=lambda row: -area[row]):
                x1, y1, x2, y2 = box = gt.boxes[row].astype(float)
                if x1 <= x <= x2 and y1 <= y <= y2 and mask_value(gt.masks[row], box, y, x) >= 0.5:
                    painted[i, j] = row
            if not (window[0] < x < window[2] and window[1] < y < window[3]):
                painted[i, j] = IGNORE
    return painted


@pytest.mark.parametrize('seed', [0, 1])
def test_paint_equals_loops(seed):
    gt, window = draw_objects(seed)
    painted = np.asarray(paint(gt, window, canvas=CANVAS))
    assert painted.dtype == np.int32 and len(np.unique(painted)) == ROWS  # 5 objects, background, ignored
    np.testing.assert_array_equal(painted, paint_by_loops(gt, window))
    np.testing.assert_array_equal(painted, semantic.paint(gt, window, CANVAS))  # without jit


def test_paint_by_hand():
    # A large object of row 1, a small one of row 0 in it, a crowd of row 2 that reaches under both.
    gt = GroundTruth(
        boxes=np.float32([[2, 2, 4, 4], [1, 1, 6, 6], [5, 0, 8, 8]]),
        labels=np.int32([1, 0, 0]),
        valid=np.ones(3, bool),
        crowd=np.array([False, False, True]),
        dropped=np.int32(0),
        cropped=np.int32(0),
        masks=np.ones((3, 2, 2), bool),
    )
    painted = np.asarray(semantic.paint(gt, np.float32([0, 0, 8, 7]), (8, 8)))
    expected = np.full((8, 8), NEGATIVE)
    expected[:, 5:] = IGNORE
    expected[1:6, 1:6] = 1
    expected[2:4, 2:4] = 0
    expected[7] = IGNORE
    np.testing.assert_array_equal(painted, expected)
    labels = np.asarray(semantic.pixel_labels(painted, gt, background=2))
    assert labels[0, 0] == 2 and labels[1, 1] == 0 and labels[2, 2] == 1 and labels[0, 6] == labels[7, 0] == IGNORE


def test_paint_does_not_depend_on_padding():
    (gt, window), (more, _) = draw_objects(3), draw_objects(3, rows=11)
    np.testing.assert_array_equal(paint(gt, window, canvas=CANVAS), paint(more, window, canvas=CANVAS))


@pytest.mark.parametrize('rows', [0, 3])
def test_paint_without_objects_gives_background(rows):
    gt, window = draw_objects(0)
    gt = jax.tree.map(lambda x: x[:rows] if np.ndim(x) else x, gt)._replace(valid=np.zeros(rows, bool))
    painted = np.asarray(semantic.paint(gt, window, CANVAS))
    assert (painted[:38, :50] == NEGATIVE).all() and (painted == IGNORE).sum() == 40 * 56 - 38 * 50
    separated = semantic.separate(painted, semantic.painting_order(gt))
    assert set(np.unique(semantic.pixel_labels(separated, gt, background=9))) == {IGNORE, 9}
    assert not np.asarray(border_weights(painted, height=10.0, sigma=2.0)).any()


def test_paint_needs_masks():
    gt, window = draw_objects(0)
    with pytest.raises(ValueError, match='has no masks'):
        semantic.paint(gt._replace(masks=None), window, CANVAS)


def test_separate_leaves_components_that_are_single_objects():
    gt, window = draw_objects(1)
    rows, order = np.asarray(paint(gt, window, canvas=CANVAS)), np.asarray(semantic.painting_order(gt))
    found = np.asarray(separate(rows, order))
    place = {row: number for number, row in enumerate(order)}
    removed = 0
    for i in range(CANVAS[0]):
        for j in range(CANVAS[1]):
            near = rows[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].ravel()
            above = rows[i, j] >= 0 and any(row >= 0 and place[row] > place[rows[i, j]] for row in near)
            assert found[i, j] == (NEGATIVE if above else rows[i, j])
            removed += above
    assert removed > 10
    labels, count = ndimage.label(found >= 0, np.ones((3, 3)))
    assert all(len(np.unique(found[labels == number])) == 1 for number in range(1, count + 1))


def nearest_by_scipy(rows):
    """Distances [2, H, W] to the nearest and second nearest object."""
    distances = [ndimage.distance_transform_edt(rows != row) for row in np.unique(rows[rows >= 0])]
    return np.sort(np.stack([*distances, *[np.full(rows.shape, np.inf)] * 2]), axis=0)[:2]


@pytest.mark.parametrize('reach', [90, 12, 3])
def test_nearest_two_equals_scipy_within_reach(reach):
    rows = np.asarray(paint(*draw_objects(1), canvas=CANVAS))
    expected = nearest_by_scipy(rows)
    squared, which = map(np.asarray, jax.jit(semantic.nearest_two, static_argnums=1)(rows, reach))
    seen = expected <= reach
    assert seen[1].mean() > 0.1
    np.testing.assert_allclose(np.sqrt(squared)[seen], expected[seen], rtol=1e-6)
    for row in range(len(np.unique(rows[rows >= 0]))):  # a named object is as far away as it is said to be
        if (rows == row).any():
            here = which == row
            away = np.broadcast_to(ndimage.distance_transform_edt(rows != row), which.shape)
            np.testing.assert_allclose(np.sqrt(squared)[here & seen], away[here & seen], rtol=1e-6)
    assert (which[0] != which[1])[seen[1]].all()


def test_nearest_two_knows_its_limits():
    # The farthest pixels of a reach, and an object in a corner whose row has all bits but one.
    rows = np.full((91, 91), NEGATIVE)
    rows[0, 0], rows[0, 1] = 65534, 0
    squared, which = map(np.asarray, semantic.nearest_two(rows, 90))
    assert squared[:, 90, 90].tolist() == [90**2 + 89**2, 2 * 90**2] and which[:, 90, 90].tolist() == [0, 65534]
    with pytest.raises(ValueError, match='reach is 91: it must be at most 90'):
        semantic.nearest_two(rows, 91)


def test_border_weights_equals_the_formula():
    rows = np.asarray(paint(*draw_objects(1), canvas=CANVAS))
    weights = np.asarray(border_weights(rows, height=10.0, sigma=2.0))
    first, second = nearest_by_scipy(rows)
    expected = np.where(rows == NEGATIVE, 10 * np.exp(-((first + second) ** 2) / (2 * 2.0**2)), 0)
    np.testing.assert_allclose(weights, expected, atol=10 * math.exp(-8) + 1e-5)
    near = second <= 8
    np.testing.assert_allclose(weights[near], expected[near], rtol=1e-4, atol=1e-7)
    assert weights.max() > 1 and not weights[rows != NEGATIVE].any()


def test_border_weights_by_hand():
    # Two columns of objects with three pixels of background between them: distances 1 + 3, 2 + 2, 3 + 1.
    rows = np.full((5, 7), NEGATIVE)
    rows[:, :2], rows[:, 5:] = 0, 1
    weights = np.asarray(border_weights(rows, height=3.0, sigma=5.0))
    np.testing.assert_allclose(weights[2], [0, 0, *[3 * math.exp(-16 / 50)] * 3, 0, 0], rtol=1e-6)
    assert not np.asarray(border_weights(np.where(rows == 1, NEGATIVE, rows), height=3.0, sigma=5.0)).any()


def test_pixel_cross_entropy_equals_the_logarithm_of_the_softmax():
    rng = np.random.RandomState(0)
    logits, labels = rng.normal(size=(5, 6, 4)).astype(np.float32) * 5, rng.randint(0, 4, (5, 6))
    labels[0] = IGNORE
    loss = np.asarray(semantic.pixel_cross_entropy(logits, labels))
    share = np.exp(logits.astype(float))
    share /= share.sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(share, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, np.where(labels == IGNORE, 0, -np.log(picked)), rtol=1e-5, atol=1e-6)


def test_pixel_cross_entropy_of_extreme_logits_has_a_finite_gradient():
    logits, labels = np.float32([[1e4, -1e4, 0], [0, 3, 1]]), np.int32([1, IGNORE])
    value, slope = jax.value_and_grad(lambda x: semantic.pixel_cross_entropy(x, labels).sum())(logits)
    assert value == 2e4 and np.isfinite(slope).all() and not np.asarray(slope)[1].any()


def test_functions_map_over_images():
    images = [draw_objects(seed) for seed in (1, 3)]
    gt, windows = jax.tree.map(lambda *x: np.stack(x), *images)
    painted = jax.vmap(functools.partial(semantic.paint, canvas=CANVAS))(gt, windows)
    for one, (alone, window) in zip(np.asarray(painted), images):
        np.testing.assert_array_equal(one, paint(alone, window, canvas=CANVAS))
