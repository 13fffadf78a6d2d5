"""Crops warped to one size: against the authors' way to cut them, one by one."""

import functools

import jax
import numpy as np
import pytest
from crop_rules import cropped

from detzoo.core.crops import warp_crops

SIDES = 37, 29  # of the image
RANDOM = np.random.RandomState(0)
IMAGE = RANDOM.normal(size=(*SIDES, 3)).astype(np.float32)
WHOLE = np.float32([0, 0, SIDES[1], SIDES[0]])


@functools.partial(jax.jit, static_argnames=('size', 'context'))
def warp(image, window, boxes, size, context):
    return warp_crops(image, window, boxes, size=size, context=context)


def draw_boxes(count=60):
    """Boxes of all sizes, most with whole corners, some with halves, some across the border."""
    corners = RANDOM.uniform(-8, 38, (count, 2))
    boxes = np.concatenate([corners, corners + RANDOM.uniform(1, 30, (count, 2))], axis=1)
    boxes[: count // 3] = np.round(boxes[: count // 3])
    boxes[count // 3 : count // 2] = np.round(2 * boxes[count // 3 : count // 2]) / 2
    return boxes.astype(np.float32)


@pytest.mark.parametrize('size, context', [(24, 4), (17, 3), (12, 0)])
def test_warp_crops_equals_the_authors_crops(size, context):
    boxes = np.round(draw_boxes()) if context == 0 else draw_boxes()  # without context whole pixels are what they cut
    expected = np.stack([cropped(IMAGE, box, size, context) for box in boxes])
    empty = ~expected.any(axis=-1)
    assert empty[:, 0].any() and empty[:, :, -1].any() and not empty.all(axis=(1, 2)).all()
    np.testing.assert_allclose(warp(IMAGE, WHOLE, boxes, size, context), expected, atol=2e-5)


def test_warp_crops_sees_nothing_outside_of_the_window():
    canvas = RANDOM.normal(size=(50, 45, 3)).astype(np.float32)
    canvas[6 : 6 + SIDES[0], 9 : 9 + SIDES[1]] = IMAGE
    window = np.float32([9, 6, 9 + SIDES[1], 6 + SIDES[0]])
    boxes = draw_boxes()
    found = warp(canvas, window, boxes + window[[0, 1, 0, 1]], 24, 4)
    np.testing.assert_allclose(found, warp(IMAGE, WHOLE, boxes, 24, 4), atol=2e-5)
    nothing = warp(canvas, np.zeros(4, np.float32), boxes, 24, 4)
    assert nothing.shape == (60, 24, 24, 3) and not nothing.any()


def test_warp_crops_by_hand():
    # Without context a box of 4 x 2 pixels fills a crop of 4 x 4: its columns as they are, rows at -1/4 (which is the border's),
    # 1/4, 3/4 and 5/4 (the border's).
    image = np.arange(8.0, dtype=np.float32).reshape(2, 4, 1)
    window = np.float32([0, 0, 4, 2])
    found = warp(image, window, window[None], 4, 0)[0, :, :, 0]
    np.testing.assert_allclose(found, [np.arange(4) + row for row in (0, 1, 3, 4)], atol=1e-6)
    # A context of 1 in a crop of 4 doubles a box. 1..3 becomes 0..4, and with the pixel that its edge is rounded to 5 pixels, 4 of
    # them in the image: round(4 * 4 / 5) = 3 columns, at 1/6, 3/2 and 17/6. 0..1 becomes -0.5..1.5 and, counted from 1, pixels 1
    # to 3, 2 of them in the image: round(2 * 4 / 3) = 3 rows, at 0 (the border), 1/2 and 1. The rest is 0.
    found = warp(image, window, np.float32([[1, 0, 3, 1]]), 4, 1)[0, :, :, 0]
    columns = np.array([1 / 6, 3 / 2, 17 / 6])
    np.testing.assert_allclose(found[:3, :3], [columns, columns + 2, columns + 4], rtol=1e-5)
    assert not found[3].any() and not found[:, 3].any()


def test_warp_crops_without_jit_without_boxes_and_with_odd_boxes():
    boxes = draw_boxes(5)
    plain = warp_crops(IMAGE, WHOLE, boxes, size=12, context=2)
    np.testing.assert_allclose(warp(IMAGE, WHOLE, boxes, 12, 2), plain, atol=2e-5)
    assert warp(IMAGE, WHOLE, np.zeros((0, 4), np.float32), 12, 2).shape == (0, 12, 12, 3)
    odd = np.float32([[np.nan, 0, 5, 5], [0, 0, np.inf, 5], [5, 5, 5, 5], [9, 9, 3, 3], [-1e30, -1e30, 1e30, 1e30]])
    assert np.isfinite(warp(IMAGE, WHOLE, odd, 12, 2)).all()
    for context in (6, 7, -1):
        with pytest.raises(ValueError, match=f'context is {context}: a crop of 12 pixels'):
            warp_crops(IMAGE, WHOLE, boxes, size=12, context=context)
