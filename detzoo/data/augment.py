"""Augmentation: a random variation of an image with its boxes, on a canvas.

    flip, quarter turn -> the part of the image to show: zoom out, move the sides, crop around objects
                       -> where the canvas gets it: `geometry`'s rule, aspect ratio and scale jittered
                       -> resize, cut what hangs over, change colours -> (canvas, window, boxes, ...)

The part may reach beyond the image. The image is resized once, straight to its place. The filling around it is left to the
detector, which zeroes pixels outside the window after normalising, so that they have the mean colour.

An option that is off draws no random numbers, so that a new option changes no run without it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask

from detzoo.core.boxes import xyxy_to_xywh
from detzoo.data.geometry import (
    INTERPOLATIONS,
    RESIZES,
    Placement,
    corner,
    pad,
    resize,
    resize_rule,
    resize_scale,
    whole_pixels,
)

MIN_VISIBLE = 0.25  # an object of which a crop leaves a smaller share becomes a crowd: neither positive nor background
MIN_SIDE = 0.01  # canvas pixels; a thinner box would have no width in float32
SEVERAL_RECORDS = 'mosaic', 'copy_paste', 'mixup'  # options of a recipe with which `compose` reads several records
CROP_OVERLAPS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # choices of `sample_crop`; None for no crop
CROP_TRIALS = 50
BAND = 8192  # pixels whose colours are changed at once: their floats stay in a core's cache


class Augmented(NamedTuple):
    """An augmented image, and what became of its objects.

    image: [H, W, 3] uint8.
    window: [4] float32 xyxy, where on the canvas the image lies.
    boxes: [n, 4] float64 xyxy, canvas pixels, inside the window.
    kept: [n] int, indices of these objects in the record.
    crowd: [n] bool, True for crowds, and for objects of which so little is left that they count as crowds.
    visible: [n] float64, share of each box that the canvas shows; of what 'iou_crop' left of it.
    cut: [n] bool, whether a crop or the canvas's edge cut something off.
    to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image.
    """

    image: np.ndarray
    window: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray
    crowd: np.ndarray
    visible: np.ndarray
    cut: np.ndarray
    to_record: np.ndarray


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
        recipe: all keys of `config.data.recipe`, checked by `check_recipe`:
            'flip', the probability of a horizontal flip;
            'rotate90', whether to turn by a random multiple of 90 degrees;
            'zoom_out', 'jitter', 'iou_crop': see `zoom_out`, `move_sides`, `sample_crop`;
            'resize', 'shorter_side', 'longer_side', 'interpolation': see `geometry.ResizeRule`;
            'aspect_jitter', 'scale_range', 'uniform_scale': see `draw_placement`;
            'color_jitter': see `jitter_colors`;
            'brightness', 'hue', 'saturation', 'exposure', 'color_probability': see `distort_colors`.
        rng: source of randomness.

    Returns:
        Augmented. An object of which a cut leaves less than `MIN_VISIBLE` becomes a crowd. For the crop of 'iou_crop' the
        paper's rule holds instead: an object whose centre is inside stays an object, however little is left of it; other
        objects are dropped, except crowds.
    """
    back = np.eye(3)  # from pixels of `image` to the record's
    if rng.uniform() < recipe['flip']:
        width = image.shape[1]
        image, boxes, back = cv2.flip(image, 1), flip_boxes(boxes, width), back @ [[-1, 0, width], [0, 1, 0], [0, 0, 1]]
    if recipe['rotate90']:
        for _ in range(rng.randint(4)):
            width = image.shape[1]
            image, boxes, back = (
                cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
                rotate_boxes(boxes, width),
                back @ [[0, -1, width], [1, 0, 0], [0, 0, 1]],
            )

    height, width = image.shape[:2]
    part, kept, cut = np.array([0, 0, width, height]), np.arange(len(boxes)), np.zeros(len(boxes), bool)
    if recipe['zoom_out'] > 1:
        part = zoom_out(part, recipe['zoom_out'], rng)
    if recipe['jitter'] > 0:
        part = move_sides(part, recipe['jitter'], rng)
    if recipe['iou_crop']:
        part = sample_crop(part, boxes[~crowd], (height, width), rng)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centers >= part[:2]) & (centers <= part[2:])).all(axis=1)
        kept = np.flatnonzero(inside | crowd)  # a crowd of which a part is seen must not become background
        uncut, crowd = boxes[kept], crowd[kept]
        boxes = np.clip(uncut, np.tile(part[:2], 2), np.tile(part[2:], 2))
        cut = (boxes != uncut).any(axis=1)

    where = draw_placement(part, canvas, recipe, rng)
    x1, y1, x2, y2 = shown = np.clip(part, 0, [width, height, width, height])
    where = place_inside(shown - np.tile(part[:2], 2), where)
    image = resize(image[y1:y2, x1:x2], where.size, recipe['interpolation'])
    whole = where.to_canvas(boxes - [x1, y1, x1, y1])
    back = (back @ [[1, 0, x1], [0, 1, y1], [0, 0, 1]] @ where.matrix_to_image)[:2]

    window = np.clip(where.window, 0, np.float32([canvas[1], canvas[0]] * 2))
    left, top, right, bottom = window.astype(int)
    (x, y), boxes = where.offset, np.clip(whole, np.tile(window[:2], 2), np.tile(window[2:], 2))
    image = image[top - y : bottom - y, left - x : right - x]
    if image.size:  # at a large scale the canvas may show nothing but the filling
        image = distort_colors(jitter_colors(image, recipe['color_jitter'], rng), recipe, rng)
    visible = _areas(boxes) / np.maximum(_areas(whole), 1e-9)
    seen = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1))
    crowd = crowd | (visible < MIN_VISIBLE)
    cut = cut | (np.abs(boxes - whole) > MIN_SIDE).any(axis=1)
    image = pad(image, (left, top), canvas)
    return Augmented(image, window, boxes[seen], kept[seen], crowd[seen], visible[seen], cut[seen], back)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Maps [N, 4] xyxy boxes as a horizontal flip maps an image of that width."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def rotate_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Maps [N, 4] xyxy boxes as `np.rot90` (counterclockwise) maps an image of that width."""
    return np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)


def zoom_out(part: np.ndarray, largest: float, rng: np.random.RandomState) -> np.ndarray:
    """Surrounds an image with filling in half of all cases (SSD, 1512.02325, section 3.6: small objects).

    Args:
        part: [4] int xyxy, pixels: the image.
        largest: the ratio of the new sides to the old ones is drawn uniformly from 1..largest.
        rng: source of randomness.

    Returns:
        [4] int xyxy, with the image somewhere inside.
    """
    if rng.uniform() < 0.5:
        return part
    size = part[2:] - part[:2]
    larger = (size * rng.uniform(1, largest)).astype(int)
    start = part[:2] - [rng.randint(extra + 1) for extra in larger - size]
    return np.concatenate([start, start + larger])


def move_sides(part: np.ndarray, jitter: float, rng: np.random.RandomState) -> np.ndarray:
    """Moves each side of [4] int xyxy in or out, uniformly, by up to a share of the width or height.

    With 'stretch' this is darknet's first `jitter`, with which YOLO was trained (1506.02640, section 2.2: scaling and
    translations of up to 20 %; 1612.08242, section 3). Since March 2017 darknet's key of that name means `aspect_jitter`.
    """
    size = np.tile(part[2:] - part[:2], 2)
    return part + (rng.uniform(-jitter, jitter, 4) * size).astype(int)


def sample_crop(part: np.ndarray, boxes: np.ndarray, size: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Draws a crop around objects (SSD, 1512.02325, section 2.2; sides and number of trials as in the authors' code).

    With equal chances it is the whole part, or a rectangle of 0.3..1 of the sides (the paper says 0.1) and 1/2..2 times the
    aspect ratio of the whole: any rectangle, or one with an overlap (IoU) of at least 0.1, 0.3, 0.5, 0.7 or 0.9 with some
    object. If 50 trials find none, another of these choices is drawn.

    Args:
        part: [4] int xyxy, what to crop; it may be larger than the image.
        boxes: [N, 4] float64 xyxy, the objects that count. Without objects the whole part is taken.
        size: height and width of the image; a crop that shows nothing of it is not taken.
        rng: source of randomness.

    Returns:
        [4] int xyxy, inside the part.
    """
    for choice in rng.permutation(len(CROP_OVERLAPS)):
        overlap = CROP_OVERLAPS[choice]
        if overlap is None:
            return part
        scale, ratio = rng.uniform(0.3, 1, CROP_TRIALS), rng.uniform(0.5, 2, CROP_TRIALS)
        ratio = np.clip(ratio, scale**2, scale**-2)  # neither side becomes longer than the part's
        sides = np.stack([scale * np.sqrt(ratio), scale / np.sqrt(ratio)], axis=1)  # [trials, 2]
        start = rng.uniform(size=(CROP_TRIALS, 2)) * (1 - sides)
        crops = np.concatenate([start, start + sides], axis=1) * np.tile(part[2:] - part[:2], 2)
        crops = np.rint(crops).astype(int) + np.tile(part[:2], 2)
        shown = (np.minimum(crops[:, 2:], size[::-1]) > np.maximum(crops[:, :2], 0)).all(axis=1)
        good = shown & (_best_overlaps(crops, boxes) >= overlap)
        if good.any():
            return crops[good.argmax()]
    raise AssertionError('one of the choices always returns')


def draw_placement(
    part: np.ndarray, canvas: tuple[int, int], recipe: Mapping[str, Any], rng: np.random.RandomState
) -> Placement:
    """Draws where on the canvas a part of an image lies.

    Args:
        part: [4] int xyxy, pixels.
        canvas: (H, W), pixels.
        recipe: 'resize', 'shorter_side' and 'longer_side' are the rule without randomness.
            'aspect_jitter' first changes width and height, independently, by up to that share each; a result smaller than the
            canvas then lies anywhere on it (darknet's `jitter` since March 2017).
            'scale_range' has the limits of a factor of the scale, drawn log-uniformly, or uniformly if 'uniform_scale'; a
            result larger than the canvas hangs over at random.
        rng: source of randomness.

    Returns:
        Placement of the part.
    """
    size, rule, jitter = part[2:] - part[:2], resize_rule(recipe), recipe['aspect_jitter']
    width, height = size.tolist()
    wider, higher = 1 + rng.uniform(-jitter, jitter, 2) if jitter > 0 else (1, 1)
    scale = resize_scale((height * higher, width * wider), canvas, rule)
    limits = np.array(recipe['scale_range'])
    factor = rng.uniform(*limits) if recipe['uniform_scale'] else np.exp(rng.uniform(*np.log(limits)))
    size = whole_pixels((height, width), (scale[0] * wider * factor, scale[1] * higher * factor))
    free = canvas[1] - size[0], canvas[0] - size[1]
    left, top = (rng.randint(max(0, -extra) + 1) for extra in free)
    x, y = (rng.randint(max(0, extra) + 1) for extra in free) if jitter > 0 else corner(size, canvas, rule)
    return Placement((size[0] / width, size[1] / height), size, (x - left, y - top))


def place_inside(part: np.ndarray, where: Placement) -> Placement:
    """Computes where a part ([4] int xyxy) of something placed lies, in whole pixels: at least one pixel, and inside it."""
    limits = np.tile(where.offset, 2) + [0, 0, *where.size]
    x1, y1, x2, y2 = np.rint(where.to_canvas(part)).astype(int).tolist()
    x1, y1 = min(x1, limits[2] - 1), min(y1, limits[3] - 1)
    size = max(1, x2 - x1), max(1, y2 - y1)
    return Placement((size[0] / (part[2] - part[0]), size[1] / (part[3] - part[1])), size, (x1, y1))


def jitter_colors(image: np.ndarray, strength: float, rng: np.random.RandomState) -> np.ndarray:
    """Changes brightness, contrast and saturation of [h, w, 3] uint8 by factors drawn from 1 - strength .. 1 + strength."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    # float64, as brightness is; the operations in place below keep it.
    values = cv2.LUT(image, np.arange(256, dtype=np.float32) * brightness)
    mean = values.mean()
    values -= mean
    values *= contrast
    values += mean
    gray = (values @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    values -= gray
    values *= saturation
    values += gray
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)


def distort_colors(image: np.ndarray, recipe: Mapping[str, Any], rng: np.random.RandomState) -> np.ndarray:
    """Changes colours in HSV as SSD and YOLO do (1512.02325, section 2.2; 1506.02640, section 2.2).

    Only the image's pixels change; darknet also changes the gray around it, since it places the image first.

    SSD's `contrast` and darknet's `exposure` are the same: a factor on all channels. A factor is as likely below 1 as above, and
    uniform on either side. For (0.5, 1.5) that is uniform throughout, as in SSD; below 1, darknet's is the reciprocal of a
    uniform number.

    Args:
        image: [h, w, 3] uint8 RGB.
        recipe: 'brightness', the largest summand on all channels, 0..255; 'hue', the largest shift, in turns of the colour
            circle; 'saturation', 'exposure', the (smallest, largest) factor; 'color_probability', the chance of each change.
        rng: source of randomness.

    Returns:
        [h, w, 3] uint8.
    """

    def happens() -> bool:
        return rng.uniform() < recipe['color_probability']

    def summand(key: str) -> float:
        return rng.uniform(-recipe[key], recipe[key]) if recipe[key] > 0 and happens() else 0.0

    def factor(key: str) -> float:
        low, high = recipe[key]
        return np.interp(rng.uniform(-1, 1), (-1, 0, 1), (low, 1, high)) if low < high and happens() else 1.0

    brightness, hue, saturation, exposure = (
        summand('brightness'),
        summand('hue'),
        factor('saturation'),
        factor('exposure'),
    )
    if (brightness, hue, saturation, exposure) == (0, 0, 1, 1):
        return image
    brighter = np.clip(np.arange(256, dtype=np.float32) + brightness, 0, 255)
    distorted = np.empty_like(image)
    rows = max(1, BAND // image.shape[1])
    for top in range(0, len(image), rows):
        rgb = cv2.LUT(image[top : top + rows], brighter)
        # Of floats: degrees, 0..1, and the largest channel.
        hues, saturations, largest = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
        hues += 360 * hue
        hues += np.float32(360) * (hues < 0)
        hues -= np.float32(360) * (hues >= 360)
        np.minimum(saturations * saturation, 1, out=saturations, casting='same_kind')
        rgb = cv2.cvtColor(cv2.merge([hues, saturations, largest]), cv2.COLOR_HSV2RGB) * exposure
        distorted[top : top + rows] = np.clip(np.rint(rgb, out=rgb), 0, 255, out=rgb)
    return distorted


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuses impossible values of `config.data.recipe`, with a ValueError that names the key."""

    def check(key: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f'recipe.{key} is {recipe[key]!r}: it must be {wanted}')

    check('resize', recipe['resize'] in RESIZES, f'one of {", ".join(map(repr, RESIZES))}')
    check('interpolation', recipe['interpolation'] in INTERPOLATIONS, f'one of {", ".join(map(repr, INTERPOLATIONS))}')
    for key in ('shorter_side', 'longer_side'):
        check(
            key,
            recipe[key] is None or recipe['resize'] != 'stretch',
            "None with resize 'stretch', which has no scale to limit",
        )
        check(key, recipe[key] is None or recipe[key] > 0, 'a positive number of pixels, or None')
    for key in ('flip', 'color_jitter', 'color_probability', 'mosaic', 'copy_paste', 'mixup', 'cutout'):
        check(key, 0 <= recipe[key] <= 1, 'in 0..1')
    check('cutout_side', 0 < recipe['cutout_side'] <= 1, 'above 0 and at most 1')
    check('zoom_out', recipe['zoom_out'] >= 1, 'a ratio of at least 1 (off)')
    check('jitter', 0 <= recipe['jitter'] < 0.5, 'at least 0 (off) and below 0.5, where opposite sides would meet')
    check('aspect_jitter', 0 <= recipe['aspect_jitter'] < 1, 'at least 0 (off) and below 1')
    stretched = recipe['resize'] == 'stretch' and recipe['aspect_jitter'] > 0
    check('aspect_jitter', not stretched, "0 with resize 'stretch', which undoes it; 'jitter' is what varies there")
    good = _is_range(recipe['scale_range']) and 0.01 <= recipe['scale_range'][0] and recipe['scale_range'][1] <= 100
    check('scale_range', good, 'two factors in 0.01..100, the smaller one first')
    check('brightness', 0 <= recipe['brightness'] <= 255, 'in 0..255')
    check('hue', 0 <= recipe['hue'] <= 0.5, 'in 0..0.5 (half a turn)')
    for key in ('saturation', 'exposure'):
        good = _is_range(recipe[key]) and recipe[key][0] <= 1 <= recipe[key][1]
        check(key, good, 'two positive factors, the first at most 1, the second at least 1')


def _is_range(values: Sequence[float]) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]


def _best_overlaps(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The largest IoU [n] of each of [n, 4] xyxy crops with any of [N, 4] xyxy boxes; -1 where there is no box."""
    if not len(boxes):
        return np.full(len(crops), -1.0)
    as_xywh = [xyxy_to_xywh(xyxy).astype(np.float64) for xyxy in (crops, boxes)]
    return pycocotools.mask.iou(*as_xywh, np.zeros(len(boxes), np.uint8)).max(axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] of [N, 4] xyxy boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
