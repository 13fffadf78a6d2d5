"""The YOLOs: what their losses train, against darknet's rules in plain loops; reorg, and every variant.

Darknet has no loss but deltas: what it adds to the outputs of a network. The gradient of ours is their negative.
"""

import math

import jax
import numpy as np
import pytest
from darknet_rules import (
    ANCHORS_V2,
    ANCHORS_V3,
    CANVAS,
    CLASSES,
    GRIDS_V3,
    IMAGES,
    ODD_SCALES,
    ROWS,
    V1_SCALES,
    V2_SCALES,
    cells_of,
    chosen_anchor,
    deltas_v1,
    deltas_v2,
    deltas_v3,
    draw_some_to_objects,
    gradient_of,
    objects_of,
    random_batch,
    random_outputs,
)
from tiny import TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3, with_backbone

from detzoo.backbones.norms import make_norm
from detzoo.detectors import make_detector, yolo_v1, yolo_v2


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
        (TINY_YOLO_V2 | dict(backbone_stride=64), 'the model needs 32 and 64'),
    ],
)
def test_yolo_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_detector(num_classes=CLASSES, **arguments)
