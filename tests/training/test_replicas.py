"""Replicas: what one program writes of several seeds is what each would have written alone."""

import itertools

import numpy as np
import pytest
from linear import assert_close, assert_same, losses_of, saved

from detzoo.errors import ConfigError
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import read_metrics
from detzoo.training.loop import train_and_evaluate


@pytest.mark.parametrize(
    'changes', [{}, {'training__accumulate': 1, 'optimizer__ema_decay': 0.0}], ids=['ema', 'no_ema']
)
def test_replicas_equal_their_single_runs(tmp_path, tiny_config, linear, changes):
    config = tiny_config(seed=3, training__steps=8, training__evaluate_every=4, **changes)
    config.training.num_replicas = 3
    metrics = train_and_evaluate(config, tmp_path / 'three')
    assert sorted(path.name for path in (tmp_path / 'three').iterdir()) == ['seed_3', 'seed_4', 'seed_5']
    for seed in (3, 4, 5):
        config.seed, config.training.num_replicas = seed, 1
        own, alone = tmp_path / 'three' / f'seed_{seed}', tmp_path / f'{seed}'
        single = train_and_evaluate(config, alone)
        assert (own / 'config.json').read_text() == (alone / 'config.json').read_text()
        np.testing.assert_allclose(losses_of(own), losses_of(alone), rtol=1e-5)
        assert_close(saved(own)[1], saved(alone)[1], 1e-5)
        assert [row['step'] for row in read_metrics(own)] == [row['step'] for row in read_metrics(alone)]
        assert metrics == single or seed > 3
    assert losses_of(tmp_path / '3') != losses_of(tmp_path / '4')


def test_replicas_of_a_detector_equal_single_runs(tmp_path, tiny_config):
    """Convolutions, synchronised batch norm, focal loss and all; by SGD, whose steps are as large as gradients differ."""
    config = tiny_config(training__steps=3, training__num_replicas=2, optimizer__ema_decay=0.0)
    train_and_evaluate(config, tmp_path / 'two')
    for seed in (0, 1):
        config.seed, config.training.num_replicas = seed, 1
        train_and_evaluate(config, tmp_path / f'{seed}')
        own = tmp_path / 'two' / f'seed_{seed}'
        np.testing.assert_allclose(losses_of(own), losses_of(tmp_path / f'{seed}'), rtol=1e-4)
        assert_close(saved(own)[1], saved(tmp_path / f'{seed}')[1], 1e-4)


def test_replicas_go_on_where_all_of_them_were(tmp_path, tiny_config, linear):
    config = tiny_config(training__num_replicas=2)
    train_and_evaluate(config, tmp_path / 'whole')
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # killed between the second checkpoint of the first and that of the second
        calls, save = itertools.count(1), Checkpoints.save
        patch.setattr(Checkpoints, 'save', lambda *args: 1 / 0 if next(calls) == 4 else save(*args))
        with pytest.raises(ZeroDivisionError):
            train_and_evaluate(config, tmp_path / 'cut')
    assert [saved(tmp_path / 'cut' / f'seed_{seed}')[0] for seed in (0, 1)] == [10, 5]
    train_and_evaluate(config, tmp_path / 'cut')
    for seed in ('seed_0', 'seed_1'):
        assert losses_of(tmp_path / 'cut' / seed) == losses_of(tmp_path / 'whole' / seed)
        assert_same(saved(tmp_path / 'cut' / seed), saved(tmp_path / 'whole' / seed))
    alone = tiny_config(seed=1)
    train_and_evaluate(alone, tmp_path / 'whole' / 'seed_1')  # the workdir is one of a single run


@pytest.mark.parametrize('steps', [16, 4])
def test_replicas_lose_nothing_where_one_more_is_asked_for(tmp_path, tiny_config, linear, steps):
    train_and_evaluate(tiny_config(training__num_replicas=2, training__steps=steps), tmp_path)
    before = [saved(tmp_path / seed) for seed in ('seed_0', 'seed_1')]
    with pytest.raises(ConfigError, match='has replicas that were trained without seed 2: take a new workdir'):
        train_and_evaluate(tiny_config(training__num_replicas=3, training__steps=steps), tmp_path)
    assert not (tmp_path / 'seed_2').exists()
    train_and_evaluate(tiny_config(seed=1, training__steps=steps + 6), tmp_path / 'seed_1')  # one alone goes further
    with pytest.raises(ConfigError, match=f'not trained together .seed_0 at step {steps}, seed_1 at step {steps + 6}.'):
        train_and_evaluate(tiny_config(training__num_replicas=2, training__steps=steps + 6), tmp_path)
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
        train_and_evaluate(tiny_config(**changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
