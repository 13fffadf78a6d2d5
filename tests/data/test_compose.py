"""Composition: every object where the pixels say, seen as far as they say, and none lost uncounted.

The truth about the objects of one record is a picture of them alone, each white in a channel of its own, composed with the same
random numbers as the others' black pictures.
"""

import cv2
import numpy as np
import pycocotools.mask
import pytest

from detzoo.config import defaults
from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data import compose as com
from detzoo.data.augment import MIN_VISIBLE, augment
from detzoo.data.objects import Object, fit_box, object_masks
from detzoo.data.records import Dataset
from detzoo.errors import DataError

PLAIN = defaults().data.recipe.to_dict() | dict(flip=0.0)
MOVES = dict(flip=0.5, rotate90=True, scale_range=(0.5, 2.0))
CANVAS = 72, 96
SIDE = 64  # of masks, cells
COMPOSITIONS = {
    'large_scale_jitter': dict(scale_range=(0.1, 2.0), uniform_scale=True, tight_boxes=True),
    'mosaic': dict(mosaic=1.0),
    'copy_paste': dict(copy_paste=1.0),
    'mixup': dict(mixup=1.0),
    'cutout': dict(cutout=1.0, cutout_side=0.6),
    'all': dict(mosaic=0.5, copy_paste=0.6, mixup=0.5, cutout=0.6, resize='letterbox', zoom_out=1.5),
}


def outlines(index, size, masked=True):
    """Masks of up to three objects of a record, side by side: an L, a cross and a frame; without masks rectangles."""
    rng, longer = np.random.RandomState(index), max(size)
    masks = np.zeros((3, longer, min(size)), np.uint8)
    third = max(1, longer // 3)
    for i, mask in enumerate(masks[:longer]):
        room = mask[i * third : (i + 1) * third]
        h, w = (max(1, round(side * rng.uniform(0.6, 0.95))) for side in room.shape)
        y, x = (rng.randint(side - part + 1) for side, part in zip(room.shape, (h, w)))
        room[y : y + h, x : x + w] = 1
        if masked and min(h, w) >= 9:
            if i == 0:
                room[y + h // 3 : y + h, x + w // 3 : x + w] = 0
            elif i == 1:
                for rows in (slice(y, y + h // 3), slice(y + h - h // 3, y + h)):
                    for columns in (slice(x, x + w // 3), slice(x + w - w // 3, x + w)):
                        room[rows, columns] = 0
            else:
                room[y + h // 3 : y + h - h // 3, x + w // 3 : x + w - w // 3] = 0
    masks = masks if size[0] > size[1] else masks.transpose(0, 2, 1)
    return masks[: min(longer, (3, 2, 3, 1, 3, 0, 3, 2)[index % 8])]


def record_of(index, size, masked=True):
    """A record with a black picture; its first object is a crowd in each third record."""
    masks = outlines(index, size, masked)
    codes = [pycocotools.mask.encode(np.asfortranarray(mask)) for mask in masks]
    return dict(
        image=png(np.zeros((*size, 3), np.uint8)),
        image_id=index,
        file_name=f'{index}.png',
        height=size[0],
        width=size[1],
        boxes=np.array([pycocotools.mask.toBbox(code) for code in codes]).reshape(-1, 4),
        labels=np.arange(len(masks)) + 10 * index,
        is_crowd=np.arange(len(masks)) == (0 if index % 3 == 1 else -1),
        areas=masks.sum(axis=(1, 2)).astype(float),
        annotation_ids=100 * index + np.arange(len(masks)),
        segmentations=[code['counts'].decode() if masked else '' for code in codes],
    )


def png(image):
    return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


class Noted(list):
    """Records that note which of them are read."""

    def __init__(self, records):
        super().__init__(records)
        self.read = []

    def __getitem__(self, index):
        self.read.append(int(index))
        return super().__getitem__(index)


SIZES = (60, 90), (80, 50), (70, 70), (40, 96), (90, 60), (50, 50), (64, 80), (75, 45)


def dataset_of(masked=True, sizes=SIZES):
    records = Noted(record_of(index, size, masked) for index, size in enumerate(sizes))
    return Dataset('drawn', 'train', tuple(map(str, range(100))), tuple(range(100)), records)


def compose(dataset, index, recipe, seed, canvas=CANVAS):
    dataset.records.read = []
    return com.compose(dataset, index, canvas, PLAIN | recipe, np.random.RandomState(seed))


def alone(dataset, index, masked=True):
    """The data, with the objects of one record painted: the i-th is white in channel i."""
    record = dataset.records[index]
    masks = outlines(index, (record['height'], record['width']), masked)
    image = np.zeros((record['height'], record['width'], 3), np.uint8)
    for channel, mask in enumerate(masks):
        image[..., channel] = 255 * mask
    records = Noted(dataset.records)
    list.__setitem__(records, index, record | dict(image=png(image)))
    return dataset._replace(records=records)


def painted(mask, box, canvas=CANVAS):
    """A mask in the frame of its box, as pixels of the canvas: a pixel has the value of the cell at its centre."""
    whole = np.zeros(canvas, bool)
    columns, rows = ((np.arange(n) + 0.5 - low) / (high - low) for n, low, high in zip(canvas[::-1], box[:2], box[2:]))
    inside = np.ix_((rows >= 0) & (rows < 1), (columns >= 0) & (columns < 1))
    cells = np.ix_(*((x[(x >= 0) & (x < 1)] * len(mask)).astype(int) for x in (rows, columns)))
    whole[inside] = mask[cells]
    return whole


def extent(seen):
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def is_around(outer, inner):
    """Whether a box contains another, give or take a pixel."""
    return (outer[:2] <= inner[:2] + 1).all() and (outer[2:] >= inner[2:] - 1).all()


def exceeds(first, second):
    """Whether one of two sets of pixels reaches more than a pixel beyond the other, but for lines thinner than three pixels."""
    first, second = first.astype(np.uint8), second.astype(np.uint8)
    first = cv2.morphologyEx(first, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return (first > cv2.dilate(second, np.ones((3, 3), np.uint8))).any()


@pytest.fixture
def black(monkeypatch):
    """Gaps are black, so that what is white is an object."""
    monkeypatch.setattr(com, 'FILLING', (0, 0, 0))


@pytest.mark.parametrize(
    'name, masked',
    [(name, masked) for name in COMPOSITIONS for masked in (True, False) if masked or name != 'copy_paste'],
)
def test_compose_keeps_boxes_masks_and_pixels_in_step(black, name, masked):
    dataset, pictures = dataset_of(masked), {}
    compared = hidden = crowds = 0
    for seed in range(150 if masked else 75):
        recipe = MOVES | COMPOSITIONS[name]
        sample = compose(dataset, seed % len(SIZES), recipe, seed)
        read = list(dataset.records.read)
        masks = object_masks(sample.objects, SIDE if masked else 0)
        if len(set(read)) < len(read):
            continue  # the same object twice
        for index in read:
            picture = pictures[index] = pictures.get(index) or alone(dataset, index, masked)
            image = compose(picture, seed % len(SIZES), recipe, seed).image
            found = {thing.row: i for i, thing in enumerate(sample.objects) if thing.record['image_id'] == index}
            for row, is_crowd in enumerate(picture.records[index]['is_crowd']):
                peak = image[..., row].max()
                if row not in found:
                    assert (image[..., row] > 127).sum() <= 4, (seed, index, row)
                    hidden += 1
                    continue
                thing = sample.objects[found[row]]
                assert thing.label == row + 10 * index and (thing.crowd or not is_crowd)
                if peak < 40 or (thing.box[2:] - thing.box[:2]).min() < 4:
                    continue  # faint, or too thin
                # Pixels of which an object has about a half may count or not.
                surely, maybe = image[..., row] > 0.75 * peak, image[..., row] > 0.25 * peak
                assert is_around(thing.box, extent(surely)) and is_around(extent(maybe), thing.box), (seed, index, row)
                compared += 1
                crowds += thing.crowd
                if masked and not thing.crowd:
                    mask = painted(masks[found[row]], thing.box)
                    assert not exceeds(mask, maybe) and not exceeds(surely, mask), (seed, index, row)
    assert compared > 80 and hidden > 10 and crowds > 20


@pytest.mark.parametrize('name', COMPOSITIONS)
def test_compose_takes_any_image_and_counts_every_object(name):
    dataset = dataset_of(sizes=((1, 300), (300, 1), (1, 1), (30, 44), (9, 9), (40, 30)))
    recipe, cropped = MOVES | COMPOSITIONS[name], 0
    for seed in range(120):
        sample = compose(dataset, seed % 6, recipe, seed, canvas=(32, 40))
        left, top, right, bottom = sample.window
        assert sample.image.shape == (32, 40, 3) and sample.image.dtype == np.uint8
        assert sample.window.dtype == np.float32 and 0 <= left <= right <= 40 and 0 <= top <= bottom <= 32
        boxes = np.array([thing.box for thing in sample.objects]).reshape(-1, 4)
        assert (boxes >= np.tile(sample.window[:2], 2)).all() and (boxes <= np.tile(sample.window[2:], 2)).all()
        assert (np.float32(boxes[:, 2:]) > np.float32(boxes[:, :2])).all()
        assert object_masks(sample.objects, 8).shape == (len(boxes), 8, 8)
        counts = [len(list.__getitem__(dataset.records, index)['labels']) for index in dataset.records.read]
        pasted = 0 if name not in ('copy_paste', 'all') else sum(counts)  # any number of the source's
        assert sum(counts) - pasted <= len(boxes) + sample.cropped <= sum(counts)
        cropped += sample.cropped
    assert cropped > 0


def test_compose_without_objects_and_without_compositions():
    dataset = dataset_of(sizes=SIZES[:6])
    empty = dataset._replace(records=Noted([list.__getitem__(dataset.records, 5)]))
    for name, changes in COMPOSITIONS.items():
        sample = compose(empty, 0, MOVES | changes, 0)
        assert sample.objects == [] and sample.cropped == 0, name
        assert object_masks(sample.objects, 4).shape == (0, 4, 4)
    # Without any it is `augment` and nothing else: the same random numbers and objects, boxes cut and not fitted.
    for seed in range(20):
        rng, again = np.random.RandomState(seed), np.random.RandomState(seed)
        record = list.__getitem__(dataset.records, seed % 6)
        sample = com.compose(dataset, seed % 6, CANVAS, PLAIN | MOVES, rng)
        result = augment(
            np.zeros((record['height'], record['width'], 3), np.uint8),
            xywh_to_xyxy(record['boxes']),
            record['is_crowd'],
            CANVAS,
            PLAIN | MOVES,
            again,
        )
        np.testing.assert_array_equal(np.array([thing.box for thing in sample.objects]).reshape(-1, 4), result.boxes)
        assert [thing.row for thing in sample.objects] == result.kept.tolist()
        np.testing.assert_array_equal(sample.to_record, result.to_record)
        assert rng.uniform() == again.uniform()


def test_compose_with_large_scale_jitter_draws_scales_uniformly_and_crops_to_the_canvas():
    # 2012.07177: a factor in 0.1..2 of the size that fits; smaller than the canvas it lies at its corner, larger it is cropped.
    dataset, canvas = dataset_of(sizes=((40, 40),)), (100, 100)
    samples = [compose(dataset, 0, COMPOSITIONS['large_scale_jitter'], seed, canvas) for seed in range(400)]
    widths = np.array([sample.window[2] for sample in samples])
    assert all(sample.window[:2].tolist() == [0, 0] for sample in samples)
    assert 10 <= widths.min() < 12 and widths.max() == 100
    # Uniform: 0.9 / 1.9 of the factors are below 1, half of those below 0.55. Log-uniform: 0.77, and half below 0.316.
    assert 0.4 < (widths < 100).mean() < 0.54
    assert 49 < np.median(widths[widths < 100]) < 61
    scales = [1 / sample.to_record[0, 0] / 2.5 for sample in samples]
    assert 1.94 < max(scales) <= 2 and 0.95 < np.mean(scales) < 1.15
    places = np.array([-sample.to_record[:, 2] for sample in samples if sample.to_record[0, 0] < 0.25])
    assert (places < -3).any(axis=0).all() and (places > -1).any(axis=0).all()  # the crop is anywhere


def test_compose_happens_as_often_as_it_is_probable():
    dataset = dataset_of(sizes=SIZES[:2])
    for key, reads in (('mosaic', 4), ('copy_paste', 2), ('mixup', 2)):
        counts = []
        for seed in range(100):
            compose(dataset, 0, {key: 0.3}, seed, canvas=(8, 8))
            counts.append(len(dataset.records.read))
        assert set(counts) == {1, reads} and 17 < counts.count(reads) < 43


# Parts, by hand


def sample_of(value, window, boxes=(), crowd=(), masks=None, canvas=(40, 60)):
    """A sample whose image has one value inside its window, at one to one with its record."""
    x1, y1, x2, y2 = window
    image = np.zeros((*canvas, 3), np.uint8)
    image[y1:y2, x1:x2] = value
    codes = [''] * len(boxes)
    if masks is not None:
        codes = [pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))['counts'].decode() for mask in masks]
    record = dict(height=canvas[0], width=canvas[1], segmentations=codes)
    crowd = crowd or [False] * len(boxes)
    objects = [Object(np.array(box, float), i, crowd[i], record, i, np.eye(3)[:2]) for i, box in enumerate(boxes)]
    return com.Sample(image, np.float32(window), objects, 0, np.eye(3)[:2])


def block(x1, y1, x2, y2, canvas=(40, 60)):
    mask = np.zeros(canvas, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_fit_box_by_hand():
    # Ten by ten pixels, of which something covers the right ones.
    (thing,) = sample_of(9, (0, 0, 60, 40), [(10.3, 10, 20, 20)], masks=[block(10, 10, 20, 20)]).objects
    for edge, box, crowd in (
        (14, [10.3, 10, 14, 20], False),
        (13, [10.3, 10, 13, 20], False),
        (12, [10.3, 10, 12, 20], True),
    ):
        fitted = fit_box(thing._replace(cover=block(edge, 0, 60, 40)))
        assert fitted.box.tolist() == box and fitted.crowd == crowd and fitted.visible == (edge - 10) / 10
    assert fit_box(thing._replace(cover=block(13, 0, 60, 40), visible=0.8)).crowd  # 0.8 * 0.3 of it
    assert fit_box(thing._replace(cover=block(10, 0, 60, 40))) is None
    assert fit_box(thing) is thing
    aside = thing._replace(cover=block(20, 0, 60, 40))
    assert fit_box(aside) is aside
    loose = thing._replace(box=np.array([8.0, 8, 25, 25]), cover=block(21, 8, 60, 40))  # covered where it is not
    assert fit_box(loose) is loose
    # Cut at the canvas's edge, an L is as wide as its foot is not.
    shape = block(10, 10, 14, 20) | block(10, 20, 30, 24)
    (thing,) = sample_of(9, (0, 0, 60, 20), [(10, 10, 30, 20)], masks=[shape]).objects
    assert fit_box(thing) is thing
    fitted = fit_box(thing._replace(cut=True, visible=0.5))
    assert fitted.box.tolist() == [10, 10, 14, 20] and fitted.visible == 0.5 and not fitted.crowd
    assert fit_box(thing._replace(cut=True, box=np.array([20.0, 10, 30, 20]))) is None  # of which no pixel is there
    # Without a mask it is its box; a covered one that is smaller than a pixel is gone.
    (thing,) = sample_of(9, (0, 0, 60, 40), [(10.2, 10.6, 20, 20)]).objects
    fitted = fit_box(thing._replace(cover=block(15, 11, 60, 40)))
    assert fitted.box.tolist() == [10.2, 10.6, 15, 20]
    assert fit_box(thing._replace(box=np.array([12.1, 12.1, 12.3, 12.3]), cover=block(12, 12, 13, 13))) is None


def test_object_masks_are_without_what_covers_them():
    (thing,) = sample_of(9, (0, 0, 60, 40), [(10, 10, 20, 20)], masks=[block(10, 10, 20, 15)]).objects
    whole, left = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    whole[:5], left[:5, :4] = True, True
    np.testing.assert_array_equal(object_masks([thing], 10)[0], whole)
    np.testing.assert_array_equal(object_masks([thing._replace(cover=block(14, 0, 60, 40))], 10)[0], left)
    assert not object_masks([thing._replace(crowd=True)], 10).any() and object_masks([thing], 0) is None


def test_mosaic_shows_a_part_of_each_in_its_quarter():
    # Of three tiles as large as the canvas; the fourth is small, and lies against the middle.
    y, x = np.mgrid[:40, :60]
    tiles = [sample_of(0, (0, 0, 60, 40), [(0, 0, 60, 40)]) for _ in range(3)] + [
        sample_of(200, (3, 2, 8, 6), [(3, 2, 8, 6)])
    ]
    for number, tile in enumerate(tiles[:3]):
        tile.image[:] = np.stack([x, y, 0 * x + 50 * number], axis=-1)
    tiles[3] = tiles[3]._replace(objects=[tiles[3].objects[0]._replace(visible=0.5, cut=True)])
    quarters = []
    for seed in range(60):
        sample = com.mosaic(tiles, (40, 60), np.random.RandomState(seed))
        assert len(sample.objects) == 4 and sample.cropped == 0
        assert sample.objects[3].visible == 0.5 and sample.objects[3].cut
        np.testing.assert_array_equal(sample.to_record, sample.objects[0].to_record)
        boxes = np.array([thing.box for thing in sample.objects])
        small = boxes[3]
        assert (small[2:] - small[:2] == [5, 4]).all()
        x1, y1, x2, y2 = small.astype(int)
        assert (sample.image[y1:y2, x1:x2] == 200).all()
        (right, bottom) = boxes[:3, 2:].max(axis=0)
        assert sample.window.tolist() == [*np.minimum(boxes[:, :2].min(axis=0), 0), *boxes[:, 2:].max(axis=0)]
        for number, thing in enumerate(sample.objects[:3]):
            x1, y1, x2, y2 = thing.box.astype(int)
            assert (thing.box == [x1, y1, x2, y2]).all() and thing.cut
            shown = sample.image[y1:y2, x1:x2].astype(int)
            assert (shown[..., 2] == 50 * number).all()
            # The way back leads to the pixels that are shown.
            back = thing.to_record @ [x1, y1, 1]
            np.testing.assert_array_equal(shown[0, 0, :2], back)
            np.testing.assert_array_equal(shown[-1, -1, :2] - shown[0, 0, :2], [x2 - x1 - 1, y2 - y1 - 1])
            assert thing.visible == pytest.approx((x2 - x1) * (y2 - y1) / 2400)
            assert thing.crowd == (thing.visible < MIN_VISIBLE)
        cut_x = {*boxes[:3, 0], *boxes[:3, 2]} - {0.0, 60.0}
        cut_y = {*boxes[:3, 1], *boxes[:3, 3]} - {0.0, 40.0}
        assert len(cut_x) == len(cut_y) == 1 and 12 <= min(cut_x) < 48 and 8 <= min(cut_y) < 32
        assert min(cut_x) in small[::2] and min(cut_y) in small[1::2]
        quarters.append((small[0] == min(cut_x), small[1] == min(cut_y)))
    assert len(set(quarters)) == 4


def test_copy_paste_pastes_objects_onto_what_is_there():
    boxes = [(4, 4, 14, 14), (30, 10, 40, 30), (45, 3, 55, 13)]
    source = sample_of(200, (0, 0, 60, 40), boxes, [False, True, False], [block(*box) for box in boxes])
    target = sample_of(
        50, (0, 0, 20, 20), [(2, 2, 10, 10), (4, 4, 14, 14)], [True, False], [block(2, 2, 10, 10), block(5, 5, 13, 13)]
    )
    counts = []
    for seed in range(40):
        sample = com.copy_paste(target, source, np.random.RandomState(seed))
        labels = [thing.label for thing in sample.objects[2:]]
        assert set(labels) <= {0, 2} and labels == sorted(labels)  # no crowd
        over = sum(block(*boxes[label]) for label in labels) > 0
        assert (sample.image[over] == 200).all() and (sample.image[~over & block(0, 0, 20, 20)] == 50).all()
        right = 55 if 2 in labels else 20
        assert sample.window.tolist() == [0, 0, right, 20]
        assert (sample.image[~over & block(20, 0, right, 20)] == com.FILLING).all() and not sample.image[20:].any()
        fitted = com.fit_boxes(sample)
        if 0 in labels:  # the crowd loses its lower right part, the object is gone
            assert [thing.label for thing in fitted.objects] == [0, *labels] and fitted.cropped == 1
            assert fitted.objects[0].box.tolist() == [2, 2, 10, 10] and fitted.objects[0].crowd
            assert fitted.objects[0].visible == pytest.approx(28 / 64)
        else:
            assert fitted.objects[0] is sample.objects[0] and fitted.cropped == 0
        counts.append(tuple(labels))
    assert set(counts) == {(0,), (2,), (0, 2)} and 10 < counts.count((0, 2)) < 30
    bare = sample_of(200, (0, 0, 60, 40), boxes)
    sample = com.copy_paste(target, bare, np.random.RandomState(0))
    np.testing.assert_array_equal(sample.image, target.image)
    assert len(sample.objects) == 2 and sample.window.tolist() == [0, 0, 20, 20]


def test_mixup_blends_and_keeps_all_objects():
    first, second = sample_of(200, (0, 0, 30, 20), [(1, 1, 9, 9)]), sample_of(100, (0, 0, 10, 40), [(2, 2, 9, 30)])
    sample = com.mixup(first._replace(cropped=2), second._replace(cropped=1), 0.7)
    assert sample.window.tolist() == [0, 0, 30, 40] and sample.cropped == 3
    filling = np.array(com.FILLING)
    np.testing.assert_allclose(sample.image[5, 5], [170] * 3, atol=1)
    np.testing.assert_allclose(sample.image[5, 20], 140 + 0.3 * filling, atol=1)
    np.testing.assert_allclose(sample.image[30, 5], 0.7 * filling + 30, atol=1)
    np.testing.assert_allclose(sample.image[30, 20], filling, atol=1)
    assert not sample.image[:, 30:].any()
    for share, crowds in ((0.24, [True, False]), (0.26, [False, False]), (0.76, [False, True])):
        assert [thing.crowd for thing in com.mixup(first, second, share).objects] == crowds


def test_cutout_erases_a_square_around_any_pixel():
    target, corners = sample_of(200, (10, 5, 50, 35), [(10, 5, 50, 35)]), []
    for seed in range(300):
        sample = com.cutout(target, 0.4, np.random.RandomState(seed))
        erased = (sample.image != target.image).any(axis=2)
        x1, y1, x2, y2 = extent(erased)
        assert (erased == block(x1, y1, x2, y2)).all() and (sample.image[erased] == com.FILLING).all()
        assert x1 >= 10 and y1 >= 5 and x2 <= 50 and y2 <= 35 and 6 <= x2 - x1 <= 12 and 6 <= y2 - y1 <= 12
        np.testing.assert_array_equal(sample.objects[0].cover, erased)
        corners.append((x1, y1, x2, y2))
    assert (np.min(corners, axis=0) == [10, 5, 16, 11]).all() and (np.max(corners, axis=0) == [43, 28, 50, 35]).all()
    nothing = sample_of(0, (10, 5, 10, 35))
    assert com.cutout(nothing, 0.4, np.random.RandomState(0)) is nothing


def test_check_masks_wants_an_object_to_paste():
    dataset = dataset_of(masked=False)
    with pytest.raises(DataError, match="split 'train' of 'drawn': no object has a mask, and data.recipe.copy_paste"):
        com.check_masks(dataset)
    crowds = [record | dict(is_crowd=np.ones(len(record['labels']), bool)) for record in dataset_of().records]
    with pytest.raises(DataError, match='no object has a mask'):
        com.check_masks(dataset._replace(records=crowds))
    com.check_masks(dataset._replace(records=[*crowds, record_of(0, (30, 30))]))
