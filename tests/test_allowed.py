"""Values of a config that mean nothing: each gives one sentence, with the key, the value and what is allowed."""

import inspect
import math
import re

import ml_collections
import pytest
import tiny

from detzoo.allowed import ALLOWED, MODEL, is_alike
from detzoo.config import FROM_DATA, complete, defaults, example, flatten, from_json, read_config, to_json
from detzoo.data.catalog import open_dataset
from detzoo.detectors import DETECTORS
from detzoo.errors import ConfigError
from detzoo.segmenters import SEGMENTERS
from detzoo.training.checks import check

TINY = {name: getattr(tiny, f'TINY_{name.upper()}') for name in DETECTORS}
NAN, INF = math.nan, math.inf
NO_COUNT, NO_AMOUNT, NO_SHARE = (0, -5, None, 'x', 10**30), (-1, None, 'x', True), (-0.1, 1.5, NAN, None, 'x')
NO_CANVASES = ((64,), ((64,),), ((64, 64, 3),), ((0, 64),), ((64, -64),), ((64.5, 64),), (('x', 64),), 'x', 64, None)
ODD = {
    'seed': (-1, 2**32, 1.5, None, True),
    'data.canvases': (*NO_CANVASES, ()),
    'data.canvas_steps': NO_COUNT,
    'data.mask_size': NO_AMOUNT,
    'data.max_boxes': NO_COUNT,
    'data.threads': NO_COUNT,
    'data.max_proposals': NO_COUNT,
    'data.data_dir': (3, False),
    'data.recipe.flip': NO_SHARE,
    'data.recipe.iou_crop': (1, 'yes', None),
    'data.recipe.scale_range': (
        (1.0,),
        (2.0, 1.0),
        (0.0, 1.0),
        (1e-9, 1.0),
        (1.0, 1e9),
        (1.0, INF),
        (1.0, 'x'),
        ((1.0, 2.0),),
    ),
    'data.recipe.saturation': ((1.2, 1.5), (0.5, NAN), ()),
    'data.recipe.zoom_out': (0.5, NAN, INF, None),
    'data.recipe.shorter_side': (0, -5, 1.5, 'x'),
    'data.recipe.resize': ('warp', 3, None),
    'training.steps': NO_COUNT,
    'training.batch_size': NO_COUNT,
    'training.accumulate': NO_COUNT,
    'training.num_replicas': NO_COUNT,
    'training.checkpoint_every': NO_COUNT,
    'training.evaluate_every': NO_AMOUNT,
    'optimizer.name': ('adam', 3, None),
    'optimizer.learning_rate': (*NO_AMOUNT, NAN, INF, 1e39),
    'optimizer.schedule': ('linear', None),
    'optimizer.decay_at': ((0.9, 0.6), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (NAN,), ('x',), 0.5),
    'optimizer.warmup_steps': NO_AMOUNT,
    'optimizer.weight_decay': (*NO_AMOUNT, NAN),
    'optimizer.momentum': (-0.1, 1.0, NAN, None),
    'optimizer.epsilon': (0.0, -1e-8, NAN),
    'optimizer.clip_norm': (-1.0, NAN, INF),
    'optimizer.ema_decay': (-0.1, 1.0, 1.5, NAN),
    'optimizer.frozen': ('(', '[', '*', 3, None),
    'evaluation.batch_size': NO_COUNT,
    'evaluation.canvases': NO_CANVASES,
    'evaluation.exact': (1, 'x'),
    'evaluation.divisor': NO_COUNT,
    'initialize_from': (3,),
}
ODD_MODEL = {
    'retinanet': {
        'name': ('yolo9000', 3, None, ['retinanet']),
        'backbone.name': ('resnet19', 50, None),
        'extra_levels_from': ('p6', None),
        'backbone.width': (0.0, -1.0, 1e6, NAN, 'x'),
        'backbone.norm': ('batchnorm', ''),
        'backbone.norm_epsilon': (-1e-5, NAN),
        'backbone': ('resnet18', None),
        'fpn_features': NO_COUNT,
        'head_depth': (-1, None),
        'prior_probability': (0.0, 1.0, NAN),
        'anchor_sizes': ((), ((),) * 5, ((0.0,),) * 5, ((-8.0,),) * 5, ((NAN,),) * 5, (('x',),) * 5, (8.0,) * 5, 8.0),
        'aspect_ratios': ((), (0.0,), (-1.0, 1.0), (NAN,), ((1.0,),)),
        'positive_iou': (*NO_SHARE, 0.3),  # below negative_iou
        'focal_gamma': (-1.0, NAN),
        'focal_alpha': (-0.1, 1.5),
        'negatives_per_positive': (-1.0, INF, 'x'),
        'box_loss_weight': (-1.0, INF),
        'pre_nms_topk': NO_COUNT,
        'score_threshold': NO_SHARE,
        'iou_threshold': NO_SHARE,
        'max_detections': NO_COUNT,
        'mean': ((), (1.0, 2.0), (1.0, 2.0, NAN), 0.5),
        'std': ((1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, -1.0)),
        'bgr': (1, None),
        'dtype': ('float33', 'int32', None),
    },
    'faster_rcnn': {
        'fpn_norm': ('batchnorm',),
        'trunk_fc_layers': NO_AMOUNT,
        'trunk_features': NO_COUNT,
        'rpn.samples': NO_COUNT,
        'rpn.positive_share': NO_SHARE,
        'rpn.anchor_sizes': ((), ((-8.0,),) * 5),
        'rpn.negative_iou': (*NO_SHARE, 0.9),
        'rpn.min_size': (-1.0, NAN),
        'roi.output_size': NO_COUNT,
        'roi.canonical_size': (0.0, -1.0),
        'roi.samples_per_bin': (-1,),
        'roi.pyramid': ((), (0, 1), (1.5,), 3),
        'roi.stop_gradient': (1, None),
        'head.delta_weights': ((), (10.0,), (10.0, 10.0, 5.0, 0.0)),
        'head.max_detections': NO_COUNT,
    },
    'mask_rcnn': {'mask.layers': (-1,), 'mask.features': NO_COUNT, 'mask_roi.output_size': NO_COUNT},
    'mnc': {
        'mask_layers': (-1,),
        'mask_features': NO_COUNT,
        'output_size': NO_COUNT,
        'rounds': NO_COUNT,
        'head.iou_threshold': NO_SHARE,
    },
    'sds': {'head.negative_iou': (*NO_SHARE, 0.9), 'head.samples': NO_COUNT, 'roi.output_size': NO_COUNT},
    'rcnn': {'crop_size': NO_COUNT, 'context': NO_AMOUNT, 'head.samples': NO_COUNT},
    'ssd': {
        'anchor_sizes': ((), (12, 20, 28, -36), (12, 20, 28, NAN)),
        'anchor_strides': ((0, 16, 32), (8, 16, NAN), 'x'),
        'extra_layers': (((16, 32, 3, 2),), ((16, 32, 3, 0, 1),), ((16, 32, 3, 2, -1),), ((16.5, 32, 3, 2, 1),)),
        'l2_norm_scale': (0.0, -1.0),
        'backbone.fc6_dilation': NO_COUNT,
        'backbone_strides': ((), (0, 16), (8.5, 16), 8),
    },
    'yolo_v1': {
        'backbone_stride': NO_COUNT,
        'head_features': ((), (0, 32), (1.5, 32), 32),
        'local_features': (0, -1),
        'dropout': (-0.5, 1.0),
        'boxes_per_cell': NO_COUNT,
        'box_scale': (-1.0,),
    },
    'yolo_v2': {'anchor_sizes': ((), ((12.0, 0.0),)), 'warm_up_images': (-1,), 'ignore_iou': NO_SHARE},
    'yolo_v3': {'anchor_sizes': ((), ((12.0, 12.0),), (((12.0, -12.0),),)), 'head_features': NO_COUNT},
}
CASES = [
    *(('retinanet', key, value) for key, values in ODD.items() for value in values),
    *(
        (name, f'model.{key}', value)
        for name, odd in ODD_MODEL.items()
        for key, values in odd.items()
        for value in values
    ),
]


def config_with(name, key, value):
    """A tiny detector's config in which a key has a value, of whatever type."""
    config = {'model': dict(TINY[name])}
    *groups, last = key.split('.')
    place = config
    for group in groups:
        place[group] = dict(place.get(group, {}))
        place = place[group]
    place[last] = value
    return ml_collections.ConfigDict(config)


def test_complete_refuses_odd_values():
    assert len(CASES) > 300
    for name, key, value in CASES:
        if value is None and key in FROM_DATA:
            continue
        with pytest.raises(ConfigError) as raised:
            complete(config_with(name, key, value))
            pytest.fail(f'{name}: {key}={value!r} is accepted')
        words = '(it must be |are known|there is no config key)'
        assert re.match(rf"({key}|model.negative_iou|there is no config key '{key}).*{words}", str(raised.value)), (
            raised.value
        )


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('training.steps', -5, 'training.steps is -5: it must be at least 1'),
        ('training.steps', True, 'training.steps is True: it must be a whole number of 32 bits'),
        ('optimizer.ema_decay', 1.5, 'optimizer.ema_decay is 1.5: it must be at least 0 (none) and below 1'),
        ('optimizer.learning_rate', NAN, 'optimizer.learning_rate is nan: it must be a finite number'),
        (
            'data.canvases',
            (),
            'data.canvases is (): it must be one or more (height, width) of at least 1 pixel, like ((128, 128),)',
        ),
        ('model.score_threshold', 2.0, 'model.score_threshold is 2.0: it must be in 0..1'),
        ('model.anchor_sizes', (8.0,), 'model.anchor_sizes is (8.0,): it must be numbers in a tuple of tuples'),
        ('model.negative_iou', 0.6, 'model.negative_iou is 0.6: it must be at most model.positive_iou, 0.5'),
    ],
)
def test_complete_says_what_is_allowed(key, value, message):
    with pytest.raises(ConfigError) as raised:
        complete(config_with('retinanet', key, value))
    assert str(raised.value) == message


def test_complete_says_what_a_group_of_keys_may_be():
    with pytest.raises(
        ConfigError, match='^model.rpn is 5: it must be None or a group of keys, such as model.rpn.anchor_sizes$'
    ):
        complete(ml_collections.ConfigDict(dict(model=dict(name='faster_rcnn', rpn=5))))


@pytest.mark.parametrize(
    'name, key, value',
    [
        ('retinanet', 'seed', 2 * 10**9),
        ('retinanet', 'data.canvases', [[64, 96], [96, 64]]),
        ('retinanet', 'evaluation.canvases', ()),
        ('retinanet', 'training.evaluate_every', 0),
        ('retinanet', 'optimizer.learning_rate', 0),  # to measure without learning
        ('retinanet', 'optimizer.momentum', 0.0),
        ('retinanet', 'optimizer.decay_at', ()),
        ('retinanet', 'optimizer.warmup_steps', 10**6),  # a recipe cut to a few steps for a try
        ('retinanet', 'model.backbone.norm_epsilon', 0.0),  # torchvision's on COCO
        ('retinanet', 'model.score_threshold', 0),
        ('retinanet', 'model.iou_threshold', 1.0),
        ('retinanet', 'model.focal_alpha', None),
        ('retinanet', 'model.backbone.norm', None),  # of VGG-16
        ('retinanet', 'model.head_depth', 0),
        ('faster_rcnn', 'model.fpn_features', None),
        ('faster_rcnn', 'model.rpn', None),
        ('faster_rcnn', 'model.roi.samples_per_bin', 0),
        ('mask_rcnn', 'model.mask.layers', 0),
        ('ssd', 'model.anchor_strides', ()),
        ('ssd', 'model.extra_layers', ()),
        ('ssd', 'model.aspect_ratios', ((), (), ())),
        ('ssd', 'model.anchor_sizes', (12.5, 20, 28, 36)),
        ('yolo_v2', 'model.passthrough_features', None),
    ],
)
def test_complete_takes_values_at_the_limits(name, key, value):
    whole = complete(config_with(name, key, value))
    assert from_json(to_json(whole)).to_dict() == whole.to_dict()
    assert dict(flatten(whole))[key] == (((64, 96), (96, 64)) if key == 'data.canvases' else value)


def test_every_number_has_a_range():
    whole = defaults()
    numbers = {
        key for key, _ in flatten(whole) if is_alike(example(whole, key), 0.0) or is_alike(example(whole, key), (0.0,))
    }
    assert {key for key in numbers if not key.startswith('data.recipe.')} <= set(ALLOWED)
    assert {'data.max_boxes', 'optimizer.decay_at'} <= numbers and set(ALLOWED) <= set(dict(flatten(whole)))
    known = set()
    for name in DETECTORS:
        whole = complete(ml_collections.ConfigDict(dict(model=dict(name=name))))
        for key, _ in flatten(whole.model, 'model.'):
            argument, value = key.rpartition('.')[2], example(whole, key)
            known |= {argument, key.removeprefix('model.')}
            assert argument in MODEL or value is None or isinstance(value, str | bool), key
    known |= {argument for make in SEGMENTERS.values() for argument in inspect.signature(make).parameters}
    assert set(MODEL) <= known


@pytest.mark.parametrize(
    'name, changes, words',
    [
        ('sds', {}, 'data.mask_size is 0, and sds learns masks'),
        (
            'retinanet',
            {'data.proposal_mask_size': 28},
            'data.proposal_mask_size is 28, and retinanet reads no masks of',
        ),
        ('retinanet', {'data.mask_size': 28}, 'data.mask_size is 28, and retinanet finds no masks: set it to 0'),
        ('mask_rcnn', {}, 'data.mask_size is 0, and mask_rcnn learns masks: set it'),
        ('retinanet', {'model.anchor_sizes': ((8.0,),) * 4}, 'anchor_sizes has 4 levels, the pyramid 5'),
        ('faster_rcnn', {'model.rpn.anchor_sizes': ((8.0,),) * 4}, 'rpn.anchor_sizes has 4 levels, the pyramid 5'),
        (
            'yolo_v2',
            {'model.backbone.width': 1e-9},
            'a layer of this yolo_v2 has no channels: raise model.backbone.width or its features',
        ),
        ('yolo_v2', {'model.anchor_sizes': ((8.0, 8.0, 8.0),)}, r'anchor_sizes must be a \(width, height\)'),
        ('yolo_v3', {'model.anchor_sizes': (((8.0,),),)}, r'anchor_sizes must be a \(width, height\)'),
    ],
)
def test_check_refuses_what_does_not_fit_together(data_dir, name, changes, words):
    config = complete(ml_collections.ConfigDict(dict(model=TINY[name])))
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=words):
        check(config, open_dataset('toy', 'train', data_dir))


@pytest.mark.parametrize('text', [
    b'', b'{"model": {"name": "retin', b'[]', b'3', b'\x00' * 50, b'\xff', b'[' * 100_000, b'{"a.b": 1}',
    b'{"model": {"name": "mask_rcnn", "mask": {"targets": "average"}}, "evaluation": 3}',
], ids=range(9))  # fmt: skip
def test_read_config_names_a_file_that_is_none(tmp_path, text):
    path = tmp_path / 'config.json'
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(f'{path} was cut short, or is no config (')):
        read_config(path)


def test_read_config_names_the_file_of_a_value_that_is_not_allowed(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text('{"model": {"name": "retinanet", "backbone": {"width": -1.0}}}')
    with pytest.raises(ConfigError, match=f'{path}: model.backbone.width is -1.0: it must be above 0'):
        read_config(path)
