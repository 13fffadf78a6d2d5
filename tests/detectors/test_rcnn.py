"""R-CNN: its loss against loops, crops that know nothing of each other, chunks, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import BATCH, BLOCKS, CLASSES, WINDOWS, tiny_variant
from crop_rules import cropped
from tiny import TINY_RCNN

from detzoo.backbones import make_backbone
from detzoo.core.crops import warp_crops
from detzoo.core.matching import IGNORE
from detzoo.detectors import chunks, make_detector, rcnn
from detzoo.detectors.faster_rcnn import BoxHead, Trunk
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD

SIZE, CONTEXT = TINY_RCNN['crop_size'], TINY_RCNN['context']
GIVEN = BLOCKS.inputs._replace(
    proposals=np.repeat(WINDOWS[None], BATCH, axis=0), proposals_valid=np.ones((BATCH, len(WINDOWS)), bool)
)


@pytest.fixture(scope='module')
def tiny():
    return tiny_variant('rcnn')


def network():
    """The network of TINY_RCNN."""
    return rcnn.RCNN(
        partial(make_backbone, (TINY_RCNN['backbone_stride'],), jnp.float32, None, **TINY_RCNN['backbone']),
        partial(Trunk, 0, 2, TINY_RCNN['trunk_features'], None, None, jnp.float32),
        partial(BoxHead, CLASSES, False, jnp.float32),
        partial(warp_crops, size=SIZE, context=CONTEXT),
    )


def test_loss_equals_loops(tiny):
    (_, (_, metrics)), _ = tiny.gradient(BLOCKS)
    rois = tiny.assign(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))['rois']
    boxes, matched = (np.asarray(x) for x in rois)
    crops = []
    for image, window, of_image in zip(BLOCKS.inputs.images, BLOCKS.inputs.window.astype(int), boxes):
        pixels = (image[: window[3], : window[2]] - np.float64(IMAGENET_MEAN)) / np.float64(IMAGENET_STD)
        crops += [cropped(pixels, box, SIZE, CONTEXT) for box in of_image]
    variables = {'params': tiny.params, **tiny.model_state}
    run = jax.jit(lambda x: network().apply(variables, x, train=True, mutable=['batch_stats'])[0])
    cls_logits, deltas = (np.float64(x)[:, 0].reshape(*matched.shape, *x.shape[2:]) for x in run(np.float32(crops)))
    cls_loss = box_loss = count = 0
    for i, j in np.argwhere(matched != IGNORE):
        row, logits = matched[i, j], cls_logits[i, j]
        label = BLOCKS.gt.labels[i, row] if row >= 0 else CLASSES
        cls_loss += np.log(np.exp(logits - logits[label]).sum())
        count += 1
        if row >= 0:
            (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[i, j], BLOCKS.gt.boxes[i, row]
            width, height = x2 - x1, y2 - y1
            moved = 10 * (u1 + u2 - x1 - x2) / 2 / width, 10 * (v1 + v2 - y1 - y2) / 2 / height
            targets = *moved, 5 * np.log((u2 - u1) / width), 5 * np.log((v2 - v1) / height)
            for error in abs(deltas[i, j, label] - targets):
                box_loss += 4.5 * error**2 if error < 1 / 9 else error - 1 / 18
    assert count > 60 and box_loss > 0
    assert metrics['cls_loss'] == pytest.approx(cls_loss / count, rel=1e-4)
    assert metrics['box_loss'] == pytest.approx(box_loss / count, rel=1e-4)


def test_crops_know_nothing_of_each_other_and_come_in_chunks(tiny, monkeypatch):
    monkeypatch.setattr(chunks, 'CROPS', 7)
    detector = make_detector(num_classes=CLASSES, **TINY_RCNN)
    few = jax.tree.map(lambda x: x[:2], GIVEN)
    rows = np.arange(20, 30)
    some = few._replace(proposals=few.proposals[:, rows], proposals_valid=few.proposals_valid[:, rows])
    predict = jax.jit(lambda inputs: detector.predict(tiny.params, tiny.model_state, inputs))
    alone = predict(some)
    # The same proposals among others that are not valid, some of them no boxes at all; without chunks.
    monkeypatch.setattr(chunks, 'CROPS', len(WINDOWS))
    boxes, valid = few.proposals.copy(), np.zeros_like(few.proposals_valid)
    valid[:, rows] = True
    boxes[:, 40:] = np.nan
    among = jax.jit(lambda inputs: detector.predict(tiny.params, tiny.model_state, inputs))(
        few._replace(proposals=boxes, proposals_valid=valid)
    )
    assert alone.valid.sum() >= 10
    for one, other in zip(alone[:4], among[:4]):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_proposals_come_back_in_their_order():
    detector = make_detector(num_classes=CLASSES, **TINY_RCNN)
    found = detector.propose(None, None, GIVEN)
    np.testing.assert_array_equal(found.boxes, GIVEN.proposals)
    assert (np.diff(found.scores) < 0).all() and found.scores[0, 0] == 1 and found.valid.all()
    assert detector.needs_proposals and detector.takes_proposals and not detector.finds_masks


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(crop_size=32, context=16), 'crop_size is 32: it must be more than twice the context, 16'),
        (dict(backbone=dict(name='resnet18'), backbone_stride=64), 'backbone.name is .resnet18.: it has feature maps'),
    ],
)
def test_rcnn_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=3, **TINY_RCNN | changes)


def test_rcnn_without_proposals_says_what_to_set(tiny):
    detector = make_detector(num_classes=CLASSES, **TINY_RCNN)
    with pytest.raises(ValueError, match='R-CNN makes no proposals: set data.train_proposals'):
        detector.predict(tiny.params, tiny.model_state, BLOCKS.inputs)
