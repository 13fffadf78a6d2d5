"""R-CNN: *Rich feature hierarchies for accurate object detection and semantic segmentation* (arXiv 1311.2524).

    images [B, H, W, 3] -> normalise; proposals [B, P, 4] come from outside, for example from `detzoo proposals`
      -> rois [B, R, 4]: in training sampled from proposals and ground truth, else the proposals
      -> crops [B, R, s, s, 3], each with some context around it         `core.crops`
      -> the backbone and fully connected layers, on each crop alone
      -> cls_logits [B, R, K + 1], background last; box_deltas [B, R, K, 4]
    loss:    rois x ground truth -> cross-entropy, smooth L1; each sum divided by the number of its samples
    predict: crop by crop, some at a time -> softmax -> decode class by class -> clip -> class-aware NMS

No feature is shared between the crops of an image, which is why it is slow. Sampling, losses and detection are those of the
R-CNNs that came later, see `stages`: here only the network differs.

Differences from the paper:
- The softmax that fine-tuning ends with classifies. The paper trains a linear SVM a class on the network's features instead, with
  other positives and negatives, and a pass of hard negatives: 54.2 instead of 50.9 mAP on PASCAL VOC 2007.
- Boxes are regressed by an output of the network, trained with the classes, from rois of an IoU of 0.5 on. The paper solves a
  ridge regression a class on features of the last pooling layer, from an IoU of 0.6 on.
- Each image has `samples` rois, a quarter of them positive. The paper draws 128 windows from all images of a batch.
- Any backbone stands under it, at 224 pixels a side instead of AlexNet's 227, with the layers behind it as wide as is asked for.
- Crops are taken from the image as it lies on its canvas. Places without a RoI are crops too, and count in batch statistics.
- The authors' mode 'square', which keeps the aspect ratio of a proposal, is left out: the published results are those of 'warp'.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones import make_backbone
from detzoo.core.crops import warp_crops
from detzoo.detectors import chunks, stages
from detzoo.detectors import network as network_ops
from detzoo.detectors.faster_rcnn import BACKBONE, BoxHead, Trunk
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD, arguments_of
from detzoo.detectors.stages import Proposed, TrainedRoIs, make_roi_head
from detzoo.types import Array, Assignment, Batch, Detections, Detector, Inputs

HEAD = arguments_of(make_roi_head) | dict(samples=128, iou_threshold=0.3)


class RCNN(nn.Module):
    """The network. What it reads RoIs from, its `levels`, are the images [B, H, W, 3] and their windows [B, 4].

    make_backbone, make_trunk, make_box_head: constructors of the parts; the trunk is fully connected. warp: maps an image, its
    window and rois [R, 4] to crops [R, s, s, 3].
    """

    make_backbone: Callable[[], nn.Module]
    make_trunk: Callable[[], nn.Module]
    make_box_head: Callable[[], nn.Module]
    warp: Callable[[Array, Array, Array], Array]

    def setup(self) -> None:
        """Makes the parts."""
        self.backbone = self.make_backbone()
        self.trunk = self.make_trunk()
        self.box_head = self.make_box_head()

    def features(self, crops: Array, *, train: bool) -> Array:
        """Maps crops [N, s, s, 3] to [N, trunk_features]."""
        return self.trunk(self.backbone(crops, train=train)[-1], None, train=train)

    def roi_features(self, levels: Sequence[Array], rois: Array, valid: Array | None = None, *, train: bool) -> Array:
        """Maps rois [B, R, 4] to [B, R, trunk_features].

        valid: [B, R] bool, in prediction the RoIs whose features are needed; the features of others may be 0.
        """
        with jax.named_scope('backbone'):
            if train:
                crops = jax.vmap(self.warp)(*levels, rois)  # [B, R, s, s, 3]
                x = self.features(crops.reshape(-1, *crops.shape[2:]), train=True)
                return x.reshape(*rois.shape[:2], -1)
            unbound, variables = self.unbind()  # which a loop of JAX can call

            def of_image(each: tuple[Array, ...]) -> Array:
                image, window, rois, valid = each

                def read(rois: Array) -> Array:
                    crops = self.warp(image, window, rois)
                    return unbound.apply(variables, crops, train=False, method='features')

                return chunks.map_chunks(read, (rois,), valid, size=chunks.CROPS)

            return jax.lax.map(of_image, (*levels, rois, valid))

    def boxes(self, x: Array) -> tuple[Array, Array]:
        """Maps features [B, R, trunk_features] to cls_logits [B, R, K + 1] and box_deltas [B, R, K, 4]."""
        with jax.named_scope('heads'):
            outputs = self.box_head(x.reshape(-1, x.shape[-1]))
            return jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), outputs)

    def __call__(self, crops: Array, *, train: bool) -> tuple[Array, Array]:
        """Runs all parts on one crop, to draw their parameters."""
        return self.boxes(self.features(crops, train=train)[:, None])


def given(x: Array, inputs: Inputs) -> Proposed:
    """Collects what RoIs are read from, and the proposals.

    Args:
        x: [B, H, W, 3] float, normalised images.
        inputs: their windows and proposals.
    """
    if inputs.proposals is None:
        raise ValueError(
            'R-CNN makes no proposals: set data.train_proposals and data.validation_proposals, or inputs.proposals'
        )
    boxes = jnp.where(inputs.proposals_valid[..., None], inputs.proposals, jnp.asarray(stages.EMPTY_ROI))
    return Proposed((x, inputs.window), None, None, boxes, inputs.proposals_valid)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_stride: int = 32,
    crop_size: int = 224,
    context: int = 16,
    trunk_fc_layers: int = 2,
    trunk_features: int = 1024,
    head: Mapping[str, Any] = HEAD,
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes an R-CNN.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`.
        backbone_stride: stride of the backbone's last feature map, pixels of a crop.
        crop_size: s, pixels along a side of a crop.
        context: pixels of a crop, on each side, that show what surrounds the proposal.
        trunk_fc_layers: number of fully connected layers behind the backbone.
        trunk_features: outputs of each of them.
        head: arguments of `stages.make_roi_head`.
        cls_loss_weight, box_loss_weight: weights of the losses.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        A Detector, which needs proposals. The metrics of its loss are 'cls_loss', 'box_loss' and, as means over images,
        'positives' and 'negatives'. The stage of its assignment is 'rois'.
    """
    if crop_size <= 2 * context:
        raise ValueError(f'crop_size is {crop_size}: it must be more than twice the context, {context}')
    dtype = jnp.dtype(dtype)
    make_body = partial(make_backbone, (backbone_stride,), dtype, axis_name, **{**BACKBONE, **backbone})
    make_body()  # raises its errors here, not where parameters are drawn
    network = RCNN(
        make_body,
        partial(Trunk, 0, trunk_fc_layers, trunk_features, None, axis_name, dtype),
        partial(BoxHead, num_classes, False, dtype),
        partial(warp_crops, size=crop_size, context=context),
    )
    roi_head = make_roi_head(num_classes, **{**HEAD, **head})
    loss_weights = dict(cls_loss=cls_loss_weight, box_loss=box_loss_weight)
    run = partial(network_ops.apply, network, mean=mean, std=std, bgr=bgr)

    def init(rng: Array, canvas: tuple[int, int]) -> tuple[Any, Any]:
        del canvas  # the network sees crops alone
        return network_ops.init(network, rng, (crop_size, crop_size))

    def train_on(net: RCNN, x: Array, batch: Batch, rng: Array, *, train: bool) -> TrainedRoIs:
        """Samples RoIs, and runs the network on them."""
        proposed = given(x, batch.inputs)
        _, rois = stages.sample(None, roi_head, proposed, batch, rng)
        features = net.roi_features(proposed.levels, rois.boxes, train=train)
        return TrainedRoIs(*net.boxes(features), rois.boxes, rois.matched)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        rois, model_state = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        with jax.named_scope('loss'):
            metrics = stages.reduce_losses(None, roi_head, None, rois, batch.gt, axis_name)
            loss, metrics = stages.weigh(metrics, loss_weights)
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: RCNN, x: Array, *, train: bool) -> Detections:
            del train
            return stages.detect(net, given(x, inputs), inputs.window, head=roi_head)

        return run(params, model_state, inputs, train=False, method=find)[0]

    def propose(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        del params, model_state
        return stages.ranked(given(inputs.images, inputs))

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        del params, model_state
        _, rois = stages.sample(None, roi_head, given(batch.inputs.images, batch.inputs), batch, rng)
        return {'rois': rois}

    return Detector(init, loss, predict, assign, takes_proposals=True, needs_proposals=True, propose=propose)
