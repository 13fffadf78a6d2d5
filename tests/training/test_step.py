"""The training step: the same numbers on any number of devices, and for every kind of detector after an interruption.

Most of it trains `linear_detector`, which compiles at once; what depends on the network trains the tiny detectors.
"""

import itertools

import jax
import ml_collections
import numpy as np
import optax
import pytest
from linear import assert_close, assert_same, first_batches, linear_detector
from tiny import TINY_FASTER_RCNN, TINY_SSD, TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3

from detzoo.config import complete
from detzoo.data.catalog import open_dataset
from detzoo.data.pipeline import shard
from detzoo.errors import RecompilationError
from detzoo.inference.predictor import detector_of
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints
from detzoo.training.checks import check
from detzoo.training.finetune import initial_state
from detzoo.training.loop import make_batches, make_train_step

DEVICES = 8


def train(config, detector, batches, devices):
    """Makes a step of each batch on so many devices: the states before and after each, and the metrics."""
    state = jax.tree.map(np.asarray, initial_state(config, detector))
    step = make_train_step(config, detector, state, devices=jax.devices()[:devices])
    states, metrics = [state], []
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(parallel.AXIS))
    replicated = jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (devices, *x.shape)), state), sharding)
    for batch in batches:
        replicated, measured = step(replicated, jax.device_put(shard(batch, devices), sharding))
        states.append(parallel.first_replica(replicated))
        metrics.append(parallel.first_replica(measured))
    return states, metrics


# On the network


@pytest.fixture(scope='module')
def on_devices(tiny_config):
    """Five steps of the tiny RetinaNet (momentum, weight decay, synchronised batch norm) by the number of devices."""
    config = tiny_config()
    detector = detector_of(config, 3, parallel.AXIS)
    batches = first_batches(config, 5)
    return {devices: train(config, detector, batches, devices) for devices in (1, DEVICES)}


def test_train_step_does_not_depend_on_the_number_of_devices(on_devices):
    (states, metrics), (other_states, other_metrics) = on_devices[1], on_devices[DEVICES]
    assert all(measured['positives'] > 0 for measured in metrics)
    assert_close(other_metrics, metrics, 1e-5)
    assert_close(other_states, states, 3e-5)  # what float32 rounds off in five steps
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0].params, states[-1].params)
    assert min(jax.tree.leaves(moved)) > 0


def test_train_step_averages_parameters_as_it_says(on_devices):
    # decay = min(ema_decay, (1 + step) / (10 + step)): 0.1, 2/11, ...
    states, _ = on_devices[DEVICES]
    assert_same(states[0].ema_params, states[0].params)
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, before.ema_params, after.params)
        assert_close(after.ema_params, expected, 1e-5)


OTHERS = TINY_FASTER_RCNN, TINY_SSD, TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3


@pytest.mark.parametrize('model', OTHERS, ids=lambda model: model['name'])
def test_checkpoints_let_every_kind_of_detector_go_on_with_the_same_bits(tmp_path, tiny_config, model):
    """What RetinaNet does by the training script, see `test_loop.py`, the others do by its parts."""
    config = tiny_config(optimizer__name='adamw')
    config.model = ml_collections.ConfigDict(model)
    config = complete(config)
    data = open_dataset('toy', 'train', config.data.data_dir)
    detector, template, _ = check(config, data)
    train_step = make_train_step(config, detector, template)

    def train(state, start, stop):
        batches = make_batches(config, data, start)
        state = parallel.replicate(state)
        for _ in range(start, stop):
            state, _ = train_step(state, parallel.put(shard(next(batches), jax.local_device_count())))
        batches.close()
        return parallel.first_replica(state)

    first = initial_state(config, detector)
    whole = train(first, 0, 4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(train(first, 0, 2))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    cut = train(checkpoints.restore(template), 2, 4)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    assert whole.step == 4 and any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (whole.params, first.params))))


# On the linear detector


@pytest.mark.parametrize('devices', [1, 4])
def test_train_step_accumulates_the_mean_of_micro_batches(tiny_config, devices):
    # Without momentum and decay a step is -learning_rate * gradient. On d devices, the micro-batches are every device's
    # first and second half.
    config = tiny_config(
        training__accumulate=2,
        optimizer__warmup_steps=0,
        optimizer__momentum=0.0,
        optimizer__schedule='constant',
        optimizer__weight_decay=0.0,
    )
    batch = first_batches(config, 1)[0]
    states, metrics = train(config, linear_detector(parallel.AXIS), [batch], devices)

    def split(x):
        return x.reshape(devices, 2, -1, *x.shape[1:]).swapaxes(0, 1).reshape(2, -1, *x.shape[1:])

    halves = jax.tree.map(split, batch)
    rng = jax.random.fold_in(jax.random.key(config.seed), 0)
    gradients, values = [], []
    for half in range(2):
        micro = jax.tree.map(lambda x: x[half], halves)  # noqa: B023
        loss_of = jax.value_and_grad(linear_detector(None).loss, has_aux=True)
        (value, _), gradient = loss_of(states[0].params, states[0].model_state, micro, rng)
        values.append(value)
        gradients.append(gradient)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    rate = config.optimizer.learning_rate
    assert_close(states[1].params, jax.tree.map(lambda p, g: p - rate * g, states[0].params, mean), 1e-5)
    assert metrics[0]['loss'] == pytest.approx(np.mean(values), rel=1e-5)
    assert metrics[0]['grad_norm'] == pytest.approx(float(optax.tree.norm(mean)), rel=1e-5)
    assert states[1].model_state['seen'] == 8 and values[0] != values[1]


def test_train_step_draws_other_numbers_each_step(tiny_config):
    config = tiny_config(optimizer__learning_rate=0.0)
    batch = first_batches(config, 1)[0]
    _, metrics = train(config, linear_detector(parallel.AXIS), [batch, batch], DEVICES)
    assert metrics[0]['loss'] != metrics[1]['loss'] == pytest.approx(metrics[0]['loss'], rel=0.1)


def test_train_step_keeps_frozen_parameters(tiny_config):
    config = tiny_config(optimizer__frozen='^neck/', optimizer__weight_decay=0.1)
    states, metrics = train(config, linear_detector(parallel.AXIS), first_batches(config, 3), DEVICES)
    assert_same(states[-1].params['neck'], states[0].params['neck'])
    assert_same(states[-1].ema_params['neck'], states[0].params['neck'])
    assert np.abs(states[-1].params['head']['kernel'] - states[0].params['head']['kernel']).min() > 0
    # The norm of the gradient is that of the others.
    rng = jax.random.fold_in(jax.random.key(config.seed), 0)
    batch = first_batches(config, 1)[0]
    gradient, _ = jax.grad(linear_detector(None).loss, has_aux=True)(
        states[0].params, states[0].model_state, batch, rng
    )
    others = {name: part for name, part in gradient.items() if name != 'neck'}
    assert metrics[0]['grad_norm'] == pytest.approx(float(optax.tree.norm(others)), rel=1e-5)
    assert metrics[0]['grad_norm'] < 0.999 * optax.tree.norm(gradient)


def test_train_step_reports_the_schedule_and_what_was_left_out(tiny_config):
    config = tiny_config(data__max_boxes=1, data__recipe__scale_range=(1.5, 2.5))
    batches = first_batches(config, 3)
    _, metrics = train(config, linear_detector(parallel.AXIS), batches, DEVICES)
    # The warm-up of 4 steps ends at 0.02.
    np.testing.assert_allclose([measured['learning_rate'] for measured in metrics], [0.005, 0.00875, 0.0125], rtol=1e-6)
    for batch, measured in zip(batches, metrics):
        assert measured['gt_dropped'] == batch.gt.dropped.sum() > 0
        assert measured['gt_cropped'] == batch.gt.cropped.sum() > batch.gt.cropped.max()  # those of all devices


def test_train_step_refuses_shapes_that_were_not_announced(tiny_config):
    config = tiny_config()
    batch, other = first_batches(config, 1)[0], first_batches(tiny_config(data__canvases=((64, 96),)), 1)[0]
    with pytest.raises(RecompilationError) as raised:
        train(config, linear_detector(parallel.AXIS), [batch, batch, other], DEVICES)
    message = str(raised.value)
    assert 'the train step is compiled once for each canvas (1 here), and would now be compiled once more' in message
    assert 'images was uint8[1, 64, 64, 3], is uint8[1, 64, 96, 3]' in message
    assert 'params' not in message and 'boxes' not in message
    config.data.canvases = ((64, 64), (64, 96))
    train(config, linear_detector(parallel.AXIS), [batch, other, batch], DEVICES)
