"""A sweep: runs that differ in what an experiment asks about, and in nothing else.

    experiments/NAME.py -> get_sweep(arg) -> Sweep -> scripts/sweep.py: each run in a process of its own
"""

import math
import pathlib
import runpy
from typing import Any, NamedTuple

import ml_collections

from detzoo.config import ConfigError, complete, flatten

ROOT = pathlib.Path(__file__).parents[2]


class Run(NamedTuple):
    """One training.

    name: of its folder; unique in the sweep.
    config: a file of configs/, with an argument after a colon.
    changes: values of config keys, by their dotted names.
    published: what the paper has for it, by names of metrics, in percent.
    """

    name: str
    config: str
    changes: dict[str, Any] = {}
    published: dict[str, float] = {}

    def flags(self) -> list[str]:
        """The command-line flags of scripts/train.py that say the same."""
        return [f'--config={ROOT / self.config}', *(f'--config.{key}={value}' for key, value in self.changes.items())]


class Sweep(NamedTuple):
    """The runs of an experiment.

    runs: those that are compared; the first is what the others are compared with.
    metrics: names of validation metrics, as metrics.jsonl has them.
    """

    runs: list[Run]
    metrics: tuple[str, ...]


def load_sweep(experiment: str) -> Sweep:
    """Loads the sweep of a file of experiments/, with an argument after a colon.

    Raises:
        ConfigError: there is no such file, two runs have one name, or the config of a run cannot be.
    """
    path, _, argument = experiment.partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError(f'there is no experiment {path}: give a file of experiments/')
    sweep = runpy.run_path(path)['get_sweep'](argument or None)
    names = [run.name for run in sweep.runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f'{path}: more than one run is called {repeated[0]!r}')
    for run in sweep.runs:
        config_of(run)
    return sweep


def config_of(run: Run) -> ml_collections.ConfigDict:
    """Makes the config of a run, as its flags do.

    Raises:
        ConfigError: a key does not exist.
    """
    path, _, argument = run.config.partition(':')
    config = runpy.run_path(str(ROOT / path))['get_config'](argument or None)
    known = dict(flatten(config))
    for key, value in run.changes.items():
        if key not in known:
            raise ConfigError(f'run {run.name!r} sets {key!r}, which {run.config} has not')
        config.update_from_flattened_dict({key: value})
    return complete(config)


def format_results(sweep: Sweep, results: dict[str, dict[str, float]]) -> str:
    """Writes a table: the metrics of each run in percent, and beside them what its paper has; differences to the first run.

    Args:
        sweep: see `load_sweep`.
        results: metrics of the runs that are finished, 0..1, by the names of runs.

    Returns:
        lines, in Markdown.
    """
    first = sweep.runs[0]

    def number(value: float | None, base: float | None) -> str:
        if value is None or math.isnan(value):
            return ''
        return f'{value:.1f}' if base is None else f'{value:.1f} ({value - base:+.1f})'

    def row(run: Run) -> list[str]:
        base = None if run is first else results.get(first.name, {})
        cells = [run.name]
        for metric in sweep.metrics:
            found = results.get(run.name, {}).get(metric)
            cells.append(number(found and 100 * found, base and base.get(metric) and 100 * base[metric]))
            cells.append(number(run.published.get(metric), None if run is first else first.published.get(metric)))
        return cells

    heads = ['run', *(head for metric in sweep.metrics for head in (metric, 'published'))]
    rows = [heads, ['---'] * len(heads), *map(row, sweep.runs)]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in rows)
