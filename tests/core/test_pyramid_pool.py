"""Spatial pyramid pooling against a loop over bins whose edges are those of SPP-net's paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core.roi_features import pyramid_pool

RANDOM = np.random.RandomState(0)
LEVELS = [RANDOM.normal(size=(side, side + 2, 4)).astype(np.float32) for side in (12, 6)]
STRIDES, SIZES = (8, 16), (1, 2, 3, 6)
CORNERS = RANDOM.uniform(-10, 80, (20, 2))
ROIS = np.concatenate([CORNERS, CORNERS + RANDOM.uniform(2, 60, (20, 2))], axis=1).astype(np.float32)
LEVEL = np.arange(20, dtype=np.int32) % 2


@jax.jit
def pool(levels, rois, level):
    return pyramid_pool(levels, rois, level, strides=STRIDES, output_sizes=SIZES)


def looped(feature, roi, stride):
    """All bins of a RoI: bin i of n of w cells goes from floor((i - 1) / n * w) to ceil(i / n * w), i counted from 1."""
    left, top, right, bottom = (math.floor(abs(x) / stride + 0.5) * (1 if x > 0 else -1) for x in roi.tolist())
    rows = []
    for n in SIZES:
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                ends = []
                for first, last, number, side in ((top, bottom, i, len(feature)), (left, right, j, feature.shape[1])):
                    cells = last - first + 1
                    begin, end = math.floor((number - 1) * cells / n), math.ceil(number * cells / n)
                    ends.append((max(first + begin, 0), max(min(first + end, side), 0)))
                (y1, y2), (x1, x2) = ends
                inside = feature[y1:y2, x1:x2].reshape(-1, feature.shape[-1])
                rows.append(inside.max(axis=0) if len(inside) else np.zeros(feature.shape[-1]))
    return np.stack(rows)


def test_pyramid_pool_equals_loops():
    expected = np.stack([looped(LEVELS[k], roi, STRIDES[k]) for roi, k in zip(ROIS, LEVEL)])
    found = pool(LEVELS, ROIS, LEVEL)
    assert found.shape == (20, 1, 50, 4) and not expected.any(axis=-1).all()
    np.testing.assert_array_equal(found[:, 0], expected.astype(np.float32))


def test_pyramid_pool_by_hand_and_without_rois():
    # A RoI of 6 x 6 cells: one bin of all; then quarters; then ninths of 2 x 2; then the cells.
    feature = jnp.arange(36.0).reshape(6, 6, 1)
    roi = np.float32([[0, 0, 40, 40]])
    found = jax.jit(lambda x: pyramid_pool([x], roi, np.int32([0]), strides=[8], output_sizes=SIZES))(feature)[
        0, 0, :, 0
    ]
    assert found[:5].tolist() == [35, 14, 17, 32, 35] and found[5:14].tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    assert found[14:].tolist() == list(range(36))
    assert pool(LEVELS, np.zeros((0, 4), np.float32), np.zeros(0, np.int32)).shape == (0, 1, 50, 4)
    with pytest.raises(ValueError, match='output_size 0: a RoI needs bins'):
        pyramid_pool([feature], roi, np.int32([0]), strides=[8], output_sizes=(1, 0))
