"""The log of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from detzoo.errors import DataError, InUseError
from detzoo.files import AnyPath, as_path
from detzoo.run.storage import Mirror, lock, open_log, store, writing


class MetricsLog:
    """Writes the metrics of a workdir, on the first process; on others it does nothing.

    A line of metrics.jsonl is {"step": n, name: number, ...}, measured after n updates. Lines of the evaluation have names like
    "validation/AP".

    The caller's thread writes TensorBoard's file. `tensorboardX.SummaryWriter` would start a thread for that, which dies when the
    disk is full; whatever then hands it an event, or waits for its end, waits for ever.

    In a bucket both files are kept in memory, and written by `flush`: a run that is cut goes on from a checkpoint, before which
    they were flushed.
    """

    def __init__(self, workdir: str | os.PathLike, *, step: int, active: bool):
        """Opens the log at a step, and removes the lines that an interrupted run wrote beyond that step.

        Args:
            workdir: folder of the run.
            step: step of the restored checkpoint; 0 for a new run.
            active: whether this process writes.

        Raises:
            InUseError: another process writes the log.
            DataError: a line of metrics.jsonl is damaged.
            StorageError: the disk is full, or the like; all methods raise it.
        """
        self._active = active
        self.evaluations: list[
            Mapping[str, Any]
        ] = []  # the lines of evaluations; empty where this process does not write
        self.skipped = 0  # number of the last steps whose update was skipped, one after the other
        if not active:
            return
        self._path, self._events = as_path(workdir) / 'metrics.jsonl', as_path(workdir) / 'tensorboard'
        with contextlib.ExitStack() as failure:
            with writing(self._path):
                self._file = failure.enter_context(open_log(self._path))
            if not lock(self._file):
                raise InUseError(f'{self._path} is being written by another process')
            with writing(self._path):
                for row in _cut_back(self._file, self._path, step):
                    self._count(row)
            with writing(self._events):
                self._mirror = Mirror(self._events)
                failure.callback(self._mirror.close)
                # The name has the second, in which the run may go on again; a file of the same name would be replaced.
                self._board = EventsWriter(str(self._mirror.path / 'events'), f'.{step}')
                # TensorBoard hides what earlier files hold from this step on.
                self._board.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
            failure.pop_all()

    @property
    def evaluated(self) -> int:
        """The step of the last evaluation in the log, 0 if there is none."""
        return self.evaluations[-1]['step'] if self.evaluations else 0

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Adds a line to metrics.jsonl, and its numbers to TensorBoard."""
        row = {'step': step, **metrics}
        self._count(row)
        if self._active:
            with writing(self._path):
                self._file.write(json.dumps(row).encode() + b'\n')
                self._file.flush()  # a line at a time: `tail -f` keeps up
            self.write_scalars(step, {name: value for name, value in metrics.items() if value is not None})

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds numbers to TensorBoard alone: those that differ when a run is repeated, like its speed."""
        if self._active:
            for name, value in metrics.items():
                self._write_event(step, summary.scalar(name, value))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds [h, w, 3] uint8 images to TensorBoard."""
        if self._active:
            for name, image in images.items():
                self._write_event(step, summary.image(name, image, dataformats='HWC'))

    def flush(self) -> None:
        """Writes everything to the disk, so that a crash of the machine loses nothing, or to the bucket."""
        if self._active:
            with writing(self._path):
                store(self._file)
            with writing(self._events):
                self._board.flush()
                self._mirror.store()

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            with contextlib.ExitStack() as cleanup:
                cleanup.enter_context(writing(self._path))
                for each in (self._mirror, self._file, self._board):
                    cleanup.callback(each.close)
                self.flush()

    def _count(self, row: Mapping[str, Any]) -> None:
        if _is_evaluation(row):
            self.evaluations += [row] if self._active else []
        else:
            self.skipped = self.skipped + 1 if row.get('skipped') else 0

    def _write_event(self, step: int, what: Any) -> None:
        with writing(self._events):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=what))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line that was cut short is left out.

    Raises:
        DataError: a line is damaged.
    """
    path = as_path(workdir) / 'metrics.jsonl'
    with path.open('rb') as file:
        return [row for _, row in _whole_lines(file, path)]


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return 'validation/loss' in row


def _cut_back(file: BinaryIO, path: AnyPath, step: int) -> Iterator[dict[str, Any]]:
    """Yields the lines up to a step, and then removes the others, and a last line that was cut short.

    The file is truncated and not replaced, so that `tail -f` goes on.
    """
    file.seek(0)
    end = 0
    for line_end, row in _whole_lines(file, path):
        if row['step'] > step:
            break
        end = line_end
        yield row
    file.truncate(end)


def _whole_lines(file: BinaryIO, path: AnyPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the end of each line in the file, in bytes, and its contents; a last line that was cut short is left out."""
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b'\n'):
            return
        end += len(line)
        try:
            row = json.loads(line)
            if type(row['step']) is not int:
                raise TypeError(f'step is {row["step"]!r}')
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DataError(
                f'line {number} of {path} is damaged ({error}): remove that line. Checkpoints do not depend on this file'
            ) from error
        yield end, row
