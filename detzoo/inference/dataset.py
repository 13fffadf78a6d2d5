"""A split of a data set through all devices, each image once; and a checkpoint's metrics on it.

make_predict_step -> predict_dataset: a split -> COCO results, on every process
evaluate_workdir: a checkpoint -> the COCO metrics, evaluation.json and detections.json.gz
"""

import json
import operator
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from detzoo.data.catalog import open_dataset
from detzoo.data.geometry import placement, resize_rule
from detzoo.data.pipeline import evaluation_batches, shard
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import Dataset, ground_truth
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics, write_detections
from detzoo.files import check_writable, write_text
from detzoo.inference.predictor import canvas_for, check_proposals, load, to_coco, to_image
from detzoo.run import parallel
from detzoo.run.classes import Classes
from detzoo.types import Batch, Detections, Detector


def canvases_for(truth: Mapping[str, Any], config: ml_collections.ConfigDict) -> list[tuple[int, int]]:
    """Chooses the canvas of each image of a split's `records.ground_truth`, in their order."""
    return [canvas_for((image['height'], image['width']), config) for image in truth['images']]


def evaluated_kinds(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What of detections is evaluated: boxes, and masks where the data bring them."""
    return ('bbox', 'segm') if config.data.mask_size else ('bbox',)


def check_truth(truth: dict[str, Any], kinds: Sequence[str], dataset: Dataset) -> None:
    """Refuses a split on which detections could not be evaluated, before any are computed.

    Args:
        truth: the split's `records.ground_truth`.
        kinds: what is to be evaluated, see `evaluated_kinds`.
        dataset: the split.

    Raises:
        DataError: an object lacks a mask, or the like.
    """
    try:
        coco_metrics(truth, [], kinds)
    except ValueError as error:
        raise DataError(f'the split {dataset.split!r} of {dataset.name!r} cannot be evaluated: {error}') from error


def make_predict_step(detector: Detector, canvases: Collection[Any], devices: Any = None) -> Callable[..., Any]:
    """Maps `predict` over devices: (params, model_state, batch) -> all devices' (detections, image ids, valid).

    Args:
        detector: any.
        canvases: those of all batches.
        devices: what to map over, all by default.
    """

    def predict_step(params: Any, model_state: Any, batch: Batch) -> tuple[Detections, jax.Array, jax.Array]:
        result = detector.predict(params, model_state, batch.inputs), batch.image_id, batch.valid
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
) -> list[dict[str, Any]]:
    """Detects the objects of a split on all devices, each image once.

    Args:
        predict_step: of `make_predict_step`.
        params, model_state: replicated over devices.
        dataset: the split.
        truth: its `records.ground_truth`.
        config: of the run.
        classes: of the detector; the data set's by default. What is found of classes that the data set lacks is left out.
        proposals: of the split, for a detector that is to look there; None: none.
        on_batch: is called with each sharded batch, for what else is to be computed from it.

    Returns:
        COCO results of the whole split, on every process.
    """
    canvases, rule = canvases_for(truth, config), resize_rule(config.data.recipe)
    classes = classes or Classes(dataset.class_names, dataset.category_ids)
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
    known, results = set(dataset.category_ids), {}

    def collect(gathered: Any) -> None:
        detections, indices, valid = parallel.first_replica(gathered)
        for row in np.flatnonzero(valid):
            index = int(indices[row])
            image = truth['images'][index]
            where = placement((image['height'], image['width']), canvases[index], rule)
            of_image = jax.tree.map(operator.itemgetter(row), detections)
            found = to_image(of_image, where, classes, config.evaluation.mask_paste)
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


def evaluate_workdir(
    workdir: str | os.PathLike,
    step: int | None = None,
    data_dir: str | None = None,
    proposals: str | None = None,
    *,
    exact: bool | None = None,
    output: str | os.PathLike | None = None,
    on_results: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None] = lambda *results: None,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Evaluates a checkpoint on all devices; writes `evaluation.json` and `detections.json.gz` into a folder.

    With other proposals than the run's they are `evaluation_given_proposals.json` and
    `detections_given_proposals.json.gz`, so that the usual ones stay; 'proposals' among the metrics says which. With `exact` given
    they are likewise called `_exact` or `_static`.

    Args:
        workdir: of a run.
        step: of the checkpoint, the newest by default.
        data_dir: where data sets lie, as in training by default.
        proposals: of the validation split, as `load_proposals` takes them; those of the config by default.
        exact: in place of the config's `evaluation.exact`, see `canvas_for`.
        output: the folder for the files, made if missing; the workdir by default.
        on_results: is called with what is returned, even if the files cannot be written.

    Returns:
        the metrics with their 'step', the ground truth, and the detections as COCO results.

    Raises:
        DataError: the data set is not there, cannot be evaluated, or its classes are not those of the run; the proposals
            cannot be used.
        FileNotFoundError: there is no such run or checkpoint.
        OSError: the files cannot be written. If the folder does not allow it, this is known before anything is computed.
        FirstProcessError: the folder does not allow it, and this is not the first process, which writes them.
    """
    predictor = load(workdir, step, exact=exact)
    config = predictor.config
    source = proposals or config.data.validation_proposals
    check_proposals(config, source is not None, 'proposals')
    dataset = open_dataset(config.data.name, config.data.validation_split, data_dir or config.data.data_dir)
    if not {*zip(*predictor.classes)} >= {*zip(dataset.class_names, dataset.category_ids)}:
        raise DataError(
            f'data set {dataset.name!r} has the classes {dataset.class_names} now, the run in {workdir} was trained on '
            f'{predictor.classes.class_names}: evaluate with the data it was trained on'
        )
    devices = jax.local_device_count() * jax.process_count()
    config = config.copy_and_resolve_references()
    config.evaluation.batch_size = -(-config.evaluation.batch_size // devices) * devices  # any machine may evaluate
    given = load_proposals(source, dataset, config.data.max_proposals)
    truth, kinds = ground_truth(dataset), evaluated_kinds(config)
    check_truth(truth, kinds, dataset)
    folder = pathlib.Path(output or workdir)
    parallel.from_first_process(lambda: check_writable(folder, 'give another folder for the files as output'))
    predict_step = make_predict_step(predictor.detector, canvases_for(truth, config))
    variables = parallel.replicate((predictor.params, predictor.model_state))
    results = predict_dataset(
        predict_step, *variables, dataset, truth, config, classes=predictor.classes, proposals=given
    )
    metrics = {'step': predictor.step, **coco_metrics(truth, results, kinds)}
    suffix = ''
    if proposals is not None:
        metrics, suffix = {'proposals': proposals, **metrics}, '_given_proposals'
    if exact is not None:
        suffix += '_exact' if exact else '_static'
    try:
        if jax.process_index() == 0:
            write_detections(folder / f'detections{suffix}.json.gz', results)
            write_text(folder / f'evaluation{suffix}.json', json.dumps(metrics, indent=2) + '\n')
    finally:
        on_results(metrics, truth, results)
    return metrics, truth, results
