"""Sweeps: which runs start when, what is recorded of those that end, and that a sweep which is killed loses nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest

from detzoo.errors import ConfigError
from detzoo.evaluation import coco_metrics, read_detections
from detzoo.files import write_text
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.sweeps import attempt, estimates, runner
from detzoo.sweeps.costs import estimate_costs, measure_costs
from detzoo.sweeps.curves import curves
from detzoo.sweeps.launchers import Cluster
from detzoo.sweeps.plan import plan
from detzoo.sweeps.store import FAILED, FINISHED, STOPPED, Result, Store, truth_name

ROOT = pathlib.Path(__file__).parents[2]


class Fake:
    """A launcher of runs that end after some looks, as FINISHED, by a word, or because they are asked to stop."""

    def __init__(self, folder, ends, outlives=False):
        self.store, self.ends, self.started, self.alive, self.most = Store(folder), ends, [], 0, 0
        self.outlives = outlives

    def start(self, run):
        fake, looks = self, [0]
        fake.started.append(run)
        fake.alive += 1
        fake.most = max(fake.most, fake.alive)

        class Handle:
            def ended(self):
                looks[0] += 1
                if looks[0] < 3:
                    return None
                fake.alive -= 1
                if fake.ends[run] == STOPPED:
                    fake.ends[run] = FINISHED  # when it is started again
                    return STOPPED
                if fake.ends[run] == FINISHED:
                    planned = next(Result(**row) for row in fake.store.sweep()['runs'] if row['run'] == run)
                    result = planned._replace(
                        status=FINISHED, steps=planned.config['training']['steps'], metrics={'AP': 0.5}
                    )
                    fake.store.results_of(run).mkdir(parents=True, exist_ok=True)
                    write_text(fake.store.results_of(run) / 'result.json', json.dumps(result._asdict()))
                return 'killed by SIGKILL'

            def stop(self):
                if not fake.outlives:
                    fake.ends[run] = STOPPED
                return not fake.outlives

        return Handle()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Looks at the runs as often as it can."""
    monkeypatch.setattr(runner.time, 'sleep', lambda seconds: None)


SEEDS = "with_seeds([Run('a', CONFIG, {'model.backbone.width': 0.25}, series='s')], range(4))"


def test_run_sweep_keeps_to_the_number_of_jobs_and_to_the_order(experiment, tmp_path):
    planned = plan(experiment(SEEDS))
    fake = Fake(tmp_path / 'sweep', dict.fromkeys(['a_seed0', 'a_seed1', 'a_seed2', 'a_seed3'], FINISHED))
    shown = []
    results = runner.run_sweep(tmp_path / 'sweep', planned, fake, jobs=2, show=shown.append)
    assert fake.most == 2 and fake.started == [f'a_seed{seed}' for seed in range(4)]
    assert [(result.run, result.status) for result in results] == [(name, FINISHED) for name in fake.started]
    assert Store(tmp_path / 'sweep').results() == results
    assert [[row['status'] for row in rows] for rows in (shown[0], shown[-1])] == [
        ['running', 'running', 'waiting', 'waiting'],
        [FINISHED] * 4,
    ]
    assert [row['AP'] for row in shown[-1]] == [0.5] * 4


def test_run_sweep_records_what_fails_and_tries_it_again(experiment, tmp_path):
    path, folder = experiment(SEEDS), tmp_path / 'sweep'
    ends = dict.fromkeys(['a_seed0', 'a_seed2', 'a_seed3'], FINISHED) | {'a_seed1': 'kill'}
    first = runner.run_sweep(folder, plan(path), Fake(folder, ends))
    assert [result.status for result in first] == [FINISHED, FAILED, FINISHED, FINISHED]
    assert first[1].reason == 'killed by SIGKILL' and first[1].changes == {'seed': [0, 1]}

    fake = Fake(folder, dict.fromkeys(['a_seed1'], FINISHED))
    second = runner.run_sweep(folder, plan(path), fake)
    assert fake.started == ['a_seed1'] and [result.status for result in second] == [FINISHED] * 4
    assert sorted(result.run for result in Store(folder).results()) == [
        f'a_seed{seed}' for seed in range(4)
    ]  # a row each

    fake = Fake(folder, {})
    assert runner.run_sweep(folder, plan(path), fake) == second and not fake.started


def test_run_sweep_starts_a_run_again_that_was_stopped_alone(experiment, tmp_path):
    path, folder = experiment(SEEDS), tmp_path / 'sweep'
    ends = dict.fromkeys(['a_seed0', 'a_seed2', 'a_seed3'], FINISHED) | {'a_seed1': STOPPED}
    fake = Fake(folder, ends)
    results = runner.run_sweep(folder, plan(path), fake)
    assert [result.status for result in results] == [FINISHED] * 4
    assert fake.started == ['a_seed0', 'a_seed1', 'a_seed1', 'a_seed2', 'a_seed3']


@pytest.mark.parametrize('outlives', [False, True])
def test_run_sweep_asked_to_stop_waits_for_its_runs_and_records_no_failure(experiment, tmp_path, outlives):
    path, folder, stop = experiment(SEEDS), tmp_path / 'sweep', StopRequest()
    fake = Fake(folder, dict.fromkeys(['a_seed0', 'a_seed1', 'a_seed2', 'a_seed3'], FINISHED), outlives)

    def ask(rows):
        if (rows[1]['status'], rows[2]['status']) == (FINISHED, 'running'):
            stop.number = signal.SIGTERM

    with pytest.raises(Stopped, match='stopped by SIGTERM when 2 of 4 runs had ended: the same') as raised:
        runner.run_sweep(folder, plan(path), fake, jobs=2, stop=stop, show=ask)
    assert raised.value.exit_code == 42 and not stop.running
    assert fake.alive == (2 if outlives else 0)
    assert [result.run for result in Store(folder).results()] == ['a_seed0', 'a_seed1']
    again = Fake(folder, dict.fromkeys(['a_seed2', 'a_seed3'], FINISHED))
    assert [result.status for result in runner.run_sweep(folder, plan(path), again)] == [FINISHED] * 4
    assert again.started == ['a_seed2', 'a_seed3']


def test_run_sweep_takes_what_outlived_an_earlier_sweep(experiment, tmp_path):
    path, folder = experiment(SEEDS), tmp_path / 'sweep'
    fake = Fake(folder, dict.fromkeys(['a_seed0', 'a_seed1', 'a_seed2', 'a_seed3'], FINISHED))
    results = runner.run_sweep(folder, plan(path), fake)
    (folder / 'results.jsonl').unlink()  # as if the process had been killed before it wrote them
    again = Fake(folder, {})
    assert runner.run_sweep(folder, plan(path), again) == results and not again.started
    assert Store(folder).results() == results


def test_run_sweep_goes_on_with_more_steps(experiment, tmp_path):
    path, folder = experiment("[Run('a', CONFIG)]"), tmp_path / 'sweep'
    runner.run_sweep(folder, plan(path), Fake(folder, {'a': FINISHED}))
    fake = Fake(folder, {'a': FINISHED})
    (result,) = runner.run_sweep(folder, plan(path, ['training.steps=32']), fake)
    assert fake.started == ['a'] and result.steps == 32 and len(Store(folder).results()) == 1


def test_run_sweep_does_not_repeat_a_run_that_ended_early(experiment, tmp_path):
    path, folder = experiment("[Run('a', CONFIG)]"), tmp_path / 'sweep'
    settings = ['training.keep_best=AP', 'training.early_stopping_patience=2']
    (result,) = runner.run_sweep(folder, plan(path, settings), Fake(folder, {'a': FINISHED}))
    early = result._replace(steps=5)
    write_text(folder / 'results' / 'a' / 'result.json', json.dumps(early._asdict()))
    fake = Fake(folder, {'a': FINISHED})
    assert runner.run_sweep(folder, plan(path, settings), fake) == [early] and not fake.started
    settings[1] = 'training.early_stopping_patience=3'
    runner.run_sweep(folder, plan(path, settings), fake)
    assert fake.started == ['a']


def test_run_sweep_refuses_a_folder_of_something_else(experiment, tmp_path):
    path, folder = experiment("[Run('a', CONFIG)]"), tmp_path / 'sweep'
    runner.run_sweep(folder, plan(path), Fake(folder, {'a': FINISHED}))
    with pytest.raises(
        ConfigError, match="'a' was finished with another config .seed was 0, is 5.: take another folder"
    ):
        runner.run_sweep(folder, plan(path, ['seed=5']), Fake(folder, {}))
    other = pathlib.Path(path).with_name('other.py')
    other.write_text(pathlib.Path(path).read_text())
    with pytest.raises(ConfigError, match='holds the sweep of .*experiment.py: take another folder for .*other.py'):
        runner.run_sweep(folder, plan(str(other)), Fake(folder, {}))
    with runner._only_one(Store(folder)), pytest.raises(ConfigError, match='a sweep is running in'):
        runner.run_sweep(folder, plan(path), Fake(folder, {}))


def test_a_run_that_shares_a_training_waits_for_it(experiment, tmp_path):
    runs = "[Run('b', CONFIG, trained='a'), Run('a', CONFIG)]"
    fake = Fake(tmp_path / 'sweep', {'a': FINISHED, 'b': FINISHED})
    runner.run_sweep(tmp_path / 'sweep', plan(experiment(runs)), fake, jobs=2)
    assert fake.started == ['a', 'b'] and fake.most == 1
    with pytest.raises(ConfigError, match="'b' shares the training of 'c', which is no run"):
        plan(experiment("[Run('b', CONFIG, trained='c')]"))


def test_a_run_that_starts_from_another_waits_for_it(experiment, tmp_path):
    runs = "[Run('b', CONFIG, initialized='a'), Run('a', CONFIG)]"
    fake = Fake(tmp_path / 'sweep', {'a': FINISHED, 'b': FINISHED})
    planned = plan(experiment(runs))
    runner.run_sweep(tmp_path / 'sweep', planned, fake, jobs=2)
    assert fake.started == ['a', 'b'] and fake.most == 1
    assert [run['initialized'] for run in planned['runs']] == ['a', '']
    with pytest.raises(ConfigError, match="'b' starts from 'c', which is no run"):
        plan(experiment("[Run('b', CONFIG, initialized='c')]"))


def test_a_training_is_taken_by_a_run_without_checkpoints_of_its_own(tmp_path):
    source, workdir = tmp_path / 'a', tmp_path / 'b'

    def names():
        return sorted(path.name for path in (workdir / 'checkpoints').iterdir())

    for file in ('a/checkpoints/8.damaged/x', 'a/metrics.jsonl', 'b/checkpoints/4.damaged/x'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('')
    attempt._take_training(source, workdir)
    assert names() == ['4.damaged']
    (source / 'checkpoints' / '8.damaged').rename(source / 'checkpoints' / '8')
    attempt._take_training(source, workdir)
    assert names() == ['8'] and (workdir / 'metrics.jsonl').exists()
    (source / 'checkpoints' / '8').rename(source / 'checkpoints' / '9')
    attempt._take_training(source, workdir)
    assert names() == ['8']


def test_estimates_are_made_once_for_each_group_and_topology(experiment, tmp_path, monkeypatch):
    """The compiler is made up; tests/test_tpu.py runs the real one."""
    folder, calls = tmp_path / 'sweep', []
    ends = {'a_seed0': 'kill', 'a_seed1': FINISHED, 'b': FINISHED}
    runs = "[*with_seeds([Run('a', CONFIG)], range(2)), Run('b', CONFIG, {'model.backbone.width': 0.25})]"
    runner.run_sweep(folder, plan(experiment(runs)), Fake(folder, ends))

    def estimate(config, num_classes, topology, program):
        calls.append((config.seed, config.model.backbone.width, config.evaluation.batch_size, topology, program))
        return {'topology': topology, 'chips': 8}

    monkeypatch.setattr(estimates, 'topology_devices', lambda topology: range(8))
    monkeypatch.setattr(estimates, 'estimate', estimate)
    for topology in ('v5e:2x4', 'v5e:2x4', 'v6e:2x4'):
        estimates.main(folder, topology)
    first, second = (1, 0.125, 8), (0, 0.25, 8)  # the first finished run of a group; an image a chip
    expected = [(*run, topology, 'predict') for topology in ('v5e:2x4', 'v6e:2x4') for run in (first, second)]
    assert calls == expected
    assert [(row['name'], row['topology']) for row in Store(folder).estimates()] == [
        ('a', 'v5e:2x4'),
        ('b', 'v5e:2x4'),
        ('a', 'v6e:2x4'),
        ('b', 'v6e:2x4'),
    ]


def test_estimates_that_fail_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='no estimates for gpu: see above'):
        estimate_costs(Store(tmp_path), 'gpu')


class NamedRun(NamedTuple):
    run: str


def test_costs_are_measured_once_for_each_choice_of_batch_sizes(tmp_path, monkeypatch):
    measured = []

    def measure(prepared):
        measured.append(prepared)
        return [{'name': name, 'batch': size} for name, sizes in prepared.items() for size in sizes]

    monkeypatch.setattr(Store, 'first_of_groups', lambda store: {'a': NamedRun('a_seed0')})
    monkeypatch.setattr('detzoo.inference.predictor.load', lambda workdir: workdir)
    monkeypatch.setattr('detzoo.costs.stages.prepare_trained', lambda predictor, sizes: sizes)
    monkeypatch.setattr('detzoo.costs.stages.measure', measure)
    for sizes in ([1], [1], [1, 8], [8, 1]):
        assert len(measure_costs(Store(tmp_path), sizes)) == len(sizes)
    assert measured == [{'a': [1]}, {'a': [1, 8]}]


def test_attempt_keeps_runs_apart_whose_names_have_dots(experiment, tmp_path, monkeypatch):
    folder = tmp_path / 'sweep'
    folder.mkdir()
    planned = plan(experiment("[Run('a_0.25', CONFIG), Run('a_0.5', CONFIG, {'seed': 1})]"))
    write_text(folder / 'sweep.json', json.dumps(planned))
    monkeypatch.setattr(attempt, '_train', lambda store, planned, stop: planned._replace(status=FINISHED))
    assert attempt.attempt(str(folder), 'a_0.25') and attempt.attempt(str(folder), 'a_0.5')
    assert sorted(path.name for path in (folder / 'runs').iterdir()) == [
        'a_0.25.lock',
        'a_0.25.seconds',
        'a_0.5.lock',
        'a_0.5.seconds',
    ]


def test_attempt_records_nothing_of_a_run_that_was_stopped(experiment, tmp_path, monkeypatch):
    folder = tmp_path / 'sweep'
    folder.mkdir()
    write_text(folder / 'sweep.json', json.dumps(plan(experiment("[Run('a', CONFIG)]"))))

    def stop(store, planned, request):
        raise Stopped(signal.SIGINT, 'here')

    monkeypatch.setattr(attempt, '_train', stop)
    with pytest.raises(Stopped):
        attempt.attempt(str(folder), 'a')
    assert not list((folder / 'results' / 'a').iterdir())


def test_attempt_records_what_was_raised(experiment, tmp_path, monkeypatch):
    folder = tmp_path / 'sweep'
    folder.mkdir()
    write_text(folder / 'sweep.json', json.dumps(plan(experiment("[Run('a', CONFIG)]"))))

    def fail(store, planned, stop):
        raise MemoryError('no room\nfor 3 arrays')

    monkeypatch.setattr(attempt, '_train', fail)
    assert not attempt.attempt(str(folder), 'a')
    result = json.loads((folder / 'results' / 'a' / 'result.json').read_text())
    assert (result['status'], result['reason'], result['run']) == (FAILED, 'MemoryError: no room', 'a')


def test_store_names_a_line_that_is_no_result(tmp_path):
    (tmp_path / 'results.jsonl').write_text('{"run": "a"}\n')
    with pytest.raises(ValueError, match='results.jsonl, line 1 is not a result'):
        Store(tmp_path).results()
    (tmp_path / 'results.jsonl').write_text('[' * 100_000)
    with pytest.raises(ValueError, match='results.jsonl, line 1 is not a result'):
        Store(tmp_path).results()
    with pytest.raises(FileNotFoundError, match='holds no sweep'):
        Store(tmp_path).sweep()


def test_store_keeps_ground_truth(tmp_path):
    truth = {'images': [{'id': 3}], 'annotations': [], 'categories': []}
    Store(tmp_path).write_ground_truth('a', truth)
    assert Store(tmp_path).ground_truth('a') == truth
    assert [path.name for path in (tmp_path / 'truth' / 'a').iterdir()] == ['ground_truth.json.gz']


def test_truth_name_is_a_folder():
    assert truth_name('coco', 'validation') == 'coco-validation'
    assert truth_name('coco', 'validation[:10%]') == 'coco-validation-10'


def test_curves_average_the_training_loss():
    rows = [{'step': step, 'loss': float(step)} for step in range(1, 901)]
    rows.insert(450, {'step': 450, 'validation/loss': 2.0, 'validation/AP': None})
    rows.append({'step': 900, 'validation/loss': 1.0, 'validation/AP': 0.25})
    made = curves(rows)
    assert made['validation'] == {'step': [450, 900], 'loss': [2.0, 1.0], 'AP': [None, 0.25]}
    assert made['training']['step'] == list(range(3, 901, 3)) and made['training']['loss'] == list(
        np.arange(2.0, 900, 3)
    )
    assert curves(rows[:2]) == {'training': {'step': [1, 2], 'loss': [1.0, 2.0]}, 'validation': {'step': []}}


def sweep_script(path, folder):
    """Starts scripts/sweep.py with two runs at once."""
    command = [sys.executable, ROOT / 'scripts' / 'sweep.py', f'--experiment={path}', f'--workdir={folder}', '--jobs=2']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(store, run, step, seconds=200):
    """Waits until the log of a run shows a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = store.workdir(run) / 'metrics.jsonl'
        if path.exists() and path.read_text().count('"loss"') >= step:
            return
    raise AssertionError(f'{run} made no {step} steps: {(store.folder / "runs" / f"{run}.log").read_text()[-2000:]}')


def processes_of(folder, run=''):
    """The processes that run something of a sweep."""
    found = subprocess.run(['pgrep', '-f', f'sweeps.attempt {folder} {run}'], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_sweep_killed_at_will_ends_with_the_same_results(experiment, tiny_run, data_dir, tmp_path):
    """SIGKILL to the process of a run; SIGTERM and SIGKILL to that of the sweep; one run cannot succeed, one shares a training."""
    store = Store(tmp_path / 'sweep')
    path = experiment(
        "[Run('a', CONFIG), Run('nan', CONFIG, {'optimizer.learning_rate': 1e30}),"
        " Run('strict', CONFIG, {'model.score_threshold': 0.08}, trained='a')]"
    )
    sweep = sweep_script(path, store.folder)
    wait_for_step(store, 'a', 7)
    for pid in processes_of(store.folder, 'a'):
        os.kill(pid, signal.SIGKILL)
    output, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 1 and '1 of 3 runs are finished' in output, errors
    assert 'a: failed: killed by SIGKILL, often because memory ran out' in errors
    results = {result.run: result for result in store.results()}
    assert results['nan'].reason.startswith('FloatingPointError: step 2: the loss is nan') and results['nan'].steps == 0
    assert results['strict'].status == FINISHED  # went on where the other's training was cut

    sweep = sweep_script(path, store.folder)
    wait_for_step(store, 'a', 11)
    sweep.terminate()
    output, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 42 and 'stopped by SIGTERM when ' in errors, errors
    assert not processes_of(store.folder)
    step = Checkpoints(store.workdir('a')).latest_step()
    assert step == read_metrics(store.workdir('a'))[-1]['step'] and 11 <= step < 15  # between two that were due
    assert 'stopped by SIGTERM after step' in (store.folder / 'runs' / 'a.log').read_text()

    sweep = sweep_script(path, store.folder)
    wait_for_step(store, 'a', 13)
    sweep.kill()
    sweep.communicate()
    end = time.monotonic() + 60
    while processes_of(store.folder) and time.monotonic() < end:
        pass
    assert not processes_of(store.folder)  # the runs end with the sweep

    output, errors = sweep_script(path, store.folder).communicate(timeout=300)
    assert '2 of 3 runs are finished' in output and 'error: 1 failed: nan' in errors, errors
    results = {result.run: result for result in store.results()}
    assert len(results) == len(store.results()) == 3
    a, strict = results['a'], results['strict']
    assert (a.status, a.steps, strict.changes) == (FINISHED, 16, {'model.score_threshold': [0.001, 0.08]})
    assert read_metrics(store.workdir('a')) == read_metrics(tiny_run)  # as if nothing had happened
    detections = read_detections(store.results_of('a') / 'detections.json.gz')
    metrics = coco_metrics(store.ground_truth(a.truth), detections)
    assert metrics['boxes'] == a.metrics and metrics['per_class'] == a.per_class
    fewer = read_detections(store.results_of('strict') / 'detections.json.gz')
    assert fewer == [row for row in detections if row['score'] > 0.08] and 0 < len(fewer) < len(
        detections
    )  # one training
    assert (
        a.seconds > 0
        and a.parameters > 1000
        and a.device['count'] == 8
        and set(a.versions) >= {'jax', 'python', 'commit'}
    )
    assert json.loads((store.results_of('a') / 'curves.json').read_text())['validation']['AP'] == [a.metrics['AP']]
    names = sorted(str(path.relative_to(store.folder)) for path in store.folder.glob('*/*/*/*.jpg'))
    panels = [f'panels/{index}.jpg' for index in range(130, 134)]
    expected = [f'results/{run}/{panel}' for run in ('a', 'strict') for panel in ['assignment/anchors.jpg', *panels]]
    assert names == sorted(expected + [f'truth/toy-validation/{panel}' for panel in panels])


@pytest.mark.filterwarnings('ignore:subprocess .* is still running:ResourceWarning')  # submitit's own
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # raised where its process is forgotten
def test_cluster_runs_jobs_and_takes_up_those_that_are_there(experiment, tmp_path):
    """By submitit's local executor, whose jobs are processes; that a job still waits in a queue is made up."""
    store = Store(tmp_path / 'sweep')
    planned = plan(experiment("[Run('a', CONFIG, {'training.steps': 2})]"))
    launcher = Cluster(store.folder, 'local', {'timeout_min': 5})
    (result,) = runner.run_sweep(store.folder, planned, launcher)
    assert (result.status, result.steps) == (FINISHED, 2), result.reason
    job_id = (store.folder / 'runs' / 'a.job').read_text()
    assert [path.name for path in (store.folder / 'jobs').glob('*_submitted.pkl')] == [f'{job_id}_submitted.pkl']

    class Queued(NamedTuple):
        folder: pathlib.Path
        job_id: str

        def done(self, force_check=False):
            return False

    launcher.job = Queued
    (store.results_of('a') / 'result.json').unlink()
    handle = launcher.start('a')
    assert handle.job == (store.folder / 'jobs', job_id) and handle.ended() is None
