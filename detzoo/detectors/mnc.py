"""Multi-task Network Cascades (MNC, arXiv 1512.04412): a box, then a mask in the box, then a class that sees the mask.

    images, RPN, proposals, rois: see `faster_rcnn`, on C4
      -> RoIWarp: 2 s x 2 s points, the largest of each 2 x 2 -> features of each RoI [B, R, s, s, C]
      -> fully connected layers -> mask_logits [B, R, 2 s, 2 s, 1], one mask for all classes
      -> the features times their mask
      -> the last stage of the backbone on the features, another one on the masked features -> concatenated
      -> cls_logits [B, R, K + 1], background last; box_deltas [B, R, K, 4]
    loss:    that of Faster R-CNN, and the binary cross-entropy of the masks of positive rois. The class trains the mask that it
             sees, and both train, through RoIWarp, the RPN's boxes of positive rois.
    predict: proposals -> masks, classes, boxes -> once more in the boxes of the best classes -> softmax, decode, clip,
             class-aware NMS of the results of all rounds -> the masks in the boxes of the detections, [B, D, 2 s, 2 s]

Mask R-CNN finds class, box and mask beside each other; here each stage depends on the one before it.

Differences from the paper:
- Those of `faster_rcnn` on C4. The paper's network is VGG-16, whose fully connected layers read both kinds of features.
- The gradient to the boxes is that of positive rois. With that of negatives too, the RPN of a small network learnt to propose
  boxes beside the objects, which are easy to tell from them.
- Training has three stages. The authors also train five, as the second round of prediction.
- The mask of a detection is predicted in its final box. The authors keep the masks of the boxes that the last round started
  with, and average those of overlapping instances (mask voting).
- A mask has twice as many cells along a side as the features, 28; in the authors' code it has 21.
- In the authors' code the third stage also classifies the masked segment, by an output of its own.
- The proposals in training include the boxes of the objects.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.core import box_coding, losses, masks, matching
from detzoo.core import boxes as box_ops
from detzoo.core.roi_warp import warp
from detzoo.detectors import chunks, faster_rcnn, stages
from detzoo.detectors import network as network_ops
from detzoo.detectors.faster_rcnn import BACKBONE, FasterRCNN
from detzoo.detectors.mask_rcnn import Trained, make_mask_head
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD, arguments_of
from detzoo.detectors.rpn import make_rpn
from detzoo.detectors.stages import EMPTY_ROI, TrainedRoIs, make_roi_head
from detzoo.types import Array, Assignment, Batch, Detections, Detector, Inputs

STRIDE = 16  # of C4, pixels
RPN = arguments_of(make_rpn) | dict(anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),), post_nms_topk=300)
HEAD = arguments_of(make_roi_head) | dict(samples=64, positive_share=0.5, iou_threshold=0.3)


def classify_masked(
    mask_head: Callable[[Array], Array],
    trunk: Callable[[Array], Array],
    masked_trunk: Callable[[Array], Array],
    x: Array,
) -> tuple[Array, Array]:
    """Runs the second stage and the trunks of the third on features [N, s, s, C].

    Args:
        mask_head: maps features to mask_logits [N, m, m, 1].
        trunk, masked_trunk: map features, and masked features, to [N, s / 2, s / 2, C'].
        x: the features.

    Returns:
        mask_logits, and what the boxes and classes are read from, [N, s / 2, s / 2, 2 C'].
    """
    mask_logits = mask_head(x)
    masked = masks.mask_features(x, jax.nn.sigmoid(mask_logits[..., 0]))
    return mask_logits, jnp.concatenate([trunk(x), masked_trunk(masked)], axis=-1)


class MNC(nn.Module):
    """The network: the parts of a Faster R-CNN on C4, the mask head, and the trunk of the masked features.

    faster_rcnn: constructor of the Faster R-CNN.
    mask_head: maps features [N, s, s, C] to mask_logits [N, 2 s, 2 s, 1].
    output_size: s.
    """

    faster_rcnn: Callable[[], FasterRCNN]
    mask_head: nn.Module
    output_size: int

    def setup(self) -> None:
        """Gives the parameters of the Faster R-CNN the names that they have by themselves."""
        self.boxes = self.faster_rcnn()
        nn.share_scope(self, self.boxes)
        self.masked_trunk = self.boxes.body.make_trunk()

    def features(self, levels: Sequence[Array], rois: Array) -> Array:
        """Reads the features of rois [B, R, 4]: [B, R, s, s, C], with a gradient to the rois."""
        with jax.named_scope('roi'):
            x = jax.vmap(partial(warp, stride=STRIDE, output_size=2 * self.output_size))(levels[0], rois)
            batch, count, size, _, channels = x.shape
            return x.reshape(batch, count, size // 2, 2, size // 2, 2, channels).max(axis=(3, 5))

    def cascade(self, x: Array, valid: Array | None, *, train: bool) -> tuple[Array, Array, Array]:
        """Maps features [B, R, s, s, C] to mask_logits [B, R, 2 s, 2 s, 1], cls_logits and box_deltas.

        valid: [B, R] bool, in training the RoIs that count in batch statistics, in prediction those that are needed; None: all.
        """
        with jax.named_scope('heads'):
            lead = x.shape[:2]
            rows, needed = x.reshape(-1, *x.shape[2:]), valid if valid is None else valid.reshape(-1)
            parts = self.mask_head, self.boxes.trunk, self.masked_trunk
            if train or valid is None:
                outputs = classify_masked(*(partial(part, valid=needed, train=train) for part in parts), rows)
            else:
                unbound = partial(classify_masked, *map(chunks.without_training, parts))
                outputs = chunks.map_valid(unbound, (rows,), needed, size=chunks.BOXES)
            mask_logits, x = (y.reshape(*lead, *y.shape[1:]) for y in outputs)
        return mask_logits, *self.boxes.boxes(x)

    def predict_masks(self, levels: Sequence[Array], rois: Array, valid: Array) -> Array:
        """Finds the masks in boxes [B, D, 4]: [B, D, 2 s, 2 s]; 0 where there is none."""
        x = self.features(levels, rois)
        with jax.named_scope('heads'):
            logits = self.mask_head(x.reshape(-1, *x.shape[2:]), None, train=False)
            found = jax.nn.sigmoid(logits[..., 0]).reshape(*valid.shape, *logits.shape[1:3])
            return jnp.where(valid[..., None, None], found, 0)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts on one RoI an image, to draw their parameters."""
        levels = self.boxes.levels(x, train=train)
        rois = jnp.broadcast_to(jnp.asarray(EMPTY_ROI), (len(x), 1, 4))
        proposed = None if self.boxes.rpn_head is None else self.boxes.rpn(levels)
        return proposed, self.cascade(self.features(levels, rois), None, train=train)


def best_boxes(
    cls_logits: Array, box_deltas: Array, rois: Array, window: Array, delta_weights: Sequence[float]
) -> Array:
    """Moves the RoIs of an image as their best classes want: the boxes in which the next round looks.

    Args:
        cls_logits: [P, K + 1], background last.
        box_deltas: [P, K or 1, 4].
        rois: [P, 4].
        window: [4], to which boxes are clipped.
        delta_weights: factors of dx, dy, dw, dh.

    Returns:
        [P, 4].
    """
    with jax.named_scope('post'):
        column = jnp.minimum(cls_logits[:, :-1].argmax(axis=1), box_deltas.shape[1] - 1)
        deltas = jnp.take_along_axis(box_deltas, column[:, None, None], axis=1)[:, 0]
        return box_ops.clip(box_coding.decode(deltas, rois, weights=delta_weights), window)


def boxes_that_learn(rois: Assignment) -> Array:
    """Returns the boxes of RoIs [B, R, 4], of which those of positives alone have a gradient.

    A negative would learn to look away from the object that it should be moved onto.
    """
    return jnp.where((rois.matched >= 0)[..., None], rois.boxes, jax.lax.stop_gradient(rois.boxes))


def make(
    *,
    num_classes: int,
    class_agnostic: bool = False,
    backbone: Mapping[str, Any] = BACKBONE,
    rpn: Mapping[str, Any] | None = RPN,
    output_size: int = 14,
    mask_layers: int = 1,
    mask_features: int = 256,
    head: Mapping[str, Any] = HEAD,
    boxes_learn: bool = True,
    rounds: int = 2,
    rpn_loss_weight: float = 1.0,
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    mask_loss_weight: float = 2.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes an MNC.

    Args:
        num_classes: K.
        class_agnostic: whether a RoI has one box for all classes.
        backbone: arguments of `make_backbone`; it needs a last stage that can run on features of RoIs, as ResNets have.
        rpn: arguments of `make_rpn`, with one level of anchor_sizes. None: no RPN, proposals are given.
        output_size: s, cells along a side of a RoI's features.
        mask_layers: number of fully connected layers before the mask.
        mask_features: outputs of each of them.
        head: arguments of `make_roi_head`.
        boxes_learn: whether the losses of masks, classes and boxes train the RPN's boxes too, through RoIWarp.
        rounds: how often prediction runs the mask and the class: 2 for the paper's five stages, 1 for three.
        rpn_loss_weight: weight of both losses of the RPN.
        cls_loss_weight, box_loss_weight, mask_loss_weight: weights of the other losses.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        A Detector, to be trained on ground truth with masks. Its metrics and stages are those of `faster_rcnn.make`, and also
        'mask_loss'.
    """
    parts = faster_rcnn.make_parts(
        num_classes=num_classes,
        class_agnostic=class_agnostic,
        backbone=backbone,
        fpn_features=None,
        rpn=rpn if rpn is None else {**RPN, **rpn},
        head={**HEAD, **head},
        rpn_loss_weight=rpn_loss_weight,
        cls_loss_weight=cls_loss_weight,
        box_loss_weight=box_loss_weight,
        mean=mean,
        std=std,
        bgr=bgr,
        dtype=dtype,
        axis_name=axis_name,
    )
    mask_head = make_mask_head(
        num_classes, parts.dtype, axis_name, head='mlp', layers=mask_layers, features=mask_features, class_agnostic=True
    )
    rpn_functions, roi_head = parts.rpn, parts.roi_head
    move = jax.vmap(partial(best_boxes, delta_weights={**HEAD, **head}['delta_weights']))
    network = MNC(lambda: parts.network, mask_head.module, output_size)
    run = partial(parts.apply, network)

    def train_on(net: MNC, x: Array, batch: Batch, rng: Array, *, train: bool) -> Trained:
        """Samples anchors and RoIs, and runs the network on them."""
        proposed = stages.propose(net.boxes, rpn_functions, x, batch.inputs, train=train, boxes_learn=boxes_learn)
        anchors, rois = stages.sample(rpn_functions, roi_head, proposed, batch, rng)
        features = net.features(proposed.levels, boxes_that_learn(rois))
        mask_logits, *outputs = net.cascade(features, rois.matched != matching.IGNORE, train=train)
        # Targets are relative to the RoIs as they are: the gradient to their boxes comes through their features.
        return Trained(anchors, TrainedRoIs(*outputs, jax.lax.stop_gradient(rois.boxes), rois.matched), mask_logits)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        trained, model_state = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        with jax.named_scope('loss'):
            anchors, rois = trained.anchors, trained.rois
            metrics = stages.reduce_losses(rpn_functions, roi_head, anchors, rois, batch.gt, axis_name)
            mask_loss = jax.vmap(mask_head.loss)(trained.mask_logits, rois.rois, rois.matched, batch.gt)['mask_loss']
            metrics['mask_loss'] = mask_loss.sum() / losses.normalizer((rois.matched >= 0).sum(), axis_name)
            loss, metrics = stages.weigh(metrics, parts.loss_weights | dict(mask_loss=mask_loss_weight))
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: MNC, x: Array, *, train: bool) -> Detections:
            proposed = stages.propose(net.boxes, rpn_functions, x, inputs, train=train)
            boxes, found = proposed.boxes, []
            for _ in range(rounds):
                features = net.features(proposed.levels, boxes)
                _, cls_logits, box_deltas = net.cascade(features, proposed.valid, train=train)
                found.append((cls_logits, box_deltas, boxes, proposed.valid))
                boxes = move(cls_logits, box_deltas, boxes, inputs.window)
            with jax.named_scope('post'):
                rows = (jnp.concatenate(arrays, axis=1) for arrays in zip(*found))
                detections = jax.vmap(roi_head.detect)(*rows, inputs.window)
                rois = jnp.where(detections.valid[..., None], detections.boxes, jnp.asarray(EMPTY_ROI))
            return detections._replace(masks=net.predict_masks(proposed.levels, rois, detections.valid))

        return run(params, model_state, inputs, train=False, method=find)[0]

    def propose(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: MNC, x: Array, *, train: bool) -> Detections:
            return stages.ranked(stages.propose(net.boxes, rpn_functions, x, inputs, train=train))

        return run(params, model_state, inputs, train=False, method=find)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        trained, _ = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        return stages.assignments(trained.anchors, trained.rois)

    return Detector(
        partial(network_ops.init, network),
        loss,
        predict,
        assign,
        takes_proposals=True,
        needs_proposals=rpn is None,
        finds_masks=True,
        propose=propose,
    )
