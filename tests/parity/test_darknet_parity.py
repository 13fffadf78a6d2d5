"""Parity with darknet, of outputs and of training: live with OpenCV, and with arrays that darknet itself made.

scripts/dev/make_darknet_fixtures.py makes these arrays and says what they are; their weights are drawn, not stored.
"""

import hashlib
import json
import pathlib
import re
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from darknet_models import CANVAS, TINY, draw, model_of, template_of

from detzoo.config import group_backbone
from detzoo.detectors import make_detector
from detzoo.parity.compare import drawn_image, match_detections
from detzoo.parity.darknet import run_detector, run_opencv, select_detections
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights import zoo
from detzoo.weights.darknet import PUBLISHED, Published, read_weights, write_weights
from detzoo.weights.darknet_layers import cfg_text

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
TOLERANCE = 3e-4  # of a tensor's maximum


@pytest.mark.parametrize('name', ['yolov2', 'yolov2-tiny', 'yolov3'])
def test_detector_computes_what_opencv_computes_with_what_it_exports(tmp_path, name):
    model = model_of(name, num_classes=3, width=0.25)
    template, path = draw(tmp_path, model)
    variables = read_weights(path, model, template).variables
    exported = str(tmp_path / 'exported.weights')
    write_weights(exported, model, *variables)
    image = drawn_image(*CANVAS, seed=0)
    theirs = run_opencv(model, template, pathlib.Path(exported).read_bytes(), image)
    ours, detections = run_detector(model, *variables, image)
    assert ours.keys() == theirs.keys()
    for tensor, expected in theirs.items():
        assert ours[tensor].shape == expected.shape
        assert abs(ours[tensor] - expected).max() <= TOLERANCE * abs(expected).max(), tensor
    assert theirs['scores'].min() < 0.05 and theirs['scores'].max() > 0.5  # spread, not all alike

    kept = [
        {key: getattr(x, key)[x.valid] for key in ('boxes', 'labels', 'scores')}
        for x in (detections, select_detections(model, theirs, CANVAS))
    ]
    agreement = match_detections(*kept, limit=np.inf)
    assert agreement.theirs > 30 and agreement.holds(), agreement


def test_check_darknet_parity_of_yolov3_tiny_at_full_size(run_script):
    finished = run_script('dev/check_darknet_parity', '--model=yolov3-tiny')
    assert finished.code == 0, finished.stdout + finished.stderr
    tensors = [line.split()[0] for line in finished.stdout.splitlines()[1:-1]]
    assert tensors == ['drawn.weights', 'level1', 'level2', 'boxes', 'objectness', 'scores', 'detections']
    assert re.search(r'detections +100/100 matched \(ours: 100\)', finished.stdout)
    assert 'drawn.weights    35,434,956 bytes, written again the same' in finished.stdout


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A file of drawn weights, behind a header of another version, of a small network that is put in yolov3-tiny's place."""
    monkeypatch.setitem(PUBLISHED, 'yolov3-tiny', Published(TINY, CANVAS))
    path = pathlib.Path(draw(tmp_path, TINY)[1]).rename(tmp_path / 'yolov3-tiny.weights')
    path.write_bytes(struct.pack('<4i', 0, 1, 0, 77) + path.read_bytes()[20:])
    return path


def test_check_darknet_parity_of_a_file(run_script, small, monkeypatch):
    content, model = small.read_bytes(), zoo.MODELS['yolov3-tiny']
    published = model.published._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(zoo.MODELS, 'yolov3-tiny', model._replace(published=published))
    finished = run_script('dev/check_darknet_parity', '--model=yolov3-tiny', f'--weights={small}')
    assert finished.code == 0, finished.stdout + finished.stderr
    assert f'yolov3-tiny.weights    {len(content):,} bytes, as published, written again the same' in finished.stdout
    assert small.read_bytes() == content


def test_check_darknet_parity_refuses_a_file_that_is_another(run_script, small):
    def error_of(path, model='yolov3-tiny'):
        finished = run_script('dev/check_darknet_parity', f'--model={model}', f'--weights={path}')
        assert finished.code == 1 and 'agree' not in finished.stdout
        return finished.stderr

    assert 'name it with --model' in error_of(small, 'all')
    assert re.fullmatch(
        r'error: .*yolov3-tiny\.weights: not the published file of that name: its SHA-256 begins with '
        r'[0-9a-f]{16}, not dccea06f59b781ec\. Fetch it again, .*\n',
        error_of(small),
    )
    short = small.with_name('own.weights')
    short.write_bytes(small.read_bytes()[:-4])
    assert re.fullmatch(r'error: .*own\.weights: not the weights of this model: it ends after .*\n', error_of(short))
    assert re.fullmatch(
        r"error: .*No such file or directory: '.*missing\.weights'\n", error_of(small.with_name('missing.weights'))
    )


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(FIXTURES / 'darknet_yolov1.npz'))


@pytest.mark.parametrize('name', ['yolov1', 'yolov1-tiny'])
def test_yolo_v1_computes_what_darknet_computes(tmp_path, golden, name):
    model, image, expected = golden[f'{name}.model'], golden['image'], golden[f'{name}.output']
    model = group_backbone(json.loads(str(model)))  # the file is older than the group
    template, path = draw(tmp_path, model, image.shape[:2])
    assert cfg_text(model, template, image.shape[:2]) == golden[f'{name}.cfg']
    ours, detections = run_detector(model, *read_weights(path, model, template).variables, image)
    assert abs(ours['output'] - expected).max() <= TOLERANCE * abs(expected).max()

    # Darknet's reading of the outputs: classes of all cells, confidences, boxes; no NMS here, but the best of each class.
    classes, boxes = 3, model.get('boxes_per_cell', 2)
    scores, confidences, outputs = np.split(expected, [9 * classes, 9 * (classes + boxes)])
    scores, confidences = scores.reshape(9, 1, classes).clip(0, 1), confidences.reshape(9, boxes, 1).clip(0, 1)
    outputs = outputs.reshape(3, 3, boxes, 4)
    for label in range(classes):
        best = np.argmax((scores * confidences)[..., label])
        (row, column, box), score = np.unravel_index(best, (3, 3, boxes)), (scores * confidences)[..., label].max()
        x, y, w, h = outputs[row, column, box]
        center, size = np.array([x + column, y + row]) * 32, np.array([w**2, h**2]) * 96
        first = np.argmax(detections.labels == label)  # the best one, since detections are sorted
        np.testing.assert_allclose(detections.scores[first], score, rtol=1e-3)
        corners = np.concatenate([center - size / 2, center + size / 2]).clip(0, 96)
        np.testing.assert_allclose(detections.boxes[first], corners, atol=0.05)


@pytest.fixture(scope='module')
def deltas():
    """A function: a version -> its golden arrays by their names, and the batch that their truths are."""
    arrays = dict(np.load(FIXTURES / 'darknet_deltas.npz'))

    def of(version):
        golden = {key.partition('.')[2]: value for key, value in arrays.items() if key.startswith(version)}
        golden['settings'] = json.loads(str(golden['settings']))
        height, width = golden['settings']['canvas']
        center, size, label = np.split(golden['truths'], [2, 4], axis=-1)
        boxes = np.concatenate([center - size / 2, center + size / 2], axis=-1) * np.float32(
            [width, height, width, height]
        )
        valid = size[..., 0] > 0
        images = len(boxes)
        none = np.zeros(images, np.int32)
        gt = GroundTruth(boxes, label[..., 0].astype(np.int32), valid, np.zeros_like(valid), none, none)
        window = np.tile(np.float32([0, 0, width, height]), (images, 1))
        inputs = Inputs(np.zeros((images, height, width, 3), np.uint8), window)
        return golden, Batch(inputs, gt, np.arange(images, dtype=np.int32), np.ones(images, bool))

    return of


def gradient_of_loss(model, raw, batch, images_seen=0):
    """The gradient of each image's loss with respect to a network's outputs, which raw replaces."""
    detector = make_detector(**model)
    params, model_state = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), template_of(model, batch.inputs.images.shape[1:3])
    )
    if 'counters' in model_state:
        model_state = {**model_state, 'counters': {'images_seen': np.float32(images_seen)}}

    def loss(raw):
        def replace(method, args, kwargs, context):
            outputs = method(*args, **kwargs)
            if (
                context.module.name is not None or context.method_name != '__call__'
            ):  # only the whole network has no name
                return outputs
            assert jax.tree.map(jnp.shape, outputs[: len(raw)]) == jax.tree.map(jnp.shape, raw)
            return *raw, *outputs[len(raw) :]

        with nn.intercept_methods(replace):
            return len(batch.valid) * detector.loss(params, model_state, batch, jax.random.key(0))[0]

    return [np.asarray(x) for x in jax.jit(jax.grad(loss))(raw)]


def test_yolo_v1_trains_as_darknet_does(deltas):
    golden, batch = deltas('v1')
    settings = golden['settings']
    cells, classes, boxes = settings['side'] ** 2, settings['classes'], settings['num']
    model = {'name': 'yolo_v1', 'num_classes': classes, 'boxes_per_cell': boxes, 'backbone': {'name': 'tiny', 'width': 1 / 16},
             'backbone_stride': 16, 'head_features': (1024, 256), 'local_features': None}  # fmt: skip

    def split(flat):
        parts = np.split(flat, [cells * classes, cells * (classes + boxes)], axis=1)
        shapes = (cells, classes), (cells, boxes), (cells, boxes, 4)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes))

    gradients = gradient_of_loss(model, split(golden['raw']), batch)
    for gradient, delta in zip(gradients, split(golden['delta'])):
        assert abs(delta).max() > 0.5
        np.testing.assert_allclose(-gradient, delta, atol=1e-5)


@pytest.mark.parametrize('rescore', [True, False])
def test_yolo_v2_trains_as_darknet_does(deltas, rescore):
    golden, batch = deltas('v2')
    settings, output = golden['settings'], golden['output']
    model = {
        **model_of('yolov2-tiny'),
        'num_classes': settings['classes'],
        'anchor_sizes': settings['anchors'],
        'rescore': rescore,
    }
    slope = np.ones_like(output)
    slope[..., [0, 1, 4]] = (output * (1 - output))[..., [0, 1, 4]]  # what darknet applies behind the layer
    for images_seen, name in ((0, 'delta_warm_up'), (12800, 'delta')):
        delta = golden[name if rescore else f'{name}_no_rescore']
        assert (delta[..., 4] == 0).any()  # predictions which overlap an object are ignored
        (gradient,) = gradient_of_loss(model, (golden['raw'],), batch, images_seen)
        np.testing.assert_allclose(-gradient, delta * slope, atol=1e-5)


def test_yolo_v3_trains_as_darknet_does(deltas):
    golden, batch = deltas('v3')
    settings, delta = golden['settings'], golden['delta']
    model = {**TINY, 'num_classes': settings['classes'], 'anchor_sizes': settings['anchors']}
    (gradient,) = gradient_of_loss(model, (golden['raw'],), batch)
    assert (delta[..., 4] == 0).any()  # predictions which overlap an object are ignored
    assert ((delta[..., 5:] > 0).sum(axis=-1) == 2).any()  # an anchor that two objects of different classes share
    np.testing.assert_allclose(-gradient, delta, atol=1e-5)
