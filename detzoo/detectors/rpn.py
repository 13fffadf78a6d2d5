"""The region proposal network (1506.01497, section 3; on a feature pyramid: 1612.03144, section 4.1).

levels [B, h, w, C] -> `RPNHead`: objectness_logits [B, A], deltas [B, A, 4]
loss:    anchors x ground truth -> match -> sample -> cross-entropy, smooth L1
propose: decode -> the best of each level -> clip -> NMS within levels -> proposals [P, 4]
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.backbones.conv import Conv
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, losses, matching
from detzoo.core.postprocess import Candidates, postprocess, top_per_level
from detzoo.detectors.network import prior_bias
from detzoo.types import Array, GroundTruth


class RPNHead(nn.Module):
    """3x3 convolutions and two outputs by 1x1 convolutions; all levels share the weights."""

    anchors_per_cell: int
    layers: int
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> tuple[Array, Array]:
        """Maps levels [B, h, w, C] to objectness_logits [B, A] and deltas [B, A, 4], float32, level after level."""
        conv = partial(Conv, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype)
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


class RPN(NamedTuple):
    """The region proposal network.

    make_head: constructor of the module that maps levels to objectness_logits and deltas.
    anchors(canvas, grids): the anchors of each level, each [h * w * n, 4] numpy.
    match(anchors, gt, key): [A], for each sampled anchor its row of the ground truth or NEGATIVE, for the others IGNORE.
    loss(objectness_logits, deltas, anchors, matched, gt): sums over the sampled anchors of an image.
    propose(objectness_logits, deltas, window, anchors=, train=): proposals [P, 4], and which are valid [P].
    """

    make_head: Callable[[], nn.Module]
    anchors: Callable[..., list[np.ndarray]]
    match: Callable[..., Array]
    loss: Callable[..., dict[str, Array]]
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
    """Makes the region proposal network's functions (1506.01497, section 3.1).

    Args:
        strides: strides of the levels, pixels, finest first.
        dtype: data type in which the head computes.
        layers: number of 3x3 convolutions before the outputs.
        anchor_sizes: sizes of the anchors of each level, pixels; all levels have the same number of sizes.
        aspect_ratios: height / width of the anchors.
        round_anchors: whether the corners of base anchors are rounded to whole pixels (torchvision).
        anchor_strides: distance of neighbouring anchors: 'power_of_two', the strides of the levels, or 'canvas_over_grid',
            canvas // cells (torchvision).
        positive_iou, negative_iou: an anchor is positive from positive_iou on, negative below negative_iou, and else ignored.
        match_best_anchors: whether the anchors that overlap an object most are positive too.
        samples: number of anchors per image that are trained.
        positive_share: largest share of positives among them.
        box_loss_beta: error at which smooth L1 turns from quadratic to linear.
        pre_nms_topk, train_pre_nms_topk: candidates before the NMS, per level, in prediction and in training.
        post_nms_topk, train_post_nms_topk: P, proposals after the NMS, in prediction and in training.
        score_threshold: probability of an object that a proposal must exceed; 0: no threshold.
        iou_threshold: IoU above which the NMS drops a proposal; it compares proposals of the same level.
        min_size: smallest width and height of a proposal, pixels.

    Returns:
        An RPN. The sums of its loss are 'rpn_cls_loss', 'rpn_box_loss', 'rpn_positives', 'rpn_negatives'.
    """
    anchors = bind_anchors(strides, anchor_sizes, aspect_ratios, rounded=round_anchors, distance=anchor_strides)

    def match(anchors: Array, gt: GroundTruth, key: Array) -> Array:
        matched = matching.match_by_threshold(
            anchors, gt, positive_iou=positive_iou, negative_iou=negative_iou, match_best_anchors=match_best_anchors
        )
        sampled = matching.sample_balanced(matched, key, count=samples, positive_share=positive_share)
        return jnp.where(sampled, matched, matching.IGNORE)

    def propose(
        objectness_logits: Array, deltas: Array, window: Array, *, anchors: Sequence[np.ndarray], train: bool
    ) -> tuple[Array, Array]:
        return best_boxes(
            objectness_logits,
            deltas,
            window,
            anchors=anchors,
            pre_nms_topk=train_pre_nms_topk if train else pre_nms_topk,
            post_nms_topk=train_post_nms_topk if train else post_nms_topk,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            min_size=min_size,
        )

    make_head = partial(RPNHead, len(anchor_sizes[0]) * len(aspect_ratios), layers, dtype)
    return RPN(make_head, anchors, match, partial(rpn_loss, box_loss_beta=box_loss_beta), propose)


def bind_anchors(
    strides: Sequence[int],
    anchor_sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    *,
    rounded: bool,
    distance: str,
) -> Callable[..., list[np.ndarray]]:
    """Checks the anchors' arguments of `make_rpn` (distance is its anchor_strides), and binds them: `RPN.anchors`."""
    if distance not in ('power_of_two', 'canvas_over_grid'):
        raise ValueError(f"rpn.anchor_strides is {distance!r}: use 'power_of_two' or 'canvas_over_grid'")
    if len({len(sizes) for sizes in anchor_sizes}) != 1:
        raise ValueError(
            f'rpn.anchor_sizes must have equally many sizes at each level, which share one head: {anchor_sizes}'
        )
    if len(anchor_sizes) != len(strides):
        raise ValueError(f'rpn.anchor_sizes has {len(anchor_sizes)} levels, the pyramid {len(strides)}')
    return partial(
        anchor_ops.pyramid_anchors,
        bases=[anchor_ops.base_anchors(sizes, aspect_ratios, rounded=rounded) for sizes in anchor_sizes],
        strides=strides if distance == 'power_of_two' else None,
    )


def rpn_loss(
    objectness_logits: Array, deltas: Array, anchors: Array, matched: Array, gt: GroundTruth, *, box_loss_beta: float
) -> dict[str, Array]:
    """Sums the losses of the sampled anchors of one image; the arguments are those of `RPN.loss` and `make_rpn`."""
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


def best_boxes(
    objectness_logits: Array,
    deltas: Array,
    window: Array,
    *,
    anchors: Sequence[np.ndarray],
    pre_nms_topk: int,
    post_nms_topk: int,
    score_threshold: float,
    iou_threshold: float,
    min_size: float,
) -> tuple[Array, Array]:
    """Chooses the proposals of one image.

    Args:
        objectness_logits: [A].
        deltas: [A, 4].
        window: [4] xyxy, where the image lies on its canvas.
        anchors: anchors of each level, [n, 4] each.
        pre_nms_topk, post_nms_topk, score_threshold, iou_threshold, min_size: see `make_rpn`.

    Returns:
        proposals [P, 4], best first, and which are valid [P].
    """
    level_sizes = [len(level) for level in anchors]
    level = np.repeat(np.arange(len(anchors), dtype=np.int32), level_sizes)

    def select(scores: Array) -> Candidates:
        found = top_per_level(scores, level_sizes=level_sizes, count=pre_nms_topk)
        # Levels take the place of classes, so that the NMS compares only boxes of one level.
        return found._replace(label=jnp.asarray(level)[found.row])

    def decode(candidates: Candidates) -> Array:
        return box_coding.decode(deltas[candidates.row], jnp.asarray(np.concatenate(anchors))[candidates.row])

    found = postprocess(
        objectness_logits[:, None],  # not their sigmoid, which float32 rounds to equal values close to 1
        window,
        select=select,
        decode=decode,
        score_threshold=prior_bias(score_threshold),
        iou_threshold=iou_threshold,
        max_detections=post_nms_topk,
        min_size=min_size,
    )
    return found.boxes, found.valid
