"""Anchors: the boxes of fixed position and shape that dense detectors score and correct.

They depend on nothing but the canvas and the configuration, so they are numpy and become constants of the compiled program.
"""

from collections.abc import Sequence

import numpy as np


def base_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], *, rounded: bool = False) -> np.ndarray:
    """Makes the anchors of one cell, centred at the origin (Faster R-CNN, 1506.01497, section 3.1.1).

    Args:
        sizes: the square roots of the anchors' areas, pixels.
        aspect_ratios: height / width.
        rounded: whether corners are rounded to whole pixels, as torchvision does.

    Returns:
        [len(aspect_ratios) * len(sizes), 4] float32 xyxy, the sizes of the first aspect ratio first.
    """
    height_scale = np.sqrt(np.asarray(aspect_ratios, np.float64))[:, None]
    sizes = np.asarray(sizes, np.float64)[None, :]
    half_width, half_height = (sizes / height_scale).ravel() / 2, (sizes * height_scale).ravel() / 2
    anchors = np.stack([-half_width, -half_height, half_width, half_height], axis=1)
    return (np.round(anchors) if rounded else anchors).astype(np.float32)


def grid_anchors(grid: tuple[int, int], stride: tuple[float, float], base: np.ndarray) -> np.ndarray:
    """Places a cell's anchors at each cell of a feature map, centred on the cell's top left corner.

    The corner, not the middle: a 3x3 convolution of stride 2 with one pixel of padding centres its first output on the
    first pixel, so that is where the features of a cell look; torchvision and detectron2 do the same.

    Args:
        grid: height and width of the feature map, cells.
        stride: distance of two cells along y and x, pixels.
        base: [n, 4] float32 xyxy, the anchors around the origin.

    Returns:
        [grid height * grid width * n, 4] float32 xyxy, in row-major order of the cells.
    """
    y = np.arange(grid[0], dtype=np.float32) * np.float32(stride[0])
    x = np.arange(grid[1], dtype=np.float32) * np.float32(stride[1])
    y, x = np.meshgrid(y, x, indexing='ij')
    centers = np.stack([x, y, x, y], axis=-1)  # [h, w, 4]
    return (centers[:, :, None] + base).reshape(-1, 4)
