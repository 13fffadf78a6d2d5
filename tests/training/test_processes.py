"""Runs of several processes, which the command line starts: on more and fewer devices, stopped, killed, and failed.

They train `linear_detector`, which compiles at once: the file of their config puts it in the place of the real one.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from linear import assert_close, losses_of, saved, wait_for_step
from tiny import ROOT

from detzoo.config import to_json
from detzoo.evaluation import read_detections
from detzoo.inference.dataset import evaluate_workdir
from detzoo.run.hosts import LOST
from detzoo.run.metrics import read_metrics
from detzoo.run.storage import held
from detzoo.training import loop

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from linear import linear_detector
from detzoo.config import from_json
from detzoo.training import checks

checks.detector_of = lambda config, num_classes, axis_name=None: linear_detector(axis_name)


def get_config():
    return from_json({config!r})
"""


@pytest.fixture
def start():
    """A function: a command, its flags, the number of processes, the devices of each, flags by process -> started processes."""
    started = []

    def start(command, *flags, count=1, devices=1, own=((), ())):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            address = f'localhost:{free.getsockname()[1]}'
        xla_flags = re.sub(r'device_count=\d+', f'device_count={devices}', os.environ['XLA_FLAGS'])
        for process_id in range(count):
            place = [f'--coordinator_address={address}', f'--num_processes={count}', f'--process_id={process_id}']
            script = [sys.executable, ROOT / 'scripts' / f'{command}.py']
            started.append(
                subprocess.Popen(
                    [*script, *flags, *own[process_id], *(place if count > 1 else [])],
                    env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': xla_flags},
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return started[-count:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def linear_file(tmp_path):
    """A function: a config -> the path of a file of it, with the linear detector."""

    def write(config):
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(tests=str(ROOT / 'tests'), config=to_json(config)))
        return path

    return write


def ended(processes):
    """Waits for processes: [(exit code, stdout, stderr)]."""
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def errors_in(stderr):
    """The lines that say what is wrong, in whatever form."""
    return [line for line in stderr.splitlines() if re.search('rror|Traceback|^[EF][0-9]{4}|terminate', line)]


@pytest.mark.parametrize('killed', [0, pytest.param(1, marks=pytest.mark.full)])
def test_train_in_processes_that_are_stopped_and_killed_ends_as_on_one(
    start, linear_file, tiny_config, tmp_path, linear, killed
):
    config = tiny_config(training__steps=40, training__evaluate_every=8)
    metrics = loop.train_and_evaluate(config, tmp_path / 'whole')
    workdir = tmp_path / 'cut'
    flags = f'--config={linear_file(config)}', f'--workdir={workdir}'

    # On four devices, in two processes of which one is stopped.
    group = start('train', *flags, count=2, devices=2)
    wait_for_step(group[1], workdir, 6)
    group[1].send_signal(signal.SIGTERM)
    results = ended(group)
    first = read_metrics(workdir)[-1]['step']
    assert [code for code, _, _ in results] == [42, 42], results
    assert all('stopped by SIGTERM' in error and 'whose checkpoint is saved' in error for _, _, error in results)
    assert saved(workdir)[0] == first

    # On eight devices, in two processes of which one is killed.
    group = start('train', *flags, count=2, devices=4)
    second = wait_for_step(group[killed], workdir, first + 6)
    group[killed].kill()
    results = ended(group)
    (code, _, error), left = results[killed], results[1 - killed]
    assert code == -signal.SIGKILL and left[0] == LOST, left
    # JAX, which notices it too, may have written lines of its own before the process ended.
    (line,) = [line for line in errors_in(left[2]) if line.startswith(f'error: process {killed} of 2 is gone')]
    assert line.endswith('goes on from its newest checkpoint')

    # On two devices, in one process.
    ((code, _, error),) = ended(start('train', *flags, devices=2))
    assert code == 0 and 5 < first < second < 40, error
    lines, whole = read_metrics(workdir), read_metrics(tmp_path / 'whole')
    assert [line['step'] for line in lines] == [line['step'] for line in whole]
    np.testing.assert_allclose(losses_of(workdir), losses_of(tmp_path / 'whole'), rtol=1e-5)
    assert_close(saved(workdir)[1], saved(tmp_path / 'whole')[1], 1e-4)
    assert metrics['images'] == 10
    evaluations, expected = ([row for row in rows if 'validation/AP' in row] for rows in (lines, whole))
    assert len(evaluations) == 5
    for row, other in zip(evaluations, expected):
        assert row.pop('validation/loss') == pytest.approx(other.pop('validation/loss'), rel=1e-5) and row == other


def test_evaluate_in_processes_counts_each_image_once(start, tiny_run, tmp_path):
    flags = f'--workdir={tiny_run}', f'--output={tmp_path}'
    results = ended(start('evaluate', *flags, count=2, devices=4))
    assert [code for code, _, _ in results] == [0, 0], results
    assert ['Average Precision' in output for _, output, _ in results] == [True, False]
    metrics, _, detections = evaluate_workdir(tiny_run, output=tmp_path / 'one')
    found = json.loads((tmp_path / 'evaluation.json').read_text())
    assert found['images'] == metrics['images'] == 10
    assert found['boxes'] == pytest.approx(metrics['boxes'], abs=1e-5) and metrics['boxes']['AP'] > 0
    assert len(read_detections(tmp_path / 'detections.json.gz')) == len(detections) > 10


def test_processes_end_with_the_one_that_fails(start, linear_file, tiny_config, tmp_path):
    flags = f'--config={linear_file(tiny_config())}', f'--workdir={tmp_path / "run"}'
    own = [], [f'--config.data.data_dir={tmp_path}']
    (first, _, first_error), (second, _, second_error) = ended(start('train', *flags, count=2, devices=4, own=own))
    assert (first, second) == (LOST, 1), first_error
    (line,) = errors_in(first_error)
    assert line.startswith('error: process 1 of 2 ended with an error, see its output')
    (line,) = errors_in(second_error)
    assert line.startswith("error: no data set 'toy'")


def test_processes_do_not_wait_for_one_that_never_comes(start, tmp_path):
    place = '--coordinator_address=localhost:1', '--num_processes=2', '--process_id=1'
    ((code, _, error),) = ended(start('evaluate', f'--workdir={tmp_path}', '--start_timeout=1', *place))
    assert code == LOST
    (line,) = errors_in(error)
    assert line.startswith(
        'error: not all 2 processes came within 1 s. This is process 1; the first one is expected at'
    )


@pytest.mark.full
def test_processes_that_all_fail_say_why(start, linear_file, tiny_config, tmp_path):
    flags = f'--config={linear_file(tiny_config())}', f'--workdir={tmp_path / "run"}'
    with held(tmp_path / 'run'):
        (first, _, first_error), (second, _, second_error) = ended(start('train', *flags, count=2, devices=4))
    assert (first, second) == (1, 1) and 'is in use by process' in first_error
    (line,) = errors_in(second_error)
    assert line.startswith('error: the first process of the run ended with an error')
