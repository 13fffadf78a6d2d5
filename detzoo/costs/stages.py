"""The cost of each stage of prediction, measured on prefixes of the whole program, `Detector.predict`.

    predict -> its equations, in order, each in the named scope of a stage
      -> segments: equations of one stage that follow each other
      -> prefixes: programs that end with a segment and return the arrays that later segments need
      -> compiled (memory), and timed in turn; multiply-adds are counted in the equations, so that they are those of any platform
      -> the cost of a segment: the cost of its prefix minus that of the prefix before, with the same images

The stages add up to the whole, in every round of runs. But a prefix also writes the arrays that it returns, and the compiler
cannot fuse operations across its end, so the stage before a cut seems slower, and the one after it faster. A difference also
has the noise of two measurements, so a stage with almost nothing to do may come out below 0; it is reported as measured.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.extend import core as jax_core
from tqdm.auto import tqdm

from detzoo.costs.counts import Cost, compiled_cost, multiply_adds, parameter_count
from detzoo.costs.latency import device_name, interleaved_latency
from detzoo.costs.programs import random_batch
from detzoo.costs.scopes import OTHER, stage_in
from detzoo.data.catalog import open_split
from detzoo.data.pipeline import evaluation_batches
from detzoo.data.proposals import load_proposals
from detzoo.inference.predictor import Predictor, detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.run.classes import Classes
from detzoo.training.finetune import initial_state
from detzoo.types import Inputs

INPUT = 'input'  # the equations before the first stage, which normalise images
IMAGES = 8  # images that a trained detector is timed on; each gives it a different amount of work


class Segment(NamedTuple):
    """Equations of one stage that follow each other: from the end of the segment before up to `end`, exclusive."""

    stage: str
    end: int


class Program(NamedTuple):
    """A compiled prefix of prediction.

    batch: number of images at once.
    stage: stage of its last segment.
    cost: cost of the whole prefix.
    compile_seconds: time of compiling, seconds.
    run: runs the program, and returns its arrays.
    """

    batch: int
    stage: str
    cost: Cost
    compile_seconds: float
    run: Callable[[], Any]


class Prepared(NamedTuple):
    """The prediction of a config, ready to be timed.

    config: complete config.
    parameters: {stage: number of parameters}, see `stage_parameters`.
    programs: the prefixes for each batch size; the last one of each is the whole prediction.
    """

    config: ml_collections.ConfigDict
    parameters: dict[str, int]
    programs: list[Program]


def segments(jaxpr: Any) -> list[Segment]:
    """Splits the equations of a jaxpr by their stage; equations in no stage's scope are counted in the stage before them.

    Raises:
        ValueError: an equation, such as a call of a jitted function, contains several stages, so it cannot be cut between them.
    """
    found: list[Segment] = []
    for index, equation in enumerate(jaxpr.eqns):
        stages = _stages_of(equation)
        if len(stages) > 1:
            raise ValueError(
                f'a single {equation.primitive} contains the stages {", ".join(sorted(stages))}: '
                'open their named scopes outside of it'
            )
        stage = stages.pop() if stages else found[-1].stage if found else INPUT
        if found and found[-1].stage == stage:
            found.pop()
        found.append(Segment(stage, index + 1))
    return found


def _stages_of(equation: Any) -> set[str]:
    """Finds the stage in whose scope an equation lies, or else the stages that begin inside it (in a jit, a scan, a branch)."""
    if stage := stage_in(str(equation.source_info.name_stack)):
        return {stage}
    parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: hasattr(part, 'eqns'))
    return {stage for part in parts for inner in getattr(part, 'eqns', ()) for stage in _stages_of(inner)}


def prefix(closed: Any, end: int) -> Callable[..., list[jax.Array]]:
    """Makes a function of the first equations of a closed jaxpr, which returns the arrays that the rest, or the result, needs.

    Args:
        closed: a closed jaxpr, from `jax.make_jaxpr`; its flat arguments are those of the function.
        end: number of equations.
    """
    jaxpr = closed.jaxpr
    if end == len(jaxpr.eqns):
        return jax_core.jaxpr_as_fun(closed)
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns[end:]):
        if any(id(variable) in needed for variable in equation.outvars):  # the compiler drops all other equations
            needed.update(id(variable) for variable in equation.invars)
    made = [variable for equation in jaxpr.eqns[:end] for variable in equation.outvars]
    outputs = [variable for variable in made if id(variable) in needed]
    info = jaxpr.debug_info._replace(result_paths=None)
    part = jaxpr.replace(eqns=jaxpr.eqns[:end], outvars=outputs, debug_info=info)
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(part, closed.consts))


def stage_parameters(jaxpr: Any, params: Any) -> dict[str, int]:
    """Counts the parameters of each stage. A parameter belongs to the first stage that uses it, or to OTHER if none does.

    Args:
        jaxpr: the jaxpr of predict(params, model_state, inputs).
        params: arrays or shapes, the first argument.
    """
    leaves = jax.tree.leaves(params)
    position = {id(variable): index for index, variable in enumerate(jaxpr.invars[: len(leaves)])}
    counts: dict[str, int] = {}
    start = 0
    for stage, end in segments(jaxpr):
        for equation in jaxpr.eqns[start:end]:
            for variable in equation.invars:
                index = position.pop(id(variable), None)
                if index is not None:
                    counts[stage] = counts.get(stage, 0) + parameter_count(leaves[index])
        start = end
    if position:  # parameters of an RPN that is not run, since proposals are given
        counts[OTHER] = parameter_count([leaves[index] for index in position.values()])
    return counts


def prepare(config: ml_collections.ConfigDict, num_classes: int, batch_sizes: Sequence[int] = (1, 8)) -> Prepared:
    """Compiles the prefixes of a config's prediction on its first evaluation canvas.

    Weights and images are random, and the score threshold is 0, so that the NMS has as much work as possible.

    Args:
        config: complete config; it is not changed.
        num_classes: K.
        batch_sizes: numbers of images at once.
    """
    config = config.copy_and_resolve_references()
    config.model.update(lowest_score_threshold(config.model))
    state = initial_state(config, detector_of(config, num_classes, parallel.AXIS))
    classes = Classes(tuple(map(str, range(num_classes))), tuple(range(num_classes)))
    predictor = Predictor(config, classes, 0, state.params, state.model_state)
    canvas = evaluation_canvases(config)[0]
    return _compile(predictor, {size: [random_batch(config, canvas, size, num_classes).inputs] for size in batch_sizes})


def prepare_trained(predictor: Predictor, batch_sizes: Sequence[int] = (1, 8)) -> Prepared:
    """Compiles the prefixes of a trained detector's prediction on its first evaluation canvas.

    It predicts the first IMAGES of the validation split in turn, so the NMS has as much work as these images and weights give it.

    Args:
        predictor: predictor of a run whose data set is available.
        batch_sizes: numbers of images at once.

    Raises:
        DataError: the data set or the proposals of the config cannot be used.
    """
    config = predictor.config
    dataset = open_split(config.data, 'validation')
    canvases = [evaluation_canvases(config)[0]] * len(dataset.records)
    limits = config.data.max_proposals, config.data.proposal_mask_size
    given = load_proposals(config.data.validation_proposals, dataset, *limits)
    inputs = {}
    for size in batch_sizes:
        batches = evaluation_batches(
            dataset,
            canvases,
            max_boxes=config.data.max_boxes,
            recipe=config.data.recipe,
            batch_size=size,
            proposals=given,
            threads=1,
        )
        inputs[size] = [batch.inputs for batch in itertools.islice(batches, max(1, IMAGES // size))]
    return _compile(predictor, inputs)


def _compile(predictor: Predictor, inputs: Mapping[int, Sequence[Inputs]]) -> Prepared:
    """Compiles the prefixes of prediction for each batch size; they are run on its inputs in turn."""
    programs, parameters = [], {}
    variables = jax.device_put((predictor.params, predictor.model_state))
    for batch, turns in inputs.items():
        arguments = [(*variables, jax.device_put(each)) for each in turns]
        closed = jax.make_jaxpr(predictor.detector.predict)(*arguments[0])
        parameters = stage_parameters(closed.jaxpr, predictor.params)
        leaves = [jax.tree.leaves(each) for each in arguments]
        for stage, end in tqdm(segments(closed.jaxpr), desc=f'compiling for {batch}', unit='prefix', leave=False):
            start = time.perf_counter()
            function = prefix(closed, end)
            compiled = jax.jit(function).lower(*leaves[0]).compile()
            seconds = time.perf_counter() - start
            cost = compiled_cost(compiled)._replace(flops=2.0 * multiply_adds(function, *leaves[0]))
            programs.append(Program(batch, stage, cost, seconds, _in_turn(compiled, leaves)))
    return Prepared(predictor.config, parameters, programs)


def _in_turn(program: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
    """Makes a function that runs a program with the next of several lists of arguments at each call."""
    turns = itertools.cycle(arguments)
    return lambda: program(*next(turns))


def lowest_score_threshold(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the change of arguments that lets every candidate reach the NMS; none for a network without a score threshold."""
    if 'head' in model:
        return {'head': {'score_threshold': 0.0}}
    return {'score_threshold': 0.0} if 'score_threshold' in model else {}


def measure(prepared: Mapping[str, Prepared], *, repeats: int = 50, budget: float = 300) -> list[dict[str, Any]]:
    """Times prepared predictions in turn, so that other load on the machine affects all of them alike.

    Args:
        prepared: {name: prediction to time}.
        repeats: largest number of runs of each program.
        budget: seconds after which no further round begins; at least 3 rounds are run.

    Returns:
        a row for each name and batch size, with the costs of all its images together: 'name', 'batch', 'canvas', 'device',
        'dtype', 'parameters', the fields of `counts.Cost`, 'compile_seconds' (of the whole), 'runs', 'p50_seconds' and
        'p90_seconds'; the same times as 'network_...' for all but post-processing, and as 'post_...' for post-processing; and
        'stages', in their order, with 'stage', 'parameters', 'flops', 'peak_bytes' (of the largest prefix that ends with the
        stage) and 'p50_seconds'. Parameters that prediction never uses are in no stage.
    """
    steps = {(name, index): program.run for name, one in prepared.items() for index, program in enumerate(one.programs)}
    times = interleaved_latency(steps, repeats=repeats, budget=budget)
    rows = []
    for name, one in prepared.items():
        for batch in dict.fromkeys(program.batch for program in one.programs):
            indices = [index for index, program in enumerate(one.programs) if program.batch == batch]
            rows.append(_row(name, one, batch, indices, np.stack([times[name, index] for index in indices])))
    return rows


def _row(name: str, one: Prepared, batch: int, indices: Sequence[int], seconds: np.ndarray) -> dict[str, Any]:
    """Makes a row of `measure` from the times [prefixes, rounds] of a batch size's prefixes."""
    programs = [one.programs[index] for index in indices]
    own = np.diff(seconds, axis=0, prepend=0)  # [segments, rounds]
    flops = np.diff([program.cost.flops for program in programs], prepend=0)
    stages = []
    for stage in dict.fromkeys(program.stage for program in programs):
        which = [index for index, program in enumerate(programs) if program.stage == stage]
        stages.append(
            dict(
                stage=stage,
                parameters=one.parameters.get(stage, 0),
                flops=float(flops[which].sum()),
                peak_bytes=max(programs[index].cost.peak_bytes for index in which),
                p50_seconds=float(np.median(own[which].sum(axis=0))),
            )
        )
    post = own[[index for index, program in enumerate(programs) if program.stage == 'post']].sum(axis=0)

    def quantiles(prefix: str, values: np.ndarray) -> dict[str, float]:
        return dict(zip((f'{prefix}p50_seconds', f'{prefix}p90_seconds'), np.quantile(values, (0.5, 0.9)).tolist()))

    return dict(
        name=name,
        batch=batch,
        canvas=list(evaluation_canvases(one.config)[0]),
        device=device_name(),
        dtype=one.config.model.dtype,
        parameters=sum(one.parameters.values()),
        **programs[-1].cost._asdict(),
        compile_seconds=programs[-1].compile_seconds,
        runs=seconds.shape[1],
        **quantiles('', seconds[-1]),
        **quantiles('network_', seconds[-1] - post),
        **quantiles('post_', post),
        stages=stages,
    )
