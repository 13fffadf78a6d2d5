"""Disturbs trainings of tiny detectors at random, and compares how they end with trainings that nothing happened to.

    PYTHONPATH=tests python scripts/dev/fault_campaign.py --workdir=/tmp/campaign --runs=200

The seed of a run draws its family, its one to three faults (FAULTS), and the moments at which they come (PLACES):

    start of `scripts/train.py` -> a fault -> start -> ... -> the same command to its end
      -> parameters, optimiser and metrics.jsonl, compared to the bit with those of an undisturbed run
      -> a line of runs.jsonl in the workdir, and table.md: what came of each fault

After each end the newest whole checkpoint must still be there, and the output has no traceback: a process may end by a signal's
own exit code, or with exit code 1 and one line `error: ...`. Anything else is a failure. It is printed with its seed, and the
run's folder stays; --seed=S --runs=1 repeats it. A campaign that was cut goes on with the same command. Several may share a
workdir at the same time, with other seeds, and disks of their own.

With --disk=DIR, a small file system (`mount -t tmpfs -o size=300m tmpfs DIR`), a full disk is one that is filled. Without it, no
file may grow beyond a few kilobytes.
"""

import argparse
import collections
import contextlib
import fcntl
import functools
import json
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from faults import BETWEEN, FAULTS, OF_HOSTS, Failure, Run, Training, make_training
from linear import saved
from tiny import TINY_FASTER_RCNN_C4, TINY_MASK_RCNN_C4, TINY_RETINANET, TINY_SSD, TINY_YOLO_V1
from toy import prepare_toy, toy_config, with_masks
from tqdm import tqdm

FAMILIES = dict(
    yolo=TINY_YOLO_V1,
    ssd=TINY_SSD,
    retinanet=TINY_RETINANET,
    faster_rcnn=TINY_FASTER_RCNN_C4,
    mask_rcnn=TINY_MASK_RCNN_C4,
)


def play(training: Training, workdir: pathlib.Path, names: Sequence[str], draw: random.Random) -> list[dict[str, str]]:
    """Trains, with faults one after the other, and then to the end.

    Args:
        training: what is trained.
        workdir: a new folder.
        names: faults, keys of FAULTS or OF_HOSTS.
        draw: draws the moments.

    Returns:
        name, place and outcome of each fault.

    Raises:
        Failure: what is not promised happened; its `faults` are those until then.
    """
    run, faults = Run(training, workdir, draw), []
    try:
        for name in names:
            faults.append({'fault': name, 'place': BETWEEN, 'outcome': 'failure'})
            faults[-1] |= {'outcome': (FAULTS | OF_HOSTS)[name](run), 'place': run.place}
        if run.trainer is not None or not run.finished:
            run.start()
            run.end([0])
        if different := difference(workdir, training.reference):
            raise Failure(different)
    except Failure as failure:
        failure.faults = faults
        raise
    finally:
        if run.trainer is not None:
            run.trainer.kill()
    return faults


def difference(workdir: pathlib.Path, reference: pathlib.Path) -> str | None:
    """Names the first difference between the ends of two runs: of parameters, averages, optimiser or metrics; None without any."""
    lines, expected = ((folder / 'metrics.jsonl').read_bytes().splitlines() for folder in (workdir, reference))
    for number, (line, other) in enumerate(zip(lines, expected), start=1):
        if line != other:
            return f'line {number} of metrics.jsonl is {line[:200]!r}, was {other[:200]!r}'
    if len(lines) != len(expected):
        return f'metrics.jsonl has {len(lines)} lines, had {len(expected)}'
    leaves, others = leaves_of(workdir), leaves_of(reference)
    if leaves.keys() != others.keys():
        return f'the checkpoint has other leaves: {sorted(leaves.keys() ^ others.keys())[:3]}'
    return next((f'{name} differs' for name in leaves if not np.array_equal(leaves[name], others[name])), None)


def leaves_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all leaves of the newest checkpoint, by their names."""
    leaves = jax.tree_util.tree_leaves_with_path(saved(workdir))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class Campaign:
    """The runs of a workdir."""

    def __init__(self, workdir: pathlib.Path, disk: pathlib.Path | None):
        """Prepares the data if they are missing."""
        self.workdir, self.disk = workdir, disk or workdir / 'runs'
        self.disk.mkdir(parents=True, exist_ok=True)
        (workdir / 'data').mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not (workdir / 'data' / 'toy').exists():
                prepare_toy(workdir / 'data', with_masks, range(8), range(30, 34))
        self._file = workdir / 'runs.jsonl'

    def rows(self) -> dict[int, dict[str, Any]]:
        """Reads the runs so far, by their seeds."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return {row['seed']: row for row in map(json.loads, lines)}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other campaign makes what all share."""
        with (self.workdir / 'lock').open('w') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @functools.lru_cache  # noqa: B019, there is one campaign
    def training(self, family: str, hosts: int) -> Training:
        """Makes what is trained of a family; the first time its undisturbed run, and a second one for its time."""
        name = f'{family}_{hosts}'
        config = toy_config(
            self.workdir / 'data',
            FAMILIES[family],
            data__mask_size=28 if family == 'mask_rcnn' else 0,
            optimizer__learning_rate=1e-3,
            training__steps=12,
            training__batch_size=2,
            training__checkpoint_every=3,
            training__evaluate_every=6,
            training__keep_best='loss',
            evaluation__batch_size=2,
        )
        reference = self.workdir / 'undisturbed' / name
        training = make_training(config, self.workdir / f'{name}.py', reference, hosts)
        startup = reference.with_suffix('.seconds')
        if not startup.exists():
            with self._alone():
                if not startup.exists():  # another campaign may have made it
                    shutil.rmtree(reference, ignore_errors=True)
                    play(training, reference, (), random.Random(0))
                    startup.write_text(str(self._time_startup(training)))
        return training._replace(startup=float(startup.read_text()))

    def _time_startup(self, training: Training) -> float:
        """Repeats an undisturbed run, now that all is compiled; returns the seconds to its first step."""
        with self._folder('startup') as folder:
            run = Run(training, folder, random.Random(0))
            began = run.start().began
            run.until(run.logged)
            seconds = time.monotonic() - began
            run.end([0])
            assert difference(folder, training.reference) is None
        return seconds

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a new workdir, which is removed if nothing fails."""
        folder = self.disk / name
        shutil.rmtree(folder, ignore_errors=True)
        yield folder
        shutil.rmtree(folder)

    def run(self, seed: int, families: Sequence[str], of_two: float) -> dict[str, Any]:
        """Makes the run of a seed, and adds it to runs.jsonl.

        Args:
            seed: draws all that is drawn.
            families: keys of FAMILIES.
            of_two: probability of two processes.
        """
        draw = random.Random(seed)
        family, hosts = draw.choice(families), 2 if draw.random() < of_two else 1
        known = FAULTS if hosts == 1 else OF_HOSTS
        names, began, faults, failure = draw.choices(list(known), k=draw.randint(1, 3)), time.monotonic(), [], None
        try:
            with self._folder(f'seed_{seed}') as folder:
                faults = play(self.training(family, hosts), folder, names, draw)
        except Failure as raised:
            faults, failure = raised.faults, str(raised)
        row = dict(
            seed=seed,
            family=family,
            hosts=hosts,
            seconds=round(time.monotonic() - began),
            faults=faults,
            failure=failure,
        )
        with self._file.open('a') as file:
            file.write(json.dumps(row) + '\n')
        (self.workdir / 'table.md').write_text(table(list(self.rows().values())))
        return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes what came of the faults, and of the runs of each family, as two tables in Markdown."""
    hits = [(fault, row) for row in rows for fault in row['faults']]
    lines = [
        '| fault | times | when | what came of it | runs | ended bit-identical | failed |',
        '|---|--:|---|---|--:|--:|--:|',
    ]
    for name in FAULTS | OF_HOSTS:
        own = [(fault, row) for fault, row in hits if fault['fault'] == name]
        if own:
            runs = {row['seed']: row for _, row in own}.values()
            cells = [counted(fault['place'] for fault, _ in own), counted(fault['outcome'] for fault, _ in own)]
            lines.append(
                f'| {name} | {len(own)} | {cells[0]} | {cells[1]} | {len(runs)} | {good(runs)} | {len(runs) - good(runs)} |'
            )
    lines += ['', '| family | processes | runs | faults | ended bit-identical | failed |', '|---|--:|--:|--:|--:|--:|']
    for family, hosts in sorted({(row['family'], row['hosts']) for row in rows}):
        runs = [row for row in rows if (row['family'], row['hosts']) == (family, hosts)]
        count = sum(len(row['faults']) for row in runs)
        lines.append(f'| {family} | {hosts} | {len(runs)} | {count} | {good(runs)} | {len(runs) - good(runs)} |')
    lines.append(f'| all | | {len(rows)} | {len(hits)} | {good(rows)} | {len(rows) - good(rows)} |')
    return '\n'.join(lines) + '\n'


def counted(words: Iterable[str]) -> str:
    """Counts words: '3 step, 1 start-up'."""
    return ', '.join(f'{count} {word}' for word, count in collections.Counter(words).most_common())


def good(rows: Collection[Mapping[str, Any]]) -> int:
    """Counts the runs without a failure."""
    return sum(row['failure'] is None for row in rows)


def main() -> None:
    """Makes the runs that the workdir lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='folder of the campaign')
    parser.add_argument('--runs', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0, help='that of the first run; the others follow')
    parser.add_argument('--families', default=','.join(FAMILIES), help='some of them, with commas')
    parser.add_argument('--of_two', type=float, default=0.15, help='share of the runs that have two processes')
    parser.add_argument('--disk', type=pathlib.Path, help='a small file system to fill, on which the runs then lie')
    arguments = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # Orbax's advice
    campaign = Campaign(arguments.workdir.resolve(), arguments.disk)
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    rows = campaign.rows()
    left = [seed for seed in seeds if rows.get(seed, {'failure': 'missing'})['failure']]
    for seed in tqdm(left, unit='run', initial=len(seeds) - len(left), total=len(seeds)):
        row = campaign.run(seed, arguments.families.split(','), arguments.of_two)
        if row['failure']:
            tqdm.write(
                f'seed {seed}, {row["family"]}, {row["faults"]}: {row["failure"]}\nagain: --seed={seed} --runs=1'
            )
    rows = campaign.rows()
    print(table([rows[seed] for seed in seeds]))
    sys.exit(any(rows[seed]['failure'] for seed in seeds))


if __name__ == '__main__':
    main()
