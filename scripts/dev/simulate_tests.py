"""Simulates how often the test of AP over images and trainings calls equal configurations different, and finds real differences.

    python scripts/dev/simulate_tests.py

Two configurations are trained a few times each, all trainings are judged by AP50 on the same 200 images, and `crossed_test`
compares the configurations over images and trainings. The table has the percentage of 1000 random data sets with p < 0.05 (it
takes five minutes on one core):

    equal      the two configurations are the same: nominally 5
    unlike     they find different objects, but equally many: nominally 5
    5 points   one is better by 5 points of AP50

A simulated detector detects the things that look enough like an object, and ranks them by their looks. Most of the looks is the
same for all detectors; a part depends on the configuration, and a part on the training. Chance also makes some trainings better
than others, with the standard deviation "noise". As in the results of experiments/, the difference of two trainings has a
standard deviation over images of 1 point, or 1.3 if their configurations are unlike; runs that are 3.5 points apart have a noise
of 2.5.
"""

import argparse
import itertools
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from detzoo.evaluation import statistics
from detzoo.evaluation.statistics import ClassMatches, Matches

OBJECTS = 300  # number of objects in all images, and of other things that look a little like them
MEAN = 0.4  # mean looks of objects; that of other things is -MEAN, and the standard deviation of both is 1
SHOWN = -0.3  # least looks of things that are detected
CONFIGURATION, TRAINING = 0.025, 0.025  # shares of the variance of looks
POINTS = 40.0  # points of AP50 gained if the looks of all objects rise by 1
CASES = {
    'equal': dict(unlike=False, better=0.0),
    'unlike': dict(unlike=True, better=0.0),
    '5 points': dict(unlike=True, better=5.0),
}
NOISE = (0.0, 0.0), (1.0, 1.0), (2.5, 2.5), (2.5, 0.0)  # noise of each configuration, points


def train(
    random: np.random.RandomState, images: np.ndarray, is_object: np.ndarray, looks: np.ndarray, points: float
) -> Matches:
    """Draws the detections of a training.

    Args:
      images, is_object, looks: [n], for each thing its image, whether it is an object, and its looks to the configuration.
      points: points of AP50 by which this training is better than others.
    """
    looks = looks + TRAINING**0.5 * random.randn(len(looks)) + np.where(is_object, MEAN + points / POINTS, -MEAN)
    found = np.argsort(-looks)[: np.count_nonzero(looks > SHOWN)]
    hits = np.tile(is_object[found], (len(statistics.THRESHOLDS), 1))
    classes = (ClassMatches(looks[found], images[found], hits, np.zeros_like(hits)),)
    ids = range(images.max() + 1)
    return Matches(tuple(ids), np.bincount(images[is_object], minlength=len(ids))[None], classes)


def draw(
    seed: int, images: int, trainings: tuple[int, int], noise: tuple[float, float], unlike: bool, better: float
) -> list[list[Matches]]:
    """Draws images and the trainings of two configurations, of which the first is better by some points."""
    random = np.random.RandomState(seed)
    places = np.concatenate([np.arange(images), random.randint(images, size=2 * OBJECTS - images)])
    is_object = random.rand(len(places)) < 0.5
    own = CONFIGURATION if unlike else 0.0
    common = random.randn(len(places))
    groups = []
    for count, deviation, points in zip(trainings, noise, (better, 0.0)):
        looks = (1 - TRAINING - own) ** 0.5 * common + own**0.5 * random.randn(len(places))
        gains = points + deviation * random.randn(count)
        groups.append([train(random, places, is_object, looks, gain) for gain in gains])
    return groups


def called_different(sets: int, resamples: int, **drawn: Any) -> float:
    """Counts the data sets with p < 0.05, in percent."""
    p_values = [
        statistics.crossed_test(*draw(seed, **drawn), resamples, thresholds=statistics.THRESHOLDS[:1]).p_value
        for seed in range(sets)
    ]
    return 100 * float(np.mean(np.array(p_values) < 0.05))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--trainings', type=int, nargs='+', default=[2, 3, 5], help='of each configuration')
    parser.add_argument('--sets', type=int, default=1000, help='data sets for each number')
    parser.add_argument('--images', type=int, default=200)
    parser.add_argument('--resamples', type=int, default=60)
    arguments = parser.parse_args()
    print('trainings  noise     ' + ''.join(f'{name:>10}' for name in CASES))
    rows = list(itertools.product(arguments.trainings, NOISE))
    for count, noise in tqdm(rows, unit='row', leave=False, disable=None):
        setting = dict(images=arguments.images, trainings=(count, count), noise=noise)
        shares = [called_different(arguments.sets, arguments.resamples, **setting, **case) for case in CASES.values()]
        print(
            f'{count} + {count}      {noise[0]}, {noise[1]}  ' + ''.join(f'{share:10.1f}' for share in shares),
            flush=True,
        )


if __name__ == '__main__':
    main()
