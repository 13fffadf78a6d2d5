"""From records to padded batches, through Grain; the data position is the step.

    training:   range(N) -> shuffle, repeat -> [position] decode, augment, compose, pad -> every n-th for process n -> batch
    evaluation: each record once, on the canvas where it is largest, the last batch filled up with invalid rows

Element i of the training stream depends on (seed, i) alone: any number of processes makes the same global stream, resuming
is slicing, and there is no iterator state to save. That holds for samples of several records too: the others are drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import jax
import numpy as np

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.compose import check_masks, compose
from detzoo.data.geometry import place, resize_rule
from detzoo.data.objects import Object, object_masks
from detzoo.data.proposals import Proposals
from detzoo.data.records import Dataset, decode_image
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
    labelled_share: float = 0.0,
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
        recipe: the recipe of `compose`.
        batch_size: images of a step, all processes together.
        seed: seed for shuffling, augmentation and canvases.
        mask_size: S, the side of the objects' masks; 0 for no masks.
        proposals: the split's proposals, for the inputs; or None.
        labelled_share: share of the images of which only a label is known, where the data have any.
        canvas_steps: how many steps a canvas is kept.
        start_step: the first step to make.
        process, processes: this process makes the elements process, process + processes, ... of each batch.
        threads: how many threads decode and augment.

    Returns:
        an iterator of Batch with leading axis batch_size / processes, numpy.

    Raises:
        DataError: the recipe pastes objects, and none has a mask.
    """
    if batch_size % processes:
        raise ValueError(f'batch_size {batch_size} is not a multiple of the {processes} processes')
    if recipe['copy_paste'] > 0:
        check_masks(dataset)

    def load(position: int, index: int) -> Batch:
        """The example at a position of the stream."""
        canvas = canvas_of_step(position // batch_size, canvases, seed, canvas_steps)
        rng = np.random.RandomState([seed, position])
        return load_augmented(dataset, index, canvas, max_boxes, recipe, rng, mask_size=mask_size, proposals=proposals)

    boxed = len(dataset.records) - dataset.labelled
    stream = grain.MapDataset.range(boxed).seed(seed).shuffle().repeat()
    if dataset.labelled:
        others = grain.MapDataset.range(boxed, len(dataset.records)).seed(seed).shuffle().repeat()
        stream = grain.MapDataset.mix([stream, others], [1 - labelled_share, labelled_share])
    stream = stream.map_with_index(load)
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
        rows = enumerate(zip(boxes, record['labels'], record['is_crowd'], strict=True))
        objects = [Object(box, label, crowd, record, row, to_record) for row, (box, label, crowd) in rows]
        gt = ground_truth_of(objects, max_boxes, mask_size, cropped=0)
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
    """Makes the sample that begins with a record, and pads it: a Batch without the leading axis."""
    sample = compose(dataset, index, canvas, recipe, rng)
    gt = ground_truth_of(sample.objects, max_boxes, mask_size, cropped=sample.cropped)
    if dataset.labelled:
        boxed = index < len(dataset.records) - dataset.labelled
        gt = gt if boxed else label_alone(dataset.records[index], sample.window, max_boxes)
        gt = gt._replace(boxed=np.bool_(boxed))
    given = () if proposals is None else proposals.on_canvas(index, sample.to_record, sample.window)
    return Batch(Inputs(sample.image, sample.window, *given), gt, np.int32(index), np.bool_(True))


def ground_truth_of(objects: Sequence[Object], max_boxes: int, mask_size: int, *, cropped: int) -> GroundTruth:
    """Makes the ground truth of one image, numpy; the arguments are those of `pad_ground_truth` and `object_masks`."""
    boxes = np.array([thing.box for thing in objects], np.float64).reshape(-1, 4)
    labels = np.array([thing.label for thing in objects], np.int64)
    crowd = np.array([thing.crowd for thing in objects], bool)
    masks = object_masks(objects, mask_size)
    return pad_ground_truth(boxes, labels, crowd, max_boxes, cropped=cropped, masks=masks)


def label_alone(record: Mapping[str, Any], window: np.ndarray, max_boxes: int) -> GroundTruth:
    """Makes the ground truth of an image of which only a label is known: one row, whose box is the image, or none."""
    labels = record['labels'][:1]
    boxes = np.tile(window, (len(labels), 1))
    return pad_ground_truth(boxes, labels, np.zeros(len(labels), bool), max_boxes, cropped=0)


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
