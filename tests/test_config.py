"""Configs: whole, comparable, and each key within reach of the command line."""

import json
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from detzoo import config as configs
from detzoo.config import complete, differences, from_json, to_json
from detzoo.detectors import DETECTORS, make_detector
from detzoo.detectors.network import arguments_of
from detzoo.errors import ConfigError
from detzoo.inference.predictor import detector_of
from detzoo.training.checks import check_canvases

NEEDS_FILES = ('yolo9000',)  # tests/detectors/test_yolo9000.py makes them
FILES = sorted(path for path in pathlib.Path(__file__).parents[1].glob('configs/*.py') if path.stem not in NEEDS_FILES)
VARIANTS = {  # beside the default
    'deeplab_shapes': ('fcn',),
    'fast_rcnn_shapes': ('spp',),
    'fcn_shapes': ('16s', '32s'),
    'mask_rcnn_shapes': ('c4',),
    'rcnn_shapes': ('selective_search',),
    'retinanet_r50_fpn_coco': ('scratch',),
    'ssd_histology': ('mobilenet_v2',),
    'ssd_vgg16_coco': ('512',),
    'ssd_vgg16_voc': ('512',),
    'yolo9000_shapes': ('flat',),
    'yolo_histology': ('v1', 'v2'),
    'yolo_shapes': ('v1', 'v2'),
    'yolov1_voc': ('tiny',),
    'yolov2_coco': ('tiny',),
    'yolov3_coco': ('tiny',),
}
FILE = """
import ml_collections
from detzoo.config import complete

def get_config(arg=None):
    c = ml_collections.ConfigDict()
    c.model = dict(name='retinanet')
    return complete(c)
"""


def minimal(**model):
    return ml_collections.ConfigDict(dict(model=dict(name='retinanet', **model)))


@pytest.fixture
def from_command_line(tmp_path, monkeypatch):
    """A function: arguments -> the config which a script gets from a config file that sets next to nothing."""
    path = tmp_path / 'minimal.py'
    path.write_text(FILE)

    def parse(*arguments):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file('config', flag_values=values)
        argv = ['train.py', f'--config={path}', *arguments]
        monkeypatch.setattr(sys, 'argv', argv)
        values(argv)
        return values.config

    return parse


@pytest.mark.parametrize(
    'path, argument',
    [(path, argument) for path in FILES for argument in (None, *VARIANTS.get(path.stem, ()))],
    ids=lambda x: x.stem if isinstance(x, pathlib.Path) else x,
)
def test_config_files_are_whole(path, argument, tiny_run):
    from_workdir = path.stem in ('finetune_histology', 'own_data')  # which go on from a run
    config = runpy.run_path(str(path))['get_config'](str(tiny_run) if from_workdir else argument)
    if not from_workdir:
        classes = len(config.model.get('tree') or range(3))
        check_canvases(config, detector_of(config, classes))
    whole = complete(ml_collections.ConfigDict(dict(model=dict(name=config.model.name))))
    keys, known = (set(dict(configs.flatten(c))) for c in (config, whole))
    left_out = keys - known  # groups that are None
    assert keys - left_out == {key for key in known if key.rpartition('.')[0] not in left_out}
    assert differences(config, complete(config)) == {}
    assert differences(config, from_json(to_json(config))) == {}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_config_files_refuse_a_variant_that_they_do_not_have(path):
    with pytest.raises(ConfigError, match='anything') as raised:
        runpy.run_path(str(path))['get_config']('anything')
    for variant in VARIANTS.get(path.stem, ()):
        assert variant in str(raised.value)


def test_complete_fills_in_all_defaults():
    whole = complete(minimal(backbone=dict(name='resnet18')))
    assert whole.model.backbone.name == 'resnet18' and whole.model.backbone.norm == 'frozen_batch_norm'
    assert whole.model.backbone.width == 1.0 and whole.model.head_norm is None
    assert whole.training.to_dict() == configs.defaults().training.to_dict()
    assert not set(whole.model) & {'num_classes', 'axis_name'}


def test_complete_leaves_its_argument_alone():
    config = minimal()
    complete(config).training.steps = 7
    assert config.to_dict() == {'model': {'name': 'retinanet'}}


def test_complete_knows_the_arguments_of_each_detector():
    for name in DETECTORS:
        whole = complete(ml_collections.ConfigDict(dict(model=dict(name=name))))
        assert callable(make_detector(**whole.model, num_classes=3).loss)


@pytest.mark.parametrize(
    'section, key, nearest',
    [
        ('training', 'step', 'training.steps'),
        ('model', 'head_dept', 'model.head_depth'),
        ('optimizer', 'learningrate', 'optimizer.learning_rate'),
        ('data', 'canvas', 'data.canvases'),
    ],
)
def test_complete_names_the_key_nearest_to_an_unknown_one(section, key, nearest):
    config = minimal()
    config.update({section: {key: 3}})
    with pytest.raises(ConfigError) as raised:
        complete(config)
    assert f"'{section}.{key}'" in str(raised.value) and f"'{nearest}'" in str(raised.value)


@pytest.mark.parametrize('config', [{}, {'model': {}}, {'model': {'name': 'yolo9000'}}])
def test_complete_wants_a_detector(config):
    with pytest.raises(ConfigError, match='model.name is .*retinanet'):
        complete(ml_collections.ConfigDict(config))


def test_complete_takes_none_for_what_may_be_none():
    # gamma 0 and alpha None are cross-entropy, says the docstring of RetinaNet.
    whole = complete(minimal(focal_gamma=0.0, focal_alpha=None))
    assert whole.model.focal_alpha is None
    assert from_json(to_json(whole)).model.focal_alpha is None
    assert whole.model.get_type('focal_alpha') is float  # so that --config.model.focal_alpha=0.5 can set it


def test_complete_takes_whole_numbers_for_real_ones():
    config = minimal(backbone=dict(width=1))
    config.optimizer = dict(learning_rate=1)
    assert complete(config).optimizer.learning_rate == 1.0


def test_from_json_brings_tuples_back():
    config = minimal(anchor_sizes=((8.0,),) * 5)
    config.data = dict(canvases=((64, 96), (96, 64)))
    back = from_json(to_json(complete(config)))
    assert back.data.canvases == ((64, 96), (96, 64))
    assert back.model.anchor_sizes == ((8.0,),) * 5


@pytest.mark.parametrize('targets, paste', [('average', 'torchvision'), ('point', 'centers')])
def test_from_json_of_an_older_detzoo_keeps_the_paste_that_masks_were_trained_for(targets, paste):
    config = complete(ml_collections.ConfigDict({'model': {'name': 'mask_rcnn', 'mask': {'targets': targets}}}))
    stored = json.loads(to_json(config))
    assert from_json(json.dumps(stored)).evaluation.mask_paste == 'centers'  # what is written there counts
    del stored['evaluation']['mask_paste']
    assert from_json(json.dumps(stored)).evaluation.mask_paste == paste


def test_from_json_reads_a_config_from_before_there_was_empty_images():
    stored = json.loads(to_json(complete(minimal())))
    del stored['data']['empty_images']
    assert from_json(json.dumps(stored)).data.empty_images is True  # as all images were trained then


def test_differences_name_the_keys_with_both_values():
    first, second = complete(minimal()), complete(minimal(head_norm='group_norm'))
    assert differences(first, first.copy_and_resolve_references()) == {}
    second.data.canvases = [[128, 128]]  # as it comes back from JSON: no difference
    second.optimizer.learning_rate = 0.5
    assert differences(first, second) == {
        'model.head_norm': (None, 'group_norm'),
        'optimizer.learning_rate': (1e-3, 0.5),
    }
    assert differences(ml_collections.ConfigDict(), ml_collections.ConfigDict({'a': {'b': 1}})) == {'a.b': (None, 1)}


@pytest.mark.parametrize(
    'data, words',
    [
        (dict(canvas_steps=0), 'data.canvas_steps is 0'),
        (dict(max_proposals=0), 'data.max_proposals is 0'),
        (dict(recipe=dict(resize='warp')), "data.recipe.resize is 'warp'"),
        (
            dict(recipe=dict(mixup=0.5), train_proposals='p.json'),
            "data.recipe.mixup is 0.5, and data.train_proposals is 'p.json', which tells of one image",
        ),
    ],
)
def test_complete_refuses_data_that_mean_nothing(data, words):
    config = minimal()
    config.data = data
    with pytest.raises(ConfigError, match=words):
        complete(config)


def test_mutable_keys_exist():
    assert set(configs.MUTABLE) < set(dict(configs.flatten(configs.defaults())))


@pytest.mark.parametrize(
    'argument, value',
    [
        ('model.head_norm=group_norm', 'group_norm'),  # the first of these are None by default
        ('data.recipe.shorter_side=50', 50),
        ('data.data_dir=/data', '/data'),
        ('data.train_proposals=ground_truth', 'ground_truth'),
        ('data.validation_proposals=detections.json.gz', 'detections.json.gz'),
        ('initialize_backbone=r50.safetensors', 'r50.safetensors'),
        ('model.backbone.width=0.5', 0.5),
        ('model.backbone.name=vgg16', 'vgg16'),
        ('model.anchor_sizes=((8.0,),(16.0,),(32.0,),(64.0,),(99.0,))', ((8.0,), (16.0,), (32.0,), (64.0,), (99.0,))),
        ('model.match_best_anchors=false', False),
        ('data.canvases=((64,96),)', ((64, 96),)),
        ('data.recipe.scale_range=(0.5,2.0)', (0.5, 2.0)),
        ('data.recipe.saturation=(0.5,1.5)', (0.5, 1.5)),
        ('data.recipe.resize=stretch', 'stretch'),
        ('data.recipe.iou_crop=true', True),
        ('data.canvas_steps=10', 10),
        ('optimizer.learning_rate=1e-4', 1e-4),
        ('training.steps=7', 7),
    ],
)
def test_command_line_sets_any_key(from_command_line, argument, value):
    config = complete(from_command_line(f'--config.{argument}'))
    changed = argument.partition('=')[0]
    assert dict(configs.flatten(config))[changed] == value
    assert set(differences(complete(minimal()), config)) == {changed}


def test_command_line_refuses_unknown_keys(from_command_line):
    with pytest.raises(Exception, match='widht'):
        from_command_line('--config.model.widht=0.5')


def test_make_detector_names_the_nearest_argument():
    with pytest.raises(TypeError) as raised:
        make_detector('retinanet', num_classes=3, head_dept=2)
    assert "retinanet takes no argument 'head_dept': the nearest is 'head_depth'" in str(raised.value)


def test_groups_of_arguments_are_keys_of_their_own():
    config = ml_collections.ConfigDict(dict(model=dict(name='faster_rcnn', rpn=dict(samples=64))))
    whole = complete(config)
    assert whole.model.rpn.samples == 64 and whole.model.rpn.positive_iou == 0.7
    assert set(differences(complete(ml_collections.ConfigDict(dict(model=dict(name='faster_rcnn')))), whole)) == {
        'model.rpn.samples'
    }
    assert differences(whole, from_json(to_json(whole))) == {}
    with pytest.raises(TypeError, match=r"faster_rcnn takes no argument 'rpn.sample': the nearest is 'rpn.samples'"):
        make_detector('faster_rcnn', num_classes=3, rpn=dict(sample=3))
    config.model.rpn = dict(sample=64)
    with pytest.raises(ConfigError, match=r"no config key 'model.rpn.sample': the nearest is 'model.rpn.samples'"):
        complete(config)


def test_groups_of_arguments_may_be_none_where_the_detector_says_so(monkeypatch):
    def make(*, num_classes: int, first: Mapping[str, Any] | None = {'a': 1}, second: Mapping[str, Any] = {'b': 2}):  # noqa: B006
        pass

    monkeypatch.setitem(DETECTORS, 'two_groups', make)

    def completed(**model):
        return complete(ml_collections.ConfigDict(dict(model=dict(name='two_groups', **model))))

    assert completed().model.to_dict() == dict(name='two_groups', first=dict(a=1), second=dict(b=2))
    whole = completed(first=None)
    assert whole.model.to_dict() == dict(name='two_groups', first=None, second=dict(b=2))
    assert differences(whole, complete(whole)) == differences(whole, from_json(to_json(whole))) == {}
    assert differences(completed(), whole) == {'model.first.a': (1, None)}
    with pytest.raises(ConfigError, match='model.second is None: it must be a group of keys, such as model.second.b'):
        completed(second=None)


def inner(*, sizes: tuple[int, ...] | None = None, norm: str | None = 'a', shares: Sequence[float] | None = None):
    pass


def test_arguments_of_any_type_may_be_none(monkeypatch):
    def make(
        *,
        num_classes: int,
        flag: bool | None = None,
        pair: tuple[int, int] | None = None,
        ratio: Optional[float] = None,  # noqa: UP045
        group: Mapping[str, Any] | None = arguments_of(inner),  # noqa: B008
        absent: Mapping[str, Any] | None = None,
        sure: int = 3,
    ):
        pass

    monkeypatch.setitem(DETECTORS, 'odd', make)

    def completed(**model):
        return complete(ml_collections.ConfigDict(dict(model=dict(name='odd', **model)))).model

    assert completed().to_dict() == dict(
        name='odd', flag=None, pair=None, ratio=None, absent=None, sure=3, group=dict(sizes=None, norm='a', shares=None)
    )
    given = dict(flag=True, pair=(1, 2), ratio=0.5, group=dict(sizes=(3, 4), norm=None, shares=(0.5,)))
    assert completed(**given).to_dict() == dict(name='odd', absent=None, sure=3, **given)
    assert completed(group=None).group is None
    for wrong, words in (
        (dict(flag=1), 'model.flag is 1: it must be True or False'),
        (dict(pair=5), 'model.pair is 5: it must be numbers in a tuple'),
        (dict(ratio='x'), "model.ratio is 'x': it must be a finite number"),
        (dict(group=dict(sizes='x')), "model.group.sizes is 'x': it must be numbers in a tuple"),
        (dict(group=5), 'model.group is 5: it must be None or a group of keys, such as model.group.'),
        (dict(sure=None), 'model.sure is None: it must be a whole number'),
    ):
        with pytest.raises(ConfigError, match=words):
            completed(**wrong)


def test_make_detector_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown detector 'retina': .*retinanet"):
        make_detector('retina', num_classes=3)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(anchor_strides='canvas'), 'anchor_strides'),
        (dict(head_norm='batch_norm'), 'head_norm'),
        (dict(anchor_sizes=((8.0,), (8.0, 9.0), (8.0,), (8.0,), (8.0,))), 'anchor_sizes'),
    ],
)
def test_make_detector_refuses_values_it_cannot_use(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector('retinanet', num_classes=3, **changes)
