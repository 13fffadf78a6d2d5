"""Tests of a report as files: whole, escaped, the same again, and an error that says what is wrong."""

import json
import re
import shutil

from drawn_sweep import RESAMPLES, TRUTH, Page, keep_groups, rewrite_sweep
from PIL import Image

from detzoo.report import plots
from detzoo.report.document import Drawing
from detzoo.report.findings import read_findings
from detzoo.report.page import sections, write_report
from detzoo.report.webpage import to_html


def test_report_html_is_whole_and_has_all_it_points_to(page):
    ids = page.attributes('id')
    assert len(ids) == len(set(ids)) > 20
    pointed_to = {target.removeprefix('#') for target in page.attributes('href')} | set(
        page.attributes('aria-labelledby')
    )
    pointed_to |= {match for value in page.attributes('clip-path') for match in re.findall(r'url\(#(.+)\)', value)}
    assert pointed_to - set(ids) == set() and len(pointed_to) > 20
    assert all(target.startswith('#') for target in page.attributes('href'))
    for heading in (
        'Results',
        'Comparisons',
        'Training',
        'Errors',
        'Differences between runs',
        'Pictures',
        'Assignment',
    ):
        assert f'#{heading.lower().replace(" ", "-")}' in page.attributes('href')


def test_report_html_loads_nothing_and_describes_all_pictures(page, store):
    text = (store.folder / 'report.html').read_text(encoding='utf-8')
    assert re.findall(r'https?://', text) == [] and '@import' not in text
    assert {source[:23] for source in page.attributes('src')} == {'data:image/jpeg;base64,'}
    assert [tag for tag, _ in page.elements].count('img') == len(page.attributes('alt', 'img')) == 11
    assert all(page.attributes('alt', 'img'))
    figures = [of for tag, of in page.elements if tag == 'svg']
    assert len(figures) >= 6 and all(of['role'] == 'img' and of['aria-label'] for of in figures)


def test_report_markdown_links_to_files_that_exist(markdown, store):
    links = re.findall(r'\]\(([^)#]+)\)', markdown)
    assert len(links) == len(set(links)) > 15
    assert [link for link in links if not (store.folder / link).exists()] == []
    for link in links:
        if link.endswith('.svg'):
            with Image.open((store.folder / link).with_suffix('.png')) as picture:
                assert picture.size[0] == 1500


def differing(configs, a, b):
    """What the page's script compares."""
    return {key for key in configs[a] if json.dumps(configs[a][key]) != json.dumps(configs[b][key])}


def test_chooser_gives_exactly_the_keys_that_differ(page, markdown):
    configs = json.loads(page.script['configs'])
    assert differing(configs, 'good_seed0', 'good_seed1') == {'seed'}
    assert differing(configs, 'good_seed0', 'broken_seed0') == {'model.focal_gamma'}
    assert differing(configs, 'good_seed0', 'middle_seed0') == {'data.canvases'}
    keys = {'data.canvases', 'data.train_split', 'model.focal_gamma', 'optimizer.frozen'}
    assert differing(configs, 'bad_seed0', 'middle_seed0') == keys
    assert differing(configs, 'bad_seed1', 'bad_seed1') == set()
    assert configs['bad_seed0']['optimizer.frozen'] == '</script><b>' and '<' not in page.script['configs']
    lines = [line for line in markdown.splitlines() if line.startswith('| good_seed1 |')]
    assert lines == ['| good_seed1 | `seed` | `0` | `1` |']
    assert '| middle_seed0 | `data.canvases` | `[[128, 128]]` | `[[128, 128], [64, 128]]` |' in markdown


def test_report_without_optional_files_leaves_them_out(copy):
    keep_groups(copy, 'good', 'middle')
    rewrite_sweep(copy, figures=[], docstring='')
    (copy.folder / 'costs.json').unlink(missing_ok=True)
    for folder in [copy.truth(TRUTH), *(copy.folder / 'results').iterdir()]:
        shutil.rmtree(folder / 'panels', ignore_errors=True)
        shutil.rmtree(folder / 'assignment', ignore_errors=True)
        (folder / 'curves.json').unlink(missing_ok=True)
    path, _ = write_report(copy.folder, 10)
    page = Page(path.read_text(encoding='utf-8'))
    assert '<title>experiments/drawn.py</title>' in path.read_text(encoding='utf-8')
    targets = page.attributes('href')
    assert '#results' in targets and '#comparisons' in targets
    for missing in ('question', 'figures', 'training', 'cost-of-prediction', 'pictures', 'assignment'):
        assert f'#{missing}' not in targets


def test_report_of_odd_names_escapes_them(copy):
    odd = 'a<b>"|*$x$`'
    runs = [{**run, 'group': odd} if run['group'] == 'middle' else run for run in copy.sweep()['runs']]
    rewrite_sweep(copy, runs=runs)
    rows = [row._replace(group=odd) if row.group == 'middle' else row for row in copy.results()]
    (copy.folder / 'results.jsonl').write_text('\n'.join(json.dumps(row._asdict()) for row in rows))
    written = sections(read_findings(copy.folder, 10))
    drawings = [block for section in written for block in section.blocks if isinstance(block, Drawing)]
    page = Page(to_html(odd, written, {drawing.name: plots.svg(drawing.figure) for drawing in drawings}))
    assert 'b' not in {tag for tag, _ in page.elements}
    assert 'a<b>"|*$x$' in page.text and any('a<b>"|*$x$' in text for text in page.texts)
    assert any(odd in alt for alt in page.attributes('alt')) and any(odd in of for of in page.attributes('aria-label'))


def test_scripts_report_writes_the_same_bytes_again(copy, run_script):
    before = {path: path.read_bytes() for path in copy.folder.rglob('*') if path.is_file()}
    done = run_script('report', f'--workdir={copy.folder}', f'--resamples={RESAMPLES}')
    assert done.code == 0, done.stderr
    assert done.stdout.split() == [str(copy.folder / 'report.html'), str(copy.folder / 'report.md')]
    after = {path: path.read_bytes() for path in copy.folder.rglob('*') if path.is_file()}
    assert before.keys() == after.keys() and [path.name for path in before if before[path] != after[path]] == []


def test_scripts_report_says_what_is_wrong_in_one_line(copy, run_script, tmp_path):
    def error_of(folder):
        done = run_script('report', f'--workdir={folder}', '--resamples=10')
        assert done.code == 1 and done.stdout == ''
        (line,) = done.stderr.splitlines()
        assert line.startswith('error: ')
        return line

    assert 'holds no sweep' in error_of(tmp_path)
    path = copy.results_of('bad_seed1') / 'detections.json.gz'
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert f'{path} cannot be read' in error_of(copy.folder)
    path.write_bytes(b'[]')
    assert f'{path} cannot be read: ValueError: no whole gzip file' in error_of(copy.folder)
    path.unlink()
    assert str(path) in error_of(copy.folder)
    path.write_bytes(whole)
    (copy.folder / 'estimates.json').write_text('{')
    assert f'{copy.folder / "estimates.json"} cannot be read' in error_of(copy.folder)
    (copy.folder / 'estimates.json').unlink()
    (copy.folder / 'costs.json').write_text('[{"name": "good"}]')
    assert f'{copy.folder / "costs.json"} cannot be read' in error_of(copy.folder)
    (copy.folder / 'results.jsonl').write_text('{}\n')
    assert 'results.jsonl, line 1' in error_of(copy.folder)
    (copy.folder / 'sweep.json').write_text('[' * 100_000)
    assert f'{copy.folder / "sweep.json"} cannot be read' in error_of(copy.folder)
