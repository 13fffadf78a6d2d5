"""Mask R-CNN's own part, by hand: how many parameters it has, what its masks are trained towards, and which one is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY_MASK_RCNN, TINY_MASK_RCNN_C4, with_backbone

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import make_detector, mask_rcnn
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights.torchvision import PEERS

KEY = jax.random.key(0)
LN2 = float(np.log(2))
HALF = np.zeros((8, 8), bool)  # of a box: its left half
HALF[:, :4] = True


def count(arguments, num_classes):
    detector = make_detector(**arguments | dict(num_classes=num_classes))
    params, _ = jax.eval_shape(lambda: detector.init(KEY, (128, 128)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    'name, parameters',
    [
        ('maskrcnn_resnet50_fpn', 44_401_393),
        ('maskrcnn_resnet50_fpn_v2', 46_359_409),
    ],
)
def test_mask_rcnn_has_as_many_parameters_as_torchvision(name, parameters):
    # Torchvision's files of these models, for 91 outputs; of them background has four box deltas (1024 weights and a bias each)
    # and a mask (256 weights and a bias), which nothing reads.
    assert count(PEERS[name].model, 90) == parameters - 4 * 1025 - 257


def test_a_joint_head_adds_a_deconvolution_and_the_masks():
    anchors = dict(anchor_sizes=((32, 64, 128, 256, 512),))
    arguments = dict(fpn_features=None, rpn=anchors, backbone=dict(norm='batch_norm'))
    boxes = count(arguments | dict(name='faster_rcnn'), 80)
    masks = count(arguments | dict(name='mask_rcnn', mask=dict(layers=0)), 80)
    assert masks == boxes + 4 * 2048 * 256 + 256 + 257 * 80


def make_head(**changes):
    return mask_rcnn.make_mask_head(3, jnp.float32, None, **changes)


def one_object(make_ground_truth, label=1):
    gt = make_ground_truth(np.float32([[10, 10, 30, 30]]), labels=[label], rows=2)
    masks = np.zeros((2, 8, 8), bool)
    masks[0] = HALF
    return gt._replace(masks=masks)


ROIS = np.float32([[10, 10, 30, 30], [10, 10, 30, 30], [40, 40, 60, 60], [0, 0, 1, 1]])
MATCHED = np.int32([0, 0, NEGATIVE, IGNORE])


def test_mask_loss_by_hand(make_ground_truth):
    gt = one_object(make_ground_truth)
    logits = np.zeros((4, 4, 4, 3), np.float32)
    assert make_head().loss(logits, ROIS, MATCHED, gt)['mask_loss'] == pytest.approx(
        2 * LN2
    )  # two positives, all at 1 / 2
    logits[0, :, :2, 1], logits[0, :, 2:, 1] = 50, -50  # the first is right
    assert make_head().loss(logits, ROIS, MATCHED, gt)['mask_loss'] == pytest.approx(LN2)
    logits[0, 0, 0, 1] = -3  # of 16 cells one is wrong: log(1 + e^3) of it
    assert make_head().loss(logits, ROIS, MATCHED, gt)['mask_loss'] == pytest.approx(LN2 + np.log1p(np.exp(3)) / 16)


def test_mask_loss_trains_the_mask_of_the_class_alone(make_ground_truth):
    gt = one_object(make_ground_truth)
    logits = jnp.zeros((4, 4, 4, 3))
    gradient = jax.grad(lambda x: make_head().loss(x, ROIS, MATCHED, gt)['mask_loss'])(logits)
    expected = np.zeros((4, 4, 4, 3))
    expected[:2, :, :2, 1], expected[:2, :, 2:, 1] = -0.5 / 16, 0.5 / 16
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    agnostic = jax.grad(lambda x: make_head(class_agnostic=True).loss(x, ROIS, MATCHED, gt)['mask_loss'])(
        logits[..., :1]
    )
    np.testing.assert_allclose(agnostic[..., 0], expected[..., 1], atol=1e-7)


def test_softmax_masks_compete_with_each_other_and_with_background(make_ground_truth):
    gt = one_object(make_ground_truth)
    softmax = make_head(activation='softmax')
    logits = np.zeros((4, 4, 4, 4), np.float32)
    assert softmax.loss(logits, ROIS, MATCHED, gt)['mask_loss'] == pytest.approx(2 * np.log(4))
    gradient = jax.grad(lambda x: softmax.loss(x, ROIS, MATCHED, gt)['mask_loss'])(jnp.asarray(logits))
    np.testing.assert_allclose(16 * gradient[0, 0, 0], [0.25, -0.75, 0.25, 0.25], atol=1e-6)  # the object
    np.testing.assert_allclose(16 * gradient[0, 0, 3], [0.25, 0.25, 0.25, -0.75], atol=1e-6)  # background
    np.testing.assert_allclose(softmax.probabilities(logits, np.int32([0, 1, 2, 0])), np.full((4, 4, 4), 0.25))


def test_targets_may_be_averages(make_ground_truth):
    # On 2 x 2 cells of 7.5 x 10 pixels; the object ends in the middle of the second column, at its pixel 2.5.
    gt = one_object(make_ground_truth)
    roi, matched = np.float32([[10, 10, 25, 30]]), np.int32([0])
    logits = np.zeros((1, 2, 2, 3), np.float32)
    logits[..., 1] = 50  # the loss is 50 times the share of what is not the object
    assert make_head().loss(logits, roi, matched, gt)['mask_loss'] == pytest.approx(
        25
    )  # its centre is not of the object
    # Samples lie at 0.47, 1.41, 2.34, ... and count half a pixel more; the mask's cells are 2.5 pixels, and between the centres
    # of the last inside and the first outside, 1.25 before and after the edge, its value falls from 1 to 0.
    samples = (np.arange(8) + 0.5) * 7.5 / 8 + 0.5
    share = np.clip((3.75 - samples) / 2.5, 0, 1).mean()
    # Above, 0.5 pixels more leave the first row whole but for its first sample, on the first cell's outer half.
    rows = (np.arange(8) + 0.5) * 10 / 8 + 0.5
    first, last = np.clip((rows + 1.25) / 2.5, 0, 1).mean(), np.clip((10 + 1.25 - rows) / 2.5, 0, 1).mean()
    left = np.clip((samples + 1.25) / 2.5, 0, 1).mean()
    wanted = 50 * (1 - (left + share) / 2 * (first + last) / 2)
    assert make_head(targets='average').loss(logits, roi, matched, gt)['mask_loss'] == pytest.approx(wanted, rel=1e-5)


def test_positive_rois_alone_make_the_statistics_and_the_loss_of_the_mask_head():
    mask = dict(layers=1, features=8, norm='batch_norm')
    arguments = with_backbone(TINY_MASK_RCNN, norm='frozen_batch_norm') | dict(
        rpn=None, mask_loss_weight=0.5, mask=mask
    )
    detector = make_detector(num_classes=3, **arguments)
    variables = jax.jit(detector.init, static_argnums=1)(KEY, (64, 64))
    images = np.random.RandomState(0).randint(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    box = np.float32([[8, 8, 24, 24]])
    none = np.zeros((1, 1), bool)
    gt = GroundTruth(box[None], np.int32([[1]]), ~none, none, np.int32([0]), np.int32([0]), HALF[None, None])

    @jax.jit
    def step(negative):
        """What the norm remembers, and the metrics."""
        proposals = jnp.concatenate([box + 1, negative])[None]
        inputs = Inputs(images, np.float32([[0, 0, 64, 64]]), proposals, np.ones((1, len(proposals[0])), bool))
        _, (state, metrics) = detector.loss(*variables, Batch(inputs, gt, np.int32([0]), np.ones(1, bool)), KEY)
        return state['batch_stats']['mask_head']['norm1'], metrics

    (expected, metrics), (found, _) = (
        step(np.float32([corners] * 3)) for corners in ([40, 2, 60, 20], [30, 36, 64, 64])
    )
    assert (metrics['positives'], metrics['negatives']) == (2, 3)  # of the 16 rows that the mask head reads
    assert metrics['mask_loss'] == pytest.approx(
        0.5 * LN2, rel=0.05
    )  # its mean over the two: at first all cells are at a half
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.abs(expected['mean']).max() > 0 and not jnp.allclose(
        expected['var'], 0.9
    )  # they were taken from something


def test_probabilities_are_those_of_the_class():
    logits = np.zeros((2, 4, 4, 3), np.float32)
    logits[0, ..., 2], logits[1, ..., 0] = 2, -1
    found = make_head().probabilities(logits, np.int32([2, 0]))
    np.testing.assert_allclose(found[:, 0, 0], 1 / (1 + np.exp([-2, 1])), rtol=1e-5)
    found = make_head(class_agnostic=True).probabilities(logits[..., 2:], np.int32([2, 0]))
    np.testing.assert_allclose(found[:, 0, 0], 1 / (1 + np.exp([-2, 0])), rtol=1e-5)


@pytest.mark.parametrize('arguments, side', [(TINY_MASK_RCNN, 8), (TINY_MASK_RCNN_C4, 6)])
def test_masks_are_twice_the_features(arguments, side):
    detector = make_detector(num_classes=3, **arguments)
    inputs = Inputs(jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8), jax.ShapeDtypeStruct((2, 4), np.float32))
    variables = jax.eval_shape(lambda: detector.init(KEY, (64, 64)))
    assert jax.eval_shape(detector.predict, *variables, inputs).masks.shape == (2, 10, side, side)


def test_mask_rcnn_asks_for_masks(make_ground_truth):
    gt = make_ground_truth(np.float32([[10, 10, 30, 30]]), labels=[0])
    with pytest.raises(ValueError, match='the ground truth has no masks: set data.mask_size'):
        make_head().loss(np.zeros((1, 4, 4, 3), np.float32), ROIS[:1], MATCHED[:1], gt)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(head='conv'), "mask.head is 'conv': use one of fcn, mlp"),
        (dict(activation='tanh'), "mask.activation is 'tanh'"),
        (dict(targets='mean'), "mask.targets is 'mean': use one of point, average"),
        (dict(head='mlp', layers=1, norm='batch_norm'), "mask.norm is 'batch_norm': mlp has none"),
    ],
)
def test_mask_rcnn_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=3, **TINY_MASK_RCNN | dict(mask=changes))


def test_masks_are_not_read_by_a_pyramid_of_bins():
    with pytest.raises(ValueError, match="mask_roi.operator is 'pyramid': its bins are no map"):
        make_detector(num_classes=3, **TINY_MASK_RCNN | dict(mask_roi=dict(operator='pyramid')))
