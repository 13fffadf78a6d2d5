"""The record of a run: `metrics.jsonl` and TensorBoard, cut back to the step at which a run goes on."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from detzoo.data.records import DataError


class MetricsLog:
    """Writes the metrics of a workdir, on the first process; on others it does nothing.

    A line of metrics.jsonl is {"step": n, name: number, ...}: after n updates. Lines of training and of evaluation
    ("validation/...") alternate.
    """

    def __init__(self, workdir: str | os.PathLike, *, step: int, active: bool):
        """Opens the log at a step; what an interrupted run wrote beyond it is removed.

        Args:
            workdir: of the run.
            step: of the restored checkpoint; 0 for a new run.
            active: whether this process writes.
        """
        self._active = active
        if not active:
            return
        path = pathlib.Path(workdir) / 'metrics.jsonl'
        _cut_back(path, step)
        self._file = path.open('a', buffering=1)  # a line at a time: `tail -f` keeps up
        self._board = SummaryWriter(str(pathlib.Path(workdir) / 'tensorboard'), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line, and its numbers to TensorBoard."""
        if self._active:
            self._file.write(json.dumps({'step': step, **metrics}) + '\n')
            for name, value in metrics.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds numbers to TensorBoard alone: what differs from run to run, like speed."""
        if self._active:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds [h, w, 3] uint8 images to TensorBoard."""
        if self._active:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats='HWC')

    def flush(self) -> None:
        """Makes sure that a crash of the machine keeps what was written."""
        if self._active:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            self.flush()
            self._file.close()
            self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the whole lines of `metrics.jsonl`.

    Raises:
        DataError: one of them is damaged.
    """
    return [row for _, row in _whole_lines(pathlib.Path(workdir) / 'metrics.jsonl')]


def _cut_back(path: pathlib.Path, step: int) -> None:
    """Removes the lines beyond a step, and a last line that was cut short."""
    if not path.exists():
        return
    kept = [line for line, row in _whole_lines(path) if row['step'] <= step]
    scratch = path.with_suffix('.tmp')
    scratch.write_text(''.join(kept))
    os.replace(scratch, path)


def _whole_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Lists the lines, each with what it says, but for a last one that was cut short."""
    lines = []
    for number, line in enumerate(path.read_bytes().decode(errors='replace').split('\n')[:-1], start=1):
        try:
            row = json.loads(line)
            int(row['step'])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DataError(
                f'line {number} of {path} is damaged ({error}): remove that line. Checkpoints do not depend on this file'
            ) from error
        lines.append((line + '\n', row))
    return lines
