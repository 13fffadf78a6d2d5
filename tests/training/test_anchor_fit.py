"""How anchors fit objects, with a detector whose assignment is known."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny import TINY_YOLO_V1

from detzoo.config import complete
from detzoo.data.pipeline import evaluation_batches
from detzoo.training import anchor_fit
from detzoo.types import Assignment, Detector

ANCHORS = np.float32([(0, 0, 20, 20), (20, 20, 44, 50), (0, 0, 64, 64), (30, 0, 50, 30)])


def drawn_detector(**fields):
    """A detector with four anchors, of which the first two are always positive for the first object; RoIs follow a parameter."""

    def assign(params, model_state, batch, rng):
        count = len(batch.image_id)
        boxes = jnp.broadcast_to(ANCHORS, (count, 4, 4))
        matched = jnp.broadcast_to(jnp.array([0, 0, -1, -2]), (count, 4))
        return {'anchors': Assignment(boxes, matched), 'rois': Assignment(boxes + params['shift'], matched)}

    init = lambda rng, canvas: ({'shift': jnp.zeros(4)}, {})
    return Detector(init, None, None, assign, **fields)


@pytest.fixture
def use(monkeypatch):
    """A function: a detector -> every config describes it."""
    return lambda detector: monkeypatch.setattr(anchor_fit, 'detector_of', lambda config, num_classes: detector)


def test_fit_of_anchors_counts_positives_and_finds_the_best_iou(tiny_config, toy, use):
    use(drawn_detector())
    dataset, config = toy(), tiny_config(data__max_boxes=1)  # which must not drop objects
    fits = anchor_fit.fit_of_anchors(config, dataset, [1, 3], max_boxes=8)
    assert fits.keys() == {'anchors'}  # RoIs depend on a parameter
    fit = fits['anchors']

    images, boxes, ious, positives = [], [], [], []
    for index in (1, 3):
        part = dataset._replace(records=[dataset.records[index]])
        options = dict(max_boxes=8, recipe=config.data.recipe, batch_size=1, threads=1)
        gt = jax.tree.map(lambda x: x[0], next(evaluation_batches(part, [(64, 64)], **options)).gt)
        for row in np.flatnonzero(gt.valid & ~gt.crowd):
            low, high = np.maximum(ANCHORS[:, :2], gt.boxes[row, :2]), np.minimum(ANCHORS[:, 2:], gt.boxes[row, 2:])
            shared = np.maximum(high - low, 0).prod(axis=1)
            areas = (ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(axis=1)
            ious.append((shared / (areas + (gt.boxes[row, 2:] - gt.boxes[row, :2]).prod() - shared)).max())
            images.append(index)
            boxes.append(gt.boxes[row])
            positives.append(2 if row == 0 else 0)
    assert (
        fit.image.tolist() == images and images.count(1) == 2
    )  # without the crowd, which is the first row of record 1
    assert fit.positives.tolist() == positives and positives.count(2) == 1
    np.testing.assert_array_equal(fit.boxes, boxes)
    np.testing.assert_allclose(fit.best_iou, ious, rtol=1e-5)
    labels = [dataset.records[index]['labels'][~dataset.records[index]['is_crowd']] for index in (1, 3)]
    assert fit.labels.tolist() == np.concatenate(labels).tolist()


def test_fit_of_anchors_has_no_iou_without_anchors(tiny_config, toy, use):
    use(drawn_detector())
    config = tiny_config()
    config.model = complete(ml_collections.ConfigDict(dict(model=TINY_YOLO_V1))).model
    assert anchor_fit.fit_of_anchors(config, toy(), [3], max_boxes=8)['anchors'].best_iou is None


def test_fit_of_anchors_is_empty_where_proposals_are_needed(tiny_config, toy, use):
    use(drawn_detector(needs_proposals=True))
    assert anchor_fit.fit_of_anchors(tiny_config(), toy(), [3], max_boxes=8) == {}
