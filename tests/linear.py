"""Detectors that compile in no time, and what tests of runs look at."""

import itertools
import json
import signal
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from detzoo.core import losses
from detzoo.data.catalog import open_dataset
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import StopRequest
from detzoo.training.loop import make_batches
from detzoo.types import Detections, Detector


class Linear(nn.Module):
    """Predicts an image's number of objects from its mean colour."""

    @nn.compact
    def __call__(self, x):
        """Maps [B, 3] to [B]."""
        return nn.Dense(1, name='head')(nn.Dense(2, name='neck')(x))[:, 0]


def linear_detector(axis_name):
    """A detector that compiles in no time: it sees of an image its mean colour, and learns its number of objects."""
    network = Linear()

    def init(rng, canvas):
        return network.init(rng, jnp.zeros((1, 3)))['params'], {'seen': jnp.zeros(())}

    def loss(params, model_state, batch, rng):
        error = (network.apply({'params': params}, batch.inputs.images.mean((1, 2)) / 255) - batch.gt.valid.sum(1)) ** 2
        drawn = 1 + 0.1 * jax.random.uniform(rng)
        total = drawn * error.sum() / losses.normalizer(jnp.int32(len(error)), axis_name)
        seen = model_state['seen'] + (jax.lax.psum(len(error), axis_name) if axis_name else len(error))
        return total, ({'seen': seen}, {'largest': error.max()})

    def predict(params, model_state, inputs):
        count = len(inputs.images), 2
        boxes = jnp.broadcast_to(jnp.float32([1, 2, 9, 8]), (*count, 4))
        return Detections(boxes, jnp.full(count, 0.5), jnp.zeros(count, jnp.int32), jnp.ones(count, bool))

    return Detector(init, loss, predict, assign=None)


class AskedAt(StopRequest):
    """A request that comes after a number of looks, by SIGTERM."""

    def __init__(self, look):
        self.looks = itertools.count(1)
        self.look = look
        super().__init__()

    @property
    def number(self):
        return signal.SIGTERM if next(self.looks) >= self.look else 0

    @number.setter
    def number(self, value):
        pass


def find_windows(seen):
    """A detector that finds the window of an image, and notes what images it gets."""

    def predict(params, model_state, inputs):
        seen.add((inputs.images.shape[1:3], str(inputs.images.dtype)))
        boxes = inputs.window[:, None]
        ones = boxes[..., 0] * 0 + 1
        return Detections(boxes, ones, ones.astype('int32'), ones > 0)

    return Detector(None, None, predict, None)


def assert_same(first, second):
    """Compares trees leaf by leaf, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close(first, second, tolerance):
    """Compares trees leaf by leaf, each to a tolerance relative to its largest value."""

    def check(path, a, b):
        scale = np.abs(b).max(initial=1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, first, second)


def state_of(step, value=1.0, ema=None):
    """The state of a tiny run at a step."""
    opt_state = (optax.TraceState({'w': np.full((2, 3), value + 1, np.float32)}), optax.EmptyState())
    params = {'w': np.full((2, 3), value, np.float32)}
    return TrainState(np.int32(step), params, {'seen': np.float32(step)}, opt_state, ema)


def losses_of(workdir):
    """The training losses in the log of a run."""
    return [line['loss'] for line in read_metrics(workdir) if 'loss' in line]


def wait_for_step(process, workdir, step, seconds=300):
    """Waits until the log of a process's run shows a step; returns the last one that it shows then."""
    path, end = workdir / 'metrics.jsonl', time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        done = [json.loads(line)['step'] for line in lines if line.endswith('\n')]
        if done and done[-1] >= step:
            return done[-1]
        time.sleep(0.002)
    process.kill()
    output = ''.join(filter(None, process.communicate()))
    raise AssertionError(f'the run ended before step {step}: {output[-3000:]}')


def saved(workdir):
    """The newest checkpoint of a run, all of it."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest_step()
    restored = checkpoints._manager.restore(step)
    checkpoints.close()
    return step, dict(restored.items())


def first_batches(config, count):
    """The first batches of a run."""
    data = open_dataset(config.data.name, 'train', config.data.data_dir)
    stream = make_batches(config, data, 0)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches
