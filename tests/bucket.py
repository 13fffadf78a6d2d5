"""A bucket of Google Cloud Storage that lies in a folder, and refuses what a bucket refuses.

What Python does there (epath, fsspec) goes through `Bucket`. TensorStore, by which Orbax writes arrays, has its own way to
buckets in C++; it is given the folder instead. So tests with it tell nothing of the network, of permissions, or of that way.
"""

import contextlib
import os
import pathlib
import shutil

import fsspec
from etils.epath import backend
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint._src.path import gcs_utils


class Bucket(AbstractFileSystem):
    """Objects under long names: a folder is there as long as an object is in it."""

    protocol = 'gcs', 'gs'
    cachable = False
    root: pathlib.Path  # the folder of all buckets

    def _place(self, path):
        return self.root / self._strip_protocol(path)

    def _entry(self, place):
        name = place.relative_to(self.root).as_posix()
        if place.is_file():
            return {'name': name, 'size': place.stat().st_size, 'type': 'file'}
        if any(path.is_file() for path in place.rglob('*')):
            return {'name': name, 'size': 0, 'type': 'directory'}
        raise FileNotFoundError(name)

    def info(self, path, **kwargs):
        return self._entry(self._place(path))

    def ls(self, path, detail=True, **kwargs):
        found, place = [self.info(path)], self._place(path)
        if place.is_dir():
            found = []
            for child in sorted(place.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    found.append(self._entry(child))
        return found if detail else [entry['name'] for entry in found]

    def mkdir(self, path, create_parents=True, **kwargs):
        """Makes nothing, since there are no folders."""

    makedirs = mkdir

    def mv(self, path1, path2, **kwargs):
        raise NotImplementedError(f'{path1}: a bucket renames nothing')

    def cp_file(self, path1, path2, **kwargs):
        self._place(path2).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._place(path1), self._place(path2))

    def rm_file(self, path):
        if self._place(path).is_file():
            self._place(path).unlink()

    def _open(self, path, mode='rb', **kwargs):
        if mode not in ('rb', 'wb'):
            raise NotImplementedError(f'{path}: a bucket has no mode {mode}')
        if mode == 'rb':
            self.info(path)
            return open(self._place(path), 'rb')
        return NewObject(self._place(path))


class NewObject:
    """An object that appears when it is closed."""

    def __init__(self, place):
        place.parent.mkdir(parents=True, exist_ok=True)
        self._place, self._scratch = place, place.with_name(f'.{place.name}.part')
        self._file = open(self._scratch, 'wb')

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if not self._file.closed:
            self._file.close()
            os.replace(self._scratch, self._place)


@contextlib.contextmanager
def buckets_in(root, patch):
    """Makes gs://NAME the folder NAME in a folder, until the block ends.

    Args:
        root: the folder.
        patch: a `pytest.MonkeyPatch`.
    """
    patch.setattr(Bucket, 'root', root, raising=False)
    patch.setattr(gcs_utils, 'get_bucket', lambda name: None)  # asks whether the bucket has real folders

    def kvstore(path):
        name, inside = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
        return {'driver': 'file', 'path': f'{root}/{name}/{inside}'}

    patch.setattr(gcs_utils, 'get_kvstore_for_gcs', kvstore)
    try:
        for protocol in Bucket.protocol:
            fsspec.register_implementation(protocol, Bucket, clobber=True)
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()
        yield
    finally:
        for protocol in Bucket.protocol:
            _registry.pop(protocol, None)
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()
