"""Starting where another run stands, on the same classes or on others.

    the other run's variables -> without those whose shape depends on the number of classes, if the classes are others
                              -> in place of the drawn ones

What starts anew is known from the detector itself: the variables that have another shape with one class more.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from detzoo.config import ConfigError, differences, from_json
from detzoo.detectors import make_detector
from detzoo.training.checkpoint import Checkpoints
from detzoo.types import ModelState, Params
from detzoo.weights.mapping import flatten

_LISTED = 4  # variables in an error message


def read_learnt(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict, class_names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads what a run has learnt, as far as it serves another one.

    Args:
        workdir: of the run; of the newest checkpoint its averaged parameters are taken where it has them.
        config: of the other one.
        class_names: of the other one.

    Returns:
        arrays by paths like 'params/backbone/stem_conv/kernel', and the paths of the other run's variables that start
        anew: where the classes or their order are not the same, all whose shape depends on how many there are.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').exists():
        raise ConfigError(f'initialize_from is {workdir}, which is not the workdir of a run: it has no config.json')
    checkpoints = Checkpoints(workdir)
    try:
        _, variables = checkpoints.restore_variables()
    except FileNotFoundError as error:
        raise ConfigError(f'initialize_from: {error}') from error
    finally:
        checkpoints.close()
    learnt = flatten((variables.get('ema_params', variables['params']), variables['model_state']))
    if tuple(json.loads((workdir / 'classes.json').read_text())['class_names']) == class_names:
        return learnt, []
    shapes, others = (variable_shapes(config, len(class_names) + more) for more in (0, 1))
    anew = [path for path in shapes if shapes[path] != others[path]]
    return {path: array for path, array in learnt.items() if path not in anew}, anew


def variable_shapes(config: ml_collections.ConfigDict, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Lists the shapes of a detector's variables by their paths."""
    detector = make_detector(**config.model, num_classes=num_classes)
    shapes = jax.eval_shape(lambda rng: detector.init(rng, config.data.canvases[0]), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(shapes).items()}


def replace(
    params: Params, model_state: ModelState, learnt: Mapping[str, np.ndarray], anew: list[str], source: str
) -> tuple[Params, ModelState]:
    """Puts what was learnt in place of drawn variables.

    Args:
        params, model_state: drawn.
        learnt, anew: of `read_learnt`.
        source: what an error calls the other run.

    Returns:
        (params, model_state) with the learnt arrays wherever nothing starts anew.

    Raises:
        ConfigError: a variable is not there, has another shape, or finds no place.
    """
    drawn = flatten((params, model_state))
    missing = [path for path in drawn if path not in learnt and path not in anew]
    misshapen = [
        f'{path} {learnt[path].shape}, here {drawn[path].shape}'
        for path in drawn if path in learnt and learnt[path].shape != drawn[path].shape
    ]  # fmt: skip
    unused = [path for path in learnt if path not in drawn]
    problems = {'missing there': missing, 'of another shape': misshapen, 'without a place here': unused}
    if any(problems.values()):
        listed = '; '.join(f'{kind}: {", ".join(paths[:_LISTED])}{", ..." * (len(paths) > _LISTED)}'
                           for kind, paths in problems.items() if paths)
        raise ConfigError(f'initialize_from is {source}, whose detector is another one: {listed}. Take its model section over '
                          'unchanged, as configs/finetune_histology.py does')
    variables = flax.traverse_util.unflatten_dict({path: learnt.get(path, drawn[path]) for path in drawn}, sep='/')
    params = variables.pop('params')
    return params, {collection: variables.get(collection, {}) for collection in model_state}


def model_changes(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Lists the keys of the model section that differ from those of another run, with both values."""
    other = from_json((pathlib.Path(workdir) / 'config.json').read_text())
    return {key: pair for key, pair in differences(other, config).items() if key.startswith('model.')}
