"""Masks of proposals: read, checked, bounded, and moved as the masks of objects are."""

import json

import numpy as np
import pycocotools.mask
import pytest

from detzoo.config import defaults
from detzoo.data.pipeline import evaluation_batches, load_augmented
from detzoo.data.proposals import load_proposals
from detzoo.errors import DataError

SIDE = 16
PLAIN = defaults().data.recipe.to_dict() | dict(flip=0.0)
VARIATIONS = {
    'flip': dict(flip=1.0),
    'rotate90': dict(rotate90=True),
    'scale': dict(scale_range=(0.6, 2.5)),
    'letterbox': dict(resize='letterbox', aspect_jitter=0.3),
    'zoom_out': dict(zoom_out=3.0),
}


@pytest.fixture(scope='module')
def triangles(toy):
    """The toy data; the mask of an object is its box below a diagonal."""
    dataset = toy(masks=True)
    for record in dataset.records:
        masks = np.zeros((len(record['boxes']), record['height'], record['width']), np.uint8)
        for mask, (x, y, width, height) in zip(masks, record['boxes'].astype(int)):
            rows, columns = np.mgrid[:height, :width]
            mask[y : y + height, x : x + width] = columns * height <= rows * width
        record['segmentations'] = [encode(mask)['counts'] for mask in masks]
    return dataset


def encode(mask):
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def entries(dataset):
    """The objects without crowds as COCO results with masks."""
    return [
        dict(image_id=record['image_id'], bbox=box.tolist(), score=0.5)
        | dict(segmentation={'size': [record['height'], record['width']], 'counts': counts})
        for record in dataset.records
        for box, counts, crowd in zip(record['boxes'], record['segmentations'], record['is_crowd'])
        if not crowd
    ]


def written(path, content):
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize('name', VARIATIONS)
def test_masks_follow_those_of_the_objects(triangles, name):
    given = load_proposals('ground_truth', triangles, 16, SIDE)
    compared = 0
    for index, seed in np.ndindex(10, 3):
        rng = np.random.RandomState([seed, index])
        arguments = dict(mask_size=SIDE, proposals=given)
        batch = load_augmented(triangles, index, (64, 64), 16, PLAIN | VARIATIONS[name], rng, **arguments)
        boxes, valid, masks = batch.inputs[2:]
        assert masks.shape == (16, SIDE, SIDE) and masks.dtype == bool and not masks[~valid].any()
        for box, mask in zip(boxes[valid], masks[valid]):
            (rows,) = np.nonzero(np.abs(batch.gt.boxes - box).max(axis=1) < 1e-4)
            if batch.gt.crowd[rows].any():  # so little is seen of it that it counts as a crowd
                continue
            assert (batch.gt.masks[rows[0]] != mask).mean() < 0.02 and 0 < mask.mean() < 1
            compared += 1
    assert compared > 40


def test_a_file_gives_the_masks_of_its_proposals(triangles, tmp_path):
    path = written(tmp_path / 'p.json', entries(triangles)[::-1])
    batches = evaluation_batches(
        triangles,
        [(64, 64)] * 10,
        max_boxes=16,
        recipe=PLAIN,
        batch_size=2,
        mask_size=SIDE,
        proposals=load_proposals(path, triangles, 16, SIDE),
        threads=2,
    )
    count = 0
    for batch in batches:
        for image in range(2):
            objects = batch.gt.valid[image] & ~batch.gt.crowd[image]
            valid = batch.inputs.proposals_valid[image]
            assert valid.sum() == objects.sum()
            expected = batch.gt.masks[image][objects][::-1]  # of equal scores the earlier entry comes first
            wrong = batch.inputs.proposal_masks[image][valid] != expected
            assert wrong.sum() <= 0.02 * wrong.size
            count += valid.sum()
    assert count > 20


@pytest.mark.parametrize(
    'segmentation, words',
    [
        (None, "no 'segmentation'"),
        ({'size': [5, 5], 'counts': [25]}, "RLE of another size than the image's"),
        ('RLE', 'neither polygons nor RLE'),
    ],
)
def test_a_bad_mask_is_named(triangles, tmp_path, segmentation, words):
    content = entries(triangles)
    content[4]['segmentation'] = segmentation
    path = written(tmp_path / 'p.json', content)
    with pytest.raises(
        DataError, match=rf'p\.json: entry 4, of \d\.png \(\d+ x \d+ pixels\): .*{words}.*: give each its'
    ):
        load_proposals(path, triangles, 16, SIDE)
    assert not load_proposals(path, triangles, 16).masks  # nobody reads them


def test_masks_whose_runs_do_not_fill_the_image_are_refused(triangles, tmp_path):
    content = entries(triangles)
    size = content[0]['segmentation']['size']
    content[0]['segmentation'] = {'size': size, 'counts': [3, 4]}
    with pytest.raises(DataError, match='entry 0, of .*: masks .RLE whose runs do not fill the image'):
        load_proposals(written(tmp_path / 'p.json', content), triangles, 16, SIDE)


def test_masks_are_bounded_before_memory_is_taken(triangles):
    with pytest.raises(DataError, match='2000000 proposals with masks of 56 x 56 cells .*: lower data.max_proposals'):
        load_proposals('nowhere.json', triangles, 2_000_000, 56)


def test_objects_without_masks_are_no_mask_proposals(toy):
    with pytest.raises(DataError, match="ground_truth: entry 101, of 1.png .*: no 'segmentation'"):
        load_proposals('ground_truth', toy(2), 16, SIDE)
