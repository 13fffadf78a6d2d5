"""Measures the time from a detector's masks to COCO results, and the error of masks stored in the frames of boxes.

    python scripts/dev/benchmark_masks.py
    python scripts/dev/benchmark_masks.py --targets=histology --data_dir=DIR

The first command pastes masks of 28 x 28 cells into pictures of 480 x 640, 100 per picture, and encodes them as run lengths. It
prints the median time of each step in one run; COCO's validation has 5000 pictures of up to a hundred masks.

The second command compares mask targets made from masks in the frames of their boxes, stored with several numbers of cells, with
targets made from the masks at full resolution. It prints the mean IoU of targets of 28 x 28 cells, for RoIs that are the
objects' boxes with their sides moved by up to a tenth.
"""

import statistics
import time

import numpy as np
import pycocotools.mask
from absl import app, flags, logging
from tqdm.auto import tqdm

from detzoo.cli.paths import define_path

TARGETS = flags.DEFINE_string(
    'targets', None, "A data set with masks whose targets are compared: 'shapes', 'histology', a name."
)
SPLIT = flags.DEFINE_string('split', 'validation', 'Of it.')
DATA_DIR = define_path('data_dir', None, 'Where data sets lie; default: ~/tensorflow_datasets.')
PICTURES = flags.DEFINE_integer('pictures', 20, 'How many are timed.', lower_bound=1)

MASKS, CELLS, HEIGHT, WIDTH = 100, 28, 480, 640
SIZES = 28, 56, 112
IMAGES_OF_COCO = 5000


def blobs(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draws ellipses that end softly, and boxes of 16 to 400 pixels: [MASKS, CELLS, CELLS] and [MASKS, 4]."""
    cells = np.mgrid[:CELLS, :CELLS] / (CELLS - 1) * 2 - 1
    stretch = rng.uniform(0.7, 1.2, (MASKS, 2, 1, 1))
    masks = 1 / (1 + np.exp(8 * (np.hypot(*(cells[:, None] / stretch.transpose(1, 0, 2, 3))) - 0.9)))
    side = np.exp(rng.uniform(np.log(16), np.log(400), (MASKS, 2)))
    corner = rng.uniform(0, np.maximum([WIDTH, HEIGHT] - side, 1))
    return masks.astype(np.float32), np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def time_masks() -> None:
    """Prints what pasting and encoding take."""
    from detzoo.core.masks import paste_masks

    rng = np.random.RandomState(0)
    pasting, encoding = [], []
    for _ in tqdm(range(PICTURES.value), desc='masks', unit='image', leave=False):
        masks, boxes = blobs(rng)
        start = time.perf_counter()
        pasted = paste_masks(masks, boxes, (HEIGHT, WIDTH))
        pasting.append(time.perf_counter() - start)
        start = time.perf_counter()
        pycocotools.mask.encode(np.asfortranarray(pasted.transpose(1, 2, 0)))
        encoding.append(time.perf_counter() - start)
    paste, encode = statistics.median(pasting), statistics.median(encoding)
    print(f'paste   {1000 * paste:7.1f} ms a picture, {MASKS / paste:7.0f} masks a second')
    print(f'encode  {1000 * encode:7.1f} ms a picture, {MASKS / encode:7.0f} masks a second')
    minutes = IMAGES_OF_COCO * (paste + encode) / 60
    print(f'{paste / encode:.2f} of encoding; both, of {IMAGES_OF_COCO} pictures: {minutes:.1f} minutes')


def compare_targets() -> None:
    """Prints the mean IoU of targets from masks in frames with those from whole masks."""
    import jax

    from detzoo.core.boxes import xywh_to_xyxy
    from detzoo.core.masks import mask_targets
    from detzoo.data.catalog import open_dataset
    from detzoo.data.geometry import mask_in_frame

    compiled = jax.jit(mask_targets, static_argnames='size')

    def target_of(mask: np.ndarray, box: np.ndarray, roi: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(mask[None], box, np.zeros(1, np.int32), roi, size=CELLS)) > 0

    rng = np.random.RandomState(0)
    ious = {size: [] for size in SIZES}
    as_it_is = np.eye(3)[:2]
    dataset = open_dataset(TARGETS.value, SPLIT.value, DATA_DIR.value)
    for record in tqdm(dataset.records, desc='targets', unit='image', leave=False):
        side = max(record['height'], record['width'])
        picture = np.float32([[0, 0, side, side]])
        for box, runs, crowd in zip(xywh_to_xyxy(record['boxes']), record['segmentations'], record['is_crowd']):
            if crowd:
                continue
            whole = pycocotools.mask.decode({'size': [record['height'], record['width']], 'counts': runs})
            roi = (box + rng.uniform(-0.1, 0.1, 4) * np.tile(box[2:] - box[:2], 2))[None].astype(np.float32)
            square = np.zeros((side, side), bool)  # the whole mask is one in the frame of the picture
            square[: record['height'], : record['width']] = whole
            expected = target_of(square, picture, roi)
            for size, found in ious.items():
                target = target_of(mask_in_frame(whole, box, as_it_is, (size, size)), box[None].astype(np.float32), roi)
                found.append((target & expected).sum() / max(1, (target | expected).sum()))
    for size, found in ious.items():
        low = np.quantile(found, 0.05)
        print(f'{size:4} x {size}: mean IoU {np.mean(found):.4f} of {len(found)} objects, 5 % are below {low:.3f}')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: arguments have the form --FLAG=VALUE')
    logging.set_verbosity(logging.WARNING)
    compare_targets() if TARGETS.value else time_masks()


if __name__ == '__main__':
    app.run(main)
