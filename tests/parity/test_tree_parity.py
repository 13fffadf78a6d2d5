"""YOLO9000 against arrays that darknet made: its training with boxes and with labels alone, its network, its descent.

scripts/dev/make_darknet_fixtures.py makes these arrays and says what they are; their weights are drawn, not stored.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from darknet_models import draw, model_of
from darknet_rules import gradient_of

from detzoo.detectors import make_detector
from detzoo.parity.compare import match_detections
from detzoo.parity.darknet import run_detector
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights.darknet import model_of_cfg, read_weights
from detzoo.weights.darknet_layers import TREE, cfg_text
from detzoo.weights.darknet_tree import tree_text

THRESHOLDS = 0.1, 0.3, 0.6


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'darknet_tree.npz'))


@pytest.fixture(scope='module')
def network(golden, tmp_path_factory):
    """The arguments of the narrow YOLO9000, and its variables."""
    model = json.loads(str(golden['model']))
    template, path = draw(tmp_path_factory.mktemp('weights'), model, golden['image'].shape[:2])
    return model, read_weights(path, model, template).variables


@pytest.mark.parametrize('images_seen, name', [(0, 'delta_warm_up'), (12800, 'delta')])
def test_tree_trains_as_darknet_does(golden, images_seen, name):
    settings, output, delta = json.loads(str(golden['settings'])), golden['output'], golden[name].copy()
    center, size, label = np.split(golden['truths'], [2, 4], axis=-1)
    (height, width), images = settings['canvas'], len(delta)
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=-1) * np.float32([width, height] * 2)
    valid, none = size[..., 0] > 0, np.zeros(images, np.int32)
    boxed = np.arange(images) < images - 1
    gt = GroundTruth(boxes, label[..., 0].astype(np.int32), valid, np.zeros_like(valid), none, none, boxed=boxed)
    inputs = Inputs(
        np.zeros((images, height, width, 3), np.uint8), np.tile(np.float32([0, 0, width, height]), (images, 1))
    )
    batch = Batch(inputs, gt, np.arange(images, dtype=np.int32), np.ones(images, bool))

    changes = dict(
        num_classes=len(golden['parents']), tree=golden['parents'].tolist(), anchor_sizes=settings['anchors']
    )
    detector = make_detector(**model_of('yolov2-tiny') | changes | dict(rescore=True))
    counters = {'counters': {'images_seen': np.float32(images_seen)}}
    (gradient,), _ = gradient_of(detector, 'YOLOv2', (golden['raw'],), batch, counters)
    slope = np.ones_like(output)
    slope[..., [0, 1, 4]] = (output * (1 - output))[..., [0, 1, 4]]  # what darknet applies behind the layer
    # Two objects of the first image take one anchor: darknet leaves what the first one taught in groups off the other's path.
    taught = gradient[0, 15] != 0
    assert (delta[0, 15] != 0).sum() == taught.sum() + 5
    delta[0, 15] *= taught
    np.testing.assert_allclose(-gradient, delta * slope, atol=1e-5)
    labelled = delta[-1]
    assert not labelled[:, :4].any() and (labelled[:, 4] == 0).sum() == 1 and labelled[:, 5:].any(axis=1).sum() == 1
    assert (delta[0, :, 5:] == 0).any(axis=1).all()  # of no anchor are all groups on the path


def test_network_computes_what_darknet_computes(golden, network):
    model, variables = network
    tensors, _ = run_detector(model, *variables, golden['image'])
    classes, anchors = model['num_classes'], len(model['anchor_sizes'])
    height, width = tensors['level1'].shape[:2]
    expected = golden['output_of_network'].reshape(anchors, 5 + classes, height, width).transpose(2, 3, 0, 1)
    expected, parents = expected.reshape(-1, 5 + classes), golden['parents']
    np.testing.assert_allclose(tensors['objectness'], expected[:, 4], atol=1e-5)
    logits = tensors['level1'].reshape(-1, 5 + classes)[:, 5:]
    for parent in set(parents):
        group = parents == parent
        np.testing.assert_allclose(jax.nn.softmax(logits[:, group]), expected[:, 5:][:, group], atol=2e-5)


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_detections_are_darknets(golden, network, threshold):
    model, variables = network
    image = golden['image']
    limits = dict(
        score_threshold=0.2, pre_nms_topk=200, max_detections=200, descent='darknet', descent_threshold=threshold
    )
    inputs = Inputs(image[None], np.float32([[0, 0, image.shape[1], image.shape[0]]]))
    found = jax.tree.map(
        lambda x: np.asarray(x)[0], jax.jit(make_detector(**model | limits).predict)(*variables, inputs)
    )
    ours = {name: getattr(found, name)[found.valid] for name in ('boxes', 'labels', 'scores')}
    theirs = {name: golden[f'detections_{threshold}.{name}'] for name in ours}
    theirs['boxes'] = theirs['boxes'].clip(0, np.tile(image.shape[1::-1], 2)).astype(np.float32)
    same = match_detections(ours, theirs, limit=np.inf)
    assert same.theirs > 40 and same.holds(), same
    assert len(set(theirs['labels'])) > 3


def test_model_of_cfg_reads_the_tree(golden, network, tmp_path):
    (model, variables), parents = network, golden['parents'].tolist()
    canvas = golden['image'].shape[:2]
    text = cfg_text(model, variables, canvas)
    assert text == golden['cfg']
    (tmp_path / 'cfg').mkdir()
    (tmp_path / 'cfg' / 'a.cfg').write_text(text)
    with pytest.raises(ValueError, match=rf'a\.cfg: tree={TREE}: there is no such file'):
        model_of_cfg(tmp_path / 'cfg' / 'a.cfg')
    (tmp_path / TREE).write_text(tree_text(['a word'] * len(parents), parents))
    found = model_of_cfg(tmp_path / 'cfg' / 'a.cfg')
    assert found.canvas == canvas and found.model['tree'] == tuple(parents) and found.model['descent'] == 'darknet'
    assert found.model['head_features'] is None and found.model['backbone'] == {'width': 0.125}
    (tmp_path / TREE).write_text('a -1\nb -1\n')
    with pytest.raises(ValueError, match='tree has 2 nodes, but there are 10 classes'):
        model_of_cfg(tmp_path / 'cfg' / 'a.cfg')
