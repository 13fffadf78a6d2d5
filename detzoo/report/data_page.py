"""A data set as one page, seen through a config before training: `detzoo browse`.

config -> `look.look_at` -> Look -> `sections` -> [document.Section] -> one HTML file, figures and pictures inside
"""

import os
import pathlib
import re
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

import ml_collections

from detzoo.config import FROM_DATA, flatten
from detzoo.files import AnyPath, as_path, write_text
from detzoo.report import plots
from detzoo.report.data_counts import class_blocks, duplicate_blocks, kept_blocks, size_blocks, split_blocks
from detzoo.report.data_pictures import anchor_blocks, image_blocks, sample_blocks
from detzoo.report.document import Drawing, Items, Paragraph, Section, Table, Verbatim
from detzoo.report.look import Look, look_at
from detzoo.report.text import code
from detzoo.report.webpage import to_html
from detzoo.training.data_checks import summary, warnings


def write_page(config: ml_collections.ConfigDict, folder: str | os.PathLike, command: Sequence[str]) -> AnyPath:
    """Writes index.html into a folder.

    Args:
        config: a config; keys that are None are taken from the data.
        folder: the folder; made if missing.
        command: words of the training command, to which the page adds what it suggests.

    Returns:
        the file.

    Raises:
        ConfigError, DataError: the config or the data cannot be used.
    """
    look = look_at(config)
    path = as_path(folder) / 'index.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as pictures:  # which the page takes in
        written = sections(look, command, pathlib.Path(pictures))
        drawings = [block for section in written for block in section.blocks if isinstance(block, Drawing)]
        drawn = {drawing.name: plots.svg(drawing.figure) for drawing in drawings}
        title = f'{look.config.data.name}, as {look.config.model.name} would see it'
        write_text(path, to_html(title, written, drawn))
    return path


def sections(look: Look, command: Sequence[str], pictures: pathlib.Path) -> list[Section]:
    """Writes the sections of the page; those without content are left out.

    Args:
        look: what to show.
        command: words of the training command.
        pictures: folder for the pictures.
    """
    written = [
        Section('Summary', summary_blocks(look)),
        Section('What to set', advice_blocks(look, command)),
        Section('Splits', split_blocks(look)),
        Section('Classes', class_blocks(look)),
        Section('Sizes', size_blocks(look)),
        Section('What the config keeps', kept_blocks(look)),
        Section('Anchors', anchor_blocks(look, pictures)),
        Section('Images', image_blocks(look, pictures)),
        Section('Training samples', sample_blocks(look, pictures)),
        Section('Duplicates', duplicate_blocks(look)),
    ]
    return [section for section in written if section.blocks]


def summary_blocks(look: Look) -> list[Any]:
    """Counts both splits, and warns of what training would lose."""
    splits = look.train.annotations, look.validation.annotations
    lost = [re.sub(r'(--config\S+)', r'`\1`', line) for line in warnings(look.config, *splits)]
    heading = (
        'Training with this config would lose something:' if lost else 'Training with this config drops no object.'
    )
    return [Items(summary(*splits)), Paragraph(heading), *([Items(lost)] if lost else [])]


def advice_blocks(look: Look, command: Sequence[str]) -> list[Any]:
    """Compares the config with what suits the data, and writes the command that follows it."""
    now, then = dict(flatten(look.config)), dict(flatten(look.suggested))
    keys = [key for key in FROM_DATA if key in now and (now[key] != then[key] or key in look.taken)]
    if not keys:
        return [Paragraph('The canvas, `max_boxes` and the anchors of the config suit these data.')]
    rows = [
        [f'`{key}`', 'None' if key in look.taken else code(short(now[key])), code(short(then[key]))] for key in keys
    ]
    chosen = {f'--config.{key}' for key in keys}
    words = [word for word in command if word.partition('=')[0] not in chosen]
    flags = [f'--config.{key}={then[key]}' for key in keys]
    lines = [' '.join(map(shlex.quote, words)), *(f'    {shlex.quote(flag)}' for flag in flags)]
    if set(keys) <= set(look.taken):
        text = 'The config leaves these keys to the data, so training takes these values by itself; with flags they stay fixed:'
    else:
        text = 'The section on anchors compares both. To train with the values from the data:'
    columns = ['key', 'in the config', 'from the data']
    return [
        Table('Keys that depend on the data.', columns, rows, words=columns[1:]),
        Paragraph(text),
        Verbatim(' \\\n'.join(lines)),
    ]


def short(value: Any) -> str:
    """Writes a value with at most one digit after the point."""
    return re.sub(r'\d+\.\d+', lambda number: f'{float(number[0]):.1f}', str(value))
