"""What a TPU computes in another way than a CPU, computed on the CPU: the same results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_roi_features import GOLDEN, LEVEL, LEVELS, OPERATIONS, ROIS, SETTINGS, run, with_gradients

from detzoo.core import roi_products


@pytest.fixture(autouse=True)
def formulations_for_tpus(monkeypatch):
    """Makes programs that are traced from now on take the formulations for TPUs, in parts of a few RoIs and rows."""

    def choose(*args, default, tpu=None, **others):
        return (default if tpu is None else tpu)(*args)

    monkeypatch.setattr(jax.lax, 'platform_dependent', choose)
    channels, rows = LEVELS[0].shape[2], max(x.shape[0] for x in LEVELS)
    monkeypatch.setattr(roi_products, 'PART', 5 * SETTINGS['output_size'] * rows * channels)


@pytest.mark.parametrize('name', ['align', 'legacy_adaptive'])
def test_roi_features_and_their_gradients_are_those_of_the_cpu(name, monkeypatch):
    """Of two images, whose RoIs lie on other levels."""
    function = jax.jit(jax.vmap(with_gradients.__wrapped__(name, **SETTINGS)))
    levels = [np.stack([x, x[::-1]]) for x in LEVELS]
    batch = levels, np.stack([ROIS] * 2), np.stack([LEVEL, LEVEL[::-1]]), np.stack([GOLDEN['gradient']] * 2)
    result, gradients, _ = function(*batch)
    monkeypatch.undo()
    for i in range(2):
        expected, its_gradients = run(name, [x[i] for x in levels], *(x[i] for x in batch[1:]))
        np.testing.assert_allclose(result[i], expected, atol=2e-6)
        for ours, theirs in zip(gradients, its_gradients):
            assert np.any(ours[i])
            np.testing.assert_allclose(ours[i], theirs, atol=2e-5)


def test_features_in_half_precision_keep_most_of_it(monkeypatch):
    """Weights, products along x and the result are rounded: an error of 3 times 2^-9 of the largest feature, or less."""
    levels = [jnp.asarray(x, jnp.bfloat16) for x in LEVELS]
    result = jax.jit(functools.partial(OPERATIONS['align'], **SETTINGS))(levels, ROIS, LEVEL)
    monkeypatch.undo()
    assert result.dtype == jnp.bfloat16
    expected, _ = run('align', [x.astype(np.float32) for x in levels])
    np.testing.assert_allclose(result.astype(np.float32), expected, atol=3 * 2**-9 * max(abs(x).max() for x in LEVELS))


@pytest.mark.parametrize('count', [1, 3, 20])
def test_parts_have_rois_of_one_level(count):
    level = np.random.RandomState(count).randint(0, 4, 40)
    place, numbers = roi_products._divide(level[:, None] == np.arange(4), count)
    assert len(set(place.tolist())) == len(level)
    np.testing.assert_array_equal(numbers[place // count], level)
    assert set(numbers[np.setdiff1d(np.arange(len(numbers)), place // count)].tolist()) <= {4}
