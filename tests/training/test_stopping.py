"""Requests to stop: where a run stops, what it leaves behind, and that it ends as if nothing had happened."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from linear import AskedAt, assert_same, saved

from detzoo.run import stopping
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.training.loop import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('replicas', [1, 2])
def test_train_and_evaluate_stopped_anywhere_ends_with_the_same_bits(tmp_path, tiny_config, linear, replicas):
    config = tiny_config(training__evaluate_every=4, training__num_replicas=replicas)
    metrics = train_and_evaluate(config, tmp_path / 'whole')
    draw, steps = random.Random(replicas), []
    for look in (1, draw.randint(2, 4), 5, draw.randint(6, 9)):  # the fourth step's evaluation is made in looks 5 and 6
        with pytest.raises(Stopped, match='stopped by SIGTERM .*whose checkpoint is saved'):
            train_and_evaluate(config, tmp_path / 'cut', stop=AskedAt(look))
        workdirs = [tmp_path / 'cut'] if replicas == 1 else [tmp_path / 'cut' / 'seed_0', tmp_path / 'cut' / 'seed_1']
        assert {read_metrics(workdir)[-1]['step'] for workdir in workdirs} == {saved(workdirs[-1])[0]}
        steps.append(saved(workdirs[0])[0])
    assert steps[0] == 1 and sorted(set(steps)) == sorted(steps) and steps[-1] < 16
    assert train_and_evaluate(config, tmp_path / 'cut') == metrics
    for workdir in workdirs:
        whole = tmp_path / 'whole' / workdir.relative_to(tmp_path / 'cut')
        assert (workdir / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
        assert_same(saved(workdir), saved(whole))


def test_train_and_evaluate_stopped_in_its_last_evaluation_makes_it_later(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=3)
    with pytest.raises(Stopped, match='in an evaluation, whose checkpoint is saved'):
        train_and_evaluate(config, tmp_path, stop=AskedAt(4))
    assert saved(tmp_path)[0] == 3 and len(read_metrics(tmp_path)) == 3
    train_and_evaluate(config, tmp_path)
    assert len(read_metrics(tmp_path)) == 4 and read_metrics(tmp_path)[-1]['validation/AP'] is not None


# Signals


@pytest.fixture
def exits(monkeypatch):
    """The exit codes of the processes that would have ended."""
    codes = []
    monkeypatch.setattr(stopping.os, '_exit', codes.append)
    return codes


def test_ask_ends_the_process_where_there_is_nothing_to_save(exits):
    StopRequest().ask(signal.SIGTERM)
    StopRequest().ask(signal.SIGINT)
    assert exits == [42, 130]


def test_ask_keeps_the_first_signal_and_ends_the_process_by_a_second_sigint(exits):
    stop = StopRequest()
    stop.running = True
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        stop.ask(number)
    assert stop.number == signal.SIGTERM and not exits
    stop.ask(signal.SIGINT)
    assert exits == [130]
    stop.accept()  # or a thread of it would end the tests


@pytest.mark.parametrize(
    'number, accepted, expected', [(signal.SIGTERM, False, [42]), (signal.SIGTERM, True, []), (2, False, [])]
)
def test_ask_ends_a_process_that_accepts_no_sigterm_within_the_grace(exits, number, accepted, expected):
    stop = StopRequest()
    stop.running, stop.grace = True, stopping.SPARE + 0.05
    stop.ask(number)
    if accepted:
        stop.accept()
    end = time.monotonic() + (60 if expected else 0.2)
    while time.monotonic() < end and (not expected or exits != expected):
        time.sleep(0.01)
    assert exits == expected


def test_listen_hears_signals_while_the_main_thread_hears_none():
    """The main thread sleeps outside of Python, as it does where it waits for a compilation."""
    code = (
        'import ctypes; from detzoo.run.stopping import StopRequest\n'
        'stop = StopRequest(); stop.listen(); stop.running = True; print("ready", flush=True)\n'
        'for _ in range(4): ctypes.CDLL(None).sleep(10)'  # a signal ends one of them
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() + process.stderr.readline() == (
            '\nSIGINT: stops once the state is saved; a second one ends the process at once\n'
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()
