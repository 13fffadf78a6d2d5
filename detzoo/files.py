"""Files and folders that are written complete or not at all.

new_file, write_text   a file, which may replace another one
new_folder             a folder that appears when it is complete
incomplete_folder      a hidden folder, always removed at the end: what is complete is moved out of it
move_folder            a finished folder to its place; a folder that it replaces stays if that fails
check_writable, check_new_folder   errors before the work instead of after it
unpacked               a gzipped file, whose size is bounded
"""

import contextlib
import gzip
import io
import os
import pathlib
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path to write to; its file moves to `path` when the block ends, and is removed if the block fails.

    Raises:
        OSError: the file cannot be written. The error names it, which the system's own error of a full disk does not.
    """
    path = pathlib.Path(path)
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
        parent: folder in which it is made; made too if missing.

    Raises:
        OSError: nothing can be written into the parent.
    """
    with _signals_raise(), contextlib.ExitStack() as stack:
        with _cannot_write(parent, 'choose another folder'):
            pathlib.Path(parent).mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix='.incomplete-', dir=parent))
        yield pathlib.Path(scratch)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a folder to write into, which appears at `path` when the block ends, and not at all if it fails.

    Raises:
        ValueError: there is something at the path.
        OSError: nothing can be written there.
    """
    path = pathlib.Path(path)
    check_new_folder(path)
    with incomplete_folder(path.parent) as scratch:
        written = scratch / path.name  # with the user's permissions; those of `scratch` are stricter
        written.mkdir()
        yield written
        move_folder(written, path)


def move_folder(source: pathlib.Path, target: pathlib.Path, *, overwrite: bool = False) -> None:
    """Moves a finished folder to its place.

    Args:
        source: the folder, inside an `incomplete_folder` on the same disk.
        target: its place.
        overwrite: replace a folder in its place; that one stays if this fails.

    Raises:
        OSError: there is something in its place, or it cannot be written.
    """
    replaced = source.with_name(f'{source.name}.replaced')
    try:
        if overwrite and target.exists():
            target.rename(replaced)
        source.rename(target)
    finally:
        if replaced.exists() and not target.exists():  # cut short between the two
            replaced.rename(target)


def check_new_folder(path: pathlib.Path) -> None:
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
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


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
        raise OSError(f'cannot write into {folder} ({error.strerror}): {remedy}') from error


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
