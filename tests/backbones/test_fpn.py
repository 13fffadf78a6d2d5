"""The feature pyramid: shapes, the top-down pathway by hand, extra levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import count, random_features, shapes_of

from detzoo.backbones.fpn import FPN, upsample


# torch 2.14.1: F.interpolate(mode='nearest') from n to m cells takes floor(i * n / m). Grids come from halving a canvas
# and rounding up, so m is 2 n or 2 n - 1.
@pytest.mark.parametrize('grid, larger', [((3, 4), (5, 7)), ((5, 7), (9, 13)), ((4, 1), (8, 2)), ((1, 1), (1, 1))])
def test_upsample_equals_nearest_interpolation(grid, larger):
    x = random_features(2, *grid, 3)
    expected = np.zeros((2, *larger, 3), np.float32)
    for row in range(larger[0]):
        for column in range(larger[1]):
            expected[:, row, column] = x[:, row * grid[0] // larger[0], column * grid[1] // larger[1]]
    np.testing.assert_array_equal(upsample(jnp.asarray(x), *larger), expected)


@pytest.mark.parametrize(
    'extra_from, grids',
    [
        ('p5', [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]),
        ('c5', [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]),
        (None, [(9, 13), (5, 7), (3, 4)]),
    ],
)
def test_fpn_shapes_and_parameter_counts(extra_from, grids):
    stages = [(2, *grid, channels) for grid, channels in zip(((9, 13), (5, 7), (3, 4)), (128, 256, 512))]
    levels, variables = shapes_of(FPN(features=64, extra_from=extra_from), stages, train=False)
    assert [level.shape for level in levels] == [(2, *grid, 64) for grid in grids]
    # 1x1 from 128, 256 and 512 channels, three 3x3, each with biases; P6 from 64 or from 512 channels, P7 from 64.
    expected = (128 + 256 + 512) * 64 + 3 * 64 + 3 * (9 * 64 * 64 + 64)
    expected += (
        {'p5': 9 * 64 * 64 + 64, 'c5': 9 * 512 * 64 + 64, None: -9 * 64 * 64 - 64}[extra_from] + 9 * 64 * 64 + 64
    )
    assert count(variables['params']) == expected


def test_fpn_without_extra_levels_has_two_convolutions_less():
    stages = [(1, 4, 4, 3), (1, 2, 2, 3)]
    _, variables = shapes_of(FPN(features=2, extra_from=None), stages, train=False)
    assert set(variables['params']) == {'inner1', 'inner2', 'layer1', 'layer2'}


def identity_fpn(extra_from, stages):
    """An FPN of one channel whose convolutions pass the middle of their kernel on."""
    module = FPN(features=1, extra_from=extra_from)
    _, variables = shapes_of(module, [stage.shape for stage in stages], train=False)

    def identity(shape):
        kernel = np.zeros(shape.shape, np.float32)
        if kernel.ndim == 4:
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
        return kernel

    run = jax.jit(functools.partial(module.apply, train=False))
    return run(jax.tree.map(identity, variables), [jnp.asarray(stage) for stage in stages])


def test_fpn_pools_one_more_level_without_parameters():
    stages = [random_features(1, 6, 9, 4), random_features(1, 3, 5, 6)]
    module = FPN(features=5, extra_from='pool')
    variables = module.init(jax.random.key(0), stages, train=False)
    *levels, pooled = module.apply(variables, stages, train=False)
    unpooled = FPN(features=5, extra_from=None).apply(variables, stages, train=False)
    jax.tree.map(np.testing.assert_array_equal, tuple(levels), unpooled)
    np.testing.assert_array_equal(pooled, np.asarray(levels[-1])[:, [0, 2]][:, :, [0, 2, 4]])


@pytest.mark.parametrize('extra_from', ['p5', 'c5'])
def test_fpn_by_hand(extra_from):
    # M5 = C5, M4 = C4 + up(C5), M3 = C3 + up(M4). A stride of 2 takes every other cell, from the first on; P7 is taken
    # from what is positive of P6.
    c3, c4, c5 = (random_features(1, h, w, 1, seed=h) for h, w in ((17, 25), (9, 13), (5, 7)))
    c5 -= c5[:, ::4, ::4].mean()
    p3, p4, p5, p6, p7 = identity_fpn(extra_from, [c3, c4, c5])
    expected4 = c4 + np.kron(c5[0, :, :, 0], np.ones((2, 2)))[None, :9, :13, None]
    expected3 = c3 + np.kron(expected4[0, :, :, 0], np.ones((2, 2)))[None, :17, :25, None]
    np.testing.assert_allclose(p5, c5, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p4, expected4, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p3, expected3, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p6, c5[:, ::2, ::2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p7, np.maximum(c5[:, ::4, ::4], 0), rtol=1e-5, atol=1e-5)


def test_fpn_takes_extra_levels_from_where_it_is_told():
    # C5 of two channels, 1 and 10, mixed by a 1x1 convolution of weights 1 and 0: P5 = 1. All kernels of 'extra1' pass
    # the sum of channels on: P6 = 1 from P5, 11 from C5.
    c5 = jnp.broadcast_to(jnp.array([1.0, 10.0]), (1, 3, 4, 2))
    found = {}
    for extra_from in ('p5', 'c5'):
        module = FPN(features=1, extra_from=extra_from)
        _, variables = shapes_of(module, [c5.shape], train=False)
        params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables['params'])
        params['inner1']['kernel'][0, 0, 0] = 1
        for name in ('layer1', 'extra1', 'extra2'):
            params[name]['kernel'][1, 1] = 1
        levels = jax.jit(functools.partial(module.apply, train=False))({'params': params}, [c5])
        found[extra_from] = [float(level[0, 0, 0, 0]) for level in levels]
    assert found == {'p5': [1, 1, 1], 'c5': [1, 11, 11]}


def test_fpn_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match='p4'):
        shapes_of(FPN(extra_from='p4'), [(1, 4, 4, 3)], train=False)


def test_fpn_adds_stages_of_one_stride_cell_by_cell():
    fine, coarse = random_features(1, 5, 7, 1), random_features(1, 5, 7, 1, seed=1)
    first, second = identity_fpn(None, [fine, coarse])
    np.testing.assert_allclose(second, coarse, rtol=1e-5)
    np.testing.assert_allclose(first, fine + coarse, rtol=1e-5, atol=1e-5)


def test_fpn_normalises_all_but_its_extra_levels():
    stages = [random_features(2, 8, 8, 3), random_features(2, 4, 4, 5)]
    module = FPN(features=4, extra_from='c5', norm='batch_norm')
    levels, variables = jax.jit(functools.partial(module.init_with_output, train=True))(jax.random.key(0), stages)
    named = {f'{layer}{i}' for layer in ('inner', 'layer') for i in (1, 2)}
    assert set(variables['params']) == named | {f'{name}_norm' for name in named} | {'extra1', 'extra2'}
    assert {name for name, layer in variables['params'].items() if 'kernel' in layer and 'bias' in layer} == {
        'extra1',
        'extra2',
    }
    for level in levels[:2]:  # after the last norm of each, which was not trained
        np.testing.assert_allclose(np.mean(level, axis=(0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(level, axis=(0, 1, 2)), 1, rtol=1e-2)
    assert np.abs(np.mean(levels[2], axis=(0, 1, 2))).max() > 0.01
