"""Makes the golden outputs of tests/test_parity.py from torchvision itself, so that the test needs no torch.

  pip install torch torchvision
  python scripts/make_parity_fixtures.py

The weights are drawn from the names of their entries (`torchvision_parity.drawn_entries`), so only names and shapes are
stored, with one small image, every n-th value of each tensor, and all detections.
"""

import json
import pathlib

import numpy as np
from absl import app

from detzoo.weights.parity import drawn_image
from detzoo.weights.torchvision_parity import build_peer, draw_peer, run_peer

FOLDER = pathlib.Path(__file__).parents[1] / 'tests' / 'fixtures'
# (Sides of the image, how often each of its pixels is repeated, arguments of the model): none is resized then. RetinaNet
# pads its image to 96 x 128, the SSDs see all of 300 x 300 and 320 x 320.
CASES = {
    'retinanet_resnet50_fpn': ((96, 118), 1, dict(min_size=96, max_size=128)),
    'ssd300_vgg16': ((75, 75), 4, {}),
    'ssdlite320_mobilenet_v3_large': ((80, 80), 4, {}),
}
VALUES, ANCHOR_VALUES = 500, 10_000  # stored of a tensor, at most about


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')

    FOLDER.mkdir(exist_ok=True)
    for name, (sides, repeat, changes) in CASES.items():
        model = build_peer(name, **changes)
        shapes = {entry: array.shape for entry, array in draw_peer(model).items()}
        image = drawn_image(*sides, seed=0)
        tensors, detections, _ = run_peer(name, model, image.repeat(repeat, axis=0).repeat(repeat, axis=1))
        golden = {'image': image, 'repeat': repeat, 'shapes': json.dumps(shapes)}
        for key, tensor in tensors.items():
            values = ANCHOR_VALUES if key == 'anchors' else VALUES
            step = max(1, tensor.size // values) | 1  # odd: not always the same channels
            golden |= {f'{key}.step': step, f'{key}.max': abs(tensor).max(), f'{key}.values': tensor.ravel()[::step]}
        path = FOLDER / f'{name}.npz'
        np.savez_compressed(path, **golden, **detections)
        print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB, {len(detections["scores"])} detections')


if __name__ == '__main__':
    app.run(main)
