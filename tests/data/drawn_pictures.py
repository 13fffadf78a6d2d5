"""A small truth that the tests of each reader write in its format, and what has to come out of it."""

import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from detzoo.data.records import ground_truth
from detzoo.evaluation import coco_metrics

# Name without suffix: suffix, (height, width), objects (class, x, y, width, height).
PICTURES = {
    'my cell 1': ('.png', (30, 40), [('red cell', 0, 0, 40, 30), ('cat', 3, 5, 10, 7), ('cat', 39, 29, 1, 1)]),
    'b.wide': ('.JPG', (1, 300), [('cat', 0, 0, 300, 1), ('red cell', 10, 0, 200, 1)]),
    'tall': ('.jpeg', (300, 1), [('red cell', 0, 20, 1, 280), ('cat', 0, 0, 1, 9)]),
    'empty': ('.webp', (17, 16), []),
}
CLASSES = 'cat', 'red cell'


def draw(folder, names=tuple(PICTURES), suffix=None):
    """Writes pictures into a folder, made if missing; returns the paths."""
    paths = []
    for name in names:
        own, size, _ = PICTURES[name]
        paths.append(folder / f'{name}{suffix or own}')
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(paths[-1])
    return paths


def check_truth(dataset, names=tuple(PICTURES), atol=0.0):
    """Compares records with PICTURES, and the ground truth with itself as detections."""
    found = {}
    for record in dataset.records:
        name = pathlib.PurePath(record['file_name'])
        classes = [dataset.class_names[label] for label in record['labels']]
        found[name.name.removesuffix(name.suffix)] = (record['height'], record['width']), classes, record['boxes']
    assert sorted(found) == sorted(names)
    for name, (size, classes, boxes) in found.items():
        _, expected_size, objects = PICTURES[name]
        assert size == expected_size and classes == [kind for kind, *_ in objects]
        np.testing.assert_allclose(boxes, np.reshape([box for _, *box in objects], (-1, 4)), rtol=0, atol=atol)
    truth = ground_truth(dataset)
    results = [
        {key: row[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 1.0} for row in truth['annotations']
    ]
    assert coco_metrics(truth, results)['boxes']['AP'] == pytest.approx(1, abs=1e-12)


NUMBERS = '-1', '0', '1', '1e999', 'nan', '', '1_0', '0.5', '7' * 400, '-inf', '0x1', '1e-320', '2', '40.25', 'x'


def mutate(text, rng):
    """Changes a text in one to three places, as editors, other tools and broken disks do; returns bytes."""
    for _ in range(rng.integers(1, 4)):
        numbers = list(re.finditer(rb'\d+(\.\d+)?', text))
        at, other, length = rng.integers(len(text) + 1), rng.integers(len(text) + 1), rng.integers(1, 12)
        kind = rng.integers(10)
        if kind < 6 and numbers:
            number = numbers[rng.integers(len(numbers))]
            text = text[: number.start()] + NUMBERS[rng.integers(len(NUMBERS))].encode() + text[number.end() :]
        elif kind == 6:
            text = text[:at] + text[at + length :]
        elif kind == 7:
            text = text[:at] + bytes([rng.integers(256)]) + text[at + 1 :]
        elif kind == 8:
            text = text[:at] + text[other : other + 9 * length] + text[at:]
        else:
            text = text[:at] + (text[other:] if length < 6 else b'')
    return text
