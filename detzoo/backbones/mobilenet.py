"""MobileNetV2 (arXiv 1801.04381) and MobileNetV3-Large (1905.02244): images [B, H, W, 3] to features of chosen layers.

    stem 3x3/2 -> inverted residuals block1, block2, ... (17, or 15), of stride 32 from 'block14', or 'block13' -> last: 1x1

Both are tables of one kind of block, see `Residual`. The outputs are those that their authors detect on (V2: section 6.2; V3:
section 6.3): C4 is the expansion before the last stride, and finer ones are expansions likewise; C5 is the last layer before
pooling. Stride 32 has a second output, the first block of that stride, for strides (32, 32). Padding is torchvision's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.norms import make_norm


class Residual(NamedTuple):
    """An inverted residual: a row of table 1 of V3's paper."""

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    activation: Callable[[jax.Array], jax.Array]
    stride: int


# V2's table 2: factor of the expansion, features, number of blocks, stride of the first block.
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
V3_LARGE = (
    Residual(3, 16, 16, False, nn.relu, 1),
    Residual(3, 64, 24, False, nn.relu, 2),
    Residual(3, 72, 24, False, nn.relu, 1),
    Residual(5, 72, 40, True, nn.relu, 2),
    Residual(5, 120, 40, True, nn.relu, 1),
    Residual(5, 120, 40, True, nn.relu, 1),
    Residual(3, 240, 80, False, nn.hard_swish, 2),
    Residual(3, 200, 80, False, nn.hard_swish, 1),
    Residual(3, 184, 80, False, nn.hard_swish, 1),
    Residual(3, 184, 80, False, nn.hard_swish, 1),
    Residual(3, 480, 112, True, nn.hard_swish, 1),
    Residual(3, 672, 112, True, nn.hard_swish, 1),
    Residual(5, 672, 160, True, nn.hard_swish, 2),
    Residual(5, 960, 160, True, nn.hard_swish, 1),
    Residual(5, 960, 160, True, nn.hard_swish, 1),
)
# (stride, name of the output), finest first, see `MobileNet`.
V2_OUTPUTS = (
    (2, 'block2/expand'),
    (4, 'block4/expand'),
    (8, 'block7/expand'),
    (16, 'block14/expand'),
    (32, 'block14'),
    (32, 'last'),
)
V3_OUTPUTS = (
    (2, 'block2/expand'),
    (4, 'block4/expand'),
    (8, 'block7/expand'),
    (16, 'block13/expand'),
    (32, 'block13'),
    (32, 'last'),
)
TAIL = 12  # index of the first row of V3 that a reduced tail halves; its expansion is C4


def divisible(channels: float) -> int:
    """Rounds to a multiple of 8, but not down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection, and a shortcut where shapes allow.

    expands_only: whether the block ends after its expansion.
    """

    row: Residual
    norm: Callable[..., nn.Module]
    dtype: Any
    expands_only: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps [B, h, w, C] to the expansion [B, h, w, expanded] and [B, h / stride, w / stride, features] or None."""
        row = self.row
        conv = partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        expanded = x
        if row.expanded != x.shape[-1]:
            expanded = conv(row.expanded, 1, activation=row.activation, name='expand')(x)
        if self.expands_only:
            return expanded, None
        y = conv(row.expanded, row.kernel, row.stride, depthwise=True, activation=row.activation, name='depthwise')(
            expanded
        )
        if row.squeeze:
            y *= SqueezeExcitation(divisible(row.expanded // 4), self.dtype, name='squeeze')(y)
        y = conv(row.features, 1, activation=None, name='project')(y)
        return expanded, x + y if x.shape == y.shape else y


class SqueezeExcitation(nn.Module):
    """Computes a weight for each channel from the channels' means over the image (arXiv 1709.01507)."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to factors [B, 1, 1, C] in 0..1."""
        mean = x.mean(axis=(1, 2), keepdims=True)
        hidden = ConvNorm(self.features, 1, dtype=self.dtype, name='reduce')(mean)
        return ConvNorm(x.shape[-1], 1, activation=nn.hard_sigmoid, dtype=self.dtype, name='expand')(hidden)


class MobileNet(nn.Module):
    """The layers of a MobileNet, up to the last output.

    stem, last: channels of the first and the last convolution; rows: the blocks between.
    activation: activation after the first and the last convolution.
    outputs: outputs to return: 'block3' is the third block's, 'block3/expand' its expansion's, 'last' the last convolution's.
    norm: normalisation after each convolution, a name of `norms.NORMS`; norm_epsilon: number added to variances.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    stem: int
    rows: Sequence[Residual]
    last: int
    activation: Callable[[jax.Array], jax.Array]
    outputs: Sequence[str]
    norm: str = 'batch_norm'
    norm_epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to the outputs, each [B, H / stride, W / stride, C]."""
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        conv = partial(ConvNorm, norm=norm, activation=self.activation, dtype=self.dtype)
        found = {}
        x = conv(self.stem, 3, 2, name='stem')(x.astype(self.dtype))
        for number, row in enumerate(self.rows, 1):
            name = f'block{number}'
            ends = set(self.outputs) <= {*found, f'{name}/expand'}
            found[f'{name}/expand'], x = InvertedResidual(row, norm, self.dtype, ends, name=name)(x)
            found[name] = x
            if set(self.outputs) <= set(found):
                break
        else:
            found['last'] = conv(self.last, 1, name='last')(x)
        return tuple(found[name] for name in self.outputs)


def outputs_of(strides: Sequence[int], outputs: Sequence[tuple[int, str]]) -> list[str]:
    """Chooses outputs with the given strides, finest first; of several with one stride, the last ones."""
    names = []
    for stride in sorted(set(strides)):
        of_stride = [name for its, name in outputs if its == stride]
        names += of_stride[len(of_stride) - list(strides).count(stride) :]
    return names


def mobilenet_v2(*, strides: Sequence[int] = (16, 32), width: float = 1.0, **kwargs: Any) -> MobileNet:
    """Makes a MobileNetV2.

    Args:
        strides: strides of the outputs, pixels, finest first, see V2_OUTPUTS.
        width: factor on all channels, which stay multiples of 8; the last layer is never narrower than at width 1.
        **kwargs: fields of `MobileNet`.
    """
    stem = channels = divisible(32 * width)
    rows = []
    for factor, features, count, stride in V2_STAGES:
        for index in range(count):
            expanded, channels = factor * channels, divisible(features * width)
            rows.append(Residual(3, expanded, channels, False, nn.relu6, stride if index == 0 else 1))
    return MobileNet(stem, rows, divisible(1280 * max(1, width)), nn.relu6, outputs_of(strides, V2_OUTPUTS), **kwargs)


def mobilenet_v3_large(
    *, strides: Sequence[int] = (16, 32), width: float = 1.0, reduced_tail: bool = True, **kwargs: Any
) -> MobileNet:
    """Makes a MobileNetV3-Large.

    Args:
        strides: strides of the outputs, pixels, finest first, see V3_OUTPUTS.
        width: factor on all channels, which stay multiples of 8.
        reduced_tail: whether the channels from C4 on are halved, as in the paper's detectors but not its classifiers.
        **kwargs: fields of `MobileNet`.
    """
    divisor = 2 if reduced_tail else 1
    rows = [
        row._replace(
            expanded=divisible(row.expanded // (divisor if index > TAIL else 1) * width),
            features=divisible(row.features // (divisor if index >= TAIL else 1) * width),
        )
        for index, row in enumerate(V3_LARGE)
    ]
    outputs = outputs_of(strides, V3_OUTPUTS)
    return MobileNet(divisible(16 * width), rows, 6 * rows[-1].features, nn.hard_swish, outputs, **kwargs)
