"""What a .cfg file of darknet says: the layers of a network, and which of our detectors it may be.

    text -> read_cfg -> layers, each by what it computes -> likely_model: the arguments of a detector
                                                         -> check_same: with the layers of that detector's own .cfg file

`likely_model` takes for granted what `check_same` proves, so that a network is the file's or an error
(`darknet.model_of_cfg` does both). Compared is what a layer computes, with darknet's own defaults; what only training reads
is left, but for what our losses take.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detzoo.backbones.darknet import DARKNET53_BLOCKS, PLAIN

# Of the weights of losses, darknet's names: ours.
SCALES = {
    'object_scale': 'object_scale',
    'noobject_scale': 'no_object_scale',
    'class_scale': 'class_scale',
    'coord_scale': 'box_scale',
}
KNOWN = (
    "Known are darknet's YOLO v1, v2 and v3, and v1-tiny, v2-tiny and v3-tiny: with any canvas, classes and anchors, with "
    'other filters in the head, with fewer stages, and with all filters times a factor'
)

_ALIASES = {'network': 'net', 'conv': 'convolutional', 'max': 'maxpool', 'conn': 'connected'}
# Of each kind of layer the options on which depends what it computes, or how our losses train it: what darknet takes where
# a section has none; None: it must have one. `dilation` and `scale_x_y` are newer, and do nothing with these values.
_DEFAULTS = {
    'convolutional': {'batch_normalize': 0, 'filters': 1, 'size': 1, 'stride': 1, 'pad': 0, 'padding': 0, 'groups': 1,
                      'activation': 'logistic', 'binary': 0, 'xnor': 0, 'flipped': 0, 'dilation': 1},
    'maxpool': {'stride': 1, 'size': 0, 'padding': -1},  # that is, the stride, and size - 1
    'shortcut': {'from': None, 'activation': 'linear', 'alpha': 1, 'beta': 1},
    'route': {'layers': None},
    'upsample': {'stride': 2, 'scale': 1},
    'reorg': {'stride': 1, 'reverse': 0, 'flatten': 0, 'extra': 0},
    'local': {'filters': 1, 'size': 1, 'stride': 1, 'pad': 0, 'activation': 'logistic'},
    'dropout': {'probability': 0.5},
    'connected': {'output': 1, 'activation': 'logistic', 'batch_normalize': 0},
    'detection': {'classes': 1, 'coords': 1, 'num': 1, 'side': 7, 'softmax': 0, 'sqrt': 0, 'reorg': 0, 'rescore': 0,
                  **dict.fromkeys(SCALES, 1)},
    'region': {'classes': 20, 'coords': 4, 'num': 1, 'anchors': None, 'softmax': 0, 'background': 0, 'rescore': 0,
               'thresh': 0.5, **dict.fromkeys(SCALES, 1)},
    'yolo': {'classes': 20, 'num': 1, 'anchors': None, 'mask': [], 'ignore_thresh': 0.5, 'scale_x_y': 1},
}  # fmt: skip
# What only training reads, and ours does in a way of its own.
_IGNORED = {'absolute', 'bias_match', 'classfix', 'forced', 'jitter', 'learning_rate', 'mask_scale', 'max', 'onlyforward',
            'random', 'smooth', 'stopbackward', 'truth', 'truth_thresh'}  # fmt: skip
# What [net] says of the network and of how an image gets on its canvas; all else there is about training.
_NET = ('height', 'width', 'channels', 'letter_box')
_WORDS, _LISTS = ('activation',), ('anchors', 'layers', 'mask')
_COUNTS = ('channels', 'classes', 'filters', 'height', 'num', 'output', 'side', 'size', 'stride', 'width')
# By how it ends a detector, its larger backbone, and the kind of layer that only the network with that one has.
_ENDS = {
    'detection': ('yolo_v1', 'extraction', 'local'),
    'region': ('yolo_v2', 'darknet19', 'reorg'),
    'yolo': ('yolo_v3', 'darknet53', 'shortcut'),
}
# Convolutions behind the backbone, at least: of (detector, whether it is the larger one).
_HEADS = {
    ('yolo_v1', True): 1,
    ('yolo_v1', False): 1,
    ('yolo_v2', True): 4,
    ('yolo_v2', False): 2,
    ('yolo_v3', True): 1,
    ('yolo_v3', False): 2,
}


class Section(NamedTuple):
    """A section of a .cfg file as it stands there.

    place: what an error calls it: 'x.cfg, line 12'.
    kind: 'net', 'convolutional', ...
    options: what is right of the equality sign, and the place of that line, by what is left of it.
    """

    place: str
    kind: str
    options: dict[str, tuple[str, str]]

    def place_of(self, key: str) -> str:
        """Where an option stands, or the section that has it not."""
        return self.options.get(key, ('', self.place))[1]


class Net(NamedTuple):
    """What [net] says.

    canvas: height and width, pixels.
    letter_box: whether images keep their aspect ratio on it; None: it does not say.
    """

    canvas: tuple[int, int]
    letter_box: bool | None


class CfgLayer(NamedTuple):
    """A layer of a .cfg file.

    section: what it was read from.
    computed: what it computes: its options with darknet's defaults, relative numbers of layers made absolute, and of anchors
        the ones that it has. Layers compute the same if these are equal.
    """

    section: Section
    computed: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.section.kind


def read_cfg(text: str, name: str) -> tuple[Net, list[CfgLayer]]:
    """Reads a .cfg file.

    Args:
        text: of the file.
        name: what an error calls it.

    Returns:
        what [net] says, and the layers.

    Raises:
        ValueError: if a line is none of darknet's, or a layer or option none that we know; the message names the line.
    """
    net, *sections = _read_sections(text, name)
    if (channels := _value(net, 'channels')) != 3:
        raise ValueError(f'{net.place_of("channels")}: images have {channels} channels: ours have 3')
    letter_box = bool(_value(net, 'letter_box')) if 'letter_box' in net.options else None
    described = Net((_value(net, 'height'), _value(net, 'width')), letter_box)
    return described, [CfgLayer(section, _computed(section, index)) for index, section in enumerate(sections)]


def likely_model(layers: Sequence[CfgLayer], name: str) -> dict[str, Any]:
    """Finds the detector that a network may be.

    Args:
        layers: of the network.
        name: what an error calls its file.

    Returns:
        arguments of `make_detector`.

    Raises:
        ValueError: if it can be none.
    """
    of = {kind: [layer.computed for layer in layers if layer.kind == kind] for kind in _DEFAULTS}
    end = layers[-1].kind if layers else 'net'
    if end not in _ENDS:
        raise ValueError(f'{name}: ends with [{end}], and not as a detector, with [{"], [".join(_ENDS)}]. {KNOWN}')
    (detector, backbone, mark), last = _ENDS[end], layers[-1].computed
    large = bool(of[mark])
    backbone = backbone if large else 'tiny'

    halvings = sum(layer['stride'] == 2 for layer in of['convolutional'] + of['maxpool'])
    stages = halvings + (detector != 'yolo_v1')  # whose head halves once more
    if not 2 <= stages <= 6:
        raise ValueError(
            f'{name}: {halvings} of its layers have stride 2, {halvings + 2 - stages} to {halvings + 6 - stages} of '
            f'a {detector}. {KNOWN}'
        )
    filters, features = [layer['filters'] for layer in of['convolutional']], _backbone_features(backbone, stages)
    head = filters[len(features) :]
    if len(head) < _HEADS[detector, large]:
        raise ValueError(
            f'{name}: has {len(filters)} convolutions, a {detector} with the {backbone} backbone and {stages} '
            f'stages at least {len(features) + _HEADS[detector, large]}. {KNOWN}'
        )
    width = filters[len(features) - 1] / features[-1]

    def unscaled(count: int) -> float:
        """The features that `width` makes so many."""
        whole = round(count / width)
        return whole if round(width * whole) == count else count / width

    stride = 2 ** (stages - 1)
    model = {
        'name': detector,
        'num_classes': last['classes'],
        'backbone': {'name': backbone, 'width': width},
        'backbone_stride': stride,
    }
    if detector != 'yolo_v3':
        model |= {ours: float(last[theirs]) for theirs, ours in SCALES.items()} | {'rescore': bool(last['rescore'])}
    if detector == 'yolo_v1':
        model |= {
            'head_features': tuple(map(unscaled, head)),
            'boxes_per_cell': last['num'],
            'local_features': unscaled(of['local'][0]['filters']) if large else None,
        }
        if of['dropout']:
            model |= {'dropout': float(of['dropout'][0]['probability'])}
    if detector == 'yolo_v2':
        model |= {
            'head_features': tuple(map(unscaled, [*head[:-3], head[-2]] if large else head[:-1])),
            'passthrough_features': unscaled(head[-3]) if large else None,
            'ignore_iou': float(last['thresh']),
            'anchor_sizes': tuple((stride * x, stride * y) for x, y in last['anchors']),
        }
    if detector == 'yolo_v3':
        model |= {
            'small_head': not large,
            'head_features': unscaled(head[0 if large else 1]),
            'ignore_iou': float(last['ignore_thresh']),
            'anchor_sizes': tuple(tuple(layer['anchors']) for layer in reversed(of['yolo'])),
        }
    return model


def check_same(layers: Sequence[CfgLayer], ours: Sequence[CfgLayer], *, network: str) -> None:
    """Compares a network with one of ours, layer by layer.

    Args:
        layers: of the file's network.
        ours: of the one that `likely_model` found.
        network: what an error calls ours.

    Raises:
        ValueError: at the first difference; the message names the line and the layer, and what either has there.
    """
    # Ours is not the longer one: both end with the last layer that makes detections, and have equally many of these.
    for index, (layer, our) in enumerate(itertools.zip_longest(layers, ours)):
        what = f'layer {index}, [{layer.kind}]'
        if our is None or layer.kind != our.kind:
            instead = 'has ended' if our is None else f'has [{our.kind}]'
            raise ValueError(f'{layer.section.place}: {what}: {network} {instead} here. {KNOWN}')
        for key, value in layer.computed.items():
            if not _alike(value, our.computed[key]):
                raise ValueError(
                    f'{layer.section.place_of(key)}: {what}: its {key} is {value}, that of {network} '
                    f'{our.computed[key]}. {KNOWN}'
                )


def _read_sections(text: str, name: str) -> list[Section]:
    """Reads the sections of a .cfg file, the first of which is [net]."""
    sections = []
    for number, line in enumerate(text.splitlines(), 1):
        line, place = ''.join(line.split()), f'{name}, line {number}'
        key, equals, value = line.partition('=')
        if not line or line[0] in '#;':
            continue
        if line[0] == '[' and line[-1] == ']':
            sections.append(Section(place, _ALIASES.get(line[1:-1], line[1:-1]), {}))
            if sections[0].kind != 'net':
                raise ValueError(
                    f"{place}: {line} is the first section: no .cfg file of darknet's, that would be [net]"
                )
        elif not equals or not key or not sections:
            raise ValueError(f'{place}: {line[:40]!r} is no [section], no comment, and no key=value in a section')
        else:
            kind, options = sections[-1][1:]
            first, where = options.setdefault(key, (value, place))
            if first != value and (key in _NET if kind == 'net' else key not in _IGNORED):
                raise ValueError(
                    f'{place}: {key} is {value}, but {first} in {where}, of the same section: remove one of them'
                )
    if not sections:
        raise ValueError(f"{name}: no .cfg file of darknet's: it has no section")
    return sections


def _computed(section: Section, index: int) -> dict[str, Any]:
    """Says what the layer of a section and a number computes: `CfgLayer.computed`."""
    kind, place, defaults = section.kind, section.place, _DEFAULTS.get(section.kind)
    if defaults is None:
        raise ValueError(f'{place}: layer {index} is [{kind}], but we run only [{"], [".join(_DEFAULTS)}]. {KNOWN}')
    for key, (value, where) in section.options.items():
        if key not in defaults and key not in _IGNORED:
            raise ValueError(
                f'{where}: layer {index}, [{kind}], has {key}={value}, which we do not know. Remove the line if '
                'darknet does not need it to predict'
            )
    layer = {key: _value(section, key, default) for key, default in defaults.items()}
    if kind == 'convolutional':
        layer['padding'] = layer['size'] // 2 if layer.pop('pad') else layer['padding']
    if kind == 'maxpool':
        layer['size'] = layer['size'] or layer['stride']
        layer['padding'] = layer['size'] - 1 if layer['padding'] < 0 else layer['padding']
    if kind in ('route', 'shortcut'):
        key = 'layers' if kind == 'route' else 'from'
        layer[key] = [at + index if at < 0 else at for at in np.atleast_1d(layer[key]).tolist()]
    if 'anchors' in layer:
        sides, count = layer['anchors'], layer['num']
        if len(sides) != 2 * count:
            raise ValueError(
                f'{place}: layer {index}, [{kind}], has num={count} anchors, but {len(sides)} numbers in their list'
            )
        mask = layer.pop('mask', None) or range(count)
        if not all(number in range(count) for number in mask):
            raise ValueError(f'{place}: layer {index}, [{kind}], has anchors 0 to {count - 1}, but the mask {mask}')
        layer |= {'num': len(mask), 'anchors': [tuple(sides[2 * number : 2 * number + 2]) for number in mask]}
    return layer


def _value(section: Section, key: str, default: Any = None) -> Any:
    """The value of an option: a word, a list of numbers, or a number; whole numbers are integers."""
    if key not in section.options:
        if default is None:
            raise ValueError(f'{section.place}: [{section.kind}] has no {key}')
        return default
    text, place = section.options[key]
    if key in _WORDS:
        return text
    try:  # darknet reads numbers as far as they go, up to a comment or a last comma
        numbers = [float(number) for number in text.partition('#')[0].rstrip(',').split(',')]
    except ValueError as error:
        raise ValueError(f'{place}: {key}={text}: this is no number') from error
    if not all(map(math.isfinite, numbers)) or len(numbers) > 1 and key not in _LISTS:
        raise ValueError(f'{place}: {key}={text}: this must be one finite number')
    numbers = [int(number) if number.is_integer() else number for number in numbers]
    if key in _COUNTS and not (isinstance(numbers[0], int) and 1 <= numbers[0] <= 10**6):
        raise ValueError(f'{place}: {key}={text}: this must be a whole number from 1 to a million')
    return numbers if key in _LISTS else numbers[0]


def _backbone_features(architecture: str, stages: int) -> list[int]:
    """The features of the convolutions of a `backbones.darknet.Darknet` of full width."""
    if architecture != 'darknet53':
        return [features for stage in PLAIN[architecture][:stages] for _, features in stage]
    blocks = [(32 * 2**stage, count) for stage, count in enumerate(DARKNET53_BLOCKS[:stages])]
    return [width for features, count in blocks for width in (features, *(features // 2, features) * count)]


def _alike(value: Any, our: Any) -> bool:
    """Whether values are the same, numbers as far as a .cfg file has digits of them."""
    if isinstance(value, str):
        return value == our
    value, our = np.asarray(value, float), np.asarray(our, float)
    return value.shape == our.shape and np.allclose(value, our, rtol=1e-6, atol=0)
