"""The workdir: the folder of a run.

    config.json classes.json data.json environment.json   what the run is
    checkpoints/                                          how far it is
    metrics.jsonl tensorboard/                            how it went

A run goes on with the config and the data that it began with; anything else is refused before a file is written.
"""

import importlib.metadata
import json
import platform
import sys
from typing import Any

import jax
import ml_collections

import detzoo
from detzoo.config import MUTABLE, differences, read_config, to_json
from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.files import AnyPath, write_text
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import classes_of
from detzoo.run.storage import writing


def check_workdir(workdir: AnyPath, config: ml_collections.ConfigDict, data: Dataset, validation: Dataset) -> None:
    """Checks that a workdir's checkpoints are of this config and these data; without checkpoints it may hold anything.

    An older detzoo stored less about the data: what is unknown counts as the same.

    Args:
        workdir: folder of the run; it may be missing.
        config: config of the run.
        data: split to train on.
        validation: split to evaluate on.

    Raises:
        ConfigError: the config or the data differ; the message lists all differences.
    """
    if not has_checkpoints(workdir):
        return
    if (workdir / 'checkpoints' / '0').exists():
        raise ConfigError(
            f'{workdir} holds imported weights: to train them further, take a new workdir and set initialize_from to it'
        )
    if (workdir / 'config.json').exists():
        pairs = differences(read_config(workdir / 'config.json'), config)
        changed = [f'{key} was {old!r}, is {new!r}' for key, (old, new) in pairs.items() if key not in MUTABLE]
        if changed:
            raise ConfigError(
                f'{workdir} belongs to a run with another config ({"; ".join(changed)}): take a new workdir'
            )
    changed = []
    now = {'classes.json': json.loads(classes_of(data).to_json()), 'data.json': describe_data(data, validation)}
    for name, content in now.items():
        before = read_description(workdir / name)
        for key, new in content.items():
            old = before.get(key)
            if old != new and None not in (old, new):
                changed.append(f'{key} was {old!r}, is {new!r}')
    if changed:
        raise ConfigError(
            f'{workdir} belongs to a run on other data: data set {data.name!r} has changed since ({"; ".join(changed)}). Take a '
            'new workdir, or bring back the data that the run began with'
        )


def write_workdir(workdir: AnyPath, config: ml_collections.ConfigDict, data: Dataset, validation: Dataset) -> None:
    """Writes config.json and the files that describe a run's classes, data and environment; call `check_workdir` first.

    Raises:
        StorageError: a file cannot be written.
    """
    described = describe_data(data, validation)
    if has_checkpoints(workdir):  # the data are those of before: what was known of them stays known
        before = read_description(workdir / 'data.json')
        described |= {key: before.get(key) for key, value in described.items() if value is None}
    texts = {
        'classes.json': classes_of(data).to_json(),
        'data.json': json.dumps(described, indent=2) + '\n',
        'environment.json': json.dumps(environment(), indent=2) + '\n',
        'config.json': to_json(config),  # last: it makes the folder a workdir
    }
    for name, text in texts.items():
        with writing(workdir / name):
            write_text(workdir / name, text)


def describe_data(data: Dataset, validation: Dataset) -> dict[str, Any]:
    """Describes a run's data: the contents of data.json."""
    return dict(images=len(data.records), validation_images=len(validation.records), checksum=data.checksum)


def read_description(path: AnyPath) -> dict[str, Any]:
    """Reads a workdir's classes.json or data.json; returns an empty dict where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{path} was cut short, or is no object ({error}): restore the file from a copy; or, if the data are still those '
            'that the run began with, remove it, and the run writes it again'
        ) from error


def has_checkpoints(workdir: AnyPath) -> bool:
    """Tells whether a workdir holds a checkpoint."""
    return bool(Checkpoints(workdir).steps())


def environment() -> dict[str, Any]:
    """Describes the machine, the command and the versions of packages: the contents of environment.json."""
    return dict(
        python=platform.python_version(),
        platform=platform.platform(),
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        processes=jax.process_count(),
        command=sys.argv,
        versions={
            name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')
        }
        | {'detzoo': detzoo.__version__},
    )
