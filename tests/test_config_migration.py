"""Configs of an older detzoo: what they said of a backbone, key by key, becomes the group `model.backbone`."""

import json
import pathlib

import ml_collections
import pytest

from detzoo.config import complete, differences, from_json, group_backbone
from detzoo.detectors import make_detector
from detzoo.errors import ConfigError
from detzoo.sweeps.sweep import config_of, load_sweep

RESULTS = pathlib.Path(__file__).parents[1] / 'experiments' / 'results'
BODY = dict(width=0.25, norm='batch_norm', norm_epsilon=1e-5)
RESNET = dict(depth=18, stride_in_1x1=False, **BODY)


@pytest.mark.parametrize(
    'old, new',
    [
        (
            dict(name='retinanet', fpn_features=8, **RESNET),
            dict(fpn_features=8, backbone=dict(name='resnet18', **BODY)),
        ),
        (dict(name='retinanet', norm='group_norm'), dict(backbone=dict(norm='group_norm'))),
        (
            dict(name='faster_rcnn', backbone='resnet', rpn=None, depth=50, stride_in_1x1=True, **BODY),
            dict(rpn=None, backbone=dict(name='resnet50', stride_in_1x1=True, **BODY)),
        ),
        (
            dict(name='mask_rcnn', backbone='mobilenet_v3_large', **RESNET),
            dict(backbone_strides=(32, 32), backbone=dict(name='mobilenet_v3_large', reduced_tail=False, **BODY)),
        ),
        (
            dict(name='ssd', backbone='vgg16', fc6_dilation=2, reduced_tail=True, **BODY | dict(norm=None)),
            dict(backbone_strides=(8, 16), backbone=dict(name='vgg16', fc6_dilation=2, **BODY | dict(norm=None))),
        ),
        (
            dict(name='ssd', backbone='mobilenet_v3_large', fc6_dilation=3, reduced_tail=False, **BODY),
            dict(backbone_strides=(16, 32), backbone=dict(name='mobilenet_v3_large', reduced_tail=False, **BODY)),
        ),
        (
            dict(name='ssd', backbone='resnet34', fc6_dilation=3, reduced_tail=False, **BODY),
            dict(backbone_strides=(8, 16, 32), backbone=dict(name='resnet34', **BODY)),
        ),
        (
            dict(name='yolo_v1', backbone='extraction', stages=6, **BODY),
            dict(backbone_stride=32, backbone=dict(name='extraction', **BODY)),
        ),
        (dict(name='yolo_v2', stages=4, **BODY), dict(backbone_stride=8, backbone=BODY)),
        (
            dict(name='yolo_v3', backbone='tiny', stages=5, **BODY),
            dict(backbone_stride=16, small_head=True, backbone=dict(name='tiny', **BODY)),
        ),
        (
            dict(name='yolo_v3', backbone='darknet53', stages=1, **BODY),
            dict(backbone_stride=1, small_head=False, backbone=dict(name='darknet53', **BODY)),
        ),
    ],
    ids=lambda model: f'{model.get("name")}-{model.get("backbone")}' if 'name' in model else '',
)
def test_group_backbone_by_hand(old, new):
    assert group_backbone(old) == new | dict(name=old['name'])


def test_from_json_of_today_changes_nothing():
    stored = dict(model=dict(name='yolo_v3', backbone=dict(name='tiny', norm='group_norm')))
    assert from_json(json.dumps(stored)).model.small_head is False
    assert from_json(json.dumps(stored)).model.backbone.norm == 'group_norm'


@pytest.mark.parametrize(
    'folder, experiment',
    [('speed_accuracy', 'speed_accuracy.py'), ('focal_loss', 'focal_loss.py')],
)
def test_recorded_runs_are_those_of_todays_experiment(folder, experiment):
    """They were recorded before the backbone was a group; of all detectors, and nothing else has changed since."""
    sweep, _ = load_sweep(str(RESULTS.parent / experiment))
    runs = {run.name: run for run in sweep.runs}
    rows = [json.loads(line) for line in (RESULTS / folder / 'results.jsonl').read_text().splitlines()]
    assert {row['run'] for row in rows} == set(runs)
    for row in rows[:5]:
        assert isinstance(row['config']['model'].get('backbone', ''), str)
        assert differences(from_json(json.dumps(row['config'])), config_of(runs[row['run']])) == {}, row['run']


@pytest.mark.parametrize(
    'model, words',
    [
        (dict(name='retinanet', depth=18), "key 'model.depth' any more: set model.backbone.name, like 'resnet18'"),
        (dict(name='ssd', norm='batch_norm'), "key 'model.norm' any more: set model.backbone.norm"),
        (dict(name='yolo_v2', stages=4), "key 'model.stages' any more: set model.backbone_stride, 2 .. .stages - 1"),
        (
            dict(name='ssd', backbone='vgg16'),
            "model.backbone is 'vgg16': it must be a group of keys, such as model.backbone",
        ),
    ],
)
def test_complete_names_the_new_key_of_an_old_one(model, words):
    with pytest.raises(ConfigError, match=words):
        complete(ml_collections.ConfigDict(dict(model=model)))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(width=0.5), "retinanet takes no argument 'width' any more: set backbone.width"),
        (dict(backbone='vgg16'), "backbone of retinanet is 'vgg16': it must be a mapping"),
        (dict(backbone=dict(nam='vgg16')), "no argument 'backbone.nam': the nearest is 'backbone.name'"),
    ],
)
def test_make_detector_names_the_new_argument_of_an_old_one(arguments, words):
    with pytest.raises(TypeError, match=words):
        make_detector('retinanet', num_classes=3, **arguments)
