"""The plan of a sweep, which becomes sweep.json: its runs with their configs, before any has started."""

import pathlib
from collections.abc import Sequence
from typing import Any

from detzoo.config import differences
from detzoo.errors import ConfigError
from detzoo.sweeps.store import WAITING, Result
from detzoo.sweeps.sweep import ROOT, config_of, load_sweep


def plan(experiment: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Plans the runs of an experiment.

    Args:
        experiment: a file of experiments/, with an argument after a colon.
        arguments: flags for every run, for example '--config.training.steps=100'.

    Returns:
        the contents of sweep.json.

    Raises:
        ConfigError: see `load_sweep` and `config_of`; or a run has replicas.
    """
    sweep, docstring = load_sweep(experiment)
    configs = [config_of(run, arguments) for run in sweep.runs]
    runs = []
    for run, config in zip(sweep.runs, configs):
        if config.training.num_replicas > 1:
            raise ConfigError(
                f'run {run.name!r}: a run is one training, not {config.training.num_replicas} replicas: list seeds'
            )
        group = run.group or run.name
        runs.append(
            Result(
                run=run.name,
                group=group,
                series=run.series or group,
                status=WAITING,
                reason='',
                config=config.to_dict(),
                changes={key: list(pair) for key, pair in differences(configs[0], config).items()},
                seed=config.seed,
                published=run.published,
                trained=run.trained,
            )._asdict()
        )
    path = pathlib.Path(experiment.partition(':')[0]).resolve()
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    return dict(
        experiment=name + experiment[len(experiment.partition(':')[0]) :],
        docstring=docstring,
        metrics=list(sweep.metrics),
        figures=[axes._asdict() for axes in sweep.figures],
        runs=runs,
    )
