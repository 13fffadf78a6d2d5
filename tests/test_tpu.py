"""The training step and the prediction compile for TPUs, by the real TPU compiler, on a machine that has none.

A child process of its own compiles all of it, since libtpu wants its environment before jax is imported.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from detzoo.comparison import TPU_ENVIRONMENT
from detzoo.comparison.cost import CHIPS

ROOT = pathlib.Path(__file__).parents[1]
TOPOLOGIES = {'v5e:2x4': 8, 'v4:2x2x1': 4}  # devices of each
IMAGES = 16
# The small config, smaller still: compiling takes as long as there are different operations.
SMALLER = {
    'data.canvases': '((64, 64),)',
    'model.width': 0.125,
    'model.fpn_features': 16,
    'model.head_depth': 1,
    'optimizer.name': 'sgd',
    'optimizer.ema_decay': 0.0,
    'training.batch_size': IMAGES,
    'evaluation.batch_size': IMAGES,
}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    """The results of scripts/benchmark.py: {(topology, program): row}."""
    if importlib.util.find_spec('libtpu') is None:
        pytest.fail("libtpu is not installed: pip install -e '.[test,tpu]', or bash scripts/test.sh, which does that")
    output = tmp_path_factory.mktemp('tpu') / 'costs.json'
    command = [sys.executable, ROOT / 'scripts' / 'benchmark.py', f'--config={ROOT}/configs/retinanet_shapes.py']
    command += [f'--tpu={",".join(TOPOLOGIES)}', '--num_classes=3', f'--output={output}']
    command += [f'--config.{key}={value}' for key, value in SMALLER.items()]
    # The cache of the other tests is of programs for this machine.
    environment = {**os.environ, **TPU_ENVIRONMENT, 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads(output.read_text())['rows']
    return {(row['topology'], 'train' if 'train step' in row['program'] else 'predict'): row for row in found}


def test_all_programs_compile(rows):
    assert set(rows) == {(topology, program) for topology in TOPOLOGIES for program in ('train', 'predict')}
    assert all(f'on {TOPOLOGIES[topology]} chips' in row['program'] for (topology, _), row in rows.items())


def test_memory_holds_the_images_and_the_donated_state(rows):
    for (topology, program), row in rows.items():
        images = IMAGES // TOPOLOGIES[topology] * 64 * 64 * 3
        assert row['argument_bytes'] > images
        assert row['temporary_bytes'] >= 0  # a chip's own memory may take all of so small a network's
        donated = row['argument_bytes'] + row['output_bytes'] + row['temporary_bytes'] - row['peak_bytes']
        if program == 'train':  # the new state takes the place of the old one
            assert donated > 0.9 * row['output_bytes']
        else:
            assert donated == 0


def test_flops_follow_the_images_of_a_chip(rows):
    """A chip of 4 has twice the images of a chip of 8, and training does more than its forward pass."""
    for program in ('train', 'predict'):
        ratio = rows['v4:2x2x1', program]['flops'] / rows['v5e:2x4', program]['flops']
        assert 1.7 < ratio < 2.3
    for topology in TOPOLOGIES:
        assert rows[topology, 'train']['flops'] > 1.5 * rows[topology, 'predict']['flops']


def test_estimates_have_all_stages_and_no_more_than_the_peak(rows):
    for (topology, program), row in rows.items():
        stages = {'backbone', 'neck', 'heads', 'other', 'loss' if program == 'train' else 'post'}
        assert set(row['seconds']) == stages
        assert min(row['seconds'].values()) > 0
        assert row['total_seconds'] == pytest.approx(sum(row['seconds'].values()))
        assert row['flops'] / row['total_seconds'] < CHIPS[topology.partition(':')[0]].peak
