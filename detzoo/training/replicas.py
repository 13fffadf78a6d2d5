"""Replicas: several seeds that one program trains, each in a workdir of its own. Mostly there is but one.

split       the config of a program -> the config and the workdir of each replica
take_over   their workdirs become this program's -> the step from which all of them go on
stack       their trees of arrays -> one tree with an axis of replicas; `unstack` undoes it
"""

import contextlib
import operator
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.files import AnyPath
from detzoo.run import parallel
from detzoo.run.best import find_best
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import MetricsLog, read_metrics
from detzoo.run.storage import held
from detzoo.run.workdir import check_workdir, has_checkpoints, write_workdir


class Replica(NamedTuple):
    """One of the trainings of a program.

    config: its config, as if it was trained alone.
    workdir: its folder.
    checkpoints: the checkpoints in the workdir.
    log: the open log in the workdir.
    """

    config: ml_collections.ConfigDict
    workdir: AnyPath
    checkpoints: Checkpoints
    log: MetricsLog


def split(config: ml_collections.ConfigDict, workdir: AnyPath) -> list[tuple[ml_collections.ConfigDict, AnyPath]]:
    """Makes the config and the workdir of each replica, as if each was trained alone, with the next seed.

    Raises:
        ConfigError: the folder has replicas that were trained without one of these; they would have to start again with it.
    """
    count = config.training.num_replicas
    if count == 1:
        return [(config, workdir)]
    replicas, begun = [], any(map(has_checkpoints, workdir.glob('seed_*')))
    for seed in range(config.seed, config.seed + count):
        own = config.copy_and_resolve_references()
        own.seed, own.training.num_replicas = seed, 1
        replicas.append((own, workdir / f'seed_{seed}'))
        if begun and not (workdir / f'seed_{seed}' / 'config.json').exists():
            raise ConfigError(f'{workdir} has replicas that were trained without seed {seed}: take a new workdir')
    return replicas


def take_over(
    config: ml_collections.ConfigDict,
    runs: Sequence[tuple[ml_collections.ConfigDict, AnyPath]],
    data: Dataset,
    validation: Dataset,
    cleanup: contextlib.ExitStack,
) -> int:
    """Makes the workdirs this training's until `cleanup` is closed, and finds the step from which it goes on.

    Args:
        config: config of the program.
        runs: configs and workdirs of the replicas, from `split`.
        data: the split to train on.
        validation: the split to evaluate on.
        cleanup: releases the workdirs.

    Returns:
        the step of the checkpoint that all replicas have; 0 where there is none.

    Raises:
        ConfigError: a workdir is of another run, or the replicas were not trained together.
        DataError: all checkpoints of a workdir are damaged.
        InUseError: another process trains in a workdir.
        StorageError: a workdir cannot be written.
    """
    for own, folder in runs:  # before anything, even a lock, is written into the workdir of another run
        check_workdir(folder, own, data, validation)
    for _, folder in runs:
        cleanup.enter_context(held(folder))
    for own, folder in runs:
        Checkpoints(folder).set_damaged_aside()
        write_workdir(folder, own, data, validation)
    folders = [folder for _, folder in runs]
    start = common_start(config, folders)
    for folder in folders:
        Checkpoints(folder).cut_back(start)
    return start


def common_start(config: ml_collections.ConfigDict, folders: Sequence[AnyPath]) -> int:
    """Finds the step from which all replicas go on: the lowest, since a kill may leave some a checkpoint behind.

    Raises:
        ConfigError: they are further apart, so were not trained together; cutting them back would lose training.
        DataError: a line of a log is damaged.
    """
    steps = [Checkpoints(folder).latest_step() or 0 for folder in folders]
    if max(steps) - min(steps) > config.training.checkpoint_every:
        standing = ', '.join(f'{folder.name} at step {step}' for folder, step in zip(folders, steps))
        raise ConfigError(
            f'the replicas in {folders[0].parent} were not trained together ({standing}): take a new workdir'
        )
    return min(map(logged_step, folders))


def logged_step(folder: AnyPath) -> int:
    """Finds the newest checkpoint of a workdir up to which its log has all lines; a warning says if that is not the newest.

    The steps after it are made again, and logged. Where the log reaches none, or is missing, it is the newest: lines stay missing.

    Returns:
        its step; 0 if there is no checkpoint.

    Raises:
        DataError: a line of the log is damaged.
    """
    steps, path = [0, *Checkpoints(folder).steps()], folder / 'metrics.jsonl'
    last = max((row['step'] for row in read_metrics(folder)), default=0) if path.exists() else steps[-1]
    if last >= steps[-1]:
        return steps[-1]
    start = max((step for step in steps[1:] if step <= last), default=steps[-1])
    what = 'steps that it lacks are made again' if start <= last else 'it stays without the steps before that'
    tqdm.write(
        f'WARNING: {path} was cut: it ends at step {last}, and the newest checkpoint is that of step {steps[-1]}. The run goes on '
        f'from step {start}; {what}',
        file=sys.stderr,
    )
    return start


def open_replica(
    config: ml_collections.ConfigDict, workdir: AnyPath, start: int, cleanup: contextlib.ExitStack
) -> Replica:
    """Opens a replica at the step from which it goes on; its log is cut back to that step, and `cleanup` closes it."""
    log = MetricsLog(workdir, step=start, active=jax.process_index() == 0)
    cleanup.callback(log.close)
    log.skipped = parallel.from_first_process(lambda: log.skipped)
    checkpoints = Checkpoints(workdir)
    cleanup.callback(checkpoints.close)
    replica = Replica(config, workdir, checkpoints, log)
    keep_best(replica)
    return replica


def keep_best(replica: Replica) -> None:
    """Keeps the checkpoint of the best evaluation in the log from being removed, if the config says so."""
    metric = replica.config.training.keep_best
    if metric is not None:
        replica.checkpoints.best = parallel.from_first_process(lambda: find_best(replica.log.evaluations, metric).step)


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """Adds an axis of replicas; one alone stays as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """Undoes `stack`."""
    return [tree] if count == 1 else [jax.tree.map(operator.itemgetter(index), tree) for index in range(count)]
