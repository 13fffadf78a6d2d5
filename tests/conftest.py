"""What all tests share: eight CPU devices, a cache of compiled programs, padded ground truth, and a toy data set."""

import contextlib
import functools
import gc
import importlib.metadata
import io
import os
import runpy
import signal
import sys
import tempfile
import traceback
from signal import SIGINT, SIGTERM

# Of two processes that share the tests (scripts/test.sh) each takes half of the cores: their threads would wait for one another.
if 'DETZOO_TESTS_HALF' in os.environ and hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(os.environ['DETZOO_TESTS_HALF']) :: 2] or cores)

# Read when jax is imported, hence before it.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'detzoo-jax-cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# Small programs take longer to compile than to run. Without optimisation by LLVM, and with XLA's older emitters of fusions, a
# training step compiles five times as fast as at level 1, and runs a fifth as fast. What makes hundreds of steps of a network is
# compiled with `tiny.OPTIMIZED`.
XLA_FLAGS = {
    '--xla_force_host_platform_device_count': 8,
    '--xla_backend_optimization_level': 0,
}
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):  # later ones do not know it
    XLA_FLAGS['--xla_cpu_use_fusion_emitters'] = 'false'
for flag, value in XLA_FLAGS.items():
    if flag not in os.environ.get('XLA_FLAGS', ''):
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}={value}'.strip()

# Traces are many small objects that live long: looking for garbage among them at Python's own thresholds takes a tenth of the time.
gc.set_threshold(50_000, 20, 50)

import numpy as np
import pytest
from tiny import CATEGORY_IDS, ROOT
from toy import prepare_toy, toy_config, toy_record, with_masks

from detzoo.types import GroundTruth


def pytest_addoption(parser):
    parser.addoption('--full', action='store_true', help='also run the whole contract for every variant of a detector')


def pytest_configure(config):
    config.addinivalue_line('markers', 'full: runs with --full only')


def pytest_collection_modifyitems(config, items):
    """Deselects, and so counts, what only --full runs."""
    if config.getoption('--full'):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker('full')])
    items[:] = [item for item in items if not item.get_closest_marker('full')]


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


@pytest.fixture(scope='session')
def toy():
    """A function: a number of records, and their indices -> a Dataset in memory, without or with masks."""
    from detzoo.data.records import Dataset

    def make(count=10, first=0, masks=False):
        records = [toy_record(index) for index in range(first, first + count)]
        records = [with_masks(record) for record in records] if masks else records
        return Dataset('toy', 'train', ('red', 'green', 'blue'), CATEGORY_IDS, records)

    return make


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A folder in which the toy data lie prepared: 20 records in 'train', 10 in 'validation'."""
    return prepare_toy(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def mask_dir(tmp_path_factory):
    """A folder in which the toy data lie prepared with masks."""
    return prepare_toy(tmp_path_factory.mktemp('masks'), with_masks)


@pytest.fixture(scope='session')
def tiny_config(data_dir):
    """A function: {dotted key: value} -> a config of the tiny RetinaNet on the toy data."""
    return functools.partial(toy_config, data_dir)


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory, tiny_config):
    """The workdir of a finished run of `tiny_config()`."""
    from detzoo.training.loop import train_and_evaluate

    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    train_and_evaluate(tiny_config(), workdir)
    return workdir


@pytest.fixture
def linear(monkeypatch):
    """Every config describes the linear detector."""
    from linear import linear_detector

    make = lambda config, num_classes, axis_name=None: linear_detector(axis_name)
    for module in ('detzoo.training.checks', 'detzoo.inference.predictor'):
        monkeypatch.setattr(f'{module}.detector_of', make)


@pytest.fixture(scope='session')
def write_classifier():
    """A function: a path, and the shapes of a detector's variables -> writes a file with drawn weights for its backbone."""
    from detzoo.weights import torchvision
    from detzoo.weights.files import write_entries
    from detzoo.weights.mapping import flatten

    def write(path, template):
        rng, leaves = np.random.default_rng(0), {}
        for name, leaf in flatten(template).items():
            part, _, place = name.partition('/')[2].partition('/')
            if part == 'backbone' or place.startswith('stage4'):  # which lies in the trunk with C4
                spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if name.endswith('kernel') else 0.0
                mean = float(name.endswith(('scale', 'var')))
                leaves[place] = np.float32(mean) + np.float32(spread) * rng.standard_normal(leaf.shape, np.float32)
        if '.conv.' in path.name:  # darknet's, cut behind the backbone
            path.write_bytes(
                bytes(16) + np.concatenate([np.full(leaf.size, 0.1, '<f4') for leaf in leaves.values()]).tobytes()
            )
            return
        first = {'conv1_1': torchvision.VGG, 'block17': torchvision.MOBILENET_V2}
        parts = {place.partition('/')[0] for place in leaves}
        names = next((names for part, names in first.items() if part in parts), torchvision.RESNET)
        entries = {
            names.name_of(place): leaf.transpose(3, 2, 0, 1).copy() if leaf.ndim == 4 else leaf
            for place, leaf in leaves.items()
            if not place.startswith(('fc6', 'fc7'))
        }
        write_entries(path, entries, {})

    return write


class Finished(tuple):
    """What a command line did: (exit code, stdout, stderr)."""

    code = property(lambda self: self[0])
    stdout = property(lambda self: self[1])
    stderr = property(lambda self: self[2])


@pytest.fixture(scope='session')
def run_script():
    """A function: a script of scripts/ and its arguments -> Finished. It runs in this process: imports cost seconds."""
    import grain  # noqa: F401, it defines flags, which must outlive the first script
    from absl import app, flags

    from detzoo.cli.main import COMMANDS

    app.define_help_flags()  # once, or the first script's would be the last

    def run(name, *arguments):
        before, handlers = set(flags.FLAGS), {number: signal.getsignal(number) for number in (SIGINT, SIGTERM)}
        stdout, stderr = io.StringIO(), io.StringIO()
        path = str(ROOT / 'scripts' / f'{name}.py')
        try:
            with (
                contextlib.redirect_stdout(stdout),
                contextlib.redirect_stderr(stderr),
                pytest.MonkeyPatch.context() as patch,
            ):
                patch.setattr(sys, 'argv', [path, *map(str, arguments)])
                runpy.run_path(path, run_name='__main__')
                code = 0
        except SystemExit as end:
            if isinstance(end.code, str):  # as the interpreter does
                stderr.write(end.code + '\n')
            code = {None: 0}.get(end.code, end.code if isinstance(end.code, int) else 1)
        except Exception:
            stderr.write(traceback.format_exc())
            code = 1
        finally:
            signal.set_wakeup_fd(-1)  # a command that listens to signals would go on to end this process
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for module in COMMANDS.values():  # the next import defines the flags again
                sys.modules.pop(f'detzoo.cli.{module}', None)
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
        return Finished((code, stdout.getvalue(), stderr.getvalue()))

    return run
