"""U-Net's contracting path (arXiv 1505.04597, figure 1): images [B, H, W, 3] to features with strides 1 to 32.

    two 3x3 convolutions (stride 1, 64 channels) -> max pooling 2x2 -> two convolutions (2, 128) -> ... -> (16, 1024) -> (32, 1024)

The paper ends with stride 16. Its convolutions have no padding; these keep the size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool

STRIDES = (1, 2, 4, 8, 16, 32)  # strides of the stages, pixels
FEATURES = (64, 128, 256, 512, 1024, 1024)


class ContractingPath(nn.Module):
    """Stages of two convolutions, each with half the size and twice the channels of the one before.

    width: factor on all channels.
    norm: normalisation after each convolution, a name of `norms.NORMS`, or None as in the paper; norm_epsilon: number added to
        variances.
    strides: strides of the features to return, pixels; the network ends with the last of them.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    width: float = 1.0
    norm: str | None = None
    norm_epsilon: float = 1e-5
    strides: Sequence[int] = STRIDES[:5]
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to one [B, H / stride, W / stride, C] for each stride."""
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        conv = partial(ConvNorm, kernel=3, norm=norm, dtype=self.dtype)
        found, x = {}, x.astype(self.dtype)
        for number, (stride, features) in enumerate(zip(STRIDES, FEATURES), 1):
            if stride > max(self.strides):
                break
            x = x if number == 1 else max_pool(x, 2, 2, 'VALID')
            for index in (1, 2):
                x = conv(round(features * self.width), name=f'conv{number}_{index}')(x)
            found[stride] = x
        return tuple(found[stride] for stride in self.strides)
