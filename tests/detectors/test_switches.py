"""The switches of detectors: each is traced for a step, and with --full takes it."""

import functools

import jax
import numpy as np
import optax
import pytest
from contract import BATCH, BLOCKS, CANVAS, CLASSES, shapes_of
from tiny import (
    TINY_FASTER_RCNN,
    TINY_FASTER_RCNN_C4,
    TINY_FASTER_RCNN_MOBILENET,
    TINY_FASTER_RCNN_V2,
    TINY_MASK_RCNN,
    TINY_MASK_RCNN_C4,
    TINY_MASK_RCNN_V2,
    TINY_RETINANET,
    TINY_SPP,
    TINY_SSD,
    TINY_SSD_RESNET,
    TINY_SSDLITE,
    TINY_YOLO_V1,
    TINY_YOLO_V2,
    TINY_YOLO_V3,
    with_backbone,
)

from detzoo.detectors import make_detector

SWITCHES = [
    *(
        TINY_FASTER_RCNN | dict(roi=TINY_FASTER_RCNN['roi'] | changes)
        for changes in (
            dict(operator='pool'),
            dict(operator='warp', reduce='max'),
            dict(reduce='max', aligned=False, samples_per_bin=1),
            dict(samples_per_bin=0),
        )
    ),
    with_backbone(TINY_FASTER_RCNN, norm='frozen_batch_norm') | dict(class_agnostic=True, dtype='bfloat16'),
    with_backbone(TINY_FASTER_RCNN, name='resnet50', norm='group_norm')
    | dict(
        head=TINY_FASTER_RCNN['head'] | dict(add_ground_truth=False, min_size=1.0),
        rpn=TINY_FASTER_RCNN['rpn']
        | dict(anchor_strides='canvas_over_grid', round_anchors=True, match_best_anchors=False),
    ),
    TINY_FASTER_RCNN_V2,
    TINY_FASTER_RCNN
    | dict(
        fpn_norm='group_norm',
        trunk_conv_layers=2,
        trunk_fc_layers=2,
        trunk_norm='group_norm',
        dtype='bfloat16',
        rpn=TINY_FASTER_RCNN['rpn'] | dict(layers=3, score_threshold=0.05),
    ),
    TINY_FASTER_RCNN | dict(fpn_norm='frozen_batch_norm', trunk_conv_layers=1, trunk_norm='frozen_batch_norm'),
    TINY_FASTER_RCNN | dict(trunk_conv_layers=1, trunk_fc_layers=0),
    with_backbone(TINY_FASTER_RCNN_MOBILENET, norm='frozen_batch_norm') | dict(dtype='bfloat16'),
    with_backbone(TINY_FASTER_RCNN_C4, name='resnet50', norm='frozen_batch_norm')
    | dict(dtype='bfloat16', roi=dict(operator='pool', output_size=14)),
    TINY_SPP | dict(roi=TINY_SPP['roi'] | dict(stop_gradient=True)),
    TINY_SPP | dict(name='mask_rcnn', roi=dict(output_size=4), trunk_conv_layers=1, mask=dict(layers=1, features=16)),
    TINY_MASK_RCNN | dict(mask=dict(head='mlp', layers=1, features=16, class_agnostic=True)),
    TINY_MASK_RCNN | dict(mask=dict(layers=1, features=16, activation='softmax'), dtype='bfloat16'),
    TINY_MASK_RCNN_V2,
    TINY_MASK_RCNN | dict(mask=dict(layers=1, features=16, norm='frozen_batch_norm'), fpn_norm='group_norm'),
    TINY_MASK_RCNN_C4 | dict(mask=dict(layers=1, features=16, norm='group_norm')),
    TINY_MASK_RCNN | TINY_FASTER_RCNN_MOBILENET | dict(name='mask_rcnn'),
    TINY_MASK_RCNN_C4 | dict(mask=dict(layers=0, features=16, activation='softmax', class_agnostic=True)),
    with_backbone(TINY_RETINANET, name='resnet34', norm='frozen_batch_norm')
    | dict(head_norm=None, extra_levels_from='c5'),
    with_backbone(TINY_RETINANET, name='resnet50', norm='group_norm')
    | dict(head_depth=4, aspect_ratios=(0.5, 1.0), box_loss='diou'),
    with_backbone(TINY_RETINANET, name='resnet101')
    | dict(dtype='bfloat16', box_loss='ciou', negatives_per_positive=3.0),
    with_backbone(TINY_SSD, norm='frozen_batch_norm')
    | dict(l2_norm_scale=None, clip_anchors=True, anchor_strides=(), bgr=True),
    with_backbone(TINY_SSD, norm='group_norm') | dict(lite=True, dtype='bfloat16', bipartite=True),
    with_backbone(TINY_SSD, norm=None),
    TINY_SSD_RESNET,
    TINY_SSD
    | dict(
        backbone=dict(name='resnet50', width=0.125, norm='frozen_batch_norm'),
        backbone_strides=(8, 16, 32),
        anchor_sizes=(8, *TINY_SSD['anchor_sizes']),
        aspect_ratios=((1 / 2, 2),) * 4,
        anchor_strides=(8, 16, 32, 64),
    ),
    with_backbone(TINY_SSDLITE, norm='group_norm', reduced_tail=False),
    with_backbone(TINY_SSDLITE, name='mobilenet_v2') | dict(dtype='bfloat16'),
    with_backbone(TINY_YOLO_V1, name='extraction')
    | dict(head_features=(256, 256), local_features=64, boxes_per_cell=3),
    with_backbone(TINY_YOLO_V1, norm='group_norm') | dict(rescore=False, dtype='bfloat16'),
    with_backbone(TINY_YOLO_V2, name='tiny', norm='frozen_batch_norm')
    | dict(head_features=(64, 32), passthrough_features=None),
    with_backbone(TINY_YOLO_V2, norm='group_norm')
    | dict(backbone_stride=32, dtype='bfloat16', rescore=False, prior_probability=0.1),
    with_backbone(TINY_YOLO_V3, name='tiny', norm='frozen_batch_norm') | dict(small_head=True, box_loss='ciou'),
    TINY_YOLO_V3 | dict(backbone_stride=32, dtype='bfloat16', box_loss='giou'),
    with_backbone(TINY_YOLO_V3, norm='group_norm')
    | dict(anchor_sizes=TINY_YOLO_V3['anchor_sizes'][:1], box_loss='diou'),
]


@pytest.mark.parametrize('arguments', SWITCHES, ids=str)
def test_switches_trace_a_step(arguments):
    detector = make_detector(num_classes=CLASSES, **arguments)
    variables = shapes_of(detector)
    (loss, (model_state, _)), grads = jax.eval_shape(
        jax.value_and_grad(detector.loss, has_aux=True), *variables, BLOCKS, jax.random.key(0)
    )
    assert (loss.shape, loss.dtype) == ((), np.float32)
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes((grads, model_state)) == shapes(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}
    found = jax.eval_shape(detector.predict, *variables, BLOCKS.inputs)
    assert found.boxes.shape == (BATCH, 10, 4)


@pytest.mark.full
@pytest.mark.parametrize('arguments', SWITCHES, ids=str)
def test_switches_train_a_step(arguments):
    detector = make_detector(num_classes=CLASSES, **arguments)
    params, model_state = jax.jit(detector.init, static_argnums=1)(jax.random.key(0), CANVAS)
    value_and_grad = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (before, (model_state, _)), grads = value_and_grad(params, model_state, BLOCKS, jax.random.key(0))
    length = optax.tree.norm(grads)
    assert np.isfinite(before) and np.isfinite(length) and length > 0
    params = jax.tree.map(lambda x, g: x - 1e-3 * g / length, params, grads)
    (after, (model_state, _)), grads = value_and_grad(params, model_state, BLOCKS, jax.random.key(0))
    assert np.isfinite(after) and np.isfinite(optax.tree.norm(grads))
    for leaf in jax.tree.leaves(model_state):
        assert np.isfinite(leaf).all()
