"""The toy data: blocks of three colours on gray noise, as records in memory, and prepared in a folder."""

import cv2
import ml_collections
import numpy as np
import pycocotools.mask
from tiny import CATEGORY_IDS, TINY_RETINANET, draw_blocks


def toy_record(index):
    """A record as `Dataset.records` serves it; the first has no object, the second a crowd, the third five objects."""
    height, width = 40 + 7 * (index % 5), 72 - 9 * (index % 4)
    if index == 2:
        height, width = 70, 90
    image, boxes, labels = draw_blocks(index, height, width, {0: 0, 2: 12}.get(index, 3))
    count = len(boxes)
    return dict(
        image=cv2.imencode('.png', image[..., ::-1])[1].tobytes(),
        image_id=100 + index,
        file_name=f'{index}.png',
        height=height,
        width=width,
        boxes=boxes,
        labels=labels,
        is_crowd=np.arange(count) == (0 if index == 1 else -1),
        areas=boxes[:, 2] * boxes[:, 3],
        annotation_ids=100 * index + np.arange(count),
        segmentations=[''] * count,
    )


def with_masks(record):
    """A record of the toy data with the masks of its objects, which fill their boxes."""
    masks = np.zeros((len(record['boxes']), record['height'], record['width']), np.uint8)
    for mask, (x, y, width, height) in zip(masks, record['boxes'].astype(int)):
        mask[y : y + height, x : x + width] = 1
    encoded = [pycocotools.mask.encode(np.asfortranarray(mask)) for mask in masks]
    return {**record, 'segmentations': [rle['counts'].decode() for rle in encoded]}


def prepare_toy(folder, change=lambda record: record, train=range(20), validation=range(30, 40)):
    """Prepares the toy data in a folder: records of these numbers, changed by a function."""
    from detzoo.data.readers import prepare

    def example(index):
        record = change(toy_record(index))
        (folder / record['file_name']).write_bytes(record['image'])
        names = ('annotation_ids', 'boxes', 'areas', 'labels', 'is_crowd', 'segmentations')
        objects = zip(*(record[name] for name in names))
        keys = ('image_id', 'file_name', 'height', 'width')
        return {key: record[key] for key in keys} | {
            'image': folder / record['file_name'],
            'objects': [
                dict(id=i, bbox=box, area=area, label=label, is_crowd=crowd, segmentation=mask)
                for i, box, area, label, crowd, mask in objects
            ],
        }

    splits = {
        'train': prepare.Split([example(i) for i in train], []),
        'validation': prepare.Split([example(i) for i in validation], []),
    }
    categories = dict(zip(CATEGORY_IDS, ('red', 'green', 'blue')))
    prepare.write('toy', categories, splits, folder, annotations='toy', overwrite=False)
    return folder


def toy_config(data_dir, model=TINY_RETINANET, **changes):
    """A config that trains a tiny network on the toy data for a few steps; `changes` has __ in the place of dots."""
    from detzoo.config import complete

    config = ml_collections.ConfigDict()
    config.data = dict(name='toy', data_dir=str(data_dir), canvases=((64, 64),), max_boxes=4, threads=2)
    config.data.recipe = dict(scale_range=(0.8, 1.25))
    config.model = dict(model)
    config.training = dict(steps=16, batch_size=8, checkpoint_every=5, evaluate_every=0)
    config.optimizer = dict(name='sgd', learning_rate=0.02, warmup_steps=4, ema_decay=0.9)
    config.evaluation = dict(batch_size=8)
    config = complete(config)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config
