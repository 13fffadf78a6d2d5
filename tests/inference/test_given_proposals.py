"""Prediction and evaluation with proposals from outside. A detector that finds what it is given shows what it gets."""

import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from detzoo.errors import DataError
from detzoo.evaluation import read_detections
from detzoo.inference.dataset import evaluate_workdir, propose_workdir
from detzoo.inference.photos import predict_files
from detzoo.inference.predictor import Predictor, load
from detzoo.run.classes import Classes
from detzoo.types import Detections, Detector

CLASSES = Classes(('red', 'green', 'blue'), (3, 8, 9))


def find_proposals(params, model_state, inputs):
    ones, given = inputs.proposals[..., 0] * 0 + 1, inputs.proposals_valid
    dropped = given.sum(axis=1).astype('int32')  # any number, another for each image
    return Detections(inputs.proposals, ones, ones.astype('int32'), given, candidates_dropped=dropped)


@pytest.fixture
def two_stages(monkeypatch, tiny_config):
    """A function: whether it has an RPN, changes of a config -> a Predictor that finds its proposals."""

    def make(rpn, **changes):
        detector = Detector(None, None, find_proposals, None, takes_proposals=True, needs_proposals=not rpn)
        monkeypatch.setattr('detzoo.inference.predictor.detector_of', lambda *args: detector)
        return Predictor(tiny_config(data__max_proposals=5, **changes), CLASSES, 16, {}, {})

    return make


@pytest.fixture
def workdir_of(monkeypatch, tmp_path):
    """A function: a Predictor -> a workdir of which it is."""

    def make(predictor):
        monkeypatch.setattr('detzoo.inference.dataset.load', lambda *args, **kwargs: predictor)
        return tmp_path

    return make


@pytest.mark.parametrize('rpn', [False, True])
@pytest.mark.parametrize('resize', ['fit', 'stretch', 'letterbox'])
def test_predictor_takes_proposals_in_pixels_of_the_image(two_stages, rpn, resize):
    predictor, image = two_stages(rpn, data__recipe__resize=resize), np.zeros((30, 100, 3), np.uint8)
    found = predictor(image, np.array([[10, 5, 20, 30], [0.5, 0, 100, 7.5], [90, -9, 105, 11]]))
    np.testing.assert_allclose(found.boxes, [[10, 5, 20, 30], [0.5, 0, 100, 7.5], [90, 0, 100, 11]], atol=1e-4)
    assert predictor(image, [[1, 2, 3, 4]] * 5).boxes.shape == (5, 4)
    assert predictor(image, np.zeros((0, 4))).boxes.shape == (0, 4)
    for bad in (np.zeros((6, 4)), np.zeros(4), np.zeros((2, 3)), []):
        with pytest.raises(ValueError, match=r'proposals are \[n, 4\] xyxy, n at most data.max_proposals=5, not \['):
            predictor(image, bad)


def test_predictor_without_rpn_needs_proposals(two_stages, tiny_run, tmp_path):
    trained, needy = load(tiny_run), two_stages(False)
    PIL.Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    with pytest.raises(DataError, match=r'has no RPN .*: give proposals, as in predictor\(image, proposals\)'):
        needy(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match='has no RPN'):
        predict_files(needy, [str(tmp_path / 'a.png')], tmp_path / 'output')
    assert not (tmp_path / 'output').exists()
    with pytest.raises(DataError, match='retinanet takes no proposals: leave out proposals'):
        trained(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 4)))


def test_evaluate_workdir_takes_proposals(two_stages, workdir_of):
    workdir = workdir_of(two_stages(True))
    metrics, truth, results = evaluate_workdir(workdir, proposals='ground_truth')
    things = [thing for thing in truth['annotations'] if not thing['iscrowd']]
    assert [row['image_id'] for row in results] == [thing['image_id'] for thing in things]
    np.testing.assert_allclose([row['bbox'] for row in results], [thing['bbox'] for thing in things], atol=1e-4)
    assert metrics['proposals'] == 'ground_truth' and metrics['step'] == 16
    assert metrics['candidates_dropped'] == len(things) / len(truth['images'])
    # The usual results of the run stay what they are.
    assert {path.name for path in workdir.iterdir()} == {
        'evaluation_given_proposals.json',
        'detections_given_proposals.json.gz',
    }
    assert json.loads((workdir / 'evaluation_given_proposals.json').read_text()) == metrics
    # What one detector found are another's proposals.
    path = workdir / 'detections_given_proposals.json.gz'
    again = evaluate_workdir(workdir, proposals=str(path))[2]
    np.testing.assert_allclose([row['bbox'] for row in again], [row['bbox'] for row in results], atol=1e-4)


def test_evaluate_workdir_tells_the_recall_of_detections_and_of_proposals(two_stages, workdir_of, run_script):
    predictor = two_stages(True)

    def half(params, model_state, inputs):
        proposed = find_proposals(params, model_state, inputs)
        return proposed._replace(valid=proposed.valid.at[:, 1:].set(False), candidates_dropped=None)

    predictor.detector = predictor.detector._replace(predict=half, propose=find_proposals)
    workdir = workdir_of(predictor)
    metrics, truth, results = evaluate_workdir(workdir, proposals='ground_truth', recall=True)
    things = sum(not thing['iscrowd'] for thing in truth['annotations'])
    images = len({row['image_id'] for row in results})
    assert len(results) == images < things  # one object of each image that has any
    assert metrics['recall']['recall']['all'] == pytest.approx(
        dict.fromkeys(('AR1', 'AR10', 'AR100', 'AR1000'), images / things)
    )
    assert metrics['proposal_recall']['per_image'] == things / len(truth['images'])
    proposed = metrics['proposal_recall']['recall']['all']
    assert proposed['AR1'] == pytest.approx(images / things) and proposed['AR10'] == pytest.approx(1)
    assert json.loads((workdir / 'evaluation_given_proposals.json').read_text()) == metrics
    finished = run_script('evaluate', f'--workdir={workdir}', '--proposals=ground_truth', '--recall')
    assert 'detections an image' in finished.stdout and 'proposals an image' in finished.stdout


def find_corners(params, model_state, inputs):
    """Two boxes an image, as a first stage would propose them."""
    boxes = jnp.stack([inputs.window * 0.5, inputs.window], axis=1)
    scores = jnp.broadcast_to(jnp.array([1.0, 0.5]), boxes.shape[:2])
    return Detections(boxes, scores, jnp.zeros(scores.shape, jnp.int32), scores > 0)


def test_propose_workdir_writes_what_the_first_stage_proposes(two_stages, workdir_of, tmp_path, run_script):
    predictor = two_stages(True)
    predictor.detector = predictor.detector._replace(propose=find_corners)
    workdir = workdir_of(predictor)
    dataset, results = propose_workdir(workdir, 'train[:3]')
    assert dataset.split == 'train[:3]' and len(results) == 6
    for record, of_image in zip(dataset.records, (results[i : i + 2] for i in (0, 2, 4))):
        size = np.array([0, 0, record['width'], record['height']])
        assert [row['image_id'] for row in of_image] == [record['image_id']] * 2
        np.testing.assert_allclose([row['bbox'] for row in of_image], [size / 2, size], atol=1e-3)
    predictor.detector = predictor.detector._replace(needs_proposals=True)
    with pytest.raises(DataError, match='holds a retinanet without an RPN, which makes no proposals'):
        propose_workdir(workdir, 'train')


def test_evaluate_workdir_takes_the_proposals_of_the_config(two_stages, workdir_of):
    workdir = workdir_of(two_stages(False, data__validation_proposals='ground_truth'))
    metrics, _, results = evaluate_workdir(workdir)
    assert len(results) > 10 and 'proposals' not in metrics
    assert {path.name for path in workdir.iterdir()} == {'evaluation.json', 'detections.json.gz'}


def test_evaluate_workdir_refuses_proposals_that_cannot_be(two_stages, workdir_of, tiny_run):
    with pytest.raises(DataError, match=r'retinanet takes no proposals: leave out proposals$'):
        evaluate_workdir(tiny_run, proposals='ground_truth')
    workdir = workdir_of(two_stages(False))
    with pytest.raises(DataError, match=r'has no RPN .*: give proposals$'):
        evaluate_workdir(workdir)
    with pytest.raises(DataError, match='cannot read the proposals nowhere.json'):
        evaluate_workdir(workdir, proposals='nowhere.json')
    assert not list(workdir.iterdir())


def test_evaluate_workdir_writes_into_another_folder_and_then_says_what(two_stages, workdir_of, tmp_path):
    workdir, output = workdir_of(two_stages(True)), tmp_path / 'new' / 'output'
    seen = []

    def on_results(*results):
        seen.append(results)
        assert len(list(output.iterdir())) == 2

    returned = evaluate_workdir(workdir, proposals='ground_truth', output=output, on_results=on_results)
    assert seen == [returned] and [path.name for path in workdir.iterdir()] == ['new']
    assert json.loads((output / 'evaluation_given_proposals.json').read_text()) == returned[0]
    assert read_detections(output / 'detections_given_proposals.json.gz') == returned[2]
