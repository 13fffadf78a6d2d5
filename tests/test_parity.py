"""Parity with torchvision: golden outputs, made by scripts/make_parity_fixtures.py, and the names of its weights."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from detzoo.backbones.resnet import ResNet
from detzoo.detectors import make_detector
from detzoo.weights.parity import drawn_entries, match_detections, run_detector
from detzoo.weights.torchvision import PEERS, load_backbone, resnet_variables, retinanet_variables

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
NAME = 'retinanet_resnet50_fpn'
MODEL = PEERS[NAME].model


@functools.cache
def template_of(**changes):
    """Shapes of (params, model_state) of the counterpart, or of a changed one."""
    detector = make_detector(**{**MODEL, **changes})
    return jax.eval_shape(lambda rng: detector.init(rng, (64, 64)), jax.random.key(0))


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(FIXTURES / f'{NAME}.npz'))


@pytest.fixture(scope='module')
def entries(golden):
    return drawn_entries(json.loads(str(golden['shapes'])))


@pytest.fixture(scope='module')
def outputs(golden, entries):
    params, model_state = retinanet_variables(entries, template_of())
    image = golden['image'].astype(np.float32)
    return run_detector(make_detector(**MODEL), params, model_state, image, image.shape[:2])


@pytest.mark.parametrize('stage', ['C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7', 'cls_logits', 'box_deltas'])
def test_retinanet_tensors_are_torchvisions(golden, outputs, stage):
    tensor = outputs[0][stage].ravel()
    values = tensor[:: golden[f'{stage}.step']]
    assert abs(values - golden[f'{stage}.values']).max() <= 1e-4 * golden[f'{stage}.max']
    assert abs(tensor).max() == pytest.approx(golden[f'{stage}.max'], rel=1e-4)  # of all values, not of the stored ones


def test_retinanet_anchors_are_torchvisions(golden, outputs):
    np.testing.assert_array_equal(outputs[0]['anchors'].ravel(), golden['anchors.values'])


def test_retinanet_detections_are_torchvisions(golden, outputs):
    agreement = match_detections(outputs[1], golden, limit=MODEL['max_detections'])
    assert agreement.theirs == len(golden['scores']) > 50
    assert agreement.holds(), agreement


def old_name(name):
    """The name of an entry in a file from before convolutions were wrapped."""
    parts = name.split('.')
    if 'inner_blocks' in parts or 'layer_blocks' in parts:
        return '.'.join(parts[:-2] + parts[-1:])
    if parts[0] == 'head' and parts[2] == 'conv':
        return '.'.join([*parts[:3], str(2 * int(parts[3])), parts[-1]])  # every second one was a ReLU
    return name


def test_retinanet_variables_of_old_names_are_those_of_new_names(entries):
    old = {old_name(name): value for name, value in entries.items()}
    assert 'backbone.fpn.inner_blocks.0.weight' in old and 'head.regression_head.conv.6.bias' in old
    assert len(old) == len(entries)
    filled = retinanet_variables(old, template_of())
    jax.tree.map(np.testing.assert_array_equal, filled, retinanet_variables(entries, template_of()))


def test_retinanet_variables_names_missing_entry(entries):
    del (entries := dict(entries))['head.regression_head.bbox_reg.bias']
    with pytest.raises(ValueError, match=r'a\.pth: .*missing: head\.regression_head\.bbox_reg\.bias\. Set depth'):
        retinanet_variables(entries, template_of(), source='a.pth')


def test_retinanet_variables_names_unused_entry(entries):
    with pytest.raises(ValueError, match=r'unused: head\.third\.weight\. '):
        retinanet_variables({**entries, 'head.third.weight': np.zeros(3)}, template_of())


def test_retinanet_variables_names_entry_of_both_names(entries):
    name = 'backbone.fpn.layer_blocks.2.weight'
    with pytest.raises(ValueError, match=r'unused: backbone\.fpn\.layer_blocks\.2\.weight\. '):
        retinanet_variables({**entries, name: entries['backbone.fpn.layer_blocks.2.0.weight']}, template_of())


def test_retinanet_variables_names_entry_of_another_shape(entries):
    message = r'of another shape: head\.classification_head\.cls_logits\.bias \(819,\) where the model has \(27,\)'
    with pytest.raises(ValueError, match=message):
        retinanet_variables(entries, template_of(num_classes=3))


def test_retinanet_variables_of_a_deeper_file_lists_a_few_unused_entries(entries):
    deeper = {f'backbone.body.layer3.{block}.conv1.weight': np.zeros((256, 1024, 1, 1)) for block in range(6, 23)}
    with pytest.raises(ValueError, match=r'unused: backbone\.body\.layer3\.6\.conv1\.weight, .* and 13 more\. '):
        retinanet_variables({**entries, **deeper}, template_of())



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
    expected, expected_statistics = retinanet_variables(entries, (params, model_state))
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


def test_load_backbone_refuses_group_norm(classifier):
    with pytest.raises(ValueError, match="no ResNet with group norm: set the model's norm to"):
        load_backbone(classifier[0], *template_of(norm='group_norm'))


def test_load_backbone_of_another_depth_names_file_entries_and_remedy(classifier):
    wrong = r'layer2\.0\.downsample\.1\.bias \(512,\) where the model has \(128,\), .* and \d+ more'
    message = rf'resnet50\.safetensors: .* of another shape: {wrong}; unused: layer1\.0\.bn3\.bias.*\. Set depth'
    with pytest.raises(ValueError, match=message):
        load_backbone(classifier[0], *template_of(depth=18))


def test_load_backbone_of_another_format_says_how_to_convert(tmp_path):
    path = tmp_path / 'resnet50.pth'
    path.write_bytes(b'PK' + bytes(100))
    with pytest.raises(ValueError, match=r'resnet50\.pth: not a safetensors file .*save_file'):
        load_backbone(str(path), {'backbone': {}}, {})


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
    params, statistics = resnet_variables(drawn_entries(shapes), (variables.pop('params'), variables))
    assert params['stage2_block1']['shortcut_conv']['kernel'].shape == (1, 1, 8, 16)
    assert len(jax.tree.leaves((params, statistics))) == len(shapes)
