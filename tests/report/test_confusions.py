"""What a report says of confusions and of confidence, against what is computed from the stored detections."""

import json
import lzma

import numpy as np
import pytest
from drawn_sweep import CLASSES, IMAGES, NOISE, TRUTH, table_after

from detzoo.evaluation import read_detections
from detzoo.evaluation.calibration import expected_calibration_error, pooled, reliability
from detzoo.evaluation.confusion import best_threshold, confusion_matrix
from detzoo.evaluation.statistics import match_images
from detzoo.report import confusions, matrices, plots, quality
from detzoo.report.confidence import confidence_blocks
from detzoo.report.confusions import confusion_blocks
from detzoo.report.findings import read_findings
from detzoo.report.judgement import judge, read_judgement, write_judgement
from detzoo.report.quality import class_blocks


@pytest.fixture(scope='module')
def findings(store):
    return read_findings(store.folder, 10)


def of_seeds(store, group):
    """The ground truth, and the detections of each seed of a group."""
    folders = [store.results_of(f'{group}_seed{seed}') for seed in range(len(NOISE[group]))]
    return store.ground_truth(TRUTH), [read_detections(folder / 'detections.json.gz') for folder in folders]


def test_report_tells_the_mean_confusions_of_the_seeds(store, findings, markdown):
    for group in NOISE:
        truth, seeds = of_seeds(store, group)
        thresholds = [best_threshold(match_images(truth, found)) for found in seeds]
        counts = np.mean(
            [confusion_matrix(truth, found, score_threshold=t) for found, t in zip(seeds, thresholds)], axis=0
        )
        confused = findings.confusions[group]
        np.testing.assert_array_equal(confused.counts, counts)
        assert confused.thresholds == thresholds and confused.class_names == list(CLASSES.values())
        row = table_after(markdown, 'Confusions')[group]
        objects = counts[:3].sum()
        assert row['right'] == f'{100 * np.trace(counts) / objects:.1f}'
        assert row['missed'] == f'{100 * counts[:3, 3].sum() / objects:.1f}'
        assert row['of another class'] == f'{100 * (counts[:3, :3].sum() - np.trace(counts)) / objects:.1f}'
        assert row['on background'] == f'{counts[3].sum() / len(IMAGES):.2f}'
        assert row['scores from'] == ', '.join(f'{threshold:.2f}' for threshold in thresholds)
    bad = findings.confusions['bad'].counts[:3, :3] * (1 - np.eye(3))
    true, found = np.unravel_index(bad.argmax(), bad.shape)
    section = markdown.split('\n## Confusions\n')[1].split('\n## ')[0]
    names = list(CLASSES.values())
    assert f'| bad | {names[true]} | {names[found]} | {bad.max():.1f} |' in section


def test_shares_are_of_objects_and_of_detections():
    counts = np.array([[6, 2, 2], [0, 0, 0], [2, 2, 0]])
    expected = [
        [0.6, 0.2, 0.2],
        [np.nan] * 3,
        [0.25, 0.5, np.nan],
    ]  # of 8 detections 2 on background, of 4 detections 2
    np.testing.assert_array_equal(confusions._shares(counts), expected)
    np.testing.assert_array_equal(confusions._shares(np.zeros((2, 2))), np.full((2, 2), np.nan))


def test_report_tells_the_calibration_of_all_seeds_together(store, findings, markdown):
    for group in NOISE:
        truth, seeds = of_seeds(store, group)
        expected = pooled([reliability(match_images(truth, found)) for found in seeds])
        found = findings.reliability[group]
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
        row = table_after(markdown, 'Confidence')[group]
        assert row['expected calibration error'] == f'{100 * expected_calibration_error(expected):.1f}'
        assert row['precision'] == f'{100 * expected.hits.sum() / expected.counts.sum():.1f}'
        assert row['mean confidence'] == f'{100 * expected.scores.sum() / expected.counts.sum():.1f}'
        assert row['detections an image'] == f'{expected.counts.sum() / len(seeds) / len(IMAGES):.1f}'


def test_reliability_curves_are_drawn_in_percent(findings):
    curve = dict(confidence=np.array([0.1, np.nan, 0.9]), precision=np.array([0.2, np.nan, 1.0]), share=np.ones(3) / 2)
    left, right = plots.reliability_curves({'good': curve}, findings.looks).axes
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[10, 20], [np.nan, np.nan], [90, 100]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[10, 50], [np.nan, 50], [90, 50]])


def test_judgements_of_an_older_detzoo_are_reported_without(copy):
    for group, noises in NOISE.items():
        truth, seeds = of_seeds(copy, group)
        for seed in range(len(noises)):
            path = copy.results_of(f'{group}_seed{seed}') / 'judgement.json.xz'
            write_judgement(path, judge(truth, seeds[seed], 'bbox'))
            if group != 'good':
                content = json.loads(lzma.decompress(path.read_bytes()))
                del content['confusion'], content['reliability']
                path.write_bytes(lzma.compress(json.dumps(content).encode()))
                older = read_judgement(path, 'bbox')
                assert older.confusion is None and older.reliability is None
                write_judgement(path, older)
                assert json.loads(lzma.decompress(path.read_bytes())) == content
            (path.parent / 'detections.json.gz').unlink()
    findings = read_findings(copy.folder, 10)
    assert list(findings.confusions) == list(findings.reliability) == ['good'] and len(findings.errors) == 3
    assert [len(write(findings)) for write in (confusion_blocks, confidence_blocks)] == [4, 3]
    none = findings._replace(confusions={}, reliability={})
    assert confusion_blocks(none) == confidence_blocks(none) == []


def test_more_classes_than_a_figure_holds_are_listed_only(findings, monkeypatch):
    names = {getattr(block, 'name', '') for write in (confusion_blocks, class_blocks) for block in write(findings)}
    assert {'confusions-1', 'classes'} <= names
    for module in (confusions, quality):
        monkeypatch.setattr(module, 'DRAWN', 2)
    blocks = confusion_blocks(findings)
    assert blocks[1].text == '3 classes are too many for a matrix.' and len(blocks) == 4
    assert not any(hasattr(block, 'figure') for block in blocks + class_blocks(findings))


@pytest.mark.parametrize('count', [3, 80])
def test_a_matrix_names_every_class_so_that_it_can_be_read(count):
    names = [f'class number {index}' for index in range(count)]
    shares = np.eye(count + 1) * 0.7
    shares[0, -1], shares[1, 0], shares[2] = 0.3, 0.004, np.nan  # less than half a percent is not drawn
    figure = matrices.confusions({'a': shares}, [*names, 'background'], [*names, 'missed'])
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*names, 'background']
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*names, 'missed']
    assert (
        len(axes.collections[0].get_paths()) == count + 1
    )  # the diagonal without the row that has no objects, and the missed ones
    assert [text.get_text() for text in axes.texts] == ([] if count > 24 else ['70', '30', '70', '70'])
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 + 0.5 for above, below in zip(boxes, boxes[1:]))  # no name lies on another
    assert min(tick.get_fontsize() for tick in axes.get_yticklabels()) > 7
    assert figure.get_size_inches()[0] == (12 if count > 24 else 7.5)


def test_a_page_scrolls_a_wide_figure():
    pages = [plots.inline(plots.svg(plots.new_figure(1, width=width)[0]), 'x') for width in (7.5, 12)]
    assert ['min-width: 864pt' in page for page in pages] == [False, True]
