"""The ground truth in the place of a stage: by hand, and the ceiling, where all stages together leave no error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pycocotools.mask
import pytest
from contract import BLOCKS, tiny_variant
from tiny import CATEGORY_IDS, TINY_MASK_RCNN

from detzoo.config import complete
from detzoo.detectors import oracles
from detzoo.errors import DataError
from detzoo.evaluation.oracles import format_oracles, with_true_masks
from detzoo.inference import oracles as evaluated
from detzoo.inference.predictor import Predictor
from detzoo.run.classes import Classes
from detzoo.types import Detections

CLASSES = Classes(('red', 'green', 'blue'), CATEGORY_IDS)


def test_true_classes_by_hand(make_ground_truth):
    gt = make_ground_truth([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 20]], [2, 0, 1], [False, False, True], rows=4)
    rois = np.float32([[0, 0, 10, 20], [0, 0, 10, 21], [20, 0, 30, 9], [42, 2, 50, 10], [70, 70, 80, 80]])
    logits = np.log(np.float32([[1, 2, 3, 4], [1, 2, 3, 4], [8, 1, 1, 0.1], [1, 1, 1, 1], [5, 1, 1, 1]]))
    found = jax.nn.softmax(oracles.true_classes(logits, rois, gt))
    # The first has an IoU of exactly a half, the second less; the fourth lies in a crowd, the last on nothing.
    expected = [[0, 0, 0.6, 0.4], [0, 0, 0, 1], [10 / 10.1, 0, 0, 0.1 / 10.1], [0.25] * 4, [0, 0, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_oracle_gives_boxes_and_classes_of_all_objects():
    tiny = tiny_variant('mask_rcnn')
    predict = jax.jit(tiny.detector.oracle(('boxes', 'classes')))
    found = jax.tree.map(np.asarray, predict(tiny.params, tiny.model_state, BLOCKS.inputs, BLOCKS.gt))
    for i in range(len(found.valid)):
        objects = BLOCKS.gt.valid[i] & ~BLOCKS.gt.crowd[i]
        expected = sorted(
            (box.tolist(), label) for box, label in zip(BLOCKS.gt.boxes[i][objects], BLOCKS.gt.labels[i][objects])
        )
        boxes = np.round(found.boxes[i][found.valid[i]], 3)
        assert sorted((box.tolist(), label) for box, label in zip(boxes, found.labels[i][found.valid[i]])) == expected
    assert found.masks.shape[2:] == (8, 8) and found.masks[found.valid].any(axis=(1, 2)).all()


def test_oracle_refuses_a_stage_that_is_not_there():
    with pytest.raises(ValueError, match='stages has masks: proposals, boxes, classes are known'):
        tiny_variant('mask_rcnn').detector.oracle(('masks', 'boxes'))


@pytest.mark.full
def test_oracle_of_one_stage_replaces_that_stage_alone():
    tiny = tiny_variant('mask_rcnn')
    arguments = tiny.params, tiny.model_state
    given = BLOCKS.inputs._replace(proposals=BLOCKS.gt.boxes, proposals_valid=BLOCKS.gt.valid & ~BLOCKS.gt.crowd)
    expected = jax.jit(tiny.detector.predict)(*arguments, given)
    found = jax.jit(tiny.detector.oracle(('proposals',)))(*arguments, BLOCKS.inputs, BLOCKS.gt)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    nothing = jax.jit(tiny.detector.oracle(()))(*arguments, BLOCKS.inputs, BLOCKS.gt)
    jax.tree.map(np.testing.assert_array_equal, nothing, tiny.predict(*arguments, BLOCKS.inputs))
    # Of the network's own boxes, those that cover an object have its class.
    classes = jax.jit(tiny.detector.oracle(('classes',)))(*arguments, BLOCKS.inputs, BLOCKS.gt)
    assert classes.valid.any() and (classes.valid.sum(axis=1) < nothing.valid.sum(axis=1)).any()


def encode(mask):
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def test_with_true_masks_by_hand():
    left, right = np.zeros((2, 10, 20), bool)
    left[2:8, 1:9], right[2:8, 3:11] = True, True
    left[4, 4] = False
    truth = [
        dict(id=1, image_id=5, category_id=3, iscrowd=0, bbox=[1, 2, 8, 6], segmentation=encode(left)),
        dict(id=2, image_id=5, category_id=8, iscrowd=0, bbox=[3, 2, 8, 6], segmentation=encode(right)),
        dict(id=3, image_id=5, category_id=9, iscrowd=1, bbox=[3, 2, 8, 6], segmentation=encode(right)),
    ]
    own = encode(np.ones((10, 20)))
    row = dict(image_id=5, score=0.5, segmentation=own)
    detections = [
        dict(row, category_id=3, bbox=[2.4, 2, 7, 5.6]),  # nearer to the other object, which has another class
        dict(row, category_id=3, bbox=[6, 2, 8, 6]),  # covers too little
        dict(row, category_id=9, bbox=[3, 2, 8, 6]),  # a crowd
        dict(row, category_id=8, bbox=[-1, 2, 12, 6]),
        dict(row, category_id=8, bbox=[3, 2, 8, 6], image_id=6),
    ]
    found = with_true_masks({'annotations': truth}, detections)
    masks = [pycocotools.mask.decode(each['segmentation']).astype(bool) for each in found]
    cut = left.copy()
    cut[:, :2] = False  # the centres 0.5 and 1.5 lie left of the box, 7.5 lies above its end at 7.6
    np.testing.assert_array_equal(masks[0], cut)
    np.testing.assert_array_equal(masks[3], right)
    assert all(found[i] == detections[i] for i in (1, 2, 4))
    assert detections[0]['segmentation'] == own  # no input is changed


@pytest.fixture
def untrained(monkeypatch, tiny_config, mask_dir):
    """The tiny Mask R-CNN as it starts, in place of a workdir."""
    tiny = tiny_variant('mask_rcnn')
    config = tiny_config(data__data_dir=str(mask_dir), data__mask_size=16, data__max_boxes=1)
    del config.model
    config.model = dict(TINY_MASK_RCNN)
    predictor = Predictor(complete(config), CLASSES, 7, tiny.params, tiny.model_state)
    monkeypatch.setattr(evaluated, 'load', lambda *args, **kwargs: predictor)
    return predictor


def test_all_stages_together_leave_no_error(untrained, tmp_path, monkeypatch):
    # A network that has learnt nothing, and a row of ground truth too few: all objects are found with their masks.
    name = 'boxes, classes, masks'
    monkeypatch.setattr(evaluated, 'ROWS', {name: evaluated.ROWS[name]})
    rows = evaluated.evaluate_oracles('workdir', output=tmp_path)
    assert rows[name]['boxes']['AP'] == rows[name]['masks']['AP'] == 1
    assert json.loads((tmp_path / 'evaluation_oracles.json').read_text()) == {'step': 7, 'given': rows}


def test_rows_are_evaluated_with_their_stages(untrained, tmp_path, monkeypatch):
    # A detector that finds the objects' boxes, but only where it is given them, and their classes likewise.
    seen = []

    def oracle(stages):
        seen.append(stages)

        def predict(params, model_state, inputs, gt):
            ones = jnp.ones(gt.labels.shape)
            labels = gt.labels if 'classes' in stages else (gt.labels + 1) % 3
            boxes = gt.boxes if 'boxes' in stages else inputs.window[:, None] * ones[..., None]
            return Detections(boxes, ones, labels, gt.valid, masks=jnp.zeros((*gt.labels.shape, 4, 4)))

        return predict

    untrained.detector = untrained.detector._replace(oracle=oracle)
    rows = evaluated.evaluate_oracles('workdir', output=tmp_path)
    assert seen == [frozenset(x) for x in ((), ('proposals',), ('boxes',), ('classes',), ('boxes', 'classes'))]
    perfect = {name for name, row in rows.items() if row['boxes']['AP'] == 1}
    assert perfect == {'boxes, classes', 'boxes, classes, masks'}
    assert {name for name, row in rows.items() if row['masks']['AP'] == 1} == {'boxes, classes, masks'}
    lines = format_oracles(rows).splitlines()
    assert len(lines) == 8 and lines[-1].split() == ['boxes,', 'classes,', 'masks', *['1.000'] * 6]
    assert lines[0].split() == ['given', *'box AP box AP50 box AP75 mask AP mask AP50 mask AP75'.split()]


def test_evaluate_prints_the_table_of_stages(untrained, tmp_path, monkeypatch, run_script):
    numbers = dict(AP=0.25, AP50=0.5, AP75=None)
    rows = {'nothing': dict(boxes=numbers, masks=numbers)}
    monkeypatch.setattr(evaluated, 'evaluate_oracles', lambda *args, **kwargs: rows)
    finished = run_script('evaluate', f'--workdir={tmp_path}', '--oracles')
    assert finished.stdout.splitlines()[-1].split() == ['nothing', *['0.250', '0.500', '-'] * 2]
    finished = run_script('evaluate', f'--workdir={tmp_path}', '--oracles', '--voc')
    assert finished.code == 1 and '--oracles prints a table of its own' in finished.stderr


def test_evaluate_oracles_refuses_a_detector_of_one_stage(tiny_run):
    with pytest.raises(DataError, match='no stage of retinanet can be given the ground truth'):
        evaluated.evaluate_oracles(tiny_run)
