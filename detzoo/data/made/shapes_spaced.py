"""`shapes_apart`, `shapes_touching`, `shapes_overlapping`: the same shapes, pushed closer and closer together.

    RandomState([SEED, split, index])  ->  the background, one class for all shapes of the picture, and a seed for each of them
    a seed  ->  size, turn and colour of a shape, and the direction in which it moves away from one that is there,
                until it has the distance from all others that its data set asks for

Neighbours are of one class, so that classes of pixels do not tell them apart. The three data sets differ in the distances alone:
with the same index they have the same background, class and shapes, except for those that found no room, and for colours that
would not stand out from what is below.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from detzoo.data import records
from detzoo.data.made import shapes

SEED = 5
SIZES = {'train': 1000, 'validation': 200}
COUNTS = (2, 7)  # shapes of a picture, fewest and most
RADII = (8.0, 14.0)  # px, of a shape before it is stretched
TRIES = 8  # places that are tried for a shape
FARTHEST = 64  # px that a shape moves away at most
IN_PICTURE = 0.8  # of a shape's own pixels


class Spacing(NamedTuple):
    """How close shapes may come.

    gap: pixels between the outlines of two shapes, at least; 0 or more.
    hidden: the largest share of a shape's pixels that those above it may hide; above 0, the gap does not count.
    """

    gap: float
    hidden: float


SPACINGS = {
    'shapes_apart': Spacing(gap=4.0, hidden=0.0),
    'shapes_touching': Spacing(gap=0.0, hidden=0.0),
    'shapes_overlapping': Spacing(gap=0.0, hidden=0.35),
}


class _Spaced(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the three builders share: the spacing is that of their name."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=shapes.CLASS_NAMES,
            category_ids=range(1, len(shapes.CLASS_NAMES) + 1),
            description='Drawn shapes in clusters of one class, with exact masks of their visible pixels.',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in tqdm(range(SIZES[split]), desc=f'drawing {self.name} {split}', unit='image'):
            yield index, shapes.describe(*draw(SPACINGS[self.name], split, index), split, index)


class ShapesApart(_Spaced):
    """The TFDS builder of `shapes_apart`."""


class ShapesTouching(_Spaced):
    """The TFDS builder of `shapes_touching`."""


class ShapesOverlapping(_Spaced):
    """The TFDS builder of `shapes_overlapping`."""


def draw(spacing: Spacing, split: str, index: int) -> tuple[np.ndarray, list[shapes.Object]]:
    """Draws one picture.

    Args:
        spacing: how close shapes may come.
        split: 'train' or 'validation'.
        index: index of the picture in its split.

    Returns:
        image: [h, w, 3] uint8 RGB, sides in `shapes.SIDES`.
        objects: the shapes, all of one class, in the order in which they were painted.
    """
    rng = np.random.RandomState([SEED, list(SIZES).index(split), index])
    height, width = rng.randint(shapes.SIDES[0], shapes.SIDES[1] + 1, 2)
    image = shapes.background(rng, height, width)
    label = rng.randint(len(shapes.CLASS_NAMES))
    seeds = rng.randint(2**31, size=rng.randint(COUNTS[0], COUNTS[1] + 1))
    objects: list[shapes.Object] = []
    for seed in seeds:
        objects = _beside(np.random.RandomState(seed), image, objects, label, spacing)
    return shapes.to_pixels(rng, image), objects


def _beside(
    rng: np.random.RandomState, image: np.ndarray, objects: list[shapes.Object], label: int, spacing: Spacing
) -> list[shapes.Object]:
    """Paints one more shape beside those that are there, if it finds room; returns the objects afterwards."""
    height, width = image.shape[:2]
    radius, turn = np.exp(rng.uniform(*np.log(RADII))), rng.randint(2**31)
    for anchor, angle, x, y in rng.rand(TRIES, 4):
        start, direction = (width, height) * (0.3 + 0.4 * np.array([x, y])), np.zeros(2)
        if objects:
            rows, columns = np.nonzero(objects[int(anchor * len(objects))].mask)
            start, direction = np.array([columns.mean(), rows.mean()]) + 0.5, _unit(2 * np.pi * angle)
        for distance in range(FARTHEST):
            place = start + distance * direction
            window, outline, pixels = shapes.stamp(np.random.RandomState(turn), label, place, radius, image)
            mask = np.zeros((height, width), bool)
            mask[window] = outline < 0
            if mask.sum() < IN_PICTURE * pixels:
                break  # it has left the picture
            after = [below._replace(mask=below.mask & ~mask) for below in objects]
            if _has_room(outline, window, objects, after, spacing):
                shapes.paint_shape(rng, image, label, window, outline)
                return [*after, shapes.Object(label, mask, int(mask.sum()))]
    return objects


def _unit(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _has_room(
    outline: np.ndarray,
    window: tuple[slice, slice],
    objects: list[shapes.Object],
    after: list[shapes.Object],
    spacing: Spacing,
) -> bool:
    """Tells whether a shape keeps its distance.

    Args:
        outline, window: see `shapes.stamp`.
        objects: what is there.
        after: the same without what the shape would hide.
        spacing: how close it may come.
    """
    if spacing.hidden:
        return all(thing.mask.sum() >= (1 - spacing.hidden) * thing.pixels for thing in after)
    return not any((thing.mask[window] & (outline < spacing.gap)).any() for thing in objects)
