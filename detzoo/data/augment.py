"""From an image of any size to a canvas of a fixed one: the geometry that training and inference share, and augmentation.

    place:   scale -> paste at the top left corner -> (canvas, Placement); `Placement.to_image` maps boxes back
    augment: flip, quarter turn, scale jitter -> resize -> crop what hangs over -> colours -> (canvas, window, boxes, ...)

numpy and OpenCV on the host; boxes are xyxy float64 pixels of whatever image they belong to.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

MIN_VISIBLE = 0.25  # an object of which a crop leaves less becomes a crowd region: neither positive nor background
MIN_SIDE = 0.01  # canvas pixels; what is thinner would have no width in float32


class Placement(NamedTuple):
    """Where an image lies on a canvas.

    scale: (x, y) canvas pixels per image pixel.
    size: (width, height) of the resized image; it lies at the top left corner.
    """

    scale: tuple[float, float]
    size: tuple[int, int]

    @property
    def window(self) -> np.ndarray:
        """[4] float32 xyxy, canvas pixels."""
        return np.array([0, 0, *self.size], np.float32)

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Maps [..., 4] xyxy boxes of the image to the canvas."""
        return boxes * np.tile(self.scale, 2)

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Maps [..., 4] xyxy boxes of the canvas to the image: the inverse of `to_canvas`."""
        return boxes / np.tile(self.scale, 2)


def resize_scale(
    size: tuple[int, int], canvas: tuple[int, int], *, shorter_side: int | None = None, longer_side: int | None = None
) -> float:
    """Computes the scale at which an image fits the canvas, and neither side exceeds its limit.

    Args:
        size: height and width of the image, pixels.
        canvas: height and width of the canvas, pixels.
        shorter_side, longer_side: limits on the sides of the resized image, pixels; None for no limit.

    Returns:
        canvas pixels per image pixel.
    """
    limits = [canvas[0] / size[0], canvas[1] / size[1]]
    if shorter_side is not None:
        limits.append(shorter_side / min(size))
    if longer_side is not None:
        limits.append(longer_side / max(size))
    return min(limits)


def choose_canvas(size: tuple[int, int], canvases: Sequence[tuple[int, int]], **limits: int | None) -> tuple[int, int]:
    """Chooses the canvas on which an image is largest, the smallest of equals (arguments: see `resize_scale`)."""
    return min(map(tuple, canvases), key=lambda canvas: (-resize_scale(size, canvas, **limits), canvas[0] * canvas[1]))


def placement(size: tuple[int, int], scale: float) -> Placement:
    """Rounds an image of (height, width) times a scale to whole pixels."""
    width, height = max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
    return Placement((width / size[1], height / size[0]), (width, height))


def place(
    image: np.ndarray, canvas: tuple[int, int], *, shorter_side: int | None = None, longer_side: int | None = None
) -> tuple[np.ndarray, Placement]:
    """Resizes an image and puts it on a canvas.

    Args:
        image: [h, w, 3] uint8.
        canvas, shorter_side, longer_side: see `resize_scale`.

    Returns:
        [H, W, 3] uint8, and where the image lies on it.
    """
    limits = dict(shorter_side=shorter_side, longer_side=longer_side)
    where = placement(image.shape[:2], resize_scale(image.shape[:2], canvas, **limits))
    return pad(resize(image, where), canvas), where


def resize(image: np.ndarray, where: Placement) -> np.ndarray:
    """Resizes [h, w, 3] uint8: by area where it shrinks (no aliasing), bilinearly where it grows."""
    shrinks = where.size[0] < image.shape[1]
    return cv2.resize(image, where.size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def pad(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Pads [h, w, 3] with zeros on the right and at the bottom to [H, W, 3]."""
    return np.pad(image, ((0, canvas[0] - image.shape[0]), (0, canvas[1] - image.shape[1]), (0, 0)))


class Augmented(NamedTuple):
    """An augmented image and what became of its objects.

    image: [H, W, 3] uint8.
    window: [4] float32 xyxy, where on the canvas the image lies.
    boxes: [n, 4] float64 xyxy, canvas pixels, inside the window.
    kept: [n] int, which of the record's objects these are.
    crowd: [n] bool: was a crowd, or so little of it is left that it counts as one.
    """

    image: np.ndarray
    window: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray
    crowd: np.ndarray


def augment(
    image: np.ndarray,
    boxes: np.ndarray,
    crowd: np.ndarray,
    canvas: tuple[int, int],
    recipe: Mapping[str, Any],
    rng: np.random.RandomState,
) -> Augmented:
    """Draws a variation of an image with its boxes.

    Args:
        image: [h, w, 3] uint8.
        boxes: [N, 4] float64 xyxy, pixels.
        crowd: [N] bool.
        canvas: (H, W), pixels.
        recipe: 'flip', the probability of a horizontal flip; 'rotate90', whether to turn by a random multiple of 90
            degrees; 'scale_range', the factors between which the scale is drawn, log-uniformly; 'shorter_side',
            'longer_side' (see `resize_scale`); 'color_jitter', the strength of changes of brightness, contrast and
            saturation, 0..1.
        rng: where the randomness comes from.

    Returns:
        Augmented.
    """
    if rng.uniform() < recipe['flip']:
        image, boxes = image[:, ::-1], flip_boxes(boxes, image.shape[1])
    if recipe['rotate90']:
        for _ in range(rng.randint(4)):
            image, boxes = np.rot90(image), rotate_boxes(boxes, image.shape[1])
    low, high = recipe['scale_range']
    limits = dict(shorter_side=recipe['shorter_side'], longer_side=recipe['longer_side'])
    scale = resize_scale(image.shape[:2], canvas, **limits) * np.exp(rng.uniform(np.log(low), np.log(high)))
    where = placement(image.shape[:2], scale)
    image, boxes = resize(np.ascontiguousarray(image), where), where.to_canvas(boxes)

    left, top = (rng.randint(max(0, extra) + 1) for extra in (where.size[0] - canvas[1], where.size[1] - canvas[0]))
    image = image[top : top + canvas[0], left : left + canvas[1]]
    window = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
    whole = boxes - [left, top, left, top]
    boxes = np.clip(whole, 0, np.tile(window[2:], 2))
    visible = _areas(boxes) / np.maximum(_areas(whole), 1e-9)
    kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1))
    image = pad(jitter_colors(image, recipe['color_jitter'], rng), canvas)
    return Augmented(image, window, boxes[kept], kept, (crowd | (visible < MIN_VISIBLE))[kept])


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Maps [N, 4] xyxy boxes as a horizontal flip maps an image of that width."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def rotate_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Maps [N, 4] xyxy boxes as `np.rot90` (counterclockwise) maps an image of that width."""
    return np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)


def jitter_colors(image: np.ndarray, strength: float, rng: np.random.RandomState) -> np.ndarray:
    """Changes brightness, contrast and saturation of [h, w, 3] uint8 by factors drawn from 1 - strength .. 1 + strength."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    image = image.astype(np.float32) * brightness
    image = image.mean() + (image - image.mean()) * contrast
    gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image = gray[..., None] + (image - gray[..., None]) * saturation
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] of [N, 4] xyxy boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
