"""Tests of what a report says, against what is computed from the stored results."""

import json
import re
import shutil
import statistics as stdlib_statistics

import numpy as np
import pytest
from drawn_sweep import (
    IMAGES,
    NOISE,
    REASON,
    RESAMPLES,
    TRUTH,
    box_mask,
    keep_groups,
    rendered,
    rewrite_sweep,
    table_after,
)

from detzoo.evaluation import coco_metrics, read_detections, statistics, write_detections
from detzoo.report import comparisons
from detzoo.report.document import Cell
from detzoo.report.findings import read_findings
from detzoo.report.text import NOT, mark_best, p_value
from detzoo.report.values import error_bar, images_of_split


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
        assert row['p'] == p_value(test.p_value) and row['p, adjusted'] == p_value(p)
        assert row['verdict'] == ('different' if over == several else 'these networks differ')


def test_report_tells_what_is_over_images_only(markdown):
    assert 'Highest AP: good, 74.7 (95 % interval over images and trainings: ' in markdown
    assert '). good is distinguishable from bad (69.8 less). Over images only, the trained good is ' in markdown
    assert 'is unknown for 1 group with one seed (middle).' in markdown
    assert 'the interval is of AP, over images and trainings or, of one seed, images only.' in markdown
    assert 'Bars: the 95 % interval over images and trainings or, of one seed, images only.' in markdown
    assert '0.05 or more' in markdown and 'Nothing can be distinguishable' not in markdown


@pytest.mark.parametrize('most', [28, 2])  # pairs of a table; more are a matrix
def test_report_of_single_seeds_says_over_images_only_wherever_it_judges(copy, monkeypatch, most):
    monkeypatch.setattr(comparisons, 'PAIRS', most)
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
        assert {row['verdict'] for row in rows} <= {'these networks differ', NOT}
    else:
        assert all(cell == '–' or '†' in cell for row in rows for cell in list(row.values())[1:])


def test_bars_are_intervals_or_deviations_over_seeds(store):
    findings = read_findings(store.folder, 10)
    good, middle = (next(group for group in findings.groups if group.name == name) for name in ('good', 'middle'))
    for group in (good, middle):
        interval = findings.intervals[group.name]
        assert error_bar(findings, group, 'AP') == (100 * interval.low, 100 * interval.high)
    values = good.values('AP50')
    mean, deviation = stdlib_statistics.mean(values), stdlib_statistics.stdev(values)
    assert error_bar(findings, good, 'AP50') == pytest.approx((mean - deviation, mean + deviation))
    assert error_bar(findings, middle, 'AP50') == (None, None)


def test_report_of_several_seeds_alone_does_not_speak_of_networks(copy):
    keep_groups(copy, 'good', 'bad')
    text = rendered(copy)
    assert 'images only' not in text and 'networks' not in text and '†' not in text
    assert table_after(text, 'Comparisons')['bad − good']['verdict'] == 'different'


def test_report_marks_the_best_of_a_column(markdown):
    line = next(line for line in markdown.splitlines() if line.startswith('| good | 2 '))
    assert line.count('**') == 2 * 5  # five metrics
    rows = [['a', '1.0', '3'], ['b', '2.0', '3'], ['c', '2.0', '3'], ['d', '-', '3']]
    mark_best(rows, [[1.0, 3.0], [2.01, 3.0], [1.99, 3.0], [np.nan, 3.0]], [1, 2])
    assert [row[1].best for row in rows] == [False, True, True, False]  # what looks equal is equally good
    assert not any(isinstance(row[2], Cell) for row in rows)  # and no best where all are equal
    rows = [['1'], ['2']]
    mark_best(rows, [[1.0], [2.0]], [0], most=False)
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
    assert 'Nothing can be distinguishable here: 5 images and 120 permutations are too few for so many' in text
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
    assert 'Left out because the experiment no longer has them: bad_seed0 and bad_seed1.' in text
    assert text.count('bad') == 2


def test_report_of_masks_judges_only_who_has_them(copy):
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


def test_matrix_has_each_difference_with_both_signs(copy, monkeypatch):
    pairs = table_after(rendered(copy), 'Comparisons')
    monkeypatch.setattr(comparisons, 'PAIRS', 2)
    matrix = table_after(rendered(copy), 'Comparisons')
    assert list(matrix) == ['good', 'bad', 'middle'] and matrix['good']['good'] == '–'
    there, back = matrix['middle']['good'], matrix['good']['middle']
    assert there.startswith(pairs['middle − good']['difference in AP']) and there[0] == '-' and back[0] == '+'
    assert back[1:] == there[1:]


def test_images_of_split_counts_what_its_text_says():
    assert images_of_split('train[:400]') == 400
    assert images_of_split('train[100:400]') == 300
    assert images_of_split('train[:10]+validation[5:8]') == 13
    assert images_of_split('train') is images_of_split('train[:10%]') is images_of_split('train[5:]') is None


def test_report_reads_configs_of_older_versions(copy):
    """Torchvision's pasting of masks was implied by its training targets before it became a key."""
    keep_groups(copy, 'good', 'middle')
    stored = {'good': dict(mask_paste='torchvision'), 'middle': {}}
    rows = [
        row._replace(
            config=row.config
            | dict(model=row.config['model'] | dict(mask=dict(targets='average')), evaluation=stored[row.group])
        )
        for row in copy.results()
    ]
    (copy.folder / 'results.jsonl').write_text('\n'.join(json.dumps(row._asdict()) for row in rows))
    text = rendered(copy)
    assert 'mask_paste' not in text and '| middle_seed0 | `data.canvases` |' in text
