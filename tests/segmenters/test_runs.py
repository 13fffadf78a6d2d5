"""A segmenter from a config to detections: training that goes on as if never cut, evaluation, prediction, and what they refuse."""

import itertools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import assert_same, saved

from detzoo.config import complete
from detzoo.data.geometry import placement, resize_rule
from detzoo.data.records import decode_image, ground_truth
from detzoo.errors import ConfigError, DataError
from detzoo.evaluation import format_table, read_detections
from detzoo.inference.dataset import Tally, evaluate_workdir, predict_dataset
from detzoo.inference.photos import predict_files
from detzoo.inference.predictor import best_classes, from_coco, load, pixels_of_image, to_coco
from detzoo.run.classes import classes_of
from detzoo.segmenters import pixels
from detzoo.sweeps.assignments import draw_assignments
from detzoo.training import anchor_fit, loop
from detzoo.types import PixelClasses

PIXELS = ('pixel_accuracy', 'mean_accuracy', 'mean_iou', 'weighted_iou')


@pytest.fixture(scope='module')
def make_config(tiny_config, mask_dir):
    """A function: {dotted key: value} -> a config of a tiny U-Net on the toy data with masks."""

    def make(**changes):
        config = tiny_config(training__steps=4, training__checkpoint_every=2, training__evaluate_every=2)
        config.data.update(data_dir=str(mask_dir), mask_size=8)
        content = config.to_dict()
        backbone = dict(width=0.25, norm='batch_norm')
        content['model'] = dict(name='unet', backbone=backbone, backbone_strides=(1, 2), border_sigma=1.0)
        config = complete(type(config)(content))
        config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return config

    return make


@pytest.fixture(scope='module')
def run(make_config, tmp_path_factory):
    """The workdir of a finished run, and its last metrics."""
    workdir = tmp_path_factory.mktemp('runs') / 'unet'
    return workdir, loop.train_and_evaluate(make_config(), workdir)


def test_training_that_was_cut_ends_with_the_same_bits(run, make_config, tmp_path):
    workdir, metrics = run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tally, 'metrics', lambda *args: 1 / 0)  # the first evaluation, behind the checkpoint of step 2
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(make_config(), tmp_path)
    assert saved(tmp_path)[0] == 2
    assert loop.train_and_evaluate(make_config(), tmp_path) == metrics
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (workdir / 'metrics.jsonl').read_bytes()
    assert_same(saved(tmp_path), saved(workdir))


def test_evaluation_of_the_workdir_is_that_of_the_training(run):
    workdir, metrics = run
    found, _, results = evaluate_workdir(workdir, recall=True)
    assert found.pop('recall') and found.pop('mask_recall') and 'proposal_recall' not in found
    assert found == {'step': 4, **metrics}
    assert results and all('segmentation' in row for row in results)
    assert read_detections(workdir / 'detections.json.gz') == results
    last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    for name in PIXELS:
        assert 0 <= found['pixels'][name] <= 1 and last[f'validation/{name}'] == found['pixels'][name]
    assert last['validation/PQ'] == found['panoptic']['PQ'] is not None
    assert last['validation/mask_AP'] == found['masks']['AP'] is not None
    assert list(found['pixels']['per_class']) == ['red', 'green', 'blue', 'background']
    assert last['validation/count_error'] == found['counts']['count_error'] >= abs(found['counts']['count_bias'])
    table = format_table(found)
    assert f' mean_iou         = {found["pixels"]["mean_iou"]:.3f}\n' in table and '\nmasks, 10 images\n' in table
    assert f'mean absolute error {found["counts"]["count_error"]:.3f}, ' in table


def test_predictor_finds_what_the_evaluation_finds(run, toy, tmp_path):
    workdir, _ = run
    predictor, (_, _, results) = load(workdir), evaluate_workdir(workdir, output=tmp_path / 'evaluation')
    record = toy(1, first=results[0]['image_id'] - 100).records[0]
    image = decode_image(record['image'], name='')
    found = predictor(image)
    assert found.class_map.shape == found.masks.shape[1:] == image.shape[:2]
    for label, mask in zip(found.labels, found.masks, strict=True):
        assert (found.class_map[mask] == label).all()
    assert (found.class_map != 3).sum() == found.masks.sum()  # masks do not overlap
    expected = [row for row in results if row['image_id'] == record['image_id']]
    rows = to_coco(found, record['image_id'])
    assert [row['segmentation'] for row in rows] == [row['segmentation'] for row in expected]
    np.testing.assert_allclose([row['score'] for row in rows], [row['score'] for row in expected], rtol=1e-4)

    (tmp_path / 'a.png').write_bytes(record['image'])
    predict_files(predictor, [str(tmp_path / 'a.png')], tmp_path / 'predicted', score_threshold=0.0)
    listed = json.loads((tmp_path / 'predicted' / 'detections.json').read_text())
    assert [row['segmentation'] for row in listed] == [row['segmentation'] for row in rows]
    assert cv2.imread(str(tmp_path / 'predicted' / 'a.png')) is not None


def test_a_segmenter_has_no_boxes_to_match(run, make_config, toy):
    dataset = toy(2, masks=True)
    assert draw_assignments(load(run[0]), dataset) == {}
    assert anchor_fit.fit_of_anchors(make_config(), dataset, [0, 1], 4) == {}


def test_data_without_masks_are_refused(make_config, data_dir, tmp_path):
    with pytest.raises(ConfigError, match='data.mask_size is 0, and unet learns masks: set it to the side of a mask'):
        loop.train_and_evaluate(make_config(data__mask_size=0), tmp_path)
    with pytest.raises(DataError, match="'validation' of 'toy' cannot be evaluated: annotation .* no 'segmentation'"):
        loop.train_and_evaluate(make_config(data__data_dir=str(data_dir)), tmp_path)


RULES = {
    'fit': (dict(resize='fit'), ((96, 128), (128, 96))),
    'fit, bilinear': (dict(resize='fit', interpolation='bilinear'), ((200, 300),)),
    'letterbox': (dict(resize='letterbox', interpolation='darknet'), ((160, 160),)),
    'stretch': (dict(resize='stretch'), ((160, 112),)),
    'shrunk': (dict(resize='fit'), ((32, 32),)),
}


@pytest.mark.parametrize('rule', RULES)
def test_the_painted_truth_is_found(toy, make_config, rule):
    # Its blocks do not touch. An enlarged image loses nothing.
    changes, canvases = RULES[rule]
    recipe = {f'data__recipe__{key}': value for key, value in changes.items()}
    config = make_config(evaluation__canvases=canvases, data__max_boxes=16, **recipe)
    dataset = toy(10, masks=True)
    truth, paint = ground_truth(dataset), jax.jit(pixels.paint_batch)

    def predict_step(params, model_state, batch):
        batch = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), batch)
        labels = np.asarray(pixels.labels_of(paint(batch), batch, 3))
        probabilities = jax.nn.one_hot(np.where(labels < 0, 3, labels), 4)  # what is ignored is no object
        result = best_classes(probabilities), batch.image_id, batch.valid
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)  # as all devices gathered it

    tally = Tally(truth, classes_of(dataset), config)
    metrics = tally.metrics(predict_dataset(predict_step, {}, {}, dataset, truth, config, on_image=tally.add))
    if rule == 'shrunk':
        assert 0.7 < metrics['pixels']['mean_iou'] < 0.99 and metrics['panoptic']['RQ'] == 1
    else:
        assert all(metrics['pixels'][name] == 1 for name in PIXELS)
        assert metrics['panoptic']['PQ'] == metrics['masks']['AP'] == metrics['boxes']['AP'] == 1


def test_a_detector_of_masks_is_evaluated_like_a_segmenter_if_asked(toy, make_config):
    dataset = toy(10, masks=True)
    truth, classes = ground_truth(dataset), classes_of(dataset)

    def metrics_of(panoptic):
        tally = Tally(truth, classes, make_config(evaluation__panoptic=panoptic))
        results = []
        for index, image in enumerate(truth['images']):
            rows = [row for row in truth['annotations'] if row['image_id'] == image['id'] and not row['iscrowd']]
            found = [{**row, 'score': 0.9} for row in rows] + [{**row, 'score': 0.4} for row in rows[:1]]
            if rows and not results:  # an object is found twice, the second time as another class, behind the right one
                others = [number for number in classes.category_ids if number != rows[0]['category_id']]
                found.append({**rows[0], 'score': 0.8, 'category_id': others[0]})
            tally.add(index, from_coco(found, classes), 0)
            results += found
        return tally.metrics(results)

    metrics = metrics_of(True)
    assert all(metrics['pixels'][name] == 1 for name in PIXELS) and metrics['panoptic']['PQ'] == 1
    assert metrics['counts'] == {'count_error': pytest.approx(0.1), 'count_bias': pytest.approx(0.1)}
    assert metrics_of(False).keys() == metrics.keys() - {'pixels', 'panoptic', 'counts'}


def test_pixels_of_image_by_loops(tiny_config):
    rng = np.random.RandomState(0)
    for resize, size in itertools.product(('fit', 'letterbox', 'stretch'), ((50, 31), (200, 90))):
        where = placement(size, (64, 80), resize_rule(tiny_config(data__recipe__resize=resize).data.recipe))
        canvas = PixelClasses(rng.randint(4, size=(64, 80)).astype(np.uint8), rng.uniform(size=(64, 80)))
        found = pixels_of_image(canvas, where, size)
        for y, x in itertools.product(range(size[0]), range(size[1])):
            left, top, _, _ = where.to_canvas(np.array([x + 0.5, y + 0.5, x + 0.5, y + 0.5]))
            assert found.labels[y, x] == canvas.labels[int(top), int(left)]
            assert found.scores[y, x] == canvas.scores[int(top), int(left)]
