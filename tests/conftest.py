"""What all tests share: eight CPU devices, a cache of compiled programs, and padded ground truth."""

import os
import tempfile

# Read when jax is imported, hence before it.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'detzoo-jax-cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
if '--xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8').strip()

import numpy as np
import pytest

from detzoo.types import GroundTruth


@pytest.fixture(scope='session')
def make_ground_truth():
    """A function: boxes, labels, crowd flags and a number of rows -> the padded ground truth of one image, numpy."""

    def make(boxes, labels=None, crowd=None, rows=None):
        count = len(boxes)
        rows = max(count, 1) if rows is None else rows
        gt = GroundTruth(
            boxes=np.zeros((rows, 4), np.float32),
            labels=np.zeros(rows, np.int32),
            valid=np.arange(rows) < count,
            crowd=np.zeros(rows, bool),
            dropped=np.int32(0),
            cropped=np.int32(0),
        )
        gt.boxes[:count] = np.reshape(boxes, (count, 4))
        gt.labels[:count] = 0 if labels is None else labels
        gt.crowd[:count] = False if crowd is None else crowd
        return gt

    return make
