"""A sweep: runs that differ only in what an experiment is about.

experiments/NAME.py -> get_sweep(arg) -> Sweep
  -> `plan`, `runner`: each run in a process of its own -> `store`: the results
  -> `report.page`: tables and figures
"""

import ast
import operator
import runpy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections

from detzoo.config import check_key, find_file, load_config, own_folder
from detzoo.errors import ConfigError


class Run(NamedTuple):
    """One training.

    name: name of its folder; unique in the sweep.
    config: a name ('mask_rcnn_shapes:c4') or the path of a file, with a variant after a colon.
    changes: values of config keys, by their dotted names.
    published: the paper's metrics for it, by their names, percent.
    group: name of the group of runs that differ only in their seed; if empty, the run's own name.
    series: name of the runs that a figure joins by a line, for example those of one detector; if empty, the group's name.
    trained: name of the run whose training it shares, since the two differ only in prediction; '': it is trained itself.
    initialized: name of the run from whose trained weights it starts (`initialize_from`); '': from none.
    """

    name: str
    config: str
    changes: dict[str, Any] = {}
    published: dict[str, float] = {}
    group: str = ''
    series: str = ''
    trained: str = ''
    initialized: str = ''


class Axes(NamedTuple):
    """A figure: a point for each group of runs.

    x, y: each a config key ('data.train_split' gives the number of its images), a metric ('AP', 'mask_AP50'), or a cost of
        prediction: 'seconds' and 'peak_bytes' (of `batch` images at once), 'flops' (of one), 'parameters'.
    log: whether x is logarithmic.
    pareto: whether to draw the front of points that no other point beats in both less x and more y.
    batch: number of images at once, for costs.
    ordered: whether an x that is a word is a step of a scale, in the order of the runs: then a line joins the points of a series.
    """

    x: str
    y: str = 'AP'
    log: bool = False
    pareto: bool = False
    batch: int = 1
    ordered: bool = False


class Sweep(NamedTuple):
    """The runs of an experiment.

    runs: the runs to compare; the first is the one that the others are compared with.
    metrics: names of validation metrics, as in metrics.jsonl.
    figures: figures to draw besides those of every report.
    """

    runs: list[Run]
    metrics: tuple[str, ...] = ('AP', 'AP50', 'AP75')
    figures: tuple[Axes, ...] = ()


def with_seeds(runs: Iterable[Run], seeds: Sequence[int]) -> list[Run]:
    """Repeats runs with each seed: the seed is added to their names, and their groups stay.

    A run that shares the training of another one, or starts from its weights, does so with its own seed.
    """
    return [
        run._replace(
            name=f'{run.name}_seed{seed}',
            changes={**run.changes, 'seed': seed},
            group=run.group or run.name,
            trained=run.trained and f'{run.trained}_seed{seed}',
            initialized=run.initialized and f'{run.initialized}_seed{seed}',
        )
        for run in runs
        for seed in seeds
    ]


def load_sweep(experiment: str) -> tuple[Sweep, str]:
    """Loads the sweep of an experiment.

    Args:
        experiment: a name ('focal_loss') or the path of a file, with an argument after a colon; see `config.find_file`.

    Returns:
        the sweep, and the file's docstring.

    Raises:
        ConfigError: there is no such experiment, two runs have one name, or the config of a run cannot be made.
        ValueError: the experiment has no such variant.
    """
    path, argument = find_file('experiments', experiment)
    content = runpy.run_path(str(path))
    if 'get_sweep' not in content:
        raise ConfigError(f'{path} is not an experiment: it has no function get_sweep')
    sweep = content['get_sweep'](argument or None)
    names = [run.name for run in sweep.runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f'{path}: more than one run is called {repeated[0]!r}')
    for run in sweep.runs:
        config_of(run)
        if run.trained and run.trained not in names:
            raise ConfigError(f'{path}: run {run.name!r} shares the training of {run.trained!r}, which is no run')
        if run.initialized and run.initialized not in names:
            raise ConfigError(f'{path}: run {run.name!r} starts from {run.initialized!r}, which is no run')
    return sweep, content['__doc__'] or ''


def full_name(experiment: str) -> str:
    """Names an experiment the same way wherever it is called from.

    Returns:
        'experiments/NAME.py' for one of detzoo, else the absolute path; with the argument after a colon.

    Raises:
        ConfigError: there is no such experiment.
    """
    path, argument = find_file('experiments', experiment)
    path, own = path.resolve(), own_folder('experiments').resolve()
    name = f'experiments/{path.name}' if path.parent == own else str(path)
    return f'{name}:{argument}' if argument else name


def config_of(run: Run, settings: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Makes the config of a run.

    Args:
        run: a run of a sweep.
        settings: further changes as text, for example 'training.steps=100'.

    Raises:
        ConfigError: a key does not exist, or cannot have this value.
    """
    try:
        changes = dict(run.changes)
        if settings:
            base = load_config(run.config)
            changes |= dict(_parse(base, setting) for setting in settings)
        return load_config(run.config, changes)
    except ConfigError as error:
        raise ConfigError(f'run {run.name!r}: {error}') from error


def _parse(config: ml_collections.ConfigDict, setting: str) -> tuple[str, Any]:
    """Reads 'KEY=VALUE' as a dotted key of a config, and a value of its type."""
    key, equals, text = setting.partition('=')
    if not equals:
        raise ConfigError(f'{setting!r} sets no key: write KEY=VALUE')
    group, _, name = check_key(config, key).rpartition('.')
    parent = operator.attrgetter(group)(config) if group else config
    if parent.get_type(name) is str:
        return key, text
    try:
        return key, ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{key} cannot be {text!r}: {error}') from error
