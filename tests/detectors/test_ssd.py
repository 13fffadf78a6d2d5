"""SSD: its loss against the paper's rules in plain loops, what it trains, its anchors and all its variants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY_SSD, TINY_SSD_RESNET, with_backbone

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import make_detector, ssd
from detzoo.types import Batch, GroundTruth, Inputs

IMAGES, CANVAS, ROWS, CLASSES = 6, (64, 96), 7, 3
ANCHORS = (8 * 12 + 4 * 6 + 2 * 3) * 4

SSDLITE = dict(
    name='ssd',
    backbone=dict(name='mobilenet_v3_large', norm='batch_norm', norm_epsilon=1e-3),
    backbone_strides=(16, 32),
    l2_norm_scale=None,
    lite=True,
    extra_layers=ssd.SSDLITE_LAYERS,
    anchor_sizes=(64, 112, 160, 208, 256, 304, 320),
    anchor_strides=(),
    clip_anchors=True,
    aspect_ratios=((1 / 2, 2, 1 / 3, 3),) * 6,
)
SSD512 = dict(
    name='ssd',
    extra_layers=ssd.SSD512_LAYERS,
    anchor_sizes=(36, 77, 154, 230, 307, 384, 461, 538),
    anchor_strides=(8, 16, 32, 64, 128, 256, 512),
    aspect_ratios=((1 / 2, 2), *((1 / 2, 2, 1 / 3, 3),) * 4, *((1 / 2, 2),) * 2),
)


def random_batch(seed=0):
    """Objects of which some share their best anchor, padding full of garbage, an image without objects, one with a crowd."""
    rng = np.random.RandomState(seed)
    size = rng.uniform(8, 36, (IMAGES, ROWS, 2))
    corner = rng.uniform(0, 1, (IMAGES, ROWS, 2)) * (np.array(CANVAS[::-1]) - size)
    boxes = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    boxes[:, 1] = boxes[:, 0] + np.float32([0.3, -0.2, 0.1, 0.4])
    valid = np.arange(ROWS) < rng.randint(3, ROWS + 1, IMAGES)[:, None]
    valid[2] = False
    crowd = np.zeros((IMAGES, ROWS), bool)
    crowd[4, 2], boxes[4, 2] = True, (0, 0, 58, 49.3)
    boxes[~valid] = (9, np.nan, 3, 7)
    labels = rng.randint(0, CLASSES, (IMAGES, ROWS)).astype(np.int32)
    gt = GroundTruth(boxes, labels, valid, crowd, np.zeros(IMAGES, np.int32), np.zeros(IMAGES, np.int32))
    window = np.tile(np.float32([0, 0, CANVAS[1], CANVAS[0]]), (IMAGES, 1))
    inputs = Inputs(np.zeros((IMAGES, *CANVAS, 3), np.uint8), window)
    return Batch(inputs, gt, np.arange(IMAGES, dtype=np.int32), np.ones(IMAGES, bool))


BATCH = random_batch()
BOX_LOSS_WEIGHT = 3.0  # alpha of equation 1


def shapes_of(detector, canvas=CANVAS):
    return jax.eval_shape(lambda key: detector.init(key, canvas), jax.random.key(0))


def with_outputs(function, cls_logits, box_deltas):
    """Calls a function with the outputs of the heads replaced."""

    def replace(next_function, args, kwargs, context):
        outputs = next_function(*args, **kwargs)
        name = context.module.name if context.method_name == '__call__' else None
        return {'cls_head': cls_logits, 'box_head': box_deltas}.get(name, outputs)

    with nn.intercept_methods(replace):
        return function()


@pytest.fixture(scope='module')
def run():
    """A function: the heads' outputs -> loss, metrics, gradients of both, boxes and rows of assign, all of the tiny SSD."""
    detector = make_detector(num_classes=CLASSES, **TINY_SSD | dict(box_loss_weight=BOX_LOSS_WEIGHT))
    params, model_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(detector))
    arguments = params, model_state, BATCH, jax.random.key(0)

    def loss(outputs):
        value, (_, metrics) = with_outputs(lambda: detector.loss(*arguments), *outputs)
        return value, metrics

    @jax.jit
    def run(cls_logits, box_deltas):
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)((cls_logits, box_deltas))
        assignment = with_outputs(lambda: detector.assign(*arguments), cls_logits, box_deltas)['anchors']
        return value, metrics, gradients, assignment

    return lambda *outputs: jax.tree.map(np.asarray, run(*outputs))


def random_outputs(seed):
    rng = np.random.RandomState(seed)
    cls_logits = rng.normal(0, 2, (IMAGES, ANCHORS, CLASSES + 1)).astype(np.float32)
    return cls_logits, rng.normal(0, 1.5, (IMAGES, ANCHORS, 4)).astype(np.float32)


def anchors_of_the_paper():
    """Section 2.2 in loops: (centre x, centre y, width, height) of the tiny SSD's anchors."""
    sizes, ratios, strides = (TINY_SSD[key] for key in ('anchor_sizes', 'aspect_ratios', 'anchor_strides'))
    for k, stride in enumerate(strides):
        shapes = [(sizes[k], sizes[k]), ((sizes[k] * sizes[k + 1]) ** 0.5,) * 2]
        shapes += [(sizes[k] / ratio**0.5, sizes[k] * ratio**0.5) for ratio in ratios[k]]
        for i in range(CANVAS[0] // stride):
            for j in range(CANVAS[1] // stride):
                for width, height in shapes:
                    yield (j + 0.5) * stride, (i + 0.5) * stride, width, height


def corners(box):
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def shared_area(first, second):
    width, height = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def matched_by_the_paper(gt, image, cls_losses):
    """Section 2.2 in loops: of each anchor a row of the ground truth, NEGATIVE or IGNORE; cls_losses as background."""
    anchors = [corners(box) for box in anchors_of_the_paper()]
    boxes = gt.boxes[image].astype(np.float64)
    objects = np.flatnonzero(gt.valid[image] & ~gt.crowd[image])
    iou = {}
    for m in objects:
        for a, anchor in enumerate(anchors):
            shared = shared_area(boxes[m], anchor)
            iou[m, a] = shared / (area(boxes[m]) + area(anchor) - shared)
    matched = [NEGATIVE] * len(anchors)
    for a, anchor in enumerate(anchors):
        best = max(objects, key=lambda m: iou[m, a], default=None)  # noqa: B023
        if best is not None and iou[best, a] >= 0.5:
            matched[a] = best
        elif any(
            shared_area(boxes[m], anchor) >= area(anchor) / 2 for m in np.flatnonzero(gt.valid[image] & gt.crowd[image])
        ):
            matched[a] = IGNORE
    for m in objects:
        matched[max(range(len(anchors)), key=lambda a: iou[m, a])] = m  # noqa: B023
    positives = sum(m >= 0 for m in matched)
    negatives = sorted((a for a, m in enumerate(matched) if m == NEGATIVE), key=lambda a: -cls_losses[a])
    for a in negatives[3 * positives :]:
        matched[a] = IGNORE
    return matched


def loss_of_the_paper(gt, cls_logits, box_deltas):
    """Equations 1 to 3 in loops: the two losses, and all that was matched."""
    cls_losses = -np.log(np.exp(cls_logits) / np.exp(cls_logits).sum(axis=-1, keepdims=True))
    matched = [matched_by_the_paper(gt, i, cls_losses[i, :, CLASSES]) for i in range(IMAGES)]
    cls_loss = box_loss = positives = 0
    for i in range(IMAGES):
        for a, (x, y, width, height) in enumerate(anchors_of_the_paper()):
            m = matched[i][a]
            if m != IGNORE:
                cls_loss += cls_losses[i, a, gt.labels[i, m] if m >= 0 else CLASSES]
            if m >= 0:
                positives += 1
                x1, y1, x2, y2 = gt.boxes[i, m].astype(np.float64)
                targets = (
                    ((x1 + x2) / 2 - x) / width,
                    ((y1 + y2) / 2 - y) / height,
                    (x2 - x1) / width,
                    (y2 - y1) / height,
                )
                targets = *targets[:2], np.log(targets[2]), np.log(targets[3])
                for delta, target, variance in zip(box_deltas[i, a], targets, (0.1, 0.1, 0.2, 0.2)):
                    error = abs(delta - target / variance)
                    box_loss += 0.5 * error**2 if error < 1 else error - 0.5
    return cls_loss / positives, BOX_LOSS_WEIGHT * box_loss / positives, matched


@pytest.mark.parametrize('seed', range(3))
def test_ssd_loss_equals_loops(run, seed):
    cls_logits, box_deltas = random_outputs(seed)
    value, metrics, _, (boxes, matched) = run(cls_logits, box_deltas)
    cls_loss, box_loss, expected = loss_of_the_paper(
        BATCH.gt, *(x.astype(np.float64) for x in (cls_logits, box_deltas))
    )
    np.testing.assert_allclose(boxes, [[corners(box) for box in anchors_of_the_paper()]] * IMAGES, rtol=1e-5)
    np.testing.assert_array_equal(matched, expected)
    assert metrics['cls_loss'] == pytest.approx(cls_loss, rel=1e-4)
    assert metrics['box_loss'] == pytest.approx(box_loss, rel=1e-4)
    assert value == pytest.approx(cls_loss + box_loss, rel=1e-4)


def test_ssd_trains_what_assign_says(run):
    cls_logits, box_deltas = random_outputs(0)
    _, metrics, (cls_gradient, box_gradient), (_, matched) = run(cls_logits, box_deltas)
    positive, count = matched >= 0, (matched >= 0).sum()
    labels = np.where(positive, np.take_along_axis(BATCH.gt.labels, np.maximum(matched, 0), axis=1), CLASSES)
    # Cross-entropy: the probabilities less 1 for the true answer; nothing where the answer doesn't count.
    answer = labels[..., None] == np.arange(CLASSES + 1)
    expected = np.where((matched == IGNORE)[..., None], 0, np.asarray(jax.nn.softmax(cls_logits)) - answer) / count
    np.testing.assert_allclose(cls_gradient, expected, atol=1e-6)
    np.testing.assert_array_equal((box_gradient != 0).any(axis=-1), positive)
    assert abs(box_gradient).max() == pytest.approx(BOX_LOSS_WEIGHT / count)  # smooth L1 beyond 1
    for name, chosen in (('positives', positive), ('negatives', matched == NEGATIVE), ('ignored', matched == IGNORE)):
        assert metrics[name] == pytest.approx(chosen.sum() / IMAGES) and chosen.any()


def test_ssd_takes_three_negatives_for_each_positive_of_an_image(run):
    _, _, _, (_, matched) = run(*random_outputs(1))
    positives, negatives = (matched >= 0).sum(axis=1), (matched == NEGATIVE).sum(axis=1)
    np.testing.assert_array_equal(negatives, 3 * positives)
    assert positives[2] == 0 and len(set(positives)) > 2


def test_ssd_has_background_last(run):
    # Sure of class 0 everywhere: what is no object costs 30, objects of class 0 nothing. Sure of background: vice versa.
    cls_logits, box_deltas = random_outputs(0)
    for column, wrong in ((0, lambda labels: labels != 0), (CLASSES, lambda labels: labels != CLASSES)):
        sure = np.zeros_like(cls_logits)
        sure[..., column] = 30
        _, metrics, _, (_, matched) = run(sure, box_deltas)
        labels = np.take_along_axis(BATCH.gt.labels, np.maximum(matched, 0), axis=1)
        labels = np.where(matched >= 0, labels, CLASSES)[matched != IGNORE]
        assert metrics['cls_loss'] == pytest.approx(30 * wrong(labels).sum() / (matched >= 0).sum(), rel=1e-5)


def test_ssd_predicts_what_heads_say():
    # One anchor is sure of class 1 and moves by 10 * 0.3 widths, all others are background.
    detector = make_detector(num_classes=CLASSES, **TINY_SSD)
    params, model_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(detector))
    cls_logits = np.zeros((IMAGES, ANCHORS, CLASSES + 1), np.float32)
    cls_logits[..., CLASSES] = 20
    box_deltas = np.zeros((IMAGES, ANCHORS, 4), np.float32)
    row = (3 * 12 + 5) * 4 + 2  # 17 x 8.5 around (44, 28)
    cls_logits[1, row], box_deltas[1, row] = (0, 3, 0, 0), (3, 0, 0, 5 * np.log(2))
    inputs = BATCH.inputs
    predict = jax.jit(
        lambda: with_outputs(lambda: detector.predict(params, model_state, inputs), cls_logits, box_deltas)
    )
    found = jax.tree.map(np.asarray, predict())
    assert not found.valid[[0, 2, 3, 4, 5]].any()
    assert found.labels[1][found.valid[1]].tolist() == [1, 0, 2]  # above the score threshold, too: e^0 / (3 + e^3)
    np.testing.assert_allclose(found.scores[1][:3], np.exp([3, 0, 0]) / (3 + np.exp(3)), rtol=1e-5)
    width, height = 12 * 2**0.5, 2 * 12 / 2**0.5  # the height doubled
    x, y = 44 + 0.3 * width, 28
    expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    np.testing.assert_allclose(found.boxes[1][:3], [expected] * 3, rtol=1e-5)


# torchvision's ssd300_vgg16 and ssdlite320_mobilenet_v3_large, 91 outputs: K = 90 and background.
@pytest.mark.parametrize('arguments, parameters', [(dict(name='ssd'), 35_641_826), (SSDLITE, 3_440_060)])
def test_ssd_has_as_many_parameters_as_torchvision(arguments, parameters):
    params, _ = shapes_of(make_detector(num_classes=90, **arguments))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_ssd512_has_the_extra_layers_of_the_authors():
    # conv6 to conv10 of their SSD512: a 1x1 convolution, and one that halves the grid; the last has 4 x 4 cells, and makes one.
    params, _ = shapes_of(make_detector(num_classes=20, **SSD512), (512, 512))
    layers = params['extra_layers']
    kernels = [[layers[f'layer{i}{part}']['conv']['kernel'].shape for part in ('_reduce', '')] for i in range(1, 6)]
    assert kernels == [
        [(1, 1, 1024, 256), (3, 3, 256, 512)],
        [(1, 1, 512, 128), (3, 3, 128, 256)],
        *[[(1, 1, 256, 128), (3, 3, 128, 256)]] * 2,
        [(1, 1, 256, 128), (4, 4, 128, 256)],
    ]


def test_ssdlite_on_mobilenet_v2_has_about_as_many_parameters_as_published():
    # 1801.04381, table 6: 4.3 million on COCO, of the authors' code, which has three anchors a cell on the finest level.
    arguments = with_backbone(SSDLITE, name='mobilenet_v2') | dict(
        aspect_ratios=((1 / 2,), *((1 / 2, 2, 1 / 3, 3),) * 5)
    )
    params, _ = shapes_of(make_detector(num_classes=80, **arguments))
    backbone, extra = (
        sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in ('backbone', 'extra_layers')
    )
    levels = zip((576, 1280, 512, 256, 256, 128), (3, *(6,) * 5))
    # Each head: a depthwise 3x3 with its norm, and a 1x1 with its bias.
    heads = sum(2 * (9 + 2) * channels + (channels + 1) * count * (81 + 4) for channels, count in levels)
    assert backbone == 2_223_872
    assert round((backbone + extra + heads) / 1e6, 1) == 4.3
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == backbone + extra + heads


@pytest.mark.parametrize(
    'arguments, canvas, anchors',
    [
        # Section 3: 8732 of SSD300, 24564 of SSD512. SSDLite: 6 a cell of 20^2 + 10^2 + 5^2 + 3^2 + 2^2 + 1^2.
        (dict(name='ssd'), (300, 300), 8732),
        (SSD512, (512, 512), 24564),
        (SSDLITE, (320, 320), 3234),
        (SSDLITE, (320, 224), 2274),
        (TINY_SSD, (72, 100), (9 * 13 + 4 * 6 + 2 * 3) * 4),
        (TINY_SSD_RESNET, (72, 100), (9 * 13 + 5 * 7 + 3 * 4) * 4),
    ],
)
def test_ssd_has_the_anchors_of_the_paper(arguments, canvas, anchors):
    detector = make_detector(num_classes=CLASSES, **arguments)
    batch = BATCH._replace(inputs=BATCH.inputs._replace(images=jax.ShapeDtypeStruct((IMAGES, *canvas, 3), np.uint8)))
    assigned = jax.eval_shape(detector.assign, *shapes_of(detector, canvas), batch, jax.random.key(0))
    assert assigned['anchors'].boxes.shape == (IMAGES, anchors, 4)


def test_ssd_without_strides_spreads_anchors_over_the_canvas(run):
    # 72 x 100 has grids of 9 x 13, 4 x 6 and 2 x 3 cells: the middle of the last is half a cell from the corner.
    detector = make_detector(num_classes=CLASSES, **TINY_SSD | dict(anchor_strides=()))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(detector))
    batch = BATCH._replace(inputs=BATCH.inputs._replace(images=np.zeros((IMAGES, 72, 100, 3), np.uint8)))
    boxes = jax.jit(lambda: detector.assign(*variables, batch, jax.random.key(0))['anchors'].boxes[0])()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for last, grid in ((9 * 13 * 4 - 1, (9, 13)), ((9 * 13 + 4 * 6) * 4 - 1, (4, 6)), (-1, (2, 3))):
        np.testing.assert_allclose(centers[last], [100 - 50 / grid[1], 72 - 36 / grid[0]], rtol=1e-5)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(backbone=dict(name='resnet18')), 'norm is None: resnet18 needs one'),  # as SSD's own default has none
        (dict(anchor_sizes=(12, 20, 28)), 'anchor_sizes has 3 entries: 3 levels, .* need 4'),
        (dict(aspect_ratios=((2,),)), 'aspect_ratios has 1 entries'),
        (dict(anchor_strides=(8, 16)), 'anchor_strides has 2 entries'),
        (dict(extra_layers=()), 'anchor_sizes has 4 entries: 2 levels'),
        (
            dict(backbone_strides=(8, 16, 32)),
            'anchor_sizes has 4 entries: 4 levels, 3 of the backbone and 1 extra .* need 5',
        ),
    ],
)
def test_ssd_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=CLASSES, **TINY_SSD | changes)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_l2_norm_by_hand(dtype):
    # (3, 4) has length 5: 20 * (.6, .8). Nothing stays nothing, and its gradient is finite.
    x = jnp.array([[[[3, 4], [0, 0], [0, 0.5]]]], dtype)
    norm = ssd.L2Norm(20.0, dtype)
    variables = norm.init(jax.random.key(0), x)
    assert variables['params']['scale'].tolist() == [20, 20]
    y = norm.apply(variables, x)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        np.float32(y[0, 0]), [[12, 16], [0, 0], [0, 20]], rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6
    )
    gradient = jax.grad(lambda x: norm.apply(variables, x).astype(jnp.float32).sum())(x)
    assert np.isfinite(np.float32(gradient)).all()
