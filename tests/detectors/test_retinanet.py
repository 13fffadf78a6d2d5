"""RetinaNet: parameters of torchvision's, what its losses train, its thresholds."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from contract import BLOCKS, CLASSES, shapes_of, tiny_variant
from tiny import TINY_RETINANET

from detzoo.core import box_coding, losses
from detzoo.core.matching import IGNORE, NEGATIVE, match_by_threshold
from detzoo.detectors import make_detector
from detzoo.weights.torchvision import PEERS


@pytest.fixture(scope='module')
def tiny():
    """The tiny RetinaNet, compiled."""
    return tiny_variant('retinanet')


@pytest.mark.parametrize(
    'name, parameters',
    [
        ('retinanet_resnet50_fpn', 34_014_999),
        ('retinanet_resnet50_fpn_v2', 38_198_935),  # P6 reads C5's 2048 channels, and batch norm is trained
    ],
)
def test_retinanet_has_as_many_parameters_as_torchvision(name, parameters):
    # Torchvision's files of these models, for 91 classes.
    params, _ = shapes_of(make_detector(**PEERS[name].model))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_retinanet_in_bfloat16_is_near_float32(tiny):
    detector = make_detector(num_classes=CLASSES, **TINY_RETINANET | dict(dtype='bfloat16'))
    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (loss, (_, metrics)), grads = step(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))
    (_, (_, expected)), _ = tiny.gradient(BLOCKS)
    assert loss.dtype == np.float32
    assert metrics['positives'] == expected['positives'] and metrics['ignored'] == expected['ignored']
    assert metrics['cls_loss'] == pytest.approx(float(expected['cls_loss']), rel=0.02)
    assert metrics['box_loss'] == pytest.approx(float(expected['box_loss']), rel=0.05)
    assert metrics['cls_loss'] != expected['cls_loss']  # it was computed otherwise
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize('kind', losses.IOU_LOSSES)
def test_retinanet_regresses_what_box_loss_says(tiny, kind):
    """Takes hold of the box head: at no correction the loss is that of the anchors, at the right one there is none."""
    detector = make_detector(num_classes=CLASSES, **TINY_RETINANET | dict(box_loss=kind))
    anchors, matched = map(np.asarray, tiny.assign(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))['anchors'])
    positive, rows = matched >= 0, np.maximum(matched, 0)
    targets = np.where(positive[..., None], np.take_along_axis(BLOCKS.gt.boxes, rows[..., None], axis=1), anchors)

    @jax.jit
    def box_loss(deltas):
        def replace(next_function, args, kwargs, context):
            outputs = next_function(*args, **kwargs)
            return deltas if context.module.name == 'box_head' and context.method_name == '__call__' else outputs

        with nn.intercept_methods(replace):
            return detector.loss(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))[1][1]['box_loss']

    expected = losses.iou_loss(anchors[positive], targets[positive], kind=kind).mean()
    assert expected > 0.2
    assert box_loss(np.zeros_like(anchors)) == pytest.approx(float(expected), rel=1e-5)
    assert box_loss(np.asarray(box_coding.encode(targets, anchors))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('negatives_per_positive', [None, 3.0])
def test_retinanet_trains_what_assign_says(tiny, negatives_per_positive):
    """Takes hold of the heads' outputs: their gradients, and the box loss at its minimum, show what the loss matches."""
    arguments = TINY_RETINANET | dict(negatives_per_positive=negatives_per_positive)
    detector = make_detector(num_classes=CLASSES, **arguments)
    anchors, matched = jax.jit(detector.assign)(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))['anchors']
    anchors, matched = np.asarray(anchors), np.asarray(matched)
    rows = np.maximum(matched, 0)
    targets = np.take_along_axis(BLOCKS.gt.boxes, rows[..., None], axis=1)
    targets = np.where(matched[..., None] >= 0, targets, anchors)
    labels = np.take_along_axis(BLOCKS.gt.labels, rows, axis=1)
    deltas = np.asarray(box_coding.encode(targets, anchors))  # what the box head should say

    def loss(cls_shift, box_outputs, params, model_state):
        def replace(next_function, args, kwargs, context):
            outputs = next_function(*args, **kwargs)
            name = context.module.name if context.method_name == '__call__' else None
            return outputs + cls_shift if name == 'cls_head' else box_outputs if name == 'box_head' else outputs

        with nn.intercept_methods(replace):
            value, (_, metrics) = detector.loss(params, model_state, BLOCKS, jax.random.key(0))
        return value, metrics

    differentiate = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    zeros = np.zeros((*matched.shape, CLASSES), np.float32)
    (cls_gradient, _), metrics = differentiate(zeros, deltas, tiny.params, tiny.model_state)
    assert metrics['box_loss'] < 1e-5  # every positive is drawn to the box assign names

    (_, box_gradient), metrics = differentiate(zeros, deltas + 0.5, tiny.params, tiny.model_state)
    # L1 at 4 * 0.5 a positive anchor: its gradient is 1 / positives there, and nothing elsewhere.
    assert metrics['box_loss'] == pytest.approx(2, rel=1e-5)
    expected = np.where(matched[..., None] >= 0, 1 / (matched >= 0).sum(), 0)
    np.testing.assert_allclose(box_gradient, np.broadcast_to(expected, box_gradient.shape), rtol=1e-4)

    wanted = (matched >= 0)[..., None] & (labels[..., None] == np.arange(CLASSES))
    sign = np.where(wanted, -1, np.where((matched == IGNORE)[..., None], 0, 1))
    np.testing.assert_array_equal(np.sign(cls_gradient), sign)
    assert (matched == IGNORE).any() and wanted.any()
    if negatives_per_positive is not None:
        np.testing.assert_array_equal((matched == NEGATIVE).sum(axis=1), 3 * (matched >= 0).sum(axis=1))


def test_retinanet_matches_by_the_thresholds_of_the_paper(tiny):
    # Positive from 0.5, negative below 0.4, best anchors matched (section 4).
    boxes, matched = tiny.assign(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))['anchors']
    match = functools.partial(match_by_threshold, positive_iou=0.5, negative_iou=0.4, match_best_anchors=True)
    np.testing.assert_array_equal(matched, jax.jit(jax.vmap(match))(boxes, BLOCKS.gt))
