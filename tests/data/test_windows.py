"""Boxes from outside of a detector: windows that cover an image, and what is given to, and taken from, OpenCV's search."""

import types

import cv2
import numpy as np
import pytest

from detzoo.data import windows
from detzoo.data.proposals import file_name, load_proposals, read_proposals
from detzoo.data.records import decode_image
from detzoo.data.statistics import read_annotations
from detzoo.errors import DataError
from detzoo.evaluation import write_detections


def lay(size, sizes, ratios=(1.0,), stride=0.5, seed=0):
    rng = np.random.RandomState(seed)
    return windows.sliding_windows(size, sizes=sizes, aspect_ratios=ratios, stride=stride, rng=rng)


def test_sliding_windows_by_hand():
    # Steps of half a window reach the right border; a row of windows as high as the image has one place; and 40 x 40 is cut.
    found = lay((10, 20), (10.0, 40.0))
    expected = [[0, 0, 10, 10], [5, 0, 10, 10], [10, 0, 10, 10], [0, 0, 20, 10]]
    assert sorted(found.tolist()) == sorted(np.float64(expected).tolist())
    # Three steps of 12 / 3 instead of two of 5 and one of 2.
    assert sorted(lay((10, 22), (10.0,))[:, 0]) == [0, 4, 8, 12]
    # Height over width 4: half as wide, twice as high.
    assert sorted(lay((20, 10), (10.0,), ratios=(4.0,)).tolist()) == [[x, 0, 5, 20] for x in (0, 2.5, 5)]


def test_sliding_windows_cover_every_box_of_their_size():
    # Nowhere is a box farther than a quarter of its side from a window: 0.75^2 / (2 - 0.75^2).
    found, rng = lay((90, 120), (16.0, 40.0)), np.random.RandomState(1)
    assert (found[:, :2] >= 0).all() and (found[:, :2] + found[:, 2:] <= [120 + 1e-9, 90 + 1e-9]).all()
    for side in (16, 40):
        own = found[found[:, 2] == side]
        for corner in rng.uniform(0, [120 - side, 90 - side], (50, 2)):
            shared = np.prod(np.maximum(side - abs(own[:, :2] - corner), 0), axis=1)
            assert (shared / (2 * side**2 - shared)).max() >= 0.391


def test_sliding_windows_come_in_an_order_that_the_seed_decides():
    one, again, other = lay((64, 64), (8.0,)), lay((64, 64), (8.0,)), lay((64, 64), (8.0,), seed=1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and sorted(one.tolist()) == sorted(other.tolist())
    assert abs(np.diff(one[:, 0])).mean() > 8  # neighbours do not follow each other
    with pytest.raises(DataError, match='an image of 4000 x 3000 pixels would have more than 1,000,000 windows'):
        lay((3000, 4000), (1.0,))


def test_window_sizes_go_from_the_small_objects_to_the_large_ones(toy):
    annotations = read_annotations(toy(1))._replace(
        boxes=np.float64([[0, 0, 4, 9], *[[0, 0, 10, 10]] * 20, [0, 0, 20, 45], [0, 0, 999, 999]]),
        crowd=np.arange(23) == 22,
        image=np.zeros(23, int),
        labels=np.zeros(23, int),
        has_mask=np.zeros(23, bool),
    )
    sizes = windows.window_sizes(annotations)  # of 6, 10 and 30 pixels: few are not 10
    low, high = np.quantile([6, *[10] * 20, 30], (0.02, 0.98))
    assert sizes[0] == pytest.approx(low) and sizes[-1] == pytest.approx(high) and 6 < low < high < 30
    assert max(np.divide(sizes[1:], sizes[:-1])) <= windows.STEP
    with pytest.raises(DataError, match='the split has no objects'):
        windows.window_sizes(annotations._replace(crowd=np.ones(23, bool)))


class Search:
    """What OpenCV's selective search is to us; it finds what it is told to."""

    def __init__(self, boxes):
        self.boxes = boxes

    def setBaseImage(self, image):
        self.image = image

    def switchToSelectiveSearchFast(self, **settings):
        self.settings = settings

    def process(self):
        return self.boxes


@pytest.fixture
def search(monkeypatch):
    """A function: boxes that selective search finds -> the search."""

    def make(boxes):
        made = Search(np.int32(boxes).reshape(-1, 4))
        segmentation = types.SimpleNamespace(createSelectiveSearchSegmentation=lambda: made)
        monkeypatch.setattr(cv2, 'ximgproc', types.SimpleNamespace(segmentation=segmentation), raising=False)
        return made

    return make


def test_selective_search_sees_bgr_of_its_width_and_answers_in_pixels_of_the_image(search):
    image = np.zeros((30, 50, 3), np.uint8)
    image[..., 0] = 200  # red
    made = search([[10, 20, 100, 60], [0, 0, 19, 60], [0, 0, 60, 19], [400, 250, 110, 60]])
    found = windows.selective_search(image)
    assert made.image.shape == (300, 500, 3) and (made.image == [0, 0, 200]).all()
    assert made.settings == dict(base_k=50, inc_k=50, sigma=0.8)
    # Two sides are shorter than 20 pixels there; the last box leaves the image.
    np.testing.assert_allclose(found, [[1, 2, 10, 6], [40, 25, 11, 6]])
    # At a tenth of the width the same shapes are ten times smaller, and the shortest side too.
    search([[1, 2, 10, 6], [0, 0, 1, 6], [0, 0, 2, 2]])
    np.testing.assert_allclose(windows.selective_search(image, width=50), [[1, 2, 10, 6], [0, 0, 2, 2]])
    search([])
    assert windows.selective_search(image).shape == (0, 4)


def test_opencv_without_selective_search_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.delattr(cv2, 'ximgproc', raising=False)
    with pytest.raises(ImportError, match='pip uninstall opencv-python-headless; pip install .opencv-contrib-python'):
        windows.check_selective_search()


def test_proposals_of_a_split_are_read_as_they_were_made(toy, search, tmp_path):
    made, dataset = search([[8, 4, 40, 30], [0, 0, 30, 30], [2, 2, 25, 25]]), toy(3)
    path = tmp_path / file_name('toy', 'selective_search', 'validation[:10%]')
    assert path.name == 'toy_selective_search_validation-10.json.gz'
    results = windows.propose_split(dataset, lambda i, record: windows.search_record(i, record, width=64), 2)
    write_detections(path, results)
    assert made.image.shape[1] == 64
    found = load_proposals(str(path), dataset, 5)
    for record, boxes in zip(dataset.records, found.boxes):
        scale = decode_image(record['image'], name='').shape[1] / 64
        np.testing.assert_allclose(boxes, scale * np.array([[8, 4, 48, 34], [0, 0, 30, 30]]), atol=0.02)
    laid = windows.propose_split(
        dataset,
        lambda i, record: windows.windows_of_record(i, record, sizes=(20.0,), aspect_ratios=(1.0,), stride=0.5),
        1000,
    )
    scores = [row['score'] for row in laid if row['image_id'] == dataset.records[1]['image_id']]
    assert scores[0] == 1 and (np.diff(scores) < 0).all() and scores[-1] > 0


def test_proposals_that_are_missing_are_an_error_with_the_command_that_writes_them(toy):
    for name, method in (('toy_selective_search_train', 'selective_search'), ('other', 'sliding_window')):
        words = f'detzoo proposals --data=toy --method={method} --output=nowhere$'
        with pytest.raises(DataError, match=words):
            load_proposals(f'nowhere/{name}.json.gz', toy(1), 5)
    with pytest.raises(DataError, match='--data=NAME'):
        read_proposals('nowhere/a.json')
