"""Starting from what was learnt elsewhere: by another run, on the same classes or on others, or by a classifier.

    the other run's variables -> without those whose shape depends on the number of classes, if the classes are others
    a classifier's file       -> the variables of the backbone, where the two are alike
      -> in place of drawn ones

What starts anew is known from the detector itself: the variables that have another shape with one class more.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from detzoo.config import differences, read_config
from detzoo.detectors import make_detector
from detzoo.errors import ConfigError
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import read_classes
from detzoo.types import ModelState, Params
from detzoo.weights.mapping import Template, check_values, flatten
from detzoo.weights.torchvision import load_backbone

_LISTED = 4  # variables in an error message
_CHANGES = re.compile(r'model\.|data\.recipe\.(resize|interpolation|shorter_side|longer_side)$')


class Learnt(NamedTuple):
    """What a run starts from in place of drawn variables.

    arrays: by paths like 'params/backbone/stem_conv/kernel', of the shapes that the detector has.
    anew: the paths of variables that start anew though their like was learnt.
    changes: keys of the model, and of how images are resized, that differ, with both values.
    """

    arrays: Mapping[str, np.ndarray] = {}
    anew: tuple[str, ...] = ()
    changes: Mapping[str, tuple[Any, Any]] = {}


def read_learnt(config: ml_collections.ConfigDict, class_names: tuple[str, ...], template: Template) -> Learnt:
    """Reads the run or the classifier that a config starts from, if any.

    Args:
        config: of the run that is to start; `initialize_from` or `initialize_backbone` says from what.
        class_names: of its data.
        template: the shapes of its detector's (params, model_state).

    Returns:
        what was learnt there, as far as it serves here.

    Raises:
        ConfigError: both are named; there is no such run or checkpoint; or its detector is another one.
        ValueError: the classifier's file cannot be used.
    """
    if config.initialize_from and config.initialize_backbone:
        raise ConfigError('initialize_from and initialize_backbone exclude each other: set one of them to None')
    if config.initialize_from:
        return read_run(config.initialize_from, config, class_names, template)
    if config.initialize_backbone:
        filled = flatten(load_backbone(os.path.expanduser(config.initialize_backbone), *template))
        arrays = {path: leaf for path, leaf in filled.items() if isinstance(leaf, np.ndarray)}
        check_values(arrays, config.initialize_backbone)
        anew = [path for path in filled if path.split('/')[1] in ('backbone', 'trunk') and path not in arrays]
        return Learnt(arrays, tuple(anew))
    return Learnt()


def read_run(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict, class_names: tuple[str, ...], template: Template
) -> Learnt:
    """Reads what another run has learnt: of its newest checkpoint, the averaged parameters where it has them.

    Where the classes or their order are not the same, all variables start anew whose shape depends on how many there are. A norm
    of batches fits a frozen one, and the other way round: `model.norm` may change between the two. The arguments and errors are
    those of `read_learnt`.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if not (workdir / 'config.json').exists():
        raise ConfigError(f'initialize_from is {workdir}, which is not the workdir of a run: it has no config.json')
    try:
        _, variables = Checkpoints(workdir).restore_variables()
    except FileNotFoundError as error:
        raise ConfigError(f'initialize_from: {error}') from error
    learnt = flatten((variables.get('ema_params', variables['params']), variables['model_state']))
    places = {_name(path): path for path in flatten(template)}
    learnt = {places.get(_name(path), path): array for path, array in learnt.items()}
    anew = ()
    if read_classes(workdir / 'classes.json').class_names != class_names:
        anew = class_dependent(config, len(class_names))
    arrays = {path: array for path, array in learnt.items() if path not in anew}
    check_fit(arrays, anew, template, str(workdir))
    changes = differences(read_config(workdir / 'config.json'), config)
    return Learnt(arrays, anew, {key: pair for key, pair in changes.items() if _CHANGES.match(key)})


def _name(path: str) -> str:
    """A variable's path without its collection, 'params/' or another."""
    return path.partition('/')[2]


def class_dependent(config: ml_collections.ConfigDict, num_classes: int) -> tuple[str, ...]:
    """Lists the paths of a detector's variables whose shape depends on the number of classes."""

    def shapes(count: int) -> dict[str, tuple[int, ...]]:
        detector = make_detector(**config.model, num_classes=count)
        variables = jax.eval_shape(lambda rng: detector.init(rng, config.data.canvases[0]), jax.random.key(0))
        return {path: leaf.shape for path, leaf in flatten(variables).items()}

    some, more = shapes(num_classes), shapes(num_classes + 1)
    return tuple(path for path in some if some[path] != more[path])


def check_fit(learnt: Mapping[str, np.ndarray], anew: tuple[str, ...], template: Template, source: str) -> None:
    """Refuses, by a ConfigError, what another detector has learnt.

    Args:
        learnt: arrays by paths.
        anew: paths that need none.
        template: the shapes of the detector's (params, model_state).
        source: what the error calls the other run.
    """
    drawn = flatten(template)
    missing = [path for path in drawn if path not in learnt and path not in anew]
    misshapen = [
        f'{path} {learnt[path].shape}, here {drawn[path].shape}'
        for path in drawn
        if path in learnt and learnt[path].shape != drawn[path].shape
    ]
    unused = [path for path in learnt if path not in drawn]
    problems = {'missing there': missing, 'of another shape': misshapen, 'without a place here': unused}
    if any(problems.values()):
        listed = '; '.join(
            f'{kind}: {", ".join(paths[:_LISTED])}{", ..." * (len(paths) > _LISTED)}'
            for kind, paths in problems.items()
            if paths
        )
        raise ConfigError(
            f'initialize_from is {source}, whose detector is another one: {listed}. Take its model section over '
            'unchanged, as configs/finetune_histology.py does'
        )


def replace(params: Params, model_state: ModelState, learnt: Mapping[str, np.ndarray]) -> tuple[Params, ModelState]:
    """Puts learnt arrays, by their paths, in place of drawn variables."""
    drawn = flatten((params, model_state))
    variables = flax.traverse_util.unflatten_dict({path: learnt.get(path, drawn[path]) for path in drawn}, sep='/')
    params = variables.pop('params')
    return params, {collection: variables.get(collection, {}) for collection in model_state}
