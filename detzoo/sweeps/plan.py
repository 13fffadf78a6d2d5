"""The plan of a sweep, which becomes sweep.json: its runs with their configs, before any has started."""

from collections.abc import Sequence
from typing import Any

from detzoo.config import differences
from detzoo.errors import ConfigError
from detzoo.sweeps.store import WAITING, Result
from detzoo.sweeps.sweep import config_of, full_name, load_sweep


def plan(experiment: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Plans the runs of an experiment.

    Args:
        experiment: a name or the path of a file, with an argument after a colon.
        settings: changes to the config of every run as text, for example 'training.steps=100'.

    Returns:
        the contents of sweep.json.

    Raises:
        ConfigError: see `load_sweep` and `config_of`; or a run has replicas.
    """
    sweep, docstring = load_sweep(experiment)
    configs = [config_of(run, settings) for run in sweep.runs]
    runs = []
    for run, config in zip(sweep.runs, configs):
        if config.training.num_replicas > 1:
            raise ConfigError(
                f'run {run.name!r}: a run is one training, not {config.training.num_replicas} replicas: list seeds'
            )
        if config.training.steps is None:
            raise ConfigError(f'run {run.name!r}: training.steps is None: a sweep plans with it, so set it')
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
                initialized=run.initialized,
            )._asdict()
        )
    return dict(
        experiment=full_name(experiment),
        docstring=docstring,
        metrics=list(sweep.metrics),
        figures=[axes._asdict() for axes in sweep.figures],
        runs=runs,
    )
