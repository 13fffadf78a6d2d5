"""The progress of a sweep's runs."""

import json
import os
import time
from typing import Any

import numpy as np

from detzoo.sweeps.store import WAITING, Result, Store


class Board:
    """Reads the progress of the runs from their logs, and estimates how long they will take."""

    def __init__(self, store: Store, runs: list[Result]):
        self.store, self.runs = store, runs
        self.first: dict[str, tuple[float, int]] = {}  # time and step at which a run was first seen to train
        self.pace: dict[str, float] = {}  # seconds per step

    def rows(self, running: dict[str, Any], done: dict[str, Result]) -> list[dict[str, Any]]:
        """Makes a row for each run."""
        rows = []
        for run in self.runs:
            row = dict(
                run=run.run,
                status=WAITING,
                step=0,
                steps=run.config['training']['steps'],
                left=None,
                AP=None,
                reason='',
            )
            if run.run in running:
                row |= dict(status='running', step=self._step(run.run))
            elif run.run in done:
                result = done[run.run]
                row |= dict(status=result.status, step=result.steps, AP=result.metrics.get('AP'), reason=result.reason)
            rows.append(row)
        pace = np.mean(list(self.pace.values())) if self.pace else None
        for row in rows:
            if row['status'] in (WAITING, 'running') and pace is not None:
                row['left'] = (row['steps'] - row['step']) * self.pace.get(row['run'], pace)
        return rows

    def _step(self, run: str) -> int:
        """Reads the last step of a run, and times it."""
        path = self.store.workdir(run) / 'metrics.jsonl'
        try:
            with path.open('rb') as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                step = json.loads(file.read().splitlines()[-1])['step']
        except (OSError, ValueError, IndexError, KeyError):  # the file is missing, or its last line is being written
            return self.first.get(run, (0.0, 0))[1]
        now = time.monotonic()
        since, start = self.first.setdefault(run, (now, step))
        if step > start:
            self.pace[run] = (now - since) / (step - start)
        return step
