"""Locks on folders, and errors that say what to do when the disk is full."""

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
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns the system's errors while a file is written into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        raise error if isinstance(error, StorageError) else failed(path, error) from error


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder for this process until the block ends; the folder is made if missing.

    The kernel's lock (flock) ends with the process, however it ends; the text in the file `lock` only names the owner. Hosts that
    share the folder by NFS respect it too. On a file system without locks a warning is shown instead.

    Raises:
        InUseError: another process holds the folder; the message names it.
        StorageError: the folder cannot be made, or the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f'cannot make the folder {folder}: {error.strerror}; take another one') from error
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
    """Locks an open file until it is closed; returns False if another open file, of any process, has the lock."""
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
