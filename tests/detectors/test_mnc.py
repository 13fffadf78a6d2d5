"""MNC's own part: each stage trains those before it, the class sees the masked features, and the second round looks elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import BLOCKS, CANVAS, CLASSES, NOTHING
from tiny import TINY_MNC

from detzoo.core.box_coding import encode
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import make_detector, mnc
from detzoo.types import Assignment
from detzoo.weights.torchvision import load_backbone

KEY = jax.random.key(0)


def test_masks_train_the_boxes_in_which_they_look():
    # The loss of the masks alone: it goes through RoIWarp to the RPN's boxes, not to their scores, and to no later stage.
    others = dict.fromkeys(('rpn_loss_weight', 'cls_loss_weight', 'box_loss_weight'), 0.0)
    detector = make_detector(num_classes=CLASSES, **TINY_MNC | others)
    params, model_state = jax.jit(detector.init, static_argnums=1)(KEY, CANVAS)
    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (loss, (_, metrics)), gradient = step(params, model_state, BLOCKS, KEY)
    assert (
        loss == metrics['mask_loss'] == pytest.approx(2 * np.log(2), rel=0.05)
    )  # weight 2; at first all cells are at a half
    moved = {
        '/'.join(key.key for key in path[:2])
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if np.abs(leaf).max() > 0
    }
    assert {'rpn_head/deltas', 'rpn_head/conv', 'mask_head/fc1', 'backbone/stem_conv'} <= moved
    assert not [name for name in moved if name.startswith(('trunk', 'masked_trunk', 'box_head', 'rpn_head/objectness'))]
    (loss, _), gradient = step(params, model_state, NOTHING, KEY)
    assert loss == 0 and not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_classify_masked_by_hand():
    rng = np.random.RandomState(0)
    x, logits = rng.normal(size=(3, 4, 4, 2)).astype(np.float32), np.full((3, 8, 8, 1), -50, np.float32)
    logits[0] = 50  # the first is all object, of the second the left half, the third nothing
    logits[1, :, :4] = 50
    found_logits, found = mnc.classify_masked(lambda x: logits, lambda x: x + 1, lambda x: 2 * x, x)
    np.testing.assert_array_equal(found_logits, logits)
    masked = x.copy()
    masked[1, :, 2:], masked[2] = 0, 0
    np.testing.assert_allclose(found, np.concatenate([x + 1, 2 * masked], axis=-1), atol=1e-6)


def test_best_boxes_by_hand():
    rois = np.float32([[10, 10, 20, 30], [0, 0, 40, 40], [5, 5, 9, 9]])
    wanted = np.float32([[12, 8, 20, 28], [-5, 2, 30, 70], [4, 4, 10, 10]])
    weights = 10, 10, 5, 5
    deltas = np.zeros((3, 2, 4), np.float32)
    deltas[np.arange(3), [1, 0, 1]] = encode(wanted, rois, weights=weights)
    logits = np.float32([[0, 1, 9], [2, 1, 9], [-3, -2, 9]])  # background, which is best, has no box
    found = mnc.best_boxes(logits, deltas, rois, np.float32([0, 0, 50, 60]), weights)
    np.testing.assert_allclose(found, [[12, 8, 20, 28], [0, 2, 30, 60], [4, 4, 10, 10]], atol=1e-4)
    agnostic = deltas[np.arange(3), [1, 0, 1]][:, None]
    np.testing.assert_allclose(mnc.best_boxes(logits, agnostic, rois, np.float32([0, 0, 50, 60]), weights), found)


def test_init_and_a_classifier_fill_both_trunks(write_classifier, tmp_path):
    # With the axis of devices, on which no collective may run here; both trunks are the last stage of the classifier.
    detector = make_detector(num_classes=CLASSES, axis_name='devices', **TINY_MNC)
    template = jax.eval_shape(lambda key: detector.init(key, CANVAS), KEY)
    write_classifier(tmp_path / 'resnet18.safetensors', template)
    params, model_state = load_backbone(str(tmp_path / 'resnet18.safetensors'), *template)
    for tree in (params, model_state['batch_stats']):
        jax.tree.map(np.testing.assert_array_equal, tree['trunk'], tree['masked_trunk'])
        assert jax.tree.leaves(tree['trunk']) and all(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree['trunk']))


def test_class_trains_the_mask_that_it_sees():
    x, logits = jnp.ones((1, 4, 4, 2)), jnp.zeros((1, 8, 8, 1))
    gradient = jax.grad(lambda y: mnc.classify_masked(lambda x: y, lambda x: x, lambda x: x, x)[1].sum())(logits)
    np.testing.assert_allclose(
        gradient.sum(), 0.25 * 4 * 4 * 2, rtol=1e-5
    )  # the slope of the sigmoid, for each feature


def test_second_round_looks_in_the_boxes_of_the_first():
    # The network moves each box to the left by half of its width: the first round's boxes once, the second's twice.
    head = TINY_MNC['head'] | dict(max_detections=40, iou_threshold=0.5)
    detector = make_detector(num_classes=CLASSES, **TINY_MNC | dict(rpn=None, head=head))
    params, model_state = jax.jit(detector.init, static_argnums=1)(KEY, CANVAS)
    output = params['box_head']['box_deltas']
    output['kernel'] = jnp.zeros_like(output['kernel'])
    output['bias'] = jnp.tile(jnp.float32([-0.5 * 10, 0, 0, 0]), CLASSES)
    valid = BLOCKS.gt.valid & ~BLOCKS.gt.crowd
    inputs = BLOCKS.inputs._replace(proposals=BLOCKS.gt.boxes, proposals_valid=valid)
    found = jax.tree.map(np.asarray, jax.jit(detector.predict)(params, model_state, inputs))
    assert found.masks.shape == (8, 40, 12, 12)
    assert not found.masks[~found.valid].any() and found.masks[found.valid].any(axis=(1, 2)).all()
    seen = 0
    for image, row in zip(*np.nonzero(valid)):
        box, detections = BLOCKS.gt.boxes[image, row], found.boxes[image][found.valid[image]]
        half = (box[2] - box[0]) / 2
        if box[0] > 2 * half:  # else the window cuts it
            for shift in (half, 2 * half):
                assert np.abs(detections - box + [shift, 0, shift, 0]).max(axis=1).min() < 1e-3
            seen += 1
    assert seen > 5 and np.abs(found.boxes[..., 0]).max() < 64


def test_boxes_of_positives_alone_learn():
    boxes, matched = jnp.ones((1, 4, 4)), jnp.int32([[0, NEGATIVE, 2, IGNORE]])
    gradient = jax.grad(lambda x: mnc.boxes_that_learn(Assignment(x, matched)).sum())(boxes)
    assert gradient[0].any(axis=1).tolist() == [True, False, True, False]
