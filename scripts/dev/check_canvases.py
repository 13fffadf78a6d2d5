"""Measures how detections change if images share a few canvases, instead of each having a canvas of its own.

    python scripts/dev/check_canvases.py --workdir=runs/retinanet_coco

Evaluates a workdir in both ways on its validation split, which compiles once for each size of image. Prints the AP of both, and
how many detections of images on their own canvases have a partner on the shared ones: a detection with the same label and an
IoU over 0.5, which is no other's partner. Writes evaluation_exact.json and evaluation_static.json, and the detections of both.
"""

import sys

from absl import app, logging

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run, or of imported weights.', required=True)
DATA_DIR = define_path('data_dir', None, 'Where data sets lie; as in training by default.')

SCORES = (0.0, 0.3, 0.5)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: arguments have the form --FLAG=VALUE')
    logging.set_verbosity(logging.WARNING)
    from detzoo.errors import ConfigError, DataError
    from detzoo.inference.dataset import evaluate_workdir
    from detzoo.parity.compare import count_partners
    from detzoo.run.parallel import keep_compilations

    keep_compilations()
    found = []
    try:
        for mode, exact in (('each image on its own canvas', True), ('on shared canvases', False)):
            metrics, _, results = evaluate_workdir(WORKDIR.value, data_dir=DATA_DIR.value, exact=exact)
            found_aps = {kind: metrics[kind]['AP'] for kind in ('boxes', 'masks') if kind in metrics}
            aps = ', '.join(
                f'{kind} AP {"none" if ap is None else f"{100 * ap:.2f}"}' for kind, ap in found_aps.items()
            )
            print(f'{mode + ":":30}{aps}, {len(results)} detections', flush=True)
            found.append(results)
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f'error: {error}')
    for score in SCORES:
        matched, count, iou = count_partners(*found, score=score)
        print(
            f'{matched} of {count} with a score over {score:g} have a partner, {matched / max(count, 1):.3f}; '
            f'mean IoU {iou:.3f}'
        )


if __name__ == '__main__':
    app.run(main)
