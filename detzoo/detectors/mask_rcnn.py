"""Mask R-CNN (arXiv 1703.06870): Faster R-CNN, and a mask of each object inside its box.

    images, RPN, proposals, rois, cls_logits, box_deltas: see `faster_rcnn`
      -> the positive rois; in prediction the boxes of the detections
      -> split (on a pyramid):  their own RoI features [B, P, 14, 14, C] -> 4 convolutions -> deconvolution -> 28 x 28
         joint (on C4):         the features that the box head reads, [B, P, 7, 7, C]     -> deconvolution -> 14 x 14
      -> mask_logits [B, P, m, m, K]
    loss:    that of Faster R-CNN, and the binary cross-entropy of the mask of the object's class, averaged over its cells
    predict: the detections of Faster R-CNN, each with the probabilities of the mask of its class, [B, D, m, m]

The two designs are those of figure 4 of the paper; `fpn_features` chooses one. The ablations of table 2 are arguments of
`make_mask_head`, `make_roi_reader` and `make`.

Differences from the paper:
- Those of `faster_rcnn`.
- A target is read from the object's mask in the frame of its box, at the centres of the RoI's cells (`masks.mask_targets`).
- With a softmax over classes (table 2b) background is one more class.
- The layer of the mask logits starts with a standard deviation of 0.01. In Detectron, the authors' code, a convolution starts
  from He's initialisation (MSRAFill) if each class has a mask. If all classes share one, it starts with 0.001, and so does a
  fully connected layer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from detzoo.backbones.conv import Conv, ConvTranspose
from detzoo.backbones.norms import make_norm
from detzoo.core import losses, masks, matching
from detzoo.detectors import chunks, faster_rcnn, oracles, stages
from detzoo.detectors import network as network_ops
from detzoo.detectors.faster_rcnn import FasterRCNN
from detzoo.detectors.network import arguments_of, with_arguments_of
from detzoo.detectors.stages import EMPTY_ROI, RoIReader, TrainedAnchors, TrainedRoIs, make_roi_head, make_roi_reader
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs


class FCNHead(nn.Module):
    """Convolutions, a deconvolution that doubles the size, and a 1x1 convolution (figure 4).

    norm: normalisation after each of the first convolutions, or None.
    """

    outputs: int
    layers: int
    features: int
    norm: str | None
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps [N, s, s, C] to [N, 2 s, 2 s, outputs] float32; valid: [N] bool, rows that count in batch statistics."""
        norm = self.norm and make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, valid=valid)
        x = faster_rcnn.run_convolutions(x, layers=self.layers, features=self.features, norm=norm, dtype=self.dtype)
        x = nn.relu(
            ConvTranspose(self.features, 2, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name='deconv')(x)
        )
        return Conv(self.outputs, (1, 1), kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name='logits')(
            x
        ).astype(jnp.float32)


class MLPHead(nn.Module):
    """Fully connected layers: each cell sees the whole RoI (table 2e)."""

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

    faster_rcnn: constructor of the Faster R-CNN.
    read_rois: reads the features of a split mask head, see `RoIReader`; None: the mask head is joint and takes the features that
        the box head reads.
    batch_statistics: whether the mask head is trained with statistics of all RoIs.
    """

    faster_rcnn: Callable[[], FasterRCNN]
    mask_head: nn.Module
    read_rois: Callable[[Sequence[Array], Array], Array] | None
    batch_statistics: bool

    def setup(self) -> None:
        """Gives the parameters of the Faster R-CNN the names that they have without the mask head."""
        self.boxes = self.faster_rcnn()
        nn.share_scope(self, self.boxes)

    def mask_features(self, levels: Sequence[Array], rois: Array, features: Array | None) -> Array:
        """Reads what the mask head sees of rois [B, P, 4]: [B, P, s, s, C]. A joint head sees the features given."""
        return features if self.read_rois is None else self.read_rois(levels[: self.boxes.body.roi_levels], rois)

    def masks(
        self, levels: Sequence[Array], rois: Array, features: Array | None, valid: Array | None = None, *, train: bool
    ) -> Array:
        """Maps rois [B, P, 4], or with a joint head their features, to mask_logits [B, P, m, m, K].

        valid: [B, P] bool, the RoIs whose masks are needed, and which count in batch statistics; None: all.
        """
        x = self.mask_features(levels, rois, features)
        with jax.named_scope('heads'):
            rows, needed = x.reshape(-1, *x.shape[2:]), valid if valid is None else valid.reshape(-1)
            if needed is None or self.batch_statistics:
                logits = self.mask_head(rows, needed, train=train)
            else:
                head = chunks.without_training(self.mask_head)
                logits = chunks.map_valid(head, (rows,), needed, size=chunks.TRAINED_MASKS)
            return logits.reshape(*rois.shape[:2], *logits.shape[1:])

    def predict_masks(
        self,
        levels: Sequence[Array],
        rois: Array,
        features: Array | None,
        labels: Array,
        valid: Array,
        *,
        probabilities: Callable[[Array, Array], Array],
    ) -> Array:
        """Finds the masks of detections, [B, D, m, m]; 0 where there is none.

        Args:
            levels: levels of the pyramid.
            rois: [B, D, 4], boxes of the detections.
            features: features of the rois for a joint head.
            labels: [B, D].
            valid: [B, D] bool.
            probabilities: see `MaskHead`.
        """
        x = self.mask_features(levels, rois, features)
        with jax.named_scope('heads'):
            head = chunks.without_training(self.mask_head)
            rows = x.reshape(-1, *x.shape[2:]), labels.reshape(-1)
            masks = chunks.map_valid(
                lambda x, labels: probabilities(head(x), labels), rows, valid.reshape(-1), size=chunks.MASKS
            )
            return jnp.where(valid[..., None, None], masks.reshape(*valid.shape, *masks.shape[1:]), 0)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts on one RoI an image, to draw their parameters."""
        levels = self.boxes.levels(x, train=train)
        rois = jnp.broadcast_to(jnp.asarray(EMPTY_ROI), (len(x), 1, 4))
        features = self.boxes.roi_features(levels, rois, train=train)
        proposed = None if self.boxes.rpn_head is None else self.boxes.rpn(levels)
        return proposed, self.boxes.boxes(features), self.masks(levels, rois, features, train=train)


class MaskHead(NamedTuple):
    """The mask head.

    module: maps features [N, s, s, C] to mask_logits [N, m, m, ...].
    loss(mask_logits, rois, matched, gt): 'mask_loss', the sum over the positive RoIs of an image.
    probabilities(mask_logits, labels): [D, m, m], the masks of D detections.
    """

    module: nn.Module
    loss: Callable[..., dict[str, Array]]
    probabilities: Callable[..., Array]


def make_mask_head(
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
) -> MaskHead:
    """Makes the mask head (section 3, mask representation; table 2).

    Args:
        num_classes: K.
        dtype: data type in which the head computes.
        axis_name: the mapped axis of the devices, or None.
        head: 'fcn' or 'mlp' (table 2e).
        layers: number of convolutions before the deconvolution, or of the MLP's layers before its output; 0 in the paper's
            joint head.
        features: channels of each layer.
        norm: normalisation after the convolutions before the deconvolution: None, 'batch_norm' (of the positive RoIs,
            synchronised over devices), 'frozen_batch_norm' or 'group_norm'. For 'fcn' only.
        class_agnostic: whether a RoI has one mask for all classes.
        activation: 'sigmoid', for each class by itself, or 'softmax', over the classes and background (table 2b).
        targets: 'point': whether the centre of a cell lies in the object (detectron2); 'average': the share of the cell that
            lies in it (torchvision). With a softmax, a cell belongs to the object if its target is at least a half.
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
        """Picks the mask of each label from [N, m, m, ...]."""
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
        return (
            of_class(jax.nn.softmax(mask_logits), labels) if softmax else jax.nn.sigmoid(of_class(mask_logits, labels))
        )

    return MaskHead(module, loss, probabilities)


class Trained(NamedTuple):
    """The samples that a batch is trained on, and the outputs for them.

    anchors: samples of the RPN, or None if proposals are given.
    rois: samples of the box head.
    mask_logits: [B, P, m, m, ...] of the first P rois, which include all positive ones.
    """

    anchors: TrainedAnchors | None
    rois: TrainedRoIs
    mask_logits: Array


def make_mask_reader(body: faster_rcnn.Body, **mask_roi: Any) -> RoIReader | None:
    """Makes the reader of the mask head's features; None on C4, where the head takes those of the box head."""
    if body.is_c4:
        return None
    reader = make_roi_reader(body.strides[0], body.roi_levels, **mask_roi)
    if not reader.keeps_cells:
        raise ValueError(
            "mask_roi.operator is 'pyramid': its bins are no map, and so no mask: use one of align, pool, warp"
        )
    return reader


@with_arguments_of(faster_rcnn.make_parts)
def make(
    *,
    mask_roi: Mapping[str, Any] = arguments_of(make_roi_reader) | dict(output_size=14),
    mask: Mapping[str, Any] = arguments_of(make_mask_head),
    mask_loss_weight: float = 1.0,
    **arguments: Any,
) -> Detector:
    """Makes a Mask R-CNN.

    Args:
        mask_roi: arguments of `stages.make_roi_reader` for the mask head on a pyramid; unused on C4, where it takes the box
            head's features.
        mask: arguments of `make_mask_head`.
        mask_loss_weight: weight of the mask loss.
        **arguments: those of `faster_rcnn.make`.

    Returns:
        A Detector, to be trained on ground truth with masks. Its metrics and stages are those of `faster_rcnn.make`, and also
        'mask_loss' and, as 'mask_...', the metrics of the mask head's reader.
    """
    parts = faster_rcnn.make_parts(**arguments)
    rpn, roi_head, body = parts.rpn, parts.roi_head, parts.network.body
    mask_head = make_mask_head(parts.num_classes, parts.dtype, parts.axis_name, **mask)
    mask_reader = make_mask_reader(body, **mask_roi)
    joint = mask_reader is None
    network = MaskRCNN(
        lambda: parts.network,
        mask_head.module,
        read_rois=None if joint else mask_reader.read,
        batch_statistics=mask.get('norm') == 'batch_norm',
    )
    run = partial(parts.apply, network)

    def train_on(net: MaskRCNN, x: Array, batch: Batch, rng: Array, *, train: bool) -> Trained:
        """Samples anchors and RoIs, and runs the network on them."""
        proposed = stages.propose(net.boxes, rpn, x, batch.inputs, train=train)
        anchors, rois = stages.sample(rpn, roi_head, proposed, batch, rng)
        features = net.boxes.roi_features(proposed.levels, rois.boxes, rois.matched != matching.IGNORE, train=train)
        few = slice(roi_head.max_positives)  # all positive RoIs are among these
        mask_logits = net.masks(
            proposed.levels, rois.boxes[:, few], features[:, few], rois.matched[:, few] >= 0, train=train
        )
        return Trained(anchors, TrainedRoIs(*net.boxes.boxes(features), rois.boxes, rois.matched), mask_logits)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        trained, model_state = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        with jax.named_scope('loss'):
            metrics = stages.reduce_losses(rpn, roi_head, trained.anchors, trained.rois, batch.gt, parts.axis_name)
            metrics |= parts.roi_reader.metrics(trained.rois.rois, trained.rois.matched)
            metrics |= mask_metrics(trained, batch.gt)
            loss, metrics = stages.weigh(metrics, parts.loss_weights | dict(mask_loss=mask_loss_weight))
        return loss, (model_state, metrics)

    def mask_metrics(trained: Trained, gt: GroundTruth) -> dict[str, Array]:
        rois, matched = (x[:, : roi_head.max_positives] for x in (trained.rois.rois, trained.rois.matched))
        metrics = {}
        if not joint:
            of_reader = mask_reader.metrics(rois, jnp.where(matched >= 0, matched, matching.IGNORE))
            metrics = {f'mask_{name}': value for name, value in of_reader.items()}
        mask_loss = jax.vmap(mask_head.loss)(trained.mask_logits, rois, matched, gt)['mask_loss'].sum()
        return metrics | dict(mask_loss=mask_loss / losses.normalizer((matched >= 0).sum(), parts.axis_name))

    def predict_by(detect: Callable[..., Detections], params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: MaskRCNN, x: Array, *, train: bool) -> Detections:
            proposed = stages.propose(net.boxes, rpn, x, inputs, train=train)
            found = detect(net.boxes, proposed, inputs.window)
            with jax.named_scope('post'):
                rois = jnp.where(found.valid[..., None], found.boxes, jnp.asarray(EMPTY_ROI))
            features = net.boxes.roi_features(proposed.levels, rois, found.valid, train=train) if joint else None
            masks = net.predict_masks(
                proposed.levels, rois, features, found.labels, found.valid, probabilities=mask_head.probabilities
            )
            return found._replace(masks=masks)

        return run(params, model_state, inputs, train=False, method=find)[0]

    def propose(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: MaskRCNN, x: Array, *, train: bool) -> Detections:
            return stages.ranked(stages.propose(net.boxes, rpn, x, inputs, train=train))

        return run(params, model_state, inputs, train=False, method=find)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        trained, _ = run(params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng)
        return stages.assignments(trained.anchors, trained.rois)

    make_head = partial(make_roi_head, parts.num_classes, **arguments.get('head', {}))
    return Detector(
        partial(network_ops.init, network),
        loss,
        partial(predict_by, partial(stages.detect, head=roi_head)),
        assign,
        takes_proposals=True,
        needs_proposals=rpn is None,
        finds_masks=True,
        propose=propose,
        oracle=oracles.make_oracle(predict_by, make_head),
    )
