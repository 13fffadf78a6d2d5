"""Normalisation layers: formulas, running statistics, padding, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_features, shapes_of

from detzoo.backbones import norms

DEVICES = 8


def norm_of(name, train=False, axis_name=None, epsilon=1e-5, dtype=jnp.float32):
    return norms.make_norm(name, train=train, axis_name=axis_name, dtype=dtype, epsilon=epsilon)(name='norm')


def batch_norm_step(params, x, weights, axis_name=None):
    """The gradient of a loss behind a batch norm, its outputs and its new statistics, on one device's share."""
    norm = norm_of('batch_norm', train=True, axis_name=axis_name)
    statistics = {'mean': jnp.zeros(3), 'var': jnp.ones(3)}

    def loss(params, x):
        y, state = norm.apply({'params': params, 'batch_stats': statistics}, x, mutable=['batch_stats'])
        return (weights * y**2).mean(), (y, state['batch_stats'])

    gradients, (y, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients[0], axis_name), gradients[1]
    return gradients, y, state


def test_batch_norm_synchronised_over_devices_equals_one_device_with_the_whole_batch():
    # Two images a device, and no two devices alike. The gradient of the inputs crosses devices: the loss of each
    # depends on the statistics of all.
    x = random_features(2 * DEVICES, 4, 4, 3) * np.linspace(0.2, 2, 2 * DEVICES, dtype=np.float32)[:, None, None, None]
    weights = random_features(*x.shape, seed=1)
    params = {'scale': np.float32([0.5, 1, 2]), 'bias': np.float32([-1, 0, 1])}
    (gradient, input_gradient), y, state = jax.jit(batch_norm_step)(params, x, weights)
    split = [a.reshape(DEVICES, 2, *a.shape[1:]) for a in (x, weights)]
    mapped = jax.pmap(functools.partial(batch_norm_step, axis_name='batch'), axis_name='batch', in_axes=(None, 0, 0))
    (ours, ours_input_gradient), ours_y, ours_state = mapped(params, *split)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    close(ours_y.reshape(y.shape), y)
    close(np.reshape(ours_input_gradient, x.shape) / DEVICES, input_gradient)  # each loss is the mean of its own share
    # Every device ends with the same gradient and the same statistics.
    everywhere = jax.tree.map(lambda a: np.broadcast_to(a, (DEVICES, *a.shape)), (gradient, state))
    jax.tree.map(close, (ours, ours_state), everywhere)


def test_batch_norm_normalises_and_remembers():
    x = random_features(4, 5, 5, 3)
    norm = norm_of('batch_norm', train=True)
    variables = jax.jit(norm.init)(jax.random.key(0), x)
    y, updated = jax.jit(functools.partial(norm.apply, mutable=['batch_stats']))(variables, x)
    mean, var = x.mean(axis=(0, 1, 2), dtype=np.float64), x.var(axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    # A tenth of the new and nine of the old, which are mean 0 and variance 1.
    np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(updated['batch_stats']['var'], 0.9 + 0.1 * var, rtol=1e-4)
    evaluated = jax.jit(norm_of('batch_norm').apply)({**variables, **updated}, x)  # an axis isn't needed any more
    expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + 1e-5)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('valid', [[True, False, True, True, False], [True] * 5])
def test_padded_batch_norm_is_the_batch_norm_of_the_rows_that_count(valid):
    x, valid = random_features(5, 3, 2, 4), np.array(valid)
    x[~valid] = 1e4
    padded = norms.make_norm('batch_norm', train=True, axis_name=None, dtype=jnp.float32, valid=valid)(name='norm')
    plain = norm_of('batch_norm', train=True)
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + np.linspace(0, 1, 4, dtype=np.float32), variables)
    expected, statistics = jax.jit(functools.partial(plain.apply, mutable=['batch_stats']))(variables, x[valid])
    found, updated = jax.jit(functools.partial(padded.apply, mutable=['batch_stats']))(variables, x)
    np.testing.assert_allclose(found[valid], expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), updated, statistics)
    drawn = jax.jit(padded.init)(jax.random.key(0), x)
    assert jax.tree.structure(drawn) == jax.tree.structure(variables)
    np.testing.assert_array_equal(drawn['batch_stats']['var'], np.ones(4))


def test_padded_batch_norm_of_padding_alone_keeps_its_statistics():
    x = random_features(3, 2, 2, 4)
    norm = norms.make_norm('batch_norm', train=True, axis_name=None, dtype=jnp.float32, valid=np.zeros(3, bool))(
        name='norm'
    )
    variables = {
        'params': {'scale': np.float32([1, 2, 3, 4]), 'bias': np.ones(4, np.float32)},
        'batch_stats': {'mean': np.float32([1, 2, 3, 4]), 'var': np.float32([4, 4, 4, 4])},
    }
    y, updated = norm.apply(variables, x, mutable=['batch_stats'])
    np.testing.assert_allclose(y, (x - [1, 2, 3, 4]) / 2 * [1, 2, 3, 4] + 1, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), updated['batch_stats'], variables['batch_stats']
    )


def test_padded_batch_norm_over_devices_weighs_rows_not_devices():
    # Device d has d valid rows: the mean of the devices' means would be another one.
    x = random_features(DEVICES * 8, 2, 2, 3) + np.arange(DEVICES * 8, dtype=np.float32)[:, None, None, None]
    valid = np.tile(np.arange(8), DEVICES) < np.repeat(np.arange(DEVICES), 8)

    def run(x, valid, axis_name=None):
        norm = norms.make_norm('batch_norm', train=True, axis_name=axis_name, dtype=jnp.float32, valid=valid)(
            name='norm'
        )
        params, statistics = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}, {'mean': jnp.zeros(3), 'var': jnp.ones(3)}
        variables = {'params': params, 'batch_stats': statistics}
        return norm.apply(variables, x, mutable=['batch_stats'])

    expected, statistics = jax.jit(run)(x, valid)
    split = [a.reshape(DEVICES, 8, *a.shape[1:]) for a in (x, valid)]
    found, ours = jax.pmap(functools.partial(run, axis_name='batch'), axis_name='batch')(*split)
    np.testing.assert_allclose(np.reshape(found, x.shape), expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, (DEVICES, *b.shape)), rtol=1e-4), ours, statistics
    )


@pytest.mark.parametrize('epsilon', [0.0, 1e-2])
def test_frozen_batch_norm_is_the_formula_of_four_constants(epsilon):
    x = random_features(2, 3, 3, 5)
    norm = norm_of('frozen_batch_norm', train=True, epsilon=epsilon)
    _, variables = shapes_of(norm, x.shape)
    assert set(variables) == {'frozen'} and set(variables['frozen']) == {'scale', 'bias', 'mean', 'var'}
    constants = dict(
        zip(('scale', 'bias', 'mean', 'var'), np.random.RandomState(1).uniform(0.5, 2, (4, 5)).astype(np.float32))
    )
    y, updated = jax.jit(functools.partial(norm.apply, mutable=['batch_stats', 'frozen']))({'frozen': constants}, x)
    scale, bias, mean, var = (constants[name].astype(np.float64) for name in ('scale', 'bias', 'mean', 'var'))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + epsilon) * scale + bias, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated['frozen'], constants)  # train or not
    assert 'batch_stats' not in updated


@pytest.mark.parametrize('channels, groups', [(64, 32), (48, 16), (6, 2), (7, 1)])
def test_group_norm_equals_loops(channels, groups):
    x = random_features(2, 3, 3, channels)
    ours, _ = jax.jit(norm_of('group_norm').init_with_output)(jax.random.key(0), x)
    expected = np.zeros(x.shape)
    size = channels // groups
    for image in range(2):
        for start in range(0, channels, size):
            part = x[image, :, :, start : start + size].astype(np.float64)
            expected[image, :, :, start : start + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
