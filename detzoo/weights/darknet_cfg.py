"""What a .cfg file of darknet says: the layers of a network, and which of our detectors it may be.

    text -> read_cfg -> layers, and what each computes -> likely_model: the arguments of a detector
                                                       -> check_same: compares them with that detector's own .cfg file

`likely_model` guesses, and `check_same` proves the guess or raises an error; `darknet.model_of_cfg` calls both. They compare
what layers compute, with darknet's defaults. Options for training are ignored, except those that our losses have too.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detzoo.backbones.darknet import DARKNET53_BLOCKS, PLAIN

# Weights of losses: darknet's names and ours.
SCALES = {
    'object_scale': 'object_scale',
    'noobject_scale': 'no_object_scale',
    'class_scale': 'class_scale',
    'coord_scale': 'box_scale',
}
KNOWN = (
    "Known networks are darknet's YOLO v1, v2 and v3, YOLO9000, v1-tiny, v2-tiny and v3-tiny, with any canvas, classes and "
    'anchors, other filters in the head, fewer stages, or all filters multiplied by a factor'
)

_ALIASES = {'network': 'net', 'conv': 'convolutional', 'max': 'maxpool', 'conn': 'connected'}
# For each kind of layer the options that decide what it computes, or how our losses train it, with darknet's defaults; an
# option with None must be given. `dilation` and `scale_x_y` are newer, and do nothing with these values.
_DEFAULTS = {
    'convolutional': {'batch_normalize': 0, 'filters': 1, 'size': 1, 'stride': 1, 'pad': 0, 'padding': 0, 'groups': 1,
                      'activation': 'logistic', 'binary': 0, 'xnor': 0, 'flipped': 0, 'dilation': 1},
    'maxpool': {'stride': 1, 'size': 0, 'padding': -1},  # 0 means the stride, -1 means size - 1
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
               'thresh': 0.5, 'tree': '', **dict.fromkeys(SCALES, 1)},
    'yolo': {'classes': 20, 'num': 1, 'anchors': None, 'mask': [], 'ignore_thresh': 0.5, 'scale_x_y': 1},
}  # fmt: skip
# Options that only training reads; our training has its own.
_IGNORED = {'absolute', 'bias_match', 'classfix', 'forced', 'jitter', 'learning_rate', 'map', 'mask_scale', 'max', 'onlyforward',
            'random', 'smooth', 'stopbackward', 'truth', 'truth_thresh'}  # fmt: skip
# Options of [net] about the network and its canvas; all others there are about training.
_NET = ('height', 'width', 'channels', 'letter_box')
_WORDS, _LISTS = ('activation', 'tree'), ('anchors', 'layers', 'mask')
_COUNTS = ('channels', 'classes', 'filters', 'height', 'num', 'output', 'side', 'size', 'stride', 'width')
# By a network's last layer: the detector, its larger backbone, and the kind of layer that only the larger network has.
_ENDS = {
    'detection': ('yolo_v1', 'extraction', 'local'),
    'region': ('yolo_v2', 'darknet19', 'reorg'),
    'yolo': ('yolo_v3', 'darknet53', 'shortcut'),
}
# The least number of convolutions after the backbone, by (detector, whether it is the larger one).
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

    place: where it begins, for error messages: 'x.cfg, line 12'.
    kind: 'net', 'convolutional', ...
    options: {key: (value, place of the line)} of its lines key=value.
    """

    place: str
    kind: str
    options: dict[str, tuple[str, str]]

    def place_of(self, key: str) -> str:
        """Returns the place of an option's line, or of the section if it lacks the option."""
        return self.options.get(key, ('', self.place))[1]


class Net(NamedTuple):
    """What [net] says.

    canvas: height and width, pixels.
    letter_box: whether images keep their aspect ratio on the canvas; None if the file does not say.
    """

    canvas: tuple[int, int]
    letter_box: bool | None


class CfgLayer(NamedTuple):
    """A layer of a .cfg file.

    section: the section that describes it.
    computed: what it computes: its options with darknet's defaults, numbers of layers made absolute, and only the anchors that
        it uses. Layers compute the same if these are equal.
    """

    section: Section
    computed: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.section.kind


def read_cfg(text: str, name: str) -> tuple[Net, list[CfgLayer]]:
    """Reads a .cfg file.

    Args:
        text: the file's text.
        name: the file's name in error messages.

    Returns:
        what [net] says, and the layers.

    Raises:
        ValueError: a line is not in darknet's format, or a layer or option is unknown here; the message names the line.
    """
    net, *sections = _read_sections(text, name)
    if (channels := _value(net, 'channels')) != 3:
        raise ValueError(f'{net.place_of("channels")}: images have {channels} channels: only 3 are possible here')
    letter_box = bool(_value(net, 'letter_box')) if 'letter_box' in net.options else None
    described = Net((_value(net, 'height'), _value(net, 'width')), letter_box)
    return described, [CfgLayer(section, _computed(section, index)) for index, section in enumerate(sections)]


def likely_model(layers: Sequence[CfgLayer], name: str) -> dict[str, Any]:
    """Finds the detector that a network may be.

    Args:
        layers: the network's layers.
        name: the file's name in error messages.

    Returns:
        arguments of `make_detector`.

    Raises:
        ValueError: it cannot be any of our detectors.
    """
    of = {kind: [layer.computed for layer in layers if layer.kind == kind] for kind in _DEFAULTS}
    end = layers[-1].kind if layers else 'net'
    if end not in _ENDS:
        raise ValueError(f'{name}: ends with [{end}], but a detector ends with [{"], [".join(_ENDS)}]. {KNOWN}')
    (detector, backbone, mark), last = _ENDS[end], layers[-1].computed
    large = bool(of[mark])
    bare = end == 'region' and not large and all(layer['stride'] > 1 for layer in of['maxpool'])  # YOLO9000
    backbone = backbone if large or bare else 'tiny'

    halvings = sum(layer['stride'] == 2 for layer in of['convolutional'] + of['maxpool'])
    stages = halvings + (detector != 'yolo_v1')  # the head of v1 halves once more
    if not 2 <= stages <= 6:
        raise ValueError(
            f'{name}: {halvings} of its layers have stride 2, but a {detector} has {halvings + 2 - stages} to '
            f'{halvings + 6 - stages} of them. {KNOWN}'
        )
    filters, features = [layer['filters'] for layer in of['convolutional']], _backbone_features(backbone, stages)
    head = filters[len(features) :]
    least = 1 if bare else _HEADS[detector, large]
    if len(head) < least:
        raise ValueError(
            f'{name}: has {len(filters)} convolutions, but a {detector} with the {backbone} backbone and {stages} '
            f'stages has at least {len(features) + least}. {KNOWN}'
        )
    width = filters[len(features) - 1] / features[-1]

    def unscaled(count: int) -> float:
        """The number of features that `width` turns into `count`."""
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
            'head_features': None if bare else tuple(map(unscaled, [*head[:-3], head[-2]] if large else head[:-1])),
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
        layers: layers of the file's network.
        ours: layers of the detector that `likely_model` found.
        network: that detector's name in error messages.

    Raises:
        ValueError: they differ; the message names the line and the layer of the first difference, and both sides of it.
    """
    # Ours is never longer: both end with the last layer that makes detections, and have equally many of these layers.
    for index, (layer, our) in enumerate(itertools.zip_longest(layers, ours)):
        what = f'layer {index}, [{layer.kind}]'
        if our is None or layer.kind != our.kind:
            instead = 'has ended' if our is None else f'has [{our.kind}]'
            raise ValueError(f'{layer.section.place}: {what}: {network} {instead} here. {KNOWN}')
        for key, value in layer.computed.items():
            if not _alike(value, our.computed[key]):
                raise ValueError(
                    f'{layer.section.place_of(key)}: {what}: its {key} is {value}, but {our.computed[key]} in {network}. '
                    f'{KNOWN}'
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
                    f"{place}: {line} is the first section, but a .cfg file of darknet's begins with [net]"
                )
        elif not equals or not key or not sections:
            raise ValueError(
                f'{place}: {line[:40]!r} is neither a [section], nor a comment, nor key=value in a section'
            )
        else:
            kind, options = sections[-1][1:]
            first, where = options.setdefault(key, (value, place))
            if first != value and (key in _NET if kind == 'net' else key not in _IGNORED):
                raise ValueError(
                    f'{place}: {key} is {value}, but {first} in {where}, in the same section: remove one of them'
                )
    if not sections:
        raise ValueError(f"{name}: not a .cfg file of darknet's: it has no section")
    return sections


def _computed(section: Section, index: int) -> dict[str, Any]:
    """Finds what the layer of a section, number `index`, computes: `CfgLayer.computed`."""
    kind, place, defaults = section.kind, section.place, _DEFAULTS.get(section.kind)
    if defaults is None:
        raise ValueError(
            f'{place}: layer {index} is [{kind}]: only [{"], [".join(_DEFAULTS)}] are possible here. {KNOWN}'
        )
    for key, (value, where) in section.options.items():
        if key not in defaults and key not in _IGNORED:
            raise ValueError(
                f'{where}: layer {index}, [{kind}], has {key}={value}, which is unknown here. Remove the line if darknet '
                'does not need it to predict'
            )
    layer = {key: _value(section, key, default) for key, default in defaults.items()}
    if kind == 'convolutional':
        layer['padding'] = layer['size'] // 2 if layer.pop('pad') else layer['padding']
    if kind == 'maxpool':
        layer['size'] = layer['size'] or layer['stride']
        layer['padding'] = layer['size'] - 1 if layer['padding'] < 0 else layer['padding']
    if kind == 'region':
        layer['tree'] = bool(layer['tree'])  # which one, the file says
    if kind in ('route', 'shortcut'):
        key = 'layers' if kind == 'route' else 'from'
        layer[key] = [at + index if at < 0 else at for at in np.atleast_1d(layer[key]).tolist()]
    if 'anchors' in layer:
        sides, count = layer['anchors'], layer['num']
        if len(sides) != 2 * count:
            raise ValueError(
                f'{place}: layer {index}, [{kind}], has num={count} anchors, but their list has {len(sides)} numbers'
            )
        mask = layer.pop('mask', None) or range(count)
        if not all(number in range(count) for number in mask):
            raise ValueError(f'{place}: layer {index}, [{kind}], has anchors 0 to {count - 1}, but the mask is {mask}')
        layer |= {'num': len(mask), 'anchors': [tuple(sides[2 * number : 2 * number + 2]) for number in mask]}
    return layer


def _value(section: Section, key: str, default: Any = None) -> Any:
    """Reads the value of an option: a word, a list of numbers, or a number; whole numbers become integers."""
    if key not in section.options:
        if default is None:
            raise ValueError(f'{section.place}: [{section.kind}] has no {key}')
        return default
    text, place = section.options[key]
    if key in _WORDS:
        return text
    try:  # like darknet, up to a comment or a last comma
        numbers = [float(number) for number in text.partition('#')[0].rstrip(',').split(',')]
    except ValueError as error:
        raise ValueError(f'{place}: {key}={text}: this is not a number') from error
    if not all(map(math.isfinite, numbers)) or len(numbers) > 1 and key not in _LISTS:
        raise ValueError(f'{place}: {key}={text}: this must be one finite number')
    numbers = [int(number) if number.is_integer() else number for number in numbers]
    if key in _COUNTS and not (isinstance(numbers[0], int) and 1 <= numbers[0] <= 10**6):
        raise ValueError(f'{place}: {key}={text}: this must be a whole number from 1 to a million')
    return numbers if key in _LISTS else numbers[0]


def _backbone_features(architecture: str, stages: int) -> list[int]:
    """Lists the features of a `backbones.darknet.Darknet`'s convolutions at full width."""
    if architecture != 'darknet53':
        return [features for stage in PLAIN[architecture][:stages] for _, features in stage]
    blocks = [(32 * 2**stage, count) for stage, count in enumerate(DARKNET53_BLOCKS[:stages])]
    return [width for features, count in blocks for width in (features, *(features // 2, features) * count)]


def _alike(value: Any, our: Any) -> bool:
    """Tells whether values are the same, numbers to the digits that a .cfg file has."""
    if isinstance(value, str):
        return value == our
    value, our = np.asarray(value, float), np.asarray(our, float)
    return value.shape == our.shape and np.allclose(value, our, rtol=1e-6, atol=0)
