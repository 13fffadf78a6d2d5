"""Prediction: any image in, boxes in its own pixels and the data's own ids out."""

import json

import jax
import numpy as np
import pycocotools.mask
import pytest
from linear import find_windows

from detzoo.config import defaults
from detzoo.data.geometry import Placement, ResizeRule, place, placement
from detzoo.data.records import decode_image
from detzoo.inference.predictor import ImageDetections, Predictor, canvas_for, from_coco, load, to_coco, to_image
from detzoo.run.classes import Classes
from detzoo.types import Detections

CLASSES = Classes(('red', 'green', 'blue'), (3, 8, 9))


@pytest.fixture(scope='module')
def predictor(tiny_run):
    return load(tiny_run)


def test_to_image_maps_boxes_and_labels_back():
    # A picture of 100 x 30 on a canvas at half its size; the second of three detections is padding.
    where = Placement((0.5, 0.5), (50, 15))
    found = Detections(
        boxes=np.float32([[10, 5, 20, 10], [1, 1, 2, 2], [0, 0, 50, 15]]),
        scores=np.float32([0.75, 0, 0.5]),
        labels=np.int32([2, 0, 0]),
        valid=np.array([True, False, True]),
    )
    result = to_image(found, where, CLASSES)
    np.testing.assert_array_equal(result.boxes, [[20, 10, 40, 20], [0, 0, 100, 30]])
    assert result.scores.tolist() == [0.75, 0.5] and result.labels.tolist() == [2, 0]
    assert result.category_ids.tolist() == [9, 3] and result.class_names == ('blue', 'red')
    assert to_coco(result, 7)[0] == {'image_id': 7, 'category_id': 9, 'bbox': [20, 10, 20, 10], 'score': 0.75}
    json.dumps(to_coco(result, np.int64(7)))


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_to_image_maps_back_what_was_placed(resize):
    boxes = np.array([[0, 0, 100, 30], [7, 3, 21, 29], [64, 11, 90, 12.5]])
    where = placement((30, 100), (64, 48), ResizeRule(resize))
    found = Detections(
        where.to_canvas(boxes).astype(np.float32), np.float32([0.9, 0.8, 0.7]), np.zeros(3, int), np.ones(3, bool)
    )
    np.testing.assert_allclose(to_image(found, where, CLASSES).boxes, boxes, atol=1e-4)


def test_to_image_of_nothing():
    nothing = Detections(np.zeros((3, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, int), np.zeros(3, bool))
    result = to_image(nothing, Placement((0.5, 0.5), (50, 15)), CLASSES)
    assert result.boxes.shape == (0, 4) and result.class_names == () and to_coco(result, 1) == []


def test_to_image_pastes_masks_and_to_coco_encodes_them():
    # A canvas at half the size of an image 40 wide and 30 high; the mask's left half.
    masks = np.zeros((3, 14, 14), np.float32)
    masks[:, :, :7] = 1
    detections = Detections(
        boxes=np.float32([[2, 3, 12, 13], [5, 5, 9, 9], [0, 0, 0, 0]]),
        scores=np.float32([0.9, 0.8, 0]),
        labels=np.int32([1, 0, 0]),
        valid=np.array([True, True, False]),
        masks=masks,
    )
    found = to_image(detections, Placement((0.5, 0.5), (20, 15)), Classes(('a', 'b'), (7, 9)))
    assert found.masks.shape == (2, 30, 40) and found.masks.dtype == bool
    ys, xs = np.nonzero(found.masks[0])
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (4, 13, 6, 25)
    results = to_coco(found, 5)
    decoded = np.stack([pycocotools.mask.decode(result['segmentation']) for result in results])
    np.testing.assert_array_equal(decoded, found.masks)
    back = from_coco(results[::-1], Classes(('a', 'b'), (7, 9)))  # undoes it, in any order
    for field, expected in zip(back, found):
        np.testing.assert_array_equal(field, expected)
    assert found.at_least(0.85).masks.shape == (1, 30, 40)
    full = detections._replace(masks=np.ones_like(masks))
    legacy = to_image(full, Placement((0.45, 0.45), (20, 15)), Classes(('a', 'b'), (7, 9)), 'torchvision')
    exact = to_image(full, Placement((0.45, 0.45), (20, 15)), Classes(('a', 'b'), (7, 9)))
    assert (legacy.masks[0] & ~exact.masks[0]).any()
    assert json.dumps(results)


def test_at_least_leaves_out_lower_scores():
    scores = np.array([0.9, 0.5, 0.4])
    found = ImageDetections(np.arange(12.0).reshape(3, 4), scores, np.arange(3), np.arange(3), ('a', 'b', 'c'))
    for threshold, count in ((0.95, 0), (0.5, 2), (0.0, 3)):
        kept = found.at_least(threshold)
        assert len(kept.scores) == len(kept.boxes) == len(kept.class_names) == count
        np.testing.assert_array_equal(kept.scores, scores[:count])


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (64, 64), (150, 90)])
def test_predictor_finds_boxes_inside_of_any_image(predictor, size):
    image = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    found = predictor(image)
    assert len(found.scores) > 0 and (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= -1e-4).all() and (found.boxes <= np.array([*size[::-1], *size[::-1]]) + 1e-4).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.category_ids.tolist() == [CLASSES.category_ids[label] for label in found.labels]


def test_predictor_finds_the_same_at_twice_the_size(predictor, toy):
    # Enlarged by repeating pixels and shrunk again by averaging, it is the same canvas: all boxes are twice as large.
    image = decode_image(toy(1, 33).records[0]['image'], name='')
    image = np.pad(image, ((0, 64 - image.shape[0]), (0, 64 - image.shape[1]), (0, 0)), mode='edge')[:64, :64]
    small, large = predictor(image), predictor(image.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_allclose(large.boxes, 2 * small.boxes, rtol=1e-5)
    np.testing.assert_array_equal(large.scores, small.scores)


def test_predictor_uses_the_averaged_parameters(predictor, tiny_run):
    from detzoo.run.checkpoint import Checkpoints

    checkpoints = Checkpoints(tiny_run)
    step, variables = checkpoints.restore_variables()
    checkpoints.close()
    assert predictor.step == step == 16
    jax.tree.map(np.testing.assert_array_equal, predictor.params, variables['ema_params'])
    assert load(tiny_run, 10).step == 10


@pytest.mark.parametrize(
    'image',
    [
        [[0]],
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((64, 0, 3), np.uint8),
    ],
)
def test_predictor_refuses_what_is_no_image(predictor, image):
    with pytest.raises(ValueError, match=r'an image is \[h, w, 3\] uint8 RGB of at least one pixel, not '):
        predictor(image)


def test_load_refuses_what_is_no_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the workdir of a run'):
        load(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_place_is_what_training_shows_the_detector(toy, resize):
    # One geometry for all: an image placed for prediction is the one an augmentation without changes makes.
    from detzoo.data.augment import augment

    record = toy(1, 33).records[0]
    image = decode_image(record['image'], name='')
    recipe = defaults().data.recipe.to_dict() | dict(flip=0.0, resize=resize)
    boxes = record['boxes']
    shown = augment(image, boxes, record['is_crowd'], (96, 64), recipe, np.random.RandomState(0))
    placed, where = place(image, (96, 64), ResizeRule(resize))
    np.testing.assert_array_equal(shown.image, placed)
    np.testing.assert_array_equal(shown.window, where.window)
    np.testing.assert_allclose(shown.boxes, where.to_canvas(boxes)[shown.kept])


# Exact mode: each image on a canvas of its own.


LIMITED = dict(data__recipe__shorter_side=40, data__recipe__longer_side=70, data__recipe__interpolation='bilinear')


@pytest.mark.parametrize(
    'changes, size, expected',
    [
        ({}, (100, 150), (48, 64)),  # 40 x 60, on multiples of 16
        ({}, (50, 500), (16, 80)),  # 7 x 70
        (dict(evaluation__divisor=1), (50, 500), (7, 70)),
        (dict(evaluation__exact=False), (100, 150), (64, 128)),
        (
            dict(data__recipe__shorter_side=None, data__recipe__longer_side=None),
            (100, 150),
            (64, 128),
        ),  # nothing limits it
        (dict(data__recipe__resize='letterbox'), (100, 150), (64, 128)),
    ],
)
def test_canvas_for_by_hand(tiny_config, changes, size, expected):
    changes = LIMITED | dict(evaluation__exact=True, evaluation__divisor=16) | changes
    config = tiny_config(evaluation__canvases=((64, 128), (128, 64)), **changes)
    assert canvas_for(size, config) == expected


def test_exact_prediction_gives_the_detector_unrounded_pixels(monkeypatch, tiny_config):
    seen = set()
    monkeypatch.setattr('detzoo.inference.predictor.detector_of', lambda *args: find_windows(seen))
    config = tiny_config(evaluation__exact=True, evaluation__divisor=8, **LIMITED)
    predictor = Predictor(config, Classes(('a', 'b'), (4, 9)), 0, {}, {})
    found = predictor(np.zeros((50, 100, 3), np.uint8))
    assert seen == {((40, 72), 'float32')}  # 35 x 70
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 50]], rtol=1e-6)
    assert found.category_ids == [9]
