"""Checks that a detector computes what torchvision's model computes with the same weights.

  pip install torch torchvision
  python scripts/check_parity.py --model=retinanet_resnet50_fpn
  python scripts/check_parity.py --model=ssd300_vgg16 --images=one.jpg,two.jpg

Both sides see each image on torchvision's own canvas, resized in float: for RetinaNet and the R-CNNs to a shorter side of
800 and a longer one of at most 1333, padded to a multiple of 32; for SSD to 300 x 300 or 320 x 320. The weights are drawn,
not trained. Printed are, for each image, the largest difference of each tensor over the tensor's maximum, and how the kept
detections agree in the pixels of the image. RoIs of an R-CNN are compared in the order of torchvision's proposals. Then the
losses of an R-CNN, of three small images all of whose anchors and RoIs are sampled.
Exits with 1 if a tensor differs by more than 1e-4, if a proposal has no partner (nan), if the detections are not the same
ones: as many, each with the label of its partner, IoU > 0.999, score to 1e-3, IoU of masks > 0.99; or if a loss differs by
more than 1e-3 of itself.
"""

import sys

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from detzoo.detectors import make_detector
from detzoo.weights import torchvision_parity as parity
from detzoo.weights.mapping import fill
from detzoo.weights.parity import drawn_image, match_detections
from detzoo.weights.torchvision import PEERS

_MODEL = flags.DEFINE_enum('model', 'retinanet_resnet50_fpn', list(PEERS), "A model, by torchvision's name.")
_IMAGES = flags.DEFINE_list('images', [], 'Image files; by default five drawn pictures of different sizes.')

TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-3
SIZES = ((480, 640), (640, 427), (375, 500), (300, 640), (333, 333))
TRAINING_SIZE = (128, 250)  # which a reduced model does not resize


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')

    images = [np.asarray(Image.open(path).convert('RGB')) for path in _IMAGES.value]
    images = images or [drawn_image(*size, seed) for seed, size in enumerate(SIZES)]
    name, peer = _MODEL.value, PEERS[_MODEL.value]
    model = parity.build_peer(name)
    entries = parity.draw_peer(model)
    detector = make_detector(**peer.model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))
    variables = fill(peer.mapping, entries, template)

    agree = True
    for index, image in enumerate(images):
        theirs, their_detections, resized = parity.run_peer(name, model, image.copy())
        ours, our_detections = parity.run_detector(name, detector, *variables, resized, image.shape[:2])
        print(f'image {index + 1}: {image.shape[:2]}, resized to {resized.shape[:2]}', flush=True)
        agree &= tensors_agree(ours, theirs)
        agree &= detections_agree(our_detections, their_detections, peer.max_detections)
    if parity.VIEWS[name].losses:
        agree &= losses_agree(name, variables)
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    sys.exit(not agree)


def tensors_agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Prints how far tensors differ, and tells whether that is within the tolerance."""
    agree = True
    if 'proposals' in theirs:
        count = len(ours['proposals'])
        ours = parity.in_order_of(theirs['proposals'], ours)
        matched = np.isfinite(ours['proposals'][:, 0]).sum()
        print(f'  proposals   {matched}/{len(theirs["proposals"])} matched (ours: {count})')
        agree &= bool(matched == count)
    for key, expected in theirs.items():
        difference = abs(ours[key] - expected).max() / abs(expected).max()
        agree &= bool(difference <= TOLERANCE)  # NaN is no agreement
        print(f'  {key:18}{difference:.1e}   of {abs(expected).max():.3g}')
    return agree


def detections_agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], limit: int) -> bool:
    """Prints how far detections are the same ones, and tells whether they are."""
    same = match_detections(ours, theirs, limit=limit)
    masks = f', masks >= {same.min_mask_iou:.4f}' if 'masks' in theirs else ''
    print(f'  detections  {same.matched}/{same.theirs} matched (ours: {same.ours}; {same.empty} of theirs empty), '
          f'IoU >= {same.min_iou:.6f}, scores to {same.max_score_difference:.1e}{masks}', flush=True)
    return same.holds()


def losses_agree(name: str, variables: tuple) -> bool:
    """Prints the losses of both sides, and tells whether they are the same."""
    peer = parity.reduced_peer(name)
    model = parity.build_peer(name, **parity.VIEWS[name].reduced)
    parity.draw_peer(model)
    training = parity.drawn_training(drawn_image(*TRAINING_SIZE, seed=0), peer.model['num_classes'])
    theirs = parity.peer_losses(name, model, *training)
    ours = parity.detector_losses(name, make_detector(**peer.model), *variables, *training)
    agree = True
    for key, expected in theirs.items():
        difference = abs(ours[key] - expected) / abs(expected)
        agree &= bool(difference <= LOSS_TOLERANCE)
        print(f'  {key:18}{ours[key]:.6f}, torchvision {expected:.6f}: {difference:.1e}')
    return agree


if __name__ == '__main__':
    app.run(main)
