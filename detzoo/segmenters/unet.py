"""U-Net: *U-Net: Convolutional Networks for Biomedical Image Segmentation* (arXiv 1505.04597).

    images [B, H, W, 3] -> normalise -> contracting path, feature maps of strides 1, 2, 4, 8 and 16
      -> expanding path: from the last map on, a 2x2 up-convolution, the map of twice the size beside it, two 3x3 convolutions
      -> 1x1 convolution: logits [B, H, W, K + 1]
    loss:    objects -> labels of pixels, background between objects that touch -> cross-entropy, weighted:
             the class's weight + 10 exp(-(d1 + d2)^2 / (2 * 5^2)), d1 and d2 the distances to the two nearest objects
    predict: softmax

Connected components of its classes are instances (`evaluation.semantic.instances_of`): the line of background between objects, and
its weight, are there to keep them apart.

Differences from the paper:
- Convolutions keep the size, and logits cover the canvas, padded to a multiple of the largest stride; the paper's have no padding,
  and see the image mirrored at its borders.
- The weight of a border is that of background pixels only; the paper's formula gives one to pixels in objects too.
- Class weights are arguments, the same for all images; the paper computes them to balance the classes.
- The weighted sum is divided by the number of labelled pixels.
- Images are not deformed elastically.
- The contracting path may be any backbone, and have norms (`backbone`); the expanding path has as many channels as the maps
  beside it, and the same norm. If the finest map has a stride above 1, the logits are enlarged bilinearly.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import Conv, ConvNorm, ConvTranspose
from detzoo.backbones.norms import make_norm
from detzoo.core import semantic
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.segmenters import pixels
from detzoo.types import Array, Batch, Inputs, Segmenter

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='unet', norm=None)


class UNet(nn.Module):
    """The network: normalised images to logits of the canvas.

    outputs: K + 1. strides: those of the feature maps, finest first. bind_norm: `make_norm` bound to all but `train`. dropout:
    share of the last map that is zeroed in training.
    """

    outputs: int
    backbone: nn.Module
    strides: Sequence[int]
    bind_norm: Any
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, *, train: bool) -> Array:
        """Maps [B, H, W, 3] to [B, H, W, K + 1] float32."""
        height, width = x.shape[1:3]
        conv = partial(ConvNorm, kernel=3, norm=self.bind_norm(train=train), dtype=self.dtype)
        x = pixels.pad_to_multiple(x, self.strides[-1])
        canvas = x.shape[1:3]
        with jax.named_scope('backbone'):
            *maps, x = self.backbone(x, train=train)
        with jax.named_scope('neck'):
            x = pixels.drop(x, keys, self.dropout)
            for number, beside in reversed(list(enumerate(maps, 1))):
                features = beside.shape[-1]
                x = nn.relu(ConvTranspose(features, 2, dtype=self.dtype, name=f'up{number}')(x))
                x = jnp.concatenate([beside, x], axis=-1)
                for index in (1, 2):
                    x = conv(features, name=f'conv{number}_{index}')(x)
        with jax.named_scope('heads'):
            # Drawn as all others are: from much smaller weights few features learn hardly anything.
            x = Conv(self.outputs, (1, 1), kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name='logits')(x)
            return pixels.enlarge(x.astype(jnp.float32), canvas)[:, :height, :width]


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_strides: Sequence[int] = (1, 2, 4, 8, 16),
    dropout: float = 0.5,
    separate_objects: bool = True,
    class_weights: Sequence[float] = (),
    border_weight: float = 10.0,
    border_sigma: float = 5.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Segmenter:
    """Makes a U-Net.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`: the contracting path.
        backbone_strides: strides of its feature maps, pixels, finest first, each twice the one before.
        dropout: share of the last map that is zeroed in training.
        separate_objects: whether a line of background is put between objects that touch, see `semantic.separate`.
        class_weights: the weight of each class's pixels (the paper's w_c), K + 1 numbers, background last, or two: one for all
            classes, and background's; empty: all 1.
        border_weight: weight of a pixel of background between two objects that touch it both, on top of its class's (the
            paper's w_0); 0: none.
        border_sigma: deviation of that weight over distance, pixels of the canvas.
        mean, std: mean and deviation of the pixels, 0..255.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Segmenter. The metrics of its loss are 'cls_loss' and 'pixel_accuracy'.
    """
    if len(class_weights) not in (0, 2, num_classes + 1):
        raise ValueError(
            f'class_weights is {class_weights}: it must have {num_classes + 1} numbers, one a class and one for background, or '
            'two, one for all classes and one for background, or none'
        )
    if len(class_weights) == 2:
        class_weights = (class_weights[0],) * num_classes + (class_weights[1],)
    strides, backbone = tuple(backbone_strides), {**BACKBONE, **backbone}
    pixels.check_doubling(strides)
    network = UNet(
        outputs=num_classes + 1,
        backbone=make_backbone(strides, jnp.dtype(dtype), axis_name, **backbone),
        strides=strides,
        bind_norm=partial(
            make_norm,
            backbone['norm'],
            epsilon=backbone['norm_epsilon'],
            axis_name=axis_name,
            dtype=jnp.dtype(dtype),
        ),
        dropout=dropout,
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std)

    def targets(batch: Batch) -> tuple[Array, Array]:
        """Paints labels and weights of the pixels, [B, H, W] each."""
        rows = pixels.paint_batch(batch)
        if separate_objects:
            rows = jax.vmap(semantic.separate)(rows, jax.vmap(semantic.painting_order)(batch.gt))
        labels = pixels.labels_of(rows, batch, num_classes)
        weights = jnp.ones(rows.shape, jnp.float32)
        if len(class_weights):
            weights = jnp.asarray(class_weights, jnp.float32)[jnp.maximum(labels, 0)]
        if border_weight:
            weights += jax.vmap(partial(semantic.border_weights, height=border_weight, sigma=border_sigma))(rows)
        return labels, weights

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        logits, model_state = run(params, model_state, batch.inputs, train=True, keys=pixels.image_keys(rng, batch))
        with jax.named_scope('loss'):
            labels, weights = targets(batch)
            cls_loss = pixels.mean_cross_entropy(logits, labels, axis_name, weights)
            metrics = dict(cls_loss=cls_loss, pixel_accuracy=pixels.accuracy(logits, labels, axis_name))
        return cls_loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Array:
        logits, _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            return jax.nn.softmax(logits)

    return Segmenter(partial(network_ops.init, network), loss, predict)
