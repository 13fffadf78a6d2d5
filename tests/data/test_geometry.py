"""Where images come to lie on canvases: by hand, and there and back."""

import cv2
import numpy as np
import pytest

from detzoo.data import geometry
from detzoo.data.geometry import Placement, ResizeRule, mask_in_frame

FIT, LETTERBOX, STRETCH = (ResizeRule(resize=resize) for resize in ('fit', 'letterbox', 'stretch'))


def test_resize_rule_takes_its_keys_from_a_recipe():
    recipe = dict(flip=0.5, longer_side=90, interpolation='pil', resize='letterbox', shorter_side=None)
    assert geometry.resize_rule(recipe) == ResizeRule('letterbox', None, 90, 'pil')


@pytest.mark.parametrize(
    'size, canvas, limits, scale',
    [
        # The rule of 800/1333: the shorter side becomes 800 unless the longer one would exceed 1333.
        ((480, 640), (1344, 1344), (800, 1333), 800 / 480),  # 1067 x 800
        ((640, 480), (1344, 1344), (800, 1333), 800 / 480),
        ((400, 1200), (1344, 1344), (800, 1333), 1333 / 1200),  # 800 / 400 = 2 would make 2400
        ((1600, 1600), (1344, 1344), (800, 1333), 0.5),
        ((480, 640), (512, 512), (800, 1333), 0.8),  # the canvas is the limit
        ((480, 640), (300, 640), (800, 1333), 0.625),  # its height
        ((480, 640), (960, 960), (None, None), 1.5),
        ((480, 640), (960, 960), (240, None), 0.5),
        ((480, 640), (960, 960), (None, 320), 0.5),
    ],
)
def test_resize_scale_by_hand(size, canvas, limits, scale):
    for resize in ('fit', 'letterbox'):
        rule = ResizeRule(resize, *limits)
        assert geometry.resize_scale(size, canvas, rule) == pytest.approx((scale, scale), rel=1e-12)
    stretched = geometry.resize_scale(size, canvas, STRETCH)  # the scales of x and y
    assert stretched == pytest.approx((canvas[1] / size[1], canvas[0] / size[0]), rel=1e-12)


def test_choose_canvas_takes_the_one_on_which_the_image_is_largest():
    canvases = [(96, 160), (160, 96), (128, 128)]
    for rule in (FIT, LETTERBOX, STRETCH):
        assert geometry.choose_canvas((30, 60), canvases, rule) == (96, 160)  # 2.67, against 1.6 and 2.13
        assert geometry.choose_canvas((60, 30), canvases, rule) == (160, 96)
        assert geometry.choose_canvas((50, 50), canvases, rule) == (128, 128)
    # At most 96 pixels on the longer side fit everywhere: the smallest canvas of equals.
    limited = ResizeRule(longer_side=96)
    assert geometry.choose_canvas((60, 30), [(128, 128), (96, 160), (96, 96)], limited) == (96, 96)


@pytest.mark.parametrize(
    'rule, expected',
    [
        # 500 x 333 on a canvas 128 wide and 112 high: 0.256, so 128 x 85.248, rounded to 85 rows; y is scaled by 85 / 333.
        (FIT, Placement((128 / 500, 85 / 333), (128, 85), (0, 0))),
        (LETTERBOX, Placement((128 / 500, 85 / 333), (128, 85), (0, 13))),  # 27 rows are free, 13 of them above
        (STRETCH, Placement((128 / 500, 112 / 333), (128, 112), (0, 0))),
        (ResizeRule('letterbox', longer_side=100), Placement((0.2, 67 / 333), (100, 67), (14, 22))),  # 66.6 rows
    ],
)
def test_placement_by_hand(rule, expected):
    where = geometry.placement((333, 500), (112, 128), rule)
    assert where == expected
    (x, y), (width, height) = where.offset, where.size
    np.testing.assert_array_equal(where.window, np.float32([x, y, x + width, y + height]))
    assert where.window.dtype == np.float32
    # The middle of the left edge, and the lower right corner.
    mapped = where.to_canvas(np.array([0.0, 333 / 2, 500, 333]))
    np.testing.assert_allclose(mapped, [x, y + height / 2, x + width, y + height], rtol=1e-12)


def test_placement_lets_no_side_vanish():
    assert geometry.placement((1, 1000), (64, 64), FIT).size == (64, 1)
    assert geometry.placement((1, 1000), (64, 64), LETTERBOX) == Placement((0.064, 1), (64, 1), (0, 31))


@pytest.mark.parametrize('resize', geometry.RESIZES)
def test_placement_to_image_inverts_to_canvas(resize):
    rng = np.random.RandomState(0)
    for _ in range(20):
        size, canvas = rng.randint(1, 700, 2), rng.randint(1, 700, 2)
        where = geometry.placement(tuple(size), tuple(canvas), ResizeRule(resize))
        boxes = rng.uniform(0, 500, (5, 4))
        np.testing.assert_allclose(where.to_image(where.to_canvas(boxes)), boxes, rtol=1e-9)
        # The whole image becomes the whole window, and that lies on the canvas.
        np.testing.assert_allclose(where.to_canvas(np.array([0, 0, size[1], size[0]])), where.window, rtol=1e-6)
        assert (where.window >= 0).all() and (where.window[2:] <= canvas[::-1]).all()


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (64, 48), (300, 200), (64, 64), (50, 120)])
@pytest.mark.parametrize('resize', geometry.RESIZES)
def test_place_fills_the_window_and_nothing_else(size, resize):
    image, where = geometry.place(np.full((*size, 3), 200, np.uint8), (64, 48), ResizeRule(resize))
    assert image.shape == (64, 48, 3) and image.dtype == np.uint8
    left, top, right, bottom = where.window.astype(int)
    assert (
        (right - left == 48 or bottom - top == 64) if resize != 'stretch' else (right - left, bottom - top) == (48, 64)
    )
    if resize == 'letterbox':
        assert abs(left - (48 - right)) <= 1 and abs(top - (64 - bottom)) <= 1
    else:
        assert left == top == 0
    expected = np.zeros((64, 48, 3))
    expected[top:bottom, left:right] = 200
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('resize', geometry.RESIZES)
def test_place_keeps_an_image_that_fits_exactly(resize):
    image = np.random.RandomState(0).randint(0, 256, (64, 48, 3)).astype(np.uint8)
    placed, where = geometry.place(image, (64, 48), ResizeRule(resize))
    np.testing.assert_array_equal(placed, image)
    assert where == ((1, 1), (48, 64), (0, 0))


@pytest.mark.parametrize('size, value', [((16, 2), 64), ((16, 8), 64), ((16, 24), 64)])
def test_resize_averages_where_it_shrinks(size, value):
    # Every fourth column is white: averaged to a quarter of 255. Bilinear sampling would find all or nothing. The height
    # shrinks, stays or grows: the columns must be averaged all the same.
    image = np.zeros((8, 64, 3), np.uint8)
    image[:, 2::4] = 255
    np.testing.assert_array_equal(geometry.resize(image, size), np.full((*size[::-1], 3), value))
    turned = np.ascontiguousarray(image.swapaxes(0, 1))
    np.testing.assert_array_equal(geometry.resize(turned, size[::-1]), np.full((*size, 3), value))


def test_resize_averages_rows_unless_it_loses_but_one():
    # An average gives each of 20 rows the same share of the result, wherever it is; interpolation passes some of them over.
    rows = np.repeat(np.eye(20, dtype=np.float32)[:, :, None], 3, axis=2)  # the i-th column has the i-th row white

    def shares(height):
        return geometry.resize((255 * rows).astype(np.uint8), (20, height), rounded=False).sum(axis=0)[:, 0] / 255

    np.testing.assert_allclose(shares(18), 0.9, atol=1e-3)
    assert np.ptp(shares(19)) > 0.01


@pytest.mark.parametrize(
    'interpolation, size', [('area', (1068, 801)), ('bilinear', (1067, 800)), ('pil', (1068, 801))]
)
def test_each_interpolation_rounds_sides_as_its_users(interpolation, size):
    # 3 : 4 with a shorter side of 800.7 at most: 800.7 x 1067.6.
    rule = ResizeRule('fit', shorter_side=800.7, interpolation=interpolation)
    where = geometry.placement((375, 500), geometry.own_canvas((375, 500), rule, 1), rule)
    assert where.size == size and where.scale == (size[0] / 500, size[1] / 375)
    assert geometry.own_canvas((375, 500), rule, 32) == (832 if size[1] > 800 else 800, 1088)


def test_own_canvas_leaves_the_image_the_size_of_its_limits():
    # 101 x 333 -> 242.6 x 800, rounded down to 242: on a canvas of 242 rows a scale of 242 / 101 would lose a column.
    rule = ResizeRule('fit', longer_side=800, interpolation='bilinear')
    canvas = geometry.own_canvas((101, 333), rule, 1)
    assert canvas == (242, 800) and geometry.placement((101, 333), canvas, rule).size == (800, 242)


def test_darknet_letterbox_by_hand():
    # 7 x 3 on 14 x 14: 14 x 6, 4 rows above; each integer division of darknet's is exact or rounds down.
    rule = ResizeRule('letterbox', interpolation='darknet')
    assert geometry.placement((3, 7), (14, 14), rule) == ((2, 2), (14, 6), (0, 4))
    assert geometry.placement((333, 500), (416, 416), rule).size == (416, 277)  # 333 * 416 / 500 = 277.06
    sides = [geometry.placement((3 * n, 2 * n), (416, 608), rule).size for n in range(1, 600)]
    assert set(sides) == {(277, 416)}  # no rounding error makes 415 rows of them


def bilinear(line, positions):
    """Interpolates a line at positions between its samples; beyond the outermost it stays."""
    return np.interp(positions, np.arange(len(line)), line)


@pytest.mark.parametrize('interpolation', ['bilinear', 'pil', 'darknet'])
@pytest.mark.parametrize('size', [(5, 9), (23, 17), (11, 13), (1, 1)], ids=str)
def test_resize_against_slow_oracle(interpolation, size):
    image = np.random.RandomState(0).randint(0, 256, (13, 11, 3)).astype(np.uint8)

    def resampled(line, length):
        scale = len(line) / length
        if interpolation == 'bilinear':
            return bilinear(line, (np.arange(length) + 0.5) * scale - 0.5)
        if interpolation == 'darknet':
            return bilinear(line, np.arange(length) * (len(line) - 1) / max(1, length - 1))
        centers, support = (np.arange(length) + 0.5) * scale, max(1, scale)
        weights = np.maximum(0, 1 - abs(np.arange(len(line)) + 0.5 - centers[:, None]) / support)
        line = (weights / weights.sum(axis=1, keepdims=True)) @ line
        return np.rint(line)  # after each axis

    expected = image.astype(np.float64)
    for axis, length in ((1, size[0]), (0, size[1])):
        expected = np.apply_along_axis(resampled, axis, expected, length)
    exact = geometry.resize(image, size, interpolation, rounded=False)
    assert exact.dtype == np.float32
    np.testing.assert_allclose(
        exact, expected, atol=1 if interpolation == 'pil' else 1e-3
    )  # PIL has fixed-point weights
    rounded = geometry.resize(image, size, interpolation)
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(
        rounded, exact, atol=0.8 if interpolation == 'bilinear' else 0.51
    )  # OpenCV's weights are coarse


def test_mask_in_frame_by_hand():
    # A record of 8 x 8 with an object at x 2..6, y 1..5 whose right half is hidden; on the canvas it is twice as large and
    # 3, 1 off.
    mask = np.zeros((8, 8), bool)
    mask[1:5, 2:4] = True
    where = Placement((2.0, 2.0), (16, 16), (3, 1))
    box = where.to_canvas(np.array([2.0, 1, 6, 5]))
    frame = mask_in_frame(mask, box, where.matrix_to_image[:2], (8, 8))
    assert frame.dtype == bool
    np.testing.assert_array_equal(frame, np.tile([True] * 4 + [False] * 4, (8, 1)))
    # Flipped: x of the canvas is that of the record from the right.
    flip = np.array([[-1.0, 0, 8], [0, 1, 0]])
    frame = mask_in_frame(mask, np.array([2.0, 1, 6, 5]), flip, (4, 4))
    np.testing.assert_array_equal(frame, np.tile([False, False, True, True], (4, 1)))
    # A cell whose centre lies between a pixel of the object and another one is a half the object's, and counts.
    assert mask_in_frame(mask, np.array([3.0, 1, 5, 3]), np.eye(3)[:2], (1, 1)).tolist() == [[True]]
    # What lies outside of the image belongs to nothing.
    assert not mask_in_frame(~np.zeros((8, 8), bool), np.array([9.0, 0, 12, 3]), np.eye(3)[:2], (4, 4)).any()


def test_mask_in_frame_equals_a_warp_of_the_whole_mask():
    # Objects inside, across the edges and beyond; scaled, flipped and turned.
    rng, covered = np.random.RandomState(0), []
    mask = (rng.uniform(size=(90, 70)) < 0.5).repeat(2, axis=0)
    turns = np.eye(2), np.diag([-1, 1]), [[0, 1], [-1, 0]]
    for i in range(60):
        turn = np.array(turns[i % 3]) * rng.uniform(0.3, 3)
        center, side = rng.uniform(-60, [130, 240]), rng.uniform(2, 90, 2)
        to_record = np.c_[turn, center - turn @ [300, 300]]
        box = np.concatenate([300 - side / 2, 300 + side / 2])
        size = side / 12
        cells = np.array([[size[0], 0, box[0] + size[0] / 2], [0, size[1], box[1] + size[1] / 2], [0, 0, 1]])
        matrix = to_record @ cells - [[0, 0, 0.5], [0, 0, 0.5]]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        whole = cv2.warpAffine(255 * mask.astype(np.uint8), matrix, (12, 12), flags=flags) >= 128
        np.testing.assert_array_equal(mask_in_frame(mask, box, to_record, (12, 12)), whole)
        covered.append(whole.mean())
    assert min(covered) == 0 and max(covered) > 0.5


def test_pad_puts_an_image_where_it_is_told():
    image = np.arange(1, 19, dtype=np.uint8).reshape(2, 3, 3)
    padded = geometry.pad(image, (4, 1), (5, 9))
    np.testing.assert_array_equal(padded[1:3, 4:7], image)
    assert padded.shape == (5, 9, 3) and padded.sum() == image.sum() and padded.dtype == np.uint8


def test_resize_not_rounded_is_torchs():
    # torch.nn.functional.interpolate(mode='bilinear') of torch 2.14.1; OpenCV's values are up to 0.007 away from these.
    column = ((np.arange(600) * 37) % 256).astype(np.uint8)
    resized = geometry.resize(np.broadcast_to(column[:, None, None], (600, 4, 3)), (4, 937), 'bilinear', rounded=False)
    expected = {
        0: 0.0,
        1: 17.03895378,
        249: 192.91835022,
        303: 44.23880005,
        821: 106.61114502,
        861: 168.70672607,
        936: 147.0,
    }
    np.testing.assert_allclose(resized[list(expected), 2, 1], list(expected.values()), rtol=1e-6, atol=1e-6)
