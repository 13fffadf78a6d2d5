"""Faster R-CNN: *Towards Real-Time Object Detection with Region Proposal Networks* (arXiv 1506.01497), on a feature
pyramid (1612.03144) or on C4 alone (1512.03385, appendix A).

    images [B, H, W, 3] -> normalise -> ResNet -> levels: FPN P2..P6 (strides 4..64), or C4 (stride 16);
                                     or MobileNetV3-Large -> FPN of its last stage (strides 32, 32, 64)
      -> RPN, on every level: objectness_logits [B, A], deltas [B, A, 4]
      -> decode -> the best of each level -> clip -> NMS -> proposals [B, P, 4]
      -> rois [B, R, 4]: in training sampled from proposals and ground truth, else the proposals
      -> features of each RoI [B, R, s, s, C] -> fully connected layers, behind convolutions if there are any, or with C4
         the ResNet's last stage
      -> cls_logits [B, R, K + 1], background last; box_deltas [B, R, K, 4]
    loss:    anchors x ground truth -> match -> sample -> cross-entropy, smooth L1;
             rois likewise; each sum divided by the number of its samples
    predict: softmax -> decode class by class -> clip -> class-aware NMS

With proposals among the inputs it is Fast R-CNN (1504.08083): they stand where the RPN's would, and there is no loss of
the RPN, if there is one at all.

The stages are functions of one image, bound to their arguments by `make_rpn`, `make_roi_head` and `make_roi_reader`; they
carry no gradient from one to the next but through the levels. Detectors of two stages spell out how they follow.

Differences from the paper:
- The stages are trained together, not in turns, as in the authors' later code and everybody's since.
- Residual blocks stride in their 3x3 convolution (torchvision), not in the first 1x1, by default.
- Anchors that leave the image are trained as any other (section 3.3 ignores them), as in 1612.03144.
- Anchors and RoIs that lie in a crowd are no negatives.
- In training each image keeps `train_post_nms_topk` proposals; on a pyramid the 2000 of Detectron, the authors' later code, are
  the best of all images of a GPU.
- Fully connected layers of the trunk start at a deviation of sqrt(2 / fan_in), in Detectron at sqrt(1 / fan_in).
- The pyramid and the convolutions of the head may be normalised (2111.11429, section 2.2), the RPN may be deeper.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.backbones.fpn import FPN
from detzoo.backbones.mobilenet import mobilenet_v3_large
from detzoo.backbones.norms import make_norm
from detzoo.backbones.resnet import LastStage, ResNet
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, losses, matching, roi_features
from detzoo.core.postprocess import Candidates, postprocess, top_per_level
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

Sums = dict[str, Array]
EMPTY_ROI = (0.0, 0.0, 1.0, 1.0)  # stands where there is no RoI, so that all arithmetic stays finite


class RPNHead(nn.Module):
    """3x3 convolutions and two of 1x1, applied to every level by the same weights."""

    anchors_per_cell: int
    layers: int
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> tuple[Array, Array]:
        """Maps levels [B, h, w, C] to objectness_logits [B, A] and deltas [B, A, 4], float32, levels in order."""
        conv = partial(nn.Conv, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype)
        names = ['conv', *(f'conv{i}' for i in range(2, self.layers + 1))]
        shared = [conv(levels[0].shape[-1], (3, 3), padding=1, name=name) for name in names]
        objectness = conv(self.anchors_per_cell, (1, 1), name='objectness')
        deltas = conv(4 * self.anchors_per_cell, (1, 1), name='deltas')
        hidden = levels
        for layer in shared:
            hidden = [nn.relu(layer(x)) for x in hidden]
        batch = len(levels[0])
        return (
            jnp.concatenate([objectness(x).reshape(batch, -1) for x in hidden], axis=1).astype(jnp.float32),
            jnp.concatenate([deltas(x).reshape(batch, -1, 4) for x in hidden], axis=1).astype(jnp.float32),
        )


def run_convolutions(
    x: Array, *, layers: int, features: int, norm: Callable[..., nn.Module] | None, dtype: Any
) -> Array:
    """Runs 3x3 convolutions, each with a norm if there is one; parts of the module in whose compact method it is called."""
    for i in range(1, layers + 1):
        x = nn.Conv(
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
    """The layers of the head on a pyramid: fully connected ones (1612.03144, section 4.2), behind convolutions or not.

    features: of a fully connected layer; a convolution keeps its input's. norm: behind each convolution, or None.
    """

    conv_layers: int
    fc_layers: int
    features: int
    norm: str | None
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps [N, s, s, C] to [N, features]; valid: [N] bool, of which rows statistics are taken, None for all."""
        norm = self.norm and make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, valid=valid)
        x = run_convolutions(x, layers=self.conv_layers, features=x.shape[-1], norm=norm, dtype=self.dtype)
        x = x.reshape(len(x), -1)
        for i in range(1, self.fc_layers + 1):
            x = nn.relu(
                nn.Dense(self.features, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=f'fc{i}')(x)
            )
        return x


class BoxHead(nn.Module):
    """Class logits and box deltas from what a trunk made of the features of RoIs."""

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


class FasterRCNN(nn.Module):
    """The network, of parts that it makes.

    make_backbone: of what maps images to stages. make_fpn: stages to levels; None for C4, whose only level is the last stage.
    make_rpn_head: None for no RPN. make_trunk: features of RoIs to what the heads read. make_box_head: that to outputs.
    roi_levels: from how many levels RoIs are read, the finest. read_rois: takes their features, see `RoIReader`.
    """

    make_backbone: Callable[[], nn.Module]
    make_fpn: Callable[[], nn.Module] | None
    make_rpn_head: Callable[[], nn.Module] | None
    make_trunk: Callable[[], nn.Module]
    make_box_head: Callable[[], nn.Module]
    roi_levels: int
    read_rois: Callable[[Sequence[Array], Array], Array]

    def setup(self) -> None:
        """Makes the parts."""
        self.backbone = self.make_backbone()
        self.fpn = self.make_fpn and self.make_fpn()
        self.rpn_head = self.make_rpn_head and self.make_rpn_head()
        self.trunk = self.make_trunk()
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
        """Maps rois [B, R, 4] to what the heads read: [B, R, trunk_features], of C4 [B, R, s / 2, s / 2, C].

        valid: [B, R] bool, the RoIs of which batch statistics are taken; None: all.
        """
        x = self.read_rois(levels[: self.roi_levels], rois)  # [B, R, s, s, C]
        with jax.named_scope('heads'):
            x = self.trunk(x.reshape(-1, *x.shape[2:]), valid if valid is None else valid.reshape(-1), train=train)
            return x.reshape(*rois.shape[:2], *x.shape[1:])

    def boxes(self, x: Array) -> tuple[Array, Array]:
        """Maps features of RoIs to cls_logits [B, R, K + 1] and box_deltas [B, R, K or 1, 4]."""
        with jax.named_scope('heads'):
            if x.ndim == 5:
                x = x.mean(axis=(2, 3))
            outputs = self.box_head(x.reshape(-1, x.shape[-1]))
            return jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), outputs)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts, on one RoI an image, which draws their parameters."""
        levels = self.levels(x, train=train)
        rois = jnp.broadcast_to(jnp.asarray(EMPTY_ROI), (len(x), 1, 4))
        proposed = None if self.rpn_head is None else self.rpn(levels)
        return proposed, self.boxes(self.roi_features(levels, rois, train=train))


class RPN(NamedTuple):
    """The first stage.

    make_head: of the module that maps levels to outputs.
    anchors(canvas, grids): the anchors of each level, each [h * w * n, 4] numpy.
    match(anchors, gt, key): the sampled anchors' rows of the ground truth, or NEGATIVE; IGNORE elsewhere; [A].
    loss(objectness_logits, deltas, anchors, matched, gt): sums over an image's sampled anchors.
    propose(objectness_logits, deltas, window, anchors=, train=): proposals [P, 4], and which are valid [P].
    """

    make_head: Callable[[], nn.Module]
    anchors: Callable[..., list[np.ndarray]]
    match: Callable[..., Array]
    loss: Callable[..., Sums]
    propose: Callable[..., tuple[Array, Array]]


def make_rpn(
    strides: Sequence[int],
    dtype: Any,
    *,
    layers: int = 1,
    anchor_sizes: Sequence[Sequence[float]] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    round_anchors: bool = False,
    anchor_strides: str = 'power_of_two',
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    match_best_anchors: bool = True,
    samples: int = 256,
    positive_share: float = 0.5,
    box_loss_beta: float = 1 / 9,
    pre_nms_topk: int = 1000,
    train_pre_nms_topk: int = 2000,
    post_nms_topk: int = 1000,
    train_post_nms_topk: int = 2000,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.7,
    min_size: float = 0.0,
) -> RPN:
    """Makes the region proposal network's functions (1506.01497, section 3.1; on levels: 1612.03144, section 4.1).

    Args:
        strides: of the levels, pixels, finest first.
        dtype: of the head's computation.
        layers: 3x3 convolutions before the outputs.
        anchor_sizes: for each level its anchors' sizes, pixels; all levels have equally many.
        aspect_ratios: height / width.
        round_anchors: whether the anchors of a cell have whole coordinates (torchvision).
        anchor_strides: 'power_of_two': the levels' own, or 'canvas_over_grid': canvas // cells (torchvision).
        positive_iou, negative_iou: an anchor is positive from the one, negative below the other, ignored between.
        match_best_anchors: whether each object also gets the anchors that overlap it most.
        samples: anchors an image that are trained.
        positive_share: of them, at most.
        box_loss_beta: of the smooth L1 loss.
        pre_nms_topk, train_pre_nms_topk: candidates a level, in prediction and in training.
        post_nms_topk, train_post_nms_topk: P, in prediction and in training.
        score_threshold: the probability of an object that proposals must exceed; 0: none.
        iou_threshold: of the NMS, which is within levels.
        min_size: narrower or lower proposals are dropped, pixels.

    Returns:
        an RPN. The sums of its loss are 'rpn_cls_loss', 'rpn_box_loss', 'rpn_positives', 'rpn_negatives'.
    """
    if anchor_strides not in ('power_of_two', 'canvas_over_grid'):
        raise ValueError(f"rpn.anchor_strides is {anchor_strides!r}: use 'power_of_two' or 'canvas_over_grid'")
    if len({len(sizes) for sizes in anchor_sizes}) != 1:
        raise ValueError(
            f'rpn.anchor_sizes must have equally many sizes at each level, which share one head: {anchor_sizes}'
        )
    if len(anchor_sizes) != len(strides):
        raise ValueError(f'rpn.anchor_sizes has {len(anchor_sizes)} levels, the pyramid {len(strides)}')
    anchors = partial(
        anchor_ops.pyramid_anchors,
        bases=[anchor_ops.base_anchors(sizes, aspect_ratios, rounded=round_anchors) for sizes in anchor_sizes],
        strides=strides if anchor_strides == 'power_of_two' else None,
    )

    def match(anchors: Array, gt: GroundTruth, key: Array) -> Array:
        matched = matching.match_by_threshold(
            anchors, gt, positive_iou=positive_iou, negative_iou=negative_iou, match_best_anchors=match_best_anchors
        )
        sampled = matching.sample_balanced(matched, key, count=samples, positive_share=positive_share)
        return jnp.where(sampled, matched, matching.IGNORE)

    def loss(objectness_logits: Array, deltas: Array, anchors: Array, matched: Array, gt: GroundTruth) -> Sums:
        positive, sampled = matched >= 0, matched != matching.IGNORE
        _, target_boxes = matching.gather_targets(matched, anchors, gt, background=0)
        cls_loss = optax.sigmoid_binary_cross_entropy(objectness_logits, positive)
        box_loss = losses.smooth_l1(deltas, box_coding.encode(target_boxes, anchors), beta=box_loss_beta)
        return dict(
            rpn_cls_loss=jnp.where(sampled, cls_loss, 0).sum(),
            rpn_box_loss=jnp.where(positive[:, None], box_loss, 0).sum(),
            rpn_positives=positive.sum(),
            rpn_negatives=(sampled & ~positive).sum(),
        )

    def propose(
        objectness_logits: Array, deltas: Array, window: Array, *, anchors: Sequence[np.ndarray], train: bool
    ) -> tuple[Array, Array]:
        sizes = [len(level) for level in anchors]
        level = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        best = partial(top_per_level, level_sizes=sizes, count=train_pre_nms_topk if train else pre_nms_topk)

        def select(scores: Array) -> Candidates:
            score, _, row = best(scores)
            return score, jnp.asarray(level)[row], row  # an NMS within labels is one within levels

        found = postprocess(
            objectness_logits[:, None],  # not their sigmoid: float32 has no room for an order close to 1
            box_coding.decode(deltas, jnp.asarray(np.concatenate(anchors))),
            window,
            select=select,
            score_threshold=network_ops.prior_bias(score_threshold) if score_threshold else -jnp.inf,
            iou_threshold=iou_threshold,
            max_detections=train_post_nms_topk if train else post_nms_topk,
            min_size=min_size,
        )
        return found.boxes, found.valid

    make_head = partial(RPNHead, len(anchor_sizes[0]) * len(aspect_ratios), layers, dtype)
    return RPN(make_head, anchors, match, loss, propose)


class RoIHead(NamedTuple):
    """The second stage, without its network.

    sample(proposals, valid, gt, key): rois [R, 4], positives first, and their rows of the ground truth, NEGATIVE, or
        IGNORE where fewer than R were found; [R].
    loss(cls_logits, box_deltas, rois, matched, gt): sums over an image's RoIs.
    detect(cls_logits, box_deltas, proposals, valid, window): Detections.
    max_positives: rows of rois in which positives are.
    """

    sample: Callable[..., tuple[Array, Array]]
    loss: Callable[..., Sums]
    detect: Callable[..., Detections]
    max_positives: int


def make_roi_head(
    num_classes: int,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.5,
    samples: int = 512,
    positive_share: float = 0.25,
    add_ground_truth: bool = True,
    delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    box_loss_beta: float = 1 / 9,
    pre_nms_topk: int = 2000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    min_size: float = 0.0,
) -> RoIHead:
    """Makes the functions of the head on RoIs (Fast R-CNN, 1504.08083, section 2.3).

    Args:
        num_classes: K.
        positive_iou, negative_iou: a RoI is positive from the one, negative below the other, ignored between.
        samples: R, RoIs an image that are trained.
        positive_share: of them, at most.
        add_ground_truth: whether objects are among the RoIs from which is sampled.
        delta_weights: factors of the deltas.
        box_loss_beta: of the smooth L1 loss.
        pre_nms_topk: candidates of an image.
        score_threshold: candidates must exceed it.
        iou_threshold: of the NMS.
        max_detections: D.
        min_size: narrower or lower detections are dropped, pixels.

    Returns:
        a RoIHead. The sums of its loss are 'cls_loss', 'box_loss', 'positives' and 'negatives'.
    """

    def sample(proposals: Array, valid: Array, gt: GroundTruth, key: Array) -> tuple[Array, Array]:
        if add_ground_truth:
            proposals = jnp.concatenate([proposals, gt.boxes])
            valid = jnp.concatenate([valid, gt.valid & ~gt.crowd])
        proposals = jnp.where(valid[:, None], proposals, jnp.asarray(EMPTY_ROI))
        matched = matching.match_by_threshold(
            proposals, gt, positive_iou=positive_iou, negative_iou=negative_iou, match_best_anchors=False
        )
        matched = jnp.where(valid, matched, matching.IGNORE)
        sampled = matching.sample_balanced(matched, key, count=samples, positive_share=positive_share)
        rank, row = jax.lax.top_k(sampled * (1 + (matched >= 0)), min(samples, len(proposals)))
        return (
            jnp.where((rank > 0)[:, None], proposals[row], jnp.asarray(EMPTY_ROI)),
            jnp.where(rank > 0, matched[row], matching.IGNORE),
        )

    def loss(cls_logits: Array, box_deltas: Array, rois: Array, matched: Array, gt: GroundTruth) -> Sums:
        positive, sampled = matched >= 0, matched != matching.IGNORE
        labels, target_boxes = matching.gather_targets(matched, rois, gt, background=num_classes)
        cls_loss = optax.softmax_cross_entropy_with_integer_labels(cls_logits, labels)
        column = jnp.minimum(labels, box_deltas.shape[1] - 1)  # of the object's class, or the only one
        deltas = jnp.take_along_axis(box_deltas, column[:, None, None], axis=1)[:, 0]  # [R, 4]
        targets = box_coding.encode(target_boxes, rois, weights=delta_weights)
        box_loss = losses.smooth_l1(deltas, targets, beta=box_loss_beta)
        return dict(
            cls_loss=jnp.where(sampled, cls_loss, 0).sum(),
            box_loss=jnp.where(positive[:, None], box_loss, 0).sum(),
            positives=positive.sum(),
            negatives=(sampled & ~positive).sum(),
        )

    def detect(cls_logits: Array, box_deltas: Array, proposals: Array, valid: Array, window: Array) -> Detections:
        scores = jnp.where(valid[:, None], jax.nn.softmax(cls_logits)[:, :-1], 0)  # [P, K]
        proposals = jnp.broadcast_to(proposals[:, None], (*scores.shape, 4))
        boxes = box_coding.decode(jnp.broadcast_to(box_deltas, proposals.shape), proposals, weights=delta_weights)
        select = partial(top_per_level, level_sizes=[len(scores)], count=pre_nms_topk)
        return postprocess(
            scores,
            boxes,
            window,
            select=select,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            min_size=min_size,
        )

    return RoIHead(sample, loss, detect, int(samples * positive_share))


class RoIReader(NamedTuple):
    """How the features of RoIs are taken from levels.

    read(levels, rois): of levels [B, h, w, C], finest first, and rois [B, R, 4]: [B, R, s, s, C].
    metrics(rois, matched): of rois [B, R, 4] and their rows of the ground truth, IGNORE where there is no RoI.
    """

    read: Callable[[Sequence[Array], Array], Array]
    metrics: Callable[[Array, Array], Sums]


def make_roi_reader(
    first_stride: int,
    num_levels: int,
    *,
    operator: str = 'align',
    output_size: int = 7,
    samples_per_bin: int = 2,
    max_samples_per_bin: int = 4,
    aligned: bool = True,
    reduce: str = 'average',
    canonical_size: float = 224.0,
) -> RoIReader:
    """Makes the functions that take the features of RoIs from levels (see `core.roi_features`).

    Args:
        first_stride: of the finest level, pixels.
        num_levels: from which RoIs are read.
        operator: 'align' (RoIAlign), 'pool' (RoIPool) or 'warp' (RoIWarp).
        output_size: s, bins a side.
        samples_per_bin: s x s of them; 0 with 'align': as many as the RoI's size asks for. Not with 'pool'.
        max_samples_per_bin: the most that are taken, with 0.
        aligned: of 'align': whether a cell's features are those of its centre (detectron2), or of its corner (torchvision).
        reduce: 'average' or 'max', of the samples of a bin. Not with 'pool'.
        canonical_size: of a RoI that is read from the level of stride 16, pixels (1612.03144, equation 1).

    Returns:
        a RoIReader. With samples_per_bin 0 its metric is 'undersampled_rois', an image's RoIs that ask for more samples
        than they get; else it has none.
    """
    operators = {
        'align': partial(
            roi_features.roi_align,
            samples_per_bin=samples_per_bin,
            aligned=aligned,
            reduce=reduce,
            max_samples_per_bin=max_samples_per_bin,
        ),
        'pool': roi_features.roi_pool,
        'warp': partial(roi_features.roi_warp, samples_per_bin=samples_per_bin, reduce=reduce),
    }
    if operator not in operators:
        raise ValueError(f'roi.operator is {operator!r}: use one of {", ".join(operators)}')
    finest = int(math.log2(first_stride))
    level_of = partial(
        roi_features.assign_levels, min_level=finest, max_level=finest + num_levels - 1, canonical_size=canonical_size
    )
    bins = dict(strides=[first_stride * 2**number for number in range(num_levels)], output_size=output_size)

    def read(levels: Sequence[Array], rois: Array) -> Array:
        with jax.named_scope('roi'):
            read_image = partial(operators[operator], **bins)
            return jax.vmap(lambda levels, rois: read_image(levels, rois, level_of(rois)))(levels, rois)

    def metrics(rois: Array, matched: Array) -> Sums:
        if operator != 'align' or samples_per_bin:
            return {}
        needed = jax.vmap(lambda rois: roi_features.adaptive_samples(rois, level_of(rois), **bins, aligned=aligned))(
            rois
        )
        undersampled = (needed > max_samples_per_bin) & (matched != matching.IGNORE)
        return {'undersampled_rois': undersampled.sum(axis=1).mean()}

    return RoIReader(read, metrics)


def propose(net: FasterRCNN, rpn: RPN | None, x: Array, inputs: Inputs, *, train: bool) -> tuple[Any, Any, Any]:
    """Runs the first stage, or takes the proposals that are given instead.

    Args:
        net: bound to its variables.
        rpn: see `make_rpn`.
        x: [B, H, W, 3] float, normalised images.
        inputs: with the windows, and proposals or None.
        train: whether as in training.

    Returns:
        levels; objectness_logits [B, A], deltas [B, A, 4] and anchors [A, 4], or None where proposals are given;
        proposals [B, P, 4] and which are valid.
    """
    levels = net.levels(x, train=train)
    if inputs.proposals is not None:
        return levels, None, (inputs.proposals, inputs.proposals_valid)
    if rpn is None:
        raise ValueError(
            'without an RPN (model.rpn is None) proposals must be given: set data.train_proposals and '
            'data.validation_proposals, or inputs.proposals'
        )
    outputs = net.rpn(levels)
    with jax.named_scope('rpn'):
        anchors = rpn.anchors(x.shape[1:3], [level.shape[1:3] for level in levels])
        propose_one = partial(rpn.propose, anchors=anchors, train=train)
        proposals = jax.vmap(lambda *arrays: propose_one(*arrays))(*jax.lax.stop_gradient(outputs), inputs.window)
    return levels, (*outputs, jnp.asarray(np.concatenate(anchors))), proposals


def sample(
    rpn: RPN | None, head: RoIHead, rpn_outputs: Any, proposals: Any, batch: Batch, rng: Array
) -> tuple[Any, Array, Array]:
    """Draws what both stages are trained on; an image's draw depends on its id, not on its place.

    Args:
        rpn, head: see `make_rpn`, `make_roi_head`.
        rpn_outputs, proposals: as `propose` returns them.
        batch: with the ground truth.
        rng: a key.

    Returns:
        of_rpn: objectness_logits [B, A], deltas [B, A, 4], anchors [A, 4], and the anchors' rows of the ground truth
            [B, A]; or None.
        rois: [B, R, 4].
        matched: [B, R], the rows of the RoIs.
    """
    with jax.named_scope('loss'):
        keys = jax.vmap(lambda image: jax.random.split(jax.random.fold_in(rng, image)))(batch.image_id)  # [B, 2]
        of_rpn = None
        if rpn_outputs is not None:
            of_rpn = (*rpn_outputs, jax.vmap(rpn.match, in_axes=(None, 0, 0))(rpn_outputs[-1], batch.gt, keys[:, 0]))
        return of_rpn, *jax.vmap(head.sample)(*proposals, batch.gt, keys[:, 1])


def reduce_losses(
    rpn: RPN | None, head: RoIHead, of_rpn: Any, of_rois: Any, gt: GroundTruth, axis_name: str | None
) -> Sums:
    """Sums the losses of both stages over a batch and divides each by the number of its samples, on all devices.

    Args:
        rpn, head: see `make_rpn`, `make_roi_head`.
        of_rpn: see `sample`.
        of_rois: cls_logits [B, R, K + 1], box_deltas [B, R, K or 1, 4], rois [B, R, 4], matched [B, R].
        gt: of the batch.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        'cls_loss' and 'box_loss', and an image's 'positives' and 'negatives'; unless of_rpn is None likewise
        'rpn_cls_loss', 'rpn_box_loss', 'rpn_positives' and 'rpn_negatives'.
    """
    sums = {} if of_rpn is None else jax.vmap(rpn.loss, in_axes=(0, 0, None, 0, 0))(*of_rpn, gt)
    sums |= jax.vmap(head.loss)(*of_rois, gt)
    metrics = {name: values.mean() for name, values in sums.items()}
    for stage in ('',) if of_rpn is None else ('rpn_', ''):
        normalizer = losses.normalizer((sums[f'{stage}positives'] + sums[f'{stage}negatives']).sum(), axis_name)
        for name in (f'{stage}cls_loss', f'{stage}box_loss'):
            metrics[name] = sums[name].sum() / normalizer
    return metrics


def weigh(metrics: Sums, weights: Mapping[str, float]) -> tuple[Array, Sums]:
    """Multiplies the losses among metrics by their weights, and adds them up: (loss, metrics)."""
    weighted = {name: weight * metrics[name] for name, weight in weights.items() if name in metrics}
    return sum(weighted.values()), metrics | weighted


def assignments(of_rpn: Any, of_rois: Any) -> dict[str, Assignment]:
    """What both stages are trained on, of the same arguments as `reduce_losses`."""
    rois = {'rois': Assignment(*of_rois[2:])}
    if of_rpn is None:
        return rois
    _, _, anchors, matched = of_rpn
    return {'rpn': Assignment(jnp.broadcast_to(anchors, (*matched.shape, 4)), matched), **rois}


def levels_of(backbone: str, fpn_features: int | None) -> tuple[Sequence[int], int]:
    """Lists the strides of the levels, and from how many of them RoIs are read, the finest; arguments as of `make`."""
    if backbone == 'resnet':
        return ((16,), 1) if fpn_features is None else ((4, 8, 16, 32, 64), 4)  # P6 is the RPN's alone
    if backbone != 'mobilenet_v3_large':
        raise ValueError(f"backbone is {backbone!r}: use 'resnet' or 'mobilenet_v3_large'")
    if fpn_features is None:
        raise ValueError(
            'fpn_features is None: mobilenet_v3_large has no C4 with a last stage behind it, set it to 256'
        )
    return (32, 32, 64), 1  # two levels of one stride: torchvision reads RoIs from the first


def make_network(
    num_classes: int,
    rpn: RPN | None,
    read_rois: Callable[[Sequence[Array], Array], Array],
    *,
    backbone: str,
    depth: int,
    width: float,
    stride_in_1x1: bool,
    norm: str,
    norm_epsilon: float,
    fpn_features: int | None,
    fpn_norm: str | None,
    trunk_conv_layers: int,
    trunk_fc_layers: int,
    trunk_features: int,
    trunk_norm: str | None,
    class_agnostic: bool,
    dtype: Any,
    axis_name: str | None,
) -> FasterRCNN:
    """Makes the network of `make`'s arguments."""
    if trunk_norm is not None and not trunk_conv_layers:
        raise ValueError(
            f'trunk_norm is {trunk_norm!r}: it follows the convolutions of the head, and trunk_conv_layers is 0'
        )
    if fpn_features is None and (fpn_norm is not None or trunk_conv_layers):
        raise ValueError(
            'fpn_features is None: C4 has neither a pyramid nor a head of its own, set fpn_norm to None and '
            'trunk_conv_layers to 0'
        )
    body = dict(width=width, norm=norm, norm_epsilon=norm_epsilon, axis_name=axis_name, dtype=dtype)
    resnet = dict(depth=depth, stride_in_1x1=stride_in_1x1, **body)
    if backbone == 'mobilenet_v3_large':
        make_backbone = partial(mobilenet_v3_large, reduced_tail=False, outputs=('block13', 'last'), **body)
    else:
        make_backbone = partial(ResNet, stages=3 if fpn_features is None else 4, **resnet)
    if fpn_features is None:
        make_fpn, make_trunk = None, partial(LastStage, **resnet)
    else:
        make_fpn = partial(FPN, fpn_features, 'pool', fpn_norm, axis_name, dtype)
        make_trunk = partial(Trunk, trunk_conv_layers, trunk_fc_layers, trunk_features, trunk_norm, axis_name, dtype)
    return FasterRCNN(
        make_backbone,
        make_fpn,
        rpn and rpn.make_head,
        make_trunk,
        partial(BoxHead, num_classes, class_agnostic, dtype),
        levels_of(backbone, fpn_features)[1],
        read_rois,
    )


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
    rpn: Mapping[str, Any] | None = network_ops.arguments_of(make_rpn),
    roi: Mapping[str, Any] = network_ops.arguments_of(make_roi_reader),
    head: Mapping[str, Any] = network_ops.arguments_of(make_roi_head),
    rpn_loss_weight: float = 1.0,
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes a Faster R-CNN.

    Args:
        num_classes: K.
        backbone: 'resnet', or on a pyramid 'mobilenet_v3_large'.
        depth: of the ResNet: 18, 34, 50 or 101.
        width: factor on the backbone's channels.
        stride_in_1x1: whether the ResNet's blocks stride in their first 1x1 convolution (the paper, detectron2), else in
            their 3x3 (torchvision); from depth 50.
        norm: of the backbone: 'batch_norm' (synchronised over devices), 'frozen_batch_norm' or 'group_norm'.
        norm_epsilon: added to the backbone's variances.
        fpn_features: channels of the pyramid; None: no pyramid, but C4, whose head is the ResNet's last stage.
        fpn_norm: behind the convolutions of the pyramid: None, or as norm.
        trunk_conv_layers, trunk_fc_layers: convolutions and fully connected layers of the head on a pyramid.
        trunk_features: of a fully connected layer.
        trunk_norm: behind the convolutions of the head: None, or as norm.
        class_agnostic: whether a RoI has one box for all classes.
        rpn: arguments of `make_rpn`; C4 is one level of anchors. None: no RPN, proposals are given.
        roi: arguments of `make_roi_reader`; C4's output_size is 14, of which the last stage makes 7.
        head: arguments of `make_roi_head`.
        rpn_loss_weight, cls_loss_weight, box_loss_weight: of the RPN's two losses, and of the head's.
        mean, std: of the pixels (0..255) in the network's channel order.
        bgr: whether the network reads BGR.
        dtype: of the network's computation, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Detector. The metrics of its loss are 'rpn_cls_loss', 'rpn_box_loss', 'cls_loss', 'box_loss', and an image's
        'rpn_positives', 'rpn_negatives' (anchors), 'positives' and 'negatives' (RoIs), besides those of `make_roi_reader`.
        The stages of its assignment are 'rpn' and 'rois'. With proposals among the inputs there is nothing of the RPN.
    """
    strides, roi_levels = levels_of(backbone, fpn_features)
    first = None if rpn is None else make_rpn(strides, jnp.dtype(dtype), **rpn)
    second = make_roi_head(num_classes, **head)
    reader = make_roi_reader(strides[0], roi_levels, **roi)
    network = make_network(
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
    run = partial(network_ops.apply, network, mean=mean, std=std, bgr=bgr)
    weights = dict(
        rpn_cls_loss=rpn_loss_weight, rpn_box_loss=rpn_loss_weight, cls_loss=cls_loss_weight, box_loss=box_loss_weight
    )

    def both_stages(net: FasterRCNN, x: Array, batch: Batch, rng: Array, *, train: bool) -> tuple[Any, Any]:
        """What is trained: of_rpn and of_rois, see `reduce_losses`."""
        levels, rpn_outputs, proposals = propose(net, first, x, batch.inputs, train=train)
        of_rpn, rois, matched = sample(first, second, rpn_outputs, proposals, batch, rng)
        return of_rpn, (
            *net.boxes(net.roi_features(levels, rois, matched != matching.IGNORE, train=train)),
            rois,
            matched,
        )

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        outputs, model_state = run(
            params, model_state, batch.inputs, train=True, method=both_stages, batch=batch, rng=rng
        )
        with jax.named_scope('loss'):
            metrics = reduce_losses(first, second, *outputs, batch.gt, axis_name) | reader.metrics(*outputs[1][2:])
            loss, metrics = weigh(metrics, weights)
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def detect(net: FasterRCNN, x: Array, *, train: bool) -> Detections:
            levels, _, (proposals, valid) = propose(net, first, x, inputs, train=train)
            outputs = net.boxes(net.roi_features(levels, proposals, train=train))
            with jax.named_scope('post'):
                return jax.vmap(second.detect)(*outputs, proposals, valid, inputs.window)

        return run(params, model_state, inputs, train=False, method=detect)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        outputs, _ = run(params, model_state, batch.inputs, train=True, method=both_stages, batch=batch, rng=rng)
        return assignments(*outputs)

    return Detector(partial(network_ops.init, network), loss, predict, assign)
