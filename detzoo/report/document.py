"""The parts of a document: sections of blocks, which `markdown` and `webpage` write.

    Paragraph, Items, Verbatim, Table, Drawing, Gallery, Chooser: blocks of a Section

Nothing here depends on detectors or sweeps.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from detzoo.files import AnyPath


class Paragraph(NamedTuple):
    """Text; words between backticks are code."""

    text: str


class Items(NamedTuple):
    texts: list[str]


class Verbatim(NamedTuple):
    text: str


class Cell(NamedTuple):
    """A cell of a table.

    best: whether it is the best of its column, and bold.
    faint: whether it is grey.
    """

    text: str
    best: bool = False
    faint: bool = False


class Table(NamedTuple):
    """A table.

    columns: heads of the columns; the first column names the rows.
    rows: cells, each a Cell or a str.
    words: columns that hold words instead of numbers, besides the first.
    notes: {number of a row: a note below it}.
    folded: whether a page with scripts shows it folded.
    """

    caption: str
    columns: list[str]
    rows: list[list[Any]]
    words: Sequence[str] = ()
    notes: Mapping[int, str] = {}
    folded: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """Returns the rows, with every cell as a Cell."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    @property
    def has_words(self) -> list[bool]:
        """Tells which columns hold words; the first one does, since it names the rows."""
        return [index == 0 or column in self.words for index, column in enumerate(self.columns)]


class Drawing(NamedTuple):
    """A figure, whose files are called `name`."""

    name: str
    caption: str
    alt: str
    figure: Figure


class Panel(NamedTuple):
    path: AnyPath
    caption: str
    alt: str


class Gallery(NamedTuple):
    """Pictures side by side, below a title."""

    title: str
    panels: list[Panel]


class Chooser(NamedTuple):
    """Shows the config keys in which two of these runs differ: {run: {config key: value}}. Only a page with scripts can show it."""

    runs: dict[str, dict[str, Any]]


class Section(NamedTuple):
    title: str
    blocks: list[Any]

    @property
    def anchor(self) -> str:
        return re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')
