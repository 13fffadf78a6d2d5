"""metrics.jsonl: cut back to the step at which a run goes on, and damaged lines are named."""

import pytest

from detzoo.run.metrics import MetricsLog, read_metrics


def test_metrics_log_is_cut_back_to_the_step(tmp_path):
    log = MetricsLog(tmp_path, step=0, active=True)
    for step in range(1, 6):
        log.write(step, {'loss': 1 / step})
    log.write(5, {'validation/AP': None})
    log.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "lo')  # killed in the midst of a line
    MetricsLog(tmp_path, step=5, active=True).close()
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 5]
    log = MetricsLog(tmp_path, step=3, active=True)
    log.write(4, {'loss': 0.3})
    log.close()
    kept = [{'step': step, 'loss': 1 / step} for step in (1, 2, 3)]
    assert read_metrics(tmp_path) == [*kept, {'step': 4, 'loss': 0.3}]


def test_metrics_log_of_other_processes_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path, step=0, active=False)
    log.write(1, {'loss': 1.0})
    log.write_scalars(1, {'speed': 1.0})
    log.write_images(1, {})
    log.flush()
    log.close()
    assert not list(tmp_path.iterdir())


DAMAGED_LINES = ('', '\0' * 30, '{"step": 2, "lo', '3', '{"loss": 1.0}', '{"step": "2"}', '[' * 100_000)


@pytest.mark.parametrize('line', DAMAGED_LINES, ids=range(7))
def test_metrics_name_a_damaged_line(tmp_path, line):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n{{"step": 3, "loss": 0.5}}\n')
    before = path.read_bytes()
    for read in (lambda: read_metrics(tmp_path), lambda: MetricsLog(tmp_path, step=3, active=True)):
        with pytest.raises(ValueError, match=f'line 2 of {path} is damaged .*: remove that line'):
            read()
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']
    path.write_text(
        '{"step": 1, "loss": 0.5}\n\0\0\0'
    )  # how a machine that stops leaves the end: cut short, as any last line
    assert read_metrics(tmp_path) == [{'step': 1, 'loss': 0.5}]
