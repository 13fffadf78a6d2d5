"""Normalisation: values, channel order, and zeros outside of the window."""

import functools

import jax
import numpy as np
import pytest

from detzoo.core import images

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)
normalize = jax.jit(functools.partial(images.normalize, mean=MEAN, std=STD))
normalize_bgr = jax.jit(functools.partial(images.normalize, mean=MEAN, std=STD, bgr=True))
IMAGE = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
WHOLE = np.float32([0, 0, 8, 6])


def oracle(image, window, bgr):
    """One pixel at a time; a pixel is inside if its centre is."""
    result = np.zeros(image.shape)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if window[0] < x + 0.5 < window[2] and window[1] < y + 0.5 < window[3]:
                pixel = image[y, x, ::-1] if bgr else image[y, x]
                result[y, x] = [(float(pixel[c]) - MEAN[c]) / STD[c] for c in range(3)]
    return result


def test_normalize_by_hand():
    # Red (14 - 10) / 2, green (16 - 20) / 4, blue (45 - 30) / 5. As BGR blue meets the first mean: (45 - 10) / 2.
    image = np.full((6, 8, 3), [14, 16, 45], np.uint8)
    np.testing.assert_allclose(normalize(image, WHOLE)[2, 3], [2, -1, 3])
    np.testing.assert_allclose(normalize_bgr(image, WHOLE)[2, 3], [17.5, -1, -3.2])


def test_normalize_zeros_what_is_outside_of_the_window():
    # The image lies on columns 2..5 and rows 1..3. Outside it is zero after normalising, whatever the canvas held
    # there: a black canvas would be -mean / std.
    black = normalize(np.zeros((6, 8, 3), np.uint8), np.float32([2, 1, 6, 4]))
    inside = np.zeros((6, 8), bool)
    inside[1:4, 2:6] = True
    np.testing.assert_allclose(black[inside], np.broadcast_to([-5, -5, -6], (12, 3)))
    np.testing.assert_array_equal(black[~inside], 0)


def test_normalize_forgets_the_canvas_outside_of_the_window():
    window = np.float32([2, 1, 6, 4])
    floats = IMAGE.astype(np.float32)
    padded = np.full_like(floats, np.nan)
    padded[1:4, 2:6] = floats[1:4, 2:6]
    np.testing.assert_array_equal(normalize(padded, window), normalize(floats, window))


@pytest.mark.parametrize('window', [[0, 0, 8, 6], [2, 1, 6, 4], [0, 0, 5.4, 3.6], [0.5, 0.6, 8, 6]])
@pytest.mark.parametrize('bgr', [False, True])
def test_normalize_equals_loops(window, bgr):
    ours = (normalize_bgr if bgr else normalize)(IMAGE, np.float32(window))
    np.testing.assert_allclose(ours, oracle(IMAGE, window, bgr), rtol=1e-6, atol=1e-6)


def test_normalize_of_an_empty_window_is_zero():
    np.testing.assert_array_equal(normalize(IMAGE, np.zeros(4, np.float32)), np.zeros((6, 8, 3)))


def test_normalize_takes_bytes_and_floats_with_and_without_jit():
    expected = normalize(IMAGE, WHOLE)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(normalize(IMAGE.astype(np.float32), WHOLE), expected)
    np.testing.assert_allclose(images.normalize(IMAGE, WHOLE, mean=MEAN, std=STD), expected, rtol=1e-6)


def test_normalize_refuses_a_batch():
    with pytest.raises(AssertionError):
        normalize(IMAGE[None], WHOLE)
