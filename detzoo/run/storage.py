"""Locks on folders, logs that grow, and errors that say what to do when the disk is full."""

import contextlib
import datetime
import errno
import fcntl
import io
import os
import pathlib
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, BinaryIO

from tqdm.auto import tqdm

from detzoo.errors import InUseError, StorageError
from detzoo.files import AnyPath, copy_file, files_below, in_bucket, new_file, write_text

LOCK = 'lock'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def failed(what: str | os.PathLike, error: Exception) -> StorageError:
    """Makes the error about a file or folder that could not be written.

    Args:
        what: the path.
        error: what was raised; in tensorstore's errors the system's own one is hidden in the text.
    """
    hidden = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else hidden and int(hidden[1])
    reason = os.strerror(number) if number else f'{type(error).__name__}: {str(error)[:500]}'
    remedy = 'make room there' if number in _FULL else 'fix that'
    return StorageError(
        f'{what} could not be written: {reason}. Earlier checkpoints are whole: {remedy}, and start the same training again '
        'to go on from the newest of them'
    )


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Turns the system's errors while a file is written into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        raise error if isinstance(error, StorageError) else failed(path, error) from error


@contextlib.contextmanager
def held(folder: AnyPath) -> Iterator[None]:
    """Locks a folder for this process until the block ends; the folder is made if missing.

    The kernel's lock (flock) ends with the process, however it ends; the text in the file `lock` only names the owner. Hosts that
    share the folder by NFS respect it too. On a file system without locks a warning is shown instead, and so in a bucket; there it
    also names an owner that has not said that it ended.

    Raises:
        InUseError: another process holds the folder; the message names it.
        StorageError: the folder cannot be made, or the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f'cannot make the folder {folder}: {error.strerror}; take another one') from error
    if in_bucket(folder):
        with _claimed(folder / LOCK):
            yield
        return
    with writing(folder / LOCK):
        file = (folder / LOCK).open('a+')
    with file:
        if not lock(file):
            file.seek(0)
            owner = file.read().strip() or 'another process'
            raise InUseError(f'{folder} is in use by {owner}: wait until it ends, stop it, or take another folder')
        with writing(folder / LOCK):
            file.truncate(0)
            file.write(_owner())
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def turn(path: AnyPath) -> Iterator[None]:
    """Locks a file until the block ends, once nobody else has it; in a bucket, where nothing can be locked, nobody waits."""
    if in_bucket(path):
        yield
        return
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _claimed(path: AnyPath) -> Iterator[None]:
    """Writes the owner of a folder in a bucket into a file, and removes it at the end; it keeps nobody out."""
    before = path.read_text().strip() if path.exists() else ''
    warning = f'warning: {path.parent} is in a bucket, where nothing can be locked: make sure that no other process writes there'
    tqdm.write(warning + (f'; {before} has not said that it ended' if before else ''), file=sys.stderr)
    with writing(path):
        write_text(path, _owner())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _owner() -> str:
    """Names this process."""
    now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    return f'process {os.getpid()} on {socket.gethostname()} since {now}\n'


def open_log(path: AnyPath) -> BinaryIO:
    """Opens a file that grows, at its end; it is made if missing."""
    return Kept(path) if in_bucket(path) else path.open('a+b')


def store(file: BinaryIO) -> None:
    """Writes what a file of `open_log` holds to the disk, so that a crash of the machine loses nothing, or to the bucket."""
    if isinstance(file, Kept):
        file.store()
    else:
        file.flush()
        os.fsync(file.fileno())


class Kept(io.BytesIO):
    """A growing file of a bucket, to which nothing can be appended: it is kept in memory, and each time written whole."""

    def __init__(self, path: AnyPath):
        """Reads what is there."""
        super().__init__()
        self._path = path
        self.write(path.read_bytes() if path.exists() else b'')

    def write(self, data: bytes) -> int:
        """Adds to the end, wherever was read before."""
        self.seek(0, io.SEEK_END)
        return super().write(data)

    def store(self) -> None:
        """Writes the file."""
        with new_file(self._path) as scratch:
            scratch.write_bytes(self.getbuffer())


class Mirror:
    """A folder into which packages write that know disks only: itself, or for one in a bucket a folder that is copied there.

    path: where to write.
    """

    def __init__(self, folder: AnyPath):
        """Makes the folder, or that which is copied into it."""
        self._temporary = tempfile.TemporaryDirectory() if in_bucket(folder) else None
        self._folder, self.path = folder, pathlib.Path(self._temporary.name) if self._temporary else folder
        self.path.mkdir(parents=True, exist_ok=True)

    def store(self) -> None:
        """Copies the files into the bucket, whole."""
        for file in files_below(self.path) if self._temporary else ():
            copy_file(file, self._folder / file.relative_to(self.path).as_posix())

    def close(self) -> None:
        """Removes the folder that was copied."""
        if self._temporary:
            self._temporary.cleanup()


def lock(file: IO) -> bool:
    """Locks an open file until it is closed; returns False if another open file, of any process, has the lock."""
    if isinstance(file, Kept):
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        tqdm.write(
            f'warning: {file.name} cannot be locked ({error.strerror}): make sure that no other process writes there',
            file=sys.stderr,
        )
    return True
