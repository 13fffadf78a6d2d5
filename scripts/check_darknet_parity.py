"""Checks that a YOLO computes what darknet's own network computes with the same weights, at its full size.

  python scripts/check_darknet_parity.py --model=yolov3-tiny
  python scripts/check_darknet_parity.py --model=yolov3
  python scripts/check_darknet_parity.py --model=yolov1 --darknet=darknet

YOLO v2 and v3 are run by OpenCV. YOLO v1 is run by nothing but darknet itself, and gcc binds it:

  git clone https://github.com/pjreddie/darknet && make -C darknet

(Debian's package `darknet` has the same files in /usr/lib/darknet.) The weights are drawn, not trained: some hundred
megabytes, in a temporary folder. Printed are the largest difference of each tensor over the tensor's maximum and, of v2
and v3, how the kept detections agree. Exits with 1 if a tensor differs by more than 3e-4, or if the detections are not
the same ones: as many, each with the label of its partner, IoU > 0.999, score to 1e-3.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags

from detzoo.detectors import make_detector
from detzoo.weights.darknet import PUBLISHED, cfg_text, read_weights
from detzoo.weights.darknet_parity import Darknet, drawn_weights, run_detector, run_opencv, select_detections
from detzoo.weights.parity import drawn_image, match_detections

_MODEL = flags.DEFINE_enum('model', 'yolov3-tiny', list(PUBLISHED), "A network, by the name of darknet's file.")
_DARKNET = flags.DEFINE_string('darknet', '/usr/lib/darknet', 'For YOLO v1: a folder with libdarknet.so and include/darknet.h.')

TOLERANCE = 3e-4


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    model, canvas = PUBLISHED[_MODEL.value]
    image = drawn_image(*canvas, seed=0)
    detector = make_detector(**model)
    template = jax.eval_shape(lambda rng: detector.init(rng, canvas), jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / f'{_MODEL.value}.weights')
        pathlib.Path(path).write_bytes(drawn_weights(model, template))
        ours, detections = run_detector(model, *read_weights(path, model, template), image)
        if model['name'] == 'yolo_v1':
            pixels = image.transpose(2, 0, 1) / 255
            darknet = Darknet(_DARKNET.value)
            output, _ = darknet.run(cfg_text(model, template, canvas), pixels, ours['output'].size, weights=path)
            theirs = {'output': output}
        else:
            theirs = run_opencv(model, template, path, image)

    print(f'{_MODEL.value}, {canvas[0]} x {canvas[1]}')
    agree = True
    for name, expected in theirs.items():
        difference = abs(ours[name] - expected).max() / abs(expected).max()
        agree &= bool(difference <= TOLERANCE)  # NaN is no agreement
        print(f'  {name:12}{difference:.1e}   of {abs(expected).max():.3g}')
    if model['name'] != 'yolo_v1':
        kept = [
            {name: getattr(x, name)[x.valid] for name in ('boxes', 'labels', 'scores')}
            for x in (detections, select_detections(model, theirs, canvas))
        ]
        same = match_detections(*kept, limit=np.inf)
        agree &= same.holds()
        print(f'  detections  {same.matched}/{same.theirs} matched (ours: {same.ours}), IoU >= {same.min_iou:.6f}, '
              f'scores to {same.max_score_difference:.1e}')
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    sys.exit(not agree)


if __name__ == '__main__':
    app.run(main)
