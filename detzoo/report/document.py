"""A document of sections, written as Markdown and as a page.

    Paragraph, Items, Verbatim, Table, Drawing, Gallery, Chooser: blocks of a Section
      -> `to_markdown`; `to_html`, one file with figures and pictures inside

It knows nothing of detectors and sweeps.
"""

import base64
import html
import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from detzoo.report import plots
from detzoo.sweeps.store import read_file

TEMPLATE = pathlib.Path(__file__).with_name('template.html')


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


def to_markdown(title: str, written: Sequence[Section], folder: pathlib.Path) -> str:
    """Writes a report as Markdown, with relative links to figures and pictures in the folder where it is to lie."""
    parts = [f'# {_md(title)}', '\n'.join(f'- [{section.title}](#{section.anchor})' for section in written)]
    for section in written:
        parts.append(f'## {section.title}')
        parts += [text for block in section.blocks if (text := _block_to_markdown(block, folder))]
    return '\n\n'.join(parts) + '\n'


def _block_to_markdown(block: Any, folder: pathlib.Path) -> str:
    match block:
        case Paragraph(text):
            return _md(text)
        case Items(texts):
            return '\n'.join(f'- {_md(text)}' for text in texts)
        case Verbatim(text):
            return f'```text\n{text}\n```'
        case Drawing(name, caption, alt, _):
            return f'![{_md(alt)}](figures/{quote(name)}.svg)\n\n*{_md(caption)}*'
        case Table():
            return f'*{_md(block.caption)}*\n\n{_md_table(block)}'
        case Gallery(title, panels):
            cells = [f'![{_md(panel.alt)}]({quote(panel.path.relative_to(folder).as_posix())})' for panel in panels]
            lines = [[_md(panel.caption) for panel in panels], ['---'] * len(panels), cells]
            return f'### {_md(title)}\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return ''  # a Chooser: there are no scripts in Markdown


def _md_table(table: Table) -> str:
    lines = [list(map(_md, table.columns)), ['---' if words else '---:' for words in _words(table)]]
    for number, row in enumerate(table.rows):
        cells = [f'**{_md(cell.text)}**' if cell.best else _md(cell.text) for cell in map(_cell, row)]
        if number in table.notes:
            cells[0] += f' ({_md(table.notes[number])})'
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _md(text: str) -> str:
    """Escapes what Markdown or HTML would take for marks, but for code; a bar would end a cell even there."""
    code_or_not = text.replace('\n', ' ').split('`')
    for index in range(0, len(code_or_not), 2):
        code_or_not[index] = re.sub(r'([*\[\]\\])', r'\\\1', html.escape(code_or_not[index], quote=False))
    return '`'.join(code_or_not).replace('|', '\\|')


def to_html(title: str, written: Sequence[Section], drawn: Mapping[str, str]) -> str:
    """Writes a report as one page, with all figures and pictures inside.

    Args:
        title: of the page.
        written: its sections.
        drawn: {name of a Drawing: its SVG file}.
    """
    contents = '\n'.join(
        f'<li><a href="#{section.anchor}">{html.escape(section.title)}</a></li>' for section in written
    )
    body = []
    for section in written:
        blocks = '\n'.join(
            _block_to_html(block, f'{section.anchor}-{number}', drawn) for number, block in enumerate(section.blocks)
        )
        heading = f'<h2 id="{section.anchor}">{html.escape(section.title)}</h2>'
        body.append(f'<section aria-labelledby="{section.anchor}">\n{heading}\n{blocks}\n</section>')
    template = string.Template(TEMPLATE.read_text(encoding='utf-8'))
    return template.substitute(title=html.escape(title), contents=contents, body='\n'.join(body))


def _block_to_html(block: Any, name: str, drawn: Mapping[str, str]) -> str:
    """Writes a block; name is for its id, drawn as for `to_html`."""
    match block:
        case Paragraph(text):
            return f'<p>{_inline(text)}</p>'
        case Items(texts):
            return '<ul>' + ''.join(f'<li>{_inline(text)}</li>' for text in texts) + '</ul>'
        case Verbatim(text):
            return f'<pre tabindex="0"><code>{html.escape(text)}</code></pre>'
        case Drawing(file, caption, alt, _):
            label = f'<svg role="img" aria-label="{html.escape(alt)}" '
            image = plots.inline(drawn[file], name).replace('<svg ', label, 1)
            return (
                f'<figure class="drawing">\n{_scroll(image, name, "card")}\n'
                f'<figcaption id="{name}">{_inline(caption)}</figcaption>\n</figure>'
            )
        case Table():
            return _html_table(block, name)
        case Gallery(title, panels):
            pictures = '\n'.join(map(_html_panel, panels))
            return f'<h3 id="{name}">{_inline(title)}</h3>\n{_scroll(pictures, name, "gallery")}'
        case Chooser(runs):
            return _html_chooser(runs)
    raise TypeError(f'no block: {block!r}')


def _html_table(table: Table, name: str) -> str:
    """Writes a table in a container of its own, that scrolls below the caption."""
    kinds = [' class="words"' if words else '' for words in _words(table)]
    head = ''.join(f'<th scope="col"{kind}>{_inline(column)}</th>' for column, kind in zip(table.columns, kinds))
    rows = []
    for number, row in enumerate(table.rows):
        first, *rest = map(_cell, row)
        cells = ''.join(f'<td{kind}>{_html_cell(cell, numeric=not kind)}</td>' for cell, kind in zip(rest, kinds[1:]))
        rows.append(f'<tr><th scope="row" class="words">{_inline(first.text)}</th>{cells}</tr>')
        if number in table.notes:
            note = f'<td class="note" colspan="{len(kinds)}">{_inline(table.notes[number])}</td>'
            rows.append(f'<tr>{note}</tr>')
    caption = f'<summary id="{name}">{{}}</summary>' if table.folded else f'<figcaption id="{name}">{{}}</figcaption>'
    box = '<details open class="folded">{}</details>' if table.folded else '<figure class="table">{}</figure>'
    body = '\n'.join(rows)
    return box.format(
        f'\n{caption.format(_inline(table.caption))}\n'
        + _scroll(
            f'<table aria-labelledby="{name}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>',
            name,
        )
        + '\n'
    )


def _scroll(content: str, labelled_by: str, *kinds: str) -> str:
    """Puts what may be too wide into a container that scrolls, by keys too."""
    classes = ' '.join(['scroll', *kinds])
    return f'<div class="{classes}" tabindex="0" role="group" aria-labelledby="{labelled_by}">\n{content}\n</div>'


def _html_cell(cell: Cell, numeric: bool) -> str:
    text = _inline(cell.text)
    if numeric:
        text = re.sub(r'(?<![\w.<&-])-(?=\d)', '\u2212', text)  # a minus is as wide as a plus
    if cell.best:
        return f'<strong>{text}</strong>'
    return f'<span class="faint">{text}</span>' if cell.faint else text


def _html_panel(panel: Panel) -> str:
    """Writes a picture with its bytes."""

    def read() -> tuple[tuple[int, int], bytes]:
        with Image.open(panel.path) as image:
            return image.size, panel.path.read_bytes()

    (width, height), data = read_file(panel.path, read)
    source = f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'
    image = f'<img src="{source}" alt="{html.escape(panel.alt)}" width="{width}" height="{height}" decoding="async">'
    button = f'<button type="button" class="enlarge">{image}</button>'
    return f'<figure class="panel">{button}<figcaption>{_inline(panel.caption)}</figcaption></figure>'


def _html_chooser(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes two lists of runs and an empty table that the page's script fills; without scripts it stays hidden."""

    def choice(name: str, label: str, selected: int) -> str:
        options = ''.join(
            f'<option{" selected" if index == selected else ""}>{html.escape(run)}</option>'
            for index, run in enumerate(runs)
        )
        return f'<label>{label} <select id="{name}">{options}</select></label>'

    configs = json.dumps(runs, sort_keys=True).replace('<', '\\u003c')
    heads = ''.join(f'<th scope="col" class="words" id="head-{run}"></th>' for run in 'ab')
    table = (
        f'<table aria-labelledby="chosen">\n<thead><tr><th scope="col" class="words">config key</th>{heads}</tr></thead>\n'
        '<tbody id="differing"></tbody>\n</table>'
    )
    return (
        '<div id="chooser" hidden>\n<p>Which keys of their configs differ between any two runs:</p>\n'
        f'<p class="choices">{choice("run-a", "Run", 0)} {choice("run-b", "and run", 1)}</p>\n'
        f'<p id="chosen" aria-live="polite"></p>\n{_scroll(table, "chosen")}\n'
        f'<script type="application/json" id="configs">{configs}</script>\n</div>'
    )


def _inline(text: str) -> str:
    """Escapes text, and marks what stands between backticks as code."""
    parts = html.escape(text).split('`')
    for index in range(1, len(parts), 2):
        parts[index] = f'<code>{parts[index]}</code>'
    return ''.join(parts)


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _words(table: Table) -> list[bool]:
    """Says which columns hold words; the first one names the rows."""
    return [index == 0 or column in table.words for index, column in enumerate(table.columns)]
