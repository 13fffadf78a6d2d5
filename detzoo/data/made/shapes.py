"""`shapes`: pictures that draw themselves, the yardstick for every detector and for tiny networks on a CPU.

    RandomState([SEED, split, index])   ->  everything of a picture: record i never depends on record i - 1
    `background`: gradient, waves, stains and scribbles which belong to no class
    `_crowd` (one picture in twenty)    ->  a swarm of tiny shapes under one crowd annotation
    `_shape`, again and again           ->  painted over what is there; masks below lose what it hides
    masks                               ->  visible pixels only; boxes are tight around them

Colour hints at the class, and misleads now and then; shapes are stretched, turned, shaded, cut by the frame and by each
other. None is placed where it, or one below it, would keep less than `MIN_VISIBLE` of itself. Every pixel is computed
with numpy, no drawing library involved, and `RandomState` streams are frozen: the checksums hold from version to version.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from detzoo.data import records

SEED = 1
SIZES = {'train': 1600, 'validation': 200}
SIDES = (96, 128)  # px, shortest and longest side of a picture
RADII = (8.0, 34.0)  # px, of a shape before it is stretched; log-uniform
MAX_SHAPES = 6
MIN_VISIBLE = 0.5  # of a shape's own pixels
MIN_PIXELS = 24
HUE_SPREAD = 0.08  # of the colour circle, standard deviation around the hue of the class
ANY_HUE = 0.1  # share of shapes whose colour tells nothing

# sha256 over the pixels and annotations of a split, record by record (tests/data/test_data_shapes.py computes it)
CHECKSUMS = {
    'train': '6bb0d7ea36c463e2d6a92a1f862a5a551b045d2866b692839c86771aba37b54d',
    'validation': '9597c3eab93b8c76e7f2e8a175c815e4f9c6fe0acc1d465f910c420ff85ed5b3',
}


def _half_planes(x: np.ndarray, y: np.ndarray, count: int, distance: float) -> np.ndarray:
    """Signed distances [count, ...] to lines at equal angles around the origin."""
    angles = np.arange(count) * (2 * np.pi / count)
    return np.stack([x * np.cos(angle) + y * np.sin(angle) for angle in angles]) - distance


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1, y - 0.33), np.maximum(x - 0.33, y - 1))


# Signed distance of points to the outline, negative inside, in units of the shape's radius.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'ellipse': lambda x, y: np.hypot(x, y) - 0.9,
    'ring': lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
    'triangle': lambda x, y: _half_planes(x, y, 3, 0.55).max(axis=0),
    'rectangle': lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.75,
    'cross': _cross,
}
CLASS_NAMES = tuple(OUTLINES)


class Object(NamedTuple):
    """An annotated object: one shape, or a crowd of them.

    label: int in 0..K-1.
    mask: [h, w] bool, the visible pixels.
    pixels: int, how many pixels it would have in full view.
    is_crowd: whether it stands for many shapes.
    """

    label: int
    mask: np.ndarray
    pixels: int
    is_crowd: bool = False


class Shapes(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of `shapes`."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=CLASS_NAMES,
            category_ids=range(1, len(CLASS_NAMES) + 1),
            description='Drawn shapes with exact masks of their visible pixels.',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in tqdm(range(SIZES[split]), desc=f'drawing shapes {split}', unit='image'):
            yield index, _example(split, index)


def draw(split: str, index: int) -> tuple[np.ndarray, list[Object]]:
    """Draws one picture.

    Args:
        split: 'train' or 'validation'.
        index: index of the picture in its split.

    Returns:
        image: [h, w, 3] uint8 RGB, sides in `SIDES`.
        objects: 0..MAX_SHAPES shapes and at most one crowd, each with at least `MIN_VISIBLE` of its pixels in view.
    """
    rng = np.random.RandomState([SEED, list(SIZES).index(split), index])
    return paint(rng, range(len(CLASS_NAMES)), MAX_SHAPES)


def paint(rng: np.random.RandomState, labels: Sequence[int], most: int) -> tuple[np.ndarray, list[Object]]:
    """Paints a picture of at most so many shapes, of some of the classes; returns what `draw` returns."""
    height, width = rng.randint(SIDES[0], SIDES[1] + 1, 2)
    image = background(rng, height, width)
    kind = rng.rand()
    objects = _crowd(rng, image, labels) if kind > 0.95 else []
    shapes = 0 if kind < 0.05 else rng.randint(1, most + 1)
    for _ in range(shapes):
        objects = _shape(rng, image, objects, labels)
    return to_pixels(rng, image), objects


def to_pixels(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Adds noise to a painted picture [h, w, 3] float64, in place, and rounds it to uint8."""
    image += rng.uniform(0, 0.08) * (rng.rand(*image.shape[:2], 1) - 0.5)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def background(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Paints [h, w, 3] float64 in 0..1: a gradient of two colours, waves, stains, and scribbles of no class."""
    y, x = _grid(slice(0, height), slice(0, width))
    near = rng.uniform(0.1, 0.9, 3)
    far = near + rng.uniform(-0.25, 0.25, 3)
    angle, wave_angle = rng.uniform(0, 2 * np.pi, 2)
    slope = (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5) + 0.7) / 1.4
    image = near + slope[..., None] * (far - near)

    wave = np.sin((np.cos(wave_angle) * x + np.sin(wave_angle) * y) * 2 * np.pi / rng.uniform(4, 24))
    image += rng.uniform(0, 0.08) * wave[..., None] * rng.uniform(-1, 1, 3)

    knots = rng.randint(3, 12)
    stain = _interpolation(height, knots) @ (rng.rand(knots, knots) - 0.5) @ _interpolation(width, knots).T
    image += rng.uniform(0, 0.4) * stain[..., None] * rng.uniform(-1, 1, 3)

    for _ in range(rng.randint(0, 7)):
        start, end = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        if rng.rand() < 0.6:
            end = start + rng.uniform(-22, 22, 2)
        window = _window(np.minimum(start, end) - 3, np.maximum(start, end) + 3, image)
        _paint(image[window], _distance_to_segment(*_grid(*window), start, end) - rng.uniform(0.3, 1.5), rng.rand(3))
    return image.clip(0, 1)


def _crowd(rng: np.random.RandomState, image: np.ndarray, labels: Sequence[int]) -> list[Object]:
    """Paints a swarm of tiny shapes of one class and returns it as one object."""
    height, width = image.shape[:2]
    label = labels[rng.randint(len(labels))]
    center = rng.uniform(0.25, 0.75, 2) * (width, height)
    mask = np.zeros((height, width), bool)
    for _ in range(rng.randint(12, 26)):
        position = center + rng.uniform(-1, 1, 2) * (26, 18)
        window, distance, _ = stamp(rng, label, position, rng.uniform(3, 5), image)
        _paint(image[window], distance, _colour(rng, label, image[window][_touched(distance)]))
        mask[window] |= distance < 0
    return [Object(label, mask, int(mask.sum()), is_crowd=True)]


def _shape(rng: np.random.RandomState, image: np.ndarray, objects: list[Object], labels: Sequence[int]) -> list[Object]:
    """Paints one more shape over the picture, if all objects stay visible; returns the objects afterwards."""
    height, width = image.shape[:2]
    label = labels[rng.randint(len(labels))]
    radius = np.exp(rng.uniform(*np.log(RADII)))
    window, distance, pixels = stamp(rng, label, rng.rand(2) * (width, height), radius, image)
    mask = np.zeros((height, width), bool)
    mask[window] = distance < 0
    after = [*(below._replace(mask=below.mask & ~mask) for below in objects), Object(label, mask, pixels)]
    if not all(map(_is_visible, after)):
        return objects

    paint_shape(rng, image, label, window, distance)
    return after


def paint_shape(
    rng: np.random.RandomState, image: np.ndarray, label: int, window: tuple[slice, slice], distance: np.ndarray
) -> None:
    """Paints a stamp, see `stamp`, and its shadow over the picture."""
    shadow = image[window][2:, 2:]
    _paint(shadow, distance[:-2, :-2] / 3, np.zeros(3), rng.uniform(0, 0.5))
    _paint(image[window], distance, _fill(rng, label, image, window, distance))


def _fill(
    rng: np.random.RandomState, label: int, image: np.ndarray, window: tuple[slice, slice], distance: np.ndarray
) -> np.ndarray:
    """Colours the pixels [n, 3] that a shape touches: plain or hatched, with or without a dark rim."""
    touched = _touched(distance)
    fill = np.tile(_colour(rng, label, image[window][touched]), (touched.sum(), 1))
    if rng.rand() < 0.15:
        angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(3, 9)
        y, x = _grid(*window)
        fill += 0.15 * np.sign(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period))[touched][:, None]
    if rng.rand() < 0.3:
        fill *= np.where(distance > rng.uniform(-4, -1), 0.5, 1)[touched][:, None]
    return fill.clip(0, 1)


def _is_visible(thing: Object) -> bool:
    return thing.mask.sum() >= max(MIN_PIXELS, MIN_VISIBLE * thing.pixels)


def stamp(
    rng: np.random.RandomState, label: int, center: np.ndarray, radius: float, image: np.ndarray
) -> tuple[tuple[slice, slice], np.ndarray, float]:
    """Turns and stretches the outline of a class.

    Returns:
        window: the part of the picture in which the shape and its shadow lie.
        distance: [h, w] of each pixel's centre there to the outline, about pixels, negative inside.
        pixels: the area of the whole shape, also of what lies outside of the picture.
    """
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.uniform(-0.2, 0.2, 2))
    reach = 1.1 * radius * stretch.max() + 13  # outlines end before 1.1 radii, a star's shadow 13 px further
    window = _window(center - reach, center + reach, image)
    y, x = _grid(*window)
    dx, dy = x - center[0], y - center[1]
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch[0])
    across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius * stretch[1])
    name = CLASS_NAMES[label]
    distance = OUTLINES[name](along, across) * radius * stretch.min()
    return window, distance, _unit_area(name) * radius**2 * stretch.prod()


@functools.cache
def _unit_area(name: str) -> float:
    """Measures the area of an outline whose radius is one."""
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    return 9 * float((OUTLINES[name](x, y) < 0).mean())


def _colour(rng: np.random.RandomState, label: int, below: np.ndarray) -> np.ndarray:
    """Draws a colour [3] in 0..1 around the hue of a class, that stands out from the pixels [n, 3] it will cover."""
    while True:
        hue = label / len(CLASS_NAMES) + HUE_SPREAD * rng.randn() if rng.rand() > ANY_HUE else rng.rand()
        saturation, value = rng.uniform(0.45, 1, 2)
        distance = (np.array([5, 3, 1]) + 6 * hue) % 6  # of red, green and blue from the hue, in sixths of the circle
        colour = value - value * saturation * np.minimum(distance, 4 - distance).clip(0, 1)
        if not len(below) or np.abs(colour - below.mean(axis=0)).max() > 0.3:
            return colour


def _paint(image: np.ndarray, distance: np.ndarray, colour: np.ndarray, opacity: float = 1) -> None:
    """Paints, in place, the pixels that a shape touches: one colour [3], or one a pixel [n, 3], antialiased at its edge."""
    touched = _touched(distance)
    share = opacity * (0.5 - distance[touched]).clip(0, 1)[:, None]
    image[touched] += share * (colour - image[touched])


def _touched(distance: np.ndarray) -> np.ndarray:
    return distance < 0.5  # a pixel whose centre is half a pixel away has none of the shape


def _distance_to_segment(y: np.ndarray, x: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    (dx, dy), (ex, ey) = (x - start[0], y - start[1]), end - start
    t = ((dx * ex + dy * ey) / (ex**2 + ey**2)).clip(0, 1)
    return np.hypot(dx - t * ex, dy - t * ey)


def _interpolation(size: int, knots: int) -> np.ndarray:
    """Makes the matrix [size, knots] that interpolates linearly between evenly spaced knots."""
    position = np.linspace(0, knots - 1, size)[:, None]
    return (1 - np.abs(position - np.arange(knots))).clip(0, 1)


def _window(low: np.ndarray, high: np.ndarray, image: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and columns between two corners (x, y), cut at the picture's edges."""
    bounds = zip(low[::-1], high[::-1], image.shape, strict=False)
    rows, columns = (slice(max(0, math.floor(start)), max(0, min(size, math.ceil(end)))) for start, end, size in bounds)
    return rows, columns


def _grid(rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Returns y [h, 1] and x [1, w], the centres of the pixels."""
    return np.arange(rows.start, rows.stop)[:, None] + 0.5, np.arange(columns.start, columns.stop)[None] + 0.5


def _example(split: str, index: int) -> dict[str, Any]:
    """Draws a picture and describes it as a record."""
    return describe(*draw(split, index), split, index)


def describe(image: np.ndarray, objects: Sequence[Object], split: str, index: int) -> dict[str, Any]:
    """Describes the picture at an index of a split as a record."""
    return {
        'image': cv2.imencode('.png', image[..., ::-1])[1].tobytes(),
        'image_id': index + 1,
        'file_name': f'{split}_{index + 1:04d}.png',
        'height': image.shape[0],
        'width': image.shape[1],
        'objects': [
            records.mask_object((index + 1) * (MAX_SHAPES + 1) + i, thing.label, thing.mask, thing.is_crowd)
            for i, thing in enumerate(objects)
        ],
    }
