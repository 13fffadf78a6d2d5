"""Optimisers and learning rates, by hand."""

import jax
import numpy as np
import optax
import pytest
from linear import assert_same

from detzoo.config import defaults
from detzoo.training.optimizer import make_optimizer, make_schedule


def optimizer_config(**changes):
    base = defaults().optimizer
    base.update(name='sgd', learning_rate=0.1, schedule='constant', warmup_steps=0, weight_decay=0.0, momentum=0.0)
    base.update(changes)
    return base


# The learning rate


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


# The optimiser


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
