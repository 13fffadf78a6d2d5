"""Mask R-CNN (arXiv 1703.06870): Faster R-CNN, and a mask of each object inside its box.

    images, RPN, proposals, rois, cls_logits, box_deltas: as `faster_rcnn` has them
      -> rois that are positive; in prediction the detections' boxes
      -> split (on a pyramid):  their own RoI features [B, P, 14, 14, C] -> 4 convolutions -> deconvolution -> 28 x 28
         joint (on C4):         the features that the box head reads, [B, P, 7, 7, C]     -> deconvolution -> 14 x 14
      -> mask_logits [B, P, m, m, K]
    loss:    that of Faster R-CNN, and the binary cross-entropy of the mask of the object's class, averaged over its cells
    predict: Faster R-CNN's detections, each with the probabilities of the mask of its class, [B, D, m, m]

The two designs are figure 4 of the paper: `fpn_features` chooses. What table 2 takes away or changes are arguments of
`make_mask`, `make_roi_reader` and `make`.

Differences from the paper:
- Those of `faster_rcnn`.
- Targets are points of the object's shape (`masks.mask_targets`), drawn from its mask in the frame of its box.
- With a softmax over classes (table 2b) background is a class of its own.
- The layer of the mask logits starts at a deviation of 0.01; in Detectron, the authors' code, a convolution for masks per class
  starts from He's initialisation (MSRAFill), one for all classes, or a fully connected layer, at 0.001.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from detzoo.backbones.norms import make_norm
from detzoo.core import losses, masks, matching
from detzoo.detectors import faster_rcnn
from detzoo.detectors import network as network_ops
from detzoo.detectors.faster_rcnn import FasterRCNN
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs


class FCNHead(nn.Module):
    """Convolutions, a deconvolution that doubles the size, and a 1x1 convolution (figure 4).

    norm: behind each of the first convolutions, or None.
    """

    outputs: int
    layers: int
    features: int
    norm: str | None
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps [N, s, s, C] to [N, 2 s, 2 s, outputs] float32; valid: [N] bool, of which rows statistics are taken."""
        norm = self.norm and make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, valid=valid)
        x = faster_rcnn.run_convolutions(x, layers=self.layers, features=self.features, norm=norm, dtype=self.dtype)
        x = nn.relu(
            nn.ConvTranspose(
                self.features, (2, 2), (2, 2), kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name='deconv'
            )(x)
        )
        return nn.Conv(self.outputs, (1, 1), kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name='logits')(
            x
        ).astype(jnp.float32)


class MLPHead(nn.Module):
    """Fully connected layers, which see the whole RoI for each cell (table 2e)."""

    outputs: int
    layers: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps [N, s, s, C] to [N, 2 s, 2 s, outputs] float32."""
        del valid, train
        size = 2 * x.shape[1]
        x = x.reshape(len(x), -1)
        for i in range(self.layers):
            x = nn.relu(
                nn.Dense(self.features, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=f'fc{i + 1}')(x)
            )
        x = nn.Dense(
            size * size * self.outputs, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name='logits'
        )(x)
        return x.reshape(len(x), size, size, self.outputs).astype(jnp.float32)


class MaskRCNN(nn.Module):
    """The network: the parts of a Faster R-CNN, and the mask head beside them.

    faster_rcnn: returns the one. read_rois: of the split head, takes its own features of RoIs from levels; None: the head is
    joint.
    """

    faster_rcnn: Callable[[], FasterRCNN]
    mask_head: nn.Module
    read_rois: Callable[[Sequence[Array], Array], Array] | None

    def setup(self) -> None:
        """Puts the parts of the Faster R-CNN at the same place in the tree of parameters as alone."""
        self.boxes = self.faster_rcnn()
        nn.share_scope(self, self.boxes)

    def masks(
        self, levels: Sequence[Array], rois: Array, features: Array | None, valid: Array | None = None, *, train: bool
    ) -> Array:
        """Maps rois [B, P, 4], or with a joint head their features, to mask_logits [B, P, m, m, K].

        valid: [B, P] bool, the RoIs of which batch statistics are taken; None: all.
        """
        x = features if self.read_rois is None else self.read_rois(levels[: self.boxes.roi_levels], rois)
        with jax.named_scope('heads'):
            x = self.mask_head(x.reshape(-1, *x.shape[2:]), valid if valid is None else valid.reshape(-1), train=train)
            return x.reshape(*rois.shape[:2], *x.shape[1:])

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts, on one RoI an image, which draws their parameters."""
        levels = self.boxes.levels(x, train=train)
        rois = jnp.broadcast_to(jnp.asarray(faster_rcnn.EMPTY_ROI), (len(x), 1, 4))
        features = self.boxes.roi_features(levels, rois, train=train)
        proposed = None if self.boxes.rpn_head is None else self.boxes.rpn(levels)
        return proposed, self.boxes.boxes(features), self.masks(levels, rois, features, train=train)


class MaskStage(NamedTuple):
    """What is done with masks.

    head: the module that maps features [N, s, s, C] to mask_logits [N, m, m, ...].
    loss(mask_logits, rois, matched, gt): the sum over an image's positive RoIs, 'mask_loss'.
    probabilities(mask_logits, labels): [D, m, m] of the masks of D detections.
    """

    head: nn.Module
    loss: Callable[..., dict[str, Array]]
    probabilities: Callable[..., Array]


def make_mask(
    num_classes: int,
    dtype: Any,
    axis_name: str | None,
    *,
    head: str = 'fcn',
    layers: int = 4,
    features: int = 256,
    norm: str | None = None,
    class_agnostic: bool = False,
    activation: str = 'sigmoid',
    targets: str = 'point',
) -> MaskStage:
    """Makes the functions of the mask branch (section 3, mask representation; table 2).

    Args:
        num_classes: K.
        dtype: of the head's computation.
        axis_name: the mapped axis of the devices, or None.
        head: 'fcn' or 'mlp' (table 2e).
        layers: before the deconvolution, or of the MLP before its output; the paper's joint head has none.
        features: of each.
        norm: behind the convolutions before the deconvolution: None, 'batch_norm' (synchronised over devices, of the
            positive RoIs), 'frozen_batch_norm' or 'group_norm'. Of 'fcn'.
        class_agnostic: whether a RoI has one mask for all classes.
        activation: 'sigmoid', each class for itself, or 'softmax', over the classes and background (table 2b).
        targets: 'point': whether the centre of a cell lies in the object (detectron2); or 'average': how much of the cell
            (torchvision). With a softmax a cell is the object's from a half on.

    Returns:
        a MaskStage.
    """
    heads = {'fcn': partial(FCNHead, norm=norm, axis_name=axis_name), 'mlp': MLPHead}
    if head not in heads:
        raise ValueError(f'mask.head is {head!r}: use one of {", ".join(heads)}')
    if norm is not None and head != 'fcn':
        raise ValueError(f'mask.norm is {norm!r}: {head} has none, set it to None')
    if activation not in ('sigmoid', 'softmax'):
        raise ValueError(f"mask.activation is {activation!r}: use 'sigmoid' or 'softmax'")
    targets_of = {'point': masks.mask_targets, 'average': masks.average_mask_targets}
    if targets not in targets_of:
        raise ValueError(f'mask.targets is {targets!r}: use one of {", ".join(targets_of)}')
    softmax = activation == 'softmax'
    classes = 1 if class_agnostic else num_classes
    module = heads[head](outputs=classes + softmax, layers=layers, features=features, dtype=dtype)

    def of_class(x: Array, labels: Array) -> Array:
        """Chooses from [N, m, m, ...] the mask of each one's class."""
        channel = jnp.minimum(labels, classes - 1)[:, None, None, None]
        return jnp.take_along_axis(x, channel, axis=3)[..., 0]

    def loss(mask_logits: Array, rois: Array, matched: Array, gt: GroundTruth) -> dict[str, Array]:
        if gt.masks is None:
            raise ValueError('the ground truth has no masks: set data.mask_size, to 112 for example')
        target = targets_of[targets](gt.masks, gt.boxes, matched, rois, size=mask_logits.shape[1])
        labels = jnp.minimum(gt.labels[jnp.maximum(matched, 0)], classes - 1)
        if softmax:
            wanted = jnp.where(target >= 0.5, labels[:, None, None], classes)
            error = optax.softmax_cross_entropy_with_integer_labels(mask_logits, wanted)
        else:
            error = optax.sigmoid_binary_cross_entropy(of_class(mask_logits, labels), target)
        return dict(mask_loss=jnp.where(matched >= 0, error.mean(axis=(1, 2)), 0).sum())

    def probabilities(mask_logits: Array, labels: Array) -> Array:
        return of_class(jax.nn.softmax(mask_logits) if softmax else jax.nn.sigmoid(mask_logits), labels)

    return MaskStage(module, loss, probabilities)


def make(
    *,
    num_classes: int,
    backbone: str = 'resnet',
    depth: int = 50,
    width: float = 1.0,
    stride_in_1x1: bool = False,
    norm: str = 'frozen_batch_norm',
    norm_epsilon: float = 1e-5,
    fpn_features: int | None = 256,
    fpn_norm: str | None = None,
    trunk_conv_layers: int = 0,
    trunk_fc_layers: int = 2,
    trunk_features: int = 1024,
    trunk_norm: str | None = None,
    class_agnostic: bool = False,
    rpn: Mapping[str, Any] | None = network_ops.arguments_of(faster_rcnn.make_rpn),
    roi: Mapping[str, Any] = network_ops.arguments_of(faster_rcnn.make_roi_reader),
    head: Mapping[str, Any] = network_ops.arguments_of(faster_rcnn.make_roi_head),
    mask_roi: Mapping[str, Any] = network_ops.arguments_of(faster_rcnn.make_roi_reader) | dict(output_size=14),
    mask: Mapping[str, Any] = network_ops.arguments_of(make_mask),
    rpn_loss_weight: float = 1.0,
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    mask_loss_weight: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes a Mask R-CNN.

    Args:
        num_classes, backbone, depth, width, stride_in_1x1, norm, norm_epsilon, fpn_features, fpn_norm, trunk_conv_layers,
            trunk_fc_layers, trunk_features, trunk_norm, class_agnostic, rpn, roi, head, rpn_loss_weight, cls_loss_weight,
            box_loss_weight, mean, std, bgr, dtype, axis_name: as of `faster_rcnn.make`.
        mask_roi: arguments of `faster_rcnn.make_roi_reader` for the mask head on a pyramid; on C4 it reads what the box head
            reads.
        mask: arguments of `make_mask`.
        mask_loss_weight: of the mask loss.

    Returns:
        a Detector, whose metrics and stages are those of `faster_rcnn.make`, besides the metrics 'mask_loss' and, of
        mask_roi, those of `faster_rcnn.make_roi_reader` as 'mask_...'. It is trained on ground truth with masks.
    """
    joint = fpn_features is None
    strides, roi_levels = faster_rcnn.levels_of(backbone, fpn_features)
    first = None if rpn is None else faster_rcnn.make_rpn(strides, jnp.dtype(dtype), **rpn)
    second = faster_rcnn.make_roi_head(num_classes, **head)
    third = make_mask(num_classes, jnp.dtype(dtype), axis_name, **mask)
    reader = faster_rcnn.make_roi_reader(strides[0], roi_levels, **roi)
    mask_reader = None if joint else faster_rcnn.make_roi_reader(strides[0], roi_levels, **mask_roi)
    boxes = faster_rcnn.make_network(
        num_classes,
        first,
        reader.read,
        backbone=backbone,
        depth=depth,
        width=width,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
        norm_epsilon=norm_epsilon,
        fpn_features=fpn_features,
        fpn_norm=fpn_norm,
        trunk_conv_layers=trunk_conv_layers,
        trunk_fc_layers=trunk_fc_layers,
        trunk_features=trunk_features,
        trunk_norm=trunk_norm,
        class_agnostic=class_agnostic,
        dtype=jnp.dtype(dtype),
        axis_name=axis_name,
    )
    network = MaskRCNN(lambda: boxes, third.head, mask_reader and mask_reader.read)
    run = partial(network_ops.apply, network, mean=mean, std=std, bgr=bgr)
    weights = dict(
        rpn_cls_loss=rpn_loss_weight,
        rpn_box_loss=rpn_loss_weight,
        cls_loss=cls_loss_weight,
        box_loss=box_loss_weight,
        mask_loss=mask_loss_weight,
    )

    def all_stages(net: MaskRCNN, x: Array, batch: Batch, rng: Array, *, train: bool) -> tuple[Any, Any, Any]:
        """What is trained: of_rpn and of_rois, see `faster_rcnn.reduce_losses`; mask_logits of the first RoIs."""
        levels, rpn_outputs, proposals = faster_rcnn.propose(net.boxes, first, x, batch.inputs, train=train)
        of_rpn, rois, matched = faster_rcnn.sample(first, second, rpn_outputs, proposals, batch, rng)
        features = net.boxes.roi_features(levels, rois, matched != matching.IGNORE, train=train)
        few = second.max_positives  # the positive RoIs are among them
        mask_logits = net.masks(levels, rois[:, :few], features[:, :few], matched[:, :few] >= 0, train=train)
        return of_rpn, (*net.boxes.boxes(features), rois, matched), mask_logits

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        (of_rpn, of_rois, mask_logits), model_state = run(
            params, model_state, batch.inputs, train=True, method=all_stages, batch=batch, rng=rng
        )
        with jax.named_scope('loss'):
            metrics = faster_rcnn.reduce_losses(first, second, of_rpn, of_rois, batch.gt, axis_name)
            metrics |= reader.metrics(*of_rois[2:])
            rois, matched = (x[:, : second.max_positives] for x in of_rois[2:])
            if mask_reader:
                of_masks = mask_reader.metrics(rois, jnp.where(matched >= 0, matched, matching.IGNORE))
                metrics |= {f'mask_{name}': value for name, value in of_masks.items()}
            mask_loss = jax.vmap(third.loss)(mask_logits, rois, matched, batch.gt)['mask_loss'].sum()
            metrics['mask_loss'] = mask_loss / losses.normalizer((matched >= 0).sum(), axis_name)
            loss, metrics = faster_rcnn.weigh(metrics, weights)
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def detect(net: MaskRCNN, x: Array, *, train: bool) -> Detections:
            levels, _, (proposals, valid) = faster_rcnn.propose(net.boxes, first, x, inputs, train=train)
            outputs = net.boxes.boxes(net.boxes.roi_features(levels, proposals, train=train))
            with jax.named_scope('post'):
                found = jax.vmap(second.detect)(*outputs, proposals, valid, inputs.window)
                rois = jnp.where(found.valid[..., None], found.boxes, jnp.asarray(faster_rcnn.EMPTY_ROI))
            features = net.boxes.roi_features(levels, rois, train=train) if joint else None
            mask_logits = net.masks(levels, rois, features, train=train)
            with jax.named_scope('heads'):
                return found._replace(masks=jax.vmap(third.probabilities)(mask_logits, found.labels))

        return run(params, model_state, inputs, train=False, method=detect)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        outputs, _ = run(params, model_state, batch.inputs, train=True, method=all_stages, batch=batch, rng=rng)
        return faster_rcnn.assignments(*outputs[:2])

    return Detector(partial(network_ops.init, network), loss, predict, assign)
