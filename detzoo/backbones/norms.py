"""The normalisation layers, which every network chooses by name."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

NORMS = ('batch_norm', 'frozen_batch_norm', 'group_norm')


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with four constant vectors, which live in the collection 'frozen' and are never trained.

    Detectors are usually fine-tuned with it: with a few large images per device, batch statistics are worse than ImageNet's.
    """

    epsilon: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., C]."""
        shape = x.shape[-1:]
        scale, bias, mean, var = (
            self.variable('frozen', name, init, shape).value
            for name, init in (('scale', jnp.ones), ('bias', jnp.zeros), ('mean', jnp.zeros), ('var', jnp.ones))
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


class PaddedBatchNorm(nn.Module):
    """Batch normalisation for training on a batch with padding rows, which its statistics leave out.

    Its variables are those of nn.BatchNorm, which is used for prediction.

    valid: [N] bool, the rows that count. If no row does, the running statistics are used, and do not change.
    """

    valid: jax.Array
    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [N, ..., C]."""
        vector = x.shape[-1:], jnp.float32
        scale, bias = (
            self.param('scale', nn.initializers.ones, *vector),
            self.param('bias', nn.initializers.zeros, *vector),
        )
        running = [
            self.variable('batch_stats', name, init, *vector) for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
        ]
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        kept = jnp.where(self.valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        sums = kept.sum(axis=range(x.ndim - 1)), (kept**2).sum(axis=range(x.ndim - 1)), self.valid.sum()
        if self.axis_name is not None:
            sums = jax.lax.psum(sums, self.axis_name)
        count = sums[2] * math.prod(x.shape[1:-1])
        mean, square = (total / jnp.maximum(count, 1) for total in sums[:2])
        batch = mean, jnp.maximum(square - mean**2, 0)
        mean, var = (jnp.where(count > 0, new, old.value) for new, old in zip(batch, running))
        if not self.is_initializing():
            for old, new in zip(running, (mean, var)):
                old.value = self.momentum * old.value + (1 - self.momentum) * new
        return ((x - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (1803.08494) in 32 groups, in fewer where the channels are not a multiple of 32."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., C]."""
        groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if x.shape[-1] % groups == 0)
        return nn.GroupNorm(num_groups=groups, epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)


def make_norm(
    name: str | None,
    *,
    train: bool,
    axis_name: str | None,
    dtype: Any,
    epsilon: float = 1e-5,
    valid: jax.Array | None = None,
) -> Callable[..., nn.Module] | None:
    """Makes the constructor of a network's normalisation layers.

    Args:
        name: one of NORMS, or None for no norm.
        train: whether batch statistics are taken from the batch and updated.
        axis_name: the mapped axis over which batch statistics are synchronised, or None.
        dtype: dtype of the computation; statistics are always float32.
        epsilon: number added to variances.
        valid: [N] bool, the rows of the batch that its statistics are taken from; None: all.

    Returns:
        A constructor that takes `name`, or None.

    Raises:
        ValueError: the name is unknown.
    """
    if name is None:
        return None
    if name == 'batch_norm' and train and valid is not None:
        return functools.partial(PaddedBatchNorm, valid, epsilon=epsilon, dtype=dtype, axis_name=axis_name)
    if name == 'batch_norm':
        return functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=epsilon,
            dtype=dtype,
            axis_name=axis_name if train else None,
        )
    if name == 'frozen_batch_norm':
        return functools.partial(FrozenBatchNorm, epsilon=epsilon, dtype=dtype)
    if name == 'group_norm':
        return functools.partial(GroupNorm, epsilon=epsilon, dtype=dtype)
    raise ValueError(f'unknown norm {name!r}: use one of {", ".join(NORMS)}')
