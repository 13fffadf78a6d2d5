"""The training loop: one function from a config to a trained detector, or segmenter, in a workdir.

    config -> data, detector (`checks.check`) -> workdir taken over (`replicas.take_over`) -> newest checkpoint, or a new state
    each step: batch of the step -> pmap(gradients of detector.loss, averaged; update) -> metrics, logged one step later
    every so many steps: a checkpoint, and the evaluation of that checkpoint (`evaluation.make_evaluation`)

A run that is asked to stop (`run.stopping`) finishes its step, and saves its state. One that was stopped or cut goes on with
the same command and ends with the same bits: its state is the checkpoint, its data a function of seed and step, its random
numbers fold_in(key(seed), step).

With `training.num_replicas` several seeds are trained by one program, mapped over them with `vmap`: state and batches have an
axis of replicas after that of devices. What is written is what each would have written alone, in a workdir of its own.
"""

import collections
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from tqdm.auto import tqdm

from detzoo.config import complete
from detzoo.data.catalog import open_split
from detzoo.data.pipeline import shard, train_batches
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import Dataset
from detzoo.files import as_path
from detzoo.run import parallel
from detzoo.run.best import find_best
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.run.workdir import has_checkpoints
from detzoo.training.begin import announce, settle, training_images
from detzoo.training.checks import check
from detzoo.training.evaluation import Evaluation, evaluate_each, log_evaluation, make_evaluation
from detzoo.training.finetune import initial_state
from detzoo.training.nonfinite import NonFiniteStep, write_record
from detzoo.training.optimizer import make_loss, make_optimizer, make_schedule
from detzoo.training.progress import Profiler, Progress
from detzoo.training.replicas import Replica, keep_best, open_replica, stack, take_over, unstack
from detzoo.types import Array, Batch, Detector, Segmenter


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    *,
    profile_steps: int = 0,
    stop: StopRequest | None = None,
    on_results: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None] = lambda *results: None,
) -> dict[str, Any]:
    """Trains the detector of a config on all devices, and evaluates it.

    Args:
        config: config of the run, see `detzoo.config`.
        workdir: the folder of the run; a run that is there goes on. With several replicas, a folder of workdirs.
        profile_steps: number of steps to record with JAX's profiler, into the workdir's TensorBoard.
        stop: may ask the run to stop, on any of its processes; see `run.stopping`.
        on_results: called at the end with the last metrics, the ground truth of the validation split, and the detections as
            COCO results; of several replicas, with the first one's.

    Returns:
        the COCO metrics at the end (see `evaluation.coco.coco_metrics`); of several replicas, the first one's.

    Raises:
        ConfigError: an unknown key, or a workdir of another config.
        DataError: the data are not there, or damaged; or the workdir's checkpoints or metrics are.
        FloatingPointError: the loss or its gradient is not finite.
        InUseError: another process trains in the workdir.
        RecompilationError: a step would be compiled more often than there are canvases.
        StorageError: the workdir cannot be written.
        Stopped: the run was asked to stop; the same call goes on.
    """
    config, stop = complete(config), stop or StopRequest()
    largest = parallel.LargestNumber()
    data, validation = open_split(config.data, 'train'), open_split(config.data, 'validation')
    config, runs, annotations = settle(config, as_path(workdir), data)
    detector, template, learnt = check(config, data, begun=all(has_checkpoints(folder) for _, folder in runs))
    data = training_images(config, data, validation, annotations)
    limits = config.data.max_proposals, config.data.proposal_mask_size
    proposals = load_proposals(config.data.train_proposals, data, *limits)
    validation_proposals = load_proposals(config.data.validation_proposals, validation, *limits)
    evaluate = make_evaluation(
        config, detector, validation, validation_proposals, on_batch=lambda: leave_if(asked_for(stop, largest))
    )

    def states_at(step: int) -> list[TrainState]:
        if step:
            return [Checkpoints(folder).restore(template) for _, folder in runs]
        return [initial_state(own, detector, learnt.arrays) for own, _ in runs]

    with contextlib.ExitStack() as cleanup:  # closes what was opened last first
        cleanup.callback(setattr, stop, 'running', False)
        start = parallel.from_first_process(lambda: take_over(config, runs, data, validation, cleanup))
        states = states_at(start)
        replicas = [open_replica(own, folder, start, cleanup) for own, folder in runs]
        announce(config, states[0], start, learnt)
        train_step = make_train_step(config, detector, states[0])
        progress = cleanup.enter_context(Progress(config, start))
        profiler = cleanup.enter_context(Profiler(replicas[0].workdir, start, profile_steps))
        run = Run(config, data, proposals, replicas, train_step, evaluate, progress, profiler, stop, largest)
        try:
            state, evaluations = make_steps(run, parallel.replicate(stack(states)), start)
        except NonFiniteStep as failure:
            stop.running = False  # all that is left can be done again
            traceback.clear_frames(failure.__traceback__)  # they hold the state on the devices
            raise FloatingPointError(f'{failure}. {record(run, failure, states_at)}') from None
        evaluations = evaluations or evaluate_each(evaluate, state, len(replicas))  # of a finished run
    last = evaluations[0]
    on_results(last.metrics, last.truth, last.results)
    return last.metrics


class Run(NamedTuple):
    """A program that trains: what its steps need.

    config: its config.
    data, proposals: the training split.
    replicas: the trainings.
    train_step: a function of `make_train_step`.
    evaluate: a function of `make_evaluation`.
    progress, profiler: they follow the steps.
    stop: the request to stop on this process.
    largest: makes it that of all processes.
    """

    config: ml_collections.ConfigDict
    data: Dataset
    proposals: Proposals | None
    replicas: Sequence[Replica]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[TrainState], Evaluation]
    progress: Progress
    profiler: Profiler
    stop: StopRequest
    largest: parallel.LargestNumber


def make_steps(run: Run, state: TrainState, start: int) -> tuple[TrainState, list[Evaluation]]:
    """Trains from a step to the last one, or until evaluations do not get better any more.

    Args:
        run: the program.
        state: state at the step, on the devices.
        start: the step.

    Returns:
        the last state, and its evaluations; none where no step was made and the log has them.
    """
    config, replicas, evaluations = run.config, run.replicas, []
    if evaluation_due(config, start) and evaluation_missing(replicas, start):
        with run.progress.paused():
            evaluations = evaluate_and_log(run.evaluate, state, replicas, start)
    pending: collections.deque[Pending] = collections.deque()
    ended = start < config.training.steps and out_of_patience(config, replicas)
    with contextlib.closing(sharded_batches(run, start)) as batches:
        for step in range(start + 1, config.training.steps + 1):
            if ended:
                break
            run.profiler.at(step)
            with run.progress.waiting():
                indices, batch = next(batches)
            state, metrics = run.train_step(state, parallel.put(batch))
            run.stop.running, signal = True, asked_for(run.stop, run.largest)
            pending.append(Pending(step, indices, metrics))
            due = evaluation_due(config, step)
            saved = due or signal > 0 or step % config.training.checkpoint_every == 0
            while len(pending) > (0 if saved else 1):  # one step behind, so that the devices never wait for the log
                log_step(pending.popleft(), run)
            if saved:
                save(state, replicas)
            leave_if(signal, f'after step {step}')
            if due:  # after the checkpoint, which stays if the evaluation fails
                with run.progress.paused():
                    evaluations = evaluate_and_log(run.evaluate, state, replicas, step)
                ended = step < config.training.steps and out_of_patience(config, replicas)
    return state, evaluations


def sharded_batches(run: Run, start: int) -> Iterator[tuple[list[np.ndarray], Batch]]:
    """Yields, for each step after `start`, the indices of each replica's images on this process, and the batch."""
    with contextlib.ExitStack() as cleanup:
        streams = [make_batches(replica.config, run.data, start, run.proposals) for replica in run.replicas]
        for stream in streams:
            cleanup.callback(stream.close)
        while True:
            batches = [next(stream) for stream in streams]
            sharded = [shard(batch, jax.local_device_count()) for batch in batches]
            yield [batch.image_id for batch in batches], stack(sharded, axis=1)


def record(run: Run, failure: NonFiniteStep, states_at: Callable[[int], list[TrainState]]) -> str:
    """Writes what led to a step that is not finite into the workdir: the state before it, and its batch.

    The state is gone, since a step takes over the memory of the one before. So the steps since the newest checkpoint are made
    again, by the same program on the same data.

    Args:
        run: the program.
        failure: what was raised.
        states_at: returns the replicas' states at the step of the newest checkpoint, or at 0.

    Returns:
        a sentence that names the file, or says why there is none.
    """
    replica, step = run.replicas[failure.replica], failure.step
    try:
        for each in run.replicas:
            each.checkpoints.wait()
        start = replica.checkpoints.latest_step() or 0
        state = parallel.replicate(stack(states_at(start)))
        with contextlib.closing(sharded_batches(run, start)) as batches:
            for _ in range(start, step - 1):
                state, _ = run.train_step(state, parallel.put(next(batches)[1]))
        own = unstack(parallel.first_replica(state), len(run.replicas))[failure.replica]
        path = replica.workdir / 'nonfinite' / f'{step}.safetensors'
        if jax.process_index() == 0:
            with contextlib.closing(
                make_batches(replica.config, run.data, step - 1, run.proposals, whole=True)
            ) as batches:
                write_record(path, replica.config, run.data, step, own, next(batches))
    except Exception as error:  # the step's own failure is the one to tell of
        return f'What led to it could not be written ({type(error).__name__}: {str(error)[:200]})'
    return f'What led to it is in {path}, from which it can be replayed'


def make_train_step(
    config: ml_collections.ConfigDict, detector: Detector | Segmenter, state: TrainState, devices: Any = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Maps one update over devices and replicas.

    Args:
        config: config of the program.
        detector: the detector, made with `axis_name=parallel.AXIS`.
        state: state of one replica, for the names of its parameters.
        devices: devices to map over; all by default.

    Returns:
        a function of a replicated state, which is donated, and a sharded batch to the new state and the metrics.
    """
    optimizer = make_optimizer(config.optimizer, config.training.steps, state.params)
    schedule = make_schedule(config.optimizer, config.training.steps)
    loss_of = make_loss(config.optimizer, detector, state.params)
    accumulate = config.training.accumulate

    def gradients(state: TrainState, batch: Batch, seed: Array) -> tuple[Any, Any, dict[str, Array]]:
        """Averages over micro-batches and devices: (gradients, model_state, metrics)."""
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

        def accumulate_one(carry: tuple[Any, Any], micro_batch: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
            total, model_state = carry
            loss_and_gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, (model_state, metrics)), grads = loss_and_gradient(state.params, model_state, micro_batch, rng)
            return (jax.tree.map(jnp.add, total, grads), model_state), {'loss': loss, **metrics}

        carry = jax.tree.map(jnp.zeros_like, state.params), state.model_state
        if accumulate == 1:
            (total, model_state), metrics = accumulate_one(carry, batch)
        else:
            micro_batches = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
            (total, model_state), metrics = jax.lax.scan(accumulate_one, carry, micro_batches)
        grads = jax.lax.pmean(jax.tree.map(lambda x: x / accumulate, total), parallel.AXIS)
        return grads, model_state, jax.lax.pmean(jax.tree.map(jnp.mean, metrics), parallel.AXIS)

    def train_one(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        grads, model_state, metrics = gradients(state, batch, seed)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | dict(
            grad_norm=optax.tree.norm(grads),
            learning_rate=schedule(state.step),
            gt_dropped=jax.lax.psum(batch.gt.dropped.sum(), parallel.AXIS),
            gt_cropped=jax.lax.psum(batch.gt.cropped.sum(), parallel.AXIS),
        )
        ema_params = state.ema_params
        if ema_params is not None:
            # Rises from 0.1, so that the average forgets the initial values within the first steps.
            decay = jnp.minimum(config.optimizer.ema_decay, (1 + state.step) / (10 + state.step))
            ema_params = jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), ema_params, params)
        new = TrainState(state.step + 1, params, model_state, opt_state, ema_params)
        return unless_finite(new, state, metrics) if config.training.skip_nonfinite else (new, metrics)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        count = config.training.num_replicas
        if count == 1:
            return train_one(state, batch, config.seed)
        return jax.vmap(train_one)(state, batch, config.seed + jnp.arange(count))

    traces = len(config.data.canvases)
    return parallel.parallel(train_step, name='the train step', traces=traces, donate_argnums=(0,), devices=devices)


def unless_finite(new: TrainState, old: TrainState, metrics: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
    """Takes an update back if its loss or gradient is not finite; counters go on, so that the learning rate is the step's.

    Returns:
        the state, and the metrics with 'skipped', 1 or 0.
    """
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])

    def choose(new: Array, old: Array) -> Array:
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)

    return jax.tree.map(choose, new, old), metrics | {'skipped': 1.0 - finite}


def evaluation_due(config: ml_collections.ConfigDict, step: int) -> bool:
    """Tells whether the run is evaluated after a step: at the end, and every so many steps."""
    every = config.training.evaluate_every
    return step > 0 and (step == config.training.steps or (every > 0 and step % every == 0))


def evaluation_missing(replicas: Sequence[Replica], step: int) -> bool:
    """Tells whether a replica's log lacks the evaluation at a step: the run was cut between the checkpoint and its evaluation."""
    return bool(parallel.from_first_process(lambda: any(replica.log.evaluated != step for replica in replicas)))


def evaluate_and_log(
    evaluate: Callable[[TrainState], Evaluation], state: TrainState, replicas: Sequence[Replica], step: int
) -> list[Evaluation]:
    """Evaluates the replicas, and logs the evaluations that their logs lack."""
    evaluations = evaluate_each(evaluate, state, len(replicas))
    for replica, evaluation in zip(replicas, evaluations):
        replica.checkpoints.wait()  # a step whose evaluation is in the log has a checkpoint, which may be the best one
        if replica.log.evaluated != step:
            log_evaluation(replica.log, step, evaluation)
        keep_best(replica)
    return evaluations


def out_of_patience(config: ml_collections.ConfigDict, replicas: Sequence[Replica]) -> bool:
    """Tells, by the log alone, whether the run ends before its last step because its evaluations do not get better."""
    patience, metric = config.training.early_stopping_patience, config.training.keep_best
    if not patience:
        return False
    (replica,) = replicas
    since = parallel.from_first_process(lambda: find_best(replica.log.evaluations, metric).since)
    if since >= patience and jax.process_index() == 0:
        best = find_best(replica.log.evaluations, metric)
        tqdm.write(
            f'ends early: {since} evaluations brought no better {metric} than that of step {best.step} '
            f'(training.early_stopping_patience is {patience})',
            file=sys.stderr,
        )
    return since >= patience


def asked_for(stop: StopRequest, largest: parallel.LargestNumber) -> int:
    """Returns the signal by which one of the processes is asked to stop, 0 for none; all stop at the same call."""
    signal = largest(stop.number)
    if signal:
        stop.accept()
    return signal


def leave_if(signal: int, where: str = 'in an evaluation') -> None:
    """Ends a run whose checkpoint is saved, or is being written, if it is asked to stop.

    Args:
        signal: the signal that asks for it; 0 for none.
        where: where the run is.

    Raises:
        Stopped: it is asked to stop.
    """
    if signal:
        raise Stopped(signal, f'{where}, whose checkpoint is saved: the same command goes on from there')


def make_batches(
    config: ml_collections.ConfigDict,
    data: Dataset,
    start: int,
    proposals: Proposals | None = None,
    *,
    whole: bool = False,
) -> Any:
    """Makes the iterator over this process's share of the batches, or over all of them if `whole`, from a step on."""
    return train_batches(
        data,
        canvases=config.data.canvases,
        max_boxes=config.data.max_boxes,
        recipe=config.data.recipe.to_dict(),
        batch_size=config.training.batch_size,
        seed=config.seed,
        mask_size=config.data.mask_size,
        proposals=proposals,
        labelled_share=config.data.labelled_share,
        canvas_steps=config.data.canvas_steps,
        start_step=start,
        process=0 if whole else jax.process_index(),
        processes=1 if whole else jax.process_count(),
        threads=config.data.threads,
    )


class Pending(NamedTuple):
    """A step that the devices may still be computing.

    step: its number.
    indices: [replicas] arrays with the indices of this process's images.
    metrics: its metrics, on the devices.
    """

    step: int
    indices: list[np.ndarray]
    metrics: dict[str, Array]


def log_step(pending: Pending, run: Run) -> None:
    """Waits for a step, and logs its metrics.

    Raises:
        NonFiniteStep: the loss or the gradient is not finite, and was not in more steps before than may be skipped.
    """
    step, indices, metrics = pending
    rows = unstack(parallel.first_replica(metrics), len(run.replicas))
    for number, (replica, of_replica, row) in enumerate(zip(run.replicas, indices, rows)):
        row = {name: float(value) for name, value in row.items()}
        finite = bool(np.isfinite([row['loss'], row['grad_norm']]).all())
        if not finite and replica.log.skipped >= run.config.training.skip_nonfinite:
            raise NonFiniteStep(step, number, diverged(step, row, of_replica, run.data, replica))
        # JSON has no numbers for what is not finite.
        replica.log.write(step, row if finite else {name: x if np.isfinite(x) else None for name, x in row.items()})
        replica.log.write_scalars(step, run.progress.update(step, row))


def diverged(step: int, metrics: dict[str, float], indices: np.ndarray, data: Dataset, replica: Replica) -> str:
    """Writes the message about a step whose loss or gradient is not finite."""
    image_ids = [data.records[int(index)]['image_id'] for index in indices]
    last, folder = replica.checkpoints.latest_step(), replica.checkpoints.folder
    standing = (
        'There is no checkpoint yet, so that the same workdir takes another config'
        if last is None
        else f'The last good checkpoint is that of step {last} in {folder}; another config takes a new workdir'
    )
    skipped = f', after {replica.log.skipped} that were skipped' if replica.log.skipped else ''
    return (
        f'step {step}{skipped}: the loss is {metrics["loss"]}, the norm of its gradient {metrics["grad_norm"]}. '
        f'Images of the batch (on this process): {image_ids}. {standing}. A lower optimizer.learning_rate, a longer warm-up or '
        'optimizer.clip_norm may help'
    )


def save(state: TrainState, replicas: Sequence[Replica]) -> None:
    """Starts writing the checkpoints of the replicas from a state on devices."""
    for replica, own in zip(replicas, unstack(parallel.first_replica(state), len(replicas))):
        replica.log.flush()  # before the checkpoint, which may be what the log is cut back to
        replica.checkpoints.save(own)
