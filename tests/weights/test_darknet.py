"""Darknet: its files, and parity of outputs and of training: live with OpenCV, by golden arrays with darknet itself.

scripts/dev/make_darknet_fixtures.py makes the golden arrays and says what they are; their weights are drawn, not stored.
"""

import functools
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
from conftest import with_backbone

from detzoo.config import group_backbone
from detzoo.detectors import make_detector
from detzoo.parity.compare import drawn_image, match_detections
from detzoo.parity.darknet import drawn_weights, run_detector, run_opencv, select_detections
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights import zoo
from detzoo.weights.darknet import (
    PUBLISHED,
    Described,
    Published,
    arguments_of,
    backbone_variables,
    cfg_text,
    layers,
    model_of_cfg,
    read_weights,
    report,
    resizing,
    write_weights,
)
from detzoo.weights.mapping import checksum, flatten

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
TOLERANCE = 3e-4  # of a tensor's maximum
CANVAS = (96, 128)


def model_of(name, width=1 / 16, norm='batch_norm', **changes):
    model = PUBLISHED[name].model
    backbone = {**model.get('backbone', {}), 'width': width, 'norm': norm}
    return {**model, 'num_classes': 2, 'backbone': backbone, **changes}


TINY = model_of('yolov3-tiny')
MODELS = {
    'v1': model_of('yolov1', backbone_stride=8),
    'v1-tiny': model_of('yolov1-tiny', backbone_stride=4),
    'v2': model_of('yolov2', backbone_stride=8),
    'v2-frozen': model_of('yolov2-tiny', norm='frozen_batch_norm'),
    'v3': model_of('yolov3', backbone_stride=8),
    'v3-tiny': TINY,
}


@functools.cache
def _template(text, canvas):
    detector = make_detector(**json.loads(text))
    return jax.eval_shape(lambda rng: detector.init(rng, canvas), jax.random.key(0))


def template_of(model, canvas=CANVAS):
    """Shapes of (params, model_state) of a model."""
    return _template(json.dumps(model), canvas)


@pytest.fixture
def drawn(tmp_path):
    """A function: a model and a canvas -> its template, and the path of a file of drawn weights."""

    def make(model, canvas=CANVAS):
        template = template_of(model, canvas)
        path = tmp_path / 'drawn.weights'
        path.write_bytes(drawn_weights(model, template))
        return template, str(path)

    return make


# Sizes of the files on pjreddie.com and lengths of their headers. That of yolov2-tiny has been there with both headers.
SIZES = {
    'yolov1': (789_312_988, 16),
    'yolov1-tiny': (108_399_816, 16),
    'yolov2': (203_934_260, 16),
    'yolov2-voc': (202_704_260, 16),
    'yolov2-tiny': (44_948_600, 20),
    'yolov2-tiny-voc': (63_471_556, 16),
    'yolov3': (248_007_048, 20),
    'yolov3-tiny': (35_434_956, 20),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_layers_fill_published_file(name):
    size, header = SIZES[name]
    model, canvas = PUBLISHED[name]
    template = template_of(model, canvas)
    entries = [entry for layer in layers(model, template) for entry in layer.entries]
    assert header + 4 * sum(np.prod(entry.shape) for entry in entries) == size
    counters = len(jax.tree.leaves(template[1].get('counters', {})))
    assert len({entry.variable for entry in entries}) == len(entries) == len(jax.tree.leaves(template)) - counters


def test_cfg_text_of_published_yolov3_routes_to_the_stages():
    model, canvas = PUBLISHED['yolov3']
    described = layers(model, template_of(model, CANVAS))
    assert len(described) == 107
    routes = {index: layer.options['layers'] for index, layer in enumerate(described) if layer.kind == 'route'}
    assert routes == {83: 79, 86: '-1,61', 95: 91, 98: '-1,36'}
    assert [index for index, layer in enumerate(described) if layer.kind == 'yolo'] == [82, 94, 106]
    text = cfg_text(model, template_of(model, CANVAS), canvas)
    assert text.startswith(
        '[net]\nbatch=1\nheight=608\nwidth=608\nchannels=3\n\n[convolutional]\nbatch_normalize=1\nfilters=32\n'
    )
    assert '\nmask=6,7,8\nanchors=10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326\n' in text


def test_cfg_text_has_anchors_of_yolo_v2_in_cells():
    model, canvas = PUBLISHED['yolov2-tiny-voc']
    text = cfg_text(model, template_of(model, canvas), canvas)
    assert '\nanchors=1.08,1.19,3.42,4.41,6.63,11.38,9.42,5.11,16.62,10.52\n' in text
    finer = {**model, 'backbone_stride': 8}  # the same anchors, in pixels, have four times as many cells
    assert '\nanchors=4.32,4.76,13.68,' in cfg_text(finer, template_of(finer, canvas), canvas)


@pytest.mark.parametrize('name', ['yolov2', 'yolov2-tiny', 'yolov3'])
def test_detector_computes_what_opencv_computes_with_what_it_exports(drawn, tmp_path, name):
    model = model_of(name, num_classes=3, width=0.25)
    template, path = drawn(model)
    variables = read_weights(path, model, template)
    exported = str(tmp_path / 'exported.weights')
    write_weights(exported, model, *variables)
    image = drawn_image(*CANVAS, seed=0)
    theirs = run_opencv(model, template, exported, image)
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
def small(drawn, tmp_path, monkeypatch):
    """A file of drawn weights, behind a header of another version, of a small network that is put in yolov3-tiny's place."""
    monkeypatch.setitem(PUBLISHED, 'yolov3-tiny', Published(TINY, CANVAS))
    path = pathlib.Path(drawn(TINY)[1]).rename(tmp_path / 'yolov3-tiny.weights')
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

    assert 'say which by --model' in error_of(small, 'all')
    assert re.fullmatch(
        r'error: .*yolov3-tiny\.weights: not the published file of that name: its SHA-256 begins with '
        r'[0-9a-f]{16}, that one with dccea06f59b781ec\. Fetch it again, .*\n',
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
def test_yolo_v1_computes_what_darknet_computes(drawn, golden, name):
    model, image, expected = golden[f'{name}.model'], golden['image'], golden[f'{name}.output']
    model = group_backbone(json.loads(str(model)))  # the file is older than the group
    template, path = drawn(model, image.shape[:2])
    assert cfg_text(model, template, image.shape[:2]) == golden[f'{name}.cfg']
    ours, detections = run_detector(model, *read_weights(path, model, template), image)
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


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_write_weights_is_inverse_of_read_weights(drawn, tmp_path, model):
    template, path = drawn(model, (64, 64))
    params, model_state = read_weights(path, model, template)
    expected = {key: (leaf.shape, leaf.dtype) for key, leaf in jax.tree.leaves_with_path(template)}
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in jax.tree.leaves_with_path((params, model_state))} == expected
    write_weights(tmp_path / 'again.weights', model, params, model_state)
    assert (tmp_path / 'again.weights').read_bytes() == pathlib.Path(path).read_bytes()


def numbered(model, header):
    """The content of a file of a model's size, with the numbers 0, 1, 2, ..."""
    entries = [entry for layer in layers(model, template_of(model, (64, 64))) for entry in layer.entries]
    return header + np.arange(sum(np.prod(entry.shape) for entry in entries), dtype='<f4').tobytes()


def test_read_weights_finds_entries_in_darknets_order(tmp_path):
    (tmp_path / 'a.weights').write_bytes(numbered(TINY, struct.pack('<3iQ', 0, 2, 0, 0)))
    params, model_state = read_weights(tmp_path / 'a.weights', TINY, template_of(TINY, (64, 64)))
    # The first convolution has 16 / 16 = 1 filter: a bias, a scale, a mean, a variance, then 3 planes of 3 x 3.
    first, statistics = (
        params['backbone']['stage1_conv1'],
        model_state['batch_stats']['backbone']['stage1_conv1']['norm'],
    )
    assert [first['norm']['bias'], first['norm']['scale'], statistics['mean'], statistics['var']] == [
        [0],
        [1],
        [2],
        [3],
    ]
    np.testing.assert_array_equal(first['conv']['kernel'][:, :, :, 0].transpose(2, 0, 1).ravel(), np.arange(4, 31))
    # The second one has 2: their four vectors are 31..38, the second filter's centre is 39 + 9 + 4.
    second = params['backbone']['stage2_conv1']
    np.testing.assert_array_equal(second['norm']['scale'], [33, 34])
    assert second['conv']['kernel'][1, 1, 0, 1] == 52


@pytest.mark.parametrize(
    ('header', 'seen'),
    [
        (struct.pack('<4i', 0, 1, 0, 77), 77),
        (struct.pack('<3iQ', 0, 2, 0, 2**33), 2**33),
        (struct.pack('<3iQ', 1, 0, 0, 78), 78),
        (struct.pack('<3iI', 0, 1, 0, 2**31 + 2**9), 2**31 + 2**9),
        (struct.pack('<3iQ', 0, 2, 0, 2**62), 2**62),
    ],
    ids=['four bytes', 'eight bytes', 'major version', 'more than an int has', 'all but too many'],
)
def test_read_weights_knows_headers(tmp_path, header, seen):
    model = MODELS['v2']
    (tmp_path / 'a.weights').write_bytes(numbered(model, header))
    params, model_state = read_weights(tmp_path / 'a.weights', model, template_of(model, (64, 64)))
    np.testing.assert_array_equal(params['backbone']['stage1_conv1']['norm']['bias'], [0, 1])
    assert model_state['counters']['images_seen'] == seen
    write_weights(tmp_path / 'b.weights', model, params, model_state)
    assert (tmp_path / 'b.weights').read_bytes() == numbered(model, struct.pack('<3iQ', 0, 2, 0, seen))


def test_read_weights_transposes_connected_weights_of_files_without_version(tmp_path):
    model = MODELS['v1-tiny']
    template = template_of(model, (64, 64))
    header = struct.pack('<3fi', 5e-4, 0.9, 5e-4, 77)  # learning rate, momentum and decay in place of a version
    filled = []
    for name, start in (('old', header), ('new', struct.pack('<4i', 0, 1, 0, 77))):
        (tmp_path / name).write_bytes(numbered(model, start))
        filled.append(read_weights(tmp_path / name, model, template)[0])
    old, new = (params['head'].pop('connected') for params in filled)
    jax.tree.map(np.testing.assert_array_equal, *filled)
    np.testing.assert_array_equal(old['bias'], new['bias'])
    cells = 8 * 8  # of stride 8 on a canvas of 64, in darknet's file each channel's 64 cells follow each other
    inputs, outputs = new['kernel'].shape
    first = new['kernel'][0, 0]
    theirs = new['kernel'].reshape(cells, -1, outputs).transpose(2, 1, 0)
    np.testing.assert_array_equal(theirs.ravel(), first + np.arange(inputs * outputs))
    theirs = old['kernel'].reshape(cells, -1, outputs).transpose(1, 0, 2)
    np.testing.assert_array_equal(theirs.ravel(), first + np.arange(inputs * outputs))


def test_read_weights_of_a_short_file_names_file_layer_and_remedy(drawn):
    template, path = drawn(TINY)
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[:-1])
    message = (
        r'drawn\.weights: not the weights of this model: it ends after [\d,]+ of [\d,]+ numbers, in layer 22, '
        r'convolutional \(head/level1_output\)\. Give the model the arguments of that file'
    )
    with pytest.raises(ValueError, match=message):
        read_weights(path, TINY, template)
    pathlib.Path(path).write_bytes(content[:100])
    with pytest.raises(
        ValueError, match=r'it ends after 20 of .*, in layer 0, convolutional \(backbone/stage1_conv1\)'
    ):
        read_weights(path, TINY, template)
    pathlib.Path(path).write_bytes(content[: 20 + 4 * 31])  # all of layer 0, nothing of layer 2
    with pytest.raises(
        ValueError, match=r'it ends after 31 of .*, in layer 2, convolutional \(backbone/stage2_conv1\)'
    ):
        read_weights(path, TINY, template)


def test_read_weights_of_a_long_file_names_file_layer_and_remedy(drawn):
    template, path = drawn(TINY)
    with open(path, 'ab') as file:
        file.write(b'1')
    message = (
        r'drawn\.weights: not the weights of this model: 1 bytes follow the [\d,]+ numbers up to the last layer, 22, '
        r'convolutional \(head/level1_output\)\. Give the model'
    )
    with pytest.raises(ValueError, match=message):
        read_weights(path, TINY, template)


def test_read_weights_of_another_number_of_classes_is_refused(drawn):
    _, path = drawn(TINY)
    more = {**TINY, 'num_classes': 4}
    with pytest.raises(ValueError, match='Give the model the arguments of that file'):
        read_weights(path, more, template_of(more))


@pytest.mark.parametrize('name', ['v2', 'v3-tiny'])  # the one that counts images, and one that does not
def test_read_weights_of_a_header_that_no_training_writes_is_refused(tmp_path, name):
    (tmp_path / 'a.weights').write_bytes(numbered(MODELS[name], struct.pack('<3iQ', 0, 2, 0, 2**63)))
    message = r'a\.weights: damaged: its header says that the network was trained with 9,223,372,036,854,775,808 images\. Fetch it'
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / 'a.weights', MODELS[name], template_of(MODELS[name], (64, 64)))


@pytest.mark.parametrize('length', [0, 7, 15, 19])
def test_read_weights_of_less_than_a_header_is_refused(tmp_path, length):
    (tmp_path / 'a.weights').write_bytes(struct.pack('<3iQ', 0, 2, 0, 0)[:length])
    with pytest.raises(ValueError, match=rf'a\.weights: (empty|no \.weights file: it has {length} bytes)'):
        read_weights(tmp_path / 'a.weights', TINY, template_of(TINY))


def test_layers_refuses_what_darknet_has_not():
    model = with_backbone(TINY, norm='group_norm')
    with pytest.raises(ValueError, match="no group norm: set the model's norm to 'batch_norm' or"):
        layers(model, template_of(model))
    with pytest.raises(ValueError, match='darknet has no retinanet'):
        layers({'name': 'retinanet', 'num_classes': 3}, template_of(TINY))
    with pytest.raises(ValueError, match='grid of this yolo_v1 has 128 cells: darknet has square grids only'):
        layers(MODELS['v1-tiny'], template_of(MODELS['v1-tiny'], (64, 128)))


def test_files_are_refused_of_what_darknet_computes_otherwise(drawn):
    template, path = drawn(TINY)
    with pytest.raises(ValueError, match=r'norm_epsilon is 1e-05: darknet always computes with 1e-06'):
        cfg_text(with_backbone(TINY, norm_epsilon=1e-5), template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'norm_epsilon is 1e-05'):
        write_weights(path, with_backbone(TINY, norm_epsilon=1e-5), *read_weights(path, TINY, template))
    with pytest.raises(ValueError, match=r'std is .*: darknet always computes with \(255'):
        cfg_text({**TINY, 'std': (58.0, 57.0, 57.0)}, template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'the canvas is \(96, 100\): darknet needs multiples of 32'):
        cfg_text(TINY, template_of(TINY), (96, 100))
    with pytest.raises(ValueError, match=r'the canvas is \(128, 128\): this network was made for 64 x 64'):
        cfg_text(MODELS['v1'], template_of(MODELS['v1'], (64, 64)), (128, 128))


def test_report_says_what_was_done_to_each_run_of_numbers(drawn):
    model = MODELS['v2']
    template, path = drawn(model)
    rows = report(path, model, template)
    variables = flatten(read_weights(path, model, template))
    assert rows[0][:4] == ('header: images seen', 'counters/images_seen', (), 'as it is')
    first = 'backbone/stage1_conv1'
    assert [row[:4] for row in rows[1:6]] == [
        ('layer 0 convolutional: biases', f'params/{first}/norm/bias', (2,), 'as it is'),
        ('layer 0 convolutional: scales', f'params/{first}/norm/scale', (2,), 'as it is'),
        ('layer 0 convolutional: means', f'batch_stats/{first}/norm/mean', (2,), 'as it is'),
        ('layer 0 convolutional: variances', f'batch_stats/{first}/norm/var', (2,), 'as it is'),
        ('layer 0 convolutional: weights', f'params/{first}/conv/kernel', (3, 3, 3, 2), 'OIHW -> HWIO'),
    ]
    assert {row.ours: (row.shape, row.checksum) for row in rows} == {
        path: (value.shape, checksum(value)) for path, value in variables.items()
    }


def test_report_names_orders_of_axes_and_what_is_left(tmp_path):
    model = MODELS['v1']
    for name, header, order in (
        ('new', struct.pack('<4i', 0, 1, 0, 77), 'OIC'),
        ('old', struct.pack('<3fi', 1, 1, 1, 7), 'ICO'),
    ):
        (tmp_path / name).write_bytes(numbered(model, header))
        rows = report(tmp_path / name, model, template_of(model, (64, 64)))
        transforms = {row.foreign.partition(' ')[2].partition(' ')[2]: row.transform for row in rows}
        assert transforms['local: biases'] == 'Oyx -> yxO' and transforms['local: weights'] == 'yxOI -> yxIO'
        assert transforms['connected: biases'] == 'as it is' and transforms['connected: weights'] == f'{order} -> CIO'
        assert rows[0] == (
            'header: images seen',
            '',
            (),
            f'left: only YOLO v2 counts images; {77 if name == "new" else 7}',
            '',
        )


# Classifiers on pjreddie.com, cut behind the backbone of a YOLO: sizes of the files, and lengths of their headers. Of
# extraction.conv.weights the size is what 24 layers of extraction.cfg have: no listing of it was found.
CLASSIFIERS = {
    'darknet19_448.conv.23': ('yolov2', 79_327_120, 16),
    'darknet53.conv.74': ('yolov3', 162_482_580, 20),
    'extraction.conv.weights': ('yolov1', 89_721_616, 16),
}


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_backbone_fills_published_classifier(name):
    detector, size, header = CLASSIFIERS[name]
    model, _ = PUBLISHED[detector]
    described = [layer for layer in layers(model, template_of(model, (64, 64))) if layer.module.startswith('backbone/')]
    assert header + 4 * sum(np.prod(entry.shape) for layer in described for entry in layer.entries) == size


def classifier_of(model, path, *, classes=0):
    """Cuts a file of drawn weights behind the backbone, and puts a classifier there: the content."""
    described = [layer for layer in layers(model, template_of(model, (64, 64))) if layer.module.startswith('backbone/')]
    count = sum(np.prod(entry.shape) for layer in described for entry in layer.entries)
    tail = np.zeros(classes * (1 + described[-1].options['filters']), '<f4')
    return pathlib.Path(path).read_bytes()[: 20 + 4 * count] + tail.tobytes()


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('classes', [0, 1000])
def test_backbone_variables_fills_the_backbone_alone(drawn, tmp_path, capsys, name, classes):
    model = MODELS[name]
    template, path = drawn(model, (64, 64))
    file = tmp_path / 'net.conv.23'
    file.write_bytes(classifier_of(model, path, classes=classes))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    filled = backbone_variables(file, *zeros)
    said = capsys.readouterr().err
    assert ("net.conv.23: its last convolution, which tells ImageNet's 1000 classes apart, is left" in said) == (
        classes > 0
    )
    whole = flatten(read_weights(path, model, template))
    assert jax.tree.structure(filled) == jax.tree.structure(template)
    for variable, value in flatten(filled).items():
        expected = whole[variable] if variable.split('/')[1] == 'backbone' else 0
        np.testing.assert_array_equal(value, expected, err_msg=variable)
        assert value.dtype == whole[variable].dtype
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))  # the arguments stay as they are


def test_backbone_variables_refuses_another_length(drawn, tmp_path):
    template, path = drawn(TINY, (64, 64))
    content = classifier_of(TINY, path)
    # 6,964 numbers: 4 vectors of 1 + 2 + ... + 32 filters, and 9 x (3 x 1 + 1 x 2 + 2 x 4 + 4 x 8 + 8 x 16 + 16 x 32) weights.
    assert len(content) - 20 == 4 * (4 * 63 + 9 * 685)
    for name, wrong in (('short', content[:-1]), ('long', content + b'1'), ('whole', pathlib.Path(path).read_bytes())):
        (tmp_path / name).write_bytes(wrong)
        message = (
            rf'{name}: not the weights of this backbone: {len(wrong) - 20:,} bytes follow its header; the 6 convolutions of '
            rf"this tiny have 25,668, with a classifier of 1000 classes 157,668\. Set the model's backbone\.name"
        )
        with pytest.raises(ValueError, match=message):
            backbone_variables(tmp_path / name, *template)


@pytest.mark.parametrize(
    ('name', 'network'), [('v1', '6 .* extraction'), ('v2', '8 .* darknet19'), ('v3', '26 .* darknet53')]
)
def test_backbone_variables_of_another_length_names_the_network(drawn, name, network):
    template, path = drawn(MODELS[name], (64, 64))
    with pytest.raises(ValueError, match=rf'the {network} have'):
        backbone_variables(path, *template)


def test_backbone_variables_refuses_what_darknet_has_not(drawn):
    _, path = drawn(TINY, (64, 64))
    with pytest.raises(ValueError, match=r"drawn\.weights: the backbone of this model is none of darknet's"):
        backbone_variables(path, {'backbone': {'stem_conv': {}, 'stage1_block1': {}}}, {})
    with pytest.raises(ValueError, match='no group norm'):
        backbone_variables(path, *template_of(with_backbone(TINY, norm='group_norm')))


@pytest.mark.parametrize('name', PUBLISHED)
def test_model_of_cfg_of_published_network_is_published(tmp_path, name):
    model, canvas = PUBLISHED[name]
    (tmp_path / 'net.cfg').write_text(cfg_text(model, template_of(model, canvas), canvas))
    assert model_of_cfg(tmp_path / 'net.cfg') == (*PUBLISHED[name], None)


@pytest.mark.parametrize('name', MODELS)
def test_model_of_cfg_finds_narrow_and_shallow_networks(tmp_path, name):
    changes = {
        'yolo_v1': {'dropout': 0.25, 'box_scale': 3.0},
        'yolo_v2': {'ignore_iou': 0.5},
        'yolo_v3': {'ignore_iou': 0.6},
    }
    model = {**MODELS[name], **changes[MODELS[name]['name']]}
    if name == 'v1-tiny':
        model |= {'head_features': (1024, 80, 48), 'rescore': False}
        model.pop('dropout')  # its file has no layer of it
    (tmp_path / 'net.cfg').write_text(cfg_text(model, template_of(model, (64, 64)), (64, 64)))
    found, canvas, _ = model_of_cfg(tmp_path / 'net.cfg')
    assert canvas == (64, 64)
    if name == 'v2-frozen':  # which a .cfg file does not say
        found = with_backbone(found, norm='frozen_batch_norm')
    assert arguments_of(found) == arguments_of(model) and found['name'] == model['name']


CORRECTED = (((10, 14), (23, 27), (37, 58)), ((81, 82), (135, 169), (344, 319)))  # in yolov3-tiny.cfg of today


def own_cfg():
    """A YOLO v3-tiny of 3 classes in a user's hand."""
    model = model_of('yolov3-tiny', num_classes=3, width=1.0, anchor_sizes=CORRECTED)
    text = cfg_text(model, template_of(model, (64, 64)), (320, 416))
    for ours, theirs in (
        ('[net]\nbatch=1\n', '# my own\n; of 3 classes\n[network]\n batch = 64\nbatch=1\nburn_in=1000\npolicy=steps\n'),
        ('[route]\nlayers=13\n', '[route]\nlayers = -4\n'),
        ('layers=-1,8\n', 'layers = -1, 8  # the stage of stride 16\n'),
        ('classes=3\n', 'classes = 3\t# cat, dog, pig\njitter=.3\nrandom=1\ntruth_thresh=.9\n'),
        ('size=2\nstride=2\n', 'stride=2\n'),
        ('size=1\nstride=1\npad=1\n', 'size=1\nstride=1\npad=0\n'),
        ('filters=16\nsize=3\nstride=1\npad=1\n', 'filters=16\nsize=3\nstride=1\npadding=1\n'),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    return text


def test_model_of_cfg_reads_as_darknet_does(tmp_path):
    (tmp_path / 'own.cfg').write_bytes(own_cfg().replace('\n', '\r\n').encode('utf-8-sig'))
    expected = {**PUBLISHED['yolov3-tiny'].model, 'num_classes': 3, 'anchor_sizes': CORRECTED}
    assert model_of_cfg(tmp_path / 'own.cfg') == Described(expected, (320, 416), letter_box=None)
    (tmp_path / 'own.cfg').write_text(own_cfg().replace('mask=0,1,2', 'mask=1,2,3'))
    model = model_of_cfg(tmp_path / 'own.cfg').model
    assert model == {
        **PUBLISHED['yolov3-tiny'].model,
        'num_classes': 3,
    }  # as it was when the published weights were trained


@pytest.mark.parametrize(('line', 'expected'), [('letter_box = 1', True), ('letter_box=0', False)])
def test_model_of_cfg_follows_letter_box(tmp_path, line, expected):
    (tmp_path / 'own.cfg').write_text(own_cfg().replace('channels=3\n', f'channels=3\n{line}\n'))
    assert model_of_cfg(tmp_path / 'own.cfg').letter_box is expected
    for name in ('yolo_v1', 'yolo_v2', 'yolo_v3'):
        assert resizing(name, expected)['resize'] == ('letterbox' if expected else 'stretch')


def test_resizing_of_a_cfg_that_does_not_say_is_the_authors():
    assert [resizing(name)['resize'] for name in ('yolo_v1', 'yolo_v2', 'yolo_v3')] == [
        'stretch',
        'letterbox',
        'letterbox',
    ]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('[maxpool]', '[avgpool]', r', line 20: layer 1 is \[avgpool\], but we run only \[convolutional\].*Known are'),
        ('activation=leaky', 'activation=mish', r', line 18: .*: its activation is mish, that of our yolo_v3 with .* leaky'),
        ('batch_normalize=1\n', '', r', line 12: layer 0, \[convolutional\]: its batch_normalize is 0, that of .* 1\. Known'),
        ('filters=16\n', 'filters=16\ngroups=2\n', r', line 15: layer 0, \[convolutional\]: its groups is 2, that of .* 1\.'),
        ('filters=32\n', 'filters=31\n', r'layer 2, \[convolutional\]: its filters is 31, that of .* 32\.'),
        ('filters=16\n', 'filters=16\nfilters=32\n', r', line 15: filters is 32, but 16 in .*, line 14, of the same section'),
        ('filters=16\n', 'filters=0\n', r', line 14: filters=0: this must be a whole number'),
        ('filters=16\n', 'filters=many\n', r', line 14: filters=many: this is no number'),
        ('filters=16\n', 'filters=1,6\n', r', line 14: filters=1,6: this must be one finite number'),
        ('filters=16\n', 'filters\n', r", line 14: 'filters' is no \[section\], no comment, and no key=value"),
        ('size=2\nstride=1\n', 'stride=1\n', r'layer 11, \[maxpool\]: its size is 1, that of .* 2\.'),
        ('filters=24\n', 'filters=255\n', r'layer 15, \[convolutional\]: its filters is 255, that of .* 24\.'),
        ('classes = 3', 'classes = 4', r'layer 15, \[convolutional\]: its filters is 24, that of .* 27\.'),
        ('mask=3,4,5', 'mask=3,4,9', r'layer 16, \[yolo\], has anchors 0 to 5, but the mask \[3, 4, 9\]'),
        ('mask=3,4,5', 'mask=3,4', r'own\.cfg: anchor_sizes must have equally many sizes at each level'),
        ('anchors=10,', 'anchors=', r'\[yolo\], has num=6 anchors, but 11 numbers in their list'),
        ('num=6\n', 'num=6\nscale_x_y=1.05\n', r'layer 16, \[yolo\]: its scale_x_y is 1.05, that of .* 1\.'),
        ('num=6\n', 'num=6\niou_loss=ciou\n', r'layer 16, \[yolo\], has iou_loss=ciou, which we do not know\. Remove the line'),
        ('layers = -4\n', 'layers = -3\n', r'layer 17, \[route\]: its layers is \[14\], that of .* \[13\]'),
        ('layers = -4\n', '', r'\[route\] has no layers'),
        ('[upsample]', '[reorg]', r'layer 19, \[reorg\]: our yolo_v3 with the tiny backbone has \[upsample\] here'),
        ('[upsample]', '[maxpool]', r'own\.cfg: 6 of its layers have stride 2, 1 to 5 of a yolo_v3'),
        ('width=416', 'width=420', r'own\.cfg: the canvas is \(320, 420\): darknet needs multiples of 32'),
        ('width=416', '', r', line 3: \[net\] has no width'),
        ('channels=3', 'channels=3\nletter_box=yes', r', line 11: letter_box=yes: this is no number'),
        ('channels=3', 'channels=3\nletter_box=1\nletter_box=0', r', line 12: letter_box is 0, but 1 in .*, line 11, of the same'),
        ('channels=3', 'channels=1', r', line 10: images have 1 channels: ours have 3'),
        ('[network]', '[cat]', r", line 3: \[cat\] is the first section: no \.cfg file of darknet's"),
    ],
)  # fmt: skip
def test_model_of_cfg_names_the_line_that_is_none_of_ours(tmp_path, old, new, message):
    assert old in own_cfg()
    (tmp_path / 'own.cfg').write_text(own_cfg().replace(old, new))
    with pytest.raises(ValueError, match=r'own\.cfg') as raised:
        model_of_cfg(tmp_path / 'own.cfg')
    assert re.search(message, str(raised.value)), raised.value


def test_model_of_cfg_refuses_what_is_no_detector(tmp_path):
    text, last = own_cfg(), own_cfg().rindex('[convolutional]')
    empty = '[net]\nheight=64\nwidth=64\nchannels=3\n'
    of_v2 = cfg_text(MODELS['v2-frozen'], template_of(MODELS['v2-frozen']), CANVAS)
    for content, message in (
        ('', 'it has no section'),
        (empty, r'ends with \[net\], and not as a detector, with \[detection\], \[region\], \[yolo\]'),
        (text[:last], r'ends with \[convolutional\], and not as a detector'),
        (
            text + text[text.index('[yolo]') : text.index('[route]')],
            r'layer 24, \[yolo\]: our yolo_v3 with .* has \[route\] here',
        ),
        (
            of_v2 + of_v2[of_v2.index('[region]') :],
            r'layer 16, \[region\]: our yolo_v2 with the tiny backbone has ended here',
        ),
        (empty + '[yolo]\nanchors=1,2\n', '0 of its layers have stride 2, 1 to 5 of a yolo_v3'),
        (
            empty + '[maxpool]\nstride=2\n[yolo]\nanchors=1,2\n',
            'has 0 convolutions, a yolo_v3 with the tiny backbone and 2 stages',
        ),
    ):
        (tmp_path / 'own.cfg').write_text(content)
        with pytest.raises(ValueError, match=r'own\.cfg') as raised:
            model_of_cfg(tmp_path / 'own.cfg')
        assert re.search(message, str(raised.value)), raised.value


def test_weights_of_another_cfg_are_refused_with_the_file(drawn, tmp_path):
    _, path = drawn(TINY)
    (tmp_path / 'own.cfg').write_text(own_cfg())
    model, canvas, _ = model_of_cfg(tmp_path / 'own.cfg')
    with pytest.raises(
        ValueError, match=r'drawn\.weights: not the weights of this model: .* `model_of_cfg` reads them'
    ):
        read_weights(path, model, template_of(model, canvas))
