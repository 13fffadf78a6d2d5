"""What a split holds: each number against one counted by hand."""

import hashlib

import numpy as np
import pytest

from detzoo.config import defaults
from detzoo.data.pipeline import evaluation_batches, train_batches
from detzoo.data.records import Dataset
from detzoo.data.statistics import (
    count,
    count_dropped,
    duplicates,
    read_annotations,
    sizes_on_canvas,
)

PLAIN = defaults().data.recipe.to_dict() | dict(flip=0.0)


def dataset_of(*images):
    """A data set in memory: of each image its (height, width), the bytes of its file, and (xywh, label, is_crowd) of its boxes."""
    records = [
        dict(
            image=data,
            image_id=10 + index,
            file_name=f'{index}.png',
            height=height,
            width=width,
            boxes=np.array([box for box, _, _ in boxes], float).reshape(-1, 4),
            labels=np.array([label for _, label, _ in boxes], int),
            is_crowd=np.array([crowd for _, _, crowd in boxes], bool),
            segmentations=['' if crowd else 'counts' for _, _, crowd in boxes],
        )
        for index, ((height, width), data, boxes) in enumerate(images)
    ]
    return Dataset('drawn', 'train', ('red', 'green', 'blue'), (1, 2, 3), records)


@pytest.fixture
def drawn():
    """Four images: one object and one crowd; nothing; one crowd; three objects."""
    return read_annotations(
        dataset_of(
            ((50, 100), b'a', [((0, 0, 10, 20), 0, False), ((5, 5, 30, 30), 1, True)]),
            ((80, 80), b'b', []),
            ((40, 20), b'a', [((1, 1, 8, 8), 2, True)]),
            ((100, 50), b'c', [((2, 3, 4, 5), 0, False), ((9, 9, 6, 3), 1, False), ((0, 0, 50, 100), 1, False)]),
        )
    )


def test_read_annotations_flattens_records_in_order(drawn):
    assert drawn.sizes.tolist() == [[50, 100], [80, 80], [40, 20], [100, 50]]
    assert drawn.image.tolist() == [0, 0, 2, 3, 3, 3]
    assert drawn.boxes[3].tolist() == [2, 3, 4, 5] and drawn.labels.tolist() == [0, 1, 2, 0, 1, 1]
    assert drawn.crowd.tolist() == [False, True, True, False, False, False]
    assert drawn.has_mask.tolist() == [True, False, False, True, True, True]
    assert drawn.file_names == ('0.png', '1.png', '2.png', '3.png')
    assert drawn.digests[3] == hashlib.sha256(b'c').digest()
    assert drawn.rows.tolist() == [2, 0, 1, 3] and drawn.objects.tolist() == [1, 0, 0, 3]


def test_read_annotations_of_no_boxes_and_of_no_images():
    empty = read_annotations(dataset_of(((5, 6), b'', [])))
    assert empty.boxes.shape == (0, 4) and empty.rows.tolist() == [0]
    nothing = read_annotations(dataset_of())
    assert nothing.sizes.shape == (0, 2) and count(nothing)[:4] == (0, 0, 0, 0)


def test_count_leaves_crowds_out(drawn):
    images, empty, objects, crowds, of_class = count(drawn)
    assert (images, empty, objects, crowds) == (4, 2, 4, 2)  # the third image has a crowd alone
    assert of_class.tolist() == [2, 2, 0]


def test_count_dropped_drops_crowds_first(drawn):
    assert count_dropped(drawn, 3) == (0, 0, 0, 3)
    assert count_dropped(drawn, 2) == (1, 1, 0, 3)
    assert count_dropped(drawn, 1) == (2, 2, 1, 3)  # of the first image its crowd, of the last two objects


def test_take_keeps_the_boxes_of_some_images(drawn):
    part = drawn.take(np.array([0, 3]))
    assert part.image.tolist() == [0, 0, 1, 1, 1] and part.file_names == ('0.png', '3.png')
    assert part.boxes.tolist() == drawn.boxes[[0, 1, 3, 4, 5]].tolist()
    assert part.digests == (drawn.digests[0], drawn.digests[3]) and part.has_mask.tolist() == [True, False] + [True] * 3


@pytest.mark.parametrize('max_boxes', [1, 2, 4])
def test_count_dropped_is_what_an_epoch_of_training_drops(toy, max_boxes):
    dataset, recipe = toy(), PLAIN  # 10 images: the second has a crowd, the third five objects
    batches = train_batches(
        dataset, canvases=((64, 64),), max_boxes=max_boxes, recipe=recipe, batch_size=5, seed=0, threads=2
    )
    epoch = sum(int(next(batches).gt.dropped.sum()) for _ in range(2))
    batches.close()
    lost = count_dropped(read_annotations(dataset), max_boxes)
    assert lost.objects + lost.crowds == epoch
    assert (epoch > 0) == (max_boxes < 5)


@pytest.mark.parametrize('resize', ['fit', 'letterbox', 'stretch'])
def test_sizes_on_canvas_are_those_of_evaluation(toy, resize):
    dataset, recipe = toy(4), PLAIN | dict(resize=resize)
    annotations, canvas = read_annotations(dataset), (48, 64)
    batch = next(evaluation_batches(dataset, [canvas] * 4, max_boxes=8, recipe=recipe, batch_size=4, threads=2))
    boxes = batch.gt.boxes[batch.gt.valid]
    sizes = sizes_on_canvas(annotations, (canvas, (16, 16)), recipe)
    np.testing.assert_allclose(sizes, boxes[:, 2:] - boxes[:, :2], rtol=1e-4)
    assert len(sizes) == len(annotations.boxes) > 5


def test_duplicates_are_the_same_to_the_byte(drawn):
    assert duplicates(drawn) == [(0, 2)]
    other = read_annotations(dataset_of(((9, 9), b'c', []), ((9, 9), b'd', []), ((9, 9), b'a', [])))
    assert duplicates(drawn, other) == [(0, 2), (2, 2), (3, 0)]
    assert duplicates(other, drawn) == [(0, 3), (2, 0), (2, 2)] and duplicates(other) == []
