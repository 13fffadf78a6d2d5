"""What tests of exported programs share: detectors with drawn parameters in workdirs, and pictures of which they find 0, 1 or D."""

import pathlib
import subprocess
import sys

import flatbuffers
import jax
import ml_collections
import numpy as np
import tiny
from jax.tree_util import keystr

from detzoo.config import complete
from detzoo.inference.predictor import Predictor, detector_of
from detzoo.run.classes import Classes
from detzoo.types import Inputs
from detzoo.weights.exchange import Imported, write_workdir

CLASSES = Classes(('red', 'green', 'blue'), (3, 8, 9))
CANVAS = 64, 64
MOST = 3  # detections at most
PICTURES = 12


def drawn_predictor(model, threshold=None):
    """A detector or segmenter with drawn parameters.

    Args:
        model: its arguments.
        threshold: the score threshold of a detector.
    """
    limits = {} if threshold is None else dict(score_threshold=threshold, max_detections=MOST)
    config = ml_collections.ConfigDict()
    config.data = dict(canvases=(CANVAS,))
    config.model = model | (dict(head=model['head'] | limits) if 'head' in model else limits)
    config = complete(config)
    template = jax.eval_shape(lambda key: detector_of(config, 3).init(key, CANVAS), jax.random.key(0))
    random = np.random.RandomState(0)

    def draw(path, leaf):
        if keystr(path).endswith("kernel']"):
            spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5
            spread *= 0.1 if 'logits' in keystr(path) else 1  # or a softmax would round all its scores to 1
            return (spread * random.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, float('scale' in keystr(path) or 'var' in keystr(path)), leaf.dtype)

    return Predictor(config, CLASSES, 0, *jax.tree_util.tree_map_with_path(draw, template))


def make_workdir(predictor, workdir):
    """Makes the workdir of a Predictor."""
    write_workdir(workdir, Imported(predictor.config, CLASSES, predictor.params, predictor.model_state, []))
    return workdir


def pictures():
    """Pictures on their canvases, and their windows: flat ones, noise of several strengths, and blocks."""
    random = np.random.RandomState(1)
    images = np.zeros((PICTURES, *CANVAS, 3), np.uint8)
    windows = np.zeros((PICTURES, 4), np.float32)
    for i in range(PICTURES):
        height, width = (4, 4) if i == 0 else random.randint(20, 65, 2)
        noise = random.randint(0, 1 + 23 * i, (height, width, 3))
        images[i, :height, :width] = noise if i % 2 else tiny.draw_blocks(i, height, width, 3)[0] // 12 * i
        windows[i, 2:] = width, height
    return images, windows


def found_by(predictor, images, windows):
    """What a Predictor finds in each picture by itself: {field: [pictures, ...]}."""
    rows = [
        predictor._predict(predictor.params, predictor.model_state, Inputs(image[None], window[None]))._asdict()
        for image, window in zip(images, windows)
    ]
    names = [name for name, x in rows[0].items() if x is not None and name != 'candidates_dropped']
    return {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in names}


def dividing_threshold(scores):
    """Finds a score that pictures exceed in no detection, in one and in all: scores is [pictures, MOST], sorted, 0 for none.

    Halfway to the next score: rounding decides nothing.
    """
    values = np.unique(scores)
    for low, high in zip(values, values[1:]):
        middle = float((low + high) / 2)
        if {0, 1, MOST} <= set((scores > middle).sum(axis=1)):
            return middle
    raise AssertionError(f'no threshold divides {scores}')


CALL = """
import sys
sys.path += {packages!r}
import jax, numpy as np
import jax.export
try:
    import detzoo
except ModuleNotFoundError:
    pass
else:
    sys.exit('detzoo is installed')
given = np.load({given!r})
program = jax.jit(jax.export.deserialize(bytearray(open({program!r}, 'rb').read())).call)
results = {{}}
for count in {counts!r}:
    found = program(given['images'][:count], given['windows'][:count])
    results |= {{f'{{name}}_{{count}}': np.asarray(x) for name, x in found.items()}}
others = sorted({{'flax', 'cv2', 'PIL', 'optax', 'detzoo'}} & set(sys.modules))
assert not others, others
np.savez({given!r}, **results)
"""


def call_without_detzoo(program, images, windows, counts, folder, python=None):
    """Runs a program in a process that has jax and numpy, but no detzoo: {'FIELD_COUNT': array} for each number of images.

    Args:
        program: the .stablehlo file.
        images, windows: its inputs.
        counts: how many of them are given at once, one call after the other.
        folder: a folder for files.
        python: another interpreter, with packages of its own.
    """
    given = str(folder / 'given.npz')
    packages = [] if python else sorted({str(pathlib.Path(x.__file__).parents[1]) for x in (jax, np, flatbuffers)})
    np.savez(given, images=images, windows=windows)
    code = CALL.format(packages=packages, given=given, program=str(program), counts=tuple(counts))
    # Isolated, and without `site`: neither PYTHONPATH nor an editable install has a say.
    command = [python or sys.executable, *(['-I'] if python else ['-I', '-S']), '-c', code]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    with np.load(given) as found:
        return dict(found)
