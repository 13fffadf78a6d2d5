"""The errors that users can fix. A message names the file or the key, and the remedy; commands print it without a traceback.

`nearest` and `listed` are the words that such messages share.
"""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config cannot be used; the message names the key and the remedy."""


class DataError(ValueError):
    """Data cannot be used; the message names the file or record and the remedy."""


class StorageError(OSError):
    """A file of a run could not be written; earlier files are complete."""


class InUseError(RuntimeError):
    """Another process is writing to the folder or file."""


class FirstProcessError(RuntimeError):
    """The first process of a run ended with an error, and so do the others."""


class RecompilationError(RuntimeError):
    """A function would be compiled for more shapes than there are canvases."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Finds the known name that is most like another; there must be at least one."""
    return difflib.get_close_matches(name, known, 1, cutoff=0)[0]


def listed(words: Iterable[str], most: int | None = None) -> str:
    """Lists words: 'a, b and c'; where there are more than `most`, 'a, b and 7 more'."""
    words = list(words)
    if most is not None and len(words) > most:
        words = [*words[:most], f'{len(words) - most} more']
    *first, last = words or ['']
    return f'{", ".join(first)} and {last}' if first else last
