"""Windows of a fixed size on a canvas at several scales, which DeepMask and SharpMask score: where they lie, and what they learn.

    canvas (H, W) -> scaled, sides rounded to whole cells -> a window of n x n cells at each corner of a cell  `place_windows`
      -> windows x objects -> matched -> sampled                                                             `make_windows`
      -> the windows' cells of feature maps that are padded by half a window                                 `cut_windows`

DeepMask, 1506.06204, sections 3.1 and 4. Half of a window may lie outside of the canvas, so that every point is the middle of some.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core import matching
from detzoo.core.anchors import grid_anchors
from detzoo.types import Array, GroundTruth


class Placed(NamedTuple):
    """The windows on a canvas, scale after scale, each in row-major order.

    boxes: [A, 4] float32 xyxy, canvas pixels; half of a window may lie outside.
    scale: [A], number of the scale. row, column: [A], the window's first cell in the padded map of this scale.
    """

    boxes: np.ndarray
    scale: np.ndarray
    row: np.ndarray
    column: np.ndarray


def scaled_canvas(canvas: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """Scales a canvas (H, W) and rounds its sides to multiples of the stride, at least one."""
    return tuple(stride * max(1, round(side * scale / stride)) for side in canvas)


def place_windows(canvas: tuple[int, int], *, scales: Sequence[float], stride: int, cells: int) -> Placed:
    """Centres a window at each corner of the cells of the trunk's map, at each scale.

    Args:
        canvas: H, W.
        scales: factors on the canvas.
        stride: stride of the map, pixels of the scaled canvas.
        cells: n, cells along a side of a window; even.
    """
    parts = []
    for number, scale in enumerate(scales):
        size = scaled_canvas(canvas, scale, stride)
        grid = tuple(side // stride + 1 for side in size)
        step = tuple(stride * side / scaled for side, scaled in zip(canvas, size))  # canvas pixels
        half = np.float32([cells / 2 * step[1], cells / 2 * step[0]])
        boxes = grid_anchors(grid, step, np.concatenate([-half, half])[None])
        row, column = np.indices(grid).reshape(2, -1)
        parts.append((boxes, np.full(len(boxes), number), row, column))
    return Placed(*map(np.concatenate, zip(*parts)))


def cut_windows(maps: Sequence[Array], placed: Placed, chosen: Array, *, cells: int, factor: int = 1) -> Array:
    """Cuts windows out of the padded maps of all scales.

    Args:
        maps: for each scale [B, h, w, C], padded by half a window.
        placed: all windows.
        chosen: [B, R] int, some of them for each image.
        cells: n, cells of the trunk's map along a side of a window.
        factor: how often finer than the trunk's these maps are.

    Returns:
        [B, R, factor * n, factor * n, C].
    """
    starts = np.cumsum([0, *(x.shape[1] * x.shape[2] for x in maps)])[placed.scale]
    width = np.array([x.shape[2] for x in maps])[placed.scale]  # [A]
    first = starts + factor * (placed.row * width + placed.column)
    first, width = (jnp.asarray(x, jnp.int32)[chosen][..., None, None] for x in (first, width))  # [B, R, 1, 1]
    along = jnp.arange(factor * cells)
    index = first + along[:, None] * width + along
    flat = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)
    return jax.vmap(lambda cells, index: cells[index])(flat, index)


def pad_cells(x: Array, cells: int) -> Array:
    """Puts cells of zeros around maps [B, h, w, C]."""
    return jnp.pad(x, ((0, 0), (cells, cells), (cells, cells), (0, 0)))


class Windows(NamedTuple):
    """The rules for windows.

    place(canvas): Placed.
    match(boxes, gt, window, key): [A], for each sampled window of an image its row of the ground truth or NEGATIVE, else IGNORE.
    scales: factors on the canvas. stride: that of the trunk's map, pixels of the scaled canvas. cells: n. samples: R.
    max_positives: the largest number of positives among them.
    """

    place: Callable[..., Placed]
    match: Callable[..., Array]
    scales: Sequence[float]
    stride: int
    cells: int
    samples: int
    max_positives: int


def make_windows(
    stride: int,
    *,
    size: int = 224,
    scales: Sequence[float] = tuple(2 ** (octave / 2) for octave in range(-4, 3)),
    object_share: float = 128 / 224,
    shift: float = 16 / 224,
    octaves: float = 0.25,
    negative_shift: float = 32 / 224,
    negative_octaves: float = 1.0,
    samples: int = 64,
    positive_share: float = 0.5,
) -> Windows:
    """Makes the rules for windows (sections 3.1 and 4).

    Args:
        stride: stride of the trunk's feature map, pixels.
        size: side of a window, pixels of the scaled canvas; a multiple of twice the stride.
        scales: factors on the canvas.
        object_share, shift, octaves, negative_shift, negative_octaves: see `match_windows`; lengths are in sides of a window.
        samples: R, windows of an image that are trained.
        positive_share: largest share of positives among them.
    """
    if size % (2 * stride):
        raise ValueError(f'windows.size is {size}: it must be a multiple of {2 * stride}, twice the stride')
    if negative_shift < shift or negative_octaves < octaves:
        raise ValueError(
            f'windows.negative_shift is {negative_shift} and negative_octaves {negative_octaves}: they must be at least '
            f'shift, {shift}, and octaves, {octaves}'
        )
    rules = dict(
        object_share=object_share,
        shift=shift,
        octaves=octaves,
        negative_shift=negative_shift,
        negative_octaves=negative_octaves,
    )

    def match(boxes: Array, gt: GroundTruth, window: Array, key: Array) -> Array:
        matched = jnp.where(centred_inside(boxes, window), matching.match_windows(boxes, gt, **rules), matching.IGNORE)
        sampled = matching.sample_balanced(matched, key, count=samples, positive_share=positive_share)
        return jnp.where(sampled, matched, matching.IGNORE)

    cells = size // stride
    place = partial(place_windows, scales=scales, stride=stride, cells=cells)
    return Windows(place, match, scales, stride, cells, samples, int(samples * positive_share))


def centred_inside(boxes: Array, window: Array) -> Array:
    """Tells which boxes [A, 4] have their centres inside a window [4], or on its border."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((center >= window[:2]) & (center <= window[2:])).all(axis=1)
