"""A sweep's folder in a bucket, which is a fake: see tests/bucket.py."""

import json
import shutil
import subprocess
import sys

import pytest
from bucket import buckets_in

from detzoo.run.metrics import read_metrics
from detzoo.sweeps import runner
from detzoo.sweeps.attempt import attempt
from detzoo.sweeps.board import Board
from detzoo.sweeps.launchers import Cluster, Processes
from detzoo.sweeps.store import FINISHED, Result, Store

FOLDER = 'gs://bucket/sweep'


@pytest.fixture()
def place(tmp_path, monkeypatch):
    """The folder in which the sweep of the bucket lies."""
    with buckets_in(tmp_path / 'buckets', monkeypatch):
        yield tmp_path / 'buckets' / 'bucket' / 'sweep'


def test_attempt_in_a_bucket_has_the_results_of_a_disk(place, tmp_path, tiny_config, tiny_run):
    """Both copy the checkpoints of the tiny run, and evaluate and draw them."""
    run = Result('again', 'again', 'again', 'waiting', '', tiny_config().to_dict(), {}, 0, {}, trained='tiny')
    for folder in (place, tmp_path / 'disk'):
        shutil.copytree(tiny_run, folder / 'runs' / 'tiny')
        (folder / 'sweep.json').write_text(json.dumps({'runs': [run._asdict()], 'metrics': ['AP']}))
    assert attempt(FOLDER, 'again') and attempt(str(tmp_path / 'disk'), 'again')
    files_of = lambda folder: {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
    }
    for name in ('results', 'truth'):
        found, expected = files_of(place / name), files_of(tmp_path / 'disk' / name)
        results = [
            json.loads(files.pop(path))
            for files in (found, expected)
            for path in [*files]
            if path.name == 'result.json'
        ]
        assert found == expected and len(found) > 1
        for first, second in zip(results[::2], results[1::2]):
            assert first['status'] == FINISHED and first | {'seconds': 0} == second | {'seconds': 0}
    board = Board(Store(FOLDER), [run])
    assert board.rows({'again': run}, {})[0]['step'] == read_metrics(tiny_run)[-1]['step'] == 16


def test_runs_on_this_machine_leave_their_logs_in_the_bucket(place, monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        'Popen',
        lambda command, **options: popen(
            [sys.executable, '-S', '-c', 'import sys; print("said"); sys.exit(3)'], **options
        ),
    )
    store = Store(FOLDER)
    handle = Processes(store.folder).start('one')
    handle.process.wait(30)
    assert handle.ended() == 'exit code 3, see gs://bucket/sweep/runs/one.log'
    assert (place / 'runs' / 'one.log').read_text() == 'said\n'
    with runner._only_one(store):
        assert (place / 'lock').exists()
    assert not (place / 'lock').exists()


def test_a_cluster_needs_a_folder_on_a_disk(place):
    with pytest.raises(
        OSError, match='gs://bucket/sweep is in a bucket, where this cannot be written: give a folder on a disk'
    ):
        Cluster(Store(FOLDER).folder, 'local', {})
