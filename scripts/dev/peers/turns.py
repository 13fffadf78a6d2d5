"""Times programs in turn, each in a process of its own.

    Case    -> a process for each side: imports its libraries, prepares the program, and calls it until it is warm
            -> `Case.check`: what the sides computed is the same
            -> rounds: one process after the other; the order turns round from round to round
    Timed   <- the seconds of each round, the memory, and how busy other processes kept the machine

A process whose turn it is not waits for its pipe, so that no two programs run at once. In its turn it calls its program until
`TURN_SECONDS` have passed, at least once; the median of these calls is the turn's figure. The clock runs in that process: neither
the pipe nor the wake-up is timed.
"""

import importlib
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from detzoo.run.memory import keep_memory
from peers.machine import read_clock

OURS = 'detzoo'
TURN_SECONDS = 0.3
CPU_TIME = 'DETZOO_CPU_TIME'  # the variable that lets calls be timed by the CPU time of their process
WARM_UP = 2, 10.0  # calls before the first round, and seconds after which one is enough
LEAST_ROUNDS = 3
CLOSE = 1.05  # a layout that is further behind the fastest one, in the first round, is not run again


class Program(NamedTuple):
    """A program that is ready to be timed.

    step: does the work once, to its end.
    shown: turns what the first call returned into arrays or numbers to compare; this is not timed.
    given: what the sides that are prepared later need, by the names of their arguments.
    facts: what a reader should know, numbers or text.
    """

    step: Callable[[], Any]
    shown: Callable[[Any], Any] = lambda result: result
    given: Mapping[str, Any] = {}
    facts: Mapping[str, Any] = {}


class Side(NamedTuple):
    """One of the programs of a case.

    make: 'module:function'; the function returns a Program.
    arguments: its arguments.
    libraries: modules that are imported before memory is counted.
    kind: the name of the peer; of sides of one kind (torch's two memory layouts) only the fastest is compared.
    """

    make: str
    arguments: Mapping[str, Any]
    libraries: tuple[str, ...]
    kind: str


class Case(NamedTuple):
    """A row of a table.

    section, name: which.
    sides: {label: side}; they are prepared in this order, and the first one's `given` is added to the others' arguments.
    check: takes the results by label, raises AssertionError where they differ, and returns facts.
    rounds: the largest number of rounds.
    expected: seconds that the case takes, for the progress bar.
    """

    section: str
    name: str
    sides: Mapping[str, Side]
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    rounds: int = 5
    expected: float = 10


class Turn(NamedTuple):
    """What a process measured in its turn.

    seconds: the median of the calls.
    wall: seconds of the whole turn.
    others: CPU seconds that other processes used in it, or that the host took.
    """

    seconds: float
    wall: float
    others: float


def run_case(case: Case, *, rounds: int | None = None, budget: float = 60) -> dict[str, Any]:
    """Prepares, compares and times the sides of a case.

    Args:
        case: the case.
        rounds: the largest number of rounds, in place of the case's.
        budget: seconds of timing after which no round starts; `LEAST_ROUNDS` are always run, unless `rounds` is smaller.

    Returns:
        a row of results without its section and name: 'sides' {label: {'kind', 'seconds' [rounds], 'memory_mb',
        'prepare_seconds', 'facts'}}, 'facts', and 'busy', the number of cores that others kept busy.

    Raises:
        RuntimeError: a side failed; the message has its traceback.
        AssertionError: the sides computed different things.
    """
    processes, given = {}, {}
    try:
        for label, side in case.sides.items():
            tqdm.write(f'{case.section}, {case.name}: preparing {label}', file=sys.stderr)
            processes[label] = Process(side._replace(arguments={**side.arguments, **given}))
            given = given or processes[label].given
        facts = case.check({label: process.result for label, process in processes.items()})
        turns = alternate(processes, case.sides, case.rounds if rounds is None else rounds, budget)
        sides = {label: processes[label].finish() for label in processes}
    finally:
        for process in processes.values():
            process.kill()
    every = [turn for label in turns for turn in turns[label]]
    for label, row in sides.items():
        row |= {'kind': case.sides[label].kind, 'seconds': [turn.seconds for turn in turns[label]]}
    return {
        'sides': sides,
        'facts': dict(facts),
        'busy': sum(turn.others for turn in every) / sum(turn.wall for turn in every),
    }


def alternate(
    processes: Mapping[str, 'Process'], sides: Mapping[str, Side], rounds: int, budget: float
) -> dict[str, list[Turn]]:
    """Lets processes take turns: {label: turns}. The arguments are those of `run_case`."""
    turns = {label: [] for label in processes}
    running, begin = set(processes), time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - begin > budget:
            break
        for label in list(processes)[:: 1 if number % 2 else -1]:
            if label in running:
                turns[label].append(processes[label].take_turn())
        if number == 0:
            running = fastest_layouts({label: turn.seconds for label, (turn,) in turns.items()}, sides)
    return turns


def fastest_layouts(seconds: Mapping[str, float], sides: Mapping[str, Side]) -> set[str]:
    """Leaves out, of the sides of each kind, those that are clearly slower than the fastest.

    Args:
        seconds: {label: seconds of the first round}.
        sides: the case's.

    Returns:
        the labels that go on.
    """
    best = {
        kind: min(seconds[label] for label in sides if sides[label].kind == kind) for _, _, _, kind in sides.values()
    }
    return {label for label in sides if seconds[label] <= CLOSE * best[sides[label].kind]}


class Process:
    """A side in a process of its own."""

    def __init__(self, side: Side):
        """Starts the process, and waits until it is warm; `given` and `result` are then there."""
        context = multiprocessing.get_context('spawn')
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, side), daemon=True)
        self._process.start()
        other.close()
        try:
            self._row, self.given, self.result = self._receive()
        except RuntimeError:
            self.kill()
            raise

    def take_turn(self) -> Turn:
        """Lets the process run its program."""
        self._pipe.send('turn')
        return self._receive()

    def finish(self) -> dict[str, Any]:
        """Ends the process, and returns its row: 'memory_mb', 'prepare_seconds' and 'facts'."""
        self._pipe.send('finish')
        self._row |= self._receive()
        self._process.join()
        return self._row

    def kill(self) -> None:
        """Ends the process if it still runs."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            failed, content = self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise RuntimeError(f'the process ended with code {self._process.exitcode}: out of memory?') from error
        if failed:
            raise RuntimeError(content)
        return content


def serve(pipe: Any, side: Side) -> None:
    """Runs a side: the other end of `Process`."""
    if side.kind == OURS:
        keep_memory()  # as the command `detzoo` does
    try:
        for library in side.libraries:
            importlib.import_module(library)
        module, _, function = side.make.partition(':')
        make = getattr(importlib.import_module(module), function)
        imported = _memory('VmRSS')
        begin = time.perf_counter()
        program = make(**side.arguments)
        result = program.shown(warm_up(program.step))
        row = {'prepare_seconds': time.perf_counter() - begin, 'facts': dict(program.facts)}
        _forget_peak()
        pipe.send((False, (row, program.given, result)))
        while pipe.recv() == 'turn':
            pipe.send((False, measure_turn(program.step)))
        pipe.send((False, {'memory_mb': round((_memory('VmHWM') - imported) / 1e6)}))
    except Exception:
        pipe.send((True, traceback.format_exc()))


def warm_up(step: Callable[[], Any]) -> Any:
    """Calls a program until it is warm, and returns the first result."""
    calls, seconds = WARM_UP
    begin = time.perf_counter()
    result = step()
    for _ in range(calls - 1):
        if time.perf_counter() - begin < seconds:
            step()
    return result


def measure_turn(step: Callable[[], Any]) -> Turn:
    """Times a program for `TURN_SECONDS`, at least once: by the wall clock, or with CPU_TIME in the environment by CPU time."""
    read_timer = time.process_time if CPU_TIME in os.environ else time.perf_counter
    clock, own, begin = read_clock(), _own_seconds(), time.perf_counter()
    calls, wall = [], 0.0
    while not calls or wall < TURN_SECONDS:
        start = read_timer()
        step()
        calls.append(read_timer() - start)
        wall = time.perf_counter() - begin
    own, now = _own_seconds() - own, read_clock()
    others = max(0.0, now.busy - clock.busy - own) + now.stolen - clock.stolen
    return Turn(statistics.median(calls), wall, others)


def _own_seconds() -> float:
    """Adds up the CPU seconds of this process, its threads, and its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory(key: str) -> int:
    """Reads the resident memory of this process, bytes: 'VmRSS' now, 'VmHWM' the peak."""
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f'{key}:')))


def _forget_peak() -> None:
    """Lets the peak of memory begin anew, so that it is that of running and not that of compiling."""
    descriptor = os.open('/proc/self/clear_refs', os.O_WRONLY)
    os.write(descriptor, b'5')
    os.close(descriptor)
