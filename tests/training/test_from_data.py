"""Keys that a config leaves to its data."""

import json

import ml_collections
import numpy as np
import pytest
from tiny import TINY_YOLO_V2

from detzoo.config import check_whole, complete, differences, from_json, load_config, missing, to_json
from detzoo.data.statistics import Annotations, read_annotations
from detzoo.detectors import make_detector
from detzoo.errors import ConfigError, DataError
from detzoo.training.checks import check_canvases
from detzoo.training.from_data import doubling, fit_anchors, fit_canvas, fit_to_data, suggest, take_stored
from detzoo.training.loop import train_and_evaluate

MODELS = ('mask_rcnn', 'retinanet', 'ssd', 'yolo', 'yolo_v2')  # Mask R-CNN has all that Faster R-CNN has


def annotations_of(sizes, boxes, crowd=None):
    """Annotations of images of (height, width), each with the same boxes of (width, height)."""
    count = len(sizes) * len(boxes)
    return Annotations(
        class_names=('red',),
        file_names=tuple(map(str, range(len(sizes)))),
        digests=tuple(str(i).encode() for i in range(len(sizes))),
        sizes=np.array(sizes),
        image=np.repeat(np.arange(len(sizes)), len(boxes)),
        boxes=np.array([(0.0, 0.0, *box) for _ in sizes for box in boxes]).reshape(-1, 4),
        labels=np.zeros(count, int),
        crowd=np.zeros(count, bool) if crowd is None else np.tile(crowd, len(sizes)),
        has_mask=np.zeros(count, bool),
    )


@pytest.mark.parametrize(
    'sizes, side, canvas',
    [
        ([(480, 640)] * 3, 32, (320, 416)),  # 20 of 32 pixels: 640 becomes 400, 480 becomes 300; up to multiples of 32
        ([(640, 480)] * 3, 32, (416, 320)),
        ([(480, 640), (640, 480)] * 2, 32, (416, 416)),  # neither shape suits all
        ([(480, 640)] * 3, 320, (192, 256)),  # not below 256
        ([(100, 100)] * 3, 90, (128, 128)),  # nor shrunk where they are smaller
        ([(100, 100)] * 3, 2, (224, 224)),  # enlarged by at most 2
        ([(3000, 4000)] * 3, 20, (480, 640)),  # at most 640
    ],
    ids=str,
)
def test_fit_canvas_makes_objects_20_pixels_large(sizes, side, canvas):
    assert fit_canvas(annotations_of(sizes, [(side, side)])) == canvas


def test_fit_canvas_leaves_the_smallest_tenth_of_objects_aside():
    few = annotations_of([(480, 640)], [(8, 8)] + [(32, 32)] * 19)
    many = annotations_of([(480, 640)], [(8, 8)] * 4 + [(32, 32)] * 16)
    assert fit_canvas(few) == (320, 416) and fit_canvas(many) == (480, 640)
    crowds = annotations_of([(480, 640)], [(8, 8)] * 4 + [(32, 32)] * 16, crowd=[True] * 4 + [False] * 16)
    assert fit_canvas(crowds) == (320, 416)


def test_fit_canvas_is_square_where_images_are_turned():
    images = annotations_of([(480, 640)] * 3, [(32, 32)])
    assert fit_canvas(images, turned=True) == (416, 416)


def test_fit_to_data_takes_max_boxes_and_steps_from_images():
    images = annotations_of([(64, 64)] * 1001, [(20, 20)] * 8 + [(30, 30)], crowd=[False] * 8 + [True])
    config = load_config('own_data:retinanet')
    fitted = fit_to_data(config, images)
    assert fitted.data.max_boxes == 16  # 9 boxes with the crowd, up to a multiple of 8
    # Four images in a mosaic, and one to paste from: 45 boxes.
    composed = load_config('own_data:retinanet', {'data.recipe.mosaic': 0.5, 'data.recipe.copy_paste': 0.1})
    assert fit_to_data(composed, images).data.max_boxes == 48
    assert fitted.training.steps == 5100  # 40 * 1001 / 8 = 5005 steps, up to a multiple of 100
    assert fit_to_data(config, images.take(np.arange(5))).training.steps == 1000
    assert missing(config) == ['data.canvases', 'data.max_boxes', 'model.anchor_sizes', 'training.steps']
    assert missing(fitted) == [] and differences(config, fitted).keys() == set(missing(config))


def test_doubling_begins_with_the_smallest_or_covers_the_middle():
    assert doubling(10, 40, 4) == (10, 20, 40, 80)
    assert doubling(10, 28, 4, per_level=2) == (10, 14.1, 20, 28.3)
    assert doubling(1, 64, 3) == (4, 8, 16)  # around 8


def test_fit_anchors_have_the_form_of_the_default():
    sizes = np.array([(16.0, 16.0)] * 20 + [(10.0, 40.0)] * 20)
    assert fit_anchors(sizes, ((1.0, 2.0), (3.0, 4.0)), (0.5, 2.0)) == ((16.0, 22.6), (32.0, 45.3))
    assert fit_anchors(sizes, (1.0, 2.0, 3.0, 4.0), ((0.5,), (2.0,))) == (16.0, 32.0, 64.0)  # one more than levels
    assert fit_anchors(sizes, ((1.0, 1.0), (2.0, 2.0)), None) == ((16.0, 16.0), (10.0, 40.0))  # of k-means
    levels = fit_anchors(sizes, (((1.0, 1.0),), ((2.0, 2.0),)), None)
    assert levels == (((16.0, 16.0),), ((10.0, 40.0),))
    with pytest.raises(DataError, match='2 anchors cannot be found from 1 objects: set model.anchor_sizes'):
        fit_anchors(sizes[:1], ((1.0, 1.0), (2.0, 2.0)), None)


@pytest.mark.parametrize('model', MODELS)
def test_fit_to_data_makes_configs_that_are_whole(toy, model):
    config = load_config(f'own_data:{model}', {'data.name': 'toy'})
    fitted = fit_to_data(config, read_annotations(toy()))
    assert missing(fitted) == [] and missing(config)
    assert differences(fitted, from_json(to_json(fitted))) == {}  # every value is allowed
    check_canvases(fitted, make_detector(**fitted.model, num_classes=3))


def test_fit_to_data_keeps_a_config_without_none(tiny_config, toy):
    config = tiny_config()
    assert fit_to_data(config, read_annotations(toy())) is config
    assert take_stored(config, None) is config


def test_fit_to_data_names_what_it_cannot_take_from_nothing(toy):
    with pytest.raises(DataError, match='no objects in the training split to take data.canvases, data.max_boxes'):
        fit_to_data(load_config('own_data:ssd'), read_annotations(toy(1)))


def test_check_whole_names_keys_that_are_left_to_data(tiny_config):
    with pytest.raises(
        ConfigError, match='data.canvases, data.max_boxes, model.anchor_sizes, training.steps: None means'
    ):
        check_whole(load_config('own_data:ssd'))
    check_whole(tiny_config())


def test_none_is_for_these_keys_alone(tiny_config):
    config = tiny_config(data__mask_size=0)
    config.data.mask_size = None
    with pytest.raises(ConfigError, match='data.mask_size is None'):
        complete(config)


def test_a_run_that_goes_on_keeps_what_it_took_from_its_data(tiny_config, linear, tmp_path, capsys):
    keys = dict(data__max_boxes=None, training__steps=None, model__anchor_sizes=None)
    first = complete(tiny_config(**keys, training__checkpoint_every=1000))
    first.training.steps = 3
    train_and_evaluate(first, tmp_path / 'run')
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert stored['data']['max_boxes'] == 8 and stored['training']['steps'] == 3
    text = capsys.readouterr().err
    assert text.index('toy train: 20 images') < text.index('toy validation: 10 images') < text.index('steps 0 to 3')
    assert 'WARNING' not in text
    train_and_evaluate(complete(tiny_config(**keys, training__checkpoint_every=1000)), tmp_path / 'run')
    assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == stored


def test_suggest_replaces_what_does_not_suit_the_data(tiny_config, toy):
    annotations = read_annotations(toy())
    config = tiny_config(data__max_boxes=4)
    suggested = suggest(config, annotations)
    assert differences(config, suggested).keys() == {'data.canvases', 'data.max_boxes', 'model.anchor_sizes'}
    assert suggested.data.max_boxes == 8 and suggested.data.canvases == (fit_canvas(annotations),)
    assert [len(sizes) for sizes in suggested.model.anchor_sizes] == [1] * 5  # as the config has them, not the default
    crops = tiny_config(data__max_boxes=4, evaluation__canvases=((96, 96),))
    assert 'data.canvases' not in differences(crops, suggest(crops, annotations))
    learnt = tiny_config(data__max_boxes=4, initialize_from='somewhere')
    assert 'model.anchor_sizes' not in differences(learnt, suggest(learnt, annotations))


def test_suggest_changes_nothing_where_objects_are_too_few(tiny_config, toy):
    annotations = read_annotations(toy(1, first=3))
    config = tiny_config()
    config.model = complete(ml_collections.ConfigDict(dict(model=TINY_YOLO_V2))).model
    assert annotations.objects.sum() < len(config.model.anchor_sizes)
    assert suggest(config, annotations) is config
