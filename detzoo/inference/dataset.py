"""Detection on a split of a data set, with all devices, and the metrics of a checkpoint.

make_predict_step   a detector or segmenter -> a step on all devices
predict_dataset     a step and a split -> COCO results, each image once, on every process
Tally               images one by one, and the results of all -> metrics
evaluate_workdir    a workdir -> COCO metrics; writes evaluation.json and detections.json.gz
propose_workdir     a workdir -> the proposals of its first stage
"""

import json
import operator
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from detzoo.data.catalog import open_split
from detzoo.data.geometry import placement, resize_rule
from detzoo.data.pipeline import evaluation_batches, shard
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import Dataset, ground_truth
from detzoo.errors import DataError
from detzoo.evaluation import class_agnostic, coco_metrics, object_recall, recall_numbers, write_detections
from detzoo.evaluation.counts import count_metrics
from detzoo.evaluation.semantic import (
    confusion_matrix,
    label_map,
    paint_annotations,
    paint_results,
    panoptic_quality,
    semantic_metrics,
    without_overlaps,
)
from detzoo.files import AnyPath, as_path, check_writable, write_text
from detzoo.inference.predictor import (
    ImageDetections,
    canvas_for,
    check_proposals,
    interpret,
    load,
    prediction_of,
    to_coco,
)
from detzoo.run import parallel
from detzoo.run.classes import Classes, classes_of
from detzoo.types import Batch, Detections, Detector, PixelClasses, Segmenter

OTHER_FOLDER = 'give another folder for the files as output'


def canvases_for(truth: Mapping[str, Any], config: ml_collections.ConfigDict) -> list[tuple[int, int]]:
    """Chooses the canvas of each image of a split.

    Args:
        truth: the split's `records.ground_truth`.
        config: config of the run.

    Returns:
        (height, width) of each canvas, in the order of the images.
    """
    return [canvas_for((image['height'], image['width']), config) for image in truth['images']]


def evaluated_kinds(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns what is evaluated, in COCO's terms: boxes, and masks if the run reads them."""
    return ('bbox', 'segm') if config.data.mask_size else ('bbox',)


def truth_for(detector: Detector | Segmenter, dataset: Dataset) -> dict[str, Any]:
    """Collects what a detector is evaluated on: the split's `records.ground_truth`, all classes as one if it is class-agnostic."""
    truth = ground_truth(dataset)
    return class_agnostic(truth, [])[0] if detector.class_agnostic else truth


def check_truth(truth: dict[str, Any], kinds: Sequence[str], dataset: Dataset) -> None:
    """Checks that detections on a split can be evaluated, and warns if they will have no AP; call it before any are computed.

    Args:
        truth: the split's `records.ground_truth`.
        kinds: what to evaluate, see `evaluated_kinds`.
        dataset: the split, for the message.

    Raises:
        DataError: there are no images, an object lacks a mask, or the like.
    """
    split = f'the split {dataset.split!r} of {dataset.name!r}'
    if not truth['images']:
        raise DataError(f'{split} has no images and cannot be evaluated: name another one as data.validation_split')
    try:
        coco_metrics(truth, [], kinds)
    except ValueError as error:
        raise DataError(f'{split} cannot be evaluated: {error}') from error
    crowds = sum(row['iscrowd'] for row in truth['annotations'])
    if crowds == len(truth['annotations']) and jax.process_index() == 0:
        only = f'all its {crowds} annotations are crowds (iscrowd)' if crowds else 'it has no annotations'
        tqdm.write(f'WARNING: {split} has no objects to be found: {only}. There will be no AP', file=sys.stderr)


def check_classes(classes: Classes, dataset: Dataset, workdir: str | os.PathLike) -> None:
    """Checks that a run knows the classes of a data set.

    Args:
        classes: classes of the run.
        dataset: the data set.
        workdir: folder of the run, for the message.

    Raises:
        DataError: it lacks one.
    """
    if not {*zip(*classes)} >= {*zip(dataset.class_names, dataset.category_ids)}:
        raise DataError(
            f'data set {dataset.name!r} has the classes {dataset.class_names} now, the run in {workdir} was trained on '
            f'{classes.class_names}: evaluate with the data it was trained on'
        )


def make_predict_step(
    detector: Detector | Segmenter, canvases: Collection[Any], devices: Any = None
) -> Callable[..., Any]:
    """Maps `predictor.prediction_of` over devices.

    Args:
        detector: the detector or segmenter.
        canvases: the canvases of all batches, each compiled once.
        devices: devices to map over; all by default.

    Returns:
        a function of replicated (params, model_state) and a sharded batch. On each device it returns the whole batch's
        (detections, or a segmenter's PixelClasses; indices of the records; valid).
    """
    predict = prediction_of(detector)
    return on_all_devices(
        lambda params, model_state, batch: predict(params, model_state, batch.inputs), canvases, devices
    )


def on_all_devices(
    predict: Callable[[Any, Any, Batch], Detections | PixelClasses], canvases: Collection[Any], devices: Any = None
) -> Callable[..., Any]:
    """Maps a prediction that sees the whole batch, its ground truth too, over devices; see `make_predict_step`."""

    def predict_step(
        params: Any, model_state: Any, batch: Batch
    ) -> tuple[Detections | PixelClasses, jax.Array, jax.Array]:
        result = predict(params, model_state, batch), batch.image_id, batch.valid
        return jax.tree.map(lambda x: jax.lax.all_gather(x, parallel.AXIS, tiled=True), result)

    return parallel.parallel(predict_step, name='the predict step', traces=len(set(canvases)), devices=devices)


def predict_dataset(
    predict_step: Callable[..., Any],
    params: Any,
    model_state: Any,
    dataset: Dataset,
    truth: dict[str, Any],
    config: ml_collections.ConfigDict,
    *,
    classes: Classes | None = None,
    proposals: Proposals | None = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    on_image: Callable[[int, ImageDetections, int], None] = lambda index, found, dropped: None,
) -> list[dict[str, Any]]:
    """Detects the objects of a split on all devices, each image once.

    Args:
        predict_step: function of `make_predict_step`.
        params, model_state: variables, replicated over devices.
        dataset: the split.
        truth: what the detector is evaluated on, see `truth_for`.
        config: config of the run.
        classes: classes of the detector, by default those of the data set. Detections of classes that the truth lacks are left out
            of the results.
        proposals: proposals of the split for the detector; None for none.
        on_batch: called with each sharded batch.
        on_image: called with the index of each record, its detections and its candidates_dropped, in no order.

    Returns:
        COCO results of the whole split, in the order of its images, on every process.
    """
    canvases, rule = canvases_for(truth, config), resize_rule(config.data.recipe)
    classes = classes or classes_of(dataset)
    batches = evaluation_batches(
        dataset,
        canvases,
        max_boxes=config.data.max_boxes,
        recipe=config.data.recipe,
        batch_size=config.evaluation.batch_size,
        rounded=not config.evaluation.exact,
        mask_size=config.data.mask_size,
        proposals=proposals,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
    )
    known, results = {category['id'] for category in truth['categories']}, {}

    def collect(gathered: Any) -> None:
        found_on_canvases, indices, valid = parallel.first_replica(gathered)
        for row in np.flatnonzero(valid):
            index = int(indices[row])
            image = truth['images'][index]
            size = image['height'], image['width']
            of_image = jax.tree.map(operator.itemgetter(row), found_on_canvases)
            found = interpret(of_image, placement(size, canvases[index], rule), size, classes, config.evaluation)
            on_image(index, found, int(getattr(of_image, 'candidates_dropped', None) or 0))
            results[index] = [result for result in to_coco(found, image['id']) if result['category_id'] in known]

    pending = None
    with tqdm(total=len(canvases), desc='evaluate', unit='image', disable=jax.process_index() > 0, leave=False) as bar:
        for batch in batches:
            sharded = parallel.put(shard(batch, jax.local_device_count()))
            gathered = predict_step(params, model_state, sharded)
            on_batch(sharded)
            if pending is not None:  # while the devices work on this batch
                collect(pending)
            pending = gathered
            bar.update(len(results) - bar.n)
        if pending is not None:
            collect(pending)
    return [result for index in sorted(results) for result in results[index]]


class Tally:
    """The metrics of a split: what single images add to them, and what the results of all give."""

    def __init__(
        self, truth: dict[str, Any], classes: Classes, config: ml_collections.ConfigDict, *, recall: bool = False
    ):
        """Makes a tally without images.

        Args:
            truth: what the detector is evaluated on, see `truth_for`.
            classes: classes of the detector.
            config: config of the run.
            recall: whether the recall of objects whatever their class is wanted too.
        """
        self._truth, self._classes, self._config, self._recall = truth, classes, config, recall
        self._annotations: dict[Any, list[dict[str, Any]]] = {}
        for row in truth['annotations']:
            self._annotations.setdefault(row['image_id'], []).append(row)
        self._dropped: list[int] = []
        self._confusion: np.ndarray | None = None  # of pixels

    def add(self, index: int, found: ImageDetections, dropped: int) -> None:
        """Adds an image; arguments are those of `on_image` of `predict_dataset`."""
        self._dropped.append(dropped)
        image = self._truth['images'][index]
        size = image['height'], image['width']
        predicted = self._classes_of_pixels(found, size)
        if predicted is not None:
            annotations = self._annotations.get(image['id'], [])
            labels = label_map(paint_annotations(annotations, size), annotations, self._classes.category_ids)
            confusion = confusion_matrix(labels, predicted, len(self._classes.category_ids) + 1)
            self._confusion = confusion if self._confusion is None else self._confusion + confusion

    def _classes_of_pixels(self, found: ImageDetections, size: tuple[int, int]) -> np.ndarray | None:
        """Returns a segmenter's labels [h, w], or paints them from a detector's masks if the config asks for that; else None."""
        if found.class_map is not None:
            return found.class_map
        if found.masks is None or not self._config.evaluation.panoptic:
            return None
        results = to_coco(found.at_least(self._config.evaluation.panoptic_score), 0)
        return paint_results(without_overlaps(results), size, self._classes.category_ids)

    def metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Computes the metrics of the split.

        Args:
            results: COCO results of all images.

        Returns:
            those of `coco_metrics`, and 'candidates_dropped', the mean over images (see `Detections`). A segmenter's also have
            'pixels', see `semantic_metrics`, 'panoptic', see `panoptic_quality`, and 'counts', see `count_metrics`. With the config
            key evaluation.panoptic a detector's have them too, without masks 'counts' alone. If wanted, there are 'recall' of the
            boxes and 'mask_recall' of the masks, see `object_recall`.
        """
        kinds, evaluation = evaluated_kinds(self._config), self._config.evaluation
        threshold = evaluation.panoptic_score
        metrics = coco_metrics(self._truth, results, kinds)
        metrics['candidates_dropped'] = sum(self._dropped) / max(1, len(self._dropped))
        if self._confusion is not None:
            metrics['pixels'] = semantic_metrics(self._confusion, [*self._classes.class_names, 'background'])
            metrics['panoptic'] = panoptic_quality(self._truth, results, score_threshold=threshold)
        if self._confusion is not None or evaluation.panoptic:
            metrics['counts'] = count_metrics(self._truth, results, kinds[-1], score_threshold=threshold)
        if self._recall:
            for kind in kinds:
                prefix = 'mask_' if kind == 'segm' else ''
                metrics[f'{prefix}recall'] = object_recall(self._truth, results, kind)
        return metrics


def further_numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Lists what metrics of `Tally.metrics` have besides COCO's numbers, for all classes together: {name: number}."""
    sections = (metrics.get(section, {}) for section in ('pixels', 'panoptic', 'counts'))
    numbers = {name: value for section in sections for name, value in section.items() if name != 'per_class'}
    return numbers | recall_numbers(metrics)


def file_suffix(proposals: str | None, exact: bool | None, split: str = 'validation') -> str:
    """Returns the end of the names of the files of an evaluation, so that those of the usual one stay.

    Args:
        proposals, exact, split: arguments of `evaluate_workdir`.
    """
    suffix = '' if split == 'validation' else f'_{split}'
    suffix += '' if proposals is None else '_given_proposals'
    return suffix if exact is None else suffix + ('_exact' if exact else '_static')


def evaluate_workdir(
    workdir: str | os.PathLike,
    step: int | str | None = None,
    data_dir: str | None = None,
    proposals: str | None = None,
    *,
    exact: bool | None = None,
    panoptic: bool = False,
    recall: bool = False,
    split: str = 'validation',
    output: str | os.PathLike | None = None,
    on_results: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None] = lambda *results: None,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Evaluates a checkpoint on all devices, and writes evaluation.json and detections.json.gz.

    The names of the files end in `_train` where the split is 'train', in `_given_proposals` where `proposals` are given, and in
    `_exact` or `_static` where `exact` is given, so that the files of the usual evaluation stay.

    Args:
        workdir: folder of the run.
        step: step of the checkpoint, or 'best' (see `training.keep_best`); the newest by default.
        data_dir: folder of the data sets; the config's by default.
        proposals: proposals on the split, as `load_proposals` takes them; the config's by default.
        exact: replaces the config's `evaluation.exact` if given, see `canvas_for`.
        panoptic: whether to evaluate a detector as segmenters always are, also where the config's `evaluation.panoptic` is not set.
        recall: whether to compute the recall of objects whatever their class too, that of the detections and, of a detector of two
            stages, that of the proposals that its second stage gets. A class-agnostic detector's is always computed.
        split: 'validation' or 'train'. Detections on 'train' may be the proposals that another detector is trained with
            (`data.train_proposals`).
        output: folder for the files, made if missing; the workdir, into which else nothing is written, by default.
        on_results: called with what is returned, even if the files cannot be written.

    Returns:
        the metrics of `Tally.metrics`, with 'step', any given 'proposals', and with `recall` also 'proposal_recall', a result of
            `object_recall`; what the detector is evaluated on, see `truth_for`; the detections as COCO results.

    Raises:
        DataError: the data set is not there, cannot be evaluated, or its classes are not those of the run; the proposals
            cannot be used.
        FileNotFoundError: there is no such run or checkpoint.
        OSError: the files cannot be written. An `output` that cannot be written is found before anything is computed.
        FirstProcessError: the same, on the processes that write no files.
    """
    predictor = load(workdir, step, exact=exact)
    config = predictor.config
    source = proposals or config.data[f'{split}_proposals']
    check_proposals(predictor.detector, config.model.name, source is not None, 'proposals')
    dataset = open_split(config.data, split, data_dir)
    if not predictor.detector.class_agnostic:
        check_classes(predictor.classes, dataset, workdir)
    config = for_all_devices(config)
    config.evaluation.panoptic |= panoptic
    given = load_proposals(source, dataset, config.data.max_proposals, config.data.proposal_mask_size)
    truth = truth_for(predictor.detector, dataset)
    check_truth(truth, evaluated_kinds(config), dataset)
    folder = as_path(output or workdir)
    if output is not None:
        parallel.from_first_process(lambda: check_writable(folder, OTHER_FOLDER))
    variables = parallel.replicate((predictor.params, predictor.model_state))
    tally = Tally(truth, predictor.classes, config, recall=recall or predictor.detector.class_agnostic)

    def detect(detector: Detector | Segmenter, **arguments: Any) -> list[dict[str, Any]]:
        step = make_predict_step(detector, canvases_for(truth, config))
        return predict_dataset(step, *variables, dataset, truth, config, proposals=given, **arguments)

    results = detect(predictor.detector, classes=predictor.classes, on_image=tally.add)
    metrics = {'step': predictor.step, **tally.metrics(results)}
    if proposals is not None:
        metrics = {'proposals': proposals, **metrics}
    if recall and predictor.detector.propose is not None:
        proposing = predictor.detector._replace(predict=predictor.detector.propose)
        metrics['proposal_recall'] = object_recall(truth, detect(proposing))
    try:
        if jax.process_index() == 0:
            _write_evaluation(folder, file_suffix(proposals, exact, split), metrics, results)
    finally:
        on_results(metrics, truth, results)
    return metrics, truth, results


def for_all_devices(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Copies a config with `evaluation.batch_size` rounded up to a multiple of all devices: any machine may evaluate."""
    devices = jax.local_device_count() * jax.process_count()
    config = config.copy_and_resolve_references()
    config.evaluation.batch_size = -(-config.evaluation.batch_size // devices) * devices
    return config


def propose_workdir(
    workdir: str | os.PathLike, split: str, *, data_dir: str | None = None
) -> tuple[Dataset, list[dict[str, Any]]]:
    """Runs the first stage of a run's detector on a split of its data.

    Args:
        workdir: folder of the run.
        split: split of its data set.
        data_dir: folder of the data sets; the config's by default.

    Returns:
        the split, and the proposals as COCO results of the first class, with scores that say no more than their order.

    Raises:
        DataError: the detector has no first stage, or the data are not there.
    """
    predictor = load(workdir)
    detector, config = predictor.detector, for_all_devices(predictor.config)
    if detector.propose is None or detector.needs_proposals:
        raise DataError(
            f'{workdir} holds a {config.model.name} without an RPN, which makes no proposals: give the workdir of a Faster or '
            'Mask R-CNN'
        )
    config.data.validation_split = split
    dataset = open_split(config.data, 'validation', data_dir)
    check_classes(predictor.classes, dataset, workdir)
    truth = ground_truth(dataset)
    step = make_predict_step(detector._replace(predict=detector.propose), canvases_for(truth, config))
    variables = parallel.replicate((predictor.params, predictor.model_state))
    return dataset, predict_dataset(step, *variables, dataset, truth, config, classes=predictor.classes)


def _write_evaluation(folder: AnyPath, suffix: str, metrics: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Writes evaluation.json and detections.json.gz."""
    check_writable(folder, OTHER_FOLDER)
    write_detections(folder / f'detections{suffix}.json.gz', results)
    write_text(folder / f'evaluation{suffix}.json', json.dumps(metrics, indent=2) + '\n')
