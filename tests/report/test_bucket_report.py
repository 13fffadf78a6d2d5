"""The report of a sweep in a bucket, which is a fake: see tests/bucket.py."""

import shutil

from bucket import buckets_in
from drawn_sweep import RESAMPLES

from detzoo.report.page import write_report


def test_report_of_a_sweep_in_a_bucket_is_that_of_a_disk(store, tmp_path, monkeypatch):
    place = tmp_path / 'bucket' / 'sweep'
    shutil.copytree(store.folder, place, ignore=shutil.ignore_patterns('report.*', 'figures'))
    with buckets_in(tmp_path, monkeypatch):
        assert [str(path) for path in write_report('gs://bucket/sweep', RESAMPLES)] == [
            'gs://bucket/sweep/report.html',
            'gs://bucket/sweep/report.md',
        ]
    for path in store.folder.rglob('*'):
        if path.is_file():
            assert (place / path.relative_to(store.folder)).read_bytes() == path.read_bytes(), path
