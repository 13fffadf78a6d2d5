"""Uncertainty of AP: known distributions are the oracles of what is drawn."""

import itertools

import numpy as np
import pytest
from drawn_matches import AT50, make_matches, random_case, random_matches
from scipy import stats

from detzoo.evaluation import coco_metrics
from detzoo.evaluation.statistics import (
    average_precision,
    bootstrap,
    crossed_interval,
    crossed_test,
    holm,
    match_images,
    paired_test,
)


def test_bootstrap_of_a_recall_is_binomial():
    # One object an image, found with probability p, no mistakes: precision is 1, and AP the recall, to 1 / 101.
    images, p, sets = 150, 0.7, 300
    covered, ratio = [], []
    for seed in range(sets):
        random = np.random.RandomState(seed)
        matches = random_matches(random, np.ones((1, images), int), recall=p, false_positives=0)
        interval = bootstrap(matches, resamples=300, seed=seed, thresholds=AT50)
        recall = len(matches.classes[0].images) / images
        assert interval.value == pytest.approx(recall, abs=0.01)
        covered.append(interval.low <= p <= interval.high)
        ratio.append((interval.high - interval.low) / (2 * 1.96 * np.sqrt(recall * (1 - recall) / images)))
    assert np.mean(ratio) == pytest.approx(1, abs=0.03)
    # Of 300 sets, 285 are to be covered, with a standard deviation of 3.8.
    assert 285 - 4 * 3.8 < sum(covered) < 300


def test_bootstrap_of_rare_classes_holds_the_ap():
    random = np.random.RandomState(0)
    matches = random_matches(random, random.poisson(0.05, (80, 400)), false_positives=60, better=0.3)
    interval = bootstrap(matches, 300, thresholds=AT50)
    drawn = average_precision(matches, random.multinomial(400, np.full(400, 1 / 400), 300), AT50)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert interval.low < interval.value < low  # resamples have fewer different objects, and a higher AP
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.1)
    assert interval.value - interval.low == pytest.approx(drawn.mean() - low, rel=0.2)


def test_bootstrap_is_the_same_each_time():
    matches = match_images(*random_case(0))
    interval = bootstrap(matches, resamples=200)
    assert bootstrap(matches, resamples=200) == interval
    assert bootstrap(matches, resamples=200, seed=1) != interval
    narrow = bootstrap(matches, resamples=200, level=0.5)
    assert interval.low < narrow.low < narrow.value == interval.value < narrow.high < interval.high
    assert interval.value == average_precision(matches)


def test_bootstrap_of_trainings_is_of_their_mean():
    random = np.random.RandomState(0)
    objects = random.randint(1, 4, (2, 80))
    a, b, c = (random_matches(random, objects, recall) for recall in (0.4, 0.6, 0.7))
    one, mean = bootstrap(a, 400), bootstrap([a, b, c], 400)
    assert bootstrap([a, a], 400) == pytest.approx(one, abs=1e-12)
    assert mean.value == pytest.approx(np.mean([average_precision(each) for each in (a, b, c)]), abs=1e-12)
    weights = np.random.RandomState(7).multinomial(80, np.full(80, 1 / 80), 400)  # each resample is the same for all
    drawn = np.mean([average_precision(each, weights) for each in (a, b, c)], axis=0)
    assert mean.high - mean.low == pytest.approx(np.diff(np.quantile(drawn, [0.025, 0.975]))[0], rel=0.1)


def test_bootstrap_is_skewed_as_the_resamples_are():
    # Image 0 has all 10 objects that are found, of 209: a resample finds 10 k of 10 k + 199, k about Poisson with mean 1.
    matches = make_matches([[10] + [1] * 199], [(0, True)] * 10)
    interval = bootstrap(matches, thresholds=AT50)
    assert interval.value == pytest.approx(5 / 101)
    # In 95 % of resamples k is 0 to 3, so that AP is 0 to 14 / 101; on average it is about that of k = 1.
    assert interval.high == pytest.approx(14 / 101, abs=0.01)
    assert interval.low < 0.01


def test_bootstrap_stays_in_range():
    matches = make_matches([[1, 1, 0]], [(0, True), (1, True), (2, False)])
    assert bootstrap(matches) == (1, 1, 1)  # some resamples have no object
    matches = make_matches([[9, 1]], [(0, True)] * 9)
    interval = bootstrap(matches)  # APs are 0, 91 / 101 and 1: .3 lower in the mean than the AP itself
    assert interval.value == pytest.approx(91 / 101)
    assert 0 < interval.low < interval.value < interval.high == 1


def test_bootstrap_refuses():
    matches = make_matches([[1, 1]], [(0, True)])
    for message, arguments in {
        'no matches': ([],),
        'no objects': (make_matches([[0, 0]], [(0, False)]),),
        'images differ': ([matches, matches._replace(image_ids=(0, 2))],),
        'objects differ': ([matches, matches._replace(objects=np.array([[1, 0]]))],),
        'resamples must be at least 1': (matches, 0),
        'level must be': (matches, 10, 0, 95),
        'thresholds must be': (matches, 10, 0, 0.95, [50]),
    }.items():
        with pytest.raises(ValueError, match=message):
            bootstrap(*arguments)
    rare = make_matches([[1] + [0] * 9], [(0, True)])
    seed = next(i for i in range(99) if np.random.RandomState(i).multinomial(10, np.full(10, 0.1), 1)[0, 0] == 0)
    with pytest.raises(ValueError, match='no resample has an object'):
        bootstrap(rare, 1, seed)


def test_paired_test_of_one_detector_finds_nothing():
    matches = match_images(*random_case(0))
    assert paired_test(matches, matches, 50, 50) == (0, 0, 0, 1)
    assert paired_test([matches, matches], matches, 50, 50) == pytest.approx((0, 0, 0, 1), abs=1e-12)


def test_paired_test_is_antisymmetric():
    random = np.random.RandomState(0)
    objects = random.randint(3, size=(3, 40))
    a, b, c = (random_matches(random, objects, recall) for recall in (0.5, 0.6, 0.7))
    for one, two in ((a, b), ([a, c], b), ([a, c], [b, a])):
        forth, back = paired_test(one, two, 200, 200), paired_test(two, one, 200, 200)
        assert back == pytest.approx((-forth.difference, -forth.high, -forth.low, forth.p_value), abs=1e-12)
        assert forth.low < forth.difference < forth.high
        assert 1 / 201 < forth.p_value < 1
    assert paired_test(a, b, 200, 200) == paired_test(a, b, 200, 200)
    assert paired_test(a, b, 200, 200, seed=1) != paired_test(a, b, 200, 200)


def test_paired_test_sees_a_clear_difference():
    random = np.random.RandomState(0)
    objects = random.randint(1, 4, (2, 100))
    better, worse = random_matches(random, objects, 0.9), random_matches(random, objects, 0.4)
    comparison = paired_test(better, worse, 200, 199)
    assert comparison.p_value == 1 / 200
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.difference == average_precision(better) - average_precision(worse)
    at75 = paired_test(better, worse, 200, 199, thresholds=[0.75])
    assert at75.difference == pytest.approx(comparison.difference, abs=1e-12)  # a hit is one at all thresholds here


def test_paired_test_does_not_see_the_scale_of_scores():
    random = np.random.RandomState(0)
    objects = random.randint(3, size=(2, 30))
    a, b = random_matches(random, objects, 0.5), random_matches(random, objects, 0.6)
    lower = tuple(found._replace(scores=found.scores / 7 - 99) for found in b.classes)
    assert paired_test(a, b._replace(classes=lower), 50, 50) == paired_test(a, b, 50, 50)


def test_paired_test_is_narrower_than_two_intervals():
    # Images are easy or hard for both detectors: what is common to both is in each AP, but not in their difference.
    random = np.random.RandomState(0)
    objects = np.full((1, 300), 2)
    recall = np.where(random.rand(300) < 0.5, 0.95, 0.1)
    a, b = (random_matches(random, objects, recall, false_positives=0.5) for _ in range(2))
    widths = [high - low for _, low, high in (bootstrap(a, 400, thresholds=AT50), bootstrap(b, 400, thresholds=AT50))]
    paired = paired_test(a, b, 400, 1, thresholds=AT50)
    assert paired.high - paired.low < 0.8 * np.hypot(*widths)  # were they independent, that would be its width


def test_paired_test_of_equals_has_uniform_p_values():
    p_values, covered = [], []
    for seed in range(200):
        random = np.random.RandomState(seed)
        objects, recall = random.randint(1, 3, (1, 30)), random.choice([0.3, 0.9], 30)
        a, b = random_matches(random, objects, recall), random_matches(random, objects, recall)
        comparison = paired_test(a, b, 200, 99, seed, thresholds=AT50)
        p_values.append(comparison.p_value)
        covered.append(comparison.low <= 0 <= comparison.high)
    for level in (0.05, 0.2, 0.5, 0.8):
        deviation = np.sqrt(level * (1 - level) / 200)
        assert abs(np.mean(np.array(p_values) <= level) - level) < 3 * deviation
    assert 0.89 < np.mean(covered) < 1  # nominally .95, but with 30 images slightly less


@pytest.mark.parametrize('trainings', [(1, 1), (2, 2), (1, 2), (3, 2)])
def test_paired_test_equals_all_swaps_by_the_evaluator(trainings):
    # All detectors have the scores 1, 2, ...: so the place of a detection, and its score, are the same thing.
    random = np.random.RandomState(5)
    images = range(5)

    def boxes(size):
        return [[10.0 * k, 0.0, 8.0, size] for k in range(3)]

    rows = [
        {'image_id': i, 'category_id': 1, 'bbox': box, 'iscrowd': 0, 'area': 64} for i in images for box in boxes(8)
    ]
    ground_truth = {
        'images': [{'id': i, 'width': 50, 'height': 50} for i in images],
        'categories': [{'id': 1, 'name': 'object'}],
        'annotations': [{**row, 'id': i} for i, row in enumerate(rows)],
    }

    def detector(low):
        found = [(i, [*box[:3], box[3] * random.uniform(low, 1)]) for i in images for box in boxes(8.0)]
        scores = random.permutation(len(found)) + 1.0
        return [{'image_id': i, 'category_id': 1, 'bbox': b, 'score': s} for (i, b), s in zip(found, scores)]

    a, b = ([detector(low) for _ in range(count)] for low, count in zip((0.3, 0.5), trainings))

    def difference(swap):
        values = []
        for i in range(np.lcm(*trainings)):
            one, two = a[i % len(a)], b[i % len(b)]
            swapped = [row for row in one if not swap[row['image_id']]] + [row for row in two if swap[row['image_id']]]
            other = [row for row in one if swap[row['image_id']]] + [row for row in two if not swap[row['image_id']]]
            values.append([coco_metrics(ground_truth, rows)['boxes']['AP'] for rows in (swapped, other)])
        return np.subtract(*np.mean(values, axis=0))

    swaps = list(itertools.product((False, True), repeat=5))
    every = np.array([difference(swap) for swap in swaps])
    exact = np.mean(np.abs(every) >= abs(every[0]) - 1e-9)
    matched = [[match_images(ground_truth, rows) for rows in detectors] for detectors in (a, b)]
    comparison = paired_test(*matched, resamples=1, permutations=4000)
    assert comparison.difference == pytest.approx(every[0], abs=1e-9)
    assert 0.1 < exact < 0.9
    assert comparison.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))


def test_paired_test_refuses():
    matches = make_matches([[1, 1]], [(0, True)])
    for message, a, b, arguments in (
        ('images differ', matches, matches._replace(image_ids=(0, 2)), ()),
        ('images differ', matches, make_matches([[1, 1, 1]], []), ()),
        ('objects differ', [matches] * 2, [matches, matches._replace(objects=np.array([[1, 0]]))], ()),
        ('objects differ', matches, make_matches([[1, 1], [0, 0]], [], []), ()),
        ('no matches', matches, [], ()),
        ('resamples must be', matches, matches, (0,)),
        ('permutations must be', matches, matches, (1, 0)),
        ('level must be', matches, matches, (1, 1, 0, 1.0)),
    ):
        with pytest.raises(ValueError, match=message):
            paired_test(a, b, *arguments)


def finders(*quarters):
    """Trainings of which each finds so many of the four objects of each of 30 images: AP does not depend on the images."""
    return [
        make_matches([[4] * 30], [(image, True) for image in range(30) for _ in range(count)]) for count in quarters
    ]


def ap_of(*quarters):
    return [(25 * count + 1) / 101 for count in quarters]


def test_crossed_test_of_images_that_are_all_alike_is_that_of_welch():
    for a, b in (((1, 2, 4), (3, 4, 4)), ((1, 2), (3, 3, 4, 4)), ((2, 3), (1, 4))):
        expected = stats.ttest_ind(ap_of(*a), ap_of(*b), equal_var=False)
        comparison = crossed_test(finders(*a), finders(*b), resamples=5, thresholds=AT50)
        assert comparison.difference == pytest.approx(np.mean(ap_of(*a)) - np.mean(ap_of(*b)))
        assert comparison.p_value == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.9)
        comparison = crossed_test(finders(*a), finders(*b), resamples=5, level=0.9, thresholds=AT50)
        assert comparison[1:3] == pytest.approx((interval.low, interval.high))


def test_crossed_interval_of_images_that_are_all_alike_is_that_of_student():
    interval = crossed_interval(finders(1, 2, 2), resamples=5, level=0.9, thresholds=AT50)
    values = ap_of(1, 2, 2)
    expected = stats.t.interval(0.9, 2, np.mean(values), stats.sem(values))
    assert interval == pytest.approx((np.mean(values), *expected))
    assert crossed_interval(finders(1, 4), resamples=5, thresholds=AT50)[1:] == (0, 1)  # as far as an AP goes


def test_crossed_test_of_trainings_that_are_all_alike_is_over_images():
    random = np.random.RandomState(0)
    objects = random.randint(1, 4, (2, 40))
    a, b = random_matches(random, objects, 0.6), random_matches(random, objects, 0.5)
    over_images = paired_test(a, b, 2000, 1, thresholds=AT50)
    comparison = crossed_test([a, a], [b, b, b], 2000, thresholds=AT50)
    assert comparison.difference == pytest.approx(over_images.difference)
    # Instead of percentiles, about +-1.96, quantiles of 39 degrees of freedom, and images that were drawn once for all.
    wider = stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975) * np.sqrt(40 / 39)
    width = comparison.high - comparison.low
    assert width == pytest.approx(wider * (over_images.high - over_images.low), rel=0.03)
    t = comparison.difference / (width / 2 / stats.t.ppf(0.975, 39))
    assert comparison.p_value == pytest.approx(2 * stats.t.sf(abs(t), 39))
    one, mean = bootstrap(a, 2000, thresholds=AT50), crossed_interval([a, a], 2000, thresholds=AT50)
    assert mean.value == pytest.approx(one.value)
    assert mean.high - mean.low == pytest.approx(wider * (one.high - one.low), rel=0.03)


def test_crossed_test_adds_the_variances_of_images_and_trainings():
    random = np.random.RandomState(4)
    objects = random.randint(1, 4, (2, 50))
    a = [random_matches(random, objects, recall) for recall in (0.5, 0.6, 0.65)]
    b = [random_matches(random, objects, recall) for recall in (0.4, 0.6)]
    weights = np.random.RandomState(0).multinomial(50, np.full(50, 1 / 50), 200)  # each of the same images for all
    drawn, values = ([np.array([average_precision(m, w, AT50) for m in of]) for of in (a, b)] for w in (weights, None))
    parts = [np.var(drawn[0].mean(0) - drawn[1].mean(0)) * 50 / 49, *(v.var(ddof=1) / len(v) for v in values)]
    freedom = sum(parts) ** 2 / sum(part**2 / count for part, count in zip(parts, (49, 2, 1)))
    assert min(parts) > 0.1 * sum(parts)
    comparison = crossed_test(a, b, 200, thresholds=AT50)
    margin = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    assert comparison.high - comparison.difference == pytest.approx(margin)
    assert comparison.difference - comparison.low == pytest.approx(margin)
    p_value = 2 * stats.t.sf(comparison.difference / np.sqrt(sum(parts)), freedom)
    assert comparison.p_value == pytest.approx(p_value)
    back = crossed_test(b[::-1], a[::-1], 200, thresholds=AT50)
    assert back == pytest.approx(
        (-comparison.difference, -comparison.high, -comparison.low, comparison.p_value), abs=1e-12
    )


def test_crossed_test_of_equals_finds_nothing():
    matches = match_images(*random_case(0))
    assert crossed_test([matches] * 2, [matches] * 3, 50) == pytest.approx((0, 0, 0, 1), abs=1e-12)
    assert crossed_test(finders(2, 2), finders(2, 2), 5, thresholds=AT50) == (0, 0, 0, 1)
    assert crossed_test(finders(2, 2), finders(3, 3), 5, thresholds=AT50).p_value == 0  # certain: there is no error


def test_crossed_test_is_right_where_trainings_vary_and_paired_test_is_not():
    # Each training finds 60 % of the objects, give or take 10 %: what images alone show of a mean of three is half as much.
    sets, wrong = 100, {paired_test: 0, crossed_test: 0}
    for seed in range(sets):
        random = np.random.RandomState(seed)
        objects = np.full((1, 60), 2)
        a, b = (
            [random_matches(random, objects, recall, false_positives=1.0) for recall in random.normal(0.6, 0.1, 3)]
            for _ in 'ab'
        )
        for test, options in ((paired_test, {'permutations': 1}), (crossed_test, {})):
            comparison = test(a, b, resamples=60, thresholds=AT50, **options)
            wrong[test] += not comparison.low <= 0 <= comparison.high
    # Nominally 5 are wrong, with a standard deviation of 2.2.
    assert wrong[crossed_test] <= 5 + 2 * 2.2
    assert wrong[paired_test] > 5 + 6 * 2.2


def test_crossed_tests_refuse():
    matches = make_matches([[1, 1]], [(0, True)])
    several, other = [matches] * 2, matches._replace(image_ids=(0, 2))
    for message, a, b, arguments in (
        ('at least two trainings', several, [matches], ()),
        ('at least two trainings', matches, several, ()),  # a Matches is itself a tuple of three
        ('images differ', several, [matches, other], ()),
        ('images differ', several, [other, other], ()),
        ('resamples must be', several, several, (0,)),
        ('level must be', several, several, (1, 0, 1.0)),
    ):
        with pytest.raises(ValueError, match=message):
            crossed_test(a, b, *arguments)
    for message, trainings, arguments in (
        ('at least two trainings', [matches], ()),
        ('images differ', [matches, other], ()),
        ('resamples must be', several, (0,)),
    ):
        with pytest.raises(ValueError, match=message):
            crossed_interval(trainings, *arguments)


def test_holm_by_hand():
    # In ascending order: 4 * .005, 3 * .01, 2 * .03, and 1 * .04, which may not be less than the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-12)
    np.testing.assert_allclose(holm([0.9, 0.5, 0.6]), [1, 1, 1])
    assert holm([0.3]).tolist() == [0.3]
    assert holm([]).tolist() == []


def test_holm_refuses():
    for p_values in ([0.1, -0.1], [1.1], [np.nan], [[0.1]], 0.1):
        with pytest.raises(ValueError, match=r'p_values must be a list of numbers in 0\.\.1'):
            holm(p_values)


def test_scripts_simulate_tests_counts_what_is_called_different(run_script):
    done = run_script('dev/simulate_tests', '--trainings=2', '--sets=2')
    assert done.code == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[-4:] == ['equal', 'unlike', '5', 'points'] and len(rows) == 4
    assert {number for row in rows for number in row.split()[-3:]} <= {'0.0', '50.0', '100.0'}
