"""Makes the golden outputs of tests/test_parity.py from torchvision itself, so that the test needs no torch.

  pip install torch torchvision
  python scripts/make_parity_fixtures.py

The weights are drawn from the names of their entries (`detzoo.weights.drawn_entries`), so only names and shapes are
stored, with one small image, every n-th value of each tensor, and all detections.
"""

import json
import pathlib

import numpy as np
from absl import app

from detzoo.weights.parity import build_peer, drawn_entries, drawn_image, run_peer
from detzoo.weights.torchvision import PEERS

FOLDER = pathlib.Path(__file__).parents[1] / 'tests' / 'fixtures'
SIDES = 96, 118  # of the image: not resized by limits of 96 and 128, but padded to 96 x 128
VALUES = 500  # stored of a tensor, about


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    import torch

    FOLDER.mkdir(exist_ok=True)
    for name in PEERS:
        model = build_peer(name, min_size=96, max_size=128)
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        model.load_state_dict({entry: torch.from_numpy(value) for entry, value in drawn_entries(shapes).items()})
        image = drawn_image(*SIDES, seed=0)
        tensors, detections, _ = run_peer(model, image)
        golden = {'image': image, 'shapes': json.dumps(shapes)}
        for key, tensor in tensors.items():
            step = 1 if key == 'anchors' else max(1, tensor.size // VALUES) | 1  # odd: not always the same channels
            golden |= {f'{key}.step': step, f'{key}.max': abs(tensor).max(), f'{key}.values': tensor.ravel()[::step]}
        path = FOLDER / f'{name}.npz'
        np.savez_compressed(path, **golden, **detections)
        print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB, {len(detections["scores"])} detections')


if __name__ == '__main__':
    app.run(main)
