"""The evaluation of a run while it trains, and its pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pycocotools.mask
import pytest
from linear import linear_detector
from tiny import CATEGORY_IDS

from detzoo.data.pipeline import evaluation_batches
from detzoo.data.records import decode_image, ground_truth
from detzoo.errors import DataError
from detzoo.inference.predictor import ImageDetections, to_coco
from detzoo.run import parallel
from detzoo.training import evaluation
from detzoo.training.finetune import initial_state
from detzoo.visualize import draw_boxes


def test_evaluation_takes_averaged_parameters_and_batches_without_filler(tiny_config, toy, monkeypatch):
    config, dataset = tiny_config(evaluation__batch_size=16), toy(31)
    score = lambda params, model_state, inputs: jnp.full(
        (len(inputs.images), 2), jax.nn.sigmoid(params['head']['bias'][0])
    )
    plain = linear_detector(parallel.AXIS)
    pixels = lambda inputs: inputs.images[:, 0, 0, 0].astype('int32')  # stand for how many candidates were dropped
    detector = plain._replace(
        predict=lambda *args: plain.predict(*args)._replace(scores=score(*args), candidates_dropped=pixels(args[2]))
    )
    metrics = lambda truth, results, kinds: {'scores': {row['score'] for row in results}}
    monkeypatch.setattr('detzoo.inference.dataset.coco_metrics', metrics)
    state = initial_state(config, detector)
    averaged = jax.tree.map(lambda x: x + 0.5, state.params)
    evaluate = evaluation.make_evaluation(config, detector, dataset)
    found = evaluate(parallel.replicate(state._replace(ema_params=averaged)))
    # Of 31 images 16 fill a batch, whose loss counts; the others share one with filler, one on a device with an image.
    batch, rest = evaluation_batches(dataset, [(64, 64)] * 31, max_boxes=4, recipe=config.data.recipe, batch_size=16)
    assert batch.valid.all() and rest.valid.sum() == 15
    loss, _ = linear_detector(None).loss(averaged, state.model_state, batch, jax.random.key(config.seed))
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert list(found.pictures) == ['100', '101', '102', '103']
    assert list(found.metrics['scores']) == pytest.approx([1 / (1 + np.exp(-0.5))], rel=1e-3)
    dropped = [pixels(each.inputs)[each.valid] for each in (batch, rest)]
    assert found.metrics['candidates_dropped'] == pytest.approx(np.concatenate(dropped).mean()) and dropped[1].any()


def with_crowds(records, chosen=lambda index: True):
    """Records whose objects are crowds, those of some indices only."""
    return [
        {**record, 'is_crowd': np.array([chosen(i) for i in range(len(record['boxes']))], bool)} for record in records
    ]


def test_validation_data_are_checked_before_anything_is_computed(tiny_config, toy, capfd):
    config, detector = tiny_config(), linear_detector(parallel.AXIS)
    masks = tiny_config(data__mask_size=28)
    dataset = toy(3)._replace(split='held_out')  # an image without objects, one with a crowd, one with five objects

    def check(config, records):
        evaluation.make_evaluation(config, detector, dataset._replace(records=records))
        return capfd.readouterr().err

    what = "the split 'held_out' of 'toy'"
    with pytest.raises(
        DataError, match=f'{what} has no images and cannot be evaluated: name another one as data.valid'
    ):
        check(config, [])
    with pytest.raises(
        DataError, match=rf"{what} cannot be evaluated: annotation 1\d\d of image 1.png: .* no 'segment"
    ):
        check(masks, dataset.records)
    with pytest.raises(DataError, match=f'{what} cannot be evaluated: ground truth: 2 images have the id 100'):
        check(config, dataset.records[:1] * 2)
    with pytest.raises(DataError, match=f'{what} cannot be evaluated: ground truth: 2 annotations have the id 200'):
        check(config, [dataset.records[2], {**dataset.records[2], 'image_id': 5}])
    assert check(config, dataset.records) == ''
    # A crowd needs no mask. One object that is none is enough for an AP.
    all_crowds = with_crowds(dataset.records)
    count = sum(len(record['boxes']) for record in dataset.records)
    warning = f'WARNING: {what} has no objects to be found: {{}}. There will be no AP\n'
    assert check(masks, all_crowds) == warning.format(f'all its {count} annotations are crowds (iscrowd)')
    assert check(config, dataset.records[:1]) == warning.format('it has no annotations')
    assert check(config, with_crowds(dataset.records, lambda index: index > 0)) == ''


def old_way(dataset, results, score_threshold=0.3):
    """Draws COCO results or annotations row by row, as detzoo did when all pictures were drawn from them."""
    pictures = {}
    for record in list(dataset.records)[: evaluation.PICTURES]:
        found = [r for r in results if r['image_id'] == record['image_id'] and r.get('score', 1.0) > score_threshold]
        boxes = np.array([r['bbox'] for r in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if found and 'segmentation' in found[0]:
            masks = np.stack([pycocotools.mask.decode(r['segmentation']).astype(bool) for r in found])
        pictures[str(record['image_id'])] = draw_boxes(
            decode_image(record['image'], name=''),
            boxes,
            [dataset.category_ids.index(r['category_id']) for r in found],
            [r['score'] for r in found] if found and 'score' in found[0] else None,
            dataset.class_names,
            masks=masks,
            crowd=[r.get('iscrowd', 0) for r in found],
        )
    return pictures


def detections(record, seed, with_masks):
    """Ten drawn detections in an image of the toy data, best score first."""
    rng, (height, width) = np.random.RandomState(seed), (record['height'], record['width'])
    corners = rng.uniform(0, 1, (10, 2, 2)) * (width, height)
    labels = rng.randint(0, 3, 10)
    return ImageDetections(
        boxes=np.concatenate([corners.min(1), corners.max(1) + 1], axis=1),
        scores=np.sort(rng.uniform(0, 1, 10))[::-1],
        labels=labels,
        category_ids=np.asarray(CATEGORY_IDS)[labels],
        class_names=tuple(('red', 'green', 'blue')[label] for label in labels),
        masks=rng.uniform(size=(10, height, width)) < 0.5 if with_masks else None,
    )


@pytest.mark.parametrize('with_masks', [False, True])
def test_pictures_of_detections_are_those_of_their_coco_results(toy, with_masks):
    dataset = toy(evaluation.PICTURES + 1)
    found = {i: detections(record, i, with_masks) for i, record in enumerate(dataset.records)}
    results = [row for i, record in enumerate(dataset.records) for row in to_coco(found[i], record['image_id'])]
    results = [row for row in results if row['image_id'] != 102]  # nothing is found in one of the images
    found[2] = ImageDetections(*(None if field is None else field[:0] for field in found[2]))
    expected = old_way(dataset, results)
    assert list(expected) == [str(100 + index) for index in range(evaluation.PICTURES)]
    shown = found[0].scores > 0.3
    assert 0 < shown.sum() < 10
    for pictures in (evaluation.draw_pictures(dataset, found), evaluation.draw_results(dataset, results)):
        assert list(pictures) == list(expected)
        for image_id in expected:
            np.testing.assert_array_equal(pictures[image_id], expected[image_id])


@pytest.mark.parametrize('with_masks', [False, True])
def test_draw_objects_shows_the_annotations(toy, with_masks):
    dataset = toy(evaluation.PICTURES + 1)  # the first image has no object, the second a crowd
    if with_masks:
        for record in dataset.records:
            masks = np.random.RandomState(0).uniform(size=(len(record['boxes']), record['height'], record['width']))
            encoded = [pycocotools.mask.encode(np.asfortranarray(mask < 0.5)) for mask in masks]
            record['segmentations'] = [rle['counts'].decode() for rle in encoded]
    pictures, expected = evaluation.draw_objects(dataset), old_way(dataset, ground_truth(dataset)['annotations'])
    assert list(pictures) == list(expected) and len(expected) == evaluation.PICTURES
    for image_id in expected:
        np.testing.assert_array_equal(pictures[image_id], expected[image_id])
