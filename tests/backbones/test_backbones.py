"""Backbones: shapes on odd canvases, parameter counts, the layers that they are made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import count, random_features, shapes_of

from detzoo.backbones import mobilenet, norms, resnet
from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.convolution import convolve
from detzoo.backbones.mobilenet import mobilenet_v2, mobilenet_v3_large
from detzoo.backbones.resnet import LastStage, ResNet
from detzoo.backbones.vgg import VGG16


@pytest.mark.parametrize('depth, channels', [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_resnet_shapes_on_a_canvas_that_is_no_multiple_of_32(depth, channels):
    # 72 x 100, halved and rounded up: 36 x 50 (stem), 18 x 25 (pooling), 9 x 13, 5 x 7, 3 x 4.
    stages, _ = shapes_of(ResNet(depth=depth), (2, 72, 100, 3), train=False)
    grids = [(18, 25), (9, 13), (5, 7), (3, 4)]
    assert [stage.shape for stage in stages] == [(2, *grid, c) for grid, c in zip(grids, channels)]


def test_last_stage_goes_on_where_three_stages_end():
    whole, three, last = (
        ResNet(depth=18, width=0.125),
        ResNet(depth=18, width=0.125, strides=(4, 8, 16)),
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
    net = mobilenet_v3_large(reduced_tail=False).clone(outputs=('block1', 'block4/expand', 'block13', 'last'))
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
        return convolve(x, weights, strides, **options)

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
