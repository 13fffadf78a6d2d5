"""Evaluates a checkpoint on the validation split.

    detzoo evaluate --workdir=runs/shapes

Prints COCO's table. Writes evaluation.json (step, images, the 12 numbers, AP of each class; null where there is no number) and
detections.json.gz (COCO's results format) into the workdir, or into --output=FOLDER. With --output the workdir may be read-only.
Every image counts once, on any number of devices. Where the run keeps an average of its parameters, that is evaluated.

--proposals=ground_truth gives the second stage of a two-stage detector the objects as proposals: what it still gets wrong is
not the fault of its RPN. The files are then called evaluation_given_proposals.json and detections_given_proposals.json.gz.
"""

from typing import Any

from absl import flags, logging

from detzoo.cli.checkpoint_flag import define_checkpoint
from detzoo.cli.paths import define_path

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
VOC = flags.DEFINE_bool('voc', False, "Also print PASCAL VOC's mAP, as of 2007 and as of 2010.")
CLASS_AGNOSTIC = flags.DEFINE_bool('class_agnostic', False, 'Also print the table with all classes taken as one.')
RECALL = flags.DEFINE_bool(
    'recall',
    False,
    'Also print the recall of the best 1, 10, 100 and 1000 boxes of an image, whatever their class: of the detections, and of the '
    'proposals where a detector has two stages.',
)


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    from detzoo.evaluation import (
        class_agnostic,
        coco_metrics,
        format_recall,
        format_table,
        format_voc_table,
        voc_metrics,
    )
    from detzoo.inference.dataset import evaluate_workdir
    from detzoo.run.parallel import keep_compilations

    def show(metrics: dict[str, Any], truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        print(format_table(metrics))
        if CLASS_AGNOSTIC.value:
            print('\nall classes as one')
            print(format_table(coco_metrics(*class_agnostic(truth, results))))
        for key, what in (('recall', 'detections'), ('proposal_recall', 'proposals')):
            if key in metrics:
                print('\n' + format_recall(metrics[key], what))
        if VOC.value:
            print('\n' + format_voc_table(voc_metrics(truth, results)))

    keep_compilations()
    checkpoint = WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, PROPOSALS.value
    evaluate_workdir(*checkpoint, exact=EXACT.value, recall=RECALL.value, output=OUTPUT.value, on_results=show)
