"""Tests of the data set which draws itself."""

import hashlib

import numpy as np
import pycocotools.mask
import pytest

from detzoo.data import catalog, records
from detzoo.data.made import shapes


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('data')
    return {split: catalog.open_dataset('shapes', split, data_dir) for split in shapes.SIZES}


@pytest.mark.parametrize('split', shapes.SIZES)
def test_shapes_match_their_checksum(datasets, split):
    digest = hashlib.sha256()
    for record in datasets[split].records:
        digest.update(records.decode_image(record['image'], name=record['file_name']).tobytes())
        for key in ('boxes', 'labels', 'is_crowd', 'areas', 'annotation_ids'):
            digest.update(record[key].tobytes())
        digest.update(','.join([record['file_name'], *record['segmentations']]).encode())
    assert digest.hexdigest() == shapes.CHECKSUMS[split]


def test_shapes_records_hold_what_was_drawn(datasets):
    for index in (0, 1, 57):
        image, objects = shapes.draw('validation', index)
        record = datasets['validation'].records[index]
        np.testing.assert_array_equal(records.decode_image(record['image'], name=''), image)
        assert record['labels'].tolist() == [thing.label for thing in objects]
        assert record['is_crowd'].tolist() == [thing.is_crowd for thing in objects]
        for counts, thing in zip(record['segmentations'], objects, strict=True):
            mask = pycocotools.mask.decode({'size': list(image.shape[:2]), 'counts': counts})
            np.testing.assert_array_equal(mask, thing.mask)


def test_shapes_boxes_are_tight_around_visible_pixels():
    for index in range(20):
        example = shapes._example('train', index)
        _, objects = shapes.draw('train', index)
        for described, thing in zip(example['objects'], objects, strict=True):
            rows, columns = np.nonzero(thing.mask)
            x, y = columns.min(), rows.min()
            assert described['bbox'].tolist() == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            assert described['area'] == len(rows)


def test_draw_depends_on_nothing_but_split_and_index():
    first, _ = shapes.draw('train', 3)
    shapes.draw('train', 4)
    np.testing.assert_array_equal(shapes.draw('train', 3)[0], first)
    assert not np.array_equal(shapes.draw('validation', 3)[0], first)


def test_draw_keeps_objects_visible_and_apart():
    for index in range(60):
        image, objects = shapes.draw('validation', index)
        assert image.dtype == np.uint8
        assert all(shapes.SIDES[0] <= side <= shapes.SIDES[1] for side in image.shape[:2])
        for thing in objects:
            assert thing.mask.shape == image.shape[:2]
            assert thing.mask.sum() >= max(shapes.MIN_PIXELS, shapes.MIN_VISIBLE * thing.pixels)
        masks = np.array([thing.mask for thing in objects]).reshape(-1, *image.shape[:2])
        assert masks.sum(axis=0).max() <= 1


def test_shapes_have_empty_images_crowds_and_all_classes(datasets):
    for dataset in datasets.values():
        kept = [(record['labels'], record['is_crowd']) for record in dataset.records]
        assert len(kept) == shapes.SIZES[dataset.split]
        assert 0.02 < np.mean([len(labels) == 0 for labels, _ in kept]) < 0.1
        assert 0.02 < np.mean([crowds.any() for _, crowds in kept]) < 0.08
        assert max(len(labels) for labels, _ in kept) <= shapes.MAX_SHAPES + 1
        counts = np.bincount(np.concatenate([labels for labels, _ in kept]), minlength=len(shapes.CLASS_NAMES))
        assert counts.min() > 0.7 * counts.max()


AREAS = {
    'ellipse': np.pi * 0.9**2,
    'ring': np.pi * (0.97**2 - 0.53**2),
    'triangle': 3 * np.sqrt(3) * 0.55**2,  # of an equilateral triangle by the radius of its incircle
    'rectangle': 1.5**2,
    # ten triangles from the centre, between a tip and a corner of the inner pentagon
    'star': 5 * 0.33**2 * np.sin(np.pi / 5) / (np.cos(np.pi / 5) * np.cos(2 * np.pi / 5)),
    'cross': 2 * (2 * 0.66) - 0.66**2,
}


@pytest.mark.parametrize('name', shapes.CLASS_NAMES)
def test_outlines_enclose_their_area(name):
    y, x = np.mgrid[-1.5:1.5:1001j, -1.5:1.5:1001j]
    assert 9 * (shapes.OUTLINES[name](x, y) < 0).mean() == pytest.approx(AREAS[name], rel=0.01)
