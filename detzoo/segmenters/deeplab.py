"""DeepLabV3: *Rethinking Atrous Convolution for Semantic Image Segmentation* (arXiv 1706.05587); and torchvision's FCN.

    images [B, H, W, 3] -> normalise -> dilated backbone, C4 and C5, both of stride 8
      -> C5 -> head -> logits [B, H / 8, W / 8, K + 1] -> enlarged to the canvas
      -> C4 -> auxiliary head, a 3x3 convolution and the output, for training alone
    heads:   'aspp': one 1x1 convolution, three dilated 3x3 ones and the mean over the image side by side -> 1x1 -> 3x3 -> output
             'fcn': a 3x3 convolution -> output (torchvision's fcn_resnet50)
    loss:    objects -> labels of pixels; cross-entropy of both heads over all labelled pixels
    predict: softmax

Differences from the paper:
- The auxiliary head is torchvision's (it is PSPNet's, 1612.01105, section 3.3); the paper has none.
- The backbone's stride is 8 in training too; the paper trains with 16.
- C5 is dilated without the multi-grid of unit rates (1, 2, 4) in its blocks.
- Rates are those for stride 8 (12, 24, 36) by default: with stride 16 set half of them.
- Images are not cropped from enlarged ones; the data's recipe says how they are augmented.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones import make_backbone
from detzoo.backbones.conv import Conv, ConvNorm
from detzoo.backbones.norms import NORMS, make_norm
from detzoo.detectors import network as network_ops
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.segmenters import pixels
from detzoo.types import Array, Batch, Inputs, Segmenter

BACKBONE = network_ops.arguments_of(make_backbone) | dict(name='resnet50', dilation=4)
HEADS = ('aspp', 'fcn')


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (section 3.3): one map at several rates, and its mean, side by side.

    features: channels of each branch, and of the output. rates: dilations of the 3x3 convolutions. conv: constructor of a
    convolution with norm and ReLU. dropout: share of the outputs that is zeroed in training.
    """

    features: int
    rates: Sequence[int]
    conv: Any
    dropout: float

    @nn.compact
    def __call__(self, x: Array, keys: Array | None) -> Array:
        """Maps [B, h, w, C] to [B, h, w, features]."""
        branches = [self.conv(self.features, 1, name='branch1')(x)]
        for number, rate in enumerate(self.rates, 2):
            branches.append(self.conv(self.features, 3, dilation=rate, name=f'branch{number}')(x))
        mean = self.conv(self.features, 1, name='pooled')(x.mean(axis=(1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = self.conv(self.features, 1, name='project')(jnp.concatenate(branches, axis=-1))
        return pixels.drop(x, keys, self.dropout)


class Head(nn.Module):
    """A head without or with ASPP, a 3x3 convolution, and the output.

    outputs: channels of the output. features: channels of the convolution. rates: those of ASPP, or None for none. conv,
    dropout: see `ASPP`; without it, dropout comes before the output.
    """

    outputs: int
    features: int
    rates: Sequence[int] | None
    conv: Any
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None) -> Array:
        """Maps [B, h, w, C] to [B, h, w, outputs] float32."""
        if self.rates is not None:
            x = ASPP(self.features, self.rates, self.conv, self.dropout, name='aspp')(x, keys)
        x = self.conv(self.features, 3, name='conv')(x)
        if self.rates is None:
            x = pixels.drop(x, keys, self.dropout)
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # torch's
        return Conv(self.outputs, (1, 1), kernel_init=init, dtype=self.dtype, name='logits')(x).astype(jnp.float32)


class DeepLab(nn.Module):
    """The network: normalised images to logits of the canvas, and to those of the auxiliary head.

    backbone: module with one or two feature maps. make_head: constructor of `Head` from a name and `conv`. make_auxiliary:
    that of the auxiliary head on the first map, or None. bind_norm: `make_norm` bound to all but `train`.
    """

    backbone: nn.Module
    make_head: Any
    make_auxiliary: Any
    bind_norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, *, train: bool) -> tuple[Array, Array | None]:
        """Maps [B, H, W, 3] to two times [B, H, W, K + 1] float32; the second is for training, None in prediction."""
        canvas = x.shape[1:3]
        conv = partial(ConvNorm, norm=self.bind_norm(train=train), dtype=self.dtype)
        with jax.named_scope('backbone'):
            maps = self.backbone(x, train=train)
        with jax.named_scope('heads'):
            logits = pixels.enlarge(self.make_head(conv=conv, name='head')(maps[-1], keys), canvas)
            if self.make_auxiliary is None or not (train or self.is_initializing()):
                return logits, None
            auxiliary = self.make_auxiliary(conv=conv, name='auxiliary_head')(maps[0], keys)
            return logits, pixels.enlarge(auxiliary, canvas)


def make(
    *,
    num_classes: int,
    backbone: Mapping[str, Any] = BACKBONE,
    backbone_strides: Sequence[int] = (8, 8),
    head: str = 'aspp',
    features: int = 256,
    rates: Sequence[int] = (12, 24, 36),
    head_norm: str = 'batch_norm',
    dropout: float = 0.5,
    auxiliary_features: int = 256,
    auxiliary_dropout: float = 0.1,
    auxiliary_loss_weight: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> Segmenter:
    """Makes a DeepLabV3, or torchvision's FCN.

    Args:
        num_classes: K.
        backbone: arguments of `make_backbone`.
        backbone_strides: strides of the feature maps, pixels: the auxiliary head's, and the head's; or the head's alone, which
            needs auxiliary_loss_weight 0. Of several maps with one stride the last ones are taken: (8, 8) are C4 and C5 of a
            ResNet with dilation 4.
        head: 'aspp' (DeepLabV3) or 'fcn' (torchvision's fcn_resnet50, with features 512 and dropout 0.1).
        features: channels of the head.
        rates: dilations of the 3x3 convolutions of 'aspp'.
        head_norm: normalisation in both heads, a name of `norms.NORMS`.
        dropout, auxiliary_dropout: share of the values that is zeroed in training, in each head.
        auxiliary_features: channels of the auxiliary head.
        auxiliary_loss_weight: weight of the auxiliary head's loss; 0: there is none.
        mean, std: mean and deviation of the pixels, 0..255.
        dtype: data type in which the network computes, 'float32' or 'bfloat16'; parameters, logits and losses are float32.
        axis_name: the mapped axis of the devices, or None.

    Returns:
        a Segmenter. The metrics of its loss are 'cls_loss', 'auxiliary_loss' and 'pixel_accuracy'.
    """
    if head not in HEADS:
        raise ValueError(f'head is {head!r}: use one of {", ".join(map(repr, HEADS))}')
    if head_norm not in NORMS:
        raise ValueError(f'head_norm is {head_norm!r}: use one of {", ".join(map(repr, NORMS))}')
    if len(backbone_strides) != (2 if auxiliary_loss_weight else 1):
        raise ValueError(
            f'backbone_strides is {backbone_strides}: it must have one stride, or two if auxiliary_loss_weight is not 0'
        )
    make_head = partial(Head, num_classes + 1, dtype=jnp.dtype(dtype))
    network = DeepLab(
        backbone=make_backbone(backbone_strides, jnp.dtype(dtype), axis_name, **{**BACKBONE, **backbone}),
        make_head=partial(make_head, features, rates=tuple(rates) if head == 'aspp' else None, dropout=dropout),
        make_auxiliary=partial(make_head, auxiliary_features, rates=None, dropout=auxiliary_dropout)
        if auxiliary_loss_weight
        else None,
        bind_norm=partial(make_norm, head_norm, axis_name=axis_name, dtype=jnp.dtype(dtype)),
        dtype=jnp.dtype(dtype),
    )
    run = partial(network_ops.apply, network, mean=mean, std=std)

    def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        keys = pixels.image_keys(rng, batch)
        (logits, auxiliary), model_state = run(params, model_state, batch.inputs, train=True, keys=keys)
        with jax.named_scope('loss'):
            labels = pixels.labels_of(pixels.paint_batch(batch), batch, num_classes)
            metrics = dict(cls_loss=pixels.mean_cross_entropy(logits, labels, axis_name))
            if auxiliary is not None:
                auxiliary_loss = pixels.mean_cross_entropy(auxiliary, labels, axis_name)
                metrics['auxiliary_loss'] = auxiliary_loss_weight * auxiliary_loss
            total = sum(metrics.values())
        return total, (model_state, metrics | dict(pixel_accuracy=pixels.accuracy(logits, labels, axis_name)))

    def predict(params: Any, model_state: Any, inputs: Inputs) -> Array:
        (logits, _), _ = run(params, model_state, inputs, train=False)
        with jax.named_scope('post'):
            return jax.nn.softmax(logits)

    return Segmenter(partial(network_ops.init, network), loss, predict)
