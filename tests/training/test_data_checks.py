"""What a run warns of before its first step."""

import numpy as np
import pytest

from detzoo.data.statistics import read_annotations
from detzoo.training.begin import training_images
from detzoo.training.data_checks import summary, warnings


@pytest.fixture
def toy_annotations(toy):
    return read_annotations(toy()), read_annotations(toy(5, first=20))


def test_summary_counts_both_splits(toy_annotations):
    train, validation = summary(*toy_annotations)
    objects = (~toy_annotations[0].crowd).sum()
    assert train == (
        f'train: 10 images (1 without objects), {objects} objects of 3 of 3 classes, at most 5 in an image, 1 crowds'
    )
    assert validation.startswith('validation: 5 images (0 without objects)')


def test_warnings_are_none_where_nothing_is_lost(tiny_config, toy_annotations):
    assert warnings(tiny_config(data__max_boxes=5), *toy_annotations) == []


def test_warnings_name_the_flag_that_keeps_all_objects(tiny_config, toy_annotations):
    train, validation = toy_annotations
    (line,) = warnings(tiny_config(data__max_boxes=2), train, validation)
    objects = np.maximum(train.rows - 2, 0).sum() - 1  # one of the dropped is the crowd, with two objects beside it
    total = (~train.crowd).sum()
    assert line.startswith(f'training drops {objects} of {total} objects and 1 of 1 crowds, in ')
    assert 'background' in line and line.endswith('Set --config.data.max_boxes=5')


def test_warnings_name_classes_that_are_never_trained(tiny_config, toy_annotations):
    train, validation = toy_annotations
    absent = train.labels == 1
    train = train._replace(labels=np.where(absent, 0, train.labels))
    (line,) = warnings(tiny_config(data__max_boxes=5), train, validation)
    assert line.startswith("validation has objects of 'green', and training has none")


def test_warnings_tell_that_all_boxes_are_crowds(tiny_config, toy_annotations):
    train, validation = toy_annotations
    lines = warnings(tiny_config(data__max_boxes=5), train._replace(crowd=np.ones_like(train.crowd)), validation)
    assert any(line.startswith(f'all {len(train.crowd)} boxes of the training split are crowds') for line in lines)
    none = train.take(np.array([0]))
    assert any('has no objects' in line for line in warnings(tiny_config(data__max_boxes=5), none, validation))


def test_warnings_find_images_of_both_splits(tiny_config, toy, toy_annotations):
    others = read_annotations(toy(5, first=7))  # images 7, 8 and 9 are in both
    (line,) = warnings(tiny_config(data__max_boxes=5), toy_annotations[0], others)
    assert line.startswith('3 of 5 validation images are in the training split too')


def test_warnings_tell_of_objects_that_vanish_on_the_canvas(tiny_config, toy_annotations):
    config = tiny_config(data__max_boxes=5, data__canvases=((16, 16),))
    (line,) = warnings(config, *toy_annotations)
    assert 'training objects are smaller than 4 x 4 pixels on the canvas: take larger data.canvases' in line


def test_warnings_count_objects_without_masks(tiny_config, toy_annotations):
    train, validation = toy_annotations
    assert train.crowd.sum() == 1
    train = train._replace(has_mask=np.arange(len(train.crowd)) >= 2)  # the first two boxes are a crowd and an object
    (line,) = warnings(tiny_config(data__max_boxes=5, data__mask_size=28), train, validation)
    assert line.startswith('1 of ') and 'have no mask, and training ends at the first of them' in line


@pytest.mark.parametrize('max_boxes', [2, 5])
def test_training_images_prints_counts_and_warns_only_of_losses(tiny_config, toy, capsys, max_boxes):
    config = tiny_config(data__max_boxes=max_boxes, data__empty_images=False)
    kept = training_images(config, toy(), toy(5, first=20), None)
    lines = capsys.readouterr().err.splitlines()
    assert len(kept.records) == 9
    assert [line for line in lines if line.startswith('toy train: 10 images')]
    assert [line for line in lines if line.startswith('trains on 9 of 10 images')]
    assert any(line.startswith('WARNING: training drops') for line in lines) == (max_boxes == 2)
