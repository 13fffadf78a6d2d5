"""Tests of packed results: less to keep, and the same report."""

import re

import pytest
from drawn_sweep import RESAMPLES

from detzoo.report.judgement import read_judgement, write_judgement
from detzoo.report.pack import pack
from detzoo.sweeps.store import FINISHED, Store


@pytest.fixture(scope='module')
def packed(store, run_script, tmp_path_factory):
    """The reported store, packed."""
    folder = tmp_path_factory.mktemp('results') / 'drawn'
    arguments = f'--workdir={store.folder}', f'--output={folder}', f'--resamples={RESAMPLES}'
    done = run_script('dev/pack_results', *arguments)
    assert done.code == 0, done.stderr
    assert re.fullmatch(rf'{folder}: \d\d files, 0.\d\d MB\n', done.stdout)
    return Store(folder)


def without_pictures(markdown):
    """A report but for its pictures and their entries in the contents."""
    markdown = re.sub(r'^- \[(Pictures|Assignment)\].*\n', '', markdown, flags=re.M)
    return re.sub(r'## (Pictures|Assignment)\n.*?(?=^## |\Z)', '', markdown, flags=re.M | re.S)


def test_packed_results_render_to_the_same_report(store, packed):
    before, after = ((folder / 'report.md').read_text('utf-8') for folder in (store.folder, packed.folder))
    assert 'are not kept with these results' in after and '.jpg' not in after and '.jpg' in before
    assert without_pictures(after) == without_pictures(before) and len(without_pictures(after)) > 8000
    for path in (packed.folder / 'figures').iterdir():
        assert path.read_bytes() == (store.folder / 'figures' / path.name).read_bytes()


def test_packed_results_leave_out_what_is_large(store, packed):
    names = {path.relative_to(packed.folder).as_posix() for path in packed.folder.rglob('*') if path.is_file()}
    runs = [result.run for result in store.results() if result.status == FINISHED]
    expected = {'sweep.json', 'results.jsonl', 'costs.json', 'report.md', 'truth/drawn-validation/size.json'}
    expected |= {f'results/{run}/{name}' for run in runs for name in ('curves.json', 'judgement.json.xz')}
    assert {name for name in names if not name.startswith('figures/')} == expected
    figures = {path.name for path in (packed.folder / 'figures').glob('*.png')}
    assert figures == {'figure-1.png', 'figure-2.png', 'figure-3.png'}  # those that the experiment asks for


def test_a_judgement_is_written_as_it_was_read(packed, tmp_path):
    for path in packed.folder.rglob('*.xz'):
        write_judgement(tmp_path / path.name, read_judgement(path, 'bbox'))
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_judgement_that_does_not_serve_is_refused(packed, tmp_path):
    path = packed.results_of('good_seed0') / 'judgement.json.xz'
    with pytest.raises(ValueError, match='judges bbox, and the report asks for segm: pack the sweep again'):
        read_judgement(path, 'segm')
    (tmp_path / 'cut.xz').write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='cut.xz is damaged .*: restore it, or pack the sweep again'):
        read_judgement(tmp_path / 'cut.xz', 'bbox')


def test_pack_refuses_a_folder_that_is_not_empty(packed):
    with pytest.raises(ValueError, match='is not empty: take another folder'):
        pack(packed.folder, packed.folder)
