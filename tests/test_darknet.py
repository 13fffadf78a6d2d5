"""Darknet: its files, and parity of outputs and of training: live with OpenCV, by golden arrays with darknet itself.

scripts/make_darknet_fixtures.py makes the golden arrays and says what they are; their weights are drawn, not stored.
"""

import functools
import json
import pathlib
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.detectors import make_detector
from detzoo.types import Batch, GroundTruth, Inputs
from detzoo.weights.darknet import PUBLISHED, cfg_text, layers, read_weights, write_weights
from detzoo.weights.darknet_parity import drawn_weights, run_detector, run_opencv, select_detections
from detzoo.weights.parity import drawn_image, match_detections

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
TOLERANCE = 3e-4  # of a tensor's maximum
CANVAS = (96, 128)


def model_of(name, **changes):
    return {**PUBLISHED[name].model, 'num_classes': 2, 'width': 1 / 16, **changes}


TINY = model_of('yolov3-tiny')
MODELS = {
    'v1': model_of('yolov1', stages=4),
    'v1-tiny': model_of('yolov1-tiny', stages=3),
    'v2': model_of('yolov2', stages=4),
    'v2-frozen': model_of('yolov2-tiny', norm='frozen_batch_norm'),
    'v3': model_of('yolov3', stages=4),
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
    assert text.startswith('[net]\nbatch=1\nheight=608\nwidth=608\nchannels=3\n\n[convolutional]\nbatch_normalize=1\nfilters=32\n')
    assert '\nmask=6,7,8\nanchors=10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326\n' in text


def test_cfg_text_has_anchors_of_yolo_v2_in_cells():
    model, canvas = PUBLISHED['yolov2-tiny-voc']
    text = cfg_text(model, template_of(model, canvas), canvas)
    assert '\nanchors=1.08,1.19,3.42,4.41,6.63,11.38,9.42,5.11,16.62,10.52\n' in text
    finer = {**model, 'stages': 4}  # of stride 8: the same anchors, in pixels, have four times as many cells
    assert '\nanchors=4.32,4.76,13.68,' in cfg_text(finer, template_of(finer, canvas), canvas)


@pytest.mark.parametrize('name', ['yolov2', 'yolov2-tiny', 'yolov3'])
def test_detector_computes_what_opencv_computes(drawn, name):
    model = model_of(name, num_classes=3, width=0.25)
    template, path = drawn(model)
    image = drawn_image(*CANVAS, seed=0)
    theirs = run_opencv(model, template, path, image)
    ours, detections = run_detector(model, *read_weights(path, model, template), image)
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
    finished = run_script('check_darknet_parity', '--model=yolov3-tiny')
    assert finished.code == 0, finished.stdout + finished.stderr
    tensors = [line.split()[0] for line in finished.stdout.splitlines()[1:-1]]
    assert tensors == ['level1', 'level2', 'boxes', 'objectness', 'scores', 'detections']
    assert 'detections  100/100 matched (ours: 100)' in finished.stdout


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(FIXTURES / 'darknet_yolov1.npz'))


@pytest.mark.parametrize('name', ['yolov1', 'yolov1-tiny'])
def test_yolo_v1_computes_what_darknet_computes(drawn, golden, name):
    model, image, expected = json.loads(str(golden[f'{name}.model'])), golden['image'], golden[f'{name}.output']
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
        boxes = np.concatenate([center - size / 2, center + size / 2], axis=-1) * np.float32([width, height, width, height])
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
    params, model_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template_of(model, batch.inputs.images.shape[1:3]))
    if 'counters' in model_state:
        model_state = {**model_state, 'counters': {'images_seen': np.float32(images_seen)}}

    def loss(raw):
        def replace(method, args, kwargs, context):
            outputs = method(*args, **kwargs)
            if context.module.name is not None or context.method_name != '__call__':  # only the whole network has no name
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
    model = {'name': 'yolo_v1', 'num_classes': classes, 'boxes_per_cell': boxes, 'backbone': 'tiny', 'stages': 5,
             'width': 1 / 16, 'head_features': (1024, 256), 'local_features': None}  # fmt: skip

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
    model = {**model_of('yolov2-tiny'), 'num_classes': settings['classes'], 'anchor_sizes': settings['anchors'], 'rescore': rescore}
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
    first, statistics = params['backbone']['stage1_conv1'], model_state['batch_stats']['backbone']['stage1_conv1']['norm']
    assert [first['norm']['bias'], first['norm']['scale'], statistics['mean'], statistics['var']] == [[0], [1], [2], [3]]
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
    ],
    ids=['four bytes', 'eight bytes', 'major version'],
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
    message = (r'drawn\.weights: not the weights of this model: it ends after [\d,]+ of [\d,]+ numbers, in layer 22, '
               r'convolutional \(head/level1_output\)\. Give the model the arguments of that file')  # fmt: skip
    with pytest.raises(ValueError, match=message):
        read_weights(path, TINY, template)
    pathlib.Path(path).write_bytes(content[:100])
    with pytest.raises(ValueError, match=r'it ends after 20 of .*, in layer 0, convolutional \(backbone/stage1_conv1\)'):
        read_weights(path, TINY, template)


def test_read_weights_of_a_long_file_names_file_layer_and_remedy(drawn):
    template, path = drawn(TINY)
    with open(path, 'ab') as file:
        file.write(b'1')
    message = (r'drawn\.weights: not the weights of this model: 1 bytes follow the [\d,]+ numbers up to the last layer, 22, '
               r'convolutional \(head/level1_output\)\. Give the model')  # fmt: skip
    with pytest.raises(ValueError, match=message):
        read_weights(path, TINY, template)


def test_read_weights_of_another_number_of_classes_is_refused(drawn):
    _, path = drawn(TINY)
    more = {**TINY, 'num_classes': 4}
    with pytest.raises(ValueError, match='Give the model the arguments of that file'):
        read_weights(path, more, template_of(more))


@pytest.mark.parametrize('length', [0, 7, 15, 19])
def test_read_weights_of_less_than_a_header_is_refused(tmp_path, length):
    (tmp_path / 'a.weights').write_bytes(struct.pack('<3iQ', 0, 2, 0, 0)[:length])
    with pytest.raises(ValueError, match=rf'a\.weights: no \.weights file: it has {length} bytes'):
        read_weights(tmp_path / 'a.weights', TINY, template_of(TINY))


def test_layers_refuses_what_darknet_has_not():
    model = {**TINY, 'norm': 'group_norm'}
    with pytest.raises(ValueError, match="no group norm: set the model's norm to 'batch_norm' or"):
        layers(model, template_of(model))
    with pytest.raises(ValueError, match='darknet has no retinanet'):
        layers({'name': 'retinanet', 'num_classes': 3}, template_of(TINY))
    with pytest.raises(ValueError, match='grid of this yolo_v1 has 128 cells: darknet has square grids only'):
        layers(MODELS['v1-tiny'], template_of(MODELS['v1-tiny'], (64, 128)))


def test_cfg_text_refuses_what_darknet_computes_otherwise():
    with pytest.raises(ValueError, match=r'norm_epsilon is 1e-05: darknet always computes with 1e-06'):
        cfg_text({**TINY, 'norm_epsilon': 1e-5}, template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'std is .*: darknet always computes with \(255'):
        cfg_text({**TINY, 'std': (58.0, 57.0, 57.0)}, template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'the canvas is \(96, 100\): darknet needs multiples of 32'):
        cfg_text(TINY, template_of(TINY), (96, 100))
    with pytest.raises(ValueError, match=r'the canvas is \(128, 128\): this network was made for 64 x 64'):
        cfg_text(MODELS['v1'], template_of(MODELS['v1'], (64, 64)), (128, 128))
