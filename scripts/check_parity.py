"""Checks that a detector computes what torchvision's model computes with the same weights.

  pip install torch torchvision
  python scripts/check_parity.py --model=retinanet_resnet50_fpn
  python scripts/check_parity.py --model=ssd300_vgg16 --images=one.jpg,two.jpg

Both sides see each image on torchvision's own canvas, resized in float: for RetinaNet to a shorter side of 800 and a longer
one of at most 1333, padded to a multiple of 32; for SSD to 300 x 300 or 320 x 320. The weights are drawn, not trained.
Printed are, for each image, the largest difference of each tensor over the tensor's maximum, and how the kept detections
agree in the pixels of the image.
Exits with 1 if a tensor differs by more than 1e-4, or if the detections are not the same ones: as many, each with the
label of its partner, IoU > 0.999, score to 1e-3.
"""

import sys

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from detzoo.detectors import make_detector
from detzoo.weights.parity import drawn_image, match_detections
from detzoo.weights.torchvision import PEERS
from detzoo.weights.torchvision_parity import build_peer, draw_peer, run_detector, run_peer

_MODEL = flags.DEFINE_enum('model', 'retinanet_resnet50_fpn', list(PEERS), "A model, by torchvision's name.")
_IMAGES = flags.DEFINE_list('images', [], 'Image files; by default five drawn pictures of different sizes.')

TOLERANCE = 1e-4
SIZES = ((480, 640), (640, 427), (375, 500), (300, 640), (333, 333))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')

    images = [np.asarray(Image.open(path).convert('RGB')) for path in _IMAGES.value]
    images = images or [drawn_image(*size, seed) for seed, size in enumerate(SIZES)]
    name, peer = _MODEL.value, PEERS[_MODEL.value]
    model = build_peer(name)
    entries = draw_peer(model)
    detector = make_detector(**peer.model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))
    params, model_state = peer.mapping(entries, template)

    agree = True
    for index, image in enumerate(images):
        theirs, their_detections, resized = run_peer(name, model, image.copy())
        ours, our_detections = run_detector(name, detector, params, model_state, resized, image.shape[:2])
        print(f'image {index + 1}: {image.shape[:2]}, resized to {resized.shape[:2]}', flush=True)
        for key, expected in theirs.items():
            difference = abs(ours[key] - expected).max() / abs(expected).max()
            agree &= bool(difference <= TOLERANCE)  # NaN is no agreement
            print(f'  {key:12}{difference:.1e}   of {abs(expected).max():.3g}')
        same = match_detections(our_detections, their_detections, limit=peer.model['max_detections'])
        agree &= same.holds()
        print(f'  detections  {same.matched}/{same.theirs} matched (ours: {same.ours}; {same.empty} of theirs empty), '
              f'IoU >= {same.min_iou:.6f}, scores to {same.max_score_difference:.1e}', flush=True)
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    sys.exit(not agree)


if __name__ == '__main__':
    app.run(main)
