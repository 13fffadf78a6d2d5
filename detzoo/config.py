"""The keys of a config: which there are, what they mean, and what an omitted one is.

A config file sets what its experiment is about and calls `complete`, so that every config that is stored or printed is
whole: two of them can be compared key by key, and each key can be set on the command line.
"""

import functools
import inspect
import json
import operator
import os
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from detzoo.allowed import check_value
from detzoo.backbones import BACKBONES
from detzoo.data.augment import check_recipe
from detzoo.detectors import DETECTORS, MOVED
from detzoo.detectors.network import Arguments
from detzoo.errors import ConfigError, nearest

FILLED_IN = ('num_classes', 'axis_name')  # of a detector's arguments: known from the data and the devices
MUTABLE = ('data.data_dir', 'training.steps', 'training.checkpoint_every', 'training.evaluate_every')


def defaults() -> ml_collections.ConfigDict:
    """Makes a config with every key but the detector's, at its default."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of initialisation, data order, augmentation and sampling

    c.data = ml_collections.ConfigDict()
    c.data.name = 'shapes'  # a data set: 'shapes', 'histology', or a name given to scripts/prepare_data.py
    c.data.data_dir = config_dict.placeholder(str)  # where data sets lie; default: ~/tensorflow_datasets
    c.data.train_split = 'train'  # TFDS notation: 'train[:10%]' is its first tenth
    c.data.validation_split = 'validation'
    c.data.empty_images = (
        True  # whether training uses images without objects; an image with nothing but crowds has none
    )
    c.data.canvases = ((128, 128),)  # (height, width) each; a step draws one; one compilation each
    c.data.canvas_steps = 1  # for how many steps a drawn canvas is kept
    c.data.mask_size = 0  # side of the masks of objects, cells of their boxes' frames; 0: no masks
    c.data.max_boxes = 32  # rows of ground truth an image; what finds no row is counted (gt_dropped)
    c.data.threads = 8  # that decode and augment
    # Proposals in place of an RPN's: a file in COCO's results format, or 'ground_truth', the objects; default: none.
    c.data.train_proposals = config_dict.placeholder(str)
    c.data.validation_proposals = config_dict.placeholder(str)
    c.data.max_proposals = (
        2000  # rows an image, for the best by score; what finds none is counted when the file is read
    )

    c.data.recipe = ml_collections.ConfigDict()
    # How an image comes onto a canvas, in training, evaluation and prediction:
    c.data.recipe.resize = (
        'fit'  # 'fit': aspect ratio kept, top left; 'letterbox': kept, centred; 'stretch': fills the canvas
    )
    c.data.recipe.shorter_side = config_dict.placeholder(int)  # limits of a resized image, pixels; default: none,
    c.data.recipe.longer_side = config_dict.placeholder(int)  # the image is as large as the canvas lets it
    # 'area', or a peer's: 'bilinear' (torchvision, OpenCV), 'pil' (detectron2), 'darknet'; they round sides differently too
    c.data.recipe.interpolation = 'area'
    # How it is varied in training (detzoo/data/augment.py), in this order:
    c.data.recipe.flip = 0.5  # probability of a horizontal flip
    c.data.recipe.rotate90 = False  # turn by a random multiple of 90 degrees
    c.data.recipe.zoom_out = (
        1.0  # largest ratio of a frame of the mean colour around the image, in half of all cases (SSD: 4)
    )
    c.data.recipe.jitter = 0.0  # largest share of the size by which each side is moved in or out (YOLO v1 and v2: 0.2)
    c.data.recipe.iou_crop = False  # crop around objects, with a least overlap drawn (SSD)
    c.data.recipe.aspect_jitter = (
        0.0  # largest share by which width and height vary; lies anywhere (darknet since 2017: 0.3)
    )
    c.data.recipe.scale_range = (1.0, 1.0)  # factors of the scale, drawn log-uniformly; what hangs over is cropped
    c.data.recipe.color_jitter = 0.0  # strength of changes of brightness, contrast and saturation, 0..1
    c.data.recipe.brightness = 0.0  # largest summand on all channels, 0..255 (SSD: 32)
    c.data.recipe.hue = 0.0  # largest shift, in turns of the colour circle (SSD, darknet: 0.1)
    c.data.recipe.saturation = (1.0, 1.0)  # smallest and largest factor (SSD: 0.5, 1.5; darknet: 1/1.5, 1.5)
    c.data.recipe.exposure = (1.0, 1.0)  # likewise, on all channels; SSD calls it contrast
    c.data.recipe.color_probability = 1.0  # with which each of these four happens (SSD: 0.5)

    c.model = ml_collections.ConfigDict()
    c.model.name = config_dict.placeholder(
        str
    )  # a key of detzoo.detectors.DETECTORS; the other keys are the arguments of its make

    c.training = ml_collections.ConfigDict()
    c.training.steps = 1000  # of the whole run
    c.training.batch_size = 16  # images an update, of all devices together
    c.training.accumulate = 1  # micro-batches an update: their losses, each with its own normaliser, are averaged
    c.training.num_replicas = (
        1  # trainings with the seeds seed, seed + 1, ... in one program, each with a workdir seed_S
    )
    c.training.checkpoint_every = 500  # steps
    c.training.evaluate_every = 500  # steps; 0: at the end only

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = 'adamw'  # 'adamw' or 'sgd'
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = 'cosine'  # 'cosine', 'steps' or 'constant'
    c.optimizer.decay_at = (0.67, 0.89)  # with 'steps': shares of the run at which the rate falls to a tenth
    c.optimizer.warmup_steps = 100
    c.optimizer.weight_decay = 1e-4  # not on biases and normalisation
    c.optimizer.momentum = 0.9  # of 'sgd'
    c.optimizer.epsilon = (
        1e-8  # of 'adamw', added to the gradient's root mean square: gradients far below it move nothing
    )
    c.optimizer.clip_norm = 0.0  # limit on the gradient's global norm; 0: none
    c.optimizer.ema_decay = 0.0  # of the moving average of parameters with which is evaluated; 0: none
    c.optimizer.frozen = ''  # regular expression on parameter paths like 'backbone/stem_conv/kernel'

    c.initialize_from = config_dict.placeholder(
        str
    )  # the workdir of another run, or of imported weights, of the same model
    c.initialize_backbone = config_dict.placeholder(str)  # the file of a classifier: torchvision's, for YOLO darknet's

    c.evaluation = ml_collections.ConfigDict()
    c.evaluation.batch_size = 16  # images at once, of all devices together
    c.evaluation.canvases = ()  # as data.canvases, for evaluation and prediction; empty: those
    c.evaluation.exact = False  # each image on a canvas of its own, its pixels not rounded: a compilation for each size
    c.evaluation.divisor = 32  # of the sides of such canvases
    # How masks come into images (core.masks.paste_masks): 'centers', or 'torchvision', for weights that were trained for it.
    c.evaluation.mask_paste = 'centers'
    return c


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills in what a config omits: `defaults`, and the default arguments of its detector.

    Args:
        config: with `model.name` at least.

    Returns:
        a config with every key.

    Raises:
        ConfigError: for a key that does not exist, with the nearest that does; for a value that is not allowed.

    A group of the detector's arguments that it can do without may be None as a whole (model.rpn).
    """
    name = dict(flatten(config)).get('model.name')
    if not isinstance(name, str) or name not in DETECTORS:
        raise ConfigError(f'model.name is {name!r}: {", ".join(DETECTORS)} are known')
    whole = defaults()
    whole.model.update(model_defaults(DETECTORS[name]))
    known, optional = dict(flatten(whole)), optional_arguments(DETECTORS[name])
    for key, value in flatten(config):
        if key not in known and not (value is None and key in optional):
            members = [other for other in known if other.startswith(f'{key}.')]
            if members:
                group = 'None or a group of keys' if key in optional else 'a group of keys'
                raise ConfigError(f'{key} is {value!r}: it must be {group}, such as {members[0]}')
            if (argument := key.removeprefix('model.')) in MOVED:
                raise ConfigError(f'there is no config key {key!r} any more: set model.{MOVED[argument]}')
            raise ConfigError(f'there is no config key {key!r}: the nearest is {nearest(key, known)!r}')
        if value is not None or not (key in optional or known[key] is None):
            try:
                check_value(key, value, example(whole, key))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        whole.update_from_flattened_dict({key: tuples(value)})
    check_thresholds(whole.model, 'model')
    try:
        check_recipe(whole.data.recipe)
    except ValueError as error:
        raise ConfigError(f'data.{error}') from error
    return whole


def check_thresholds(model: ml_collections.ConfigDict, name: str) -> None:
    """Refuses, in a detector's arguments and its groups of them, anchors or RoIs that would be both positive and negative."""
    for key, value in model.items():
        if isinstance(value, ml_collections.ConfigDict):
            check_thresholds(value, f'{name}.{key}')
    if model.get('negative_iou', 0) > model.get('positive_iou', 1):
        raise ConfigError(
            f'{name}.negative_iou is {model.negative_iou!r}: it must be at most {name}.positive_iou, {model.positive_iou!r}'
        )


def model_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the arguments of a detector's `make` with their defaults; one that is None has the annotated type."""
    parameters = inspect.signature(make).parameters.values()
    return typed(make, {x.name: x.default for x in parameters if x.name not in FILLED_IN})


def typed(make: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a placeholder of the annotated type in the place of each argument of a function that is None, in groups too."""
    parameters = inspect.signature(make, eval_str=True).parameters
    whole = {}
    for key, value in arguments.items():
        if isinstance(value, Arguments):
            value = typed(value.make, value)
        whole[key] = config_dict.placeholder(type_of(parameters[key].annotation)) if value is None else value
    return whole


def type_of(hint: Any) -> type:
    """Finds the type of a config's values for an annotation: that of `tuple[int, ...] | None` is tuple."""
    members = [member for member in typing.get_args(hint) if member is not type(None)] if may_be_none(hint) else [hint]
    kind = typing.get_origin(members[0]) or members[0]
    for abstract, concrete in ((str, str), (Mapping, ml_collections.ConfigDict), (Sequence, tuple)):
        if issubclass(kind, abstract):
            return concrete
    return kind


def may_be_none(hint: Any) -> bool:
    """Tells whether an annotation allows None."""
    return type(None) in typing.get_args(hint)


def optional_arguments(make: Callable[..., Any], prefix: str = 'model.') -> set[str]:
    """Lists the keys of a detector's arguments, of groups of them and in groups, that may be None."""
    keys = set()
    for name, parameter in inspect.signature(make, eval_str=True).parameters.items():
        if may_be_none(parameter.annotation):
            keys.add(prefix + name)
        if isinstance(parameter.default, Arguments):
            keys |= optional_arguments(parameter.default.make, f'{prefix}{name}.')
    return keys


def example(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the key's value, or if it is None a value of its type, or None if the type is unknown."""
    *groups, name = key.split('.')
    group = functools.reduce(operator.getitem, groups, config)
    return group.get_type(name)() if group[name] is None else group[name]


def flatten(config: ml_collections.ConfigDict, prefix: str = '') -> list[tuple[str, Any]]:
    """Lists (dotted key, value) of all leaves."""
    leaves = []
    for key in config:
        nested = isinstance(config[key], ml_collections.ConfigDict)
        leaves += flatten(config[key], f'{prefix}{key}.') if nested else [(prefix + key, config[key])]
    return leaves


def to_json(config: ml_collections.ConfigDict) -> str:
    """Writes a config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads what `to_json` wrote; lists come back as tuples."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f'a config is an object, not {content!r}')
    return complete(migrate(ml_collections.ConfigDict(content)))


def migrate(stored: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Brings a stored config of an older detzoo to the keys of today."""
    leaves = dict(flatten(stored))
    # Every mask was pasted as torchvision does; it stays so where masks were trained as torchvision does.
    if leaves.get('model.mask.targets') == 'average' and 'evaluation.mask_paste' not in leaves:
        stored.update(evaluation=dict(mask_paste='torchvision'))
    if any(f'model.{key}' in leaves for key in MOVED) or isinstance(leaves.get('model.backbone'), str):
        stored.model = ml_collections.ConfigDict(group_backbone(stored.model.to_dict()))
    return stored


def group_backbone(model: Mapping[str, Any]) -> dict[str, Any]:
    """Gathers what a detector's arguments said of its backbone, before these were a group.

    Args:
        model: arguments with 'name' and any of `MOVED`; 'backbone' is a name, where there is one.

    Returns:
        arguments with the group 'backbone', which names no backbone where the detector's default was meant.
    """
    rest = {key: value for key, value in model.items() if key not in (*MOVED, 'backbone')}
    moved = {key: value for key, value in model.items() if key in MOVED}
    depth, stages = moved.pop('depth', None), moved.pop('stages', None)
    backbone = model.get('backbone')
    if backbone in ('resnet', None):
        backbone = None if depth is None else f'resnet{depth}'
    if backbone in BACKBONES:  # an argument of another one meant nothing
        own = {key for row in BACKBONES.values() for key in row.own} - set(BACKBONES[backbone].own)
        moved = {key: value for key, value in moved.items() if key not in own}
    strides = {'vgg16': (8, 16), 'mobilenet_v2': (16, 32), 'mobilenet_v3_large': (16, 32)}
    if model['name'] == 'ssd' and backbone is not None:
        rest['backbone_strides'] = strides.get(backbone, (8, 16, 32))
    if model['name'] in ('faster_rcnn', 'mask_rcnn') and backbone == 'mobilenet_v3_large':
        rest['backbone_strides'] = (32, 32)
        moved['reduced_tail'] = False
    if model['name'] == 'yolo_v3' and backbone is not None:
        rest['small_head'] = backbone == 'tiny'
    if stages is not None:
        rest['backbone_stride'] = 2 ** (stages - 1)
    return rest | {'backbone': moved if backbone is None else {'name': backbone, **moved}}


def read_config(path: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads the config.json of a workdir.

    Raises:
        ConfigError: it is none, or not one that this version can read.
        OSError: it cannot be read.
    """
    text = pathlib.Path(path).read_bytes()
    try:
        return from_json(text.decode())
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f'{path} was cut short, or is no config ({error}): put a copy in its place, or remove it and start the '
            'training of this workdir again, with the same config, which writes it anew'
        ) from error


def tuples(value: Any) -> Any:
    """Turns lists, which JSON makes of tuples, back into tuples, however deep."""
    return tuple(map(tuples, value)) if isinstance(value, tuple | list) else value


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Lists the keys that differ, with both values; an absent key is None."""
    old_leaves, new_leaves = (json.loads(json.dumps(dict(flatten(config)))) for config in (old, new))
    keys = sorted(old_leaves.keys() | new_leaves.keys())
    pairs = {key: (old_leaves.get(key), new_leaves.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
