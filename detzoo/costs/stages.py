"""What each stage of prediction costs, measured on the one program there is: `Detector.predict`.

    predict -> its equations, in order, each in the named scope of a stage
      -> segments: equations of one stage that follow each other
      -> prefixes: programs that end with a segment and return what later ones need
      -> compiled (FLOPs, memory), and timed in turn; a segment costs its prefix less the one before, with the same images

The stages add up to the whole, in every round of runs. But a prefix also keeps what it returns, and the compiler cannot
fuse operations across its end: that burdens the stage before a cut and relieves the one after it. A difference also has
the noise of two measurements, so that a stage with next to nothing to do may come out below 0; it is reported as measured.
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

from detzoo.costs.counts import Cost, compiled_cost, parameter_count
from detzoo.costs.latency import device_name, interleaved_latency
from detzoo.costs.programs import random_batch
from detzoo.costs.scopes import OTHER, stage_in
from detzoo.data.catalog import open_dataset
from detzoo.data.pipeline import evaluation_batches
from detzoo.data.proposals import load_proposals
from detzoo.inference.predictor import Predictor, detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.run.classes import Classes
from detzoo.training.finetune import initial_state
from detzoo.types import Inputs

INPUT = 'input'  # before the first stage: images are normalised
IMAGES = 8  # of a trained detector, which they keep busy each in its own way


class Segment(NamedTuple):
    """Equations of a stage that follow each other: those before `end` that are in no earlier segment."""

    stage: str
    end: int


class Program(NamedTuple):
    """A compiled prefix of prediction.

    batch: images at once.
    stage: of its last segment.
    cost: of all of it.
    compile_seconds: what compiling took.
    run: runs it, and returns its arrays.
    """

    batch: int
    stage: str
    cost: Cost
    compile_seconds: float
    run: Callable[[], Any]


class Prepared(NamedTuple):
    """The prediction of a config, ready to be timed.

    config: complete.
    parameters: see `stage_parameters`.
    programs: for each batch size its prefixes; the last is all of prediction.
    """

    config: ml_collections.ConfigDict
    parameters: dict[str, int]
    programs: list[Program]


def segments(jaxpr: Any) -> list[Segment]:
    """Splits the equations of a jaxpr by the stage in whose scope they lie; those in none go on with the one before.

    Raises:
        ValueError: an equation holds several stages, as a call of a jitted function may: there is no place to cut.
    """
    found: list[Segment] = []
    for index, equation in enumerate(jaxpr.eqns):
        stages = _stages_of(equation)
        if len(stages) > 1:
            raise ValueError(
                f'one {equation.primitive} holds the stages {", ".join(sorted(stages))}: open each outside of it'
            )
        stage = stages.pop() if stages else found[-1].stage if found else INPUT
        if found and found[-1].stage == stage:
            found.pop()
        found.append(Segment(stage, index + 1))
    return found


def _stages_of(equation: Any) -> set[str]:
    """The stage in whose scope an equation lies, or else those that begin inside it (in a jit, a scan, a branch)."""
    if stage := stage_in(str(equation.source_info.name_stack)):
        return {stage}
    parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: hasattr(part, 'eqns'))
    return {stage for part in parts for inner in getattr(part, 'eqns', ()) for stage in _stages_of(inner)}


def prefix(closed: Any, end: int) -> Callable[..., list[jax.Array]]:
    """Makes a function of the first equations of a closed jaxpr: its flat arguments -> what the others, or its results, need.

    Args:
        closed: of `jax.make_jaxpr`.
        end: how many equations.
    """
    jaxpr = closed.jaxpr
    if end == len(jaxpr.eqns):
        return jax_core.jaxpr_as_fun(closed)
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns[end:]):
        if any(id(variable) in needed for variable in equation.outvars):  # else the compiler drops it from the whole
            needed.update(id(variable) for variable in equation.invars)
    made = [variable for equation in jaxpr.eqns[:end] for variable in equation.outvars]
    outputs = [variable for variable in made if id(variable) in needed]
    info = jaxpr.debug_info._replace(result_paths=None)
    part = jaxpr.replace(eqns=jaxpr.eqns[:end], outvars=outputs, debug_info=info)
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(part, closed.consts))


def stage_parameters(jaxpr: Any, params: Any) -> dict[str, int]:
    """Counts the parameters of each stage: that which uses them first; those that none uses are in OTHER.

    Args:
        jaxpr: of predict(params, model_state, inputs).
        params: arrays or shapes, the first arguments.
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
    if position:  # of an RPN whose proposals are given
        counts[OTHER] = parameter_count([leaves[index] for index in position.values()])
    return counts


def prepare(config: ml_collections.ConfigDict, num_classes: int, batch_sizes: Sequence[int] = (1, 8)) -> Prepared:
    """Compiles the prefixes of a config's prediction on its first evaluation canvas.

    Weights and images are drawn, and the score threshold is 0, so that the NMS has as much to do as it ever has.

    Args:
        config: complete; it is not changed.
        num_classes: K.
        batch_sizes: images at once.
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

    Images are the first IMAGES of the validation split, in turn, and the NMS has to do what they and the weights give it.

    Args:
        predictor: of a run, whose data set is there.
        batch_sizes: images at once.

    Raises:
        DataError: the data set or the proposals of the config cannot be used.
    """
    config = predictor.config
    dataset = open_dataset(config.data.name, config.data.validation_split, config.data.data_dir)
    canvases = [evaluation_canvases(config)[0]] * len(dataset.records)
    given = load_proposals(config.data.validation_proposals, dataset, config.data.max_proposals)
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
    """Compiles the prefixes of prediction for the inputs of each batch size, which they take in turn."""
    programs, parameters = [], {}
    variables = jax.device_put((predictor.params, predictor.model_state))
    for batch, turns in inputs.items():
        arguments = [(*variables, jax.device_put(each)) for each in turns]
        closed = jax.make_jaxpr(predictor.detector.predict)(*arguments[0])
        parameters = stage_parameters(closed.jaxpr, predictor.params)
        leaves = [jax.tree.leaves(each) for each in arguments]
        for stage, end in tqdm(segments(closed.jaxpr), desc=f'compiling for {batch}', unit='prefix', leave=False):
            start = time.perf_counter()
            compiled = jax.jit(prefix(closed, end)).lower(*leaves[0]).compile()
            seconds = time.perf_counter() - start
            programs.append(Program(batch, stage, compiled_cost(compiled), seconds, _in_turn(compiled, leaves)))
    return Prepared(predictor.config, parameters, programs)


def _in_turn(program: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
    """Makes a function that runs a program with each of several lists of arguments in turn."""
    turns = itertools.cycle(arguments)
    return lambda: program(*next(turns))


def lowest_score_threshold(model: Mapping[str, Any]) -> dict[str, Any]:
    """The change of a detector's arguments with which every candidate is a detection until the NMS."""
    return {'head': {'score_threshold': 0.0}} if 'head' in model else {'score_threshold': 0.0}


def measure(prepared: Mapping[str, Prepared], *, repeats: int = 50, budget: float = 300) -> list[dict[str, Any]]:
    """Times prepared predictions in turn, so that whatever disturbs the machine disturbs all alike.

    Args:
        prepared: {name: what to time}.
        repeats: runs of each program, at most.
        budget: seconds after which no further round begins; there are 3 at least.

    Returns:
        a row for each name and batch size, numbers of all its images: 'name', 'batch', 'canvas', 'device', 'dtype',
        'parameters', the fields of `counts.Cost`, 'compile_seconds' (of the whole), 'runs', 'p50_seconds' and 'p90_seconds';
        the same times as 'network_...' of all but post-processing, and 'post_...'; and 'stages', in their order, with
        'stage', 'parameters', 'flops', 'peak_bytes' (of the largest prefix that ends with it) and 'p50_seconds'. Parameters
        that prediction never uses are in no stage.
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
    """Makes a row of `measure` from the times of a batch size's prefixes, [prefixes, rounds]."""
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
