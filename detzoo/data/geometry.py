"""From an image of any size to a canvas of a fixed one, and back: the geometry that training and inference share.

    choose_canvas: the canvas on which an image is largest
    placement:     where on it the image comes to lie -> Placement, whose `to_image` maps boxes back
    place:         resize, pad -> (canvas, Placement)

A `ResizeRule` says how: 'fit' at the top left corner, 'letterbox' in the middle, 'stretch' over the whole canvas; and how
pixels are interpolated. Pixels around the image do not matter: detectors overwrite what is outside its window.

It is numpy and OpenCV on the host; boxes are xyxy, float64, pixels of the image or canvas they belong to.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

RESIZES = ('fit', 'letterbox', 'stretch')
INTERPOLATIONS = ('area', 'bilinear', 'pil', 'darknet')


class ResizeRule(NamedTuple):
    """How images are put on a canvas.

    resize: 'fit' keeps the aspect ratio and puts the image at the top left corner; 'letterbox' keeps it and centres the
        image (darknet); 'stretch' resizes both sides to those of the canvas (SSD).
    shorter_side, longer_side: limits on the sides of the resized image, pixels; None for no limit. Not with 'stretch'.
    interpolation: 'area' averages where the image shrinks (no aliasing) and is bilinear where it grows; 'bilinear' always
        interpolates between the nearest four pixels (torchvision, OpenCV); 'pil' weighs all pixels under a triangle (PIL's
        bilinear, detectron2); 'darknet' interpolates between the nearest four after aligning the corner pixels.
        Each rounds the sides of the resized image as the programs that use it do.
    """

    resize: str = 'fit'
    shorter_side: int | None = None
    longer_side: int | None = None
    interpolation: str = 'area'

    @property
    def is_limited(self) -> bool:
        """Whether the rule, and not the canvas, decides how large images are, unless the canvas is too small."""
        return self.shorter_side is not None or self.longer_side is not None


def resize_rule(recipe: Mapping[str, Any]) -> ResizeRule:
    """Makes the rule of a recipe (`config.data.recipe`)."""
    return ResizeRule(*(recipe[key] for key in ResizeRule._fields))


class Placement(NamedTuple):
    """Where an image lies on a canvas.

    scale: (x, y) canvas pixels per image pixel.
    size: (width, height) of the resized image.
    offset: (x, y) of its top left corner on the canvas; negative where the image hangs over.
    """

    scale: tuple[float, float]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def window(self) -> np.ndarray:
        """[4] float32 xyxy, canvas pixels."""
        return np.float32([*self.offset, self.offset[0] + self.size[0], self.offset[1] + self.size[1]])

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Maps [..., 4] xyxy boxes of the image to the canvas."""
        return boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2)

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Maps [..., 4] xyxy boxes of the canvas to the image: the inverse of `to_canvas`."""
        return (boxes - np.tile(self.offset, 2)) / np.tile(self.scale, 2)

    @property
    def matrix_to_image(self) -> np.ndarray:
        """[3, 3] float64, maps (x, y, 1) of the canvas to the image."""
        (x, y), (left, top) = self.scale, self.offset
        return np.array([[1 / x, 0, -left / x], [0, 1 / y, -top / y], [0, 0, 1]])


def fit_scale(size: tuple[float, float], canvas: tuple[int, int] | None, rule: ResizeRule) -> float:
    """Computes the scale at which an image fits the canvas, and neither side exceeds its limit.

    Args:
        size: height and width of the image, pixels.
        canvas: height and width of the canvas, pixels; None for no limit by a canvas.
        rule: a rule, of which only the limits count.

    Returns:
        canvas pixels per image pixel; 1 where there is no limit at all.
    """
    limits = [] if canvas is None else [canvas[0] / size[0], canvas[1] / size[1]]
    if rule.shorter_side is not None:
        limits.append(rule.shorter_side / min(size))
    if rule.longer_side is not None:
        limits.append(rule.longer_side / max(size))
    return min(limits, default=1.0)


def resize_scale(size: tuple[float, float], canvas: tuple[int, int], rule: ResizeRule) -> tuple[float, float]:
    """Computes the scales of x and y at which a rule puts an image of (height, width) on a canvas."""
    if rule.resize == 'stretch':
        return canvas[1] / size[1], canvas[0] / size[0]
    scale = fit_scale(size, canvas, rule)
    return scale, scale


def choose_canvas(size: tuple[int, int], canvases: Sequence[tuple[int, int]], rule: ResizeRule) -> tuple[int, int]:
    """Chooses the canvas on which an image that keeps its aspect ratio is largest, the smallest of equals."""
    return min(map(tuple, canvases), key=lambda canvas: (-fit_scale(size, canvas, rule), canvas[0] * canvas[1]))


def own_canvas(size: tuple[int, int], rule: ResizeRule, divisor: int) -> tuple[int, int]:
    """Makes a canvas for one image alone: as large as the limits make the image, rounded up to multiples of a divisor."""
    width, height = _rounded_sides(size, fit_scale(size, None, rule), rule)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def whole_pixels(size: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Rounds an image of (height, width) times the scales of x and y to whole pixels: its (width, height)."""
    return max(1, round(size[1] * scale[0])), max(1, round(size[0] * scale[1]))


def _sides(size: tuple[int, int], canvas: tuple[int, int], rule: ResizeRule) -> tuple[int, int]:
    """Computes how large a rule makes an image of (height, width): (width, height)."""
    if rule.resize == 'stretch':
        return canvas[::-1]
    if rule.is_limited:  # the limits first: a rounded side may fill the canvas to the last pixel
        width, height = _rounded_sides(size, fit_scale(size, None, rule), rule)
        if height <= canvas[0] and width <= canvas[1]:
            return width, height
    return _rounded_sides(size, fit_scale(size, canvas, rule), rule)


def _rounded_sides(size: tuple[int, int], scale: float, rule: ResizeRule) -> tuple[int, int]:
    """Rounds the sides of an image of (height, width) times a scale as programs with that interpolation do: (width, height)."""
    if rule.interpolation == 'area':
        return whole_pixels(size, (scale, scale))
    # Detectron2, with PIL, rounds halves up. Darknet divides integers: rounding errors must not lose a pixel.
    shift = {'bilinear': 0, 'pil': 0.5, 'darknet': 1e-9}[rule.interpolation]
    return max(1, math.floor(size[1] * scale + shift)), max(1, math.floor(size[0] * scale + shift))


def corner(size: tuple[int, int], canvas: tuple[int, int], rule: ResizeRule) -> tuple[int, int]:
    """Computes where a rule puts the top left corner (x, y) of a resized image of (width, height); never negative."""
    if rule.resize != 'letterbox':
        return 0, 0
    return max(0, canvas[1] - size[0]) // 2, max(0, canvas[0] - size[1]) // 2


def placement(size: tuple[int, int], canvas: tuple[int, int], rule: ResizeRule) -> Placement:
    """Computes where a rule puts an image of (height, width) on a canvas."""
    width, height = _sides(size, canvas, rule)
    return Placement((width / size[1], height / size[0]), (width, height), corner((width, height), canvas, rule))


def place(
    image: np.ndarray, canvas: tuple[int, int], rule: ResizeRule, *, rounded: bool = True
) -> tuple[np.ndarray, Placement]:
    """Resizes an image and puts it on a canvas.

    Args:
        image: [h, w, 3] uint8.
        canvas: (H, W).
        rule: how the image is resized and placed.
        rounded: whether interpolated pixels are rounded to uint8.

    Returns:
        [H, W, 3] uint8, or float32 in 0..255 if not rounded; and where the image lies on it.
    """
    where = placement(image.shape[:2], canvas, rule)
    return pad(resize(image, where.size, rule.interpolation, rounded=rounded), where.offset, canvas), where


def resize(
    image: np.ndarray, size: tuple[int, int], interpolation: str = 'area', *, rounded: bool = True
) -> np.ndarray:
    """Resizes an image.

    Args:
        image: [h, w, 3] uint8.
        size: (width, height).
        interpolation: see `ResizeRule`.
        rounded: whether interpolated pixels are rounded to uint8. PIL's always are.

    Returns:
        [height, width, 3] uint8, or float32 in 0..255 if not rounded.
    """
    if interpolation == 'pil':
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return resized if rounded else resized.astype(np.float32)
    if interpolation == 'darknet':
        resized = _interpolate(image.astype(np.float32), size, _positions_of_corners)
        return np.rint(resized).astype(np.uint8) if rounded else resized
    if interpolation == 'bilinear' and not rounded:  # OpenCV's is up to 0.02 of 255 away from torch's
        return _interpolate(image.astype(np.float32), size, _positions_of_centers)
    if interpolation == 'bilinear':
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    image = image if rounded else image.astype(np.float32)
    height, width = image.shape[:2]
    smaller = min(size[0], width), min(size[1], height)
    if smaller not in (size, (width, height)):  # one side grows, one shrinks: OpenCV averages only if no side grows
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    # One row less may come from rounding a scale of nearly 1: nothing to average.
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0] - 1
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _positions_of_corners(length: int, count: int) -> np.ndarray:
    """Where darknet samples a side of `length` pixels `count` times: the first and last sample on the outermost pixels."""
    return np.arange(count, dtype=np.float32) * np.float32((length - 1) / max(1, count - 1))


def _positions_of_centers(length: int, count: int) -> np.ndarray:
    """Where torch samples a side: at the centres of `count` equal parts, rounded once (it multiplies and adds in one step)."""
    return ((np.arange(count) + 0.5) * np.float64(np.float32(length / count)) - 0.5).astype(np.float32)


def _interpolate(image: np.ndarray, size: tuple[int, int], positions: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Resizes [h, w, 3] float32 bilinearly to (width, height), sampled at `positions` of a side's length and its new one."""
    for axis, length in ((1, size[0]), (0, size[1])):
        last = image.shape[axis] - 1
        position = positions(last + 1, length).clip(0, last)
        first = position.astype(int)
        fraction = (position - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        second = np.minimum(first + 1, last)
        image = (1 - fraction) * image.take(first, axis) + fraction * image.take(second, axis)
    return image


def mask_in_frame(mask: np.ndarray, box: np.ndarray, to_record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Samples a mask in the frame of a box on the canvas.

    Args:
        mask: [h, w] bool or uint8 0 and 1, of the record's image.
        box: [4] float xyxy, canvas pixels: an object's, or whole pixels, of which each is then a cell.
        to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image; includes turns and flips.
        size: (columns, rows) of the frame.

    Returns:
        [rows, columns] bool: whether the mask, interpolated between its pixels' centres, is at least a half at the centre of
        each cell of the frame; False outside the image.
    """
    x1, y1, x2, y2 = box
    columns, rows = size
    width, height = (x2 - x1) / columns, (y2 - y1) / rows  # of a cell
    cells = np.array(
        [[width, 0, x1 + width / 2], [0, height, y1 + height / 2], [0, 0, 1]]
    )  # from indices to the canvas
    matrix = to_record @ cells - [[0, 0, 0.5], [0, 0, 0.5]]  # pixels have whole indices at their centres
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # The cells' centres lie in a parallelogram of the record's image. Only the pixels around it are read.
    ends = matrix @ [[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]]
    limits = mask.shape[1], mask.shape[0]
    left, top = np.clip(np.floor(ends.min(axis=1)).astype(int) - 1, 0, limits).tolist()
    right, bottom = np.clip(np.ceil(ends.max(axis=1)).astype(int) + 2, 0, limits).tolist()
    part = mask[top:bottom, left:right]
    if not part.any():
        return np.zeros((rows, columns), bool)
    part = np.multiply(part, np.uint8(255), dtype=np.uint8, order='C')
    matrix -= [[0, 0, left], [0, 0, top]]
    return cv2.warpAffine(part, matrix, size, flags=flags, borderValue=0) >= 128


def pad(image: np.ndarray, offset: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Puts [h, w, 3] on a canvas [H, W, 3] of zeros, its top left corner at offset (x, y)."""
    (x, y), (height, width) = offset, image.shape[:2]
    padded = np.zeros((*canvas, 3), image.dtype)
    padded[y : y + height, x : x + width] = image
    return padded
