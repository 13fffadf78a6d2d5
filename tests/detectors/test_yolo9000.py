"""YOLO v2 with a tree of classes, and with images of which only a label is known: against darknet's rules in plain loops."""

import jax
import numpy as np
import pytest
from darknet_rules import (
    ANCHORS_V2,
    CANVAS,
    IMAGES,
    ODD_SCALES,
    V2_SCALES,
    cells_of,
    conditionals,
    deltas_v2,
    draw_some_to_objects,
    gradient_of,
    probability,
    random_batch,
    random_outputs,
)
from tiny import TINY_YOLO_V2, with_backbone

from detzoo.config import load_config
from detzoo.core.hierarchy import DESCENTS
from detzoo.core.matching import NEGATIVE
from detzoo.detectors import make_detector, yolo_v2
from detzoo.errors import ConfigError
from detzoo.weights.zoo import COCO

# 0 animal (2 cat, 3 dog (4 hound, 5 poodle)), 1 vehicle (6 car)
PARENTS = (-1, -1, 0, 0, 3, 3, 1)
NODES = len(PARENTS)
CELLS = list(cells_of([(8, 12)], [ANCHORS_V2]))


def labelled_batch(classes):
    """The batch of darknet_rules, of whose images 1, 2 (which has no label) and 5 have no boxes."""
    batch = random_batch(classes=classes)
    boxed = np.ones(IMAGES, bool)
    boxed[[1, 2, 5]] = False
    return batch._replace(gt=batch.gt._replace(boxed=boxed))


@pytest.mark.parametrize('parents, scales', [(PARENTS, ODD_SCALES), (None, {})], ids=['tree', 'flat'])
def test_gradient_is_darknets_delta(parents, scales):
    batch = labelled_batch(NODES)
    raw = draw_some_to_objects(random_outputs(len(CELLS), classes=NODES), batch.gt, CELLS)
    detector = make_detector(num_classes=NODES, **TINY_YOLO_V2 | dict(tree=parents) | scales)
    counters = {'counters': {'images_seen': np.float32(0)}}  # in an image without boxes there is no warm-up
    (gradient,), metrics = gradient_of(detector, 'YOLOv2', (raw,), batch, counters)
    expected = deltas_v2(raw, batch.gt, CELLS, True, True, V2_SCALES | scales, parents)
    np.testing.assert_allclose(-gradient, expected, atol=2e-5)
    assert not expected[[1, 2, 5], :, :4].any() and (expected[[1, 5], :, 4] == 0).sum() == 2
    assert np.isfinite(metrics['cls_loss']) and metrics['cls_loss'] > 0


def test_assign_says_which_anchor_learns_a_label():
    batch, detector = labelled_batch(NODES), make_detector(num_classes=NODES, tree=PARENTS, **TINY_YOLO_V2)
    params, state = detector.init(jax.random.key(0), CANVAS)
    matched = np.asarray(jax.jit(detector.assign)(params, state, batch, jax.random.key(0))['anchors'].matched)
    assert [(row == 0).sum() for row in matched[[1, 2, 5]]] == [1, 0, 1]
    assert set(np.unique(matched[[1, 2, 5]])) == {NEGATIVE, 0}
    _, (_, metrics) = jax.jit(detector.loss)(params, state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics['positives'], (matched >= 0).sum() / IMAGES)


def detected(outputs, **changes):
    """(label, score) of the detections at two anchors far from each other, best first."""
    cells = dict(anchors=np.float32([[0, 0, 9, 9], [40, 40, 49, 49]]), strides=np.full((2, 2), 8.0, np.float32))
    limits = dict(pre_nms_topk=14, score_threshold=0.01, iou_threshold=0.5, max_detections=14)
    options = dict(tree=yolo_v2.hierarchy.make_tree(PARENTS), descent='paper', descent_threshold=0.5) | changes
    found = jax.jit(lambda x: yolo_v2.detect(x, np.float32([0, 0, 64, 64]), **cells, **options, **limits))(outputs)
    return [(int(label), float(score)) for label, score in zip(found.labels[found.valid], found.scores[found.valid])]


OUTPUTS = np.zeros((2, 5 + NODES), np.float32)
OUTPUTS[:, 4] = 2, 1
OUTPUTS[:, 5:] = np.log([[9, 1, 1, 9, 8, 2, 1], [2, 8, 1, 1, 1, 1, 1]])  # dog .81, hound .648; vehicle and car .8
OBJECTNESS = 1 / (1 + np.exp(-np.float64([2, 1])))


def test_detect_reports_the_node_where_the_descent_ends():
    np.testing.assert_allclose(detected(OUTPUTS), [(4, OBJECTNESS[0]), (6, OBJECTNESS[1])], rtol=1e-6)
    assert [label for label, _ in detected(OUTPUTS, descent_threshold=0.7)] == [3, 6]
    # Darknet multiplies .9 * .81 = .729, and .729 * .648 = .47; .8 * .8 = .64
    assert [label for label, _ in detected(OUTPUTS, descent='darknet')] == [3, 6]
    assert [label for label, _ in detected(OUTPUTS, descent='darknet', descent_threshold=0.7)] == [3, 1]


def test_detect_without_descent_reports_every_node():
    expected = [
        (node, objectness * probability(np.float64(row[5:]), node, PARENTS))
        for objectness, row in zip(OBJECTNESS, OUTPUTS)
        for node in range(NODES)
    ]
    found = sorted(detected(OUTPUTS, descent=None))
    np.testing.assert_allclose(found, sorted(expected), rtol=1e-5)
    assert conditionals(OUTPUTS[0, 5:], PARENTS)[6] == 1  # an only child


@pytest.mark.parametrize('descent', [*DESCENTS, None])
def test_a_flat_tree_learns_and_detects_what_no_tree_does(descent):
    batch = labelled_batch(NODES)
    flat, tree = (
        make_detector(num_classes=NODES, **TINY_YOLO_V2 | dict(tree=parents, descent=descent))
        for parents in (None, (-1,) * NODES)
    )
    params, state = flat.init(jax.random.key(0), CANVAS)
    losses = [jax.jit(x.loss)(params, state, batch, jax.random.key(0))[0] for x in (flat, tree)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    if descent is None:
        found, others = (jax.jit(x.predict)(params, state, batch.inputs) for x in (flat, tree))
        np.testing.assert_allclose(others.scores, found.scores, atol=1e-6)


def test_yolo9000_has_darknets_output():
    """cfg/yolo9000.cfg: Darknet-19, and on its last convolution 3 * (4 + 1 + 9418) = 28,269 filters."""
    arguments = dict(head_features=None, passthrough_features=None, anchor_sizes=((25, 37), (96, 138), (295, 307)))
    detector = make_detector('yolo_v2', num_classes=9418, **arguments)
    params, _ = jax.eval_shape(lambda: detector.init(jax.random.key(0), (544, 544)))
    assert params['head']['output']['kernel'].shape == (1, 1, 1024, 28269) and set(params['head']) == {'output'}


def test_config_takes_the_tree_of_a_folder(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    with pytest.raises(ConfigError, match=r'9k\.tree.*yolo9000:FOLDER needs a folder of darknet'):
        load_config(f'yolo9000:{tmp_path}')
    (folder / '9k.tree').write_text('a -1\n' + ''.join(f'n{i} 0\n' for i in range(80)))
    (folder / '9k.names').write_text('thing\n' + ''.join(f'kind of {name}\n' for name in COCO.class_names))
    (folder / 'coco9k.map').write_text('\n'.join(str(i + 1) for i in range(80)))
    config = load_config(f'yolo9000:{tmp_path}')
    assert config.model.tree == (-1, *[0] * 80) and config.model.head_features is None
    assert config.data.class_names[:2] == ('thing', 'kind of person')
    assert config.data.renamed[-1] == ('toothbrush', 'kind of toothbrush') and config.data.labelled_share == 0.8


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(tree=(-1, 0)), 'tree has 2 nodes, but there are 7 classes'),
        (dict(tree=(0, *PARENTS[1:])), 'node 0 has parent 0'),
        (dict(tree=PARENTS, descent='up'), 'descent must be one of'),
        (dict(head_features=None), 'passthrough_features'),
    ],
)
def test_make_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_detector(num_classes=NODES, **with_backbone(TINY_YOLO_V2) | changes)
