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


def shape_iou(first, second):
    """The IoU of two boxes (width, height) at one centre."""
    shared = min(first[0], second[0]) * min(first[1], second[1])
    return shared / (first[0] * first[1] + second[0] * second[1] - shared)


def drawn_sizes(seed, count=200):
    rng = np.random.RandomState(seed)
    return np.exp(rng.normal(3, 1, (count, 1)) + rng.normal(0, 0.4, (count, 2)))


def test_kmeans_anchors_of_one_cluster_by_hand():
    # The mean of 10 x 10 and 10 x 30 is 10 x 20: it shares 100 with a union of 200, and 200 with one of 300.
    found, average = anchors.kmeans_anchors(np.array([[10, 10], [10, 30]]), 1)
    np.testing.assert_allclose(found, [[10, 20]])
    assert average == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize('seed', range(5))
def test_kmeans_anchors_recover_planted_clusters(seed):
    rng = np.random.RandomState(seed)
    planted = np.array([[12.0, 10], [20, 60], [70, 30], [120, 150]])
    sizes = np.concatenate([planted * np.exp(rng.normal(0, 0.02, (60, 1, 2)))]).reshape(-1, 2)
    found, average = anchors.kmeans_anchors(rng.permutation(sizes), 4, seed=seed)
    np.testing.assert_allclose(found, planted, rtol=0.02)  # the smallest area first
    assert average > 0.95


@pytest.mark.parametrize('k', [1, 2, 5, 9])
def test_kmeans_anchors_are_a_fixed_point_by_loops(k):
    sizes = drawn_sizes(k)
    found, average = anchors.kmeans_anchors(sizes, k)
    assert found.shape == (k, 2) and (np.diff(found.prod(axis=1)) >= 0).all()
    overlaps = [[shape_iou(size, anchor) for anchor in found] for size in sizes]
    assert average == pytest.approx(np.mean([max(row) for row in overlaps]), rel=1e-12)
    # Moving all anchors once more to the mean of their boxes gains next to nothing.
    nearest = [row.index(max(row)) for row in overlaps]
    means = [np.mean([size for size, i in zip(sizes, nearest) if i == anchor], axis=0) for anchor in range(k)]
    again = np.mean([max(shape_iou(size, mean) for mean in means) for size in sizes])
    assert again <= average + 2e-3


def test_kmeans_anchors_measure_shapes_not_distances():
    # With Euclid's distance the large boxes, 40 apart, would get both centres. By IoU they are alike: 0.92, and the small
    # ones are not, 0.25.
    sizes = np.array([[4.0, 4], [8, 8], [480, 480], [500, 500]] * 3)
    found, _ = anchors.kmeans_anchors(sizes, 3)
    np.testing.assert_allclose(found, [[4, 4], [8, 8], [490, 490]])


@pytest.mark.parametrize('seed', range(8))
def test_kmeans_anchors_are_never_worse_than_one(seed):
    sizes = drawn_sizes(seed, 60)
    averages = [anchors.kmeans_anchors(sizes, k, seed=seed)[1] for k in range(1, 10)]
    assert all(average > averages[0] for average in averages[1:]) and averages[-1] > averages[1]


def test_kmeans_anchors_keep_their_best_iteration():
    # Iterations may make it worse: the result of more of them is never below that of fewer.
    for seed in range(10):
        sizes = drawn_sizes(seed, 40)
        averages = [anchors.kmeans_anchors(sizes, 4, seed=seed, max_iterations=n)[1] for n in (1, 2, 3, 5, 100)]
        assert averages == sorted(averages)


def test_kmeans_anchors_depend_on_the_seed_alone():
    sizes = drawn_sizes(0)
    before = sizes.copy()
    results = [anchors.kmeans_anchors(sizes, 6, seed=seed) for seed in (3, 3, *range(4, 9))]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert len({average for _, average in results}) > 1  # k-means ends where it starts from
    np.testing.assert_array_equal(sizes, before)
    np.random.seed(0)
    np.testing.assert_array_equal(anchors.kmeans_anchors(sizes, 6, seed=3)[0], results[0][0])


def test_kmeans_anchors_take_as_many_clusters_as_boxes():
    sizes = drawn_sizes(1, 7)
    found, average = anchors.kmeans_anchors(sizes, 7)
    assert average == pytest.approx(1)
    np.testing.assert_allclose(found, sizes[np.argsort(sizes.prod(axis=1))])


def test_kmeans_anchors_of_equal_boxes():
    found, average = anchors.kmeans_anchors(np.full((5, 2), [3.0, 8.0]), 3)
    np.testing.assert_array_equal(found, [[3, 8]] * 3)
    assert average == 1


@pytest.mark.parametrize(
    'sizes, k, words',
    [
        (np.zeros((0, 2)), 1, '1 clusters of 0 boxes'),
        (np.ones((4, 2)), 5, '5 clusters of 4 boxes'),
        (np.ones((4, 2)), 0, '0 clusters of 4 boxes'),
        (np.array([[1.0, 0.0]]), 1, 'must be positive'),
        (np.array([[1.0, np.inf]]), 1, 'must be positive and finite'),
    ],
)
def test_kmeans_anchors_refuse(sizes, k, words):
    with pytest.raises(ValueError, match=words):
        anchors.kmeans_anchors(sizes, k)


def test_cell_anchors_by_hand():
    # Canvas 20 x 40 (height, width), one row of two cells: cells are 20 x 20; then a single cell of 40 x 20.
    placed, strides = anchors.cell_anchors((20, 40), [(1, 2), (1, 1)], [((4, 8), (10, 2)), ((40, 20),)])
    expected = [[8, 6, 12, 14], [5, 9, 15, 11], [28, 6, 32, 14], [25, 9, 35, 11], [0, 0, 40, 20]]
    np.testing.assert_array_equal(placed, expected)
    np.testing.assert_array_equal(strides, [[20, 20]] * 4 + [[40, 20]])
    assert placed.dtype == strides.dtype == np.float32


def test_cell_anchors_refuses_another_number_of_levels():
    with pytest.raises(ValueError):
        anchors.cell_anchors((20, 40), [(1, 2)], [((4, 8),), ((1, 1),)])


def test_grid_anchors_offset_moves_by_cells():
    base = np.float32([[-1, -2, 1, 2]])
    corner, middle = (anchors.grid_anchors((2, 3), (8, 4), base, offset=offset) for offset in (0, 0.5))
    np.testing.assert_array_equal(middle - corner, np.tile([2, 4, 2, 4], (6, 1)))


def test_default_boxes_by_hand():
    # s = 16 and sqrt(16 * 25) = 20; area 16^2 with height = width / 4: 32 x 8.
    expected = [[-8, -8, 8, 8], [-10, -10, 10, 10], [-16, -4, 16, 4]]
    np.testing.assert_allclose(anchors.default_boxes(16, 25, [1 / 4]), expected)
    limited = [[-8, -8, 8, 8], [-9, -10, 9, 10], [-9, -4, 9, 4]]
    np.testing.assert_allclose(anchors.default_boxes(16, 25, [1 / 4], limit=(30, 18)), limited)
    np.testing.assert_allclose(anchors.default_boxes(16, 25, [4], limit=(30, 18)), [*limited[:2], [-4, -15, 4, 15]])


def test_default_boxes_are_those_of_ssd300():
    # Caffe's ssd_pascal.py: conv4_3 has min_size 30, max_size 60 and aspect ratio 2, hence per cell squares of 30 and
    # sqrt(30 * 60) = 42.43, and 30 * sqrt(2) = 42.43 by 30 / sqrt(2) = 21.21 in both orientations, the wide one first.
    boxes = anchors.default_boxes(30, 60, [1 / 2, 2])
    size = boxes[:, 2:] - boxes[:, :2]
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(size, [[30, 30], [42.4264, 42.4264], [42.4264, 21.2132], [21.2132, 42.4264]], rtol=1e-5)


def test_default_boxes_placed_equal_torchvision():
    # torchvision 0.29.1: the DefaultBoxGenerator of ssd300_vgg16 on a canvas of 300 x 300 with grids of 38, 19, 10, 5, 3
    # and 1 cells gives 8732 boxes; some rows of it. Each level is placed by its stride, not by 300 / cells.
    golden = {
        0: [-6.5, -6.5, 14.5, 14.5],
        1: [-11.37, -11.37, 19.37, 19.37],
        2: [-10.849, -3.425, 18.849, 11.425],
        3: [-3.425, -10.849, 11.425, 18.849],
        4: [1.5, -6.5, 22.5, 14.5],  # one cell to the right: + 8
        152: [-6.5, 1.5, 14.5, 22.5],  # one row down
        5775: [292.575, 285.151, 307.425, 314.849],  # the last of the first level
        5776: [-14.5, -14.5, 30.5, 30.5],
        5781: [-4.99, -30.971, 20.99, 46.971],
        7942: [-33.5, -33.5, 65.5, 65.5],
        8541: [275.421, 218.263, 332.579, 389.737],
        8691: [243.833, 155.498, 332.167, 420.502],
        8692: [-53.5, -53.5, 153.5, 153.5],
        8728: [19.5, 19.5, 280.5, 280.5],
        8729: [6.634, 6.634, 293.366, 293.366],
        8730: [0, 57.723, 300, 242.277],  # cut to the canvas's width
    }
    levels = []
    sizes, strides = (21, 45, 99, 153, 207, 261, 315), (8, 16, 32, 64, 100, 300)
    two, four = (1 / 2, 2), (1 / 2, 2, 1 / 3, 3)
    for k, (grid, ratios) in enumerate(zip((38, 19, 10, 5, 3, 1), (two, four, four, four, two, two))):
        base = anchors.default_boxes(sizes[k], sizes[k + 1], ratios, limit=(300, 300))
        levels.append(anchors.grid_anchors((grid, grid), (strides[k],) * 2, base, offset=0.5))
    ours = np.concatenate(levels)
    assert ours.shape == (8732, 4)
    np.testing.assert_allclose(ours[list(golden)], list(golden.values()), atol=1e-3)


def test_pyramid_anchors_by_hand():
    # Cells of 8 and 16 pixels: the second level's second cell begins at 16.
    bases = [anchors.base_anchors([4], [1.0]), anchors.base_anchors([8], [1.0])]
    fine, coarse = anchors.pyramid_anchors((20, 36), [(3, 5), (2, 3)], bases, strides=(8, 16))
    assert (fine.shape, coarse.shape) == ((15, 4), (6, 4))
    np.testing.assert_array_equal(fine[[0, 6]], [[-2, -2, 2, 2], [6, 6, 10, 10]])
    np.testing.assert_array_equal(coarse[[1, 3]], [[12, -4, 20, 4], [-4, 12, 4, 20]])
    # As torchvision: 20 // 3 = 6 and 36 // 5 = 7; 20 // 2 = 10 and 36 // 3 = 12.
    fine, coarse = anchors.pyramid_anchors((20, 36), [(3, 5), (2, 3)], bases, strides=None)
    np.testing.assert_array_equal(fine[6], [5, 4, 9, 8])
    np.testing.assert_array_equal(coarse[[1, 3]], [[8, -4, 16, 4], [-4, 6, 4, 14]])


def test_pyramid_anchors_refuses_another_number_of_levels():
    with pytest.raises(ValueError, match='anchor_sizes has 1 levels, the pyramid 2'):
        anchors.pyramid_anchors((64, 64), [(8, 8), (4, 4)], [anchors.base_anchors([4], [1.0])], strides=(8, 16))
