"""Runs in a bucket: the same bits as on a disk, whatever interrupts them, and no word to a user that there is no lock.

The bucket is a fake, see tests/bucket.py.
"""

import pytest
from bucket import buckets_in
from linear import AskedAt, assert_same, saved, state_of

from detzoo.errors import DataError
from detzoo.files import as_path
from detzoo.inference.dataset import evaluate_workdir
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.metrics import MetricsLog, read_metrics
from detzoo.run.stopping import Stopped
from detzoo.run.storage import held
from detzoo.training.loop import train_and_evaluate

RUN = 'gs://bucket/runs/one'


@pytest.fixture()
def place(tmp_path, monkeypatch):
    """The folder in which the run of the bucket lies."""
    with buckets_in(tmp_path / 'buckets', monkeypatch):
        yield tmp_path / 'buckets' / 'bucket' / 'runs' / 'one'


def test_train_and_evaluate_in_a_bucket_ends_with_the_bits_of_a_disk(place, tmp_path, tiny_config, linear, capsys):
    config = tiny_config(training__steps=4, training__checkpoint_every=2, training__keep_best='AP')
    metrics = train_and_evaluate(config, tmp_path / 'disk')
    with pytest.raises(Stopped):
        train_and_evaluate(config, RUN, stop=AskedAt(3))
    assert [row['step'] for row in read_metrics(RUN)] == [1, 2, 3] and Checkpoints(RUN).steps() == [2, 3]
    (place / 'checkpoints' / '4' / 'variables').mkdir(parents=True)  # a checkpoint that was not committed
    (place / 'checkpoints' / '4' / 'variables' / 'half').write_text('half')
    with (place / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "loss": 9.0}\n{"step"')  # which was flushed before
    assert train_and_evaluate(config, RUN) == metrics
    said = capsys.readouterr().err
    assert said.count('gs://bucket/runs/one is in a bucket, where nothing can be locked') == 2
    assert 'has not said' not in said

    assert (place / 'metrics.jsonl').read_bytes() == (tmp_path / 'disk' / 'metrics.jsonl').read_bytes()
    assert_same(saved(RUN), saved(tmp_path / 'disk'))
    expected, found = (evaluate_workdir(workdir) for workdir in (tmp_path / 'disk', RUN))
    assert found == expected
    for name in ('evaluation.json', 'detections.json.gz', 'config.json', 'classes.json', 'data.json'):
        assert (place / name).read_bytes() == (tmp_path / 'disk' / name).read_bytes()
    names = {path.relative_to(place).parts[0] for path in place.rglob('*') if path.is_file()}
    on_disk = {path.name for path in (tmp_path / 'disk').iterdir()} - {'lock'}
    assert names == on_disk
    assert len(list((place / 'tensorboard').glob('events*'))) == 2


def test_checkpoints_in_a_bucket_that_are_damaged_are_set_aside(place, capsys):
    checkpoints = Checkpoints(RUN, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step))
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]
    file = next(path for path in sorted((place / 'checkpoints' / '3' / 'variables').rglob('*')) if path.is_file())
    file.write_bytes(b'x' + file.read_bytes())
    with pytest.raises(DataError, match='gs://bucket/runs/one/checkpoints/3 is damaged'):
        Checkpoints(RUN).restore(state_of(0))
    Checkpoints(RUN).set_damaged_aside()
    assert 'set aside as gs://bucket/runs/one/checkpoints/3.damaged' in capsys.readouterr().err
    checkpoints = Checkpoints(RUN)
    assert_same(checkpoints.restore(state_of(0)), state_of(2))
    checkpoints.save(state_of(3))  # Orbax removes what was not committed
    checkpoints.close()
    assert (place / 'checkpoints' / '3.damaged' / 'variables').is_dir()
    Checkpoints(RUN).cut_back(2)
    assert Checkpoints(RUN).steps() == [2]
    assert not any(path.is_file() for path in (place / 'checkpoints' / '3').rglob('*'))


def test_metrics_log_in_a_bucket_is_there_when_it_is_flushed(place, monkeypatch):
    log = MetricsLog(RUN, step=0, active=True)
    for step in (1, 2, 3):
        log.write(step, {'loss': 1 / step})
        if step == 2:
            log.flush()
    kept = [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 0.5}]
    assert read_metrics(RUN) == kept
    monkeypatch.setattr(log, 'flush', lambda: None)
    log.close()  # as if it was killed
    assert read_metrics(RUN) == kept
    log = MetricsLog(RUN, step=1, active=True)
    log.write(2, {'loss': 0.25})
    log.close()
    assert read_metrics(RUN) == [kept[0], {'step': 2, 'loss': 0.25}]


def test_held_names_an_owner_that_has_not_said_that_it_ended(place, capsys):
    with pytest.raises(KeyError), held(as_path(RUN)):
        assert (place / 'lock').read_text().startswith('process ')
        raise KeyError
    assert not (place / 'lock').exists()
    (place / 'lock').write_text('process 7 on there since then\n')
    capsys.readouterr()
    with held(as_path(RUN)):
        pass
    assert 'nothing can be locked: make sure that no other process writes there; process 7 on there since then has' in (
        capsys.readouterr().err
    )
