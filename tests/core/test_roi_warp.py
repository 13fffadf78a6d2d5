"""RoIWarp with gradients to boxes, and features weighed by masks: loops, finite differences, values by hand."""

import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from detzoo.core.masks import mask_features
from detzoo.core.roi_warp import warp

STRIDE = 4
# Inside, across a corner, beyond the map, a point, and beside it; pixels of a map of 5 x 7 cells.
ROIS = np.float32([[3, 2, 21, 14.5], [-6, -3, 5, 4], [20, 9, 60, 40], [8, 8, 8, 8], [100, 2, 120, 9]])


def interpolate(features, y, x):
    """The value of [h, w, C] at cells y, x, whole numbers being centres; the border's value goes on."""
    y, x = np.clip(y, 0, len(features) - 1), np.clip(x, 0, features.shape[1] - 1)
    value = 0
    for row, column in itertools.product(range(len(features)), range(features.shape[1])):
        value += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) * features[row, column].astype(np.float64)
    return value


def test_warp_by_loops():
    features = np.random.RandomState(0).normal(size=(5, 7, 3)).astype(np.float32)
    found = jax.jit(lambda *x: warp(*x, stride=STRIDE, output_size=4))(features, ROIS)
    assert found.shape == (5, 4, 4, 3) and found.dtype == np.float32
    for r, (x1, y1, x2, y2) in enumerate(ROIS):
        for i, j in itertools.product(range(4), range(4)):
            y, x = y1 + (y2 - y1) * (i + 0.5) / 4, x1 + (x2 - x1) * (j + 0.5) / 4
            expected = interpolate(features, y / STRIDE - 0.5, x / STRIDE - 0.5)
            np.testing.assert_allclose(found[r, i, j], expected, atol=1e-5)
    np.testing.assert_allclose(warp(features, ROIS, stride=STRIDE, output_size=4), found, atol=1e-6)  # without jit


def test_warp_reads_cells_that_are_aligned_as_they_are():
    features = np.random.RandomState(1).normal(size=(5, 7, 2)).astype(np.float32)
    found = warp(features, np.float32([[4, 8, 16, 20]]), stride=4, output_size=3)
    np.testing.assert_allclose(found[0], features[2:5, 1:4], atol=1e-6)
    assert warp(features, np.zeros((0, 4), np.float32), stride=4, output_size=3).shape == (0, 3, 3, 2)


@jax.enable_x64(True)
def test_warp_has_the_gradient_of_features_and_of_boxes():
    rng = np.random.RandomState(2)
    features, weights = rng.normal(size=(5, 7, 3)), rng.normal(size=(len(ROIS), 4, 4, 3))
    rois = ROIS.astype(np.float64) + 0.013  # no point lies on a cell's centre, where the slope changes

    def score(features, rois):
        return (weights * warp(features, rois, stride=STRIDE, output_size=4)).sum()

    score = jax.jit(score)
    jax.test_util.check_grads(score, (features, rois), order=1, modes=['rev'], eps=1e-6, atol=1e-4, rtol=1e-4)
    of_rois = np.asarray(jax.grad(score, argnums=1)(features, rois))
    assert (np.abs(of_rois[:3]).max(axis=1) > 0.01).all()
    assert not of_rois[4, ::2].any()  # beyond the map nothing changes along x


def test_mask_features_by_loops():
    rng = np.random.RandomState(3)
    features, masks = rng.normal(size=(2, 4, 4, 3)).astype(np.float32), rng.uniform(size=(2, 6, 6)).astype(np.float32)
    found = jax.jit(mask_features)(features, masks)
    for r, i, j in itertools.product(range(2), range(4), range(4)):
        mask = interpolate(masks[r][..., None], (i + 0.5) * 6 / 4 - 0.5, (j + 0.5) * 6 / 4 - 0.5)
        np.testing.assert_allclose(found[r, i, j], mask * features[r, i, j], rtol=1e-5, atol=1e-6)


def test_mask_features_keeps_what_a_mask_of_its_size_shows():
    features = jnp.ones((1, 4, 4, 2))
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1:3, 2] = True
    np.testing.assert_array_equal(mask_features(features, mask)[0, ..., 1], mask[0])
    assert mask_features(features[:0], mask[:0]).shape == (0, 4, 4, 2)
