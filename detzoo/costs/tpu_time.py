"""The time that a program would take on TPUs, as their compiler estimates it; nothing is measured.

    compiled program, topology -> `estimated_time`: the compiler's cycles, by named scope -> Estimate

`Estimate` says what the estimate leaves out.
"""

import collections
import math
import re
from typing import Any, NamedTuple

from detzoo.costs.scopes import OTHER, STAGES, stage_of
from detzoo.costs.tpu import chip_of

SMALL = 1024  # numbers that fill a vector register; operations on fewer are not missed if they have no figure
# Operations that do nothing, or wait for transfers that run beside the computation.
FREE = frozenset(
    'parameter constant tuple get-tuple-element bitcast after-all partition-id copy-start copy-done slice-start slice-done '
    'async-done async-update'.split()
)
FREE_CALLS = 'AllocateBuffer', 'ConcatBitcast'  # custom-calls that take no time


class Estimate(NamedTuple):
    """The TPU compiler's estimate of a program's time, operation by operation.

    seconds: {stage: seconds, backward operations included}, with OTHER; stages without any are left out.
    not_counted: {stage: {kind: number}} of operations on SMALL numbers or more without a figure (sorts, gathers, collectives);
        their time is missing, which makes the estimate a lower bound.
    bounded_loops: loops that are counted as often as the integer in their condition allows; they may end earlier.
    loops_counted_once: loops whose number of rounds depends on the data, such as those of the NMS.
    """

    seconds: dict[str, float]
    not_counted: dict[str, dict[str, int]]
    bounded_loops: int
    loops_counted_once: int

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def outside(self) -> float:
        """The share of the time that is not the backbone's or the neck's, 0..1."""
        return 1 - sum(self.seconds.get(stage, 0) for stage in ('backbone', 'neck')) / self.total


def estimated_time(compiled: Any, topology: str) -> Estimate:
    """Sums the TPU compiler's cycles of a program over its operations, by the stage they lie in.

    Args:
        compiled: a program compiled for the topology, or its text.
        topology: see `topology_devices`.

    Raises:
        ValueError: no operation carries `estimated_cycles`, as in a program that was not compiled for a TPU.
    """
    module = _Module(compiled if isinstance(compiled, str) else compiled.as_text())
    cycles = module.cycles(module.entry)
    if not cycles:
        raise ValueError('no operation carries estimated_cycles: this program was not compiled for a TPU')
    clock = chip_of(topology).clock
    stages = (*STAGES, OTHER)
    seconds = {stage: cycles[stage] / clock for stage in stages if stage in cycles}
    not_counted = {stage: dict(module.not_counted[stage]) for stage in stages if stage in module.not_counted}
    return Estimate(seconds, not_counted, module.bounded_loops, module.loops_counted_once)


class _Operation(NamedTuple):
    """A line of a computation: the opcode, the type of the result (in parentheses if it is a tuple), and the whole line."""

    opcode: str
    result: str
    line: str

    @property
    def free(self) -> bool:
        """Whether it takes no time of its own."""
        return self.opcode in FREE or any(f'custom_call_target="{name}"' in self.line for name in FREE_CALLS)

    @property
    def size(self) -> int:
        """How many numbers the largest array of the result has."""
        shapes = re.findall(r'\w\[([\d,]*)\]', self.result)
        return max((math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes), default=0)


class _Module:
    """The text of a compiled program: cycles(computation) -> {stage: cycles}; also counts the operations without cycles."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Operation]] = {}
        self.entry = ''
        self.not_counted: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.bounded_loops = self.loops_counted_once = 0
        lines: list[_Operation] = []
        for line in text.splitlines():
            if header := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line):
                lines = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif operation := re.match(r'\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(', line):
                lines.append(_Operation(operation[2], operation[1], line))

    def cycles(self, computation: str, caller: str = OTHER) -> collections.Counter:
        """Sums the cycles of a computation and of the computations it calls; loops count as often as they run.

        Operations without a stage, such as the copies in a loop's body, belong to the stage of the caller.
        """
        total: collections.Counter = collections.Counter()
        for operation in self.computations[computation]:
            stage = stage_of(operation.line)
            stage = caller if stage == OTHER else stage
            called = {key: self.cycles(name, stage) for key, name in self._called(operation)}
            if operation.opcode == 'while':
                trips = self._trips(operation)
                for part in called.values():
                    total.update({stage: trips * count for stage, count in part.items()})
            elif operation.opcode == 'conditional':
                total.update(max(called.values(), key=lambda branch: branch.total()))
            elif called:
                total.update(*called.values())
            elif cycles := re.search(r'"estimated_cycles":"(\d+)"', operation.line):
                total[stage] += int(cycles[1])
            elif operation.size >= SMALL and not operation.free:
                self.not_counted[stage][operation.opcode] += 1
        return total

    def _called(self, operation: _Operation) -> list[tuple[str, str]]:
        """Lists the computations that an operation runs, as (role, name), but not a fusion's: its cycles are its own."""
        keys = {
            'while': r'(condition|body)=%?([\w.-]+)',
            'conditional': r'(true_computation|false_computation)=%?([\w.-]+)',
            'call': r'(to_apply)=%?([\w.-]+)',
            'async-start': r'(calls)=%?([\w.-]+)',
        }
        called = re.findall(keys[operation.opcode], operation.line) if operation.opcode in keys else []
        if branches := re.search(r'branch_computations=\{(.*?)\}', operation.line):
            called += [(name, name.strip(' %')) for name in branches[1].split(',')]
        return called

    def _trips(self, loop_operation: _Operation) -> int:
        """Returns how often a loop runs if the compiler knows it, else the integer in its condition, which is a limit."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop_operation.line):
            return int(known[1])
        condition = self._text(dict(self._called(loop_operation))['condition'])
        constants = re.findall(r's32\[\d*\]\S* constant\(\{?([\d, ]+)\}?\)', condition)  # a vector, if vmapped
        bounds = {int(number) for constant in constants for number in constant.split(',')} - {0}
        if len(bounds) == 1:
            self.bounded_loops += 1
            return bounds.pop()
        self.loops_counted_once += 1
        return 1

    def _text(self, computation: str) -> str:
        """Joins the lines of a computation and of its fusions."""
        lines = '\n'.join(operation.line for operation in self.computations[computation])
        return '\n'.join([lines, *map(self._text, re.findall(r'calls=%?([\w.-]+)', lines))])
