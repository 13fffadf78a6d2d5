"""Layers of convolutions: `Conv` and `ConvTranspose`, fast on CPUs too (see `convolution`), and `ConvNorm`, built from them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.convolution import convolve, convolve_transposed

Conv = partial(nn.Conv, conv_general_dilated=convolve)


class ConvTranspose(nn.Module):
    """A transposed convolution whose kernel is as large as its stride, with a bias: each cell becomes side x side cells.

    features: channels of the output.
    side: side of the kernel, and the stride.
    kernel_init: initialiser of the kernel.
    dtype: dtype of the computation.
    """

    features: int
    side: int
    kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, side * h, side * w, features]."""
        kernel = self.param('kernel', self.kernel_init, (self.side, self.side, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolve_transposed(x, kernel) + bias


class ConvNorm(nn.Module):
    """A convolution, a norm or a bias, and an activation.

    features: channels of the output.
    kernel, stride, dilation: side, stride and dilation of the convolution's kernel, cells.
    padding: padding on each side, cells; None keeps ceil(size / stride) cells.
    depthwise: whether each channel is convolved by itself; features must then equal the number of input channels.
    norm: a constructor from `norms.make_norm`; None: a bias instead.
    activation: activation function, or None.
    init: initialiser of the kernel; He's suits activations that cut off negative values.
    dtype: dtype of the computation.
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
        x = Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=padding,
            kernel_dilation=self.dilation,
            use_bias=self.norm is None,
            kernel_init=self.init,
            dtype=self.dtype,
            feature_group_count=self.features if self.depthwise else 1,
            name='conv',
        )(x)
        if self.norm is not None:
            x = self.norm(name='norm')(x)
        return x if self.activation is None else self.activation(x)
