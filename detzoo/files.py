"""Files and folders that are written whole or not at all.

new_file          -> a path to write to, whose file then takes the place of another
incomplete_folder -> a folder to write into, removed at the end, whatever the end is
check_writable    -> an error before the work instead of after it
"""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path to write to; its file moves to `path` when the block ends, and is removed if the block fails.

    Raises:
        OSError: it cannot be written. The error names the file, which the system's own error of a full disk does not.
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
    """Gives a hidden folder to write into, and removes it when the block ends, by SIGTERM or SIGINT too.

    Args:
        parent: where it is made; made itself if missing.

    Raises:
        OSError: nothing can be written there.
    """
    with _signals_raise(), contextlib.ExitStack() as stack:
        with _said(parent, 'choose another folder'):
            pathlib.Path(parent).mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix='.incomplete-', dir=parent))
        yield pathlib.Path(scratch)


def check_writable(folder: str | os.PathLike, remedy: str) -> None:
    """Makes a folder if it is missing, and creates and removes a temporary file in it.

    Args:
        folder: any.
        remedy: what to do where this fails, for the message.

    Raises:
        OSError: nothing can be written there.
    """
    with _said(folder, remedy):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _said(folder: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Makes errors of a block say that nothing can be written into the folder, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot write into {folder} ({error.strerror}): {remedy}') from error


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise SystemExit in a block, where they would just end the process: it is left as by an error."""
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
