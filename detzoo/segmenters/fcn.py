"""FCN: *Fully Convolutional Networks for Semantic Segmentation* (arXiv 1411.4038).

    images [B, H, W, 3] -> normalise -> VGG-16, feature maps of strides 8, 16 and 32
      -> on each map a 1x1 convolution: scores of the classes, [B, H / stride, W / stride, K + 1]
      -> scores of stride 32, enlarged twice by a transposed convolution, + those of stride 16, enlarged twice, + those of 8
      -> enlarged to the canvas, bilinearly
    loss:    objects -> labels of pixels; cross-entropy over all labelled pixels
    predict: softmax

`backbone_strides` chooses between FCN-32s (32,), FCN-16s (16, 32) and FCN-8s (8, 16, 32).

Differences from the paper:
- The loss is the mean over the labelled pixels of a batch, not their sum; learning rates have the usual size.
- All three strides are trained at once, not one after the other, each from the one before it.
- Convolutions keep the size; the paper pads the image by 100 pixels and crops what comes out. Canvases are padded to multiples of
  the largest stride.
- The maps of strides 8 and 16 are what the last convolution of that stride gives; the paper's are these after pooling, with twice
  the stride, of the stage before.
- fc6 and fc7 are SSD's: 1024 channels, fc6 with a dilated 3x3 kernel. Dropout comes after fc7 alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import Conv
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.segmenters import pixels
from detzoo.types import Array, Batch, Inputs, Segmenter

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='vgg16', norm=None)


def bilinear_kernel(stride: int) -> np.ndarray:
    """Computes the kernel with which a transposed convolution interpolates linearly: [2 * stride, 2 * stride] float32."""
    tent = 1 - abs(np.arange(2 * stride) - (stride - 0.5)) / stride
    return np.outer(tent, tent).astype(np.float32)


def enlarge_by_kernels(x: Array, kernels: Array) -> Array:
    """Enlarges each channel by itself, by a transposed convolution whose kernel is two strides wide.

    Each result is the sum of four cells times four places of the kernel, so that no convolution is needed. Outside of x are zeros.

    Args:
        x: [B, h, w, C].
        kernels: [2 * stride, 2 * stride, C], an even stride.

    Returns:
        [B, stride * h, stride * w, C].
    """
    stride = len(kernels) // 2
    batch, height, width, channels = x.shape
    total = 0
    for i in (0, 1):
        for j in (0, 1):
            cells = jnp.pad(x, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))[:, :, None, :, None]
            place = kernels[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            total += cells * place[:, None]  # [B, h + 1, stride, w + 1, stride, C]
    whole = total.reshape(batch, (height + 1) * stride, (width + 1) * stride, channels)
    edge = stride // 2
    return whole[:, edge : edge + height * stride, edge : edge + width * stride]


class FCN(nn.Module):
    """The network: normalised images to logits of the canvas.

    outputs: K + 1. strides: those of the feature maps, finest first. learn_upsampling: whether the transposed convolutions
    between maps are trained. dropout: share of the last map that is zeroed in training.
    """

    outputs: int
    backbone: nn.Module
    strides: Sequence[int]
    learn_upsampling: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, *, train: bool) -> Array:
        """Maps [B, H, W, 3] to [B, H, W, K + 1] float32."""
        height, width = x.shape[1:3]
        with jax.named_scope('backbone'):
            maps = list(self.backbone(pixels.pad_to_multiple(x, self.strides[-1]), train=train))
        with jax.named_scope('heads'):
            maps[-1] = pixels.drop(maps[-1], keys, self.dropout)
            zeros = nn.initializers.zeros_init()
            scores = [
                Conv(self.outputs, (1, 1), kernel_init=zeros, dtype=self.dtype, name=f'score{number}')(x)
                for number, x in enumerate(maps, 1)
            ]
            x = scores.pop().astype(jnp.float32)
            for number in range(len(scores), 0, -1):
                factor = self.strides[number] // self.strides[number - 1]
                kernels = jnp.broadcast_to(bilinear_kernel(factor)[..., None], (2 * factor, 2 * factor, self.outputs))
                if self.learn_upsampling:
                    kernels = self.param(f'upsampling{number}', lambda key, kernels=kernels: kernels)
                x = enlarge_by_kernels(x, kernels) + scores[number - 1].astype(jnp.float32)
            canvas = x.shape[1] * self.strides[0], x.shape[2] * self.strides[0]
            return pixels.enlarge(x, canvas)[:, :height, :width]


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_strides: Sequence[int] = (8, 16, 32),
    learn_upsampling: bool = True,
    dropout: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Segmenter:
    """Makes an FCN.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`.
        backbone_strides: strides of the feature maps that are scored, pixels, finest first, each twice the one before.
        learn_upsampling: whether the transposed convolutions between maps are trained, as in the paper (section 4.3), or keep
            the bilinear kernels that they start with, as in its code. That to the canvas is always bilinear.
        dropout: share of the last map that is zeroed in training.
        mean, std: mean and deviation of the pixels, 0..255.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Segmenter. The metrics of its loss are 'cls_loss' and 'pixel_accuracy'.
    """
    strides = tuple(backbone_strides)
    pixels.check_doubling(strides)
    network = FCN(
        outputs=num_classes + 1,
        backbone=make_backbone(strides, jnp.dtype(dtype), axis_name, **{**BACKBONE, **backbone}),
        strides=strides,
        learn_upsampling=learn_upsampling,
        dropout=dropout,
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        logits, model_state = run(params, model_state, batch.inputs, train=True, keys=pixels.image_keys(rng, batch))
        with jax.named_scope('loss'):
            labels = pixels.labels_of(pixels.paint_batch(batch), batch, num_classes)
            cls_loss = pixels.mean_cross_entropy(logits, labels, axis_name)
            metrics = dict(cls_loss=cls_loss, pixel_accuracy=pixels.accuracy(logits, labels, axis_name))
        return cls_loss, (model_state, metrics)

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Array:
        logits, _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            return jax.nn.softmax(logits)

    return Segmenter(partial(network_ops.init, network), loss, predict)
