"""What happens to a run: full disks, a second trainer, damaged checkpoints. Kills are in test_training.py."""

import contextlib
import functools
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading

import ml_collections
import numpy as np
import pytest
from linear import assert_same, linear_detector, losses_of, saved, state_of

from detzoo.config import complete
from detzoo.errors import DataError, InUseError, StorageError
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import MetricsLog, read_metrics
from detzoo.run.storage import held
from detzoo.run.workdir import has_checkpoints
from detzoo.training import loop

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond so many bytes: the error of a full disk but for its number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# A full disk


@pytest.mark.parametrize(
    'write, name',
    [
        (lambda log, step: log.write(step, {'loss': 1.0, 'a name that takes room' * 9: 0.5}), 'metrics.jsonl'),
        (lambda log, step: log.write_scalars(step, {f'speed {index}': 1.0 for index in range(9)}), 'tensorboard'),
        (lambda log, step: log.write_images(step, {'x': np.random.RandomState(step).bytes(7500)}), 'tensorboard'),
    ],
    ids=['metrics', 'scalars', 'images'],
)
def test_metrics_log_raises_where_the_disk_is_full(tmp_path, monkeypatch, write, name):
    monkeypatch.setattr(
        'tensorboardX.summary.make_np',
        lambda x: np.frombuffer(x, np.uint8).reshape(50, 50, 3) if isinstance(x, bytes) else np.asarray(x),
    )
    threads = threading.active_count()
    log = MetricsLog(tmp_path, step=0, active=True)
    log.write(1, {'loss': 1.0})
    log.flush()
    with (
        full_disk(10_000),
        pytest.raises(StorageError, match=f'{name} could not be written: File too large.*make room there'),
    ):
        for step in range(2, 1000):
            write(log, step)
    with contextlib.suppress(StorageError):
        log.close()
    assert threading.active_count() == threads
    MetricsLog(tmp_path, step=1, active=True).close()  # there is room again
    assert read_metrics(tmp_path) == [{'step': 1, 'loss': 1.0}]


# Orbax's threads raise what they failed of, and tensorstore calls an event loop that Orbax has closed.
@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning', 'ignore::pytest.PytestUnraisableExceptionWarning'
)
def test_checkpoints_raise_where_the_disk_is_full_and_keep_what_was_there(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(5))
    checkpoints.close()
    threads = set(threading.enumerate())
    checkpoints = Checkpoints(tmp_path)
    with (
        full_disk(50),
        pytest.raises(StorageError, match=r'checkpoints/10 could not be written: File too large.*make room'),
    ):
        checkpoints.save(state_of(10))
        checkpoints.close()
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon and not thread.name.startswith(
            'metadata_store'
        ):  # a worker of a pool, which has nothing to do
            with contextlib.suppress(Exception):  # Orbax's threads raise what they failed of
                thread.join(60)
            assert not thread.is_alive()  # the exit would wait for it
    checkpoints = Checkpoints(tmp_path)
    assert_same(checkpoints.restore(state_of(0)), state_of(5))
    checkpoints.save(state_of(10))
    checkpoints.close()
    assert_same(Checkpoints(tmp_path).restore(state_of(0)), state_of(10))


# Two trainers


def test_held_names_the_owner_until_it_is_killed(tmp_path):
    hold = f'import pathlib, time; from detzoo.run.storage import held\nwith held(pathlib.Path({str(tmp_path / "run")!r})):\n'
    owner = subprocess.Popen(
        [sys.executable, '-c', hold + '    print("held", flush=True); time.sleep(99)'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout.readline() == 'held\n'
        with pytest.raises(
            InUseError, match=rf'run is in use by process {owner.pid} on {socket.gethostname()} since 20\d\d-'
        ):
            with held(tmp_path / 'run'):
                pass
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    with held(tmp_path / 'run'), pytest.raises(InUseError, match=rf'in use by process {os.getpid()} '):
        with held(tmp_path / 'run'):
            pass
    with held(tmp_path / 'run'):
        pass


def test_train_and_evaluate_refuses_a_workdir_in_use_and_writes_nothing(tmp_path, tiny_config, linear):
    with held(tmp_path / 'seed_1'), pytest.raises(InUseError, match='seed_1 is in use by process'):
        loop.train_and_evaluate(tiny_config(training__num_replicas=2), tmp_path)
    assert {path.name for path in tmp_path.glob('*/*')} == {'lock'}
    with held(tmp_path / 'seed_0'):  # the one that was not in use is free again
        pass


def test_metrics_log_refuses_a_second_writer(tmp_path):
    log = MetricsLog(tmp_path, step=0, active=True)
    log.write(1, {'loss': 1.0})
    with pytest.raises(InUseError, match='metrics.jsonl is being written by another process'):
        MetricsLog(tmp_path, step=0, active=True)
    log.write(2, {'loss': 0.5})
    log.close()
    assert len(read_metrics(tmp_path)) == 2


def test_metrics_log_names_a_line_that_cannot_be_read(tmp_path):
    text = '{"step": 1, "loss": 1.0}\n\0\0\0\n{"step": 3, "loss": 1.0}\n'
    (tmp_path / 'metrics.jsonl').write_text(text)
    with pytest.raises(DataError, match=r'line 2 of .*metrics.jsonl is damaged .*remove that line') as raised:
        MetricsLog(tmp_path, step=3, active=True)
    assert (tmp_path / 'metrics.jsonl').read_text() == text
    (tmp_path / 'metrics.jsonl').write_text('')  # mended while the error, as in a notebook, is kept with its frames
    MetricsLog(tmp_path, step=3, active=True).close()
    assert raised.value


# Damaged checkpoints


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('two')
    checkpoints = Checkpoints(workdir)
    for step in (5, 10):
        checkpoints.save(state_of(step, step / 3))
    checkpoints.close()
    return workdir


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    'missing': pathlib.Path.unlink,
    'empty': lambda path: path.write_bytes(b''),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'flipped': flip_a_bit,
    'no folder': lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_checkpoints_find_every_damage(two_checkpoints, tmp_path, capsys, damage):
    newest = two_checkpoints / 'checkpoints' / '10'
    files = [path.relative_to(newest) for path in newest.glob('*/**/*') if path.is_file()]
    assert len(files) > 10
    for index, file in enumerate(files):
        workdir = tmp_path / str(index)
        shutil.copytree(two_checkpoints, workdir)
        checkpoints = Checkpoints(workdir)
        damage(workdir / 'checkpoints' / '10' / file)
        before = sorted(workdir.rglob('*'))
        reads = [functools.partial(checkpoints.restore, state_of(0))]
        if file.parts[0] == 'variables':  # all that a prediction reads
            reads.append(checkpoints.restore_variables)
        for read in reads:
            with pytest.raises(
                DataError, match=r'checkpoints/10 is damaged \(not what .*step 5 is the newest; or choose'
            ):
                read()
        assert sorted(workdir.rglob('*')) == before
        checkpoints.set_damaged_aside()
        assert checkpoints.steps() == [5] and (workdir / 'checkpoints' / '10.damaged').is_dir()
        assert 'WARNING: the checkpoint of step 10 is damaged' in capsys.readouterr().err
    assert_same(checkpoints.restore(state_of(0)), state_of(5, 5 / 3))


def test_checkpoints_need_no_file_outside_their_items(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / 'checkpoints', tmp_path / 'checkpoints')
    others = [
        path for path in (tmp_path / 'checkpoints' / '10').iterdir() if path.is_file() and path.name != 'SHA256SUMS'
    ]
    assert others
    for path in others:
        flip_a_bit(path)
    (tmp_path / 'checkpoints' / '10' / 'variables' / '.DS_Store').touch()  # what file managers leave behind
    checkpoints = Checkpoints(tmp_path)
    checkpoints.set_damaged_aside()
    assert_same(checkpoints.restore(state_of(0)), state_of(10, 10 / 3))
    checkpoints.save(state_of(15))
    checkpoints.close()
    assert checkpoints.steps() == [5, 10, 15]


def test_checkpoints_without_sums_are_read_as_they_are(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / 'checkpoints', tmp_path / 'checkpoints')
    newest = tmp_path / 'checkpoints' / '10'
    (newest / 'SHA256SUMS').unlink()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.set_damaged_aside()
    assert_same(checkpoints.restore(state_of(0)), state_of(10, 10 / 3))
    (newest / 'variables' / 'manifest.ocdbt').unlink()
    with pytest.raises(DataError, match=r'10 cannot be read .*no SHA256SUMS .*rename it to 10.damaged, .*step 5'):
        checkpoints.restore_variables()


def test_checkpoints_with_empty_sums_are_damaged(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / 'checkpoints', tmp_path / 'checkpoints')
    (tmp_path / 'checkpoints' / '10' / 'SHA256SUMS').write_text('')
    with pytest.raises(DataError, match='10 is damaged .SHA256SUMS is empty'):
        Checkpoints(tmp_path).restore_variables()


def test_checkpoints_count_no_empty_folder(two_checkpoints, tmp_path):
    (tmp_path / 'checkpoints' / '99' / 'variables').mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert not has_checkpoints(tmp_path) and checkpoints.latest_step() is None
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
        checkpoints.restore_variables()
    shutil.copytree(two_checkpoints / 'checkpoints', tmp_path / 'checkpoints', dirs_exist_ok=True)
    assert checkpoints.restore_variables()[0] == checkpoints.latest_step() == 10
    checkpoints.set_damaged_aside()
    checkpoints.save(state_of(99))
    checkpoints.close()
    assert checkpoints.steps() == [5, 10, 99]


def test_checkpoints_that_are_all_damaged_do_not_begin_anew_without_a_word(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / 'checkpoints', tmp_path / 'checkpoints')
    for path in (tmp_path / 'checkpoints').glob('*/variables/manifest.ocdbt'):
        path.unlink()
    with pytest.raises(
        DataError, match='every checkpoint in .* is damaged, .* start the training again, and it begins at step 0'
    ):
        Checkpoints(tmp_path).set_damaged_aside()
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['10.damaged', '5.damaged']


def test_train_and_evaluate_goes_on_before_a_damaged_checkpoint(tmp_path, tiny_config, linear):
    config = tiny_config(training__steps=6, training__checkpoint_every=2)
    metrics = loop.train_and_evaluate(config, tmp_path)
    before = (tmp_path / 'metrics.jsonl').read_bytes(), saved(tmp_path)
    for file in (tmp_path / 'checkpoints' / '6').glob('optimizer/*/d/*'):
        flip_a_bit(file)
    assert loop.train_and_evaluate(config, tmp_path) == metrics
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '4', '6', '6.damaged']
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before[0] and len(losses_of(tmp_path)) == 6
    assert_same(saved(tmp_path), before[1])


@pytest.mark.parametrize('lines, start', [(6, 6), (5, 4), (3, 2), (1, 6)])
def test_train_and_evaluate_makes_the_steps_again_that_a_cut_log_lacks(
    tmp_path, tiny_config, linear, capsys, lines, start
):
    config = tiny_config(training__steps=6, training__checkpoint_every=2)
    metrics = loop.train_and_evaluate(config, tmp_path)
    path, before = tmp_path / 'metrics.jsonl', saved(tmp_path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(whole[:lines]) + whole[lines][:-1])
    capsys.readouterr()
    assert loop.train_and_evaluate(config, tmp_path) == metrics
    assert path.read_bytes().splitlines(keepends=True) == (whole if lines > 1 else [whole[0], whole[-1]])
    assert_same(saved(tmp_path), before)
    shown = capsys.readouterr().err
    assert f'steps {start} to 6' in shown
    assert (f'was cut: it ends at step {lines}, ' in shown) == (lines < 6)
    assert ('it stays without the steps' in shown) == (lines == 1)


# Data that cannot be evaluated


def test_train_and_evaluate_refuses_validation_data_without_masks(tmp_path, tiny_config, monkeypatch):
    make = lambda config, num_classes, axis_name=None: linear_detector(axis_name)._replace(finds_masks=True)
    monkeypatch.setattr('detzoo.training.checks.detector_of', make)
    config = tiny_config(data__mask_size=28)
    config.model = complete(
        ml_collections.ConfigDict(dict(model=dict(name='mask_rcnn', backbone=dict(norm='batch_norm'))))
    ).model
    with pytest.raises(
        DataError, match=r"split 'validation' of 'toy' cannot be evaluated: annotation \d+ of image 3\d.png: "
    ):
        loop.train_and_evaluate(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
