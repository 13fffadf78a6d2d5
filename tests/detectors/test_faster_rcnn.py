"""Faster R-CNN's stages, each by hand: what is proposed, sampled, trained and detected."""

import functools
import inspect
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    TINY_FASTER_RCNN,
    TINY_FASTER_RCNN_C4,
    TINY_FASTER_RCNN_V2,
    TINY_MASK_RCNN,
    TINY_RETINANET,
    TINY_SPP,
)

from detzoo.core import box_coding
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import faster_rcnn, make_detector, mask_rcnn, stages
from detzoo.detectors import rpn as rpn_module
from detzoo.detectors.stages import Proposed, TrainedAnchors
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights.torchvision import PEERS

WINDOW = np.float32([0, 0, 64, 64])
KEY = jax.random.key(0)


def boxes_of(*rows):
    return np.float32(rows).reshape(-1, 4)


def count(arguments, num_classes):
    detector = make_detector(**arguments | dict(num_classes=num_classes))
    params, _ = jax.eval_shape(lambda: detector.init(KEY, (128, 128)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    'name, parameters',
    [
        ('fasterrcnn_resnet50_fpn', 41_755_286),
        ('fasterrcnn_resnet50_fpn_v2', 43_712_278),
        ('fasterrcnn_mobilenet_v3_large_fpn', 19_386_354),
        ('fasterrcnn_mobilenet_v3_large_320_fpn', 19_386_354),
    ],
)
def test_faster_rcnn_has_as_many_parameters_as_torchvision(name, parameters):
    # Torchvision's files of these models, for 91 outputs; four box deltas of the background are among them (1024 weights and a
    # bias each), which nothing reads.
    assert count(PEERS[name].model, 90) == parameters - 4 * 1025


def test_faster_rcnn_on_c4_has_the_parameters_of_its_parts():
    # ResNet-50 without its classifier; the RPN's 3x3 convolution and its outputs for 15 anchors; the head's on 2048 features.
    arguments = dict(
        name='faster_rcnn',
        fpn_features=None,
        rpn=dict(anchor_sizes=((32, 64, 128, 256, 512),)),
        backbone=dict(norm='batch_norm'),
    )
    rpn = 9 * 1024 * 1024 + 1024 + 1025 * 15 * 5
    assert count(arguments, 80) == 23_508_032 + rpn + 2049 * (81 + 320)
    assert count(arguments | dict(class_agnostic=True), 80) == 23_508_032 + rpn + 2049 * (81 + 4)


def make_rpn(**changes):
    arguments = dict(
        anchor_sizes=((8.0,), (16.0,)),
        aspect_ratios=(1.0,),
        train_pre_nms_topk=3,
        pre_nms_topk=2,
        train_post_nms_topk=6,
        post_nms_topk=4,
    )
    return rpn_module.make_rpn((8, 16), jnp.float32, **arguments | changes)


def propose(rpn, best, shift=0.0, train=False):
    """Proposals where the anchors of rows `best` score highest, in order, and all move by `shift` of their width."""
    anchors = rpn.anchors((64, 64), [(8, 8), (4, 4)])
    logits = np.full(80, -5, np.float32)
    logits[best] = np.arange(len(best), 0, -1)
    deltas = np.tile(np.float32([shift, 0, 0, 0]), (80, 1))
    found, valid = jax.jit(functools.partial(rpn.propose, anchors=anchors, train=train))(logits, deltas, WINDOW)
    return np.concatenate(anchors), np.asarray(found), np.asarray(valid)


def test_propose_takes_the_best_of_each_level():
    # Anchors 9 and 18, far apart, are the best of the fine level, 64 + 5 and 64 + 10 of the coarse one.
    anchors, found, valid = propose(make_rpn(), [18, 64 + 10, 9, 27, 64 + 5, 36])
    assert valid.all()
    np.testing.assert_allclose(found, anchors[[18, 64 + 10, 9, 64 + 5]], atol=1e-5)  # not 27: two of each level
    anchors, found, valid = propose(make_rpn(), [18, 64 + 10, 9, 27, 64 + 5, 36], train=True)
    assert len(found) == 6
    np.testing.assert_allclose(found[:5], anchors[[18, 64 + 10, 9, 27, 64 + 5]], atol=1e-5)


def test_propose_ranks_logits_whose_sigmoids_are_equal():
    rpn = make_rpn()
    anchors = rpn.anchors((64, 64), [(8, 8), (4, 4)])
    logits = np.full(80, -5, np.float32)
    logits[[9, 18, 27]] = 20, 21, 22  # all of them 1 as a float32 probability
    found, _ = rpn.propose(logits, np.zeros((80, 4), np.float32), WINDOW, anchors=anchors, train=False)
    np.testing.assert_allclose(found[:2], np.concatenate(anchors)[[27, 18]], atol=1e-5)


def test_propose_drops_what_is_hardly_an_object():
    # A probability of 0.25 is a logit of -log(3) = -1.0986.
    rpn = make_rpn(score_threshold=0.25, pre_nms_topk=64)
    anchors = rpn.anchors((64, 64), [(8, 8), (4, 4)])
    logits = np.full(80, -9, np.float32)
    logits[[9, 18, 64 + 10]] = -1.0, -1.2, 0.5
    found, valid = rpn.propose(logits, np.zeros((80, 4), np.float32), WINDOW, anchors=anchors, train=False)
    np.testing.assert_allclose(found[valid], np.concatenate(anchors)[[64 + 10, 9]], atol=1e-5)


def test_propose_decodes_and_clips():
    anchors, found, _ = propose(make_rpn(), [8], shift=0.5)
    np.testing.assert_allclose(found[0], [0, 4, 8, 12], atol=1e-5)  # 4 to the right of the anchor -4, 4, 4, 12
    _, found, _ = propose(make_rpn(), [8])
    np.testing.assert_allclose(found[0], [0, 4, 4, 12], atol=1e-5)


def test_propose_prunes_within_levels_only():
    # Anchors of 16 pixels every 8 overlap their neighbours by a third: 18 drops 19.
    rpn = make_rpn(anchor_sizes=((16.0,), (16.0,)), iou_threshold=0.3)
    anchors, found, valid = propose(rpn, [18, 19, 64 + 5])
    np.testing.assert_array_equal(anchors[18], anchors[64 + 5])  # the same box, on two levels: both stay
    np.testing.assert_allclose(found[:2], anchors[[18, 64 + 5]], atol=1e-5)
    assert not (found == anchors[19]).all(axis=1).any()


def test_propose_drops_small_boxes():
    _, _, valid = propose(make_rpn(min_size=5.0), [8, 0])  # clipped to 4 x 8 and 4 x 4
    _, _, all_valid = propose(make_rpn(), [8, 0])
    assert all_valid.sum() == valid.sum() + 2


def test_proposals_carry_no_gradient():
    # The head on RoIs is trained towards what the proposals lack, which must not move the RPN.
    rpn = make_rpn()
    levels = [np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 4, 4, 1), np.float32)]
    inputs = Inputs(np.zeros((1, 64, 64, 3), np.uint8), WINDOW[None])

    def corners(outputs):
        net = types.SimpleNamespace(levels=lambda x, train: levels, rpn=lambda levels: outputs)
        proposed = stages.propose(net, rpn, inputs.images, inputs, train=True)
        return (proposed.boxes * np.arange(1, 5)).sum(), sum(x.sum() for x in proposed.rpn_outputs)

    outputs = jnp.linspace(-1, 1, 80)[None], jnp.full((1, 80, 4), 0.01)
    of_proposals, of_outputs = jax.jit(jax.jacrev(corners))(outputs)
    assert not any(leaf.any() for leaf in of_proposals)
    assert all((leaf == 1).all() for leaf in of_outputs)


def test_sample_draws_with_a_key_of_its_own_for_each_stage_and_image(make_ground_truth):
    rpn = make_rpn()._replace(match=lambda anchors, gt, key: jax.random.key_data(key))
    head = make_head()._replace(sample=lambda proposals, valid, gt, key: (proposals, jax.random.key_data(key)))
    proposals = np.zeros((2, 3, 4)), np.zeros((2, 3), bool)
    outputs = np.zeros((2, 80)), np.zeros((2, 80, 4))

    def keys(image_id, rng=KEY):
        batch = given(*proposals)._replace(image_id=np.int32(image_id))
        proposed = Proposed([], outputs, np.zeros((80, 4)), *proposals)
        trained = stages.sample(rpn, head, proposed, batch, rng)  # anchors and RoIs
        return [
            tuple(key) for key in np.concatenate([stage.matched for stage in trained]).tolist()
        ]  # of both images each

    first = keys([3, 8])
    assert len({*first}) == 4
    assert keys([8, 3]) == [first[i] for i in (1, 0, 3, 2)]  # an image's keys, wherever it stands
    assert not {*first} & {*keys([3, 8], jax.random.key(1))}


def make_head(**changes):
    return stages.make_roi_head(3, **dict(samples=8, positive_share=0.5) | changes)


def test_sample_puts_positives_first_and_adds_the_ground_truth(make_ground_truth):
    gt = make_ground_truth(boxes_of([0, 0, 10, 10], [20, 20, 40, 40]), labels=[2, 0], rows=3)
    gt.boxes[2] = 50, 50, 60, 60  # padding
    proposals = boxes_of([30, 0, 40, 10], [0, 0, 10, 8], [50, 50, 60, 60], [np.nan] * 4, [20, 22, 40, 40])
    valid = np.array([True, True, True, False, True])
    rois, matched = make_head().sample(proposals, valid, gt, KEY)
    assert sorted(np.asarray(matched[:4])) == [0, 0, 1, 1] and list(matched[4:]) == [NEGATIVE, NEGATIVE, IGNORE, IGNORE]
    positives = {tuple(box) for box in np.asarray(rois[:4])}
    assert positives == {(0, 0, 10, 10), (0, 0, 10, 8), (20, 20, 40, 40), (20, 22, 40, 40)}
    assert {tuple(box) for box in np.asarray(rois[4:6])} == {(30, 0, 40, 10), (50, 50, 60, 60)}
    assert np.isfinite(rois).all() and (rois[6:] == np.float32(stages.EMPTY_ROI)).all()
    rois, matched = make_head(add_ground_truth=False).sample(proposals, valid, gt, KEY)
    assert len(rois) == 5 and sorted(np.asarray(matched)) == [IGNORE, NEGATIVE, NEGATIVE, 0, 1]


def test_roi_loss_by_hand(make_ground_truth):
    gt = make_ground_truth(boxes_of([0, 0, 10, 10], [20, 20, 40, 40]), labels=[2, 0])
    rois = boxes_of([22, 20, 42, 40], [50, 0, 60, 10], [1, 1, 2, 2])
    matched = np.int32([1, NEGATIVE, IGNORE])
    head = make_head(box_loss_beta=1.0, delta_weights=(10.0, 10.0, 5.0, 5.0))
    logits, deltas = np.zeros((3, 4), np.float32), np.zeros((3, 3, 4), np.float32)
    sums = head.loss(logits, deltas, rois, matched, gt)
    assert sums['cls_loss'] == pytest.approx(2 * math.log(4), rel=1e-6)  # four equal classes, twice
    # The object lies 2 of 20 pixels to the left: dx = -0.1 * 10 = -1, and smooth L1 of 1 is 0.5.
    assert sums['box_loss'] == pytest.approx(0.5, rel=1e-5)
    assert (sums['positives'], sums['negatives']) == (1, 1)
    gradient = jax.grad(
        lambda *outputs: sum(head.loss(*outputs, rois, matched, gt)[k] for k in ('cls_loss', 'box_loss')),
        argnums=(0, 1),
    )(jnp.asarray(logits), jnp.asarray(deltas))
    np.testing.assert_allclose(gradient[0], [[-0.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, -0.75], [0] * 4], atol=1e-6)
    expected = np.zeros((3, 3, 4))
    expected[0, 0, 0] = 1  # of the object's class alone
    np.testing.assert_allclose(gradient[1], expected, atol=1e-5)
    # One box for all classes has the same loss.
    assert head.loss(logits, deltas[:, :1], rois, matched, gt)['box_loss'] == pytest.approx(0.5, rel=1e-5)


def test_reduce_losses_divides_by_the_samples_of_each_stage(make_ground_truth):
    # Two images: of anchors 1 + 3 and 2 + 4 samples, of RoIs 1 + 1 and 0 + 3. Losses are sums over both by 10 and by 5.
    of_rpn = np.float32([[4, 0.5, 1, 3], [6, 1.5, 2, 4]])
    of_rois = np.float32([[3, 2, 1, 1], [7, 0, 0, 3]])
    names = 'cls_loss', 'box_loss', 'positives', 'negatives'
    rpn = make_rpn()._replace(loss=lambda sums, *rest: {f'rpn_{name}': x for name, x in zip(names, sums)})
    head = make_head()._replace(loss=lambda sums, gt: dict(zip(names, sums)))
    gt = jax.tree.map(lambda x: np.stack([x, x]), make_ground_truth(boxes_of([0, 0, 9, 9])))
    anchors = np.zeros((80, 4), np.float32)
    metrics = stages.reduce_losses(rpn, head, TrainedAnchors(of_rpn, of_rpn, anchors, of_rpn), (of_rois,), gt, None)
    expected = dict(rpn_cls_loss=1.0, rpn_box_loss=0.2, rpn_positives=1.5, rpn_negatives=3.5,
                    cls_loss=2.0, box_loss=0.4, positives=0.5, negatives=2.0)  # fmt: skip
    assert metrics == pytest.approx(expected)
    of_head = {name: value for name, value in expected.items() if not name.startswith('rpn_')}
    assert stages.reduce_losses(rpn, head, None, (of_rois,), gt, None) == pytest.approx(of_head)


def test_weigh_multiplies_and_adds_the_losses_there_are():
    metrics = dict(rpn_cls_loss=1.0, cls_loss=2.0, positives=9.0)
    loss, weighted = stages.weigh(metrics, dict(rpn_cls_loss=0.5, cls_loss=3.0, mask_loss=7.0))
    assert loss == 6.5 and weighted == dict(rpn_cls_loss=0.5, cls_loss=6.0, positives=9.0)


def test_detect_decodes_the_box_of_each_class():
    proposals = boxes_of([10, 10, 30, 30], [40, 40, 60, 60], [0, 0, 20, 20])
    logits = np.float32([[3, 2, -9, 0], [-9, -9, -9, 9], [9, 0, 0, 0]])  # the second is background, the third not valid
    deltas = np.zeros((3, 3, 4), np.float32)
    deltas[0, 1] = np.asarray(box_coding.encode(boxes_of([12, 6, 32, 26]), proposals[:1], weights=(10, 10, 5, 5)))[0]
    found = make_head().detect(logits, deltas, proposals, np.array([True, True, False]), WINDOW)
    assert found.valid.sum() == 2 and list(found.labels[:2]) == [0, 1]
    np.testing.assert_allclose(found.boxes[:2], [[10, 10, 30, 30], [12, 6, 32, 26]], atol=1e-4)
    np.testing.assert_allclose(found.scores[:2], np.exp([3, 2]) / np.exp([3, 2, -9, 0]).sum(), rtol=1e-5)


def given(proposals, valid):
    """A batch of two images with proposals [2, P, 4], of which the first has two objects."""
    none = np.zeros(2, np.int32)
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[0, :2] = [8, 8, 24, 24], [30, 30, 54, 50]
    exists = np.zeros((2, 4), bool)
    exists[0, :2] = True
    labels = np.tile(np.int32([1, 2, 0, 0]), (2, 1))
    gt = GroundTruth(boxes, labels, exists, np.zeros((2, 4), bool), none, none)
    images = np.random.RandomState(0).randint(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    inputs = Inputs(images, np.tile(WINDOW, (2, 1)), np.float32(proposals), np.array(valid))
    return Batch(inputs, gt, np.arange(2, dtype=np.int32), np.ones(2, bool))


def test_given_proposals_stand_where_the_rpn_would():
    detector = make_detector(num_classes=3, **TINY_FASTER_RCNN)
    variables = jax.jit(detector.init, static_argnums=1)(KEY, (64, 64))
    near = boxes_of([9, 8, 24, 25], [30, 28, 54, 50], [40, 2, 60, 20])
    batch = given([near, near[::-1]], [[True, True, False], [True, False, False]])

    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (loss, (_, metrics)), gradient = step(*variables, batch, KEY)
    assert {name for name in metrics if name.endswith('loss')} == {'cls_loss', 'box_loss'}
    assert loss == pytest.approx(float(metrics['cls_loss'] + metrics['box_loss']), rel=1e-6)
    # Positive are two proposals and the two objects, negative the only proposal of the second image.
    assert (metrics['positives'], metrics['negatives']) == (4 / 2, 1 / 2)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient['rpn_head']))
    assert np.any(gradient['backbone']['stem_conv']['kernel'])
    assigned = jax.jit(detector.assign)(*variables, batch, KEY)
    assert set(assigned) == {'rois'} and (assigned['rois'].matched[0] >= 0).sum() == 4

    proposed = jax.jit(detector.propose)(*variables, batch.inputs)
    np.testing.assert_array_equal(proposed.boxes, batch.inputs.proposals)
    np.testing.assert_array_equal(proposed.valid, batch.inputs.proposals_valid)
    np.testing.assert_allclose(proposed.scores, [[1, 2 / 3, 0], [1, 0, 0]], rtol=1e-6)
    assert not proposed.labels.any()

    found = jax.jit(detector.predict)(*variables, batch.inputs)
    # Untrained, deltas are nearly 0: what is found lies where the valid proposals do.
    assert all(abs(near[:2] - box).max(axis=1).min() < 1 for box in np.asarray(found.boxes[0][found.valid[0]]))
    assert all(abs(near[2] - box).max() < 1 for box in np.asarray(found.boxes[1][found.valid[1]]))
    assert found.valid.any(axis=1).all()


def test_padding_is_no_part_of_batch_statistics():
    arguments = TINY_FASTER_RCNN_V2 | dict(rpn=None)
    detector = make_detector(num_classes=3, **arguments)
    variables = jax.jit(detector.init, static_argnums=1)(KEY, (64, 64))
    near = boxes_of([9, 8, 24, 25], [30, 28, 54, 50], [40, 2, 60, 20])
    few = given([near, near], [[True] * 3] * 2)
    more = given(np.pad([near, near], ((0, 0), (0, 9), (0, 0)), constant_values=64), [[True] * 3 + [False] * 9] * 2)
    loss = jax.jit(detector.loss)
    (expected, (state, _)), (found, (new_state, _)) = loss(*variables, few, KEY), loss(*variables, more, KEY)
    assert found == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), new_state, state)
    before = variables[1]['batch_stats']['trunk']['norm2']['mean']
    assert np.abs(before - state['batch_stats']['trunk']['norm2']['mean']).max() > 1e-3


def test_spp_net_trains_its_fully_connected_layers_alone():
    detector = make_detector(num_classes=3, **TINY_SPP | dict(rpn=None, roi=TINY_SPP['roi'] | dict(stop_gradient=True)))
    variables = jax.jit(detector.init, static_argnums=1)(KEY, (64, 64))
    assert variables[0]['trunk']['fc1']['kernel'].shape[0] == (1 + 4 + 9) * 16  # bins, and channels of stride 8
    near = boxes_of([9, 8, 24, 25], [30, 28, 54, 50], [40, 2, 60, 20])
    batch = given([near, near], [[True] * 3] * 2)
    _, gradient = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))(*variables, batch, KEY)
    assert set(gradient) == {'backbone', 'trunk', 'box_head'}
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient['backbone']))
    assert all(leaf.any() for leaf in jax.tree.leaves((gradient['trunk'], gradient['box_head'])))


def test_without_an_rpn_proposals_must_be_given():
    detector = make_detector(num_classes=3, **TINY_FASTER_RCNN | dict(rpn=None))
    variables = jax.eval_shape(lambda: detector.init(KEY, (64, 64)))
    whole = jax.eval_shape(lambda: make_detector(num_classes=3, **TINY_FASTER_RCNN).init(KEY, (64, 64)))
    assert set(whole[0]) - set(variables[0]) == {'rpn_head'}
    batch = given(np.zeros((2, 3, 4)), np.zeros((2, 3), bool))
    _, (_, metrics) = jax.eval_shape(detector.loss, *variables, batch, KEY)
    assert not any(name.startswith('rpn') for name in metrics)
    assert jax.eval_shape(detector.predict, *variables, batch.inputs).boxes.shape == (2, 10, 4)
    with pytest.raises(ValueError, match='without an RPN .* proposals must be given'):
        jax.eval_shape(detector.predict, *variables, Inputs(*batch.inputs[:2]))


@pytest.mark.parametrize(
    'arguments, takes, needs, masks',
    [
        (TINY_FASTER_RCNN, True, False, False),
        (TINY_FASTER_RCNN | dict(rpn=None), True, True, False),
        (TINY_MASK_RCNN, True, False, True),
        (TINY_MASK_RCNN | dict(rpn=None), True, True, True),
        (TINY_RETINANET, False, False, False),
    ],
    ids=['faster_rcnn', 'fast_rcnn', 'mask_rcnn', 'fast_mask_rcnn', 'retinanet'],
)
def test_a_detector_says_what_it_takes_needs_and_finds(arguments, takes, needs, masks):
    detector = make_detector(num_classes=3, **arguments)
    assert (detector.takes_proposals, detector.needs_proposals, detector.finds_masks) == (takes, needs, masks)
    assert (detector.propose is not None) == takes


def test_rois_that_ask_for_more_samples_are_counted():
    # With a canonical size of 64 these are read at stride 4, where 15 pixels are 3.75 cells and ask for 4 samples, 7 for 2.
    rois = np.float32([[[0, 0, 15, 15], [0, 0, 7, 7], [0, 0, 15, 15]]])
    matched = np.int32([[0, NEGATIVE, IGNORE]])
    arguments = dict(output_size=1, samples_per_bin=0, canonical_size=64.0)
    for limit, count in ((4, 0), (3, 1), (1, 2)):
        reader = stages.make_roi_reader(4, 4, **arguments, max_samples_per_bin=limit)
        assert reader.metrics(rois, matched) == {'undersampled_rois': count}
    assert stages.make_roi_reader(4, 4).metrics(rois, matched) == {}
    # The limit is what RoIAlign takes: the features with 3 samples differ from those with 4.
    level = np.random.RandomState(0).normal(size=(1, 16, 16, 2)).astype(np.float32)
    read = [stages.make_roi_reader(4, 1, **arguments, max_samples_per_bin=n).read([level], rois) for n in (3, 4, 5)]
    assert abs(read[0] - read[1]).max() > 1e-3
    np.testing.assert_allclose(read[1], read[2], atol=1e-6)


def test_large_rois_are_read_from_the_first_of_two_levels_of_one_stride():
    # By its size the second RoI belongs to a level of stride 64, which is the RPN's alone.
    body = faster_rcnn.make_body(np.float32, None, backbone=dict(name='mobilenet_v3_large'), backbone_strides=(32, 32))
    strides, roi_levels = body.strides, body.roi_levels
    levels = [np.full((1, 1280 // stride, 1280 // stride, 1), i, np.float32) for i, stride in enumerate(strides, 1)]
    rois = np.float32([[[0, 0, 64, 64], [0, 0, 1200, 1200]]])
    assert [level.shape[1] for level in levels] == [40, 40, 20]
    reader = stages.make_roi_reader(strides[0], roi_levels, output_size=1)
    np.testing.assert_allclose(np.ravel(reader.read(levels[:roi_levels], rois)), 1, rtol=1e-6)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(rpn=dict(anchor_strides='canvas')), "rpn.anchor_strides is 'canvas'"),
        (dict(rpn=dict(anchor_sizes=((8,), (8, 9)))), 'rpn.anchor_sizes must have equally many'),
        (dict(roi=dict(operator='crop')), "roi.operator is 'crop': use one of align, pool, warp, pyramid"),
        (dict(backbone=dict(name='vgg')), "backbone.name is 'vgg': use one of resnet18"),
        (dict(backbone=dict(name='vgg16'), fpn_features=None), 'vgg16.: it has no last stage that could run on'),
        (dict(backbone_strides=(4, 16)), r'backbone_strides is \(4, 16\): each must be'),
        (dict(trunk_norm='batch_norm'), "trunk_norm is 'batch_norm': .* trunk_conv_layers is 0"),
        (dict(fpn_features=None), 'rpn.anchor_sizes has 5 levels, the pyramid 1'),
        (TINY_FASTER_RCNN_C4 | dict(fpn_norm='batch_norm'), 'fpn_features is None: C4 has neither a pyramid'),
        (TINY_FASTER_RCNN_C4 | dict(trunk_conv_layers=1), 'fpn_features is None: C4 has neither a pyramid'),
        (TINY_SPP | dict(backbone_strides=(8, 16)), 'there is one feature map and no pyramid'),
        (TINY_SPP | dict(fpn_norm='batch_norm'), 'there is one feature map and no pyramid'),
        (TINY_SPP | dict(trunk_conv_layers=1), "roi.operator is 'pyramid': its bins are no map"),
        (TINY_FASTER_RCNN_C4 | dict(roi=dict(operator='pyramid')), "roi.operator is 'pyramid': its bins are no map"),
    ],
)
def test_faster_rcnn_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=3, **TINY_FASTER_RCNN | changes)


def test_mask_rcnn_takes_every_argument_of_faster_rcnn():
    ours, theirs = (inspect.signature(detector.make).parameters for detector in (faster_rcnn, mask_rcnn))
    assert {'num_classes', 'backbone', 'trunk_features', 'rpn', 'class_agnostic', 'axis_name'} < {*ours}
    assert dict(theirs) == dict(ours) | {name: theirs[name] for name in ('mask_roi', 'mask', 'mask_loss_weight')}


@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn'])
def test_a_misspelt_argument_of_a_part_is_named(name):
    for words, changes in (
        ("'trunk_feature': the nearest is 'trunk_features'", dict(trunk_feature=8)),
        ("'rpn.sample': the nearest is 'rpn.samples'", dict(rpn=dict(sample=8))),
    ):
        with pytest.raises(TypeError, match=f'{name} takes no argument {words}'):
            make_detector(name, num_classes=3, **changes)
