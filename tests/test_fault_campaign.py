"""The campaign of faults: a small one, and that it finds what is not promised."""

import os
import random

import fault_campaign
import pytest
from fault_campaign import difference, play, table
from faults import Failure, Training, describe
from linear import state_of
from tiny import ROOT

from detzoo.config import to_json
from detzoo.run.checkpoint import Checkpoints


def test_play_ends_with_the_same_bits(tiny_run, tiny_config, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(
        f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({to_json(tiny_config())!r})\n'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    training = Training(tiny_config(), file, tiny_run, environment, startup=4.0)  # the signal comes after one second
    faults = play(training, tmp_path / 'run', ['SIGTERM', 'cut metrics.jsonl', 'damaged checkpoint'], random.Random(1))
    assert [fault['place'] for fault in faults] == ['start-up', 'between starts', 'between starts']
    assert faults[0]['outcome'] in ('exit code 42', 'SIGTERM')  # SIGTERM: Python itself was starting
    assert [fault['outcome'] for fault in faults[1:]] == ['made again', 'set aside']
    (aside,) = (tmp_path / 'run' / 'checkpoints').glob('*.damaged')
    assert aside.name == '10.damaged'


@pytest.mark.parametrize(
    'code, output, how',
    [
        (0, 'WARNING: x\n', 'done'),
        (42, 'stopped', 'exit code 42'),
        (-9, '', 'SIGKILL'),
        (1, 'train: 5%\nerror: no room\n', 'one clear error'),
        (242, 'error: process 1 is gone\n', 'one clear error (242)'),
        (1, 'no room\n', None),
        (1, 'error: no room\nerror: no room\n', None),
        (1, 'Traceback (most recent call last):\nerror: no room\n', None),
        (0, 'error: no room\n', None),
        (130, 'stopped', None),
        (-6, '', None),
    ],
)
def test_describe_refuses_what_is_not_promised(code, output, how):
    promised = (0, 1, 42, 242, -9)
    if how is None:
        with pytest.raises(Failure, match=f'exit code {code}, of '):
            describe(code, output, promised)
    else:
        assert describe(code, output, promised) == how


def test_difference_names_what_differs(tmp_path):
    for name, value, lines in (
        ('a', 1.0, 'x\ny\n'),
        ('b', 1.0, 'x\ny\n'),
        ('c', 2.0, 'x\ny\n'),
        ('d', 1.0, 'x\n'),
        ('e', 1.0, 'x\nz\n'),
    ):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(state_of(5, value))
        checkpoints.close()
        (tmp_path / name / 'metrics.jsonl').write_text(lines)
    first = tmp_path / 'a'
    assert difference(tmp_path / 'b', first) is None
    assert 'opt_state' in difference(tmp_path / 'c', first) and 'differs' in difference(tmp_path / 'c', first)
    assert difference(tmp_path / 'd', first) == 'metrics.jsonl has 1 lines, had 2'
    assert difference(tmp_path / 'e', first) == "line 2 of metrics.jsonl is b'z', was b'y'"


def test_table_counts_runs_once(monkeypatch):
    monkeypatch.setattr(fault_campaign, 'FAULTS', {'SIGKILL': None, 'full disk': None})
    monkeypatch.setattr(fault_campaign, 'OF_HOSTS', {})
    kill = dict(fault='SIGKILL', place='step', outcome='SIGKILL')
    full = dict(fault='full disk', place='checkpoint', outcome='one clear error')
    rows = [
        dict(seed=0, family='ssd', hosts=1, faults=[kill, kill | dict(place='start-up')], failure=None),
        dict(seed=1, family='ssd', hosts=1, faults=[kill, full], failure='hangs'),
    ]
    lines = table(rows).splitlines()
    assert lines[2] == '| SIGKILL | 3 | 2 step, 1 start-up | 3 SIGKILL | 2 | 1 | 1 |'
    assert lines[3] == '| full disk | 1 | 1 checkpoint | 1 one clear error | 1 | 0 | 1 |'
    assert lines[-2:] == ['| ssd | 1 | 2 | 4 | 1 | 1 |', '| all | | 2 | 4 | 1 | 1 |']
