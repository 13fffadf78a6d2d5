"""Evaluates a checkpoint on the validation split.

    detzoo evaluate --workdir=runs/shapes

Prints COCO's table. Writes evaluation.json (step, images, the 12 numbers, AP of each class; null where there is no number) and
detections.json.gz (COCO's results format) into the workdir, or into --output=FOLDER. With --output the workdir may be read-only.
Every image counts once, on any number of devices, and of processes (--multihost, see detzoo train --help). Where the run keeps
an average of its parameters, that is evaluated.

--proposals=ground_truth gives the second stage of a two-stage detector the objects as proposals: what it still gets wrong is
not the fault of its RPN. The files are then called evaluation_given_proposals.json and detections_given_proposals.json.gz.

Of a class-agnostic detector (DeepMask) it also prints the recall of the best 1, 10, 100 and 1000 boxes and masks of an image.
--split=train evaluates it on the images of training: detections_train.json.gz are proposals for --config.data.train_proposals of
another detector, as detections.json.gz are for --config.data.validation_proposals.

--oracles prints what each stage of a Mask R-CNN would be worth if it never erred: its AP where the proposals, the boxes, the
classes or the masks are those of the objects. It writes evaluation_oracles.json and nothing else.
"""

from typing import Any

from absl import flags, logging

from detzoo.cli.checkpoint_flag import define_checkpoint
from detzoo.cli.host_flags import define_hosts, quieten
from detzoo.cli.paths import define_path
from detzoo.errors import ConfigError

WORKDIR = define_path('workdir', None, 'The workdir of a run.', required=True)
CHECKPOINT = define_checkpoint()
OUTPUT = define_path('output', None, 'A folder for the files; the workdir by default.')
DATA_DIR = define_path('data_dir', None, 'The folder of the data sets; that of the training by default.')
PROPOSALS = define_path(
    'proposals', None, "Proposals in place of the RPN's: 'ground_truth', or a file in COCO's results format."
)
EXACT = flags.DEFINE_bool(
    'exact', None, "Each image on a canvas of its own, see detzoo predict --help; the config's choice by default."
)
VOC = flags.DEFINE_bool(
    'voc', False, "Also print PASCAL VOC's mAP, as of 2007 and as of 2010, and where there are masks their AP^r."
)
BOUNDARY = flags.DEFINE_bool(
    'boundary',
    False,
    'Also print boundary AP, for which the outlines of masks count; it takes time where masks are large.',
)
PANOPTIC = flags.DEFINE_bool(
    'panoptic',
    False,
    'Evaluate a detector as segmenters always are: error of the number of objects and, by masks, panoptic quality and mean IoU.',
)
CLASS_AGNOSTIC = flags.DEFINE_bool('class_agnostic', False, 'Also print the table with all classes taken as one.')
SPLIT = flags.DEFINE_enum('split', 'validation', ['validation', 'train'], 'The images: of validation, or of training.')
RECALL = flags.DEFINE_bool(
    'recall',
    False,
    'Also print the recall of the best 1, 10, 100 and 1000 boxes of an image, whatever their class, and of their masks: of the '
    'detections, and of the boxes of proposals where a detector has two stages.',
)
ORACLES = flags.DEFINE_bool(
    'oracles',
    False,
    'Print only what each stage would be worth if it never erred: a table of AP with its results given.',
)
HOSTS = define_hosts()
before_flags = quieten


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    with HOSTS.joined():
        evaluate()


def evaluate() -> None:
    """Evaluates a checkpoint, and prints tables."""
    import jax

    from detzoo.evaluation import (
        class_agnostic,
        coco_metrics,
        format_recall,
        format_table,
        format_voc_table,
        voc_metrics,
    )
    from detzoo.evaluation.boundary import boundary_metrics, format_boundary
    from detzoo.evaluation.oracles import format_oracles
    from detzoo.evaluation.region import format_region_table, region_metrics
    from detzoo.inference.dataset import evaluate_workdir
    from detzoo.inference.oracles import evaluate_oracles
    from detzoo.run.parallel import keep_compilations

    def show(metrics: dict[str, Any], truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        if jax.process_index() > 0:
            return
        print(format_table(metrics))
        if CLASS_AGNOSTIC.value:
            print('\nall classes as one')
            print(format_table(coco_metrics(*class_agnostic(truth, results))))
        for key, what in (('recall', 'detections'), ('mask_recall', 'masks'), ('proposal_recall', 'proposals')):
            if key in metrics:
                print('\n' + format_recall(metrics[key], what))
        if VOC.value:
            print('\n' + format_voc_table(voc_metrics(truth, results)))
        if VOC.value and 'masks' in metrics:
            print('\n' + format_region_table(region_metrics(truth, results)))
        if BOUNDARY.value and 'masks' in metrics:
            print('\n' + format_boundary(boundary_metrics(truth, results)))
        elif BOUNDARY.value:
            print('\nno boundary AP: the run has no masks')

    keep_compilations()
    if ORACLES.value:
        others = dict(
            proposals=PROPOSALS,
            class_agnostic=CLASS_AGNOSTIC,
            recall=RECALL,
            voc=VOC,
            boundary=BOUNDARY,
            panoptic=PANOPTIC,
        )
        given = [f'--{name}' for name, flag in others.items() if flag.value]
        given += ['--split'] if SPLIT.value != 'validation' else []
        if given:
            raise ConfigError(f'--oracles prints a table of its own: leave out {", ".join(given)}')
        oracles = evaluate_oracles(
            WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, exact=EXACT.value, output=OUTPUT.value
        )
        if jax.process_index() == 0:
            print(format_oracles(oracles))
        return
    checkpoint = WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, PROPOSALS.value
    options = dict(
        exact=EXACT.value,
        panoptic=PANOPTIC.value,
        recall=RECALL.value,
        split=SPLIT.value,
        output=OUTPUT.value,
    )
    evaluate_workdir(*checkpoint, **options, on_results=show)
