"""The layers of a YOLO as darknet numbers them, and the .cfg file that describes them.

    a detector's arguments and the shapes of its variables -> layers, each with its options and its weights' entries
      -> .cfg: the layers' options, as darknet and OpenCV read them

One list of layers serves the .cfg file and the .weights file, so that what is written can be read, and runs elsewhere. The
structure comes from the arguments, every number of channels from the variables.

In a .weights file a convolution has its biases, then its norm's scales, means and variances, then its kernel, OIHW; a locally
or fully connected layer has its biases, then its weights.
"""

import inspect
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from detzoo.backbones.darknet import PLAIN, STRIDES
from detzoo.detectors import DETECTORS
from detzoo.weights.darknet_cfg import SCALES
from detzoo.weights.mapping import Template, flatten

Shapes = Mapping[str, tuple[int, ...]]  # of our variables by their paths: 'params/head/output/kernel'

TREE = 'classes.tree'  # the name of the file beside a .cfg file whose network has a tree of classes
_COLLECTIONS = ('params', 'batch_stats', 'frozen')
# What darknet computes with whatever a .cfg file says.
_FIXED = {'mean': (0.0, 0.0, 0.0), 'std': (255.0, 255.0, 255.0), 'backbone.norm_epsilon': 1e-6}


class Entry(NamedTuple):
    """Numbers that lie together in a .weights file, and the variable that holds them.

    variable: the variable's path, its collection first.
    shape: the variable's shape, with an axis for each part that the file places on its own.
    axes: a letter for each of these axes: Height, Width, Inputs and Outputs of a kernel, rows y and columns x of the grid,
        its Cells.
    order: the axes in the file's order.
    """

    variable: str
    shape: tuple[int, ...]
    axes: str
    order: str

    @property
    def permutation(self) -> tuple[int, ...]:
        """For each axis of the file, the index of ours."""
        return tuple(self.axes.index(letter) for letter in self.order)


class Layer(NamedTuple):
    """A layer of darknet.

    kind: 'convolutional', 'route', ...
    options: the keys and values of its section in a .cfg file.
    module: the path of our module that has the weights; '' for a layer without weights.
    entries: the weights, in the order of a .weights file.
    """

    kind: str
    options: dict[str, Any]
    module: str = ''
    entries: tuple[Entry, ...] = ()


def arguments_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the detector's defaults to arguments of `make_detector`, and leaves out 'name'."""
    signature = inspect.signature(DETECTORS[model['name']])
    bound = signature.bind(**{key: model[key] for key in model if key != 'name'})
    bound.apply_defaults()
    whole = {**signature.parameters['backbone'].default, **bound.arguments['backbone']}
    return {**bound.arguments, 'backbone': whole}


def layers(model: Mapping[str, Any], template: Template) -> list[Layer]:
    """Describes a YOLO as darknet sees it.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.

    Returns:
        the layers; darknet numbers them from 0.

    Raises:
        ValueError: darknet has no such network, or would compute something else.
    """
    describe = {'yolo_v1': _yolo_v1, 'yolo_v2': _yolo_v2, 'yolo_v3': _yolo_v3}.get(model['name'])
    if describe is None:
        raise ValueError(f'darknet has no {model["name"]}: give a yolo_v1, yolo_v2 or yolo_v3')
    arguments = arguments_of(model)
    backbone = arguments['backbone']
    for key, value in _FIXED.items():
        given = backbone['norm_epsilon'] if key == 'backbone.norm_epsilon' else arguments[key]
        if not np.array_equal(given, value):
            raise ValueError(f'{key} is {given}: darknet always computes with {value}')
    if backbone['name'] not in (*PLAIN, 'darknet53'):
        raise ValueError(
            f"backbone.name is {backbone['name']!r}: darknet's files have the backbones {', '.join(PLAIN)} and darknet53"
        )
    return describe(arguments, shapes_of(template))


def cfg_text(model: Mapping[str, Any], template: Template, canvas: tuple[int, int]) -> str:
    """Writes the .cfg file of a YOLO for darknet and OpenCV: its layers, nothing about training.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.
        canvas: height and width of the images, pixels.

    Returns:
        the file's text.

    Raises:
        ValueError: darknet has no such network, would compute something else, or cannot run on that canvas.
    """
    described = layers(model, template)
    canvas = tuple(canvas)
    stride = arguments_of(model)['backbone_stride'] * (2 if model['name'] == 'yolo_v1' else 1)
    if canvas[0] % stride or canvas[1] % stride:
        raise ValueError(f'the canvas is {canvas}: darknet needs multiples of {stride}, the stride of this network')
    side = described[-1].options.get('side')
    if side is not None and canvas != (side * stride, side * stride):
        raise ValueError(f'the canvas is {canvas}: this network was made for {side * stride} x {side * stride}')
    net = Layer('net', {'batch': 1, 'height': canvas[0], 'width': canvas[1], 'channels': 3})
    return '\n'.join(
        f'[{layer.kind}]\n' + ''.join(f'{key}={value}\n' for key, value in layer.options.items())
        for layer in (net, *described)
    )


def shapes_of(template: Template) -> dict[str, tuple[int, ...]]:
    """Lists the shapes of a YOLO's variables by their paths; raises ValueError for a norm that darknet lacks."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(template).items()}
    if any(path.endswith('norm/norm/scale') for path in shapes):
        raise ValueError("darknet has no group norm: set the model's norm to 'batch_norm' or 'frozen_batch_norm'")
    return shapes


def _entry(shapes: Shapes, path: str, axes: str = 'O', order: str = 'O') -> Entry:
    """Makes the entry of a variable; finds the variable's collection."""
    variable = next(f'{collection}/{path}' for collection in _COLLECTIONS if f'{collection}/{path}' in shapes)
    return Entry(variable, shapes[variable], axes, order)


def _convolution(shapes: Shapes, module: str, stride: int = 1) -> Layer:
    """Describes a `ConvBlock`, or a convolution with biases and no activation."""
    normalised = f'params/{module}/kernel' not in shapes
    vectors = [f'norm/{name}' for name in ('bias', 'scale', 'mean', 'var')] if normalised else ['bias']
    kernel = _entry(shapes, f'{module}/conv/kernel' if normalised else f'{module}/kernel', 'HWIO', 'OIHW')
    options = {'batch_normalize': 1} if normalised else {}
    options |= {'filters': kernel.shape[3], 'size': kernel.shape[0], 'stride': stride, 'pad': 1}
    options |= {'activation': 'leaky' if normalised else 'linear'}
    return Layer('convolutional', options, module, (*(_entry(shapes, f'{module}/{name}') for name in vectors), kernel))


def _max_pool(stride: int = 2) -> Layer:
    """Describes a `max_pool`."""
    return Layer('maxpool', {'size': 2, 'stride': stride})


def _numbered(shapes: Shapes, prefix: str, suffix: str = '/conv/kernel') -> list[str]:
    """Lists the modules prefix1, prefix2, ... that exist."""
    names = (f'{prefix}{number}' for number in itertools.count(1))
    return list(itertools.takewhile(lambda name: f'params/{name}{suffix}' in shapes, names))


def backbone_layers(shapes: Shapes, name: str, stages: int) -> tuple[list[Layer], list[int]]:
    """Lists the layers of a `backbones.darknet.Darknet`, and the number of each stage's last layer."""
    described, ends = [], []
    for stage in range(1, stages + 1):
        path = f'backbone/stage{stage}'
        if name == 'darknet53':
            described.append(_convolution(shapes, f'{path}_conv', stride=1 if stage == 1 else 2))
            for block in _numbered(shapes, f'{path}_block', '_conv1/conv/kernel'):
                described += [_convolution(shapes, f'{block}_conv{i}') for i in (1, 2)]
                described.append(Layer('shortcut', {'from': -3, 'activation': 'linear'}))
        else:
            strided = name == 'extraction' and stage == 2
            if stage > 1 and not strided:
                described.append(_max_pool())
            described += [
                _convolution(shapes, conv, stride=2 if strided else 1) for conv in _numbered(shapes, f'{path}_conv')
            ]
        ends.append(len(described) - 1)
    return described, ends


def _backbone(arguments: Mapping[str, Any], shapes: Shapes) -> tuple[list[Layer], list[int]]:
    """Lists the layers of a detector's backbone, and the number of each stage's last layer."""
    stages = STRIDES.index(arguments['backbone_stride']) + 1
    return backbone_layers(shapes, arguments['backbone']['name'], stages)


def _yolo_v1(arguments: Mapping[str, Any], shapes: Shapes) -> list[Layer]:
    """Lists the layers of a `detectors.yolo_v1`."""
    described, _ = _backbone(arguments, shapes)
    large = arguments['local_features'] is not None
    if not large:
        described.append(_max_pool())
    for i, conv in enumerate(_numbered(shapes, 'head/conv')):
        described.append(_convolution(shapes, conv, stride=2 if large and i == 1 else 1))
    channels = described[-1].options['filters']
    if large:
        weights = _entry(shapes, 'head/local/kernel', 'yxIO', 'yxOI')  # [h, w, C * 3 * 3, features]
        channels = weights.shape[3]
        options = {'filters': channels, 'size': 3, 'stride': 1, 'pad': 1, 'activation': 'leaky'}
        entries = (_entry(shapes, 'head/local/bias', 'yxO', 'Oyx'), weights)
        described += [
            Layer('local', options, 'head/local', entries),
            Layer('dropout', {'probability': arguments['dropout']}),
        ]

    boxes, classes = arguments['boxes_per_cell'], arguments['num_classes']
    inputs, outputs = shapes['params/head/connected/kernel']
    side = math.isqrt(cells := inputs // channels)
    if side**2 != cells:
        raise ValueError(f'the grid of this yolo_v1 has {cells} cells: darknet has square grids only')
    weights = Entry('params/head/connected/kernel', (cells, channels, outputs), 'CIO', 'OIC')
    entries = (_entry(shapes, 'head/connected/bias'), weights)
    described.append(Layer('connected', {'output': outputs, 'activation': 'linear'}, 'head/connected', entries))
    options = {'classes': classes, 'coords': 4, 'rescore': int(arguments['rescore']), 'side': side, 'num': boxes}
    described.append(Layer('detection', {**options, 'softmax': 0, 'sqrt': 1, **_scales(arguments)}))
    return described


def _yolo_v2(arguments: Mapping[str, Any], shapes: Shapes) -> list[Layer]:
    """Lists the layers of a `detectors.yolo_v2`."""
    described, ends = _backbone(arguments, shapes)
    passthrough = arguments['passthrough_features'] is not None
    convs = _numbered(shapes, 'head/conv')
    if convs and not passthrough:
        described.append(_max_pool(stride=1))
    described += [_convolution(shapes, conv) for conv in convs[:-1]]
    if passthrough:
        coarse = len(described) - 1
        described += [
            Layer('route', {'layers': ends[-2]}),
            _convolution(shapes, 'head/passthrough'),
            Layer('reorg', {'stride': 2}),
            Layer('route', {'layers': f'-1,{coarse}'}),
        ]
    described += [_convolution(shapes, module) for module in (*convs[-1:], 'head/output')]
    sizes, stride = arguments['anchor_sizes'], arguments['backbone_stride']
    options = {
        'anchors': _written(side / stride for size in sizes for side in size),
        'bias_match': 1,
        'classes': arguments['num_classes'],
        'coords': 4,
        'num': len(sizes),
        'softmax': 1,
        'rescore': int(arguments['rescore']),
        **_scales(arguments),
        'absolute': 1,
        'thresh': arguments['ignore_iou'],
    }
    if arguments['tree'] is not None:
        options['tree'] = TREE
    described.append(Layer('region', options))
    return described


def _yolo_v3(arguments: Mapping[str, Any], shapes: Shapes) -> list[Layer]:
    """Lists the layers of a `detectors.yolo_v3`."""
    described, ends = _backbone(arguments, shapes)
    if arguments['small_head']:
        described.append(_max_pool(stride=1))
    levels = arguments['anchor_sizes']
    sizes = [size for level in levels for size in level]
    trunk = None  # number of the layer from which the next finer level continues
    for number in range(len(levels), 0, -1):
        if trunk is not None:
            described += [
                Layer('route', {'layers': trunk}),
                _convolution(shapes, f'head/level{number}_lateral'),
                Layer('upsample', {'stride': 2}),
                Layer('route', {'layers': f'-1,{ends[number - len(levels) - 1]}'}),
            ]
        described += [_convolution(shapes, conv) for conv in _numbered(shapes, f'head/level{number}_trunk')]
        trunk = len(described) - 1
        described += [_convolution(shapes, f'head/level{number}_{name}') for name in ('conv', 'output')]
        count = len(levels[number - 1])
        mask = range((number - 1) * count, number * count)
        options = {
            'mask': _written(mask),
            'anchors': _written(side for size in sizes for side in size),
            'classes': arguments['num_classes'],
            'num': len(sizes),
            'ignore_thresh': arguments['ignore_iou'],
            'truth_thresh': 1,
        }
        described.append(Layer('yolo', options))
    return described


def _scales(arguments: Mapping[str, Any]) -> dict[str, float]:
    """The weights of the losses by darknet's names."""
    return {theirs: arguments[ours] for theirs, ours in SCALES.items()}


def _written(numbers: Iterable[float]) -> str:
    """Writes a list as .cfg files have it: '10,13,16'."""
    return ','.join(f'{number:.9g}' for number in numbers)
