"""A split through all devices, and the evaluation of a checkpoint: each image once, files at the end."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from linear import find_windows

from detzoo.data.catalog import open_dataset, open_split
from detzoo.data.records import decode_image, ground_truth
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics, read_detections
from detzoo.inference.dataset import canvases_for, evaluate_workdir, make_predict_step, predict_dataset
from detzoo.inference.predictor import canvas_for, evaluation_canvases, load, to_coco
from detzoo.run import parallel
from detzoo.run.classes import Classes
from detzoo.types import Detections, Detector

LIMITED = dict(data__recipe__shorter_side=40, data__recipe__longer_side=70, data__recipe__interpolation='bilinear')


@pytest.fixture(scope='module')
def evaluated(tiny_run):
    return evaluate_workdir(tiny_run)


def test_evaluate_workdir_finds_in_each_image_what_the_predictor_finds(tiny_run, evaluated, data_dir):
    # One goes through the batches of all devices, the other through one image at a time.
    _, truth, results = evaluated
    predictor, dataset = load(tiny_run), open_dataset('toy', 'validation', data_dir)
    assert [image['id'] for image in truth['images']] == list(range(130, 140))
    for record in dataset.records:
        found = predictor(decode_image(record['image'], name=''))
        rows = [row for row in results if row['image_id'] == record['image_id']]
        assert len(rows) == len(found.scores) > 0
        np.testing.assert_allclose([row['score'] for row in rows], found.scores, rtol=1e-4)
        expected = to_coco(found, record['image_id'])
        np.testing.assert_allclose([row['bbox'] for row in rows], [row['bbox'] for row in expected], atol=0.01)
        assert [row['category_id'] for row in rows] == found.category_ids.tolist()


def test_evaluate_workdir_writes_what_it_returns(evaluated, tiny_run, data_dir):
    metrics, truth, results = evaluated
    assert metrics['step'] == 16 and metrics['images'] == 10
    assert json.loads((tiny_run / 'evaluation.json').read_text()) == metrics
    assert read_detections(tiny_run / 'detections.json.gz') == results
    assert truth == ground_truth(open_dataset('toy', 'validation', data_dir))
    assert metrics == {'step': 16, **coco_metrics(truth, results), 'candidates_dropped': 0.0}


def test_evaluate_workdir_refuses_a_folder_that_cannot_be_written_before_it_computes(tiny_run, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('detzoo.inference.dataset.predict_dataset', None)
    with pytest.raises(
        OSError, match=r'cannot write into .*/file \(File exists\): give another folder for the files as output'
    ):
        evaluate_workdir(tiny_run, output=tmp_path / 'file')


def test_evaluate_prints_the_table_of_a_workdir_that_is_read_only(tiny_run, run_script, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(30, 'Read-only file system')

    before = _state(tiny_run)
    monkeypatch.setattr('tempfile.TemporaryFile', read_only)
    monkeypatch.setattr('detzoo.inference.dataset.predict_dataset', lambda *args, **kwargs: [])
    finished = run_script('evaluate', f'--workdir={tiny_run}', '--recall')
    assert finished.code == 1 and finished.stdout.count('Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all') == 1
    assert 'all objects         0.000    0.000    0.000    0.000' in finished.stdout
    message = f'cannot write into {tiny_run} (Read-only file system): give another folder for the files as output'
    assert finished.stderr.splitlines()[-1] == f'error: {message}' and 'Traceback' not in finished.stderr
    assert _state(tiny_run) == before


def test_evaluate_with_an_output_leaves_the_workdir_alone(tiny_run, tmp_path):
    before = _state(tiny_run)
    metrics, _, results = evaluate_workdir(tiny_run, output=tmp_path / 'new' / 'folder')
    assert _state(tiny_run) == before and len(before) > 10
    assert sorted(path.name for path in (tmp_path / 'new' / 'folder').iterdir()) == [
        'detections.json.gz',
        'evaluation.json',
    ]
    assert json.loads((tmp_path / 'new' / 'folder' / 'evaluation.json').read_text()) == metrics
    assert read_detections(tmp_path / 'new' / 'folder' / 'detections.json.gz') == results


def _state(folder):
    """The files and folders in a folder, with the times of their last changes."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob('*')]}


def test_evaluate_workdir_tells_the_results_that_cannot_be_written(tiny_run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    seen = []
    monkeypatch.setattr('detzoo.inference.dataset.predict_dataset', lambda *args, **kwargs: [])
    monkeypatch.setattr('detzoo.inference.dataset.write_detections', full)
    with pytest.raises(OSError, match='No space left'):
        evaluate_workdir(tiny_run, output=tmp_path, on_results=lambda *results: seen.append(results))
    assert len(seen) == 1 and seen[0][0]['boxes']['AP'] == 0


def test_evaluate_workdir_refuses_objects_without_masks_before_it_computes(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr('detzoo.inference.dataset.make_predict_step', None)
    monkeypatch.setattr('detzoo.inference.dataset.evaluated_kinds', lambda config: ('bbox', 'segm'))
    with pytest.raises(
        DataError, match=r"the split 'validation' of 'toy' cannot be evaluated: annotation \d+ of image .*png: "
    ):
        evaluate_workdir(tiny_run, output=tmp_path)


def test_evaluate_workdir_refuses_data_of_other_classes(tiny_run, monkeypatch):
    real = open_split
    monkeypatch.setattr(
        'detzoo.inference.dataset.open_split', lambda *args: real(*args)._replace(class_names=('a', 'b', 'c'))
    )
    with pytest.raises(DataError, match=r"'toy' has the classes \('a', 'b', 'c'\) now"):
        evaluate_workdir(tiny_run)


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_predict_dataset_puts_images_on_the_canvases_of_evaluation(data_dir, tiny_config, resize):
    # A step that finds the window itself: mapped back, it is the whole image, whatever the canvas.
    config = tiny_config(evaluation__canvases=((32, 64), (64, 32)), data__recipe__resize=resize)
    detector = find_windows(set())
    step = make_predict_step(detector, evaluation_canvases(config))
    dataset = open_dataset('toy', 'validation', data_dir)
    truth = ground_truth(dataset)
    results = predict_dataset(step, *parallel.replicate(({}, {})), dataset, truth, config)
    assert [row['image_id'] for row in results] == [image['id'] for image in truth['images']]
    sizes = [[0, 0, image['width'], image['height']] for image in truth['images']]
    np.testing.assert_allclose([row['bbox'] for row in results], sizes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('exact', [False, True])
def test_evaluation_uses_canvases_of_their_own_when_exact(data_dir, tiny_config, exact):
    config = tiny_config(evaluation__exact=exact, evaluation__divisor=8, evaluation__canvases=((72, 72),), **LIMITED)
    dataset, seen = open_dataset('toy', 'validation', data_dir), set()
    truth = ground_truth(dataset)
    step = make_predict_step(find_windows(seen), canvases_for(truth, config))
    results = predict_dataset(step, *parallel.replicate(({}, {})), dataset, truth, config)
    sizes = [[0, 0, image['width'], image['height']] for image in truth['images']]
    np.testing.assert_allclose([row['bbox'] for row in results], sizes, rtol=1e-6, atol=1e-9)
    if exact:
        own = {canvas_for((image['height'], image['width']), config) for image in truth['images']}
        assert seen == {(canvas, 'float32') for canvas in own} and len(own) > 3
    else:
        assert seen == {((72, 72), 'uint8')}


def test_detections_of_classes_that_the_data_lack_are_left_out(data_dir, tiny_config):
    def predict(params, model_state, inputs):
        boxes = jnp.repeat(inputs.window[:, None], 5, axis=1)
        ones = boxes[..., 0] * 0 + 1
        return Detections(boxes, ones, jnp.broadcast_to(jnp.arange(5), ones.shape), ones > 0)

    config, dataset = tiny_config(), open_dataset('toy', 'validation', data_dir)
    truth = ground_truth(dataset)
    classes = Classes(('N/A', 'blue', 'green', 'N/A', 'red'), (1, 9, 8, 4, 3))  # of the detector
    step = make_predict_step(Detector(None, None, predict, None), canvases_for(truth, config))
    results = predict_dataset(step, *parallel.replicate(({}, {})), dataset, truth, config, classes=classes)
    assert [row['category_id'] for row in results] == [9, 8, 3] * len(truth['images'])
