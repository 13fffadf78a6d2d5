"""YOLO v1: *You Only Look Once: Unified, Real-Time Object Detection* (arXiv 1506.02640), as darknet's source has it.

    images [B, H, W, 3] -> convolutions -> features of an S x S grid (7 x 7 of 448 x 448)
      -> one fully connected layer over the whole grid -> for each cell K class scores, and for each of its P = 2
         predictors a confidence and a box (x, y in the cell; square roots of width and height)
    loss:    all squared errors. A cell that holds an object's centre trains its class scores, and of its predictors the
             one whose box overlaps the object most (or, if none does, comes nearest): that one's box, 5 times, and its
             confidence towards the IoU reached. All other confidences go to 0, at half the weight
    predict: confidence * class scores -> class-aware NMS

The fully connected layer fixes the canvas: a network works at the size it was made for.

Where paper and source differ, the source (github.com/pjreddie/darknet, src/detection_layer.c, cfg/yolov1.cfg) is
followed: convolutions have batch norm, and before the one fully connected layer there is a locally connected one (the
paper: two fully connected layers). Sums over an image are averaged over images.

Differences from the paper and the source:
- A cell that holds several objects' centres trains the last row; darknet shuffles the objects and takes the first.
- cfg/yolov1.cfg has 3 predictors a cell; the default is the paper's 2, as in yolov1-tiny.cfg.
- Of crowds darknet does not know: cells at least half inside one are not pushed towards no object.
- Scores are confidence times class score, each clipped to 0..1, since nothing else bounds them.
- The fully connected layer starts as one small map for all cells (`connected_init`), which the convolutions before it can
  learn together; darknet's has He's initialisation.
- What lies outside of the image is black by default (`pad_value`). Darknet stretches the image over the canvas.
- Batch norm adds 1e-6 to the variance (`norm_epsilon`); darknet adds 1e-5 to it on a GPU, and 1e-6 to its
  root on a CPU. The moving average forgets 0.1 a step (darknet on a GPU: 0.01).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.backbones import make_backbone
from detzoo.backbones.darknet import ConvBlock
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool
from detzoo.core import anchors as anchor_ops
from detzoo.core import boxes, matching
from detzoo.core.postprocess import postprocess, top_per_level
from detzoo.detectors import network as network_ops
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='extraction', norm_epsilon=1e-6)


def connected_init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32, *, parts: Sequence[int]) -> Array:
    """Draws a fully connected layer that starts as a 1x1 convolution: each cell sees itself, all through one small map.

    Args:
        key: key of the random numbers.
        shape: (S * features, S * values).
        dtype: data type of the weights.
        parts: values a cell of each part of the outputs; the parts follow each other, each [S, part] flattened.

    Returns:
        weights of `shape`.
    """
    cells = shape[1] // sum(parts)
    shared = 0.01 * jax.random.normal(key, (shape[0] // cells, sum(parts)), dtype)
    maps = jnp.split(shared, np.cumsum(parts)[:-1], axis=1)
    return jnp.concatenate([jnp.kron(jnp.eye(cells, dtype=dtype), x) for x in maps], axis=1)


class Head(nn.Module):
    """Convolutions, a locally connected layer in the large net, and the fully connected one.

    parts: numbers of class scores, confidences and box values of a cell. features: channels of the convolutions.
    local_features: channels of the locally connected layer with dropout behind it, or None for the small net, which pools
    instead of striding. dropout: share of that layer's outputs that is zeroed.
    """

    parts: Sequence[int]
    features: Sequence[int]
    local_features: int | None
    dropout: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None) -> tuple[Array, tuple[int, int]]:
        """Maps [B, h, w, C] to [B, S * sum(parts)] float32 and the grid; keys [B] are those of dropout, None for none."""
        conv = partial(ConvBlock, kernel=3, norm=self.norm, dtype=self.dtype)
        large = self.local_features is not None
        x = x if large else max_pool(x, 2, 2, 'SAME')
        for i, features in enumerate(self.features):
            x = conv(features, stride=2 if large and i == 1 else 1, name=f'conv{i + 1}')(x)
        if large:
            local = nn.ConvLocal(
                self.local_features,
                (3, 3),
                padding='SAME',
                dtype=self.dtype,
                name='local',
                kernel_init=nn.initializers.he_normal(batch_axis=(0, 1)),
            )  # each cell has weights of its own
            x = nn.leaky_relu(local(x), 0.1)
            if keys is not None:
                kept = jax.vmap(partial(jax.random.bernoulli, p=1 - self.dropout, shape=x.shape[1:]))(keys)
                x = jnp.where(kept, x / (1 - self.dropout), 0)
        grid = x.shape[1:3]
        connected = nn.Dense(
            grid[0] * grid[1] * sum(self.parts),
            kernel_init=partial(connected_init, parts=self.parts),
            dtype=self.dtype,
            name='connected',
        )
        return connected(x.reshape(x.shape[0], -1)).astype(jnp.float32), grid


class YOLOv1(nn.Module):
    """The network: normalised images to class scores, confidences and boxes of all cells.

    bind_norm: makes the head's normalisation: `make_norm`, bound but for its argument train.
    """

    num_classes: int
    boxes_per_cell: int
    backbone: nn.Module
    head: dict[str, Any]
    bind_norm: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool, keys: Array | None = None
    ) -> tuple[Array, Array, Array, tuple[int, int]]:
        """Maps [B, H, W, 3] to cls_scores [B, S, K], confidences [B, S, P], outputs [B, S, P, 4], (height, width)."""
        with jax.named_scope('backbone'):
            (x,) = self.backbone(x, train=train)
        with jax.named_scope('heads'):
            norm = self.bind_norm(train=train)
            parts = self.num_classes, self.boxes_per_cell, 4 * self.boxes_per_cell
            x, grid = Head(parts, **self.head, norm=norm, dtype=self.dtype, name='head')(x, keys)
        cells = grid[0] * grid[1]
        cls_scores, confidences, outputs = jnp.split(
            x, [cells * self.num_classes, cells * (self.num_classes + self.boxes_per_cell)], axis=1
        )
        batch = x.shape[0]
        return (
            cls_scores.reshape(batch, cells, self.num_classes),
            confidences.reshape(batch, cells, self.boxes_per_cell),
            outputs.reshape(batch, cells, self.boxes_per_cell, 4),
            grid,
        )


def make_cells(canvas: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The rectangles of the cells: [S, 4] xyxy."""
    height, width = canvas
    cells, _ = anchor_ops.cell_anchors(canvas, [grid], [[(width / grid[1], height / grid[0])]])
    return cells


def decode(outputs: Array, cells: Array, canvas: tuple[int, int]) -> Array:
    """Turns outputs [S, P, 4] (x, y in the cell; roots of the shares of the canvas) into boxes [S, P, 4] xyxy."""
    cells = cells[:, None]
    center = cells[..., :2] + outputs[..., :2] * (cells[..., 2:] - cells[..., :2])
    size = outputs[..., 2:] ** 2 * np.float32(canvas[::-1])
    return boxes.cxcywh_to_xyxy(jnp.concatenate([center, size], axis=-1))


class Matches(NamedTuple):
    """What the predictors of an image are trained towards.

    matched: [S, P] int32, the row of each predictor's object, NEGATIVE or IGNORE.
    objects: [S] int32, the row of each cell's object, NEGATIVE where the cell holds none.
    predicted: [S, P, 4], the boxes that are predicted now, without gradient.
    """

    matched: Array
    objects: Array
    predicted: Array


def match(outputs: Array, gt: GroundTruth, *, cells: Array, canvas: tuple[int, int]) -> Matches:
    """Gives each object its cell, and the predictor there whose box overlaps it most or, if none does, comes nearest.

    Args:
        outputs: [S, P, 4].
        gt: ground truth of the image.
        cells: [S, 4], rectangles of the cells.
        canvas: height and width, pixels.
    """
    candidate = gt.valid & ~gt.crowd
    center = boxes.xyxy_to_cxcywh(gt.boxes)[:, None, :2]
    holds = ((center >= cells[:, :2]) & (center < cells[:, 2:])).all(axis=-1)  # [M, S]
    objects = matching.last_winner(holds.argmax(axis=1), candidate & holds.any(axis=1), len(cells))  # [S]

    predicted = jax.lax.stop_gradient(decode(outputs, cells, canvas))
    target = matching.gather_targets(objects, cells, gt, background=0)[1][:, None]  # [S, 1, 4]
    iou = boxes.iou(predicted, target)  # [S, P]
    difference = boxes.xyxy_to_cxcywh(predicted) - boxes.xyxy_to_cxcywh(target)  # [S, P, 4]
    distance = ((difference / np.tile(np.float32(canvas[::-1]), 2)) ** 2).sum(axis=-1)
    best = jnp.where((iou > 0).any(axis=1), iou.argmax(axis=1), distance.argmin(axis=1))
    responsible = best[:, None] == jnp.arange(outputs.shape[1])
    others = jnp.where(matching.inside_crowd(cells, gt), matching.IGNORE, matching.NEGATIVE)[:, None]
    matched = jnp.where(responsible & (objects >= 0)[:, None], objects[:, None], others)
    return Matches(matched, objects, predicted)


def image_loss(
    cls_scores: Array,
    confidences: Array,
    outputs: Array,
    gt: GroundTruth,
    *,
    cells: Array,
    canvas: tuple[int, int],
    rescore: bool,
    object_scale: float,
    no_object_scale: float,
    class_scale: float,
    box_scale: float,
) -> dict[str, Array]:
    """Sums the losses over the cells of one image.

    Args:
        cls_scores: [S, K].
        confidences: [S, P].
        outputs: [S, P, 4].
        gt: ground truth of the image.
        cells: [S, 4], rectangles of the cells.
        canvas: height and width, pixels.
        rescore, object_scale, no_object_scale, class_scale, box_scale: arguments of `make`.

    Returns:
        the sums 'box_loss', 'confidence_loss' and 'cls_loss', and the numbers of 'positives' and 'ignored' predictors.
    """
    matched, objects, predicted = match(outputs, gt, cells=cells, canvas=canvas)
    holds, positive, ignored = objects >= 0, matched >= 0, matched == matching.IGNORE  # [S], [S, P], [S, P]
    labels, target_boxes = matching.gather_targets(objects, cells, gt, background=0)
    target = boxes.xyxy_to_cxcywh(target_boxes)
    place = (target[:, :2] - cells[:, :2]) / (cells[:, 2:] - cells[:, :2])
    root = jnp.sqrt(target[:, 2:] / np.float32(canvas[::-1]))
    box_error = 0.5 * (outputs - jnp.concatenate([place, root], axis=1)[:, None]) ** 2  # [S, P, 4]

    reached = boxes.iou(predicted, target_boxes[:, None]) if rescore else 1.0
    confidence_error = 0.5 * (confidences - jnp.where(positive, reached, 0.0)) ** 2
    weight = jnp.where(positive, object_scale, jnp.where(ignored, 0.0, no_object_scale))
    cls_error = 0.5 * (cls_scores - jax.nn.one_hot(labels, cls_scores.shape[1])) ** 2
    return dict(
        box_loss=box_scale * jnp.where(positive[..., None], box_error, 0).sum(),
        confidence_loss=(weight * confidence_error).sum(),
        cls_loss=class_scale * jnp.where(holds[:, None], cls_error, 0).sum(),
        positives=positive.sum(),
        ignored=ignored.sum(),
    )


def detect(
    cls_scores: Array,
    confidences: Array,
    outputs: Array,
    window: Array,
    *,
    cells: Array,
    canvas: tuple[int, int],
    **limits: Any,
) -> Detections:
    """Detects the objects of one image. All pairs of predictor and class are candidates.

    Args:
        cls_scores: [S, K].
        confidences: [S, P].
        outputs: [S, P, 4].
        window: [4], where the image lies on its canvas.
        cells: [S, 4], rectangles of the cells.
        canvas: height and width, pixels.
        **limits: arguments of `postprocess`.
    """
    scores = jnp.clip(confidences[..., None], 0, 1) * jnp.clip(cls_scores[:, None], 0, 1)  # [S, P, K]
    scores = scores.reshape(-1, scores.shape[-1])
    predicted = decode(outputs, cells, canvas).reshape(-1, 4)
    select = partial(top_per_level, level_sizes=[len(scores)], count=scores.size)
    return postprocess(scores, window, select=select, decode=lambda candidates: predicted[candidates.row], **limits)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_stride: int = 32,
    head_features: Sequence[int] = (1024, 1024, 1024, 1024),
    local_features: int | None = 256,
    dropout: float = 0.5,
    boxes_per_cell: int = 2,
    rescore: bool = True,
    object_scale: float = 1.0,
    no_object_scale: float = 0.5,
    class_scale: float = 1.0,
    box_scale: float = 5.0,
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
    """Makes a YOLO v1.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`: its name is 'extraction', 'tiny' (v1-tiny), or another. Its width and norm are
            also the head's.
        backbone_stride: stride of the backbone's last feature map, pixels; the head halves it once more, so that 32 makes the
            paper's grid of canvas / 64.
        head_features: channels of the head's 3x3 convolutions, before `width`; (1024, 256) in yolov1-tiny.
        local_features: channels of the locally connected layer, before `width`; None for v1-tiny, which has neither it nor
            dropout, and halves by pooling before the head instead of by its second convolution.
        dropout: share of the locally connected layer's outputs that is zeroed in training.
        boxes_per_cell: P.
        rescore: whether an object's confidence is trained towards the IoU reached, or towards 1.
        object_scale, no_object_scale, class_scale, box_scale: weights of the losses (the paper's lambdas are
            no_object_scale and box_scale).
        score_threshold: score that a candidate must exceed.
        iou_threshold: IoU above which the NMS drops a box of the same class.
        max_detections: D.
        clip_before_nms: whether boxes are clipped before the NMS; darknet clips only what it keeps.
        mean, std: mean and deviation of the pixels, 0..255.
        pad_value: normalised value of the pixels outside of the image; darknet's gray is 0.5.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, outputs and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Detector. The metrics of its loss are 'box_loss', 'confidence_loss', 'cls_loss', and an image's 'positives' and
        'ignored' predictors. Its parameters are those of one canvas.
    """
    backbone = {**BACKBONE, **backbone}
    width = backbone['width']
    network = YOLOv1(
        num_classes=num_classes,
        boxes_per_cell=boxes_per_cell,
        backbone=make_backbone((backbone_stride,), jnp.dtype(dtype), axis_name, **backbone),
        head=dict(
            features=tuple(round(width * features) for features in head_features),
            local_features=local_features and round(width * local_features),
            dropout=dropout,
        ),
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
    sum_losses = partial(
        image_loss,
        rescore=rescore,
        object_scale=object_scale,
        no_object_scale=no_object_scale,
        class_scale=class_scale,
        box_scale=box_scale,
    )
    detect_image = partial(
        detect,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        clip_before_nms=clip_before_nms,
    )

    def run_in_training(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Any, Any]:
        """Runs the network with dropout. Its draw for an image depends on the image's id, not on its place."""
        keys = jax.vmap(partial(jax.random.fold_in, rng))(batch.image_id)
        return run(params, model_state, batch.inputs, train=True, keys=keys)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        (*outputs, grid), model_state = run_in_training(params, model_state, batch, rng)
        with jax.named_scope('loss'):
            canvas = batch.inputs.images.shape[1:3]
            of_image = partial(sum_losses, cells=make_cells(canvas, grid), canvas=canvas)
            metrics = jax.tree.map(jnp.mean, jax.vmap(of_image)(*outputs, batch.gt))
        return metrics['box_loss'] + metrics['confidence_loss'] + metrics['cls_loss'], (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        (*outputs, grid), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            canvas = inputs.images.shape[1:3]
            of_image = partial(detect_image, cells=make_cells(canvas, grid), canvas=canvas)
            return jax.vmap(of_image)(*outputs, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        (_, _, outputs, grid), _ = run_in_training(params, model_state, batch, rng)
        canvas = batch.inputs.images.shape[1:3]
        cells = make_cells(canvas, grid)
        matched = jax.vmap(partial(match, cells=cells, canvas=canvas))(outputs, batch.gt).matched  # [B, S, P]
        rectangles = jnp.broadcast_to(cells[:, None], (*matched.shape, 4)).reshape(len(matched), -1, 4)
        return {'cells': Assignment(rectangles, matched.reshape(len(matched), -1).astype(jnp.int32))}

    return Detector(partial(network_ops.init, network), loss, predict, assign)
