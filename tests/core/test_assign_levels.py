"""From which level of a pyramid the features of a RoI are read."""

import jax
import numpy as np

from detzoo.core.roi_features import assign_levels


def test_assign_levels_by_hand():
    # 224 pixels are at level 4, twice that at 5, half at 3; just below one level lower. Levels end at 2 and 5.
    sides = [224, 223.9, 448, 447.9, 112, 111.9, 56, 55.9, 896, 1, 5000, 0]
    expected = [4, 3, 5, 4, 3, 2, 2, 2, 5, 2, 5, 2]
    rois = np.float32([(10, 20, 10 + side, 20 + side) for side in sides])
    assert assign_levels(rois, min_level=2, max_level=5).tolist() == [k - 2 for k in expected]
    assert jax.jit(lambda x: assign_levels(x, min_level=2, max_level=5))(rois).tolist() == [k - 2 for k in expected]
    # It is the area that counts: 448 x 112 is as large as 224 x 224.
    assert assign_levels(np.float32([(0, 0, 448, 112)]), min_level=2, max_level=5).tolist() == [2]


def test_assign_levels_forgives_what_float32_rounds_off():
    # Squares of 224 pixels anywhere; of some, what is left of a side is a little less.
    shift = np.random.RandomState(0).uniform(0, 300, 30).astype(np.float32)
    rois = np.stack([shift, shift, shift + np.float32(224), shift + np.float32(224)], axis=1)
    assert (rois[:, 2] - rois[:, 0] < 224).any()
    assert assign_levels(rois, min_level=2, max_level=5).tolist() == [2] * 30


def test_assign_levels_with_other_sizes():
    rois = np.float32([(0, 0, 64, 64), (0, 0, 63, 63), (0, 0, 16, 16), (np.nan, 0, 9, 9), (9, 9, 0, 0)])
    level = assign_levels(rois, min_level=1, max_level=9, canonical_size=64, canonical_level=3)
    assert level.tolist() == [2, 1, 0, 0, 0]
    assert assign_levels(rois, min_level=4, max_level=4).tolist() == [0] * 5
    assert assign_levels(rois[:0], min_level=2, max_level=5).shape == (0,)
