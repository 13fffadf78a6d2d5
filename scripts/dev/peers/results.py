"""The results of a benchmark: a file of JSON that grows row by row, and the ratios of its figures.

    {"runs": [what `machine.describe` says, and the command], "rows": [what `turns.run_case` returns, and "section", "name", "run"]}

A row is replaced when it is measured again, so a run can be continued, or made in parts.
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detzoo.files import new_file
from peers.machine import IDLE
from peers.turns import OURS


class Ratio(NamedTuple):
    """How many times as fast detzoo is: the peer's seconds over detzoo's.

    medians: ratio of the medians.
    lowest, highest: the extremes of the rounds' ratios.
    rounds: number of rounds.
    """

    medians: float
    lowest: float
    highest: float
    rounds: int


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compares the seconds of rounds in which both ran, in order."""
    of_rounds = [their / our for our, their in zip(ours, theirs)]
    medians = statistics.median(theirs) / statistics.median(ours)
    return Ratio(medians, min(of_rounds), max(of_rounds), len(of_rounds))


def fastest(row: Mapping[str, Any], kind: str) -> str:
    """Finds the label of the fastest side of a kind, torch in its better memory layout, among those that ran in all rounds."""
    sides = {label: side['seconds'] for label, side in row['sides'].items() if side['kind'] == kind}
    rounds = max(map(len, sides.values()))
    return min(
        (label for label in sides if len(sides[label]) == rounds), key=lambda label: statistics.median(sides[label])
    )


def peers_of(row: Mapping[str, Any]) -> list[str]:
    """Lists the kinds of a row's peers."""
    return list(dict.fromkeys(side['kind'] for side in row['sides'].values() if side['kind'] != OURS))


def was_busy(row: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Tells whether other processes ran beside a measurement, or before it."""
    return max(row['busy'], run['busy']) > IDLE


class Results:
    """The file of results."""

    def __init__(self, path: pathlib.Path):
        """Reads the file, if it is there."""
        self.path = path
        content = json.loads(path.read_text()) if path.exists() else {'runs': [], 'rows': []}
        self.runs, self.rows = content['runs'], content['rows']

    def begin(self, run: Mapping[str, Any]) -> None:
        """Adds a run, to which the following rows belong."""
        self.runs.append(dict(run))

    def has(self, section: str, name: str, commit: str) -> bool:
        """Tells whether a row was measured at a commit."""
        return any(
            (row['section'], row['name'], self.runs[row['run']]['commit']) == (section, name, commit)
            for row in self.rows
        )

    def add(self, section: str, name: str, row: Mapping[str, Any]) -> None:
        """Adds a row, or replaces it in its place, forgets runs that have none left, and writes the file."""
        rows = {(old['section'], old['name']): old for old in self.rows}
        rows[section, name] = {'section': section, 'name': name, 'run': len(self.runs) - 1, **row}
        used = sorted({row['run'] for row in rows.values()})
        self.runs = [self.runs[number] for number in used]
        self.rows = [{**row, 'run': used.index(row['run'])} for row in rows.values()]
        with new_file(self.path) as scratch:
            scratch.write_text(json.dumps({'runs': self.runs, 'rows': self.rows}, indent=1) + '\n')
