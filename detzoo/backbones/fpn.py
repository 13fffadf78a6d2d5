"""Feature pyramid network (arXiv 1612.03144): C3..C5 to P3..P7, all with the same number of channels.

    C5 -1x1-> M5 -3x3-> P5        P6 = 3x3/2 of P5 or of C5, P7 = 3x3/2 of relu(P6) (RetinaNet, 1708.02002, section 4)
    C4 -1x1-> + up(M5) -3x3-> P4
    C3 -1x1-> + up(M4) -3x3-> P3

Stages with the same stride are added cell by cell.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import Conv
from detzoo.backbones.norms import make_norm


def upsample(x: jax.Array, height: int, width: int) -> jax.Array:
    """Doubles [B, h, w, C] by repeating cells and cuts it to [B, height, width, C]; features of that size stay as they are."""
    if x.shape[1:3] == (height, width):
        return x
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


class FPN(nn.Module):
    """A top-down pathway with lateral connections.

    features: channels of every level.
    extra_from: source of P6 and P7, 'p5' or 'c5' (both exist in the field); 'pool': one more level only, every other cell
        of the last (1612.03144, footnote 1); None: no further levels.
    norm: normalisation after the convolutions, except those of extra levels: a name of `norms.NORMS`, or None as in the paper.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    features: int = 256
    extra_from: str | None = 'p5'
    norm: str | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> Sequence[jax.Array]:
        """Maps backbone stages, finest first, to pyramid levels, finest first, each [B, h, w, features]."""
        if self.extra_from not in ('p5', 'c5', 'pool', None):
            raise ValueError(f"extra_from is {self.extra_from!r}: use 'p5', 'c5', 'pool' or None")

        def conv(kernel: int, stride: int, name: str, use_bias: bool = True) -> nn.Module:
            return Conv(
                self.features,
                (kernel, kernel),
                (stride, stride),
                padding=kernel // 2,
                dtype=self.dtype,
                use_bias=use_bias,
                kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform'),
                name=name,
            )

        def conv_norm(x: jax.Array, kernel: int, name: str) -> jax.Array:
            x = conv(kernel, 1, name, use_bias=self.norm is None)(x)
            if self.norm is None:
                return x
            return make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype)(name=f'{name}_norm')(x)

        merged = [conv_norm(stage, 1, f'inner{i + 1}') for i, stage in enumerate(stages)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] += upsample(merged[i + 1], *merged[i].shape[1:3])
        levels = [conv_norm(x, 3, f'layer{i + 1}') for i, x in enumerate(merged)]
        if self.extra_from == 'pool':
            levels.append(levels[-1][:, ::2, ::2])
        elif self.extra_from is not None:
            first = conv(3, 2, 'extra1')(levels[-1] if self.extra_from == 'p5' else stages[-1])
            levels += [first, conv(3, 2, 'extra2')(nn.relu(first))]
        return tuple(levels)
