"""Torchvision's and darknet's classifiers in the backbones of detectors."""

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from tiny import with_backbone
from torchvision_golden import MOBILENET, RETINANET, SSD, SSDLITE, entries_of, template_of

from detzoo.backbones.mobilenet import mobilenet_v3_large
from detzoo.backbones.resnet import ResNet
from detzoo.backbones.vgg import VGG16
from detzoo.detectors import make_detector
from detzoo.parity.torchvision import drawn_entries
from detzoo.training.finetune import read_learnt
from detzoo.weights import torchvision
from detzoo.weights.mapping import fill, flatten
from detzoo.weights.torchvision import PEERS, load_backbone


@pytest.fixture(scope='module')
def entries():
    return entries_of(RETINANET)


@pytest.fixture(scope='module')
def classifier(entries, tmp_path_factory):
    """A file like those of torchvision's classifiers, and its entries."""
    body = {name.removeprefix('backbone.body.'): value for name, value in entries.items() if 'body' in name}
    extra = {'fc.weight': np.ones((9, 2048)), 'fc.bias': np.ones(9), 'bn1.num_batches_tracked': np.int64([7])}
    path = tmp_path_factory.mktemp('weights') / 'resnet50.safetensors'
    safetensors.numpy.save_file({**body, **extra}, path)
    return str(path), body


def test_load_backbone_fills_frozen_batch_norm(classifier, entries):
    path, _ = classifier
    params, model_state = template_of()
    filled, statistics = load_backbone(path, params, model_state)
    expected, expected_statistics = fill(PEERS[RETINANET].mapping, entries, (params, model_state)).variables
    jax.tree.map(np.testing.assert_array_equal, filled['backbone'], expected['backbone'])
    jax.tree.map(np.testing.assert_array_equal, statistics, expected_statistics)
    assert filled['fpn'] is params['fpn'] and params['backbone'] is not filled['backbone']


def test_load_backbone_fills_batch_norm(classifier):
    path, body = classifier
    filled, statistics = load_backbone(path, *template_of(norm='batch_norm'))
    block = filled['backbone']['stage2_block1']
    np.testing.assert_array_equal(block['shortcut_norm']['scale'], body['layer2.0.downsample.1.weight'])
    np.testing.assert_array_equal(block['norm3']['bias'], body['layer2.0.bn3.bias'])
    np.testing.assert_array_equal(block['conv2']['kernel'][2, 0, 5, 7], body['layer2.0.conv2.weight'][7, 5, 2, 0])
    norm = statistics['batch_stats']['backbone']['stem_norm']
    np.testing.assert_array_equal(norm['mean'], body['bn1.running_mean'])
    np.testing.assert_array_equal(norm['var'], body['bn1.running_var'])
    leaves = len(jax.tree.leaves((filled['backbone'], statistics)))
    assert leaves == len(body)


def test_load_backbone_fills_the_last_stage_that_rois_run_through(classifier):
    detector = make_detector('faster_rcnn', num_classes=3, fpn_features=None, rpn=dict(anchor_sizes=((32.0,),)))
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    filled, statistics = load_backbone(classifier[0], params, model_state)
    whole, whole_statistics = load_backbone(classifier[0], *template_of())
    for expected, found in ((whole, filled), (whole_statistics['frozen'], statistics['frozen'])):
        assert set(found['backbone']) | set(found['trunk']) == set(expected['backbone'])
        assert set(found['trunk']) == {f'stage4_block{i}' for i in (1, 2, 3)}
        for name, module in {**found['backbone'], **found['trunk']}.items():
            jax.tree.map(np.testing.assert_array_equal, module, expected['backbone'][name])
    assert filled['box_head'] is params['box_head']


def test_load_backbone_refuses_group_norm(classifier):
    with pytest.raises(ValueError, match="no such network with group norm: set the model's norm to"):
        load_backbone(classifier[0], *template_of(norm='group_norm'))


def test_load_backbone_of_another_depth_names_file_entries_and_remedy(classifier):
    wrong = r'.*layer2\.0\.conv1\.weight \(128, 256, 1, 1\) where the model has \(128, 64, 3, 3\), .* and \d+ more'
    message = rf'resnet50\.safetensors: .* of another shape: {wrong}; unused: layer1\.0\.bn3\.bias.*\. Give a file'
    with pytest.raises(ValueError, match=message):
        load_backbone(classifier[0], *template_of(backbone_name='resnet18'))


def test_load_backbone_of_a_damaged_file_names_it(tmp_path):
    path = tmp_path / 'resnet50.pth'
    path.write_bytes(b'PK' + bytes(100))
    with pytest.raises(ValueError, match=r'resnet50\.pth: '):
        load_backbone(str(path), {'backbone': {}}, {})


def test_a_backbone_whose_end_was_not_written_is_refused(tmp_path):
    detector = make_detector('yolo_v3', num_classes=3, backbone=dict(width=0.125), backbone_stride=8)
    template = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    path = tmp_path / 'darknet53.conv.74'
    numbers = sum(leaf.size for name, leaf in flatten(template).items() if name.split('/')[1] == 'backbone')
    path.write_bytes(bytes(16) + np.append(np.full(numbers - 100, 0.1), np.full(100, np.nan)).astype('<f4').tobytes())
    config = ml_collections.ConfigDict(dict(initialize_from='', initialize_backbone=str(path)))
    with pytest.raises(
        ValueError, match=r'darknet53\.conv\.74: the entry for params/backbone/\S+ has numbers that are not finite'
    ):
        read_learnt(config, (), template)


def test_load_backbone_of_darknets_fills_that_of_a_yolo(tmp_path):
    detector = make_detector('yolo_v3', num_classes=3, backbone=dict(width=0.125), backbone_stride=8)
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    path = tmp_path / 'darknet53.conv.74'
    path.write_bytes(bytes(20))
    with pytest.raises(ValueError, match=r'darknet53\.conv\.74: not the weights of this backbone: 4 bytes'):
        load_backbone(str(path), params, model_state)


def test_resnet_variables_of_basic_blocks():
    def norm(name, channels):
        return {f'{name}.{leaf}': (channels,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}

    shapes = {'conv1.weight': (8, 3, 7, 7), **norm('bn1', 8)}
    channels = 8
    for stage, width in enumerate((8, 16, 32, 64), 1):
        for block in range(2):
            name = f'layer{stage}.{block}'
            shapes |= {f'{name}.conv1.weight': (width, channels, 3, 3), f'{name}.conv2.weight': (width, width, 3, 3)}
            shapes |= norm(f'{name}.bn1', width) | norm(f'{name}.bn2', width)
            if channels != width:
                shapes |= norm(f'{name}.downsample.1', width) | {f'{name}.downsample.0.weight': (width, channels, 1, 1)}
            channels = width
    network = ResNet(depth=18, width=1 / 8, norm='frozen_batch_norm')
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    params, statistics = fill(torchvision.RESNET, drawn_entries(shapes), (variables.pop('params'), variables)).variables
    assert params['stage2_block1']['shortcut_conv']['kernel'].shape == (1, 1, 8, 16)
    assert len(jax.tree.leaves((params, statistics))) == len(shapes)


VGG16_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of convolutions, in torchvision's vgg16().features
VGG16_FEATURES = [64 // 16 * n for n in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)]


def vgg_classifier():
    """Entries like those of torchvision's vgg16, of a sixteenth of its width, and the template of ours."""
    shapes, channels = {}, 3
    for place, features in zip(VGG16_PLACES, VGG16_FEATURES):
        shapes |= {f'features.{place}.weight': (features, channels, 3, 3), f'features.{place}.bias': (features,)}
        channels = features
    for place, (features, inputs) in {0: (256, 49 * channels), 3: (256, 256), 6: (10, 256)}.items():
        shapes |= {f'classifier.{place}.weight': (features, inputs), f'classifier.{place}.bias': (features,)}
    entries = {name: np.random.RandomState(i).normal(size=shape) for i, (name, shape) in enumerate(shapes.items())}
    network = VGG16(width=1 / 16)
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return entries, (variables['params'], {})


def test_vgg_variables_take_every_fourth_feature_of_the_classifier():
    entries, template = vgg_classifier()
    params, model_state = fill(torchvision.VGG, entries, template).variables
    assert model_state == {} and len(jax.tree.leaves(params)) == 2 * 15
    kernel = params['conv3_2']['conv']['kernel']
    np.testing.assert_allclose(kernel[2, 0, 3, 9], entries['features.12.weight'][9, 3, 2, 0], rtol=1e-6)
    # fc6: feature 5 is the classifier's 20th; its kernel's row 1 and column 2 are row 3 and column 6 of 7 x 7.
    first = entries['classifier.0.weight'].reshape(256, 32, 7, 7)
    np.testing.assert_allclose(params['fc6']['conv']['kernel'][1, 2, 11, 5], first[20, 11, 3, 6], rtol=1e-6)
    np.testing.assert_allclose(
        params['fc7']['conv']['kernel'][0, 0, 3, 7], entries['classifier.3.weight'][28, 12], rtol=1e-6
    )
    np.testing.assert_allclose(params['fc7']['conv']['bias'], entries['classifier.3.bias'][::4], rtol=1e-6)


@pytest.mark.parametrize(
    'change', [lambda name, x: None, lambda name, x: np.full_like(x, np.nan)], ids=['absent', 'nan']
)
def test_vgg_variables_without_a_classifier_leave_fc6_and_fc7(change):
    entries, template = vgg_classifier()
    entries = {name: change(name, x) if name.startswith('classifier') else x for name, x in entries.items()}
    params, _ = fill(torchvision.VGG, {name: x for name, x in entries.items() if x is not None}, template).variables
    assert {name: params[name] for name in ('fc6', 'fc7')} == {name: template[0][name] for name in ('fc6', 'fc7')}
    np.testing.assert_allclose(params['conv5_3']['conv']['bias'], entries['features.28.bias'], rtol=1e-6)


@pytest.mark.parametrize('name', ['classifier.0.weight', 'classifier.3.bias'])
def test_vgg_variables_need_the_whole_classifier_or_none(name):
    entries, template = vgg_classifier()
    del entries[name]
    with pytest.raises(ValueError, match=rf'a\.pth: not the weights of a VGG: it has no {name}'):
        fill(torchvision.VGG, entries, template, source='a.pth')


def test_vgg_variables_names_missing_entry():
    entries, template = vgg_classifier()
    del entries['features.28.bias']
    with pytest.raises(ValueError, match=r'missing: features\.28\.bias\. Give'):
        fill(torchvision.VGG, entries, template)


def test_mobilenet_variables_are_those_of_the_detector():
    # Torchvision's SSDLite cuts the classifier's 'features' in two, the 13th block behind its expansion.
    def name_of(name):
        part, index, *rest = name.removeprefix('backbone.features.').split('.')
        if (part, index) == ('0', '13'):
            return '.'.join(('features.13.block.0', *rest))
        if (part, index) == ('1', '0'):
            return '.'.join(('features.13.block', *rest))
        rest = '.'.join(rest)
        return f'features.{int(index) + (13 if part == "1" else 0)}.{rest}'

    body = {name_of(name): value for name, value in entries_of(SSDLITE).items() if name.startswith('backbone.features')}
    assert {
        'features.0.0.weight',
        'features.13.block.2.fc1.bias',
        'features.15.block.3.0.weight',
        'features.16.1.bias',
    } < set(body)
    network = mobilenet_v3_large()
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    body['classifier.0.weight'] = np.zeros((1280, 480))
    params, statistics = fill(torchvision.MOBILENET_V3_LARGE, body, (variables.pop('params'), variables)).variables
    expected, expected_statistics = fill(PEERS[SSDLITE].mapping, entries_of(SSDLITE), template_of(SSDLITE)).variables
    jax.tree.map(np.testing.assert_array_equal, params, expected['backbone'])
    jax.tree.map(
        np.testing.assert_array_equal, statistics['batch_stats'], expected_statistics['batch_stats']['backbone']
    )


def mobilenet_file(tmp_path):
    """A file like that of torchvision's mobilenet_v3_large, and its entries."""
    entries = {
        name.replace('backbone.body', 'features'): value
        for name, value in entries_of(MOBILENET).items()
        if 'body' in name
    }
    entries |= {
        'classifier.0.weight': np.zeros((1280, 960), np.float32),
        'features.0.1.num_batches_tracked': np.int64([7]),
    }
    path = tmp_path / 'mobilenet_v3_large.safetensors'
    safetensors.numpy.save_file(entries, path)
    return str(path), entries


def test_read_learnt_lists_what_a_classifier_lacks(tmp_path):
    path, entries = mobilenet_file(tmp_path)
    template = template_of(SSDLITE)
    config = ml_collections.ConfigDict(dict(initialize_from='', initialize_backbone=path))
    learnt = read_learnt(config, (), template)
    expand = learnt.arrays['params/backbone/block13/expand/norm/bias']
    np.testing.assert_array_equal(expand, entries['features.13.block.0.1.bias'])
    variance = learnt.arrays['batch_stats/backbone/stem/norm/var']
    np.testing.assert_array_equal(variance, entries['features.0.1.running_var'])
    # The reduced tail: in two blocks 3 convolutions with norms and 2 without, but with biases; one projection, the last layer.
    assert len(learnt.anew) == 2 * (3 * 5 + 2 * 2) + 2 * 5
    assert {path.split('/')[2] for path in learnt.anew} == {'block13', 'block14', 'block15', 'last'}
    whole = {path for path in flatten(template) if path.split('/')[1] == 'backbone'}
    assert {*learnt.arrays, *learnt.anew} == whole


def test_load_backbone_fills_that_of_a_faster_rcnn_on_mobilenet(tmp_path):
    path, entries = mobilenet_file(tmp_path)
    params, model_state = template_of(MOBILENET)
    filled, statistics = load_backbone(path, params, model_state)
    expected, expected_statistics = fill(
        PEERS[MOBILENET].mapping, entries_of(MOBILENET), (params, model_state)
    ).variables
    jax.tree.map(np.testing.assert_array_equal, filled['backbone'], expected['backbone'])
    jax.tree.map(np.testing.assert_array_equal, statistics, expected_statistics)
    assert filled['fpn'] is params['fpn']


def test_load_backbone_tells_mobilenets_apart(tmp_path):
    path = str(tmp_path / 'mobilenet_v2.safetensors')
    safetensors.numpy.save_file(entries_of('mobilenet_v2'), path)
    arguments = with_backbone(PEERS[SSDLITE].model, name='mobilenet_v2')
    detector = make_detector(**arguments)
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (320, 320)), jax.random.key(0))
    filled, _ = load_backbone(path, params, model_state)
    weight = entries_of('mobilenet_v2')['features.3.conv.2.weight']
    np.testing.assert_array_equal(filled['backbone']['block3']['project']['conv']['kernel'][0, 0], weight[:, :, 0, 0].T)
    with pytest.raises(
        ValueError, match='mobilenet_v2.safetensors: not the weights of this model: missing: features.1.block'
    ):
        load_backbone(path, *template_of(SSDLITE))


@pytest.mark.parametrize(
    'model, message',
    [
        (with_backbone(PEERS[SSD].model, norm='batch_norm'), "has no norms: set the model's norm to None"),
        (
            with_backbone(PEERS[SSDLITE].model, norm='group_norm'),
            "no such network with group norm: set the model's norm to",
        ),
        (dict(name='yolo_v3', num_classes=3), 'no classifier for the backbone of this model'),
    ],
)
def test_load_backbone_refuses_what_torchvision_has_not(tmp_path, model, message):
    safetensors.numpy.save_file({'x': np.zeros(1)}, tmp_path / 'x.safetensors')
    detector = make_detector(**model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path / 'x.safetensors'), *template)


def test_load_backbone_fills_that_of_an_ssd(tmp_path):
    entries, (backbone, _) = vgg_classifier()
    path = str(tmp_path / 'vgg16.safetensors')
    safetensors.numpy.save_file(entries, path)
    params, model_state = load_backbone(path, {'backbone': backbone, 'l2_norm': None}, {})
    jax.tree.map(
        np.testing.assert_array_equal, params['backbone'], fill(torchvision.VGG, entries, (backbone, {})).variables[0]
    )
    assert params['l2_norm'] is None and model_state == {}
