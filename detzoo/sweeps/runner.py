"""Runs a sweep: each training in a process of its own, so that a failure ends only that training.

    experiment -> `plan.plan`: the runs with their configs -> sweep.json
      -> `run_sweep`: starts the unfinished runs with a launcher, and shows their progress
           `attempt`, in the process of a run: train, evaluate, draw -> results/RUN/, last result.json
      -> results.jsonl

The same call continues an interrupted sweep: finished runs stay, interrupted ones continue from their last checkpoint, and
failed ones are tried again. A sweep that is asked to stop asks its runs to, and waits for them. A run that is stopped alone
is started again.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from detzoo.config import MUTABLE, differences, from_json
from detzoo.errors import ConfigError, InUseError
from detzoo.files import write_text
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.run.storage import held
from detzoo.sweeps.board import Board
from detzoo.sweeps.launchers import Handle, Launcher, Processes
from detzoo.sweeps.store import FAILED, STOPPED, Result, Store, read_file


def run_sweep(
    folder: str | os.PathLike,
    planned: dict[str, Any],
    launcher: Launcher | None = None,
    *,
    jobs: int = 1,
    stop: StopRequest | None = None,
    show: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[Result]:
    """Trains the runs of a sweep that are not finished.

    Args:
        folder: the folder of the sweep.
        planned: the contents of sweep.json, see `plan`.
        launcher: starts the runs, by default as processes on this machine.
        jobs: largest number of runs at once.
        stop: may ask the sweep to stop.
        show: function called twice a second with a row for each run: 'run', 'status', 'step', 'steps', 'left' (seconds, or
            None), 'AP', 'reason'.

    Returns:
        the results of all runs, in their order.

    Raises:
        ConfigError: the folder holds another sweep, or results of other configs; or a sweep is running there.
        Stopped: the sweep was asked to stop.
    """
    store, stop = Store(folder), stop or StopRequest()
    launcher = launcher or Processes(store.folder)
    with _only_one(store):
        done = _check(store, planned)
        write_text(store.folder / 'sweep.json', json.dumps(planned, indent=1) + '\n')
        runs = [Result(**row) for row in planned['runs']]
        waiting = [run for run in runs if run.run not in done]
        running: dict[str, tuple[Result, Handle]] = {}
        board, asked = Board(store, runs), False
        while running or (waiting and not stop.number):
            ready = [run for run in waiting if {run.trained, run.initialized} - {''} <= done.keys()]
            for run in [] if stop.number else ready[: jobs - len(running)]:
                waiting.remove(run)
                running[run.run] = run, launcher.start(run.run)
                stop.running = True
            for name, (run, handle) in list(running.items()):
                how = handle.ended()
                if how is not None:
                    del running[name]
                    done |= _outcome(store, run, how)
                    waiting = [run, *waiting] if name not in done else waiting
            if stop.number and not asked:
                asked = True
                stop.accept()
                for name, (_, handle) in list(running.items()):
                    if not handle.stop():
                        del running[name]
            show(board.rows(running, done))
            if running:
                time.sleep(0.5)
        show(board.rows(running, done))
        stop.running = False
    if len(done) < len(runs):
        raise Stopped(stop.number, f'when {len(done)} of {len(runs)} runs had ended: the same command goes on')
    return [done[run.run] for run in runs]


@contextlib.contextmanager
def _only_one(store: Store) -> Iterator[None]:
    """Locks the folder of a sweep; the system releases the lock when the process ends."""
    with contextlib.ExitStack() as locked:
        try:
            locked.enter_context(held(store.folder))
        except InUseError as error:
            raise ConfigError(f'a sweep is running in {store.folder}: wait for it, or take another folder') from error
        yield


def _check(store: Store, planned: dict[str, Any]) -> dict[str, Result]:
    """Finds the finished runs, and refuses a folder with results of another sweep or of other configs."""
    with contextlib.suppress(FileNotFoundError):
        before = read_file(store.folder / 'sweep.json', lambda: store.sweep()['experiment'])
        if before != planned['experiment']:
            raise ConfigError(
                f'{store.folder} holds the sweep of {before}: take another folder for {planned["experiment"]}'
            )
    done = {}
    for row in planned['runs']:
        result = _left_by(store, row['run']) or next((r for r in store.results() if r.run == row['run']), None)
        if result is None or result.status == FAILED:
            continue
        changed = differences(*(from_json(json.dumps(config)) for config in (result.config, row['config'])))
        refused = {key: pair for key, pair in changed.items() if key not in MUTABLE}
        if refused:
            keys = '; '.join(f'{key} was {old!r}, is {new!r}' for key, (old, new) in refused.items())
            raise ConfigError(
                f'{store.folder}: run {result.run!r} was finished with another config ({keys}): take another folder'
            )
        if not changed or result.steps >= row['config']['training']['steps']:  # the same config may end a run early
            store.write_result(result)  # the run may have outlived the sweep that started it
            done[result.run] = result
    return done


def _outcome(store: Store, run: Result, how: str) -> dict[str, Result]:
    """Records the result of a run that has ended: {its name: the result}, or nothing if it was asked to stop.

    Args:
        store: the folder of the sweep.
        run: the run as planned.
        how: what `Handle.ended` said.
    """
    result = _left_by(store, run.run) or run._replace(status=FAILED, reason=how)
    if how == STOPPED and result.status == FAILED:
        return {}
    store.write_result(result)
    return {run.run: result}


def _left_by(store: Store, run: str) -> Result | None:
    """Reads the result.json of a run, if there is one."""
    path = store.results_of(run) / 'result.json'
    return read_file(path, lambda: Result(**json.loads(path.read_text()))) if path.exists() else None
