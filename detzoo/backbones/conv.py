"""The layer of which VGG, MobileNet and SSD are made: a convolution, a norm or else a bias, and an activation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConvNorm(nn.Module):
    """A convolution, a norm or else a bias, and an activation.

    features: channels of the output.
    kernel, stride, dilation: of the convolution.
    padding: on each side, cells; None keeps ceil(size / stride) cells.
    depthwise: whether each channel is convolved by itself; there must be as many features as channels.
    norm: of `norms.make_norm`, or None: a bias.
    activation: or None.
    init: of the kernel; He's suits the activations that cut off negatives.
    dtype: of the computation.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    depthwise: bool = False
    norm: Callable[..., nn.Module] | None = None
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    init: Callable[..., jax.Array] = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, ceil(h / stride), ceil(w / stride), features], with the default padding."""
        padding = self.dilation * (self.kernel // 2) if self.padding is None else self.padding
        x = nn.Conv(self.features, (self.kernel, self.kernel), (self.stride, self.stride), padding=padding,
                    kernel_dilation=self.dilation, feature_group_count=self.features if self.depthwise else 1,
                    use_bias=self.norm is None, kernel_init=self.init, dtype=self.dtype, name='conv')(x)
        if self.norm is not None:
            x = self.norm(name='norm')(x)
        return x if self.activation is None else self.activation(x)
