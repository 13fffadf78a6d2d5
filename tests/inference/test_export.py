"""Exported programs: they find what prediction finds, without detzoo, on any number of images."""

import importlib.util
import itertools
import json
import os
import pathlib
import re
import sys

import cv2
import jax
import jax.export
import numpy as np
import pytest
import tiny
from exported_models import (
    CANVAS,
    CLASSES,
    MOST,
    PICTURES,
    call_without_detzoo,
    dividing_threshold,
    drawn_predictor,
    found_by,
    make_workdir,
    pictures,
)
from linear import find_windows

from detzoo.data.geometry import INTERPOLATIONS, RESIZES, ResizeRule, choose_canvas, place
from detzoo.data.records import decode_image
from detzoo.errors import DataError
from detzoo.inference import export, standalone
from detzoo.inference.predictor import Predictor, load
from detzoo.types import Detector

ROOT = pathlib.Path(__file__).parents[2]
DETECTORS = {
    name: getattr(tiny, f'TINY_{name.upper()}')
    for name in ('faster_rcnn', 'mask_rcnn', 'retinanet', 'ssd', 'yolo_v1', 'yolo_v2', 'yolo_v3')
}
FOUND = ('boxes', 'scores', 'labels')


def module_of(path):
    """A Python file, imported anew."""
    spec = importlib.util.spec_from_file_location('exported_run', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_detections(found, expected):
    """Compares what a program finds with what prediction finds; floats to 1e-5 of a pixel or of 1."""
    assert set(found) == set(expected)
    for name, x in found.items():
        assert x.dtype == expected[name].dtype
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope='module')
def exported(tiny_run, tmp_path_factory):
    """The folder of the exported tiny run."""
    folder = tmp_path_factory.mktemp('exported') / 'run'
    assert export.export_program(str(tiny_run), str(folder)) == [CANVAS]
    return folder


def test_program_is_for_three_platforms_and_described(exported, tiny_run):
    program = jax.export.deserialize(bytearray((exported / '64x64.stablehlo').read_bytes()))
    model = json.loads((exported / 'model.json').read_text())
    assert program.platforms == ('cpu', 'cuda', 'tpu') == tuple(model['platforms'])
    assert {path.name for path in exported.iterdir()} == {'64x64.stablehlo', 'model.json', 'run.py'}
    (canvas,) = model['canvases']
    assert canvas['inputs'] == {
        'images': dict(dtype='uint8', shape=['batch', 64, 64, 3]),
        'window': dict(dtype='float32', shape=['batch', 4]),
    }
    assert canvas['outputs'] == {
        'boxes': dict(dtype='float32', shape=['batch', 10, 4]),
        'scores': dict(dtype='float32', shape=['batch', 10]),
        'labels': dict(dtype='int32', shape=['batch', 10]),
        'valid': dict(dtype='bool', shape=['batch', 10]),
    }
    assert model['class_names'] == ['red', 'green', 'blue'] and model['category_ids'] == [3, 8, 9]
    assert (model['model'], model['step']) == ('retinanet', 16)


def photographs(folder):
    """Writes photographs of several sizes: their paths."""
    paths = []
    for i, (height, width) in enumerate([(90, 150), (64, 64), (33, 20)]):
        paths.append(folder / f'{i}.jpg')
        cv2.imwrite(str(paths[-1]), tiny.draw_blocks(i, height, width, 3)[0][..., ::-1])
    return paths


def test_run_py_finds_in_photographs_what_predict_finds(exported, tiny_run, tmp_path):
    predictor, run = load(tiny_run), module_of(exported / 'run.py')
    for path in photographs(tmp_path):
        expected = predictor(decode_image(path.read_bytes(), name=''))
        found = run.detect(np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]))
        assert len(expected.scores) == len(found['scores']) > 1 and set(found) == set(FOUND)
        for name in FOUND:
            np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_the_example_of_the_document_finds_what_predict_finds(exported, tiny_run, tmp_path, monkeypatch):
    (example,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'export.md').read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 26 and 'detzoo' not in example
    monkeypatch.chdir(tmp_path)
    os.symlink(exported, 'exported')
    photo, *_ = photographs(tmp_path)
    photo.rename('photo.jpg')
    lines = []
    exec(example.replace('> 0.5', '> 0'), {'print': lambda *values: lines.append(values)})
    expected = load(tiny_run)(decode_image(pathlib.Path('photo.jpg').read_bytes(), name=''))
    assert len(lines) == len(expected.scores) > 1
    for (name, score, box), *found in zip(lines, expected.class_names, expected.scores, expected.boxes):
        assert name == found[0]
        np.testing.assert_allclose(score, found[1], rtol=1e-5)
        np.testing.assert_allclose(box, found[2], rtol=1e-5, atol=1e-5)


RULES = [
    ResizeRule(resize, *limits, interpolation)
    for resize, limits, interpolation in itertools.product(
        RESIZES, [(None, None), (40, 70), (None, 50)], INTERPOLATIONS
    )
    if resize != 'stretch' or limits == (None, None)
]


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: '-'.join(map(str, rule)))
def test_standalone_puts_images_on_canvases_as_prediction_does(rule, monkeypatch):
    canvases = [(64, 96), (96, 64)]
    model = dict(resize=rule._asdict(), canvases=[dict(height=height, width=width) for height, width in canvases])
    monkeypatch.setattr(standalone, 'model', lambda: model)
    random = np.random.RandomState(0)
    for size in [(1, 1), (30, 20), (64, 96), (150, 40), (41, 197), (128, 191), (192, 97), (97, 98)]:
        image = random.randint(0, 256, (*size, 3)).astype(np.uint8)
        canvas = choose_canvas(size, canvases, rule)
        expected, where = place(image, canvas, rule)
        chosen = standalone.choose_canvas(*size)
        assert (chosen['height'], chosen['width']) == canvas
        pixels, window = standalone.place(image, chosen)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(window, where.window)


@pytest.fixture
def export_of(monkeypatch, tiny_config, tmp_path):
    """A function: a detector, changes of a config -> the folder of its export."""

    def make(detector, **changes):
        monkeypatch.setattr('detzoo.inference.predictor.detector_of', lambda *args: detector)
        predictor = Predictor(tiny_config(**changes), CLASSES, 16, {}, {})
        monkeypatch.setattr(export, 'load', lambda *args, **kwargs: predictor)
        export.export_program('run', tmp_path / 'exported')
        return tmp_path / 'exported'

    return make


@pytest.mark.parametrize('resize', RESIZES)
def test_run_py_takes_the_canvas_on_which_an_image_is_largest(export_of, resize, monkeypatch, capsys, tmp_path):
    canvases = ((32, 64), (64, 32))
    seen, recipe = set(), dict(data__recipe__resize=resize, data__recipe__interpolation='bilinear')
    folder = export_of(find_windows(seen), evaluation__canvases=canvases, **recipe)
    assert seen == {(canvas, 'uint8') for canvas in canvases}
    run = module_of(folder / 'run.py')
    for size, file in (((50, 120), '32x64'), ((100, 30), '64x32')):
        assert run.choose_canvas(*size)['file'] == f'{file}.stablehlo'
        found = run.detect(np.zeros((*size, 3), np.uint8))
        np.testing.assert_allclose(found['boxes'], [[0, 0, *size[::-1]]], rtol=1e-6)
        assert found['labels'].tolist() == [1]
    photo, other = tmp_path / 'photo.png', tmp_path / 'other.png'
    cv2.imwrite(str(photo), np.zeros((50, 120, 3), np.uint8))
    other.write_text('not an image')
    monkeypatch.setattr(sys, 'argv', ['run.py', str(photo), str(other)])
    with pytest.raises(SystemExit, match='other.png is not an image that OpenCV reads'):
        run.main()
    assert capsys.readouterr().out == f'{photo} green 1.000 0.0 0.0 120.0 50.0\n'


def test_a_detector_that_needs_proposals_is_not_exported(export_of, tmp_path):
    with pytest.raises(
        DataError, match=r'has no RPN \(model.rpn is None\).* export a run whose detector makes its own'
    ):
        export_of(Detector(None, None, max, None, takes_proposals=True, needs_proposals=True))
    assert not list(tmp_path.iterdir())


def test_export_replaces_nothing_and_leaves_nothing_behind(tiny_run, tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='mine|exists|empty'):
        export.export_program(tiny_run, tmp_path)
    with pytest.raises(FileNotFoundError, match='is not the workdir of a run'):
        export.export_program(tmp_path, tmp_path / 'exported')
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 3 '):
        export.export_program(tiny_run, tmp_path / 'exported', step=3)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_the_command_writes_a_program(run_script, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(export, 'export_program', lambda *args, **kwargs: calls.append((args, kwargs)) or [(64, 96)])
    finished = run_script(
        'export_weights', '--workdir=w', f'--output={tmp_path}', '--format=stablehlo', '--checkpoint=5'
    )
    assert finished.code == 0 and calls == [(('w', str(tmp_path)), {'step': 5})]
    assert finished.stdout == f'w -> {tmp_path}, for canvases of 64 x 96 pixels\n'


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.full if name != 'retinanet' else ()) for name in DETECTORS]
)
def test_program_finds_without_detzoo_what_prediction_finds(name, tmp_path):
    """It finds none, one, and as many as there can be, on several batch sizes."""
    images, windows = pictures()
    threshold = dividing_threshold(found_by(drawn_predictor(DETECTORS[name], 1e-6), images, windows)['scores'])
    predictor = drawn_predictor(DETECTORS[name], threshold)
    expected = found_by(predictor, images, windows)
    counts = expected['valid'].sum(axis=1).tolist()
    assert {0, 1, MOST} <= set(counts)
    assert ('masks' in expected) == (name == 'mask_rcnn')
    folder = tmp_path / 'exported'
    export.export_program(make_workdir(predictor, tmp_path / 'run'), folder)
    order = [counts.index(number) for number in (0, 1, MOST)]
    order += [i for i in range(PICTURES) if i not in order]
    images, windows, expected = images[order], windows[order], {key: x[order] for key, x in expected.items()}
    # DETZOO_EXPORT_PYTHON is the interpreter of an environment that has jax, numpy and flatbuffers, and nothing else.
    python = os.environ.get('DETZOO_EXPORT_PYTHON')
    found = call_without_detzoo(folder / '64x64.stablehlo', images, windows, (1, 3, PICTURES), tmp_path, python)
    for count in (1, 3, PICTURES):
        of_count = {key.removesuffix(f'_{count}'): x for key, x in found.items() if key.endswith(f'_{count}')}
        assert_same_detections(of_count, {key: x[:count] for key, x in expected.items()})


@pytest.mark.full
def test_a_segmenter_is_exported(tmp_path):
    model = dict(name='unet', backbone=dict(width=0.25, norm='batch_norm'), backbone_strides=(1, 2), border_sigma=1.0)
    predictor, images = drawn_predictor(model), pictures()
    folder = tmp_path / 'exported'
    export.export_program(make_workdir(predictor, tmp_path / 'run'), folder)
    found = module_of(folder / 'run.py').program('64x64.stablehlo')(*images)
    assert_same_detections({name: np.asarray(x) for name, x in found.items()}, found_by(predictor, *images))
    for path in photographs(tmp_path):
        image = decode_image(path.read_bytes(), name='')
        classes = module_of(folder / 'run.py').detect(image)['labels']
        assert len(np.unique(classes)) > 1
        np.testing.assert_array_equal(classes, predictor(image).class_map)
