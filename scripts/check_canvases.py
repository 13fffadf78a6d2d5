"""Says what it changes that images share a few canvases, against each image on a canvas of its own.

    python scripts/check_canvases.py --workdir=runs/retinanet_coco

Evaluates a workdir in both ways on its validation split, which compiles once for each size of image. Prints the AP of both, and
how many of the detections of an image on its own canvas have a partner on the shared one: with the same label and an IoU over
0.5, each of them that of one. Leaves evaluation_exact.json and evaluation_static.json, and the detections of both.
"""

import collections
import sys
from typing import Any

import numpy as np
from absl import app, flags, logging

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run, or of imported weights.', required=True)
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where data sets lie; as in training by default.')

SCORES = (0.0, 0.3, 0.5)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(logging.WARNING)
    from detzoo.data.records import DataError
    from detzoo.inference import evaluate_workdir
    from detzoo.training.parallel import keep_compilations

    keep_compilations()
    found = []
    try:
        for mode, exact in (('each image on its own canvas', True), ('on shared canvases', False)):
            metrics, _, results = evaluate_workdir(WORKDIR.value, data_dir=DATA_DIR.value, exact=exact)
            aps = ', '.join(f'{kind} AP {100 * metrics[kind]["AP"]:.2f}' for kind in ('boxes', 'masks') if kind in metrics)
            print(f'{mode + ":":30}{aps}, {len(results)} detections', flush=True)
            found.append(results)
    except (DataError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    for score in SCORES:
        matched, count, ious = shared(*found, score=score)
        print(f'{matched} of {count} with a score over {score:g} have a partner, {matched / max(count, 1):.3f}; '
              f'mean IoU {ious:.3f}')


def shared(exact: list[dict[str, Any]], static: list[dict[str, Any]], *, score: float) -> tuple[int, int, float]:
    """Counts the detections over a score that have a partner: (these, all of them, the mean IoU of pairs)."""
    from detzoo.core import boxes as box_ops
    from detzoo.weights.parity import pair_boxes

    images = collections.defaultdict(lambda: ([], []))
    for side, rows in enumerate((exact, static)):
        for row in sorted(rows, key=lambda row: -row['score']):
            if side or row['score'] > score:
                images[row['image_id']][side].append((*row['bbox'], row['category_id']))
    matched, count, ious = 0, 0, []
    for sides in images.values():
        ours, theirs = (np.array(side, float).reshape(-1, 5) for side in sides)
        ours[:, 2:4] += ours[:, :2]
        theirs[:, 2:4] += theirs[:, :2]
        pairs = pair_boxes(theirs[:, :4], ours[:, :4], alike=ours[:, 4:] == theirs[:, 4])
        count += len(ours)
        matched += (pairs >= 0).sum()
        ious.extend(np.asarray(box_ops.iou(ours[pairs >= 0, :4], theirs[pairs[pairs >= 0], :4])))
    return matched, count, float(np.mean(ious)) if ious else 0.0


if __name__ == '__main__':
    app.run(main)
