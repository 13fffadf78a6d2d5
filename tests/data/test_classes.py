"""Data under other classes than their own, and images of which only a label is known, in one stream with boxes."""

import itertools

import jax
import numpy as np
import pytest

from detzoo.config import defaults
from detzoo.data import pipeline
from detzoo.data.classes import with_classes, with_labelled
from detzoo.errors import DataError

RECIPE = defaults().data.recipe.to_dict() | dict(rotate90=True, scale_range=(0.7, 1.4))
NAMES = ('thing', 'blue', 'rouge', 'green')
RENAMED = {'red': 'rouge'}


def train(dataset, steps, **changes):
    arguments = dict(
        canvases=((48, 64),), max_boxes=3, recipe=RECIPE, batch_size=4, threads=2, seed=7, labelled_share=0.75
    )
    stream = pipeline.train_batches(dataset, **arguments | changes)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


@pytest.fixture(scope='module')
def joined(toy):
    """Ten records with boxes, and six behind them of which only a label is known; the first of these has none."""
    labelled = [toy(7).records[index] for index in (0, 1, 3, 4, 5, 6)]
    return with_labelled(toy(10), toy(10)._replace(records=labelled))


def test_with_classes_finds_classes_by_name(toy):
    dataset = with_classes(toy(), NAMES, RENAMED)
    assert dataset.class_names == NAMES and dataset.category_ids == (1, 2, 3, 4)
    before, after = (data.records[2] for data in (toy(), dataset))
    assert [NAMES[label] for label in after['labels']] == [
        ('rouge', 'green', 'blue')[label] for label in before['labels']
    ]
    np.testing.assert_array_equal(after['boxes'], before['boxes'])
    assert len(dataset.records) == 10 and len(list(dataset.records)) == 10
    assert with_classes(toy(), (), {}) is not None and with_classes(toy(), (), {}).class_names == (
        'red',
        'green',
        'blue',
    )


def test_with_classes_names_those_that_it_does_not_find(toy):
    with pytest.raises(DataError, match=r"'toy' has classes that are not in data.class_names: red; .*data.renamed"):
        with_classes(toy(), NAMES, {})


def test_with_classes_refuses_data_annotated_for_some_classes(toy):
    with pytest.raises(DataError, match=r"'toy' says for each image .*: leave data.class_names empty"):
        with_classes(toy()._replace(frequencies=('r', 'c', 'f')), NAMES, RENAMED)


def test_with_labelled_needs_the_same_classes(toy):
    with pytest.raises(DataError, match=r"'toy' and 'toy' have different classes: set data.class_names"):
        with_labelled(toy(), with_classes(toy(), NAMES, RENAMED))


def test_labelled_images_have_one_row_and_no_boxes(joined):
    seen = set()
    for batch in train(joined, 10):
        for row, image_id in enumerate(batch.image_id):
            gt = jax.tree.map(lambda x, row=row: x[row], batch.gt)
            record = joined.records[int(image_id)]
            assert gt.boxed == (image_id < 10)
            if image_id >= 10:
                seen.add(int(image_id))
                assert gt.valid.tolist() == [len(record['labels']) > 0, False, False]
                assert not gt.valid[0] or gt.labels[0] == record['labels'][0]
                assert gt.dropped == gt.cropped == 0
    assert seen == set(range(10, 16))


def test_labelled_images_have_their_share(joined):
    ids = np.concatenate([batch.image_id for batch in train(joined, 20)])
    assert (ids >= 10).sum() == 60
    assert set(ids[ids < 10][:10]) == set(range(10)) and set(ids[ids >= 10][:6]) == set(range(10, 16))


@pytest.mark.parametrize('processes', [1, 2])
def test_stream_with_labelled_images_is_a_function_of_seed_and_step(joined, processes):
    whole = train(joined, 8)
    parts = [train(joined, 5, start_step=3, process=i, processes=processes) for i in range(processes)]
    for expected, *shares in zip(whole[3:], *parts, strict=True):
        found = jax.tree.map(lambda *rows: np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]), *shares)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_data_without_labelled_images_have_no_flag(toy):
    assert train(toy(), 1)[0].gt.boxed is None
