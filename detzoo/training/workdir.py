"""The folder of a run: which run it is of, and where it stands.

    config.json classes.json environment.json   what the run is
    checkpoints/                                where it stands
    metrics.jsonl tensorboard/                  how it went
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

import detzoo
from detzoo.config import MUTABLE, ConfigError, differences, from_json, to_json
from detzoo.data.records import Dataset
from detzoo.files import incomplete_folder, new_file
from detzoo.training.checkpoint import Checkpoints


def prepare_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Dataset) -> Checkpoints:
    """Stores what a run is in a new workdir, or checks that an existing one is of the same run."""
    path = workdir / 'config.json'
    if path.exists():
        stored = from_json(path.read_text())
        changed = differences(stored, config)
        refused = {key: pair for key, pair in changed.items() if key not in MUTABLE}
        if refused:
            keys = '; '.join(f'{key} was {old!r}, is {new!r}' for key, (old, new) in refused.items())
            raise ConfigError(f'{workdir} is of a run with another config ({keys}): take a new --workdir')
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step() == 0:
        raise ConfigError(
            f'{workdir} holds imported weights: to train them further, take a new --workdir and set initialize_from to it'
        )
    if jax.process_index() == 0:
        classes = dict(class_names=data.class_names, category_ids=data.category_ids)
        for name, text in (
            ('classes.json', json.dumps(classes, indent=2) + '\n'),
            ('environment.json', json.dumps(environment(), indent=2) + '\n'),
            ('config.json', to_json(config)),  # last: it makes the folder a workdir
        ):
            write_text(workdir / name, text)
    return checkpoints


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Tells whether a run has saved one there; unlike `Checkpoints` it makes no folder."""
    return any(path.name.isdigit() for path in workdir.glob('checkpoints/*'))  # one that is not finished has a longer name


def environment() -> dict[str, Any]:
    """Says on what, by which command and with which versions something is made."""
    return dict(
        python=platform.python_version(),
        platform=platform.platform(),
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        processes=jax.process_count(),
        command=sys.argv,
        versions={name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')}
        | {'detzoo': detzoo.__version__},
    )


def check_new_folder(path: pathlib.Path) -> None:
    """Refuses, by a ValueError, a path at which there is something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f'{path} exists and is not empty: take another folder')


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a folder to write into, which appears at the path when the block ends, and not at all if it fails.

    Raises:
        ValueError: there is something at the path.
        OSError: nothing can be written there.
    """
    path = pathlib.Path(path)
    check_new_folder(path)
    with incomplete_folder(path.parent) as scratch:
        written = scratch / path.name  # with the user's permissions; those of `scratch` are stricter
        written.mkdir()
        yield written
        os.replace(written, path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file: complete or not at all."""
    with new_file(path) as scratch:
        scratch.write_text(text, 'utf-8')
