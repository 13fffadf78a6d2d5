"""The command `detzoo proposals`: the files that it writes are those that a training reads, and what it refuses."""

import cv2
import pytest

from detzoo.data.catalog import open_dataset
from detzoo.data.proposals import load_proposals


def test_proposals_writes_files_that_training_reads(run_script, data_dir, tmp_path):
    output = tmp_path / 'made'
    arguments = ('--data=toy', f'--data_dir={data_dir}', f'--output={output}')
    finished = run_script('make_proposals', *arguments, '--splits=train[:4],validation', '--max_proposals=7')
    assert finished.code == 0, finished.stderr
    assert finished.stdout.startswith('windows of ')
    assert finished.stdout.count('recall of objects whatever their class, IoU 0.50:0.95') == 2
    names = {path.name: path for path in output.iterdir()}
    assert set(names) == {'toy_sliding_window_train-4.json.gz', 'toy_sliding_window_validation.json.gz'}
    dataset = open_dataset('toy', 'validation', data_dir)
    found = load_proposals(str(names['toy_sliding_window_validation.json.gz']), dataset, 100)
    assert [len(boxes) for boxes in found.boxes] == [7] * len(dataset.records)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--data=toy', '--method=rpn'], '--method=rpn needs --workdir, whose data set it takes; the other methods'),
        (['--workdir=runs/a'], 'the other methods need --data'),
        (['--data=toy', '--sizes=8,x'], '--sizes=8,x: it must be positive numbers, separated by commas'),
        (['--data=toy', '--sizes=8', '--aspect_ratios=0'], '--aspect_ratios=0: it must be positive numbers'),
        (['--data=toy', '--method=selective_search'], 'this OpenCV has no selective search'),
    ],
)
def test_proposals_refuses_in_one_line(run_script, data_dir, tmp_path, monkeypatch, arguments, words):
    monkeypatch.delattr(cv2, 'ximgproc', raising=False)
    finished = run_script('make_proposals', f'--data_dir={data_dir}', f'--output={tmp_path}', *arguments)
    assert finished.code == 1 and words in finished.stderr and finished.stderr.count('\n') == 1
