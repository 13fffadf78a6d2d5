"""YOLO v3: *An Incremental Improvement* (arXiv 1804.02767), as darknet's source has it.

    images [B, H, W, 3] -> Darknet-53 -> C3, C4, C5 (stride 8, 16, 32)
      -> from C5 on: 5 convs, of which a 3x3 conv makes the level's outputs, and a 1x1 conv, doubled in size, joins the
         next finer stage
      -> outputs [B, A, 5 + K], finest level first, of n = 3 anchors a cell: tx, ty, tw, th, objectness, class logits
    loss:    each object trains the anchor, of all levels, that has the most similar shape, in the cell of its centre:
             squared error of tw and th, cross-entropy of tx, ty, objectness and each class; other anchors' objectness
             goes to 0, but where the prediction overlaps an object by more than `ignore_iou`
    predict: sigmoid(objectness) * sigmoid(classes), boxes from sigmoid-bound centres -> top-k per level -> class-aware NMS

The small net, the backbone 'tiny' with `small_head`, has two levels and single convolutions.

Where paper and source differ, the source (github.com/pjreddie/darknet, src/yolo_layer.c) is followed: tx and ty have the
gradient of a cross-entropy, not of a squared error; a box counts 2 - w * h times (w, h: shares of the canvas); the
ignore threshold is 0.7, not 0.5. Sums over an image are averaged over images. Where several objects take one anchor the
last one trains its box, and their classes are united.

Differences from the paper and the source:
- All objects of an image train, darknet reads the first 90; its order is random.
- Objects that darknet does not know: of crowds see `matching.match_by_cell`.
- A box grows at most 62.5 times (`box_coding.MAX_LOG_SCALE`), so that exp stays finite.
- The output layer starts near 0 and may start from a `prior_probability` of objects; darknet's has He's initialisation.
- What lies outside of the image is black by default, darknet's letterbox is gray (`pad_value`).
- Batch norm adds 1e-6 to the variance (`norm_epsilon`); darknet adds 1e-5 to it on a GPU, and 1e-6 to its
  root on a CPU. The moving average forgets 0.1 a step (darknet on a GPU: 0.01).
- `box_loss` also offers losses of the boxes' overlap, which came later.
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
from detzoo.backbones.darknet import ConvBlock
from detzoo.backbones.fpn import upsample
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, boxes, losses, matching
from detzoo.core.postprocess import postprocess, top_per_level
from detzoo.detectors import network as network_ops
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='darknet53', norm_epsilon=1e-6)

# k-means of COCO's boxes on a canvas of 416, three for each level, finest first (section 2.3).
COCO_ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)


class Head(nn.Module):
    """The way from the coarsest stage back to the finest, with an output at each level.

    num_anchors: anchors a cell. features: channels of the coarsest level's 1x1 convolutions, halved from level to level.
    small: whether levels have single convolutions. prior_probability: probability of an object before training.
    """

    num_anchors: int
    num_classes: int
    features: int
    small: bool
    prior_probability: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, stages: Sequence[Array]) -> list[Array]:
        """Maps stages, finest first, to one [B, h, w, n * (5 + K)] float32 for each."""
        conv = partial(ConvBlock, norm=self.norm, dtype=self.dtype)
        x = max_pool(stages[-1], 2, 1, 'SAME') if self.small else stages[-1]
        levels, features, trunk = [], self.features, ((3, 4), (1, 1))  # (kernel, factor on the features)
        for number in range(len(stages), 0, -1):
            stage = stages[number - 1]
            if levels:
                x = upsample(conv(features, 1, name=f'level{number}_lateral')(x), *stage.shape[1:3])
                x = jnp.concatenate([x, stage], axis=-1)
                trunk = ()
            if not self.small:
                trunk = ((1, 1), (3, 2), (1, 1), (3, 2), (1, 1))
            for i, (kernel, factor) in enumerate(trunk):
                x = conv(factor * features, kernel, name=f'level{number}_trunk{i + 1}')(x)
            y = conv(2 * features, 3, name=f'level{number}_conv')(x)
            output = network_ops.cell_output(self.num_anchors, self.num_classes, self.prior_probability, self.dtype)
            levels.append(output(name=f'level{number}_output')(y).astype(jnp.float32))
            features //= 2
        return levels[::-1]


class YOLOv3(nn.Module):
    """The network: normalised images to the outputs of all anchors.

    bind_norm: makes the head's normalisation: `make_norm`, bound but for its argument train.
    """

    num_classes: int
    num_anchors: Sequence[int]
    backbone: nn.Module
    head: dict[str, Any]
    bind_norm: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, list[tuple[int, int]]]:
        """Maps [B, H, W, 3] to outputs [B, A, 5 + K] and each level's (height, width)."""
        values = 5 + self.num_classes
        with jax.named_scope('backbone'):
            stages = self.backbone(x, train=train)
        with jax.named_scope('heads'):
            norm = self.bind_norm(train=train)
            head = Head(self.num_anchors[0], self.num_classes, **self.head, norm=norm, dtype=self.dtype, name='head')
            outputs = head(stages)
        flat = [x.reshape(x.shape[0], -1, values) for x in outputs]  # [B, h * w * n, 5 + K]
        return jnp.concatenate(flat, axis=1), [x.shape[1:3] for x in outputs]


def match(outputs: Array, gt: GroundTruth, *, anchors: Array, strides: Array, ignore_iou: float) -> tuple[Array, Array]:
    """Matches the anchors of one image to its objects.

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        ignore_iou: argument of `make`.

    Returns:
        matched and taken, see `matching.match_by_cell`.
    """
    predicted = jax.lax.stop_gradient(box_coding.decode_cells(outputs[:, :4], anchors, strides))
    return matching.match_by_cell(anchors, strides, predicted, gt, ignore_iou=ignore_iou)


def image_loss(
    outputs: Array,
    gt: GroundTruth,
    *,
    anchors: Array,
    strides: Array,
    area: float,
    ignore_iou: float,
    box_loss: str,
    box_loss_weight: float,
) -> dict[str, Array]:
    """Sums the losses over the anchors of one image.

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        area: area of the canvas, pixels.
        ignore_iou, box_loss, box_loss_weight: arguments of `make`.

    Returns:
        the sums 'box_loss', 'objectness_loss' and 'cls_loss', and the numbers of 'positives' and 'ignored' anchors.
    """
    matched, taken = match(outputs, gt, anchors=anchors, strides=strides, ignore_iou=ignore_iou)
    positive, ignored = matched >= 0, matched == matching.IGNORE
    _, target_boxes = matching.gather_targets(matched, anchors, gt, background=0)
    if box_loss == 'squared':
        targets = box_coding.encode_cells(target_boxes, anchors, strides)
        center_error = optax.sigmoid_binary_cross_entropy(outputs[:, :2], targets[:, :2]).sum(axis=1)
        box_error = center_error + 0.5 * ((outputs[:, 2:4] - targets[:, 2:]) ** 2).sum(axis=1)  # [A]
        box_error *= 2 - boxes.area(target_boxes) / area
    else:
        predicted = box_coding.decode_cells(outputs[:, :4], anchors, strides)
        box_error = losses.iou_loss(predicted, target_boxes, kind=box_loss)
    objectness_error = optax.sigmoid_binary_cross_entropy(outputs[:, 4], positive.astype(jnp.float32))
    classes = jnp.zeros(outputs[:, 5:].shape).at[taken, gt.labels].set(1.0, mode='drop')  # [A, K], united
    cls_error = optax.sigmoid_binary_cross_entropy(outputs[:, 5:], classes).sum(axis=1)
    return dict(
        box_loss=box_loss_weight * jnp.where(positive, box_error, 0).sum(),
        objectness_loss=jnp.where(ignored, 0, objectness_error).sum(),
        cls_loss=jnp.where(positive, cls_error, 0).sum(),
        positives=positive.sum(),
        ignored=ignored.sum(),
    )


def detect(
    outputs: Array,
    window: Array,
    *,
    anchors: Array,
    strides: Array,
    level_sizes: Sequence[int],
    pre_nms_topk: int,
    **limits: Any,
) -> Detections:
    """Detects the objects of one image.

    Args:
        outputs: [A, 5 + K].
        window: [4], where the image lies on its canvas.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        level_sizes: number of anchors of each level.
        pre_nms_topk: candidates a level.
        **limits: arguments of `postprocess`.
    """
    scores = jax.nn.sigmoid(outputs[:, 4:5]) * jax.nn.sigmoid(outputs[:, 5:])  # [A, K]
    select = partial(top_per_level, level_sizes=level_sizes, count=pre_nms_topk)
    decode = partial(network_ops.decode_candidates, outputs, anchors, strides)
    return postprocess(scores, window, select=select, decode=decode, **limits)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_stride: int = 32,
    small_head: bool = False,
    prior_probability: float = 0.5,
    head_features: int = 512,
    anchor_sizes: Sequence[Sequence[Sequence[float]]] = COCO_ANCHORS,
    ignore_iou: float = 0.7,
    box_loss: str = 'squared',
    box_loss_weight: float = 1.0,
    pre_nms_topk: int = 1000,
    score_threshold: float = 0.005,
    iou_threshold: float = 0.45,
    max_detections: int = 100,
    clip_before_nms: bool = True,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (255.0, 255.0, 255.0),
    pad_value: float = 0.0,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Detector:
    """Makes a YOLO v3.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`: its name is 'darknet53', 'tiny' (v3-tiny), or another. Its width and norm are
            also the head's.
        backbone_stride: stride of the coarsest level, pixels; each finer one has half of it.
        small_head: whether levels have single convolutions (v3-tiny).
        prior_probability: probability of an object at an anchor before training. Darknet's is 0.5, which its long warm-up of the
            learning rate unlearns; with Adam a small one is better, since the first gradients are remembered.
        head_features: channels of the 1x1 convolutions of the coarsest level, before `width`; 256 in yolov3-tiny.
        anchor_sizes: for each level, finest first, (width, height) of each of its anchors, pixels;
            scripts/make_anchors.py finds those of a data set. As many levels as are given are used, equally many
            anchors each.
        ignore_iou: IoU with an object above which a prediction is not pushed towards no object.
        box_loss: 'squared' (darknet's), or 'giou', 'diou' or 'ciou' (see `losses.iou_loss`).
        box_loss_weight: weight of the loss of the boxes.
        pre_nms_topk: candidates a level.
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        clip_before_nms: whether boxes are clipped before the NMS; darknet clips only what it keeps.
        mean, std: mean and deviation of the pixels, 0..255.
        pad_value: normalised value of the pixels outside of the image; darknet's gray is 0.5.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, outputs and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Detector. The metrics of its loss are 'box_loss', 'objectness_loss', 'cls_loss', and an image's 'positives' and
        'ignored' anchors.
    """
    if len({len(sizes) for sizes in anchor_sizes}) != 1:
        raise ValueError(f'anchor_sizes must have equally many sizes at each level: {anchor_sizes}')
    if any(len(size) != 2 for sizes in anchor_sizes for size in sizes):
        raise ValueError(f'anchor_sizes must be a (width, height) for each anchor of each level: {anchor_sizes}')
    if box_loss not in ('squared', *losses.IOU_LOSSES):
        raise ValueError(f"box_loss is {box_loss!r}: use 'squared' or one of {', '.join(losses.IOU_LOSSES)}")
    strides = [backbone_stride // 2**i for i in reversed(range(len(anchor_sizes)))]
    backbone = {**BACKBONE, **backbone}
    width = backbone['width']
    network = YOLOv3(
        num_classes=num_classes,
        num_anchors=tuple(map(len, anchor_sizes)),
        backbone=make_backbone(strides, jnp.dtype(dtype), axis_name, **backbone),
        head=dict(features=round(width * head_features), small=small_head, prior_probability=prior_probability),
        bind_norm=partial(
            make_norm,
            backbone['norm'],
            epsilon=backbone['norm_epsilon'],
            axis_name=axis_name,
            dtype=jnp.dtype(dtype),
        ),
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std, pad_value=pad_value)
    sum_losses = partial(image_loss, ignore_iou=ignore_iou, box_loss=box_loss, box_loss_weight=box_loss_weight)
    detect_image = partial(
        detect,
        pre_nms_topk=pre_nms_topk,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        clip_before_nms=clip_before_nms,
    )

    def make_anchors(inputs: Inputs, grids: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        """The arguments anchors and strides of the functions of one image."""
        anchors, strides = anchor_ops.cell_anchors(inputs.images.shape[1:3], grids, anchor_sizes)
        return dict(anchors=anchors, strides=strides)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del rng  # nothing is drawn
        (outputs, grids), model_state = run(params, model_state, batch.inputs, train=True)
        with jax.named_scope('loss'):
            height, width = batch.inputs.images.shape[1:3]
            of_image = partial(sum_losses, **make_anchors(batch.inputs, grids), area=height * width)
            metrics = jax.tree.map(jnp.mean, jax.vmap(of_image)(outputs, batch.gt))
        return metrics['box_loss'] + metrics['objectness_loss'] + metrics['cls_loss'], (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        (outputs, grids), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            level_sizes = [height * width * len(sizes) for (height, width), sizes in zip(grids, anchor_sizes)]
            of_image = partial(detect_image, **make_anchors(inputs, grids), level_sizes=level_sizes)
            return jax.vmap(of_image)(outputs, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        (outputs, grids), _ = run(params, model_state, batch.inputs, train=True)
        cells = make_anchors(batch.inputs, grids)
        matched, _ = jax.vmap(partial(match, **cells, ignore_iou=ignore_iou))(outputs, batch.gt)
        return {'anchors': Assignment(jnp.broadcast_to(cells['anchors'], (*matched.shape, 4)), matched)}

    return Detector(partial(network_ops.init, network), loss, predict, assign)
