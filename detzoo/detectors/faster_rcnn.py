"""Faster R-CNN: *Towards Real-Time Object Detection with Region Proposal Networks* (arXiv 1506.01497), on a feature
pyramid (1612.03144), on C4 alone (1512.03385, appendix A), or on any one feature map, as in the paper.

    images [B, H, W, 3] -> normalise -> backbone -> levels: FPN P2..P6 (strides 4..64), C4 (stride 16), or one feature map
      -> RPN, on every level: objectness_logits [B, A], deltas [B, A, 4]
      -> decode -> the best of each level -> clip -> NMS -> proposals [B, P, 4]
      -> rois [B, R, 4]: in training sampled from proposals and ground truth, else the proposals
      -> features of each RoI [B, R, s, s, C] -> fully connected layers, behind convolutions if there are any, or with C4
         the last stage of the backbone
      -> cls_logits [B, R, K + 1], background last; box_deltas [B, R, K, 4]
    loss:    anchors x ground truth -> match -> sample -> cross-entropy, smooth L1;
             rois likewise; each sum divided by the number of its samples
    predict: softmax -> decode class by class -> clip -> class-aware NMS

With proposals among the inputs it is Fast R-CNN (1504.08083): they replace those of the RPN, which is not trained then and may
be missing. Fast R-CNN whose RoIs are read by a pyramid of bins (`roi.operator`), and whose gradients end there
(`roi.stop_gradient`), is SPP-net (1406.4729).

The RPN, the sampling of RoIs, their features and the losses are in `rpn` and `stages`; here are the network and how all of it is
put together.

Differences from the paper:
- The stages are trained together, not in turns, as in the authors' later code and everybody's since.
- Residual blocks stride in their 3x3 convolution (torchvision), not in the first 1x1, by default.
- Anchors that cross the border of the image are trained like all others, as in 1612.03144 (section 3.3 ignores them).
- Anchors and RoIs in a crowd are not negatives.
- In training each image keeps `train_post_nms_topk` proposals. Detectron, the authors' later code, keeps on a pyramid the 2000
  best of all images of a GPU.
- Fully connected layers of the trunk start with a deviation of sqrt(2 / fan_in); those of Detectron with sqrt(1 / fan_in).
- The pyramid and the convolutions of the head may be normalised (2111.11429, section 2.2), the RPN may be deeper.

Differences from SPP-net's paper:
- A softmax classifies, and boxes are regressed with the classes, as in Fast R-CNN. The paper trains linear SVMs and a ridge
  regression on the features of the fully connected layers.
- A RoI has the cells to which its corners are rounded, as in RoIPool. The paper takes those whose centres lie inside of it.
- All RoIs are read at the one scale of the canvas, as in the paper's "1-scale"; its five scales gain a point.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones import make_backbone, make_last_stage
from detzoo.backbones.conv import Conv
from detzoo.backbones.fpn import FPN
from detzoo.backbones.norms import make_norm
from detzoo.core import matching
from detzoo.detectors import chunks, stages
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD, arguments_of, with_arguments_of
from detzoo.detectors.rpn import RPN, make_rpn
from detzoo.detectors.stages import (
    EMPTY_ROI,
    RoIHead,
    RoIReader,
    TrainedAnchors,
    TrainedRoIs,
    make_roi_head,
    make_roi_reader,
)
from detzoo.types import Array, Assignment, Batch, Detections, Detector, Inputs

BACKBONE = arguments_of(make_backbone) | dict(name='resnet50', norm='frozen_batch_norm')


def run_convolutions(
    x: Array, *, layers: int, features: int, norm: Callable[..., nn.Module] | None, dtype: Any
) -> Array:
    """Runs 3x3 convolutions, each with a norm unless it is None, as parts of the module whose compact method calls this."""
    for i in range(1, layers + 1):
        x = Conv(
            features,
            (3, 3),
            padding=1,
            use_bias=norm is None,
            kernel_init=nn.initializers.he_normal(),
            dtype=dtype,
            name=f'conv{i}',
        )(x)
        x = nn.relu(x if norm is None else norm(name=f'norm{i}')(x))
    return x


class Trunk(nn.Module):
    """The layers of the head, but on C4: convolutions, if any, then fully connected layers (1612.03144, section 4.2).

    features: outputs of a fully connected layer; a convolution has as many as its input. norm: after each convolution, or None.
    """

    conv_layers: int
    fc_layers: int
    features: int
    norm: str | None
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps [N, s, s, C] to [N, features]; valid: [N] bool, rows that count in batch statistics, None for all."""
        norm = self.norm and make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, valid=valid)
        x = run_convolutions(x, layers=self.conv_layers, features=x.shape[-1], norm=norm, dtype=self.dtype)
        x = x.reshape(len(x), -1)
        for i in range(1, self.fc_layers + 1):
            x = nn.relu(
                nn.Dense(self.features, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=f'fc{i}')(x)
            )
        return x


class BoxHead(nn.Module):
    """Two fully connected outputs: class logits and box deltas."""

    num_classes: int
    class_agnostic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps [N, C] to cls_logits [N, K + 1] and box_deltas [N, K or 1, 4], float32."""
        dense = partial(nn.Dense, dtype=self.dtype)
        boxes = 1 if self.class_agnostic else self.num_classes
        cls_logits = dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), name='cls_logits')(x)
        box_deltas = dense(4 * boxes, kernel_init=nn.initializers.normal(0.001), name='box_deltas')(x)
        return cls_logits.astype(jnp.float32), box_deltas.reshape(len(x), boxes, 4).astype(jnp.float32)


class Body(NamedTuple):
    """The parts in which a pyramid, C4 and a single feature map differ.

    make_backbone: constructor of the module that maps images to stages.
    make_fpn: constructor of the module that maps stages to levels; None: the last stage is the only level.
    make_trunk: constructor of the module that maps features of RoIs [N, s, s, C] to what the heads read.
    strides: strides of the levels, pixels, finest first.
    roi_levels: number of levels from which RoIs are read, the finest.
    is_c4: whether the trunk is the last stage of the backbone, which maps cells to cells.
    """

    make_backbone: Callable[[], nn.Module]
    make_fpn: Callable[[], nn.Module] | None
    make_trunk: Callable[[], nn.Module]
    strides: Sequence[int]
    roi_levels: int
    is_c4: bool = False


def make_body(
    dtype: Any,
    axis_name: str | None,
    *,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_strides: Sequence[int] = (4, 8, 16, 32),
    fpn_features: int | None = 256,
    fpn_norm: str | None = None,
    trunk_last_stage: bool = True,
    trunk_conv_layers: int = 0,
    trunk_fc_layers: int = 2,
    trunk_features: int = 1024,
    trunk_norm: str | None = None,
) -> Body:
    """Binds the arguments of the backbone, of the pyramid and of the trunk.

    Args:
        dtype: data type in which they compute.
        axis_name: the mapped axis of the devices, or None.
        backbone: arguments of `make_backbone`. For C4 it needs a last stage that can run on features of RoIs, as ResNets have.
        backbone_strides: strides of the feature maps from which the pyramid is made, pixels, finest first; without a pyramid one
            stride. C4 has stride 16.
        fpn_features: channels of the pyramid; None: no pyramid, but a single feature map.
        fpn_norm: normalisation after the convolutions of the pyramid: None, or as that of the backbone.
        trunk_last_stage: whether the trunk is the last stage of the backbone where there is no pyramid, which is C4.
        trunk_conv_layers, trunk_fc_layers: number of convolutions and of fully connected layers of any other trunk.
        trunk_features: outputs of a fully connected layer.
        trunk_norm: normalisation after the convolutions of the trunk: None, or as that of the backbone.
    """
    if trunk_norm is not None and not trunk_conv_layers:
        raise ValueError(
            f'trunk_norm is {trunk_norm!r}: it follows the convolutions of the head, and trunk_conv_layers is 0'
        )
    for finer, coarser in zip(backbone_strides, backbone_strides[1:]):
        if coarser not in (finer, 2 * finer):
            raise ValueError(
                f'backbone_strides is {backbone_strides}: each must be the one before it, or twice as much'
            )
    is_c4 = fpn_features is None and trunk_last_stage
    if is_c4 and (fpn_norm is not None or trunk_conv_layers):
        raise ValueError(
            'fpn_features is None: C4 has neither a pyramid nor a head of its own, set fpn_norm to None and '
            'trunk_conv_layers to 0'
        )
    if fpn_features is None and not is_c4 and (fpn_norm is not None or len(backbone_strides) > 1):
        raise ValueError(
            'fpn_features is None and trunk_last_stage is False: there is one feature map and no pyramid, set fpn_norm to None '
            'and backbone_strides to one stride, like (16,)'
        )
    backbone = {**BACKBONE, **backbone}
    strides = (16,) if is_c4 else tuple(backbone_strides)
    make_stages = partial(make_backbone, strides, dtype, axis_name, **backbone)
    make_stages()  # raises its errors here, not where parameters are drawn
    if is_c4:
        make_trunk = partial(make_last_stage, dtype, axis_name, **backbone)
        make_trunk()
        return Body(make_stages, None, make_trunk, strides, roi_levels=1, is_c4=True)
    make_trunk = partial(Trunk, trunk_conv_layers, trunk_fc_layers, trunk_features, trunk_norm, axis_name, dtype)
    if fpn_features is None:
        return Body(make_stages, None, make_trunk, strides, roi_levels=1)
    make_fpn = partial(FPN, fpn_features, 'pool', fpn_norm, axis_name, dtype)
    # The last level is the RPN's alone. Where two levels have one stride, RoIs are read from the first, as in torchvision.
    return Body(make_stages, make_fpn, make_trunk, (*strides, 2 * strides[-1]), roi_levels=len(set(strides)))


class FasterRCNN(nn.Module):
    """The network.

    body: see `Body`. make_rpn_head: constructor of the RPN's head, or None for no RPN. make_box_head: constructor of the module
    that maps what the trunk makes of RoIs to class logits and box deltas. read_rois: see `RoIReader`.
    """

    body: Body
    make_rpn_head: Callable[[], nn.Module] | None
    make_box_head: Callable[[], nn.Module]
    read_rois: Callable[[Sequence[Array], Array], Array]

    def setup(self) -> None:
        """Makes the parts."""
        self.backbone = self.body.make_backbone()
        self.fpn = None if self.body.make_fpn is None else self.body.make_fpn()
        self.rpn_head = None if self.make_rpn_head is None else self.make_rpn_head()
        self.trunk = self.body.make_trunk()
        self.box_head = self.make_box_head()

    def levels(self, x: Array, *, train: bool) -> Sequence[Array]:
        """Maps images [B, H, W, 3] to levels [B, h, w, C], finest first."""
        with jax.named_scope('backbone'):
            stages = self.backbone(x, train=train)
        if self.fpn is None:
            return stages[-1:]
        with jax.named_scope('neck'):
            return self.fpn(stages, train=train)

    def rpn(self, levels: Sequence[Array]) -> tuple[Array, Array]:
        """Maps levels to objectness_logits [B, A] and deltas [B, A, 4]."""
        with jax.named_scope('rpn'):
            return self.rpn_head(levels)

    def roi_features(self, levels: Sequence[Array], rois: Array, valid: Array | None = None, *, train: bool) -> Array:
        """Maps rois [B, R, 4] to what the heads read: [B, R, trunk_features], with C4 [B, R, s / 2, s / 2, C].

        valid: [B, R] bool, in training the RoIs that count in batch statistics, in prediction those whose features are needed
            (the features of others may be 0); None: all.
        """
        x = self.read_rois(levels[: self.body.roi_levels], rois)  # [B, R, s, s, C]
        with jax.named_scope('heads'):
            x, valid = x.reshape(-1, *x.shape[2:]), valid if valid is None else valid.reshape(-1)
            if train or valid is None:
                x = self.trunk(x, valid, train=train)
            else:
                x = chunks.map_valid(chunks.without_training(self.trunk), (x,), valid, size=chunks.BOXES)
            return x.reshape(*rois.shape[:2], *x.shape[1:])

    def boxes(self, x: Array) -> tuple[Array, Array]:
        """Maps features of RoIs to cls_logits [B, R, K + 1] and box_deltas [B, R, K or 1, 4]."""
        with jax.named_scope('heads'):
            if x.ndim == 5:
                x = x.mean(axis=(2, 3))
            outputs = self.box_head(x.reshape(-1, x.shape[-1]))
            return jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), outputs)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts on one RoI an image, to draw their parameters."""
        levels = self.levels(x, train=train)
        rois = jnp.broadcast_to(jnp.asarray(EMPTY_ROI), (len(x), 1, 4))
        proposed = None if self.rpn_head is None else self.rpn(levels)
        return proposed, self.boxes(self.roi_features(levels, rois, train=train))


class Parts(NamedTuple):
    """What the arguments of a Faster R-CNN make.

    num_classes: K.
    network: the network.
    rpn: the RPN, or None for none.
    roi_head: the head on RoIs.
    roi_reader: the reader of the head's features.
    apply: `detzoo.detectors.network.apply`, bound to the normalisation of images.
    loss_weights: {loss: weight}.
    dtype: data type in which the network computes.
    axis_name: the mapped axis of the devices, or None.
    """

    num_classes: int
    network: FasterRCNN
    rpn: RPN | None
    roi_head: RoIHead
    roi_reader: RoIReader
    apply: Callable[..., tuple[Any, Any]]
    loss_weights: dict[str, float]
    dtype: Any
    axis_name: str | None


@with_arguments_of(make_body)
def make_parts(
    *,
    num_classes: int,
    class_agnostic: bool = False,
    rpn: Mapping[str, Any] | None = arguments_of(make_rpn),
    roi: Mapping[str, Any] = arguments_of(make_roi_reader),
    head: Mapping[str, Any] = arguments_of(make_roi_head),
    rpn_loss_weight: float = 1.0,
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
    **body: Any,
) -> Parts:
    """Makes the parts of a Faster R-CNN, for it or for a detector that adds to it.

    Args:
        num_classes: K.
        class_agnostic: whether a RoI has one box for all classes.
        rpn: arguments of `make_rpn`, with as many anchor_sizes as there are levels, for C4 one. None: no RPN, proposals are given.
        roi: arguments of `make_roi_reader`; for C4 output_size is 14, of which the last stage makes 7.
        head: arguments of `make_roi_head`.
        rpn_loss_weight: weight of both losses of the RPN.
        cls_loss_weight, box_loss_weight: weights of the losses of the head.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.
        **body: arguments of `make_body`.
    """
    dtype = jnp.dtype(dtype)
    has_convolutions = body.get('trunk_conv_layers', 0) > 0
    body = make_body(dtype, axis_name, **body)
    rpn = None if rpn is None else make_rpn(body.strides, dtype, **rpn)
    reader = make_roi_reader(body.strides[0], body.roi_levels, **roi)
    if not reader.keeps_cells and (body.is_c4 or has_convolutions):
        raise ValueError(
            "roi.operator is 'pyramid': its bins are no map for convolutions: set trunk_conv_layers to 0, and on C4 "
            'trunk_last_stage to False'
        )
    make_rpn_head = None if rpn is None else rpn.make_head
    return Parts(
        num_classes,
        FasterRCNN(body, make_rpn_head, partial(BoxHead, num_classes, class_agnostic, dtype), reader.read),
        rpn,
        make_roi_head(num_classes, **head),
        reader,
        partial(network_ops.apply, mean=mean, std=std, bgr=bgr),
        dict(
            rpn_cls_loss=rpn_loss_weight,
            rpn_box_loss=rpn_loss_weight,
            cls_loss=cls_loss_weight,
            box_loss=box_loss_weight,
        ),
        dtype,
        axis_name,
    )


@with_arguments_of(make_parts)
def make(**arguments: Any) -> Detector:
    """Makes a Faster R-CNN.

    Args:
        **arguments: those of `make_parts` and of `make_body`.

    Returns:
        A Detector. The metrics of its loss are 'rpn_cls_loss', 'rpn_box_loss', 'cls_loss', 'box_loss', and, as means over images,
        'rpn_positives', 'rpn_negatives' (anchors), 'positives', 'negatives' (RoIs), and those of `make_roi_reader`. The stages
        of its assignment are 'rpn' and 'rois'. Where proposals are among the inputs there are none of the RPN.
    """
    parts = make_parts(**arguments)
    rpn, roi_head = parts.rpn, parts.roi_head
    run = partial(parts.apply, parts.network)

    def train_on(
        net: FasterRCNN, x: Array, batch: Batch, rng: Array, *, train: bool
    ) -> tuple[TrainedAnchors | None, TrainedRoIs]:
        """Samples anchors and RoIs, and runs the network on them."""
        proposed = stages.propose(net, rpn, x, batch.inputs, train=train)
        anchors, rois = stages.sample(rpn, roi_head, proposed, batch, rng)
        features = net.roi_features(proposed.levels, rois.boxes, rois.matched != matching.IGNORE, train=train)
        return anchors, TrainedRoIs(*net.boxes(features), rois.boxes, rois.matched)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        (anchors, rois), model_state = run(
            params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng
        )
        with jax.named_scope('loss'):
            metrics = stages.reduce_losses(rpn, roi_head, anchors, rois, batch.gt, parts.axis_name)
            metrics |= parts.roi_reader.metrics(rois.rois, rois.matched)
            loss, metrics = stages.weigh(metrics, parts.loss_weights)
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: FasterRCNN, x: Array, *, train: bool) -> Detections:
            proposed = stages.propose(net, rpn, x, inputs, train=train)
            return stages.detect(net, proposed, inputs.window, head=roi_head)

        return run(params, model_state, inputs, train=False, method=find)[0]

    def propose(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: FasterRCNN, x: Array, *, train: bool) -> Detections:
            return stages.ranked(stages.propose(net, rpn, x, inputs, train=train))

        return run(params, model_state, inputs, train=False, method=find)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        trained, _ = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        return stages.assignments(*trained)

    init = partial(network_ops.init, parts.network)
    return Detector(init, loss, predict, assign, takes_proposals=True, needs_proposals=rpn is None, propose=propose)
