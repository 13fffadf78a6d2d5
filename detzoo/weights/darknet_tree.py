"""Darknet's tree files: one class a line, a word without blanks and the line of its parent, counted from 0; -1 for a root.

n00002684 -1
n05220461 0
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from detzoo.core.hierarchy import make_tree

MAX_BYTES = 2**24  # a hundred times the tree of YOLO9000


class WordTree(NamedTuple):
    """A tree of classes.

    words: [K], a word for each class; in YOLO9000 WordNet's identifier.
    parents: [K], the index of each class's parent, -1 for a root.
    """

    words: tuple[str, ...]
    parents: tuple[int, ...]


def find_tree(cfg: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Finds the tree file that a .cfg file names: from its own folder, or the one above, where darknet is started.

    Raises:
        ValueError: there is no such file.
    """
    folder = pathlib.Path(cfg).absolute().parent
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            return path
    raise ValueError(f'{cfg}: tree={name}: there is no such file in {folder} or {folder.parent}: put it there')


def read_tree(path: str | os.PathLike[str]) -> WordTree:
    """Reads a tree file.

    Raises:
        ValueError: it is none, or no tree; the message names the line.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f'{path}: too large for a tree: over {MAX_BYTES} bytes')
    words, parents = [], []
    for number, line in enumerate(path.read_text('utf-8', errors='replace').splitlines(), 1):
        parts = line.split()
        if len(parts) != 2 or not parts[1].removeprefix('-').isdecimal() or len(parts[1]) > 9:
            raise ValueError(f'{path}, line {number}: {line[:40]!r} is not a word and the line of its parent')
        words.append(parts[0])
        parents.append(int(parts[1]))
    try:
        make_tree(parents)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return WordTree(tuple(words), tuple(parents))


def tree_text(names: Sequence[str], parents: Sequence[int]) -> str:
    """Writes the text of a tree file; blanks in names become underscores."""
    return ''.join(f'{"_".join(name.split())} {parent}\n' for name, parent in zip(names, parents, strict=True))


def distinct_names(names: Sequence[str], parents: Sequence[int]) -> tuple[str, ...]:
    """Adds the parent's name to a name that several classes of a tree have, and the line where that does not tell them apart.

    585 of YOLO9000's names stand for several classes: two of its sticks become 'stick (sports equipment)' and 'stick (lever)'.
    """
    twice = repeated(names)
    named = [
        f'{name} ({names[parent]})' if name in twice and parent >= 0 else name
        for name, parent in zip(names, parents, strict=True)
    ]
    twice = repeated(named)
    return tuple(f'{name}, line {line}' if name in twice else name for line, name in enumerate(named, 1))


def repeated(names: Iterable[str]) -> set[str]:
    """Finds the names that stand there more than once."""
    return {name for name, count in collections.Counter(names).items() if count > 1}
