"""Anchors: torchvision's numbers, areas and ratios, and loops."""

import numpy as np
import pytest

from detzoo.core import anchors


def test_base_anchors_by_hand():
    # Area 32^2 and height = 4 * width: width 32 / 2, height 32 * 2, halved on either side of the origin.
    np.testing.assert_array_equal(anchors.base_anchors([32], [4.0]), [[-8, -32, 8, 32]])


def test_base_anchors_have_the_sizes_and_aspect_ratios_asked_for():
    sizes, aspect_ratios = (8, 20, 50.5), (0.5, 1.0, 3.0)
    base = anchors.base_anchors(sizes, aspect_ratios)
    assert base.dtype == np.float32
    width, height = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
    np.testing.assert_array_equal(base[:, :2], -base[:, 2:])  # centred
    np.testing.assert_allclose(np.sqrt(width * height), [*sizes] * 3, rtol=1e-6)  # all sizes of the first ratio first
    np.testing.assert_allclose(height / width, np.repeat(aspect_ratios, 3), rtol=1e-6)


def test_base_anchors_rounded_equal_torchvision():
    # torchvision 0.29.1: AnchorGenerator(((32, 40, 50),), ((0.5, 1.0, 2.0),)).cell_anchors[0], the first level of its
    # RetinaNet, whose sizes are int(32 * 2^(k / 3)). -22.63 goes to -23, -17.5 (half of 50 / sqrt(2) = 17.68) to -18.
    expected = [
        [-23, -11, 23, 11],
        [-28, -14, 28, 14],
        [-35, -18, 35, 18],
        [-16, -16, 16, 16],
        [-20, -20, 20, 20],
        [-25, -25, 25, 25],
        [-11, -23, 11, 23],
        [-14, -28, 14, 28],
        [-18, -35, 18, 35],
    ]
    sizes = [int(32 * 2 ** (k / 3)) for k in range(3)]
    np.testing.assert_array_equal(anchors.base_anchors(sizes, (0.5, 1.0, 2.0), rounded=True), expected)


def test_base_anchors_not_rounded_keep_their_area():
    # detectron2's convention. 32 * sqrt(2) / 2 = 22.627417, 32 / sqrt(2) / 2 = 11.313708.
    expected = [[-22.627417, -11.313708, 22.627417, 11.313708]]
    np.testing.assert_allclose(anchors.base_anchors([32], [0.5]), expected, rtol=1e-6)


def test_grid_anchors_equal_torchvision():
    # torchvision 0.29.1: AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2) called with an ImageList of one 72 x
    # 100 image and feature maps of 9 x 13 and 5 x 7 gives 456 anchors; some of its rows. Strides are its image // grid:
    # 72 // 9, 100 // 13 = 8, 7 and 72 // 5, 100 // 7 = 14, 14.
    golden = {
        0: [-23, -11, 23, 11],
        1: [-16, -16, 16, 16],
        2: [-11, -23, 11, 23],
        3: [-16, -11, 30, 11],  # one cell to the right: + 7
        5: [-4, -23, 18, 23],
        39: [-23, -3, 23, 19],  # 13 cells on, hence one row down: + 8
        350: [73, 41, 95, 87],  # the last of the first level
        351: [-45, -23, 45, 23],
        354: [-31, -23, 59, 23],
        372: [-45, -9, 45, 37],
        455: [61, 11, 107, 101],
    }
    levels = [
        anchors.grid_anchors(
            grid, (72 // grid[0], 100 // grid[1]), anchors.base_anchors([size], (0.5, 1, 2), rounded=True)
        )
        for grid, size in (((9, 13), 32), ((5, 7), 64))
    ]
    ours = np.concatenate(levels)
    assert ours.shape == (456, 4) and ours.dtype == np.float32
    np.testing.assert_array_equal(ours[list(golden)], list(golden.values()))


def test_grid_anchors_equal_loops():
    base = anchors.base_anchors((8, 12), (0.5, 2.0))
    expected = []
    for row in range(3):
        for column in range(5):
            for x1, y1, x2, y2 in base.tolist():
                x, y = column * 6.5, row * 4.0
                expected.append([x + x1, y + y1, x + x2, y + y2])
    np.testing.assert_allclose(anchors.grid_anchors((3, 5), (4.0, 6.5), base), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('grid', [(0, 3), (2, 0)])
def test_grid_anchors_of_an_empty_grid(grid):
    assert anchors.grid_anchors(grid, (8, 8), anchors.base_anchors([8], [1.0])).shape == (0, 4)
