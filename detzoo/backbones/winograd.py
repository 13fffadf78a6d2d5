"""3x3 convolutions of stride 1 in Winograd's domain: F(2x2, 3x3), with 16 products instead of 36 (1509.09308, section 4.1).

    x -> overlapping patches p of 4 x 4 cells, one for each 2 x 2 cells of the result -> INPUT p INPUT^T: 16 matrices [P, C]
    kernel k [3, 3, C, D] -> KERNEL k KERNEL^T: 16 matrices [C, D]
    16 products m of matrices, [P, D] -> OUTPUT m OUTPUT^T: 2 x 2 cells of the result for each patch

The gradient of the kernel takes the same way back: patches, and the gradient of the result, both transformed, are multiplied
place by place. A large map is convolved in strips, in a loop, so that the matrices of a strip fit into a cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detzoo.types import Array

# 1509.09308, section 4.1: B^T, G and A^T.
INPUT = np.float32([(1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)])
KERNEL = np.float32([(1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)])
OUTPUT = np.float32([(1, 1, 1, 0), (0, 1, -1, -1)])

WHOLE = 24 * 2**20  # bytes; a map whose transformed patches take no more is convolved at once
STRIP = 4 * 2**20  # bytes of the transformed patches of a strip, unless it has ...
MIN_PATCHES = 256  # ... fewer patches: products with few rows are slow

Padding = Sequence[tuple[int, int]]
Place = tuple[Array | int, Array | int]  # the first image and the first row of patches of a strip


class _Strips(NamedTuple):
    """How a batch of maps is cut into strips.

    count: (strips along the batch, strips along the height).
    images: images of a strip.
    rows: rows of patches of a strip.
    columns: patches in a row.
    """

    count: tuple[int, int]
    images: int
    rows: int
    columns: int


def convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolves x with a 3x3 kernel, stride 1.

    Args:
        x: [B, h, w, C].
        kernel: [3, 3, C, D].
        padding: rows of zeros above and below, columns left and right.

    Returns:
        [B, H, W, D], H = h - 2 + the padding, and W likewise.
    """
    return _convolve(x, _transformed(kernel), padding)


def input_gradient(gradient: Array, kernel: Array, padding: Padding) -> Array:
    """Computes the gradient [B, h, w, C] for x from that of the result, [B, H, W, D]; the arguments are those of `convolve`."""
    flipped = _transformed(kernel[::-1, ::-1]).swapaxes(1, 2)
    return _convolve(gradient, flipped, [(2 - before, 2 - after) for before, after in padding])


def kernel_gradient(x: Array, gradient: Array, padding: Padding) -> Array:
    """Computes the gradient [3, 3, C, D] for the kernel from x and the gradient of the result; arguments as in `convolve`."""
    strips = _plan(gradient.shape[:3], max(x.shape[-1], gradient.shape[-1]))

    def add(place: Place, total: Array) -> Array:
        patches = _patches(x, INPUT, place, strips, padding)
        spread = _patches(gradient, OUTPUT.T, place, strips, [(0, 0), (0, 0)])
        return total + jnp.einsum('npc,npd->ncd', patches, spread)

    total = _each_strip(strips, add, jnp.zeros((16, x.shape[-1], gradient.shape[-1]), x.dtype))
    places = np.kron(KERNEL, KERNEL).T.astype(x.dtype) @ total.reshape(16, -1)
    return places.reshape(3, 3, *total.shape[1:])


def _convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolves x [B, h, w, C] with a transformed kernel, [16, C, D]."""
    height, width = (size + sum(pads) - 2 for size, pads in zip(x.shape[1:3], padding))
    strips = _plan((len(x), height, width), max(kernel.shape[1:]))

    def write(place: Place, result: Array) -> Array:
        patches = _patches(x, INPUT, place, strips, padding)
        cells = _cells(jnp.einsum('npc,ncd->npd', patches, kernel), strips)
        return jax.lax.dynamic_update_slice(result, cells, (place[0], 2 * place[1], 0, 0))

    shape = len(x), 2 * strips.rows * strips.count[1], 2 * strips.columns, kernel.shape[2]
    result = _each_strip(strips, write, jnp.zeros(shape, x.dtype))
    return result[:, :height, :width]


def _plan(sizes: Sequence[int], channels: int) -> _Strips:
    """Cuts a batch into strips: none, or some images at once, or some rows of one image; sizes: (B, H, W) of the result."""
    images, rows, columns = sizes[0], -(-sizes[1] // 2), -(-sizes[2] // 2)
    if 16 * 4 * images * rows * columns * channels <= WHOLE:
        return _Strips((1, 1), images, rows, columns)
    wanted = max(STRIP // (16 * 4 * channels), MIN_PATCHES)  # patches of a strip
    if rows * columns <= wanted:
        at_once = max(count for count in range(1, wanted // (rows * columns) + 1) if images % count == 0)
        return _Strips((images // at_once, 1), at_once, rows, columns)
    at_once = -(-rows // -(-rows * columns // wanted))
    return _Strips((images, -(-rows // at_once)), 1, at_once, columns)


def _each_strip(strips: _Strips, step, state):
    """Calls step((image, row), state) -> state for each strip: its first image and its first row of patches."""
    along_batch, along_height = strips.count
    if along_batch * along_height == 1:
        return step((0, 0), state)

    def body(number: Array, state):
        image, row = jnp.divmod(number, along_height)
        return step((image * strips.images, row * strips.rows), state)

    return jax.lax.fori_loop(0, along_batch * along_height, body, state)


def _transformed(kernel: Array) -> Array:
    """Transforms a kernel [3, 3, C, D]: [16, C, D]."""
    matrix = np.kron(KERNEL, KERNEL).astype(kernel.dtype)
    return (matrix @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def _patches(x: Array, matrix: np.ndarray, place: Place, strips: _Strips, padding: Padding) -> Array:
    """Cuts patches of a strip every 2 cells, and transforms them: matrix p matrix^T.

    A row of the matrix adds at most two cells, so a value of the result is a sum of four cells with weights. Written as four
    gathers it is one loop for XLA, without a copy of x with its padding.

    Args:
        x: [B, h, w, C].
        matrix: [4, side]: side x side cells of a patch become 4 x 4.
        place: where the strip begins.
        strips: the strips.
        padding: padding of the convolution.

    Returns:
        [16, P, C].
    """
    image, row = place
    images = image + jnp.arange(strips.images)[:, None, None]
    rows = _taps(matrix, strips.rows * strips.count[1], padding[0][0], x.shape[1])
    rows = [[jax.lax.dynamic_slice_in_dim(table, row, strips.rows, axis=1) for table in tap] for tap in rows]
    columns = _taps(matrix, strips.columns, padding[1][0], x.shape[2])
    total = 0
    for y, weight_y in rows:
        for x_, weight_x in columns:
            cells = (
                jnp.asarray(x).at[images, y[:, None, None, :, None], x_[:, None, None]].get(mode='promise_in_bounds')
            )
            total += cells * (weight_y[:, None, :, None] * weight_x[:, None])[:, :, None, ..., None]
    return total.reshape(16, -1, x.shape[-1])


def _taps(matrix: np.ndarray, count: int, before: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lists the two cells that each row of a matrix adds, and their weights, for all patches along an axis.

    Args:
        matrix: [4, side], at most two numbers of a row are not 0.
        count: number of patches.
        before: padding before the first cell.
        size: cells of the axis; beyond it lie zeros.

    Returns:
        (cell, weight) of the first and of the second, each [4, count].
    """
    places = np.argsort(matrix == 0, axis=1, kind='stable')[:, :2]  # [4, 2]
    weights = np.take_along_axis(matrix, places, axis=1)
    cells = [2 * np.arange(count) + place[:, None] - before for place in places.T]
    return [
        (np.clip(cell, 0, size - 1).astype(np.int32), np.where((cell >= 0) & (cell < size), weight[:, None], 0))
        for cell, weight in zip(cells, weights.T)
    ]


def _cells(products: Array, strips: _Strips) -> Array:
    """Transforms products [16, P, D] back, and puts the cells of all patches side by side: [images, 2 * rows, 2 * columns, D]."""
    places = products.reshape(4, 4, strips.images, strips.rows, strips.columns, -1)
    rows = [_weighted_sum(weights, places) for weights in OUTPUT]  # [4, images, rows, columns, D] each
    cells = jnp.stack([jnp.stack([_weighted_sum(weights, row) for weights in OUTPUT], axis=3) for row in rows], axis=2)
    return cells.reshape(strips.images, 2 * strips.rows, 2 * strips.columns, -1)


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Adds arrays with weights of 1, -1 and 0."""
    terms = [x if weight == 1 else -x for weight, x in zip(weights, arrays) if weight]
    return sum(terms[1:], terms[0])
