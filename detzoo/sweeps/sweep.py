"""A sweep: runs that differ in what an experiment asks about, and in nothing else.

experiments/NAME.py -> get_sweep(arg) -> Sweep
  -> `plan`, `runner`: each run in a process of its own -> `store`: what came out
  -> `report.page`: tables and figures
"""

import ast
import operator
import pathlib
import runpy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections

from detzoo.config import complete, flatten
from detzoo.errors import ConfigError, nearest

ROOT = pathlib.Path(__file__).parents[2]


class Run(NamedTuple):
    """One training.

    name: of its folder; unique in the sweep.
    config: a file of configs/, with an argument after a colon.
    changes: values of config keys, by their dotted names.
    published: what the paper has for it, by names of metrics, in percent.
    group: what it is one seed of; its name, if empty.
    series: which runs a figure joins by a line, for example those of a detector; its group, if empty.
    trained: another run whose training is this one's too, since only what predicts differs; '' for its own.
    """

    name: str
    config: str
    changes: dict[str, Any] = {}
    published: dict[str, float] = {}
    group: str = ''
    series: str = ''
    trained: str = ''


class Axes(NamedTuple):
    """A figure: a point for each group of runs.

    x, y: each a config key ('data.train_split' gives the number of its images), a metric ('AP', 'mask_AP50'), or a cost of
        prediction: 'seconds' and 'peak_bytes' (of `batch` images at once), 'flops' (of one), 'parameters'.
    log: whether x is logarithmic.
    pareto: whether to draw the front of the points that no other beats in both: less x, more y.
    batch: images at once, of costs.
    """

    x: str
    y: str = 'AP'
    log: bool = False
    pareto: bool = False
    batch: int = 1


class Sweep(NamedTuple):
    """The runs of an experiment.

    runs: those that are compared; the first is what the others are compared with.
    metrics: names of validation metrics, as metrics.jsonl has them.
    figures: to draw, besides those that every report has.
    """

    runs: list[Run]
    metrics: tuple[str, ...] = ('AP', 'AP50', 'AP75')
    figures: tuple[Axes, ...] = ()


def with_seeds(runs: Iterable[Run], seeds: Sequence[int]) -> list[Run]:
    """Repeats runs with each seed; their groups, and their names but for the seed, stay."""
    return [
        run._replace(name=f'{run.name}_seed{seed}', changes={**run.changes, 'seed': seed}, group=run.group or run.name)
        for run in runs
        for seed in seeds
    ]


def load_sweep(experiment: str) -> tuple[Sweep, str]:
    """Loads the sweep of a file of experiments/, with an argument after a colon; and the file's docstring.

    Raises:
        ConfigError: there is no such file or variant, two runs have one name, or the config of a run cannot be.
    """
    path, _, argument = experiment.partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError(f'there is no experiment {path}: give a file of experiments/')
    module = runpy.run_path(path)
    sweep = module['get_sweep'](argument or None)
    names = [run.name for run in sweep.runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f'{path}: more than one run is called {repeated[0]!r}')
    for run in sweep.runs:
        config_of(run)
        if run.trained and run.trained not in names:
            raise ConfigError(f'{path}: run {run.name!r} shares the training of {run.trained!r}, which is no run')
    return sweep, module['__doc__'] or ''


def config_of(run: Run, arguments: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Makes the config of a run.

    Args:
        run: of a sweep.
        arguments: flags that change it further, for example '--config.training.steps=100'.

    Raises:
        ConfigError: a key does not exist, or cannot have this value.
    """
    path, _, argument = run.config.partition(':')
    config = runpy.run_path(str(ROOT / path))['get_config'](argument or None)
    for key, value in run.changes.items():
        _set(config, key, value, f'run {run.name!r} sets {key!r}')
    for flag in arguments:
        key, equals, text = flag.removeprefix('--config.').partition('=')
        if not (flag.startswith('--config.') and equals):
            raise ConfigError(f'what is {flag!r}? Only --config.KEY=VALUE goes to the runs')
        _set(config, key, text, flag, parse=True)
    try:
        return complete(config)
    except ConfigError as error:
        raise ConfigError(f'run {run.name!r}: {error}') from error


def _set(config: ml_collections.ConfigDict, key: str, value: Any, what: str, parse: bool = False) -> None:
    """Sets a dotted key; with `parse` to what the text `value` means for a key of this type.

    Raises:
        ConfigError: there is no such key, or it cannot have this value; the message begins with `what`.
    """
    known = dict(flatten(config))
    if key not in known:
        raise ConfigError(f'{what}, which is no key of the config: the nearest is {nearest(key, known)!r}')
    group, _, name = key.rpartition('.')
    parent = operator.attrgetter(group)(config) if group else config
    try:
        if parse and (parent.get_type(name) is not str):
            value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(value, value))
        parent.update({name: value})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f'{what}: {error}') from error
