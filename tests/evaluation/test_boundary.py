"""Boundary AP: bands by distance, a case by hand, and COCO's own AP where bands are as wide as masks."""

import numpy as np
import pycocotools.mask
import pytest
from scipy import ndimage

from detzoo.evaluation import coco_metrics
from detzoo.evaluation.boundary import band_width, boundary, boundary_metrics

SIZE = (120, 160)  # diagonal 200: bands of 4 pixels


def encode(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def block(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truth_of(masks, crowd=()):
    rows = [
        dict(id=i, image_id=1, category_id=3, bbox=[0.0, 0.0, 9.0, 9.0], area=int(mask.sum()), iscrowd=int(i in crowd))
        | dict(segmentation=encode(mask))
        for i, mask in enumerate(masks)
    ]
    image = dict(id=1, height=SIZE[0], width=SIZE[1])
    return dict(images=[image], categories=[dict(id=3, name='a')], annotations=rows)


def results_of(masks):
    return [
        dict(image_id=1, category_id=3, bbox=[0.0, 0.0, 9.0, 9.0], score=0.9 - i / 100, segmentation=encode(mask))
        for i, mask in enumerate(masks)
    ]


def test_band_width_is_2_percent_of_the_diagonal():
    assert [band_width(size) for size in (SIZE, (300, 400), (30, 40), (3, 4))] == [4, 10, 1, 1]


@pytest.mark.parametrize('width', [1, 3])
def test_boundary_is_what_lies_near_the_outline(width):
    mask = ndimage.binary_dilation(np.random.RandomState(0).uniform(size=(40, 50)) < 0.01, iterations=5)
    band = boundary(mask, width)
    away = ndimage.distance_transform_cdt(np.pad(mask, 1), metric='chessboard')[1:-1, 1:-1]
    np.testing.assert_array_equal(band, mask & (away <= width))
    assert 0 < band.sum() < mask.sum() and band[0].any() == mask[0].any()


def test_boundary_metrics_by_hand():
    # A block of 60 x 60, found as 60 x 56: IoU 56 / 60 = 0.933. Bands of 4 pixels: 60^2 - 52^2 = 896 and 60 * 56 - 52 * 48 = 864.
    # They share 4 columns on the left, 4 * 60, and 4 rows above and below in the other 52 columns of the found one, 2 * 4 * 52:
    # 656, an IoU of 656 / (896 + 864 - 656) = 0.594.
    truth, results = truth_of([block(10, 10, 60, 60)]), results_of([block(10, 10, 60, 56)])
    whole, band = (f(truth, results) for f in (lambda *x: coco_metrics(*x, ('segm',))['masks'], boundary_metrics))
    assert whole['AP'] == pytest.approx(9 / 10)  # thresholds .50 to .90
    assert band['AP'] == pytest.approx(2 / 10) and band['AP50'] == pytest.approx(1) and band['AP75'] == 0
    assert band['APm'] == pytest.approx(2 / 10) and band['APs'] is None


def test_boundary_metrics_ask_for_the_whole_mask_too():
    # A ring of 6 pixels around a hole: its bands cover 896 of 1296 pixels, an IoU of 0.69, but the masks have one of 0.36.
    truth, results = truth_of([block(10, 10, 60, 60)]), results_of([block(10, 10, 60, 60) & ~block(16, 16, 48, 48)])
    assert boundary_metrics(truth, results)['AP50'] == 0


def test_boundary_metrics_of_thin_masks_are_those_of_masks():
    rng = np.random.RandomState(0)
    masks = [block(15 * i, rng.randint(80), rng.randint(3, 8), rng.randint(10, 60)) for i in range(7)]
    found = [np.roll(mask, rng.randint(-1, 2, 2), axis=(0, 1)) for mask in masks[1:]] + [block(100, 100, 5, 20)]
    truth, results = truth_of(masks, crowd=(3,)), results_of(found)
    expected = coco_metrics(truth, results, ('segm',))['masks']
    assert 0.1 < expected['AP'] < 0.9
    assert boundary_metrics(truth, results) == {
        name: pytest.approx(expected[name]) for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
    }


def test_boundary_metrics_take_masks_alone_where_a_crowd_is():
    # Inside a crowd the bands do not overlap, and yet what is found there is not wrong.
    truth = truth_of([block(0, 0, 100, 80), block(10, 100, 40, 40)], crowd=(0,))
    results = results_of([block(30, 20, 40, 40), block(10, 100, 40, 40)])
    assert boundary_metrics(truth, results)['AP'] == pytest.approx(1)


def test_boundary_metrics_of_nothing():
    truth = truth_of([block(0, 0, 100, 80)])
    assert boundary_metrics(truth, [])['AP'] == 0
    assert boundary_metrics(truth_of([]), [])['AP'] is None
    with pytest.raises(ValueError, match='image_id 7 is not in the ground truth'):
        boundary_metrics(truth, [results_of([block(0, 0, 9, 9)])[0] | dict(image_id=7)])
