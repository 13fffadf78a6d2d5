"""Losses: per-element, unreduced; and the one way in which all detectors normalise their sums."""

import chex
import jax
import jax.numpy as jnp

from detzoo.types import Array


def sigmoid_focal(logits: Array, targets: Array, *, gamma: float, alpha: float | None) -> Array:
    """Computes the focal loss -alpha_t (1 - p_t)^gamma log(p_t) per element (1708.02002, equation 5).

    Both factors are taken from the logit, 1 - p_t = sigmoid(-z) = exp(-softplus(z)), so that the loss and its gradient
    are finite for any logit and any gamma >= 0. With gamma = 0 and alpha = None it is the binary cross-entropy.

    Args:
        logits: [...] float.
        targets: [...] bool, or 0 and 1.
        gamma: the focusing parameter, >= 0.
        alpha: the weight of positives in 0..1, negatives get 1 - alpha; None weighs both with 1.

    Returns:
        [...] float, >= 0.
    """
    chex.assert_equal_shape([logits, targets])
    positive = targets.astype(bool)
    z = jnp.where(positive, logits, -logits)  # the logit of the true answer
    loss = jnp.exp(-gamma * jax.nn.softplus(z)) * jax.nn.softplus(-z)
    return loss if alpha is None else loss * jnp.where(positive, alpha, 1 - alpha)


def smooth_l1(predictions: Array, targets: Array, *, beta: float) -> Array:
    """Computes the smooth L1 loss per element: 0.5 d^2 / beta where |d| < beta, |d| - 0.5 beta beyond (1504.08083, eq. 3).

    Args:
        predictions: [...] float.
        targets: [...] float.
        beta: where the parabola ends, >= 0; 0 is the L1 loss.

    Returns:
        [...] float, >= 0.
    """
    chex.assert_equal_shape([predictions, targets])
    difference = predictions - targets
    difference *= jnp.sign(difference)  # unlike jnp.abs, with the slope 0 where a prediction is right
    if beta == 0:
        return difference
    return jnp.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def normalizer(count: Array, axis_name: str | None) -> Array:
    """Turns a device's count into what its sums are divided by, so that any number of devices trains alike.

    Dividing the sums of each device by max(1, total count) / devices and averaging over devices equals one big batch:
    mean_d(sum_d / (N / D)) = sum_d(sum_d) / N. A local mean would weigh a positive by the device it happened to be on.

    Args:
        count: [] int or float, what this device counts (positives, say).
        axis_name: the mapped axis of the devices, or None for a single one.

    Returns:
        [] float32, > 0.
    """
    chex.assert_rank(count, 0)
    count = jnp.asarray(count, jnp.float32)
    if axis_name is None:
        return jnp.maximum(count, 1)
    return jnp.maximum(jax.lax.psum(count, axis_name), 1) / jax.lax.axis_size(axis_name)
