"""SDS: which proposals are positive by their regions, what the head sees of them, and whose mask a detection has."""

import functools

import jax
import numpy as np
import pytest
from contract import BLOCKS, CANVAS, CLASSES
from tiny import TINY_FASTER_RCNN_C4, TINY_SDS

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import make_detector, sds

KEY = jax.random.key(0)
SIDE = 8  # cells of all masks


def paint(box, mask, shape=(64, 64)):
    """The pixels of a mask in a box, whose cells are whole pixels."""
    pixels = np.zeros(shape, bool)
    x1, y1, x2, y2 = box.astype(int)
    rows, columns = (y2 - y1) // SIDE, (x2 - x1) // SIDE
    pixels[y1:y2, x1:x2] = np.repeat(np.repeat(mask, rows, axis=0), columns, axis=1)
    return pixels


def test_region_overlaps_are_those_of_painted_pixels(make_ground_truth):
    rng = np.random.RandomState(0)
    gt = make_ground_truth([[8, 8, 24, 24], [32, 8, 48, 40], [0, 40, 16, 56]], crowd=[False, False, True], rows=5)
    gt = gt._replace(masks=rng.uniform(size=(5, SIDE, SIDE)) < 0.7)
    # Shifted by whole cells; the fourth touches nothing, and the last lies in a crowd.
    boxes = np.float32([[10, 8, 26, 24], [8, 4, 24, 20], [32, 16, 48, 48], [48, 48, 64, 64], [0, 40, 16, 56]])
    region_masks = rng.uniform(size=(5, SIDE, SIDE)) < 0.6
    iou, row = jax.jit(sds.region_overlaps)(boxes, region_masks, gt)
    assert row.tolist() == [0, 0, 1, NEGATIVE, IGNORE]
    for i, j in enumerate([0, 0, 1]):
        ours, theirs = paint(boxes[i], region_masks[i]), paint(gt.boxes[j], gt.masks[j])
        assert iou[i] == pytest.approx((ours & theirs).sum() / (ours | theirs).sum(), abs=1e-6) and iou[i] > 0.1
    assert not iou[3:].any()


def test_sample_goes_by_regions_not_by_boxes(make_ground_truth):
    gt = make_ground_truth([[0, 0, 16, 16], [32, 32, 48, 48]], [2, 1], rows=3)
    full, left, few = np.ones((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    left[:, :4], few[0] = True, True
    gt = gt._replace(masks=np.stack([full, left, full]))
    boxes = np.float32([[0, 0, 16, 16]] * 3 + [[32, 32, 48, 48]] * 3)
    region_masks = np.stack([left, few, full, left, full, full])  # IoU 1/2, 1/8, 1; 1, 1/2, not valid
    valid = np.arange(6) < 5
    head = sds.make_region_head(samples=8, positive_share=1.0, add_ground_truth=False)
    found = head.sample(boxes, region_masks, valid, gt, KEY)
    order = [
        (tuple(box), mask.sum(), row)
        for box, mask, row in zip(np.asarray(found.boxes).tolist(), np.asarray(found.masks), found.matched.tolist())
    ]
    first, second = (0, 0, 16, 16), (32, 32, 48, 48)
    assert set(order[:4]) == {(first, 32, 0), (first, 64, 0), (second, 32, 1), (second, 64, 1)}
    assert order[4] == (first, 8, NEGATIVE) and order[5:] == [((0, 0, 1, 1), 0, IGNORE)]
    # Between the two thresholds nothing is trained; with the objects there are two more positives.
    head = sds.make_region_head(samples=8, positive_share=1.0, positive_iou=0.6)
    found = head.sample(boxes, region_masks, valid, gt, KEY)
    assert sorted(found.matched.tolist()) == [IGNORE] * 3 + [NEGATIVE] + [0] * 2 + [1] * 2
    rows = [(row, int(mask.sum())) for row, mask in zip(found.matched.tolist(), np.asarray(found.masks)) if row >= 0]
    assert sorted(rows) == [(0, 64), (0, 64), (1, 32), (1, 32)]


def test_detections_have_the_masks_of_their_proposals():
    rng = np.random.RandomState(1)
    boxes = np.float32([[0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 50, 50], [5, 5, 9, 9]])
    region_masks = rng.uniform(size=(4, SIDE, SIDE)) < 0.5
    logits = np.log(np.float32([[0.5, 0.3, 0.2], [0.6, 0.01, 0.39], [0.1, 0.7, 0.2], [0.9, 0.05, 0.05]]))
    head = sds.make_region_head(score_threshold=0.2, max_detections=5)
    found = head.detect(logits, boxes, region_masks, np.arange(4) < 3, np.float32([0, 0, 45, 60]))
    # The first loses to the second in its class, and wins in the other; the last is not valid; the third is cut by the window.
    assert found.labels[:3].tolist() == [1, 0, 1] and found.valid.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_allclose(found.scores[:3], [0.7, 0.6, 0.3], rtol=1e-5)
    np.testing.assert_array_equal(found.boxes[:3], [[30, 30, 45, 50], boxes[1], boxes[0]])
    np.testing.assert_array_equal(found.masks[:3], region_masks[[2, 1, 0]])
    assert not found.masks[3:].any() and not found.boxes[3:].any()


def with_proposals(batch):
    """The objects of a batch as proposals, and as many beside them."""
    boxes = np.concatenate([batch.gt.boxes, batch.gt.boxes + 3], axis=1)
    valid = np.tile(batch.gt.valid & ~batch.gt.crowd, (1, 2))
    region_masks = np.tile(batch.gt.masks, (1, 2, 1, 1))
    inputs = batch.inputs._replace(proposals=boxes, proposals_valid=valid, proposal_masks=region_masks)
    return batch._replace(inputs=inputs)


@functools.cache
def tiny():
    """The tiny SDS: its functions, compiled, and its variables."""
    detector = make_detector(num_classes=CLASSES, **TINY_SDS)
    params, model_state = jax.jit(detector.init, static_argnums=1)(KEY, CANVAS)
    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    return detector, (params, model_state), step, jax.jit(detector.predict)


def test_loss_trains_every_parameter_and_counts_what_assign_names():
    detector, variables, step, _ = tiny()
    batch = with_proposals(BLOCKS)
    (loss, (_, metrics)), gradient = step(*variables, batch, KEY)
    assert loss == metrics['cls_loss'] == pytest.approx(np.log(CLASSES + 1), rel=0.1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    gradient.pop('fpn')  # no RoI is read from its coarse levels
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    matched = np.asarray(detector.assign(*variables, batch, KEY)['rois'].matched)
    assert metrics['positives'] == (matched >= 0).sum(axis=1).mean() > 0
    assert metrics['negatives'] == (matched == NEGATIVE).sum(axis=1).mean()
    # The masks count: other ones, another loss. Without objects, and so without positives, it is finite.
    inverse = batch._replace(inputs=batch.inputs._replace(proposal_masks=~batch.inputs.proposal_masks))
    assert step(*variables, inverse, KEY)[0][1][1]['positives'] < metrics['positives']
    nothing = batch._replace(gt=batch.gt._replace(valid=np.zeros_like(batch.gt.valid)))
    (_, (_, metrics)), gradient = step(*variables, nothing, KEY)
    assert metrics['positives'] == 0 < metrics['negatives']
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_prediction_sees_the_masks_of_valid_proposals_alone():
    _, variables, _, predict = tiny()
    inputs = with_proposals(BLOCKS).inputs
    found = predict(*variables, inputs)
    assert found.masks.shape == (8, 10, SIDE, SIDE) and found.valid.any()
    garbled = inputs.proposal_masks.copy()
    garbled[~inputs.proposals_valid] = True
    garbled_boxes = np.where(inputs.proposals_valid[..., None], inputs.proposals, np.nan)
    again = predict(*variables, inputs._replace(proposal_masks=garbled, proposals=garbled_boxes))
    jax.tree.map(np.testing.assert_array_equal, again, found)
    other = predict(*variables, inputs._replace(proposal_masks=~inputs.proposal_masks))
    assert np.abs(other.scores - found.scores).max() > 1e-4


@pytest.mark.full
def test_sds_on_c4_learns_too():
    arguments = TINY_SDS | dict(fpn_features=None, roi=TINY_FASTER_RCNN_C4['roi'])
    detector = make_detector(num_classes=CLASSES, **arguments)
    variables = jax.jit(detector.init, static_argnums=1)(KEY, CANVAS)
    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (loss, _), gradient = step(*variables, with_proposals(BLOCKS), KEY)
    assert np.isfinite(loss) and all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_init_runs_no_collective():
    detector = make_detector(num_classes=CLASSES, axis_name='devices', **TINY_SDS)
    params, _ = jax.eval_shape(lambda key: detector.init(key, CANVAS), KEY)
    assert set(params) == {'backbone', 'fpn', 'trunk', 'masked_trunk', 'cls_logits'}


def test_sds_asks_for_masks():
    detector, variables, *_ = tiny()
    batch = with_proposals(BLOCKS)
    with pytest.raises(ValueError, match='the ground truth has no masks: set data.mask_size'):
        jax.eval_shape(detector.loss, *variables, batch._replace(gt=batch.gt._replace(masks=None)), KEY)
    with pytest.raises(ValueError, match='SDS classifies proposals with masks: set data.train_proposals'):
        jax.eval_shape(detector.predict, *variables, batch.inputs._replace(proposal_masks=None))
