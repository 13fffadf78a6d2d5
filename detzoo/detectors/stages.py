"""The stages that Faster R-CNN and Mask R-CNN share, from the RPN's proposals to detections.

    images -> levels -> RPN, see `rpn` -> proposals [B, P, 4]                        `propose`
      -> rois [B, R, 4], in training sampled from proposals and ground truth         `make_roi_head`, `sample`
      -> features of each RoI [B, R, s, s, C]                                        `make_roi_reader`
      -> the detector's network: cls_logits [B, R, K + 1], box_deltas [B, R, K, 4]
    loss:    anchors and rois x ground truth                                         `reduce_losses`, `weigh`
    predict: softmax -> decode class by class -> clip -> class-aware NMS             `detect`

`make_roi_head` and `make_roi_reader` bind the arguments of a stage, which are a group of config keys, to its functions. Gradients
pass between stages through the levels only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.core import box_coding, losses, matching, roi_features
from detzoo.core.postprocess import Candidates, postprocess, top_per_level
from detzoo.detectors.rpn import RPN
from detzoo.types import Array, Assignment, Batch, Detections, GroundTruth, Inputs

Sums = dict[str, Array]
EMPTY_ROI = (0.0, 0.0, 1.0, 1.0)  # the box of empty rows, so that all arithmetic stays finite


class RoIHead(NamedTuple):
    """The head on RoIs, without its network.

    sample(proposals, valid, gt, key): rois [R, 4], positives first, and for each RoI its row of the ground truth [R], or
        NEGATIVE, or IGNORE in the last rows if fewer than R were found.
    loss(cls_logits, box_deltas, rois, matched, gt): sums over the RoIs of an image.
    detect(cls_logits, box_deltas, proposals, valid, window): Detections.
    max_positives: the largest number of positive RoIs; they are the first rows.
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
        positive_iou, negative_iou: a RoI is positive from positive_iou on, negative below negative_iou, and else ignored.
        samples: R, number of RoIs per image that are trained.
        positive_share: largest share of positives among them.
        add_ground_truth: whether the boxes of objects are sampled too.
        delta_weights: factors of dx, dy, dw, dh.
        box_loss_beta: error at which smooth L1 turns from quadratic to linear.
        pre_nms_topk: candidates before the NMS, per image.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        min_size: smallest width and height of a detection, pixels.

    Returns:
        A RoIHead. The sums of its loss are 'cls_loss', 'box_loss', 'positives' and 'negatives'.
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

    def detect(cls_logits: Array, box_deltas: Array, proposals: Array, valid: Array, window: Array) -> Detections:
        scores = jnp.where(valid[:, None], jax.nn.softmax(cls_logits)[:, :-1], 0)  # [P, K]

        def decode(candidates: Candidates) -> Array:
            column = jnp.minimum(candidates.label, box_deltas.shape[1] - 1)  # the candidate's class, or the only column
            deltas = box_deltas[candidates.row, column]
            return box_coding.decode(deltas, proposals[candidates.row], weights=delta_weights)

        return postprocess(
            scores,
            window,
            select=partial(top_per_level, level_sizes=[len(scores)], count=pre_nms_topk),
            decode=decode,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            min_size=min_size,
        )

    loss = partial(roi_loss, num_classes=num_classes, delta_weights=delta_weights, box_loss_beta=box_loss_beta)
    return RoIHead(sample, loss, detect, int(samples * positive_share))


def roi_loss(
    cls_logits: Array,
    box_deltas: Array,
    rois: Array,
    matched: Array,
    gt: GroundTruth,
    *,
    num_classes: int,
    delta_weights: Sequence[float],
    box_loss_beta: float,
) -> Sums:
    """Sums the losses of the RoIs of one image; the arguments are those of `RoIHead.loss` and `make_roi_head`."""
    positive, sampled = matched >= 0, matched != matching.IGNORE
    labels, target_boxes = matching.gather_targets(matched, rois, gt, background=num_classes)
    cls_loss = optax.softmax_cross_entropy_with_integer_labels(cls_logits, labels)
    column = jnp.minimum(labels, box_deltas.shape[1] - 1)  # the object's class, or the only column
    deltas = jnp.take_along_axis(box_deltas, column[:, None, None], axis=1)[:, 0]  # [R, 4]
    targets = box_coding.encode(target_boxes, rois, weights=delta_weights)
    box_loss = losses.smooth_l1(deltas, targets, beta=box_loss_beta)
    return dict(
        cls_loss=jnp.where(sampled, cls_loss, 0).sum(),
        box_loss=jnp.where(positive[:, None], box_loss, 0).sum(),
        positives=positive.sum(),
        negatives=(sampled & ~positive).sum(),
    )


class RoIReader(NamedTuple):
    """Functions that read the features of RoIs from levels.

    read(levels, rois): features [B, R, s, s, C] from levels [B, h, w, C], finest first, and rois [B, R, 4]; of a pyramid of bins
        [B, R, 1, bins, C].
    metrics(rois, matched): metrics of rois [B, R, 4] with rows [B, R] of the ground truth, IGNORE where there is no RoI.
    keeps_cells: whether features are a map [s, s], on which convolutions can run.
    """

    read: Callable[[Sequence[Array], Array], Array]
    metrics: Callable[[Array, Array], Sums]
    keeps_cells: bool


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
    pyramid: Sequence[int] = (1, 2, 3, 6),
    stop_gradient: bool = False,
) -> RoIReader:
    """Makes the functions that read the features of RoIs from levels (see `core.roi_features`).

    Args:
        first_stride: stride of the finest level, pixels.
        num_levels: number of levels from which RoIs are read.
        operator: 'align' (RoIAlign), 'pool' (RoIPool), 'warp' (RoIWarp) or 'pyramid' (spatial pyramid pooling).
        output_size: s, bins along a side. Unused by 'pyramid'.
        samples_per_bin: samples along a side of a bin; 0, for 'align' only: as many as the size of the RoI needs. Unused by
            'pool'.
        max_samples_per_bin: largest number of samples along a side of a bin if samples_per_bin is 0.
        aligned: whether the features of a cell lie at its centre (detectron2) or at its corner (torchvision). For 'align' only.
        reduce: 'average' or 'max' of the samples of a bin. Unused by 'pool'.
        canonical_size: size of a RoI that is read from the level of stride 16, pixels (1612.03144, equation 1).
        pyramid: bins along a side at each level of 'pyramid', whose features are one row of all bins (1406.4729, section 2.2).
        stop_gradient: whether gradients end at the features of RoIs, so that nothing below them learns from RoIs, as in SPP-net.

    Returns:
        A RoIReader. If samples_per_bin is 0, its metric is 'undersampled_rois', the number of RoIs of an image that need more
        samples than max_samples_per_bin; else it has none.
    """
    operators = {
        'align': partial(
            roi_features.roi_align,
            samples_per_bin=samples_per_bin,
            aligned=aligned,
            reduce=reduce,
            max_samples_per_bin=max_samples_per_bin,
            output_size=output_size,
        ),
        'pool': partial(roi_features.roi_pool, output_size=output_size),
        'warp': partial(roi_features.roi_warp, samples_per_bin=samples_per_bin, reduce=reduce, output_size=output_size),
        'pyramid': partial(roi_features.pyramid_pool, output_sizes=pyramid),
    }
    if operator not in operators:
        raise ValueError(f'roi.operator is {operator!r}: use one of {", ".join(operators)}')
    finest = int(math.log2(first_stride))
    level_of = partial(
        roi_features.assign_levels, min_level=finest, max_level=finest + num_levels - 1, canonical_size=canonical_size
    )
    strides = [first_stride * 2**number for number in range(num_levels)]

    def read(levels: Sequence[Array], rois: Array) -> Array:
        with jax.named_scope('roi'):
            read_image = partial(operators[operator], strides=strides)
            levels = jax.lax.stop_gradient(levels) if stop_gradient else levels
            return jax.vmap(lambda levels, rois: read_image(levels, rois, level_of(rois)))(levels, rois)

    def metrics(rois: Array, matched: Array) -> Sums:
        if operator != 'align' or samples_per_bin:
            return {}
        bins = dict(strides=strides, output_size=output_size, aligned=aligned)
        needed = jax.vmap(lambda rois: roi_features.adaptive_samples(rois, level_of(rois), **bins))(rois)
        undersampled = (needed > max_samples_per_bin) & (matched != matching.IGNORE)
        return {'undersampled_rois': undersampled.sum(axis=1).mean()}

    return RoIReader(read, metrics, keeps_cells=operator != 'pyramid')


class Proposed(NamedTuple):
    """The proposals of a batch, and the outputs of the network up to them.

    levels: [B, h, w, C] each, finest first.
    rpn_outputs: objectness_logits [B, A] and deltas [B, A, 4], or None if proposals are given.
    anchors: [A, 4], or None likewise.
    boxes: [B, P, 4] proposals.
    valid: [B, P] bool.
    """

    levels: Sequence[Array]
    rpn_outputs: tuple[Array, Array] | None
    anchors: Array | None
    boxes: Array
    valid: Array


class TrainedAnchors(NamedTuple):
    """The anchors that the RPN is trained on, and its outputs for them.

    objectness_logits: [B, A].
    deltas: [B, A, 4].
    anchors: [A, 4].
    matched: [B, A], as `RPN.match` returns it.
    """

    objectness_logits: Array
    deltas: Array
    anchors: Array
    matched: Array


class TrainedRoIs(NamedTuple):
    """The RoIs that the head on RoIs is trained on, and its outputs for them.

    cls_logits: [B, R, K + 1].
    box_deltas: [B, R, K or 1, 4].
    rois: [B, R, 4].
    matched: [B, R], as `RoIHead.sample` returns it.
    """

    cls_logits: Array
    box_deltas: Array
    rois: Array
    matched: Array


def propose(
    net: nn.Module, rpn: RPN | None, x: Array, inputs: Inputs, *, train: bool, boxes_learn: bool = False
) -> Proposed:
    """Runs the backbone and the RPN, or takes the given proposals instead of the RPN's.

    Args:
        net: a FasterRCNN, bound to its variables.
        rpn: the RPN; None: proposals are given.
        x: [B, H, W, 3] float, normalised images.
        inputs: the windows, and proposals or None.
        train: whether to run as in training.
        boxes_learn: whether the gradient of the proposals goes on to the RPN's deltas.
    """
    levels = net.levels(x, train=train)
    if inputs.proposals is not None:
        return Proposed(levels, None, None, inputs.proposals, inputs.proposals_valid)
    if rpn is None:
        raise ValueError(
            'without an RPN (model.rpn is None) proposals must be given: set data.train_proposals and '
            'data.validation_proposals, or inputs.proposals'
        )
    outputs = net.rpn(levels)
    with jax.named_scope('rpn'):
        anchors = rpn.anchors(x.shape[1:3], [level.shape[1:3] for level in levels])
        propose_one = partial(rpn.propose, anchors=anchors, train=train)
        objectness_logits, deltas = jax.lax.stop_gradient(outputs)
        deltas = outputs[1] if boxes_learn else deltas
        proposals = jax.vmap(lambda *arrays: propose_one(*arrays))(objectness_logits, deltas, inputs.window)
    return Proposed(levels, outputs, jnp.asarray(np.concatenate(anchors)), *proposals)


def sample(
    rpn: RPN | None, head: RoIHead, proposed: Proposed, batch: Batch, rng: Array
) -> tuple[TrainedAnchors | None, Assignment]:
    """Draws the anchors and the RoIs to train. The draw of an image depends on its id, not on its place in the batch.

    Args:
        rpn: the RPN; None: proposals are given.
        head: the head on RoIs.
        proposed: what `propose` made of the batch.
        batch: images with their ground truth.
        rng: a key.

    Returns:
        the anchors, or None if proposals are given; and the rois [B, R, 4] with their rows of the ground truth [B, R].
    """
    with jax.named_scope('loss'):
        keys = jax.vmap(lambda image: jax.random.split(jax.random.fold_in(rng, image)))(batch.image_id)  # [B, 2]
        anchors = None
        if proposed.anchors is not None:
            matched = jax.vmap(rpn.match, in_axes=(None, 0, 0))(proposed.anchors, batch.gt, keys[:, 0])
            anchors = TrainedAnchors(*proposed.rpn_outputs, proposed.anchors, matched)
        rois = jax.vmap(head.sample)(proposed.boxes, proposed.valid, batch.gt, keys[:, 1])
        return anchors, Assignment(*rois)


def reduce_losses(
    rpn: RPN | None,
    head: RoIHead,
    anchors: TrainedAnchors | None,
    rois: TrainedRoIs,
    gt: GroundTruth,
    axis_name: str | None,
) -> Sums:
    """Sums the losses of the RPN and of the head over a batch, and divides each by the number of its samples on all devices.

    Args:
        rpn: the RPN; None: proposals are given.
        head: the head on RoIs.
        anchors, rois: samples of the RPN and of the head; anchors is None if proposals are given.
        gt: the ground truth of the batch.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        'cls_loss' and 'box_loss'; 'positives' and 'negatives', means over images; and, if there are anchors, the same of the
        RPN as 'rpn_...'.
    """
    sums = {} if anchors is None else jax.vmap(rpn.loss, in_axes=(0, 0, None, 0, 0))(*anchors, gt)
    sums |= jax.vmap(head.loss)(*rois, gt)
    metrics = {name: values.mean() for name, values in sums.items()}
    for prefix in ('',) if anchors is None else ('rpn_', ''):
        normalizer = losses.normalizer((sums[f'{prefix}positives'] + sums[f'{prefix}negatives']).sum(), axis_name)
        for name in (f'{prefix}cls_loss', f'{prefix}box_loss'):
            metrics[name] = sums[name].sum() / normalizer
    return metrics


def weigh(metrics: Sums, weights: Mapping[str, float]) -> tuple[Array, Sums]:
    """Multiplies the losses among metrics by their weights, and adds them up: (loss, metrics)."""
    weighted = {name: weight * metrics[name] for name, weight in weights.items() if name in metrics}
    return sum(weighted.values()), metrics | weighted


def assignments(anchors: TrainedAnchors | None, rois: TrainedRoIs) -> dict[str, Assignment]:
    """Lists the samples of the stages 'rpn' (unless anchors is None) and 'rois'."""
    stages = {'rois': Assignment(rois.rois, rois.matched)}
    if anchors is not None:
        boxes = jnp.broadcast_to(anchors.anchors, (*anchors.matched.shape, 4))
        stages = {'rpn': Assignment(boxes, anchors.matched), **stages}
    return stages


def detect(net: nn.Module, proposed: Proposed, window: Array, *, head: RoIHead) -> Detections:
    """Classifies the proposals of a batch, moves them onto objects and prunes them.

    Args:
        net: a FasterRCNN, bound to its variables.
        proposed: what `propose` made of the batch.
        window: [B, 4], where the images lie on their canvases.
        head: the head on RoIs.
    """
    outputs = net.boxes(net.roi_features(proposed.levels, proposed.boxes, proposed.valid, train=False))
    with jax.named_scope('post'):
        return jax.vmap(head.detect)(*outputs, proposed.boxes, proposed.valid, window)


def ranked(proposed: Proposed) -> Detections:
    """Writes the proposals of a batch as detections of class 0, whose scores fall with their rank from 1 on.

    Args:
        proposed: what `propose` made of the batch.
    """
    rows = proposed.valid.shape[1]
    scores = jnp.where(proposed.valid, 1 - jnp.arange(rows, dtype=jnp.float32) / rows, 0)
    return Detections(proposed.boxes, scores, jnp.zeros(scores.shape, jnp.int32), proposed.valid)
