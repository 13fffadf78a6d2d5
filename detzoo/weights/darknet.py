"""Darknet's .weights files, in and out, and the networks that its authors published.

    .weights: a header, then layer by layer the numbers, float32, with nothing between them and no names
      read_weights:  a file                 -> the variables of a YOLO, and a report
      write_weights: the variables of a YOLO -> a file
      backbone_variables: a classifier's file -> the backbone of a YOLO

`darknet_layers` lists the layers of a detector in darknet's order. `PUBLISHED` has the arguments with which our detectors are
the networks of darknet's authors; `model_of_cfg` finds those of other networks in their .cfg files (see `darknet_cfg`). The
module `parity.darknet` runs both sides.
"""

import itertools
import math
import os
import pathlib
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from tqdm.auto import tqdm

from detzoo.detectors import make_detector
from detzoo.files import new_file
from detzoo.types import ModelState, Params
from detzoo.weights.darknet_cfg import KNOWN, CfgLayer, check_same, likely_model, read_cfg
from detzoo.weights.darknet_layers import Layer, arguments_of, backbone_layers, cfg_text, layers, shapes_of
from detzoo.weights.darknet_tree import find_tree, read_tree
from detzoo.weights.files import read_bytes, what_instead
from detzoo.weights.mapping import Filled, Row, Template, checksum, flatten

# Its letterbox is gray, and its NMS sees boxes that leave the image.
PREDICTION = {'pad_value': 0.5, 'clip_before_nms': False}
_SEEN = 'counters/images_seen'  # the variable that lies in a file's header
_REMEDY = (
    'Give the model the arguments of that file (PUBLISHED has those of known files, `model_of_cfg` reads them from a .cfg '
    'file), or fetch the file again'
)
_NAMES = {'bias': 'biases', 'scale': 'scales', 'mean': 'means', 'var': 'variances', 'kernel': 'weights'}
_CLASSES = 1000  # ImageNet's


class Published(NamedTuple):
    """A network of darknet's authors.

    model: the arguments of `make_detector`.
    canvas: height and width in the network's .cfg file, pixels.
    """

    model: dict[str, Any]
    canvas: tuple[int, int]


class Described(NamedTuple):
    """A network that a .cfg file describes.

    model: the arguments of `make_detector`, without those that are its defaults.
    canvas: height and width, pixels.
    letter_box: whether images keep their aspect ratio on the canvas; None if the file does not say.
    """

    model: dict[str, Any]
    canvas: tuple[int, int]
    letter_box: bool | None


def model_of_cfg(path: str | os.PathLike[str]) -> Described:
    """Finds the detector that a .cfg file describes, and checks that it computes the same (see `darknet_cfg`).

    Args:
        path: the .cfg file.

    Returns:
        the detector, and how images are put on its canvas.

    Raises:
        ValueError: darknet could not read the file either, or it describes a network that none of our detectors is; the
            message names file and line.
    """
    net, theirs = read_cfg(pathlib.Path(path).read_text('utf-8-sig', errors='replace'), str(path))
    model = {**likely_model(theirs, str(path)), **PREDICTION, **tree_of_cfg(theirs, path)}
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


def tree_of_cfg(described: Sequence[CfgLayer], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the tree of classes that the last layer of a .cfg file names: arguments of `make_detector`, none without a tree."""
    if not described[-1].computed.get('tree'):
        return {}
    name, _ = described[-1].section.options['tree']
    return {'tree': read_tree(find_tree(path, name)).parents, 'descent': 'darknet'}


def read_weights(path: str | os.PathLike[str], model: Mapping[str, Any], template: Template) -> Filled:
    """Reads a .weights file: `parse_weights` of its bytes."""
    return parse_weights(read_bytes(path), model, template, source=path)


def parse_weights(
    content: bytes, model: Mapping[str, Any], template: Template, *, source: str | os.PathLike[str]
) -> Filled:
    """Turns the bytes of a .weights file into the variables of a YOLO.

    Args:
        content: bytes of the file, with a header of any version.
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.
        source: name of the file in error messages.

    Returns:
        variables like the template, numpy; and the report, with a row for each run of numbers in the file.

    Raises:
        ValueError: the file is damaged, or shorter or longer than the model's weights; or as `layers`.
    """
    header = _read_header(content, source)
    described, targets = layers(model, template), flatten(template)
    weighted = [(index, layer) for index, layer in enumerate(described) if layer.entries]
    total = _size(described)
    _check_length(len(content) - header.length, weighted, total, source)
    counter = np.asarray(header.seen, targets[_SEEN].dtype if _SEEN in targets else np.int64)
    values = {_SEEN: counter}
    if _SEEN in targets:
        rows = [Row('header: images seen', _SEEN, (), 'as it is', checksum(counter))]
    else:
        rows = [Row('header: images seen', '', (), f'left: only YOLO v2 counts images; {header.seen}', '')]
    numbers = np.frombuffer(content, '<f4', total, header.length)
    for row, value in _assign(weighted, numbers, targets, header.transposed):
        rows.append(row)
        values[row.ours] = value
    return Filled(_unflattened({path: values[path] for path in targets}), rows)


def write_weights(
    path: str | os.PathLike[str], model: Mapping[str, Any], params: Params, model_state: ModelState
) -> None:
    """Writes the variables of a YOLO to a .weights file, complete or not at all; `read_weights` is the inverse.

    Args:
        path: the file to write; it replaces one that exists.
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        params, model_state: that detector's variables.

    Raises:
        ValueError: as `layers`.
    """
    described, values = layers(model, (params, model_state)), flatten((params, model_state))
    with new_file(path) as scratch, open(scratch, 'wb') as file:
        file.write(struct.pack('<3iQ', 0, 2, 0, int(values.get(_SEEN, 0))))
        for layer in described:
            for entry in layer.entries:
                numbers = np.asarray(values[entry.variable], '<f4').reshape(entry.shape)
                file.write(numbers.transpose(entry.permutation).tobytes())


def resizing(name: str, letter_box: bool | None = None) -> dict[str, str]:
    """Says how darknet puts images on a detector's canvas.

    The authors' program for YOLO v1 (examples/yolo.c) stretches them, the one for the others (examples/detector.c)
    letterboxes. AlexeyAB's fork stretches them unless the .cfg file has letter_box=1.

    Args:
        name: name of the detector.
        letter_box: what the .cfg file says; None to do as the authors' programs do.

    Returns:
        keys of `config.data.recipe`, with their values.
    """
    letter_box = name != 'yolo_v1' if letter_box is None else letter_box
    return {'resize': 'letterbox' if letter_box else 'stretch', 'interpolation': 'darknet'}


def backbone_variables(path: str | os.PathLike[str], params: Params, model_state: ModelState) -> Template:
    """Reads one of darknet's classifiers, whole or cut after the backbone, into the backbone of a YOLO.

    At full width and with all stages these are darknet19_448.conv.23 for YOLO v2 (79,327,120 bytes), darknet53.conv.74 for
    YOLO v3 (162,482,580), and for YOLO v1 extraction.conv.weights, which `darknet partial` cuts from extraction.weights at
    layer 24 (89,721,616). A header of another version is four bytes longer or shorter. Whole classifiers are 4,100,000 bytes
    longer: their last convolution, which classifies ImageNet's 1000 classes, is left, and standard error says so.

    Args:
        path: the classifier's file.
        params, model_state: the detector's variables; its backbone lies under 'backbone'.

    Returns:
        (params, model_state) with another backbone, numpy; the arguments are not changed.

    Raises:
        ValueError: the backbone is not one of darknet's, or the file is not as long as its weights.
    """
    shapes, variables = shapes_of((params, model_state)), flatten((params, model_state))
    found = _backbone_of(params.get('backbone', {}))
    if found is None:
        raise ValueError(
            f"{path}: the backbone of this model is not one of darknet's: give another kind of file, or a yolo"
        )
    name, stages = found
    described, _ = backbone_layers(shapes, name, stages)
    weighted = [(index, layer) for index, layer in enumerate(described) if layer.entries]

    content = read_bytes(path)
    header = _read_header(content, path).length
    there, needed = len(content) - header, 4 * _size(described)
    whole = needed + 4 * _CLASSES * (1 + weighted[-1][1].options['filters'])
    if there not in (needed, whole):
        raise ValueError(
            f'{path}: not the weights of this backbone: {there:,} bytes follow its header; the {len(weighted)} '
            f'convolutions of this {name} have {needed:,}, with a classifier of {_CLASSES} classes '
            f"{whole:,}. Set the model's backbone.name, backbone.width and backbone_stride to those of the file, cut the file "
            'after the backbone with `darknet partial`, or fetch it again'
        )
    if there == whole:
        left = f"{path}: its last convolution, which classifies ImageNet's {_CLASSES} classes, is left"
        tqdm.write(left, file=sys.stderr)
    numbers = np.frombuffer(content, '<f4', needed // 4, header)
    variables |= {row.ours: value for row, value in _assign(weighted, numbers, variables)}
    return _unflattened(variables)


def _backbone_of(modules: Collection[str]) -> tuple[str, int] | None:
    """Finds a `backbones.darknet.Darknet`'s name and number of stages by its modules' names; None if it is not one."""
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


def _check_length(
    there: int, weighted: Sequence[tuple[int, Layer]], total: int, source: str | os.PathLike[str]
) -> None:
    """Refuses a file with other than `total` numbers in the `there` bytes after its header; names the layer where it ends."""
    if there < 4 * total:
        ends = itertools.accumulate(_size([layer]) for _, layer in weighted)
        index, layer = next(place for place, end in zip(weighted, ends) if 4 * end > there)
        raise ValueError(
            f'{source}: not the weights of this model: it ends after {there // 4:,} of {total:,} numbers, in layer '
            f'{index}, {layer.kind} ({layer.module}). {_REMEDY}'
        )
    if there > 4 * total:
        index, layer = weighted[-1]
        raise ValueError(
            f'{source}: not the weights of this model: {there - 4 * total:,} bytes follow the {total:,} numbers up '
            f'to the last layer, {index}, {layer.kind} ({layer.module}). {_REMEDY}'
        )


def _unflattened(variables: Mapping[str, Any]) -> Template:
    """Makes (params, model_state) from variables by their paths."""
    tree = flax.traverse_util.unflatten_dict(variables, sep='/')
    return tree.pop('params'), tree


def _assign(
    weighted: Iterable[tuple[int, Layer]], numbers: np.ndarray, targets: Mapping[str, Any], transposed: bool = False
) -> Iterator[tuple[Row, np.ndarray]]:
    """Gives numbers [total] to our variables, layer by layer; connected layers' weights may be `transposed`."""
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
    """Counts the numbers of layers in a .weights file."""
    return sum(math.prod(entry.shape) for layer in described for entry in layer.entries)


class _Header(NamedTuple):
    """The start of a .weights file.

    length: bytes.
    seen: how many images the network was trained with.
    transposed: whether the weights of connected layers are transposed, as in the oldest files, which have three floats,
        settings of the training, in place of a version.
    """

    length: int
    seen: int
    transposed: bool


def _read_header(content: bytes, path: str | os.PathLike[str]) -> _Header:
    """Reads the start of a .weights file.

    Raises:
        ValueError: it is another kind of file, or damaged.
    """
    if what := what_instead(content):
        raise ValueError(f'{path}: {what}')
    if content.startswith(b'PK\3\4') or content[5:9] == b'\0\0\0{':
        raise ValueError(
            f"{path}: not darknet's, but a file of torch or safetensors: give the model that it belongs to"
        )
    major, minor = struct.unpack_from('<2i', content) if len(content) >= 8 else (0, 0)
    old = major > 1000 or minor > 1000
    counter = '<I' if old or 10 * major + minor < 2 else '<Q'
    length = 12 + struct.calcsize(counter)
    if len(content) < length:
        raise ValueError(
            f'{path}: not a .weights file: it has {len(content)} bytes, fewer than a header ({length}). Fetch it again'
        )
    (seen,) = struct.unpack_from(counter, content, 12)
    if seen >= 2**63:
        raise ValueError(
            f'{path}: damaged: its header says that the network was trained with {seen:,} images. Fetch it again'
        )
    return _Header(length, seen, old)


def _of_cells(*sides: float) -> tuple[tuple[float, float], ...]:
    """Converts anchors' widths and heights from cells of 32 pixels to pixels."""
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

# By the names of their .cfg files. The weights are NAME.weights, except tiny-yolov1.weights.
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
            # The anchors that its weights were trained with. Today's .cfg file has 10 x 14, 23 x 27 and 37 x 58 on the finer
            # level, its authors' correction for later trainings (github.com/pjreddie/darknet, issue 851).
            'anchor_sizes': (((23, 27), (37, 58), (81, 82)), ((81, 82), (135, 169), (344, 319))),
        },
        (416, 416),
    ),
}
