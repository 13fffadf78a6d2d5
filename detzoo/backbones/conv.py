"""The layer that VGG, MobileNet, darknet and SSD are built from: a convolution, a norm or a bias, and an activation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


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
        depthwise = dict(feature_group_count=self.features, conv_general_dilated=depthwise_convolution)
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=padding,
            kernel_dilation=self.dilation,
            use_bias=self.norm is None,
            kernel_init=self.init,
            dtype=self.dtype,
            name='conv',
            **depthwise if self.depthwise else {},
        )(x)
        if self.norm is not None:
            x = self.norm(name='norm')(x)
        return x if self.activation is None else self.activation(x)


def depthwise_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **kwargs: Any,
) -> jax.Array:
    """Convolves each channel by itself with `jax.lax.conv_general_dilated`, or on a CPU with a sum of shifted products.

    On CPUs XLA takes many times longer to compile a convolution with many groups than this sum, and still longer for its gradient.

    Args:
        x: [B, h, w, C].
        kernel: [rows, columns, 1, C].
        strides, padding, rhs_dilation, **kwargs: as in `jax.lax.conv_general_dilated`, but without `lhs_dilation`.

    Returns:
        [B, (h + padding - extent of the kernel) // stride + 1, (w + ...) // stride + 1, C].
    """

    @jax.checkpoint  # the gradient keeps x and the kernel, not the part of x in each product
    def sum_of_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
        dtype, x = x.dtype, jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))
        extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel.shape, rhs_dilation)]
        spans = [(size - extent) // stride * stride + 1 for size, extent, stride in zip(x.shape[1:], extents, strides)]
        total = 0.0
        for i, j in np.ndindex(*kernel.shape[:2]):
            top, left = i * rhs_dilation[0], j * rhs_dilation[1]
            total += x[:, top : top + spans[0] : strides[0], left : left + spans[1] : strides[1]] * kernel[i, j, 0]
        return total.astype(dtype)

    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, rhs_dilation=rhs_dilation, **kwargs
    )
    return jax.lax.platform_dependent(x, kernel, cpu=sum_of_products, default=convolve)
