"""Ground truths and detections, written down or drawn, and detectors whose matches are drawn without them."""

import numpy as np
from pycocotools import mask as rle

from detzoo.evaluation.statistics import THRESHOLDS, ClassMatches, Matches

SIDE = 100  # pixels of an image
AT50 = THRESHOLDS[:1]


def truth(*objects, images=2, categories=2):
    """A COCO dict of (image_id, category_id, box xywh) or (image_id, category_id, box xywh, crowd)."""
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3], iscrowd=int(any(crowd)))
        for i, (image, category, box, *crowd) in enumerate(objects, start=1)
    ]
    return dict(
        images=[dict(id=i, width=100, height=100) for i in range(1, images + 1)],
        categories=[dict(id=i, name=f'class {i}') for i in range(1, categories + 1)],
        annotations=annotations,
    )


def results(*detections):
    """COCO results of (image_id, category_id, box xywh, score)."""
    return [dict(image_id=i, category_id=c, bbox=list(box), score=score) for i, c, box, score in detections]


def random_case(seed, images=12, classes=4, masks=False, tied=True):
    """Objects and crowds, an image and a class without any, jittered detections; more than 100 of a class in an image."""
    random = np.random.RandomState(seed)
    image_ids = [int(i) for i in random.choice(10_000, images, replace=False)]  # neither sorted nor contiguous
    category_ids = [int(i) for i in random.choice(100, classes, replace=False) + 1]
    annotations, detections = [], []

    def detect(image_id, category_id, box):
        score = float(random.randint(1, 8)) / 8 if tied else random.rand()
        moved = np.array(box) + random.randn(4) * 0.08 * np.tile(box[2:], 2)
        moved[2:] = np.maximum(moved[2:], 2)
        row = {'image_id': image_id, 'category_id': category_id, 'bbox': moved.tolist(), 'score': score}
        detections.append(row)

    for index, image_id in enumerate(image_ids):
        for _ in range(0 if index == 0 else random.randint(1, 7)):
            size = random.uniform(6, 60, 2)
            row = {'image_id': image_id, 'bbox': [*random.uniform(0, SIDE - size).tolist(), *size.tolist()]}
            row |= {'category_id': category_ids[random.randint(classes - 1)], 'area': float(size.prod())}
            annotations.append({**row, 'id': len(annotations), 'iscrowd': int(random.rand() < 0.2)})  # from 0 on
            for _ in range(random.randint(4)):
                other = category_ids[random.randint(classes)]
                detect(image_id, other if random.rand() < 0.2 else row['category_id'], row['bbox'])
    for _ in range(0 if masks else 130):
        detect(*(annotations[0][key] for key in ('image_id', 'category_id', 'bbox')))
    for row in annotations + detections if masks else ():
        row['segmentation'] = ellipse(row['bbox'])
    ground_truth = {
        'images': [{'id': i, 'width': SIDE, 'height': SIDE} for i in image_ids],
        'categories': [{'id': i, 'name': f'class {i}'} for i in category_ids],
        'annotations': annotations,
    }
    return ground_truth, detections


def federated_case(seed, **how):
    """A `random_case` as LVIS has them: no crowds, and images annotated for some of the classes; over 300 detections in one."""
    ground_truth, detections = random_case(seed, classes=7, **how)
    random = np.random.RandomState(seed)
    for category in ground_truth['categories']:
        category['frequency'] = 'rcf'[random.randint(3)]
    for row in ground_truth['annotations']:
        del row['iscrowd']
        row['id'] += 1  # lvis-api never matches the id 0
    for image in ground_truth['images']:
        present = {row['category_id'] for row in ground_truth['annotations'] if row['image_id'] == image['id']}
        absent = sorted({category['id'] for category in ground_truth['categories']} - present)
        image['neg_category_ids'] = [category for category in absent if random.rand() < 0.5]
        image['not_exhaustive_category_ids'] = [category for category in sorted(present) if random.rand() < 0.4]
    if not how.get('masks'):
        first = detections[-1]  # a score like all others, so that the 300 best are of several classes
        detections += [{**first, 'score': float(random.rand())} for _ in range(300)]
    return ground_truth, detections


def ellipse(box):
    x, y, width, height = box
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    encoded = rle.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def make_matches(objects, *classes):
    """Matches of objects [K, images], and for each class detections (image, hit) in the order of their scores.

    A hit is one at all thresholds.
    """
    found = []
    for rows in classes:
        hits = np.tile(np.array([hit for _, hit in rows], bool), (len(THRESHOLDS), 1))
        scores, images = np.arange(len(rows), 0, -1.0), np.array([image for image, _ in rows], np.int64)
        found.append(ClassMatches(scores, images, hits, np.zeros_like(hits)))
    objects = np.array(objects)
    return Matches(tuple(range(objects.shape[1])), objects, tuple(found))


def random_matches(random, objects, recall=0.6, false_positives=3.0, better=1.0):
    """A detector that finds an object of objects [K, images] with the probability recall, [] or [images].

    In each image there are false positives, and the scores of hits are higher by `better` standard deviations.
    """
    classes = []
    for counts in objects:
        images = np.repeat(np.arange(len(counts)), counts)
        images = images[random.rand(len(images)) < np.broadcast_to(recall, len(counts))[images]]
        wrong = np.repeat(np.arange(len(counts)), random.poisson(false_positives / len(objects), len(counts)))
        hit = np.arange(len(images) + len(wrong)) < len(images)
        order = np.argsort(-(random.randn(len(hit)) + better * hit))
        classes.append(zip(np.concatenate([images, wrong])[order], hit[order]))
    return make_matches(objects, *map(list, classes))
