"""Convolutions, computed on CPUs in the way that is fastest for their shape.

GPUs and TPUs run `jax.lax.conv_general_dilated`. XLA computes it well on CPUs too, but without Winograd's algorithm, and takes up
to six times as long as a product of matrices for the gradient of a kernel. So on a CPU a convolution and each of its gradients
is one of

    'xla'       jax.lax.conv_general_dilated
    'padded'    the same after adding channels of zeros: only forward, for the first layer of a narrow network
    'winograd'  `winograd`: 3x3, stride 1
    'dots'      `shifted_dots`: one product of matrices for each place of the kernel
    'columns'   `shifted_dots` with all places side by side, in one product

as `choose` says. Results differ from XLA's by rounding, at most 2e-6 of the largest value (gradients of kernels: 1e-5).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from detzoo.backbones import shifted_dots, winograd
from detzoo.backbones.shifted_dots import Geometry
from detzoo.types import Array

NHWC = 'NHWC', 'HWIO', 'NHWC'  # the axes of x, of the kernel and of the result
PADDED = 4, 32  # channels of x and of the result from which XLA has a faster program for kernels of few channels


class Ways(NamedTuple):
    """The formulations of a convolution and of its gradients: 'xla', 'winograd', 'dots' or 'columns'; 'padded' only forward."""

    forward: str
    input_gradient: str
    kernel_gradient: str


XLA = Ways('xla', 'xla', 'xla')


def choose(x: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> Ways:
    """Chooses the fastest formulations for a CPU.

    Milliseconds on two cores of an AMD EPYC, XLA's own and the chosen one, from scripts/dev/benchmark_convolutions.py:

        B x h x w, C -> D, kernel, stride         forward         gradient of x     gradient of the kernel
        1 x 128 x 128,   64 ->  256, 1x1, 1       8.0    2.9      7.8    3.1       21.4    4.6  dots
        1 x 128 x 128,  256 ->  512, 1x1, 2       6.1    5.5      6.9    6.9       49.9    7.1  dots, xla, dots
        1 x 300 x 300,   64 ->   64, 3x3, 1      37.5   37.8     37.7   38.9       99.1   65.1  winograd
        1 x 150 x 150,  128 ->  128, 3x3, 1      32.5   24.6     33.1   24.6       56.7   30.1  winograd
        1 x 128 x 128,   64 ->   64, 3x3, 1       5.8    6.2      6.3    6.3       14.1    9.1  winograd
        1 x  64 x  64,  256 ->  256, 3x3, 1      22.9   13.5     23.2   14.0       28.6   16.7  winograd
        1 x  16 x  16,  512 ->  512, 3x3, 1       6.8    4.9     10.9    6.5        7.1    4.6  winograd
      128 x  14 x  14,  256 ->  256, 3x3, 1     158.1   89.5    160.5   84.0      319.5  113.8  winograd
       16 x  16 x  16,   48 ->   48, 3x3, 1       1.66   1.40     1.66   1.31       1.85   1.12 winograd
       16 x  16 x  16,   32 ->   32, 3x3, 1       0.74   0.74     0.88   0.88       1.01   1.01 xla
        1 x  26 x  26,  512 -> 1024, 3x3, 2      11.8   10.5     24.2   12.1       14.5    9.8  columns, dots, columns
        1 x 128 x 128,  128 ->  128, 3x3, 2       7.1    7.1     10.1    7.7       14.8    9.9  xla, dots, dots
        1 x 512 x 512,    3 ->   64, 7x7, 2      13.4   13.4     32.1   32.1       22.5   22.5  xla
        1 x 416 x 416,    3 ->   32, 3x3, 1      14.8    5.7      8.0    8.0        8.5    8.5  padded, xla, xla
       16 x 128 x 128,    3 ->   16, 7x7, 2       6.2    6.2     25.1   25.1        4.4    4.4  xla

    Args:
        x: (B, h, w, C).
        kernel: (rows, columns, C, D).
        geometry: strides, padding and dilation.
    """
    sides, (channels, features) = tuple(kernel[:2]), kernel[2:]
    height, width = shifted_dots.result_sizes(x[1:3], sides, geometry)
    cells, few = x[0] * height * width, min(channels, features)
    work = cells * math.prod(kernel)
    if work < 3e6:  # XLA compiles its own convolution sooner
        return XLA
    if sides == (1, 1):
        return Ways('dots', 'dots' if geometry.strides == (1, 1) else 'xla', 'dots')
    if suits_padding(kernel):
        return Ways('padded', 'xla', 'xla')
    patches = x[0] * -(-height // 2) * -(-width // 2)
    pays = few >= 48 and max(channels, features) <= 4 * few and channels * features <= 12_000 * patches and work > 3e7
    if suits_winograd(kernel, geometry) and pays:
        return Ways('winograd', 'winograd', 'winograd')
    if cells <= 400:
        return Ways('columns', 'dots', 'columns') if few >= 48 else Ways('xla', 'dots', 'xla')
    return Ways('xla', 'dots' if few >= 128 else 'xla', 'dots' if few >= 64 else 'xla')


def suits_winograd(kernel: Sequence[int], geometry: Geometry) -> bool:
    """Whether `winograd` can compute a convolution and its gradients."""
    few = all(0 <= pad <= 2 for pads in geometry.padding for pad in pads)
    return tuple(kernel[:2]) == (3, 3) and geometry.strides == geometry.dilation == (1, 1) and few


def suits_padding(kernel: Sequence[int]) -> bool:
    """Whether channels of zeros make a convolution faster: with larger kernels than 3x3 they cost more than they save."""
    return tuple(kernel[:2]) == (3, 3) and kernel[2] < PADDED[0] and kernel[3] <= PADDED[1]


def convolve(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, without lhs_dilation; `flax.linen.Conv` takes it in its place.

    Other data types than float32, and several groups of channels, take `conv_general_dilated` on CPUs too.

    Args:
        x: [B, h, w, C].
        kernel: [rows, columns, C, D].
        window_strides, padding, rhs_dilation, feature_group_count, **kwargs: as in `jax.lax.conv_general_dilated`.
        dimension_numbers: those of NHWC.

    Returns:
        [B, H, W, D].
    """
    plain = partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **kwargs,
    )
    if isinstance(padding, str):
        extents = [(side - 1) * dilation + 1 for side, dilation in zip(kernel.shape, rhs_dilation)]
        padding = jax.lax.padtype_to_pads(x.shape[1:3], extents, window_strides, padding)
    geometry = Geometry(tuple(window_strides), tuple(map(tuple, padding)), tuple(rhs_dilation))
    if feature_group_count == x.shape[-1] == kernel.shape[-1] > 1:
        return jax.lax.platform_dependent(x, kernel, cpu=partial(_convolve_channels, geometry), default=plain)
    if x.dtype != jnp.float32 or feature_group_count > 1:
        return plain(x, kernel)
    ways = choose(x.shape, kernel.shape, geometry)
    if ways == XLA:
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=partial(convolve_on_cpu, geometry, ways), default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def convolve_on_cpu(geometry: Geometry, ways: Ways, x: Array, kernel: Array) -> Array:
    """Convolves x [B, h, w, C] with a kernel [rows, columns, C, D], and computes gradients, in the given ways: [B, H, W, D]."""
    if ways.forward == 'xla':
        return _plain(x, kernel, geometry)
    if ways.forward == 'padded':
        return _padded(x, kernel, geometry)
    if ways.forward == 'winograd':
        return winograd.convolve(x, kernel, geometry.padding)
    return shifted_dots.convolve(x, kernel, geometry, columns=ways.forward == 'columns')


def _forward(geometry: Geometry, ways: Ways, x: Array, kernel: Array):
    return convolve_on_cpu(geometry, ways, x, kernel), (x, kernel)


def _backward(geometry: Geometry, ways: Ways, arguments: tuple[Array, Array], gradient: Array):
    x, kernel = arguments
    return (
        _input_gradient(geometry, ways.input_gradient, x, kernel, gradient),
        _kernel_gradient(geometry, ways.kernel_gradient, x, kernel, gradient),
    )


def _input_gradient(geometry: Geometry, way: str, x: Array, kernel: Array, gradient: Array) -> Array:
    if way == 'xla':
        return jax.linear_transpose(lambda x: _plain(x, kernel, geometry), x)(gradient)[0]
    if way == 'winograd':
        return winograd.input_gradient(gradient, kernel, geometry.padding)
    return shifted_dots.input_gradient(gradient, kernel, x.shape[1:3], geometry)


def _kernel_gradient(geometry: Geometry, way: str, x: Array, kernel: Array, gradient: Array) -> Array:
    if way == 'xla':
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, geometry), kernel)(gradient)[0]
    if way == 'winograd':
        return winograd.kernel_gradient(x, gradient, geometry.padding)
    return shifted_dots.kernel_gradient(x, gradient, kernel.shape[:2], geometry, columns=way == 'columns')


def _plain(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=NHWC,
    )


def _padded(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves with channels of zeros: at least as many as PADDED has."""
    more, features = max(0, PADDED[0] - kernel.shape[2]), kernel.shape[3]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, max(0, PADDED[1] - features))))
    return _plain(x, kernel, geometry)[..., :features]


convolve_on_cpu.defvjp(_forward, _backward)


@partial(jax.checkpoint, static_argnums=0)  # the gradient keeps x and the kernel, not the part of x in each product
def _convolve_channels(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Convolves each channel by itself, with a kernel [rows, columns, 1, C]: a sum of products with the places of the kernel.

    XLA takes many times longer to compile a convolution with many groups than this sum, and still longer for its gradient.
    """
    sizes = shifted_dots.result_sizes(x.shape[1:3], kernel.shape[:2], geometry)
    read = shifted_dots.cells_read(x.astype(jnp.float32), kernel.shape[:2], sizes, geometry)
    return sum(cells * kernel[i, j, 0] for (i, j), cells in read).astype(x.dtype)


def convolve_transposed(x: Array, kernel: Array) -> Array:
    """Convolves as `jax.lax.conv_transpose` does, with a kernel that is as large as its stride: one product, but on TPUs.

    On a CPU XLA's convolution takes many times as long for the gradient of the kernel, and on a GPU it was the slowest operation
    of Mask R-CNN's training step (docs/performance_gpu.md).

    Args:
        x: [B, h, w, C].
        kernel: [side, side, C, D].

    Returns:
        [B, side * h, side * w, D].
    """
    side = len(kernel)

    def product(x: Array, kernel: Array) -> Array:
        batch, height, width, channels = x.shape
        matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
        cells = (x.reshape(-1, channels) @ matrix).reshape(batch, height, width, side, side, -1)
        return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * height, side * width, -1)

    plain = partial(jax.lax.conv_transpose, strides=(side, side), padding='SAME')
    return jax.lax.platform_dependent(x, kernel, tpu=plain, default=product)
