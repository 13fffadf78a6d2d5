"""What programs cost, as their compilers say: FLOPs, memory and, for TPUs, an estimated time for each stage.

    predict_program, train_program(config, ...) -> a lowered program: shapes only, no parameter is made
    compiled_cost(lowered.compile())            -> Cost, of one device
    estimated_time(compiled, topology)          -> Estimate: the TPU compiler's cycles, by named scope
    topology_devices('v5e:2x4')                 -> devices to compile for that need not be there (needs libtpu)
    interleaved_latency({name: step})           -> measured seconds, on devices that are there (see also `stages`)

FLOPs and memory are those of one device. Estimates are the compiler's own, and lack what `Estimate` names.
"""

import collections
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from detzoo.inference.dataset import make_predict_step
from detzoo.inference.predictor import detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.training import loop
from detzoo.types import Batch, GroundTruth, Inputs

STAGES = ('backbone', 'neck', 'rpn', 'roi', 'heads', 'post', 'loss')  # the named scopes of detectors
SMALL = 1024  # numbers, a vector register: operations on fewer are never missed
# Operations that do nothing, or that wait for what runs beside the computation.
FREE = frozenset(
    'parameter constant tuple get-tuple-element bitcast after-all partition-id copy-start copy-done slice-start slice-done '
    'async-done async-update'.split()
)
FREE_CALLS = 'AllocateBuffer', 'ConcatBitcast'  # of opcode custom-call
OTHER = 'other'  # what lies in no stage: normalising images, the optimiser, copies


class Chip(NamedTuple):
    """A kind of TPU chip, one device of JAX.

    clock: Hz. Not published: it is the published peak over what the matrix units do in a cycle.
    peak: FLOPs a second in bfloat16.
    memory: bytes of HBM.
    options: of its topologies. The two cores of a v4 are one device of JAX, but not by default where there is no TPU.
    """

    clock: float
    peak: float
    memory: int
    options: dict[str, str] = {}


CHIPS = {
    'v4': Chip(1.05e9, 275e12, 32 * 2**30, {'chip_config_name': 'megacore'}),
    'v5e': Chip(1.5e9, 197e12, 16 * 2**30),
    'v6e': Chip(1.75e9, 918e12, 32 * 2**30),
}


class Cost(NamedTuple):
    """What a compiled program needs on each device.

    flops: a multiply-add is two. Loops count as often as the compiler knows them to run, or else once.
    bytes_accessed: of memory, by all operations.
    argument_bytes, output_bytes, temporary_bytes: of memory. An output in place of a donated argument is in both.
    peak_bytes: arguments, outputs and temporaries, what is donated counted once.
    """

    flops: float
    bytes_accessed: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    peak_bytes: int


class Estimate(NamedTuple):
    """The TPU compiler's estimate of a program's time, one operation after the other. Never a measurement.

    seconds: of each stage that has any, backward operations included, and of OTHER.
    not_counted: how many operations of each kind, on SMALL numbers or more, carry no figure (sorts, gathers,
        collectives): the time lacks them, and is a lower bound that far.
    bounded_loops: loops that count as often as the one integer in their condition allows; they may end earlier.
    loops_counted_once: loops of which even that is not known, since data decide when they end (those of the NMS).
    """

    seconds: dict[str, float]
    not_counted: dict[str, int]
    bounded_loops: int
    loops_counted_once: int

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def parameter_count(params: Any) -> int:
    """Counts the numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def compiled_cost(compiled: Any) -> Cost:
    """Reads the cost of a compiled program (`jax.jit(f).lower(...).compile()`), of one of its devices."""
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Cost(
        flops=analysis['flops'],
        bytes_accessed=analysis['bytes accessed'],
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=total - memory.alias_size_in_bytes,
    )


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiplications, each with its addition, of a function's convolutions and matrix products.

    As papers and model zoos count: padding and all, the rest nothing, bodies of loops as often as they are known to run.

    Args:
        function: of JAX.
        arguments: arrays or shapes.
    """
    return _multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            kernel, dimensions = equation.invars[1].aval.shape, equation.params['dimension_numbers']
            taps = math.prod(kernel) // kernel[dimensions.rhs_spec[0]]  # of an output: with the channels of its group
            # A deconvolution convolves zeros too, which nobody counts.
            count += equation.outvars[0].aval.size * taps // math.prod(equation.params['lhs_dilation'])
        elif equation.primitive.name == 'dot_general':
            ((contracted, _), _) = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            count += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        times = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
        count += times * sum(map(_multiply_adds, jax.extend.core.jaxprs_in_params(equation.params)))
    return count


def topology_devices(topology: str) -> Sequence[Any]:
    """Describes TPUs to compile for: devices that need not be there, and that nothing can run on.

    `costs.TPU_ENVIRONMENT` must have been in the environment when jax was imported.

    Args:
        topology: as Google Cloud calls it, for example 'v5e:2x4', 'v4:2x2x1' or 'v6e:2x2'.

    Raises:
        ImportError: libtpu is not installed.
        ValueError: of this kind of chip nothing is known.
    """
    chip_of(topology)
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError("compiling for TPUs needs libtpu: pip install 'detzoo[tpu]' (Linux, 500 MB)") from error
    from jax.experimental import topologies

    options = chip_of(topology).options
    return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices


def chip_of(topology: str) -> Chip:
    """Looks up the chip of a topology; raises ValueError where it is not in CHIPS."""
    kind = topology.partition(':')[0]
    if kind not in CHIPS:
        raise ValueError(f'topology {topology!r} is of no known chip: use {", ".join(CHIPS)}, for example v5e:2x4')
    return CHIPS[kind]


def estimated_time(compiled: Any, topology: str) -> Estimate:
    """Sums the TPU compiler's cycles of a program over its operations, by the stage they lie in.

    Args:
        compiled: for the topology; or its text.
        topology: see `topology_devices`.

    Raises:
        ValueError: no operation carries `estimated_cycles`, as in a program that was not compiled for a TPU.
    """
    module = _Module(compiled if isinstance(compiled, str) else compiled.as_text())
    cycles = module.cycles(module.entry)
    if not cycles:
        raise ValueError('no operation carries estimated_cycles: this program was not compiled for a TPU')
    clock = chip_of(topology).clock
    seconds = {stage: cycles[stage] / clock for stage in (*STAGES, OTHER) if stage in cycles}
    return Estimate(seconds, dict(module.not_counted), module.bounded_loops, module.loops_counted_once)


class _Operation(NamedTuple):
    """A line of a computation: the opcode, the type of the result (a tuple's in parentheses), and the whole line."""

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
    """The text of a compiled program: cycles(computation) -> {stage: cycles}; also counts what the cycles lack."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Operation]] = {}
        self.entry = ''
        self.not_counted: collections.Counter = collections.Counter()
        self.bounded_loops = self.loops_counted_once = 0
        lines: list[_Operation] = []
        for line in text.splitlines():
            if header := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line):
                lines = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif operation := re.match(r'\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(', line):
                lines.append(_Operation(operation[2], operation[1], line))

    def cycles(self, computation: str) -> collections.Counter:
        """Sums the cycles of a computation and of those it calls, loops as often as they run."""
        total: collections.Counter = collections.Counter()
        for operation in self.computations[computation]:
            called = {key: self._staged(self.cycles(name), operation) for key, name in self._called(operation)}
            if operation.opcode == 'while':
                trips = self._trips(operation)
                for part in called.values():
                    total.update({stage: trips * count for stage, count in part.items()})
            elif operation.opcode == 'conditional':
                total.update(max(called.values(), key=lambda branch: branch.total()))
            elif called:
                total.update(*called.values())
            elif cycles := re.search(r'"estimated_cycles":"(\d+)"', operation.line):
                total[stage_of(operation.line)] += int(cycles[1])
            elif operation.size >= SMALL and not operation.free:
                self.not_counted[operation.opcode] += 1
        return total

    def _staged(self, cycles: collections.Counter, caller: _Operation) -> collections.Counter:
        """Gives what has no stage in a loop's body, such as copies, to the stage of the loop."""
        cycles[stage_of(caller.line)] += cycles.pop(OTHER, 0)
        return +cycles

    def _called(self, operation: _Operation) -> list[tuple[str, str]]:
        """The computations that an operation runs, as (role, name); a fusion's cycles are its own."""
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
        """How often a loop runs, or at most: what the compiler knows, or the one integer its condition compares with."""
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
        """The lines of a computation and of its fusions."""
        lines = '\n'.join(operation.line for operation in self.computations[computation])
        return '\n'.join([lines, *map(self._text, re.findall(r'calls=%?([\w.-]+)', lines))])


def stage_of(line: str) -> str:
    """Finds the stage in an operation's name, e.g. 'backbone' in op_name="jit(f)/transpose(jvp(backbone))/add"; or OTHER."""
    name = re.search(r'op_name="([^"]*)"', line)
    return (name and stage_in(name[1])) or OTHER


def stage_in(scopes: str) -> str | None:
    """Finds the stage in a path of named scopes, e.g. 'backbone' in 'jit(f)/vmap(backbone)/add'."""
    stage = re.search(rf'(?<![\w.-])({"|".join(STAGES)})(?![\w.-])', scopes)
    return stage and stage[1]


def random_batch(
    config: ml_collections.ConfigDict, canvas: tuple[int, int], count: int, num_classes: int, seed: int = 0
) -> Batch:
    """Draws a batch: noise for images, `data.max_boxes` boxes each; `data.max_proposals` too if the config gives proposals.

    Args:
        config: complete.
        canvas: (H, W), pixels.
        count: images.
        num_classes: K.
        seed: of the draw.

    Returns:
        Batch, numpy.
    """
    rng = np.random.RandomState(seed)
    (height, width), rows = canvas, config.data.max_boxes

    def draw_boxes(rows: int) -> np.ndarray:
        start = rng.uniform(0, 0.75, (count, rows, 2))
        size = rng.uniform(0.02, 0.25, (count, rows, 2))
        return np.float32(np.concatenate([start, start + size], axis=-1) * [width, height, width, height])

    boxes = draw_boxes(rows)
    labels = rng.randint(0, num_classes, (count, rows)).astype(np.int32)
    none = np.zeros(count, np.int32)
    true = np.ones((count, rows), bool)
    images = rng.randint(0, 256, (count, height, width, 3), np.uint8)
    side = config.data.mask_size
    gt = GroundTruth(
        boxes=boxes,
        labels=labels,
        valid=true,
        crowd=~true,
        dropped=none,
        cropped=none,
        masks=rng.uniform(size=(count, rows, side, side)) < 0.7 if side else None,
    )
    window = np.tile(np.float32([0, 0, width, height]), (count, 1))
    given = ()
    if config.data.train_proposals or config.data.validation_proposals:
        given = draw_boxes(config.data.max_proposals), np.ones((count, config.data.max_proposals), bool)
    return Batch(Inputs(images, window, *given), gt, np.arange(count, dtype=np.int32), np.ones(count, bool))


def shapes(tree: Any, *lead: int) -> Any:
    """Replaces arrays by their shapes, with leading axes, of devices for example."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)


def state_shapes(config: ml_collections.ConfigDict, num_classes: int) -> Any:
    """The shapes of a config's TrainState; no parameter is made, no file read."""
    detector = detector_of(config, num_classes, parallel.AXIS)
    return jax.eval_shape(lambda: loop.initial_state(config, detector))


def train_program(config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]) -> Any:
    """Lowers the training step on the first canvas for devices, with `training.batch_size` images on all of them.

    Of `training.num_replicas`, each has so many.

    Raises:
        ValueError: the batch cannot be split over the devices.
    """
    lead = len(devices), *filter(lambda count: count > 1, [config.training.num_replicas])
    batch = _share(config, 'training', config.data.canvases[0], num_classes, lead)
    state = state_shapes(config, num_classes)
    detector = detector_of(config, num_classes, parallel.AXIS)
    step = loop.make_train_step(config, detector, state, devices=devices)
    return step.lower(shapes(state, *lead), batch)


def predict_program(config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]) -> Any:
    """Lowers the evaluation's step on its first canvas for devices, with `evaluation.batch_size` images on all of them.

    Raises:
        ValueError: the batch cannot be split over the devices.
    """
    canvas = evaluation_canvases(config)[0]
    batch = _share(config, 'evaluation', canvas, num_classes, (len(devices),))
    state = state_shapes(config, num_classes)
    detector = detector_of(config, num_classes, parallel.AXIS)
    step = make_predict_step(detector, [canvas], devices=devices)
    return step.lower(*shapes((state.params, state.model_state), len(devices)), batch)


def _share(
    config: ml_collections.ConfigDict, section: str, canvas: tuple[int, int], num_classes: int, lead: tuple[int, ...]
) -> Batch:
    """The shapes of a section's batch split over devices, of which `lead` begins with the number."""
    count, devices = config[section].batch_size, lead[0]
    if count % devices:
        key = f'{section}.batch_size'
        raise ValueError(f'{key} is {count}, not a multiple of the {devices} devices: set --config.{key}')
    return shapes(jax.eval_shape(lambda: random_batch(config, canvas, count // devices, num_classes)), *lead)


def interleaved_latency(
    steps: Mapping[Any, Callable[[], Any]], *, repeats: int, budget: float
) -> dict[Any, np.ndarray]:
    """Times functions that return arrays, in turn: each once a round, run to its end, after a round that is not counted.

    Args:
        steps: {name: what to time}.
        repeats: rounds at most.
        budget: seconds after which no further round starts; there are 3 at least.

    Returns:
        {name: [rounds] seconds}.
    """
    for step in tqdm(steps.values(), desc='warming up', unit='program', leave=False):
        jax.block_until_ready(step())
    times: dict[Any, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for done in tqdm(range(repeats), desc='timing', unit='round', leave=False):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def device_name() -> str:
    """Names JAX's first device; a CPU by its model and cores."""
    name = jax.local_devices()[0].device_kind
    if name != 'cpu' or not os.path.exists('/proc/cpuinfo'):
        return name
    with open('/proc/cpuinfo') as file:
        models = [line.partition(':')[2].strip() for line in file if line.startswith('model name')]
    return f'cpu ({models[0] if models else "unknown model"}, {os.cpu_count()} cores)'
