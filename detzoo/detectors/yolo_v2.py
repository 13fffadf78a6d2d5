"""YOLO v2 and YOLO9000: *YOLO9000: Better, Faster, Stronger* (arXiv 1612.08242), as darknet's source has them.

    images [B, H, W, 3] -> Darknet-19 -> C4 (stride 16), C5 (stride 32)
      -> C5: two 3x3 convs; C4: 1x1 conv, reorg to stride 32; both together: 3x3 conv -> outputs [B, A, 5 + K]
         of each of n = 5 anchors a cell: tx, ty, tw, th, objectness, class logits
    loss:    each object trains the anchor of its cell that has the most similar shape: squared errors of box and
             objectness (towards the IoU reached), cross-entropy of the class; the other anchors' objectness goes to 0
    predict: sigmoid(objectness) * softmax(classes), boxes from sigmoid-bound centres -> top-k -> class-aware NMS

The small net, the backbone 'tiny' with `passthrough_features=None`, has neither the passthrough nor Darknet-19.

YOLO9000 (section 4) is this detector with a `tree` of classes, see `core.hierarchy`: the softmax goes over siblings, an object
trains the groups from the root down to its class, and a prediction is the node at which a descent ends; its score is the
objectness alone. Flat or not, the detector also learns from images of which only a label is known (`GroundTruth.boxed`): the
anchor that is most probably the label's object learns the class, and all others that there is no object.

Where paper and source differ, the source (github.com/pjreddie/darknet, src/region_layer.c) is followed: sizes are trained
as logarithms, a box counts 2 - w * h times (w, h: shares of the canvas), objectness 5 times where an object is, predictions
that overlap an object by more than 0.6 are not pushed to 0, and until 12,800 images have been seen all anchors' boxes
are drawn, by a hundredth, to the anchors. Sums over an image are averaged over images.

Differences from the paper and the source:
- All objects of an image train, darknet reads the first 30. Its order is random; here the last row wins an anchor.
- Objects that darknet does not know: of crowds see `matching.match_by_cell`.
- A box grows at most 62.5 times (`box_coding.MAX_LOG_SCALE`), so that exp stays finite.
- The output layer starts near 0 and may start from a `prior_probability` of objects; darknet's has He's initialisation.
- What lies outside of the image is black by default, darknet's letterbox is gray (`pad_value`).
- Batch norm adds 1e-6 to the variance (`norm_epsilon`); darknet adds 1e-5 to it on a GPU, and 1e-6 to its
  root on a CPU. The moving average forgets 0.1 a step (darknet on a GPU: 0.01).
- In an image with a label alone, the paper also trains the objectness of the anchor that learns the class; its source
  does not, and neither do we.
- Of several objects that take one anchor the last one teaches it its class; with a tree darknet also leaves what the
  others taught in groups that are off its path.
- `descent='paper'` goes down while the probability of a node is over the threshold; darknet's source stops earlier
  (`descent='darknet'`).
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
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool
from detzoo.core import anchors as anchor_ops
from detzoo.core import box_coding, boxes, hierarchy, matching
from detzoo.core.postprocess import Candidates, postprocess, top_per_level
from detzoo.detectors import network as network_ops
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='darknet19', norm_epsilon=1e-6)

# k-means of COCO's boxes, on a canvas of 416 (darknet's cfg/yolov2.cfg has them in cells of 32 pixels).
COCO_ANCHORS = ((18.33, 21.68), (59.98, 66.0), (106.83, 175.18), (252.25, 112.89), (312.66, 293.38))


def reorg(x: Array) -> Array:
    """Halves a feature map and multiplies its channels by 4, in darknet's order (section 2, fine-grained features).

    Darknet does not stack neighbouring cells: it reads the memory of [C, h, w] as [C / 4, 2 h, 2 w], and stacks that
    one's neighbours. Trained weights depend on it.

    Args:
        x: [B, h, w, C], h and w even, C a multiple of 4.

    Returns:
        [B, h / 2, w / 2, 4 C].
    """
    batch, height, width, channels = x.shape
    x = x.transpose(0, 3, 1, 2).reshape(batch, channels // 4, height, 2, width, 2)
    x = x.transpose(0, 3, 5, 1, 2, 4)  # [B, 2, 2, C / 4, h, w]
    return x.reshape(batch, 4 * channels, height // 2, width // 2).transpose(0, 2, 3, 1)


class Head(nn.Module):
    """Convolutions on the last stage, to which the passthrough brings the stage before; and the output.

    features: channels of the 3x3 convolutions, the last one behind the passthrough; none for YOLO9000. passthrough_features:
    channels of its 1x1 convolution, or None for the small net. prior_probability: probability of an object before training.
    """

    num_anchors: int
    num_classes: int
    features: Sequence[int]
    passthrough_features: int | None
    prior_probability: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, fine: Array, x: Array) -> Array:
        """Maps [B, 2h, 2w, C] and [B, h, w, C'] to [B, h, w, n * (5 + K)] float32."""
        conv = partial(ConvBlock, norm=self.norm, dtype=self.dtype)
        if self.features and self.passthrough_features is None:
            x = max_pool(x, 2, 1, 'SAME')
        for i, features in enumerate(self.features, start=1):
            if i == len(self.features) and self.passthrough_features is not None:
                fine = conv(self.passthrough_features, 1, name='passthrough')(fine)
                x = jnp.concatenate([reorg(fine), x], axis=-1)
            x = conv(features, 3, name=f'conv{i}')(x)
        output = network_ops.cell_output(self.num_anchors, self.num_classes, self.prior_probability, self.dtype)
        return output(name='output')(x).astype(jnp.float32)


class YOLOv2(nn.Module):
    """The network: normalised images to the outputs of all anchors. It also counts the images it was trained with.

    bind_norm: makes the head's normalisation: `make_norm`, bound but for its argument train. axis_name: the mapped axis
    of the devices, or None.
    """

    num_classes: int
    num_anchors: int
    backbone: nn.Module
    head: dict[str, Any]
    bind_norm: Callable[..., Any]
    warm_up_images: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, tuple[int, int], Array]:
        """Maps [B, H, W, 3] to outputs [B, A, 5 + K], the grid (height, width), and whether the warm-up lasts."""
        images_seen = self.variable('counters', 'images_seen', jnp.zeros, (), jnp.float32)
        if train:
            devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
            images_seen.value = jnp.minimum(images_seen.value + devices * x.shape[0], self.warm_up_images)
        warm_up = images_seen.value < self.warm_up_images  # as in darknet, this batch counts
        with jax.named_scope('backbone'):
            fine, coarse = self.backbone(x, train=train)
        with jax.named_scope('heads'):
            norm = self.bind_norm(train=train)
            head = Head(self.num_anchors, self.num_classes, **self.head, norm=norm, dtype=self.dtype, name='head')
            x = head(fine, coarse)
        return x.reshape(x.shape[0], -1, 5 + self.num_classes), x.shape[1:3], warm_up


def match(
    outputs: Array, gt: GroundTruth, *, anchors: Array, strides: Array, ignore_iou: float
) -> tuple[Array, Array, Array]:
    """Matches the anchors of one image to its objects.

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image, with boxes.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        ignore_iou: argument of `make`.

    Returns:
        matched: [A] int32, the row of each anchor's object, NEGATIVE or IGNORE.
        taken: [M] int32, the anchor that each object takes; A: none.
        predicted: [A, 4], the boxes that are predicted now, without gradient.
    """
    predicted = jax.lax.stop_gradient(box_coding.decode_cells(outputs[:, :4], anchors, strides))
    matched, taken = matching.match_by_cell(anchors, strides, predicted, gt, ignore_iou=ignore_iou)
    return matched, taken, predicted


def match_label(outputs: Array, gt: GroundTruth, *, class_error: Callable[[Array, Array], Array]) -> Array:
    """Matches the label of an image to one anchor: the one where objectness times P(label) is greatest (section 4).

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image; the label is that of its first row.
        class_error: -log P(label), from an anchor's class logits [K] and a label.

    Returns:
        [A] int32, 0 for that anchor and NEGATIVE for the others, as for all in an image without a label.
    """
    outputs = jax.lax.stop_gradient(outputs)
    error = jax.vmap(class_error, in_axes=(0, None))(outputs[:, 5:], gt.labels[0])
    best = (jax.nn.log_sigmoid(outputs[:, 4]) - error).argmax()
    return jnp.where((jnp.arange(len(outputs)) == best) & gt.valid[0], 0, matching.NEGATIVE).astype(jnp.int32)


def image_loss(
    outputs: Array,
    gt: GroundTruth,
    *,
    anchors: Array,
    strides: Array,
    area: float,
    warm_up: Array,
    class_error: Callable[[Array, Array], Array],
    ignore_iou: float,
    rescore: bool,
    object_scale: float,
    no_object_scale: float,
    class_scale: float,
    box_scale: float,
) -> dict[str, Array]:
    """Sums the losses over the anchors of one image.

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image, with boxes.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        area: area of the canvas, pixels.
        warm_up: [] bool, whether the boxes of all anchors are drawn to the anchors.
        class_error: see `match_label`.
        ignore_iou, rescore, object_scale, no_object_scale, class_scale, box_scale: arguments of `make`.

    Returns:
        the sums 'box_loss', 'objectness_loss' and 'cls_loss', and the numbers of 'positives' and 'ignored' anchors.
    """
    matched, taken, predicted = match(outputs, gt, anchors=anchors, strides=strides, ignore_iou=ignore_iou)
    positive, ignored = matched >= 0, matched == matching.IGNORE
    # The target of an anchor that is not positive is itself: the warm-up's.
    _, target_boxes = matching.gather_targets(matched, anchors, gt, background=0)

    reached = jnp.concatenate([jax.nn.sigmoid(outputs[:, :2]), outputs[:, 2:4]], axis=1)
    box_error = 0.5 * (reached - box_coding.encode_cells(target_boxes, anchors, strides)) ** 2  # [A, 4]
    box_weight = box_scale * (2 - boxes.area(target_boxes) / area)
    box_weight = jnp.where(positive, box_weight, jnp.where(warm_up, 0.01, 0.0))

    objectness = jax.nn.sigmoid(outputs[:, 4])
    target = jnp.where(positive, boxes.iou(predicted, target_boxes) if rescore else 1.0, 0.0)
    weight = jnp.where(positive, object_scale, jnp.where(ignored, 0.0, no_object_scale))

    # Of the objects' anchors alone: with the 9,418 classes of YOLO9000 those of all anchors would fill the memory.
    keeps = matched.at[taken].get(mode='fill', fill_value=matching.NEGATIVE) == jnp.arange(len(taken))  # [M]
    cls_error = jax.vmap(class_error)(outputs[jnp.minimum(taken, len(outputs) - 1), 5:], gt.labels)
    return dict(
        box_loss=(box_weight[:, None] * box_error).sum(),
        objectness_loss=(weight * 0.5 * (objectness - target) ** 2).sum(),
        cls_loss=class_scale * jnp.where(keeps, cls_error, 0).sum(),
        positives=positive.sum(),
        ignored=ignored.sum(),
    )


def label_loss(
    outputs: Array,
    gt: GroundTruth,
    *,
    class_error: Callable[[Array, Array], Array],
    no_object_scale: float,
    class_scale: float,
) -> dict[str, Array]:
    """Sums the losses over the anchors of one image of which only a label is known: what `image_loss` returns.

    Args:
        outputs: [A, 5 + K].
        gt: ground truth of the image, see `match_label`.
        class_error: see `match_label`.
        no_object_scale, class_scale: arguments of `make`.
    """
    positive = match_label(outputs, gt, class_error=class_error) >= 0
    objectness = jax.nn.sigmoid(outputs[:, 4])
    cls_error = class_error(outputs[positive.argmax(), 5:], gt.labels[0])
    return dict(
        box_loss=jnp.zeros_like(cls_error),
        objectness_loss=jnp.where(positive, 0, no_object_scale * 0.5 * objectness**2).sum(),
        cls_loss=class_scale * jnp.where(positive.any(), cls_error, 0),
        positives=positive.sum(),
        ignored=jnp.zeros_like(positive.sum()),
    )


def either(outputs: Array, gt: GroundTruth, *, of_boxed: Callable[..., Any], of_labelled: Callable[..., Any]) -> Any:
    """Chooses, for one image, what a function of its outputs and boxes returns, or of its outputs and its label alone."""
    boxed = of_boxed(outputs, gt)
    if gt.boxed is None:
        return boxed
    return jax.tree.map(partial(jnp.where, gt.boxed), boxed, of_labelled(outputs, gt))


def make_classes(
    num_classes: int, parents: Sequence[int] | None
) -> tuple[hierarchy.Tree | None, Callable[[Array, Array], Array]]:
    """Makes the tree of the classes, and the error of a class: -log P(label), from logits [K] and a label."""
    if parents is None:
        return None, optax.softmax_cross_entropy_with_integer_labels
    if len(parents) != num_classes:
        raise ValueError(f'tree has {len(parents)} nodes, but there are {num_classes} classes: each must be a node')
    tree = hierarchy.make_tree(parents)
    return tree, partial(hierarchy.path_cross_entropy, tree=tree)


def detect(
    outputs: Array,
    window: Array,
    *,
    anchors: Array,
    strides: Array,
    tree: hierarchy.Tree | None,
    descent: str | None,
    descent_threshold: float,
    pre_nms_topk: int,
    **limits: Any,
) -> Detections:
    """Detects the objects of one image.

    Args:
        outputs: [A, 5 + K].
        window: [4], where the image lies on its canvas.
        anchors, strides: [A, 4] and [A, 2], see `anchors.cell_anchors`.
        tree: the tree of the classes, or None.
        descent, descent_threshold, pre_nms_topk: arguments of `make`.
        **limits: arguments of `postprocess`.
    """
    objectness, logits = jax.nn.sigmoid(outputs[:, 4:5]), outputs[:, 5:]
    best = partial(top_per_level, level_sizes=[len(anchors)], count=pre_nms_topk)
    if tree is None:
        scores, select = objectness * jax.nn.softmax(logits), best  # [A, K]
    elif descent is None:
        scores, select = objectness * jnp.exp(jax.vmap(partial(hierarchy.log_probabilities, tree=tree))(logits)), best
    else:
        walk = partial(hierarchy.descend, tree=tree, threshold=descent_threshold, rule=descent)
        scores = objectness

        def select(scores: Array) -> Candidates:
            """The best anchors, each with the node of its descent."""
            candidates = best(scores)
            return candidates._replace(label=jax.vmap(walk)(logits[candidates.row]))

    decode = partial(network_ops.decode_candidates, outputs, anchors, strides)
    return postprocess(scores, window, select=select, decode=decode, **limits)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_stride: int = 32,
    prior_probability: float = 0.5,
    head_features: Sequence[int] | None = (1024, 1024, 1024),
    passthrough_features: int | None = 64,
    anchor_sizes: Sequence[Sequence[float]] = COCO_ANCHORS,
    ignore_iou: float = 0.6,
    rescore: bool = True,
    warm_up_images: int = 12800,
    object_scale: float = 5.0,
    no_object_scale: float = 1.0,
    class_scale: float = 1.0,
    box_scale: float = 1.0,
    tree: Sequence[int] | None = None,
    descent: str | None = 'paper',
    descent_threshold: float = 0.5,
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
    """Makes a YOLO v2, or with a tree a YOLO9000.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`: its name is 'darknet19', 'tiny' (v2-tiny), or another. Its width and norm are
            also the head's.
        backbone_stride: stride of the backbone's last feature map, pixels; the passthrough reads the one of half of it.
        prior_probability: probability of an object at an anchor before training. Darknet's is 0.5, which its long warm-up of the
            learning rate unlearns; with Adam a small one is better, since the first gradients are remembered.
        head_features: channels of the head's 3x3 convolutions, before `width`; (1024, 512) in yolov2-tiny, (1024, 1024) in
            its VOC variant; None for YOLO9000, whose output reads the backbone.
        passthrough_features: channels of the 1x1 convolution on the second last stage, before `width`; None for v2-tiny.
        anchor_sizes: (width, height) of each anchor, pixels; scripts/make_anchors.py finds those of a data set.
        ignore_iou: IoU with an object above which a prediction is not pushed towards no object.
        rescore: whether the objectness of an object is trained towards the IoU reached, or (v2-tiny) towards 1.
        warm_up_images: number of images at the start of training with which the boxes of all anchors are drawn to the anchors.
        object_scale, no_object_scale, class_scale, box_scale: weights of the losses.
        tree: [K], the index of each class's parent, -1 for a root: parents stand before their children, siblings side by side.
            None: classes exclude one another.
        descent: how a box gets the one class of the tree that it is reported as, one of `hierarchy.DESCENTS`; None: it is
            reported as every class, each with its probability.
        descent_threshold: probability down to which a descent goes.
        pre_nms_topk: candidates an image.
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
    if any(len(size) != 2 for size in anchor_sizes):
        raise ValueError(f'anchor_sizes must be a (width, height) for each anchor: {anchor_sizes}')
    if head_features is None and passthrough_features is not None:
        raise ValueError('passthrough_features needs a convolution in head_features behind it: set it to None')
    if descent is not None and descent not in hierarchy.DESCENTS:
        raise ValueError(f'descent must be one of {hierarchy.DESCENTS} or None, not {descent!r}')
    tree, class_error = make_classes(num_classes, tree)
    backbone = {**BACKBONE, **backbone}
    width = backbone['width']
    network = YOLOv2(
        num_classes=num_classes,
        num_anchors=len(anchor_sizes),
        backbone=make_backbone((backbone_stride // 2, backbone_stride), jnp.dtype(dtype), axis_name, **backbone),
        head=dict(
            features=tuple(round(width * features) for features in head_features or ()),
            # a multiple of 4, as reorg needs it
            passthrough_features=passthrough_features and 4 * round(width * passthrough_features / 4),
            prior_probability=prior_probability,
        ),
        bind_norm=partial(
            make_norm, backbone['norm'], epsilon=backbone['norm_epsilon'], axis_name=axis_name, dtype=jnp.dtype(dtype)
        ),
        warm_up_images=warm_up_images,
        axis_name=axis_name,
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std, pad_value=pad_value)
    errors = dict(class_error=class_error, no_object_scale=no_object_scale, class_scale=class_scale)
    of_boxed = partial(
        image_loss,
        ignore_iou=ignore_iou,
        rescore=rescore,
        object_scale=object_scale,
        box_scale=box_scale,
        **errors,
    )
    detect_image = partial(
        detect,
        tree=tree,
        descent=descent,
        descent_threshold=descent_threshold,
        pre_nms_topk=pre_nms_topk,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        clip_before_nms=clip_before_nms,
    )

    def make_anchors(inputs: Inputs, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        """The arguments anchors and strides of the functions of one image."""
        anchors, strides = anchor_ops.cell_anchors(inputs.images.shape[1:3], [grid], [anchor_sizes])
        return dict(anchors=anchors, strides=strides)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        del rng  # nothing is drawn
        (outputs, grid, warm_up), model_state = run(params, model_state, batch.inputs, train=True)
        with jax.named_scope('loss'):
            height, width = batch.inputs.images.shape[1:3]
            boxed = partial(of_boxed, **make_anchors(batch.inputs, grid), area=height * width, warm_up=warm_up)
            of_image = partial(either, of_boxed=boxed, of_labelled=partial(label_loss, **errors))
            metrics = jax.tree.map(jnp.mean, jax.vmap(of_image)(outputs, batch.gt))
        return metrics['box_loss'] + metrics['objectness_loss'] + metrics['cls_loss'], (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        (outputs, grid, _), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            return jax.vmap(partial(detect_image, **make_anchors(inputs, grid)))(outputs, inputs.window)

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        (outputs, grid, _), _ = run(params, model_state, batch.inputs, train=True)
        cells = make_anchors(batch.inputs, grid)
        of_image = partial(
            either,
            of_boxed=lambda outputs, gt: match(outputs, gt, **cells, ignore_iou=ignore_iou)[0],
            of_labelled=partial(match_label, class_error=class_error),
        )
        matched = jax.vmap(of_image)(outputs, batch.gt)
        return {'anchors': Assignment(jnp.broadcast_to(cells['anchors'], (*matched.shape, 4)), matched)}

    return Detector(partial(network_ops.init, network), loss, predict, assign, takes_labels=True)
