"""Backbones: shapes on odd canvases, parameter counts, the top-down pathway, normalisation layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.backbones import mobilenet, norms, resnet
from detzoo.backbones.conv import ConvNorm, depthwise_convolution
from detzoo.backbones.fpn import FPN, upsample
from detzoo.backbones.mobilenet import mobilenet_v2, mobilenet_v3_large
from detzoo.backbones.resnet import LastStage, ResNet
from detzoo.backbones.vgg import VGG16

DEVICES = 8


def shapes_of(module, *inputs, **kwargs):
    """The shapes of outputs and variables, without computing anything."""
    inputs = [
        jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), x, is_leaf=lambda x: isinstance(x[0], int))
        for x in inputs
    ]
    return jax.eval_shape(lambda *x: module.init_with_output(jax.random.key(0), *x, **kwargs), *inputs)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def norm_of(name, train=False, axis_name=None, epsilon=1e-5, dtype=jnp.float32):
    return norms.make_norm(name, train=train, axis_name=axis_name, dtype=dtype, epsilon=epsilon)(name='norm')


def random_features(*shape, seed=0):
    rng = np.random.RandomState(seed)
    return (rng.normal(size=shape) * rng.uniform(0.5, 3, shape[-1]) + rng.uniform(-2, 2, shape[-1])).astype(np.float32)


@pytest.mark.parametrize('depth, channels', [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_resnet_shapes_on_a_canvas_that_is_no_multiple_of_32(depth, channels):
    # 72 x 100, halved and rounded up: 36 x 50 (stem), 18 x 25 (pooling), 9 x 13, 5 x 7, 3 x 4.
    stages, _ = shapes_of(ResNet(depth=depth), (2, 72, 100, 3), train=False)
    grids = [(18, 25), (9, 13), (5, 7), (3, 4)]
    assert [stage.shape for stage in stages] == [(2, *grid, c) for grid, c in zip(grids, channels)]


def test_last_stage_goes_on_where_three_stages_end():
    whole, three, last = (
        ResNet(depth=18, width=0.125),
        ResNet(depth=18, width=0.125, stages=3),
        LastStage(depth=18, width=0.125),
    )
    x = random_features(2, 64, 48, 3)
    variables = jax.jit(functools.partial(whole.init, train=False))(jax.random.key(0), x)

    def part(fits):
        return {kind: {name: leaf for name, leaf in tree.items() if fits(name)} for kind, tree in variables.items()}

    def run(module, variables, x):
        return jax.jit(functools.partial(module.apply, train=False))(variables, x)

    *expected, c5 = run(whole, variables, x)
    stages = run(three, part(lambda name: 'stage4' not in name), x)
    assert len(stages) == 3
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), stages, tuple(expected))
    np.testing.assert_allclose(run(last, part(lambda name: 'stage4' in name), stages[-1]), c5, rtol=1e-5, atol=1e-5)


# torchvision 0.29.1: the parameters of resnet18(weights=None) and so on whose name doesn't start with 'fc', and the
# elements of its running means and variances.
@pytest.mark.parametrize(
    'depth, parameters, statistics',
    [
        (18, 11_176_512, 9_600),
        (34, 21_284_672, 17_024),
        (50, 23_508_032, 53_120),
        (101, 42_500_160, 105_344),
    ],
)
def test_resnet_parameter_counts_equal_torchvision(depth, parameters, statistics):
    _, variables = shapes_of(ResNet(depth=depth, norm='batch_norm'), (1, 64, 64, 3), train=False)
    assert set(variables) == {'params', 'batch_stats'}
    assert (count(variables['params']), count(variables['batch_stats'])) == (parameters, statistics)


def test_resnet_with_frozen_batch_norm_trains_its_convolutions_only():
    # Scales and biases, as many numbers as means and variances, are no parameters any more, but lie with those.
    _, variables = shapes_of(ResNet(depth=18, norm='frozen_batch_norm'), (1, 64, 64, 3), train=True)
    assert set(variables) == {'params', 'frozen'}
    assert (count(variables['params']), count(variables['frozen'])) == (11_176_512 - 9_600, 2 * 9_600)


def test_resnet_width_scales_all_channels():
    stages, _ = shapes_of(ResNet(depth=50, width=0.25), (1, 64, 64, 3), train=False)
    assert [stage.shape[-1] for stage in stages] == [64, 128, 256, 512]


def test_resnet_computes_in_bfloat16_with_float32_parameters():
    stages, variables = shapes_of(ResNet(depth=18, dtype=jnp.bfloat16), (1, 64, 64, 3), train=True)
    assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('changed, named', [({'depth': 20}, '20'), ({'norm': 'layer_norm'}, 'layer_norm')])
def test_resnet_refuses_what_it_does_not_know(changed, named):
    with pytest.raises(ValueError, match=named):
        shapes_of(ResNet(**changed), (1, 64, 64, 3), train=False)


def test_bottleneck_block_strides_in_its_3x3_convolution():
    # Were the stride in a 1x1 convolution, as in the paper, no odd row or column would reach the output. All weights
    # and features are positive, so that no ReLU stops anything.
    block = resnet.BottleneckBlock(2, 2, norms.FrozenBatchNorm, jnp.float32)
    x = np.ones((1, 6, 6, 4), np.float32)
    variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes_of(block, x.shape)[1])
    variables['frozen'] = jax.tree.map(lambda x: x * 0.5, variables['frozen'])
    gradient = jax.jit(jax.grad(lambda x: block.apply(variables, x).sum()))(x)
    assert np.min(gradient) > 0


def batch_norm_step(params, x, weights, axis_name=None):
    """The gradient of a loss behind a batch norm, its outputs and its new statistics, on one device's share."""
    norm = norm_of('batch_norm', train=True, axis_name=axis_name)
    statistics = {'mean': jnp.zeros(3), 'var': jnp.ones(3)}

    def loss(params, x):
        y, state = norm.apply({'params': params, 'batch_stats': statistics}, x, mutable=['batch_stats'])
        return (weights * y**2).mean(), (y, state['batch_stats'])

    gradients, (y, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients[0], axis_name), gradients[1]
    return gradients, y, state


def test_batch_norm_synchronised_over_devices_equals_one_device_with_the_whole_batch():
    # Two images a device, and no two devices alike. The gradient of the inputs crosses devices: the loss of each
    # depends on the statistics of all.
    x = random_features(2 * DEVICES, 4, 4, 3) * np.linspace(0.2, 2, 2 * DEVICES, dtype=np.float32)[:, None, None, None]
    weights = random_features(*x.shape, seed=1)
    params = {'scale': np.float32([0.5, 1, 2]), 'bias': np.float32([-1, 0, 1])}
    (gradient, input_gradient), y, state = jax.jit(batch_norm_step)(params, x, weights)
    split = [a.reshape(DEVICES, 2, *a.shape[1:]) for a in (x, weights)]
    mapped = jax.pmap(functools.partial(batch_norm_step, axis_name='batch'), axis_name='batch', in_axes=(None, 0, 0))
    (ours, ours_input_gradient), ours_y, ours_state = mapped(params, *split)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    close(ours_y.reshape(y.shape), y)
    close(np.reshape(ours_input_gradient, x.shape) / DEVICES, input_gradient)  # each loss is the mean of its own share
    # Every device ends with the same gradient and the same statistics.
    everywhere = jax.tree.map(lambda a: np.broadcast_to(a, (DEVICES, *a.shape)), (gradient, state))
    jax.tree.map(close, (ours, ours_state), everywhere)


def test_resnet_synchronises_all_its_batch_norms():
    # Two unlike images, one a device: all statistics are the same on both, those of the last layer too.
    net = ResNet(depth=18, width=1 / 32, axis_name='batch')
    images = random_features(2, 1, 32, 32, 3) * np.float32([1, 3]).reshape(2, 1, 1, 1, 1)
    variables = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), images[0])
    rng = np.random.RandomState(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables)
    run = jax.vmap(lambda x: net.apply(variables, x, train=True, mutable=['batch_stats'])[1], axis_name='batch')
    statistics = jax.tree.leaves(jax.jit(run)(images))
    assert len(statistics) == 40  # of 20 batch norms: the stem's, 16 in blocks, 3 of shortcuts
    for x in statistics:
        np.testing.assert_allclose(x[0], x[1], rtol=1e-5)


def test_batch_norm_normalises_and_remembers():
    x = random_features(4, 5, 5, 3)
    norm = norm_of('batch_norm', train=True)
    variables = jax.jit(norm.init)(jax.random.key(0), x)
    y, updated = jax.jit(functools.partial(norm.apply, mutable=['batch_stats']))(variables, x)
    mean, var = x.mean(axis=(0, 1, 2), dtype=np.float64), x.var(axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    # A tenth of the new and nine of the old, which are mean 0 and variance 1.
    np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(updated['batch_stats']['var'], 0.9 + 0.1 * var, rtol=1e-4)
    evaluated = jax.jit(norm_of('batch_norm').apply)({**variables, **updated}, x)  # an axis isn't needed any more
    expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + 1e-5)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('valid', [[True, False, True, True, False], [True] * 5])
def test_padded_batch_norm_is_the_batch_norm_of_the_rows_that_count(valid):
    x, valid = random_features(5, 3, 2, 4), np.array(valid)
    x[~valid] = 1e4
    padded = norms.make_norm('batch_norm', train=True, axis_name=None, dtype=jnp.float32, valid=valid)(name='norm')
    plain = norm_of('batch_norm', train=True)
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + np.linspace(0, 1, 4, dtype=np.float32), variables)
    expected, statistics = jax.jit(functools.partial(plain.apply, mutable=['batch_stats']))(variables, x[valid])
    found, updated = jax.jit(functools.partial(padded.apply, mutable=['batch_stats']))(variables, x)
    np.testing.assert_allclose(found[valid], expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), updated, statistics)
    drawn = jax.jit(padded.init)(jax.random.key(0), x)
    assert jax.tree.structure(drawn) == jax.tree.structure(variables)
    np.testing.assert_array_equal(drawn['batch_stats']['var'], np.ones(4))


def test_padded_batch_norm_of_padding_alone_keeps_its_statistics():
    x = random_features(3, 2, 2, 4)
    norm = norms.make_norm('batch_norm', train=True, axis_name=None, dtype=jnp.float32, valid=np.zeros(3, bool))(
        name='norm'
    )
    variables = {
        'params': {'scale': np.float32([1, 2, 3, 4]), 'bias': np.ones(4, np.float32)},
        'batch_stats': {'mean': np.float32([1, 2, 3, 4]), 'var': np.float32([4, 4, 4, 4])},
    }
    y, updated = norm.apply(variables, x, mutable=['batch_stats'])
    np.testing.assert_allclose(y, (x - [1, 2, 3, 4]) / 2 * [1, 2, 3, 4] + 1, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), updated['batch_stats'], variables['batch_stats']
    )


def test_padded_batch_norm_over_devices_weighs_rows_not_devices():
    # Device d has d valid rows: the mean of the devices' means would be another one.
    x = random_features(DEVICES * 8, 2, 2, 3) + np.arange(DEVICES * 8, dtype=np.float32)[:, None, None, None]
    valid = np.tile(np.arange(8), DEVICES) < np.repeat(np.arange(DEVICES), 8)

    def run(x, valid, axis_name=None):
        norm = norms.make_norm('batch_norm', train=True, axis_name=axis_name, dtype=jnp.float32, valid=valid)(
            name='norm'
        )
        params, statistics = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}, {'mean': jnp.zeros(3), 'var': jnp.ones(3)}
        variables = {'params': params, 'batch_stats': statistics}
        return norm.apply(variables, x, mutable=['batch_stats'])

    expected, statistics = jax.jit(run)(x, valid)
    split = [a.reshape(DEVICES, 8, *a.shape[1:]) for a in (x, valid)]
    found, ours = jax.pmap(functools.partial(run, axis_name='batch'), axis_name='batch')(*split)
    np.testing.assert_allclose(np.reshape(found, x.shape), expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, (DEVICES, *b.shape)), rtol=1e-4), ours, statistics
    )


@pytest.mark.parametrize('epsilon', [0.0, 1e-2])
def test_frozen_batch_norm_is_the_formula_of_four_constants(epsilon):
    x = random_features(2, 3, 3, 5)
    norm = norm_of('frozen_batch_norm', train=True, epsilon=epsilon)
    _, variables = shapes_of(norm, x.shape)
    assert set(variables) == {'frozen'} and set(variables['frozen']) == {'scale', 'bias', 'mean', 'var'}
    constants = dict(
        zip(('scale', 'bias', 'mean', 'var'), np.random.RandomState(1).uniform(0.5, 2, (4, 5)).astype(np.float32))
    )
    y, updated = jax.jit(functools.partial(norm.apply, mutable=['batch_stats', 'frozen']))({'frozen': constants}, x)
    scale, bias, mean, var = (constants[name].astype(np.float64) for name in ('scale', 'bias', 'mean', 'var'))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + epsilon) * scale + bias, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated['frozen'], constants)  # train or not
    assert 'batch_stats' not in updated


@pytest.mark.parametrize('channels, groups', [(64, 32), (48, 16), (6, 2), (7, 1)])
def test_group_norm_equals_loops(channels, groups):
    x = random_features(2, 3, 3, channels)
    ours, _ = jax.jit(norm_of('group_norm').init_with_output)(jax.random.key(0), x)
    expected = np.zeros(x.shape)
    size = channels // groups
    for image in range(2):
        for start in range(0, channels, size):
            part = x[image, :, :, start : start + size].astype(np.float64)
            expected[image, :, :, start : start + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize('canvas, grids', [((300, 300), [(38, 38), (19, 19)]), ((72, 100), [(9, 13), (4, 6)])])
def test_vgg16_shapes_round_up_at_the_third_pooling_only(canvas, grids):
    # 300 -> 150 -> 75 -> 38 -> 19 and 100 -> 50 -> 25 -> 13 -> 6: as in the paper of SSD.
    levels, _ = shapes_of(VGG16(), (2, *canvas, 3), train=False)
    assert [level.shape for level in levels] == [(2, *grid, c) for grid, c in zip(grids, (512, 1024))]


def test_vgg16_parameter_count_equals_torchvision():
    # torchvision 0.29.1: those of ssd300_vgg16().backbone.features and .extra[0], which is conv5_1 to fc7.
    _, variables = shapes_of(VGG16(), (1, 64, 64, 3), train=False)
    assert set(variables) == {'params'} and count(variables['params']) == 20_483_904


def test_vgg16_with_a_norm_has_no_biases():
    # A scale and an offset of each of the 2 * (64 + 128) + 3 * (256 + 2 * 512) + 2 * 1024 channels for one bias.
    _, variables = shapes_of(VGG16(norm='batch_norm'), (1, 64, 64, 3), train=False)
    channels = 2 * (64 + 128) + 3 * (256 + 2 * 512) + 2 * 1024
    assert count(variables['params']) == 20_483_904 + channels
    assert count(variables['batch_stats']) == 2 * channels


@pytest.mark.parametrize('canvas, grids', [((320, 320), [(20, 20), (10, 10)]), ((72, 100), [(5, 7), (3, 4)])])
def test_mobilenet_shapes(canvas, grids):
    levels, _ = shapes_of(mobilenet_v3_large(), (2, *canvas, 3), train=False)
    assert [level.shape for level in levels] == [(2, *grid, c) for grid, c in zip(grids, (672, 480))]


@pytest.mark.parametrize('canvas, grids', [((320, 320), [(20, 20), (10, 10)]), ((72, 100), [(5, 7), (3, 4)])])
def test_mobilenet_v2_shapes(canvas, grids):
    levels, _ = shapes_of(mobilenet_v2(), (2, *canvas, 3), train=False)
    assert [level.shape for level in levels] == [(2, *grid, c) for grid, c in zip(grids, (576, 1280))]


def test_mobilenet_puts_out_the_layers_that_it_is_asked_for():
    net = mobilenet_v3_large(reduced_tail=False, outputs=('block1', 'block4/expand', 'block13', 'last'))
    levels, _ = shapes_of(net, (1, 64, 96, 3), train=False)
    assert [level.shape[1:] for level in levels] == [(32, 48, 16), (16, 24, 72), (2, 3, 160), (2, 3, 960)]


# torchvision 0.29.1: mobilenet_v2(weights=None, ...).features.
@pytest.mark.parametrize(
    'width, parameters, statistics',
    [
        (1.0, 2_223_872, 34_112),
        (0.35, 396_128, 14_080),
        (1.4, 4_315_776, 47_936),
    ],
)
def test_mobilenet_v2_parameter_counts_equal_torchvision(width, parameters, statistics):
    _, variables = shapes_of(mobilenet_v2(width=width), (1, 64, 64, 3), train=False)
    assert (count(variables['params']), count(variables['batch_stats'])) == (parameters, statistics)


# torchvision 0.29.1: mobilenet_v3_large(weights=None, ...).features.
@pytest.mark.parametrize(
    'arguments, parameters, statistics',
    [
        (dict(reduced_tail=False), 2_971_952, 24_400),
        (dict(reduced_tail=True), 1_620_512, 19_120),
        (dict(reduced_tail=True, width=0.35), 223_088, None),
    ],
)
def test_mobilenet_parameter_counts_equal_torchvision(arguments, parameters, statistics):
    _, variables = shapes_of(mobilenet_v3_large(**arguments), (1, 64, 64, 3), train=False)
    assert count(variables['params']) == parameters
    assert statistics in (None, count(variables['batch_stats']))


@pytest.mark.parametrize(
    'channels, expected', [(3, 8), (12, 16), (36, 40), (11.9, 16), (19.6, 24), (84, 88), (83.9, 80)]
)
def test_divisible_by_hand(channels, expected):
    # To the nearest multiple of 8, halves up; up as well where the nearest is less than 9/10: 8 of 11.9, 16 of 19.6.
    assert mobilenet.divisible(channels) == expected


@pytest.mark.parametrize(
    'network',
    [
        VGG16(width=1 / 16),
        VGG16(width=1 / 16, norm='group_norm'),
        mobilenet_v2(width=0.25),
        mobilenet_v3_large(width=0.25),
    ],
)
def test_networks_of_conv_norm_compute_in_bfloat16_with_float32_parameters(network):
    levels, variables = shapes_of(network.clone(dtype=jnp.bfloat16), (1, 64, 64, 3), train=True)
    assert {level.dtype for level in levels} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_squeeze_excitation_by_hand():
    # The means of the channels are 2 and 3; reduced with 1, 1 to 5 and expanded by .2 and -1 to 1 and -5, behind which
    # hard sigmoid, (x + 3) / 6 between 0 and 1, says 2 / 3 and 0.
    x = np.float32([[[[1, 3], [3, 3]]]])
    params = {
        'reduce': {'conv': {'kernel': np.ones((1, 1, 2, 1)), 'bias': np.zeros(1)}},
        'expand': {'conv': {'kernel': np.array([0.2, -1]).reshape(1, 1, 1, 2), 'bias': np.zeros(2)}},
    }
    weights = mobilenet.SqueezeExcitation(1, jnp.float32).apply({'params': params}, x)
    np.testing.assert_allclose(weights, [[[[2 / 3, 0]]]], rtol=1e-6)


def test_conv_norm_by_hand():
    # A depthwise 3 x 3 of ones over ones counts the cells it sees: 4 in corners. Dilated by 2 it keeps the grid too.
    x = np.ones((1, 5, 5, 2), np.float32)
    for arguments, expected in (
        (dict(), [4, 9]),
        (dict(dilation=2), [4, 9]),
        (dict(stride=2), [4, 9]),
        (dict(padding=0), [9, 9]),
    ):
        module = ConvNorm(2, 3, depthwise=True, **arguments)
        _, variables = shapes_of(module, x.shape)
        assert variables['params']['conv']['kernel'].shape == (3, 3, 1, 2)
        ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variables)
        y = np.asarray(module.apply(ones, x)) - 1  # the bias
        middle = y.shape[1] // 2
        np.testing.assert_array_equal([y[0, 0, 0], y[0, middle, middle]], [[expected[0]] * 2, [expected[1]] * 2])


@pytest.mark.parametrize(
    ('size', 'kernel', 'stride', 'dilation', 'padding'),
    [((7, 9), 3, 1, 1, 1), ((8, 9), 5, 2, 1, 2), ((12, 12), 3, 2, 2, 0), ((9, 10), 3, 1, 3, 3)],
)
def test_depthwise_convolution_on_cpu_is_that_of_other_platforms(size, kernel, stride, dilation, padding):
    x, weights = random_features(2, *size, 4), random_features(kernel, kernel, 1, 4, seed=1)
    strides = (stride, stride)
    options = dict(
        padding=((padding, padding),) * 2,
        rhs_dilation=(dilation, dilation),
        feature_group_count=4,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

    def ours(x, weights):
        return depthwise_convolution(x, weights, strides, **options)

    def lax(x, weights):
        return jax.lax.conv_general_dilated(x, weights, strides, **options)

    y = ours(x, weights)
    np.testing.assert_allclose(y, lax(x, weights), rtol=1e-5, atol=1e-4)
    gradients, expected = (jax.vjp(function, x, weights)[1](y) for function in (ours, lax))
    for gradient, other in zip(gradients, expected):
        np.testing.assert_allclose(gradient, other, atol=1e-5 * np.abs(other).max())
    half = ours(x.astype(jnp.bfloat16), weights.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), y, atol=0.02 * np.abs(y).max())
    # Only a CPU adds products up.
    for platform in ('cpu', 'tpu', 'cuda'):
        module = jax.export.export(jax.jit(ours), platforms=[platform])(x, weights).mlir_module()
        assert ('stablehlo.convolution(' in module) == (platform != 'cpu')


def test_conv_norm_activates_what_its_norm_gives():
    x = random_features(1, 4, 4, 3)
    module = ConvNorm(6, 1, norm=norms.FrozenBatchNorm, activation=None)
    _, variables = shapes_of(module, x.shape)
    assert set(variables['params']['conv']) == {'kernel'} and set(variables['frozen']) == {'norm'}
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variables)
    y = module.apply(variables, x)
    np.testing.assert_allclose(
        y, np.repeat(x.sum(-1, keepdims=True), 6, -1), rtol=1e-4, atol=1e-4
    )  # less mean, and offset
    np.testing.assert_array_equal(module.clone(activation=jax.nn.relu6).apply(variables, x), np.clip(y, 0, 6))


@pytest.mark.parametrize('norm', [None, 'batch_norm'])
def test_vgg16_keeps_activations_of_one_size_at_the_start(norm):
    # Else 15 layers without a norm would lose the signal, or blow it up.
    net, image = VGG16(width=1 / 8, norm=norm, fc6_dilation=1), random_features(2, 128, 128, 3)
    image = (image - image.mean()) / image.std()
    levels, _ = jax.jit(functools.partial(net.init_with_output, train=True))(jax.random.key(0), image)
    assert all(0.5 < np.square(level).mean() ** 0.5 < 2 for level in levels)
