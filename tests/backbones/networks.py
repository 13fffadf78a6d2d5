"""What tests of backbones share: shapes of modules, counts of variables, random features."""

import jax
import jax.numpy as jnp
import numpy as np


def shapes_of(module, *inputs, **kwargs):
    """The shapes of outputs and variables, without computing anything."""
    inputs = [
        jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), x, is_leaf=lambda x: isinstance(x[0], int))
        for x in inputs
    ]
    return jax.eval_shape(lambda *x: module.init_with_output(jax.random.key(0), *x, **kwargs), *inputs)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def random_features(*shape, seed=0):
    rng = np.random.RandomState(seed)
    return (rng.normal(size=shape) * rng.uniform(0.5, 3, shape[-1]) + rng.uniform(-2, 2, shape[-1])).astype(np.float32)
