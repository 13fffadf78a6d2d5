"""The YOLOs: what their losses train, against darknet's rules in plain loops; reorg, and every variant.

Darknet has no loss but deltas: what it adds to the outputs of a network. The gradient of ours is their negative.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3, with_backbone

from detzoo.backbones.norms import make_norm
from detzoo.detectors import make_detector, yolo_v1, yolo_v2
from detzoo.types import Batch, GroundTruth, Inputs

IMAGES, CANVAS, ROWS, CLASSES = 6, (64, 96), 7, 3
ANCHORS_V2 = TINY_YOLO_V2['anchor_sizes']
ANCHORS_V3, GRIDS_V3 = TINY_YOLO_V3['anchor_sizes'], [(16, 24), (8, 12)]
V1_SCALES = dict(object_scale=1, no_object_scale=0.5, class_scale=1, box_scale=5)  # of darknet's .cfg files
V2_SCALES = dict(object_scale=5, no_object_scale=1, class_scale=1, box_scale=1)
ODD_SCALES = dict(object_scale=3.0, no_object_scale=0.7, class_scale=2.0, box_scale=1.5)


def random_batch(seed=0):
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
        labels=rng.randint(0, CLASSES, (IMAGES, ROWS)).astype(np.int32),
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


def deltas_v2(raw, gt, cells, rescore=True, warm_up=False, scales=V2_SCALES):
    """Darknet's region layer, thresh 0.6; with the slope of its sigmoids."""
    delta = np.zeros(raw.shape)
    for image, outputs in enumerate(raw.astype(np.float64)):
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
            delta[image, a, 5:] = scales['class_scale'] * ((np.arange(CLASSES) == label) - softmax(outputs[a, 5:]))
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
            assert jax.tree.map(jnp.shape, outputs[: len(raw)]) == jax.tree.map(jnp.shape, raw)
            return (*raw, *outputs[len(raw) :])

        with nn.intercept_methods(replace):
            value, (_, metrics) = detector.loss(params, state, batch, jax.random.key(0))
        return value, metrics

    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(raw)
    return [IMAGES * np.asarray(x) for x in gradient], metrics


def random_outputs(count, seed=1):
    rng = np.random.RandomState(seed)
    return rng.normal(0, 1, (IMAGES, count, 5 + CLASSES)).astype(np.float32)


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


@pytest.mark.parametrize(
    'images_seen, rescore, scales',
    [
        (0, True, {}),
        (16, True, {}),
        (0, False, {}),
        (16, False, ODD_SCALES),
    ],
    ids=str,
)
def test_yolo_v2_gradient_is_darknets_delta(images_seen, rescore, scales):
    batch = random_batch()
    cells = list(cells_of([(8, 12)], [ANCHORS_V2]))
    raw = draw_some_to_objects(random_outputs(len(cells)), batch.gt, cells)
    detector = make_detector(num_classes=CLASSES, **TINY_YOLO_V2 | dict(rescore=rescore) | scales)
    counters = {'counters': {'images_seen': np.float32(images_seen)}}
    (gradient,), metrics = gradient_of(detector, 'YOLOv2', (raw,), batch, counters)
    expected = deltas_v2(raw, batch.gt, cells, rescore, images_seen < 16, V2_SCALES | scales)
    np.testing.assert_allclose(-gradient, expected, atol=2e-5)
    assert metrics['ignored'] > 1  # darknet's threshold was at work


@pytest.mark.parametrize('box_loss_weight', [1.0, 3.0])
def test_yolo_v3_gradient_is_darknets_delta(box_loss_weight):
    batch = random_batch()
    cells = list(cells_of(GRIDS_V3, ANCHORS_V3))
    raw = draw_some_to_objects(random_outputs(len(cells)), batch.gt, cells)
    detector = make_detector(num_classes=CLASSES, **TINY_YOLO_V3 | dict(box_loss_weight=box_loss_weight))
    (gradient,), metrics = gradient_of(detector, 'YOLOv3', (raw,), batch)
    np.testing.assert_allclose(-gradient, deltas_v3(raw, batch.gt, cells, box_loss_weight), atol=4e-5)
    assert metrics['ignored'] > 1
    # Two objects of different classes have one anchor.
    assert ((gradient[..., 5:] < 0).sum(axis=-1) > 1).any()


@pytest.mark.parametrize('rescore, scales', [(True, {}), (False, ODD_SCALES)], ids=str)
def test_yolo_v1_gradient_is_darknets_delta(rescore, scales):
    batch, grid = random_batch(), (8, 12)
    rng = np.random.RandomState(2)
    cls_scores = rng.normal(0.3, 0.5, (IMAGES, 96, CLASSES)).astype(np.float32)
    confidences = rng.normal(0.3, 0.5, (IMAGES, 96, 2)).astype(np.float32)
    outputs = rng.normal(0.4, 0.4, (IMAGES, 96, 2, 4)).astype(np.float32)
    outputs[:, ::3, :, 2:] = 0.01  # overlap nothing: the nearest box is responsible
    raw = cls_scores, confidences, outputs
    detector = make_detector(num_classes=CLASSES, **TINY_YOLO_V1 | dict(rescore=rescore) | scales)
    gradient, _ = gradient_of(detector, 'YOLOv1', raw, batch)
    for ours, expected in zip(gradient, deltas_v1(*raw, batch.gt, grid, rescore, V1_SCALES | scales)):
        np.testing.assert_allclose(-ours, expected, atol=2e-5)


def test_connected_layer_starts_as_one_map_for_all_cells():
    cells, features, parts = 6, 4, (3, 2, 8)
    kernel = yolo_v1.connected_init(jax.random.key(0), (cells * features, cells * sum(parts)), parts=parts)
    x = np.random.RandomState(0).normal(size=(cells, features)).astype(np.float32)

    def outputs(x):
        """[S, parts], as the detector splits them."""
        flat = np.split(x.reshape(-1) @ np.asarray(kernel), np.cumsum(parts)[:-1] * cells)
        return np.concatenate([part.reshape(cells, -1) for part in flat], axis=1)

    order = [3, 0, 5, 1, 2, 4]
    np.testing.assert_allclose(outputs(x[order]), outputs(x)[order], atol=1e-7)  # cells are alike
    changed = abs(outputs(x + np.eye(cells)[:, :1]) - outputs(x)) > 1e-6
    assert changed[0].all() and not changed[1:].any()  # and alone
    assert kernel.std() > 0.003 and len(np.unique(kernel)) == features * sum(parts) + 1


def test_local_layer_starts_from_the_inputs_of_a_cell():
    arguments = with_backbone(TINY_YOLO_V1, name='extraction') | dict(head_features=(64, 64), local_features=64)
    params, _ = jax.jit(make_detector(num_classes=CLASSES, **arguments).init, static_argnums=1)(
        jax.random.key(0), CANVAS
    )
    kernel = params['head']['local']['kernel']
    inputs = kernel.shape[2]  # of each cell, 3 x 3 of them with all channels
    assert kernel.std() == pytest.approx((2 / inputs) ** 0.5, rel=0.02)  # He's; darknet's from another distribution


def test_yolo_v2_counts_the_images_it_has_seen():
    detector = make_detector(num_classes=CLASSES, **TINY_YOLO_V2)
    batch = random_batch()
    params, state = jax.jit(detector.init, static_argnums=1)(jax.random.key(0), CANVAS)
    step = jax.jit(lambda state: detector.loss(params, state, batch, jax.random.key(0))[1][0])
    assert state['counters']['images_seen'] == 0
    for expected in (6, 12, 16, 16):  # up to warm_up_images
        state = step(state)
        assert state['counters']['images_seen'] == expected


@pytest.mark.parametrize('kind', ['giou', 'diou', 'ciou'])
def test_yolo_v3_box_loss_of_overlaps_is_zero_on_the_objects(kind):
    batch = random_batch()
    gt = batch.gt._replace(valid=batch.gt.valid & (np.arange(ROWS) != 1))  # one object an anchor
    batch = batch._replace(gt=gt)
    cells = list(cells_of(GRIDS_V3, ANCHORS_V3))
    raw = random_outputs(len(cells))
    for image in range(IMAGES):
        for _, x, y, width, height, _ in objects_of(gt, image):
            a = chosen_anchor(cells, x, y, width, height)
            place = np.array([x / cells[a][2] - cells[a][1], y / cells[a][3] - cells[a][0]]).clip(1e-4, 1 - 1e-4)
            raw[image, a, :4] = [
                *np.log(place / (1 - place)),
                math.log(width / cells[a][4]),
                math.log(height / cells[a][5]),
            ]
    detector = make_detector(num_classes=CLASSES, **TINY_YOLO_V3 | dict(box_loss=kind))
    _, metrics = gradient_of(detector, 'YOLOv3', (raw,), batch)
    assert metrics['box_loss'] == pytest.approx(0, abs=1e-3)
    _, metrics = gradient_of(detector, 'YOLOv3', (raw + 0.3,), batch)
    assert metrics['box_loss'] > 0.1


def test_reorg_equals_darknets_loop():
    # Darknet takes the memory of [C, h, w] for that of [C / 4, 2 h, 2 w].
    channels, height, width = 8, 6, 4
    x = np.random.RandomState(0).normal(size=(channels, height, width)).astype(np.float32)
    memory = x.reshape(-1)
    expected = np.zeros(channels * height * width, np.float32)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                offset, plane = divmod(k, channels // 4)
                source_i, source_j = 2 * i + offset % 2, 2 * j + offset // 2
                expected[i + width * (j + height * k)] = memory[source_i + 2 * width * (source_j + 2 * height * plane)]
    ours = yolo_v2.reorg(x.transpose(1, 2, 0)[None])
    expected = expected.reshape(4 * channels, height // 2, width // 2)
    np.testing.assert_array_equal(ours[0].transpose(2, 0, 1), expected)


# What darknet's published files hold: 4 bytes a number, and a header (16 bytes of older files, 20 of newer ones).
@pytest.mark.parametrize(
    'size, arguments',
    [
        (789_312_988 - 16, dict(name='yolo_v1', num_classes=20, boxes_per_cell=3)),
        (203_934_260 - 16, dict(name='yolo_v2', num_classes=80)),
        (248_007_048 - 20, dict(name='yolo_v3', num_classes=80)),
        (
            35_434_956 - 20,
            dict(
                name='yolo_v3',
                num_classes=80,
                backbone=dict(name='tiny'),
                small_head=True,
                head_features=256,
                anchor_sizes=(((1.0, 1.0),) * 3,) * 2,
            ),
        ),
    ],
)
def test_yolo_has_as_many_weights_as_darknets_files(size, arguments):
    detector = make_detector(**arguments)
    params, state = jax.eval_shape(lambda: detector.init(jax.random.key(0), (448, 448)))
    state.pop('counters', None)
    assert 4 * sum(leaf.size for leaf in jax.tree.leaves((params, state))) == size


def test_yolo_v1_dropout_depends_on_the_image_not_on_its_place():
    arguments = with_backbone(TINY_YOLO_V1, name='extraction', norm='frozen_batch_norm')
    arguments |= dict(head_features=(32, 32), local_features=16)
    detector, batch = make_detector(num_classes=CLASSES, **arguments), random_batch()
    images = np.random.RandomState(0).randint(0, 256, (IMAGES, *CANVAS, 3)).astype(np.uint8)
    batch = batch._replace(inputs=batch.inputs._replace(images=images))
    params, state = jax.jit(detector.init, static_argnums=1)(jax.random.key(0), CANVAS)
    loss = jax.jit(lambda batch, rng: detector.loss(params, state, batch, rng)[0])
    turned = jax.tree.map(lambda x: x[::-1], batch)
    first = loss(batch, jax.random.key(0))
    assert loss(turned, jax.random.key(0)) == pytest.approx(float(first), rel=1e-5)
    assert loss(batch, jax.random.key(1)) != pytest.approx(float(first), rel=1e-5)


def test_yolo_v1_dropout_keeps_the_mean():
    # Behind it there is one linear layer: over many draws, its outputs are those without dropout.
    norm = make_norm('frozen_batch_norm', train=True, axis_name=None, dtype=np.float32)
    head = yolo_v1.Head((3, 2, 8), (16, 16), 64, 0.25, norm, np.float32)
    x = np.random.RandomState(0).uniform(size=(1, 4, 4, 8)).astype(np.float32)
    variables = head.init(jax.random.key(0), x, None)
    expected, _ = head.apply(variables, x, None)
    draws, _ = head.apply(variables, np.repeat(x, 400, axis=0), jax.random.split(jax.random.key(1), 400))
    assert draws.std(axis=0).mean() > 0.1 * abs(expected).mean()
    slope = (draws.mean(axis=0) * expected[0]).sum() / (expected**2).sum()
    assert slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (TINY_YOLO_V3 | dict(anchor_sizes=(((8, 8),), ((8, 8), (9, 9)))), 'equally many sizes'),
        (TINY_YOLO_V3 | dict(backbone_stride=1), 'darknet53.: it has feature maps of .* needs 0 and 1'),
        (TINY_YOLO_V3 | dict(box_loss='iou'), "box_loss is 'iou'"),
        (TINY_YOLO_V2 | dict(backbone_stride=64), 'the detector needs 32 and 64'),
    ],
)
def test_yolo_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_detector(num_classes=CLASSES, **arguments)
