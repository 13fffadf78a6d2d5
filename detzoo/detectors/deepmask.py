"""DeepMask: *Learning to Segment Object Candidates* (arXiv 1506.06204). It proposes masks of objects, whatever their class.

    images [B, H, W, 3] -> normalise -> resized to several scales -> backbone -> one feature map a scale
      -> 1x1 convolution, ReLU -> zeros around, by half a window
      -> windows of n x n cells at each place of each map, A in all: an n x n convolution -> codes [B, A, rank]
      -> score head: 2 fully connected layers -> score_logits [B, A]
      -> mask head, for some windows alone: 1 fully connected layer -> mask_logits [B, R, m, m] in the frames of the windows
    loss:    windows x objects -> `match_windows` -> sample -> binary cross-entropy of the scores; of the masks of positives
    predict: the windows with the best scores -> masks, cut at a probability of 0.2 -> the boxes around them

A window is positive if an object lies in its middle and has the canonical size. A code comes from a linear layer of low rank: in
training the windows that were sampled are cut out of the maps, in prediction the layer runs over the maps as a convolution. Both
give the same codes.

SharpMask (`sharpmask`) shares all but the masks: `make_parts` makes what they share, `bind` makes a detector of it.

Differences from the paper:
- Training sees whole images at all scales of prediction, and samples among their windows. The paper, and the authors' code,
  cut single windows out of images, with a jitter of place and scale, so that each batch has as many objects as backgrounds.
- The score head reads the code too, as in the authors' later code, not the features after a pooling layer of its own.
- A mask is trained at its own resolution. In the paper it is enlarged to the size of the window before the loss.
- The sides of a scaled canvas are multiples of the backbone's stride.
- Convolutions pad with zeros. So a window's features depend on what surrounds it; in the paper, in training, nothing does.
- Any backbone with the stride serves; the paper's is VGG-A.
- Windows centred outside of the image are neither trained nor proposed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import Conv
from detzoo.core import boxes as box_ops
from detzoo.core import losses, matching
from detzoo.core.masks import mask_targets, resample_masks, tight_boxes
from detzoo.core.nms import nms
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD, arguments_of, with_arguments_of
from detzoo.detectors.windows import (
    Placed,
    Windows,
    centred_inside,
    cut_windows,
    make_windows,
    pad_cells,
    scaled_canvas,
)
from detzoo.types import Array, Assignment, Batch, Detections, Detector, GroundTruth, Inputs

he_normal = nn.initializers.he_normal()
# A mask is pasted where it is at least a half, with zeros around its box. So its threshold moves to a half, and it becomes so steep
# there that the zeros take nothing from its border. Of 2 to 32, 8 gave the masks closest to those that are enlarged and then cut.
CONTRAST = 8.0


def drop(x: Array, keys: Array | None, share: float) -> Array:
    """Zeroes a share of the values of [B, ...], by a key [B] for each image; keys None: none."""
    if keys is None or not share:
        return x
    kept = jax.vmap(partial(jax.random.bernoulli, p=1 - share, shape=x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - share), 0)


class WindowNetwork(nn.Module):
    """The backbone, the layer that makes codes of windows, and the score head.

    make_backbone: constructor of a module that maps images to feature maps, the trunk's last. rules: see `Windows`. features, rank,
    score_features: channels of the 1x1 convolution, of codes, of the score head. dropout: share of the score head's inputs that is
    zeroed in training.
    """

    make_backbone: Callable[[], nn.Module]
    rules: Windows
    features: int
    rank: int
    score_features: int
    dropout: float
    dtype: Any

    def setup(self) -> None:
        """Makes the layers."""
        conv, dense = partial(Conv, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)
        self.backbone = self.make_backbone()
        self.reduce = conv(self.features, (1, 1), kernel_init=he_normal)
        self.code = conv(self.rank, 2 * (self.rules.cells,), padding='VALID')
        self.score_hidden = dense(self.score_features, kernel_init=he_normal)
        self.score = dense(1, kernel_init=nn.initializers.normal(0.01))

    def maps(self, x: Array, *, train: bool) -> tuple[list[Array], list[Sequence[Array]]]:
        """Maps images [B, H, W, 3] to the reduced maps, padded, and the backbone's maps, for each scale."""
        stages = []
        for scale in self.rules.scales:
            size = scaled_canvas(x.shape[1:3], scale, self.rules.stride)
            with jax.named_scope('backbone'):
                scaled = jax.image.resize(x, (len(x), *size, x.shape[-1]), 'linear')
                stages.append(self.backbone(scaled, train=train))
        with jax.named_scope('heads'):
            return [pad_cells(nn.relu(self.reduce(maps[-1])), self.rules.cells // 2) for maps in stages], stages

    def codes(self, reduced: Sequence[Array]) -> Array:
        """Makes the codes of all windows, [B, A, rank]."""
        with jax.named_scope('heads'):
            return jnp.concatenate([self.code(x).reshape(len(x), -1, self.rank) for x in reduced], axis=1)

    def codes_of(self, reduced: Sequence[Array], placed: Placed, chosen: Array) -> Array:
        """Makes the codes of the chosen windows [B, R] alone: [B, R, rank]."""
        with jax.named_scope('heads'):
            x = cut_windows(reduced, placed, chosen, cells=self.rules.cells)
            return self.code(x.reshape(-1, *x.shape[2:])).reshape(*chosen.shape, self.rank)

    def scores(self, codes: Array, keys: Array | None) -> Array:
        """Maps codes [B, A, rank] to score_logits [B, A] float32; keys: [B], those of dropout, None for none."""
        with jax.named_scope('heads'):
            first, second = (None, None) if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
            x = nn.relu(self.score_hidden(drop(codes, first, self.dropout)))
            return self.score(drop(x, second, self.dropout))[..., 0].astype(jnp.float32)


class DeepMask(nn.Module):
    """The network: codes and scores of windows, and the mask head."""

    windows: Callable[[], WindowNetwork]
    mask_size: int

    def setup(self) -> None:
        """Gives the parameters of the network of windows the names that they have without the mask head."""
        self.base = self.windows()
        nn.share_scope(self, self.base)
        self.mask = nn.Dense(self.mask_size**2, dtype=self.base.dtype)

    def masks(self, codes: Array, stages: Sequence[Sequence[Array]], placed: Placed, chosen: Array) -> Array:
        """Maps the codes [B, R, rank] of windows to mask_logits [B, R, m, m] float32."""
        del stages, placed, chosen
        with jax.named_scope('heads'):
            return self.mask(codes).reshape(*codes.shape[:2], self.mask_size, self.mask_size).astype(jnp.float32)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts, to draw their parameters."""
        codes = self.base.codes(self.base.maps(x, train=train)[0])
        return self.base.scores(codes, None), self.mask(codes[:, :1])


def make_proposals(
    *,
    mask_threshold: float = 0.2,
    pre_nms_topk: int = 1000,
    iou_threshold: float = 1.0,
    max_detections: int = 1000,
) -> tuple[Callable[..., Detections], int]:
    """Makes what turns masks of windows into proposals (section 4).

    Args:
        mask_threshold: probability from which on a cell belongs to the object.
        pre_nms_topk: windows of an image whose masks are found, those with the best scores.
        iou_threshold: IoU above which the NMS drops a box; 1: none, as in the paper.
        max_detections: D.

    Returns:
        a function of one image's windows [T, 4], their score_logits [T], -inf for none, mask_logits [T, m, m], and window [4], and
        pre_nms_topk.
    """

    def choose(boxes: Array, score_logits: Array, mask_logits: Array, window: Array) -> Detections:
        probabilities = jax.nn.sigmoid(mask_logits)
        around, found = tight_boxes(probabilities, boxes, threshold=mask_threshold)
        around = box_ops.clip(around, window)
        valid = found & (box_ops.area(around) > 0)
        limits = dict(iou_threshold=iou_threshold, max_detections=max_detections)
        row, kept = nms(around, score_logits, jnp.zeros(len(boxes), jnp.int32), valid, **limits)
        masks = resample_masks(probabilities[row], boxes[row], around[row], size=mask_logits.shape[-1])
        masks = jnp.clip(0.5 + CONTRAST * (masks - mask_threshold), 0, 1)
        return Detections(
            boxes=jnp.where(kept[:, None], around[row], 0),
            scores=jnp.where(kept, jax.nn.sigmoid(score_logits[row]), 0),
            labels=jnp.zeros(max_detections, jnp.int32),
            valid=kept,
            masks=jnp.where(kept[:, None, None], masks, 0),
        )

    return choose, pre_nms_topk


class Parts(NamedTuple):
    """What DeepMask and SharpMask share.

    network: constructor of the network of windows. windows: see `Windows`. choose, topk: see `make_proposals`. apply:
    `detzoo.detectors.network.apply`, bound to the normalisation of images. score_loss_weight, axis_name: see `make_parts`.
    """

    network: Callable[[], WindowNetwork]
    windows: Windows
    choose: Callable[..., Detections]
    topk: int
    apply: Callable[..., tuple[Any, Any]]
    score_loss_weight: float
    axis_name: str | None


def make_parts(
    finer_strides: Sequence[int] = (),
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = arguments_of(make_backbone) | dict(name='resnet50', norm='frozen_batch_norm'),
    backbone_stride: int = 16,
    windows: Mapping[str, Any] = arguments_of(make_windows),
    features: int = 512,
    rank: int = 512,
    score_features: int = 1024,
    dropout: float = 0.5,
    score_loss_weight: float = 1 / 32,
    proposals: Mapping[str, Any] = arguments_of(make_proposals),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    bgr: bool = False,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Parts:
    """Makes the parts that DeepMask and SharpMask share.

    Args:
        finer_strides: strides of the maps that the backbone makes besides the trunk's, pixels, finest first.
        num_classes: K; all classes are one here.
        backbone: arguments of `make_backbone`.
        backbone_stride: stride of the trunk's feature map, pixels.
        windows: arguments of `make_windows`.
        features: channels of the 1x1 convolution behind the backbone.
        rank: length of a window's code.
        score_features: outputs of the first layer of the score head.
        dropout: share of the inputs of the score head's layers that is zeroed in training.
        score_loss_weight: weight of the loss of the scores, the paper's lambda.
        proposals: arguments of `make_proposals`.
        mean, std: mean and deviation of the pixels, 0..255, in the order of the network's channels.
        bgr: whether the network reads BGR.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.
    """
    del num_classes
    dtype = jnp.dtype(dtype)
    make_stages = partial(make_backbone, (*finer_strides, backbone_stride), dtype, axis_name, **backbone)
    make_stages()  # raises its errors here, not where parameters are drawn
    rules = make_windows(backbone_stride, **windows)
    layers = dict(features=features, rank=rank, score_features=score_features, dropout=dropout, dtype=dtype)
    return Parts(
        partial(WindowNetwork, make_stages, rules, **layers),
        rules,
        *make_proposals(**proposals),
        partial(network_ops.apply, mean=mean, std=std, bgr=bgr),
        score_loss_weight,
        axis_name,
    )


class Trained(NamedTuple):
    """The windows that a batch is trained on, and the outputs for them.

    placed: all windows; matched: [B, A], see `Windows.match`.
    boxes: [B, R, 4], of_sampled: [B, R], the sampled windows and their rows of matched, positives first.
    score_logits: [B, R]. mask_logits: [B, P, m, m] of the first P, which include all positives.
    """

    placed: Placed
    matched: Array
    boxes: Array
    of_sampled: Array
    score_logits: Array
    mask_logits: Array


def bind(parts: Parts, network: nn.Module, *, extends: str = '') -> Detector:
    """Makes a detector of a network that has the network of windows as `base`, and finds masks by `masks`.

    Args:
        parts: what `make_parts` made.
        network: a DeepMask, or a network with the same functions.
        extends: see `Detector`.
    """
    rules = parts.windows

    def train_on(net: DeepMask, x: Array, batch: Batch, rng: Array, *, train: bool) -> Trained:
        """Samples windows, and runs the network on them. The draw of an image depends on its id, not on its place in the batch."""
        placed = rules.place(x.shape[1:3])
        with jax.named_scope('loss'):
            keys = jax.vmap(lambda image: jax.random.split(jax.random.fold_in(rng, image)))(batch.image_id)  # [B, 2]
            match = jax.vmap(partial(rules.match, jnp.asarray(placed.boxes)))
            matched = match(batch.gt, batch.inputs.window, keys[:, 0])
            order = (matched != matching.IGNORE) * (1 + (matched >= 0))
            _, chosen = jax.lax.top_k(order, min(rules.samples, order.shape[1]))  # [B, R]
            of_sampled = jnp.take_along_axis(matched, chosen, axis=1)
        reduced, stages = net.base.maps(x, train=train)
        codes, few = net.base.codes_of(reduced, placed, chosen), slice(max(1, rules.max_positives))
        mask_logits = net.masks(codes[:, few], stages, placed, chosen[:, few])
        score_logits = net.base.scores(codes, keys[:, 1] if train else None)
        return Trained(placed, matched, jnp.asarray(placed.boxes)[chosen], of_sampled, score_logits, mask_logits)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        if batch.gt.masks is None:
            raise ValueError('the ground truth has no masks: set data.mask_size, to 112 for example')
        trained, model_state = parts.apply(
            network, params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng
        )
        with jax.named_scope('loss'):
            metrics = sum_losses(trained, batch.gt, parts.axis_name)
            loss = metrics['mask_loss'] + parts.score_loss_weight * metrics['score_loss']
        return loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Detections:
        def find(net: DeepMask, x: Array, *, train: bool) -> Detections:
            placed = rules.place(x.shape[1:3])
            boxes = jnp.asarray(placed.boxes)
            reduced, stages = net.base.maps(x, train=train)
            codes = net.base.codes(reduced)
            score_logits = net.base.scores(codes, None)
            with jax.named_scope('post'):
                usable = jax.vmap(centred_inside, in_axes=(None, 0))(boxes, inputs.window)
                best, chosen = jax.lax.top_k(jnp.where(usable, score_logits, -jnp.inf), min(parts.topk, len(boxes)))
            codes = jnp.take_along_axis(codes, chosen[..., None], axis=1)
            mask_logits = net.masks(codes, stages, placed, chosen)
            with jax.named_scope('post'):
                return jax.vmap(parts.choose)(boxes[chosen], best, mask_logits, inputs.window)

        return parts.apply(network, params, model_state, inputs, train=False, method=find)[0]

    def assign(params: Any, model_state: Any, batch: Batch, rng: Array) -> dict[str, Assignment]:
        trained, _ = parts.apply(
            network, params, model_state, batch.inputs, train=True, method=train_on, batch=batch, rng=rng
        )
        boxes = jnp.broadcast_to(jnp.asarray(trained.placed.boxes), (*trained.matched.shape, 4))
        return {'windows': Assignment(boxes, trained.matched)}

    init = partial(network_ops.init, network)
    return Detector(init, loss, predict, assign, finds_masks=True, class_agnostic=True, extends=extends)


def sum_losses(trained: Trained, gt: GroundTruth, axis_name: str | None) -> dict[str, Array]:
    """Averages the losses of masks over positives and those of scores over samples, of all devices (section 3.2).

    Args:
        trained: the samples of a batch.
        gt: its ground truth.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        'mask_loss', 'score_loss'; 'positives' and 'negatives', means over images; 'missed_objects', the objects of an image that no
        window is sampled for.
    """
    few = trained.mask_logits.shape[1]
    positive, sampled = trained.of_sampled >= 0, trained.of_sampled != matching.IGNORE
    targets_of = jax.vmap(partial(mask_targets, size=trained.mask_logits.shape[-1]))
    targets = targets_of(gt.masks, gt.boxes, trained.of_sampled[:, :few], trained.boxes[:, :few])
    # log(1 + exp(-y f)) for y = +-1 is the binary cross-entropy.
    masks = optax.sigmoid_binary_cross_entropy(trained.mask_logits, targets).mean(axis=(2, 3))
    scores = optax.sigmoid_binary_cross_entropy(trained.score_logits, positive)
    found = (trained.of_sampled[:, :, None] == jnp.arange(gt.valid.shape[1])).any(axis=1)  # [B, M]
    return dict(
        mask_loss=jnp.where(positive[:, :few], masks, 0).sum() / losses.normalizer(positive.sum(), axis_name),
        score_loss=jnp.where(sampled, scores, 0).sum() / losses.normalizer(sampled.sum(), axis_name),
        positives=positive.sum(axis=1).mean(),
        negatives=(sampled & ~positive).sum(axis=1).mean(),
        missed_objects=(gt.valid & ~gt.crowd & ~found).sum(axis=1).mean(),
    )


@with_arguments_of(make_parts)
def make(*, mask_size: int = 56, **arguments: Any) -> Detector:
    """Makes a DeepMask.

    Args:
        mask_size: m, cells of a mask along a side of its window.
        **arguments: those of `make_parts`.

    Returns:
        A Detector of class-agnostic masks, to be trained on ground truth with masks. The metrics of its loss are those of
        `sum_losses`. The stage of its assignment is 'windows'.
    """
    parts = make_parts(**arguments)
    return bind(parts, DeepMask(parts.network, mask_size))
