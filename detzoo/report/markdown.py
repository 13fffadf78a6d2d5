"""A document as Markdown, with relative links to its figures and pictures."""

import html
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from detzoo.files import AnyPath
from detzoo.report.document import (
    Drawing,
    Gallery,
    Items,
    Paragraph,
    Section,
    Table,
    Verbatim,
)


def to_markdown(title: str, written: Sequence[Section], folder: AnyPath) -> str:
    """Writes a report as Markdown, with relative links to figures and pictures in the folder where it is to lie."""
    parts = [f'# {_md(title)}', '\n'.join(f'- [{section.title}](#{section.anchor})' for section in written)]
    for section in written:
        parts.append(f'## {section.title}')
        parts += [text for block in section.blocks if (text := _block_to_markdown(block, folder))]
    return '\n\n'.join(parts) + '\n'


def _block_to_markdown(block: Any, folder: AnyPath) -> str:
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
    lines = [list(map(_md, table.columns)), ['---' if words else '---:' for words in table.has_words]]
    for number, row in enumerate(table.cells):
        cells = [f'**{_md(cell.text)}**' if cell.best else _md(cell.text) for cell in row]
        if number in table.notes:
            cells[0] += f' ({_md(table.notes[number])})'
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _md(text: str) -> str:
    """Escapes the characters that Markdown or HTML would interpret. In code only bars are escaped, which would end a cell."""
    code_or_not = text.replace('\n', ' ').split('`')
    for index in range(0, len(code_or_not), 2):
        code_or_not[index] = re.sub(r'([*\[\]\\])', r'\\\1', html.escape(code_or_not[index], quote=False))
    return '`'.join(code_or_not).replace('|', '\\|')
