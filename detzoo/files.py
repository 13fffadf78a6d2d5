"""Files and folders that are written complete or not at all, on a disk or in a bucket.

as_path, on_disk       text -> a path, of a disk or of a bucket, or of a disk alone
new_file, write_text   a file, which may replace another one
new_folder             a folder that appears when it is complete
incomplete_folder      a hidden folder, always removed at the end: what is complete is moved out of it
move_folder            a finished folder to its place; a folder that it replaces stays if that fails
copy_folder, rename_folder, remove_folder, entries, files_below
check_writable, check_new_folder   errors before the work instead of after it
unpacked               a gzipped file, whose size is bounded

A bucket (gs://) holds whole objects under long names. An object appears when it is complete, but nothing appends to it or locks
it, and what looks like a folder cannot be renamed. So files are written on this machine's disk and copied whole. A folder in a
bucket appears file by file; one of them, which the caller names, comes last and says that the others are there.
"""

import contextlib
import errno
import gzip
import io
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import uuid
import zlib
from collections.abc import Iterator

import fsspec
from etils import epath

AnyPath = pathlib.Path | epath.Path  # of a disk, or of a bucket
_BUCKET = 'gs://'


def as_path(path: str | os.PathLike) -> AnyPath:
    """Makes a path of a disk, or of a bucket if it begins with gs://.

    Raises:
        OSError: it is a URL of another kind; or it begins with gs://, and the package that reads buckets is not installed.
    """
    text = os.fspath(path)
    if not in_bucket(text):
        if re.match('(gs|s3|az|https?):/', text):  # pathlib makes one slash of two
            raise OSError(
                f'{text} is neither on a disk nor in a bucket of Google Cloud: give a path, or gs://BUCKET/PATH as text'
            )
        return pathlib.Path(path)
    try:
        fsspec.get_filesystem_class('gcs')
    except ImportError as error:
        raise OSError(f"{text} needs the package gcsfs: pip install 'detzoo[gcs]'") from error
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False  # others write there too
    return epath.Path(text)


def on_disk(path: str | os.PathLike) -> pathlib.Path:
    """Makes a path of a disk.

    Raises:
        OSError: it is in a bucket, or a URL of another kind.
    """
    if in_bucket(path):
        raise OSError(f'{path} is in a bucket, where this cannot be written: give a folder on a disk')
    return as_path(path)


def absolute(path: AnyPath) -> AnyPath:
    """Makes a path one from the root; that of a bucket is."""
    return path if in_bucket(path) else path.absolute()


def in_bucket(path: str | os.PathLike) -> bool:
    """Tells whether a path is in a bucket."""
    return os.fspath(path).startswith(_BUCKET)


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path to write to; its file moves to `path` when the block ends, and is removed if the block fails.

    Raises:
        OSError: the file cannot be written. The error names it, which the system's own error of a full disk does not.
    """
    path = as_path(path)
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            scratch = pathlib.Path(folder, path.name)
            yield scratch
            copy_file(scratch, path)
        return
    scratch = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        if error.errno and (error.filename is None or str(error.filename) == str(scratch)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file: complete or not at all."""
    with new_file(path) as scratch:
        scratch.write_text(text, 'utf-8')


@contextlib.contextmanager
def incomplete_folder(parent: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a hidden folder to write into, and removes it when the block ends, by SIGTERM or SIGINT too.

    Args:
        parent: folder in which it is made; made too if missing. For a bucket it is made among this machine's temporary files.

    Raises:
        OSError: nothing can be written into the parent.
    """
    with _signals_raise(), contextlib.ExitStack() as stack:
        with _cannot_write(parent, 'choose another folder'):
            as_path(parent).mkdir(parents=True, exist_ok=True)
            place = None if in_bucket(parent) else parent
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix='.incomplete-', dir=place))
        yield pathlib.Path(scratch)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, last: str = '') -> Iterator[pathlib.Path]:
    """Yields a folder to write into, which appears at `path` when the block ends, and not at all if it fails.

    Args:
        path: where it appears.
        last: see `move_folder`.

    Raises:
        ValueError: there is something at the path.
        OSError: nothing can be written there.
    """
    path = as_path(path)
    check_new_folder(path)
    with incomplete_folder(path.parent) as scratch:
        written = scratch / path.name  # with the user's permissions; those of `scratch` are stricter
        written.mkdir()
        yield written
        move_folder(written, path, last=last)


def move_folder(source: pathlib.Path, target: AnyPath, *, overwrite: bool = False, last: str = '') -> None:
    """Moves a finished folder to its place.

    Args:
        source: the folder, inside an `incomplete_folder` of the target's parent.
        target: its place.
        overwrite: replace a folder in its place; that one stays if this fails, but not in a bucket.
        last: name of the file without which the folder is none: in a bucket it is removed first, and written last.

    Raises:
        OSError: there is something in its place, or it cannot be written.
    """
    if in_bucket(target):
        if target.exists() and not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        copy_folder(source, target, last)
        return
    replaced = source.with_name(f'{source.name}.replaced')
    try:
        if overwrite and target.exists():
            target.rename(replaced)
        source.rename(target)
    finally:
        if replaced.exists() and not target.exists():  # cut short between the two
            replaced.rename(target)


def copy_folder(source: AnyPath, target: AnyPath, last: str = '') -> None:
    """Copies a folder, which replaces one in its place: all of it appears at once, or in a bucket file by file.

    Args:
        source: the folder.
        target: its copy.
        last: name of the files that say that others are there: in a bucket they are written after those.
    """
    if in_bucket(target):
        remove_folder(target, last)
        for file in sorted(files_below(source), key=lambda file: (file.name == last, -len(file.parts))):
            copy_file(file, target / file.relative_to(source).as_posix())
        return
    scratch = target.with_name(f'{target.name}.tmp')
    shutil.rmtree(scratch, ignore_errors=True)  # of a copy that was cut short
    shutil.copytree(source, scratch)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def remove_folder(path: AnyPath, marker: str = '') -> None:
    """Removes a folder with all that is in it.

    Args:
        path: the folder.
        marker: name of the file without which the folder is none: in a bucket it goes first.
    """
    if not in_bucket(path):
        shutil.rmtree(path)
        return
    if marker:
        (path / marker).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)


def rename_folder(path: AnyPath, target: AnyPath, marker: str = '') -> None:
    """Renames a folder; in a bucket its files are copied, and then removed.

    Args:
        path: the folder.
        target: where nothing is.
        marker: see `remove_folder`.
    """
    if not in_bucket(path):
        path.rename(target)
        return
    copy_folder(path, target, marker)
    remove_folder(path, marker)


def entries(folder: AnyPath) -> list[AnyPath]:
    """Lists what is in a folder, in no order; nothing if the folder, or its bucket, is missing."""
    if not in_bucket(folder):
        return list(folder.glob('*'))
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """Yields the files in a folder and in all folders below it."""
    if not in_bucket(folder):
        yield from (path for path in folder.rglob('*') if path.is_file())
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def check_new_folder(path: AnyPath) -> None:
    """Checks that there is nothing at a path, or an empty folder.

    Raises:
        ValueError: there is something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f'{path} exists and is not empty: take another folder')


def check_writable(folder: str | os.PathLike, remedy: str) -> None:
    """Makes a folder if it is missing, and creates and removes a temporary file in it.

    Args:
        folder: folder to write into.
        remedy: end of the error message: what the user can do.

    Raises:
        OSError: nothing can be written into the folder.
    """
    with _cannot_write(folder, remedy):
        as_path(folder).mkdir(parents=True, exist_ok=True)
        if in_bucket(folder):
            probe = as_path(folder) / f'.writable-{uuid.uuid4().hex}'
            write_text(probe, '')
            probe.unlink()
        else:
            tempfile.TemporaryFile(dir=folder).close()


def copy_file(source: AnyPath, target: epath.Path) -> None:
    """Copies a file into a bucket, from a disk or from a bucket; it appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    system = fsspec.filesystem('gcs')
    copy = system.cp_file if in_bucket(source) else system.put_file
    try:
        copy(str(source), str(target))
    except OSError:
        raise
    except Exception as error:  # packages for buckets have errors of their own
        raise OSError(f'{target}: {error}') from error


def unpacked(data: bytes) -> bytes:
    """Unpacks gzip, to at most 200 times its size, or 64 MiB: a small file may unpack to more than memory holds.

    Raises:
        ValueError: it is no gzip, was cut short, or unpacks to more.
    """
    most, text = max(2**26, 200 * len(data)), io.BytesIO()  # JSON needs a tenth
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(2**20):
                text.write(chunk)
                if text.tell() > most:
                    raise ValueError(f'it unpacks to more than {most} bytes')
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f'no whole gzip file: {error}') from error
    return text.getvalue()


@contextlib.contextmanager
def _cannot_write(folder: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Turns errors of a block into one that says that the folder cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot write into {folder} ({error.strerror or error}): {remedy}') from error


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise SystemExit in a block, so that it cleans up; by themselves they just end the process."""
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGINT) if is_main and signal.getsignal(number) is signal.SIG_DFL
    ]

    def end(number: int, *_: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second one does not interrupt the cleaning
        sys.exit(128 + number)

    try:
        for number in numbers:
            signal.signal(number, end)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
