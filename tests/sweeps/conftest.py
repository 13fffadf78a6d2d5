"""An experiment on a tiny detector."""

import pytest

from detzoo.config import to_json


@pytest.fixture
def experiment(tiny_config, tmp_path):
    """A function: the source of a list of runs -> the path of an experiment on the tiny RetinaNet of 16 steps."""

    def write(runs):
        config = tmp_path / 'tiny.py'
        config.write_text(
            'from detzoo.config import from_json\n\n\n'
            f'def get_config(arg=None):\n    return from_json({to_json(tiny_config())!r})\n'
        )
        path = tmp_path / 'experiment.py'
        path.write_text(
            '"""What is asked?"""\n\nfrom detzoo.sweeps.sweep import Axes, Run, Sweep, with_seeds\n\n'
            f'CONFIG = {str(config)!r}\n\n\ndef get_sweep(arg=None):\n    return Sweep({runs}, ("AP",), (Axes("seed"),))\n'
        )
        return str(path)

    return write
