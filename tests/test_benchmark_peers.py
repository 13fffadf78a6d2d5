"""The benchmark beside the peers: its stopwatch, its ratios and its page. Nothing here needs torch, and no time is asserted."""

import json
import pathlib
import re
import time

import numpy as np
import pytest
from peers import machine, models, operations, page, turns
from peers.results import Results, fastest, ratio, was_busy

DOCS = pathlib.Path(__file__).parents[1] / 'docs'


def side(kind, *seconds, memory_mb=1500, **facts):
    return {'kind': kind, 'seconds': list(seconds), 'memory_mb': memory_mb, 'prepare_seconds': 1.0, 'facts': facts}


ROW = {
    'sides': {
        'torchvision': side('torchvision', 4.0),
        'torchvision, channels_last': side('torchvision', 6.0, 3.0, 5.0, positives=57),
        'detzoo': side('detzoo', 2.0, 3.0, 2.5, memory_mb=2000, positives=60.0),
    },
    'facts': {},
    'busy': 0.0,
}
RUN = {
    **{
        'date': '2026-01-02',
        'commit': 'abc',
        'command': 'python x.py',
        'machine': 'cpu',
        'memory_gb': 8,
        'system': 'Linux',
    },
    **{'threads': 2, 'load': 0.1, 'busy': 0.02, 'python': '3.11', 'versions': {'torch': '2'}},
}


@pytest.fixture
def results(tmp_path):
    """Results of one run with one row."""
    found = Results(tmp_path / 'results.json')
    found.begin(RUN)
    found.add('train', 'net', ROW)
    return found


def test_ratio_is_that_of_the_medians_and_spreads_over_the_rounds():
    # Medians 2.5 and 5; rounds 6/2, 3/3 and 5/2.5.
    assert ratio([2.0, 3.0, 2.5], [6.0, 3.0, 5.0]) == (2.0, 1.0, 3.0, 3)


def test_ratio_pairs_only_rounds_in_which_both_ran():
    assert ratio([1.0, 2.0, 4.0], [2.0]) == (1.0, 2.0, 2.0, 1)


def test_fastest_side_of_a_kind_is_compared():
    row = {'sides': {'a': side('torch', 2.0, 9.0, 3.0), 'b': side('torch', 4.0, 2.0, 2.0), 'c': side('detzoo', 1.0)}}
    assert fastest(row, 'torch') == 'b'


def test_side_that_left_after_the_first_round_is_not_compared():
    assert fastest(ROW, 'torchvision') == 'torchvision, channels_last'
    assert page.peers_of(ROW) == ['torchvision']


def test_layouts_that_are_clearly_slower_do_not_go_on():
    sides = {
        name: turns.Side('', {}, (), name.partition(',')[0]) for name in ('torch', 'torch, last', 'detzoo', 'onnx')
    }
    seconds = {'torch': 1.0, 'torch, last': 1.04, 'detzoo': 9.0, 'onnx': 5.0}
    assert turns.fastest_layouts(seconds, sides) == set(sides)
    assert turns.fastest_layouts({**seconds, 'torch': 1.1}, sides) == {'torch, last', 'detzoo', 'onnx'}


@pytest.mark.parametrize('busy, before, expected', [(0.0, 0.05, False), (0.2, 0.05, True), (0.0, 0.9, True)])
def test_rows_beside_other_work_are_marked(results, busy, before, expected):
    results.runs[0]['busy'] = before
    row = {**ROW, 'busy': busy}
    assert was_busy(row, results.runs[0]) == expected
    results.add('train', 'net', row)
    assert (page.BUSY in page.table('train', results)) == expected


def test_table_has_medians_ratio_spread_and_memory(results):
    header, rule, row = page.table('train', results).splitlines()
    cells = [
        'net',
        '2.50 s',
        'torchvision, channels_last 5.00 s',
        '**2.00**',
        '1.00 to 3.00',
        '3',
        '60 / 57',
        '2.0',
        '1.5',
        '1',
    ]
    assert [cell.strip() for cell in row.strip('|').split('|')] == cells
    assert header.count('|') == rule.count('|') == row.count('|') == len(cells) + 1


@pytest.mark.parametrize('facts, text', [({'proposals': 1000}, '25 of 1000 proposals'), ({}, '25')])
def test_found_says_how_many_detections_of_how_many_proposals(facts, text):
    row = {'facts': {'detections': 25}, 'sides': {'torchvision': side('torchvision', 1.0, **facts)}}
    assert page.found(row, 'torchvision') == text


@pytest.mark.parametrize(
    'seconds, text', [((0.0012345,), '1.23 ms'), ((0.5, 0.1), '300 ms'), ((3.0, 1.0, 2.0), '2.00 s')]
)
def test_median_is_written_with_three_digits(seconds, text):
    assert page.median({'sides': {'detzoo': side('detzoo', *seconds)}}, 'detzoo') == text


def test_results_go_on_in_their_file_and_forget_runs_without_rows(results):
    again = Results(results.path)
    assert again.has('train', 'net', 'abc')
    assert not again.has('train', 'net', 'def') and not again.has('predict', 'net', 'abc')
    again.begin({**RUN, 'commit': 'def'})
    again.add('train', 'other', ROW)
    assert [row['run'] for row in again.rows] == [0, 1]
    again.add('train', 'net', {**ROW, 'busy': 0.5})
    assert [(row['name'], row['run'], row['busy']) for row in again.rows] == [('net', 0, 0.5), ('other', 0, 0.0)]
    assert [run['commit'] for run in Results(results.path).runs] == ['def']


def test_page_is_filled_between_its_marks_only(results):
    text = 'a\n<!-- table: train -->\nold\n<!-- end -->\nb\n<!-- table: onnx -->\n<!-- end -->\n'
    filled = page.fill(text, results)
    assert 'old' not in filled and '| net |' in filled and 'Not measured yet' in filled
    assert filled.startswith('a\n') and '\nb\n' in filled
    assert page.fill(filled, results) == filled


def test_bars_of_the_picture_begin_at_one_and_end_at_the_scale(results):
    assert page.place(0.25) == page.AXIS and page.place(1) == page.AXIS + 2 * page.OCTAVE
    assert page.place(1e-9) == page.place(0.25) and page.place(1e9) == page.place(32)
    # A ratio of 2: one octave to the right of 1.
    width = page.OCTAVE
    assert f'<rect x="{page.place(1)}" y="43" width="{width}" height="14" class="ahead"/>' in page.draw(results)
    slow = page.draw_bar('a < b', 0.5, 40)
    assert f'<rect x="{page.place(0.5)}" y="43" width="{width}"' in slow and 'behind' in slow and 'a &lt; b' in slow


def test_turn_counts_the_time_of_others(monkeypatch):
    clocks = iter([machine.Clock(10.0, 1.0), machine.Clock(15.0, 1.5)])
    own = iter([100.0, 103.0])
    monkeypatch.setattr(turns, 'read_clock', lambda: next(clocks))
    monkeypatch.setattr(turns, '_own_seconds', lambda: next(own))
    monkeypatch.setattr(turns, 'TURN_SECONDS', 0.0)
    calls = []
    turn = turns.measure_turn(lambda: calls.append(1))
    assert turn.others == 5 - 3 + 0.5
    assert calls and turn.wall >= turn.seconds > 0


def test_busy_cores_are_measured_by_the_clock(monkeypatch):
    clocks = iter([machine.Clock(10.0, 1.0), machine.Clock(13.0, 1.5)])
    monkeypatch.setattr(machine, 'read_clock', lambda: next(clocks))
    monkeypatch.setattr(machine.time, 'sleep', lambda seconds: None)
    assert machine.busy_cores(seconds=2) == (3 + 0.5) / 2


def test_clock_of_the_machine_advances():
    before = machine.read_clock()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert machine.read_clock().busy > before.busy


def numbers(value, scale=1.0):
    """A program of a test: its result is an array, and it gives `value` to those after it."""
    return turns.Program(lambda: np.full(3, value * scale), given={'value': value}, facts={'scale': scale})


def broken(value):
    raise ValueError(f'no program for {value}')


def case_of(make, **arguments):
    sides = {
        'peer': turns.Side('test_benchmark_peers:numbers', {'value': 2.0}, (), 'peer'),
        'detzoo': turns.Side(f'test_benchmark_peers:{make}', arguments, (), 'detzoo'),
    }
    return turns.Case('train', 'net', sides, lambda found: {'sum': float(found['detzoo'].sum())}, rounds=2)


def test_case_runs_its_sides_in_processes(monkeypatch):
    row = turns.run_case(case_of('numbers', scale=3.0))
    assert row['facts'] == {'sum': 18.0}  # 3 * 2 * 3: the peer gave the value
    assert [len(side['seconds']) for side in row['sides'].values()] == [2, 2]
    assert row['sides']['detzoo']['facts'] == {'scale': 3.0}
    assert row['busy'] >= 0 and json.loads(json.dumps(row)) == row


def test_case_tells_why_a_side_failed():
    with pytest.raises(RuntimeError, match='no program for 2.0'):
        turns.run_case(case_of('broken'))


def test_evaluation_is_the_same_on_both_sides():
    results = {
        name: program.shown(program.step())
        for name, make in (('detzoo', operations.detzoo_evaluation), ('pycocotools', operations.pycocotools_evaluation))
        for program in [make(images=3)]
    }
    assert operations.check_close(results)['difference'] < 1e-9
    assert results['detzoo'][0].max() > 0.1
    results['detzoo'][0][2] *= 1.1
    with pytest.raises(AssertionError, match='differ by'):
        operations.check_close(results)


@pytest.mark.parametrize(
    'theirs, of_rcnn, same', [(2.001, False, True), (2.1, False, False), (2.1, True, True), (3, True, False)]
)
def test_losses_are_the_same_but_for_the_samples_of_an_rcnn(theirs, of_rcnn, same):
    losses = {'torchvision': theirs, 'detzoo': 2.0}
    if same:
        assert models.check_losses(losses, of_rcnn=of_rcnn)['loss of torchvision'] == theirs
    else:
        with pytest.raises(AssertionError, match='the loss is 2.0, that of torchvision'):
            models.check_losses(losses, of_rcnn=of_rcnn)


def test_detections_are_compared_one_by_one():
    ours = {
        'boxes': np.float32([[0, 0, 9, 9], [5, 5, 20, 30]]),
        'scores': np.float32([0.9, 0.8]),
        'labels': np.array([1, 2]),
    }
    assert models.check_detections({'detzoo': ours, 'torchvision': ours})['detections'] == 2
    with pytest.raises(AssertionError, match='detzoo and torchvision detect other things'):
        models.check_detections({'detzoo': ours, 'torchvision': {**ours, 'labels': np.array([1, 3])}})


def test_page_of_the_docs_is_what_the_results_give():
    text = (DOCS / 'performance.md').read_text()
    assert re.findall(r'<!-- table: (\w+) -->', text)
    advice = 'run python scripts/dev/benchmark_peers.py --render'
    results = Results(DOCS / 'performance.json')
    assert page.fill(text, results) == text, advice
    assert not results.rows or (DOCS / page.PICTURE).read_text() == page.draw(results), advice
