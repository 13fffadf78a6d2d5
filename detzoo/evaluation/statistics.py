"""How certain a COCO AP is, and whether two detectors differ: images are resampled many times, but matched once.

    ground truth, detections -> `match_images`: COCO's matching -> Matches
      -> `average_precision` of the images, each counted as often as its weight says
      -> over images only: `bootstrap` -> Interval of an AP; `paired_test` -> Comparison of two
      -> over images and trainings: `crossed_interval`, `crossed_test` -> the same
      -> `holm`: the p-values of many comparisons, adjusted

    T  IoU thresholds .50, .55, ... .95        N  detections of a class, at most 100 an image
    K  categories in the order of their ids    S  weightings of the images

A configuration that is trained again, with another seed or other rounding errors, gets another AP. An interval over images
only is about the trained networks, and says nothing about their configurations: one training does not tell how much the next
would differ. An interval over images and trainings needs at least two trainings of each configuration, better three.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from scipy import special

from detzoo.evaluation.coco import check_inputs
from detzoo.evaluation.federated import is_federated
from detzoo.evaluation.precision import precision_envelope

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # axis T
_RECALLS = np.linspace(0, 1, 101)
_IMAGES = 250  # matched at once: the evaluator's tables of all of COCO's images would take more than a gigabyte
_BLOCK = 2**19  # numbers in an array: a few arrays of this size fit a processor's cache
_TINY = np.finfo(np.float64).tiny  # least divisor, so that 0 / 0 becomes 0
_ROUNDING = 1e-12  # larger than the rounding error of an AP


class ClassMatches(NamedTuple):
    """The detections of one class, the highest score first; among equal scores the earlier image comes first.

    scores: [N] float64.
    images: [N] int64, index of the detection's image in `Matches.image_ids`.
    hits: [T, N] bool, whether the detection found an object that no other detection found.
    ignored: [T, N] bool, whether it counts neither as right nor as wrong, for example inside a crowd; never a hit.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray


class Matches(NamedTuple):
    """Detections matched to objects, as the computation of AP needs them.

    image_ids: ids of the images, ascending.
    objects: [K, images] int64, number of objects that count (crowds do not).
    classes: matches of each of the K categories.
    """

    image_ids: tuple[int, ...]
    objects: np.ndarray
    classes: tuple[ClassMatches, ...]


class Interval(NamedTuple):
    """An AP in 0..1 and its confidence interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A difference of APs, -1..1, its confidence interval, and the p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def match_images(ground_truth: dict[str, Any], detections: list[dict[str, Any]], kind: str = 'bbox') -> Matches:
    """Matches detections to objects as COCO does: objects of all areas, 100 detections a class and image.

    With a federated ground truth as LVIS does, see `federated`.

    Args:
      ground_truth, detections: as `coco_metrics` takes them; neither is changed.
      kind: 'bbox' for boxes, 'segm' for masks.

    Raises:
      ValueError: the kind is unknown, there are no images, or see `coco_metrics`.
    """
    check_inputs(ground_truth, detections, kind)
    if not ground_truth['images']:
        raise ValueError('the ground truth has no images')
    truth = hotcoco.COCO(ground_truth)
    federated = is_federated(ground_truth)
    evaluator = hotcoco.COCOeval(truth, truth.load_res(detections), kind, lvis_style=federated)
    evaluator.params.area_rng, evaluator.params.area_rng_lbl = evaluator.params.area_rng[:1], ['all']
    if not federated:
        evaluator.params.max_dets = [100]

    image_ids = sorted(image['id'] for image in ground_truth['images'])
    category_ids = sorted(category['id'] for category in ground_truth['categories'])
    image_index = {image_id: i for i, image_id in enumerate(image_ids)}
    category_index = {category_id: k for k, category_id in enumerate(category_ids)}
    objects = np.zeros((len(category_ids), len(image_ids)), np.int64)
    parts = [[_no_detections()] for _ in category_ids]
    for start in range(0, len(image_ids), _IMAGES):
        evaluator.params.img_ids = image_ids[start : start + _IMAGES]
        evaluator.evaluate()
        for row in evaluator.eval_imgs:  # a row for each image and class with objects or detections
            k, i = category_index[row['category_id']], image_index[row['image_id']]
            objects[k, i] = row['gtIgnore'].count(False)
            if row['dtScores']:
                # dtMatches would not do: they are ids of objects, and an id may be 0.
                matched, ignored = np.array(row['dtMatched'], bool), np.array(row['dtIgnore'], bool)
                scores = np.array(row['dtScores'], np.float64)
                parts[k].append(ClassMatches(scores, np.full(len(scores), i), matched & ~ignored, ignored))
    return Matches(tuple(image_ids), objects, tuple(_join(part) for part in parts))


def _no_detections() -> ClassMatches:
    """Makes the matches of a class without detections."""
    flags = np.zeros((len(THRESHOLDS), 0), bool)
    return ClassMatches(np.zeros(0), np.zeros(0, np.int64), flags, flags)


def _join(parts: Sequence[ClassMatches]) -> ClassMatches:
    """Merges sets of detections in one order; among equal scores and images those of the earlier set come first."""
    joined = ClassMatches(*(np.concatenate(field, axis=-1) for field in zip(*parts)))
    order = np.lexsort((joined.images, -joined.scores))
    return ClassMatches(*(field[..., order] for field in joined))


def average_precision(
    matches: Matches, weights: np.ndarray | None = None, thresholds: Sequence[float] = THRESHOLDS
) -> np.ndarray:
    """Averages precision, with each image counted as often as its weight says.

    With whole weights it is the AP of a data set with as many copies of each image. It differs only where detections of one
    image and class share a score: in such a data set those of the copies would alternate; here all copies of a detection
    have the same rank.

    Args:
      weights: [images] or [S, images], >= 0; each image once if None. Whole numbers are exact. With other weights, rounding
        decides whether a recall equal to a recall point reaches it.
      thresholds: some of THRESHOLDS.

    Returns:
      [] or [S] float64 in 0..1, the mean over thresholds and over the classes that have objects in an image of weight > 0;
      NaN where there is no such class. Memory: a copy of the weights, and little more.

    Raises:
      ValueError: a threshold is not one of THRESHOLDS; weights have another shape, are negative or not finite.
    """
    if not len(thresholds) or not set(thresholds) <= set(THRESHOLDS):
        raise ValueError(f'thresholds must be some of {THRESHOLDS}, not {thresholds!r}')
    rows = [THRESHOLDS.index(threshold) for threshold in thresholds]
    images = len(matches.image_ids)
    weights = np.ones(images) if weights is None else np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != images:
        raise ValueError(f'weights must be [{images}] or [S, {images}], not {list(weights.shape)}')
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError('weights must be finite and not negative')
    table = np.ascontiguousarray(np.atleast_2d(weights).T, np.float64)  # [images, S]: a detection takes a whole row
    counts = matches.objects.astype(np.float64) @ table  # [K, S]
    total = np.zeros(table.shape[1])
    for found, count in zip(matches.classes, counts, strict=True):
        size = max(1, _BLOCK // max(1, len(found.images)))
        for start in range(0, len(total), size):
            block = slice(start, start + size)
            total[block] += _class_average(found, table[:, block], count[block], rows)
    present = (counts > 0).sum(0)
    average = np.divide(total, present, out=np.full(len(total), np.nan), where=present > 0)
    return average.reshape(weights.shape[:-1])[()]


def _class_average(found: ClassMatches, weight: np.ndarray, count: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """Averages precision over recall points and thresholds for one class; 0 where its objects weigh nothing.

    Only hits are looked at, since recall and precision grow at hits alone.

    Args:
      weight: [images, S] float64.
      count: [S], sum of the objects' weights.
      rows: indices along T.

    Returns:
      [S] float64 in 0..1.
    """
    seen = np.cumsum(weight[found.images], axis=0)  # [N, S]
    total = np.zeros(len(count))
    for row in rows:
        hits, ignored = np.flatnonzero(found.hits[row]), np.flatnonzero(found.ignored[row])
        if not len(hits):
            continue
        right = np.cumsum(weight[found.images[hits]], axis=0)  # [hits, S]
        judged = seen[hits]
        if len(ignored):
            skipped = np.cumsum(weight[found.images[ignored]], axis=0)
            before = np.searchsorted(ignored, hits)  # how many ignored detections precede each hit
            judged[before > 0] -= skipped[before[before > 0] - 1]
        precision = precision_envelope(right / np.maximum(judged, _TINY))
        points = np.searchsorted(_RECALLS, right / np.maximum(count, _TINY), side='right')  # recall points reached
        points[1:] = np.diff(points, axis=0)  # recall points that no earlier hit reached
        total += np.einsum('hs,hs->s', precision, points)
    return np.where(count > 0, total / (len(rows) * len(_RECALLS)), 0)


def bootstrap(
    matches: Matches | Sequence[Matches],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Interval:
    """Finds the confidence interval of an AP over images, from resamples of the images, drawn with replacement.

    Its ends are percentiles of the resamples' APs, shifted so that the mean of these APs equals the AP. AP is higher for
    classes with fewer objects, and a resample has fewer different objects; without the shift, the interval of many rare
    classes would lie above the AP itself. So the interval is about the AP on other images, equally many.

    Other trainings are not covered, see `crossed_interval`. With fewer than some hundred images it is slightly too narrow.

    Args:
      matches: matches of one training; or of several trainings of one configuration on the same images, for their mean AP.
      resamples: number of resamples; one without any object has no AP and is left out.
      seed: seed of the draws: the same seed gives the same interval.
      level: confidence level, in 0..1.
      thresholds: some of THRESHOLDS.

    Raises:
      ValueError: there are no matches, images or objects; the images or their objects differ; or a number is out of range.
    """
    trainings = _trainings(matches)
    _check(trainings, level, resamples=resamples)
    value = float(_averages(trainings, None, thresholds).mean(0))
    drawn = _averages(trainings, _draw(trainings[0], resamples, seed), thresholds).mean(0)
    low, high = np.clip(_percentiles(drawn, value, level), 0, 1)
    return Interval(value, float(low), float(high))


def paired_test(
    a: Matches | Sequence[Matches],
    b: Matches | Sequence[Matches],
    resamples: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Comparison:
    """Compares two detectors on the same images: AP(a) - AP(b), its confidence interval, and the p-value of no difference.

    The interval is found as in `bootstrap`, for the difference: each resample has the same images for both detectors.

    The p-value is that of a two-sided permutation test. For each image, the toss of a coin decides whether a and b swap their
    detections; d* is the difference after all swaps, and p = (1 + count of |d*| >= |difference|) / (1 + permutations).
    A swapped detection keeps its rank among all detections of its detector and class, not its score: scores of two
    detectors need not mean the same, and AP depends on ranks alone.

    Several trainings are compared by their mean AP. To swap them, they are paired in the order given, and each list is
    repeated until both end together: two and three trainings make six pairs, in which each takes part equally often. One
    toss decides for all pairs, and d* is their mean.

    Other trainings are not covered, see `crossed_test`. A small p-value says that these trained networks differ on such
    images, not that their configurations do.

    Args:
      a, b: as for `bootstrap`; b may have another number of trainings.
      resamples, seed, level, thresholds: as for `bootstrap`.
      permutations: number of permutations; the least p-value is 1 / (1 + permutations).

    Raises:
      ValueError: see `bootstrap`; or the images of a and b, or their objects, differ.
    """
    a, b = _trainings(a), _trainings(b)
    _check([*a, *b], level, resamples=resamples, permutations=permutations)
    weights = _draw(a[0], resamples, seed)
    difference = float(_averages(a, None, thresholds).mean(0) - _averages(b, None, thresholds).mean(0))
    drawn = _averages(a, weights, thresholds).mean(0) - _averages(b, weights, thresholds).mean(0)
    low, high = _percentiles(drawn, difference, level)

    swap = np.random.RandomState(seed).randint(2, size=(permutations, len(a[0].image_ids)), dtype=bool)
    first = np.stack([~swap, swap], axis=-1).reshape(permutations, -1)  # weights of each image's a and b
    pairs = [_interleave(a[i % len(a)], b[i % len(b)]) for i in range(math.lcm(len(a), len(b)))]
    swapped = _averages(pairs, first, thresholds).mean(0) - _averages(pairs, ~first, thresholds).mean(0)
    extreme = int((np.abs(swapped) >= abs(difference) - _ROUNDING).sum())
    return Comparison(difference, float(low), float(high), (1 + extreme) / (1 + permutations))


def crossed_interval(
    trainings: Sequence[Matches],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Interval:
    """Finds the confidence interval of a configuration's AP over images and trainings: mean -+ t * error, see `crossed_test`.

    Args:
      trainings: two or more of one configuration, on the same images.
      resamples, seed, level, thresholds: as for `bootstrap`.

    Raises:
      ValueError: see `bootstrap`; or there is only one training.
    """
    _check_several(trainings)
    _check(trainings, level, resamples=resamples)
    values = _averages(trainings, None, thresholds)
    drawn = _averages(trainings, _draw(trainings[0], resamples, seed), thresholds).mean(0)
    error, freedom = _satterthwaite([_variance_over_images(drawn, trainings[0]), _variance_over_trainings(values)])
    margin = special.stdtrit(freedom, (1 + level) / 2) * error
    low, high = np.clip([values.mean() - margin, values.mean() + margin], 0, 1)
    return Interval(float(values.mean()), float(low), float(high))


def crossed_test(
    a: Sequence[Matches],
    b: Sequence[Matches],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Comparison:
    """Compares two configurations over images and trainings: the difference of their mean APs, its interval and p-value.

    Each training is judged on each image, so images and trainings are crossed random effects:

        error^2 = variance of the difference over images + var(APs of a) / trainings of a + var(APs of b) / trainings of b

    The first variance is that of resamples, each with the same images for all trainings; the others are sample variances. The
    interaction of images and trainings is part of both, so the error is rather too large, like that of the pigeonhole
    bootstrap, which resamples rows and columns (Owen 2007, doi 10.1214/07-AOAS122); no bootstrap of crossed data is exact
    (McCullagh 2000, Bernoulli 6, 285). Trainings are not resampled: with two or three of them, the resampled variance would
    be a half or a third too small. Instead, difference / error is taken to follow Student's t with Satterthwaite's degrees of
    freedom (1946, Biometrics Bulletin 2, 110), as in Welch's test. Bouthillier et al. (arXiv 2103.03098) say why trainings matter.

    Simulated with `scripts/dev/simulate_tests.py`: AP50 on 200 images, trainings with a standard deviation of 0, 1 and 2.5
    points, 1000 data sets (400 with five trainings). Shares of them with p < 0.05:

        trainings of each     equal           5 points apart  equal, only one's trainings vary, by 2.5 points
        2                     1.4 to 5.5 %    90, 62, 24 %    7.5 %
        3                     0.7 to 4.2 %    98, 87, 40 %    6.5 %
        5                     1.5 to 4.8 %    100, 99, 72 %   6.2 %

    Args:
      a, b: two or more trainings of each configuration, on the same images, in any order.
      resamples, seed, level, thresholds: as for `bootstrap`.

    Raises:
      ValueError: see `paired_test`; or there is only one training of a or b.
    """
    for trainings in (a, b):
        _check_several(trainings)
    _check([*a, *b], level, resamples=resamples)
    of_a, of_b = (_averages(trainings, None, thresholds) for trainings in (a, b))
    weights = _draw(a[0], resamples, seed)
    drawn = _averages(a, weights, thresholds).mean(0) - _averages(b, weights, thresholds).mean(0)
    difference = float(of_a.mean() - of_b.mean())
    error, freedom = _satterthwaite(
        [_variance_over_images(drawn, a[0]), _variance_over_trainings(of_a), _variance_over_trainings(of_b)]
    )
    margin = special.stdtrit(freedom, (1 + level) / 2) * error
    p_value = 2 * special.stdtr(freedom, -abs(difference) / max(error, _ROUNDING))  # the error may be 0
    return Comparison(difference, float(difference - margin), float(difference + margin), float(p_value))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusts the p-values of many comparisons by Holm's step-down method.

    If those below .05 are called different, the probability of even one false claim is at most .05, however the comparisons
    depend on each other.

    Returns:
      [comparisons] float64 in 0..1, in the order given.

    Raises:
      ValueError: a p-value is not in 0..1.
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1 or not np.all((p_values >= 0) & (p_values <= 1)):
        raise ValueError(f'p_values must be a list of numbers in 0..1, not {p_values.tolist()}')
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def _trainings(matches: Matches | Sequence[Matches]) -> list[Matches]:
    """Lists the trainings, whether one or several are given."""
    trainings = [matches] if isinstance(matches, Matches) else list(matches)
    if not trainings:
        raise ValueError('there are no matches to judge')
    return trainings


def _check(trainings: Sequence[Matches], level: float, **counts: int) -> None:
    """Refuses matches that cannot be compared, and numbers out of range."""
    first = trainings[0]
    for other in trainings[1:]:
        if other.image_ids != first.image_ids:
            raise ValueError('the images differ: all detectors must be matched on the same images')
        if not np.array_equal(other.objects, first.objects):
            raise ValueError('the objects differ: all detectors must be matched with the same ground truth')
    if not first.objects.any():
        raise ValueError('the images have no objects, so there is no AP')
    if not 0 < level < 1:
        raise ValueError(f'level must be between 0 and 1, not {level}')
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f'{name} must be at least 1, not {count}')


def _check_several(trainings: Sequence[Matches]) -> None:
    if isinstance(trainings, Matches) or len(trainings) < 2:
        raise ValueError(
            'at least two trainings are needed: with one, use `bootstrap` or `paired_test`, over images only'
        )


def _averages(trainings: Sequence[Matches], weights: np.ndarray | None, thresholds: Sequence[float]) -> np.ndarray:
    """Computes the AP of each training: [trainings], or [trainings, S] with weights."""
    return np.array([average_precision(matches, weights, thresholds) for matches in trainings])


def _draw(matches: Matches, resamples: int, seed: int) -> np.ndarray:
    """Counts how often each image is in each resample: [resamples, images]."""
    images = len(matches.image_ids)
    return np.random.RandomState(seed).multinomial(images, np.full(images, 1 / images), resamples)


def _percentiles(drawn: np.ndarray, value: float, level: float) -> np.ndarray:
    """Computes the ends [2] of a percentile interval of the resampled values, shifted so that their mean is the value."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        raise ValueError('no resample has an object: draw more of them')
    return value - drawn.mean() + np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])


def _variance_over_images(drawn: np.ndarray, matches: Matches) -> tuple[float, int]:
    """Estimates the variance over images from the resampled values, and its degrees of freedom."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        raise ValueError('no resample has an object: draw more of them')
    images = len(matches.image_ids)
    # The variance over resamples of n images is (n - 1) / n of that over samples of n new images.
    return float(drawn.var()) * images / max(1, images - 1), max(1, images - 1)


def _variance_over_trainings(values: np.ndarray) -> tuple[float, int]:
    """Estimates the variance of the mean of APs [trainings], and its degrees of freedom."""
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Adds up variances: the root of the sum, and its degrees of freedom from those of the variances."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts)
    return math.sqrt(total), total**2 / spread if spread > 0 else math.inf


def _interleave(a: Matches, b: Matches) -> Matches:
    """Joins two detectors into one on twice the images: weights (1, 0) take an image from a, (0, 1) from b."""

    def places(found: ClassMatches, side: int) -> ClassMatches:
        return found._replace(scores=-np.arange(len(found.scores), dtype=np.float64), images=2 * found.images + side)

    classes = tuple(_join([places(of_a, 0), places(of_b, 1)]) for of_a, of_b in zip(a.classes, b.classes, strict=True))
    return Matches(tuple(i for i in a.image_ids for _ in 'ab'), np.repeat(a.objects, 2, axis=1), classes)
