"""One run of a sweep: in this process, and how its process ends."""

import contextlib
import json
import subprocess
import sys
import types

import pytest

from detzoo.evaluation import read_detections
from detzoo.inference import dataset
from detzoo.run import hosts
from detzoo.sweeps import attempt as module
from detzoo.sweeps.attempt import attempt
from detzoo.sweeps.launchers import _Job, _Process
from detzoo.sweeps.store import FINISHED, STOPPED, Result, Store


def test_attempt_predicts_its_validation_split_once(tiny_config, tiny_run, tmp_path, monkeypatch):
    store, predicted, evaluation_batches = Store(tmp_path), [], dataset.evaluation_batches
    store.workdir('tiny').parent.mkdir()
    store.workdir('tiny').symlink_to(tiny_run)
    run = Result('again', 'again', 'again', 'waiting', '', tiny_config().to_dict(), {}, 0, {}, trained='tiny')
    (tmp_path / 'sweep.json').write_text(json.dumps({'runs': [run._asdict()], 'metrics': ['AP']}))

    def count(split, *arguments, **options):
        predicted.append(split.split)
        return evaluation_batches(split, *arguments, **options)

    monkeypatch.setattr(dataset, 'evaluation_batches', count)
    assert attempt(str(tmp_path), 'again') and predicted == ['validation']
    result = json.loads((store.results_of('again') / 'result.json').read_text())
    assert (result['status'], result['steps']) == (FINISHED, 16)

    metrics, truth, detections = dataset.evaluate_workdir(store.workdir('again'))
    assert read_detections(store.results_of('again') / 'detections.json.gz') == detections
    assert store.ground_truth(result['truth']) == json.loads(json.dumps(truth))
    assert (metrics['step'], metrics['boxes'], metrics['per_class']) == (16, result['metrics'], result['per_class'])


@pytest.mark.parametrize('task, first', [('0', True), ('1', False)])
def test_attempt_in_job_joins_the_other_tasks_of_a_job(monkeypatch, tmp_path, task, first):
    made = []
    monkeypatch.setattr(module, 'attempt', lambda *arguments, **options: made.append(([*joined], arguments, options)))
    joined = []
    monkeypatch.setattr(hosts, 'joined', lambda: contextlib.nullcontext(joined.append('joined')))
    monkeypatch.setenv('SLURM_NTASKS', '1')
    module.attempt_in_job('folder', 'run')
    assert made == [([], ('folder', 'run'), {})]
    monkeypatch.setenv('SLURM_NTASKS', '2')
    monkeypatch.setenv('SLURM_PROCID', task)
    module.attempt_in_job('folder', 'run')
    assert made[1:] == [(['joined'], ('folder', 'run'), {'first': first})]


def test_attempt_of_another_process_than_the_first_writes_nothing_and_raises(monkeypatch, tmp_path):
    run = Result('a', 'a', 'a', 'waiting', '', {}, {}, 0, {})
    (tmp_path / 'sweep.json').write_text(json.dumps({'runs': [run._asdict()], 'metrics': ['AP']}))
    monkeypatch.setattr(module, '_train', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attempt(str(tmp_path), 'a', first=False)
    assert [path.name for path in tmp_path.rglob('*')] == ['sweep.json']


@pytest.mark.parametrize(
    'state, expected', [('PREEMPTED', STOPPED), ('FAILED', 'job 7 failed, see log'), ('RUNNING', None)]
)
def test_jobs_that_were_preempted_are_stopped(tmp_path, state, expected):
    job = types.SimpleNamespace(
        job_id=7, state=state, done=lambda: state != 'RUNNING', paths=types.SimpleNamespace(stderr='log')
    )
    assert _Job(job, tmp_path / 'result.json').ended() == expected


@pytest.mark.parametrize(
    'code, expected',
    [(42, STOPPED), (130, STOPPED), (-15, STOPPED), (-9, 'killed by SIGKILL, often because memory ran out')],
)
def test_processes_that_were_asked_to_stop_are_stopped(tmp_path, code, expected):
    end = f'import os, sys; os.kill(os.getpid(), {-code}) if {code} < 0 else sys.exit({code})'
    process = subprocess.Popen([sys.executable, '-S', '-c', end])
    process.wait(30)
    assert _Process(process, tmp_path).ended() == expected
