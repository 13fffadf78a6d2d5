"""The page of a data set: whole, with all its sections, and flags that training accepts."""

import html
import re
import shlex

import pytest
from drawn_sweep import Page

from detzoo.config import read_config, to_json

SECTIONS = (
    'Summary',
    'What to set',
    'Splits',
    'Classes',
    'Sizes',
    'What the config keeps',
    'Anchors',
    'Images',
    'Training samples',
    'Duplicates',
)


@pytest.fixture(scope='module')
def config_flag(tiny_config, tmp_path_factory):
    """A file with the tiny RetinaNet's config, as a flag."""
    file = tmp_path_factory.mktemp('config') / 'toy.py'
    text = to_json(tiny_config())
    file.write_text(f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({text!r})\n')
    return f'--config={file}'


@pytest.fixture(scope='module')
def browsed(config_flag, run_script, tmp_path_factory):
    """The folder of the page."""
    folder = tmp_path_factory.mktemp('browse')
    done = run_script('browse', config_flag, '--config.seed=3', '--config.data.max_boxes=2', f'--output={folder}')
    assert done.code == 0, done.stderr
    assert done.stdout.split() == [str(folder / 'index.html')]
    return folder


def test_browse_writes_one_page_that_loads_nothing(browsed):
    assert [path.name for path in browsed.iterdir()] == ['index.html']
    text = (browsed / 'index.html').read_text(encoding='utf-8')
    page = Page(text)
    anchors = ['#' + title.lower().replace(' ', '-') for title in SECTIONS]
    assert [target for target in page.attributes('href') if target in anchors] == anchors
    assert re.findall(r'https?://', text) == [] and '@import' not in text
    assert {source[:23] for source in page.attributes('src')} == {'data:image/jpeg;base64,'}
    pictures = [tag for tag, _ in page.elements].count('img')
    assert pictures == 6 + 6 + 12 + 12  # of both splits, training samples, worst objects
    assert pictures == len(page.attributes('alt', 'img')) and all(page.attributes('alt', 'img'))
    assert [tag for tag, _ in page.elements].count('svg') == 3


def test_browse_tells_what_is_dropped(browsed):
    text = Page((browsed / 'index.html').read_text(encoding='utf-8')).text
    assert re.search(r'training drops \d+ of 5\d objects', text) and 'data.max_boxes is 2' in text
    assert 'No two images have the same bytes' in text
    assert '20 images' in text and '10 images' in text and 'anchors, as suggested' in text


def test_browse_suggests_flags_that_training_takes(browsed, run_script, tmp_path, linear):
    text = (browsed / 'index.html').read_text(encoding='utf-8')
    command = html.unescape(re.search('<pre tabindex="0"><code>(.*?)</code>', text, re.DOTALL)[1])
    words = shlex.split(command.replace('\\\n', ''))  # as a shell joins lines
    assert words[:2] == ['detzoo', 'train'] and '--config.seed=3' in words
    assert sum(word.startswith('--config.data.max_boxes=') for word in words) == 1  # not the 2 that was given
    flags = [word for word in words[2:] if not word.startswith('--workdir=')]
    done = run_script('train', *flags, '--config.training.steps=1', f'--workdir={tmp_path}/run')
    assert done.code == 0, done.stderr
    assert 'WARNING' not in done.stderr
    config = read_config(tmp_path / 'run' / 'config.json')
    assert config.data.max_boxes == 8 and config.data.canvases != ((64, 64),) and config.seed == 3
    assert config.model.anchor_sizes != ((12.0,), (20.0,), (32.0,), (48.0,), (64.0,))


def test_browse_says_what_is_wrong_in_one_line(config_flag, run_script, tmp_path):
    done = run_script('browse', config_flag, '--config.data.name=birds', f'--output={tmp_path}/page')
    assert done.code == 1 and "no data set 'birds'" in done.stderr and not (tmp_path / 'page').exists()
