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
import runpy
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from detzoo.allowed import check_value
from detzoo.backbones import BACKBONES
from detzoo.data.augment import SEVERAL_RECORDS, check_recipe
from detzoo.detectors import DETECTORS, MOVED
from detzoo.detectors.network import Arguments
from detzoo.errors import ConfigError, nearest
from detzoo.files import as_path
from detzoo.segmenters import SEGMENTERS

NETWORKS = ChainMap(SEGMENTERS, DETECTORS)  # what model.name may name
FILLED_IN = ('num_classes', 'axis_name')  # of a detector's arguments: known from the data and the devices
_MUTABLE_TRAINING = ('steps', 'checkpoint_every', 'evaluate_every', 'early_stopping_patience')
MUTABLE = ('data.data_dir', *(f'training.{key}' for key in _MUTABLE_TRAINING))
# Keys that may be None: training then takes them from its data (`training.from_data`), in this order.
FROM_DATA = ('data.canvases', 'data.max_boxes', 'model.anchor_sizes', 'model.rpn.anchor_sizes', 'training.steps')


def defaults() -> ml_collections.ConfigDict:
    """Makes a config with every key but the detector's, at its default. The groups of keys follow below."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # seed of initialisation, data order, augmentation and sampling
    c.data = data_defaults()
    c.model = ml_collections.ConfigDict()
    # A key of DETECTORS or SEGMENTERS; the other keys of the group are the arguments of its make.
    c.model.name = config_dict.placeholder(str)
    c.training = training_defaults()
    c.optimizer = optimizer_defaults()
    # The workdir of another run, or of imported weights, of the same model.
    c.initialize_from = config_dict.placeholder(str)
    c.initialize_backbone = config_dict.placeholder(str)  # the file of a classifier: torchvision's, for YOLO darknet's
    c.evaluation = evaluation_defaults()
    return c


def data_defaults() -> ml_collections.ConfigDict:
    """Makes the group `data`: what is learnt from."""
    c = ml_collections.ConfigDict()
    c.name = 'shapes'  # a data set: 'shapes', 'histology', or a name given to detzoo prepare
    c.data_dir = config_dict.placeholder(str)  # where data sets lie; default: ~/tensorflow_datasets
    c.train_split = 'train'  # TFDS notation: 'train[:10%]' is its first tenth
    c.validation_split = 'validation'
    # Images of which training uses the label alone, that of their first object (YOLO9000): a split, and the name of another data
    # set; default: none, of the same data.
    c.labelled_split = config_dict.placeholder(str)
    c.labelled_name = config_dict.placeholder(str)
    c.labelled_share = 0.8  # share of these images in training; in the paper they are four to one
    c.class_names = ()  # classes of the detector, among which the data's are found by name; default: the data's own
    c.renamed = ()  # (name in the data, name among class_names) of classes that have two names
    c.empty_images = True  # whether training uses images without objects; an image with nothing but crowds has none
    # (height, width) each; a step draws one; one compilation each. None: one that suits the sizes of images and objects.
    c.canvases = ((128, 128),)
    c.canvas_steps = 1  # for how many steps a drawn canvas is kept
    c.mask_size = 0  # side of the masks of objects, cells of their boxes' frames; 0: no masks
    # Rows of ground truth an image; what finds no row is counted (gt_dropped). None: as many as an image has at most.
    c.max_boxes = 32
    c.threads = 8  # threads that decode and augment
    # Proposals in place of an RPN's: a file in COCO's results format, or 'ground_truth', the objects; default: none.
    c.train_proposals = config_dict.placeholder(str)
    c.validation_proposals = config_dict.placeholder(str)
    c.max_proposals = 2000  # rows an image, for the best by score; what finds none is counted when the file is read
    c.proposal_mask_size = 0  # side of the masks of proposals, cells of their boxes' frames; 0: no masks
    c.recipe = recipe_defaults()
    return c


def recipe_defaults() -> ml_collections.ConfigDict:
    """Makes the group `data.recipe`: how images come onto a canvas, and how they are varied."""
    c = ml_collections.ConfigDict()
    # How an image comes onto a canvas, in training, evaluation and prediction:
    c.resize = 'fit'  # 'fit': aspect ratio kept, top left; 'letterbox': kept, centred; 'stretch': fills the canvas
    c.shorter_side = config_dict.placeholder(int)  # limits of a resized image, pixels; default: none,
    c.longer_side = config_dict.placeholder(int)  # the image is as large as the canvas lets it
    # 'area', or a peer's: 'bilinear' (torchvision, OpenCV), 'pil' (detectron2), 'darknet'; they round sides differently too
    c.interpolation = 'area'
    # How it is varied in training (detzoo/data/augment.py), in this order:
    c.flip = 0.5  # probability of a horizontal flip
    c.rotate90 = False  # turn by a random multiple of 90 degrees
    c.zoom_out = 1.0  # largest ratio of a frame of the mean colour around the image, in half of all cases (SSD: 4)
    c.jitter = 0.0  # largest share of the size by which each side is moved in or out (YOLO v1 and v2: 0.2)
    c.iou_crop = False  # crop around objects, with a least overlap drawn (SSD)
    c.aspect_jitter = 0.0  # largest share by which width and height vary; lies anywhere (darknet since 2017: 0.3)
    # Limits of a factor of the scale; what hangs over is cropped. Large-scale jitter with a crop of fixed size (2012.07177):
    # (0.1, 2.0) with uniform_scale, resize 'fit', no limits of sides, and one canvas.
    c.scale_range = (1.0, 1.0)
    c.uniform_scale = False  # draw the factor uniformly, not log-uniformly
    c.color_jitter = 0.0  # strength of changes of brightness, contrast and saturation, 0..1
    c.brightness = 0.0  # largest summand on all channels, 0..255 (SSD: 32)
    c.hue = 0.0  # largest shift, in turns of the colour circle (SSD, darknet: 0.1)
    c.saturation = (1.0, 1.0)  # smallest and largest factor (SSD: 0.5, 1.5; darknet: 1/1.5, 1.5)
    c.exposure = (1.0, 1.0)  # likewise, on all channels; SSD calls it contrast
    c.color_probability = 1.0  # probability of each of these four (SSD: 0.5)
    # What is then made of one image or several (detzoo/data/compose.py), in this order; data.max_boxes counts for all of them:
    c.mosaic = 0.0  # probability of parts of four images in the quarters of the canvas (YOLOv4)
    c.copy_paste = 0.0  # probability of pasting objects of another image, cut out by their masks
    c.mixup = 0.0  # probability of blending with another image
    c.cutout = 0.0  # probability of erasing a square
    c.cutout_side = 0.5  # length of the square, as a share of the image's shorter side
    c.tight_boxes = False  # fit the boxes of cropped objects to their masks; always so if one of these four is on
    return c


def training_defaults() -> ml_collections.ConfigDict:
    """Makes the group `training`: how long a run is."""
    c = ml_collections.ConfigDict()
    c.steps = 1000  # updates of the whole run; None: as many as suit the number of images
    c.batch_size = 16  # images an update, of all devices together
    c.accumulate = 1  # micro-batches an update: their losses, each with its own normaliser, are averaged
    c.num_replicas = 1  # trainings with the seeds seed, seed + 1, ... in one program, each with a workdir seed_S
    c.checkpoint_every = 500  # steps
    c.evaluate_every = 500  # steps; 0: at the end only
    # Metric whose best checkpoint is kept beside the newest: what follows 'validation/' in metrics.jsonl, like 'AP'; default: none.
    c.keep_best = config_dict.placeholder(str)
    c.early_stopping_patience = 0  # evaluations in a row without a better keep_best, after which the run ends; 0: none
    c.skip_nonfinite = (
        0  # updates in a row that are skipped if their loss or gradient is not finite; one more ends the run
    )
    return c


def optimizer_defaults() -> ml_collections.ConfigDict:
    """Makes the group `optimizer`: how parameters are updated."""
    c = ml_collections.ConfigDict()
    c.name = 'adamw'  # 'adamw' or 'sgd'
    c.learning_rate = 1e-3
    c.schedule = 'cosine'  # 'cosine', 'steps' or 'constant'
    c.decay_at = (0.67, 0.89)  # with 'steps': shares of the run at which the rate falls to a tenth
    c.warmup_steps = 100
    c.weight_decay = 1e-4  # not on biases and normalisation
    c.momentum = 0.9  # momentum of 'sgd'
    c.epsilon = (
        1e-8  # with 'adamw': added to the gradient's root mean square, so that gradients far below it move nothing
    )
    c.clip_norm = 0.0  # limit on the gradient's global norm; 0: none
    c.ema_decay = 0.0  # decay of the moving average of parameters, which is evaluated; 0: none
    c.frozen = ''  # regular expression on parameter paths like 'backbone/stem_conv/kernel'
    return c


def evaluation_defaults() -> ml_collections.ConfigDict:
    """Makes the group `evaluation`: how a checkpoint is evaluated."""
    c = ml_collections.ConfigDict()
    c.batch_size = 16  # images at once, of all devices together
    c.canvases = ()  # as data.canvases, for evaluation and prediction; empty: those
    c.exact = False  # each image on a canvas of its own, its pixels not rounded: a compilation for each size
    c.divisor = 32  # number of which the sides of such canvases are multiples
    # How masks come into images (core.masks.paste_masks): 'centers', or 'torchvision', for weights that were trained for it.
    c.mask_paste = 'centers'
    c.min_pixels = 1  # size of the smallest connected component of a segmenter's pixels that is an instance
    # Whether detectors are evaluated as segmenters always are: count of objects; by masks panoptic quality and classes of pixels.
    c.panoptic = False
    c.panoptic_score = 0.5  # lowest score of the detections that count for these three
    return c


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills in what a config omits: `defaults`, and the default arguments of its detector.

    Args:
        config: config that sets at least `model.name`.

    Returns:
        a config with every key.

    Raises:
        ConfigError: for a key that does not exist, with the nearest that does; for a value that is not allowed.

    A group of the detector's arguments that it can do without may be None as a whole (model.rpn). So may the keys of FROM_DATA.
    """
    name = dict(flatten(config)).get('model.name')
    if not isinstance(name, str) or name not in NETWORKS:
        raise ConfigError(f'model.name is {name!r}: {", ".join(NETWORKS)} are known')
    whole = defaults()
    whole.model.update(model_defaults(NETWORKS[name]))
    known, optional = dict(flatten(whole)), optional_arguments(NETWORKS[name])
    for key, value in flatten(config):
        if key not in known and not (value is None and key in optional):
            members = [other for other in known if other.startswith(f'{key}.')]
            if members:
                group = 'None or a group of keys' if key in optional else 'a group of keys'
                raise ConfigError(f'{key} is {value!r}: it must be {group}, such as {members[0]}')
            raise unknown_key(key, known)
        if value is not None or not (key in optional or key in FROM_DATA or known[key] is None):
            try:
                check_value(key, value, example(whole, key))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        # None alone would leave the key without a type, and --config.KEY could not set it.
        typed_none = value is None and known.get(key) is not None
        whole.update_from_flattened_dict(
            {key: config_dict.placeholder(type(known[key])) if typed_none else tuples(value)}
        )
    check_thresholds(whole.model, 'model')
    try:
        check_recipe(whole.data.recipe)
    except ValueError as error:
        raise ConfigError(f'data.{error}') from error
    check_images(whole.data)
    return whole


def check_images(data: ml_collections.ConfigDict) -> None:
    """Refuses samples of several images where something is known of a whole image alone: its proposals, or its label."""
    several = [key for key in SEVERAL_RECORDS if data.recipe[key] > 0]
    alone = [key for key in ('train_proposals', 'labelled_split') if data[key] is not None]
    if several and alone:
        raise ConfigError(
            f'data.recipe.{several[0]} is {data.recipe[several[0]]!r}, and data.{alone[0]} is {data[alone[0]]!r}, which '
            f'tells of one image, where {several[0]} shows others too: set one of them to its default'
        )
    if len(alone) > 1:
        raise ConfigError(f'data.{alone[0]} and data.{alone[1]} exclude one another: set one of them to None')


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


def detector_defaults(name: str) -> dict[str, Any]:
    """Returns the default arguments of a detector or segmenter, a key of NETWORKS, as {dotted key of the config: value}."""
    return dict(flatten(ml_collections.ConfigDict(dict(model=model_defaults(NETWORKS[name])))))


def missing(config: ml_collections.ConfigDict) -> list[str]:
    """Lists the keys of a config that are None and taken from its data, in the order of FROM_DATA."""
    leaves = dict(flatten(config))
    return [key for key in FROM_DATA if key in leaves and leaves[key] is None]


def check_whole(config: ml_collections.ConfigDict) -> None:
    """Refuses a config that leaves keys to its data, where no data are read.

    Raises:
        ConfigError: keys are None; the message names them.
    """
    if keys := missing(config):
        raise ConfigError(f'{", ".join(keys)}: None means that training takes it from the data, so set it here')


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
    try:
        return from_json(as_path(path).read_bytes().decode())
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


def load_config(name_or_path: str, changes: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """Loads a config, and changes some of its keys.

    Args:
        name_or_path: a config of detzoo ('mask_rcnn_shapes') or the path of a file, with a variant after a colon
            ('mask_rcnn_shapes:c4'); see `find_file`.
        changes: values by dotted keys, for example {'training.steps': 500}.

    Returns:
        a config with every key.

    Raises:
        ConfigError: there is no such config, variant or key, or a value is not allowed.
    """
    path, argument = find_file('configs', name_or_path)
    content = runpy.run_path(str(path))
    if 'get_config' not in content:
        raise ConfigError(f'{path} is not a config: it has no function get_config')
    config = content['get_config'](argument) if argument else content['get_config']()
    for key, value in (changes or {}).items():
        set_key(config, key, value)
    return complete(config)


def find_file(kind: str, name_or_path: str) -> tuple[pathlib.Path, str]:
    """Finds a config or an experiment.

    A path is looked up in the current folder first. A name, or a path like 'configs/ssd_shapes.py' that is not there, is
    looked up among those of detzoo.

    Args:
        kind: 'configs' or 'experiments'.
        name_or_path: a name or a path, with an argument after the first colon.

    Returns:
        the path of the file, and the argument, '' if there is none.

    Raises:
        ConfigError: there is no such file; the message has the nearest name.
    """
    name, _, argument = name_or_path.partition(':')
    path = pathlib.Path(name).expanduser()
    if path.suffix == '.py' and path.is_file():
        return path, argument
    known = {file.stem: file for file in sorted(own_folder(kind).glob('*.py'))}
    if path.stem in known and name in (path.stem, path.name, f'{kind}/{path.name}'):
        return known[path.stem], argument
    raise ConfigError(
        f'there is no {kind[:-1]} {name!r}: give a name, of which the nearest is {nearest(path.stem, known)!r}, '
        'or the path of a file'
    )


def own_folder(kind: str) -> pathlib.Path:
    """The folder of detzoo's own 'configs' or 'experiments': inside an installed package, beside it in a checkout."""
    package = pathlib.Path(__file__).parent
    return package / kind if (package / kind).is_dir() else package.parent / kind


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key.

    Raises:
        ConfigError: there is no such key, or it cannot have a value of this type.
    """
    group, _, name = check_key(config, key).rpartition('.')
    try:
        functools.reduce(operator.getitem, group.split('.') if group else (), config).update({name: value})
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{key} cannot be {value!r}: {error}') from error


def check_key(config: ml_collections.ConfigDict, key: str) -> str:
    """Returns the dotted key if a config has it.

    Raises:
        ConfigError: it has none of this name; the message has the nearest.
    """
    known = dict(flatten(config))
    if key not in known:
        raise unknown_key(key, known)
    return key


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """Makes the error about a key that does not exist: it has the key's new name, or else the nearest of those that do."""
    if (argument := key.removeprefix('model.')) in MOVED:
        return ConfigError(f'there is no config key {key!r} any more: set model.{MOVED[argument]}')
    return ConfigError(f'there is no config key {key!r}: the nearest is {nearest(key, known)!r}')
