"""A run from its first step to its last: interrupted, refused, diverged, and in a process of its own.

Most of it trains `linear_detector`, which compiles at once.
"""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from linear import assert_same, first_batches, losses_of, saved, wait_for_step

from detzoo.config import to_json
from detzoo.errors import ConfigError
from detzoo.inference.dataset import Tally
from detzoo.run.metrics import read_metrics
from detzoo.training import loop

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8


def test_train_and_evaluate_goes_on_where_it_was(tmp_path, tiny_config, linear):
    config = tiny_config(training__evaluate_every=4)
    metrics = loop.train_and_evaluate(config, tmp_path / 'whole')
    assert metrics['images'] == 10 and 0 <= metrics['boxes']['AP'] <= 1
    lines = read_metrics(tmp_path / 'whole')
    assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 17))
    assert [line['step'] for line in lines if 'validation/AP' in line] == [4, 8, 12, 16]
    assert all(np.isfinite(line['validation/loss']) for line in lines if 'validation/AP' in line)

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the evaluation at step 8 fails: its checkpoint is there, and made up for
        metrics_of, calls = Tally.metrics, itertools.count(1)
        patch.setattr(Tally, 'metrics', lambda *args: 1 / 0 if next(calls) == 2 else metrics_of(*args))
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(config, tmp_path / 'cut')
    assert len(losses_of(tmp_path / 'cut')) == saved(tmp_path / 'cut')[0] == 8
    assert [line['step'] for line in read_metrics(tmp_path / 'cut') if 'validation/AP' in line] == [4]
    assert loop.train_and_evaluate(config, tmp_path / 'cut') == metrics
    assert (tmp_path / 'cut' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    assert_same(saved(tmp_path / 'cut'), saved(tmp_path / 'whole'))


def test_train_and_evaluate_of_a_finished_run_makes_no_step(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=3)
    handed_out = []
    metrics = loop.train_and_evaluate(config, tmp_path, on_results=lambda *last: handed_out.append(last))
    ((last, truth, results),) = handed_out
    assert last == metrics and {row['image_id'] for row in results} == {image['id'] for image in truth['images']}
    before = (tmp_path / 'metrics.jsonl').read_bytes(), saved(tmp_path)
    assert loop.train_and_evaluate(config, tmp_path) == metrics
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before[0]
    assert_same(saved(tmp_path), before[1])
    config.training.steps = 5  # longer: one of the keys that may change
    loop.train_and_evaluate(config, tmp_path)
    assert len(losses_of(tmp_path)) == 5


def test_train_and_evaluate_refuses_another_config_on_the_same_workdir(tmp_path, tiny_config, linear):
    loop.train_and_evaluate(tiny_config(training__steps=1), tmp_path)
    before = (tmp_path / 'config.json').read_bytes()
    changed = tiny_config(training__steps=2, training__checkpoint_every=1, seed=3, optimizer__learning_rate=0.5)
    with pytest.raises(ConfigError) as raised:
        loop.train_and_evaluate(changed, tmp_path)
    message = str(raised.value)
    assert 'seed was 0, is 3' in message and 'optimizer.learning_rate was 0.02, is 0.5' in message
    assert 'training' not in message
    assert (tmp_path / 'config.json').read_bytes() == before


def test_train_and_evaluate_stops_where_the_loss_is_not_finite(tmp_path, tiny_config, linear):
    # A rate this high takes a few steps until float32 overflows.
    config = tiny_config(optimizer__learning_rate=1e3, optimizer__warmup_steps=0, training__checkpoint_every=2)
    with pytest.raises(FloatingPointError) as raised:
        loop.train_and_evaluate(config, tmp_path)
    done = losses_of(tmp_path)
    assert 2 <= len(done) < 16 and np.isfinite(done).all()
    step, state = saved(tmp_path)
    assert step == len(done) // 2 * 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    failed = first_batches(config, len(done) + 1)[-1]
    message = str(raised.value)
    assert message.startswith(f'step {len(done) + 1}: the loss is ')
    assert str([100 + index for index in failed.image_id.tolist()]) in message
    assert f'that of step {step} in {tmp_path}/checkpoints; another config takes a new workdir' in message


def test_train_and_evaluate_starts_anew_where_no_checkpoint_was_saved(tmp_path, tiny_config, linear):
    with pytest.raises(
        FloatingPointError, match='no checkpoint yet, so that the same workdir takes another config. A lower'
    ):
        loop.train_and_evaluate(tiny_config(optimizer__learning_rate=1e30, optimizer__warmup_steps=0), tmp_path)
    loop.train_and_evaluate(tiny_config(training__steps=2), tmp_path)
    assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2, 2]
    assert saved(tmp_path)[0] == 2


def test_train_and_evaluate_leaves_out_images_without_objects(tmp_path, tiny_config, linear, capfd, monkeypatch):
    trained = []
    make_batches = loop.make_batches
    monkeypatch.setattr(
        loop, 'make_batches', lambda config, data, *rest: trained.append(data) or make_batches(config, data, *rest)
    )
    for name, empty_images, count in (('with', True, 20), ('without', False, 19)):
        config = tiny_config(data__empty_images=empty_images, training__steps=1)
        loop.train_and_evaluate(config, tmp_path / name)
        announced = (
            "trains on 19 of 20 images of split 'train' of 'toy': the others have no objects" in capfd.readouterr().err
        )
        assert announced == (not empty_images) and len(trained[-1].records) == count
    assert trained[0].records[0]['image_id'] == 100 and trained[1].records[0]['image_id'] == 101


def test_train_and_evaluate_counts_objects_without_a_row(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=3, data__max_boxes=1)
    loop.train_and_evaluate(config, tmp_path)
    expected = [int(batch.gt.dropped.sum()) for batch in first_batches(config, 3)]
    assert [line['gt_dropped'] for line in read_metrics(tmp_path)[:3]] == expected
    assert min(expected) > 0


def test_train_and_evaluate_takes_several_canvases(tmp_path, tiny_config, linear):
    config = tiny_config(data__canvases=((64, 48), (48, 64)), training__steps=6)
    assert loop.train_and_evaluate(config, tmp_path)['images'] == 10
    assert len(losses_of(tmp_path)) == 6


def test_train_and_evaluate_writes_what_the_run_is(tiny_run, tiny_config):
    assert json.loads((tiny_run / 'classes.json').read_text()) == {
        'class_names': ['red', 'green', 'blue'],
        'category_ids': [3, 8, 9],
    }
    environment = json.loads((tiny_run / 'environment.json').read_text())
    assert environment['devices'] == DEVICES and environment['versions']['jax'] == jax.__version__
    assert json.loads((tiny_run / 'config.json').read_text())['model']['backbone']['name'] == 'resnet18'
    assert list((tiny_run / 'tensorboard').iterdir())


# A process of its own


def train_script(tiny_config, tmp_path, workdir):
    """Starts scripts/train.py on the config of `tiny_run`."""
    file = tmp_path / 'config.py'
    text = to_json(tiny_config())
    file.write_text(f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({text!r})\n')
    command = [sys.executable, ROOT / 'scripts' / 'train.py', f'--config={file}', f'--workdir={workdir}']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended_after(process, workdir, step, signal=signal.SIGKILL, code=-signal.SIGKILL):
    """Ends a run by a signal, with an exit code, once its metrics show a step; returns the last step they show then."""
    step = wait_for_step(process, workdir, step)
    process.send_signal(signal)
    process.communicate(timeout=30)
    assert process.returncode == code
    return step


def test_train_script_stopped_killed_and_started_again_ends_with_the_same_bits(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / 'run'
    # Stopped and killed between the checkpoints of steps 5 and 10, and killed while that of step 15 is being written.
    first = ended_after(train_script(tiny_config, tmp_path, workdir), workdir, 7, signal.SIGTERM, 42)
    assert saved(workdir)[0] >= first
    second = ended_after(train_script(tiny_config, tmp_path, workdir), workdir, max(first + 1, 15))
    assert first < second
    process = train_script(tiny_config, tmp_path, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert (workdir / 'metrics.jsonl').read_bytes() == (tiny_run / 'metrics.jsonl').read_bytes()
    assert saved(workdir)[0] == 16
    assert_same(saved(workdir), saved(tiny_run))
