"""The words that error messages share, by hand."""

import pytest

from detzoo.errors import listed, nearest


def test_nearest_finds_a_misspelt_name():
    assert nearest('retinanet_resnet', ['ssd300_vgg16', 'retinanet_resnet50_fpn', 'yolov3']) == 'retinanet_resnet50_fpn'
    assert nearest('?', ['yolov3']) == 'yolov3'  # however far it is


@pytest.mark.parametrize(
    'words, most, expected',
    [
        ([], None, ''),
        (['a'], None, 'a'),
        (['a', 'b'], None, 'a and b'),
        (['a', 'b', 'c'], None, 'a, b and c'),
        (['a', 'b', 'c'], 3, 'a, b and c'),
        (['a', 'b', 'c', 'd'], 2, 'a, b and 2 more'),
    ],
)
def test_listed_by_hand(words, most, expected):
    assert listed(iter(words), most) == expected
