"""Tests of the shapes that stand closer and closer."""

import itertools

import cv2
import numpy as np
import pytest

from detzoo.data import catalog
from detzoo.data.made import shapes, shapes_spaced
from detzoo.data.made.shapes_spaced import SPACINGS, draw

PICTURES = range(12)


def distances(objects):
    """Of each pair of shapes, the least distance of two pixels' centres."""
    for one, other in itertools.combinations(objects, 2):
        away = cv2.distanceTransform((~other.mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        yield away[one.mask].min()


def components(objects):
    return cv2.connectedComponents(sum(thing.mask for thing in objects).astype(np.uint8), connectivity=4)[0] - 1


@pytest.fixture(scope='module')
def drawn():
    return {name: [draw(spacing, 'train', index) for index in PICTURES] for name, spacing in SPACINGS.items()}


def test_pictures_differ_in_distances_alone(drawn):
    for pictures in zip(*drawn.values(), strict=True):
        (image, objects), *others = pictures
        assert len({thing.label for thing in objects}) == 1
        for other_image, other_objects in others:
            assert other_image.shape == image.shape and other_objects[0].label == objects[0].label
            assert 2 <= len(other_objects) <= shapes_spaced.COUNTS[1]
            assert other_objects[0].pixels == objects[0].pixels  # the first shape has the same place
    counts = {name: sum(len(objects) for _, objects in pictures) for name, pictures in drawn.items()}
    assert min(counts.values()) > 0.85 * max(counts.values()) and max(counts.values()) > 3 * len(PICTURES)
    assert len({objects[0].label for _, objects in drawn['shapes_apart']}) > 2


def test_shapes_apart_have_background_between_them(drawn):
    for _, objects in drawn['shapes_apart']:
        assert min(distances(objects)) > 2.5 and components(objects) >= len(objects)
        assert all(thing.mask.sum() == thing.pixels for thing in objects)


def test_shapes_touching_hide_nothing_and_join(drawn):
    joined = 0
    for _, objects in drawn['shapes_touching']:
        assert all(thing.mask.sum() == thing.pixels for thing in objects) and min(distances(objects)) <= 2
        joined += len(objects) - components(objects)
    assert joined > len(PICTURES)


def test_shapes_overlapping_hide_a_limited_share(drawn):
    shares = [1 - thing.mask.sum() / thing.pixels for _, objects in drawn['shapes_overlapping'] for thing in objects]
    assert max(shares) <= 0.35 and np.mean(np.array(shares) > 0.1) > 0.3
    for _, objects in drawn['shapes_overlapping']:
        assert (sum(thing.mask.astype(int) for thing in objects) <= 1).all()


def test_the_builders_draw_their_spacing(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes_spaced, 'SIZES', dict(train=2, validation=1))
    for name, spacing in SPACINGS.items():
        dataset = catalog.open_dataset(name, 'train', tmp_path)
        assert len(dataset.records) == 2 and dataset.class_names == shapes.CLASS_NAMES
        _, objects = draw(spacing, 'train', 1)
        assert dataset.records[1]['areas'].tolist() == [thing.mask.sum() for thing in objects]
        assert len(set(dataset.records[1]['annotation_ids'])) == len(objects)
    assert not np.array_equal(draw(spacing, 'train', 0)[0], draw(spacing, 'validation', 0)[0])
