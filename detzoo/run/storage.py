"""What a run needs of a disk: that no other run writes to the same folder, and an error that says what to do when it is full."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import IO

from tqdm.auto import tqdm

from detzoo.errors import InUseError, StorageError

LOCK = 'lock'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def failed(what: str | os.PathLike, error: Exception) -> StorageError:
    """Makes the error about a path, or a thing, that could not be written; tensorstore hides the system's error in its text."""
    hidden = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else hidden and int(hidden[1])
    reason = os.strerror(number) if number else f'{type(error).__name__}: {str(error)[:500]}'
    remedy = 'make room there' if number in _FULL else 'fix that'
    return StorageError(
        f'{what} could not be written: {reason}. Earlier checkpoints are whole: {remedy}, and start the same training again '
        'to go on from the newest of them'
    )


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an error of the system while a file is written into a StorageError that names it."""
    try:
        yield
    except OSError as error:
        raise error if isinstance(error, StorageError) else failed(path, error) from error


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder, and makes it if missing, for this training until the block or the process ends.

    The lock is the kernel's (flock) and dies with the process; the text in the file `lock` only says whose it is. It also holds
    between hosts that share the folder by NFS. A file system without locks is named in a warning.

    Raises:
        InUseError: another process holds the folder; the message says which.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f'cannot make the workdir {folder}: {error.strerror}; take another one') from error
    with writing(folder / LOCK):
        file = (folder / LOCK).open('a+')
    with file:
        if not lock(file):
            file.seek(0)
            owner = file.read().strip() or 'another process'
            raise InUseError(f'{folder} is in use by {owner}: wait until it ends, stop it, or take another folder')
        with writing(folder / LOCK):
            file.truncate(0)
            now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
            file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}\n')
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock(file: IO) -> bool:
    """Locks an open file until it is closed; False where another process, or this one by another open file, has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        tqdm.write(
            f'warning: {file.name} cannot be locked ({error.strerror}): take care that no other process trains there',
            file=sys.stderr,
        )
    return True
