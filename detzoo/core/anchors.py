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


def default_boxes(
    size: float, next_size: float, aspect_ratios: Sequence[float], *, limit: tuple[int, int] | None = None
) -> np.ndarray:
    """Makes SSD's anchors of one cell, centred at the origin (1512.02325, section 2.2, choosing scales and aspect ratios).

    A square of the level's size, a square between it and the next level's, and the level's size in other shapes.

    Args:
        size: s_k, the square root of the anchors' areas, pixels.
        next_size: s_(k+1) of the next level; the second square has sqrt(s_k s_(k+1)).
        aspect_ratios: height / width, without the squares.
        limit: largest height and width of an anchor (torchvision: those of the canvas), or None.

    Returns:
        [2 + len(aspect_ratios), 4] float32 xyxy.
    """
    squares = base_anchors([size, np.sqrt(size * next_size)], [1.0])
    anchors = np.concatenate([squares, base_anchors([size], aspect_ratios)])
    if limit is None:
        return anchors
    half = np.float32([limit[1] / 2, limit[0] / 2, limit[1] / 2, limit[0] / 2])
    return anchors.clip(-half, half)


def grid_anchors(
    grid: tuple[int, int], stride: tuple[float, float], base: np.ndarray, *, offset: float = 0.0
) -> np.ndarray:
    """Places a cell's anchors at each cell of a feature map.

    By default anchors are centred on the cell's top left corner, as in torchvision and detectron2: a 3x3 convolution of
    stride 2 with one pixel of padding centres its first output on the first pixel, so this is what a cell's features see.
    SSD and YOLO centre anchors in the middle of the cell.

    Args:
        grid: height and width of the feature map, cells.
        stride: distance between neighbouring cells along y and x, pixels.
        base: [n, 4] float32 xyxy, the anchors around the origin.
        offset: position of the anchors' centre in the cell, in cells: 0 is the top left corner, 0.5 the middle.

    Returns:
        [grid height * grid width * n, 4] float32 xyxy, in row-major order of the cells.
    """
    y = (np.arange(grid[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride[0])
    x = (np.arange(grid[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride[1])
    y, x = np.meshgrid(y, x, indexing='ij')
    centers = np.stack([x, y, x, y], axis=-1)  # [h, w, 4]
    return (centers[:, :, None] + base).reshape(-1, 4)


def pyramid_anchors(
    canvas: tuple[int, int],
    grids: Sequence[tuple[int, int]],
    bases: Sequence[np.ndarray],
    *,
    strides: Sequence[int] | None,
) -> list[np.ndarray]:
    """Places the anchors of all levels of a pyramid.

    Args:
        canvas: height and width, pixels.
        grids: height and width of each level, cells.
        bases: the anchors of a cell of each level, [n, 4] float32 xyxy around the origin.
        strides: strides of the levels, pixels; None: canvas // grid at each level, as in torchvision. The two differ at the top
            levels of a canvas whose sides are not multiples of their strides.

    Returns:
        for each level [grid height * grid width * n, 4] float32 xyxy.

    Raises:
        ValueError: the number of levels is not that of the bases.
    """
    if len(grids) != len(bases):
        raise ValueError(f'anchor_sizes has {len(bases)} levels, the pyramid {len(grids)}')
    sides = [(canvas[0] // height, canvas[1] // width) for height, width in grids]
    if strides is not None:
        sides = [(stride, stride) for stride in strides]
    return [grid_anchors(*level) for level in zip(grids, sides, bases, strict=True)]


def cell_anchors(
    canvas: tuple[int, int], grids: Sequence[tuple[int, int]], sizes: Sequence[Sequence[tuple[float, float]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Places anchors of given sizes in the middle of the cells of several grids (YOLO9000, 1612.08242, section 2).

    Args:
        canvas: height and width, pixels.
        grids: height and width of each level's feature map, cells.
        sizes: for each level the (width, height) of its anchors, pixels.

    Returns:
        anchors: [A, 4] float32 xyxy, level after level, each in row-major order of its cells.
        strides: [A, 2] float32, width and height of each anchor's cell, pixels.
    """
    anchors, strides = [], []
    for grid, level_sizes in zip(grids, sizes, strict=True):
        half = np.asarray(level_sizes, np.float32) / 2
        stride = (canvas[0] / grid[0], canvas[1] / grid[1])
        anchors.append(grid_anchors(grid, stride, np.concatenate([-half, half], axis=1), offset=0.5))
        strides.append(np.broadcast_to(np.float32(stride[::-1]), (len(anchors[-1]), 2)))
    return np.concatenate(anchors), np.concatenate(strides)


def kmeans_anchors(sizes: np.ndarray, k: int, *, seed: int = 0, max_iterations: int = 300) -> tuple[np.ndarray, float]:
    """Clusters the sizes of objects into anchors; the distance is 1 - IoU of concentric boxes (YOLO9000, 1612.08242, section 2).

    The first cluster centre is drawn uniformly from the sizes. Each further one is a size drawn with a probability that grows
    with its distance from the centres drawn before (k-means++). An empty cluster's centre moves to the size that is fitted worst.

    Args:
        sizes: [N, 2] float, width and height, > 0, in any unit.
        k: number of anchors, 1..N.
        seed: seed of the draws.
        max_iterations: number of iterations after which clustering ends, even if sizes still change clusters.

    Returns:
        anchors: [k, 2] float64, width and height in that unit, the smallest area first.
        average_iou: mean IoU of the sizes with their best anchors, in 0..1.

    Raises:
        ValueError: a size is not positive and finite, or k is not in 1..N.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if not 1 <= k <= len(sizes):
        raise ValueError(f'{k} clusters of {len(sizes)} boxes: take at least 1, and at most as many as there are boxes')
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError('the width and height of every box must be positive and finite')
    rng = np.random.RandomState(seed)
    centers = sizes[rng.randint(len(sizes), size=1)]
    while len(centers) < k:
        weights = (1 - _shape_iou(sizes, centers).max(axis=1)) ** 2
        weights = weights if weights.any() else np.ones(len(sizes))  # fewer than k sizes differ
        centers = np.append(centers, sizes[rng.choice(len(sizes), 1, p=weights / weights.sum())], axis=0)

    iou = _shape_iou(sizes, centers)
    best, best_iou, previous = centers, -1.0, None
    for _ in range(max_iterations):
        nearest, fit = iou.argmax(axis=1), iou.max(axis=1)
        if previous is not None and (nearest == previous).all():
            break
        counts = np.bincount(nearest, minlength=k)
        sums = np.stack([np.bincount(nearest, side, minlength=k) for side in sizes.T], axis=1)
        centers = sums / np.maximum(counts, 1)[:, None]
        empty = counts == 0
        centers[empty] = sizes[np.argsort(fit, kind='stable')[: empty.sum()]]
        iou, previous = _shape_iou(sizes, centers), nearest
        average_iou = float(iou.max(axis=1).mean())
        if average_iou > best_iou:  # it may fall: a cluster's mean does not minimise this distance
            best, best_iou = centers, average_iou
    return best[np.argsort(best.prod(axis=1), kind='stable')], best_iou


def _shape_iou(sizes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Computes the IoU [N, k] of boxes with sizes [N, 2] and [k, 2] (width, height) that share a centre."""
    shared = np.minimum(sizes[:, None, 0], centers[:, 0]) * np.minimum(sizes[:, None, 1], centers[:, 1])
    return shared / (sizes.prod(axis=1)[:, None] + centers.prod(axis=1) - shared)
