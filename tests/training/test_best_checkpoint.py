"""The best checkpoint beside the newest, and runs that end early: both as the log says, however often a run was cut."""

import numpy as np
import pytest
from linear import AskedAt, assert_same, saved

from detzoo.errors import ConfigError
from detzoo.inference.predictor import load
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import Stopped
from detzoo.training import loop

# The AP of each evaluation, of two replicas.
VALUES = {
    2: (0.1, 0.3),
    4: (0.5, 0.2),
    6: (None, 0.2),
    8: (0.5, 0.1),
    10: (0.4, 0.1),
    12: (0.2, 0.4),
    14: (0.6, 0.1),
    16: (0.1, 0),
}


@pytest.fixture
def made_up(monkeypatch, linear):
    """Evaluations whose AP is that of VALUES."""
    evaluate_each = loop.evaluate_each

    def evaluate(evaluate, state, count):
        step = int(np.max(parallel.first_replica(state).step))
        evaluations = evaluate_each(evaluate, state, count)
        for evaluation, value in zip(evaluations, VALUES[step]):
            evaluation.metrics['boxes']['AP'] = value
        return evaluations

    monkeypatch.setattr(loop, 'evaluate_each', evaluate)


@pytest.fixture
def config(tiny_config):
    return tiny_config(training__evaluate_every=2, training__keep_best='AP', training__steps=12)


def test_train_and_evaluate_keeps_the_best_checkpoint_of_each_replica(tmp_path, config, made_up):
    # Of the second replica that of step 2 is the best until the end: the next checkpoint would replace it.
    config.training.num_replicas = 2
    loop.train_and_evaluate(config, tmp_path)
    assert [Checkpoints(tmp_path / seed).steps() for seed in ('seed_0', 'seed_1')] == [[4, 8, 10, 12], [2, 8, 10, 12]]
    assert [load(tmp_path / seed, 'best').step for seed in ('seed_0', 'seed_1')] == [4, 12]
    assert load(tmp_path / 'seed_0').step == 12


def test_train_and_evaluate_ends_early_and_likewise_after_it_was_stopped(tmp_path, config, made_up, capfd):
    config.training.steps, config.training.early_stopping_patience = 16, 4
    loop.train_and_evaluate(config, tmp_path / 'whole')
    said = 'ends early: 4 evaluations brought no better AP than that of step 4 (training.early_stopping_patience is 4)'
    assert said in capfd.readouterr().err
    assert saved(tmp_path / 'whole')[0] == 12 and load(tmp_path / 'whole', 'best').step == 4
    for look in (3, 9, 13):  # evaluations take two looks each
        with pytest.raises(Stopped):
            loop.train_and_evaluate(config, tmp_path / 'cut', stop=AskedAt(look))
    before = [loop.train_and_evaluate(config, tmp_path / 'cut')]
    for workdir in ('whole', 'cut', 'cut'):  # what has ended makes no step
        before.append(loop.train_and_evaluate(config, tmp_path / workdir))
    assert all(metrics == before[0] for metrics in before)
    assert read_metrics(tmp_path / 'cut') == read_metrics(tmp_path / 'whole')
    assert_same(saved(tmp_path / 'cut'), saved(tmp_path / 'whole'))
    assert load(tmp_path / 'cut', 'best').step == 4
    config.training.early_stopping_patience = 0  # which may change
    loop.train_and_evaluate(config, tmp_path / 'cut')
    assert saved(tmp_path / 'cut')[0] == 16 and load(tmp_path / 'cut', 'best').step == 14


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(keep_best='mAP'), "training.keep_best is 'mAP', .*the nearest is 'AP'; it has loss, AP, AP50"),
        (dict(keep_best='mask_AP'), "training.keep_best is 'mask_AP', which this evaluation does not have"),
        (dict(early_stopping_patience=2), 'early_stopping_patience needs a metric to wait for: set training.keep_best'),
        (dict(early_stopping_patience=2, keep_best='AP', evaluate_every=0), 'set training.evaluate_every'),
        (dict(early_stopping_patience=2, keep_best='AP', num_replicas=2), 'needs training.num_replicas of 1'),
    ],
)
def test_train_and_evaluate_refuses_what_cannot_be_kept(tmp_path, tiny_config, linear, changes, message):
    config = tiny_config(training__evaluate_every=2)
    config.training.update(changes)
    with pytest.raises(ConfigError, match=message):
        loop.train_and_evaluate(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
