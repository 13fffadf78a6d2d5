"""ResNet (Deep Residual Learning, arXiv 1512.03385): images [B, H, W, 3] to C2..C5 of stride 4..32.

    stem 7x7/2, max pooling 3x3/2 -> 4 stages of residual blocks; the first block of each later stage halves the size

`dilation` keeps the last stages at a finer stride, with the same parameters: instead of striding, their 3x3 convolutions skip
cells (torchvision's `replace_stride_with_dilation`).

Padding is torchvision's (explicit, symmetric). By default bottleneck blocks stride in their 3x3 convolution ("v1.5"), as in
torchvision, and not in their first 1x1 convolution, as in the paper and in the weights that its authors published.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import Conv
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def conv(features: int, kernel: int, stride: int, dtype: Any, name: str, dilation: int = 1) -> nn.Module:
    """Makes a convolution without bias that keeps ceil(size / stride) cells."""
    return Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=dilation * (kernel // 2),
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, both dilated alike, and a shortcut."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any
    dilation: int = 1
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h / stride, w / stride, features]."""
        y = conv(self.features, 3, self.stride, self.dtype, 'conv1', self.dilation)(x)
        y = nn.relu(self.norm(name='norm1')(y))
        y = conv(self.features, 3, 1, self.dtype, 'conv2', self.dilation)(y)
        y = self.norm(name='norm2')(y)
        return nn.relu(y + _shortcut(self, x, y))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output has four times the inner channels.

    stride_in_1x1: whether the first 1x1 convolution strides, or the 3x3.
    """

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any
    dilation: int = 1
    stride_in_1x1: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h / stride, w / stride, 4 * features]."""
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = conv(self.features, 1, first, self.dtype, 'conv1')(x)
        y = nn.relu(self.norm(name='norm1')(y))
        y = conv(self.features, 3, second, self.dtype, 'conv2', self.dilation)(y)
        y = nn.relu(self.norm(name='norm2')(y))
        y = conv(self.features * self.expansion, 1, 1, self.dtype, 'conv3')(y)
        y = self.norm(name='norm3')(y)
        return nn.relu(y + _shortcut(self, x, y))


def _shortcut(block: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x where shapes allow, else a projection of it; called inside a block's compact method."""
    if x.shape == y.shape:
        return x
    x = conv(y.shape[-1], 1, block.stride, block.dtype, 'shortcut_conv')(x)
    return block.norm(name='shortcut_norm')(x)


STRIDES = (4, 8, 16, 32)  # strides of the stages, pixels
DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
}


def run_stage(
    x: jax.Array,
    number: int,
    *,
    depth: int,
    width: float,
    stride_in_1x1: bool,
    norm: Callable[..., nn.Module],
    dtype: Any,
    dilations: tuple[int, int] = (1, 1),
) -> jax.Array:
    """Runs a stage, 1 to 4; called inside the compact method of the module that its blocks belong to.

    dilations: that of the first block's 3x3 convolutions, and that of the others'. The stage strides if both are 1.
    """
    block, block_counts = DEPTHS[depth]
    if stride_in_1x1:
        if block is BasicBlock:
            raise ValueError(
                f'a ResNet of depth {depth} has no 1x1 convolution that could stride: set stride_in_1x1 to False'
            )
        block = functools.partial(block, stride_in_1x1=True)
    features = round(64 * width) * 2 ** (number - 1)
    for index in range(block_counts[number - 1]):
        stride = 2 if number > 1 and index == 0 and dilations == (1, 1) else 1
        dilation = dilations[min(index, 1)]
        x = block(features, stride, norm, dtype, dilation, name=f'stage{number}_block{index + 1}')(x)
    return x


def stage_strides(dilation: int = 1) -> tuple[int, ...]:
    """Lists the strides of the four stages, pixels: none is larger than 32 / dilation."""
    return tuple(min(stride, STRIDES[-1] // dilation) for stride in STRIDES)


def stages_of(strides: Sequence[int], dilation: int) -> list[int]:
    """Finds the numbers of the stages with the given strides, finest first; of several with one stride, the last ones."""
    numbers = []
    for stride in sorted(set(strides)):
        of_stride = [number for number, has in enumerate(stage_strides(dilation), 1) if has == stride]
        numbers += of_stride[len(of_stride) - list(strides).count(stride) :]
    return numbers


class ResNet(nn.Module):
    """The stages of a ResNet.

    depth: 18, 34, 50 or 101.
    width: factor on all channels; 1 is the paper's 64 in the first stage.
    stride_in_1x1: see `BottleneckBlock`.
    dilation: by how much the last stages are dilated instead of striding: 1, not at all; 2, the fourth, whose stride is then 16;
        4, the third and fourth, whose stride is then 8.
    norm: a name of `norms.NORMS`; norm_epsilon: number added to variances.
    strides: strides of the stages to return, pixels, as often as there are stages to return; of several with one stride the
        last ones are returned. The network ends with the last of them.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    depth: int = 50
    width: float = 1.0
    stride_in_1x1: bool = False
    dilation: int = 1
    norm: str = 'batch_norm'
    norm_epsilon: float = 1e-5
    strides: Sequence[int] = STRIDES
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to one [B, H / stride, W / stride, C] for each stride; all four strides give C2..C5."""
        if self.depth not in DEPTHS:
            raise ValueError(f'no ResNet of depth {self.depth}: use one of {", ".join(map(str, DEPTHS))}')
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        x = conv(round(64 * self.width), 7, 2, self.dtype, 'stem_conv')(x.astype(self.dtype))
        x = nn.relu(norm(name='stem_norm')(x))
        x = max_pool(x, 3, 2, padding=1)
        numbers, stages, before = stages_of(self.strides, self.dilation), {}, 1
        for number in range(1, max(numbers) + 1):
            after = STRIDES[number - 1] // stage_strides(self.dilation)[number - 1]
            x = run_stage(
                x,
                number,
                depth=self.depth,
                width=self.width,
                stride_in_1x1=self.stride_in_1x1,
                norm=norm,
                dtype=self.dtype,
                dilations=(before, after),
            )
            stages[number], before = x, after
        return tuple(stages[number] for number in numbers)


class LastStage(nn.Module):
    """The fourth stage of a ResNet, for features of RoIs (`res5` of Faster R-CNN's C4); its fields are those of `ResNet`."""

    depth: int = 50
    width: float = 1.0
    stride_in_1x1: bool = False
    norm: str = 'batch_norm'
    norm_epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Maps [N, h, w, C] to [N, h / 2, w / 2, 2 * C]; valid: [N] bool, rows that count in statistics, None for all."""
        norm = make_norm(
            self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon, valid=valid
        )
        return run_stage(
            x, 4, depth=self.depth, width=self.width, stride_in_1x1=self.stride_in_1x1, norm=norm, dtype=self.dtype
        )
