"""The folder of a run: which run it is of, and where it stands.

    config.json classes.json data.json environment.json   what the run is
    checkpoints/                                          where it stands
    metrics.jsonl tensorboard/                            how it went

A run goes on with the config and the data that it began with; anything else is refused before a file is written.
"""

import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import jax
import ml_collections

import detzoo
from detzoo.config import MUTABLE, differences, read_config, to_json
from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.files import write_text
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.storage import writing


def check_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Dataset, validation: Dataset) -> None:
    """Refuses a workdir with checkpoints of another config, or of other data; one without checkpoints may begin anew.

    An older detzoo stored less of the data: what is not known is taken to be the same.

    Args:
        workdir: which may be missing.
        config: of the run.
        data: the split that it trains on.
        validation: the split that it is evaluated on.

    Raises:
        ConfigError: the message has all that differs.
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
            raise ConfigError(f'{workdir} is of a run with another config ({"; ".join(changed)}): take a new workdir')
    changed = []
    for name, content in described(data, validation).items():
        before = read_description(workdir / name)
        for key, new in content.items():
            old = before.get(key)
            if old != new and None not in (old, new):
                changed.append(f'{key} was {old!r}, is {new!r}')
    if changed:
        raise ConfigError(
            f'{workdir} is of a run on other data: data set {data.name!r} has changed since ({"; ".join(changed)}). Take a new '
            'workdir, or bring back the data that the run began with'
        )


def write_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Dataset, validation: Dataset) -> None:
    """Stores what a run is in its workdir, which `check_workdir` let pass. What was known of the data stays known.

    Raises:
        StorageError: it cannot be written.
    """
    contents = described(data, validation)
    if has_checkpoints(workdir):
        for name, content in contents.items():
            before = read_description(workdir / name)
            content |= {key: before.get(key) for key, value in content.items() if value is None}
    contents['environment.json'] = environment()
    texts = {name: json.dumps(content, indent=2) + '\n' for name, content in contents.items()}
    for name, text in (*texts.items(), ('config.json', to_json(config))):  # last what makes the folder a workdir
        with writing(workdir / name):
            write_text(workdir / name, text)


def described(data: Dataset, validation: Dataset) -> dict[str, dict[str, Any]]:
    """Describes a run's data as JSON, by the files of the workdir that keep it."""
    return {
        'classes.json': dict(class_names=list(data.class_names), category_ids=list(data.category_ids)),
        'data.json': dict(images=len(data.records), validation_images=len(validation.records), checksum=data.checksum),
    }


def read_description(path: pathlib.Path) -> dict[str, Any]:
    """Reads one of the files of `described`; nothing where there is none.

    Raises:
        ConfigError: it was cut short.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{path} was cut short, or is no object ({error}): put a copy in its place, or remove it if the data are still '
            'those of the run, which then writes it anew'
        ) from error


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Tells whether a run has saved one there."""
    return bool(Checkpoints(workdir).steps())


def environment() -> dict[str, Any]:
    """Says on what, by which command and with which versions something is made."""
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
