"""Mask targets in the frames of RoIs, against a loop and shapes with a formula; pasted masks, against torchvision's."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from detzoo.core import masks as masks_module
from detzoo.core.masks import paste_masks

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'masks.npz'))
IMAGE = tuple(GOLDEN['image_size'].tolist())
mask_targets = jax.jit(masks_module.mask_targets, static_argnames=('size', 'threshold'))

BOXES = np.array([[20, 10, 120, 100], [5.5, 30.25, 60.75, 110], [0, 0, 0, 0]], np.float32)  # the last one is padding
MASKS = np.random.RandomState(0).uniform(size=(3, 8, 8)).astype(np.float32)
RNG = np.random.RandomState(1)
MATCHED = np.concatenate([RNG.randint(0, 2, 20), [2, -1, -2, 0]]).astype(np.int32)
ROIS = (BOXES[np.maximum(MATCHED, 0)] + RNG.normal(size=(24, 4)) * 9).astype(np.float32)
ROIS[-1] = 150, 150, 160, 170  # its box is elsewhere


def targets_by_loops(masks, boxes, matched, rois, size, threshold):
    """Point by point."""
    result = np.zeros((len(rois), size, size))
    for r, (row, roi) in enumerate(zip(matched, rois.astype(np.float64))):
        x1, y1, x2, y2 = boxes[max(row, 0)].astype(np.float64)
        for i in range(size):
            for j in range(size):
                x = roi[0] + (roi[2] - roi[0]) * (j + 0.5) / size
                y = roi[1] + (roi[3] - roi[1]) * (i + 0.5) / size
                if row < 0 or x2 <= x1 or not (x1 <= x <= x2 and y1 <= y <= y2):
                    continue
                side = masks.shape[1]
                at = [
                    min(max(p, 0), side - 1)
                    for p in ((y - y1) / (y2 - y1) * side - 0.5, (x - x1) / (x2 - x1) * side - 0.5)
                ]
                low = [min(int(p), side - 2) for p in at]
                (a, b), (top, left) = [p - q for p, q in zip(at, low)], low
                upper = (1 - b) * masks[row, top, left] + b * masks[row, top, left + 1]
                lower = (1 - b) * masks[row, top + 1, left] + b * masks[row, top + 1, left + 1]
                result[r, i, j] = (1 - a) * upper + a * lower >= threshold
    return result


def test_mask_targets_equals_loops():
    expected = targets_by_loops(MASKS, BOXES, MATCHED, ROIS, 7, 0.5)
    result = np.asarray(mask_targets(MASKS, BOXES, MATCHED, ROIS, size=7))
    assert result.dtype == np.float32 and 0.2 < result[:20].mean() < 0.8
    np.testing.assert_array_equal(result, expected)


def test_mask_targets_with_another_threshold():
    expected = targets_by_loops(MASKS, BOXES, MATCHED, ROIS, 7, 0.25)
    np.testing.assert_array_equal(mask_targets(MASKS, BOXES, MATCHED, ROIS, size=7, threshold=0.25), expected)


def test_mask_targets_by_hand():
    # The mask of a box of 20 x 20 is its left half. The RoI is the box shifted by 5 to the right and down: of four columns,
    # centres at 7.5, 12.5, 17.5 and 22.5, the first is in the left half; of the rows the last one is below the box.
    mask = np.zeros((1, 8, 8), np.float32)
    mask[:, :, :4] = 1
    box = np.float32([[0, 0, 20, 20]])
    found = mask_targets(
        mask, box, np.zeros(3, np.int32), np.float32([[5, 5, 25, 25], [0, 0, 20, 20], [-20, 0, 20, 20]]), size=4
    )
    assert found[0].tolist() == [[1, 0, 0, 0]] * 3 + [[0] * 4]
    assert found[1].tolist() == [[1, 1, 0, 0]] * 4
    assert found[2].tolist() == [[0, 0, 1, 0]] * 4


def test_mask_targets_of_its_own_box_is_the_mask():
    whole = (MASKS >= 0.5).astype(np.float32)
    found = mask_targets(whole[:2], BOXES[:2], np.arange(2, dtype=np.int32), BOXES[:2], size=8)
    np.testing.assert_array_equal(found, whole[:2])


def test_mask_targets_of_an_ellipse_is_the_ellipse():
    def ellipse(y, x, box):
        center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        return ((x - center[0]) / half[0]) ** 2 + ((y - center[1]) / half[1]) ** 2 <= 1

    def on_grid(roi, box, cells):
        step = (np.arange(cells) + 0.5) / cells
        x, y = (roi[i] + (roi[i + 2] - roi[i]) * step for i in (0, 1))
        return ellipse(y[:, None], x[None, :], box)

    frames = np.stack([on_grid(box, box, 112) for box in BOXES[:2]])
    found = np.asarray(mask_targets(frames, BOXES[:2], MATCHED[:20], ROIS[:20], size=28))
    expected = np.stack([on_grid(roi, BOXES[row], 28) for roi, row in zip(ROIS, MATCHED[:20])])
    assert (found == expected).mean() > 0.995  # but for points that all but touch the border


def test_mask_targets_without_ground_truth_are_zero():
    assert not np.any(mask_targets(np.ones_like(MASKS), BOXES, MATCHED, ROIS, size=7)[20:])
    none = mask_targets(MASKS[:0], BOXES[:0], np.full(24, -1, np.int32), ROIS, size=7)
    assert none.shape == (24, 7, 7) and not np.any(none)
    assert mask_targets(MASKS, BOXES, MATCHED[:0], ROIS[:0], size=7).shape == (0, 7, 7)


@pytest.mark.parametrize('odd', [(np.nan, 0, 50, 50), (0, 0, np.inf, 50), (50, 10, 50, 90), (90, 60, 30, 20)])
def test_mask_targets_of_a_roi_that_is_none_are_zero(odd):
    rois = ROIS.copy()
    rois[0] = odd
    found = mask_targets(np.ones_like(MASKS), BOXES, np.where(MATCHED == 1, 0, MATCHED), rois, size=7)
    assert not np.any(found[0]) and np.any(found[1])


def test_mask_targets_under_vmap_and_without_jit():
    function = functools.partial(masks_module.mask_targets, size=7)
    order = np.stack([np.arange(24), np.arange(24)[::-1]])
    masks = np.stack([MASKS, 1 - MASKS])
    found = jax.jit(jax.vmap(function, (0, None, 0, 0)))(masks, BOXES, MATCHED[order], ROIS[order])
    for i in range(2):
        expected = function(masks[i], BOXES, MATCHED[order[i]], ROIS[order[i]])
        np.testing.assert_array_equal(found[i], expected)


def test_mask_targets_are_objects_from_a_half_on():
    # Where 4 of a mask's cells become one, as 112 become 28, a target lies in the middle of them: an edge there is a half.
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :2] = masks[1, :6] = True
    box = np.float32([[8, 16, 40, 48]])
    found = mask_targets(masks, np.repeat(box, 2, axis=0), np.int32([0, 1]), np.repeat(box, 2, axis=0), size=2)
    assert found[0].tolist() == [[1, 0], [1, 0]] and found[1].tolist() == [[1, 1], [1, 1]]


def test_average_mask_targets_equals_torchvision():
    found = jax.jit(functools.partial(masks_module.average_mask_targets, size=14))(
        *(GOLDEN[name] for name in ('gt_masks', 'gt_boxes', 'matched', 'rois'))
    )
    between = (GOLDEN['average_targets'] > 0.1) & (GOLDEN['average_targets'] < 0.9)
    assert 0.1 < between.mean() < 0.5  # most cells lie inside or outside of the object
    np.testing.assert_allclose(found, GOLDEN['average_targets'], atol=1e-5)


def test_average_mask_targets_carry_no_gradient():
    # Their values change with all of these: a mask head must not move proposals to where its targets are easy.
    total = lambda *moved: masks_module.average_mask_targets(moved[0], moved[1], MATCHED, moved[2], size=2).sum()
    arguments = MASKS, BOXES, ROIS
    assert all(total(*(x + (i == j) for j, x in enumerate(arguments))) != total(*arguments) for i in range(3))
    assert not any(np.any(gradient) for gradient in jax.grad(total, argnums=(0, 1, 2))(*arguments))


def test_average_mask_targets_without_ground_truth_are_zero():
    found = masks_module.average_mask_targets(np.ones_like(MASKS), BOXES, MATCHED, ROIS, size=7)
    assert np.any(found[:20]) and not np.any(found[20:])
    none = masks_module.average_mask_targets(MASKS[:0], BOXES[:0], np.full(24, -1, np.int32), ROIS, size=7)
    assert none.shape == (24, 7, 7) and not np.any(none)


# Pasting


def paste_by_loops(masks, boxes, size, threshold):
    """Pixel by pixel, at their centres."""
    result = np.zeros((len(masks), *size), bool)
    for d, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks.astype(np.float64), boxes.astype(np.float64))):
        cells = len(mask)
        padded = np.pad(mask, 1)
        for i in range(size[0]):
            for j in range(size[1]):
                x, y = j + 0.5, i + 0.5
                if not (x1 <= x < x2 and y1 <= y < y2):
                    continue
                u, v = (x - x1) / (x2 - x1) * cells - 0.5, (y - y1) / (y2 - y1) * cells - 0.5
                left, top = int(np.floor(u)), int(np.floor(v))
                a, b = u - left, v - top
                at = padded[top + 1 : top + 3, left + 1 : left + 3]
                result[d, i, j] = np.array([1 - b, b]) @ at @ [1 - a, a] >= threshold
    return result


@pytest.mark.parametrize('threshold', [0.5, 0.3])
def test_paste_masks_against_loops(threshold):
    rng = np.random.RandomState(2)
    corners = rng.uniform(-15, 35, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.3, 40, (12, 2))], axis=1)
    boxes[0] = 3, 4, 25, 30  # whole pixels
    masks = rng.uniform(size=(12, 7, 7)).astype(np.float32)
    result, expected = (
        paste_masks(masks, boxes, (40, 45), threshold=threshold),
        paste_by_loops(masks, boxes, (40, 45), threshold),
    )
    assert result.dtype == bool and 0.2 < expected[0, 4:30, 3:25].mean() < 0.95
    np.testing.assert_array_equal(result, expected)


def test_paste_masks_by_hand():
    # The box 2..6 of two cells, the left one full: their centres lie at 3 and 5, so the pixels at 2.5, 3.5, 4.5 and 5.5 have
    # 0.75, 0.75, 0.25 and 0, since zeros lie around the mask; along the other axis 0.75, 1 (at 3.5: 0.75 + 0.25), 1, 0.75.
    pasted = paste_masks(np.array([[[1, 0], [1, 0]]]), np.array([[2, 2, 6, 6]]), (8, 8))[0]
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:4] = True
    np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize('cells', [14, 28])
def test_paste_masks_keeps_areas(cells):
    # Boxes full of their object, at offsets that cover a pixel evenly.
    offsets = np.arange(16) / 16
    for side in (6, 11.3, 27, 64.7, 120):
        boxes = np.array([[3 + x, 3 + y, 3 + x + side, 3 + y + side] for x in offsets for y in offsets])
        full = np.ones((len(boxes), cells, cells))
        area = paste_masks(full, boxes, (128, 128)).sum() / len(boxes)
        assert abs(area / side**2 - 1) < 0.005


def test_paste_masks_as_torchvision_equals_it():
    shape = (len(GOLDEN['boxes']), *IMAGE)
    expected = np.unpackbits(GOLDEN['pasted'], count=np.prod(shape)).reshape(shape).astype(bool)
    result = paste_masks(GOLDEN['masks'], GOLDEN['boxes'], IMAGE, convention='torchvision')
    assert result.dtype == bool and expected.any(axis=(1, 2)).sum() > 15
    np.testing.assert_array_equal(result, expected)


def test_paste_masks_as_torchvision_by_hand():
    # A mask of one cell: with its zeros around it is 3 x 3, and the box 0..4 grows by 3 about its centre, to -4..8:
    # 13 pixels of which 0 to 8 are in the image. Along one axis pixel p lies at (p + 4.5) * 3 / 13 - 0.5, the cell at 1:
    # the weight 1 - |distance| is 0.58, 0.81, 0.96 (p = 0 to 2: 0.54, 0.77, 1.0).
    pasted = paste_masks(np.ones((1, 1, 1)), np.float32([[0, 0, 4, 4]]), (9, 9), convention='torchvision')[0]
    along = 1 - abs((np.arange(9) + 4.5) * 3 / 13 - 0.5 - 1)
    np.testing.assert_array_equal(pasted, np.outer(np.maximum(along, 0), np.maximum(along, 0)) > 0.5)
    assert pasted.any() and not pasted.all()


@pytest.mark.parametrize('convention', masks_module.PASTES)
def test_paste_masks_outside_of_the_image_is_empty(convention):
    boxes = np.float32([[-50, 0, -20, 30], [0, 100, 30, 130], [20, 20, 20, 40]])
    assert not paste_masks(np.ones((2, 14, 14)), boxes[:2], (90, 60), convention=convention).any()
    if convention == 'centers':
        assert not paste_masks(np.ones((1, 14, 14)), boxes[2:], (90, 60)).any()  # of no width


@pytest.mark.parametrize('convention', masks_module.PASTES)
def test_paste_masks_of_nothing(convention):
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 7), convention=convention).shape == (0, 5, 7)


def test_paste_masks_refuses_what_it_cannot_paste():
    with pytest.raises(ValueError, match='not finite'):
        paste_masks(np.ones((1, 14, 14)), np.float32([[0, 0, np.nan, 5]]), (9, 9))
    with pytest.raises(ValueError, match=r'masks \(2, 14, 14\) and boxes \(1, 4\)'):
        paste_masks(np.ones((2, 14, 14)), np.float32([[0, 0, 5, 5]]), (9, 9))
    with pytest.raises(ValueError, match="'center': use one of 'centers', 'torchvision'"):
        paste_masks(np.ones((1, 14, 14)), np.float32([[0, 0, 5, 5]]), (9, 9), convention='center')
