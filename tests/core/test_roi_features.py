"""RoIAlign, RoIPool and RoIWarp, against loops over their definitions and against torchvision's stored results.

scripts/dev/make_roi_fixtures.py makes the stored results and says what they are.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core.roi_features import adaptive_samples, assign_levels, roi_align, roi_pool, roi_warp

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'roi_features.npz'))
STRIDES = (4, 8, 16, 32)
LEVELS = [GOLDEN[f'level_{i}'] for i in range(4)]
ROIS, LEVEL = GOLDEN['rois'], GOLDEN['level'].astype(np.int32)
SIZE = GOLDEN['pool'].shape[1]
SETTINGS = dict(strides=STRIDES, output_size=SIZE)
ALIGN = functools.partial(roi_align, samples_per_bin=2, aligned=True)
ADAPTIVE = functools.partial(roi_align, samples_per_bin=0, max_samples_per_bin=8)
WARP = functools.partial(roi_warp, samples_per_bin=2)
OPERATIONS = {
    'align': ALIGN,
    'align_adaptive': functools.partial(ADAPTIVE, aligned=True),
    'align_adaptive_max': functools.partial(ADAPTIVE, aligned=True, reduce='max'),
    'legacy': functools.partial(ALIGN, aligned=False),
    'legacy_adaptive': functools.partial(ADAPTIVE, aligned=False),
    'warp': WARP,
    'warp_max': functools.partial(WARP, reduce='max'),
    'pool': roi_pool,
}
every_operation = pytest.mark.parametrize('name', OPERATIONS)
# Where a shape or type is new, and all is compiled again: one of each kind.
one_of_each_kind = pytest.mark.parametrize('name', ['align', 'align_adaptive_max', 'pool'])


@functools.cache
def with_gradients(name, **settings):
    """A jitted function: levels, rois, level, gradient of the result -> result, gradients of the levels and of the RoIs."""

    def function(levels, rois, level, gradient):
        operation = lambda levels, rois: OPERATIONS[name](levels, rois, level, **settings)
        result, backward = jax.vjp(operation, levels, rois)
        return result, *backward(gradient)

    return jax.jit(function)


def run(name, levels=LEVELS, rois=ROIS, level=LEVEL, gradient=GOLDEN['gradient']):
    """The result and the gradients of the levels. All calls of one type share a program for each operation."""
    return with_gradients(name, **SETTINGS)(levels, rois, level, gradient)[:2]


def zeros(rois):
    return np.zeros(len(rois), np.int32)


# The definitions, in loops.


def round_half_away(x):
    return int(math.floor(abs(x) + 0.5)) * (1 if x >= 0 else -1)


def interpolated(feature, y, x):
    """A sample of [h, w, C], as the sum over all cells of two tents; a border goes on for one cell."""
    height, width, channels = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    tent_y, tent_x = (np.maximum(1 - abs(np.arange(n) - at), 0) for n, at in ((height, y), (width, x)))
    return np.einsum('y,x,yxc->c', tent_y, tent_x, feature.astype(np.float64))


def sampled(levels, rois, level, strides, size, samples, cap=None, aligned=True, reduce='average', warp=False):
    """RoIAlign, or RoIWarp."""
    result = np.zeros((len(rois), size, size, levels[0].shape[-1]))
    for r, (roi, k) in enumerate(zip(rois.astype(np.float64), level)):
        x1, y1, x2, y2 = roi / strides[k]
        if warp:
            x1, y1, x2, y2 = (round_half_away(x) for x in (x1, y1, x2, y2))
            first, last = (y1, x1), (max(y2, y1), max(x2, x1))
            start, extent = [a - 0.5 for a in first], [b + 1 - a for a, b in zip(first, last)]
        elif aligned:
            start, extent = (y1 - 0.5, x1 - 0.5), (max(y2 - y1, 0), max(x2 - x1, 0))
        else:
            start, extent = (y1, x1), (max(y2 - y1, 1), max(x2 - x1, 1))
        count = [samples or min(math.ceil(e / size), cap) for e in extent]
        for i in range(size):
            for j in range(size):
                values = []
                for a in range(count[0]):
                    for b in range(count[1]):
                        point = [
                            s + e * (cell + (step + 0.5) / n) / size
                            for s, e, n, cell, step in zip(start, extent, count, (i, j), (a, b))
                        ]
                        if warp:  # nothing outside of the crop
                            point = [min(max(p, low), high) for p, low, high in zip(point, first, last)]
                        values.append(interpolated(levels[k], *point))
                if values:
                    result[r, i, j] = np.mean(values, axis=0) if reduce == 'average' else np.max(values, axis=0)
    return result


def pooled(levels, rois, level, strides, size, gradient):
    """RoIPool, and its gradients."""
    result = np.zeros((len(rois), size, size, levels[0].shape[-1]))
    gradients = [np.zeros(x.shape) for x in levels]
    for r, (roi, k) in enumerate(zip(rois.astype(np.float64), level)):
        x1, y1, x2, y2 = (round_half_away(x) for x in roi / strides[k])
        height, width, channels = levels[k].shape
        for i in range(size):
            for j in range(size):
                spans = []
                for first, last, n, cell in ((y1, y2, height, i), (x1, x2, width, j)):
                    count = max(last - first + 1, 1)
                    low, high = first + cell * count // size, first + -(-(cell + 1) * count // size)
                    spans.append([p for p in range(low, high) if 0 <= p < n])
                cells = [(y, x) for y in spans[0] for x in spans[1]]  # row-major
                for c in range(channels):
                    if cells:
                        values = [levels[k][y, x, c] for y, x in cells]
                        result[r, i, j, c] = max(values)
                        gradients[k][(*cells[values.index(max(values))], c)] += gradient[r, i, j, c]
    return result, gradients


DEFINITIONS = {
    'align': dict(samples=2),
    'align_adaptive': dict(samples=0, cap=8),
    'align_adaptive_max': dict(samples=0, cap=8, reduce='max'),
    'legacy': dict(samples=2, aligned=False),
    'legacy_adaptive': dict(samples=0, cap=8, aligned=False),
    'warp': dict(samples=2, warp=True),
    'warp_max': dict(samples=2, warp=True, reduce='max'),
}


@pytest.mark.parametrize('name', DEFINITIONS)
def test_sampling_equals_loops(name):
    expected = sampled(LEVELS, ROIS, LEVEL, STRIDES, SIZE, **DEFINITIONS[name])
    some_are_outside = not abs(expected).max(axis=(1, 2, 3)).all()
    assert some_are_outside and np.median(abs(expected)) > 0
    np.testing.assert_allclose(run(name)[0], expected, atol=2e-5)


def test_roi_pool_equals_loops():
    levels = [np.maximum(np.round(2 * x), 0) for x in LEVELS]  # whole numbers, more than half of them 0
    expected, gradients = pooled(levels, ROIS, LEVEL, STRIDES, SIZE, GOLDEN['gradient'])
    result, ours = run('pool', levels)
    np.testing.assert_array_equal(result, expected)
    for i in range(4):
        np.testing.assert_allclose(ours[i], gradients[i], atol=2e-5, err_msg=f'level {i}')


# torchvision


ON_ONE = np.ones(len(ROIS), np.int32)  # all RoIs on the level of stride 8


@pytest.mark.parametrize(
    'name, case',
    [
        ('align', 'align_aligned'),
        ('legacy', 'align'),
        ('align_adaptive', 'align_adaptive_aligned'),
        ('legacy_adaptive', 'align_adaptive'),
    ],
)
def test_roi_align_equals_torchvision(name, case):
    result, gradients = run(name, level=ON_ONE)
    np.testing.assert_allclose(result, GOLDEN[case], atol=1e-4)
    np.testing.assert_allclose(gradients[1], GOLDEN[f'{case}.gradient'], atol=1e-4)
    assert not any(np.any(gradients[i]) for i in (0, 2, 3))


def test_roi_pool_equals_torchvision():
    levels = [LEVELS[0], GOLDEN['relu'], *LEVELS[2:]]
    result, gradients = run('pool', levels, level=ON_ONE)
    np.testing.assert_array_equal(result, GOLDEN['pool'])
    np.testing.assert_allclose(gradients[1], GOLDEN['pool.gradient'], atol=1e-4)


def test_pyramid_equals_torchvision():
    level = assign_levels(ROIS, min_level=2, max_level=5, canonical_size=56)
    np.testing.assert_array_equal(level, LEVEL)
    result, gradients = run('legacy', level=level)
    np.testing.assert_allclose(result, GOLDEN['pyramid'], atol=1e-4)
    for i in range(4):
        np.testing.assert_allclose(gradients[i], GOLDEN[f'pyramid.gradient_{i}'], atol=1e-4)


# By hand, with cells of 16 pixels.


@functools.cache
def on_one_map(function, size, **settings):
    return jax.jit(functools.partial(function, strides=(16,), output_size=size, **settings))


def by_hand(function, values, *rois, size=1, **settings):
    """Pools RoIs, at most 6, from a map of one channel: [RoIs, size, size]."""
    rois = np.float32(rois)
    padded = np.concatenate([rois, np.zeros((6 - len(rois), 4), np.float32)])
    feature = np.array(values, np.float32)[..., None]
    result = on_one_map(function, size, **settings)([feature], padded, zeros(padded))
    return np.asarray(result)[: len(rois), ..., 0].tolist()


FOUR = [[0, 1], [2, 3]]
WHOLE = (0, 0, 32, 32)


def test_roi_align_by_hand():
    # Aligned, the RoI goes from -0.5 to 1.5 in cells. One point is in its middle, between all four cells; a point for each
    # of four bins is on the centres 0 and 1. Not aligned, it goes from 0 to 2: in the middle is cell (1, 1); the
    # points of four bins are at 0.5 and at 1.5, which is taken for 1. Two samples a side are the same points.
    # From 4 to 8 pixels: 0.25 to 0.5 cells, taken for 0.25 to 1.25, the middle 0.75 is 3 * 0.75. Aligned: -0.25 to 0, so 0.
    # From 20 to 24: the middle 22 is 1.375 - 0.5 = 0.875.
    small, next_to_it = (4, 4, 8, 8), (20, 20, 24, 24)
    aligned, legacy = dict(samples_per_bin=1, aligned=True), dict(samples_per_bin=1, aligned=False)
    assert by_hand(roi_align, FOUR, WHOLE, small, next_to_it, **aligned) == [[[1.5]], [[0]], [[2.625]]]
    assert by_hand(roi_align, FOUR, WHOLE, small, **legacy) == [[[3]], [[2.25]]]
    assert by_hand(roi_align, FOUR, WHOLE, size=2, **aligned) == [[[0, 1], [2, 3]]]
    assert by_hand(roi_align, FOUR, WHOLE, size=2, **legacy) == [[[1.5, 2], [2.5, 3]]]
    assert by_hand(roi_align, FOUR, WHOLE, samples_per_bin=2, aligned=True, reduce='max') == [[[3]]]
    assert by_hand(roi_align, FOUR, WHOLE, samples_per_bin=2, aligned=False) == [[[2.25]]]


def test_roi_align_border_goes_on_for_one_cell():
    # One point. The centres of the columns are at pixels 8 and 24: up to pixel 40 it is the last column's, and from pixel -8.
    rois = [(x - 1, 0, x + 1, 32) for x in (-8.5, -7.5, 16, 24, 39.5, 40.5)]
    found = by_hand(roi_align, [[3, 5], [3, 5]], *rois, samples_per_bin=1, aligned=True)
    assert np.ravel(found).tolist() == [0, 3, 4, 5, 5, 0]


def test_roi_pool_by_hand():
    cells = np.arange(25).reshape(5, 5)
    # Pixels 24 and 8 are 1.5 and 0.5 cells, rounded to 2 and 1; 56 is 3.5, 4. So columns 2..4 and rows 1..4: two bins of
    # columns 2, 3 and 3, 4, and of rows 1, 2 and 3, 4. -0.5 cells is -1, not 0: of the four rows and columns from -1 to 2
    # the first bin has -1 and 0, the second 1 and 2.
    found = by_hand(roi_pool, cells, (24, 8, 56, 64), (-8, -8, 32, 32), size=2)
    assert found == [[[13, 14], [23, 24]], [[0, 2], [10, 12]]]
    # Four cells from -2 to 1: the first bin has no cell of the map, though all others are negative.
    # Columns 2..1 and rows 3..1: the corners are in the wrong order, which leaves cell (3, 2) alone.
    found = by_hand(roi_pool, cells - 30, (-32, -32, 16, 16), (32, 48, 20, 10), size=2)
    assert found == [[[0, 0], [0, -24]], [[-13, -13], [-13, -13]]]


def test_roi_pool_gradient_goes_to_the_first_of_equals():
    # One bin has rows 1..3 and columns 1..2. All cells tie; then two, of which the last one of row 2 comes first.
    roi = np.float32([[16, 16, 32, 48]])
    total = lambda feature: roi_pool([feature], roi, zeros(roi), strides=(16,), output_size=1).sum()
    function = jax.jit(jax.grad(total))
    tied = np.zeros((5, 5, 1), np.float32)
    assert np.argwhere(np.asarray(function(tied))).tolist() == [[1, 1, 0]]
    tied[3, 1] = tied[2, 2] = 1
    assert np.argwhere(np.asarray(function(tied))).tolist() == [[2, 2, 0]]


@jax.enable_x64(True)
def test_roi_pool_bins_are_exact():
    # 57 cells, 7 bins: the last one begins at 342 / 7 = 48.86, cell 48, and ends with cell 56. In float32 7 * (57 / 7) is more
    # than 57: torchvision takes cell 57 too, the largest here. 29 cells are the same in float64.
    for count, dtype in ((57, np.float32), (29, np.float64)):
        line = np.arange(60, dtype=dtype).reshape(1, 60, 1)
        roi = np.array([[0, 0, count - 1, 0]], dtype)
        last = jax.jit(functools.partial(roi_pool, strides=(1,), output_size=7))([line], roi, zeros(roi))[0, 0, :, 0]
        assert last.tolist() == [math.ceil((i + 1) * count / 7 - 1e-9) - 1 for i in range(7)]


def test_roi_warp_by_hand():
    # Pixels 10 to 20 are 0.625 and 1.25 cells, rounded to 1 and 1: one cell, whatever is around it. Columns and rows 0..1
    # go from -0.5 to 1.5: the points of four bins are on the centres, that of one is between all.
    one, all_four = (10, 10, 20, 20), (0, 0, 16, 16)
    assert by_hand(roi_warp, FOUR, one, all_four, size=2, samples_per_bin=1) == [[[3, 3], [3, 3]], FOUR]
    assert by_hand(roi_warp, FOUR, one, all_four, samples_per_bin=1) == [[[3]], [[1.5]]]
    # Columns 1..2, bins of two thirds of a cell: points at 1 - 1/6, 1.5 and 2 + 1/6; the outer ones see the crop's own
    # border, 10 and 20, not 8.3 and 23.3.
    (found,) = by_hand(roi_warp, [[0, 10, 20, 40]], (16, 0, 32, 0), size=3, samples_per_bin=1)
    np.testing.assert_allclose(found, [[10, 15, 20]] * 3, rtol=1e-6)


# Relations


@every_operation
def test_features_that_are_constant_give_the_constant(name):
    levels = [np.full_like(x, 2.5) for x in LEVELS]
    # Even on the coarsest level, and where a RoI is taken for one cell, no sample and no bin is outside.
    rois = np.clip(ROIS, 0, [95, 64, 95, 64]).astype(np.float32)
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 1)  # adaptive samples need an area
    np.testing.assert_allclose(run(name, levels, rois)[0], 2.5, rtol=1e-6)


@pytest.mark.parametrize('name', ['align', 'align_adaptive'])
def test_roi_align_of_linear_features_is_their_value_at_the_centre_of_bins(name):
    # The same plane over the canvas, at the centres of the cells of each level: the level makes no difference.
    def plane(y, x):
        return np.stack([x, y, 3 * x - 2 * y + 7], axis=-1)

    levels = [
        plane(*np.mgrid[: x.shape[0], : x.shape[1]] * s + s / 2).astype(np.float32) for x, s in zip(LEVELS, STRIDES)
    ]
    rng = np.random.RandomState(1)
    corner = rng.uniform(16, 50, (len(ROIS), 2))  # and no sample within 16 pixels of the border
    rois = np.concatenate([corner, corner + rng.uniform(0.1, 30, corner.shape)], axis=1).astype(np.float32)
    share = (np.arange(SIZE) + 0.5) / SIZE
    x, y = (rois[:, i, None] + (rois[:, i + 2] - rois[:, i])[:, None] * share for i in (0, 1))  # [R, size]
    expected = plane(*np.broadcast_arrays(y[:, :, None], x[:, None, :]))
    np.testing.assert_allclose(run(name, levels, rois)[0], expected, atol=1e-3)


@pytest.mark.parametrize('name', ['align', 'align_adaptive_max', 'pool'])
@jax.enable_x64(True)
def test_gradient_equals_finite_differences(name):
    rng = np.random.RandomState(2)
    levels = [rng.normal(size=(4, 5, 1)), rng.normal(size=(2, 3, 1))]
    rois = np.array([(0, 0, 40, 32), (3, 5, 31.5, 22), (-10, -20, 50, 60), (12, 9, 14, 10), (7, 7, 7, 7)])
    level = np.array([0, 0, 1, 1, 0], np.int32)
    settings = dict(strides=(8, 16), output_size=2)
    weight = rng.normal(size=(len(rois), 2, 2, 1))
    result, gradients, _ = with_gradients(name, **settings)(levels, rois, level, weight)
    assert result.dtype == gradients[0].dtype == np.float64

    def moved(index, by):
        cells = np.concatenate([x.ravel() for x in levels])
        cells[index] += by
        return [cells[:20].reshape(4, 5, 1), cells[20:].reshape(2, 3, 1)]

    steps = [moved(i, by) for by in (1e-6, -1e-6) for i in range(26)]
    stacked = [np.stack(x) for x in zip(*steps)]
    function = jax.vmap(functools.partial(OPERATIONS[name], **settings), (0, None, None))
    losses = (jax.jit(function)(stacked, rois, level) * weight).sum(axis=(1, 2, 3, 4)).reshape(2, 26)
    found = np.concatenate([np.ravel(x) for x in gradients])
    assert (abs(found) > 1e-3).sum() > 6
    np.testing.assert_allclose(found, (losses[0] - losses[1]) / 2e-6, atol=1e-7)


def test_without_jit():
    function = functools.partial(ALIGN, strides=(8,), output_size=2)
    arguments = LEVELS[1:2], ROIS[3:5], np.zeros(2, np.int32)
    np.testing.assert_allclose(function(*arguments), jax.jit(function)(*arguments), atol=2e-6)


@one_of_each_kind
def test_vmap_equals_one_image_at_a_time(name):
    # The images have other features, RoIs in another order, and the second one a small RoI only.
    rng = np.random.RandomState(3)
    order = np.stack([rng.permutation(len(ROIS)), np.full(len(ROIS), 10)])
    levels = [np.stack([x, rng.normal(size=x.shape).astype(np.float32)]) for x in LEVELS]
    batch = levels, ROIS[order], LEVEL[order], np.stack([GOLDEN['gradient']] * 2)
    result, gradients, _ = jax.jit(jax.vmap(with_gradients(name, **SETTINGS)))(*batch)
    for i in range(2):
        expected, its_gradients = run(name, [x[i] for x in levels], *(x[i] for x in batch[1:]))
        np.testing.assert_allclose(result[i], expected, atol=2e-6)
        for ours, theirs in zip(gradients, its_gradients):
            np.testing.assert_allclose(ours[i], theirs, atol=2e-5)


@every_operation
def test_rois_do_not_touch_each_other(name):
    # Whatever is in the first rows, as long as no gradient comes from there, as from padding.
    rois, gradient = ROIS.copy(), GOLDEN['gradient'].copy()
    rois[2:20], gradient[2:20] = 0, 0
    result, gradients = run(name, gradient=gradient)
    same, with_other_rows = run(name, rois=rois, gradient=gradient)
    np.testing.assert_array_equal(result[20:], same[20:])
    for ours, theirs in zip(gradients, with_other_rows):
        assert np.any(ours)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@one_of_each_kind
def test_no_rois(name):
    result, gradients = run(name, rois=ROIS[:0], level=LEVEL[:0], gradient=GOLDEN['gradient'][:0])
    assert result.shape == (0, SIZE, SIZE, 3)
    assert [x.shape for x in gradients] == [x.shape for x in LEVELS] and not any(np.any(x) for x in gradients)


@every_operation
def test_rois_that_are_not_finite_or_far_away_give_zeros(name):
    nan, inf = np.nan, np.inf
    odd = [(nan, 0, 50, 50), (0, nan, 50, 50), (0, 0, nan, 50), (0, 0, 50, nan), (0, 0, inf, 50), (-inf, 0, 50, 50)]
    odd += [(1e9, 0, 2e9, 50), (0, 3e38, 50, 3e38), (-3e38, -3e38, -1e30, -1e30)]
    rois, gradient = ROIS.copy(), GOLDEN['gradient'].copy()
    rois[: len(odd)], gradient[: len(odd)] = odd, 0
    result, gradients = run(name, rois=rois)
    _, without = run(name, rois=rois, gradient=gradient)
    assert not np.any(result[: len(odd)]) and np.any(result[len(odd) :])
    for ours, theirs in zip(gradients, without):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@every_operation
def test_rois_in_the_wrong_order_are_finite(name):
    result, gradients = run(name, rois=ROIS[:, [2, 3, 0, 1]])
    assert np.isfinite(result).all() and all(np.isfinite(x).all() for x in gradients)


@every_operation
def test_rois_have_no_gradient(name):
    assert not np.any(with_gradients(name, **SETTINGS)(LEVELS, ROIS, LEVEL, GOLDEN['gradient'])[2])


@one_of_each_kind
def test_bfloat16_is_rounded_once(name):
    levels = [x.astype(jnp.bfloat16) for x in LEVELS]
    exact, _ = run(name, [x.astype(np.float32) for x in levels])
    result, gradients = run(name, levels, gradient=GOLDEN['gradient'].astype(jnp.bfloat16))
    assert result.dtype == jnp.bfloat16 and all(x.dtype == jnp.bfloat16 for x in gradients)
    np.testing.assert_allclose(result.astype(np.float32), exact, rtol=2**-8)


@one_of_each_kind
def test_bfloat16_gradients_of_many_rois_add_up(name):
    # 600 ones: a sum in bfloat16 stays at 256.
    feature, rois = jnp.ones((1, 1, 1), jnp.bfloat16), np.tile(np.float32([0, 0, 7, 7]), (600, 1))
    function = with_gradients(name, strides=(8,), output_size=1)
    _, (gradient,), _ = function([feature], rois, zeros(rois), jnp.ones((600, 1, 1, 1), jnp.bfloat16))
    assert gradient.item() == 600


@one_of_each_kind
def test_memory_is_that_of_the_result(name):
    # One gather of all samples would take 16 times the result, and of adaptive ones more.
    shapes = [jax.ShapeDtypeStruct(x, np.float32) for x in ((25, 25, 64), (256, 4), (256, 7, 7, 64))]
    feature, rois, gradient = shapes
    level = jax.ShapeDtypeStruct((256,), np.int32)
    function = with_gradients(name, strides=(32,), output_size=7)
    memory = function.lower([feature], rois, level, gradient).compile().memory_analysis()
    result = 4 * 256 * 7 * 7 * 64
    assert memory.temp_size_in_bytes < 2.5 * result  # on a GPU 2.15


# Adaptive samples


def test_adaptive_samples_by_hand():
    # Cells of 16 pixels, 7 bins. 224 pixels are 14 cells, 2 a bin; a pixel more is 3; 31.25 cells are 4.46, hence 5.
    rois = np.array([(0, 0, 224, 10), (0, 0, 10, 225), (8, 9, 508, 10), (5, 5, 5, 5), (0, 0, 1, 0)], np.float32)
    settings = dict(strides=(16,), output_size=7)
    assert adaptive_samples(rois, zeros(rois), **settings, aligned=True).tolist() == [2, 3, 5, 0, 1]
    assert adaptive_samples(rois, zeros(rois), **settings, aligned=False).tolist() == [2, 3, 5, 1, 1]
    # Whole numbers of cells to a bin are not rounded up, also where a compiled division by 7 would be.
    multiples = np.float32([(0, 0, 112 * i, 1) for i in range(1, 200)])
    compiled = jax.jit(functools.partial(adaptive_samples, **settings, aligned=True))
    assert compiled(multiples, zeros(multiples)).tolist() == list(range(1, 200))


def test_roi_align_adaptive_is_limited():
    # In 4 bins of cells of 4 pixels, 70 pixels would have 5 samples and more.
    rois = np.float32([(0, 0, 96, 96), (-10, 3, 86, 73.5), (5, 5, 95, 95)])
    common = dict(strides=(4,), output_size=SIZE, aligned=True)
    assert (adaptive_samples(rois, zeros(rois), **common) > 4).all()
    functions = (functools.partial(roi_align, **common, samples_per_bin=n, max_samples_per_bin=2) for n in (0, 2))
    limited, fixed = (jax.jit(function)(LEVELS[:1], rois, zeros(rois)) for function in functions)
    np.testing.assert_allclose(limited, fixed, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(strides=(8, 16)), '1 levels have 2 strides'),
        (dict(output_size=0), 'output_size 0'),
        (dict(samples_per_bin=-1), 'samples_per_bin -1'),
        (dict(samples_per_bin=0, max_samples_per_bin=0), 'max_samples_per_bin 0'),
        (dict(reduce='mean'), "'mean'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ALIGN(LEVELS[:1], ROIS, zeros(ROIS), **{**dict(strides=(8,), output_size=SIZE), **changes})


def test_roi_warp_needs_samples():
    with pytest.raises(ValueError, match='samples_per_bin 0'):
        roi_warp(LEVELS[:1], ROIS, zeros(ROIS), strides=(8,), output_size=SIZE, samples_per_bin=0)


def test_counts_that_differ_are_refused():
    for rois, level in ((ROIS[:5], LEVEL[:4]), (ROIS[:5, :3], LEVEL[:5])):
        with pytest.raises(AssertionError):
            ALIGN(LEVELS, rois, level, **SETTINGS)
