"""Tests of the shapes in a tree of classes."""

import numpy as np

from detzoo.core.hierarchy import make_tree
from detzoo.data.made import shapes, shapes_tree


def names_of(objects):
    return [shapes_tree.CLASS_NAMES[thing.label] for thing in objects]


def test_the_tree_is_one_whose_leaves_are_the_shapes():
    tree = make_tree(shapes_tree.PARENTS)
    leaves = {name for name, group in zip(shapes_tree.CLASS_NAMES, tree.children) if group < 0}
    assert leaves == set(shapes.CLASS_NAMES)
    assert [shapes_tree.CLASS_NAMES[tree.parents[shapes_tree.CLASS_NAMES.index(x)]] for x in ('ring', 'cross')] == [
        'round',
        'angular',
    ]


def test_train_has_no_rings_and_crosses():
    found = {name for index in range(40) for name in names_of(shapes_tree.draw('train', index)[1])}
    assert found == set(shapes_tree.BOXED)


def test_labelled_pictures_have_one_label_and_no_place():
    found = set()
    for index in range(40):
        image, objects = shapes_tree.draw('labelled', index)
        (described,) = shapes_tree._example('labelled', index)['objects']
        assert described['bbox'].tolist() == [0, 0, image.shape[1], image.shape[0]] and not described['is_crowd']
        found |= set(names_of(objects))
    assert found == set(shapes.CLASS_NAMES)


def test_validation_is_that_of_shapes():
    image, objects = shapes_tree.draw('validation', 3)
    expected_image, expected = shapes.draw('validation', 3)
    np.testing.assert_array_equal(image, expected_image)
    assert names_of(objects) == [shapes.CLASS_NAMES[thing.label] for thing in expected] and len(objects) > 1


def test_draw_depends_on_nothing_but_split_and_index():
    for split in shapes_tree.SIZES:
        first, _ = shapes_tree.draw(split, 5)
        np.testing.assert_array_equal(shapes_tree.draw(split, 5)[0], first)
    assert not np.array_equal(shapes_tree.draw('train', 5)[0], shapes_tree.draw('labelled', 5)[0])
