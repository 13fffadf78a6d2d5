"""Evaluates a checkpoint on the validation split.

    python scripts/evaluate.py --workdir=runs/shapes

Prints the COCO table; writes evaluation.json (step, images, the 12 numbers, AP per class; an absent number is null) and
detections.json.gz (COCO's results format) into the workdir, or with --output=FOLDER there. Every image counts once, on all
devices; the averaged parameters are used where the run keeps an average.

--proposals=ground_truth gives a detector of two stages the objects as proposals, and so tells errors of its first stage
from those of its second; the results are then called evaluation_given_proposals.json and detections_given_proposals.json.gz.
"""

import sys
from typing import Any

from absl import app, flags, logging

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run.', required=True)
CHECKPOINT = flags.DEFINE_integer('checkpoint', None, 'The step of the checkpoint; the newest by default.')
OUTPUT = define_path('output', None, 'A folder for the files; the workdir by default.')
DATA_DIR = define_path('data_dir', None, 'Where data sets lie; as in training by default.')
PROPOSALS = define_path(
    'proposals', None, "Proposals instead of the RPN's: 'ground_truth', or a file in COCO's results format."
)
EXACT = flags.DEFINE_bool('exact', None, "Each image on a canvas of its own, see predict.py; the config's by default.")
VOC = flags.DEFINE_bool('voc', False, "Also print PASCAL VOC's mAP, of 2007 and of 2010 on.")
CLASS_AGNOSTIC = flags.DEFINE_bool('class_agnostic', False, 'Also print the table in which all classes count as one.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(logging.WARNING)
    from detzoo.errors import ConfigError, DataError, FirstProcessError
    from detzoo.evaluation import class_agnostic, coco_metrics, format_table, format_voc_table, voc_metrics
    from detzoo.inference.dataset import evaluate_workdir
    from detzoo.run.parallel import keep_compilations

    def show(metrics: dict[str, Any], truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        print(format_table(metrics))
        if CLASS_AGNOSTIC.value:
            print('\nall classes as one')
            print(format_table(coco_metrics(*class_agnostic(truth, results))))
        if VOC.value:
            print('\n' + format_voc_table(voc_metrics(truth, results)))

    keep_compilations()
    checkpoint = WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, PROPOSALS.value
    try:
        evaluate_workdir(*checkpoint, exact=EXACT.value, output=OUTPUT.value, on_results=show)
    except (ConfigError, DataError, FirstProcessError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    app.run(main)
