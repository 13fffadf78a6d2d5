"""Composition: one sample of a training stream, from the augmented images of one record or several.

    record -> `augment` -> Sample                     its image on the canvas, and its objects
    four of them      -> mosaic      a part of each in its quarter of the canvas (YOLOv4, 2004.10934)
    and another one   -> copy_paste  some of its objects, cut out by their masks, on top (2012.07177)
    and another one   -> mixup       blended with it (1710.09412; for detection 1902.04103)
                      -> cutout      a square is erased (1708.04552)
                      -> the boxes of what is cut or covered, tight around what is seen

Each happens with a probability of its own, in this order. Every record first goes through the whole recipe of `augment`, onto
the whole canvas. A sample depends on the records and the random numbers alone. So element i of a stream depends on (seed, i),
however many records it shows.

An object that is cut or covered is treated as one that a crop cuts. It becomes a crowd, neither positive nor background, if less
than `augment.MIN_VISIBLE` of it is left. It is dropped and counted if nothing is left.

Differences from the papers:
    mosaic: as in darknet, each image is as large as without a mosaic, and its quarter shows a part of it. An image that is
        smaller than its quarter lies against the inner edges, and the rest has the mean colour.
    copy_paste: the edges of pasted objects are not blurred (the paper gains nothing from it). The paper drops what is fully
        covered and keeps all other objects; here objects that are mostly covered become crowds.
    mixup: 1902.04103 weighs the loss of an object with its image's share of the blend. Here all objects count alike, except
        that those of an image with a share below `MIN_VISIBLE` count as crowds.
    cutout: the paper classifies images, and an image keeps its label whatever the square hides. Here boxes and masks are of what
        is still seen. The length of the square is a share of the image's shorter side; on CIFAR-10 the paper's is a half.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.augment import MIN_SIDE, MIN_VISIBLE, augment
from detzoo.data.objects import Object, fit_box, has_mask, pixels_of, place_of
from detzoo.data.records import Dataset, decode_image
from detzoo.errors import DataError

FILLING = (124, 116, 104)  # the mean colour of ImageNet, where nothing of an image lies inside a sample's window
CUT = 0.2, 0.8  # where a mosaic's inner edges lie, shares of the canvas's sides (darknet)
MIXUP_BETA = (
    1.5  # both parameters of the beta distribution from which an image's share of the blend is drawn (1902.04103)
)


class Sample(NamedTuple):
    """An image on a canvas, with its objects.

    image: [H, W, 3] uint8.
    window: [4] float32 xyxy, whole pixels: what of the canvas is the image.
    objects: those that are seen.
    cropped: number of objects of its records that are not.
    to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the image of the first record.
    """

    image: np.ndarray
    window: np.ndarray
    objects: list[Object]
    cropped: int
    to_record: np.ndarray


def compose(
    dataset: Dataset, index: int, canvas: tuple[int, int], recipe: Mapping[str, Any], rng: np.random.RandomState
) -> Sample:
    """Draws a sample that begins with a record.

    Args:
        dataset: the split; further records are drawn from all of it.
        index: index of the record.
        canvas: (H, W), pixels.
        recipe: all keys of `config.data.recipe`, checked by `augment.check_recipe`: those of `augment`, and
            'mosaic', 'copy_paste', 'mixup', 'cutout', the probability of each;
            'cutout_side': see `cutout`;
            'tight_boxes', whether boxes of objects that a crop cuts are fitted to their masks. They always are if one of these
            probabilities is above 0.
        rng: source of randomness. An option that is off draws nothing.

    Returns:
        Sample.
    """

    def happens(key: str) -> bool:
        return recipe[key] > 0 and rng.uniform() < recipe[key]

    def another() -> Sample:
        return vary(dataset.records[rng.randint(len(dataset.records))], canvas, recipe, rng)

    mosaicked = happens('mosaic')
    sample = vary(dataset.records[index], canvas, recipe, rng)
    if mosaicked:
        sample = mosaic([sample, another(), another(), another()], canvas, rng)
    if happens('copy_paste'):
        sample = copy_paste(sample, another(), rng)
    if happens('mixup'):
        sample = mixup(sample, another(), rng.beta(MIXUP_BETA, MIXUP_BETA))
    if happens('cutout'):
        sample = cutout(sample, recipe['cutout_side'], rng)
    composes = any(recipe[key] > 0 for key in ('mosaic', 'copy_paste', 'mixup', 'cutout'))
    return fit_boxes(sample) if composes or recipe['tight_boxes'] else sample


def images_of_sample(recipe: Mapping[str, Any]) -> int:
    """Counts the images that a sample shows at most."""
    return (4 if recipe['mosaic'] > 0 else 1) + sum(recipe[key] > 0 for key in ('copy_paste', 'mixup'))


def vary(
    record: Mapping[str, Any], canvas: tuple[int, int], recipe: Mapping[str, Any], rng: np.random.RandomState
) -> Sample:
    """Decodes and augments a record (`records.Records`); the other arguments are those of `compose`."""
    image = decode_image(record['image'], name=record['file_name'])
    result = augment(image, xywh_to_xyxy(record['boxes']), record['is_crowd'], canvas, recipe, rng)
    objects = [
        Object(box, record['labels'][row], crowd, record, row, result.to_record, visible, cut)
        for box, row, crowd, visible, cut in zip(
            result.boxes, result.kept, result.crowd, result.visible, result.cut, strict=True
        )
    ]
    return Sample(result.image, result.window, objects, len(record['boxes']) - len(objects), result.to_record)


def mosaic(tiles: Sequence[Sample], canvas: tuple[int, int], rng: np.random.RandomState) -> Sample:
    """Shows a part of each of four samples in one of the four parts into which two lines divide a canvas (H, W)."""
    height, width = canvas
    x, y = (int(side * rng.uniform(*CUT)) for side in (width, height))
    parts = np.array([[0, 0, x, y], [x, 0, width, y], [0, y, x, height], [x, y, width, height]])
    parts = parts[rng.permutation(4)]
    shifts = [shift_into(tile.window.astype(int), part, rng) for tile, part in zip(tiles, parts, strict=True)]
    shown = [
        np.clip(tile.window.astype(int) + np.tile(shift, 2), np.tile(part[:2], 2), np.tile(part[2:], 2))
        for tile, part, shift in zip(tiles, parts, shifts)
    ]
    window = around(shown)
    image = blank(canvas, window)
    objects = []
    for tile, (x1, y1, x2, y2), (left, top) in zip(tiles, shown, shifts):
        image[y1:y2, x1:x2] = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
        moved = [move(thing, (left, top), np.array([x1, y1, x2, y2])) for thing in tile.objects]
        objects += [thing for thing in moved if thing is not None]
    count = sum(len(tile.objects) + tile.cropped for tile in tiles)
    return Sample(image, window, objects, count - len(objects), moved_frame(tiles[0].to_record, shifts[0]))


def shift_into(window: np.ndarray, part: np.ndarray, rng: np.random.RandomState) -> tuple[int, int]:
    """Draws how far to shift a sample so that its window fills a part of the canvas, with any of its pixels there.

    Args:
        window: [4] int xyxy, canvas pixels.
        part: [4] int xyxy, canvas pixels; it begins at 0 if it is the first along an axis.
        rng: source of randomness.

    Returns:
        (x, y), pixels. Along an axis where the window is shorter than the part, it comes to lie at the part's inner edge.
    """
    shift = []
    for axis in (0, 1):
        (first, last), (low, high) = window[axis::2], part[axis::2]
        spare = (last - first) - (high - low)
        if spare >= 0:
            shift.append(low - first - rng.randint(spare + 1))
        else:
            shift.append(high - last if low == 0 else low - first)
    return tuple(shift)


def move(thing: Object, shift: tuple[int, int], limits: np.ndarray) -> Object | None:
    """Shifts an object by (x, y) pixels and cuts off what lies beyond limits [4] xyxy; None if that is all."""
    whole = thing.box + np.tile(shift, 2)
    box = np.clip(whole, np.tile(limits[:2], 2), np.tile(limits[2:], 2))
    if (box[2:] - box[:2] <= MIN_SIDE).any():
        return None
    visible = thing.visible * np.prod(box[2:] - box[:2]) / np.prod(whole[2:] - whole[:2])
    return thing._replace(
        box=box,
        crowd=thing.crowd or visible < MIN_VISIBLE,
        to_record=moved_frame(thing.to_record, shift),
        visible=visible,
        cut=thing.cut or bool((np.abs(box - whole) > MIN_SIDE).any()),
    )


def moved_frame(to_record: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Maps (x, y, 1) of the canvas to the record after all on the canvas was shifted by (x, y) pixels: [2, 3]."""
    x, y = shift
    return to_record @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])


def copy_paste(sample: Sample, source: Sample, rng: np.random.RandomState) -> Sample:
    """Pastes objects of another sample, in their places on the canvas: a number that is drawn uniformly from 1 to all.

    Crowds and objects without a mask are not pasted. The sample's window grows to hold what is pasted.
    """
    choice = [thing for thing in source.objects if not thing.crowd and has_mask(thing)]
    count = rng.randint(len(choice)) + 1 if choice else 0
    over, pasted, places = np.zeros(sample.image.shape[:2], bool), [], []
    for i in np.sort(rng.permutation(len(choice))[:count]):
        (rows, columns), own = place_of(choice[i]), pixels_of(choice[i])
        if own.any():  # else it is too small for a pixel
            over[rows, columns] |= own
            pasted.append(choice[i])
            places.append(np.array([columns.start, rows.start, columns.stop, rows.stop]))
    window = around([sample.window, *places])
    image = cv2.copyTo(source.image, over.view(np.uint8), on_filling(sample, window))
    objects = [covered(thing, over) for thing in sample.objects] + pasted
    return sample._replace(image=image, window=window, objects=objects)


def mixup(first: Sample, second: Sample, share: float) -> Sample:
    """Blends two samples, the first with a share of 0..1, and keeps the objects of both."""
    window = around([first.window, second.window])
    image = cv2.addWeighted(on_filling(first, window), share, on_filling(second, window), 1 - share, 0)
    objects = [
        thing._replace(crowd=thing.crowd or weight < MIN_VISIBLE)
        for sample, weight in ((first, share), (second, 1 - share))
        for thing in sample.objects
    ]
    return Sample(image, window, objects, first.cropped + second.cropped, first.to_record)


def cutout(sample: Sample, side: float, rng: np.random.RandomState) -> Sample:
    """Erases a square whose centre is any pixel of the image; side: its length, as a share of the image's shorter side."""
    x1, y1, x2, y2 = sample.window.astype(int)
    if x1 == x2 or y1 == y2:
        return sample
    length = max(1, round(side * min(x2 - x1, y2 - y1)))
    left, top = rng.randint(x1, x2) - length // 2, rng.randint(y1, y2) - length // 2
    hole = slice(max(y1, top), min(y2, top + length)), slice(max(x1, left), min(x2, left + length))
    over, image = np.zeros(sample.image.shape[:2], bool), sample.image.copy()
    over[hole], image[hole] = True, FILLING
    return sample._replace(image=image, objects=[covered(thing, over) for thing in sample.objects])


def covered(thing: Object, over: np.ndarray) -> Object:
    """Notes that something ([H, W] bool) lies over an object."""
    return thing._replace(cover=over if thing.cover is None else thing.cover | over)


def fit_boxes(sample: Sample) -> Sample:
    """Makes boxes of objects that are cut or covered tight around what is seen of them; drops those that are not seen."""
    objects = [seen for thing in sample.objects if (seen := fit_box(thing)) is not None]
    return sample._replace(objects=objects, cropped=sample.cropped + len(sample.objects) - len(objects))


def around(windows: Iterable[np.ndarray]) -> np.ndarray:
    """Finds the smallest window around [4] xyxy windows, of which those without pixels do not count: [4] float32."""
    windows = np.array(list(windows), np.float32)
    full = windows[(windows[:, 2:] > windows[:, :2]).all(axis=1)]
    return np.concatenate([full[:, :2].min(axis=0), full[:, 2:].max(axis=0)]) if len(full) else windows[0]


def blank(canvas: tuple[int, int], window: np.ndarray) -> np.ndarray:
    """Makes an image of a canvas (H, W), `FILLING` inside a window ([4] xyxy) and zero outside: [H, W, 3] uint8."""
    image = np.zeros((*canvas, 3), np.uint8)
    x1, y1, x2, y2 = window.astype(int).tolist()
    if x1 < x2 and y1 < y2:
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), FILLING, cv2.FILLED)
    return image


def on_filling(sample: Sample, window: np.ndarray) -> np.ndarray:
    """Copies a sample's image onto `FILLING` that reaches over a larger window ([4] xyxy): [H, W, 3] uint8."""
    image = blank(sample.image.shape[:2], window)
    x1, y1, x2, y2 = sample.window.astype(int)
    image[y1:y2, x1:x2] = sample.image[y1:y2, x1:x2]
    return image


def check_masks(dataset: Dataset) -> None:
    """Checks that copy-paste has something to paste: an object of the split, not a crowd, has a mask.

    Raises:
        DataError: none has.
    """
    for record in dataset.records:
        if any(counts and not crowd for counts, crowd in zip(record['segmentations'], record['is_crowd'])):
            return
    raise DataError(
        f'split {dataset.split!r} of {dataset.name!r}: no object has a mask, and data.recipe.copy_paste cuts objects out by '
        'their masks: set it to 0, or prepare data with masks'
    )
