"""Darknet's rules for training YOLOs in plain loops, and the batch on which tests compare them with ours.

Darknet has no loss but deltas: what it adds to the outputs of a network. The gradient of ours is their negative.
"""

import math

import flax.linen as nn
import jax
import numpy as np
from tiny import TINY_YOLO_V2, TINY_YOLO_V3

from detzoo.types import Batch, GroundTruth, Inputs

IMAGES, CANVAS, ROWS, CLASSES = 6, (64, 96), 7, 3
ANCHORS_V2 = TINY_YOLO_V2['anchor_sizes']
ANCHORS_V3, GRIDS_V3 = TINY_YOLO_V3['anchor_sizes'], [(16, 24), (8, 12)]
V1_SCALES = dict(object_scale=1, no_object_scale=0.5, class_scale=1, box_scale=5)  # of darknet's .cfg files
V2_SCALES = dict(object_scale=5, no_object_scale=1, class_scale=1, box_scale=1)
ODD_SCALES = dict(object_scale=3.0, no_object_scale=0.7, class_scale=2.0, box_scale=1.5)


def random_batch(seed=0, classes=CLASSES):
    """Objects that share cells and anchors, padding full of garbage, an image without objects and one with a crowd."""
    rng = np.random.RandomState(seed)
    size = rng.uniform(6, 30, (IMAGES, ROWS, 2))
    corner = rng.uniform(0, 1, (IMAGES, ROWS, 2)) * (np.array(CANVAS[::-1]) - size)
    boxes = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    boxes[:, 1] = boxes[:, 0] + np.float32([0.3, -0.2, 0.1, 0.4])  # the same cell and anchor as the row before
    boxes[0, 0], boxes[0, 1] = (2, 2, 30, 30), (3, 2.5, 29, 30)
    valid = np.arange(ROWS) < rng.randint(3, ROWS + 1, IMAGES)[:, None]
    valid[2] = False
    crowd = np.zeros((IMAGES, ROWS), bool)
    crowd[4, 2] = True
    boxes[4, 2] = (0, 0, 40, 40)
    boxes[~valid] = (9, np.nan, 3, 7)
    gt = GroundTruth(
        boxes=boxes,
        labels=rng.randint(0, classes, (IMAGES, ROWS)).astype(np.int32),
        valid=valid,
        crowd=crowd,
        dropped=np.zeros(IMAGES, np.int32),
        cropped=np.zeros(IMAGES, np.int32),
    )
    window = np.tile(np.float32([0, 0, CANVAS[1], CANVAS[0]]), (IMAGES, 1))
    inputs = Inputs(np.zeros((IMAGES, *CANVAS, 3), np.uint8), window)
    return Batch(inputs, gt, np.arange(IMAGES, dtype=np.int32), np.ones(IMAGES, bool))


def objects_of(gt, image):
    """(row, centre x, centre y, width, height, label) of the objects of an image, in float64; crowds are none."""
    for row in np.flatnonzero(gt.valid[image] & ~gt.crowd[image]):
        x1, y1, x2, y2 = gt.boxes[image, row].astype(np.float64)
        yield row, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, gt.labels[image, row]


def iou(first, second):
    """Of boxes (centre x, centre y, width, height)."""
    shared = 1.0
    for axis in range(2):
        high = min(first[axis] + first[axis + 2] / 2, second[axis] + second[axis + 2] / 2)
        shared *= max(high - max(first[axis] - first[axis + 2] / 2, second[axis] - second[axis + 2] / 2), 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def in_crowd(gt, image, box):
    """Whether at least half of (centre x, centre y, width, height) lies in a crowd."""
    for row in np.flatnonzero(gt.valid[image] & gt.crowd[image]):
        x1, y1, x2, y2 = gt.boxes[image, row].astype(np.float64)
        width = min(x2, box[0] + box[2] / 2) - max(x1, box[0] - box[2] / 2)
        height = min(y2, box[1] + box[3] / 2) - max(y1, box[1] - box[3] / 2)
        if width > 0 and height > 0 and width * height >= 0.5 * box[2] * box[3]:
            return True
    return False


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def cells_of(grids, sizes):
    """(row, column, cell width, cell height, anchor width, anchor height) of each anchor, levels in order."""
    for (rows, columns), level in zip(grids, sizes):
        for i in range(rows):
            for j in range(columns):
                for width, height in level:
                    yield i, j, CANVAS[1] / columns, CANVAS[0] / rows, width, height


def predicted_box(cell, raw):
    i, j, stride_x, stride_y, width, height = cell
    x, y = (j + sigmoid(raw[0])) * stride_x, (i + sigmoid(raw[1])) * stride_y
    return x, y, width * math.exp(raw[2]), height * math.exp(raw[3])


def chosen_anchor(cells, center_x, center_y, width, height):
    """The first of the anchors most like a box in shape, of those whose cell its centre lies in."""
    best, choice = -1.0, None
    for a, (i, j, stride_x, stride_y, anchor_width, anchor_height) in enumerate(cells):
        if math.floor(center_y / stride_y) == i and math.floor(center_x / stride_x) == j:
            alike = iou((0, 0, width, height), (0, 0, anchor_width, anchor_height))
            if alike > best:
                best, choice = alike, a
    return choice


def conditionals(logits, parents):
    """The softmax of each node among its siblings; without parents all are siblings."""
    parents = np.full(len(logits), -1) if parents is None else np.array(parents)
    return sum(
        np.where(parents == parent, softmax(np.where(parents == parent, logits, -np.inf)), 0) for parent in set(parents)
    )


def class_delta(logits, label, parents):
    """What a label adds to the logits of an anchor: in its group of siblings, and in those of its ancestors."""
    p, delta = conditionals(logits, parents), np.zeros(len(logits))
    while label >= 0:
        group = np.full(len(logits), True) if parents is None else np.array(parents) == parents[label]
        delta[group] = ((np.arange(len(logits)) == label) - p)[group]
        label = -1 if parents is None else parents[label]
    return delta


def probability(logits, label, parents):
    """P(label): the product of the conditionals on its path."""
    p, product = conditionals(logits, parents), 1.0
    while label >= 0:
        product, label = product * p[label], -1 if parents is None else parents[label]
    return product


def deltas_v2(raw, gt, cells, rescore=True, warm_up=False, scales=V2_SCALES, parents=None):
    """Darknet's region layer, thresh 0.6; with the slope of its sigmoids."""
    delta = np.zeros(raw.shape)
    for image, outputs in enumerate(raw.astype(np.float64)):
        if gt.boxed is not None and not gt.boxed[image]:
            label, objectness = gt.labels[image, 0], 1 / (1 + np.exp(-outputs[:, 4]))
            delta[image, :, 4] = scales['no_object_scale'] * (0 - objectness)
            if gt.valid[image, 0]:
                a = np.argmax([o * probability(row[5:], label, parents) for o, row in zip(objectness, outputs)])
                delta[image, a, 4] = 0
                delta[image, a, 5:] = scales['class_scale'] * class_delta(outputs[a, 5:], label, parents)
            continue
        objects = list(objects_of(gt, image))
        for a, cell in enumerate(cells):
            box, objectness = predicted_box(cell, outputs[a]), sigmoid(outputs[a, 4])
            prior = ((cell[1] + 0.5) * cell[2], (cell[0] + 0.5) * cell[3], *cell[4:])
            overlap = max((iou(box, other[1:5]) for other in objects), default=0)
            if not (overlap > 0.6 or in_crowd(gt, image, box) or in_crowd(gt, image, prior)):
                delta[image, a, 4] = scales['no_object_scale'] * (0 - objectness)
            if warm_up:
                place = [sigmoid(outputs[a, 0]), sigmoid(outputs[a, 1])]
                delta[image, a, :4] = 0.01 * (np.array([0.5, 0.5, 0, 0]) - [*place, *outputs[a, 2:4]])
        for _, x, y, width, height, label in objects:
            a = chosen_anchor(cells, x, y, width, height)
            i, j, stride_x, stride_y, anchor_width, anchor_height = cells[a]
            target = [
                x / stride_x - j,
                y / stride_y - i,
                math.log(width / anchor_width),
                math.log(height / anchor_height),
            ]
            reached = [sigmoid(outputs[a, 0]), sigmoid(outputs[a, 1]), *outputs[a, 2:4]]
            weight = scales['box_scale'] * (2 - width * height / (CANVAS[0] * CANVAS[1]))
            delta[image, a, :4] = weight * (np.array(target) - reached)
            overlap = iou(predicted_box(cells[a], outputs[a]), (x, y, width, height))
            delta[image, a, 4] = scales['object_scale'] * ((overlap if rescore else 1) - sigmoid(outputs[a, 4]))
            delta[image, a, 5:] = scales['class_scale'] * class_delta(outputs[a, 5:], label, parents)
    slope = 1 / (1 + np.exp(-raw.astype(np.float64)))
    slope *= 1 - slope
    delta[..., [0, 1, 4]] *= slope[..., [0, 1, 4]]
    return delta


def deltas_v3(raw, gt, cells, box_loss_weight=1):
    """Darknet's yolo layer, ignore_thresh 0.7."""
    delta = np.zeros(raw.shape)
    for image, outputs in enumerate(raw.astype(np.float64)):
        objects = list(objects_of(gt, image))
        for a, cell in enumerate(cells):
            box = predicted_box(cell, outputs[a])
            prior = ((cell[1] + 0.5) * cell[2], (cell[0] + 0.5) * cell[3], *cell[4:])
            overlap = max((iou(box, other[1:5]) for other in objects), default=0)
            if not (overlap > 0.7 or in_crowd(gt, image, box) or in_crowd(gt, image, prior)):
                delta[image, a, 4] = 0 - sigmoid(outputs[a, 4])
        taken = set()
        for _, x, y, width, height, label in objects:
            a = chosen_anchor(cells, x, y, width, height)
            i, j, stride_x, stride_y, anchor_width, anchor_height = cells[a]
            target = [
                x / stride_x - j,
                y / stride_y - i,
                math.log(width / anchor_width),
                math.log(height / anchor_height),
            ]
            reached = [sigmoid(outputs[a, 0]), sigmoid(outputs[a, 1]), *outputs[a, 2:4]]
            weight = box_loss_weight * (2 - width * height / (CANVAS[0] * CANVAS[1]))
            delta[image, a, :4] = weight * (np.array(target) - reached)
            delta[image, a, 4] = 1 - sigmoid(outputs[a, 4])
            for k in range(CLASSES):
                if k == label or a not in taken:  # a second object only adds its class
                    delta[image, a, 5 + k] = (k == label) - sigmoid(outputs[a, 5 + k])
            taken.add(a)
    return delta


def deltas_v1(cls_scores, confidences, outputs, gt, grid, rescore=True, scales=V1_SCALES):
    """Darknet's detection layer, sqrt."""
    deltas = [np.zeros(x.shape) for x in (cls_scores, confidences, outputs)]
    rows, columns = grid
    for image in range(IMAGES):
        for i in range(rows):
            for j in range(columns):
                cell = i * columns + j
                rectangle = (
                    (j + 0.5) * CANVAS[1] / columns,
                    (i + 0.5) * CANVAS[0] / rows,
                    CANVAS[1] / columns,
                    CANVAS[0] / rows,
                )
                if not in_crowd(gt, image, rectangle):
                    deltas[1][image, cell] = scales['no_object_scale'] * (
                        0 - confidences[image, cell].astype(np.float64)
                    )
                held = [
                    (x / CANVAS[1], y / CANVAS[0], width / CANVAS[1], height / CANVAS[0], label)
                    for _, x, y, width, height, label in objects_of(gt, image)
                    if math.floor(x / CANVAS[1] * columns) == j and math.floor(y / CANVAS[0] * rows) == i
                ]
                if not held:
                    continue
                *truth, label = held[-1]
                boxes = [
                    ((j + x) / columns, (i + y) / rows, w * w, h * h)
                    for x, y, w, h in outputs[image, cell].astype(np.float64)
                ]
                ious = [iou(box, truth) for box in boxes]
                distances = [math.dist(box, truth) for box in boxes]
                best = ious.index(max(ious)) if max(ious) > 0 else distances.index(min(distances))
                target = [truth[0] * columns - j, truth[1] * rows - i, math.sqrt(truth[2]), math.sqrt(truth[3])]
                classes = (np.arange(CLASSES) == label) - cls_scores[image, cell].astype(np.float64)
                deltas[0][image, cell] = scales['class_scale'] * classes
                reached = ious[best] if rescore else 1
                deltas[1][image, cell, best] = scales['object_scale'] * (reached - confidences[image, cell, best])
                deltas[2][image, cell, best] = scales['box_scale'] * (np.array(target) - outputs[image, cell, best])
    return deltas


def gradient_of(detector, network, raw, batch, model_state=None):
    """The gradient of an image's loss with respect to what the network puts out, and the metrics."""
    params, state = jax.eval_shape(lambda: detector.init(jax.random.key(0), CANVAS))
    params, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (params, state))
    state |= model_state or {}

    def loss(raw):
        def replace(next_function, args, kwargs, context):
            outputs = next_function(*args, **kwargs)
            if type(context.module).__name__ != network or context.method_name != '__call__':
                return outputs
            assert jax.tree.map(np.shape, outputs[: len(raw)]) == jax.tree.map(np.shape, raw)
            return (*raw, *outputs[len(raw) :])

        with nn.intercept_methods(replace):
            value, (_, metrics) = detector.loss(params, state, batch, jax.random.key(0))
        return value, metrics

    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(raw)
    return [len(batch.valid) * np.asarray(x) for x in gradient], metrics


def random_outputs(count, seed=1, classes=CLASSES):
    rng = np.random.RandomState(seed)
    return rng.normal(0, 1, (IMAGES, count, 5 + classes)).astype(np.float32)


def draw_some_to_objects(raw, gt, cells):
    """Lets some predictions lie on objects, so that there is something to ignore."""
    raw = raw.copy()
    for image in range(IMAGES):
        for _, x, y, width, height, _ in objects_of(gt, image):
            for a, (i, j, stride_x, stride_y, anchor_width, anchor_height) in enumerate(cells):
                place = np.clip([x / stride_x - j, y / stride_y - i], 0.01, 0.99)
                if abs(x / stride_x - j - 0.5) < 0.8 and abs(y / stride_y - i - 0.5) < 0.8 and a % 2:
                    raw[image, a, :2] = np.log(place / (1 - place))
                    raw[image, a, 2:4] = np.log([width / anchor_width, height / anchor_height])
    return raw
