"""Changes of an image's colours: by statistics, and at their limits."""

import colorsys

import cv2
import numpy as np

from detzoo.config import defaults
from detzoo.data import augment as aug

RECIPE = defaults().data.recipe.to_dict()  # changes no colours


def test_jitter_colors_changes_brightness_within_its_strength():
    # A gray picture of one colour has neither contrast nor saturation: brightness alone is left.
    values = []
    for seed in range(50):
        image = aug.jitter_colors(np.full((4, 5, 3), 100, np.uint8), 0.3, np.random.RandomState(seed))
        assert image.dtype == np.uint8 and len(np.unique(image)) == 1
        values.append(image[0, 0, 0])
    assert 70 <= min(values) < 80 and 120 < max(values) <= 130


def test_jitter_colors_stops_at_black_and_white():
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    for seed in range(20):
        changed = aug.jitter_colors(image, 0.9, np.random.RandomState(seed)).astype(int)
        assert (changed[0, 1] >= changed[0, 0]).all()  # no value wraps around


def test_jitter_colors_of_no_strength_keeps_the_image():
    image = np.random.RandomState(0).randint(0, 256, (6, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(aug.jitter_colors(image, 0, np.random.RandomState(0)), image)


def test_distort_colors_by_statistics():
    # One reddish pixel; in HSV (Python's own functions) each option changes one number.
    pixel = np.array([[[160, 100, 80]]], np.uint8)
    hue, saturation, value = colorsys.rgb_to_hsv(160, 100, 80)

    def draws(**options):
        rng = np.random.RandomState(0)
        pixels = [aug.distort_colors(pixel, RECIPE | options, rng)[0, 0].astype(float) for _ in range(600)]
        return np.array(pixels), np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels])

    _, hsv = draws(hue=0.1)
    turned = (hsv[:, 0] - hue + 0.5) % 1 - 0.5
    assert -0.105 < turned.min() < -0.09 and 0.09 < turned.max() < 0.105 and abs(turned.mean()) < 0.01
    np.testing.assert_allclose(hsv[:, 1:], [[saturation, value]] * 600, atol=0.01)

    _, hsv = draws(saturation=(0.5, 1.8))
    factor = hsv[:, 1] / saturation
    assert 0.48 < factor.min() < 0.53 and 1.75 < factor.max() < 1.83
    assert 0.45 < (factor < 1).mean() < 0.55  # as likely below 1 as above
    assert abs(np.median(factor[factor < 1]) - 0.75) < 0.03 and abs(np.median(factor[factor > 1]) - 1.4) < 0.07
    np.testing.assert_allclose(hsv[:, 0], hue, atol=0.01)
    np.testing.assert_array_equal(hsv[:, 2], value)

    rgb, _ = draws(exposure=(0.5, 1.5))
    factor = rgb / [160, 100, 80]
    assert 0.49 < factor.min() < 0.52 and 1.47 < factor.max() < 1.51
    np.testing.assert_allclose(factor, factor[:, :1].repeat(3, 1), atol=0.01)

    rgb, _ = draws(brightness=32.0)
    added = rgb - [160, 100, 80]
    assert added.min() == -32 and added.max() == 32 and (added == added[:, :1]).all()


def test_distort_colors_changes_each_row_by_itself():
    image = np.random.RandomState(0).randint(0, 256, (90, 200, 3)).astype(np.uint8)
    assert len(image) > 2 * aug.BAND // 200  # several bands
    recipe = RECIPE | dict(brightness=32.0, hue=0.4, saturation=(0.5, 1.5), exposure=(0.5, 1.5))
    changed = aug.distort_colors(image, recipe, np.random.RandomState(0))
    rows = [aug.distort_colors(row[None], recipe, np.random.RandomState(0)) for row in image]
    np.testing.assert_array_equal(changed, np.concatenate(rows))
    assert len(np.unique(changed)) > 200


def test_distort_colors_turns_hues_past_red_exactly():
    image = np.random.RandomState(0).randint(0, 256, (50, 60, 3)).astype(np.uint8)
    shifts = []
    for seed in range(4):
        rng = np.random.RandomState(seed)
        rng.uniform()  # whether it happens: always
        shifts.append(rng.uniform(-0.4, 0.4))
        hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * shifts[-1]) % 360
        expected = np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
        changed = aug.distort_colors(image, RECIPE | dict(hue=0.4), np.random.RandomState(seed))
        np.testing.assert_array_equal(changed, expected)
    assert min(shifts) < -0.05 and max(shifts) > 0.05


def test_distort_colors_happens_with_its_probability():
    image = np.array([[[160, 100, 80]]], np.uint8)
    all_of_them = dict(brightness=32.0, hue=0.1, saturation=(0.5, 1.5), exposure=(0.5, 1.5))
    for key, options in ((key, {key: all_of_them[key]}) for key in all_of_them):
        recipe, rng = RECIPE | options | dict(color_probability=0.3), np.random.RandomState(0)
        changed = [(aug.distort_colors(image, recipe, rng) != image).any() for _ in range(400)]
        assert 0.22 < np.mean(changed) < 0.36, key
    recipe, rng = RECIPE | all_of_them | dict(color_probability=0.5), np.random.RandomState(0)
    same = [(aug.distort_colors(image, recipe, rng) == image).all() for _ in range(800)]
    assert 0.04 < np.mean(same) < 0.1  # 1 / 16: each of the four by itself


def test_distort_colors_stops_at_black_and_white_and_full_saturation():
    image = np.array([[[0, 0, 0], [255, 255, 255], [250, 10, 10], [10, 10, 250]]], np.uint8)
    recipe, rng = RECIPE | dict(brightness=90.0, saturation=(0.2, 3.0), exposure=(0.3, 3.0)), np.random.RandomState(0)
    for _ in range(60):
        changed = aug.distort_colors(image, recipe, rng).astype(int)
        assert changed.shape == image.shape and (changed[0, 1] >= changed[0, 0]).all()  # no value wraps around
        assert changed[0, 2, 0] == changed[0, 2].max() and changed[0, 3, 2] == changed[0, 3].max()  # red stays red


def test_distort_colors_keeps_the_hue_at_full_saturation():
    # Orange, 250 130 10: at full saturation, 250 125 0, however large the factor is.
    image, rng = np.array([[[250, 130, 10]]], np.uint8), np.random.RandomState(0)
    recipe = RECIPE | dict(saturation=(1.0, 9.0))
    changed = [aug.distort_colors(image, recipe, rng)[0, 0].tolist() for _ in range(40)]
    assert [250, 125, 0] in changed and all(green >= 125 for _, green, _ in changed)


def test_distort_colors_brightens_no_further_than_white():
    class Largest(np.random.RandomState):
        """Draws the largest of what is added, and the smallest factor."""

        def uniform(self, low=0.0, high=1.0, size=None):
            return -1.0 if (low, high) == (-1, 1) else 0.0 if (low, high) == (0.0, 1.0) else high

    image = np.array([[[255, 250, 100]]], np.uint8)
    recipe = RECIPE | dict(brightness=90.0, exposure=(0.5, 1.5))
    assert aug.distort_colors(image, recipe, Largest(0)).tolist() == [[[128, 128, 95]]]  # of 255, 255, 190


def test_distort_colors_off_keeps_the_image_and_draws_nothing():
    image, rng = np.random.RandomState(0).randint(0, 256, (6, 7, 3)).astype(np.uint8), np.random.RandomState(3)
    assert aug.distort_colors(image, RECIPE, rng) is image
    assert rng.uniform() == np.random.RandomState(3).uniform()
