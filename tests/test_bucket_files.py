"""Files, folders and data sets in a bucket, which is a fake: see tests/bucket.py."""

import pathlib

import fsspec
import pytest
from bucket import Bucket, buckets_in
from etils import epath

from detzoo import files
from detzoo.data import catalog, records
from detzoo.data.readers import prepare
from detzoo.errors import DataError
from detzoo.files import as_path


@pytest.fixture()
def root(tmp_path, monkeypatch):
    """The folder of gs://bucket."""
    with buckets_in(tmp_path / 'buckets', monkeypatch):
        yield tmp_path / 'buckets' / 'bucket'


def test_the_bucket_refuses_what_buckets_refuse(root):
    path = as_path('gs://bucket/a/b')
    path.write_text('b')
    path.parent.parent.joinpath('empty').mkdir()
    assert not as_path('gs://bucket/empty').exists()
    for refused in (
        lambda: path.open('a'),
        lambda: path.parent.rename('gs://bucket/c'),
        lambda: path.rename('gs://bucket/c'),
    ):
        with pytest.raises((NotImplementedError, FileNotFoundError)):
            refused()


def test_as_path_takes_a_bucket_and_leaves_paths_of_disks_as_they_are(root, monkeypatch):
    assert type(as_path('a/b')) is type(pathlib.Path('a/b')) and str(as_path('a//b/')) == 'a/b'
    path = as_path('gs://bucket/a') / 'b'
    assert isinstance(path, epath.Path) and str(path) == 'gs://bucket/a/b' == str(as_path(path).expanduser())
    for wrong in (pathlib.Path('gs://bucket/a'), 's3://bucket/a', 'https://a.b/c'):
        with pytest.raises(OSError, match='neither on a disk nor in a bucket of Google Cloud'):
            as_path(wrong)
    assert files.on_disk('a') == pathlib.Path('a')
    with pytest.raises(OSError, match='gs://bucket/a is in a bucket, where this cannot be written'):
        files.on_disk('gs://bucket/a')

    def missing(protocol):
        raise ImportError(protocol)

    monkeypatch.setattr(fsspec, 'get_filesystem_class', missing)
    with pytest.raises(OSError, match=r"gs://bucket/a needs the package gcsfs: pip install 'detzoo\[gcs\]'"):
        as_path('gs://bucket/a')


def test_new_file_appears_in_a_bucket_when_it_is_whole(root):
    with files.new_file('gs://bucket/a/b.txt') as scratch:
        scratch.write_text('new')
        assert not root.exists()
    with pytest.raises(KeyError), files.new_file('gs://bucket/a/b.txt') as scratch:
        scratch.write_text('newer')
        raise KeyError
    assert (root / 'a' / 'b.txt').read_text() == 'new' and [path.name for path in (root / 'a').iterdir()] == ['b.txt']


def test_move_folder_writes_the_last_file_last_and_removes_it_first(root, tmp_path, monkeypatch):
    target, calls = as_path('gs://bucket/data'), []
    for name in ('put_file', 'rm_file'):
        method = getattr(Bucket, name)

        def noted(self, *paths, name=name, method=method, **kwargs):
            calls.append((name, pathlib.PurePath(paths[-1]).name))
            return method(self, *paths, **kwargs)

        monkeypatch.setattr(Bucket, name, noted)

    def move(names, **options):
        with files.incomplete_folder(target.parent) as scratch:
            (scratch / 'new' / 'sub').mkdir(parents=True)
            for name in names:
                (scratch / 'new' / name).write_text(name)
            files.move_folder(scratch / 'new', target, last='a', **options)

    move(['b', 'a', 'sub/c'])
    assert calls[-1] == ('put_file', 'a') and {name for _, name in calls} == {'a', 'b', 'c'}
    with pytest.raises(FileExistsError, match='gs://bucket/data'):
        move(['b'])
    calls.clear()
    move(['d', 'a'], overwrite=True)
    assert calls[0] == ('rm_file', 'a') and calls[-1] == ('put_file', 'a')
    assert sorted(map(str, files.files_below(target))) == ['gs://bucket/data/a', 'gs://bucket/data/d']
    files.rename_folder(target, as_path('gs://bucket/other'), 'a')
    assert sorted(map(str, files.files_below(as_path('gs://bucket')))) == ['gs://bucket/other/a', 'gs://bucket/other/d']
    with (
        pytest.raises(ValueError, match='gs://bucket/other exists and is not empty'),
        files.new_folder('gs://bucket/other'),
    ):
        pass


def test_check_writable_writes_into_the_bucket(root, monkeypatch):
    files.check_writable('gs://bucket/a', 'never said')
    assert not any(path.is_file() for path in root.rglob('*'))

    def refused(self, path, *args, **kwargs):
        raise RuntimeError(f'Forbidden: {path}')

    monkeypatch.setattr(Bucket, '_open', refused)
    with pytest.raises(OSError, match=r'cannot write into gs://bucket/a \(gs://.*: Forbidden: .*\): take another'):
        files.check_writable('gs://bucket/a', 'take another')


def test_data_prepared_in_a_bucket_are_those_of_a_disk(root, tmp_path, toy, monkeypatch):
    """array_record reads buckets in C++, past the fake: the files of the records are compared, and none is read."""

    def example(record):
        (tmp_path / record['file_name']).write_bytes(record['image'])
        thing = dict(id=7, bbox=[1, 1 / 3, 5, 6], area=30.0, label=1, is_crowd=False, segmentation='')
        keys = 'image_id', 'file_name', 'height', 'width'
        image = {'image': tmp_path / record['file_name'], 'objects': [thing]}
        return {key: record[key] for key in keys} | image

    examples = [example(record) for record in toy(3).records]
    splits = {'train': prepare.Split(examples, []), 'validation': prepare.Split(examples[:2], [])}
    written, put_file = [], Bucket.put_file
    monkeypatch.setattr(Bucket, 'put_file', lambda self, *paths: (written.append(paths[1]), put_file(self, *paths)))
    for folder in (tmp_path / 'disk', as_path('gs://bucket/data')):
        prepare.write('birds', {3: 'hen', 8: 'egg'}, splits, folder, annotations='toy', overwrite=False)
    assert written[-1] == 'gs://bucket/data/birds/1.0.0/dataset_info.json'
    files_of = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files_of(root / 'data/birds/1.0.0') == files_of(tmp_path / 'disk/birds/1.0.0')
    on_disk = catalog.open_dataset('birds', 'validation', tmp_path / 'disk')
    monkeypatch.setattr(records.Records, '__getitem__', None)
    in_bucket = catalog.open_dataset('birds', 'validation', 'gs://bucket/data')
    truth = records.ground_truth(in_bucket)
    assert truth == records.ground_truth(on_disk) and len(truth['images']) == len(in_bucket.records) == 2
    assert in_bucket._replace(records=None) == on_disk._replace(records=None)
    (root / 'data/birds/1.0.0' / records.DESCRIPTION).unlink()  # as if it was cut while it was written
    with pytest.raises(DataError, match="no data set 'birds' in gs://bucket/data"):
        catalog.open_dataset('birds', 'validation', 'gs://bucket/data')
