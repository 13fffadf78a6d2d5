"""Measures how many images a core decodes, augments and pads each second, with the recipes of the COCO configs.

    python scripts/dev/benchmark_input.py
    python scripts/dev/benchmark_input.py --configs=mask_rcnn_r50_fpn_coco --canvases=1344x1344 --pictures=32
    python scripts/dev/benchmark_input.py --configs=mask_rcnn_r50_fpn_coco --changes=mosaic=1,copy_paste=1,mixup=1,cutout=1

Pictures are drawn: JPEGs of 640 x 480 pixels and about 70 kB, with seven objects each, as COCO has them on average. Each recipe is
measured on each canvas, with masks of 112 x 112 cells and without. The table has images per second of one core, by the process's
CPU time, the least of several rounds; and the shares of decoding, augmenting and masks, each once an image. The last column is
the same through Grain, in batches of 16 made by one thread: what it lacks is Grain's, and the copying of images into batches.
--changes measures each recipe once as it is, and once more with each of the changes alone. Where other images come in, they are
decoded and augmented too, and the shares do not add up.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from absl import app, flags, logging

from detzoo.config import load_config
from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.augment import augment
from detzoo.data.compose import vary
from detzoo.data.objects import object_masks
from detzoo.data.pipeline import load_augmented, train_batches
from detzoo.data.records import Dataset, decode_image

CONFIGS = flags.DEFINE_list(
    'configs',
    'mask_rcnn_r50_fpn_coco,ssd_vgg16_coco,yolov3_coco',
    'Configs whose recipes are measured; the other COCO configs have one of the same.',
)
CANVASES = flags.DEFINE_list('canvases', '640x640,800x1024', 'Canvases, HEIGHTxWIDTH pixels.')
CHANGES = flags.DEFINE_list(
    'changes', '', 'KEY=NUMBER of a recipe: each is measured alone, beside the recipe as it is.'
)
PICTURES = flags.DEFINE_integer('pictures', 8, 'Number of pictures.', lower_bound=1)
ROUNDS = flags.DEFINE_integer('rounds', 3, 'Number of rounds, of which the fastest counts.', lower_bound=1)

HEIGHT, WIDTH, OBJECTS, MASK_SIZE, BATCH = 480, 640, 7, 112, 16


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: arguments have the form --FLAG=VALUE')
    logging.set_verbosity(logging.WARNING)
    rng = np.random.RandomState(0)
    pictures = [draw_record(rng, index) for index in range(PICTURES.value)]
    sizes = [len(record['image']) for record in pictures]
    print(f'{len(pictures)} pictures of {np.mean(sizes) / 1000:.0f} kB on average, {OBJECTS} objects each; one core')
    print(f'{"recipe":40}{"canvas":>10}{"masks":>7}{"images/s":>10}{"decode":>8}{"augment":>8}{"masks":>7}{"Grain":>8}')
    for name, canvas, mask_size, change in itertools.product(
        CONFIGS.value, CANVASES.value, (0, MASK_SIZE), ('', *CHANGES.value)
    ):
        key, _, number = change.partition('=')
        changes = {f'data.recipe.{key}': float(number)} if change else {}
        recipe = load_config(name, changes).data.recipe.to_dict()
        whole, decoding, augmenting, masking, batching = measure(
            pictures, recipe, tuple(map(int, canvas.split('x'))), mask_size
        )
        shares = f'{decoding / whole:8.0%}{augmenting / whole:8.0%}{masking / whole:7.0%}'
        print(
            f'{name + " " + change:40}{canvas:>10}{mask_size:7}{1 / whole:10.0f}{shares}{1 / batching:8.0f}', flush=True
        )


def draw_record(rng: np.random.RandomState, index: int) -> dict[str, Any]:
    """Draws a picture of blurred and fine noise, with objects that have outlines of forty corners: see `records.Records`."""
    picture = sum(
        cv2.resize(
            rng.uniform(-1, 1, (HEIGHT // cell, WIDTH // cell, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        * strength
        for cell, strength in ((1, 9), (2, 9), (4, 16), (16, 30), (80, 50))
    )
    picture = np.clip(picture + 120, 0, 255).astype(np.uint8)
    boxes, counts = [], []
    while len(boxes) < OBJECTS:
        radius = np.exp(rng.uniform(np.log(8), np.log(160)))
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        corners = (radius * rng.uniform(0.7, 1.1, (2, 40)) * [np.cos(angles), np.sin(angles)]).T
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        outline = np.rint(corners + rng.uniform(0, (WIDTH, HEIGHT))).astype(np.int32)
        cv2.fillPoly(mask, [outline], 1)
        if mask.any():
            cv2.fillPoly(picture, [outline], rng.uniform(0, 255, 3).tolist())
            runs = pycocotools.mask.encode(np.asfortranarray(mask))
            boxes.append(pycocotools.mask.toBbox(runs))
            counts.append(runs['counts'].decode())
    return dict(
        image=cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(),
        image_id=index,
        file_name=f'{index}.jpg',
        height=HEIGHT,
        width=WIDTH,
        boxes=np.array(boxes, np.float64),
        labels=np.zeros(OBJECTS, np.int64),
        is_crowd=np.zeros(OBJECTS, bool),
        areas=np.prod(boxes, axis=1),
        annotation_ids=np.arange(OBJECTS),
        segmentations=counts,
    )


def measure(
    pictures: list[dict[str, Any]], recipe: dict[str, Any], canvas: tuple[int, int], mask_size: int
) -> tuple[float, float, float, float, float]:
    """Measures seconds of CPU time an image: in all, for decoding, augmenting and masks, and in all through Grain."""
    # Grain takes milliseconds to shuffle a handful of records: it draws numbers below 2^16 until one is an index.
    dataset = Dataset('drawn', 'train', ('object',), (1,), pictures * 10_000)

    def whole() -> None:
        for index in range(len(pictures)):
            rng = np.random.RandomState([0, index])
            load_augmented(dataset, index, canvas, 100, recipe, rng, mask_size=mask_size)

    def decode() -> list[np.ndarray]:
        return [decode_image(record['image'], name=record['file_name']) for record in pictures]

    images = decode()

    def augment_each() -> list[Any]:
        return [
            augment(
                image, xywh_to_xyxy(record['boxes']), record['is_crowd'], canvas, recipe, np.random.RandomState([0, i])
            )
            for i, (image, record) in enumerate(zip(images, pictures))
        ]

    objects = [vary(record, canvas, recipe, np.random.RandomState([0, i])).objects for i, record in enumerate(pictures)]

    def mask() -> None:
        for things in objects:
            object_masks(things, mask_size)

    seconds = [least(function) / len(pictures) for function in (whole, decode, augment_each, mask)]
    options = dict(canvases=(canvas,), max_boxes=100, recipe=recipe, mask_size=mask_size)
    stream = train_batches(dataset, **options, batch_size=BATCH, seed=0, threads=1)
    next(stream)
    seconds.append(least(lambda: next(stream)) / BATCH)
    stream.close()
    return tuple(seconds)


def least(function: Callable[[], Any]) -> float:
    """The least CPU time of a call in several rounds, seconds."""
    times = []
    for _ in range(ROUNDS.value):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == '__main__':
    app.run(main)
