"""What a document consists of: sections of blocks, which `markdown` and `webpage` write.

    Paragraph, Items, Verbatim, Table, Drawing, Gallery, Chooser: blocks of a Section

It knows nothing of detectors and sweeps.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure


class Paragraph(NamedTuple):
    """Text; what stands between backticks is code."""

    text: str


class Items(NamedTuple):
    texts: list[str]


class Verbatim(NamedTuple):
    text: str


class Cell(NamedTuple):
    """Of a table.

    best: of its column, in bold.
    faint: of little weight.
    """

    text: str
    best: bool = False
    faint: bool = False


class Table(NamedTuple):
    """A table.

    columns: their heads. The first names the rows.
    rows: of cells; a str is Cell(str).
    words: columns that hold words instead of numbers, besides the first.
    notes: {row: what is to be said of it}.
    folded: whether a page may fold it away, where it has scripts.
    """

    caption: str
    columns: list[str]
    rows: list[list[Any]]
    words: Sequence[str] = ()
    notes: Mapping[int, str] = {}
    folded: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a Cell."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    @property
    def has_words(self) -> list[bool]:
        """Whether each column holds words; the first one names the rows."""
        return [index == 0 or column in self.words for index, column in enumerate(self.columns)]


class Drawing(NamedTuple):
    """A figure; name is of its files."""

    name: str
    caption: str
    alt: str
    figure: Figure


class Panel(NamedTuple):
    path: pathlib.Path
    caption: str
    alt: str


class Gallery(NamedTuple):
    """Pictures side by side, below a title."""

    title: str
    panels: list[Panel]


class Chooser(NamedTuple):
    """What differs between two of these runs: {run: {config key: value}}. Only a page can ask."""

    runs: dict[str, dict[str, Any]]


class Section(NamedTuple):
    title: str
    blocks: list[Any]

    @property
    def anchor(self) -> str:
        return re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')
