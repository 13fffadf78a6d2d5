"""Tests of the report, on a small drawn store: nothing is trained."""

import html.parser
import json
import re
import shutil
import statistics as stdlib_statistics

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detzoo.evaluation import coco_metrics, read_detections, statistics, write_detections
from detzoo.report import page as report
from detzoo.report import plots
from detzoo.sweeps.store import FAILED, FINISHED, Result, Store

CLASSES = {3: 'cell', 8: 'nucleus', 9: 'debris'}
TRUTH = 'drawn-validation'
IMAGES = range(101, 113)
RESAMPLES = 60
REASON = 'XlaRuntimeError: RESOURCE_EXHAUSTED: <out> of memory | 8 GiB'
# Groups with their runs' noise (share of a box's size, of wrong classes and of missed objects), one for each seed.
NOISE = {'good': (0.03, 0.03), 'bad': (0.2, 0.2), 'middle': (0.1,)}


def draw_truth():
    """A COCO dict of 12 images with 4 to 6 objects each, small to large, and one crowd."""
    rng = np.random.RandomState(0)
    annotations = []
    for image in IMAGES:
        for _ in range(rng.randint(4, 7)):
            width, height = rng.uniform(15, 120, 2)
            box = [
                *(float(x) for x in rng.uniform(0, 260 - np.array([width, height]) / 2)),
                float(width),
                float(height),
            ]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(rng.choice(list(CLASSES))),
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    annotations[0]['iscrowd'] = 1
    images = [dict(id=image, width=320, height=320, file_name=f'{image}.png') for image in IMAGES]
    return dict(
        images=images, categories=[dict(id=i, name=name) for i, name in CLASSES.items()], annotations=annotations
    )


def perturb(truth, noise, seed):
    """Detections: the objects, moved, renamed or left out, and some that are on nothing."""
    rng = np.random.RandomState(seed)
    found = []
    for row in truth['annotations']:
        if rng.rand() > noise:
            x, y, w, h = row['bbox']
            dx, dy, dw, dh = rng.normal(0, noise, 4)
            category = row['category_id'] if rng.rand() > noise else int(rng.choice(list(CLASSES)))
            box = [float(v) for v in (x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh))]
            found.append(
                dict(image_id=row['image_id'], category_id=category, bbox=box, score=float(rng.uniform(0.3, 1)))
            )
        if rng.rand() < noise:
            box = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(20, 60, 2))]
            found.append(dict(image_id=row['image_id'], category_id=3, bbox=box, score=float(rng.uniform(0, 0.6))))
    return found


def config_of(group, seed):
    """Something like a config, with a list and a group of keys."""
    canvases = [[128, 128], [64, 128]] if group == 'middle' else [[128, 128]]
    gamma = {'good': 2.0, 'bad': 0.0, 'middle': 2.0, 'broken': 5.0}[group]
    return dict(
        seed=seed,
        data=dict(
            name='drawn',
            canvases=canvases,
            train_split='train[:400]' if group == 'bad' else 'train[:1600]',
            data_dir=None,
        ),
        model=dict(name='retinanet', focal_gamma=gamma, rpn=dict(samples=64)),
        training=dict(steps=1000),
        optimizer=dict(frozen='</script><b>' if group == 'bad' else ''),
    )


def cost_of(group, batch):
    """A row of costs.json; the better a group, the more it costs."""
    scale = {'good': 4.0, 'bad': 1.0, 'middle': 2.0}.get(group, 3.0) * batch
    shares = {'backbone': 0.005, 'heads': 0.0032, 'neck': -0.0002, 'post': 0.002}
    return dict(
        name=group,
        batch=batch,
        canvas=[64, 128],
        device='cpu (drawn)',
        dtype='float32',
        parameters=1_500_000,
        flops=1e9 * scale,
        peak_bytes=int(2**20 * (50 + 10 * scale)),
        compile_seconds=3.5,
        runs=50,
        p50_seconds=0.010 * scale,
        p90_seconds=0.012 * scale,
        network_p50_seconds=0.008 * scale,
        network_p90_seconds=0.009 * scale,
        post_p50_seconds=0.002 * scale,
        post_p90_seconds=0.003 * scale,
        stages=[
            dict(stage=stage, parameters=500_000, flops=2.5e8 * scale, peak_bytes=2**20 * 50, p50_seconds=share * scale)
            for stage, share in shares.items()
        ],
    )


def draw_panel(path, boxes, caption):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', (480, 480), '#9aa5b1')
    draw = ImageDraw.Draw(image)
    for x, y, w, h in boxes:
        draw.rectangle([1.5 * x, 1.5 * y, 1.5 * (x + abs(w)), 1.5 * (y + abs(h))], outline='#00e5ff', width=3)
    draw.text((8, 8), caption, 'black')
    image.save(path, quality=60)


def make_store(folder):
    """A sweep of `good` and `bad` with two seeds, `middle` with one, and `broken`, which failed."""
    store, truth = Store(folder), draw_truth()
    store.write_ground_truth(TRUTH, truth)
    planned = []
    runs = [(group, seed) for group, noises in NOISE.items() for seed in range(len(noises))] + [('broken', 0)]
    for group, seed in runs:
        planned.append(
            Result(
                run=f'{group}_seed{seed}',
                group=group,
                series='cross_entropy' if group == 'bad' else 'focal',
                status='waiting',
                reason='',
                config=config_of(group, seed),
                changes={},
                seed=seed,
                published={'good': {'AP': 34.0, 'AP50': 52.5}, 'bad': {'AP': 30.2}}.get(group, {}),
            )
        )
    sweep = dict(
        experiment='experiments/drawn.py',
        docstring='Does it help to see well?\n\n    python scripts/sweep.py --experiment=experiments/drawn.py\n\n'
        "The paper's answer: yes. Held fixed: `data` & all.\nVaried: eyes.\n",
        metrics=['AP', 'AP50'],
        figures=[
            dict(x='model.focal_gamma', y='AP', log=False, pareto=False, batch=1),
            dict(x='data.train_split', y='AP', log=True, pareto=False, batch=1),
            dict(x='seconds', y='AP', log=True, pareto=True, batch=1),
        ],
        runs=[run._asdict() for run in planned],
    )
    (store.folder / 'sweep.json').write_text(json.dumps(sweep))
    for index, run in enumerate(planned):
        if run.group == 'broken':
            store.write_result(run._replace(status=FAILED, reason=REASON, seconds=12.0))
            continue
        detections = perturb(truth, NOISE[run.group][run.seed], 100 + index)
        metrics = coco_metrics(truth, detections)
        folder = store.results_of(run.run)
        folder.mkdir(parents=True)
        write_detections(folder / 'detections.json.gz', detections)
        steps = np.arange(10, 1001, 10)
        curves = dict(
            training=dict(step=steps.tolist(), loss=(0.2 + np.exp(-steps / 200)).tolist()),
            validation=dict(step=[500, 1000], AP=[None, metrics['boxes']['AP']], loss=[0.5, 0.4]),
        )
        (folder / 'curves.json').write_text(json.dumps(curves))
        for image in IMAGES[:2]:
            draw_panel(
                folder / 'panels' / f'{image}.jpg',
                [row['bbox'] for row in detections if row['image_id'] == image],
                run.run,
            )
        draw_panel(folder / 'assignment' / 'anchors.jpg', [row['bbox'] for row in truth['annotations'][:5]], 'anchors')
        store.write_result(
            run._replace(
                status=FINISHED,
                versions={'python': '3.11', 'jax': '0.10.2', 'commit': 'abc'},
                device={'kind': 'cpu', 'count': 1},
                steps=1000,
                seconds=300.0 + 60 * index,
                parameters=1_500_000,
                metrics=metrics['boxes'],
                per_class=metrics['per_class'],
                truth=TRUTH,
            )
        )
    (store.folder / 'costs.json').write_text(json.dumps([cost_of(group, batch) for group in NOISE for batch in (1, 8)]))
    for image in IMAGES[:2]:
        boxes = [row['bbox'] for row in truth['annotations'] if row['image_id'] == image]
        draw_panel(store.truth(TRUTH) / 'panels' / f'{image}.jpg', boxes, 'truth')
    return store


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    """A reported store; to be copied before it is changed."""
    made = make_store(tmp_path_factory.mktemp('sweep'))
    report.write_report(made.folder, RESAMPLES)
    return made


@pytest.fixture(scope='module')
def page(store):
    return Page((store.folder / 'report.html').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def markdown(store):
    return (store.folder / 'report.md').read_text(encoding='utf-8')


@pytest.fixture
def copy(store, tmp_path):
    """A store of one's own."""
    return Store(shutil.copytree(store.folder, tmp_path / 'copy'))


class Page(html.parser.HTMLParser):
    """An HTML page: its elements, whether they nest, and its text."""

    VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.script = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f'{tag} has an attribute twice'
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == 'script':
            self.script[self.open[-1][1].get('id')] = data
        elif self.open and self.open[-1][0] != 'style':
            self.texts.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.texts).split())

    def attributes(self, name, tag=None):
        return [of[name] for which, of in self.elements if name in of and tag in (None, which)]


def table_after(markdown, heading, skip=0):
    """The cells of a Markdown table of a section, head first, bold marks removed: {first cell: {head: cell}}."""
    section = markdown.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    tables = re.findall(r'(?:^\|.*\n?)+', section, re.M)
    head, _, *rows = [
        [cell.strip(' *') for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in tables[skip].splitlines()
    ]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def rendered(store):
    """The Markdown of a store as it is now."""
    return report.to_markdown('title', report.sections(report.read_findings(store.folder, 10)), store.folder)


def rewrite_sweep(store, **changes):
    path = store.folder / 'sweep.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def keep_groups(store, *names):
    """Forgets the runs of other groups."""
    runs = [run for run in store.sweep()['runs'] if run['group'] in names]
    rewrite_sweep(store, runs=runs)
    kept = [json.dumps(row._asdict()) for row in store.results() if row.group in names]
    (store.folder / 'results.jsonl').write_text('\n'.join(kept))


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
            assert Image.open((store.folder / link).with_suffix('.png')).size[0] == 1500


def test_report_tells_the_metrics_of_the_stored_detections(markdown, page, store):
    truth, rows = store.ground_truth(TRUTH), table_after(markdown, 'Results')
    for group, noises in NOISE.items():
        evaluated = [
            coco_metrics(truth, read_detections(store.results_of(f'{group}_seed{seed}') / 'detections.json.gz'))[
                'boxes'
            ]
            for seed in range(len(noises))
        ]
        for name, head in (
            ('AP', 'AP'),
            ('AP50', 'AP50'),
            ('APs', 'AP small'),
            ('APm', 'AP medium'),
            ('APl', 'AP large'),
        ):
            values = [100 * metrics[name] for metrics in evaluated]
            expected = f'{stdlib_statistics.mean(values):.1f}'
            expected += f' ± {stdlib_statistics.stdev(values):.1f}' if len(values) > 1 else ''
            assert rows[group][head] == expected
            assert expected in page.text
    assert rows['good']['seeds'] == '2' and rows['good']['minutes'] == '5.5' and rows['good']['M params'] == '1.50'


def test_report_judges_by_the_statistics_of_the_stored_detections(markdown, store):
    truth = store.ground_truth(TRUTH)
    matches = {
        group: [
            statistics.match_images(
                truth, read_detections(store.results_of(f'{group}_seed{seed}') / 'detections.json.gz')
            )
            for seed in range(len(noises))
        ]
        for group, noises in NOISE.items()
    }
    several, one = 'images and trainings', 'images only'
    intervals = {
        'good': (statistics.crossed_interval(matches['good'], RESAMPLES), several),
        'bad': (statistics.crossed_interval(matches['bad'], RESAMPLES), several),
        'middle': (statistics.bootstrap(matches['middle'], RESAMPLES), one),
    }
    for name, (interval, over) in intervals.items():
        row = table_after(markdown, 'Results')[name]
        assert row['95 % interval'] == f'{100 * interval.low:.1f} to {100 * interval.high:.1f}' and row['over'] == over
    tests = {  # 120 permutations are 2 x 3 pairs / .05
        ('bad', 'good'): (statistics.crossed_test(matches['bad'], matches['good'], RESAMPLES), several),
        ('middle', 'good'): (statistics.paired_test(matches['middle'], matches['good'], RESAMPLES, 120), one),
        ('middle', 'bad'): (statistics.paired_test(matches['middle'], matches['bad'], RESAMPLES, 120), one),
    }
    adjusted = statistics.holm([test.p_value for test, _ in tests.values()])
    for ((a, b), (test, over)), p in zip(tests.items(), adjusted, strict=True):
        row = table_after(markdown, 'Comparisons')[f'{a} − {b}']
        assert row['difference in AP'] == f'{100 * test.difference:+.1f}'
        assert row['95 % interval'] == f'{100 * test.low:+.1f} to {100 * test.high:+.1f}' and row['over'] == over
        assert row['p'] == report.p_value(test.p_value) and row['p, adjusted'] == report.p_value(p)
        assert row['verdict'] == ('different' if over == several else 'these networks differ')


def test_report_tells_what_is_over_images_only(markdown):
    assert 'Highest AP: good, 74.7 (95 % interval over images and trainings: ' in markdown
    assert '). good is distinguishable from bad (69.8 less). Over images only, the trained good is ' in markdown
    assert 'is not known of the 1 group with one seed (middle).' in markdown
    assert 'the interval is of AP, over images and trainings or, of one seed, images only.' in markdown
    assert 'Bars: the 95 % interval over images and trainings or, of one seed, images only.' in markdown
    assert '0.05 or more' in markdown and 'Nothing can be distinguishable' not in markdown


@pytest.mark.parametrize('most', [28, 2])  # pairs of a table; more are a matrix
def test_report_of_single_seeds_says_over_images_only_wherever_it_judges(copy, monkeypatch, most):
    monkeypatch.setattr(report, 'PAIRS', most)
    rewrite_sweep(copy, runs=[run for run in copy.sweep()['runs'] if run['seed'] == 0])
    text = rendered(copy)
    judging = [line for line in text.splitlines() if re.search('interval|istinguishable|verdict|Differences in', line)]
    sentences = [line for line in judging if not line.startswith('|')]
    assert len(sentences) == 9 and [line for line in sentences if 'over images only' not in line.lower()] == []
    assert 'images and trainings' not in text
    assert {row['over'] for row in table_after(text, 'Results').values()} == {'images only', '–'}  # of `broken`
    rows = table_after(text, 'Comparisons').values()
    if most == 28:
        assert {row['over'] for row in rows} == {'images only'}
        assert {row['verdict'] for row in rows} <= {'these networks differ', report.NOT}
    else:
        assert all(cell == '–' or '†' in cell for row in rows for cell in list(row.values())[1:])


def test_bars_are_intervals_or_deviations_over_seeds(store):
    findings = report.read_findings(store.folder, 10)
    good, middle = (next(group for group in findings.groups if group.name == name) for name in ('good', 'middle'))
    for group in (good, middle):
        interval = findings.intervals[group.name]
        assert report._ends(findings, group, 'AP') == (100 * interval.low, 100 * interval.high)
    values = good.values('AP50')
    mean, deviation = stdlib_statistics.mean(values), stdlib_statistics.stdev(values)
    assert report._ends(findings, good, 'AP50') == pytest.approx((mean - deviation, mean + deviation))
    assert report._ends(findings, middle, 'AP50') == (None, None)


def test_report_of_several_seeds_alone_does_not_speak_of_networks(copy):
    keep_groups(copy, 'good', 'bad')
    text = rendered(copy)
    assert 'images only' not in text and 'networks' not in text and '†' not in text
    assert table_after(text, 'Comparisons')['bad − good']['verdict'] == 'different'


def test_report_marks_the_best_of_a_column(markdown):
    line = next(line for line in markdown.splitlines() if line.startswith('| good | 2 '))
    assert line.count('**') == 2 * 5  # five metrics
    rows = [['a', '1.0', '3'], ['b', '2.0', '3'], ['c', '2.0', '3'], ['d', '-', '3']]
    report._mark_best(rows, [[1.0, 3.0], [2.01, 3.0], [1.99, 3.0], [np.nan, 3.0]], [1, 2])
    assert [row[1].best for row in rows] == [False, True, True, False]  # what looks equal is equally good
    assert not any(isinstance(row[2], report.Cell) for row in rows)  # and no best where all are equal
    rows = [['1'], ['2']]
    report._mark_best(rows, [[1.0], [2.0]], [0], most=False)
    assert [row[0].best for row in rows] == [True, False]


def test_report_sets_published_values_beside_the_differences_to_the_first(markdown):
    rows = table_after(markdown, 'Results', skip=1)
    ap = {group: float(row['AP here'].split()[0]) for group, row in rows.items() if row['AP here'] != '–'}
    assert rows['good']['AP published'] == '34.0' and rows['bad']['AP published'] == '30.2 (-3.8)'
    assert float(rows['bad']['AP here'].split('(')[1][:-1]) == pytest.approx(ap['bad'] - ap['good'], abs=0.11)
    assert rows['bad']['AP50 published'] == rows['middle']['AP published'] == '–'


def test_report_counts_runs_and_gives_the_reason_of_a_failed_one(markdown, page):
    assert '5 of 6 runs finished, 1 failed.' in markdown and '5 of 6 runs finished, 1 failed.' in page.text
    assert page.text.count(REASON) == 2  # in the summary and in the table
    assert '| broken (broken\\_seed0 failed: `' in markdown.replace('_seed0', '\\_seed0')
    assert REASON.replace('|', '\\|') in markdown
    assert (
        table_after(markdown, 'Results')[f'broken (broken_seed0 failed: `{REASON}`)'.replace('|', '\\|')]['seeds']
        == '0 of 1'
    )


def test_report_says_the_experiment_and_how_it_was_made(markdown, page):
    assert markdown.startswith('# Does it help to see well?\n')
    assert "The paper's answer: yes. Held fixed: `data` &amp; all. Varied: eyes." in markdown
    assert 'Held fixed: data & all.' in page.text
    assert '```text\npython scripts/sweep.py --experiment=experiments/drawn.py\n```' in markdown
    rows = table_after(markdown, 'Setup')
    assert rows['devices']['value'] == '1 x cpu' and rows['commit']['value'] == 'abc'
    assert rows[f'validation data {TRUTH}']['value'].startswith('12 images, ')


def test_report_of_costs_tells_and_draws_them(markdown, page):
    rows = table_after(markdown, 'Results')
    assert [rows[group]['ms'] for group in ('good', 'bad', 'middle')] == ['40.0', '10.0', '20.0']
    assert [rows[group]['peak MiB'] for group in ('good', 'bad', 'middle')] == ['90.0', '60.0', '70.0']
    stages, costs = (table_after(markdown, 'Cost of prediction', skip) for skip in (0, 1))
    assert list(costs['middle'].values()) == [  # of its two rows the last
        'middle', '8', '64 x 128', '160.00', '192.00', '128.00', '144.00', '32.00', '48.00', '2.00', '210.0', '3.5',
    ]  # fmt: skip
    assert stages['good, backbone']['ms'] == '20.00' and stages['good, backbone']['% of time'] == '50'
    assert stages['good, neck']['ms'] == '-0.80' and len(stages) == 3 * 4
    names = [target for target in re.findall(r'\(figures/(.+)\.svg\)', markdown)]
    assert 'figure-3' in names and 'speed-accuracy' not in names  # the experiment asks for the same
    assert {'memory-accuracy', 'stages'} < set(names)
    assert any('good 74.71 at 40; bad 4.917 at 10' in label for label in page.attributes('aria-label'))


def test_report_of_estimates_calls_them_so(copy):
    row = dict(topology='v5e:2x4', images=16, chips=8, total_seconds=0.00125, flops=3e9, peak_bytes=2**21)
    rows = [
        {'name': name, **row, 'seconds': {'backbone': 0.001, 'post': 0.00025}} for name in ('middle', 'good', 'gone')
    ]
    (copy.folder / 'estimates.json').write_text(json.dumps(rows))
    table = table_after(rendered(copy), 'Cost of prediction', 2)
    assert list(table) == ['good', 'middle']  # in the order of groups
    assert list(table['good'].values()) == [
        'good',
        '8 x v5e:2x4',
        '2',
        '1.250',
        '3.00',
        '2.0',
        'backbone 1.000, post 0.250',
    ]
    assert 'as their compiler estimates it; nothing was measured' in rendered(copy)
    (copy.folder / 'costs.json').unlink()  # estimates alone
    assert list(table_after(rendered(copy), 'Cost of prediction')) == ['good', 'middle']


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
    path, _ = report.write_report(copy.folder, 10)
    page = Page(path.read_text(encoding='utf-8'))
    assert '<title>experiments/drawn.py</title>' in path.read_text(encoding='utf-8')
    targets = page.attributes('href')
    assert '#results' in targets and '#comparisons' in targets
    for missing in ('question', 'figures', 'training', 'cost-of-prediction', 'pictures', 'assignment'):
        assert f'#{missing}' not in targets


def test_report_of_one_run_has_nothing_to_compare(copy):
    keep_groups(copy, 'middle')
    text = rendered(copy)
    assert 'there is nothing to compare it with' in text
    assert '## Comparisons' not in text and '## Differences' not in text and 'Holm' not in text
    assert '1 of 1 run finished.' in text


def test_report_of_few_images_says_that_nothing_can_be_told_apart(copy, markdown):
    assert 'Nothing can be distinguishable here' not in markdown
    truth = copy.ground_truth(TRUTH)
    kept = list(IMAGES)[:5]  # the least p-value is 2 / 2^5
    copy.write_ground_truth(TRUTH, truth | {'images': [row for row in truth['images'] if row['id'] in kept]})
    for folder in (copy.folder / 'results').iterdir():
        path = folder / 'detections.json.gz'
        write_detections(path, [row for row in read_detections(path) if row['image_id'] in kept])
    assert 'Nothing can be distinguishable here' not in rendered(copy)  # over trainings there is something
    rewrite_sweep(copy, runs=[run for run in copy.sweep()['runs'] if run['seed'] == 0])
    text = rendered(copy)
    assert 'Nothing can be distinguishable here: for so many comparisons 5 images and 120 permutations' in text
    assert {row['verdict'] for row in table_after(text, 'Comparisons').values()} == {'not distinguishable'}


def test_report_of_no_finished_run_says_so(copy):
    (copy.folder / 'results.jsonl').unlink()
    text = rendered(copy)
    assert '0 of 6 runs finished, 6 did not run yet.' in text and 'Not run yet: good_seed0, good_seed1,' in text
    assert '## Precision and recall' not in text and '## Errors' not in text and 'Highest' not in text
    assert '| good_seed1 | `seed` |' in text  # the configs are known


def test_report_of_equal_detections_cannot_tell_them_apart(copy):
    keep_groups(copy, 'good', 'middle')
    for run in ('good_seed1', 'middle_seed0'):
        shutil.copy(copy.results_of('good_seed0') / 'detections.json.gz', copy.results_of(run))
    row = table_after(rendered(copy), 'Comparisons')['middle − good']
    assert (
        row['verdict'] == 'not distinguishable' and row['p, adjusted'] == '1.000' and row['difference in AP'] == '+0.0'
    )
    assert 'the trained good is not distinguishable from middle (0.0 less).' in rendered(copy)


def test_report_follows_the_experiment_as_it_is_now(copy):
    runs = [run | {'published': {'AP': 99.5}} for run in copy.sweep()['runs'] if run['group'] != 'bad']
    rewrite_sweep(copy, runs=runs)
    text = rendered(copy)
    assert table_after(text, 'Results', skip=1)['good']['AP published'] == '99.5'
    assert 'Left out, since the experiment has them no longer: bad_seed0 and bad_seed1.' in text
    assert text.count('bad') == 2


def test_report_of_masks_judges_only_who_has_them(copy):
    pytest.importorskip('pycocotools')
    keep_groups(copy, 'good', 'middle', 'bad')
    rewrite_sweep(copy, metrics=['mask_AP', 'mask_AP50', 'AP'])
    truth = copy.ground_truth(TRUTH)
    for row in truth['annotations']:
        row['segmentation'] = box_mask(row['bbox'], 1)
    copy.write_ground_truth(TRUTH, truth)
    results = []
    for result in copy.results():
        if result.group != 'bad':
            path = copy.results_of(result.run) / 'detections.json.gz'
            half = 0.55 if result.group == 'middle' else 1  # of an object: too little for a mask
            detections = [{**row, 'segmentation': box_mask(row['bbox'], half)} for row in read_detections(path)]
            write_detections(path, detections)
            masks = coco_metrics(truth, detections, ('bbox', 'segm'))['masks']
            result = result._replace(metrics={**result.metrics, **{f'mask_{k}': v for k, v in masks.items()}})
        results.append(result)
    (copy.folder / 'results.jsonl').write_text('\n'.join(json.dumps(result._asdict()) for result in results))
    text = rendered(copy)
    rows = table_after(text, 'Results')
    assert rows['bad']['mask AP'] == rows['bad']['95 % interval'] == '–' and rows['bad']['AP'] != '–'
    assert list(table_after(text, 'Comparisons')) == ['middle − good']
    assert 'Highest mask AP: good' in text and 'Points of mask AP50' in text
    ap = {name: float(rows[name]['mask AP'].split()[0]) for name in ('good', 'middle')}
    assert ap['middle'] < 10 < float(rows['middle']['AP'])
    difference = table_after(text, 'Comparisons')['middle − good']['difference in mask AP']
    assert float(difference) == pytest.approx(ap['middle'] - ap['good'], abs=0.11)
    assert 'Precision over recall of masks' in text
    areas = re.search('Areas below at IoU 0.50 and 0.75: (.*)[.]', text).group(1)
    ap50 = [f'{name} {rows[name]["mask AP50"].split()[0]}' for name in ('good', 'middle')]
    assert [area.split(' and ')[0] for area in areas.split('; ')] == ap50


def box_mask(box, share):
    """Run lengths of a rectangle in an image of 320 x 320, or of the share of it that lies above."""
    import pycocotools.mask

    x, y, w, h = (round(value) for value in box)
    mask = np.zeros((320, 320), np.uint8, order='F')
    mask[max(0, y) : max(1, round(y + share * h)), max(0, x) : max(1, x + w)] = 1
    run_lengths = pycocotools.mask.encode(mask)
    return {'size': run_lengths['size'], 'counts': run_lengths['counts'].decode()}


def test_report_of_odd_names_escapes_them(copy):
    odd = 'a<b>|*$x$`'
    runs = [{**run, 'group': odd} if run['group'] == 'middle' else run for run in copy.sweep()['runs']]
    rewrite_sweep(copy, runs=runs)
    rows = [row._replace(group=odd) if row.group == 'middle' else row for row in copy.results()]
    (copy.folder / 'results.jsonl').write_text('\n'.join(json.dumps(row._asdict()) for row in rows))
    sections = report.sections(report.read_findings(copy.folder, 10))
    drawings = [block for section in sections for block in section.blocks if isinstance(block, report.Drawing)]
    page = Page(report.to_html('title', sections, {drawing.name: plots.svg(drawing.figure) for drawing in drawings}))
    assert 'b' not in {tag for tag, _ in page.elements}
    assert 'a<b>|*$x$' in page.text and any('a<b>|*$x$' in text for text in page.texts)


def test_matrix_has_each_difference_with_both_signs(copy, monkeypatch):
    pairs = table_after(rendered(copy), 'Comparisons')
    monkeypatch.setattr(report, 'PAIRS', 2)
    matrix = table_after(rendered(copy), 'Comparisons')
    assert list(matrix) == ['good', 'bad', 'middle'] and matrix['good']['good'] == '–'
    there, back = matrix['middle']['good'], matrix['good']['middle']
    assert there.startswith(pairs['middle − good']['difference in AP']) and there[0] == '-' and back[0] == '+'
    assert back[1:] == there[1:]


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
    assert f'{path} cannot be read: BadGzipFile' in error_of(copy.folder)
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


def test_images_of_split_counts_what_its_text_says():
    assert report.images_of_split('train[:400]') == 400
    assert report.images_of_split('train[100:400]') == 300
    assert report.images_of_split('train[:10]+validation[5:8]') == 13
    assert (
        report.images_of_split('train')
        is report.images_of_split('train[:10%]')
        is report.images_of_split('train[5:]')
        is None
    )


def test_pareto_front_keeps_what_none_beats():
    points = [(3, 5), (1, 2), (2, 2), (2, 4), (4, 5), (3, 6), (0.5, 1)]
    assert plots.pareto_front(points) == [6, 1, 3, 5]  # (2, 2) costs more than (1, 2), (3, 5) finds less than (3, 6)
    assert plots.pareto_front([(1, 1), (1, 1)]) == [0] and plots.pareto_front([]) == []


def test_styles_give_a_series_one_hue_and_each_group_a_look_of_its_own():
    looks = plots.styles({'a1': 'a', 'a2': 'a', 'a3': 'a', 'b': 'b'})
    assert looks['a2'].color == plots.HUES[0].lower() and looks['b'].color == plots.HUES[1].lower()
    blues = [int(looks[name].color[1:], 16) for name in ('a1', 'a2', 'a3')]
    assert blues == sorted(blues) and len(set(blues)) == 3  # ever lighter
    assert (
        len({looks[name].marker for name in ('a1', 'a2', 'a3')}) == len({looks[f'a{i}'].line for i in (1, 2, 3)}) == 3
    )
    many = plots.styles({f'g{index}': f'g{index}' for index in range(56)})
    assert len({(look.color, look.marker) for look in many.values()}) == 56


def test_scatter_takes_words_and_zeros():
    looks = plots.styles({'a': 'a', 'b': 'a', 'c': 'c'})
    words = [plots.Point('a', 'a', 'relu', 1.0), plots.Point('b', 'a', 'gelu', 2.0), plots.Point('c', 'c', 'relu', 3.0)]
    figure = plots.scatter(words, looks, 'x', 'y', log=True, pareto=False)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ['relu', 'gelu']
    zero = [plots.Point('a', 'a', 0.0, 1.0), plots.Point('b', 'a', 1.0, 2.0, 1.5, 2.5)]
    assert plots.scatter(zero, looks, 'x', 'y', log=True, pareto=True).axes[0].get_xscale() == 'linear'
    equal = [plots.Point('a', 'a', 3, 1.0), plots.Point('b', 'a', 3, 2.0)]
    assert plots.scatter(equal, looks, 'x', 'y', log=True, pareto=False).axes[0].get_xscale() == 'linear'
    positive = [plots.Point('a', 'a', 100, 1.0), plots.Point('b', 'a', 1600, 2.0)]
    axes = plots.scatter(positive, looks, 'x', 'y', log=True, pareto=False).axes[0]
    assert axes.get_xscale() == 'log' and list(axes.get_xticks()) == [100, 1600]


def test_inline_svg_names_are_of_one_figure_and_text_is_text():
    points = [plots.Point('a $1$', 's', 1.0, 2.0)]
    figure = plots.scatter(points, plots.styles({'a $1$': 's'}), 'cost', 'AP, %', log=False, pareto=False)
    text = plots.inline(plots.svg(figure), 'mine')
    ids = re.findall(r' id="([^"]+)"', text)
    assert ids and all(name.startswith('mine-') for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(ids)
    assert '>a $1$</text>' in text and '>cost</text>' in text and '<style' not in text


def test_stage_bars_keep_the_order_of_stages():
    short, long = {'backbone': 2.0, 'heads': 1.0, 'post': 1.0}, {'backbone': 1.0, 'rpn': 2.0, 'heads': 1.0, 'post': 3.0}
    axes = plots.stage_bars({'one': short, 'two': long}, 'ms').axes[0]
    assert axes.get_legend_handles_labels()[1] == ['backbone', 'rpn', 'heads', 'post']
    ends = {bars.get_label(): [bar.get_x() + bar.get_width() for bar in bars] for bars in axes.containers}
    assert ends == {'backbone': [2, 1], 'rpn': [2, 3], 'heads': [3, 4], 'post': [4, 7]}
