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
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from tqdm.auto import tqdm

from detzoo.config import complete, missing
from detzoo.data.catalog import open_split
from detzoo.data.classes import with_labelled
from detzoo.data.pipeline import shard, train_batches
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import Dataset, with_objects
from detzoo.data.statistics import Annotations, read_annotations
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.run.workdir import has_checkpoints
from detzoo.training.checks import check
from detzoo.training.data_checks import summary, warnings
from detzoo.training.evaluation import Evaluation, evaluate_each, log_evaluation, make_evaluation
from detzoo.training.finetune import Learnt, initial_state
from detzoo.training.from_data import fit_to_data, take_stored
from detzoo.training.optimizer import frozen_parameters, make_optimizer, make_schedule
from detzoo.training.progress import Profiler, Progress
from detzoo.training.replicas import Replica, open_replica, split, stack, take_over, unstack
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
    config, runs, annotations = settle(config, pathlib.Path(workdir), data)
    detector, template, learnt = check(config, data, begun=all(has_checkpoints(folder) for _, folder in runs))
    data = training_images(config, data, validation, annotations)
    proposals = load_proposals(config.data.train_proposals, data, config.data.max_proposals)
    validation_proposals = load_proposals(config.data.validation_proposals, validation, config.data.max_proposals)
    evaluate = make_evaluation(
        config, detector, validation, validation_proposals, on_batch=lambda: leave_if(asked_for(stop, largest))
    )

    with contextlib.ExitStack() as cleanup:  # closes what was opened last first
        cleanup.callback(setattr, stop, 'running', False)
        start = parallel.from_first_process(lambda: take_over(config, runs, data, validation, cleanup))
        states = [
            Checkpoints(folder).restore(template) if start else initial_state(own, detector, learnt.arrays)
            for own, folder in runs
        ]
        replicas = [open_replica(own, folder, start, cleanup) for own, folder in runs]
        announce(config, states[0], start, learnt)
        train_step = make_train_step(config, detector, states[0])
        state = parallel.replicate(stack(states))
        progress = cleanup.enter_context(Progress(config, start))
        profiler = cleanup.enter_context(Profiler(replicas[0].workdir, start, profile_steps))

        evaluations = []
        if evaluation_due(config, start) and evaluation_missing(replicas, start):
            with progress.paused():
                evaluations = evaluate_and_log(evaluate, state, replicas, start)
        streams = [make_batches(replica.config, data, start, proposals) for replica in replicas]
        for stream in streams:
            cleanup.callback(stream.close)
        pending: collections.deque[Pending] = collections.deque()
        for step in range(start + 1, config.training.steps + 1):
            profiler.at(step)
            with progress.waiting():
                batches = [next(stream) for stream in streams]
            batch = stack([shard(batch, jax.local_device_count()) for batch in batches], axis=1)
            state, metrics = train_step(state, parallel.put(batch))
            stop.running, signal = True, asked_for(stop, largest)
            pending.append(Pending(step, [batch.image_id for batch in batches], metrics))
            due = evaluation_due(config, step)
            saved = due or signal > 0 or step % config.training.checkpoint_every == 0
            while len(pending) > (0 if saved else 1):  # one step behind, so that the devices never wait for the log
                log_step(pending.popleft(), replicas, data, progress)
            if saved:
                save(state, replicas)
            leave_if(signal, f'after step {step}')
            if due:  # after the checkpoint, which stays if the evaluation fails
                with progress.paused():
                    evaluations = evaluate_and_log(evaluate, state, replicas, step)
        evaluations = evaluations or evaluate_each(evaluate, state, len(replicas))  # of a finished run
    last = evaluations[0]
    on_results(last.metrics, last.truth, last.results)
    return last.metrics


def settle(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, data: Dataset
) -> tuple[ml_collections.ConfigDict, list[tuple[ml_collections.ConfigDict, pathlib.Path]], Annotations | None]:
    """Fills in the keys that a config leaves to its data: from the workdir of a run that goes on, or from the annotations.

    Returns:
        the config; configs and workdirs of the replicas; and the annotations if they were read.
    """
    config = take_stored(config, split(config, workdir)[0][1])
    annotations = read_annotations(data) if missing(config) else None
    config = fit_to_data(config, annotations) if annotations else config
    return config, split(config, workdir), annotations


def training_images(
    config: ml_collections.ConfigDict, data: Dataset, validation: Dataset, annotations: Annotations | None
) -> Dataset:
    """Leaves out images without objects if `data.empty_images` is False, and prints what there is to learn from.

    Images of which only a label is known, if the config names some, come behind the others.

    Args:
        config: config of the program.
        data, validation: the splits.
        annotations: annotations of the training split, if they were read before the config was checked.
    """
    annotations = annotations or read_annotations(data)
    kept = data if config.data.empty_images else with_objects(data, annotations.objects)
    if jax.process_index() == 0:
        others = read_annotations(validation)
        lines = [f'{data.name} {line}' for line in summary(annotations, others)]
        lines += [f'WARNING: {line}' for line in warnings(config, annotations, others)]
        if kept is not data:
            lines.append(
                f'trains on {len(kept.records):,} of {len(data.records):,} images of split {data.split!r} of {data.name!r}: '
                'the others have no objects (data.empty_images)'
            )
        for line in lines:
            tqdm.write(line, file=sys.stderr)
    return with_labelled(kept, open_split(config.data, 'labelled')) if config.data.labelled_split else kept


def announce(config: ml_collections.ConfigDict, state: TrainState, start: int, learnt: Learnt) -> None:
    """Prints the detector, the devices, the steps, the canvases, and what the run starts from."""
    if jax.process_index() == 0:
        count = sum(x.size for x in jax.tree.leaves(state.params))
        canvases = ', '.join(f'{height}x{width}' for height, width in config.data.canvases)
        replicas = f'{config.training.num_replicas} replicas, ' if config.training.num_replicas > 1 else ''
        tqdm.write(
            f'{config.model.name}, {count:,} parameters, {replicas}on {jax.device_count()} x {jax.devices()[0].device_kind}: '
            f'steps {start} to {config.training.steps}; compiles once for each canvas: {canvases}',
            file=sys.stderr,
        )
        source = config.initialize_from or config.initialize_backbone
        if source and not start:
            anew = f'; these start anew: {", ".join(learnt.anew)}' if learnt.anew else ''
            changed = ''.join(f'; {key} was {old!r} there, is {new!r}' for key, (old, new) in learnt.changes.items())
            tqdm.write(f'starts from {source}{anew}{changed}', file=sys.stderr)


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
    frozen = frozen_parameters(config.optimizer, state.params)
    accumulate = config.training.accumulate

    def loss_of(params: Any, *arguments: Any) -> Any:
        """Computes the loss. Frozen parameters have a gradient of 0, so that nothing is computed for them."""
        params = jax.tree.map(lambda x, still: jax.lax.stop_gradient(x) if still else x, params, frozen)
        return detector.loss(params, *arguments)

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
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        count = config.training.num_replicas
        if count == 1:
            return train_one(state, batch, config.seed)
        return jax.vmap(train_one)(state, batch, config.seed + jnp.arange(count))

    traces = len(config.data.canvases)
    return parallel.parallel(train_step, name='the train step', traces=traces, donate_argnums=(0,), devices=devices)


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
        if replica.log.evaluated != step:
            log_evaluation(replica.log, step, evaluation)
    return evaluations


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
    config: ml_collections.ConfigDict, data: Dataset, start: int, proposals: Proposals | None = None
) -> Any:
    """Makes the iterator over this process's share of the batches, from a step on."""
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
        process=jax.process_index(),
        processes=jax.process_count(),
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


def log_step(pending: Pending, replicas: Sequence[Replica], data: Dataset, progress: Progress) -> None:
    """Waits for a step, and logs its metrics.

    Raises:
        FloatingPointError: the loss or the gradient is not finite.
    """
    step, indices, metrics = pending
    rows = unstack(parallel.first_replica(metrics), len(replicas))
    for replica, of_replica, row in zip(replicas, indices, rows):
        row = {name: float(value) for name, value in row.items()}
        if not np.isfinite([row['loss'], row['grad_norm']]).all():
            raise FloatingPointError(diverged(step, row, of_replica, data, replica))
        replica.log.write(step, row)
        replica.log.write_scalars(step, progress.update(step, row))


def diverged(step: int, metrics: dict[str, float], indices: np.ndarray, data: Dataset, replica: Replica) -> str:
    """Writes the message about a step whose loss or gradient is not finite."""
    image_ids = [data.records[int(index)]['image_id'] for index in indices]
    last, folder = replica.checkpoints.latest_step(), replica.checkpoints.folder
    standing = (
        'There is no checkpoint yet, so that the same workdir takes another config'
        if last is None
        else f'The last good checkpoint is that of step {last} in {folder}; another config takes a new workdir'
    )
    return (
        f'step {step}: the loss is {metrics["loss"]}, the norm of its gradient {metrics["grad_norm"]}. '
        f'Images of the batch (on this process): {image_ids}. {standing}. A lower optimizer.learning_rate, a longer warm-up or '
        'optimizer.clip_norm may help'
    )


def save(state: TrainState, replicas: Sequence[Replica]) -> None:
    """Starts writing the checkpoints of the replicas from a state on devices."""
    for replica, own in zip(replicas, unstack(parallel.first_replica(state), len(replicas))):
        replica.log.flush()  # before the checkpoint, which may be what the log is cut back to
        replica.checkpoints.save(own)
