"""Training: the same numbers on any number of devices and after any interruption, and every refusal with its reason.

Most of it trains `linear_detector`, which compiles at once; what depends on the network trains the tiny RetinaNet.
"""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pycocotools.mask
import pytest
from conftest import TINY_FASTER_RCNN, TINY_SSD, TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3
from linear import assert_same, linear_detector, losses_of, saved, state_of

from detzoo.config import complete, defaults, to_json
from detzoo.data.catalog import open_dataset
from detzoo.data.pipeline import evaluation_batches, shard
from detzoo.errors import ConfigError, RecompilationError
from detzoo.inference.predictor import detector_of
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import MetricsLog, read_metrics
from detzoo.run.storage import held
from detzoo.training import loop
from detzoo.training.optimizer import make_optimizer, make_schedule

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8


def first_batches(config, count):
    data = open_dataset(config.data.name, 'train', config.data.data_dir)
    stream = loop.make_batches(config, data, 0)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def train(config, detector, batches, devices):
    """Makes a step of each batch on so many devices: the states before and after each, and the metrics."""
    state = jax.tree.map(np.asarray, loop.initial_state(config, detector))
    step = loop.make_train_step(config, detector, state, devices=jax.devices()[:devices])
    states, metrics = [state], []
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(parallel.AXIS))
    replicated = jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (devices, *x.shape)), state), sharding)
    for batch in batches:
        replicated, measured = step(replicated, jax.device_put(shard(batch, devices), sharding))
        states.append(parallel.first_replica(replicated))
        metrics.append(parallel.first_replica(measured))
    return states, metrics


def assert_close(first, second, tolerance):
    """Compares trees leaf by leaf, each to a tolerance relative to its largest value."""

    def check(path, a, b):
        scale = np.abs(b).max(initial=1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, first, second)


def optimizer_config(**changes):
    base = defaults().optimizer
    base.update(name='sgd', learning_rate=0.1, schedule='constant', warmup_steps=0, weight_decay=0.0, momentum=0.0)
    base.update(changes)
    return base


# The step, on the network


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


# The step, on the linear detector


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
    states, _ = train(config, linear_detector(parallel.AXIS), first_batches(config, 3), DEVICES)
    assert_same(states[-1].params['neck'], states[0].params['neck'])
    assert_same(states[-1].ema_params['neck'], states[0].params['neck'])
    assert np.abs(states[-1].params['head']['kernel'] - states[0].params['head']['kernel']).min() > 0


def test_train_step_reports_the_schedule_and_what_was_left_out(tiny_config):
    config = tiny_config(data__max_boxes=1, data__recipe__scale_range=(1.5, 2.5))
    batches = first_batches(config, 3)
    _, metrics = train(config, linear_detector(parallel.AXIS), batches, DEVICES)
    # The warm-up of 4 steps ends at 0.02.
    np.testing.assert_allclose([measured['learning_rate'] for measured in metrics], [0.005, 0.00875, 0.0125], rtol=1e-6)
    for batch, measured in zip(batches, metrics):
        assert measured['gt_dropped'] == batch.gt.dropped.sum() > 0
        assert measured['gt_cropped'] == batch.gt.cropped.sum() > batch.gt.cropped.max()  # those of all devices


def test_evaluation_takes_averaged_parameters_and_batches_without_filler(tiny_config, toy, monkeypatch):
    config, dataset = tiny_config(evaluation__batch_size=16), toy(31)
    score = lambda params, model_state, inputs: jnp.full(
        (len(inputs.images), 2), jax.nn.sigmoid(params['head']['bias'][0])
    )
    plain = linear_detector(parallel.AXIS)
    detector = plain._replace(predict=lambda *args: plain.predict(*args)._replace(scores=score(*args)))
    monkeypatch.setattr(loop, 'coco_metrics', lambda truth, results, kinds: {row['score'] for row in results})
    state = loop.initial_state(config, detector)
    averaged = jax.tree.map(lambda x: x + 0.5, state.params)
    evaluate = loop.make_evaluation(config, detector, dataset)
    found = evaluate(parallel.replicate(state._replace(ema_params=averaged)))
    # Of 31 images 16 fill a batch, whose loss counts; the others share one with filler, one on a device with an image.
    batch, rest = evaluation_batches(dataset, [(64, 64)] * 31, max_boxes=4, recipe=config.data.recipe, batch_size=16)
    assert batch.valid.all() and rest.valid.sum() == 15
    loss, _ = linear_detector(None).loss(averaged, state.model_state, batch, jax.random.key(config.seed))
    assert found['loss'] == pytest.approx(float(loss), rel=1e-5)
    assert list(found['metrics']) == pytest.approx([1 / (1 + np.exp(-0.5))], rel=1e-3)


def test_train_step_refuses_shapes_that_were_not_announced(tiny_config):
    config = tiny_config()
    batch, other = first_batches(config, 1)[0], first_batches(tiny_config(data__canvases=((64, 96),)), 1)[0]
    with pytest.raises(RecompilationError) as raised:
        train(config, linear_detector(parallel.AXIS), [batch, batch, other], DEVICES)
    message = str(raised.value)
    assert 'the train step would be compiled a 2. time' in message
    assert 'images was uint8[1, 64, 64, 3], is uint8[1, 64, 96, 3]' in message
    assert 'params' not in message and 'boxes' not in message
    config.data.canvases = ((64, 64), (64, 96))
    train(config, linear_detector(parallel.AXIS), [batch, other, batch], DEVICES)


# The optimiser


def test_make_schedule_cosine_by_hand():
    schedule = make_schedule(optimizer_config(learning_rate=0.4, schedule='cosine', warmup_steps=10), steps=110)
    # From a tenth to the whole in 10 steps, then half a cosine in 100.
    expected = {0: 0.04, 5: 0.22, 10: 0.4, 35: 0.4 * (1 + 0.5**0.5) / 2, 60: 0.2, 110: 0}
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-5, abs=1e-8), step


def test_make_schedule_steps_by_hand():
    config = optimizer_config(learning_rate=0.4, schedule='steps', decay_at=(0.5, 0.8), warmup_steps=10)
    rates = [make_schedule(config, steps=100)(step) for step in (0, 9, 10, 49, 50, 79, 80, 99)]
    assert rates[1] < 0.4
    np.testing.assert_allclose(rates, [0.04, 0.364, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rtol=1e-5)


def test_make_schedule_without_warmup():
    for name in ('constant', 'cosine', 'steps'):
        assert make_schedule(optimizer_config(schedule=name), steps=100)(0) == pytest.approx(0.1)
    assert make_schedule(optimizer_config(), steps=100)(99) == pytest.approx(0.1)


def test_make_schedule_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="optimizer.schedule is 'linear': use 'cosine'"):
        make_schedule(optimizer_config(schedule='linear'), steps=100)


TOY_PARAMS = {
    'conv': {'kernel': np.full((2, 3), 2.0, np.float32), 'bias': np.full(3, 2.0, np.float32)},
    'local': {'bias': np.full((2, 2, 3), 2.0, np.float32)},  # of a layer that has weights for each cell
    'norm': {'scale': np.full(3, 2.0, np.float32)},
}


def updated(config, *gradients):
    """TOY_PARAMS after a step with each gradient, the same number everywhere."""
    optimizer = make_optimizer(config, 100, TOY_PARAMS)
    params, state = TOY_PARAMS, optimizer.init(TOY_PARAMS)
    for gradient in gradients:
        gradients = jax.tree.map(np.full_like, params, jax.tree.map(lambda x, g=gradient: g, params))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_make_optimizer_decays_kernels_alone(name):
    params = updated(optimizer_config(name=name, weight_decay=0.5), 0.0)
    np.testing.assert_allclose(params['conv']['kernel'], 2 - 0.1 * 0.5 * 2, rtol=1e-6)
    for layer, leaf in (('conv', 'bias'), ('local', 'bias'), ('norm', 'scale')):
        np.testing.assert_array_equal(params[layer][leaf], 2)


def test_make_optimizer_sgd_by_hand():
    # Momentum gathers gradient and decay, as in torch: v1 = 1 + 0.5 * 2 = 2, w1 = 2 - 0.1 * 2 = 1.8;
    # v2 = 0.9 * 2 + 3 + 0.5 * 1.8 = 5.7, w2 = 1.8 - 0.57. Without decay: 2 - 0.1 * 1 - 0.1 * (0.9 + 3).
    params = updated(optimizer_config(momentum=0.9, weight_decay=0.5), 1.0, 3.0)
    np.testing.assert_allclose(params['conv']['kernel'], 1.23, rtol=1e-6)
    np.testing.assert_allclose(params['conv']['bias'], 1.51, rtol=1e-6)


def test_make_optimizer_adamw_by_hand():
    # The first step of Adam is gradient / (|gradient| + epsilon) of the rate: all of it, or half where epsilon is as large.
    for epsilon, share in ((1e-8, 1.0), (1e-3, 0.5)):
        params = updated(optimizer_config(name='adamw', weight_decay=0.0, epsilon=epsilon), 1e-3)
        np.testing.assert_allclose(params['conv']['bias'], 2 - 0.1 * share, rtol=1e-5)


def test_make_optimizer_clips_the_norm_of_all_gradients():
    # 24 numbers of gradient 5 have norm 5 * sqrt(24); clipped to 1, each is 1 / sqrt(24). Decay is not clipped.
    params = updated(optimizer_config(clip_norm=1.0, weight_decay=0.5), 5.0)
    np.testing.assert_allclose(params['conv']['bias'], 2 - 0.1 / 24**0.5, rtol=1e-6)
    np.testing.assert_allclose(params['conv']['kernel'], 2 - 0.1 / 24**0.5 - 0.1, rtol=1e-6)


@pytest.mark.parametrize('frozen, still', [('conv/', ['conv']), ('^norm/scale$', ['norm']), ('kernel|scale', ['norm'])])
def test_make_optimizer_freezes_what_matches(frozen, still):
    params = updated(optimizer_config(frozen=frozen, weight_decay=0.5), 1.0, 1.0)
    for name in TOY_PARAMS:
        if name in still:
            assert_same(params[name], TOY_PARAMS[name])
        else:
            assert (params[name]['scale' if name == 'norm' else 'bias'] != 2).all()


def test_make_optimizer_refuses_what_matches_nothing():
    with pytest.raises(ValueError, match="optimizer.frozen='stem' matches no parameter.*'conv/"):
        make_optimizer(optimizer_config(frozen='stem'), 100, TOY_PARAMS)
    with pytest.raises(ValueError, match="optimizer.name is 'lion': use 'adamw' or 'sgd'"):
        make_optimizer(optimizer_config(name='lion'), 100, TOY_PARAMS)


# Checkpoints and the log


@pytest.mark.parametrize('ema', [None, {'w': np.full((2, 3), 0.25, np.float32)}])
def test_checkpoints_restore_what_was_saved(tmp_path, ema):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    for step in (5, 10):
        checkpoints.save(state_of(step, step / 3, ema))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state_of(0, 0, ema))
    assert_same(restored, state_of(10, 10 / 3, ema))
    assert jax.tree.structure(restored) == jax.tree.structure(state_of(0, 0, ema))
    assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {np.dtype('int32'), np.dtype('float32')}
    for step in (5, None):
        found, variables = checkpoints.restore_variables(step)
        assert found == (step or 10)
        assert set(variables) == {'params', 'model_state'} | ({'ema_params'} if ema else set())
        np.testing.assert_array_equal(variables['params']['w'], np.full((2, 3), np.float32(found / 3)))
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 7 .*there are: \[5, 10\]'):
        checkpoints.restore_variables(7)
    checkpoints.close()


def test_checkpoints_keep_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 3):
        checkpoints.save(state_of(step))
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_checkpoints_refuse_what_is_not_finite(tmp_path, bad):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(5))
    with pytest.raises(FloatingPointError, match=r"after step 6, .*params\['w'\] is not finite.*that of step 5"):
        checkpoints.save(state_of(6, bad))
    checkpoints.close()
    assert Checkpoints(tmp_path).latest_step() == 5


OTHERS = TINY_FASTER_RCNN, TINY_SSD, TINY_YOLO_V1, TINY_YOLO_V2, TINY_YOLO_V3


@pytest.mark.parametrize('model', OTHERS, ids=lambda model: model['name'])
def test_checkpoints_let_every_kind_of_detector_go_on_with_the_same_bits(tmp_path, tiny_config, model):
    """What RetinaNet does by the training script, see below, the others do by its parts."""
    config = tiny_config(optimizer__name='adamw')
    config.model = ml_collections.ConfigDict(model)
    config = complete(config)
    data = open_dataset('toy', 'train', config.data.data_dir)
    detector, template, _ = loop.check(config, data)
    train_step = loop.make_train_step(config, detector, template)

    def train(state, start, stop):
        batches = loop.make_batches(config, data, start)
        state = parallel.replicate(state)
        for _ in range(start, stop):
            state, _ = train_step(state, parallel.put(shard(next(batches), DEVICES)))
        batches.close()
        return parallel.first_replica(state)

    first = loop.initial_state(config, detector)
    whole = train(first, 0, 4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(train(first, 0, 2))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    cut = train(checkpoints.restore(template), 2, 4)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    assert whole.step == 4 and any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (whole.params, first.params))))


def test_draw_pictures_shows_of_each_of_the_first_images_what_was_found_there(toy, monkeypatch):
    shown = []

    def draw(image, boxes, labels, scores, class_names, masks, crowd):
        shown.append(
            (boxes.tolist(), labels.tolist(), None if scores is None else scores.tolist(), masks, crowd.tolist())
        )
        return image

    monkeypatch.setattr(loop.visualize, 'draw_boxes', draw)
    row = dict(image_id=101, bbox=[1.0, 2, 3, 4], category_id=8, score=0.9)
    faint, elsewhere = row | dict(score=0.3), row | dict(image_id=102, category_id=9, score=0.31)
    pictures = loop.draw_pictures(toy(loop.PICTURES + 1), [row, faint, elsewhere])  # what scores 0.3 is not shown
    assert list(pictures) == [str(100 + index) for index in range(loop.PICTURES)]
    nothing = [], [], None, None, []
    found = [([[1, 2, 4, 6]], [1], [0.9], None, [False]), ([[1, 2, 4, 6]], [2], [0.31], None, [False])]
    assert shown == [nothing, *found, *[nothing] * (loop.PICTURES - 3)]

    shown.clear()  # annotations have no score, and may be crowds
    mask = pycocotools.mask.encode(np.asfortranarray(np.eye(3, dtype=np.uint8)))
    annotation = dict(image_id=100, bbox=[5.0, 6, 7, 8], category_id=3, iscrowd=1, segmentation=mask)
    assert len(loop.draw_pictures(toy(2), [annotation])) == 2
    *others, masks, crowd = shown[0]
    assert others == [[[5, 6, 12, 14]], [0], None] and crowd == [True]
    np.testing.assert_array_equal(masks, np.eye(3, dtype=bool)[None])


def test_metrics_log_is_cut_back_to_the_step(tmp_path):
    log = MetricsLog(tmp_path, step=0, active=True)
    for step in range(1, 6):
        log.write(step, {'loss': 1 / step})
    log.write(5, {'validation/AP': None})
    log.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "lo')  # killed in the midst of a line
    MetricsLog(tmp_path, step=5, active=True).close()
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 5]
    log = MetricsLog(tmp_path, step=3, active=True)
    log.write(4, {'loss': 0.3})
    log.close()
    kept = [{'step': step, 'loss': 1 / step} for step in (1, 2, 3)]
    assert read_metrics(tmp_path) == [*kept, {'step': 4, 'loss': 0.3}]


def test_metrics_log_of_other_processes_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path, step=0, active=False)
    log.write(1, {'loss': 1.0})
    log.write_scalars(1, {'speed': 1.0})
    log.write_images(1, {})
    log.flush()
    log.close()
    assert not list(tmp_path.iterdir())


# The loop


def test_train_and_evaluate_goes_on_where_it_was(tmp_path, tiny_config, linear):
    config = tiny_config(training__evaluate_every=4)
    metrics = loop.train_and_evaluate(config, tmp_path / 'whole')
    assert metrics['images'] == 10 and 0 <= metrics['boxes']['AP'] <= 1
    lines = read_metrics(tmp_path / 'whole')
    assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 17))
    assert [line['step'] for line in lines if 'validation/AP' in line] == [4, 8, 12, 16]
    assert all(np.isfinite(line['validation/loss']) for line in lines if 'validation/AP' in line)

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the evaluation at step 8 fails: its checkpoint is there, and made up for
        coco_metrics, calls = loop.coco_metrics, itertools.count(1)
        patch.setattr(loop, 'coco_metrics', lambda *args: 1 / 0 if next(calls) == 2 else coco_metrics(*args))
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(config, tmp_path / 'cut')
    assert len(losses_of(tmp_path / 'cut')) == saved(tmp_path / 'cut')[0] == 8
    assert [line['step'] for line in read_metrics(tmp_path / 'cut') if 'validation/AP' in line] == [4]
    assert loop.train_and_evaluate(config, tmp_path / 'cut') == metrics
    assert (tmp_path / 'cut' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    assert_same(saved(tmp_path / 'cut'), saved(tmp_path / 'whole'))


def test_train_and_evaluate_of_a_finished_run_makes_no_step(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=3)
    metrics = loop.train_and_evaluate(config, tmp_path)
    before = (tmp_path / 'metrics.jsonl').read_bytes(), saved(tmp_path)
    assert loop.train_and_evaluate(config, tmp_path) == metrics
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before[0]
    assert_same(saved(tmp_path), before[1])
    config.training.steps = 5  # longer: one of the keys that may change
    loop.train_and_evaluate(config, tmp_path)
    assert len(losses_of(tmp_path)) == 5


def test_train_and_evaluate_refuses_another_config_on_the_same_workdir(tmp_path, tiny_config, linear):
    loop.train_and_evaluate(tiny_config(training__steps=1), tmp_path)
    before = (tmp_path / 'config.json').read_bytes()
    changed = tiny_config(training__steps=2, training__checkpoint_every=1, seed=3, optimizer__learning_rate=0.5)
    with pytest.raises(ConfigError) as raised:
        loop.train_and_evaluate(changed, tmp_path)
    message = str(raised.value)
    assert 'seed was 0, is 3' in message and 'optimizer.learning_rate was 0.02, is 0.5' in message
    assert 'training' not in message
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('section', ['training', 'evaluation'])
def test_train_and_evaluate_refuses_batches_that_devices_cannot_share(tmp_path, tiny_config, linear, section):
    with pytest.raises(ConfigError, match=rf'{section}.batch_size is 12, not a multiple of 8 .*set it to (8|16)'):
        loop.train_and_evaluate(tiny_config(**{f'{section}__batch_size': 12}), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'tiny, canvases, message',
    [
        (
            TINY_YOLO_V1,
            dict(data__canvases=((64, 64), (96, 64))),
            r'serve one alone: .* begins with 64 x 64; take away 96 x 64',
        ),
        (TINY_YOLO_V1, dict(evaluation__canvases=((64, 96),)), 'take away 64 x 96, from evaluation.canvases too'),
        (TINY_YOLO_V2, dict(data__canvases=((64, 64), (64, 68))), 'does not fit a canvas of 64 x 68: '),
        (TINY_YOLO_V2, dict(data__canvases=((68, 64),)), 'does not fit a canvas of 68 x 64: '),
    ],
    ids=str,
)
def test_check_refuses_canvases_that_the_network_does_not_fit(tiny_config, tiny, canvases, message):
    config = tiny_config(**canvases)
    config.model = complete(ml_collections.ConfigDict(dict(model=tiny))).model
    with pytest.raises(ConfigError, match=message):
        loop.check(config, open_dataset('toy', 'train', config.data.data_dir))


def test_train_and_evaluate_stops_where_the_loss_is_not_finite(tmp_path, tiny_config, linear):
    # A rate this high takes a few steps until float32 overflows.
    config = tiny_config(optimizer__learning_rate=1e3, optimizer__warmup_steps=0, training__checkpoint_every=2)
    with pytest.raises(FloatingPointError) as raised:
        loop.train_and_evaluate(config, tmp_path)
    done = losses_of(tmp_path)
    assert 2 <= len(done) < 16 and np.isfinite(done).all()
    step, state = saved(tmp_path)
    assert step == len(done) // 2 * 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    failed = first_batches(config, len(done) + 1)[-1]
    message = str(raised.value)
    assert message.startswith(f'step {len(done) + 1}: the loss is ')
    assert str([100 + index for index in failed.image_id.tolist()]) in message
    assert f'that of step {step} in {tmp_path}/checkpoints; another config takes a new workdir' in message


def test_train_and_evaluate_starts_anew_where_no_checkpoint_was_saved(tmp_path, tiny_config, linear):
    with pytest.raises(
        FloatingPointError, match='no checkpoint yet, so that the same workdir takes another config. A lower'
    ):
        loop.train_and_evaluate(tiny_config(optimizer__learning_rate=1e30, optimizer__warmup_steps=0), tmp_path)
    loop.train_and_evaluate(tiny_config(training__steps=2), tmp_path)
    assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2, 2]
    assert saved(tmp_path)[0] == 2


def test_train_and_evaluate_leaves_out_images_without_objects(tmp_path, tiny_config, linear, capfd, monkeypatch):
    trained = []
    make_batches = loop.make_batches
    monkeypatch.setattr(
        loop, 'make_batches', lambda config, data, *rest: trained.append(data) or make_batches(config, data, *rest)
    )
    for name, empty_images, count in (('with', True, 20), ('without', False, 19)):
        config = tiny_config(data__empty_images=empty_images, training__steps=1)
        loop.train_and_evaluate(config, tmp_path / name)
        announced = (
            "trains on 19 of 20 images of split 'train' of 'toy': the others have no objects" in capfd.readouterr().err
        )
        assert announced == (not empty_images) and len(trained[-1].records) == count
    assert trained[0].records[0]['image_id'] == 100 and trained[1].records[0]['image_id'] == 101


def test_train_and_evaluate_counts_objects_without_a_row(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=3, data__max_boxes=1)
    loop.train_and_evaluate(config, tmp_path)
    expected = [int(batch.gt.dropped.sum()) for batch in first_batches(config, 3)]
    assert [line['gt_dropped'] for line in read_metrics(tmp_path)[:3]] == expected
    assert min(expected) > 0


@pytest.mark.parametrize(
    'changes', [{}, {'training__accumulate': 1, 'optimizer__ema_decay': 0.0}], ids=['ema', 'no_ema']
)
def test_replicas_equal_their_single_runs(tmp_path, tiny_config, linear, changes):
    config = tiny_config(seed=3, training__steps=8, training__evaluate_every=4, **changes)
    config.training.num_replicas = 3
    metrics = loop.train_and_evaluate(config, tmp_path / 'three')
    assert sorted(path.name for path in (tmp_path / 'three').iterdir()) == ['seed_3', 'seed_4', 'seed_5']
    for seed in (3, 4, 5):
        config.seed, config.training.num_replicas = seed, 1
        own, alone = tmp_path / 'three' / f'seed_{seed}', tmp_path / f'{seed}'
        single = loop.train_and_evaluate(config, alone)
        assert (own / 'config.json').read_text() == (alone / 'config.json').read_text()
        np.testing.assert_allclose(losses_of(own), losses_of(alone), rtol=1e-5)
        assert_close(saved(own)[1], saved(alone)[1], 1e-5)
        assert [row['step'] for row in read_metrics(own)] == [row['step'] for row in read_metrics(alone)]
        assert metrics == single or seed > 3
    assert losses_of(tmp_path / '3') != losses_of(tmp_path / '4')


def test_replicas_of_a_detector_equal_single_runs(tmp_path, tiny_config):
    """Convolutions, synchronised batch norm, focal loss and all; by SGD, whose steps are as large as gradients differ."""
    config = tiny_config(training__steps=3, training__num_replicas=2, optimizer__ema_decay=0.0)
    loop.train_and_evaluate(config, tmp_path / 'two')
    for seed in (0, 1):
        config.seed, config.training.num_replicas = seed, 1
        loop.train_and_evaluate(config, tmp_path / f'{seed}')
        own = tmp_path / 'two' / f'seed_{seed}'
        np.testing.assert_allclose(losses_of(own), losses_of(tmp_path / f'{seed}'), rtol=1e-4)
        assert_close(saved(own)[1], saved(tmp_path / f'{seed}')[1], 1e-4)


def test_replicas_go_on_where_all_of_them_were(tmp_path, tiny_config, linear):
    config = tiny_config(training__num_replicas=2)
    loop.train_and_evaluate(config, tmp_path / 'whole')
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # killed between the second checkpoint of the first and that of the second
        calls, save = itertools.count(1), Checkpoints.save
        patch.setattr(Checkpoints, 'save', lambda *args: 1 / 0 if next(calls) == 4 else save(*args))
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(config, tmp_path / 'cut')
    assert [saved(tmp_path / 'cut' / f'seed_{seed}')[0] for seed in (0, 1)] == [10, 5]
    loop.train_and_evaluate(config, tmp_path / 'cut')
    for seed in ('seed_0', 'seed_1'):
        assert losses_of(tmp_path / 'cut' / seed) == losses_of(tmp_path / 'whole' / seed)
        assert_same(saved(tmp_path / 'cut' / seed), saved(tmp_path / 'whole' / seed))
    alone = tiny_config(seed=1)
    loop.train_and_evaluate(alone, tmp_path / 'whole' / 'seed_1')  # the workdir is one of a single run


@pytest.mark.parametrize('steps', [16, 4])
def test_replicas_lose_nothing_where_one_more_is_asked_for(tmp_path, tiny_config, linear, steps):
    loop.train_and_evaluate(tiny_config(training__num_replicas=2, training__steps=steps), tmp_path)
    before = [saved(tmp_path / seed) for seed in ('seed_0', 'seed_1')]
    with pytest.raises(ConfigError, match='has replicas that were trained without seed 2: take a new workdir'):
        loop.train_and_evaluate(tiny_config(training__num_replicas=3, training__steps=steps), tmp_path)
    assert not (tmp_path / 'seed_2').exists()
    loop.train_and_evaluate(
        tiny_config(seed=1, training__steps=steps + 6), tmp_path / 'seed_1'
    )  # one alone goes further
    with pytest.raises(ConfigError, match=f'not trained together .seed_0 at step {steps}, seed_1 at step {steps + 6}.'):
        loop.train_and_evaluate(tiny_config(training__num_replicas=2, training__steps=steps + 6), tmp_path)
    assert_same(before[0], saved(tmp_path / 'seed_0'))
    assert saved(tmp_path / 'seed_1')[0] == steps + 6


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'training__num_replicas': 0}, 'training.num_replicas is 0'),
        ({'training__num_replicas': 2, 'data__canvases': ((64, 48), (48, 64))}, 'needs a single canvas'),
    ],
)
def test_replicas_that_cannot_be(tmp_path, tiny_config, linear, changes, message):
    with pytest.raises(ConfigError, match=message):
        loop.train_and_evaluate(tiny_config(**changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_train_and_evaluate_takes_several_canvases(tmp_path, tiny_config, linear):
    config = tiny_config(data__canvases=((64, 48), (48, 64)), training__steps=6)
    assert loop.train_and_evaluate(config, tmp_path)['images'] == 10
    assert len(losses_of(tmp_path)) == 6


def test_train_and_evaluate_writes_what_the_run_is(tiny_run, tiny_config):
    assert json.loads((tiny_run / 'classes.json').read_text()) == {
        'class_names': ['red', 'green', 'blue'],
        'category_ids': [3, 8, 9],
    }
    environment = json.loads((tiny_run / 'environment.json').read_text())
    assert environment['devices'] == DEVICES and environment['versions']['jax'] == jax.__version__
    assert json.loads((tiny_run / 'config.json').read_text())['model']['depth'] == 18
    assert list((tiny_run / 'tensorboard').iterdir())


# Processes


def train_script(tiny_config, tmp_path, workdir):
    """Starts scripts/train.py on the config of `tiny_run`."""
    file = tmp_path / 'config.py'
    text = to_json(tiny_config())
    file.write_text(f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({text!r})\n')
    command = [sys.executable, ROOT / 'scripts' / 'train.py', f'--config={file}', f'--workdir={workdir}']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed_after(process, workdir, step, signal=signal.SIGKILL, seconds=300):
    """Ends a run by a signal once its metrics show a step; returns the last step they show then."""
    path, end = workdir / 'metrics.jsonl', time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        done = [json.loads(line)['step'] for line in lines if line.endswith('\n')]
        if done and done[-1] >= step:
            process.send_signal(signal)
            assert process.wait(30) == -signal
            return done[-1]
        time.sleep(0.002)
    process.kill()
    raise AssertionError(f'the run ended before step {step}: {process.communicate()[0][-3000:]}')


def test_train_script_killed_and_started_again_ends_with_the_same_bits(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / 'run'
    # Killed between the checkpoints of steps 5 and 10, and while that of step 15 is being written.
    first = killed_after(train_script(tiny_config, tmp_path, workdir), workdir, 7, signal.SIGINT)
    second = killed_after(train_script(tiny_config, tmp_path, workdir), workdir, max(first + 1, 15))
    assert first < second
    process = train_script(tiny_config, tmp_path, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert (workdir / 'metrics.jsonl').read_bytes() == (tiny_run / 'metrics.jsonl').read_bytes()
    assert saved(workdir)[0] == 16
    assert_same(saved(workdir), saved(tiny_run))


PROCESS = """
import sys
import jax
rank, port, tests, workdir, config = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', 4)
jax.distributed.initialize(f'localhost:{port}', 2, int(rank))
sys.path.insert(0, tests)
from linear import linear_detector
from detzoo.config import from_json
from detzoo.training import loop
loop.detector_of = lambda config, num_classes, axis_name=None: linear_detector(axis_name)
assert jax.device_count() == 8 and jax.local_device_count() == 4
config = from_json(open(config).read())
try:
    loop.train_and_evaluate(config, workdir + '_in_use')
except RuntimeError as error:
    print(type(error).__name__)
print(loop.train_and_evaluate(config, workdir))
"""


def test_train_and_evaluate_of_two_processes_equals_that_of_one(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=6)
    metrics = loop.train_and_evaluate(config, tmp_path / 'one')
    (tmp_path / 'config.json').write_text(to_json(config))
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'} | {'PYTHONPATH': str(ROOT)}
    arguments = [str(port), str(ROOT / 'tests'), str(tmp_path / 'two'), str(tmp_path / 'config.json')]
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROCESS, str(rank), *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        with held(tmp_path / 'two_in_use'):
            outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (stdout, stderr), refused in zip(processes, outputs, ('InUseError', 'FirstProcessError')):
        assert process.returncode == 0, stderr[-3000:]
        lines = stdout.strip().splitlines()
        assert refused in lines and lines[-1] == str(metrics)
    np.testing.assert_allclose(losses_of(tmp_path / 'two'), losses_of(tmp_path / 'one'), rtol=1e-5)
    assert_close(saved(tmp_path / 'two')[1], saved(tmp_path / 'one')[1], 1e-5)
