"""MobileNetV3-Large (Searching for MobileNetV3, arXiv 1905.02244): images [B, H, W, 3] to features of stride 16 and 32.

    stem 3x3/2 -> 12 inverted residuals -> the 13th: 1x1 expansion (out) -> 3x3/2, ... -> 2 more -> 1x1 (out)

What goes out is what its authors detect on (section 6.3): C4, the expansion before the last stride, and C5, the last
layer before pooling. Padding is torchvision's.
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
    """An inverted residual: a row of the paper's table 1."""

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    activation: Callable[[jax.Array], jax.Array]
    stride: int


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
TAIL = 12  # the index of the first row that a reduced tail halves, and whose expansion is C4


def divisible(channels: float) -> int:
    """Rounds to a multiple of 8, but not down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection, and a shortcut where shapes allow."""

    row: Residual
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, h, w, C] to the expansion [B, h, w, expanded] and [B, h / stride, w / stride, features]."""
        row = self.row
        conv = partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        expanded = x
        if row.expanded != x.shape[-1]:
            expanded = conv(row.expanded, 1, activation=row.activation, name='expand')(x)
        y = conv(row.expanded, row.kernel, row.stride, depthwise=True, activation=row.activation, name='depthwise')(expanded)
        if row.squeeze:
            y *= SqueezeExcitation(divisible(row.expanded // 4), self.dtype, name='squeeze')(y)
        y = conv(row.features, 1, activation=None, name='project')(y)
        return expanded, x + y if x.shape == y.shape else y


class SqueezeExcitation(nn.Module):
    """Weighs channels by what their means over the image say (arXiv 1709.01507)."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to factors [B, 1, 1, C] in 0..1."""
        mean = x.mean(axis=(1, 2), keepdims=True)
        hidden = ConvNorm(self.features, 1, dtype=self.dtype, name='reduce')(mean)
        return ConvNorm(x.shape[-1], 1, activation=nn.hard_sigmoid, dtype=self.dtype, name='expand')(hidden)


class MobileNetV3Large(nn.Module):
    """The layers of MobileNetV3-Large up to its pooling.

    width: factor on all channels, which stay multiples of 8.
    reduced_tail: whether there are half the channels from C4 on, as in the paper's detectors, not its classifiers.
    norm: behind each convolution, a name of `norms.NORMS`; norm_epsilon: added to variances.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: of the computation.
    """

    width: float = 1.0
    reduced_tail: bool = True
    norm: str = 'batch_norm'
    norm_epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to C4 and C5, each [B, H / stride, W / stride, C] with stride 16 and 32."""
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        conv = partial(ConvNorm, norm=norm, activation=nn.hard_swish, dtype=self.dtype)
        x = conv(divisible(16 * self.width), 3, 2, name='stem')(x.astype(self.dtype))
        for index, row in enumerate(V3_LARGE):
            divisor = 2 if self.reduced_tail else 1
            row = row._replace(
                expanded=divisible(row.expanded // (divisor if index > TAIL else 1) * self.width),
                features=divisible(row.features // (divisor if index >= TAIL else 1) * self.width),
            )
            expanded, x = InvertedResidual(row, norm, self.dtype, name=f'block{index + 1}')(x)
            if index == TAIL:
                c4 = expanded
        return c4, conv(6 * x.shape[-1], 1, name='last')(x)
