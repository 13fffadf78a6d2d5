"""Faster R-CNN's stages, each by hand: what is proposed, sampled, trained and detected."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_FASTER_RCNN, TINY_FASTER_RCNN_C4

from detzoo.core import box_coding
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import faster_rcnn, make_detector

WINDOW = np.float32([0, 0, 64, 64])
KEY = jax.random.key(0)


def boxes_of(*rows):
    return np.float32(rows).reshape(-1, 4)


def count(arguments, num_classes):
    detector = make_detector(num_classes=num_classes, **arguments)
    params, _ = jax.eval_shape(lambda: detector.init(KEY, (128, 128)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_faster_rcnn_has_as_many_parameters_as_torchvision():
    # fasterrcnn_resnet50_fpn of torchvision has 41,755,286 for 91 outputs with frozen batch norm, four box deltas of the
    # background (1024 weights and a bias each) among them, which nothing reads.
    assert count(dict(name='faster_rcnn'), 90) == 41_755_286 - 4 * 1025


def test_faster_rcnn_on_c4_has_the_parameters_of_its_parts():
    # ResNet-50 without its classifier; the RPN's 3x3 convolution and its outputs for 15 anchors; the head's on 2048 features.
    arguments = dict(name='faster_rcnn', fpn_features=None, rpn=dict(anchor_sizes=((32, 64, 128, 256, 512),)), norm='batch_norm')
    rpn = 9 * 1024 * 1024 + 1024 + 1025 * 15 * 5
    assert count(arguments, 80) == 23_508_032 + rpn + 2049 * (81 + 320)
    assert count(arguments | dict(class_agnostic=True), 80) == 23_508_032 + rpn + 2049 * (81 + 4)


def make_rpn(**changes):
    arguments = dict(anchor_sizes=((8.0,), (16.0,)), aspect_ratios=(1.0,), train_pre_nms_topk=3, pre_nms_topk=2,
                     train_post_nms_topk=6, post_nms_topk=4)  # fmt: skip
    return faster_rcnn.make_rpn(8, **arguments | changes)


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


def make_head(**changes):
    return faster_rcnn.make_roi_head(3, **dict(samples=8, positive_share=0.5) | changes)


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
    assert np.isfinite(rois).all() and (rois[6:] == np.float32(faster_rcnn.EMPTY_ROI)).all()
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
    gradient = jax.grad(lambda *outputs: sum(head.loss(*outputs, rois, matched, gt)[k] for k in ('cls_loss', 'box_loss')),
                        argnums=(0, 1))(jnp.asarray(logits), jnp.asarray(deltas))  # fmt: skip
    np.testing.assert_allclose(gradient[0], [[-0.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, -0.75], [0] * 4], atol=1e-6)
    expected = np.zeros((3, 3, 4))
    expected[0, 0, 0] = 1  # of the object's class alone
    np.testing.assert_allclose(gradient[1], expected, atol=1e-5)
    # One box for all classes has the same loss.
    assert head.loss(logits, deltas[:, :1], rois, matched, gt)['box_loss'] == pytest.approx(0.5, rel=1e-5)


def test_detect_decodes_the_box_of_each_class():
    proposals = boxes_of([10, 10, 30, 30], [40, 40, 60, 60], [0, 0, 20, 20])
    logits = np.float32([[3, 2, -9, 0], [-9, -9, -9, 9], [9, 0, 0, 0]])  # the second is background, the third not valid
    deltas = np.zeros((3, 3, 4), np.float32)
    deltas[0, 1] = np.asarray(box_coding.encode(boxes_of([12, 6, 32, 26]), proposals[:1], weights=(10, 10, 5, 5)))[0]
    found = make_head().detect(logits, deltas, proposals, np.array([True, True, False]), WINDOW)
    assert found.valid.sum() == 2 and list(found.labels[:2]) == [0, 1]
    np.testing.assert_allclose(found.boxes[:2], [[10, 10, 30, 30], [12, 6, 32, 26]], atol=1e-4)
    np.testing.assert_allclose(found.scores[:2], np.exp([3, 2]) / np.exp([3, 2, -9, 0]).sum(), rtol=1e-5)


@pytest.mark.parametrize('changes, words', [
    (dict(rpn=dict(anchor_strides='canvas')), "rpn.anchor_strides is 'canvas'"),
    (dict(rpn=dict(anchor_sizes=((8,), (8, 9)))), 'rpn.anchor_sizes must have equally many'),
    (dict(roi=dict(operator='crop')), "roi.operator is 'crop': use one of align, pool, warp"),
])
def test_faster_rcnn_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=3, **TINY_FASTER_RCNN | changes)


def test_faster_rcnn_refuses_another_number_of_levels():
    detector = make_detector(num_classes=3, **TINY_FASTER_RCNN_C4 | dict(rpn=TINY_FASTER_RCNN['rpn']))
    inputs = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8), jax.ShapeDtypeStruct((1, 4), np.float32)
    variables = jax.eval_shape(lambda: detector.init(KEY, (64, 64)))
    with pytest.raises(ValueError, match='anchor_sizes has 5 levels, the pyramid 1'):
        jax.eval_shape(detector.predict, *variables, faster_rcnn.Inputs(*inputs))
