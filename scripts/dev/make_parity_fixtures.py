"""Makes the golden outputs of tests/parity/test_torchvision_parity.py with torchvision, so that the test does not need torch.

  pip install torch torchvision
  python scripts/dev/make_parity_fixtures.py

The weights are random, seeded by the names of their entries (`parity.torchvision.drawn_entries`), so only names and shapes are
stored, with one small image, every n-th value of each tensor, all detections, and the losses that are compared. For classifiers,
the outputs of the layers that our backbones have are stored, and for segmenters also the classes' probabilities.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from detzoo.parity import torchvision_segmentation as segmentation
from detzoo.parity.compare import drawn_image
from detzoo.parity.torchvision import draw_peer, drawn_training, peer_losses, run_classifier, run_peer
from detzoo.parity.torchvision_models import VIEWS, build_classifier, build_peer
from detzoo.weights.torchvision import PEERS

_MODELS = flags.DEFINE_list('models', [], 'Whose fixtures are made; by default all.')

FOLDER = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures'
# (Sides of the image, how often each of its pixels is repeated), chosen so that no model resizes its image. RetinaNet pads its
# image to 96 x 128, its second version and the R-CNNs to 128 x 256; the SSDs see all of 300 x 300 and 320 x 320.
CASES = {
    'retinanet_resnet50_fpn': ((96, 118), 1),
    'ssd300_vgg16': ((75, 75), 4),
    'ssdlite320_mobilenet_v3_large': ((80, 80), 4),
    'fasterrcnn_resnet50_fpn': ((32, 62), 4),
    'maskrcnn_resnet50_fpn': ((32, 62), 4),
    'retinanet_resnet50_fpn_v2': ((32, 62), 4),
    'fasterrcnn_resnet50_fpn_v2': ((32, 62), 4),
    'maskrcnn_resnet50_fpn_v2': ((32, 62), 4),
    'fasterrcnn_mobilenet_v3_large_fpn': ((32, 62), 4),
    'fasterrcnn_mobilenet_v3_large_320_fpn': ((32, 62), 4),
}
CLASSIFIERS = ('resnet18', 'mobilenet_v2')  # backbones that the detectors' fixtures do not have
CLASSIFIED = (64, 96)
SEGMENTERS = ('fcn_resnet50', 'deeplabv3_resnet50')
SEGMENTED = (61, 93)  # no multiple of the stride
TRAINED = (56, 72)
VALUES = 500  # values stored of a tensor, at most about
MORE_VALUES = {'anchors': 10_000, 'proposals': 10_000}  # all proposals, since they order the rows of other tensors


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')

    FOLDER.mkdir(exist_ok=True)
    for name in _MODELS.value or [*CASES, *CLASSIFIERS, *SEGMENTERS]:
        make = classifier if name in CLASSIFIERS else segmenter if name in SEGMENTERS else detector
        save(name, make(name))


def detector(name: str) -> dict[str, np.ndarray]:
    """Runs a detector."""
    sides, repeat = CASES[name]
    model = build_peer(name, **VIEWS[name].reduced)
    shapes = {entry: array.shape for entry, array in draw_peer(model).items()}
    image = drawn_image(*sides, seed=0)
    enlarged = image.repeat(repeat, axis=0).repeat(repeat, axis=1)
    tensors, detections, _ = run_peer(name, model, enlarged)
    golden = {'image': image, 'repeat': repeat, 'shapes': json.dumps(shapes), **thinned(tensors), **detections}
    if 'masks' in detections:
        golden['masks'] = np.packbits(detections['masks'], axis=-1)
    if VIEWS[name].losses:
        losses = peer_losses(name, model, *drawn_training(enlarged, PEERS[name].model['num_classes']))
        golden |= {f'loss.{key}': value for key, value in losses.items()}
    return golden


def classifier(name: str) -> dict[str, np.ndarray]:
    """Runs a classifier."""
    model = build_classifier(name)
    shapes = {entry: array.shape for entry, array in draw_peer(model).items()}
    image = drawn_image(*CLASSIFIED, seed=0)
    return {'image': image, 'shapes': json.dumps(shapes), **thinned(run_classifier(name, model, image)[0])}


def segmenter(name: str) -> dict[str, np.ndarray]:
    """Runs a segmenter."""
    model = segmentation.build(name)
    shapes = {entry: array.shape for entry, array in draw_peer(model).items()}
    image = drawn_image(*SEGMENTED, seed=0)
    golden = {'image': image, 'shapes': json.dumps(shapes), **thinned(segmentation.run_peer(name, model, image))}
    losses = segmentation.peer_losses(name, model, *segmentation.drawn_training(*TRAINED))
    return golden | {'trained': TRAINED, **{f'loss.{key}': value for key, value in losses.items()}}


def thinned(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes every n-th value of each tensor, and its largest."""
    kept = {}
    for key, tensor in tensors.items():
        step = max(1, tensor.size // MORE_VALUES.get(key, VALUES)) | 1  # odd: not always the same channels
        kept |= {f'{key}.step': step, f'{key}.max': abs(tensor).max(), f'{key}.values': tensor.ravel()[::step]}
    return kept


def save(name: str, golden: dict[str, np.ndarray]) -> None:
    """Writes a fixture."""
    path = FOLDER / f'{name}.npz'
    np.savez_compressed(path, **golden)
    print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB, {len(golden.get("scores", ()))} detections')


if __name__ == '__main__':
    app.run(main)
