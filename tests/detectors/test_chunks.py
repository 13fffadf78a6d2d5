"""Heads on valid rows only: the results are those of all rows at once, and chunks without a valid row are skipped."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import OPTIMIZED, TINY_MASK_RCNN_V2

from detzoo.costs.counts import multiply_adds
from detzoo.detectors import chunks, make_detector
from detzoo.types import Inputs

ROWS, SIZE = 11, 4  # three chunks of 4 rows, the last with a row of padding
X = np.random.RandomState(0).uniform(1, 2, (ROWS, 3)).astype(np.float32)
MATRIX = np.random.RandomState(1).uniform(1, 2, (3, 5)).astype(np.float32)


def product(x, bias):
    return {'sum': x @ MATRIX + bias[:, None], 'first': x[:, 0]}


mapped = functools.partial(chunks.map_valid, product, (X, X[:, 1]), size=SIZE)
compiled = jax.jit(mapped)
batched = jax.jit(jax.vmap(mapped))


@pytest.mark.parametrize('rows', [[], [0], range(3), range(4), range(5), range(11), [1, 10], [9]], ids=str)
def test_map_valid_runs_the_chunks_that_have_a_valid_row(rows):
    valid = np.isin(np.arange(ROWS), rows)
    run = np.repeat([valid[i : i + SIZE].any() for i in range(0, ROWS, SIZE)], SIZE)[:ROWS]
    for found in (
        compiled(valid),
        mapped(jnp.asarray(valid)),
        jax.tree.map(lambda x: x[1], batched(np.stack([~valid, valid]))),
    ):
        for name, expected in product(X, X[:, 1]).items():
            np.testing.assert_allclose(
                found[name], np.where(run.reshape(-1, *[1] * (expected.ndim - 1)), expected, 0), rtol=1e-6
            )


def test_gradients_of_chunks_are_those_of_the_valid_rows():
    valid = np.isin(np.arange(ROWS), [1, 9])  # the second chunk is skipped

    def loss(x, matrix, size):
        found = chunks.map_valid(lambda x: jnp.sin(x @ matrix), (x,), valid, size=size)
        return jnp.where(valid[:, None], found, 0).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    for found, expected in zip(gradient(X, MATRIX, SIZE), gradient(X, MATRIX, ROWS)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_map_valid_has_no_loop_for_few_rows():
    found = chunks.map_valid(product, (X, X[:, 1]), np.zeros(ROWS, bool), size=ROWS)
    assert (found['sum'] > 0).all()


@pytest.mark.parametrize('size', [5, 4, 1])
def test_map_valid_costs_all_rows(size):
    """In a third of 12 rows, a quarter, or row by row: the places are counted, not the valid rows, and once."""
    function = functools.partial(chunks.map_valid, lambda x: x @ MATRIX, size=size)
    assert multiply_adds(function, (np.ones((12, 3), np.float32),), np.zeros(12, bool)) == 12 * 3 * 5


class Normed(nn.Module):
    """A layer, and a batch norm that is called as the heads are."""

    @nn.compact
    def __call__(self, x, valid, *, train):
        x = nn.Dense(4)(x)
        return nn.BatchNorm(use_running_average=not train)(x) if valid is None else 0 * x


class Whole(nn.Module):
    """A network with the layer as a part."""

    def setup(self):
        self.part = Normed()

    def __call__(self, x, valid):
        return chunks.map_valid(chunks.without_training(self.part), (x,), valid, size=SIZE)

    def plain(self, x):
        return self.part(x, None, train=False)


def test_without_training_runs_a_bound_module_in_a_loop():
    variables = Whole().init(jax.random.key(0), X, method='plain')
    variables['batch_stats']['part']['BatchNorm_0']['mean'] += 0.5
    expected = Whole().apply(variables, X, method='plain')
    found, state = Whole().apply(variables, X, np.ones(ROWS, bool), mutable=['batch_stats'])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state['batch_stats'], variables['batch_stats'])

    def loss(params, *arguments, **kwargs):
        return jnp.sin(Whole().apply({**variables, 'params': params}, *arguments, **kwargs)).sum()

    gradients = jax.grad(loss)(variables['params'], X, np.ones(ROWS, bool))
    expected = jax.grad(loss)(variables['params'], X, method='plain')
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients, expected)


def test_mask_rcnn_predicts_in_chunks_what_it_predicts_at_once(monkeypatch):
    """Given proposals with holes; one image has none."""
    random = np.random.RandomState(0)
    corner = random.uniform(0, 40, (3, 12, 2))
    proposals = np.concatenate([corner, corner + random.uniform(8, 24, corner.shape)], axis=-1).astype(np.float32)
    valid = np.zeros((3, 12), bool)
    valid[0, [1, 7]], valid[1] = True, True
    images = random.randint(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    inputs = Inputs(images, np.tile(np.float32([0, 0, 64, 64]), (3, 1)), proposals, valid)
    detector = make_detector(**TINY_MASK_RCNN_V2, num_classes=2)
    variables = jax.jit(functools.partial(detector.init, canvas=(64, 64)), compiler_options=OPTIMIZED)(
        jax.random.key(0)
    )

    def predict(boxes, masks):
        monkeypatch.setattr(chunks, 'BOXES', boxes)
        monkeypatch.setattr(chunks, 'MASKS', masks)
        function = jax.jit(lambda *arguments: detector.predict(*arguments), compiler_options=OPTIMIZED)
        return function(*variables, inputs)

    expected, found = predict(1000, 1000), predict(5, 4)
    counts = expected.valid.sum(axis=1).tolist()
    assert 2 <= counts[0] < 10 == counts[1] and counts[2] == 0
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    assert (found.masks[found.valid] > 0).all() and not found.masks[~found.valid].any()
