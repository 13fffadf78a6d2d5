"""A document as one HTML page, with figures and pictures inside: `template.html`, filled in by Jinja, which escapes all text."""

import base64
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from detzoo.files import AnyPath
from detzoo.report import plots
from detzoo.report.document import Section
from detzoo.sweeps.store import read_file


def to_html(title: str, written: Sequence[Section], drawn: Mapping[str, str]) -> str:
    """Writes a document as one page.

    Args:
        title: title of the page.
        written: sections of the page.
        drawn: {name of a Drawing: its SVG file}.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(inline=_inline, kind=_kind, minus=_minus, jpeg=_jpeg)
    environment.globals['svg'] = lambda name, label, prefix: _svg(drawn[name], label, prefix)
    return environment.get_template('template.html').render(title=title, sections=written)


def _kind(block: Any) -> str:
    """Names the class of a block."""
    return type(block).__name__


def _inline(text: str) -> Markup:
    """Escapes text, and marks words between backticks as code."""
    parts = [escape(part) for part in text.split('`')]
    parts[1::2] = [Markup('<code>{}</code>').format(part) for part in parts[1::2]]
    return Markup('').join(parts)


def _minus(text: str) -> str:
    """Writes the hyphen before a number as a minus, which is as wide as a plus."""
    return re.sub(r'(?<![\w.-])-(?=\d)', '\u2212', text)


def _svg(file: str, label: str, prefix: str) -> Markup:
    """Turns an SVG file into an element with a label for those who cannot see it; prefix: prefix of its ids."""
    start = Markup('<svg role="img" aria-label="{}" ').format(label)
    return Markup(plots.inline(file, prefix).replace('<svg ', start, 1))


class _Jpeg(NamedTuple):
    """A picture as the source of an <img>, and its size in pixels."""

    source: str
    width: int
    height: int


def _jpeg(path: AnyPath) -> _Jpeg:
    """Reads a picture.

    Raises:
        ValueError: it cannot be read.
    """

    def read() -> _Jpeg:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return _Jpeg(f'data:image/jpeg;base64,{base64.b64encode(data).decode()}', *image.size)

    return read_file(path, read)
