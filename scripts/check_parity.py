"""Checks that a detector computes what torchvision's model computes with the same weights.

  pip install torch torchvision
  python scripts/check_parity.py --model=retinanet_resnet50_fpn
  python scripts/check_parity.py --model=retinanet_resnet50_fpn --images=one.jpg,two.jpg

Both sides see each image on torchvision's own canvas: resized in float to a shorter side of 800 and a longer one of at
most 1333, padded to a multiple of 32. The weights are drawn, not trained. Printed are, for each image, the largest
difference of each tensor over the tensor's maximum, and how the kept detections agree in the pixels of the image.
Exits with 1 if a tensor differs by more than 1e-4, or if the detections are not the same ones: as many, each with the
label of its partner, IoU > 0.999, score to 1e-3.
"""

import sys

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from detzoo.detectors import make_detector
from detzoo.weights.parity import (
    build_peer,
    drawn_entries,
    drawn_image,
    match_detections,
    run_detector,
    run_peer,
)
from detzoo.weights.torchvision import PEERS

_MODEL = flags.DEFINE_enum('model', 'retinanet_resnet50_fpn', list(PEERS), "A model, by torchvision's name.")
_IMAGES = flags.DEFINE_list('images', [], 'Image files; by default five drawn pictures of different sizes.')

TOLERANCE = 1e-4
SIZES = ((480, 640), (640, 427), (375, 500), (300, 640), (333, 333))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    import torch

    images = [np.asarray(Image.open(path).convert('RGB')) for path in _IMAGES.value]
    images = images or [drawn_image(*size, seed) for seed, size in enumerate(SIZES)]
    model = build_peer(_MODEL.value)
    entries = drawn_entries({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in entries.items()})
    detector = make_detector(**PEERS[_MODEL.value].model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (128, 128)), jax.random.key(0))
    params, model_state = PEERS[_MODEL.value].mapping(entries, template)

    limit = PEERS[_MODEL.value].model['max_detections']
    agree = True
    for index, image in enumerate(images):
        theirs, their_detections, resized = run_peer(model, image.copy())
        ours, our_detections = run_detector(detector, params, model_state, resized, image.shape[:2])
        print(f'image {index + 1}: {image.shape[:2]}, resized to {resized.shape[:2]}', flush=True)
        for name, expected in theirs.items():
            difference = abs(ours[name] - expected).max() / abs(expected).max()
            agree &= bool(difference <= TOLERANCE)  # NaN is no agreement
            print(f'  {name:12}{difference:.1e}   of {abs(expected).max():.3g}')
        same = match_detections(our_detections, their_detections, limit=limit)
        agree &= same.holds()
        print(f'  detections  {same.matched}/{same.theirs} matched (ours: {same.ours}; {same.empty} of theirs empty), '
              f'IoU >= {same.min_iou:.6f}, scores to {same.max_score_difference:.1e}', flush=True)
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    sys.exit(not agree)


if __name__ == '__main__':
    app.run(main)
