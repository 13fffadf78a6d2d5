"""RetinaNet with focal loss: *Focal Loss for Dense Object Detection* (arXiv 1708.02002).

    images [B, H, W, 3] -> normalise -> backbone, C3..C5 -> FPN P3..P7 (strides 8..128)
      -> on every level, by shared weights: 4 convs -> class logits, 4 convs -> box deltas
      -> cls_logits [B, A, K], box_deltas [B, A, 4], A = 9 anchors a cell over all levels
    loss:    anchors x ground truth -> IoU -> match -> focal loss on all but ignored, L1 on positives, both / positives
    predict: sigmoid -> top-k per level -> decode -> clip -> class-aware NMS

Differences from the paper:
- Each object keeps the anchors that overlap it most, even below the threshold (`match_best_anchors`), as in torchvision and
  detectron2. The released code of the authors (Detectron) keeps them where they overlap it by `negative_iou` at least; the
  paper's text has the threshold alone.
- Anchors at least half of which lies in a crowd are ignored unless they are positive; in Detectron they are background.
- Both losses are divided by the positives of the whole batch; in Detectron by those of a GPU's images, one more an image.
- Residual blocks stride in their 3x3 convolution (torchvision), not in the first 1x1, by default.
- The regression loss is smooth L1 with `box_loss_beta`, by default 0: plain L1, as in torchvision; `box_loss` offers
  losses of the boxes' overlap, which came later.
- The heads may be normalised (`head_norm`), which helps training from scratch; the paper's are not. The tower then starts
  from He's initialisation instead of a deviation of 0.01.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import Conv
from detzoo.backbones.fpn import FPN
from detzoo.backbones.norms import make_norm
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, losses, matching
from detzoo.core.postprocess import postprocess, top_per_level
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='resnet50', norm='frozen_batch_norm')


def octave_sizes(base: float = 4, strides: Sequence[int] = (8, 16, 32, 64, 128), octaves: int = 3) -> list[list[float]]:
    """Lists the paper's anchor sizes: for each stride, `base` strides times 2^(0/3), 2^(1/3), 2^(2/3) (section 4).

    Args:
        base: the smallest size of a level, in strides.
        strides: strides of the levels, pixels.
        octaves: sizes a level.

    Returns:
        one list of sizes in pixels for each level.
    """
    return [[base * stride * 2 ** (i / octaves) for i in range(octaves)] for stride in strides]


class Head(nn.Module):
    """A tower of 3x3 convolutions and an output convolution, applied to every pyramid level by the same weights.

    outputs: values an anchor. anchors_per_cell: anchors a cell. depth: convolutions of the tower. norm: normalisation after
    each of them, or None. output_bias: initial bias of the output.
    """

    outputs: int
    anchors_per_cell: int
    depth: int
    norm: str | None
    output_bias: float
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[Array], *, train: bool) -> Array:
        """Maps levels [B, h, w, C] to [B, A, outputs] float32, levels in order, cells row by row."""
        init = nn.initializers.normal(0.01)
        # Weights before a norm have no scale of their own: at 0.01 each step of Adam would turn them around.
        tower_init = init if self.norm is None else nn.initializers.he_normal()
        tower = []
        for i in range(self.depth):
            tower.append(
                Conv(
                    levels[0].shape[-1],
                    (3, 3),
                    padding=1,
                    use_bias=self.norm is None,
                    kernel_init=tower_init,
                    dtype=self.dtype,
                    name=f'conv{i + 1}',
                )
            )
            if self.norm is not None:
                tower.append(make_norm(self.norm, train=train, axis_name=None, dtype=self.dtype)(name=f'norm{i + 1}'))
            tower.append(nn.relu)
        tower.append(
            Conv(
                self.anchors_per_cell * self.outputs,
                (3, 3),
                padding=1,
                kernel_init=init,
                dtype=self.dtype,
                bias_init=nn.initializers.constant(self.output_bias),
                name='output',
            )
        )
        flat = []
        for x in levels:
            for layer in tower:
                x = layer(x)
            flat.append(x.reshape(x.shape[0], -1, self.outputs).astype(jnp.float32))  # [B, h * w * anchors, outputs]
        return jnp.concatenate(flat, axis=1)


class RetinaNet(nn.Module):
    """The network: normalised images to class logits and box deltas of all anchors."""

    num_classes: int
    backbone: nn.Module
    fpn: dict[str, Any]
    head: dict[str, Any]
    prior_probability: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array, list[tuple[int, int]]]:
        """Maps [B, H, W, 3] to cls_logits [B, A, K], box_deltas [B, A, 4] and each level's (height, width)."""
        with jax.named_scope('backbone'):
            stages = self.backbone(x, train=train)
        with jax.named_scope('neck'):
            levels = FPN(**self.fpn, dtype=self.dtype, name='fpn')(stages, train=train)
        with jax.named_scope('heads'):
            prior = network_ops.prior_bias(self.prior_probability)
            head = partial(Head, **self.head, dtype=self.dtype)
            cls_logits = head(self.num_classes, output_bias=prior, name='cls_head')(levels, train=train)
            box_deltas = head(4, output_bias=0.0, name='box_head')(levels, train=train)
        return cls_logits, box_deltas, [level.shape[1:3] for level in levels]


def match(
    cls_logits: Array, anchors: Array, gt: GroundTruth, *, negatives_per_positive: float | None, **rule: Any
) -> Array:
    """Matches the anchors of one image to its objects.

    Args:
        cls_logits: [A, K].
        anchors: [A, 4].
        gt: ground truth of the image.
        negatives_per_positive: negatives that stay for each positive, the hardest; the others are ignored. None: all stay.
        **rule: arguments of `matching.match_by_threshold`.

    Returns:
        [A] int32, the row of each anchor's object, NEGATIVE or IGNORE.
    """
    matched = matching.match_by_threshold(anchors, gt, **rule)
    if negatives_per_positive is None:
        return matched
    negative_loss = optax.sigmoid_binary_cross_entropy(cls_logits, jnp.zeros_like(cls_logits)).sum(axis=-1)
    return matching.keep_hard_negatives(matched, negative_loss, negatives_per_positive)


def image_loss(
    cls_logits: Array,
    box_deltas: Array,
    anchors: Array,
    matched: Array,
    gt: GroundTruth,
    *,
    gamma: float,
    alpha: float | None,
    box_loss: str,
    box_loss_beta: float,
) -> dict[str, Array]:
    """Sums the losses over the anchors of one image.

    Args:
        cls_logits: [A, K].
        box_deltas: [A, 4].
        anchors: [A, 4].
        matched: [A], see `match`.
        gt: ground truth of the image.
        gamma, alpha: parameters of the focal loss.
        box_loss, box_loss_beta: arguments of `make`.

    Returns:
        the sums 'cls_loss' and 'box_loss', and the numbers of 'positives' and 'ignored' anchors.
    """
    num_classes = cls_logits.shape[1]
    labels, target_boxes = matching.gather_targets(matched, anchors, gt, background=num_classes)
    targets = labels[:, None] == jnp.arange(num_classes)  # [A, K]
    cls_loss = losses.sigmoid_focal(cls_logits, targets, gamma=gamma, alpha=alpha)
    if box_loss == 'smooth_l1':
        target_deltas = box_coding.encode(target_boxes, anchors)
        box_error = losses.smooth_l1(box_deltas, target_deltas, beta=box_loss_beta)  # [A, 4]
    else:
        box_error = losses.iou_loss(box_coding.decode(box_deltas, anchors), target_boxes, kind=box_loss)[:, None]
    positive, ignored = matched >= 0, matched == matching.IGNORE
    return dict(
        cls_loss=jnp.where(ignored[:, None], 0, cls_loss).sum(),
        box_loss=jnp.where(positive[:, None], box_error, 0).sum(),
        positives=positive.sum(),
        ignored=ignored.sum(),
    )


def detect(
    cls_logits: Array,
    box_deltas: Array,
    window: Array,
    *,
    anchors: Sequence[Array],
    pre_nms_topk: int,
    score_threshold: float,
    **limits: Any,
) -> Detections:
    """Detects the objects of one image.

    Args:
        cls_logits: [A, K].
        box_deltas: [A, 4].
        window: [4], where the image lies on its canvas.
        anchors: anchors of each level, [n, 4] each.
        pre_nms_topk: candidates a level.
        score_threshold: score that a candidate must exceed.
        **limits: arguments of `postprocess`.
    """
    select = partial(top_per_level, level_sizes=[len(level) for level in anchors], count=pre_nms_topk)
    boxes = jnp.asarray(np.concatenate(anchors))
    found = postprocess(
        cls_logits,  # in whose order their sigmoids are: a few of them are computed instead of A * K
        window,
        select=select,
        decode=lambda candidates: box_coding.decode(box_deltas[candidates.row], boxes[candidates.row]),
        score_threshold=network_ops.prior_bias(score_threshold),
        **limits,
    )
    return found._replace(scores=jnp.where(found.valid, jax.nn.sigmoid(found.scores), 0))


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    fpn_features: int = 256,
    extra_levels_from: str = 'p5',
    head_depth: int = 4,
    head_norm: str | None = None,
    prior_probability: float = 0.01,
    anchor_sizes: Sequence[Sequence[float]] = tuple(map(tuple, octave_sizes())),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    round_anchors: bool = False,
    anchor_strides: str = 'power_of_two',
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    match_best_anchors: bool = True,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = 0.25,
    negatives_per_positive: float | None = None,
    box_loss: str = 'smooth_l1',
    box_loss_beta: float = 0.0,
    box_loss_weight: float = 1.0,
    pre_nms_topk: int = 1000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    clip_before_nms: bool = True,
    max_detections: int = 100,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes a RetinaNet.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`; it has to have feature maps of stride 8, 16 and 32.
        fpn_features: channels of the pyramid and of the heads.
        extra_levels_from: 'p5' (torchvision v1) or 'c5' (the paper, detectron2, torchvision v2).
        head_depth: convolutions of each head before its output.
        head_norm: None, or 'group_norm'.
        prior_probability: probability of an object at an anchor before training (section 4.1).
        anchor_sizes: for each of the 5 levels its anchors' sizes, pixels.
        aspect_ratios: height / width.
        round_anchors: whether the anchors of a cell have whole coordinates (torchvision).
        anchor_strides: 'power_of_two', or 'canvas_over_grid': canvas // cells (torchvision), which differs at the top
            levels of canvases that are not a multiple of 128.
        positive_iou, negative_iou: an anchor is positive from the one, negative below the other, ignored between.
        match_best_anchors: whether each object also gets the anchors that overlap it most.
        focal_gamma, focal_alpha: parameters of the focal loss; gamma 0 and alpha None is cross-entropy.
        negatives_per_positive: how many negatives are trained for each positive of an image, the hardest (table 1d's OHEM);
            None for all, as the focal loss has it.
        box_loss: 'smooth_l1' of the deltas, or 'giou', 'diou' or 'ciou' of the boxes (see `losses.iou_loss`).
        box_loss_beta: error at which smooth L1 turns from quadratic to linear; 0 is L1.
        box_loss_weight: weight of the regression loss.
        pre_nms_topk: candidates a level.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        clip_before_nms: whether the NMS sees boxes clipped to the image (torchvision), or as they are (detectron2).
        max_detections: D.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Detector. The metrics of its loss are 'cls_loss', 'box_loss', and 'positives' and 'ignored' anchors an image.
    """
    if anchor_strides not in ('power_of_two', 'canvas_over_grid'):
        raise ValueError(f"anchor_strides is {anchor_strides!r}: use 'power_of_two' or 'canvas_over_grid'")
    if head_norm not in (None, 'group_norm'):
        raise ValueError(
            f"head_norm is {head_norm!r}: use None or 'group_norm' (one head serves levels of unlike statistics)"
        )
    if box_loss not in ('smooth_l1', *losses.IOU_LOSSES):
        raise ValueError(f"box_loss is {box_loss!r}: use 'smooth_l1' or one of {', '.join(losses.IOU_LOSSES)}")
    if len({len(sizes) for sizes in anchor_sizes}) != 1:
        raise ValueError(
            f'anchor_sizes must have equally many sizes at each level, since they share one head: {anchor_sizes}'
        )
    if len(anchor_sizes) != 5:
        raise ValueError(f'anchor_sizes has {len(anchor_sizes)} levels, the pyramid 5')
    network = RetinaNet(
        num_classes=num_classes,
        backbone=make_backbone((8, 16, 32), jnp.dtype(dtype), axis_name, **{**BACKBONE, **backbone}),
        fpn=dict(features=fpn_features, extra_from=extra_levels_from),
        head=dict(anchors_per_cell=len(anchor_sizes[0]) * len(aspect_ratios), depth=head_depth, norm=head_norm),
        prior_probability=prior_probability,
        dtype=jnp.dtype(dtype),
    )
    make_anchors = partial(
        anchor_ops.pyramid_anchors,
        bases=[anchor_ops.base_anchors(sizes, aspect_ratios, rounded=round_anchors) for sizes in anchor_sizes],
        strides=(8, 16, 32, 64, 128) if anchor_strides == 'power_of_two' else None,
    )
    run = partial(network_ops.apply, network, mean=mean, std=std, bgr=bgr)
    match_image = partial(
        match,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        match_best_anchors=match_best_anchors,
        negatives_per_positive=negatives_per_positive,
    )
    sum_losses = partial(
        image_loss, gamma=focal_gamma, alpha=focal_alpha, box_loss=box_loss, box_loss_beta=box_loss_beta
    )
    detect_image = partial(
        detect,
        pre_nms_topk=pre_nms_topk,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        clip_before_nms=clip_before_nms,
    )

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del rng  # nothing is drawn: all anchors are used
        (cls_logits, box_deltas, grids), model_state = run(params, model_state, batch.inputs, train=True)
        with jax.named_scope('loss'):
            anchors = np.concatenate(make_anchors(batch.inputs.images.shape[1:3], grids))
            matched = jax.vmap(match_image, in_axes=(0, None, 0))(cls_logits, anchors, batch.gt)
            sums = jax.vmap(sum_losses, in_axes=(0, 0, None, 0, 0))(cls_logits, box_deltas, anchors, matched, batch.gt)
            normalizer = losses.normalizer(sums['positives'].sum(), axis_name)
            metrics = dict(
                cls_loss=sums['cls_loss'].sum() / normalizer,
                box_loss=box_loss_weight * sums['box_loss'].sum() / normalizer,
                positives=sums['positives'].mean(),
                ignored=sums['ignored'].mean(),
            )
        return metrics['cls_loss'] + metrics['box_loss'], (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        (cls_logits, box_deltas, grids), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            anchors = make_anchors(inputs.images.shape[1:3], grids)
            return jax.vmap(partial(detect_image, anchors=anchors))(cls_logits, box_deltas, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        (cls_logits, _, grids), _ = run(params, model_state, batch.inputs, train=True)
        anchors = np.concatenate(make_anchors(batch.inputs.images.shape[1:3], grids))
        matched = jax.vmap(match_image, in_axes=(0, None, 0))(cls_logits, anchors, batch.gt)
        return {'anchors': Assignment(jnp.broadcast_to(anchors, (*matched.shape, 4)), matched)}

    return Detector(partial(network_ops.init, network), loss, predict, assign)
