"""Prediction: any image in, boxes in its own pixels and the data's own ids out."""

import json
import os
import pathlib
import socket

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
from pycocotools.coco import COCO

from detzoo.config import defaults
from detzoo.data.catalog import open_dataset
from detzoo.data.geometry import Placement, ResizeRule, place, placement
from detzoo.data.records import decode_image, ground_truth
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics, read_detections
from detzoo.inference.dataset import canvases_for, evaluate_workdir, make_predict_step, predict_dataset
from detzoo.inference.photos import find_images, picture_names, predict_files, read_image
from detzoo.inference.predictor import (
    ImageDetections,
    Predictor,
    canvas_for,
    evaluation_canvases,
    load,
    to_coco,
    to_image,
)
from detzoo.run.classes import Classes
from detzoo.types import Detections, Detector

CLASSES = Classes(('red', 'green', 'blue'), (3, 8, 9))


@pytest.fixture(scope='module')
def predictor(tiny_run):
    return load(tiny_run)


@pytest.fixture(scope='module')
def evaluated(tiny_run):
    return evaluate_workdir(tiny_run)


def test_to_image_maps_boxes_and_labels_back():
    # A picture of 100 x 30 on a canvas at half its size; the second of three detections is padding.
    where = Placement((0.5, 0.5), (50, 15))
    found = Detections(
        boxes=np.float32([[10, 5, 20, 10], [1, 1, 2, 2], [0, 0, 50, 15]]),
        scores=np.float32([0.75, 0, 0.5]),
        labels=np.int32([2, 0, 0]),
        valid=np.array([True, False, True]),
    )
    result = to_image(found, where, CLASSES)
    np.testing.assert_array_equal(result.boxes, [[20, 10, 40, 20], [0, 0, 100, 30]])
    assert result.scores.tolist() == [0.75, 0.5] and result.labels.tolist() == [2, 0]
    assert result.category_ids.tolist() == [9, 3] and result.class_names == ('blue', 'red')
    assert to_coco(result, 7)[0] == {'image_id': 7, 'category_id': 9, 'bbox': [20, 10, 20, 10], 'score': 0.75}
    json.dumps(to_coco(result, np.int64(7)))


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_to_image_maps_back_what_was_placed(resize):
    boxes = np.array([[0, 0, 100, 30], [7, 3, 21, 29], [64, 11, 90, 12.5]])
    where = placement((30, 100), (64, 48), ResizeRule(resize))
    found = Detections(
        where.to_canvas(boxes).astype(np.float32), np.float32([0.9, 0.8, 0.7]), np.zeros(3, int), np.ones(3, bool)
    )
    np.testing.assert_allclose(to_image(found, where, CLASSES).boxes, boxes, atol=1e-4)


def test_to_image_of_nothing():
    nothing = Detections(np.zeros((3, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, int), np.zeros(3, bool))
    result = to_image(nothing, Placement((0.5, 0.5), (50, 15)), CLASSES)
    assert result.boxes.shape == (0, 4) and result.class_names == () and to_coco(result, 1) == []


def test_to_image_pastes_masks_and_to_coco_encodes_them():
    # A canvas at half the size of an image 40 wide and 30 high; the mask's left half.
    masks = np.zeros((3, 14, 14), np.float32)
    masks[:, :, :7] = 1
    detections = Detections(
        boxes=np.float32([[2, 3, 12, 13], [5, 5, 9, 9], [0, 0, 0, 0]]),
        scores=np.float32([0.9, 0.8, 0]),
        labels=np.int32([1, 0, 0]),
        valid=np.array([True, True, False]),
        masks=masks,
    )
    found = to_image(detections, Placement((0.5, 0.5), (20, 15)), Classes(('a', 'b'), (7, 9)))
    assert found.masks.shape == (2, 30, 40) and found.masks.dtype == bool
    ys, xs = np.nonzero(found.masks[0])
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (4, 13, 6, 25)
    results = to_coco(found, 5)
    decoded = np.stack([pycocotools.mask.decode(result['segmentation']) for result in results])
    np.testing.assert_array_equal(decoded, found.masks)
    assert found.at_least(0.85).masks.shape == (1, 30, 40)
    full = detections._replace(masks=np.ones_like(masks))
    legacy = to_image(full, Placement((0.45, 0.45), (20, 15)), Classes(('a', 'b'), (7, 9)), 'torchvision')
    exact = to_image(full, Placement((0.45, 0.45), (20, 15)), Classes(('a', 'b'), (7, 9)))
    assert (legacy.masks[0] & ~exact.masks[0]).any()
    assert json.dumps(results)


def test_at_least_leaves_out_lower_scores():
    scores = np.array([0.9, 0.5, 0.4])
    found = ImageDetections(np.arange(12.0).reshape(3, 4), scores, np.arange(3), np.arange(3), ('a', 'b', 'c'))
    for threshold, count in ((0.95, 0), (0.5, 2), (0.0, 3)):
        kept = found.at_least(threshold)
        assert len(kept.scores) == len(kept.boxes) == len(kept.class_names) == count
        np.testing.assert_array_equal(kept.scores, scores[:count])


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (64, 64), (150, 90)])
def test_predictor_finds_boxes_inside_of_any_image(predictor, size):
    image = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    found = predictor(image)
    assert len(found.scores) > 0 and (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= -1e-4).all() and (found.boxes <= np.array([*size[::-1], *size[::-1]]) + 1e-4).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.category_ids.tolist() == [CLASSES.category_ids[label] for label in found.labels]


def test_predictor_finds_the_same_at_twice_the_size(predictor, toy):
    # Enlarged by repeating pixels and shrunk again by averaging, it is the same canvas: all boxes are twice as large.
    image = decode_image(toy(1, 33).records[0]['image'], name='')
    image = np.pad(image, ((0, 64 - image.shape[0]), (0, 64 - image.shape[1]), (0, 0)), mode='edge')[:64, :64]
    small, large = predictor(image), predictor(image.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_allclose(large.boxes, 2 * small.boxes, rtol=1e-5)
    np.testing.assert_array_equal(large.scores, small.scores)


def test_predictor_uses_the_averaged_parameters(predictor, tiny_run):
    from detzoo.run.checkpoint import Checkpoints

    checkpoints = Checkpoints(tiny_run)
    step, variables = checkpoints.restore_variables()
    checkpoints.close()
    assert predictor.step == step == 16
    jax.tree.map(np.testing.assert_array_equal, predictor.params, variables['ema_params'])
    assert load(tiny_run, 10).step == 10


@pytest.mark.parametrize(
    'image',
    [
        [[0]],
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((64, 0, 3), np.uint8),
    ],
)
def test_predictor_refuses_what_is_no_image(predictor, image):
    with pytest.raises(ValueError, match=r'an image is \[h, w, 3\] uint8 RGB of at least one pixel, not '):
        predictor(image)


def test_evaluate_workdir_finds_in_each_image_what_the_predictor_finds(predictor, evaluated, data_dir):
    # One goes through the batches of all devices, the other through one image at a time.
    _, truth, results = evaluated
    dataset = open_dataset('toy', 'validation', data_dir)
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
    assert metrics == {'step': 16, **coco_metrics(truth, results)}


def test_evaluate_workdir_writes_into_another_folder_and_then_says_what(two_stages, workdir_of, tmp_path):
    workdir, output = workdir_of(two_stages({'samples': 64})), tmp_path / 'new' / 'output'
    seen = []

    def on_results(*results):
        seen.append(results)
        assert len(list(output.iterdir())) == 2

    returned = evaluate_workdir(workdir, proposals='ground_truth', output=output, on_results=on_results)
    assert seen == [returned] and [path.name for path in workdir.iterdir()] == ['new']
    assert json.loads((output / 'evaluation_given_proposals.json').read_text()) == returned[0]
    assert read_detections(output / 'detections_given_proposals.json.gz') == returned[2]


def test_evaluate_workdir_refuses_a_folder_that_cannot_be_written_before_it_computes(tiny_run, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('detzoo.inference.dataset.predict_dataset', None)
    with pytest.raises(
        OSError, match=r'cannot write into .*/file \(File exists\): give another folder for the files as output'
    ):
        evaluate_workdir(tiny_run, output=tmp_path / 'file')


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
    real = open_dataset
    monkeypatch.setattr(
        'detzoo.inference.dataset.open_dataset', lambda *args: real(*args)._replace(class_names=('a', 'b', 'c'))
    )
    with pytest.raises(DataError, match=r"'toy' has the classes \('a', 'b', 'c'\) now"):
        evaluate_workdir(tiny_run)


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_predict_dataset_puts_images_on_the_canvases_of_evaluation(data_dir, tiny_config, resize):
    # A step that finds the window itself: mapped back, it is the whole image, whatever the canvas.
    import itertools

    from detzoo.run import parallel

    def predict(params, model_state, inputs):
        boxes = inputs.window[:, None]
        ones = boxes[..., 0] * 0 + 1
        return Detections(boxes, ones, ones.astype('int32'), ones > 0)

    config = tiny_config(evaluation__canvases=((32, 64), (64, 32)), data__recipe__resize=resize)
    detector = Detector(*itertools.repeat(None, 2), predict, None)
    step = make_predict_step(detector, evaluation_canvases(config))
    dataset = open_dataset('toy', 'validation', data_dir)
    truth = ground_truth(dataset)
    results = predict_dataset(step, *parallel.replicate(({}, {})), dataset, truth, config)
    assert [row['image_id'] for row in results] == [image['id'] for image in truth['images']]
    sizes = [[0, 0, image['width'], image['height']] for image in truth['images']]
    np.testing.assert_allclose([row['bbox'] for row in results], sizes, rtol=1e-6, atol=1e-9)


# Exact mode: each image on a canvas of its own.

LIMITED = dict(data__recipe__shorter_side=40, data__recipe__longer_side=70, data__recipe__interpolation='bilinear')


@pytest.mark.parametrize(
    'changes, size, expected',
    [
        ({}, (100, 150), (48, 64)),  # 40 x 60, on multiples of 16
        ({}, (50, 500), (16, 80)),  # 7 x 70
        (dict(evaluation__divisor=1), (50, 500), (7, 70)),
        (dict(evaluation__exact=False), (100, 150), (64, 128)),
        (
            dict(data__recipe__shorter_side=None, data__recipe__longer_side=None),
            (100, 150),
            (64, 128),
        ),  # nothing limits it
        (dict(data__recipe__resize='letterbox'), (100, 150), (64, 128)),
    ],
)
def test_canvas_for_by_hand(tiny_config, changes, size, expected):
    changes = LIMITED | dict(evaluation__exact=True, evaluation__divisor=16) | changes
    config = tiny_config(evaluation__canvases=((64, 128), (128, 64)), **changes)
    assert canvas_for(size, config) == expected


def find_windows(seen):
    """A detector that finds the window of an image, and notes what images it gets."""

    def predict(params, model_state, inputs):
        seen.add((inputs.images.shape[1:3], str(inputs.images.dtype)))
        boxes = inputs.window[:, None]
        ones = boxes[..., 0] * 0 + 1
        return Detections(boxes, ones, ones.astype('int32'), ones > 0)

    return Detector(None, None, predict, None)


@pytest.mark.parametrize('exact', [False, True])
def test_evaluation_uses_canvases_of_their_own_when_exact(data_dir, tiny_config, exact):
    from detzoo.run import parallel

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


def test_exact_prediction_gives_the_detector_unrounded_pixels(monkeypatch, tiny_config):
    seen = set()
    monkeypatch.setattr('detzoo.inference.predictor.detector_of', lambda *args: find_windows(seen))
    config = tiny_config(evaluation__exact=True, evaluation__divisor=8, **LIMITED)
    predictor = Predictor(config, Classes(('a', 'b'), (4, 9)), 0, {}, {})
    found = predictor(np.zeros((50, 100, 3), np.uint8))
    assert seen == {((40, 72), 'float32')}  # 35 x 70
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 50]], rtol=1e-6)
    assert found.category_ids == [9]


def test_detections_of_classes_that_the_data_lack_are_left_out(data_dir, tiny_config):
    from detzoo.run import parallel

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


# Proposals from outside. Detectors that find what they are given show what they get.


def find_proposals(params, model_state, inputs):
    ones = inputs.proposals[..., 0] * 0 + 1
    return Detections(inputs.proposals, ones, ones.astype('int32'), inputs.proposals_valid)


@pytest.fixture
def two_stages(monkeypatch, tiny_config):
    """A function: changes of a config -> a Predictor that finds its proposals; its config is of a detector of two stages."""
    monkeypatch.setattr(
        'detzoo.inference.predictor.detector_of', lambda *args: Detector(None, None, find_proposals, None)
    )

    def make(rpn, **changes):
        config = tiny_config(data__max_proposals=5, **changes)
        with config.unlocked():
            config.model.rpn = rpn
        return Predictor(config, CLASSES, 16, {}, {})

    return make


@pytest.mark.parametrize('rpn', [None, {'samples': 64}])
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


def test_predictor_without_rpn_needs_proposals(two_stages, predictor, pictures, tmp_path):
    needy = two_stages(None)
    with pytest.raises(DataError, match=r'has no RPN .*: give proposals, as in predictor\(image, proposals\)'):
        needy(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match='has no RPN'):
        predict_files(needy, [str(pictures)], tmp_path / 'output')
    assert not (tmp_path / 'output').exists()
    with pytest.raises(DataError, match='retinanet takes no proposals: leave out proposals'):
        predictor(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 4)))


@pytest.fixture
def workdir_of(monkeypatch, tmp_path):
    """A function: a Predictor -> a workdir of which it is."""

    def make(predictor):
        monkeypatch.setattr('detzoo.inference.predictor.load', lambda *args, **kwargs: predictor)
        return tmp_path

    return make


def test_evaluate_workdir_takes_proposals(two_stages, workdir_of):
    workdir = workdir_of(two_stages({'samples': 64}))
    metrics, truth, results = evaluate_workdir(workdir, proposals='ground_truth')
    things = [thing for thing in truth['annotations'] if not thing['iscrowd']]
    assert [row['image_id'] for row in results] == [thing['image_id'] for thing in things]
    np.testing.assert_allclose([row['bbox'] for row in results], [thing['bbox'] for thing in things], atol=1e-4)
    assert metrics['proposals'] == 'ground_truth' and metrics['step'] == 16
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


def test_evaluate_workdir_takes_the_proposals_of_the_config(two_stages, workdir_of):
    workdir = workdir_of(two_stages(None, data__validation_proposals='ground_truth'))
    metrics, _, results = evaluate_workdir(workdir)
    assert len(results) > 10 and 'proposals' not in metrics
    assert {path.name for path in workdir.iterdir()} == {'evaluation.json', 'detections.json.gz'}


def test_evaluate_workdir_refuses_proposals_that_cannot_be(two_stages, workdir_of, tiny_run):
    with pytest.raises(DataError, match=r'retinanet takes no proposals: leave out proposals$'):
        evaluate_workdir(tiny_run, proposals='ground_truth')
    workdir = workdir_of(two_stages(None))
    with pytest.raises(DataError, match=r'has no RPN .*: give proposals$'):
        evaluate_workdir(workdir)
    with pytest.raises(DataError, match='cannot read the proposals nowhere.json'):
        evaluate_workdir(workdir, proposals='nowhere.json')
    assert not list(workdir.iterdir())


@pytest.mark.parametrize('key', ['train_proposals', 'validation_proposals'])
def test_check_names_proposals_that_are_missing_or_too_many(tiny_config, toy, key):
    from detzoo.training.loop import check

    with pytest.raises(DataError, match=f'retinanet takes no proposals: leave out data.{key}'):
        check(tiny_config(**{f'data__{key}': 'ground_truth'}), toy())
    config = tiny_config(data__train_proposals='a', data__validation_proposals='b')
    with config.unlocked():
        config.model.rpn = None
    config.data[key] = None
    with pytest.raises(DataError, match=rf'has no RPN \(model.rpn is None\) .*: give data.{key}'):
        check(config, toy())


# Files


class Corners:
    """Finds in each image its upper left quarter, surely, and the whole, hardly."""

    classes = CLASSES

    def __call__(self, image):
        height, width = image.shape[:2]
        boxes = np.array([[0, 0, width / 2, height / 2], [0, 0, width, height]])
        return ImageDetections(boxes, np.array([0.9, 0.2]), np.array([1, 2]), np.array([8, 9]), ('green', 'blue'))


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures: a.png of 40 x 20, a.jpg of 30 x 50, sub/b.png of 8 x 6, and a text."""
    folder = tmp_path / 'pictures'
    (folder / 'sub').mkdir(parents=True)
    for name, size in (('a.png', (40, 20)), ('a.jpg', (30, 50)), ('sub/b.png', (8, 6))):
        PIL.Image.new('RGB', size, (90, 90, 90)).save(folder / name)
    (folder / 'notes.txt').write_text('no picture')
    return folder


def test_predict_files_lists_detections_that_pycocotools_reads(pictures, tmp_path):
    output = tmp_path / 'new' / 'output'
    assert predict_files(Corners(), [str(pictures), str(pictures / 'sub/*.png')], output) == (3, [])
    results = json.loads((output / 'detections.json').read_text())
    assert [row['image'] for row in results] == ['a.jpg', 'a.png', 'sub/b.png']
    named = dict(image='a.png', category='green')
    assert results[1] == dict(image_id=1, category_id=8, bbox=[0, 0, 20, 10], score=0.9) | named

    images = [
        (row['file_name'], row['width'], row['height'], row['picture'])
        for row in json.loads((output / 'images.json').read_text())['images']
    ]
    assert images == [('a.jpg', 30, 50, 'a.png'), ('a.png', 40, 20, 'a.png.png'), ('sub/b.png', 8, 6, 'sub/b.png')]
    read = COCO(str(output / 'images.json')).loadRes(str(output / 'detections.json'))
    assert [read.anns[i]['area'] for i in sorted(read.anns)] == [15 * 25, 20 * 10, 4 * 3]


def test_predict_files_draws_each_image(pictures, tmp_path):
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], tmp_path / 'output')
    aspect_ratios = {}
    pictures_drawn = set((tmp_path / 'output').rglob('*.png')) - {tmp_path / 'output/overview.png'}
    for path in pictures_drawn:
        with PIL.Image.open(path) as image:
            aspect_ratios[str(path.relative_to(tmp_path / 'output'))] = image.height / image.width
            assert (np.asarray(image) != 90).any()  # something is drawn
    with (
        PIL.Image.open(tmp_path / 'output/overview.png') as overview,
        PIL.Image.open(tmp_path / 'output/a.png') as first,
    ):
        assert overview.width > first.width and overview.height >= first.height
    assert aspect_ratios == {'a.png': 50 / 30, 'a.png.png': 20 / 40, 'sub/b.png': 6 / 8}


def test_predict_files_keeps_the_picture_of_an_image_called_overview(pictures, tmp_path):
    (pictures / 'a.png').rename(pictures / 'overview.png')
    predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    names = {path.name for path in (tmp_path / 'output').glob('*.png')}
    assert names == {'a.png', 'overview.png', 'overview.png.png'}


def test_predict_files_leaves_out_low_scores(pictures, tmp_path):
    for threshold, count in ((0.95, 0), (0.5, 1), (0.1, 2)):
        predict_files(Corners(), [str(pictures / 'a.png')], tmp_path / 'output', score_threshold=threshold)
        assert len(json.loads((tmp_path / 'output/detections.json').read_text())) == count


@pytest.mark.parametrize('content', [b'', b'<html>', 'truncated'])
def test_predict_files_writes_nothing_where_an_image_is_bad(pictures, tmp_path, content):
    data = (pictures / 'a.png').read_bytes()
    (pictures / 'z.png').write_bytes(data[: len(data) // 2] if content == 'truncated' else content)
    with pytest.raises(DataError, match=r'z\.png: not a whole image'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pictures']
    written, skipped = predict_files(Corners(), [str(pictures)], tmp_path / 'output', on_bad_record='skip')
    assert written == 2 and len(skipped) == 1 and 'z.png' in skipped[0]
    results = json.loads((tmp_path / 'output/detections.json').read_text())
    assert [(row['image_id'], row['image']) for row in results] == [(0, 'a.jpg'), (1, 'a.png')]


def test_predict_files_refuses_large_images(pictures, tmp_path):
    with pytest.raises(DataError, match=r'a\.jpg: 30 x 50 pixels are over max_pixels=1000'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output', max_pixels=1000)


def test_predict_files_gives_the_output_the_usual_permissions(pictures, tmp_path):
    (tmp_path / 'usual').mkdir()
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], tmp_path / 'output')
    for folder in ('output', 'output/sub'):
        assert (tmp_path / folder).stat().st_mode == (tmp_path / 'usual').stat().st_mode


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_predict_files_replaces_what_an_earlier_prediction_wrote_and_nothing_else(pictures, tmp_path):
    output = tmp_path / 'output'
    output.mkdir()
    (output / 'notes.txt').write_text('mine')
    (output / 'mine.png').write_text('mine')
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], output, score_threshold=0.95)
    lists = ['detections.json', 'images.json', 'mine.png', 'notes.txt']
    assert files_in(output) == ['a.png', 'a.png.png', *lists, 'overview.png', 'sub/b.png']
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], output)
    assert files_in(output) == ['a.png', 'a.png.png', *lists, 'overview.png', 'sub/b.png']
    assert len(json.loads((output / 'detections.json').read_text())) == 3
    # Of one image there is no overview, and the pictures of the others go; one has gone already.
    (output / 'a.png.png').unlink()
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    assert files_in(output) == ['a.png', *lists]
    (output / 'overview.png').write_text('mine')
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    assert files_in(output) == ['a.png', *lists, 'overview.png']
    assert {(output / name).read_text() for name in ('notes.txt', 'mine.png', 'overview.png')} == {'mine'}


def test_predict_files_that_was_killed_while_it_moved_files_can_be_done_again(pictures, tmp_path, monkeypatch):
    output, real = tmp_path / 'output', os.replace
    predict_files(Corners(), [str(pictures)], output)

    def replace(source, target):
        if target.name == 'b.png':
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
        predict_files(Corners(), [str(pictures / 'sub'), str(pictures / 'a.png')], output)
    monkeypatch.undo()
    predict_files(Corners(), [str(pictures / 'sub')], output)
    assert files_in(output) == ['b.png', 'detections.json', 'images.json']


@pytest.mark.parametrize(
    'name', ['a.png', 'a.png.png', 'overview.png', 'detections.json', 'images.json', 'sub', 'sub/b.png']
)
def test_predict_files_keeps_what_no_prediction_wrote(pictures, tmp_path, name):
    output = tmp_path / 'output'
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text('{"images": []}')
    with pytest.raises(DataError, match=f'output/{name} is in the way, and not from an earlier prediction'):
        predict_files(Seen(), [str(pictures), str(pictures / 'sub')], output)
    assert files_in(output) == [name] and (output / name).read_text() == '{"images": []}'


class Seen:
    """Fails: an error that can be known before comes too late."""

    classes = CLASSES

    def __call__(self, image):
        raise AssertionError('an image was predicted')


def test_predict_files_refuses_an_output_that_cannot_be_before_it_predicts(pictures, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'link').symlink_to('nowhere')
    for name, match in (
        ('file', 'file is no folder'),
        ('link', 'link is no folder'),
        ('file/x', 'cannot write into .*/file .*: choose another folder'),
    ):
        with pytest.raises((DataError, OSError), match=match):
            predict_files(Seen(), [str(pictures)], tmp_path / name)
    assert files_in(tmp_path) == sorted(['file', *(f'pictures/{name}' for name in files_in(pictures))])


def test_predict_files_keeps_the_images(pictures, tmp_path):
    # a.jpg's picture would be a.png, which is an image as well.
    before = {path: path.read_bytes() for path in pictures.iterdir() if path.is_file()}
    with pytest.raises(DataError, match='pictures/a.png is in the way'):
        predict_files(Seen(), [str(pictures)], pictures)
    assert {path: path.read_bytes() for path in pictures.iterdir() if path.is_file()} == before
    # Nor is a picture of an earlier prediction both read and replaced.
    output = tmp_path / 'output'
    predict_files(Corners(), [str(pictures / 'sub')], output)
    before = (output / 'b.png').read_bytes()
    for pattern in (output, output / 'b.png'):
        with pytest.raises(DataError, match='output/b.png is one of the images'):
            predict_files(Seen(), [str(pattern), str(pictures / 'a.jpg')], output)
    assert (output / 'b.png').read_bytes() == before


def test_predict_files_removes_nothing_outside_of_the_output(pictures, tmp_path):
    output = tmp_path / 'output'
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    (tmp_path / 'mine').write_text('mine')
    (output / 'images.json').write_text(json.dumps({'files': ['../mine', str(tmp_path / 'mine'), 'a.png']}))
    predict_files(Corners(), [str(pictures / 'sub')], output)
    assert (tmp_path / 'mine').exists() and files_in(output) == ['b.png', 'detections.json', 'images.json']
    (output / 'b.png').unlink()
    (output / 'b.png').mkdir()
    with pytest.raises(DataError, match='output/b.png is in the way'):
        predict_files(Seen(), [str(pictures / 'sub')], output)


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), OSError(5, 'Input/output error')])
def test_predict_files_skips_files_that_cannot_be_read(pictures, tmp_path, monkeypatch, error):
    real = pathlib.Path.read_bytes

    def read_bytes(path):
        if path.name == 'a.png':
            raise error
        return real(path)

    monkeypatch.setattr(pathlib.Path, 'read_bytes', read_bytes)
    (pictures / 'nowhere.png').symlink_to('none.png')
    monkeypatch.chdir(pictures)
    with socket.socket(socket.AF_UNIX) as unread:  # as a pipe, which a test that fails would wait for
        unread.bind('socket.png')
    (pictures / 'folder.png').mkdir()  # no image
    with pytest.raises(DataError, match=f'a.png: cannot read the file: {error.strerror}'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    written, skipped = predict_files(Corners(), [str(pictures)], tmp_path / 'output', on_bad_record='skip')
    assert written == 1 and files_in(tmp_path / 'output') == ['a.png', 'detections.json', 'images.json']
    for message, words in zip(
        skipped, (error.strerror, 'nowhere.png: cannot read the file: No such', 'socket.png: not a file'), strict=True
    ):
        assert words in message


def test_predict_files_names_the_picture_that_does_not_fit_on_the_disk(pictures, tmp_path, monkeypatch):
    def write_bytes(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pathlib.Path, 'write_bytes', write_bytes)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'"):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    assert [path.name for path in tmp_path.iterdir()] == ['pictures']


def test_picture_names_are_all_different():
    names = ['a.png.bmp', 'a.jpg', 'a.png', 'A.gif', 'sub/a.jpg', 'b.jpg', 'b.png/c.jpg', 'overview.jpg']
    pictures = picture_names([pathlib.PurePath(name) for name in ['overview.png', *names]])
    assert list(map(str, pictures)) == [
        'overview.png',
        'a.png.png',
        'a.png',
        'a.png.png.png',
        'A.gif.png',
        'sub/a.png',
        'b.jpg.png',
        'b.png/c.png',
        'overview.jpg.png',
    ]


def test_find_images_takes_files_folders_and_globs(pictures):
    def names(*patterns):
        found = find_images([str(pictures / pattern) for pattern in patterns])
        return [str(path.relative_to(pictures)) for path in found]

    assert names('') == ['a.jpg', 'a.png']
    assert names('**/*.png') == ['a.png', 'sub/b.png']
    assert names('sub', 'a.png', '*.png') == ['sub/b.png', 'a.png']  # each once, in order
    with pytest.raises(DataError, match="no image matches '.*c.png'"):
        names('a.png', 'c.png')


def test_find_images_takes_a_file_whose_name_looks_like_a_glob(pictures):
    (pictures / 'scan[1].png').write_bytes((pictures / 'a.png').read_bytes())
    path = pictures / 'scan[1].png'
    assert find_images([str(path)]) == [path]
    path.unlink()
    path.symlink_to('nowhere')
    assert find_images([str(path)]) == [path]


def test_find_images_gives_links_the_names_that_the_user_sees(pictures, monkeypatch):
    (pictures / 'linked.png').symlink_to('a.png')
    (pictures / 'other').symlink_to('sub')
    (pictures / 'lost.png').symlink_to('none.png')
    monkeypatch.chdir(pictures)
    found = find_images(['.', 'other', 'sub/../a.png', './linked.png'])
    assert [str(path.relative_to(pictures)) for path in found] == [
        'a.jpg',
        'a.png',
        'linked.png',
        'lost.png',
        'other/b.png',
    ]
    assert find_images(['other/../a.png']) == [pictures / 'a.png']  # the folder that holds sub, not the link
    assert find_images(['*st.png']) == [pictures / 'lost.png']
    monkeypatch.setenv('HOME', str(pictures))
    assert find_images(['~/sub']) == [pictures / 'sub/b.png']


def test_find_images_finds_images_of_all_kinds_and_no_hidden_files(tmp_path):
    names = ['a.JPG', 'b.jfif', 'c.gif', 'd.heic', 'e.Tiff', 'f.avif']
    for name in [*names, '._a.JPG', '.b.png', 'notes.txt']:
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == names
    with pytest.raises(DataError, match='no images are given'):
        find_images([])


def test_read_image_reads_gif_and_jfif(tmp_path):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[:, 3:] = 255
    for name, kind in (('a.gif', 'GIF'), ('b.jfif', 'JPEG')):
        PIL.Image.fromarray(pixels).save(tmp_path / name, kind)
        assert np.abs(read_image(tmp_path / name, 100).astype(int) - pixels).max() < 30


def test_load_refuses_what_is_no_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the workdir of a run'):
        load(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_place_is_what_training_shows_the_detector(toy, resize):
    # One geometry for all: an image placed for prediction is the one an augmentation without changes makes.
    from detzoo.data.augment import augment

    record = toy(1, 33).records[0]
    image = decode_image(record['image'], name='')
    recipe = defaults().data.recipe.to_dict() | dict(flip=0.0, resize=resize)
    boxes = record['boxes']
    shown = augment(image, boxes, record['is_crowd'], (96, 64), recipe, np.random.RandomState(0))
    placed, where = place(image, (96, 64), ResizeRule(resize))
    np.testing.assert_array_equal(shown.image, placed)
    np.testing.assert_array_equal(shown.window, where.window)
    np.testing.assert_allclose(shown.boxes, where.to_canvas(boxes)[shown.kept])
