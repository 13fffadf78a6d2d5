"""The streams of batches: the same for any number of processes, every record once, nothing lost uncounted."""

import itertools

import jax
import numpy as np
import pycocotools.mask
import pytest

from detzoo.config import defaults
from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data import pipeline
from detzoo.data.geometry import ResizeRule, choose_canvas, placement, resize_rule
from detzoo.data.proposals import load_proposals
from detzoo.data.records import with_objects
from detzoo.data.statistics import read_annotations
from detzoo.errors import DataError
from detzoo.types import GroundTruth

RECIPE = defaults().data.recipe.to_dict() | dict(rotate90=True, scale_range=(0.7, 1.4))
CANVASES = ((48, 64), (64, 48))
COMMON = dict(canvases=CANVASES, max_boxes=3, recipe=RECIPE, batch_size=4, threads=2)
COLORS = np.array([(230, 40, 40), (40, 230, 40), (40, 40, 230)])  # of the toy data's classes


def train(dataset, steps, **changes):
    stream = pipeline.train_batches(dataset, **COMMON | dict(seed=7) | changes)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def evaluation(dataset, **changes):
    arguments = COMMON | changes
    canvases, rule = arguments.pop('canvases'), resize_rule(arguments['recipe'])
    chosen = [choose_canvas((record['height'], record['width']), canvases, rule) for record in dataset.records]
    return list(pipeline.evaluation_batches(dataset, chosen, **arguments))


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def interleave(shares):
    """The batch of all processes from the share of each: its first row is the first process's."""
    return jax.tree.map(lambda *parts: np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]), *shares)


@pytest.mark.parametrize('processes', [2, 4])
def test_train_batches_are_the_same_for_any_number_of_processes(toy, processes):
    alone = train(toy(), 6)
    shares = [train(toy(), 6, process=i, processes=processes) for i in range(processes)]
    assert {len(batch.valid) for share in shares for batch in share} == {4 // processes}
    for expected, *parts in zip(alone, *shares, strict=True):
        assert_same(interleave(parts), expected)


@pytest.mark.parametrize('processes', [1, 2])
def test_train_batches_start_anywhere(toy, processes):
    share = dict(process=processes - 1, processes=processes)
    whole = train(toy(), 8, **share)
    for start in (1, 5):  # 5: in the third epoch
        for expected, batch in zip(whole[start:], train(toy(), 8 - start, start_step=start, **share), strict=True):
            assert_same(batch, expected)


def test_train_batches_may_be_of_one_image(toy):
    (batch,), single = train(toy(), 1), train(toy(), 4, batch_size=1)
    assert [int(one.image_id[0]) for one in single] == batch.image_id.tolist()


def test_train_batches_hold_each_record_once_in_an_epoch(toy):
    batches = train(toy(), 15)  # 60 images: six epochs of 10 records, whose ends lie in the midst of batches
    epochs = np.concatenate([batch.image_id for batch in batches]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(10), (6, 10)))
    assert len({tuple(epoch) for epoch in epochs}) == 6  # each in an order of its own
    assert all(batch.valid.all() for batch in batches)


@pytest.mark.parametrize('processes', [1, 2])
def test_train_batches_without_empty_images_start_anywhere(toy, processes):
    kept = with_objects(toy(), read_annotations(toy()).objects)  # nine of ten records
    alone = train(kept, 9)
    epochs = np.concatenate([batch.image_id for batch in alone]).reshape(4, 9)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(9), (4, 9)))
    assert all((batch.gt.valid.sum(axis=1) + batch.gt.cropped > 0).all() for batch in alone)
    shares = [train(kept, 4, start_step=5, process=i, processes=processes) for i in range(processes)]
    for expected, *parts in zip(alone[5:], *shares, strict=True):
        assert_same(interleave(parts), expected)


def test_train_batches_augment_a_record_anew_in_each_epoch(toy):
    batches = train(toy(), 15, canvases=((64, 64),))
    for index in range(10):
        images = [image.tobytes() for batch in batches for image in batch.inputs.images[batch.image_id == index]]
        assert len(images) == len(set(images)) == 6


def test_train_batches_depend_on_the_seed(toy):
    first, again, other = (train(toy(), 3, seed=seed) for seed in (7, 7, 8))
    assert_same(first, again)
    assert [batch.image_id.tolist() for batch in first] != [batch.image_id.tolist() for batch in other]


def test_train_batches_use_the_canvas_of_the_step(toy):
    drawn = [pipeline.canvas_of_step(step, CANVASES, 7) for step in range(12)]
    assert set(drawn) == set(CANVASES)
    for process in (0, 1):
        batches = train(toy(), 12, process=process, processes=2)
        assert [batch.inputs.images.shape[1:3] for batch in batches] == drawn
    assert drawn != [pipeline.canvas_of_step(step, CANVASES, 8) for step in range(12)]


def test_canvas_of_step_keeps_a_canvas_for_some_steps():
    canvases = [(32 * n, 32 * n) for n in range(10, 20)]  # darknet's
    each = [pipeline.canvas_of_step(step, canvases, 3) for step in range(60)]
    kept = [pipeline.canvas_of_step(step, canvases, 3, canvas_steps=10) for step in range(600)]
    assert kept == [canvas for canvas in each for _ in range(10)]
    assert set(kept) == set(canvases)
    # Stored before there was `canvas_steps`: what is drawn at each step by default.
    assert [height // 32 for height, _ in each[:12]] == [14, 11, 12, 16, 15, 16, 10, 10, 12, 14, 18, 14]


def test_make_batches_keeps_a_canvas_as_the_config_says(toy, tiny_config):
    from detzoo.training.loop import make_batches

    batches = make_batches(tiny_config(data__canvases=CANVASES, data__canvas_steps=4), toy(), 2)
    shapes = [batch.inputs.images.shape[1:3] for batch in itertools.islice(batches, 7)]
    batches.close()
    assert shapes == [pipeline.canvas_of_step(step, CANVASES, 0, canvas_steps=4) for step in range(2, 9)]
    assert shapes != [pipeline.canvas_of_step(step, CANVASES, 0) for step in range(2, 9)]


@pytest.mark.parametrize('processes', [1, 2])
def test_train_batches_keep_the_canvas_wherever_they_start(toy, processes):
    share = dict(canvas_steps=3, process=processes - 1, processes=processes)
    whole = train(toy(), 10, **share)
    expected = [pipeline.canvas_of_step(step, CANVASES, 7, canvas_steps=3) for step in range(10)]
    assert [batch.inputs.images.shape[1:3] for batch in whole] == expected
    assert expected[:3] == [expected[0]] * 3 and len(set(expected)) == 2
    for start in (4, 6):  # in the midst of a canvas's steps, and at their start
        for batch, again in zip(whole[start:], train(toy(), 10 - start, start_step=start, **share), strict=True):
            assert_same(batch, again)


@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(resize='stretch', zoom_out=2.0, iou_crop=True, hue=0.05),
        dict(resize='letterbox', aspect_jitter=0.3, exposure=(0.8, 1.2)),
        dict(resize='stretch', jitter=0.2),
    ],
)
def test_train_batches_put_boxes_around_their_objects(toy, changes):
    # Decoding, augmentation and padding together: in the middle of a box is the colour of its label.
    checked = 0
    for batch in train(toy(), 10, max_boxes=8, recipe=RECIPE | changes):
        assert batch.inputs.images.dtype == np.uint8
        gt = batch.gt
        for row, thing in zip(*np.nonzero(gt.valid & ~gt.crowd)):
            x, y = ((gt.boxes[row, thing, :2] + gt.boxes[row, thing, 2:]) / 2).astype(int)
            color = batch.inputs.images[row, y, x].astype(int)
            assert np.abs(color - COLORS[gt.labels[row, thing]]).max() < (90 if changes else 40)
            checked += 1
    assert checked > 50


def test_train_batches_count_what_is_left_out(toy):
    # Record 2 has more objects than rows; at four times the canvas's size most are not in the crop.
    objects = [len(record['boxes']) for record in toy().records]
    assert objects[2] > 3
    crop = dict(iou_crop=True, zoom_out=2.0)
    for changes, cropping in ((dict(), False), (dict(scale_range=(4.0, 4.0)), True), (crop, True)):
        batches = train(toy(), 5, recipe=RECIPE | dict(scale_range=(1.0, 1.0)) | changes)
        for batch in batches:
            total = batch.gt.valid.sum(axis=1) + batch.gt.dropped + batch.gt.cropped
            np.testing.assert_array_equal(total, [objects[index] for index in batch.image_id])
        assert any(batch.gt.dropped.any() for batch in batches) != cropping
        assert any(batch.gt.cropped.any() for batch in batches) == cropping


def test_batches_refuse_a_size_that_processes_cannot_share(toy):
    with pytest.raises(ValueError, match='batch_size 4 is not a multiple of the 3 processes'):
        train(toy(), 1, processes=3)
    with pytest.raises(ValueError, match='batch_size 4 is not a multiple of the 3 processes'):
        evaluation(toy(), processes=3)


def test_load_augmented_of_a_single_pixel_and_of_an_empty_image(toy):
    import cv2

    dataset = toy()
    pixel = dataset.records[1] | dict(
        image=cv2.imencode('.png', np.full((1, 1, 3), 9, np.uint8))[1].tobytes(),
        height=1,
        width=1,
        boxes=np.array([[0.0, 0, 1, 1]]),
        labels=np.array([2]),
        is_crowd=np.array([False]),
    )
    dataset = dataset._replace(records=[dataset.records[0], pixel])
    recipe, rng = RECIPE | dict(scale_range=(1, 1)), np.random.RandomState(0)
    example = pipeline.load_augmented(dataset, 1, (32, 32), 2, recipe, rng)
    np.testing.assert_allclose(example.gt.boxes, [[0, 0, 32, 32], [0, 0, 0, 0]], atol=1e-5)
    assert example.gt.valid.tolist() == [True, False] and example.gt.labels[0] == 2
    empty = pipeline.load_augmented(dataset, 0, (32, 32), 2, recipe, rng)
    assert not empty.gt.valid.any() and empty.gt.dropped == 0 and empty.gt.cropped == 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype), empty) == jax.tree.map(lambda x: (x.shape, x.dtype), example)


def with_masks(dataset):
    """The toy data with masks: an object is what has its colour inside of its box, but for its lower right quarter."""

    def masked(record):
        segmentations = []
        for x, y, w, h in record['boxes'].astype(int):
            mask = np.zeros((record['height'], record['width']), np.uint8, order='F')
            mask[y : y + h, x : x + w] = 1
            mask[y + h // 2 : y + h, x + w // 2 : x + w] = 0
            segmentations.append(pycocotools.mask.encode(mask)['counts'].decode())
        return record | dict(segmentations=segmentations)

    return dataset._replace(records=[masked(record) for record in dataset.records])


def test_batches_bring_masks_in_the_frames_of_boxes(toy):
    corner = np.ones((16, 16), bool)
    corner[8:, 8:] = False
    plain = RECIPE | dict(flip=0.0, rotate90=False, scale_range=(1.0, 1.0))
    for batches in (
        train(with_masks(toy()), 3, mask_size=16, recipe=plain),
        evaluation(with_masks(toy()), mask_size=16),
    ):
        for batch in batches:
            objects = batch.gt.valid & ~batch.gt.crowd
            assert batch.gt.masks.shape == (*objects.shape, 16, 16) and batch.gt.masks.dtype == bool
            assert (batch.gt.masks[objects] == corner).mean() > 0.93  # sides are whole pixels, halves are not
            assert not batch.gt.masks[~objects].any()
    turned = train(with_masks(toy()), 8, mask_size=16)
    masks = np.concatenate([batch.gt.masks[batch.gt.valid & ~batch.gt.crowd] for batch in turned])
    shares = [(masks == np.rot90(corner, turns)).mean(axis=(1, 2)) > 0.85 for turns in range(4)]
    assert np.any(shares, axis=0).mean() > 0.6 and all(share.any() for share in shares)
    # Everything else is as without masks.
    for first, second in zip(turned, train(toy(), 8), strict=True):
        assert_same(first._replace(gt=first.gt._replace(masks=None)), second)


def test_batches_with_masks_refuse_an_object_without(toy):
    with pytest.raises(ValueError, match=r'0?[1-9].png: annotation \d+ has no mask, but data.mask_size'):
        pipeline.load_augmented(toy(), 3, (48, 64), 3, RECIPE, np.random.RandomState(0), mask_size=8)


def test_batches_are_what_they_were_before_samples_had_several_records(toy):
    # Stored before there was `compose` (commit d9ffee2): the same boxes, masks and pixels from the same recipe.
    recipe = RECIPE | dict(resize='letterbox', zoom_out=1.5, jitter=0.1, aspect_jitter=0.2, iou_crop=True)
    batch = train(with_masks(toy()), 2, mask_size=16, recipe=recipe | dict(hue=0.05, scale_range=(0.7, 2.0)))[1]
    assert batch.image_id.tolist() == [4, 2, 5, 6] and batch.gt.valid.sum(axis=1).tolist() == [1, 3, 1, 1]
    expected = [
        [5.346, 26.294, 61.654, 48], [38, 4.791, 55.857, 21.535], [13.714, 2, 21.571, 20.14],
        [23, 6.884, 34.429, 23.628], [28.71, 19.37, 64, 48], [19.091, 9.429, 53.061, 21],
    ]  # fmt: skip
    np.testing.assert_allclose(batch.gt.boxes[batch.gt.valid], expected, atol=1e-3)
    assert batch.gt.labels[batch.gt.valid].tolist() == [2, 1, 2, 0, 2, 2] and not batch.gt.crowd.any()
    assert batch.gt.cropped.tolist() == [2, 2, 1, 2] and not batch.gt.dropped.any()
    areas = batch.gt.masks[batch.gt.valid].sum(axis=(1, 2))
    np.testing.assert_allclose(areas, [256, 192, 184, 192, 136, 200], atol=2)  # OpenCV's rounding may vary
    assert batch.inputs.window.tolist() == [[3, 0, 64, 48], [3, 2, 63, 32], [0, 0, 64, 48], [3, 3, 62, 21]]
    means = batch.inputs.images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [110.483, 70.61, 117.774, 40.922], atol=0.05)


@pytest.mark.parametrize('key', ['mosaic', 'copy_paste', 'mixup', 'cutout'])
def test_train_batches_of_several_records_start_anywhere_in_any_number_of_processes(toy, key):
    # Five steps of four images, of ten records: the second epoch begins in the midst of the third step.
    dataset = with_masks(toy())
    options = dict(recipe=RECIPE | {key: 0.7}, mask_size=8, max_boxes=9)
    whole, plain = train(dataset, 5, **options), train(dataset, 5, mask_size=8, max_boxes=9)
    changed = [
        not np.array_equal(*images) for a, b in zip(whole, plain) for images in zip(a.inputs.images, b.inputs.images)
    ]
    assert any(changed) and [a.image_id.tolist() for a in whole] == [b.image_id.tolist() for b in plain]
    shares = [train(dataset, 3, start_step=2, process=i, processes=2, **options) for i in range(2)]
    for expected, *parts in zip(whole[2:], *shares, strict=True):
        assert_same(interleave(parts), expected)
    for batch in whole:
        assert (batch.gt.masks.any(axis=(2, 3)) == (batch.gt.valid & ~batch.gt.crowd)).all()


def test_train_batches_of_several_records_count_their_objects(toy):
    dataset, objects = with_masks(toy()), np.array([len(record['boxes']) for record in toy().records])
    recipe = RECIPE | dict(scale_range=(1.0, 1.0))
    for key, most in (('cutout', 1), ('mixup', 2), ('mosaic', 4)):
        for batch in train(dataset, 3, recipe=recipe | {key: 1.0}, max_boxes=4):
            total = batch.gt.valid.sum(axis=1) + batch.gt.dropped + batch.gt.cropped
            own = objects[batch.image_id]
            assert (total >= own).all() and (total <= own + (most - 1) * objects.max()).all()
            assert (total == own).all() == (most == 1)


def test_pasting_without_masks_is_refused_before_anything_is_written(toy, tiny_config, linear, tmp_path):
    from detzoo.training.loop import train_and_evaluate

    with pytest.raises(DataError, match='no object has a mask, and data.recipe.copy_paste'):
        train(toy(), 0, recipe=RECIPE | dict(copy_paste=0.1))
    with pytest.raises(DataError, match="split 'train' of 'toy': no object has a mask"):
        train_and_evaluate(tiny_config(data__recipe__copy_paste=0.1), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_train_batches_with_cutout_bring_proposals(toy):
    given = dict(proposals=load_proposals('ground_truth', toy(), 6), recipe=RECIPE | dict(cutout=1.0))
    for first, second in zip(train(toy(), 2, **given), train(toy(), 2, **given | dict(recipe=RECIPE))):
        np.testing.assert_array_equal(first.inputs.proposals, second.inputs.proposals)


def without_proposals(batch):
    return batch._replace(inputs=batch.inputs._replace(proposals=None, proposals_valid=None))


def test_train_batches_bring_proposals(toy):
    objects = load_proposals('ground_truth', toy(), 6)
    batches = train(toy(), 6, proposals=objects, max_boxes=6)
    for batch in batches:
        inputs, gt = batch.inputs, batch.gt
        assert inputs.proposals.shape == (4, 6, 4) and inputs.proposals_valid.shape == (4, 6)
        assert inputs.proposals.dtype == np.float32 and inputs.proposals_valid.dtype == bool
        for row in range(4):  # an object that a crop makes a crowd stays a proposal, a crowd never is one
            proposals = inputs.proposals[row][inputs.proposals_valid[row]]
            for box in gt.boxes[row][gt.valid[row] & ~gt.crowd[row]]:
                assert np.abs(proposals - box).max(axis=1).min() < 1e-4
            assert len(proposals) <= gt.valid[row].sum()
    assert sum(batch.inputs.proposals_valid.sum() for batch in batches) > 40
    # Everything else is as without, and without there is nothing.
    for first, second in zip(batches, train(toy(), 6, max_boxes=6), strict=True):
        assert second.inputs.proposals is None and second.inputs.proposals_valid is None
        assert_same(without_proposals(first), second)


def test_train_batches_with_proposals_are_the_same_for_any_number_of_processes(toy):
    given = dict(proposals=load_proposals('ground_truth', toy(), 2))
    alone = train(toy(), 4, **given)
    shares = [train(toy(), 4, process=i, processes=2, **given) for i in range(2)]
    for expected, *parts in zip(alone, *shares, strict=True):
        assert_same(interleave(parts), expected)


@pytest.mark.parametrize('resize', ['fit', 'stretch', 'letterbox'])
def test_evaluation_batches_bring_proposals(toy, resize):
    dataset, recipe = toy(), RECIPE | dict(resize=resize)
    batches = evaluation(dataset, recipe=recipe, max_boxes=6, proposals=load_proposals('ground_truth', dataset, 7))
    for batch in batches:
        assert batch.inputs.proposals.shape == (4, 7, 4)
        for row in range(4):
            gt, inputs = (jax.tree.map(lambda x, row=row: x[row], part) for part in (batch.gt, batch.inputs))
            expected = gt.boxes[gt.valid & ~gt.crowd]
            np.testing.assert_allclose(inputs.proposals[inputs.proposals_valid], expected, atol=1e-4)
    for first, second in zip(batches, evaluation(dataset, recipe=recipe, max_boxes=6), strict=True):
        assert second.inputs.proposals is None and second.inputs.proposals_valid is None
        assert_same(without_proposals(first), second)


def test_pad_ground_truth_drops_crowds_first_then_the_smallest():
    sides = np.array([4.0, 9.0, 2.0, 7.0, 5.0])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    crowd = np.array([False, True, False, False, False])  # the largest
    labels = np.arange(5)

    def kept(rows):
        gt = pipeline.pad_ground_truth(boxes, labels, crowd, rows, cropped=6)
        assert gt.valid.sum() + gt.dropped == 5 and gt.cropped == 6
        assert gt.boxes.shape == (rows, 4) and gt.labels.shape == gt.valid.shape == gt.crowd.shape == (rows,)
        np.testing.assert_array_equal(gt.boxes[gt.valid], boxes[gt.labels[gt.valid]])
        np.testing.assert_array_equal(gt.crowd[gt.valid], crowd[gt.labels[gt.valid]])
        return gt.labels[gt.valid].tolist()

    assert kept(7) == kept(5) == [0, 1, 2, 3, 4]
    assert kept(4) == [0, 2, 3, 4]  # in the order of the record
    assert kept(3) == [0, 3, 4]
    assert kept(1) == [3]


def test_pad_ground_truth_has_the_types_of_ground_truth():
    gt = pipeline.pad_ground_truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), 2, cropped=0)
    assert not gt.valid.any() and gt.masks is None
    types = {name: value.dtype for name, value in gt._asdict().items() if value is not None}
    int32, float32 = np.dtype('int32'), np.dtype('float32')
    assert types == dict(boxes=float32, labels=int32, valid=bool, crowd=bool, dropped=int32, cropped=int32)
    assert set(types) | {'masks', 'boxed'} == set(GroundTruth._fields)


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_evaluation_batches_hold_each_record_once(toy, processes):
    dataset = toy()
    shares = [evaluation(dataset, process=i, processes=processes) for i in range(processes)]
    assert len({len(share) for share in shares}) == 1
    for parts in zip(*shares):
        assert len({part.inputs.images.shape for part in parts}) == 1  # one program on all
        assert parts[0].inputs.images.shape[0] == 4 // processes
    valid = [index for share in shares for batch in share for index in batch.image_id[batch.valid]]
    assert sorted(valid) == list(range(10))


def test_evaluation_batches_put_each_image_on_the_canvas_where_it_is_largest(toy):
    dataset, used = toy(), set()
    for batch in evaluation(dataset, max_boxes=20):
        canvas = batch.inputs.images.shape[1:3]
        used.add(canvas)
        for row in np.flatnonzero(batch.valid):
            record = dataset.records[batch.image_id[row]]
            height, width = record['height'], record['width']
            assert canvas == choose_canvas((height, width), CANVASES, ResizeRule())
            window = batch.inputs.window[row]
            assert (window[2:] == canvas[::-1]).any() and (window[2:] <= canvas[::-1]).all()
            expected = xywh_to_xyxy(record['boxes']) * np.tile(window[2:] / [width, height], 2)
            np.testing.assert_allclose(batch.gt.boxes[row][batch.gt.valid[row]], expected, rtol=1e-5)
            assert batch.gt.dropped[row] == 0
    assert used == set(CANVASES)


@pytest.mark.parametrize('resize', ['stretch', 'letterbox'])
def test_evaluation_batches_resize_as_the_recipe_says(toy, resize):
    dataset, offsets = toy(), set()
    for batch in evaluation(dataset, recipe=RECIPE | dict(resize=resize), max_boxes=20):
        canvas = batch.inputs.images.shape[1:3]
        for row in np.flatnonzero(batch.valid):
            record = dataset.records[batch.image_id[row]]
            where = placement((record['height'], record['width']), canvas, ResizeRule(resize))
            np.testing.assert_array_equal(batch.inputs.window[row], where.window)
            gt = jax.tree.map(lambda x, row=row: x[row], batch.gt)
            np.testing.assert_allclose(gt.boxes[gt.valid], where.to_canvas(xywh_to_xyxy(record['boxes'])), rtol=1e-5)
            for box, label in zip(gt.boxes[gt.valid], gt.labels[gt.valid]):
                x, y = ((box[:2] + box[2:]) / 2).astype(int)
                assert np.abs(batch.inputs.images[row, y, x].astype(int) - COLORS[label]).max() < 40
            offsets.add(where.offset)
    assert len(offsets) > 3 if resize == 'letterbox' else offsets == {(0, 0)}


def test_evaluation_batches_keep_to_the_limits_on_sides(toy):
    for batch in evaluation(toy(), recipe=RECIPE | dict(longer_side=30)):
        assert (batch.inputs.window[:, 2:].max(axis=1) == 30).all()


def test_shard_splits_the_leading_axis_in_order(toy):
    batch = train(toy(), 1)[0]
    sharded = pipeline.shard(batch, 2)
    assert sharded.inputs.images.shape == (2, 2, *batch.inputs.images.shape[1:])
    assert_same(jax.tree.map(lambda x: np.concatenate(x), sharded), batch)
