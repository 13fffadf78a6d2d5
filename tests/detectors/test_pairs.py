"""Every backbone under every detector: all pairs are drawn, some are trained for two steps, with --full all.

A pair that cannot be is an error that says why; docs/backbones.md lists them all.
"""

import pathlib
import runpy

import jax
import numpy as np
import pytest
from contract import BLOCKS, CLASSES, shapes_of, with_windows
from tiny import (
    TINY_DEEPMASK,
    TINY_FASTER_RCNN,
    TINY_FASTER_RCNN_C4,
    TINY_MASK_RCNN,
    TINY_MASK_RCNN_C4,
    TINY_RCNN,
    TINY_RETINANET,
    TINY_SHARPMASK,
    TINY_SSD,
    TINY_YOLO_V1,
    TINY_YOLO_V2,
    TINY_YOLO_V3,
)

from detzoo.backbones import BACKBONES
from detzoo.detectors import make_detector

ROOT = pathlib.Path(__file__).parents[2]
DETECTORS = {
    'retinanet': TINY_RETINANET,
    'ssd': TINY_SSD,
    'yolo_v1': TINY_YOLO_V1,
    'yolo_v2': TINY_YOLO_V2,
    'yolo_v3': TINY_YOLO_V3,
    'faster_rcnn': TINY_FASTER_RCNN,
    'faster_rcnn_c4': TINY_FASTER_RCNN_C4,
    'mask_rcnn': TINY_MASK_RCNN,
    'mask_rcnn_c4': TINY_MASK_RCNN_C4,
    'rcnn': TINY_RCNN,
    'deepmask': TINY_DEEPMASK | dict(backbone_stride=16),
    'sharpmask': TINY_SHARPMASK | dict(backbone_stride=16, refine_strides=(8,)),
}
OF_C4 = [name for name in BACKBONES if name.startswith('resnet')]  # only a ResNet has a last stage
PAIRS = [(detector, name) for detector in DETECTORS for name in (OF_C4 if detector.endswith('c4') else BACKBONES)]
# Each detector and each backbone once, those that compile fast together.
TRAINED = [
    ('retinanet', 'vgg16'),
    ('ssd', 'extraction'),
    ('ssd', 'mobilenet_v2'),
    ('ssd', 'unet'),
    ('yolo_v1', 'resnet18'),
    ('yolo_v2', 'resnet50'),
    ('yolo_v2', 'resnet101'),
    ('yolo_v3', 'mobilenet_v3_large'),
    ('yolo_v3', 'darknet53'),
    ('faster_rcnn', 'tiny'),
    ('faster_rcnn_c4', 'resnet34'),
    ('mask_rcnn', 'darknet19'),
    ('rcnn', 'tiny'),
    ('deepmask', 'resnet18'),
    ('sharpmask', 'tiny'),
]
FEW = jax.tree.map(lambda x: x[:2], BLOCKS)


def made(detector, name, **changes):
    """A tiny detector with a narrow backbone."""
    width = 0.25 if 'mobilenet' in name else 0.125
    backbone = dict(name=name, width=width, norm='batch_norm')
    return with_windows(make_detector(num_classes=CLASSES, **DETECTORS[detector] | dict(backbone=backbone) | changes))


def drawn(variables):
    """Variables of these shapes. Their initialisers would take as long to compile as the step."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            return np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5) * rng.standard_normal(leaf.shape, np.float32)
        return np.full(leaf.shape, name in ('scale', 'var'), np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def test_the_default_selection_has_all_detectors_and_backbones():
    assert {name.removesuffix('_c4') for name, _ in TRAINED} == {name.removesuffix('_c4') for name in DETECTORS}
    assert {name for _, name in TRAINED} == set(BACKBONES) and set(TRAINED) <= set(PAIRS)


@pytest.mark.parametrize('detector, name', PAIRS)
def test_every_pair_is_drawn(detector, name):
    # The YOLOs with the stride of their papers, so that all stages are there.
    changes = dict(backbone_stride=32) if detector.startswith('yolo') else {}
    params, model_state = shapes_of(made(detector, name, **changes))
    leaves = jax.tree.leaves((params['backbone'], model_state['batch_stats']['backbone']))
    assert len(leaves) > 10 and all(leaf.size > 0 for leaf in leaves)
    parts = {'retinanet': 'cls_head', 'ssd': 'cls_head', 'deepmask': 'mask', 'sharpmask': 'output'}
    assert parts.get(detector, 'head' if detector.startswith('yolo') else 'box_head') in params


@pytest.mark.parametrize(
    'detector, name',
    [pair if pair in TRAINED else pytest.param(*pair, marks=pytest.mark.full) for pair in PAIRS],
)
def test_every_pair_trains_two_steps(detector, name):
    pair = made(detector, name)
    params, model_state = drawn(shapes_of(pair))
    step = jax.jit(jax.value_and_grad(pair.loss, has_aux=True))
    losses = []
    for number in range(2):
        (loss, (model_state, _)), grads = step(params, model_state, FEW, jax.random.key(number))
        losses.append(float(loss))
        length = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
        assert np.isfinite(loss) and np.isfinite(length)
        moved = [leaf.any() for leaf in jax.tree.leaves(grads['backbone'])]
        assert sum(map(bool, moved)) > 0.9 * len(moved)  # some ReLU of a narrow layer may let nothing through
        params = jax.tree.map(lambda x, grad: x - 1e-2 * grad / length, params, grads)  # noqa: B023
    assert losses[0] != losses[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, model_state)))


@pytest.mark.parametrize('detector', [name for name in DETECTORS if name.endswith('c4')])
def test_a_pair_that_cannot_be_says_why(detector):
    for name in set(BACKBONES) - set(OF_C4):
        with pytest.raises(ValueError, match=f'backbone.name is {name!r}: it has no last stage .* use one of resnet18'):
            made(detector, name)


def test_the_table_of_pairs_is_up_to_date():
    script = runpy.run_path(str(ROOT / 'scripts' / 'dev' / 'backbones.py'))
    assert script['PATH'].read_text() == script['page'](), 'run scripts/dev/backbones.py'
    assert script['page']().count(' yes |') == len(PAIRS)
