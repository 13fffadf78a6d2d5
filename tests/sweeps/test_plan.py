"""What a sweep plans from an experiment and settings."""

import json

import pytest

from detzoo.errors import ConfigError
from detzoo.sweeps.plan import plan
from detzoo.sweeps.store import WAITING, Result

SEEDS = "with_seeds([Run('a', CONFIG, {'model.backbone.width': 0.25}, series='s')], range(4))"


def test_plan_writes_configs_and_differences_to_the_first_run(experiment):
    planned = plan(experiment(SEEDS), ['training.steps=5'])
    assert planned['docstring'] == 'What is asked?' and planned['metrics'] == ['AP']
    assert planned['figures'] == [{'x': 'seed', 'y': 'AP', 'log': False, 'pareto': False, 'batch': 1, 'ordered': False}]
    runs = [Result(**row) for row in planned['runs']]
    assert [run.run for run in runs] == ['a_seed0', 'a_seed1', 'a_seed2', 'a_seed3']
    assert {(run.group, run.series, run.status) for run in runs} == {('a', 's', WAITING)}
    assert [run.config['seed'] for run in runs] == [run.seed for run in runs] == [0, 1, 2, 3]
    assert {run.config['training']['steps'] for run in runs} == {5} and {
        run.config['model']['backbone']['width'] for run in runs
    } == {0.25}
    assert [run.changes for run in runs] == [{}, {'seed': [0, 1]}, {'seed': [0, 2]}, {'seed': [0, 3]}]
    assert json.loads(json.dumps(planned)) == json.loads(json.dumps(planned))  # it can be stored


def test_plan_refuses_settings_that_no_run_takes(experiment):
    for setting, words in (
        ('model.head_dept=1', "no config key 'model.head_dept': the nearest is 'model.head_depth'"),
        ('training.steps=many', "training.steps cannot be 'many': malformed"),
        ('training.steps=0.5', 'training.steps cannot be 0.5: '),
        ('training.steps', "'training.steps' sets no key: write KEY=VALUE"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan(experiment(SEEDS), [setting])


def test_plan_refuses_what_is_no_number(experiment):
    with pytest.raises(ConfigError, match="run 'a': optimizer.learning_rate is nan: it must be a finite number"):
        plan(experiment("[Run('a', CONFIG, {'optimizer.learning_rate': float('nan')})]"))


def test_plan_refuses_replicas(experiment):
    with pytest.raises(ConfigError, match="run 'a_seed0': a run is one training, not 2 replicas: list seeds"):
        plan(experiment(SEEDS), ['training.num_replicas=2'])


def test_plan_needs_the_number_of_steps(experiment):
    with pytest.raises(ConfigError, match="run 'a_seed0': training.steps is None: a sweep plans with it, so set it"):
        plan(experiment(SEEDS), ['training.steps=None'])
