"""Geometry of images on canvases, by hand and by looking for a painted rectangle where its box is said to be."""

import numpy as np
import pytest

from detzoo.data import augment as aug

RECIPE = dict(flip=0.0, rotate90=False, scale_range=(1.0, 1.0), shorter_side=None, longer_side=None, color_jitter=0.0)


def painted(height, width, *boxes):
    """Black [height, width, 3] in which the i-th xyxy box has value 255 in channel i."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, channel] = 255
    return image, np.array(boxes, np.float64).reshape(-1, 4)


def extent(image, channel=0):
    """The xyxy box around what is painted, or None."""
    rows, columns = np.nonzero(image[..., channel] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def run(image, boxes, canvas, seed=0, crowd=None, **recipe):
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return aug.augment(image, boxes, crowd, canvas, RECIPE | recipe, np.random.RandomState(seed))


@pytest.mark.parametrize('size, canvas, limits, scale', [
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
])
def test_resize_scale_by_hand(size, canvas, limits, scale):
    shorter, longer = limits
    assert aug.resize_scale(size, canvas, shorter_side=shorter, longer_side=longer) == pytest.approx(scale, rel=1e-12)


def test_choose_canvas_takes_the_one_on_which_the_image_is_largest():
    canvases = [(96, 160), (160, 96), (128, 128)]
    assert aug.choose_canvas((30, 60), canvases) == (96, 160)  # 2.67, against 1.6 and 2.13
    assert aug.choose_canvas((60, 30), canvases) == (160, 96)
    assert aug.choose_canvas((50, 50), canvases) == (128, 128)
    # At most 96 pixels on the longer side fit everywhere: the smallest canvas of equals.
    assert aug.choose_canvas((60, 30), [(128, 128), (96, 160), (96, 96)], longer_side=96) == (96, 96)


def test_placement_by_hand():
    # 500 x 333 at 0.256: 128 x 85.248, rounded to 85 rows, so that y is scaled by 85 / 333.
    where = aug.placement((333, 500), 0.256)
    assert where.size == (128, 85)
    np.testing.assert_array_equal(where.window, np.float32([0, 0, 128, 85]))
    np.testing.assert_allclose(where.to_canvas(np.array([250.0, 333, 500, 0])), [64, 85, 128, 0], rtol=1e-12)
    assert aug.placement((1, 1000), 0.064).size == (64, 1)  # no side vanishes


def test_placement_to_image_inverts_to_canvas():
    rng = np.random.RandomState(0)
    for _ in range(20):
        size, scale = rng.randint(1, 700, 2), rng.uniform(0.1, 3)
        where = aug.placement(tuple(size), scale)
        boxes = rng.uniform(0, 500, (5, 4))
        np.testing.assert_allclose(where.to_image(where.to_canvas(boxes)), boxes, rtol=1e-12)
        # The whole image becomes the whole window.
        np.testing.assert_allclose(where.to_canvas(np.array([0, 0, size[1], size[0]])), where.window, rtol=1e-6)


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (64, 48), (300, 200), (64, 64)])
def test_place_fills_the_window_and_nothing_else(size):
    image, where = aug.place(np.full((*size, 3), 200, np.uint8), (64, 48))
    assert image.shape == (64, 48, 3) and image.dtype == np.uint8
    width, height = where.size
    assert width <= 48 and height <= 64 and (width == 48 or height == 64)
    expected = np.zeros((64, 48, 3))
    expected[:height, :width] = 200
    np.testing.assert_array_equal(image, expected)


def test_place_keeps_an_image_that_fits_exactly():
    image = np.random.RandomState(0).randint(0, 256, (64, 48, 3)).astype(np.uint8)
    placed, where = aug.place(image, (64, 48))
    np.testing.assert_array_equal(placed, image)
    assert where == ((1, 1), (48, 64))


def test_resize_averages_where_it_shrinks():
    # Every fourth column is white: averaged to a quarter of 255. Bilinear sampling would find all or nothing.
    image = np.zeros((8, 64, 3), np.uint8)
    image[:, ::4] = 255
    np.testing.assert_array_equal(aug.resize(image, aug.placement((8, 64), 0.25)), np.full((2, 16, 3), 64))


def test_flip_boxes_and_rotate_boxes_by_hand():
    # A picture 10 wide and 6 high. Counterclockwise, x becomes what y was from the right: (x, y) -> (y, 10 - x).
    box = np.array([[1.0, 2, 4, 6]])
    np.testing.assert_array_equal(aug.flip_boxes(box, 10), [[6, 2, 9, 6]])
    np.testing.assert_array_equal(aug.rotate_boxes(box, 10), [[2, 6, 6, 9]])


@pytest.mark.parametrize('flip', [0.0, 1.0])
@pytest.mark.parametrize('rotate90', [False, True])
@pytest.mark.parametrize('size', [(40, 60), (61, 33)])
@pytest.mark.parametrize('scale_range', [(1.0, 1.0), (0.4, 0.6), (1.2, 2.5)])
def test_augment_moves_boxes_with_pixels(flip, rotate90, size, scale_range):
    # Two rectangles, neither centred nor alike; which is which tells the channel.
    image, boxes = painted(*size, (3, 5, 12, 21), (17, 8, 31, 36))
    seen = set()
    for seed in range(24):
        result = run(image, boxes, (64, 80), seed, flip=flip, rotate90=rotate90, scale_range=scale_range)
        assert result.image.shape == (64, 80, 3) and result.image.dtype == np.uint8
        width, height = result.window[2:].astype(int)
        assert not result.image[height:].any() and not result.image[:, width:].any()
        assert (result.boxes >= 0).all() and (result.boxes <= np.tile(result.window[2:], 2)).all()
        for channel in (0, 1):
            found = extent(result.image, channel)
            box = result.boxes[result.kept == channel]
            if found is None or len(box) == 0:  # cropped away, or but for a sliver that no pixel shows
                assert found is None and (len(box) == 0 or (box[0, 2:] - box[0, :2]).min() < 1)
            else:
                sliver = (box[0, 2:] - box[0, :2]).min() < 1  # of which few pixels are bright enough
                np.testing.assert_allclose(box[0], found, atol=2 if sliver else 1)
        seen.add(str(result.boxes.round(3).tolist()))
    if scale_range == (1.0, 1.0):
        assert len(seen) == (4 if rotate90 else 1)  # all four turns occur
    else:
        assert len(seen) > 10


def test_augment_draws_scales_log_uniformly_between_the_limits():
    image, boxes = painted(40, 40, (5, 5, 15, 15))
    widths = [run(image, boxes, (200, 200), seed, scale_range=(0.25, 1.0)).window[2] for seed in range(300)]
    assert 50 <= min(widths) < 55 and 190 < max(widths) <= 200
    # The median of a log-uniform scale is the geometric mean of its limits: 0.5, so 100 pixels; of a uniform one, 125.
    assert 92 < np.median(widths) < 109


def test_augment_keeps_to_the_limits_on_sides():
    image, boxes = painted(40, 60, (5, 5, 15, 15))
    assert run(image, boxes, (200, 200), shorter_side=80, longer_side=300).window[2:].tolist() == [120, 80]
    assert run(image, boxes, (200, 200), shorter_side=80, longer_side=90).window[2:].tolist() == [90, 60]


def test_augment_turns_into_crowds_what_is_hardly_visible():
    # At twice the canvas's size a quarter of the image is seen; count the pixels of what is left of each object.
    image, boxes = painted(50, 50, (2, 3, 22, 21), (30, 8, 41, 40), (10, 28, 28, 43))
    pixels = [4 * (x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    met = {'whole': 0, 'part': 0, 'crowd': 0, 'gone': 0}
    for seed in range(60):
        result = run(image, boxes, (50, 50), seed, scale_range=(2.0, 2.0))
        crowd = dict(zip(result.kept.tolist(), result.crowd.tolist()))
        for channel in range(3):
            visible = (result.image[..., channel] > 127).sum() / pixels[channel]
            if visible == 0:
                assert channel not in crowd
                met['gone'] += 1
            elif abs(visible - aug.MIN_VISIBLE) > 0.03:
                assert crowd[channel] == (visible < aug.MIN_VISIBLE)
                met['crowd' if crowd[channel] else 'whole' if visible > 0.97 else 'part'] += 1
    assert min(met.values()) >= 3


def test_augment_keeps_crowds_crowds():
    image, boxes = painted(40, 60, (3, 5, 12, 21), (20, 8, 31, 30))
    result = run(image, boxes, (64, 64), crowd=[True, False], flip=1.0)
    assert dict(zip(result.kept.tolist(), result.crowd.tolist())) == {0: True, 1: False}


def test_augment_depends_on_nothing_but_its_arguments():
    image, boxes = painted(40, 60, (3, 5, 12, 21))
    copy, box_copy = image.copy(), boxes.copy()
    recipe = dict(flip=0.5, rotate90=True, scale_range=(0.5, 2.0), color_jitter=0.4)
    first, again, other = (run(image, boxes, (64, 64), seed, **recipe) for seed in (1, 1, 2))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.image, other.image)
    np.testing.assert_array_equal(image, copy)
    np.testing.assert_array_equal(boxes, box_copy)


@pytest.mark.parametrize('rotate90, scale', [(False, 0.5), (True, 1.0), (True, 3.0)])
def test_augment_of_a_single_pixel(rotate90, scale):
    image, boxes = painted(1, 1, (0, 0, 1, 1))
    result = run(image, boxes, (32, 48), flip=1.0, rotate90=rotate90, scale_range=(scale, scale))
    assert result.image.shape == (32, 48, 3)
    np.testing.assert_allclose(result.boxes, result.window[None], atol=1e-6)
    width, height = result.window[2:].astype(int)
    assert (result.image[:height, :width, 0] == 255).all() and result.image.sum() == 255 * width * height


def test_augment_of_an_image_without_objects():
    image, boxes = painted(30, 40)
    result = run(image, boxes, (32, 32), flip=1.0, rotate90=True, scale_range=(1.0, 2.0), color_jitter=0.2)
    assert result.boxes.shape == (0, 4) and result.kept.shape == (0,) and result.crowd.shape == (0,)
    assert result.crowd.dtype == bool


def test_jitter_colors_changes_brightness_within_its_strength():
    # A gray picture of one colour has neither contrast nor saturation: brightness alone is left.
    values = []
    for seed in range(50):
        image = aug.jitter_colors(np.full((4, 5, 3), 100, np.uint8), 0.3, np.random.RandomState(seed))
        assert image.dtype == np.uint8 and len(np.unique(image)) == 1
        values.append(image[0, 0, 0])
    assert 70 <= min(values) < 80 and 120 < max(values) <= 130


def test_jitter_colors_stops_at_black_and_white():
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    for seed in range(20):
        changed = aug.jitter_colors(image, 0.9, np.random.RandomState(seed)).astype(int)
        assert (changed[0, 1] >= changed[0, 0]).all()  # no value wraps around


def test_jitter_colors_of_no_strength_keeps_the_image():
    image = np.random.RandomState(0).randint(0, 256, (6, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(aug.jitter_colors(image, 0, np.random.RandomState(0)), image)


def test_augment_jitters_nothing_outside_of_the_window():
    image = np.full((20, 40, 3), 100, np.uint8)
    result = run(image, np.zeros((0, 4)), (40, 40), 3, color_jitter=0.3)
    assert result.window.tolist() == [0, 0, 40, 20]
    assert result.image[:20].min() > 0 and not result.image[20:].any()
