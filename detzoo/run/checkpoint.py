"""Checkpoints: a training state on disk, complete or not at all.

    checkpoints/STEP/variables, optimizer    the two items that Orbax writes
    checkpoints/STEP/SHA256SUMS              of their files, as `sha256sum` writes them

Orbax writes into a temporary folder and renames it, so that a kill at any moment leaves the last complete checkpoint. In a
bucket, where no folder can be renamed, it writes into the folder itself, and the file commit_success.txt last: without it there
is no checkpoint. The position in the data is the step (see data/pipeline.py), so nothing else needs to be kept. Files that
differ from their sums are never restored; a checkpoint of an older detzoo, which has no sums, is restored as it is.
"""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm.auto import tqdm

from detzoo.errors import DataError
from detzoo.files import AnyPath, as_path, entries, files_below, in_bucket, remove_folder, rename_folder
from detzoo.run.storage import failed
from detzoo.types import ModelState, Params

_SUMS = 'SHA256SUMS'
COMMITTED = 'commit_success.txt'  # in a bucket Orbax's last file of a checkpoint, or of one of its items


class TrainState(NamedTuple):
    """The state of a run at a step. Together with the config it decides how the run goes on.

    step: [] int32, number of updates made.
    params, model_state: the detector's variables.
    opt_state: the optimiser's state.
    ema_params: moving average of params, or None.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    ema_params: Params | None


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 3):
        """Looks at `workdir/checkpoints`, which is not made before something is saved.

        Args:
            workdir: folder of the run.
            keep: number of checkpoints to keep, the newest ones.
        """
        workdir = as_path(workdir)
        self.folder = (workdir if in_bucket(workdir) else workdir.resolve()) / 'checkpoints'
        self.best = 0  # step of a checkpoint to keep as well; 0 for none
        self._keep, self._saving = keep, None  # step of the last `save`, which may be unfinished

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Makes Orbax's manager, which writes checkpoints; it removes folders that a kill left unfinished."""
        # Orbax's other threads wait five minutes for folders that could not be made where a thread makes them.
        how = ocp.options.AsyncOptions(
            create_directories_asynchronously=False, post_finalization_callback=self._write_sums
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(self, self._keep),
            async_options=how,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _write_sums(self) -> None:
        """Adds the sums to the files of a checkpoint; Orbax calls it before it renames the temporary folder, or commits it."""
        pattern = str(self._saving) if in_bucket(self.folder) else f'{self._saving}.orbax-checkpoint-tmp*'
        (scratch,) = self.folder.glob(pattern)
        (scratch / _SUMS).write_text('\n'.join(_sums(scratch)) + '\n')

    def steps(self) -> list[int]:
        """Lists the steps of the finished checkpoints, in order, damaged ones too."""
        return sorted(int(path.name) for path in entries(self.folder) if is_checkpoint(path))

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, which may still be being written; None if there is none."""
        return max([*self.steps(), *([] if self._saving is None else [self._saving])], default=None)

    def set_damaged_aside(self) -> None:
        """Renames the damaged checkpoints that are newer than the newest whole one to STEP.damaged, with a warning.

        Raises:
            DataError: all are damaged.
        """
        for path in entries(self.folder):
            if path.name.isdigit() and path.is_dir() and not is_checkpoint(path):
                remove_folder(path)  # an empty or unfinished folder would be in the way of that step's checkpoint
        steps = self.steps()
        for step in reversed(steps):
            problem = damage(self.folder / str(step))
            if problem is None:
                return
            names = (self.folder / f'{step}.damaged{number}' for number in ('', *range(2, 1000)))
            aside = next(path for path in names if not path.exists())
            rename_folder(self.folder / str(step), aside, COMMITTED)
            tqdm.write(
                f'WARNING: the checkpoint of step {step} is damaged and set aside as {aside}: {problem}',
                file=sys.stderr,
            )
        if steps:
            raise DataError(
                f'every checkpoint in {self.folder} is damaged, and now renamed to STEP.damaged: start the training again, and it '
                'begins at step 0 with new metrics'
            )

    def cut_back(self, step: int) -> None:
        """Removes the checkpoints beyond a step; call it before anything is saved."""
        for later in self.steps():
            if later > step:
                remove_folder(self.folder / str(later), COMMITTED)

    def save(self, state: TrainState) -> None:
        """Starts writing a state of numpy arrays; `close` and the next `save` wait until it is written.

        Raises:
            FloatingPointError: the state has a number that is not finite; nothing is written.
            StorageError: the disk is full, or the like; the error may be that of the previous `save`.
        """
        step = int(state.step)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if not np.isfinite(leaf).all():
                raise FloatingPointError(
                    f'after step {step}, {jax.tree_util.keystr(path)} is not finite: no checkpoint was written; '
                    f'the last good one is that of step {self.latest_step()} in {self.folder}'
                )
        if step != self.latest_step():
            variables, optimizer = _split(state)
            self._save(step, variables=variables, optimizer=optimizer)

    def save_variables(self, params: Params, model_state: ModelState) -> None:
        """Writes imported variables as a checkpoint of step 0, without an optimiser: such a run cannot go on."""
        self._save(0, variables=dict(params=params, model_state=model_state))

    def _save(self, step: int, **items: Any) -> None:
        self.wait()
        self._saving = step
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(**{name: ocp.args.StandardSave(items[name]) for name in items})
            )

    def wait(self) -> None:
        """Waits until the checkpoint of the last `save` is complete.

        Raises:
            StorageError: it could not be written.
        """
        if '_manager' in self.__dict__:
            with self._writing():
                self._manager.wait_until_finished()

    def restore(self, template: TrainState) -> TrainState:
        """Reads the newest state, as numpy arrays of the template's structure, shapes and dtypes.

        Raises:
            DataError: the checkpoint is damaged.
        """
        variables, optimizer = map(_zeros, _split(template))
        variables = self._read(self.latest_step(), 'variables', variables)
        optimizer = self._read(self.latest_step(), 'optimizer', optimizer)
        return TrainState(
            step=optimizer['step'],
            opt_state=optimizer['opt_state'],
            params=variables['params'],
            model_state=variables['model_state'],
            ema_params=variables.get('ema_params'),
        )

    def restore_variables(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Reads the variables, without the optimiser's state; writes nothing.

        Args:
            step: step of the checkpoint; the newest by default.

        Returns:
            the step, and a dict of 'params', 'model_state' and, if the run averages parameters, 'ema_params'.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            DataError: the checkpoint is damaged.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f'no checkpoint in {self.folder} yet: the run was stopped before its first one')
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(f'no checkpoint of step {step} in {self.folder}; there are: {steps}')
        return step, self._read(step, 'variables')

    def _read(self, step: int, item: str, template: Any = None) -> dict[str, Any]:
        """Reads an item of a checkpoint, after comparing its files with their sums."""
        folder = self.folder / str(step)
        other = max((other for other in self.steps() if other != step), default=None)
        remedy = f'rename it to {step}.damaged'
        if other is not None:
            remedy += f', and that of step {other} is the newest; or choose that step'
        problem = damage(folder, item)
        if problem:
            raise DataError(f'{folder} is damaged ({problem}): {remedy}')
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                return reader.restore(folder / item, args=ocp.args.StandardRestore(template))
        except Exception as error:  # of five kinds, by what is missing
            if (folder / _SUMS).exists():
                raise
            raise DataError(
                f'{folder} cannot be read ({type(error).__name__}: {str(error)[:200]}). It has no {_SUMS} that would tell '
                f'whether it is damaged. If it is, {remedy}'
            ) from error

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            StorageError: something could not be written.
        """
        if '_manager' in self.__dict__:
            with self._writing():
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the errors that Orbax raises while it writes into a StorageError."""
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            raise failed(self.folder if step is None else self.folder / str(step), error) from error


class _Kept(NamedTuple):
    """Orbax's policy for what it removes once a new checkpoint is complete: all but the newest and the best.

    checkpoints: names the best one.
    newest: number of the newest ones.
    """

    checkpoints: Checkpoints
    newest: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells of each checkpoint, in the order of their steps, whether it is kept."""
        first = len(checkpoints) - self.newest
        return [index >= first or info.step == self.checkpoints.best for index, info in enumerate(checkpoints)]


def is_checkpoint(path: AnyPath) -> bool:
    """Tells whether a path is a finished checkpoint: its name is the step, unlike an unfinished one's, and it is not empty.

    In a bucket it has been committed.
    """
    if not path.name.isdigit():
        return False
    return (path / COMMITTED).exists() if in_bucket(path) else any(True for _ in files_below(path))


def damage(checkpoint: AnyPath, item: str = '') -> str | None:
    """Names the files of a checkpoint, or of one of its items, that are missing or differ from their sums.

    Returns:
        a text for messages; None if all files are as written, or if there are no sums. Additional files are ignored.
    """
    try:
        written = (checkpoint / _SUMS).read_bytes().decode(errors='replace').rstrip('\n').split('\n')
    except FileNotFoundError:
        return None
    if not any(written):
        return f'{_SUMS} is empty'
    written = {line for line in written if line[66:].startswith(item)}
    names = sorted({line[66:] for line in written - set(_sums(checkpoint, item))})
    return f'not what was written: {", ".join(names[:3])}{", ..." * (len(names) > 3)}' if names else None


def _sums(checkpoint: AnyPath, item: str = '') -> list[str]:
    """Lists a line for each file of an item, or of all: its SHA-256 and its path."""
    lines = []
    for folder in sorted(checkpoint.glob(item or '*')):
        for path in sorted(files_below(folder)) if folder.is_dir() else ():
            with path.open('rb') as file:
                lines.append(f'{hashlib.file_digest(file, "sha256").hexdigest()}  {path.relative_to(checkpoint)}')
    return lines


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a state into the two items of a checkpoint: what predictions need, and what only training needs."""
    variables = dict(params=state.params, model_state=state.model_state)
    if state.ema_params is not None:
        variables['ema_params'] = state.ema_params
    return variables, dict(step=state.step, opt_state=state.opt_state)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
