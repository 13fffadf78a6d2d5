"""Ceilings: the ground truth goes in at one end, and comes out at the other with an AP of 1.

Each test walks one way from the coordinates of an image to those of a canvas or a frame, and back. Parity with another
library cannot replace them: it only shows that both make the same mistake.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pycocotools.mask
import pytest

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.core.masks import mask_targets, paste_masks
from detzoo.data.geometry import ResizeRule, mask_in_frame, place
from detzoo.data.made import shapes
from detzoo.data.pipeline import evaluation_batches, load_augmented
from detzoo.data.proposals import load_proposals
from detzoo.data.records import Dataset, decode_image, ground_truth, mask_object
from detzoo.evaluation import coco_metrics
from detzoo.inference.dataset import predict_dataset
from detzoo.inference.predictor import ImageDetections, Predictor, to_coco, to_image
from detzoo.run.classes import Classes
from detzoo.types import Detections, Detector
from detzoo.visualize import class_color, draw_boxes

PICTURES, ROWS, CELLS = 40, 16, 112
CLASSES = Classes(shapes.CLASS_NAMES, tuple(range(1, 1 + len(shapes.CLASS_NAMES))))


@pytest.fixture(scope='module')
def drawn():
    """Pictures of `shapes`, in memory: shapes of 14 to 70 pixels with their masks, some crowds, some empty ones."""
    records = []
    for index in range(PICTURES):
        image, objects = shapes.draw('validation', index)
        described = [mask_object(0, thing.label, thing.mask, thing.is_crowd) for thing in objects]
        records.append(
            dict(
                image=cv2.imencode('.png', image[..., ::-1])[1].tobytes(),
                image_id=index,
                file_name=f'{index}.png',
                height=image.shape[0],
                width=image.shape[1],
                boxes=np.array([each['bbox'] for each in described], np.float64).reshape(-1, 4),
                labels=np.array([each['label'] for each in described], np.int64),
                is_crowd=np.array([each['is_crowd'] for each in described], bool),
                areas=np.array([each['area'] for each in described], np.float64),
                annotation_ids=1000 * index + 1 + np.arange(len(described)),
                segmentations=[each['segmentation'].decode() for each in described],
            )
        )
    return Dataset('shapes', 'validation', *CLASSES, records)


def masks_of(record):
    """The masks [n, h, w] bool of a record's objects."""
    size = [record['height'], record['width']]
    return [pycocotools.mask.decode({'size': size, 'counts': runs}).astype(bool) for runs in record['segmentations']]


def as_detections(batch):
    """The ground truth of a batch as what a detector without errors would find; crowds are nobody's to find."""
    gt = batch.gt
    found = gt.valid & ~gt.crowd
    masks = None if gt.masks is None else gt.masks.astype(np.float32)
    return Detections(gt.boxes, found.astype(np.float32), gt.labels, found, masks)


RULES = {
    'fit': (dict(resize='fit'), ((96, 128), (128, 96))),
    'fit, enlarged': (dict(resize='fit', interpolation='bilinear'), ((200, 300),)),
    'fit, limited': (dict(resize='fit', interpolation='pil', shorter_side=150, longer_side=190), ((192, 192),)),
    'letterbox': (dict(resize='letterbox', interpolation='darknet'), ((160, 160),)),
    'stretch': (dict(resize='stretch'), ((160, 112),)),
}


@pytest.mark.parametrize('rule', RULES)
def test_evaluation_of_the_ground_truth(drawn, tiny_config, rule):
    changes, canvases = RULES[rule]
    config = tiny_config(
        evaluation__canvases=canvases,
        data__mask_size=CELLS,
        data__max_boxes=ROWS,
        **{f'data__recipe__{key}': value for key, value in changes.items()},
    )
    truth = ground_truth(drawn)

    def predict_step(params, model_state, batch):
        batch = jax.tree.map(np.asarray, batch)
        result = as_detections(batch), batch.image_id, batch.valid
        return jax.tree.map(lambda x: jnp.asarray(x.reshape(1, -1, *x.shape[2:])), result)  # as all devices gathered it

    results = predict_dataset(predict_step, {}, {}, drawn, truth, config)
    metrics = coco_metrics(truth, results, ('bbox', 'segm'))
    assert metrics['boxes']['AP'] == 1
    assert metrics['masks']['AP'] > 0.98 and metrics['masks']['AP50'] == 1


@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('rule', RULES)
def test_predictor_given_the_ground_truth(drawn, tiny_config, monkeypatch, rule, exact):
    def find_proposals(params, model_state, inputs):
        ones = inputs.proposals_valid.astype(np.float32)
        return Detections(inputs.proposals, ones, ones.astype(np.int32), inputs.proposals_valid)

    for module in ('detzoo.training.checks', 'detzoo.inference.predictor'):
        monkeypatch.setattr(f'{module}.detector_of', lambda *args: Detector(None, None, find_proposals, None))
    monkeypatch.setattr('detzoo.inference.predictor.check_proposals', lambda *args: None)
    changes, canvases = RULES[rule]
    config = tiny_config(
        evaluation__canvases=canvases,
        evaluation__exact=exact,
        data__max_proposals=ROWS,
        **{f'data__recipe__{key}': value for key, value in changes.items()},
    )
    predictor = Predictor(config, CLASSES, 0, {}, {})
    for record in drawn.records[:8]:
        boxes = xywh_to_xyxy(record['boxes'])
        found = predictor(decode_image(record['image'], name=''), boxes)
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-4)


def test_proposals_of_the_ground_truth(drawn):
    # Through `Proposals`, onto the canvas, and back as detections.
    canvas, rule = (160, 112), ResizeRule('letterbox')
    given = load_proposals('ground_truth', drawn, ROWS)
    batches = evaluation_batches(
        drawn, [canvas] * PICTURES, max_boxes=ROWS, recipe=rule._asdict(), batch_size=1, proposals=given, threads=2
    )
    truth, results = ground_truth(drawn), []
    for batch in batches:
        record = drawn.records[int(batch.image_id[0])]
        where = place(decode_image(record['image'], name=''), canvas, rule)[1]
        labels = np.zeros(ROWS, int)
        objects = ~record['is_crowd']
        labels[: objects.sum()] = record['labels'][objects]
        valid = batch.inputs.proposals_valid[0]
        found = Detections(batch.inputs.proposals[0], valid.astype(np.float32), labels, valid)
        results += to_coco(to_image(found, where, CLASSES), record['image_id'])
    assert coco_metrics(truth, results)['boxes']['AP'] == 1


AUGMENTATIONS = {
    'plain': {},
    'turned and enlarged': dict(flip=0.5, rotate90=True, scale_range=(1.0, 2.0)),
    'shrunk': dict(flip=0.5, scale_range=(0.7, 1.0), interpolation='bilinear'),
    'ssd': dict(resize='stretch', zoom_out=2.0, iou_crop=True),
    'darknet': dict(resize='letterbox', aspect_jitter=0.3, interpolation='darknet'),
    'darknet of yolo v1': dict(resize='stretch', jitter=0.2),
}


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_augmented_masks_lie_where_the_pixels_are(drawn, tiny_config, name):
    # Each object becomes a picture of its mask alone: what is bright on the canvas is the truth about it.
    recipe = tiny_config(**{f'data__recipe__{key}': value for key, value in AUGMENTATIONS[name].items()}).data.recipe
    canvas = 160, 144
    as_it_is = place(np.zeros((*canvas, 3), np.uint8), canvas, ResizeRule())[1]
    pictures = [picture_of(record, row) for record in drawn.records for row in np.flatnonzero(~record['is_crowd'])]
    images, annotations, results = [], [], []
    for image_id, picture in enumerate(pictures):
        rng = np.random.RandomState(image_id)
        batch = load_augmented(drawn._replace(records=[picture]), 0, canvas, 1, recipe, rng, mask_size=CELLS)
        visible = mask_object(image_id + 1, picture['labels'][0], batch.inputs.images[..., 0] >= 128, False)
        if not as_detections(batch).valid[0] or visible['area'] < 100:
            continue
        images.append({'id': image_id, 'height': canvas[0], 'width': canvas[1]})
        annotations.append(
            {key: visible[key] for key in ('id', 'bbox')}
            | dict(
                image_id=image_id,
                category_id=CLASSES.category_ids[visible['label']],
                area=float(visible['area']),
                iscrowd=0,
            )
            | dict(segmentation={'size': canvas, 'counts': visible['segmentation'].decode()})
        )
        results += to_coco(to_image(as_detections(batch), as_it_is, CLASSES), image_id)
    truth = {'images': images, 'annotations': annotations, 'categories': ground_truth(drawn)['categories']}
    metrics = coco_metrics(truth, results, ('bbox', 'segm'))
    assert len(images) > 60 and metrics['masks']['AP'] > 0.99 and metrics['masks']['AP75'] == 1


def picture_of(record, row):
    """A record of one object, whose picture is its mask."""
    picture = cv2.imencode('.png', 255 * masks_of(record)[row].astype(np.uint8))[1].tobytes()
    fields = ('boxes', 'labels', 'is_crowd', 'areas', 'annotation_ids', 'segmentations')
    return record | {field: record[field][row : row + 1] for field in fields} | dict(image=picture)


def test_masks_in_rois_come_back_as_they_were(drawn):
    # Ground truth -> its box's frame -> the frame of a RoI beside it -> the image, where the RoI is.
    targets = jax.jit(mask_targets, static_argnames='size')
    rng, ious = np.random.RandomState(0), []
    for record in drawn.records:
        for mask, box, crowd in zip(masks_of(record), xywh_to_xyxy(record['boxes']), record['is_crowd']):
            if crowd:
                continue
            roi = box + rng.uniform(-0.1, 0.1, 4) * np.tile(box[2:] - box[:2], 2)
            frame = mask_in_frame(mask, box, np.eye(3)[:2], (CELLS, CELLS))
            target = targets(frame[None], np.float32(box)[None], np.zeros(1, np.int32), np.float32(roi)[None], size=56)
            pasted = paste_masks(target, roi[None], mask.shape)[0]
            ys, xs = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
            inside = mask & (xs > roi[0]) & (xs < roi[2]) & (ys > roi[1]) & (ys < roi[3])
            ious.append((pasted & inside).sum() / (pasted | inside).sum())
    assert len(ious) > 100 and np.mean(ious) > 0.985 and min(ious) > 0.9


@pytest.mark.parametrize('cells, least', [(14, 0.98), (28, 0.995)])
def test_perfect_probabilities_give_perfect_masks(drawn, cells, least):
    truth, found, legacy = ground_truth(drawn), [], []
    for record in drawn.records:
        boxes = xywh_to_xyxy(record['boxes'])
        masks = [probabilities(mask, box, cells) for mask, box in zip(masks_of(record), boxes)]
        for results, convention in ((found, 'centers'), (legacy, 'torchvision')):
            if masks:
                pasted = paste_masks(masks, boxes, (record['height'], record['width']), convention=convention)
                ids = np.asarray(CLASSES.category_ids)[record['labels']]
                detections = ImageDetections(boxes, np.ones(len(boxes)), record['labels'], ids, (), pasted)
                results += to_coco(detections, record['image_id'])
    assert coco_metrics(truth, found, ('bbox', 'segm'))['masks']['AP'] > least
    assert coco_metrics(truth, legacy, ('bbox', 'segm'))['masks']['AP'] < 0.95  # so the test can tell


def probabilities(mask, box, cells, samples=4):
    """The share of each cell of a box's frame that an object covers: [cells, cells]."""
    x1, y1, x2, y2 = box
    side = cells * samples
    width, height = (x2 - x1) / side, (y2 - y1) / side
    matrix = np.array([[width, 0, x1 + width / 2 - 0.5], [0, height, y1 + height / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    sampled = cv2.warpAffine(mask.astype(np.float32), matrix, (side, side), flags=flags)
    return sampled.reshape(cells, samples, cells, samples).mean(axis=(1, 3))


def test_drawn_masks_and_boxes_cover_their_pixels():
    # At five times the size: the tint of a mask that fills its box is the rectangle within the box's line.
    mask = np.zeros((1, 100, 120), bool)
    mask[0, 30:70, 20:90] = True
    image = np.full((100, 120, 3), 128, np.uint8)
    picture = draw_boxes(image, np.array([[20, 30, 90, 70]]), np.array([0]), None, ('a',), masks=mask, scale=5)
    plain = draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), None, ('a',), scale=5)
    changed = abs(picture.astype(int) - plain).max(axis=2)
    line = (picture == class_color(0)).all(axis=2)
    assert (
        line[150, 100:450].all() and line[349, 100:450].all() and line[150:350, 100].all() and line[150:350, 449].all()
    )
    # The tint fades within three pixels of the mask's edge.
    assert (changed[155:345, 105:445] > 40).all()
    assert (changed[353:] == 0).all() and (changed[150:, :97] == 0).all() and (changed[150:, 453:] == 0).all()
