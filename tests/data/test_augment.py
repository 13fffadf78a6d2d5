"""Augmentation: by hand, by statistics, and by looking for a painted rectangle where its box is said to be."""

import cv2
import numpy as np
import pytest

from detzoo.config import defaults
from detzoo.data import augment as aug
from detzoo.data.geometry import mask_in_frame

RECIPE = defaults().data.recipe.to_dict() | dict(flip=0.0)  # nothing is varied
SSD = dict(resize='stretch', zoom_out=4.0, iou_crop=True)
OPTIONS = {  # what moves pixels and boxes
    'zoom_out': dict(zoom_out=3.0),
    'jitter': dict(jitter=0.2),
    'aspect_jitter': dict(aspect_jitter=0.3, resize='letterbox'),
    'iou_crop': dict(iou_crop=True),
    'SSD': SSD,
    'letterbox': dict(resize='letterbox', scale_range=(0.5, 2.0)),
    'stretch': dict(resize='stretch', scale_range=(0.5, 2.0)),
    'all': dict(resize='letterbox', zoom_out=2.0, jitter=0.2, aspect_jitter=0.3, iou_crop=True, scale_range=(0.5, 2.0)),
}


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


@pytest.mark.parametrize('name', OPTIONS)
def test_augment_says_where_pixels_come_from(name):
    """What a mask in a box's frame shows, painted onto the canvas, is the object that augmentation put there."""
    image, boxes = painted(40, 60, (3, 5, 22, 31), (30, 8, 51, 36))
    image[5:12, 3:10, 0] = image[20:36, 44:51, 1] = 0  # each misses a corner, so that turns and flips show
    compared = 0
    for seed in range(20):
        result = run(image, boxes, (64, 80), seed, **dict(flip=0.5, rotate90=True) | OPTIONS[name])
        for box, channel in zip(result.boxes, result.kept):
            mask = mask_in_frame(image[..., channel] > 0, box, result.to_record, (64, 64))
            x1, y1, x2, y2 = np.rint(box).astype(int)
            if min(x2 - x1, y2 - y1) >= 8:
                expected = (
                    cv2.resize(result.image[y1:y2, x1:x2, channel], (64, 64), interpolation=cv2.INTER_LINEAR) > 127
                )
                assert (mask & expected).sum() > 0.8 * (mask | expected).sum()
                compared += 1
    assert compared > 10


def test_augment_draws_scales_log_uniformly_between_the_limits():
    image, boxes = painted(40, 40, (5, 5, 15, 15))
    widths = [run(image, boxes, (200, 200), seed, scale_range=(0.25, 1.0)).window[2] for seed in range(300)]
    assert 50 <= min(widths) < 55 and 190 < max(widths) <= 200
    # The median of a log-uniform scale is the geometric mean of its limits: 0.5, so 100 pixels; of a uniform one, 125.
    assert 92 < np.median(widths) < 109


def test_augment_tells_what_is_cut(monkeypatch):
    monkeypatch.setattr(aug, 'move_sides', lambda *args: np.array([20, 0, 100, 100]))
    boxes = np.array([[10.0, 0, 30, 10], [20, 0, 30, 10], [90, 90, 100, 100]])
    result = run(np.zeros((100, 100, 3), np.uint8), boxes, (100, 80), jitter=0.2)
    assert result.cut.tolist() == [True, False, False] and result.visible.tolist() == [0.5, 1, 1]
    monkeypatch.setattr(aug, 'sample_crop', lambda *args: np.array([20, 0, 100, 100]))
    result = run(np.zeros((100, 100, 3), np.uint8), boxes, (100, 80), iou_crop=True)
    assert result.cut.tolist() == [True, False, False] and result.visible.tolist() == [1, 1, 1]  # it stays an object


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


def test_augment_jitters_nothing_outside_of_the_window():
    image = np.full((20, 40, 3), 100, np.uint8)
    result = run(image, np.zeros((0, 4)), (40, 40), 3, color_jitter=0.3)
    assert result.window.tolist() == [0, 0, 40, 20]
    assert result.image[:20].min() > 0 and not result.image[20:].any()


# Options of single papers


def varied(count, canvas=(60, 80), size=(40, 60), boxes=((3, 5, 12, 21), (17, 8, 31, 36)), **recipe):
    """Variations of one picture, one for each seed."""
    image, boxes = painted(*size, *boxes)
    return [run(image, boxes, canvas, seed, **recipe) for seed in range(count)]


def test_augment_is_what_it_was_before_there_were_these_options():
    # Stored before they came (commit 8618e19): the same draws, so that runs measured then are the same today.
    y, x = np.mgrid[:90, :120]
    image = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)
    boxes = np.array([[10.0, 20, 50, 60], [60, 5, 115, 45], [30, 50, 110, 88]])
    recipe = dict(flip=0.5, rotate90=True, scale_range=(0.7, 2.0), longer_side=150, color_jitter=0.3)
    golden = [
        (
            [0, 0, 122, 96],
            [[27.111111, 28.083333, 81.333333, 82.416667], [6.777778, 0, 61, 14.5], [67.777778, 0, 119.288889, 55.25]],
            [0, 1, 2], [False, True, False], [80.36, 102.67, 91.474], 0.2975346065444723,
        ),
        (
            [0, 0, 128, 96], [[0.958333, 0, 110.5, 14.5], [10.916667, 24.444444, 128, 96]],
            [1, 2], [True, False], [207.119, 164.649, 186.794], 0.3879107411620074,
        ),
        (
            [0, 0, 128, 96], [[4.444444, 7.5, 64, 89.541667], [71.444444, 0, 128, 82.083333]],
            [1, 2], [True, False], [157.176, 98.064, 127.602], 0.6988626913672012,
        ),
    ]  # fmt: skip
    for seed, (window, expected, kept, crowd, means, following) in enumerate(golden):
        rng = np.random.RandomState(seed)
        result = aug.augment(image, boxes, np.array([False, True, False]), (96, 128), RECIPE | recipe, rng)
        assert result.window.tolist() == window and result.window.dtype == np.float32
        np.testing.assert_allclose(result.boxes, expected, atol=1e-6)
        assert result.kept.tolist() == kept and result.crowd.tolist() == crowd
        np.testing.assert_allclose(result.image.mean(axis=(0, 1)), means, atol=0.05)  # OpenCV's rounding may vary
        assert rng.uniform() == following  # as many numbers were drawn


@pytest.mark.parametrize('name', OPTIONS)
def test_augment_options_move_boxes_with_pixels(name):
    checked, windows = 0, set()
    for result in varied(80, canvas=(120, 160), **OPTIONS[name]):
        left, top, right, bottom = result.window.astype(int)
        assert result.window.tolist() == [left, top, right, bottom] and result.image.shape == (120, 160, 3)
        assert 0 <= left <= right <= 160 and 0 <= top <= bottom <= 120
        outside = result.image.copy()
        outside[top:bottom, left:right] = 0
        assert not outside.any()
        assert (result.boxes >= np.tile(result.window[:2], 2)).all()
        assert (result.boxes <= np.tile(result.window[2:], 2)).all()
        for channel in (0, 1):
            found, box = extent(result.image, channel), result.boxes[result.kept == channel]
            if found is not None and len(box) and (box[0, 2:] - box[0, :2]).min() > 2:
                np.testing.assert_allclose(box[0], found, atol=1.5)
                checked += 1
        windows.add(tuple(result.window))
    assert checked > 60 and len(windows) > 10 * (name not in ('iou_crop', 'stretch'))


@pytest.mark.parametrize('name', OPTIONS)
def test_augment_options_take_any_image(name):
    recipe = OPTIONS[name] | dict(flip=0.5, rotate90=True, color_jitter=0.3, brightness=32.0, hue=0.1)
    for seed in range(30):
        for size in ((1, 1), (1, 90), (70, 2), (33, 45)):
            image, boxes = painted(*size, *([(0, 0, size[1], size[0])] if seed % 2 else []))
            result = run(image, boxes, (40, 48), seed, **recipe)
            assert result.image.shape == (40, 48, 3) and np.isfinite(result.boxes).all()
            assert len(result.boxes) <= len(boxes)


def test_zoom_out_by_statistics():
    part, rng = np.array([0, 0, 100, 60]), np.random.RandomState(0)
    parts = np.array([aug.zoom_out(part, 4.0, rng) for _ in range(2000)])
    changed = parts[(parts != part).any(axis=1)]
    assert 0.46 < len(changed) / 2000 < 0.54
    assert (changed[:, :2] <= 0).all() and (changed[:, 2:] >= [100, 60]).all()  # the image lies inside
    size = changed[:, 2:] - changed[:, :2]
    np.testing.assert_allclose(size[:, 0] / size[:, 1], 100 / 60, rtol=0.02)  # the same aspect ratio
    ratio = size[:, 0] / 100
    assert ratio.min() < 1.05 and 3.95 < ratio.max() <= 4 and 2.4 < ratio.mean() < 2.6  # uniform in 1..4
    share = -changed[:, 1] / np.maximum(size[:, 1] - 60, 1)  # of the room that is above the image
    assert share.min() < 0.02 and share.max() > 0.98 and 0.47 < share.mean() < 0.53


def test_zoom_out_shrinks_the_window():
    # A picture of 100 x 150 stretched to 200 x 300: zoomed out by r, it takes 1 / r of either side.
    results = varied(200, canvas=(200, 300), size=(100, 150), resize='stretch', zoom_out=2.0)
    windows = np.array([result.window for result in results])
    sides = windows[:, 2:] - windows[:, :2]
    assert 80 < (sides == [300, 200]).all(axis=1).sum() < 125
    assert (sides[:, 0] >= 150).all() and sides[:, 0].min() < 156
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], 1.5, rtol=0.03)


def test_move_sides_by_statistics():
    part, rng = np.array([0, 0, 1000, 500]), np.random.RandomState(0)
    moved = np.array([aug.move_sides(part, 0.2, rng) for _ in range(2000)]) - part
    np.testing.assert_allclose(moved.min(axis=0), [-200, -100, -200, -100], atol=3)
    np.testing.assert_allclose(moved.max(axis=0), [200, 100, 200, 100], atol=3)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=9)
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.08  # each side by itself


def test_move_sides_with_stretch_is_the_crop_of_darknet():
    # The left side at -0.1 of the width and the right at 1.1: the picture takes 10 / 12 of the canvas, 1 / 12 in.
    class Fixed(np.random.RandomState):
        def uniform(self, low=0.0, high=1.0, size=None):
            return np.array([-0.1, 0.2, 0.1, 0.0]) if size == 4 else super().uniform(low, high, size)

    image, boxes = painted(50, 100, (20, 20, 40, 40))
    result = aug.augment(
        image, boxes, np.zeros(1, bool), (120, 240), RECIPE | dict(jitter=0.2, resize='stretch'), Fixed(0)
    )
    # x: (20 + 10) / 120 * 240; y: the upper 10 of 50 rows are cut, so (20 - 10) / 40 * 120.
    np.testing.assert_allclose(result.boxes, [[60, 30, 100, 90]], atol=1e-9)
    np.testing.assert_allclose(result.window, [20, 0, 220, 120])


def test_aspect_jitter_by_statistics():
    # A square picture, sides varied by 0.8..1.2 each: the ratio of sides in 2/3..3/2, one side always that of the canvas.
    results = varied(400, canvas=(90, 90), size=(50, 50), resize='letterbox', aspect_jitter=0.2)
    windows = np.array([result.window for result in results])
    sides = windows[:, 2:] - windows[:, :2]
    assert (sides.max(axis=1) == 90).all()
    ratio = sides[:, 0] / sides[:, 1]
    assert 0.65 < ratio.min() < 0.72 and 1.4 < ratio.max() < 1.53
    assert 0.4 < (ratio < 1).mean() < 0.6
    free = 90 - sides[:, 0]
    share = windows[free > 10, 0] / free[free > 10]
    assert share.min() < 0.05 and share.max() > 0.95 and 0.42 < share.mean() < 0.58  # anywhere, not centred
    # Nothing is cut: objects keep their share of the picture.
    for result in results:
        size = np.tile(result.window[2:] - result.window[:2], 2)
        relative = (result.boxes - np.tile(result.window[:2], 2)) / size
        np.testing.assert_allclose(relative, np.array([[3, 5, 12, 21], [17, 8, 31, 36]]) / 50, atol=1e-9)


def overlap(crop, box):
    """The IoU of two xyxy boxes, by hand."""
    width = min(crop[2], box[2]) - max(crop[0], box[0])
    height = min(crop[3], box[3]) - max(crop[1], box[1])
    shared = max(0, width) * max(0, height)
    return shared / ((crop[2] - crop[0]) * (crop[3] - crop[1]) + (box[2] - box[0]) * (box[3] - box[1]) - shared)


@pytest.mark.parametrize('least', [0.1, 0.5, 0.9])
def test_sample_crop_keeps_to_its_overlap(monkeypatch, least):
    monkeypatch.setattr(aug, 'CROP_OVERLAPS', (None, least))
    part, rng = np.array([0, 0, 300, 200]), np.random.RandomState(0)
    boxes = np.array([[15.0, 10, 285, 190], [180, 10, 200, 40]])
    crops = [aug.sample_crop(part, boxes, (200, 300), rng) for _ in range(400)]
    best = np.array([max(overlap(crop, box) for box in boxes) for crop in crops if (crop != part).any()])
    assert len(best) > 30 and least <= best.min() < least + 0.1  # no stricter either


def test_sample_crop_sizes(monkeypatch):
    monkeypatch.setattr(aug, 'CROP_OVERLAPS', (0.0,))
    part, rng = np.array([-100, 50, 900, 850]), np.random.RandomState(0)
    crops = np.array([aug.sample_crop(part, np.array([[0.0, 100, 9, 109]]), (850, 900), rng) for _ in range(1500)])
    assert (crops[:, :2] >= part[:2]).all() and (crops[:, 2:] <= part[2:]).all()
    sides = (crops[:, 2:] - crops[:, :2]) / [1000, 800]
    scale, ratio = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    assert 0.29 < scale.min() < 0.32 and scale.max() > 0.97 and 0.62 < scale.mean() < 0.68  # uniform in 0.3..1
    assert 0.49 < ratio.min() < 0.52 and 1.96 < ratio.max() < 2.02
    small = ratio[scale < 0.7]  # of which every ratio fits: uniform in 1/2..2
    assert 1.2 < small.mean() < 1.3
    start = (crops[:, 0] - part[0]) / (1000 * (1 - sides[:, 0]) + 1e-9)
    assert 0.45 < start[sides[:, 0] < 0.9].mean() < 0.55


def test_sample_crop_chooses_among_all_its_ways_evenly():
    # An object that fills the picture: every way finds a crop except that of 0.9, whose crops of nine tenths are rare.
    part, rng = np.array([0, 0, 1000, 1000]), np.random.RandomState(0)
    crops = np.array([aug.sample_crop(part, np.array([[0.0, 0, 1000, 1000]]), (1000, 1000), rng) for _ in range(1400)])
    whole = (crops == part).all(axis=1).mean()
    assert 1 / 7 - 0.04 < whole < 1 / 6 + 0.04
    area = (crops[:, 2:] - crops[:, :2]).prod(axis=1) / 1e6  # here the overlap
    assert 0.05 < (area < 0.3).mean() < 0.25  # only of the ways 'any' and 0.1


def test_sample_crop_without_objects_takes_all():
    part, rng = np.array([0, 0, 50, 40]), np.random.RandomState(0)
    for _ in range(20):
        assert (aug.sample_crop(part, np.zeros((0, 4)), (40, 50), rng) == part).all()


def test_sample_crop_always_shows_something_of_the_image():
    part, rng = np.array([-900, -900, 100, 100]), np.random.RandomState(0)
    for _ in range(200):
        crop = aug.sample_crop(part, np.array([[0.0, 0, 10, 10]]), (100, 100), rng)
        assert crop[2] > 0 and crop[3] > 0 and crop[0] < 100 and crop[1] < 100


def test_iou_crop_keeps_what_has_its_centre_inside_and_crowds(monkeypatch):
    # The crop shows columns 40 to 100 and rows 0 to 50 of 100 x 100.
    monkeypatch.setattr(aug, 'sample_crop', lambda *args: np.array([40, 0, 100, 50]))
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array(
        [
            [0, 0, 81, 101],  # centre (40.5, 50.5): below the crop
            [0, 0, 81, 99],  # centre (40.5, 49.5): inside; 41 x 50 of 81 x 99 are seen
            [0, 10, 79, 20],  # centre (39.5, 15): left of it, though half of it is seen
            [10, 10, 65, 20],  # a crowd, centre outside, 25 x 10 seen
            [0, 60, 30, 90],  # a crowd of which nothing is seen
            [-98, -19, 180, 119],  # centre (41, 50): on the edge; 60 x 50 of 278 x 138, so 8 % are seen
        ],
        float,
    )
    result = run(image, boxes, (50, 60), crowd=[False, False, False, True, True, False], iou_crop=True)
    assert result.kept.tolist() == [1, 3, 5]
    assert result.crowd.tolist() == [False, True, False]  # the last is hardly seen, and stays an object
    np.testing.assert_allclose(result.boxes, [[0, 0, 41, 50], [0, 10, 25, 20], [0, 0, 60, 50]], atol=1e-9)


def test_iou_crop_does_not_look_for_crowds():
    image, boxes = painted(40, 60, (3, 5, 30, 31))
    for seed in range(20):  # where nothing counts as an object, all is shown
        result = run(image, boxes, (40, 60), seed, crowd=[True], iou_crop=True)
        np.testing.assert_array_equal(result.image, image)
        assert result.crowd.tolist() == [True]


def test_augment_of_nothing_but_filling():
    # Zoomed out to a quarter at most, and a canvas that shows a quarter of that: often nothing of the picture is there.
    results = varied(60, canvas=(40, 60), zoom_out=4.0, scale_range=(4.0, 4.0), color_jitter=0.3, hue=0.1)
    empty = [result for result in results if (result.window[2:] == result.window[:2]).any()]
    assert len(empty) > 3
    assert not any(result.image.any() or len(result.boxes) for result in empty)


def test_jitter_turns_into_crowds_what_is_hardly_visible(monkeypatch):
    monkeypatch.setattr(aug, 'move_sides', lambda *args: np.array([20, 0, 100, 100]))
    boxes = np.array([[0.0, 0, 26, 10], [0, 0, 27, 10], [0, 0, 20, 10]])  # 6 of 26 columns are seen, 7 of 27, none
    result = run(np.zeros((100, 100, 3), np.uint8), boxes, (100, 80), jitter=0.2)
    assert result.kept.tolist() == [0, 1] and result.crowd.tolist() == [True, False]


def test_augment_keeps_an_object_of_which_a_quarter_is_left(monkeypatch):
    monkeypatch.setattr(aug, 'move_sides', lambda *args: np.array([30, 0, 100, 100]))
    boxes = np.array([[0.0, 0, 40, 10], [0, 0, 39, 10]])  # 10 of 40 columns are seen, 9 of 39
    result = run(np.zeros((100, 100, 3), np.uint8), boxes, (100, 70), jitter=0.3)
    np.testing.assert_array_equal(result.boxes, [[0, 0, 10, 10], [0, 0, 9, 10]])
    assert result.crowd.tolist() == [False, True]


def test_augment_draws_the_first_and_the_last_position():
    part, rng = np.array([0, 0, 2, 2]), np.random.RandomState(0)
    zoomed = [aug.zoom_out(part, 2.0, rng) for _ in range(200)]  # to at most 3 x 3: there is room for one pixel
    for axis in (0, 1):
        assert {z[axis].item() for z in zoomed if z[axis + 2] - z[axis] == 3} == {-1, 0}
    placed = [aug.draw_placement(part * 5, (10, 10), RECIPE | dict(aspect_jitter=0.1), rng) for _ in range(200)]
    for axis in (0, 1):
        assert {where.offset[axis] for where in placed if where.size[axis] == 9} == {0, 1}
    placed = [aug.draw_placement(part * 5, (10, 10), RECIPE | dict(scale_range=(1.1, 1.1)), rng) for _ in range(50)]
    for axis in (0, 1):
        assert {where.offset[axis] for where in placed} == {-1, 0}  # of 11 pixels, 10 are seen


def test_place_inside_is_the_whole_where_the_part_is_all():
    where = aug.Placement((0.7, 1.3), (35, 52), (3, -4))
    assert aug.place_inside(np.array([0, 0, 50, 40]), where) == where


def test_place_inside_keeps_a_pixel():
    where = aug.Placement((0.1, 0.1), (10, 10), (5, 6))  # of 100 x 100
    assert aug.place_inside(np.array([98, 40, 99, 42]), where) == ((1.0, 0.5), (1, 1), (14, 10))


def test_augment_distorts_colors():
    image = np.full((20, 40, 3), (160, 100, 80), np.uint8)
    result = run(image, np.zeros((0, 4)), (40, 40), 3, hue=0.1, resize='letterbox')
    inside = result.image[10:30].reshape(-1, 3)
    assert (inside != [160, 100, 80]).any() and (inside == inside[0]).all() and not result.image[:10].any()
    expected = aug.distort_colors(image, RECIPE | dict(hue=0.1), np.random.RandomState(3))
    assert not np.array_equal(inside[0], expected[0, 0])  # its draws come after those of the geometry


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(resize='warp'), "recipe.resize is 'warp': it must be one of 'fit', 'letterbox', 'stretch'"),
        (dict(resize='stretch', longer_side=300), 'recipe.longer_side is 300'),
        (dict(shorter_side=0), 'recipe.shorter_side is 0'),
        (dict(flip=1.5), 'recipe.flip is 1.5'),
        (dict(zoom_out=0.5), 'recipe.zoom_out is 0.5'),
        (dict(jitter=0.5), 'recipe.jitter is 0.5'),
        (dict(aspect_jitter=1.0), 'recipe.aspect_jitter is 1.0'),
        (dict(resize='stretch', aspect_jitter=0.3), "0 with resize 'stretch'"),
        (dict(scale_range=(1.2, 0.8)), r'recipe.scale_range is \(1.2, 0.8\)'),
        (dict(scale_range=(0.0, 1.0)), 'recipe.scale_range'),
        (dict(brightness=-1.0), 'recipe.brightness is -1.0'),
        (dict(brightness=256.0), 'recipe.brightness is 256.0'),
        (dict(hue=0.51), 'recipe.hue is 0.51'),  # of a turn: both ways that is more than the whole circle
        (dict(saturation=(1.5,)), 'recipe.saturation'),
        (dict(exposure=(1.1, 1.5)), 'recipe.exposure'),
        (dict(color_probability=2.0), 'recipe.color_probability'),
        (dict(mosaic=-0.1), 'recipe.mosaic is -0.1: it must be in 0..1'),
        (dict(copy_paste=2.0), 'recipe.copy_paste'),
        (dict(mixup=1.1), 'recipe.mixup'),
        (dict(cutout=1.1), 'recipe.cutout'),
        (dict(cutout_side=0.0), 'recipe.cutout_side is 0.0: it must be above 0 and at most 1'),
    ],
)
def test_check_recipe_names_the_key(changes, words):
    with pytest.raises(ValueError, match=words):
        aug.check_recipe(RECIPE | changes)


@pytest.mark.parametrize('name', OPTIONS)
def test_check_recipe_lets_good_ones_pass(name):
    aug.check_recipe(RECIPE | OPTIONS[name])
