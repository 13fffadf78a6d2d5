"""Experiments: every run of every file can start, and the table says what was found beside what is published."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from detzoo.comparison.cost import random_batch
from detzoo.comparison.sweep import Run, Sweep, config_of, format_results, load_sweep
from detzoo.config import ConfigError, differences
from detzoo.inference import detector_of

EXPERIMENTS = sorted(pathlib.Path(__file__).parents[1].glob('experiments/*.py'))
ALL_RUNS = [pytest.param(run, id=f'{path.stem}-{run.name}') for path in EXPERIMENTS for run in load_sweep(str(path)).runs]
EXPERIMENT = '''
from detzoo.comparison.sweep import Run, Sweep

def get_sweep(arg=None):
    config = 'configs/retinanet_shapes.py'
    runs = [Run('focal', config, {}, {'AP': 31.0}), Run('cross_entropy', config, {KEY: 0.0}, {'AP': 30.5})]
    return Sweep(runs, ('AP',))
'''


@pytest.fixture
def experiment(tmp_path):
    """A function: the key that the second run changes -> the path of an experiment."""

    def write(key='model.focal_gamma'):
        path = tmp_path / 'focal.py'
        path.write_text(EXPERIMENT.replace('KEY', repr(key)))
        return path

    return write


@pytest.mark.parametrize('run', ALL_RUNS)
def test_every_run_of_an_experiment_can_take_a_step(run):
    config = config_of(run)
    detector = detector_of(config, 5, None)
    batch = random_batch(config, config.data.canvases[0], 2, 5)
    variables = jax.eval_shape(lambda: detector.init(jax.random.key(0), config.data.canvases[0]))
    loss, _ = jax.eval_shape(detector.loss, *variables, batch, jax.random.key(0))
    assert loss.shape == ()


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda path: path.stem)
def test_runs_of_an_experiment_differ_in_what_they_change_alone(path):
    sweep = load_sweep(str(path))
    bases = {run.config: config_of(Run('base', run.config)) for run in sweep.runs}
    for run in sweep.runs:
        changed = differences(bases[run.config], config_of(run))
        assert set(changed) <= set(run.changes)  # a change may be to the base's own value
    configs = [json.dumps(config_of(run).to_dict()) for run in sweep.runs]
    assert len(set(configs)) == len(configs)
    assert all(set(run.published) <= set(sweep.metrics) for run in sweep.runs)


def test_load_sweep_refuses_what_cannot_run(experiment, tmp_path):
    with pytest.raises(ConfigError, match='there is no experiment nothing.py'):
        load_sweep('nothing.py')
    with pytest.raises(ConfigError, match="run 'cross_entropy' sets 'model.gamma', which configs/retinanet_shapes.py has not"):
        load_sweep(str(experiment('model.gamma')))
    path = tmp_path / 'twice.py'
    path.write_text(EXPERIMENT.replace('KEY', "'model.focal_gamma'").replace("'cross_entropy'", "'focal'"))
    with pytest.raises(ConfigError, match="more than one run is called 'focal'"):
        load_sweep(str(path))


def test_flags_say_what_the_changes_do():
    run = Run('pool', 'configs/mask_rcnn_shapes.py:c4', {'model.roi.operator': 'pool'})
    config, change = run.flags()
    assert config.startswith('--config=/') and config.endswith('configs/mask_rcnn_shapes.py:c4')
    assert change == '--config.model.roi.operator=pool' and config_of(run).model.roi.operator == 'pool'


def test_format_results_by_hand():
    runs = [Run('a', '', published={'AP': 30.0}), Run('b', '', published={'AP': 32.5}), Run('c', ''), Run('d', '')]
    results = {'a': {'AP': 0.5, 'AP50': 0.75}, 'b': {'AP': 0.52, 'AP50': None}, 'd': {'AP': 0.0, 'AP50': np.nan}}
    lines = format_results(Sweep(runs, ('AP', 'AP50')), results).splitlines()
    assert lines == [
        '| run | AP | published | AP50 | published |',
        '| --- | --- | --- | --- | --- |',
        '| a | 50.0 | 30.0 | 75.0 |  |',
        '| b | 52.0 (+2.0) | 32.5 (+2.5) |  |  |',
        '| c |  |  |  |  |',
        '| d | 0.0 (-50.0) |  |  |  |',
    ]


def test_sweep_skips_what_is_finished_and_reports_what_fails(experiment, run_script, tmp_path):
    folder = tmp_path / 'runs'
    finished = folder / 'focal'
    finished.mkdir(parents=True)
    (finished / 'config.json').write_text('{"training": {"steps": 5}}')
    rows = [{'step': 5, 'loss': 1.0}, {'step': 5, 'validation/AP': 0.4}]
    (finished / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    nowhere = '--config.data.name=nowhere', f'--config.data.data_dir={tmp_path}'
    command = f'--experiment={experiment()}', f'--workdir={folder}', *nowhere
    done = run_script('sweep', *command)
    assert done.code == 1 and '| focal | 40.0 | 31.0 |' in done.stdout and '| cross_entropy |  | 30.5 (-0.5) |' in done.stdout
    assert 'error: 1 of 2 runs failed: cross_entropy' in done.stderr
    assert "no data set 'nowhere'" in (folder / 'cross_entropy.log').read_text()  # the reason
    assert (folder / 'results.md').read_text().strip() in done.stdout
    assert not (folder / 'focal.log').exists()  # was not started

    (finished / 'config.json').write_text('{"training": {"steps": 6}}')  # cut before its last step
    assert '2 of 2 runs failed' in run_script('sweep', *command).stderr


def test_experiments_say_their_command():
    for path in EXPERIMENTS:
        doc = runpy.run_path(str(path))['__doc__']
        assert f'--experiment=experiments/{path.name}' in doc
