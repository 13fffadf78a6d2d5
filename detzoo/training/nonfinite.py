"""A step whose loss or gradient is not finite: what led to it, in a file from which the step is repeated.

    write_record   state before the step, and the batch of all processes -> WORKDIR/nonfinite/STEP.safetensors
    replay         such a file -> Findings: which losses, which images, which gradients, which operation

The file has all that is needed, the config too. It can be replayed elsewhere, without the data and the workdir.
"""

import json
import os
import pathlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import ml_collections
import numpy as np
from jax.experimental import checkify
from jax.extend.core import Literal

from detzoo.config import from_json, to_json
from detzoo.data.pipeline import shard
from detzoo.data.records import Dataset
from detzoo.errors import DataError
from detzoo.files import AnyPath
from detzoo.inference.predictor import detector_of
from detzoo.run import parallel
from detzoo.run.checkpoint import TrainState
from detzoo.run.storage import writing
from detzoo.training.finetune import state_shapes
from detzoo.training.optimizer import make_loss
from detzoo.types import Array, Batch, GroundTruth, Inputs, ModelState, Params
from detzoo.weights.files import parse_entries, parse_metadata, read_bytes, write_entries
from detzoo.weights.mapping import flatten

_KIND = 'a step that is not finite'


class NonFiniteStep(FloatingPointError):
    """The loss or the gradient of a step is not finite."""

    def __init__(self, step: int, replica: int, message: str):
        """Names the step, and the position of the replica to which it happened."""
        super().__init__(message)
        self.step, self.replica = step, replica


class Record(NamedTuple):
    """What a file holds.

    config: config of the run.
    num_classes: number of its classes.
    step: number of the step, from 1.
    image_ids: ids of the batch's images in the data.
    params, model_state: variables before the step.
    batch: the whole batch, that of all processes, numpy.
    """

    config: ml_collections.ConfigDict
    num_classes: int
    step: int
    image_ids: list[int]
    params: Params
    model_state: ModelState
    batch: Batch


class Findings(NamedTuple):
    """What a replay has found.

    step, image_ids: see `Record`.
    loss, grad_norm: of the whole batch.
    terms: names of the losses and other metrics of the batch that are not finite.
    images: {position in the batch: names of what is not finite where the image is a batch of its own}.
    parameters: paths of the parameters whose gradient is not finite, in the order in which gradients are computed.
    operation: the first operation that makes a NaN, with its place in the code; '' if none was found.
    """

    step: int
    image_ids: list[int]
    loss: float
    grad_norm: float
    terms: list[str]
    images: dict[int, list[str]]
    parameters: list[str]
    operation: str


def write_record(
    path: AnyPath, config: ml_collections.ConfigDict, data: Dataset, step: int, state: TrainState, batch: Batch
) -> None:
    """Writes what leads to a step.

    Args:
        path: the file; its folder is made.
        config: config of the run.
        data: the split to train on.
        step: number of the step.
        state: the state before it.
        batch: its batch, that of all processes.

    Raises:
        StorageError: the file cannot be written.
    """
    entries = {
        f'variables/{name}': np.asarray(leaf) for name, leaf in flatten((state.params, state.model_state)).items()
    }
    for group in (batch.inputs, batch.gt, batch):
        leaves = {name: x for name, x in group._asdict().items() if isinstance(x, np.ndarray)}
        entries |= {f'batch/{name}': x for name, x in leaves.items() if name != 'valid' or group is batch.gt}
    metadata = {
        'kind': _KIND,
        'config': to_json(config),
        'num_classes': str(len(data.class_names)),
        'step': str(step),
        'image_ids': json.dumps([int(data.records[int(index)]['image_id']) for index in batch.image_id]),
    }
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        write_entries(path, entries, metadata)


def read_record(path: str | os.PathLike) -> Record:
    """Reads what `write_record` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is another one, or damaged.
    """
    try:
        content = read_bytes(path)
        metadata, entries = parse_metadata(content, path), parse_entries(content, path)
        if metadata.get('kind') != _KIND:
            raise ValueError(f'{path} holds no batch: give a file that a training wrote into nonfinite/ of its workdir')
        leaves = {name: array for name, array in entries.items() if name.startswith('variables/')}
        variables = flax.traverse_util.unflatten_dict(leaves, sep='/')['variables']
        fields = {name.removeprefix('batch/'): array for name, array in entries.items() if name.startswith('batch/')}
        inputs, gt = (
            group(**{name: fields[name] for name in group._fields if name in fields}) for group in (Inputs, GroundTruth)
        )
        config, num_classes = from_json(metadata['config']), int(metadata['num_classes'])
        shapes = state_shapes(config, detector_of(config, num_classes))
        params = variables['params']
        model_state = {name: variables.get(name, {}) for name in shapes.model_state}
        if not have_shapes((params, model_state), (shapes.params, shapes.model_state)):
            raise ValueError('its variables are not those of its config')
        return Record(
            config=config,
            num_classes=num_classes,
            step=int(metadata['step']),
            image_ids=json.loads(metadata['image_ids']),
            params=params,
            model_state=model_state,
            batch=Batch(inputs, gt, fields['image_id'], np.ones(len(inputs.images), bool)),
        )
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(str(error) if str(path) in str(error) else f'{path} is damaged ({error})') from error


def have_shapes(tree: Any, shapes: Any) -> bool:
    """Tells whether a tree has the structure of another, and leaves of the same shapes and dtypes."""
    same_structure = jax.tree.structure(tree) == jax.tree.structure(shapes)
    return same_structure and jax.tree.all(
        jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), tree, shapes)
    )


def replay(path: str | os.PathLike) -> Findings:
    """Repeats a step, as a whole and image by image, with checks.

    The batch is that of one update, not cut into `training.accumulate` parts. Devices share it if they can.

    Args:
        path: a file that a training wrote into nonfinite/ of its workdir.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is another one, or damaged.
    """
    record = read_record(path)
    count = len(record.batch.image_id)
    devices = max(n for n in range(1, jax.local_device_count() + 1) if count % n == 0)
    metrics, gradients = make_repeat(record, devices)(record.batch)
    repeat, images, singles = make_repeat(record, 1), {}, {}
    for index in range(count):
        single = jax.tree.map(lambda x: x[index : index + 1], record.batch)  # noqa: B023, used in this turn
        own, own_gradients = repeat(single)
        names = not_finite(own) + ['gradient'] * bool(not_finite(own_gradients))
        if names:
            images[index], singles[index] = names, (single, own_gradients)
    culprit, its_gradients = next(iter(singles.values()), (record.batch, gradients))
    parameters = not_finite(gradients) or not_finite(its_gradients)
    found = bool(not_finite(metrics) or parameters or images)
    return Findings(
        step=record.step,
        image_ids=record.image_ids,
        loss=float(metrics['loss']),
        grad_norm=float(np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in gradients.values()))),
        terms=not_finite(metrics),
        images=images,
        parameters=sorted(parameters, key=backward_order(record, culprit).get),
        operation=first_nan(record, culprit) if found else '',
    )


def make_repeat(record: Record, devices: int) -> Callable[[Batch], tuple[dict[str, Any], dict[str, Any]]]:
    """Makes a function from a batch to its metrics, and its gradients by the paths of parameters, on some devices."""
    loss_of, rng = loss_of_record(record, parallel.AXIS)

    def step(params: Params, model_state: ModelState, batch: Batch) -> Any:
        (loss, (_, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, model_state, batch, rng)
        return jax.lax.pmean(({'loss': loss, **metrics}, grads), parallel.AXIS)

    mapped = parallel.parallel(step, name='the repeated step', traces=1, devices=jax.local_devices()[:devices])
    variables = jax.tree.map(lambda x: np.broadcast_to(x, (devices, *x.shape)), (record.params, record.model_state))

    def repeat(batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics, grads = parallel.first_replica(mapped(*variables, shard(batch, devices)))
        return metrics, flax.traverse_util.flatten_dict(grads, sep='/')

    return repeat


def loss_of_record(record: Record, axis_name: str | None) -> tuple[Callable[..., Any], Array]:
    """Returns the loss that a record's run is trained with, see `make_loss`, and the random key of the step."""
    detector = detector_of(record.config, record.num_classes, axis_name)
    rng = jax.random.fold_in(jax.random.key(record.config.seed), record.step - 1)
    return make_loss(record.config.optimizer, detector, record.params), rng


def not_finite(arrays: dict[str, Any]) -> list[str]:
    """Lists the names of the arrays that have a number that is not finite."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def backward_order(record: Record, batch: Batch) -> dict[str, int]:
    """Ranks parameters by when the backward pass reaches them: those that the loss uses last come first."""
    loss_of, rng = loss_of_record(record, None)
    program = jax.make_jaxpr(loss_of)(record.params, record.model_state, batch, rng).jaxpr
    last = {}
    for index, equation in enumerate(program.eqns):
        last |= {variable: index for variable in equation.invars if not isinstance(variable, Literal)}
    leaves = jax.tree_util.tree_leaves_with_path(record.params)
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    return {path: -last.get(variable, -1) for path, variable in zip(paths, program.invars)}


def first_nan(record: Record, batch: Batch) -> str:
    """Finds the first operation of loss and gradient that makes a NaN: its name, and the line of code that asks for it."""
    loss_of, rng = loss_of_record(record, None)
    try:
        checked = checkify.checkify(jax.value_and_grad(loss_of, has_aux=True), errors=checkify.nan_checks)
        error, _ = jax.jit(checked)(record.params, record.model_state, batch, rng)
    except (NotImplementedError, ValueError) as refused:
        if isinstance(refused, ValueError) and 'Checkify does not support' not in str(refused):
            raise
        return ''  # as the loops of an RPN's NMS over images
    raised = error.get_exception()
    if raised is None:
        return ''
    frames = traceback.extract_tb(raised.traceback_info.as_python_traceback())
    libraries = tuple(str(pathlib.Path(library.__file__).parent) for library in (jax, flax))
    ours = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f'{raised.prim} in {ours[-1].filename}, line {ours[-1].lineno}: {ours[-1].line}'


def describe(found: Findings) -> str:
    """Writes what a replay has found, for people."""
    lines = [f'step {found.step}: the loss is {found.loss}, the norm of its gradient {found.grad_norm}']
    if not (found.terms or found.parameters or found.images):
        lines += ['everything is finite here: the step depends on the machine on which it was made']
        return '\n'.join(lines)
    lines += [f'not finite: {", ".join(found.terms) or "the gradient alone"}']
    for index, names in found.images.items():
        lines += [f'image {found.image_ids[index]}, a batch of its own, has no finite {", ".join(names)}']
    if not found.images:
        lines += ['each image is finite as a batch of its own']
    if found.parameters:
        count = len(found.parameters)
        lines += [f'the gradient of {found.parameters[0]} is the first that is not finite, of {count} that are not']
    if found.operation:
        lines += [f'the first operation that makes a NaN: {found.operation}']
    return '\n'.join(lines)
