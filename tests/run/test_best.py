"""The best evaluation in a log."""

import pytest

from detzoo.run.best import Best, best_step, find_best
from detzoo.run.metrics import MetricsLog


def rows(**values):
    """The lines of a log: a step of training before each evaluation."""
    (name, numbers), lines = next(iter(values.items())), []
    for index, number in enumerate(numbers, start=1):
        lines += [{'step': index, 'loss': 1.0}, {'step': index, 'validation/loss': 9.0, f'validation/{name}': number}]
    return lines


@pytest.mark.parametrize(
    'values, expected',
    [
        (dict(AP=[0.1, 0.5, 0.2, 0.5, 0.4]), Best(2, 3)),  # the first of equals
        (dict(AP=[0.1, 0.2]), Best(2, 0)),
        (dict(AP=[None, 0.0, None]), Best(2, 1)),
        (dict(AP=[None, None]), Best(0, 2)),
        (dict(AP=[]), Best(0, 0)),
        (dict(loss=[0.5, 0.1, 0.3]), Best(2, 1)),
        (dict(candidates_dropped=[3.0, 0.0]), Best(2, 0)),
    ],
)
def test_find_best_by_hand(values, expected):
    (name,) = values
    assert find_best(rows(**values), name) == expected


def test_find_best_does_not_know_a_metric_that_was_not_logged():
    assert find_best(rows(AP=[0.5]), 'AP50') == Best(0, 1)


def test_best_step_says_where_there_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='keeps no best checkpoint, since its training.keep_best is None'):
        best_step(tmp_path, None)
    log = MetricsLog(tmp_path, step=0, active=True)
    log.write(2, {'loss': 1.0})
    with pytest.raises(
        FileNotFoundError, match="has no best checkpoint yet: no evaluation in its metrics.jsonl has 'AP'"
    ):
        best_step(tmp_path, 'AP')
    log.write(2, {'validation/loss': 1.0, 'validation/AP': 0.25})
    log.write(4, {'validation/loss': 1.0, 'validation/AP': 0.125})
    log.close()
    assert best_step(tmp_path, 'AP') == 2
