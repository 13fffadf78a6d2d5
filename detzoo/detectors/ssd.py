"""SSD: *Single Shot MultiBox Detector* (arXiv 1512.02325), and SSDLite (MobileNetV2, 1801.04381, section 6.2).

    images [B, H, W, 3] -> normalise -> backbone: of VGG-16 conv4_3, scaled by its L2 norm, and fc7 (strides 8, 16); of a
         MobileNet C4 and C5 (16, 32)
      -> extra layers, each a 1x1 convolution and a smaller grid -> L levels
      -> on each level, by its own 3x3 convolutions: class logits and box deltas
      -> cls_logits [B, A, K + 1], background last; box_deltas [B, A, 4]
    loss:    anchors x ground truth -> IoU -> match, each object takes its best anchor -> the hardest negatives, three a
             positive -> cross-entropy on both, smooth L1 on positives, both / positives
    predict: softmax -> top-k per class -> decode -> clip -> class-aware NMS

The anchors' sizes are those of the authors' code for VOC (github.com/weiliu89/caffe, branch ssd, examples/ssd/ssd_pascal.py),
fractions of 300 pixels: the formula of section 2.2 (equation 4) for all levels but the first.

Differences from the paper:
- By default, where several objects overlap one anchor most, the last takes it, as in torchvision; with `bipartite` each
  gets an anchor of its own, the best pairs first, as in the authors' code. Anchors are matched from an IoU of 0.5 on, as there,
  not above it.
- Crowds, which the paper does not know, are no objects, and what lies in them is no negative.
- A box grows at most 62.5 times (`box_coding.MAX_LOG_SCALE`), so that exp stays finite.
- The network may be normalised (`norm`), which lets it learn from scratch; what is followed by a norm starts from He's
  initialisation, VGG's layers do so always. Extra layers and heads without one start from Xavier's.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.norms import make_norm
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, losses, matching
from detzoo.core.postprocess import Candidates, postprocess, top_per_class
from detzoo.detectors import network as network_ops
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='vgg16', norm=None)
# (features of the 1x1 convolution, of the next one, its kernel, stride and padding); 300 pixels: 10, 5, 3 and 1 cells.
SSD300_LAYERS = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
SSD512_LAYERS = ((256, 512, 3, 2, 1), *((128, 256, 3, 2, 1),) * 3, (128, 256, 4, 1, 1))  # 16, 8, 4, 2 and 1
SSDLITE_LAYERS = ((256, 512, 3, 2, 1), *((128, 256, 3, 2, 1),) * 2, (64, 128, 3, 2, 1))  # of 320: 5, 3, 2 and 1


class L2Norm(nn.Module):
    """Scales the channels of each cell to a length that is learnt (ParseNet, 1506.04579; SSD, section 3.1)."""

    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales [B, h, w, C]."""
        scale = self.param('scale', nn.initializers.constant(self.scale, jnp.float32), x.shape[-1:])
        x = x.astype(jnp.float32)
        # The constant is the authors'; it bounds the gradient where ReLUs left nothing.
        return (x * jax.lax.rsqrt((x**2).sum(axis=-1, keepdims=True) + 1e-10) * scale).astype(self.dtype)


class ExtraLayers(nn.Module):
    """Levels of ever smaller grids behind the backbone: of each a 1x1 convolution, then one with a stride or no padding.

    layers: as SSD300_LAYERS. lite: whether the second convolution is a depthwise one and a 1x1.
    """

    layers: Sequence[tuple[int, int, int, int, int]]
    lite: bool
    norm: Callable[..., nn.Module] | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Sequence[Array]:
        """Maps [B, h, w, C] to one level for each layer."""
        conv = partial(
            ConvNorm,
            norm=self.norm,
            activation=nn.relu6 if self.lite else nn.relu,
            dtype=self.dtype,
            init=nn.initializers.xavier_uniform() if self.norm is None else nn.initializers.he_normal(),
        )
        levels = []
        for i, (inner, features, kernel, stride, padding) in enumerate(self.layers, 1):
            x = conv(inner, 1, name=f'layer{i}_reduce')(x)
            if self.lite:
                x = conv(inner, kernel, stride, padding=padding, depthwise=True, name=f'layer{i}_depthwise')(x)
                x = conv(features, 1, name=f'layer{i}')(x)
            else:
                x = conv(features, kernel, stride, padding=padding, name=f'layer{i}')(x)
            levels.append(x)
        return tuple(levels)


class Head(nn.Module):
    """A 3x3 convolution for each level; a lite one is depthwise, with a norm and a 1x1 convolution behind it.

    outputs: values an anchor. anchors_per_cell: anchors a cell, for each level.
    """

    outputs: int
    anchors_per_cell: Sequence[int]
    lite: bool
    norm: Callable[..., nn.Module] | None
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> Array:
        """Maps levels [B, h, w, C] to [B, A, outputs] float32, levels in order, cells row by row."""
        flat = []
        for i, (x, count) in enumerate(zip(levels, self.anchors_per_cell), 1):
            if self.lite:
                x = ConvNorm(
                    x.shape[-1],
                    3,
                    depthwise=True,
                    norm=self.norm,
                    activation=nn.relu6,
                    dtype=self.dtype,
                    name=f'level{i}_depthwise',
                )(x)
            x = ConvNorm(
                count * self.outputs,
                1 if self.lite else 3,
                activation=None,
                dtype=self.dtype,
                name=f'level{i}',
                init=nn.initializers.xavier_uniform(),
            )(x)
            flat.append(x.reshape(x.shape[0], -1, self.outputs).astype(jnp.float32))  # [B, h * w * anchors, outputs]
        return jnp.concatenate(flat, axis=1)


class SSD(nn.Module):
    """The network: normalised images to class logits and box deltas of all anchors.

    backbone: module that maps images to the first levels. l2_norm_scale: scale of the first one's features, or None. norm,
    norm_epsilon: normalisation of the other layers, as in `make_backbone`. The rest are arguments of `make`.
    """

    num_classes: int
    backbone: nn.Module
    l2_norm_scale: float | None
    extra_layers: Sequence[tuple[int, int, int, int, int]]
    lite: bool
    norm: str | None
    norm_epsilon: float
    anchors_per_cell: Sequence[int]
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array, list[tuple[int, int]]]:
        """Maps [B, H, W, 3] to cls_logits [B, A, K + 1], box_deltas [B, A, 4] and each level's (height, width)."""
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        shared = dict(lite=self.lite, norm=norm, dtype=self.dtype)
        with jax.named_scope('backbone'):
            levels = self.backbone(x, train=train)
        with jax.named_scope('neck'):
            extra = ExtraLayers(self.extra_layers, **shared, name='extra_layers')(levels[-1])
            if self.l2_norm_scale is not None:
                levels = (L2Norm(self.l2_norm_scale, self.dtype, name='l2_norm')(levels[0]), *levels[1:])
            levels = (*levels, *extra)
        with jax.named_scope('heads'):
            cls_logits = Head(self.num_classes + 1, self.anchors_per_cell, **shared, name='cls_head')(levels)
            box_deltas = Head(4, self.anchors_per_cell, **shared, name='box_head')(levels)
        return cls_logits, box_deltas, [level.shape[1:3] for level in levels]


def make_anchors(
    canvas: tuple[int, int],
    grids: Sequence[tuple[int, int]],
    *,
    sizes: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
    strides: Sequence[float],
    clip: bool,
) -> np.ndarray:
    """Places the anchors of all levels.

    Args:
        canvas: height and width, pixels.
        grids: height and width of each level, cells.
        sizes, aspect_ratios, strides, clip: arguments of `make`: anchor_sizes, aspect_ratios, anchor_strides, clip_anchors.

    Returns:
        [A, 4] float32 xyxy, levels in order.
    """
    limit = canvas if clip else None
    anchors = []
    for k, grid in enumerate(grids):
        base = anchor_ops.default_boxes(sizes[k], sizes[k + 1], aspect_ratios[k], limit=limit)
        stride = (strides[k],) * 2 if strides else (canvas[0] / grid[0], canvas[1] / grid[1])
        anchors.append(anchor_ops.grid_anchors(grid, stride, base, offset=0.5))
    return np.concatenate(anchors)


def match(cls_logits: Array, anchors: Array, gt: GroundTruth, *, negatives_per_positive: float, **rule: Any) -> Array:
    """Matches the anchors of one image to its objects, and keeps the hardest negatives.

    Args:
        cls_logits: [A, K + 1].
        anchors: [A, 4].
        gt: ground truth of the image.
        negatives_per_positive: negatives that stay for each positive; the others are ignored.
        **rule: arguments of `matching.match_and_reassign`.

    Returns:
        [A] int32, the row of each anchor's object, NEGATIVE or IGNORE.
    """
    matched = matching.match_and_reassign(anchors, gt, **rule)
    background = jnp.full_like(matched, cls_logits.shape[1] - 1)
    negative_loss = optax.softmax_cross_entropy_with_integer_labels(cls_logits, background)
    return matching.keep_hard_negatives(matched, negative_loss, negatives_per_positive)


def image_loss(
    cls_logits: Array,
    box_deltas: Array,
    anchors: Array,
    matched: Array,
    gt: GroundTruth,
    *,
    delta_weights: Sequence[float],
    box_loss_beta: float,
) -> dict[str, Array]:
    """Sums the losses over the anchors of one image.

    Args:
        cls_logits: [A, K + 1].
        box_deltas: [A, 4].
        anchors: [A, 4].
        matched: [A], see `match`.
        gt: ground truth of the image.
        delta_weights, box_loss_beta: arguments of `make`.

    Returns:
        the sums 'cls_loss' and 'box_loss', and the numbers of 'positives', 'negatives' and 'ignored' anchors.
    """
    labels, target_boxes = matching.gather_targets(matched, anchors, gt, background=cls_logits.shape[1] - 1)
    cls_loss = optax.softmax_cross_entropy_with_integer_labels(cls_logits, labels)  # [A]
    targets = box_coding.encode(target_boxes, anchors, weights=delta_weights)
    box_loss = losses.smooth_l1(box_deltas, targets, beta=box_loss_beta)  # [A, 4]
    return dict(
        cls_loss=jnp.where(matched != matching.IGNORE, cls_loss, 0).sum(),
        box_loss=jnp.where((matched >= 0)[:, None], box_loss, 0).sum(),
        positives=(matched >= 0).sum(),
        negatives=(matched == matching.NEGATIVE).sum(),
        ignored=(matched == matching.IGNORE).sum(),
    )


def detect(
    cls_logits: Array,
    box_deltas: Array,
    window: Array,
    *,
    anchors: Array,
    delta_weights: Sequence[float],
    pre_nms_topk: int,
    score_threshold: float,
    **limits: Any,
) -> Detections:
    """Detects the objects of one image.

    Args:
        cls_logits: [A, K + 1].
        box_deltas: [A, 4].
        window: [4], where the image lies on its canvas.
        anchors: [A, 4].
        delta_weights: argument of `make`.
        pre_nms_topk: candidates a class.
        score_threshold: score that a candidate must exceed.
        **limits: arguments of `postprocess`.
    """
    scores = jax.nn.softmax(cls_logits)[:, :-1]  # [A, K]
    scores = jnp.where(
        scores > score_threshold, scores, 0
    )  # a CPU finds the best of each class faster among equal ones

    def decode(candidates: Candidates) -> Array:
        of_candidates = box_deltas[candidates.row], jnp.asarray(anchors)[candidates.row]
        return box_coding.decode(*of_candidates, weights=delta_weights)

    select = partial(top_per_class, count=pre_nms_topk)
    return postprocess(scores, window, select=select, decode=decode, score_threshold=score_threshold, **limits)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_strides: Sequence[int] = (8, 16),
    l2_norm_scale: float | None = 20.0,
    extra_layers: Sequence[Sequence[int]] = SSD300_LAYERS,
    lite: bool = False,
    anchor_sizes: Sequence[float] = (30, 60, 111, 162, 213, 264, 315),
    aspect_ratios: Sequence[Sequence[float]] = ((1 / 2, 2), *((1 / 2, 2, 1 / 3, 3),) * 3, *((1 / 2, 2),) * 2),
    anchor_strides: Sequence[float] = (8, 16, 32, 64, 100, 300),
    clip_anchors: bool = False,
    delta_weights: Sequence[float] = (10, 10, 5, 5),
    positive_iou: float = 0.5,
    bipartite: bool = False,
    negatives_per_positive: float = 3.0,
    box_loss_beta: float = 1.0,
    box_loss_weight: float = 1.0,
    pre_nms_topk: int = 400,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
    mean: Sequence[float] = (123, 117, 104),
    std: Sequence[float] = (1, 1, 1),
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes an SSD: by default the paper's SSD300, for a canvas of 300 x 300.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`; its norm is also that of the extra layers, and of lite heads.
        backbone_strides: strides of the backbone's feature maps that are the first levels, pixels.
        l2_norm_scale: length to which the first level's features are scaled before training (section 3.1); None: they are not.
        extra_layers: the levels behind the backbone's, see SSD300_LAYERS.
        lite: whether extra layers and heads are made of depthwise convolutions (SSDLite).
        anchor_sizes: s_k of each level, and one more, pixels, see `anchors.default_boxes`.
        aspect_ratios: for each level height / width of its anchors, without the two squares.
        anchor_strides: stride of each level, pixels; empty: canvas / cells.
        clip_anchors: whether no anchor is larger than the canvas (torchvision).
        delta_weights: factors of dx, dy, dw, dh; the authors' variances are their reciprocals.
        positive_iou: IoU from which an anchor is positive.
        bipartite: whether each object gets an anchor of its own, see `matching.match_and_reassign`.
        negatives_per_positive: negatives that are trained for each positive of an image, the hardest.
        box_loss_beta: error at which smooth L1 turns from quadratic to linear.
        box_loss_weight: weight of the regression loss (alpha of equation 1).
        pre_nms_topk: candidates a class.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Detector. The metrics of its loss are 'cls_loss', 'box_loss', and 'positives', 'negatives' and 'ignored' (neither)
        anchors an image.
    """
    levels = len(backbone_strides) + len(extra_layers)
    for name, given, wanted in (
        ('anchor_sizes', anchor_sizes, levels + 1),
        ('aspect_ratios', aspect_ratios, levels),
        ('anchor_strides', anchor_strides or range(levels), levels),
    ):
        if len(given) != wanted:
            raise ValueError(
                f'{name} has {len(given)} entries: {levels} levels, {len(backbone_strides)} of the backbone and '
                f'{len(extra_layers)} extra layers, need {wanted}'
            )
    backbone = {**BACKBONE, **backbone}
    network = SSD(
        num_classes=num_classes,
        backbone=make_backbone(backbone_strides, jnp.dtype(dtype), axis_name, **backbone),
        l2_norm_scale=l2_norm_scale,
        extra_layers=extra_layers,
        lite=lite,
        norm=backbone['norm'],
        norm_epsilon=backbone['norm_epsilon'],
        axis_name=axis_name,
        anchors_per_cell=[2 + len(ratios) for ratios in aspect_ratios],
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std, bgr=bgr)
    place_anchors = partial(
        make_anchors, sizes=anchor_sizes, aspect_ratios=aspect_ratios, strides=anchor_strides, clip=clip_anchors
    )
    match_image = partial(
        match, positive_iou=positive_iou, bipartite=bipartite, negatives_per_positive=negatives_per_positive
    )
    sum_losses = partial(image_loss, delta_weights=delta_weights, box_loss_beta=box_loss_beta)
    detect_image = partial(
        detect,
        delta_weights=delta_weights,
        pre_nms_topk=pre_nms_topk,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del rng  # nothing is drawn: the negatives are the hardest
        (cls_logits, box_deltas, grids), model_state = run(params, model_state, batch.inputs, train=True)
        with jax.named_scope('loss'):
            anchors = place_anchors(batch.inputs.images.shape[1:3], grids)
            matched = jax.vmap(match_image, in_axes=(0, None, 0))(cls_logits, anchors, batch.gt)
            sums = jax.vmap(sum_losses, in_axes=(0, 0, None, 0, 0))(cls_logits, box_deltas, anchors, matched, batch.gt)
            normalizer = losses.normalizer(sums['positives'].sum(), axis_name)
            cls_loss = sums['cls_loss'].sum() / normalizer
            box_loss = box_loss_weight * sums['box_loss'].sum() / normalizer
        counts = {name: sums[name].mean() for name in ('positives', 'negatives', 'ignored')}
        return cls_loss + box_loss, (model_state, dict(cls_loss=cls_loss, box_loss=box_loss, **counts))

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        (cls_logits, box_deltas, grids), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            anchors = place_anchors(inputs.images.shape[1:3], grids)
            return jax.vmap(partial(detect_image, anchors=anchors))(cls_logits, box_deltas, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        (cls_logits, _, grids), _ = run(params, model_state, batch.inputs, train=True)
        anchors = place_anchors(batch.inputs.images.shape[1:3], grids)
        matched = jax.vmap(match_image, in_axes=(0, None, 0))(cls_logits, anchors, batch.gt)
        return {'anchors': Assignment(jnp.broadcast_to(anchors, (*matched.shape, 4)), matched)}

    return Detector(partial(network_ops.init, network), loss, predict, assign)
