"""Checks that a detector, or a segmenter, computes what torchvision's model computes with the same weights.

  pip install torch torchvision
  python scripts/dev/check_parity.py --model=retinanet_resnet50_fpn
  python scripts/dev/check_parity.py --model=ssd300_vgg16 --images=photos

The weights are random, not trained. A detector is compared in three ways:

- Both sides see each image on torchvision's own canvas, resized in float: for RetinaNet and the R-CNNs to a shorter side of
  800 and a longer one of at most 1333, padded to a multiple of 32; for SSD to 300 x 300 or 320 x 320. The script prints the
  largest difference of each tensor, divided by the tensor's maximum, and how well the kept detections agree, in the image's
  pixels. An R-CNN's RoIs are compared in the order of torchvision's proposals.
- Losses are compared on three small images. An R-CNN samples all anchors and RoIs; RetinaNet's second version sees each image
  alone.
- The weights are imported like a published file: torch saves them, in its zip format and in the older one, and import_weights
  makes a workdir. The detections in each image, resized by detzoo, are compared with torchvision's, with each image on a
  canvas of its own (exact), and for information on the canvases that images share.

For a segmenter ('fcn_resnet50', 'deeplabv3_resnet50') the feature maps, the logits and the probabilities of all pixels are
compared, on images as they are, and the losses on three small ones.

For a classifier ('resnet18', 'mobilenet_v2') the layers of our backbone are compared, on images as they are, and the output of
torchvision's last layers on top of either; with --source, a published file, also the predicted class.

Exits with 1 if a tensor differs by more than 1e-4, a proposal has no partner (nan), a loss has a relative difference of more than
1e-3, or the detections differ. They agree if there are as many, and each has a partner with the same label, IoU > 0.999 (or
corners within a hundredth of a pixel), a score within 1e-3, and an IoU of masks > 0.99. Detections whose scores tie for the last
places may differ.
"""

import collections
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from detzoo.cli.paths import define_path
from detzoo.data.records import decode_image
from detzoo.detectors import make_detector
from detzoo.errors import DataError
from detzoo.inference.photos import find_images
from detzoo.inference.predictor import Predictor, load
from detzoo.parity import torchvision as parity
from detzoo.parity import torchvision_segmentation as segmentation
from detzoo.parity.compare import differences, drawn_image, match_detections
from detzoo.parity.torchvision_models import CLASSIFIERS, VIEWS, build_classifier, build_peer, reduced_peer
from detzoo.weights.exchange import import_weights
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision import PEERS

_MODEL = flags.DEFINE_enum(
    'model', 'retinanet_resnet50_fpn', [*PEERS, *segmentation.PEERS, *CLASSIFIERS], "A model, by torchvision's name."
)
_SOURCE = define_path('source', None, 'A published file of a classifier, in place of drawn weights.')
_IMAGES = flags.DEFINE_list(
    'images', [], 'Image files, folders or globs; by default five drawn pictures of different sizes.'
)

TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-3
SEGMENTED_SIZE = (56, 72)
SIZES = ((480, 640), (640, 427), (375, 500), (300, 640), (333, 333))
TRAINING_SIZE = (128, 250)  # which a reduced model does not resize


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    logging.set_verbosity(logging.WARNING)  # otherwise every checkpoint logs its steps

    try:
        paths = find_images(_IMAGES.value) if _IMAGES.value else []
        images = [decode_image(path.read_bytes(), name=str(path)) for path in paths]
    except DataError as error:
        sys.exit(f'error: {error}')
    images = images or [drawn_image(*size, seed) for seed, size in enumerate(SIZES)]
    if _SOURCE.value and _MODEL.value not in CLASSIFIERS:
        raise app.UsageError('--source is for classifiers')
    kinds = ((PEERS, detectors_agree), (segmentation.PEERS, segmenters_agree), (CLASSIFIERS, classifiers_agree))
    agree = next(compare for models, compare in kinds if _MODEL.value in models)(_MODEL.value, images)
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    sys.exit(not agree)


def classifiers_agree(name: str, images: list[np.ndarray]) -> bool:
    """Compares the layers of a classifier, and tells whether they agree."""
    model = build_classifier(name)
    entries = parity.fill_peer(model, _SOURCE.value) if _SOURCE.value else parity.draw_peer(model)
    agree = True
    for index, image in enumerate(images):
        print(f'image {index + 1}: {image.shape[:2]}', flush=True)
        theirs, their_logits = parity.run_classifier(name, model, image)
        ours = parity.run_backbone(name, entries, image)
        our_logits = parity.classify(model, ours[CLASSIFIERS[name].parts[-1]])
        agree &= tensors_agree(ours | {'logits': our_logits}, theirs | {'logits': their_logits})
        if _SOURCE.value:
            names = parity.class_names(name)
            ours, theirs = names[our_logits.argmax()], names[their_logits.argmax()]
            agree &= ours == theirs
            print(f'  shows a {ours}, and to torchvision a {theirs}')
    return agree


def detectors_agree(name: str, images: list[np.ndarray]) -> bool:
    """Compares what a detector computes, and tells whether it agrees."""
    peer = PEERS[name]
    model = build_peer(name)
    entries = parity.draw_peer(model)
    detector = make_detector(**peer.model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))
    variables = fill(peer.mapping, entries, template).variables

    agree = True
    for index, image in enumerate(images):
        theirs, their_detections, resized = parity.run_peer(name, model, image.copy())
        ours, our_detections = parity.run_detector(name, detector, *variables, resized, image.shape[:2])
        print(f'image {index + 1}: {image.shape[:2]}, resized to {resized.shape[:2]}', flush=True)
        agree &= tensors_agree(ours, theirs)
        agree &= detections_agree(our_detections, their_detections, peer.max_detections)
    if VIEWS[name].losses:
        agree &= losses_agree(name, variables)
    return imports_agree(name, model, images) and agree


def tensors_agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Prints how far tensors differ, and tells whether that is within the tolerance."""
    agree = True
    if 'proposals' in theirs:
        count = len(ours['proposals'])
        ours = parity.in_order_of(theirs['proposals'], ours)
        matched = np.isfinite(ours['proposals'][:, 0]).sum()
        print(f'  proposals   {matched}/{len(theirs["proposals"])} matched (ours: {count})')
        agree &= bool(matched == count)
    for key, difference in differences(ours, theirs).items():
        agree &= difference <= TOLERANCE  # NaN is no agreement
        print(f'  {key:19} {difference:.1e}   of {abs(theirs[key]).max():.3g}')
    return agree


def detections_agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], limit: int) -> bool:
    """Prints how far detections are the same ones, and tells whether they are."""
    same = match_detections(ours, theirs, limit=limit)
    tied = f', {same.tied} tied for the last places' if same.tied else ''
    masks = (
        f', masks >= {same.min_mask_iou:.4f} but for {same.cut} in frames cut elsewhere' if 'masks' in theirs else ''
    )
    print(
        f'  detections  {same.matched}/{same.theirs} matched{tied} (ours: {same.ours}; {same.empty} of theirs empty), '
        f'IoU >= {same.min_iou:.6f}, scores to {same.max_score_difference:.1e}{masks}',
        flush=True,
    )
    return same.holds()


def losses_agree(name: str, variables: tuple) -> bool:
    """Prints the losses of both sides, and tells whether they are the same."""
    peer = reduced_peer(name)
    model = build_peer(name, **VIEWS[name].reduced)
    parity.draw_peer(model)
    training = parity.drawn_training(drawn_image(*TRAINING_SIZE, seed=0), peer.model['num_classes'])
    theirs = parity.peer_losses(name, model, *training)
    return numbers_agree(parity.detector_losses(name, make_detector(**peer.model), *variables, *training), theirs)


def segmenters_agree(name: str, images: list[np.ndarray]) -> bool:
    """Compares what a segmenter computes, and tells whether it agrees."""
    model = segmentation.build(name)
    variables = segmentation.fill_segmenter(name, parity.draw_peer(model))
    agree = True
    for index, image in enumerate(images):
        print(f'image {index + 1}: {image.shape[:2]}', flush=True)
        theirs = segmentation.run_peer(name, model, image)
        agree &= tensors_agree(segmentation.run_segmenter(name, *variables, image), theirs)
    batch, labels = segmentation.drawn_training(*SEGMENTED_SIZE)
    theirs = segmentation.peer_losses(name, model, batch, labels)
    return numbers_agree(segmentation.segmenter_losses(name, *variables, batch), theirs) and agree


def numbers_agree(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Prints losses, and tells whether they agree within the tolerance."""
    agree = True
    for key, expected in theirs.items():
        difference = abs(ours[key] - expected) / abs(expected)
        agree &= bool(difference <= LOSS_TOLERANCE)
        print(f'  {key:19} {ours[key]:.6f}, torchvision {expected:.6f}: {difference:.1e}')
    return agree


def imports_agree(name: str, model: Any, images: Sequence[np.ndarray]) -> bool:
    """Imports the weights from files, and prints how well the detections in images agree with torchvision's."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for new in (True, False):
            file, run = f'{folder}/{new}.pth', f'{folder}/{new}'
            torch.save(model.state_dict(), file, _use_new_zipfile_serialization=new)
            runs.append(import_weights(file, run, model=name))
        same = [row.checksum for row in runs[0].rows] == [row.checksum for row in runs[1].rows]
        print(f'imported from both formats of torch.save: {"the same" if same else "not the same"}')
        exact, static = (load(f'{folder}/True', exact=exact) for exact in (True, False))
        agree, found = same, collections.Counter()
        for index, image in enumerate(images):
            _, theirs, _ = parity.run_peer(name, model, image.copy())
            print(f'image {index + 1}: {image.shape[:2]}, imported', flush=True)
            agree &= detections_agree(detections_of(exact, image), theirs, PEERS[name].max_detections)
            alike = match_detections(detections_of(static, image), theirs, limit=PEERS[name].max_detections)
            found.update(matched=alike.matched, theirs=alike.theirs, ours=alike.ours)
    print(
        f"on canvases that images share, {found['matched']} of torchvision's {found['theirs']} detections have a partner "
        f'(IoU > 0.5, same label) among ours, {found["ours"]}'
    )
    return agree


def detections_of(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """Returns an imported detector's detections as `match_detections` takes them."""
    found = predictor(image)
    fields = ('boxes', 'scores', 'labels') + (() if found.masks is None else ('masks',))
    return {field: getattr(found, field) for field in fields}


if __name__ == '__main__':
    app.run(main)
