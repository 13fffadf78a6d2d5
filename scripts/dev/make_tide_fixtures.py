"""Makes the golden numbers of tests/evaluation/test_tide.py with tidecv, so that the tests do not need tidecv.

  python -m venv tide && tide/bin/pip install tidecv absl-py       # own venv: it installs another OpenCV
  tide/bin/python scripts/dev/make_tide_fixtures.py

tests/fixtures/tide.json.gz was made with tidecv 1.0.1, pycocotools 2.0.11 and numpy 2.4.6 on Python 3.11. In it:

    versions  {package: version}
    cases     {name: {ground_truth, detections, results}}:
                boxes    has several objects per class and image, crowds, an image without objects, one without detections,
                         a class without objects, one without detections, one without either
                limited  has an image with more than 100 detections
                edges    has overlaps that are exactly at a threshold
                masks    is like boxes, with masks: polygons for objects, RLE with a list for crowds, RLE for detections
                ties     is like boxes, with few different scores; in the other cases all scores differ
    results   [{kind, foreground_iou, background_iou, AP, errors, counts}]: AP and the errors' dAP in percent points;
              errors and counts by tidecv's short names; it does not count false positives and false negatives
    in_order  for ties: the results after equal scores were replaced by different ones, in the order of images and list

tidecv reads ground truth and detections from files, so its own reader is part of what is compared.
"""

import gzip
import importlib.metadata
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import pycocotools.mask
import tidecv
from absl import app

PATH = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures' / 'tide.json.gz'
SIDE = 200  # side of an image, pixels
CATEGORIES = (9, 2, 5, 30, 7, 11)  # ids, not sorted; 30 has no detections, 7 has no objects, 11 has neither
THRESHOLDS = ((0.5, 0.1), (0.75, 0.3))  # foreground, background


def drawn_case(
    seed: int, images: int, repeats: int = 3, levels: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draws objects and, around them and elsewhere, detections.

    Args:
        seed: seed of the draws.
        images: number of images.
        repeats: largest number of detections of an object.
        levels: number of different scores; 0: all scores differ.

    Returns:
        a COCO dict and COCO results, without masks.
    """
    random = np.random.RandomState(seed)
    image_ids = [int(i) for i in random.choice(1000, images, replace=False)]
    annotations, detections = [], []

    def box_of(low: float, high: float) -> np.ndarray:
        size = np.exp(random.uniform(np.log(low), np.log(high), 2))
        return np.concatenate([random.uniform(0, SIDE - size), size])

    def detect(image_id: int, category: int, box: np.ndarray) -> None:
        box = [*box[:2], *np.maximum(box[2:], 4)]
        detections.append(dict(image_id=image_id, category_id=category, bbox=[round(float(v), 1) for v in box]))

    for index, image_id in enumerate(image_ids):
        for _ in range(0 if index == 0 else random.randint(2, 8)):
            crowd = random.rand() < 0.15
            box = np.round(box_of(60, 140) if crowd else box_of(20, 80), 1)
            category = CATEGORIES[random.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=[float(v) for v in box],
                    area=float(box[2] * box[3]),
                    iscrowd=int(crowd),
                )
            )
            for _ in range(0 if index == 1 else random.randint(repeats + 1)):
                other = CATEGORIES[random.choice([0, 1, 2, 4])]
                moved = box + random.randn(4) * random.choice([0.03, 0.1, 0.3]) * np.tile(box[2:], 2)
                detect(image_id, other if category == 30 or random.rand() < 0.25 else category, moved)
        for _ in range(0 if index == 1 else random.randint(1, 4)):
            detect(image_id, CATEGORIES[random.choice([0, 1, 2, 4])], box_of(20, 80))

    scores = random.permutation(len(detections)) / len(detections)
    for row, score in zip(detections, scores):
        row['score'] = float(round(score, 4) if not levels else np.ceil((score + 1e-9) * levels) / levels)
    categories = [dict(id=i, name=f'class {i}') for i in CATEGORIES]
    listed = [dict(id=i, width=SIDE, height=SIDE, file_name=f'{i}.jpg') for i in image_ids]
    return dict(images=listed, categories=categories, annotations=annotations), detections


def edge_case() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Makes detections that overlap objects by exactly a half or a tenth: same or other class, free, found or crowd."""
    square = (0, 0, 20, 20)
    # For each image: objects (category, box, crowd), detections (category, box); the first detection has the highest score.
    scenes = (
        ([(9, square, 0)], [(9, (0, 0, 20, 10))]),  # half: found
        ([(9, square, 0)], [(9, square), (9, (0, 0, 20, 10))]),  # half of a found one: localisation
        ([(9, square, 0)], [(9, (0, 0, 20, 2))]),  # a tenth: localisation
        ([(9, square, 0)], [(2, (0, 0, 20, 10))]),  # half of another class: classification
        ([(9, square, 0)], [(2, (0, 0, 20, 2))]),  # a tenth of another class: background
        ([(9, square, 1), (9, (100, 100, 9, 9), 0)], [(9, (10, 0, 20, 20))]),  # half inside a crowd: not ignored
        ([(9, square, 0), (9, square, 0)], [(9, square), (9, square), (9, square)]),  # equal objects
        ([(9, square, 0), (2, square, 0)], [(9, square), (2, square), (9, square), (5, square)]),  # of two classes
        ([(9, square, 0), (9, (0, 0, 40, 40), 1)], [(9, (5, 5, 20, 20))]),  # ignored, and localisation
        ([(9, square, 0)], [(2, square), (9, (5, 5, 20, 20))]),  # two kinds aim at one object
    )
    annotations, detections = [], []
    for image_id, (objects, found) in enumerate(scenes, start=1):
        for category, box, crowd in objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=list(box),
                    area=box[2] * box[3],
                    iscrowd=crowd,
                )
            )
        for rank, (category, box) in enumerate(found):
            score = 0.95 - 0.2 * rank - 0.01 * image_id
            detections.append(dict(image_id=image_id, category_id=category, bbox=list(box), score=round(score, 4)))
    images = [dict(id=i, width=SIDE, height=SIDE, file_name=f'{i}.jpg') for i in range(1, len(scenes) + 1)]
    return dict(
        images=images, categories=[dict(id=i, name=f'class {i}') for i in CATEGORIES], annotations=annotations
    ), detections


def add_masks(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    """Gives every box an ellipse, or a mask cut off at a side: polygons to objects, RLE to crowds and detections."""
    random = np.random.RandomState(0)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for row in ground_truth['annotations'] + detections:
        x, y, width, height = row['bbox']
        cut = random.choice([0.4, 1.2])
        across = np.minimum(np.cos(angles), cut)
        points = np.stack([x + width * (across + 1) / 2, y + height * (np.sin(angles) + 1) / 2], axis=1)
        points = np.clip(points, 0, SIDE).round(1)
        polygons = [[float(v) for v in points.ravel()]]
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, SIDE, SIDE))
        if 'score' in row:
            row['segmentation'] = dict(size=[SIDE, SIDE], counts=rle['counts'].decode())
        elif row['iscrowd']:
            pixels = pycocotools.mask.decode(rle).ravel(order='F')
            runs = np.diff(np.flatnonzero(np.diff(pixels, prepend=0, append=2)), prepend=0)
            row['segmentation'] = dict(size=[SIDE, SIDE], counts=[int(run) for run in runs])
        else:
            row['segmentation'] = polygons


def run_tidecv(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, thresholds: tuple[float, float]
) -> dict[str, Any]:
    """Has tidecv read files and evaluate them at thresholds (foreground, background)."""
    # It asks for a mask even where it compares boxes.
    annotations = [{'segmentation': [[0, 0, 1, 0, 1, 1]], **row} for row in ground_truth['annotations']]
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ('ground_truth.json', 'detections.json')]
        for path, content in zip(files, ({**ground_truth, 'annotations': annotations}, detections)):
            path.write_text(json.dumps(content))
        data = tidecv.datasets.COCO(str(files[0])), tidecv.datasets.COCOResult(str(files[1]))
    tide = tidecv.TIDE(*thresholds, mode={'bbox': tidecv.TIDE.BOX, 'segm': tidecv.TIDE.MASK}[kind])
    run = tide.evaluate(*data, name='run')
    errors = tide.get_main_errors()['run'] | tide.get_special_errors()['run']
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    return dict(
        kind=kind,
        foreground_iou=thresholds[0],
        background_iou=thresholds[1],
        AP=float(run.ap),
        errors={name: float(value) for name, value in errors.items()},
        counts=counts,
    )


def in_order(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replaces scores by different ones; equal scores are ordered by image, then by place in the list, the earlier one higher."""
    place = {image['id']: i for i, image in enumerate(ground_truth['images'])}
    rows = sorted(range(len(detections)), key=lambda i: (-detections[i]['score'], place[detections[i]['image_id']], i))
    return [{**detections[i], 'score': 1 - rank / len(rows)} for rank, i in enumerate(rows)]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    cases = {
        'boxes': drawn_case(0, images=24),
        'limited': drawn_case(1, images=4, repeats=60),
        'edges': edge_case(),
        'masks': drawn_case(2, images=16),
        'ties': drawn_case(3, images=24, levels=5),
    }
    add_masks(*cases['masks'])
    golden = {}
    for name, case in cases.items():
        kinds = ('bbox', 'segm') if name == 'masks' else ('bbox',)
        results = [run_tidecv(*case, kind, thresholds) for kind in kinds for thresholds in THRESHOLDS]
        golden[name] = dict(zip(('ground_truth', 'detections'), case), results=results)
        for result in results:
            print(name, result)
            usual = (result['foreground_iou'], result['background_iou']) == THRESHOLDS[0]
            if usual and name in ('boxes', 'masks') and not all(result['errors'].values()):
                raise ValueError(f'{name}: an error without effect: {result["errors"]}')
    ties = cases['ties']
    golden['ties']['in_order'] = [run_tidecv(ties[0], in_order(*ties), 'bbox', thresholds) for thresholds in THRESHOLDS]
    versions = {name: importlib.metadata.version(name) for name in ('tidecv', 'pycocotools', 'numpy')}
    text = json.dumps(dict(versions=versions, cases=golden), separators=(',', ':'))
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f'{PATH.name}: {PATH.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    app.run(main)
