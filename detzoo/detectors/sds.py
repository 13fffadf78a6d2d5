"""SDS: *Simultaneous Detection and Segmentation* (arXiv 1407.1808), on Fast R-CNN: which of the given masks are objects?

    images, backbone, levels: see `faster_rcnn`; without an RPN
    proposals with masks, from outside -> rois, in training sampled by the overlap of their regions with those of objects
      -> features of each RoI [B, R, s, s, C], and the same with what lies outside of its mask set to zero
      -> a trunk for each -> concatenated -> cls_logits [B, R, K + 1], background last
    loss:    cross-entropy, divided by the number of RoIs
    predict: softmax -> class-aware NMS; a detection has the box and the mask of its proposal

Differences from the paper:
- Features of all RoIs are read from one map, as in Fast R-CNN, and the background is removed there, as in CFM (1412.1283). In the
  paper, two networks see each region's crop, with and without background, which is painted in the mean colour.
- A softmax classifies, not a support vector machine for each class.
- The overlap of regions is computed with one object only, the one whose box overlaps the proposal's most. It is sampled on the
  cells of the proposal's mask.
- The NMS compares boxes, not regions.
- There is no refinement of masks by a coarse mask of each class and superpixels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from detzoo.core import boxes as box_ops
from detzoo.core import losses, masks, matching
from detzoo.core.nms import nms
from detzoo.core.postprocess import top_per_level
from detzoo.detectors import chunks, faster_rcnn
from detzoo.detectors import network as network_ops
from detzoo.detectors.faster_rcnn import FasterRCNN
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD, arguments_of, with_arguments_of
from detzoo.detectors.stages import EMPTY_ROI, make_roi_reader
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

TOUCHES = 1e-6  # IoU of boxes from which on a proposal may belong to an object


class Regions(NamedTuple):
    """Proposals of an image, or a sample of them.

    boxes: [R, 4].
    masks: [R, S, S] bool, in the frames of the boxes.
    matched: [R] int32, row of the ground truth, NEGATIVE or IGNORE.
    """

    boxes: Array
    masks: Array
    matched: Array


class SDS(nn.Module):
    """The network: the backbone and the trunk of a Fast R-CNN, the trunk of the masked features, and the output.

    faster_rcnn: constructor of the Faster R-CNN, of which neither the RPN nor the box head is used.
    num_classes: K. dtype: data type of the output's layer.
    """

    faster_rcnn: Callable[[], FasterRCNN]
    num_classes: int
    dtype: Any

    def setup(self) -> None:
        """Gives the parameters of the Fast R-CNN the names that they have by themselves."""
        self.boxes = self.faster_rcnn()
        nn.share_scope(self, self.boxes)
        self.masked_trunk = self.boxes.body.make_trunk()
        self.cls_logits = nn.Dense(
            self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name='cls_logits'
        )

    def classify(self, x: Array, rois: Array, roi_masks: Array, valid: Array | None, *, train: bool) -> Array:
        """Maps images [B, H, W, 3], rois [B, R, 4] and their masks [B, R, S, S] to cls_logits [B, R, K + 1].

        valid: [B, R] bool, in training the RoIs that count in batch statistics, in prediction those that are needed; None: all.
        """
        levels = self.boxes.levels(x, train=train)
        features = self.boxes.read_rois(levels[: self.boxes.body.roi_levels], rois)
        with jax.named_scope('heads'):
            rows, needed = features.reshape(-1, *features.shape[2:]), valid if valid is None else valid.reshape(-1)
            inputs = rows, masks.mask_features(rows, roi_masks.reshape(-1, *roi_masks.shape[2:]))
            trunks = self.boxes.trunk, self.masked_trunk
            if train or valid is None:
                outputs = [trunk(y, needed, train=train) for trunk, y in zip(trunks, inputs)]
            else:
                of_box, of_region = map(chunks.without_training, trunks)
                outputs = chunks.map_valid(lambda a, b: (of_box(a), of_region(b)), inputs, needed, size=chunks.BOXES)
            joined = jnp.concatenate(outputs, axis=-1)
            if joined.ndim == 4:  # of C4
                joined = joined.mean(axis=(1, 2))
            return self.cls_logits(joined).astype(jnp.float32).reshape(*rois.shape[:2], -1)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Runs all parts on one RoI an image, to draw their parameters."""
        rois = jnp.broadcast_to(jnp.asarray(EMPTY_ROI), (len(x), 1, 4))
        whole = jnp.ones((len(x), 1, 1, 1), bool)
        return self.classify(x, rois, whole, None, train=train)


def region_overlaps(boxes: Array, region_masks: Array, gt: GroundTruth) -> tuple[Array, Array]:
    """Computes how proposals overlap objects, mask by mask.

    Args:
        boxes: [P, 4].
        region_masks: [P, S, S] bool, in the frames of the boxes.
        gt: the ground truth of one image.

    Returns:
        [P] float IoU of the masks of a proposal and of the object whose box overlaps it most, 0 without one; and the rows of
        these objects [P] int32, NEGATIVE without one, IGNORE in a crowd.
    """
    row = matching.match_by_threshold(boxes, gt, positive_iou=TOUCHES, negative_iou=TOUCHES, match_best_anchors=False)
    theirs = masks.mask_targets(gt.masks, gt.boxes, row, boxes, size=region_masks.shape[1])
    area = box_ops.area(boxes)
    own, shared = (x.mean(axis=(1, 2)) * area for x in (region_masks.astype(jnp.float32), region_masks * theirs))
    of_object = (gt.masks.astype(jnp.float32).mean(axis=(1, 2)) * box_ops.area(gt.boxes))[jnp.maximum(row, 0)]
    union = own + of_object - shared
    return jnp.where((row >= 0) & (union > 0), shared / jnp.where(union > 0, union, 1), 0), row


class RegionHead(NamedTuple):
    """The head on regions, without its network.

    sample(boxes, region_masks, valid, gt, key): Regions, R of the P proposals of an image, positives first.
    detect(cls_logits, boxes, region_masks, valid, window): Detections.
    """

    sample: Callable[..., Regions]
    detect: Callable[..., Detections]


def make_region_head(
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.2,
    samples: int = 128,
    positive_share: float = 0.25,
    add_ground_truth: bool = True,
    pre_nms_topk: int = 2000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.3,
    max_detections: int = 100,
) -> RegionHead:
    """Makes the functions of the head on regions.

    Args:
        positive_iou, negative_iou: a region is positive from positive_iou on, negative below negative_iou, and else ignored.
        samples: R, number of regions per image that are trained.
        positive_share: largest share of positives among them.
        add_ground_truth: whether the objects are sampled too.
        pre_nms_topk: candidates before the NMS, per image.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU of boxes above which the NMS drops a detection of the same class.
        max_detections: D.
    """

    def sample(boxes: Array, region_masks: Array, valid: Array, gt: GroundTruth, key: Array) -> Regions:
        if gt.masks is None:
            raise ValueError('the ground truth has no masks: set data.mask_size, to 112 for example')
        if add_ground_truth:
            rows = jnp.arange(len(gt.boxes))
            own = masks.mask_targets(gt.masks, gt.boxes, rows, gt.boxes, size=region_masks.shape[1])
            boxes = jnp.concatenate([boxes, gt.boxes])
            region_masks = jnp.concatenate([region_masks, own > 0])
            valid = jnp.concatenate([valid, gt.valid & ~gt.crowd])
        boxes = jnp.where(valid[:, None], boxes, jnp.asarray(EMPTY_ROI))
        iou, row = region_overlaps(boxes, region_masks, gt)
        unmatched = jnp.where((iou < negative_iou) & (row != matching.IGNORE), matching.NEGATIVE, matching.IGNORE)
        matched = jnp.where((row >= 0) & (iou >= positive_iou), row, unmatched)
        matched = jnp.where(valid, matched, matching.IGNORE)
        sampled = matching.sample_balanced(matched, key, count=samples, positive_share=positive_share)
        rank, row = jax.lax.top_k(sampled * (1 + (matched >= 0)), min(samples, len(boxes)))
        drawn = Regions(boxes[row], region_masks[row], matched[row])
        empty = Regions(jnp.asarray(EMPTY_ROI), False, matching.IGNORE)
        return Regions(*(jnp.where((rank > 0).reshape(-1, *[1] * (x.ndim - 1)), x, y) for x, y in zip(drawn, empty)))

    def detect(cls_logits: Array, boxes: Array, region_masks: Array, valid: Array, window: Array) -> Detections:
        scores = jnp.where(valid[:, None], jax.nn.softmax(cls_logits)[:, :-1], 0)  # [P, K]
        found = top_per_level(scores, level_sizes=[len(scores)], count=pre_nms_topk)
        candidates = box_ops.clip(boxes[found.row], window)
        good = (found.score > score_threshold) & (box_ops.area(candidates) > 0)
        index, kept = nms(
            candidates, found.score, found.label, good, iou_threshold=iou_threshold, max_detections=max_detections
        )
        return Detections(
            boxes=jnp.where(kept[:, None], candidates[index], 0),
            scores=jnp.where(kept, found.score[index], 0),
            labels=jnp.where(kept, found.label[index], 0),
            valid=kept,
            masks=jnp.where(kept[:, None, None], region_masks[found.row[index]], False).astype(jnp.float32),
        )

    return RegionHead(sample, detect)


@with_arguments_of(faster_rcnn.make_body)
def make(
    *,
    num_classes: int,
    roi: Mapping[str, Any] = arguments_of(make_roi_reader),
    head: Mapping[str, Any] = arguments_of(make_region_head),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
    **body: Any,
) -> Detector:
    """Makes an SDS.

    Args:
        num_classes: K.
        roi: arguments of `make_roi_reader`; for C4 output_size is 14, of which the last stage makes 7.
        head: arguments of `make_region_head`.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.
        **body: arguments of `faster_rcnn.make_body`.

    Returns:
        A Detector, to be trained on ground truth with masks, and which needs proposals with masks. The metrics of its loss are
        'cls_loss', and the means over images 'positives' and 'negatives'. The stage of its assignment is 'rois'.
    """
    parts = faster_rcnn.make_parts(
        num_classes=num_classes,
        rpn=None,
        roi=roi,
        mean=mean,
        std=std,
        bgr=bgr,
        dtype=dtype,
        axis_name=axis_name,
        **body,
    )
    region_head = make_region_head(**head)
    network = SDS(lambda: parts.network, num_classes, parts.dtype)
    run = partial(parts.apply, network)

    def given(inputs: Inputs) -> tuple[Array, Array, Array]:
        """Returns the proposals, their masks, and which are valid."""
        if inputs.proposal_masks is None:
            raise ValueError(
                'SDS classifies proposals with masks: set data.train_proposals, data.validation_proposals and '
                'data.proposal_mask_size, or inputs.proposal_masks'
            )
        return inputs.proposals, inputs.proposal_masks, inputs.proposals_valid

    def sample(batch: Batch, rng: Array) -> Regions:
        keys = jax.vmap(lambda image: jax.random.fold_in(rng, image))(batch.image_id)
        return jax.vmap(region_head.sample)(*given(batch.inputs), batch.gt, keys)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        with jax.named_scope('loss'):
            regions = sample(batch, rng)
        positive, sampled = regions.matched >= 0, regions.matched != matching.IGNORE
        arguments = dict(rois=regions.boxes, roi_masks=regions.masks, valid=sampled)
        cls_logits, model_state = run(
            params, model_state, batch.inputs, train=True, method=network.classify, **arguments
        )
        with jax.named_scope('loss'):
            labels = jnp.take_along_axis(batch.gt.labels, jnp.maximum(regions.matched, 0), axis=1)
            labels = jnp.where(positive, labels, num_classes)
            error = optax.softmax_cross_entropy_with_integer_labels(cls_logits, labels)
            cls_loss = jnp.where(sampled, error, 0).sum() / losses.normalizer(sampled.sum(), axis_name)
        counts = dict(positives=positive, negatives=sampled & ~positive)
        metrics = {name: rows.sum(axis=1).mean() for name, rows in counts.items()}
        return cls_loss, (model_state, dict(cls_loss=cls_loss, **metrics))

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        boxes, region_masks, valid = given(inputs)
        rois = jnp.where(valid[..., None], boxes, jnp.asarray(EMPTY_ROI))
        arguments = dict(rois=rois, roi_masks=region_masks, valid=valid)
        cls_logits, _ = run(params, model_state, inputs, train=False, method=network.classify, **arguments)
        with jax.named_scope('post'):
            return jax.vmap(region_head.detect)(cls_logits, rois, region_masks, valid, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        regions = sample(batch, rng)
        return {'rois': Assignment(regions.boxes, regions.matched)}

    return Detector(
        partial(network_ops.init, network),
        loss,
        predict,
        assign,
        takes_proposals=True,
        needs_proposals=True,
        needs_proposal_masks=True,
        finds_masks=True,
    )
