"""3x3 convolutions of stride 1 in Winograd's domain: F(2x2, 3x3), with 16 products instead of 36 (1509.09308, section 4.1).

    x -> overlapping patches p of 4 x 4 cells, one for each 2 x 2 cells of the result -> INPUT p INPUT^T: 16 matrices [P, C]
    kernel k [3, 3, C, D] -> KERNEL k KERNEL^T: 16 matrices [C, D]
    16 products m of matrices, [P, D] -> OUTPUT m OUTPUT^T: 2 x 2 cells of the result for each patch

The gradient of the kernel takes the same way back: patches, and the gradient of the result, both transformed, are multiplied
place by place. A very large map is convolved in strips, to save memory. They are written one after the other, not as a loop: XLA
uses one thread for what is no product in a loop's body.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from detzoo.types import Array

# 1509.09308, section 4.1: B^T, G and A^T.
INPUT = np.float32([(1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)])
KERNEL = np.float32([(1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)])
OUTPUT = np.float32([(1, 1, 1, 0), (0, 1, -1, -1)])

STRIP = 128 * 2**20  # bytes that the transformed patches of a strip may take, unless there would be more than ...
MOST_STRIPS = 8  # ... these: each makes the program longer

Padding = Sequence[tuple[int, int]]


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
    total = 0
    for rows, columns in _strips(gradient.shape[:3], max(x.shape[-1], gradient.shape[-1])):
        patches = _patches(x, INPUT, rows, columns, padding)
        spread = _patches(gradient, OUTPUT.T, rows, columns, [(0, 0), (0, 0)])
        total += jnp.einsum('npc,npd->ncd', patches, spread)
    places = np.kron(KERNEL, KERNEL).T.astype(x.dtype) @ total.reshape(16, -1)
    return places.reshape(3, 3, *total.shape[1:])


def _convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolves x [B, h, w, C] with a transformed kernel, [16, C, D]."""
    height, width = (size + sum(pads) - 2 for size, pads in zip(x.shape[1:3], padding))
    strips = []
    for rows, columns in _strips((len(x), height, width), max(kernel.shape[1:])):
        patches = _patches(x, INPUT, rows, columns, padding)
        products = jnp.einsum('npc,ncd->npd', patches, kernel)
        strips.append(_cells(products, (len(x), len(rows), len(columns))))
    return jnp.concatenate(strips, axis=1)[:, :height, :width]


def _strips(sizes: Sequence[int], channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts a batch into strips: the rows and the columns of each one's patches, in all images; sizes: (B, H, W) of the result."""
    images, rows, columns = sizes[0], -(-sizes[1] // 2), -(-sizes[2] // 2)
    wanted = -(-16 * 4 * images * rows * columns * channels // STRIP)
    return [(part, np.arange(columns)) for part in np.array_split(np.arange(rows), min(wanted, MOST_STRIPS, rows))]


def _transformed(kernel: Array) -> Array:
    """Transforms a kernel [3, 3, C, D]: [16, C, D]."""
    matrix = np.kron(KERNEL, KERNEL).astype(kernel.dtype)
    return (matrix @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def _patches(x: Array, matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray, padding: Padding) -> Array:
    """Cuts patches every 2 cells, and transforms them: matrix p matrix^T.

    A row of the matrix adds at most two cells, so a value of the result is a sum of four cells with weights. Written as four
    gathers it is one loop for XLA, without a copy of x with its padding.

    Args:
        x: [B, h, w, C].
        matrix: [4, side]: side x side cells of a patch become 4 x 4.
        rows, columns: the patches' rows and columns; patch (1, 1) begins 2 cells below and right of patch (0, 0).
        padding: padding of the convolution.

    Returns:
        [16, P, C], P = B * rows * columns.
    """
    images = jnp.arange(len(x))[:, None, None]
    total = 0
    for y, weight_y in _taps(matrix, rows, padding[0][0], x.shape[1]):
        for x_, weight_x in _taps(matrix, columns, padding[1][0], x.shape[2]):
            cells = (
                jnp.asarray(x).at[images, y[:, None, None, :, None], x_[:, None, None]].get(mode='promise_in_bounds')
            )
            total += cells * (weight_y[:, None, :, None] * weight_x[:, None])[:, :, None, ..., None]
    return total.reshape(16, -1, x.shape[-1])


def _taps(matrix: np.ndarray, patches: np.ndarray, before: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lists the two cells that each row of a matrix adds, and their weights, for patches along an axis.

    Args:
        matrix: [4, side], at most two numbers of a row are not 0.
        patches: [n], the patches' places along the axis.
        before: padding before the first cell.
        size: cells of the axis; beyond it lie zeros.

    Returns:
        (cell, weight) of the first and of the second, each [4, n].
    """
    places = np.argsort(matrix == 0, axis=1, kind='stable')[:, :2]  # [4, 2]
    weights = np.take_along_axis(matrix, places, axis=1)
    cells = [2 * patches + place[:, None] - before for place in places.T]
    return [
        (np.clip(cell, 0, size - 1).astype(np.int32), np.where((cell >= 0) & (cell < size), weight[:, None], 0))
        for cell, weight in zip(cells, weights.T)
    ]


def _cells(products: Array, sizes: tuple[int, int, int]) -> Array:
    """Transforms products [16, P, D] back, and puts the cells of all patches side by side: [B, 2 * rows, 2 * columns, D].

    sizes: (B, rows, columns), number of images and of patches along the height and the width.
    """
    images, rows, columns = sizes
    places = products.reshape(4, 4, images, rows, columns, -1)
    sums = [_weighted_sum(weights, places) for weights in OUTPUT]  # [4, B, rows, columns, D] each
    cells = jnp.stack([jnp.stack([_weighted_sum(weights, row) for weights in OUTPUT], axis=3) for row in sums], axis=2)
    return cells.reshape(images, 2 * rows, 2 * columns, -1)


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Adds arrays with weights of 1, -1 and 0."""
    terms = [x if weight == 1 else -x for weight, x in zip(weights, arrays) if weight]
    return sum(terms[1:], terms[0])
