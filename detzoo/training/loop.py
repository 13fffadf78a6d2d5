"""The training loop: one function from a config to a trained detector in a workdir.

    config -> data, detector -> workdir (config.json, classes.json, data.json, environment.json) -> newest checkpoint or a new state
    each step: batch of the step -> pmap(gradients of detector.loss, averaged; update) -> metrics, one step later
    now and then: checkpoint; then evaluation, of that checkpoint

A run that was cut goes on with the same command and ends with the same bits: its state is the checkpoint, its data a
function of seed and step, its random numbers fold_in(key(seed), step).

With `training.num_replicas` several seeds are trained by one program, mapped over them with `vmap`: state and batches have an
axis of replicas after that of devices. What is written is what each would have written alone, in a workdir of its own.
"""

import collections
import contextlib
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pycocotools.mask
from tqdm.auto import tqdm

from detzoo import visualize
from detzoo.config import complete
from detzoo.data.catalog import open_dataset
from detzoo.data.pipeline import shard, train_batches
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import Dataset, decode_image, ground_truth, with_objects
from detzoo.errors import ConfigError
from detzoo.evaluation.coco import coco_metrics
from detzoo.inference.dataset import canvases_for, check_truth, evaluated_kinds, make_predict_step, predict_dataset
from detzoo.inference.predictor import check_proposals, detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.metrics import MetricsLog
from detzoo.run.storage import held
from detzoo.run.workdir import check_workdir, has_checkpoints, write_workdir
from detzoo.training import finetune
from detzoo.training.optimizer import make_optimizer, make_schedule
from detzoo.training.progress import Profiler, Progress
from detzoo.types import Array, Batch, Detector

PICTURES = 4  # of the validation split, drawn at every evaluation


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    *,
    profile_steps: int = 0,
    on_results: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None] = lambda *results: None,
) -> dict[str, Any]:
    """Trains the detector of a config on all devices, and evaluates it.

    Args:
        config: see `detzoo.config`.
        workdir: where everything goes; one that exists goes on where it was. With several replicas, a folder of workdirs.
        profile_steps: how many steps to record with JAX's profiler, into the workdir's TensorBoard.
        on_results: is called at the end with the last metrics, the ground truth of the validation split, and the detections
            as COCO results; of several replicas, with the first one's.

    Returns:
        the COCO metrics at the end (see `evaluation.coco.coco_metrics`); of several replicas, the first one's.

    Raises:
        ConfigError: an unknown key, or a workdir of another config.
        DataError: the data, or the workdir's checkpoints or metrics, cannot be used.
        FloatingPointError: the loss is not finite any more.
        InUseError: another process trains in the workdir.
        RecompilationError: a step was to be compiled once more than there are canvases.
        StorageError: the workdir cannot be written.
    """
    config = complete(config)
    data = open_dataset(config.data.name, config.data.train_split, config.data.data_dir)
    validation = open_dataset(config.data.name, config.data.validation_split, config.data.data_dir)
    runs = split(config, pathlib.Path(workdir))
    detector, state, learnt = check(config, data, begun=all(has_checkpoints(folder) for _, folder in runs))
    data = training_images(config, data)
    proposals = load_proposals(config.data.train_proposals, data, config.data.max_proposals)
    validation_proposals = load_proposals(config.data.validation_proposals, validation, config.data.max_proposals)
    evaluate = make_evaluation(config, detector, validation, validation_proposals)

    with contextlib.ExitStack() as cleanup:  # from the last to the first
        replicas = [Replica(own, folder, Checkpoints(folder)) for own, folder in runs]
        start = parallel.from_first_process(lambda: take_over(config, replicas, data, validation, cleanup))
        states, logs = [], []
        for replica in replicas:
            states.append(
                replica.checkpoints.restore(state) if start else initial_state(replica.config, detector, learnt.arrays)
            )
            logs.append(MetricsLog(replica.workdir, step=start, active=jax.process_index() == 0))
            cleanup.callback(logs[-1].close)
            cleanup.callback(replica.checkpoints.close)
        announce(config, states[0], start, learnt)

        train_step = make_train_step(config, detector, states[0])
        state = parallel.replicate(stack(states))
        progress = cleanup.enter_context(Progress(config, start))
        profiler = cleanup.enter_context(Profiler(replicas[0].workdir, start, profile_steps))
        pending: collections.deque = collections.deque()

        def settle(keep: int) -> None:
            """Logs the metrics of steps that are done, and stops where one is not finite."""
            while len(pending) > keep:
                step, image_ids, metrics = pending.popleft()
                rows = unstack(parallel.first_replica(metrics), len(replicas))
                for replica, log, indices, row in zip(replicas, logs, image_ids, rows):
                    row = {name: float(value) for name, value in row.items()}
                    if not np.isfinite([row['loss'], row['grad_norm']]).all():
                        raise FloatingPointError(diverged(step, row, indices, data, replica))
                    log.write(step, row)
                log.write_scalars(step, progress.update(step, row))

        def evaluate_at(step: int) -> list[dict[str, Any]]:
            """Evaluates the replicas, and logs it where that was not done before."""
            with progress.paused():
                evaluations = evaluate_each(evaluate, state, len(replicas))
                for log, evaluation in zip(logs, evaluations):
                    if log.evaluated != step:
                        log_evaluation(log, step, evaluation)
            return evaluations

        evaluations = []
        if evaluation_due(config, start) and parallel.from_first_process(
            lambda: any(log.evaluated != start for log in logs)
        ):
            evaluations = evaluate_at(start)  # the run was cut after this checkpoint
        streams = [make_batches(replica.config, data, start, proposals) for replica in replicas]
        for stream in streams:
            cleanup.callback(stream.close)
        for step in range(start + 1, config.training.steps + 1):
            profiler.at(step)
            with progress.waiting():
                batches = [next(stream) for stream in streams]
            batch = stack([shard(batch, jax.local_device_count()) for batch in batches], axis=1)
            state, metrics = train_step(state, parallel.put(batch))
            pending.append((step, [batch.image_id for batch in batches], metrics))
            settle(keep=1)  # one step behind, so that the devices never wait for the log
            due = evaluation_due(config, step)
            if due or step % config.training.checkpoint_every == 0:
                settle(keep=0)
                for replica, log, own in zip(replicas, logs, unstack(parallel.first_replica(state), len(replicas))):
                    log.flush()  # before the checkpoint, which may be what the log is cut back to
                    replica.checkpoints.save(own)
            if due:
                evaluations = evaluate_at(step)  # after the checkpoint, which an error then leaves
        evaluations = evaluations or evaluate_each(evaluate, state, len(replicas))  # of a finished run
    last = evaluations[0]
    on_results(last['metrics'], last['truth'], last['results'])
    return last['metrics']


def training_images(config: ml_collections.ConfigDict, data: Dataset) -> Dataset:
    """Leaves out the images without objects where the config asks for it, and says how many."""
    if config.data.empty_images:
        return data
    kept = with_objects(data)
    if jax.process_index() == 0:
        tqdm.write(
            f'trains on {len(kept.records):,} of {len(data.records):,} images of split {data.split!r} of {data.name!r}: '
            'the others have no objects (data.empty_images)',
            file=sys.stderr,
        )
    return kept


class Replica(NamedTuple):
    """One of the trainings of a program; mostly there is but one."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    checkpoints: Checkpoints


def split(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[tuple[ml_collections.ConfigDict, pathlib.Path]]:
    """Makes the config and the workdir of each replica: those of a training of its own, with the next seed.

    Raises:
        ConfigError: others were trained there without one of them, and would have to start anew with it.
    """
    count = config.training.num_replicas
    if count == 1:
        return [(config, workdir)]
    replicas, begun = [], any(map(has_checkpoints, workdir.glob('seed_*')))
    for seed in range(config.seed, config.seed + count):
        own = config.copy_and_resolve_references()
        own.seed, own.training.num_replicas = seed, 1
        replicas.append((own, workdir / f'seed_{seed}'))
        if begun and not (workdir / f'seed_{seed}' / 'config.json').exists():
            raise ConfigError(f'{workdir} has replicas that were trained without seed {seed}: take a new workdir')
    return replicas


def take_over(
    config: ml_collections.ConfigDict,
    replicas: Sequence[Replica],
    data: Dataset,
    validation: Dataset,
    cleanup: contextlib.ExitStack,
) -> int:
    """Makes the workdirs this training's, until `cleanup` is closed, and finds the step from which it goes on."""
    for own, folder, _ in replicas:
        check_workdir(folder, own, data, validation)  # nothing, not even a lock, is left in that of another run
    for replica in replicas:
        cleanup.enter_context(held(replica.workdir))
    for own, folder, checkpoints in replicas:
        checkpoints.set_damaged_aside()
        write_workdir(folder, own, data, validation)
    start = common_start(config, replicas)
    for replica in replicas:
        replica.checkpoints.cut_back(start)  # a kill may have come between the checkpoints of two
    return start


def common_start(config: ml_collections.ConfigDict, replicas: Sequence[Replica]) -> int:
    """Finds the step from which all replicas go on; a kill between two checkpoints leaves some at the one before.

    Raises:
        ConfigError: they stand further apart, so were not trained together: to cut them back would lose what was trained.
    """
    steps = [replica.checkpoints.latest_step() or 0 for replica in replicas]
    if max(steps) - min(steps) > config.training.checkpoint_every:
        standing = ', '.join(f'{replica.workdir.name} at step {step}' for replica, step in zip(replicas, steps))
        folder = replicas[0].workdir.parent
        raise ConfigError(f'the replicas in {folder} were not trained together ({standing}): take a new workdir')
    return min(steps)


def evaluation_due(config: ml_collections.ConfigDict, step: int) -> bool:
    """Tells whether the run is evaluated after a step: at the end, and every so many steps."""
    every = config.training.evaluate_every
    return step > 0 and (step == config.training.steps or (every > 0 and step % every == 0))


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """Adds an axis of replicas; one alone stays as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """Undoes `stack`."""
    return [tree] if count == 1 else [jax.tree.map(operator.itemgetter(index), tree) for index in range(count)]


def evaluate_each(
    evaluate: Callable[[TrainState], dict[str, Any]], state: TrainState, count: int
) -> list[dict[str, Any]]:
    """Evaluates the replicas of a state on devices, one after the other."""
    if count == 1:
        return [evaluate(state)]
    return [evaluate(parallel.replicate(own)) for own in unstack(parallel.first_replica(state), count)]


def initial_state(
    config: ml_collections.ConfigDict, detector: Detector, learnt: Mapping[str, np.ndarray] = MappingProxyType({})
) -> TrainState:
    """Makes the state of step 0: drawn variables, but for those that were learnt elsewhere (see `finetune`)."""
    drawn = jax.jit(detector.init, static_argnums=1)(jax.random.key(config.seed), config.data.canvases[0])
    params, model_state = finetune.replace(*drawn, learnt)
    opt_state = make_optimizer(config.optimizer, config.training.steps, params).init(params)
    ema_params = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, ema_params)


def make_train_step(
    config: ml_collections.ConfigDict, detector: Detector, state: TrainState, devices: Any = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Maps one update over devices, and replicas: (replicated state, sharded batch) -> (state, metrics); the state is donated.

    Args:
        config: of the run.
        detector: made with axis_name = parallel.AXIS.
        state: of one replica, for the names of its parameters.
        devices: what to map over, all by default.
    """
    optimizer = make_optimizer(config.optimizer, config.training.steps, state.params)
    schedule = make_schedule(config.optimizer, config.training.steps)
    accumulate = config.training.accumulate

    def gradients(state: TrainState, batch: Batch, seed: Array) -> tuple[Any, Any, dict[str, Array]]:
        """Averages over micro-batches and devices: (gradients, model_state, metrics)."""
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

        def accumulate_one(carry: tuple[Any, Any], micro_batch: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
            total, model_state = carry
            loss_and_gradient = jax.value_and_grad(detector.loss, has_aux=True)
            (loss, (model_state, metrics)), grads = loss_and_gradient(state.params, model_state, micro_batch, rng)
            return (jax.tree.map(jnp.add, total, grads), model_state), {'loss': loss, **metrics}

        carry = jax.tree.map(jnp.zeros_like, state.params), state.model_state
        if accumulate == 1:  # no loop: XLA's CPU compiler does not thread the convolutions of a loop's body
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


def make_evaluation(
    config: ml_collections.ConfigDict, detector: Detector, dataset: Dataset, proposals: Proposals | None = None
) -> Callable[[TrainState], dict[str, Any]]:
    """Makes a function from a replicated state to the validation metrics, loss and detections.

    The loss is that of training (batch statistics and all) on the batches that need no filler.

    Raises:
        DataError: detections on these data could not be evaluated.
    """
    truth, kinds = ground_truth(dataset), evaluated_kinds(config)
    check_truth(truth, kinds, dataset)
    canvases = set(canvases_for(truth, config))
    predict_step = make_predict_step(detector, canvases)

    def loss_step(params: Any, model_state: Any, batch: Batch) -> tuple[Array, Array]:
        loss, _ = detector.loss(params, model_state, batch, jax.random.key(config.seed))
        return jax.lax.pmean(loss, parallel.AXIS), jax.lax.pmin(batch.valid.all().astype(jnp.int32), parallel.AXIS)

    loss_step = parallel.parallel(loss_step, name='the validation loss', traces=len(canvases))

    def evaluate(state: TrainState) -> dict[str, Any]:
        params = state.params if state.ema_params is None else state.ema_params
        losses = []
        results = predict_dataset(
            predict_step,
            params,
            state.model_state,
            dataset,
            truth,
            config,
            proposals=proposals,
            on_batch=lambda batch: losses.append(loss_step(params, state.model_state, batch)),
        )
        losses = np.array([parallel.first_replica(pair) for pair in losses], np.float64)  # [batches, (loss, whole)]
        whole = losses[:, 1] > 0
        return dict(
            metrics=coco_metrics(truth, results, kinds),
            loss=float(losses[whole if whole.any() else slice(None), 0].mean()),
            pictures=draw_pictures(dataset, results),
            truth=truth,
            results=results,
        )

    return evaluate


def draw_pictures(
    dataset: Dataset, results: list[dict[str, Any]], score_threshold: float = 0.3
) -> dict[str, np.ndarray]:
    """Draws detections, or the annotations of a ground truth, on the first images of a split: {image id: picture}."""
    pictures = {}
    for index in range(min(PICTURES, len(dataset.records))):
        record = dataset.records[index]
        found = [r for r in results if r['image_id'] == record['image_id'] and r.get('score', 1.0) > score_threshold]
        boxes = np.array([r['bbox'] for r in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([dataset.category_ids.index(r['category_id']) for r in found], int)
        image = decode_image(record['image'], name=record['file_name'])
        scores = np.array([r['score'] for r in found]) if found and 'score' in found[0] else None
        masks = None
        if found and found[0].get('segmentation'):
            masks = np.stack([pycocotools.mask.decode(r['segmentation']).astype(bool) for r in found])
        crowd = np.array([r.get('iscrowd', 0) for r in found], bool)
        pictures[str(record['image_id'])] = visualize.draw_boxes(
            image, boxes, labels, scores, dataset.class_names, masks=masks, crowd=crowd
        )
    return pictures


def log_evaluation(log: MetricsLog, step: int, evaluation: dict[str, Any]) -> None:
    """Writes the loss and the 12 numbers, and the pictures."""
    boxes = {f'validation/{name}': value for name, value in evaluation['metrics']['boxes'].items()}
    masks = {f'validation/mask_{name}': value for name, value in evaluation['metrics'].get('masks', {}).items()}
    log.write(step, {'validation/loss': evaluation['loss'], **boxes, **masks})
    log.write_images(step, {f'validation/{name}': picture for name, picture in evaluation['pictures'].items()})


def make_batches(
    config: ml_collections.ConfigDict, data: Dataset, start: int, proposals: Proposals | None = None
) -> Any:
    """This process's share of the training stream from a step on."""
    return train_batches(
        data,
        canvases=config.data.canvases,
        max_boxes=config.data.max_boxes,
        recipe=config.data.recipe.to_dict(),
        batch_size=config.training.batch_size,
        seed=config.seed,
        mask_size=config.data.mask_size,
        proposals=proposals,
        canvas_steps=config.data.canvas_steps,
        start_step=start,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
    )


def check(
    config: ml_collections.ConfigDict, data: Dataset, *, begun: bool = False
) -> tuple[Detector, TrainState, finetune.Learnt]:
    """Makes the detector, the shapes of its state and what it starts from, or raises ConfigError or DataError.

    Nothing is computed or written. A run that has begun goes on from its own checkpoint, and needs nothing else.
    """
    if config.model.get('norm') == 'frozen_batch_norm' and not (config.initialize_backbone or config.initialize_from):
        raise ConfigError(
            "model.norm is 'frozen_batch_norm', which without the statistics of trained weights normalises nothing: set "
            "initialize_backbone to a classifier's file, initialize_from to a workdir, or model.norm to 'batch_norm'"
        )
    if ('mask' in config.model) != (config.data.mask_size > 0):
        raise ConfigError(
            f'data.mask_size is 0, and {config.model.name} learns masks: set it to the side of a mask, to 112 for example'
            if 'mask' in config.model
            else f'data.mask_size is {config.data.mask_size}, and {config.model.name} finds no masks: set it to 0'
        )
    for key in ('train_proposals', 'validation_proposals'):
        check_proposals(config, config.data[key] is not None, f'data.{key}')
    try:
        detector = detector_of(config, len(data.class_names), parallel.AXIS)
        check_canvases(config, detector)
        state = jax.eval_shape(lambda: initial_state(config, detector))
        template = state.params, state.model_state
        learnt = finetune.Learnt() if begun else finetune.read_learnt(config, data.class_names, template)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(str(error)) from error
    if config.training.num_replicas > 1 and len(config.data.canvases) > 1:
        raise ConfigError(
            'training.num_replicas needs a single canvas in data.canvases: each seed draws its own at a step'
        )
    devices = jax.device_count()
    for key, size, parts in (
        ('training.batch_size', config.training.batch_size, devices * config.training.accumulate),
        ('evaluation.batch_size', config.evaluation.batch_size, devices),
    ):
        if size % parts:
            raise ConfigError(
                f'{key} is {size}, not a multiple of {parts} (devices, times training.accumulate for training): '
                f'set it to {max(1, round(size / parts)) * parts}, for example'
            )
    return detector, state, learnt


def check_canvases(config: ml_collections.ConfigDict, detector: Detector) -> None:
    """Raises ConfigError where the network does not fit a canvas, or needs other parameters there than on the first."""
    shapes, first = {}, tuple(config.data.canvases[0])
    for canvas in dict.fromkeys(map(tuple, (*config.data.canvases, *evaluation_canvases(config)))):
        side = f'{canvas[0]} x {canvas[1]}'
        try:
            variables = jax.eval_shape(lambda key, canvas=canvas: detector.init(key, canvas), jax.random.key(0))
        except (ValueError, TypeError) as error:
            raise ConfigError(f'this {config.model.name} does not fit a canvas of {side}: {error}') from error
        except ZeroDivisionError as error:  # of an initialiser, whose variance is 1 / channels
            raise ConfigError(
                f'a layer of this {config.model.name} has no channels: raise model.width or its features'
            ) from error
        shapes[canvas] = jax.tree.map(lambda x: x.shape, variables)
        if shapes[canvas] != shapes[first]:
            raise ConfigError(
                f'the parameters of this {config.model.name} depend on the canvas, and serve one alone: data.canvases begins '
                f'with {first[0]} x {first[1]}; take away {side}, from evaluation.canvases too'
            )


def announce(config: ml_collections.ConfigDict, state: TrainState, start: int, learnt: finetune.Learnt) -> None:
    """Says what will run, from what, and what will be compiled."""
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


def diverged(step: int, metrics: dict[str, float], indices: np.ndarray, data: Dataset, replica: Replica) -> str:
    """The message about a step that is not finite."""
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
