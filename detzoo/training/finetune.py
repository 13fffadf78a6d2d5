"""The state of step 0: drawn variables, or those that another run or a classifier has learnt.

    read_learnt
      another run          -> its variables; with other classes, all but those whose shape depends on the number of classes; of a
                          detector that this one extends, those that both have
      a classifier's file  -> the variables of the backbone that both have
    initial_state          drawn variables, with the learnt ones in their places; state_shapes: its shapes alone

Which variables depend on the classes is known from the detector itself: their shape is another one with one class more.
"""

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from detzoo.config import differences, read_config
from detzoo.errors import ConfigError
from detzoo.files import as_path
from detzoo.inference.predictor import detector_of
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.classes import read_classes
from detzoo.training.optimizer import make_optimizer
from detzoo.types import Detector, ModelState, Params, Segmenter
from detzoo.weights.mapping import Template, check_values, flatten
from detzoo.weights.torchvision import load_backbone

_LISTED = 4  # variables in an error message
_PRETRAINED = 'backbone', 'trunk', 'masked_trunk'  # the parts of a detector that a classifier may fill
_CHANGES = re.compile(r'model\.|data\.recipe\.(resize|interpolation|shorter_side|longer_side)$')


class Learnt(NamedTuple):
    """What a run starts from in place of drawn variables.

    arrays: {path such as 'params/backbone/stem_conv/kernel': array}, in the detector's shapes.
    anew: paths of the variables that start anew although the source has some of the same name.
    changes: {key: (value there, value here)} of the keys that differ, in the model and in how images are resized.
    """

    arrays: Mapping[str, np.ndarray] = {}
    anew: tuple[str, ...] = ()
    changes: Mapping[str, tuple[Any, Any]] = {}


def read_learnt(
    config: ml_collections.ConfigDict, class_names: tuple[str, ...], template: Template, extends: str = ''
) -> Learnt:
    """Reads the run or the classifier that a config starts from, if any.

    Args:
        config: config of the run that is to start; `initialize_from` or `initialize_backbone` names the source.
        class_names: class names of its data.
        template: the shapes of its detector's (params, model_state).
        extends: see `Detector`.

    Returns:
        the learnt variables that fit this run.

    Raises:
        ConfigError: both keys are set; the source is no run or has no checkpoint; or its detector is another one.
        ValueError: the classifier's file cannot be used.
    """
    if config.initialize_from and config.initialize_backbone:
        raise ConfigError('initialize_from and initialize_backbone exclude each other: set one of them to None')
    if config.initialize_from:
        return read_run(config.initialize_from, config, class_names, template, extends)
    if config.initialize_backbone:
        filled = flatten(load_backbone(os.path.expanduser(config.initialize_backbone), *template))
        arrays = {path: leaf for path, leaf in filled.items() if isinstance(leaf, np.ndarray)}
        check_values(arrays, config.initialize_backbone)
        anew = [path for path in filled if path.split('/')[1] in _PRETRAINED and path not in arrays]
        return Learnt(arrays, tuple(anew))
    return Learnt()


def read_run(
    workdir: str | os.PathLike,
    config: ml_collections.ConfigDict,
    class_names: tuple[str, ...],
    template: Template,
    extends: str = '',
) -> Learnt:
    """Reads the variables of another run's newest checkpoint, with the averaged parameters if it has them.

    If the classes or their order differ, all variables whose shape depends on the number of classes start anew.
    `model.backbone.norm` may change between 'batch_norm' and 'frozen_batch_norm': the variables of one fit the other. Of a run of
    the detector that this one extends, the variables that both have are taken. Arguments and errors are those of `read_learnt`.
    """
    workdir = as_path(workdir).expanduser()
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
    source = read_config(workdir / 'config.json')
    if extends and source.model.name == extends:
        anew = (*anew, *(path for path in places.values() if path not in learnt))
        learnt = {path: array for path, array in learnt.items() if path in places.values()}
    arrays = {path: array for path, array in learnt.items() if path not in anew}
    check_fit(arrays, anew, template, str(workdir))
    changes = differences(source, config)
    return Learnt(arrays, anew, {key: pair for key, pair in changes.items() if _CHANGES.match(key)})


def _name(path: str) -> str:
    """A variable's path without its collection, 'params/' or another."""
    return path.partition('/')[2]


def class_dependent(config: ml_collections.ConfigDict, num_classes: int) -> tuple[str, ...]:
    """Lists the paths of a detector's variables whose shape depends on the number of classes."""

    def shapes(count: int) -> dict[str, tuple[int, ...]]:
        detector = detector_of(config, count)
        variables = jax.eval_shape(lambda rng: detector.init(rng, config.data.canvases[0]), jax.random.key(0))
        return {path: leaf.shape for path, leaf in flatten(variables).items()}

    some, more = shapes(num_classes), shapes(num_classes + 1)
    return tuple(path for path in some if some[path] != more[path])


def check_fit(learnt: Mapping[str, np.ndarray], anew: tuple[str, ...], template: Template, source: str) -> None:
    """Checks that learnt variables are those of the detector.

    Args:
        learnt: {path: array}.
        anew: paths of variables that start anew.
        template: the shapes of the detector's (params, model_state).
        source: name of the other run, for the error.

    Raises:
        ConfigError: variables are missing, left over, or of another shape.
    """
    drawn = flatten(template)
    missing = [path for path in drawn if path not in learnt and path not in anew]
    misshapen = [
        f'{path} {learnt[path].shape}, here {drawn[path].shape}'
        for path in drawn
        if path in learnt and learnt[path].shape != drawn[path].shape
    ]
    unused = [path for path in learnt if path not in drawn]
    problems = {'missing there': missing, 'of another shape': misshapen, 'unknown here': unused}
    if any(problems.values()):
        listed = '; '.join(
            f'{kind}: {", ".join(paths[:_LISTED])}{", ..." * (len(paths) > _LISTED)}'
            for kind, paths in problems.items()
            if paths
        )
        raise ConfigError(
            f'initialize_from is {source}, whose detector is another one: {listed}. Copy the model section of its '
            'config unchanged, as configs/finetune_histology.py does'
        )


def replace(params: Params, model_state: ModelState, learnt: Mapping[str, np.ndarray]) -> tuple[Params, ModelState]:
    """Replaces drawn variables by the learnt arrays of the same paths."""
    drawn = flatten((params, model_state))
    variables = flax.traverse_util.unflatten_dict({path: learnt.get(path, drawn[path]) for path in drawn}, sep='/')
    params = variables.pop('params')
    return params, {collection: variables.get(collection, {}) for collection in model_state}


def initial_state(
    config: ml_collections.ConfigDict,
    detector: Detector | Segmenter,
    learnt: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> TrainState:
    """Makes the state of step 0.

    Args:
        config: config of the run.
        detector: its detector.
        learnt: {path: array} of the variables that are not drawn, see `Learnt`.
    """
    init = jax.jit(detector.init, static_argnums=1, compiler_options=parallel.options_to_run_once())
    drawn = init(jax.random.key(config.seed), tuple(config.data.canvases[0]))
    return state_of(config, *replace(*drawn, learnt))


def state_shapes(config: ml_collections.ConfigDict, detector: Detector | Segmenter) -> TrainState:
    """Returns the shapes and dtypes of `initial_state`; nothing is computed."""
    init = jax.jit(detector.init, static_argnums=1)
    drawn = jax.eval_shape(init, jax.random.key(config.seed), tuple(config.data.canvases[0]))
    return jax.eval_shape(lambda *variables: state_of(config, *variables), *drawn)


def state_of(config: ml_collections.ConfigDict, params: Params, model_state: ModelState) -> TrainState:
    """Completes variables to a state of step 0."""
    optimizer = make_optimizer(config.optimizer, config.training.steps, params)

    @jax.jit  # one program: each operation by itself would be compiled
    def rest(params: Params) -> tuple[optax.OptState, Params | None]:
        return optimizer.init(params), jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None

    return TrainState(np.zeros((), np.int32), params, model_state, *rest(params))
