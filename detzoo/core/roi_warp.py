"""RoIWarp with gradients to the boxes: what is read from a RoI says how the RoI should move (MNC, 1512.04412, section 3.2).

    RoIs -> points along y and along x -> weights of the map's rows and columns, linear in the coordinates
         -> two products with the map -> [R, size, size, C]

`roi_features.roi_warp` is what Mask R-CNN's ablation makes of it: whole cells, and no gradient to the boxes.
"""

import chex
import jax.numpy as jnp

from detzoo.core.interpolation import linear_weights
from detzoo.types import Array


def warp(features: Array, rois: Array, *, stride: float, output_size: int) -> Array:
    """Reads RoIs at the centres of equal cells, each interpolated between the four nearest cells of the map.

    Beyond the outermost centres of the map's cells its border's value goes on. The gradient goes to the features and to the RoIs.

    Args:
        features: [h, w, C] float, one level. Cell i has its centre at pixel (i + 0.5) * stride.
        rois: [R, 4] float xyxy, pixels of the canvas, finite.
        stride: pixels a cell of the map.
        output_size: cells along a side of a RoI.

    Returns:
        [R, output_size, output_size, C], the dtype of the features.
    """
    chex.assert_shape(features, (None, None, None))
    chex.assert_shape(rois, (None, 4))
    weights_x, weights_y = (
        _weights(rois[:, axis::2] / stride, output_size, features.shape[1 - axis]).astype(features.dtype)
        for axis in (0, 1)
    )
    rows = jnp.einsum('riy,yxc->rixc', weights_y, features, precision='highest')
    return jnp.einsum('rixc,rjx->rijc', rows, weights_x, precision='highest')


def _weights(spans: Array, size: int, cells: int) -> Array:
    """Computes the weights of a map's cells at the points of RoIs along an axis.

    Args:
        spans: [R, 2] float, first and last coordinate, cells.
        size: points along a RoI.
        cells: cells along the map.

    Returns:
        [R, size, cells] float.
    """
    first, last = spans[:, :1], spans[:, 1:]
    points = first + (last - first) * (jnp.arange(size) + 0.5) / size - 0.5  # whole numbers are centres of cells
    return linear_weights(jnp.clip(points, 0, cells - 1), cells)
