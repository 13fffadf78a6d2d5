"""What each stage of a trained detector is worth: its metrics where the ground truth takes the place of what a stage finds.

workdir -> its detector and the validation split
  -> for each row of ROWS: detections with these stages given (`Detector.oracle`) -> with the masks given, if they are
  -> COCO's metrics; written as evaluation_oracles.json
"""

import collections
import json
import os
from typing import Any

import jax

from detzoo.data.catalog import open_split
from detzoo.data.proposals import load_proposals
from detzoo.data.records import ground_truth
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics
from detzoo.evaluation.oracles import with_true_masks
from detzoo.files import as_path, check_writable, write_text
from detzoo.inference.dataset import (
    OTHER_FOLDER,
    canvases_for,
    check_classes,
    check_truth,
    evaluated_kinds,
    on_all_devices,
    predict_dataset,
)
from detzoo.inference.predictor import check_proposals, load
from detzoo.run import parallel

# What is given in each row. The boxes of objects leave nothing to the proposals.
ROWS = {
    'nothing': (),
    'proposals': ('proposals',),
    'boxes': ('boxes',),
    'classes': ('classes',),
    'masks': ('masks',),
    'boxes, classes': ('boxes', 'classes'),
    'boxes, classes, masks': ('boxes', 'classes', 'masks'),
}


def evaluate_oracles(
    workdir: str | os.PathLike,
    step: int | None = None,
    data_dir: str | None = None,
    *,
    exact: bool | None = None,
    output: str | os.PathLike | None = None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Evaluates a checkpoint with the results of each stage given, on all devices, and writes evaluation_oracles.json.

    Args:
        workdir, step, data_dir, exact, output: see `inference.dataset.evaluate_workdir`.

    Returns:
        {key of ROWS: {'boxes' and 'masks': the twelve numbers of `coco_metrics`}}.

    Raises:
        DataError: no stage of the detector can be given; it needs proposals and the config has none; the data set cannot be
            evaluated, or its classes are not those of the run.
        FileNotFoundError, OSError, FirstProcessError: see `evaluate_workdir`.
    """
    predictor = load(workdir, step, exact=exact)
    config, detector = predictor.config.copy_and_resolve_references(), predictor.detector
    if detector.oracle is None:
        raise DataError(
            f'no stage of {config.model.name} can be given the ground truth: evaluate the run of a mask_rcnn'
        )
    source = config.data.validation_proposals
    check_proposals(detector, config.model.name, source is not None, 'proposals')
    dataset = open_split(config.data, 'validation', data_dir)
    check_classes(predictor.classes, dataset, workdir)
    truth, kinds = ground_truth(dataset), evaluated_kinds(config)
    check_truth(truth, kinds, dataset)
    folder = as_path(output or workdir)
    parallel.from_first_process(lambda: check_writable(folder, OTHER_FOLDER))
    objects = collections.Counter(row['image_id'] for row in truth['annotations'])
    config.data.max_boxes = max(config.data.max_boxes, *objects.values())  # so that no object is left out
    devices = jax.local_device_count() * jax.process_count()
    config.evaluation.batch_size = -(-config.evaluation.batch_size // devices) * devices
    proposals = load_proposals(source, dataset, config.data.max_proposals)
    variables = parallel.replicate((predictor.params, predictor.model_state))

    def detect(stages: frozenset[str]) -> list[dict[str, Any]]:
        predict = detector.oracle(stages)
        predict_step = on_all_devices(
            lambda params, model_state, batch: predict(params, model_state, batch.inputs, batch.gt),
            canvases_for(truth, config),
        )
        classes = predictor.classes
        return predict_dataset(predict_step, *variables, dataset, truth, config, classes=classes, proposals=proposals)

    stages_of = {name: frozenset(given) - {'masks'} for name, given in ROWS.items()}
    found = {stages: detect(stages) for stages in dict.fromkeys(stages_of.values())}
    rows = {}
    for name, stages in stages_of.items():
        results = with_true_masks(truth, found[stages]) if 'masks' in ROWS[name] else found[stages]
        metrics = coco_metrics(truth, results, kinds)
        rows[name] = {kind: metrics[kind] for kind in ('boxes', 'masks')}
    if jax.process_index() == 0:
        text = json.dumps({'step': predictor.step, 'given': rows}, indent=2)
        write_text(folder / 'evaluation_oracles.json', text + '\n')
    return rows
