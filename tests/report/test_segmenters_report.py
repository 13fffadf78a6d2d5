"""Reports of sweeps with segmenters: their metrics, errors of counts, and pictures of classes of pixels."""

import json

from drawn_sweep import IMAGES, TRUTH, draw_panel, keep_groups, rendered, rewrite_sweep, table_after

from detzoo.report.findings import read_findings
from detzoo.report.values import label_of, value_of

NUMBERS = {
    'good_seed0': dict(PQ=0.4, mean_iou=0.7, count_error=0.25, count_bias=-0.25),
    'good_seed1': dict(PQ=0.5, mean_iou=0.6, count_error=0.35, count_bias=0.05),
    'bad_seed0': dict(PQ=0.2, mean_iou=0.65, count_error=1.5, count_bias=1.5),
    'bad_seed1': dict(PQ=0.2, mean_iou=0.65, count_error=0.5, count_bias=0.5),
}


def with_segments(store):
    """Gives the runs of two groups what a segmenter is judged by."""
    keep_groups(store, 'good', 'bad')
    rows = [row._replace(metrics=row.metrics | NUMBERS[row.run]) for row in store.results()]
    (store.folder / 'results.jsonl').write_text('\n'.join(json.dumps(row._asdict()) for row in rows))
    figure = dict(x='data.name', y='count_error', log=False, pareto=False, batch=1, ordered=True)
    rewrite_sweep(store, metrics=['AP', 'PQ', 'mean_iou', 'count_error', 'count_bias'], figures=[figure])
    for folder in (store.truth(TRUTH), store.results_of('good_seed0'), store.results_of('bad_seed0')):
        draw_panel(folder / 'pixels' / f'{IMAGES[0]}.jpg', [], 'pixels')


def test_report_tells_what_segmenters_are_judged_by(copy):
    with_segments(copy)
    text = rendered(copy)
    rows = table_after(text, 'Results')
    assert {name: rows['good'][name] for name in ('PQ', 'mean IoU', 'count error', 'count bias')} == {
        'PQ': '45.0 ± 7.1',
        'mean IoU': '65.0 ± 7.1',
        'count error': '0.30 ± 0.07',
        'count bias': '-0.10 ± 0.21',
    }
    results = text.split('\n## Results\n')[1].split('\n## ')[0]
    assert (
        '**0.30 ± 0.07**' in results and '**1.00' not in results and '**-0.10' not in results
    )  # the lowest error is best
    assert '**45.0' in results and 'mean absolute error of the number of objects' in results
    pictures = text.split('\n## Pictures\n')[1].split('\n## ')[0]
    assert f'### Pixels of image {IMAGES[0]}' in pictures and pictures.count('/pixels/') == 3
    assert 'masks are painted' in pictures


def test_figures_show_errors_of_counts_as_they_are(copy):
    with_segments(copy)
    findings = read_findings(copy.folder, 10)
    assert label_of(findings, 'count_error', 1) == 'count error, objects of an image'
    assert label_of(findings, 'mean_iou', 1) == 'mean IoU, %' and label_of(findings, 'data.name', 1) == 'data'
    values = {group.name: value_of(findings, group, 'count_error', 1) for group in findings.groups}
    assert values == {'good': 0.3, 'bad': 1.0}


def test_report_of_detectors_has_no_pixels(markdown):
    assert 'Pixels of image' not in markdown and 'count error' not in markdown
