"""Darknet's files for the YOLOs: weights in and out, and the description that darknet and OpenCV run.

    a detector's arguments and the shapes of its variables -> layers, as darknet numbers them, each with its entries
      -> .cfg: the layers' options
      -> .weights: a header, then layer by layer the entries: float32, nothing between them and nothing that names them

One list of layers serves all, so that what is written can be read, and runs elsewhere. The structure comes from the
arguments, every number of channels from the variables.

In a file a convolution has its biases, then the norm's scales, means and variances, then its kernel, OIHW; a locally or
fully connected layer has its biases, then its weights. `PUBLISHED` says with which arguments our detectors are the
networks that darknet's authors published, `model_of_cfg` finds those of others in their .cfg files (see `darknet_cfg`), and
`darknet_parity` runs both sides.
"""

import inspect
import itertools
import math
import os
import pathlib
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from tqdm.auto import tqdm

from detzoo.backbones.darknet import PLAIN, STRIDES
from detzoo.detectors import DETECTORS, make_detector
from detzoo.types import ModelState, Params
from detzoo.weights.darknet_cfg import KNOWN, SCALES, check_same, likely_model, read_cfg
from detzoo.weights.files import what_instead
from detzoo.weights.mapping import Row, Template, checksum, flatten

Shapes = Mapping[str, tuple[int, ...]]  # of our variables by their paths: 'params/head/output/kernel'

_COLLECTIONS = ('params', 'batch_stats', 'frozen')
_SEEN = 'counters/images_seen'  # the variable that lies in a file's header
# What darknet computes with whatever a .cfg file says.
_FIXED = {'mean': (0.0, 0.0, 0.0), 'std': (255.0, 255.0, 255.0), 'backbone.norm_epsilon': 1e-6}
PREDICTION = {
    'pad_value': 0.5,
    'clip_before_nms': False,
}  # its letterbox is gray, its NMS sees boxes that leave the image
_REMEDY = (
    'Give the model the arguments of that file (PUBLISHED has those of known ones, `model_of_cfg` reads them from a .cfg '
    'file), or fetch the file again'
)
_NAMES = {'bias': 'biases', 'scale': 'scales', 'mean': 'means', 'var': 'variances', 'kernel': 'weights'}
_CLASSES = 1000  # of ImageNet


class Entry(NamedTuple):
    """A run of numbers in a .weights file, and the variable that holds them.

    variable: its path, the collection first.
    shape: of the variable, with an axis for each part that has a place of its own in the file.
    axes: a letter for each of these axes: Height, Width, Inputs, Outputs of a kernel, the grid's rows y and columns x, its
        Cells.
    order: the axes in the file's order.
    """

    variable: str
    shape: tuple[int, ...]
    axes: str
    order: str

    @property
    def permutation(self) -> tuple[int, ...]:
        """Which of our axes each of the file's is."""
        return tuple(self.axes.index(letter) for letter in self.order)


class Layer(NamedTuple):
    """A layer of darknet.

    kind: 'convolutional', 'route', ...; options: what its section of a .cfg file says.
    module: the path of our module that has its weights, or ''; entries: those, in the order of a .weights file.
    """

    kind: str
    options: dict[str, Any]
    module: str = ''
    entries: tuple[Entry, ...] = ()


class Published(NamedTuple):
    """A network that has a .cfg file.

    model: the arguments of `make_detector`; canvas: height and width in its .cfg file, pixels.
    """

    model: dict[str, Any]
    canvas: tuple[int, int]


class Described(NamedTuple):
    """A network that a .cfg file describes.

    model: the arguments of `make_detector`, but for those that are its defaults.
    canvas: height and width, pixels.
    letter_box: whether images keep their aspect ratio on it; None: the file does not say.
    """

    model: dict[str, Any]
    canvas: tuple[int, int]
    letter_box: bool | None


def arguments_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments of `make_detector`, without 'name', with the defaults of the detector."""
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
        its layers; darknet numbers them from 0.

    Raises:
        ValueError: if darknet has no such network, or would compute something else.
    """
    describe = {'yolo_v1': _yolo_v1, 'yolo_v2': _yolo_v2, 'yolo_v3': _yolo_v3}.get(model['name'])
    if describe is None:
        raise ValueError(f'darknet has no {model["name"]}, but yolo_v1, yolo_v2 and yolo_v3')
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
    return describe(arguments, _shapes(template))


def cfg_text(model: Mapping[str, Any], template: Template, canvas: tuple[int, int]) -> str:
    """Writes the description of a YOLO that darknet and OpenCV read: its layers, nothing of the optimiser.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.
        canvas: height and width of the images, pixels.

    Returns:
        the text of a .cfg file.

    Raises:
        ValueError: if darknet has no such network, or would compute something else, or not on that canvas.
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


def model_of_cfg(path: str | os.PathLike[str]) -> Described:
    """Finds the detector that a .cfg file describes, and proves that it is that: see `darknet_cfg`.

    Args:
        path: of the file.

    Returns:
        the detector, and how images get on its canvas.

    Raises:
        ValueError: if the file cannot be read as darknet reads it, or describes a network that is none of ours; the message
            names file and line.
    """
    net, theirs = read_cfg(pathlib.Path(path).read_text('utf-8-sig', errors='replace'), str(path))
    model = {**likely_model(theirs, str(path)), **PREDICTION}
    required = {key: model.pop(key) for key in ('name', 'num_classes')}
    defaults = arguments_of(required)
    backbone = {key: value for key, value in model['backbone'].items() if value != defaults['backbone'][key]}
    model = required | {key: value for key, value in model.items() if key != 'backbone' and value != defaults[key]}
    model |= {'backbone': backbone} if backbone else {}
    network = f'our {model["name"]} with the {arguments_of(model)["backbone"]["name"]} backbone'
    try:
        detector = make_detector(**model)
        template = jax.eval_shape(lambda rng: detector.init(rng, net.canvas), jax.random.key(0))
        _, ours = read_cfg(cfg_text(model, template, net.canvas), 'our .cfg file')
    except ZeroDivisionError as error:
        raise ValueError(f'{path}: rounding leaves a layer of {network} no filters. {KNOWN}') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}. {KNOWN}') from error
    check_same(theirs, ours, network=network)
    return Described(model, *net)


def read_weights(path: str | os.PathLike[str], model: Mapping[str, Any], template: Template) -> Template:
    """Reads a .weights file into the variables of a YOLO.

    Args:
        path: of the file, with a header of any version.
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if the file is shorter or longer than the model's weights; or as `layers`.
    """
    values = {row.ours: value for row, value in _read(path, model, template) if row.ours}
    variables = flax.traverse_util.unflatten_dict(
        {variable: values[variable] for variable in flatten(template)}, sep='/'
    )
    return variables.pop('params'), variables


def report(path: str | os.PathLike[str], model: Mapping[str, Any], template: Template) -> list[Row]:
    """Says of each run of numbers in a .weights file where it goes; the arguments and errors are `read_weights`'s."""
    return [row for row, _ in _read(path, model, template)]


def write_weights(
    path: str | os.PathLike[str], model: Mapping[str, Any], params: Params, model_state: ModelState
) -> None:
    """Writes the variables of a YOLO to a .weights file: what `read_weights` reads.

    Args:
        path: of the file.
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        params, model_state: of that detector.

    Raises:
        ValueError: as `layers`.
    """
    described, values = layers(model, (params, model_state)), flatten((params, model_state))
    with open(path, 'wb') as file:
        file.write(struct.pack('<3iQ', 0, 2, 0, int(values.get(_SEEN, 0))))
        for layer in described:
            for entry in layer.entries:
                numbers = np.asarray(values[entry.variable], '<f4').reshape(entry.shape)
                file.write(numbers.transpose(entry.permutation).tobytes())


def resizing(name: str, letter_box: bool | None = None) -> dict[str, str]:
    """How darknet puts images on the canvas of a detector.

    The program of darknet's authors for YOLO v1 (examples/yolo.c) stretches them, that for the others (examples/detector.c)
    letterboxes. The fork of AlexeyAB stretches all, but those of a .cfg file with letter_box=1.

    Args:
        name: of the detector.
        letter_box: of its .cfg file; None: as the authors' programs do.

    Returns:
        keys of `config.data.recipe`.
    """
    letter_box = name != 'yolo_v1' if letter_box is None else letter_box
    return {'resize': 'letterbox' if letter_box else 'stretch', 'interpolation': 'darknet'}


def backbone_variables(path: str | os.PathLike[str], params: Params, model_state: ModelState) -> Template:
    """Reads a classifier of darknet's into the backbone of a YOLO: one that is cut behind the backbone, or a whole one.

    At full width and with all stages these are darknet19_448.conv.23 for YOLO v2 (79,327,120 bytes), darknet53.conv.74 for
    YOLO v3 (162,482,580) and, for YOLO v1, extraction.conv.weights as `darknet partial` cuts it from extraction.weights at
    layer 24 (89,721,616); four bytes more or less are a header of another version. Whole classifiers are 4,100,000 bytes
    longer: their last convolution, which tells ImageNet's 1000 classes apart, is left, and the log says so.

    Args:
        path: of the file.
        params, model_state: of the detector; its backbone lies under 'backbone'.

    Returns:
        (params, model_state) with another backbone, numpy; the arguments stay as they are.

    Raises:
        ValueError: if the backbone is none of darknet's, or of another length than the file.
    """
    shapes, variables = _shapes((params, model_state)), flatten((params, model_state))
    found = _backbone_of(params.get('backbone', {}))
    if found is None:
        raise ValueError(
            f"{path}: the backbone of this model is none of darknet's: give a file of another kind, or a yolo"
        )
    name, stages = found
    described, _ = _backbone(shapes, name, stages)
    weighted = [(index, layer) for index, layer in enumerate(described) if layer.entries]

    content = pathlib.Path(path).read_bytes()
    header, _, _ = _read_header(content, path)
    there, needed = len(content) - header, 4 * _size(described)
    whole = needed + 4 * _CLASSES * (1 + weighted[-1][1].options['filters'])
    if there not in (needed, whole):
        raise ValueError(
            f'{path}: not the weights of this backbone: {there:,} bytes follow its header; the {len(weighted)} '
            f'convolutions of this {name} have {needed:,}, with a classifier of {_CLASSES} classes '
            f"{whole:,}. Set the model's backbone.name, backbone.width and backbone_stride to those of the file, cut the file "
            'behind the backbone by `darknet partial`, or fetch it again'
        )
    if there == whole:
        left = f"{path}: its last convolution, which tells ImageNet's {_CLASSES} classes apart, is left"
        tqdm.write(left, file=sys.stderr)
    numbers = np.frombuffer(content, '<f4', needed // 4, header)
    variables |= {row.ours: value for row, value in _assign(weighted, numbers, variables)}
    variables = flax.traverse_util.unflatten_dict(variables, sep='/')
    return variables.pop('params'), variables


def _backbone_of(modules: Collection[str]) -> tuple[str, int] | None:
    """Tells a `backbones.darknet.Darknet` by the names of its modules: its name, and how many stages it has; None: no such."""
    stages = [stage for stage in range(1, 7) if any(name.startswith(f'stage{stage}_conv') for name in modules)]
    if not stages:
        return None
    if 'stage1_conv' in modules:
        backbone = 'darknet53'
    elif 'stage1_conv1' not in modules:
        backbone = 'extraction'
    else:
        backbone = 'darknet19' if 'stage3_conv2' in modules else 'tiny'
    return backbone, stages[-1]


def _read(
    path: str | os.PathLike[str], model: Mapping[str, Any], template: Template
) -> Iterator[tuple[Row, np.ndarray]]:
    """Finds for each run of numbers in a .weights file its line of the report, and the value of our variable."""
    content = pathlib.Path(path).read_bytes()
    header, seen, transposed = _read_header(content, path)
    described, targets = layers(model, template), flatten(template)
    weighted = [(index, layer) for index, layer in enumerate(described) if layer.entries]
    total, there = _size(described), len(content) - header
    if there < 4 * total:
        ends = itertools.accumulate(_size([layer]) for _, layer in weighted)
        index, layer = next(place for place, end in zip(weighted, ends) if 4 * end > there)
        raise ValueError(
            f'{path}: not the weights of this model: it ends after {there // 4:,} of {total:,} numbers, in layer '
            f'{index}, {layer.kind} ({layer.module}). {_REMEDY}'
        )
    if there > 4 * total:
        index, layer = weighted[-1]
        raise ValueError(
            f'{path}: not the weights of this model: {there - 4 * total:,} bytes follow the {total:,} numbers up '
            f'to the last layer, {index}, {layer.kind} ({layer.module}). {_REMEDY}'
        )
    counter = np.asarray(seen, targets[_SEEN].dtype if _SEEN in targets else np.int64)
    if _SEEN in targets:
        yield Row('header: images seen', _SEEN, (), 'as it is', checksum(counter)), counter
    else:
        yield Row('header: images seen', '', (), f'left: only YOLO v2 counts images; {seen}', ''), counter
    yield from _assign(weighted, np.frombuffer(content, '<f4', total, header), targets, transposed)


def _assign(
    weighted: Iterable[tuple[int, Layer]], numbers: np.ndarray, targets: Mapping[str, Any], transposed: bool = False
) -> Iterator[tuple[Row, np.ndarray]]:
    """Deals numbers [total] out to our variables, layer by layer; those of connected layers may be `transposed`."""
    start = 0
    for index, layer in weighted:
        for entry in layer.entries:
            if transposed and layer.kind == 'connected':
                entry = entry._replace(order=entry.order[1:] + entry.order[0])
            target, end = targets[entry.variable], start + math.prod(entry.shape)
            ours = numbers[start:end].reshape([entry.shape[axis] for axis in entry.permutation])
            ours = ours.transpose(np.argsort(entry.permutation)).reshape(target.shape)
            value = np.array(ours, target.dtype, order='C')
            foreign = f'layer {index} {layer.kind}: {_NAMES[entry.variable.rpartition("/")[2]]}'
            transform = 'as it is' if entry.axes == entry.order else f'{entry.order} -> {entry.axes}'
            yield Row(foreign, entry.variable, value.shape, transform, checksum(value)), value
            start = end


def _size(described: Iterable[Layer]) -> int:
    """Counts the numbers that layers have in a .weights file."""
    return sum(math.prod(entry.shape) for layer in described for entry in layer.entries)


def _read_header(content: bytes, path: str | os.PathLike[str]) -> tuple[int, int, bool]:
    """Reads the start of a .weights file.

    Returns:
        its length in bytes, how many images the network was trained with, and whether the weights of connected layers
        are transposed: the oldest files are so, which have three floats, settings of the training, in place of a version.
    """
    if what := what_instead(content):
        raise ValueError(f'{path}: {what}')
    if content.startswith(b'PK\3\4') or content[5:9] == b'\0\0\0{':
        raise ValueError(f"{path}: not darknet's, but a file of torch or safetensors: give the model that it is of")
    major, minor = struct.unpack_from('<2i', content) if len(content) >= 8 else (0, 0)
    old = major > 1000 or minor > 1000
    counter = '<I' if old or 10 * major + minor < 2 else '<Q'
    length = 12 + struct.calcsize(counter)
    if len(content) < length:
        raise ValueError(
            f'{path}: no .weights file: it has {len(content)} bytes, a header alone {length}. Fetch it again'
        )
    (seen,) = struct.unpack_from(counter, content, 12)
    if seen >= 2**63:
        raise ValueError(
            f'{path}: damaged: its header says that the network was trained with {seen:,} images. Fetch it again'
        )
    return length, seen, old


def _shapes(template: Template) -> dict[str, tuple[int, ...]]:
    """The shapes of a YOLO's variables by their paths; ValueError for those of a norm that darknet has not."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(template).items()}
    if any(path.endswith('norm/norm/scale') for path in shapes):
        raise ValueError("darknet has no group norm: set the model's norm to 'batch_norm' or 'frozen_batch_norm'")
    return shapes


def _entry(shapes: Shapes, path: str, axes: str = 'O', order: str = 'O') -> Entry:
    """The entry of a variable, whichever its collection is."""
    variable = next(f'{collection}/{path}' for collection in _COLLECTIONS if f'{collection}/{path}' in shapes)
    return Entry(variable, shapes[variable], axes, order)


def _convolution(shapes: Shapes, module: str, stride: int = 1) -> Layer:
    """A `ConvBlock`, or a convolution with biases and no activation."""
    normalised = f'params/{module}/kernel' not in shapes
    vectors = [f'norm/{name}' for name in ('bias', 'scale', 'mean', 'var')] if normalised else ['bias']
    kernel = _entry(shapes, f'{module}/conv/kernel' if normalised else f'{module}/kernel', 'HWIO', 'OIHW')
    options = {'batch_normalize': 1} if normalised else {}
    options |= {'filters': kernel.shape[3], 'size': kernel.shape[0], 'stride': stride, 'pad': 1}
    options |= {'activation': 'leaky' if normalised else 'linear'}
    return Layer('convolutional', options, module, (*(_entry(shapes, f'{module}/{name}') for name in vectors), kernel))


def _max_pool(stride: int = 2) -> Layer:
    """A `max_pool`."""
    return Layer('maxpool', {'size': 2, 'stride': stride})


def _numbered(shapes: Shapes, prefix: str, suffix: str = '/conv/kernel') -> list[str]:
    """Lists the modules prefix1, prefix2, ... that have convolutions."""
    names = (f'{prefix}{number}' for number in itertools.count(1))
    return list(itertools.takewhile(lambda name: f'params/{name}{suffix}' in shapes, names))


def _backbone(shapes: Shapes, name: str, stages: int) -> tuple[list[Layer], list[int]]:
    """The layers of a `backbones.darknet.Darknet`, and the number of each stage's last one."""
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


def _described_backbone(arguments: Mapping[str, Any], shapes: Shapes) -> tuple[list[Layer], list[int]]:
    """The layers of a detector's backbone, as `_backbone` has them."""
    stages = STRIDES.index(arguments['backbone_stride']) + 1
    return _backbone(shapes, arguments['backbone']['name'], stages)


def _yolo_v1(arguments: Mapping[str, Any], shapes: Shapes) -> list[Layer]:
    """The layers of a `detectors.yolo_v1`."""
    described, _ = _described_backbone(arguments, shapes)
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
    """The layers of a `detectors.yolo_v2`."""
    described, ends = _described_backbone(arguments, shapes)
    passthrough = arguments['passthrough_features'] is not None
    if not passthrough:
        described.append(_max_pool(stride=1))
    *convs, last = _numbered(shapes, 'head/conv')
    described += [_convolution(shapes, conv) for conv in convs]
    if passthrough:
        coarse = len(described) - 1
        described += [
            Layer('route', {'layers': ends[-2]}),
            _convolution(shapes, 'head/passthrough'),
            Layer('reorg', {'stride': 2}),
            Layer('route', {'layers': f'-1,{coarse}'}),
        ]
    described += [_convolution(shapes, last), _convolution(shapes, 'head/output')]
    sizes, stride = arguments['anchor_sizes'], arguments['backbone_stride']
    options = {
        'anchors': _listed(side / stride for size in sizes for side in size),
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
    described.append(Layer('region', options))
    return described


def _yolo_v3(arguments: Mapping[str, Any], shapes: Shapes) -> list[Layer]:
    """The layers of a `detectors.yolo_v3`."""
    described, ends = _described_backbone(arguments, shapes)
    if arguments['small_head']:
        described.append(_max_pool(stride=1))
    levels = arguments['anchor_sizes']
    sizes = [size for level in levels for size in level]
    trunk = None  # the number of the layer from which the next finer level goes on
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
            'mask': _listed(mask),
            'anchors': _listed(side for size in sizes for side in size),
            'classes': arguments['num_classes'],
            'num': len(sizes),
            'ignore_thresh': arguments['ignore_iou'],
            'truth_thresh': 1,
        }
        described.append(Layer('yolo', options))
    return described


def _scales(arguments: Mapping[str, Any]) -> dict[str, float]:
    """The weights of the losses under darknet's names."""
    return {theirs: arguments[ours] for theirs, ours in SCALES.items()}


def _listed(numbers: Iterable[float]) -> str:
    """'10,13,16': a list in a .cfg file."""
    return ','.join(f'{number:.9g}' for number in numbers)


def _of_cells(*sides: float) -> tuple[tuple[float, float], ...]:
    """Anchors in pixels, of widths and heights in cells of 32 pixels."""
    return tuple((32 * width, 32 * height) for width, height in zip(sides[::2], sides[1::2]))


_COCO_V2 = _of_cells(0.57273, 0.677385, 1.87446, 2.06253, 3.33843, 5.47434, 7.88282, 3.52778, 9.77052, 9.16828)
_VOC_V2 = _of_cells(1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071)
_VOC_V2_TINY = _of_cells(1.08, 1.19, 3.42, 4.41, 6.63, 11.38, 9.42, 5.11, 16.62, 10.52)
_V1_TINY = {
    **PREDICTION,
    'name': 'yolo_v1',
    'backbone': {'name': 'tiny'},
    'head_features': (1024, 256),
    'local_features': None,
}
_V2_TINY = {**PREDICTION, 'name': 'yolo_v2', 'backbone': {'name': 'tiny'}, 'passthrough_features': None}

# By the names of their .cfg files; NAME.weights but for tiny-yolov1.weights.
PUBLISHED = {
    'yolov1': Published({**PREDICTION, 'name': 'yolo_v1', 'num_classes': 20, 'boxes_per_cell': 3}, (448, 448)),
    'yolov1-tiny': Published({**_V1_TINY, 'num_classes': 20}, (448, 448)),
    'yolov2': Published({**PREDICTION, 'name': 'yolo_v2', 'num_classes': 80, 'anchor_sizes': _COCO_V2}, (608, 608)),
    'yolov2-voc': Published({**PREDICTION, 'name': 'yolo_v2', 'num_classes': 20, 'anchor_sizes': _VOC_V2}, (416, 416)),
    'yolov2-tiny': Published(
        {**_V2_TINY, 'num_classes': 80, 'anchor_sizes': _COCO_V2, 'head_features': (1024, 512), 'rescore': False},
        (416, 416),
    ),
    'yolov2-tiny-voc': Published(
        {**_V2_TINY, 'num_classes': 20, 'anchor_sizes': _VOC_V2_TINY, 'head_features': (1024, 1024)}, (416, 416)
    ),
    'yolov3': Published({**PREDICTION, 'name': 'yolo_v3', 'num_classes': 80}, (608, 608)),
    'yolov3-tiny': Published(
        {
            **PREDICTION,
            'name': 'yolo_v3',
            'num_classes': 80,
            'backbone': {'name': 'tiny'},
            'small_head': True,
            'head_features': 256,
            # What its weights were trained with. The .cfg file of today has 10 x 14, 23 x 27 and 37 x 58 on the finer level, a
            # correction of its authors' for trainings to come (github.com/pjreddie/darknet, issue 851).
            'anchor_sizes': (((23, 27), (37, 58), (81, 82)), ((81, 82), (135, 169), (344, 319))),
        },
        (416, 416),
    ),
}
