"""Trainings in processes, and what happens to them: signals, full disks, damaged files, second trainers.

make_training: a config -> a Training, the command to start again and again
Run.start -> a Trainer, its processes; Run.end -> how they ended, with all that is promised
FAULTS: each happens to a run, at a moment of PLACES that is drawn
"""

import contextlib
import functools
import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import ml_collections

from detzoo.config import to_json
from detzoo.run.checkpoint import damage, is_checkpoint
from detzoo.run.hosts import LOST
from detzoo.run.stopping import EXIT_CODES

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds after which a training counts as hanging
BETWEEN = 'between starts'  # where a fault came to no process
HOST_PATIENCE = 120.0  # seconds that a process may outlive the other one of its run


class Failure(Exception):
    """A training did what is not promised."""


class Training(NamedTuple):
    """What is trained again and again.

    config: its config.
    file: the config as a file.
    reference: workdir of the run that nothing happened to.
    environment: variables of its processes.
    hosts: number of its processes.
    startup: seconds from the start to the first step of the undisturbed run.
    """

    config: ml_collections.ConfigDict
    file: pathlib.Path
    reference: pathlib.Path
    environment: Mapping[str, str]
    hosts: int = 1
    startup: float = 0.0


def make_training(
    config: ml_collections.ConfigDict, file: pathlib.Path, reference: pathlib.Path, hosts: int = 1
) -> Training:
    """Writes a config into a file, from which trainings on one CPU device a process start; programs are kept beside it."""
    text = f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({to_json(config)!r})\n'
    file.write_text(text)
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(file.parent / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0',
    }
    return Training(config, file, reference, environment, hosts)


class Trainer:
    """The processes of one start of a training."""

    def __init__(self, training: Training, workdir: pathlib.Path):
        """Starts them."""
        command = [sys.executable, ROOT / 'scripts' / 'train.py', f'--config={training.file}', f'--workdir={workdir}']
        own = [[]]
        if training.hosts > 1:
            with socket.socket() as free:
                free.bind(('localhost', 0))
                address = f'localhost:{free.getsockname()[1]}'
            command += [f'--coordinator_address={address}', f'--num_processes={training.hosts}', '--start_timeout=90']
            own = [[f'--process_id={index}'] for index in range(training.hosts)]
        self.began = time.monotonic()
        self.processes = [
            subprocess.Popen(
                command + flags,
                env=training.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for flags in own
        ]

    def running(self) -> bool:
        """Tells whether all processes run."""
        return all(process.poll() is None for process in self.processes)

    def end(self, codes: Collection[int], patience: float = PATIENCE) -> str:
        """Waits until all processes have ended.

        Args:
            codes: exit codes that are promised.
            patience: seconds after which they hang.

        Returns:
            how they ended: 'done', 'exit code 42', 'one clear error', 'SIGKILL', or several of these.

        Raises:
            Failure: one hangs, has another exit code, or wrote a traceback or several errors.
        """
        ends, until = set(), time.monotonic() + patience
        for process in self.processes:
            try:
                output, _ = process.communicate(timeout=max(1.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                raise Failure(f'hangs for {patience:g} s: {process.communicate()[0][-3000:]}') from None
            ends.add(describe(process.returncode, output, codes))
        return ', '.join(sorted(ends))

    def kill(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            process.kill()


def describe(code: int, output: str, codes: Collection[int]) -> str:
    """Names how a process ended.

    Raises:
        Failure: its exit code is not promised, or it wrote a traceback, or failed without one clear error.
    """
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    if code not in codes or 'Traceback' in output or len(errors) != (code in (1, LOST)):
        raise Failure(f'exit code {code}, of {sorted(codes)} promised: {output[-3000:]}')
    if code < 0:
        return signal.Signals(-code).name
    return {0: 'done', 1: 'one clear error', LOST: f'one clear error ({LOST})'}.get(code, f'exit code {code}')


def catches(process: subprocess.Popen, number: int) -> bool:
    """Tells whether a process has a handler for a signal."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines():
            if line.startswith('SigCgt:'):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class Run:
    """A training in a workdir, to which faults happen."""

    def __init__(self, training: Training, workdir: pathlib.Path, draw: random.Random):
        """Plans it; nothing is started."""
        self.training, self.workdir, self.draw = training, workdir, draw
        self.trainer: Trainer | None = None  # what runs
        self.safe = 0  # step of the newest checkpoint, which must not be lost
        self.finished = False  # whether the training came to its end, and nothing was changed since
        self.place = BETWEEN  # where the last fault came

    def start(self) -> Trainer:
        """Starts the training, unless it runs."""
        if self.trainer is None:
            self.first, self._before = self.newest(), (self._logs(), self._drafts())
            self.trainer = Trainer(self.training, self.workdir)
        return self.trainer

    def end(self, codes: Collection[int], patience: float = PATIENCE) -> str:
        """Waits until the training has ended as promised, and looks after its checkpoints; see `Trainer.end`."""
        trainer, self.trainer = self.trainer, None
        how, newest = trainer.end(codes, patience), self.newest()
        if newest < self.safe:
            raise Failure(f'the checkpoint of step {self.safe} is lost: that of step {newest} is the newest')
        self.safe, self.finished = newest, how == 'done'
        return how

    def await_moment(self) -> bool:
        """Waits for a moment that is drawn; returns False if the training ends before."""
        self.place, share = self.draw.choice(list(PLACES)), self.draw.random()
        is_there, longest = PLACES[self.place]
        there = self.until(functools.partial(is_there, self, share))
        time.sleep(longest * self.draw.random())
        return there and self.trainer.running()

    def until(self, condition: Callable[[], Any]) -> bool:
        """Waits until something is so; returns False if the training ends before."""
        while not condition():
            if not self.trainer.running():
                return False
            if time.monotonic() > self.trainer.began + PATIENCE:
                self.trainer.end(())
            time.sleep(0.003)
        return True

    def stop_at_checkpoint(self, number: int = 1) -> None:
        """Kills the training once it has so many checkpoints; something will be damaged."""
        if self.trainer is not None or len(self.whole()) < number:
            self.start()
            self.until(lambda: len(self.whole()) >= number)
            self.trainer.kill()
            self.end((0, 1, -signal.SIGKILL))
        self.place, self.finished = BETWEEN, False

    def is_open(self) -> bool:
        """Tells whether the training has opened its log, and cut it back to where it goes on."""
        return self._logs() > self._before[0]

    def drafting(self) -> bool:
        """Tells whether the training writes a checkpoint."""
        return bool(self._drafts() - self._before[1])

    def rows(self) -> list[dict[str, Any]]:
        """Reads the whole lines of metrics.jsonl."""
        path = self.workdir / 'metrics.jsonl'
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b'\n')]

    def logged(self) -> int:
        """Returns the last step in metrics.jsonl."""
        return max((row['step'] for row in self.rows()), default=0)

    def whole(self) -> list[int]:
        """Lists the steps of the checkpoints that are whole."""
        folders = list((self.workdir / 'checkpoints').glob('*'))
        return sorted(int(path.name) for path in folders if is_checkpoint(path) and not damage(path))

    def newest(self) -> int:
        """Returns the step of the newest whole checkpoint; 0 if there is none."""
        return max(self.whole(), default=0)

    def _logs(self) -> int:
        return len(list((self.workdir / 'tensorboard').glob('*')))

    def _drafts(self) -> set[tuple[str, int]]:
        found = set()
        for path in (self.workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'):
            with contextlib.suppress(OSError):  # it is complete
                found.add((path.name, path.stat().st_ino))
        return found


# Moments: whether they are there, for a share in 0..1 of all that are possible


def in_startup(run: Run, share: float) -> bool:
    return time.monotonic() - run.trainer.began >= share * run.training.startup


def at_step(run: Run, share: float) -> bool:
    left = run.training.config.training.steps - run.first
    return run.is_open() and run.logged() > run.first + int(share * left)


def in_checkpoint(run: Run, share: float) -> bool:
    left = max(0, run.training.config.training.steps - run.training.config.training.checkpoint_every - run.first)
    return run.is_open() and run.logged() >= run.first + int(share * left) and run.drafting()


def in_evaluation(run: Run, share: float) -> bool:
    del share  # there are few of them
    rows = run.rows() if run.is_open() else []
    every = run.training.config.training.evaluate_every or run.training.config.training.steps
    return bool(rows) and rows[-1]['step'] % every == 0 and 'validation/loss' not in rows[-1]


PLACES = {  # moments, and seconds within which the fault then comes
    'start-up': (in_startup, 0.0),
    'step': (at_step, 0.05),
    'checkpoint': (in_checkpoint, 0.1),
    'evaluation': (in_evaluation, 1.0),
}


# Faults: each happens to a run, and returns what came of it


def send(run: Run, *numbers: int) -> str:
    """Sends signals to a process of the training."""
    victim = run.draw.choice(run.start().processes)
    if not run.await_moment():
        return f'too late: {run.end([0])}'
    seen, first = run.logged() if run.is_open() else 0, run.first
    codes = {0} | {EXIT_CODES.get(number, -number) for number in numbers}
    for number in numbers:
        codes |= set() if catches(victim, number) else {-number}  # Python itself still starts
        victim.send_signal(number)
        time.sleep(0.3 * run.draw.random())
    if run.training.hosts > 1:
        how = run.end(codes | {LOST}, HOST_PATIENCE)
    else:
        how = run.end(codes)
    saves = len(numbers) == 1 and how in ('exit code 42', 'exit code 130')
    if saves and first < seen and run.newest() < seen:
        raise Failure(
            f'the state after step {seen} was not saved: the newest checkpoint is that of step {run.newest()}'
        )
    return how


def fill_disk(run: Run) -> str:
    """Leaves no room on the disk until the training has ended."""
    trainer = run.start()
    if not run.await_moment():
        return f'too late: {run.end([0])}'
    size, disk = run.draw.randrange(30_000), run.workdir.parent
    filler = disk / 'filler'
    try:
        if os.path.ismount(disk):
            allocate(filler, size)
        else:
            for process in trainer.processes:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return run.end((0, 1))
    finally:
        filler.unlink(missing_ok=True)


def allocate(filler: pathlib.Path, left: int) -> None:
    """Makes a file that takes the whole disk but for so many bytes."""
    with filler.open('wb') as file:
        for _ in range(1000):
            with contextlib.suppress(OSError):  # something else was written in the meantime
                disk = os.statvfs(filler)
                os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left))
                return


def damage_checkpoint(run: Run) -> str:
    """Damages the newest checkpoint, or all, between two starts."""
    run.stop_at_checkpoint()
    folders = sorted(filter(is_checkpoint, (run.workdir / 'checkpoints').glob('*')), key=lambda path: int(path.name))
    for folder in folders if run.draw.random() < 0.25 else folders[-1:]:
        damage_file(run.draw.choice(sorted(path for path in folder.glob('*/**/*') if path.is_file())), run.draw)
    run.safe = run.newest()
    if run.safe:
        return 'set aside'
    run.start()
    return f'all: {run.end([1])}'


def damage_file(path: pathlib.Path, draw: random.Random) -> None:
    """Removes a file, cuts it short, or flips one of its bits."""
    content, kind = bytearray(path.read_bytes()), draw.choice(['missing', 'cut', 'flipped'])
    if kind == 'missing' or not content:
        path.unlink()
        return
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content[:place] if kind == 'cut' else content)


def cut_line(run: Run) -> str:
    """Cuts the last line of metrics.jsonl between two starts."""
    run.stop_at_checkpoint(2)  # the lines up to the first one stay
    path = run.workdir / 'metrics.jsonl'
    content = path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    path.write_bytes(content[: -run.draw.randint(1, len(last))])
    run.safe = max(step for step in run.whole() if step <= run.logged())  # those beyond the log are made again
    return 'made again'


def start_another(run: Run) -> str:
    """Starts the training a second time, at once or while the first one starts: one goes on, the other is refused."""
    first, lag = run.start(), run.draw.choice([0.0, run.draw.random()])
    run.place = 'start-up'
    run.until(lambda: in_startup(run, lag))
    second = Trainer(run.training, run.workdir)
    try:
        run.until(lambda: not second.running())
        if not first.running() and second.running():
            first, second = second, first
        how = second.end((0, 1))  # 0: the other one had finished before
        run.trainer = first
        return how
    finally:
        second.kill()


FAULTS = {
    'SIGKILL': lambda run: send(run, signal.SIGKILL),
    'SIGTERM': lambda run: send(run, signal.SIGTERM),
    'Ctrl-C': lambda run: send(run, signal.SIGINT),
    'Ctrl-C twice': lambda run: send(run, signal.SIGINT, signal.SIGINT),
    'full disk': fill_disk,
    'damaged checkpoint': damage_checkpoint,
    'cut metrics.jsonl': cut_line,
    'second trainer': start_another,
}
OF_HOSTS = {  # faults of one of two processes
    'SIGKILL to one of two': FAULTS['SIGKILL'],
    'SIGTERM to one of two': FAULTS['SIGTERM'],
    'Ctrl-C to one of two': FAULTS['Ctrl-C'],
}
