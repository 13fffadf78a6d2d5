"""Errors that a user can fix: a command prints the message, which names the file or key and the remedy.

`nearest` and `listed` are the words that such messages share.
"""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and what to do."""


class DataError(ValueError):
    """Data that can't be used; the message names the file or record and says what to do."""


class StorageError(OSError):
    """A file of a run could not be written; what was written before is whole."""


class InUseError(RuntimeError):
    """Another process writes to the folder or file."""


class FirstProcessError(RuntimeError):
    """The first process of a run ended with an error of its own, and the others with it."""


class RecompilationError(RuntimeError):
    """A function was traced for a shape that nobody announced."""


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
