"""The wheel: what is in it, and that configs and experiments are found in it by name, without a checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder of an unpacked wheel; it is built of a copy, so that nothing is left in the checkout."""
    pytest.importorskip('setuptools', minversion='77')
    copy, folder = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('installed')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    for name in ('detzoo', 'configs', 'experiments'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', 'results'))
    (copy / 'experiments' / 'results').mkdir()
    (copy / 'experiments' / 'results' / 'report.md').touch()
    code = f'from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder


def test_wheel_has_configs_experiments_and_the_command(installed):
    for kind in ('configs', 'experiments'):
        expected = {path.name for path in (ROOT / kind).glob('*.py')}
        assert expected and {path.name for path in (installed / 'detzoo' / kind).iterdir()} == expected
    assert (installed / 'detzoo' / 'report' / 'template.html').is_file()
    (points,) = installed.glob('*.dist-info/entry_points.txt')
    assert 'detzoo = detzoo.cli.main:main' in points.read_text().splitlines()
    assert {path.name for path in installed.iterdir()} == {'detzoo', points.parent.name}  # no tests, no scripts


def test_installed_configs_and_experiments_are_found_by_name(installed, tmp_path):
    code = (
        'import json; from detzoo.config import find_file\n'
        'from detzoo.sweeps.attempt import code_version; from detzoo.sweeps.plan import plan\n'
        "path, variant = find_file('configs', 'configs/mask_rcnn_shapes.py:c4')\n"
        "planned = plan('quickstart', ['training.steps=20'])\n"
        "print(json.dumps([str(path), variant, planned['experiment'], len(planned['runs']), code_version()]))"
    )
    environment = os.environ | {'PYTHONPATH': str(installed)}
    command = [sys.executable, '-c', code]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    path, *others = json.loads(finished.stdout)
    assert pathlib.Path(path) == installed / 'detzoo' / 'configs' / 'mask_rcnn_shapes.py'
    assert others == ['c4', 'experiments/quickstart.py', 5, 'unknown']
