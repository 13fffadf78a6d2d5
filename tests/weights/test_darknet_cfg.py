"""Darknet's .cfg files: which detectors they describe, and which lines are refused."""

import re

import pytest
from darknet_models import CANVAS, MODELS, TINY, draw, model_of, template_of
from tiny import with_backbone

from detzoo.weights.darknet import PUBLISHED, Described, model_of_cfg, read_weights, resizing
from detzoo.weights.darknet_layers import arguments_of, cfg_text


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
        ('[maxpool]', '[avgpool]', r', line 20: layer 1 is \[avgpool\]: only \[convolutional\].*Known networks are'),
        ('activation=leaky', 'activation=mish', r', line 18: .*: its activation is mish, but leaky in our yolo_v3 with '),
        ('batch_normalize=1\n', '', r', line 12: layer 0, \[convolutional\]: its batch_normalize is 0, but 1 in .*\. Known'),
        ('filters=16\n', 'filters=16\ngroups=2\n', r', line 15: layer 0, \[convolutional\]: its groups is 2, but 1 in '),
        ('filters=32\n', 'filters=31\n', r'layer 2, \[convolutional\]: its filters is 31, but 32 in '),
        ('filters=16\n', 'filters=16\nfilters=32\n', r', line 15: filters is 32, but 16 in .*, line 14, in the same section'),
        ('filters=16\n', 'filters=0\n', r', line 14: filters=0: this must be a whole number'),
        ('filters=16\n', 'filters=many\n', r', line 14: filters=many: this is not a number'),
        ('filters=16\n', 'filters=1,6\n', r', line 14: filters=1,6: this must be one finite number'),
        ('filters=16\n', 'filters\n', r", line 14: 'filters' is neither a \[section\], nor a comment, nor key=value"),
        ('size=2\nstride=1\n', 'stride=1\n', r'layer 11, \[maxpool\]: its size is 1, but 2 in '),
        ('filters=24\n', 'filters=255\n', r'layer 15, \[convolutional\]: its filters is 255, but 24 in '),
        ('classes = 3', 'classes = 4', r'layer 15, \[convolutional\]: its filters is 24, but 27 in '),
        ('mask=3,4,5', 'mask=3,4,9', r'layer 16, \[yolo\], has anchors 0 to 5, but the mask is \[3, 4, 9\]'),
        ('mask=3,4,5', 'mask=3,4', r'own\.cfg: anchor_sizes must have equally many sizes at each level'),
        ('anchors=10,', 'anchors=', r'\[yolo\], has num=6 anchors, but their list has 11 numbers'),
        ('num=6\n', 'num=6\nscale_x_y=1.05\n', r'layer 16, \[yolo\]: its scale_x_y is 1.05, but 1 in '),
        ('num=6\n', 'num=6\niou_loss=ciou\n', r'layer 16, \[yolo\], has iou_loss=ciou, which is unknown here\. Remove the line'),
        ('layers = -4\n', 'layers = -3\n', r'layer 17, \[route\]: its layers is \[14\], but \[13\] in '),
        ('layers = -4\n', '', r'\[route\] has no layers'),
        ('[upsample]', '[reorg]', r'layer 19, \[reorg\]: our yolo_v3 with the tiny backbone has \[upsample\] here'),
        ('[upsample]', '[maxpool]', r'own\.cfg: 6 of its layers have stride 2, but a yolo_v3 has 1 to 5 of them'),
        ('width=416', 'width=420', r'own\.cfg: the canvas is \(320, 420\): darknet needs multiples of 32'),
        ('width=416', '', r', line 3: \[net\] has no width'),
        ('channels=3', 'channels=3\nletter_box=yes', r', line 11: letter_box=yes: this is not a number'),
        ('channels=3', 'channels=3\nletter_box=1\nletter_box=0', r', line 12: letter_box is 0, but 1 in .*, line 11, in the same'),
        ('channels=3', 'channels=1', r', line 10: images have 1 channels: only 3'),
        ('[network]', '[cat]', r", line 3: \[cat\] is the first section, but a \.cfg file of darknet's begins with"),
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
        (empty, r'ends with \[net\], but a detector ends with \[detection\], \[region\], \[yolo\]'),
        (text[:last], r'ends with \[convolutional\], but a detector ends with'),
        (
            text + text[text.index('[yolo]') : text.index('[route]')],
            r'layer 24, \[yolo\]: our yolo_v3 with .* has \[route\] here',
        ),
        (
            of_v2 + of_v2[of_v2.index('[region]') :],
            r'layer 16, \[region\]: our yolo_v2 with the tiny backbone has ended here',
        ),
        (empty + '[yolo]\nanchors=1,2\n', '0 of its layers have stride 2, but a yolo_v3 has 1 to 5 of them'),
        (
            empty + '[maxpool]\nstride=2\n[yolo]\nanchors=1,2\n',
            'has 0 convolutions, but a yolo_v3 with the tiny backbone and 2 stages',
        ),
    ):
        (tmp_path / 'own.cfg').write_text(content)
        with pytest.raises(ValueError, match=r'own\.cfg') as raised:
            model_of_cfg(tmp_path / 'own.cfg')
        assert re.search(message, str(raised.value)), raised.value


def test_weights_of_another_cfg_are_refused_with_the_file(tmp_path):
    _, path = draw(tmp_path, TINY)
    (tmp_path / 'own.cfg').write_text(own_cfg())
    model, canvas, _ = model_of_cfg(tmp_path / 'own.cfg')
    with pytest.raises(
        ValueError, match=r'drawn\.weights: not the weights of this model: .* `model_of_cfg` reads them'
    ):
        read_weights(path, model, template_of(model, canvas))
