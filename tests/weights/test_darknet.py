"""Darknet's .weights files: what is read, written, reported and refused."""

import pathlib
import struct

import jax
import numpy as np
import pytest
from darknet_models import CANVAS, MODELS, TINY, draw, template_of
from tiny import with_backbone

from detzoo.weights.darknet import PUBLISHED, backbone_variables, read_weights, write_weights
from detzoo.weights.darknet_layers import cfg_text, layers
from detzoo.weights.mapping import checksum, flatten

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


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_write_weights_is_inverse_of_read_weights(tmp_path, model):
    template, path = draw(tmp_path, model, (64, 64))
    params, model_state = read_weights(path, model, template).variables
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
    params, model_state = read_weights(tmp_path / 'a.weights', TINY, template_of(TINY, (64, 64))).variables
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
    params, model_state = read_weights(tmp_path / 'a.weights', model, template_of(model, (64, 64))).variables
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
        filled.append(read_weights(tmp_path / name, model, template).variables[0])
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


def test_read_weights_of_a_short_file_names_file_layer_and_remedy(tmp_path):
    template, path = draw(tmp_path, TINY)
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


def test_read_weights_of_a_long_file_names_file_layer_and_remedy(tmp_path):
    template, path = draw(tmp_path, TINY)
    with open(path, 'ab') as file:
        file.write(b'1')
    message = (
        r'drawn\.weights: not the weights of this model: 1 bytes follow the [\d,]+ numbers up to the last layer, 22, '
        r'convolutional \(head/level1_output\)\. Give the model'
    )
    with pytest.raises(ValueError, match=message):
        read_weights(path, TINY, template)


def test_read_weights_of_another_number_of_classes_is_refused(tmp_path):
    _, path = draw(tmp_path, TINY)
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
    with pytest.raises(ValueError, match=rf'a\.weights: (empty|not a \.weights file: it has {length} bytes)'):
        read_weights(tmp_path / 'a.weights', TINY, template_of(TINY))


def test_layers_refuses_what_darknet_has_not():
    model = with_backbone(TINY, norm='group_norm')
    with pytest.raises(ValueError, match="no group norm: set the model's norm to 'batch_norm' or"):
        layers(model, template_of(model))
    with pytest.raises(ValueError, match='darknet has no retinanet'):
        layers({'name': 'retinanet', 'num_classes': 3}, template_of(TINY))
    with pytest.raises(ValueError, match='grid of this yolo_v1 has 128 cells: darknet has square grids only'):
        layers(MODELS['v1-tiny'], template_of(MODELS['v1-tiny'], (64, 128)))


def test_files_are_refused_of_what_darknet_computes_otherwise(tmp_path):
    template, path = draw(tmp_path, TINY)
    with pytest.raises(ValueError, match=r'norm_epsilon is 1e-05: darknet always computes with 1e-06'):
        cfg_text(with_backbone(TINY, norm_epsilon=1e-5), template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'norm_epsilon is 1e-05'):
        write_weights(path, with_backbone(TINY, norm_epsilon=1e-5), *read_weights(path, TINY, template).variables)
    with pytest.raises(ValueError, match=r'std is .*: darknet always computes with \(255'):
        cfg_text({**TINY, 'std': (58.0, 57.0, 57.0)}, template_of(TINY), CANVAS)
    with pytest.raises(ValueError, match=r'the canvas is \(96, 100\): darknet needs multiples of 32'):
        cfg_text(TINY, template_of(TINY), (96, 100))
    with pytest.raises(ValueError, match=r'the canvas is \(128, 128\): this network was made for 64 x 64'):
        cfg_text(MODELS['v1'], template_of(MODELS['v1'], (64, 64)), (128, 128))


def test_report_says_what_was_done_to_each_run_of_numbers(tmp_path):
    model = MODELS['v2']
    template, path = draw(tmp_path, model)
    rows = read_weights(path, model, template).rows
    variables = flatten(read_weights(path, model, template).variables)
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
        rows = read_weights(tmp_path / name, model, template_of(model, (64, 64))).rows
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
def test_backbone_variables_fills_the_backbone_alone(tmp_path, capsys, name, classes):
    model = MODELS[name]
    template, path = draw(tmp_path, model, (64, 64))
    file = tmp_path / 'net.conv.23'
    file.write_bytes(classifier_of(model, path, classes=classes))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    filled = backbone_variables(file, *zeros)
    said = capsys.readouterr().err
    assert ("net.conv.23: its last convolution, which classifies ImageNet's 1000 classes, is left" in said) == (
        classes > 0
    )
    whole = flatten(read_weights(path, model, template).variables)
    assert jax.tree.structure(filled) == jax.tree.structure(template)
    for variable, value in flatten(filled).items():
        expected = whole[variable] if variable.split('/')[1] == 'backbone' else 0
        np.testing.assert_array_equal(value, expected, err_msg=variable)
        assert value.dtype == whole[variable].dtype
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))  # the arguments stay as they are


def test_backbone_variables_refuses_another_length(tmp_path):
    template, path = draw(tmp_path, TINY, (64, 64))
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
def test_backbone_variables_of_another_length_names_the_network(tmp_path, name, network):
    template, path = draw(tmp_path, MODELS[name], (64, 64))
    with pytest.raises(ValueError, match=rf'the {network} have'):
        backbone_variables(path, *template)


def test_backbone_variables_refuses_what_darknet_has_not(tmp_path):
    _, path = draw(tmp_path, TINY, (64, 64))
    with pytest.raises(ValueError, match=r"drawn\.weights: the backbone of this model is not one of darknet's"):
        backbone_variables(path, {'backbone': {'stem_conv': {}, 'stage1_block1': {}}}, {})
    with pytest.raises(ValueError, match='no group norm'):
        backbone_variables(path, *template_of(with_backbone(TINY, norm='group_norm')))
