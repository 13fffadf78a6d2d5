"""What a split holds, told from its annotations: nothing is decoded.

read_annotations(dataset)  -> Annotations: flat arrays of all images and boxes; each record is read once
count                      -> Counts: images, objects, crowds, objects of each class
count_dropped              -> Dropped: what finds no row in `max_boxes`
sizes_on_canvas            -> the sizes of objects as a detector sees them
duplicates                 -> images that are there twice, in one split or in two
"""

import collections
import concurrent.futures
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from detzoo.data.geometry import choose_canvas, placement, resize_rule
from detzoo.data.records import Dataset


class Annotations(NamedTuple):
    """The annotations of a split of N images with n boxes.

    class_names: [K], in the order of the labels.
    file_names: [N].
    digests: [N] SHA-256 of the encoded images.
    sizes: [N, 2] int height and width, pixels.
    image: [n] int in 0..N-1, the image that a box lies in, in ascending order.
    boxes: [n, 4] float64 xywh, pixels of the image.
    labels: [n] int in 0..K-1.
    crowd: [n] bool.
    has_mask: [n] bool.
    """

    class_names: tuple[str, ...]
    file_names: tuple[str, ...]
    digests: tuple[bytes, ...]
    sizes: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    has_mask: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """[N] int, number of boxes in each image, crowds included: the rows of ground truth that it needs."""
        return np.bincount(self.image, minlength=len(self.sizes))

    @property
    def objects(self) -> np.ndarray:
        """[N] int, number of objects in each image, without crowds."""
        return np.bincount(self.image[~self.crowd], minlength=len(self.sizes))

    def take(self, images: np.ndarray) -> 'Annotations':
        """Leaves out all but some images.

        Args:
            images: [n'] int, indices of the images to keep, in ascending order.
        """
        place = np.full(len(self.sizes), -1)
        place[images] = np.arange(len(images))
        image = place[self.image]
        return Annotations(
            self.class_names,
            tuple(self.file_names[i] for i in images),
            tuple(self.digests[i] for i in images),
            self.sizes[images],
            image[image >= 0],
            *(values[image >= 0] for values in (self.boxes, self.labels, self.crowd, self.has_mask)),
        )


class Counts(NamedTuple):
    """How much a split holds.

    images: number of images.
    empty: number of images without objects; one with nothing but crowds has none.
    objects: number of objects, without crowds.
    crowds: number of crowds.
    of_class: [K] int, number of objects of each class.
    """

    images: int
    empty: int
    objects: int
    crowds: int
    of_class: np.ndarray


class Dropped(NamedTuple):
    """What finds no row in the ground truth of images that have more than `max_boxes` boxes.

    images: number of such images.
    objects: number of objects that are dropped.
    crowds: number of crowds that are dropped; they go first.
    largest: number of boxes in the image that has most.
    """

    images: int
    objects: int
    crowds: int
    largest: int


def read_annotations(dataset: Dataset) -> Annotations:
    """Reads all records of a split once; images are hashed, not decoded.

    Returns:
        Annotations, images in the order of the records.
    """

    def read(index: int) -> dict[str, Any]:
        record = dataset.records[index]
        digest, has_mask = hashlib.sha256(record['image']).digest(), np.array(record['segmentations']) != ''
        kept = {key: record[key] for key in ('file_name', 'height', 'width', 'boxes', 'labels', 'is_crowd')}
        return kept | dict(digest=digest, has_mask=has_mask)

    count = len(dataset.records)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        records = list(
            tqdm(
                pool.map(read, range(count)),
                desc=f'annotations of {dataset.split}',
                total=count,
                unit='image',
                leave=False,
                delay=1,
            )
        )
    boxes = [record['boxes'] for record in records]
    return Annotations(
        class_names=dataset.class_names,
        file_names=tuple(record['file_name'] for record in records),
        digests=tuple(record['digest'] for record in records),
        sizes=np.array([(record['height'], record['width']) for record in records], int).reshape(-1, 2),
        image=np.repeat(np.arange(count), [len(of_image) for of_image in boxes]),
        boxes=np.concatenate([np.zeros((0, 4)), *boxes]),
        labels=np.concatenate([np.zeros(0, int), *(record['labels'] for record in records)]),
        crowd=np.concatenate([np.zeros(0, bool), *(record['is_crowd'] for record in records)]),
        has_mask=np.concatenate([np.zeros(0, bool), *(record['has_mask'] for record in records)]),
    )


def count(annotations: Annotations) -> Counts:
    """Counts images, objects, crowds and the objects of each class."""
    labels = annotations.labels[~annotations.crowd]
    return Counts(
        images=len(annotations.sizes),
        empty=int((annotations.objects == 0).sum()),
        objects=len(labels),
        crowds=int(annotations.crowd.sum()),
        of_class=np.bincount(labels, minlength=len(annotations.class_names)),
    )


def count_dropped(annotations: Annotations, max_boxes: int) -> Dropped:
    """Counts what `pipeline.pad_ground_truth` drops from images that are not augmented: crowds first, then objects."""
    rows, objects = annotations.rows, annotations.objects
    crowds = rows - objects
    dropped = np.maximum(rows - max_boxes, 0)
    dropped_crowds = np.minimum(dropped, crowds)
    return Dropped(
        images=int((dropped > 0).sum()),
        objects=int((dropped - dropped_crowds).sum()),
        crowds=int(dropped_crowds.sum()),
        largest=int(rows.max(initial=0)),
    )


def sizes_on_canvas(
    annotations: Annotations, canvases: Sequence[tuple[int, int]], recipe: Mapping[str, Any]
) -> np.ndarray:
    """Computes how large the boxes of a split are on the canvases, as `pipeline.evaluation_batches` places images.

    Args:
        annotations: annotations of the split.
        canvases: (H, W) each; every image takes the one on which it is largest.
        recipe: a recipe, of which only the `geometry.resize_rule` counts.

    Returns:
        [n, 2] float64 width and height, canvas pixels, of all boxes, crowds included.
    """
    rule = resize_rule(recipe)
    known = {
        size: placement(size, choose_canvas(size, canvases, rule), rule).scale
        for size in {tuple(size) for size in annotations.sizes.tolist()}
    }
    scales = np.array([known[tuple(size)] for size in annotations.sizes.tolist()]).reshape(-1, 2)
    return annotations.boxes[:, 2:] * scales[annotations.image]


def duplicates(first: Annotations, second: Annotations | None = None) -> list[tuple[int, ...]]:
    """Finds images whose files are the same to the byte.

    Args:
        first: a split.
        second: another one; None to look within the first.

    Returns:
        of one split, the indices of each group of equal images; of two, pairs of an index in the first and one in the second,
        in the order of the first.
    """
    groups = collections.defaultdict(list)
    for index, digest in enumerate(first.digests):
        groups[digest].append(index)
    if second is None:
        return [tuple(group) for group in groups.values() if len(group) > 1]
    pairs = [(index, other) for other, digest in enumerate(second.digests) for index in groups.get(digest, [])]
    return sorted(pairs)
