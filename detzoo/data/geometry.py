"""From an image of any size to a canvas of a fixed one, and back: the geometry that training and inference share.

    choose_canvas: the canvas on which an image is largest
    placement:     where on it the image comes to lie -> Placement, whose `to_image` maps boxes back
    place:         resize, pad -> (canvas, Placement)

A `ResizeRule` says how: 'fit' at the top left corner, 'letterbox' in the middle, 'stretch' over the whole canvas. What
pixels around the image are does not matter: detectors zero what is outside of its window.

numpy and OpenCV on the host; boxes are xyxy float64 pixels of whatever image they belong to.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

RESIZES = ('fit', 'letterbox', 'stretch')


class ResizeRule(NamedTuple):
    """How images are put on a canvas.

    resize: 'fit' keeps the aspect ratio and puts the image at the top left corner; 'letterbox' keeps it and centres the
        image (darknet); 'stretch' resizes both sides to those of the canvas (SSD).
    shorter_side, longer_side: limits on the sides of the resized image, pixels; None for no limit. Not with 'stretch'.
    """

    resize: str = 'fit'
    shorter_side: int | None = None
    longer_side: int | None = None


def resize_rule(recipe: Mapping[str, Any]) -> ResizeRule:
    """Takes the rule out of a recipe (`config.data.recipe`)."""
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


def fit_scale(size: tuple[float, float], canvas: tuple[int, int], rule: ResizeRule) -> float:
    """Computes the scale at which an image fits the canvas, and neither side exceeds its limit.

    Args:
        size: height and width of the image, pixels.
        canvas: height and width of the canvas, pixels.
        rule: of which the limits count.

    Returns:
        canvas pixels per image pixel.
    """
    limits = [canvas[0] / size[0], canvas[1] / size[1]]
    if rule.shorter_side is not None:
        limits.append(rule.shorter_side / min(size))
    if rule.longer_side is not None:
        limits.append(rule.longer_side / max(size))
    return min(limits)


def resize_scale(size: tuple[float, float], canvas: tuple[int, int], rule: ResizeRule) -> tuple[float, float]:
    """Computes the scales of x and y at which a rule puts an image of (height, width) on a canvas."""
    if rule.resize == 'stretch':
        return canvas[1] / size[1], canvas[0] / size[0]
    scale = fit_scale(size, canvas, rule)
    return scale, scale


def choose_canvas(size: tuple[int, int], canvases: Sequence[tuple[int, int]], rule: ResizeRule) -> tuple[int, int]:
    """Chooses the canvas on which an image that keeps its aspect ratio is largest, the smallest of equals."""
    return min(map(tuple, canvases), key=lambda canvas: (-fit_scale(size, canvas, rule), canvas[0] * canvas[1]))


def whole_pixels(size: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Rounds an image of (height, width) times the scales of x and y to whole pixels: its (width, height)."""
    return max(1, round(size[1] * scale[0])), max(1, round(size[0] * scale[1]))


def corner(size: tuple[int, int], canvas: tuple[int, int], rule: ResizeRule) -> tuple[int, int]:
    """Says where a rule puts the top left corner (x, y) of a resized image of (width, height); no side is negative."""
    if rule.resize != 'letterbox':
        return 0, 0
    return max(0, canvas[1] - size[0]) // 2, max(0, canvas[0] - size[1]) // 2


def placement(size: tuple[int, int], canvas: tuple[int, int], rule: ResizeRule) -> Placement:
    """Says where a rule puts an image of (height, width) on a canvas."""
    width, height = whole_pixels(size, resize_scale(size, canvas, rule))
    return Placement((width / size[1], height / size[0]), (width, height), corner((width, height), canvas, rule))


def place(image: np.ndarray, canvas: tuple[int, int], rule: ResizeRule) -> tuple[np.ndarray, Placement]:
    """Resizes an image and puts it on a canvas.

    Args:
        image: [h, w, 3] uint8.
        canvas: (H, W).
        rule: how.

    Returns:
        [H, W, 3] uint8, and where the image lies on it.
    """
    where = placement(image.shape[:2], canvas, rule)
    return pad(resize(image, where.size), where.offset, canvas), where


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w, 3] uint8 to (width, height): by area where it shrinks (no aliasing), bilinearly where it grows."""
    height, width = image.shape[:2]
    smaller = min(size[0], width), min(size[1], height)
    if smaller not in (size, (width, height)):  # one side each way, and OpenCV averages only where no side grows
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    # One row less may be what rounding makes of a scale of nearly 1: nothing to average.
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0] - 1
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def mask_in_frame(mask: np.ndarray, box: np.ndarray, to_record: np.ndarray, size: int) -> np.ndarray:
    """Samples an object's mask in the frame of its box on the canvas.

    Args:
        mask: [h, w] bool or uint8 0 and 1, of the record's image.
        box: [4] float xyxy, canvas pixels.
        to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image; turns and flips included.
        size: S.

    Returns:
        [S, S] bool: whether the mask, interpolated between the centres of its pixels, is at least a half at the centre of
        each of the frame's cells; False outside of the image.
    """
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) / size, (y2 - y1) / size  # of a cell
    cells = np.array([[width, 0, x1 + width / 2], [0, height, y1 + height / 2], [0, 0, 1]])  # from indices to the canvas
    matrix = to_record @ cells - [[0, 0, 0.5], [0, 0, 0.5]]  # pixels have whole indices at their centres
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(255 * mask.astype(np.uint8), matrix, (size, size), flags=flags, borderValue=0) >= 128


def pad(image: np.ndarray, offset: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Puts [h, w, 3] on a canvas [H, W, 3] of zeros, its top left corner at offset (x, y)."""
    (x, y), (height, width) = offset, image.shape[:2]
    return np.pad(image, ((y, canvas[0] - y - height), (x, canvas[1] - x - width), (0, 0)))
