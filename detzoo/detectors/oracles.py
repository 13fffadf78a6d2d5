"""The ground truth in the place of what a stage of a detector of two stages would find: what is each stage worth?

    'proposals'  the boxes of the objects are the proposals
    'boxes'      they are the boxes of the detections too: the head moves none of them, and the NMS drops none
    'classes'    the class of a RoI is that of the object that it covers, whatever its score; one that covers none is background
      -> `detect`: the detections of the stages that are left

A RoI covers an object if their IoU is at least a half, as in training. It keeps its score: the network's probability that it
shows any object. The masks of detections are given by `evaluation.oracles`, which needs no network.
"""

from collections.abc import Callable, Collection
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.core import matching
from detzoo.detectors.stages import Proposed, RoIHead
from detzoo.types import Array, Detections, GroundTruth, Inputs, ModelState, Params

STAGES = ('proposals', 'boxes', 'classes')
COVERS = 0.5  # IoU


def make_oracle(
    predict_by: Callable[..., Detections], make_head: Callable[..., RoIHead]
) -> Callable[[Collection[str]], Callable[..., Detections]]:
    """Makes the function `oracle` of a `Detector`.

    Args:
        predict_by: predict_by(detect, params, model_state, inputs): `Detector.predict`, with a function that takes the place of
            `stages.detect`, its head bound.
        make_head: make_head(**changes): the detector's head on RoIs, with other arguments of `make_roi_head`.
    """

    def oracle(stages: Collection[str]) -> Callable[..., Detections]:
        if unknown := set(stages) - set(STAGES):
            raise ValueError(f'stages has {", ".join(sorted(unknown))}: {", ".join(STAGES)} are known')
        without_nms = {'iou_threshold': 1.0} if 'boxes' in stages else {}
        without_threshold = {'score_threshold': 0.0} if 'classes' in stages else {}
        head = make_head(**without_nms, **without_threshold)

        def predict(params: Params, model_state: ModelState, inputs: Inputs, gt: GroundTruth) -> Detections:
            if not {'proposals', 'boxes'}.isdisjoint(stages):
                inputs = inputs._replace(proposals=gt.boxes, proposals_valid=gt.valid & ~gt.crowd)
            return predict_by(partial(detect, head=head, gt=gt, given=stages), params, model_state, inputs)

        return predict

    return oracle


def detect(
    net: nn.Module, proposed: Proposed, window: Array, *, head: RoIHead, gt: GroundTruth, given: Collection[str]
) -> Detections:
    """Finds the detections among proposals, as `stages.detect`, where the results of some stages are given.

    Args:
        net: a FasterRCNN, bound to its variables.
        proposed: the proposals of a batch.
        window: [B, 4], where the images lie on their canvases.
        head: the head on RoIs.
        gt: the ground truth of the batch.
        given: the names of the stages.
    """
    cls_logits, box_deltas = net.boxes(net.roi_features(proposed.levels, proposed.boxes, proposed.valid, train=False))
    with jax.named_scope('post'):
        if 'classes' in given:
            cls_logits = jax.vmap(true_classes)(cls_logits, proposed.boxes, gt)
        if 'boxes' in given:
            box_deltas = jnp.zeros_like(box_deltas)
        return jax.vmap(head.detect)(cls_logits, box_deltas, proposed.boxes, proposed.valid, window)


def true_classes(cls_logits: Array, rois: Array, gt: GroundTruth) -> Array:
    """Gives the RoIs of one image the classes of the objects that they cover.

    Args:
        cls_logits: [P, K + 1], background last.
        rois: [P, 4].
        gt: the ground truth of the image.

    Returns:
        [P, K + 1]. The class of the object has the probability that all classes had together, the others have 0. A RoI that
        covers nothing is background; one in a crowd keeps its logits.
    """
    matched = matching.match_by_threshold(rois, gt, positive_iou=COVERS, negative_iou=COVERS, match_best_anchors=False)
    background = cls_logits.shape[1] - 1
    labels, _ = matching.gather_targets(matched, rois, gt, background=background)
    scores = 1 - jax.nn.softmax(cls_logits)[:, -1]
    chosen = jnp.where(labels[:, None] == jnp.arange(background), scores[:, None], 0)  # [P, K]
    probabilities = jnp.concatenate([chosen, 1 - chosen.sum(axis=1, keepdims=True)], axis=1)
    return jnp.where((matched == matching.IGNORE)[:, None], cls_logits, jnp.log(probabilities))
