"""Every formulation of a convolution against loops in float64, and what runs on which platform."""

import pathlib
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ROOT

from detzoo.backbones import convolution, winograd
from detzoo.backbones.conv import Conv, ConvTranspose
from detzoo.backbones.convolution import Ways, choose, convolve, convolve_on_cpu, convolve_transposed
from detzoo.backbones.shifted_dots import Geometry


def geometry(*, stride: int = 1, padding: int = 0, dilation: int = 1) -> Geometry:
    return Geometry((stride, stride), ((padding, padding), (padding, padding)), (dilation, dilation))


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def loops(x, kernel, shape: Geometry, gradient):
    """Computes a convolution and its gradients place by place in float64: (result, of x, of the kernel)."""
    x, kernel, gradient = (np.asarray(array, np.float64) for array in (x, kernel, gradient))
    (top, _), (left, _) = shape.padding
    height, width = gradient.shape[1:3]
    padded = np.pad(x, ((0, 0), *shape.padding, (0, 0)))
    result, of_padded, of_kernel = np.zeros(gradient.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(*kernel.shape[:2]):
        y, z = i * shape.dilation[0], j * shape.dilation[1]
        read = (
            slice(None),
            slice(y, y + (height - 1) * shape.strides[0] + 1, shape.strides[0]),
            slice(z, z + (width - 1) * shape.strides[1] + 1, shape.strides[1]),
        )
        result += padded[read] @ kernel[i, j]
        of_padded[read] += gradient @ kernel[i, j].T
        of_kernel[i, j] = np.tensordot(padded[read], gradient, ([0, 1, 2], [0, 1, 2]))
    return result, of_padded[:, top : top + x.shape[1], left : left + x.shape[2]], of_kernel


CASES = {  # (B, h, w, C), (side, D), geometry
    'one cell': ((1, 1, 1, 1), (3, 1), geometry(padding=1)),
    'odd': ((2, 7, 9, 3), (3, 5), geometry(padding=1)),
    'no padding': ((1, 8, 7, 4), (3, 2), geometry()),
    'wide padding': ((1, 4, 5, 3), (3, 4), geometry(padding=2)),
    'one side padded': ((2, 6, 5, 2), (3, 3), Geometry((1, 1), ((1, 0), (0, 2)), (1, 1))),
    'many channels': ((1, 6, 5, 256), (3, 512), geometry(padding=1)),
    'stride 2': ((2, 9, 8, 5), (3, 4), geometry(stride=2, padding=1)),
    'stride 3, dilation 2': ((1, 13, 11, 3), (3, 2), geometry(stride=3, padding=1, dilation=2)),
    'dilation 6': ((1, 19, 17, 4), (3, 6), geometry(padding=6, dilation=6)),
    '1x1': ((2, 5, 4, 6), (1, 3), geometry()),
    '1x1, stride 2': ((2, 5, 4, 6), (1, 3), geometry(stride=2)),
    '7x7, stride 2': ((1, 15, 14, 3), (7, 4), geometry(stride=2, padding=3)),
    '2x2, stride 2': ((1, 7, 6, 3), (2, 4), geometry(stride=2)),
}


def compare(case: str, way: str) -> None:
    (batch, height, width, channels), (side, features), shape = CASES[case]
    x, kernel = draw(batch, height, width, channels, seed=0), draw(side, side, channels, features, seed=1)
    ways = Ways(way, 'xla', 'xla') if way == 'padded' else Ways(way, way, way)
    convolved = partial(convolve_on_cpu, shape, ways)
    gradient = draw(*jax.eval_shape(convolved, x, kernel).shape, seed=2)

    @jax.jit
    def run(x, kernel, gradient):
        result, pull = jax.vjp(convolved, x, kernel)
        return result, *pull(gradient)

    names = 'result', 'gradient of x', 'gradient of the kernel'
    for name, ours, expected in zip(names, run(x, kernel, gradient), loops(x, kernel, shape, gradient)):
        np.testing.assert_allclose(
            ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=f'{case}: {name}'
        )


@pytest.mark.parametrize('way', ['xla', 'dots', 'columns'])
@pytest.mark.parametrize('case', CASES)
def test_convolution_and_its_gradients_are_those_of_loops(case, way):
    compare(case, way)


@pytest.mark.parametrize('case', ['odd', '1x1', 'stride 3, dilation 2', '7x7, stride 2'])
def test_channels_of_zeros_change_nothing(case):
    compare(case, 'padded')


@pytest.mark.parametrize('strip', [winograd.STRIP, 1])
@pytest.mark.parametrize(
    'case', [case for case, (_, (side, _), g) in CASES.items() if side == 3 and g.strides == (1, 1)][:6]
)
def test_winograd_and_its_gradients_are_those_of_loops(case, strip, monkeypatch):
    monkeypatch.setattr(winograd, 'STRIP', strip)
    compare(case, 'winograd')


@pytest.mark.parametrize(
    'sizes, channels, rows',
    [
        ((1, 300, 300), 64, [150]),  # 22,500 patches of 16 * 64 * 4 bytes: 88 MB
        ((1, 300, 300), 128, [75, 75]),
        ((2, 300, 301), 64, [75, 75]),
        ((1, 7, 9), 10**9, [1, 1, 1, 1]),
        ((1, 40, 9), 10**9, [3, 3, 3, 3, 2, 2, 2, 2]),
    ],
)
def test_winograd_cuts_large_maps_into_strips(sizes, channels, rows):
    strips = winograd._strips(sizes, channels)
    assert [len(part) for part, _ in strips] == rows
    assert np.concatenate([part for part, _ in strips]).tolist() == list(range(sum(rows)))
    assert all(columns.tolist() == list(range(-(-sizes[2] // 2))) for _, columns in strips)


def test_choice_has_winograd_for_wide_maps_and_products_for_the_rest():
    def ways(batch, size, channels, side, features, **shape):
        return choose((batch, size, size, channels), (side, side, channels, features), geometry(**shape))

    assert ways(1, 128, 64, 1, 256) == ('dots', 'dots', 'dots')
    assert ways(1, 128, 256, 1, 512, stride=2) == ('dots', 'xla', 'dots')
    assert ways(1, 16, 64, 1, 64) == ('xla', 'xla', 'xla')  # too little work to compile more for
    assert ways(1, 64, 256, 3, 256, padding=1) == ('winograd', 'winograd', 'winograd')
    assert ways(16, 32, 32, 3, 64, padding=1) == ('xla', 'xla', 'xla')  # 32 channels
    assert ways(16, 8, 48, 3, 48, padding=1) == ('xla', 'xla', 'xla')  # little work
    assert ways(16, 16, 48, 3, 720, padding=1) == ('xla', 'xla', 'xla')  # many more channels on one side
    assert ways(1, 4, 256, 3, 256, padding=1) == ('columns', 'dots', 'columns')  # 4 patches, a large kernel
    assert ways(1, 19, 1024, 3, 24, padding=1) == ('xla', 'dots', 'xla')  # few cells, few channels
    assert ways(1, 128, 128, 3, 128, stride=2, padding=1) == ('xla', 'dots', 'dots')
    assert ways(1, 512, 3, 7, 64, stride=2, padding=3) == ('xla', 'xla', 'xla')
    assert ways(1, 416, 3, 3, 32, padding=1) == ways(1, 416, 3, 3, 16, padding=1) == ('padded', 'xla', 'xla')
    assert ways(16, 128, 3, 7, 16, stride=2, padding=3) == ('xla', 'xla', 'xla')


def operations(function, platform, *arguments) -> set[str]:
    """Lists the kinds of operations in the program for a platform."""
    module = jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
    return set(re.findall(r'stablehlo\.(convolution|dot_general)', module))


@pytest.mark.parametrize(
    'convolved, side, products',
    [(lambda x, kernel: convolve(x, kernel, (1, 1), 'SAME'), 1, {'cpu'}), (convolve_transposed, 2, {'cpu', 'cuda'})],
)
def test_platforms_get_products_of_matrices_or_convolutions(convolved, side, products):
    x, kernel = draw(1, 64, 64, 32, seed=0), draw(side, side, 32, 32, seed=1)

    def gradients(x, kernel):
        result, pull = jax.vjp(convolved, x, kernel)
        return pull(result)

    for function in (convolved, gradients):
        for platform in ('cpu', 'cuda', 'tpu'):
            expected = 'dot_general' if platform in products else 'convolution'
            assert operations(function, platform, x, kernel) == {expected}


def test_other_data_types_take_xlas_convolution():
    x, kernel = jnp.asarray(draw(1, 64, 64, 32, seed=0)), jnp.asarray(draw(1, 1, 32, 32, seed=1))
    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert operations(lambda x, kernel: convolve(x, kernel, (1, 1), 'SAME'), 'cpu', *half) == {'convolution'}
    assert convolve(*half, (1, 1), 'SAME').dtype == jnp.bfloat16


def test_string_padding_is_that_of_xla():
    x, kernel = draw(2, 9, 6, 3, seed=0), draw(3, 3, 3, 4, seed=1)
    for padding in ('SAME', 'VALID'):
        for stride, dilation in ((1, 1), (2, 1), (1, 2)):
            arguments = dict(rhs_dilation=(dilation, dilation), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
            expected = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **arguments)
            ours = convolve(x, kernel, (stride, stride), padding, **arguments)
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_layers_have_the_parameters_and_results_of_flax():
    x = draw(2, 6, 5, 4, seed=0)
    pairs = [
        (Conv(3, (3, 3), padding=1), nn.Conv(3, (3, 3), padding=1)),
        (ConvTranspose(3, 2), nn.ConvTranspose(3, (2, 2), (2, 2), kernel_init=nn.initializers.he_normal())),
    ]
    for ours, flax in pairs:
        variables, expected = (module.init(jax.random.key(0), x) for module in (ours, flax))
        jax.tree.map(np.testing.assert_array_equal, variables, expected)

        def loss(variables, x, module):
            return (jnp.sin(module.apply(variables, x)) ** 2).sum()

        results = [jax.value_and_grad(loss, argnums=(0, 1))(variables, x, module) for module in (ours, flax)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


def test_replicas_have_kernels_of_their_own():
    x, kernels = draw(2, 1, 32, 32, 32, seed=0), draw(2, 3, 3, 32, 48, seed=1)

    def gradients(x, kernel):
        result, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, (1, 1), [(1, 1), (1, 1)]), x, kernel)
        return result, pull(result)

    together = jax.jit(jax.vmap(gradients))(x, kernels)
    alone = jax.tree.map(lambda *leaves: np.stack(leaves), *(jax.jit(gradients)(*pair) for pair in zip(x, kernels)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), together, alone)


def test_all_convolutions_of_the_package_can_be_fast():
    files = [
        path for path in pathlib.Path(ROOT, 'detzoo').rglob('*.py') if path.name not in ('conv.py', 'convolution.py')
    ]
    named = re.compile(r'nn\.Conv(Transpose)?\(|partial\(nn\.Conv|conv_general_dilated\(|conv_transpose\(')
    assert len(files) > 50 and not [path.name for path in files if named.search(path.read_text('utf-8'))]
    assert convolution.convolve is Conv.keywords['conv_general_dilated']
