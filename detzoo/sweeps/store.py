"""The results of a sweep, from which a report is made without training anything.

    DIR/sweep.json                the experiment and the configs of its runs
    DIR/results.jsonl             a line for each run that ended: a Result
    DIR/results/RUN/              detections.json.gz, curves.json, panels/IMAGE_ID.jpg, assignment/STAGE.jpg
    DIR/truth/NAME/               ground_truth.json.gz (a COCO dict) and panels/IMAGE_ID.jpg of a validation split
    DIR/costs.json                costs of prediction (`detzoo sweep --costs`)
    DIR/estimates.json            estimated costs on TPUs (`detzoo sweep --costs --tpu=TOPOLOGY`)
    DIR/runs/RUN/                 the workdir of the run: checkpoints and logs, which reports do not need

A file is either complete or missing. Only the process of the sweep writes results.jsonl. Packed results (`report.pack`) have
results/RUN/judgement.json.xz in place of detections and pictures, and truth/NAME/size.json in place of the ground truth.
"""

import gzip
import json
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from detzoo.files import AnyPath, as_path, new_file, unpacked, write_text

WAITING, FINISHED, FAILED = 'waiting', 'finished', 'failed'
STOPPED = 'stopped'  # how a run ended that was asked to stop: it waits again


class Result(NamedTuple):
    """The outcome of a run.

    run, group, series, trained, initialized: see `sweep.Run`.
    status: FINISHED or FAILED; WAITING in a plan.
    reason: why it failed, one line; or ''.
    config: complete config, as nested dicts.
    changes: {dotted key: [value in the sweep's first run, value here]}.
    seed: seed in the config.
    published: metrics from the paper, percent.
    versions: versions of Python, the packages and the code ('commit', with '+' if files were changed).
    device: kind and number of devices.
    steps: number of training steps done.
    seconds: wall time of all attempts together; the machine may have done other things at the same time.
    parameters: number of the detector's parameters.
    metrics: the 12 numbers of boxes, those of masks as 'mask_AP', ..., and any of `inference.dataset.further_numbers`; None, or in
        0..1, except for errors of counts.
    per_class: {name: {'AP': ..., 'AP50': ...}}.
    truth: name of the ground truth used for the evaluation.
    """

    run: str
    group: str
    series: str
    status: str
    reason: str
    config: dict[str, Any]
    changes: dict[str, list[Any]]
    seed: int
    published: dict[str, float]
    trained: str = ''
    initialized: str = ''
    versions: dict[str, str] = {}
    device: dict[str, Any] = {}
    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    metrics: dict[str, float | None] = {}
    per_class: dict[str, dict[str, float | None]] = {}
    truth: str = ''


class Store:
    """The folder of a sweep."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = as_path(folder)

    def workdir(self, run: str) -> AnyPath:
        """Returns the folder in which a run is trained."""
        return self.folder / 'runs' / run

    def results_of(self, run: str) -> AnyPath:
        """Returns the folder of the files that the report of a run needs."""
        return self.folder / 'results' / run

    def truth(self, name: str) -> AnyPath:
        """Returns the folder of a validation split's ground truth."""
        return self.folder / 'truth' / name

    def results(self) -> list[Result]:
        """Reads the results, in the order in which they came.

        Raises:
            ValueError: a line is not a result.
        """
        path = self.folder / 'results.jsonl'
        rows = []
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
            try:
                rows.append(Result(**json.loads(line)))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number} is not a result ({error}): remove the line and run the sweep again'
                ) from error
        return rows

    def write_result(self, result: Result) -> None:
        """Adds a result, or replaces the earlier one of the same run."""
        rows = [row for row in self.results() if row.run != result.run] + [result]
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row._asdict(), allow_nan=False) + '\n' for row in rows]
        write_text(self.folder / 'results.jsonl', ''.join(lines))

    def sweep(self) -> dict[str, Any]:
        """Reads sweep.json: 'experiment', 'docstring', 'metrics', 'figures', and the planned 'runs'.

        Raises:
            FileNotFoundError: the folder holds no sweep.
        """
        path = self.folder / 'sweep.json'
        if not path.exists():
            raise FileNotFoundError(f'{self.folder} holds no sweep (it has no sweep.json): detzoo sweep makes one')
        return json.loads(path.read_text())

    def costs(self) -> list[dict[str, Any]]:
        """Reads the rows of `stages.measure`, whose 'name' is a group; none if costs were not measured."""
        path = self.folder / 'costs.json'
        return json.loads(path.read_text()) if path.exists() else []

    def estimates(self) -> list[dict[str, Any]]:
        """Reads the rows of `estimates.estimate`, whose 'name' is a group; none if nothing was estimated."""
        path = self.folder / 'estimates.json'
        return json.loads(path.read_text()) if path.exists() else []

    def first_of_groups(self) -> dict[str, Result]:
        """Reads the first finished run of each group that has one: {group: Result}."""
        groups: dict[str, Result] = {}
        for result in self.results():
            if result.status == FINISHED:
                groups.setdefault(result.group, result)
        return groups

    def ground_truth(self, name: str) -> dict[str, Any]:
        """Reads the COCO dict of a validation split."""
        return json.loads(unpacked((self.truth(name) / 'ground_truth.json.gz').read_bytes()))

    def write_ground_truth(self, name: str, ground_truth: dict[str, Any]) -> None:
        """Writes the COCO dict of a validation split."""
        path = self.truth(name) / 'ground_truth.json.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:  # several runs may write the same file
            scratch.write_bytes(gzip.compress(json.dumps(ground_truth).encode(), mtime=0))


def truth_name(data: str, split: str) -> str:
    """Makes a folder's name from a validation split: 'coco', 'validation[:10%]' -> 'coco-validation-10'."""
    return re.sub(r'[^A-Za-z0-9_.]+', '-', f'{data}-{split}').strip('-')


def read_file(path: AnyPath, read: Callable[[], Any]) -> Any:
    """Calls `read`; an error caused by the contents of a file becomes a ValueError that names the file."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        known = str(path) in str(error)
        raise ValueError(str(error) if known else f'{path} cannot be read: {type(error).__name__}: {error}') from error
