"""The evaluation of a run while it trains: validation metrics, loss, and pictures of the first images.

make_evaluation   a replicated state -> Evaluation
log_evaluation    -> metrics.jsonl and TensorBoard
draw_pictures     detections -> pictures; draw_results: COCO results -> pictures; draw_objects: the annotations
draw_labels       COCO results -> pictures of the class of each pixel; draw_true_labels: the same of the annotations
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from detzoo import visualize
from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.proposals import Proposals
from detzoo.data.records import Dataset, decode_image
from detzoo.errors import ConfigError, nearest
from detzoo.evaluation.semantic import label_map, paint_annotations, paint_results, without_overlaps
from detzoo.inference.dataset import (
    Tally,
    canvases_for,
    check_truth,
    evaluated_kinds,
    further_numbers,
    make_predict_step,
    predict_dataset,
    truth_for,
)
from detzoo.inference.predictor import ImageDetections, decode_masks, from_coco
from detzoo.run import parallel
from detzoo.run.checkpoint import TrainState
from detzoo.run.classes import OBJECT, Classes, classes_of
from detzoo.run.metrics import MetricsLog
from detzoo.training.replicas import unstack
from detzoo.types import Array, Batch, Detector, Segmenter

PICTURES = 4  # images of the validation split, the first ones, drawn at every evaluation


class Evaluation(NamedTuple):
    """What a state achieves on the validation split.

    metrics: see `inference.dataset.Tally.metrics`.
    loss: mean loss.
    pictures: {image id: [h, w, 3] uint8}, detections on the first images.
    truth: what the detector is evaluated on, see `inference.dataset.truth_for`.
    results: all detections, as COCO results.
    """

    metrics: dict[str, Any]
    loss: float
    pictures: dict[str, np.ndarray]
    truth: dict[str, Any]
    results: list[dict[str, Any]]


def make_evaluation(
    config: ml_collections.ConfigDict,
    detector: Detector | Segmenter,
    dataset: Dataset,
    proposals: Proposals | None = None,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Callable[[TrainState], Evaluation]:
    """Makes a function that evaluates a replicated state on the validation split.

    The loss is computed as in training, with batch statistics, on the batches that need no filler.

    Args:
        config: config of the program.
        detector: its detector.
        dataset: the split.
        proposals: its proposals, or None.
        on_batch: called after each batch; what it raises ends the evaluation.

    Raises:
        ConfigError: `training.keep_best` is no metric of this evaluation.
        DataError: detections on these data could not be evaluated.
    """
    truth, classes = truth_for(detector, dataset), OBJECT if detector.class_agnostic else classes_of(dataset)
    check_truth(truth, evaluated_kinds(config), dataset)
    best = config.training.keep_best
    if best is not None and best not in (known := metric_names(truth, classes, config, detector)):
        raise ConfigError(
            f'training.keep_best is {best!r}, which this evaluation does not have: the nearest is {nearest(best, known)!r}; it has '
            f'{", ".join(known)}'
        )
    canvases = set(canvases_for(truth, config))
    predict_step = make_predict_step(detector, canvases)

    def loss_step(params: Any, model_state: Any, batch: Batch) -> tuple[Array, Array]:
        loss, _ = detector.loss(params, model_state, batch, jax.random.key(config.seed))
        return jax.lax.pmean(loss, parallel.AXIS), jax.lax.pmin(batch.valid.all().astype(jnp.int32), parallel.AXIS)

    loss_step = parallel.parallel(loss_step, name='the validation loss', traces=len(canvases))

    def evaluate(state: TrainState) -> Evaluation:
        params = state.params if state.ema_params is None else state.ema_params
        losses, drawn = [], {}
        tally = Tally(truth, classes, config, recall=detector.class_agnostic)

        def add_loss(batch: Batch) -> None:
            losses.append(loss_step(params, state.model_state, batch))
            on_batch()

        def keep(index: int, found: ImageDetections, count: int) -> None:
            tally.add(index, found, count)
            if index < PICTURES:
                drawn[index] = found

        results = predict_dataset(
            predict_step,
            params,
            state.model_state,
            dataset,
            truth,
            config,
            classes=classes,
            proposals=proposals,
            on_batch=add_loss,
            on_image=keep,
        )
        losses = np.array([parallel.first_replica(pair) for pair in losses], np.float64)  # [batches, (loss, whole)]
        whole = losses[:, 1] > 0
        return Evaluation(
            metrics=tally.metrics(results),
            loss=float(losses[whole if whole.any() else slice(None), 0].mean()),
            pictures=draw_pictures(dataset, drawn, classes),
            truth=truth,
            results=results,
        )

    return evaluate


def evaluate_each(evaluate: Callable[[TrainState], Evaluation], state: TrainState, count: int) -> list[Evaluation]:
    """Evaluates the replicas of a state on devices, one after the other.

    Args:
        evaluate: a function of `make_evaluation`.
        state: on devices, with an axis of replicas where there are several.
        count: number of replicas.
    """
    if count == 1:
        return [evaluate(state)]
    return [evaluate(parallel.replicate(own)) for own in unstack(parallel.first_replica(state), count)]


def metric_names(
    truth: dict[str, Any], classes: Classes, config: ml_collections.ConfigDict, detector: Detector | Segmenter
) -> list[str]:
    """Lists the metrics that an evaluation logs, as `training.keep_best` names them."""
    tally = Tally({**truth, 'annotations': []}, classes, config, recall=detector.class_agnostic)
    nothing = tally.metrics([])
    names = [*nothing['boxes'], *(f'mask_{name}' for name in nothing.get('masks', {})), *further_numbers(nothing)]
    if isinstance(detector, Segmenter) or (config.evaluation.panoptic and detector.finds_masks):
        names += ['pixel_accuracy', 'mean_accuracy', 'mean_iou', 'weighted_iou', 'PQ', 'SQ', 'RQ', 'count_error']
    return ['loss', *dict.fromkeys(name for name in names if name != 'count_bias'), 'candidates_dropped']


def log_evaluation(log: MetricsLog, step: int, evaluation: Evaluation) -> None:
    """Writes the loss, the 12 numbers of COCO, the candidates without room, a segmenter's metrics, recalls, and the pictures."""
    boxes = {f'validation/{name}': value for name, value in evaluation.metrics['boxes'].items()}
    masks = {f'validation/mask_{name}': value for name, value in evaluation.metrics.get('masks', {}).items()}
    dropped = {'validation/candidates_dropped': evaluation.metrics['candidates_dropped']}
    further = {f'validation/{name}': value for name, value in further_numbers(evaluation.metrics).items()}
    log.write(step, {'validation/loss': evaluation.loss, **boxes, **masks, **further, **dropped})
    log.write_images(step, {f'validation/{name}': picture for name, picture in evaluation.pictures.items()})


def draw_pictures(
    dataset: Dataset,
    found: Mapping[int, ImageDetections],
    classes: Classes | None = None,
    score_threshold: float = 0.3,
) -> dict[str, np.ndarray]:
    """Draws detections on the first images of a split.

    Args:
        dataset: the split.
        found: {index of the record: its detections}; those of the first PICTURES records are drawn.
        classes: classes of the detector, by default those of the data set.
        score_threshold: detections with lower scores are left out.

    Returns:
        {image id: [h', w', 3] uint8}, in the order of the records.
    """
    pictures, names = {}, (classes or classes_of(dataset)).class_names
    for index in sorted(found)[:PICTURES]:
        record, shown = dataset.records[index], found[index].at_least(score_threshold)
        image = decode_image(record['image'], name=record['file_name'])
        pictures[str(record['image_id'])] = visualize.draw_boxes(
            image, shown.boxes, shown.labels, shown.scores, names, masks=shown.masks
        )
    return pictures


def draw_results(
    dataset: Dataset,
    results: Sequence[Mapping[str, Any]],
    classes: Classes | None = None,
    score_threshold: float = 0.3,
) -> dict[str, np.ndarray]:
    """Draws COCO results, such as those in detections.json.gz, as `draw_pictures` draws detections.

    Only what is drawn is decoded.
    """
    count = min(PICTURES, len(dataset.records))
    rows = {dataset.records[index]['image_id']: [] for index in range(count)}
    for result in results:
        if result['image_id'] in rows and result['score'] >= score_threshold:
            rows[result['image_id']].append(result)
    classes = classes or classes_of(dataset)
    found = {index: from_coco(of_image, classes) for index, of_image in enumerate(rows.values())}
    return draw_pictures(dataset, found, classes, score_threshold)


def draw_objects(dataset: Dataset) -> dict[str, np.ndarray]:
    """Draws the annotated objects of the first images of a split: {image id: [h', w', 3] uint8}; crowds are dashed."""
    pictures = {}
    for index in range(min(PICTURES, len(dataset.records))):
        record = dataset.records[index]
        size, masks = [record['height'], record['width']], None
        if record['segmentations'] and all(record['segmentations']):
            masks = decode_masks([{'size': size, 'counts': counts} for counts in record['segmentations']])
        pictures[str(record['image_id'])] = visualize.draw_boxes(
            decode_image(record['image'], name=record['file_name']),
            xywh_to_xyxy(record['boxes']),
            record['labels'],
            None,
            dataset.class_names,
            masks=masks,
            crowd=record['is_crowd'],
        )
    return pictures


def draw_labels(
    dataset: Dataset, results: Sequence[Mapping[str, Any]], score_threshold: float
) -> dict[str, np.ndarray]:
    """Draws the class of each pixel on the first images of a split: {image id: [h', w', 3] uint8}.

    Args:
        dataset: the split.
        results: COCO results with masks; where they overlap, see `without_overlaps`.
        score_threshold: results with lower scores are left out.
    """
    pictures = {}
    for index in range(min(PICTURES, len(dataset.records))):
        record = dataset.records[index]
        found = [row for row in results if row['image_id'] == record['image_id'] and row['score'] >= score_threshold]
        size = record['height'], record['width']
        labels = paint_results(without_overlaps(found), size, dataset.category_ids)
        image = decode_image(record['image'], name=record['file_name'])
        pictures[str(record['image_id'])] = visualize.draw_labels(image, labels, dataset.class_names)
    return pictures


def draw_true_labels(dataset: Dataset, truth: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws the true class of each pixel likewise; crowds look like background.

    Args:
        dataset: the split.
        truth: its `records.ground_truth`, with masks.
    """
    pictures = {}
    for index in range(min(PICTURES, len(dataset.records))):
        record = dataset.records[index]
        rows = [row for row in truth['annotations'] if row['image_id'] == record['image_id']]
        labels = label_map(paint_annotations(rows, (record['height'], record['width'])), rows, dataset.category_ids)
        image = decode_image(record['image'], name=record['file_name'])
        pictures[str(record['image_id'])] = visualize.draw_labels(image, labels, dataset.class_names)
    return pictures
