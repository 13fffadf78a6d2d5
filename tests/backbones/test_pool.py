"""Max pooling: on a CPU the same values and gradients as XLA's, to the last bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.backbones.pool import max_pool

# (size, stride, padding): those of the project (ResNet, darknet and VGG, VGG, SSD, the heads of YOLO), and one with a gap.
WINDOWS = (3, 2, 1), (2, 2, 'SAME'), (2, 2, 'VALID'), (3, 1, 'SAME'), (2, 1, 'SAME'), (2, 3, 'VALID')


def with_gradient(pool):
    """A function of x and the gradient of the output: the output, and the gradient of x."""

    def both(x, gradient):
        y, back = jax.vjp(pool, x)
        return y, back(gradient)[0]

    return jax.jit(both)


def pools(size, stride, padding):
    """Ours and flax's."""
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    plain = with_gradient(lambda x: nn.max_pool(x, (size, size), (stride, stride), pads))
    return with_gradient(lambda x: max_pool(x, size, stride, padding)), plain


def whole_numbers(shape, low, high, seed=0):
    return np.random.RandomState(seed).randint(low, high, shape).astype(np.float32)


@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('size', [(6, 8), (7, 5)], ids=str)
def test_max_pool_equals_xlas_to_the_last_bit(window, size):
    # Whole numbers are often equal. Of the images one is as after a ReLU, one is negative, one has infinite cells.
    ours, plain = pools(*window)
    x = whole_numbers((3, *size, 4), -3, 4)
    x[0], x[1], x[2] = np.maximum(x[0], 0), x[1] - 9, np.where(x[2] < 2, -np.inf, x[2])
    shape = jax.eval_shape(lambda x: max_pool(x, *window), x).shape
    gradient = np.random.RandomState(1).randn(*shape).astype(np.float32)
    y, x_gradient = plain(x, gradient)
    np.testing.assert_array_equal(ours(x, gradient)[0], y)
    np.testing.assert_array_equal(ours(x, gradient)[1], x_gradient)
    assert len(set(np.unique(x_gradient)) - {0}) > 10


@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_max_pool_keeps_the_dtype_and_its_bits(dtype):
    with jax.enable_x64(True):
        ours, plain = pools(3, 2, 1)
        # Sums of whole numbers are exact, in whatever precision XLA adds them.
        x, gradient = whole_numbers((2, 9, 8, 3), 0, 4), whole_numbers((2, 5, 4, 3), -9, 9)
        if dtype == 'float64':
            x, gradient = x + 2.0**-40, gradient + 2.0**-40
        x, gradient = jnp.array(x, dtype), jnp.array(gradient, dtype)
        for found, expected in zip(ours(x, gradient), plain(x, gradient), strict=True):
            assert found.dtype == expected.dtype == dtype
            np.testing.assert_array_equal(found, expected)


def test_max_pool_gives_the_gradient_to_the_first_maximum():
    # Windows of 2x2: all equal; the maximum twice, in the second row's first cell and its second.
    x = np.float32([[5, 5, 0, 1], [5, 5, 2, 2]])[None, :, :, None]
    y, gradient = pools(2, 2, 'VALID')[0](x, np.float32([7, 8]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(y.ravel(), [5, 2])
    np.testing.assert_array_equal(gradient[0, ..., 0], [[7, 0, 0, 0], [0, 0, 8, 0]])


def test_max_pool_can_be_mapped():
    x = whole_numbers((2, 3, 7, 7, 4), 0, 5)
    gradient = whole_numbers((2, 3, 4, 4, 4), -9, 9)
    ours, _ = pools(3, 2, 1)
    found = jax.vmap(ours)(x, gradient)
    expected = [np.stack(parts) for parts in zip(*map(ours, x, gradient))]
    jax.tree.map(np.testing.assert_array_equal, list(found), expected)


def test_max_pool_leaves_accelerators_xlas_own_gradient():
    ours, _ = pools(2, 2, 'SAME')
    traced = ours.trace(np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 2, 2, 2), np.float32))
    scattered = {
        name: 'select_and_scatter' in traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'tpu')
    }
    assert scattered == {'cpu': False, 'tpu': True}
