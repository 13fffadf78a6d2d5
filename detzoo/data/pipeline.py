"""From records to padded batches, through Grain; the data position is the step.

    training:   range(N) -> shuffle, repeat -> [position] decode, augment, pad -> every n-th for process n -> batch
    evaluation: each record once, on the canvas where it is largest, the last batch filled up with invalid rows

Element i of the training stream depends on (seed, i) alone: any number of processes makes the same global stream, resuming
is slicing, and there is no iterator state to save.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import jax
import numpy as np
import pycocotools.mask

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.augment import augment
from detzoo.data.geometry import mask_in_frame, place, resize_rule
from detzoo.data.proposals import Proposals
from detzoo.data.records import Dataset, decode_image
from detzoo.errors import DataError
from detzoo.types import Batch, GroundTruth, Inputs

cv2.setNumThreads(1)  # Grain's threads each take an image; OpenCV's own would only get in their way


def train_batches(
    dataset: Dataset,
    *,
    canvases: Sequence[tuple[int, int]],
    max_boxes: int,
    recipe: Mapping[str, Any],
    batch_size: int,
    seed: int,
    mask_size: int = 0,
    proposals: Proposals | None = None,
    canvas_steps: int = 1,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 16,
) -> Iterator[Batch]:
    """Iterates over this process's share of the endless training stream, prefetched by threads.

    Args:
        dataset: the training split.
        canvases: (H, W) each; all images of a step share the canvas that `canvas_of_step` draws.
        max_boxes: M. The largest objects of an image get the rows; `gt.dropped` counts the others.
        recipe: the recipe of `augment`.
        batch_size: images of a step, all processes together.
        seed: seed for shuffling, augmentation and canvases.
        mask_size: S, the side of the objects' masks; 0 for no masks.
        proposals: the split's proposals, for the inputs; or None.
        canvas_steps: how many steps a canvas is kept.
        start_step: the first step to make.
        process, processes: this process makes the elements process, process + processes, ... of each batch.
        threads: how many threads decode and augment.

    Returns:
        an iterator of Batch with leading axis batch_size / processes, numpy.
    """
    if batch_size % processes:
        raise ValueError(f'batch_size {batch_size} is not a multiple of the {processes} processes')

    def load(position: int, index: int) -> Batch:
        """The example at a position of the stream."""
        canvas = canvas_of_step(position // batch_size, canvases, seed, canvas_steps)
        rng = np.random.RandomState([seed, position])
        return load_augmented(dataset, index, canvas, max_boxes, recipe, rng, mask_size=mask_size, proposals=proposals)

    stream = grain.MapDataset.range(len(dataset.records)).seed(seed).shuffle().repeat().map_with_index(load)
    stream = stream[process : 2**62 : processes]  # with an end: grain cannot count more batches of one image
    batches = stream.batch(batch_size // processes)[start_step:]
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8)))


def canvas_of_step(step: int, canvases: Sequence[tuple[int, int]], seed: int, canvas_steps: int = 1) -> tuple[int, int]:
    """Draws the canvas that all processes use at a step; it is kept for `canvas_steps` steps (multi-scale training)."""
    return tuple(canvases[np.random.RandomState([seed, step // canvas_steps, 1]).randint(len(canvases))])


def evaluation_batches(
    dataset: Dataset,
    canvases: Sequence[tuple[int, int]],
    *,
    max_boxes: int,
    recipe: Mapping[str, Any],
    batch_size: int,
    rounded: bool = True,
    mask_size: int = 0,
    proposals: Proposals | None = None,
    process: int = 0,
    processes: int = 1,
    threads: int = 16,
) -> Iterator[Batch]:
    """Iterates once over this process's share of a split.

    Args:
        canvases: (H, W) for each record's image.
        recipe: a recipe, of which only the `resize_rule` counts: nothing is drawn at random.
        rounded: whether pixels are uint8, as in training, or float32 as the interpolation makes them.
        dataset, max_boxes, batch_size, mask_size, proposals, process, processes, threads: see `train_batches`.

    Returns:
        an iterator of Batch with leading axis batch_size / processes, numpy; each process gets the same number of batches.
        `valid` is False in rows that only fill up the last batch of a canvas.
    """
    if batch_size % processes:
        raise ValueError(f'batch_size {batch_size} is not a multiple of the {processes} processes')
    rule = resize_rule(recipe)
    plan = []  # (record, canvas, valid) of each row of each batch
    for canvas in sorted(set(canvases)):
        rows = [(index, canvas, True) for index, other in enumerate(canvases) if other == canvas]
        plan += rows + [(rows[-1][0], canvas, False)] * (-len(rows) % batch_size)

    def load(row: tuple[int, tuple[int, int], bool]) -> Batch:
        index, canvas, valid = row
        record = dataset.records[index]
        image, where = place(decode_image(record['image'], name=record['file_name']), canvas, rule, rounded=rounded)
        boxes = where.to_canvas(xywh_to_xyxy(record['boxes']))
        to_record = where.matrix_to_image[:2]
        masks = object_masks(record, np.arange(len(boxes)), boxes, record['is_crowd'], to_record, mask_size)
        gt = pad_ground_truth(boxes, record['labels'], record['is_crowd'], max_boxes, cropped=0, masks=masks)
        given = () if proposals is None else proposals.on_canvas(index, to_record, where.window)
        return Batch(Inputs(image, where.window, *given), gt, np.int32(index), np.bool_(valid))

    batches = grain.MapDataset.source(plan).map(load)[process::processes].batch(batch_size // processes)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8)))


def load_augmented(
    dataset: Dataset,
    index: int,
    canvas: tuple[int, int],
    max_boxes: int,
    recipe: Mapping[str, Any],
    rng: np.random.RandomState,
    *,
    mask_size: int = 0,
    proposals: Proposals | None = None,
) -> Batch:
    """Decodes, augments and pads a record: a Batch without the leading axis."""
    record = dataset.records[index]
    image = decode_image(record['image'], name=record['file_name'])
    result = augment(image, xywh_to_xyxy(record['boxes']), record['is_crowd'], canvas, recipe, rng)
    cropped = len(record['boxes']) - len(result.kept)
    masks = object_masks(record, result.kept, result.boxes, result.crowd, result.to_record, mask_size)
    labels = record['labels'][result.kept]
    gt = pad_ground_truth(result.boxes, labels, result.crowd, max_boxes, cropped=cropped, masks=masks)
    given = () if proposals is None else proposals.on_canvas(index, result.to_record, result.window)
    return Batch(Inputs(result.image, result.window, *given), gt, np.int32(index), np.bool_(True))


def object_masks(
    record: Mapping[str, Any], rows: np.ndarray, boxes: np.ndarray, crowd: np.ndarray, to_record: np.ndarray, size: int
) -> np.ndarray | None:
    """Samples the masks of a record's objects in the frames of their boxes on a canvas.

    Args:
        record: see `records.Records`.
        rows: [n] int, the objects' indices.
        boxes: [n, 4] float64 xyxy, canvas pixels.
        crowd: [n] bool; crowds get empty masks, which are never used.
        to_record: [2, 3] float64, maps (x, y, 1) of the canvas to the record's image.
        size: S; 0 for no masks.

    Returns:
        [n, S, S] bool; None for size 0.

    Raises:
        DataError: an object has no mask; the message names the file and the annotation.
    """
    if not size:
        return None
    masks = np.zeros((len(rows), size, size), bool)
    for i in np.flatnonzero(~crowd):
        counts = record['segmentations'][rows[i]]
        if not counts:
            raise DataError(
                f'{record["file_name"]}: annotation {record["annotation_ids"][rows[i]]} has no mask, but data.mask_size asks '
                'for masks: set it to 0, choose a detector without masks, or prepare data with masks of all objects'
            )
        whole = pycocotools.mask.decode({'size': [record['height'], record['width']], 'counts': counts})
        masks[i] = mask_in_frame(whole, boxes[i], to_record, size)
    return masks


def pad_ground_truth(
    boxes: np.ndarray,
    labels: np.ndarray,
    crowd: np.ndarray,
    max_boxes: int,
    *,
    cropped: int,
    masks: np.ndarray | None = None,
) -> GroundTruth:
    """Pads the objects of an image to M rows; if there are more, crowds are dropped first, then the smallest.

    Args:
        boxes: [N, 4] float xyxy.
        labels: [N] int.
        crowd: [N] bool.
        max_boxes: M.
        cropped: how many objects the augmentation left out.
        masks: [N, S, S] bool, or None.

    Returns:
        GroundTruth of one image, numpy.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rows = np.sort(np.lexsort((-area, crowd))[:max_boxes])  # in the order of the record

    def padded(values: np.ndarray, dtype: Any) -> np.ndarray:
        target = np.zeros((max_boxes, *values.shape[1:]), dtype)
        target[: len(rows)] = values[rows]
        return target

    return GroundTruth(
        boxes=padded(boxes, np.float32),
        labels=padded(labels, np.int32),
        valid=np.arange(max_boxes) < len(rows),
        crowd=padded(crowd, bool),
        dropped=np.int32(len(boxes) - len(rows)),
        cropped=np.int32(cropped),
        masks=None if masks is None else padded(masks, bool),
    )


def shard(batch: Batch, devices: int) -> Batch:
    """Splits the leading axis of a batch over devices: [n, ...] to [devices, n / devices, ...]."""
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
