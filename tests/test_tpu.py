"""The training step and the prediction compile for TPUs, by the real TPU compiler, on a machine that has none.

A child process of its own compiles all of it, since libtpu wants its environment before jax is imported.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from detzoo.costs.tpu import CHIPS, TPU_ENVIRONMENT

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = {'v5e:2x4': 8, 'v4:2x2x1': 4}
IMAGES = 16
# The small configs, smaller still: compiling takes as long as there are different operations.
SMALLER = {
    'data.canvases': '((64, 64),)',
    'model.backbone.width': 0.125,
    'optimizer.name': 'sgd',
    'optimizer.ema_decay': 0.0,
    'training.batch_size': IMAGES,
    'evaluation.batch_size': IMAGES,
}


class Case(NamedTuple):
    """A config with its further changes, the topologies that it is compiled for, and its stages besides loss and post."""

    config: str
    changes: dict[str, Any] = {}
    topologies: Sequence[str] = ('v5e:2x4',)
    stages: Sequence[str] = ('backbone', 'heads', 'other')


CASES = {
    'retinanet': Case('retinanet_shapes.py', {'model.fpn_features': 16}, stages=('backbone', 'neck', 'heads', 'other')),
    'ssd': Case('ssd_shapes.py', topologies=tuple(DEVICES)),
    'mask_rcnn': Case(
        'mask_rcnn_shapes.py',
        # As many masks in prediction as in training.
        {
            'model.fpn_features': 16,
            'model.trunk_features': 32,
            'model.rpn.train_post_nms_topk': 50,
            'model.mask.layers': 1,
            'model.head.max_detections': 8,
        },
        stages=('backbone', 'neck', 'rpn', 'roi', 'heads', 'other'),
    ),
    'yolo_v3': Case('yolo_shapes.py:v3', {'model.head_features': 64}),
    # With --full only; Mask R-CNN has all that Faster R-CNN has.
    'faster_rcnn': Case(
        'faster_rcnn_shapes.py',
        {'model.fpn_features': 16, 'model.trunk_features': 32, 'model.rpn.train_post_nms_topk': 50},
        stages=('backbone', 'neck', 'rpn', 'roi', 'heads', 'other'),
    ),
    'rcnn': Case(
        'rcnn_shapes.py',
        {'model.trunk_features': 32, 'model.head.samples': 8, 'data.max_proposals': 80},
        stages=('backbone', 'heads', 'other'),
    ),
    'spp': Case(
        'fast_rcnn_shapes.py:spp',
        {'model.trunk_features': 32, 'model.head.samples': 8, 'data.max_proposals': 16},
        stages=('backbone', 'roi', 'heads', 'other'),
    ),
    'mask_rcnn_c4': Case(
        'mask_rcnn_shapes.py:c4', {'model.roi.operator': 'pool'}, stages=('backbone', 'rpn', 'roi', 'heads', 'other')
    ),
    'mnc': Case(
        'mnc_shapes.py', {'model.rpn.train_post_nms_topk': 50}, stages=('backbone', 'rpn', 'roi', 'heads', 'other')
    ),
    'yolo_v1': Case('yolo_shapes.py:v1'),
    'yolo_v2': Case('yolo_shapes.py:v2', {'model.head_features': '(64, 64, 64)'}),
    'yolo9000': Case(
        'yolo9000_shapes.py',
        {'model.head_features': '(64, 64, 64)', 'model.tree': '(-1, 0, 0)', 'model.descent': 'paper'},
    ),
    'sds': Case('sds_shapes.py', {'model.trunk_features': 32}, stages=('backbone', 'neck', 'roi', 'heads', 'other')),
    'deepmask': Case('deepmask_shapes.py', {'model.windows.scales': '(0.5, 1.0)'}),
    'sharpmask': Case('sharpmask_shapes.py', {'model.windows.scales': '(0.5, 1.0)', 'optimizer.frozen': "''"}),
    'unet': Case('unet_shapes.py', {'model.backbone_strides': '(1, 2)'}, stages=('backbone', 'neck', 'heads', 'other')),
    'fcn': Case('fcn_shapes.py', stages=('backbone', 'heads', 'other')),
    'deeplab': Case('deeplab_shapes.py', stages=('backbone', 'heads', 'other')),
}
MARKS = {
    name: pytest.mark.full
    for name in (
        'faster_rcnn',
        'rcnn',
        'spp',
        'mask_rcnn_c4',
        'mnc',
        'yolo_v1',
        'yolo_v2',
        'yolo9000',
        'sds',
        'deepmask',
        'sharpmask',
        'unet',
        'fcn',
        'deeplab',
    )
}


def environment():
    """The environment of a process that compiles for TPUs, with the least effort: a third less time."""
    effort = {'JAX_EXEC_TIME_OPTIMIZATION_EFFORT': '-1', 'JAX_MEMORY_FITTING_EFFORT': '-1'}
    # The cache of the other tests is of programs for this machine.
    own = {'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    return {**os.environ, **TPU_ENVIRONMENT, **effort, **own}


@pytest.fixture(scope='module', params=[pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def case(request):
    return CASES[request.param]


@pytest.fixture(scope='module')
def rows(tmp_path_factory, case):
    """The results of scripts/benchmark.py: {(topology, program): row}."""
    if importlib.util.find_spec('libtpu') is None:
        pytest.fail("libtpu is not installed: pip install -e '.[test,tpu]', or bash scripts/test.sh, which does that")
    output = tmp_path_factory.mktemp('tpu') / 'costs.json'
    command = [sys.executable, ROOT / 'scripts' / 'benchmark.py', f'--config={ROOT}/configs/{case.config}']
    command += [f'--tpu={",".join(case.topologies)}', '--num_classes=3', f'--output={output}']
    command += [f'--config.{key}={value}' for key, value in (SMALLER | case.changes).items()]
    child = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads(output.read_text())['rows']
    return {(row['topology'], 'train' if 'train step' in row['program'] else 'predict'): row for row in found}


def test_all_programs_compile(case, rows):
    assert set(rows) == {(topology, program) for topology in case.topologies for program in ('train', 'predict')}
    assert all(f'on {DEVICES[topology]} chips' in row['program'] for (topology, _), row in rows.items())


def test_memory_holds_the_images_and_the_donated_state(rows):
    for (topology, program), row in rows.items():
        images = IMAGES // DEVICES[topology] * 64 * 64 * 3
        assert row['argument_bytes'] > images
        assert row['temporary_bytes'] >= 0  # a chip's own memory may take all of so small a network's
        donated = row['argument_bytes'] + row['output_bytes'] + row['temporary_bytes'] - row['peak_bytes']
        if program == 'train':  # the new state takes the place of the old one
            assert donated > 0.9 * row['output_bytes']
        else:
            assert donated == 0


def test_flops_of_training_are_more_than_of_prediction(case, rows):
    for topology in case.topologies:
        assert rows[topology, 'train']['flops'] > rows[topology, 'predict']['flops']


@pytest.mark.parametrize('case', ['ssd'], indirect=True)
def test_flops_follow_the_images_of_a_chip(rows):
    """A chip of 4 has twice the images of a chip of 8."""
    for program in ('train', 'predict'):
        ratio = rows['v4:2x2x1', program]['flops'] / rows['v5e:2x4', program]['flops']
        assert 1.7 < ratio < 2.3


def test_estimates_have_all_stages_and_no_more_than_the_peak(case, rows):
    for (topology, program), row in rows.items():
        assert set(row['seconds']) == {*case.stages, 'loss' if program == 'train' else 'post'}
        assert min(row['seconds'].values()) > 0
        assert row['total_seconds'] == pytest.approx(sum(row['seconds'].values()))
        assert row['flops'] / row['total_seconds'] < CHIPS[topology.partition(':')[0]].peak


OPERATORS = """
import functools, jax, jax.numpy as jnp
from detzoo.costs.tpu import topology_devices
from detzoo.core import roi_features

device = topology_devices('v5e:2x2')[0]
on_chip = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
levels = [on_chip((n, n, 8), jnp.bfloat16) for n in (16, 8)]
arguments = levels, on_chip((6, 4), jnp.float32), on_chip((6,), jnp.int32)
operators = dict(
    align=functools.partial(roi_features.roi_align, samples_per_bin=2, aligned=True),
    adaptive=functools.partial(roi_features.roi_align, samples_per_bin=0, aligned=True, max_samples_per_bin=2),
    align_max=functools.partial(roi_features.roi_align, samples_per_bin=2, aligned=False, reduce='max'),
    warp=functools.partial(roi_features.roi_warp, samples_per_bin=2),
    pool=roi_features.roi_pool,
)
for name, operator in operators.items():
    def total(levels, rois, level):
        return operator(levels, rois, level, strides=[8, 16], output_size=3).astype(jnp.float32).sum()

    text = jax.jit(jax.value_and_grad(total)).lower(*arguments).compile().as_text()
    print(name, 'njw,hwc->njhc' in text)  # the product of roi_products
"""


def test_roi_operators_and_their_gradients_compile_and_average_by_products():
    child = subprocess.run([sys.executable, '-c', OPERATORS], env=environment(), capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    products = dict(align=True, adaptive=True, align_max=False, warp=True, pool=False)
    assert child.stdout.splitlines() == [f'{name} {product}' for name, product in products.items()]
