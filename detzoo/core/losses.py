"""Losses per element, without reduction, and the normalisation of their sums that all detectors share."""

import math

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.types import Array

IOU_LOSSES = ('giou', 'diou', 'ciou')


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
        beta: error at which the parabola ends, >= 0; 0 is the L1 loss.

    Returns:
        [...] float, >= 0.
    """
    chex.assert_equal_shape([predictions, targets])
    difference = predictions - targets
    difference *= jnp.sign(difference)  # unlike jnp.abs, this has slope 0 where a prediction is right
    if beta == 0:
        return difference
    return jnp.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def iou_loss(predictions: Array, targets: Array, *, kind: str) -> Array:
    """Computes 1 - IoU per box, plus a term that also pulls together boxes that do not overlap.

    'giou': the share of the enclosing box that neither covers (1902.09630, algorithm 1); 'diou': the squared distance of
    the centres over the squared diagonal of the enclosing box (1911.08287, equation 7); 'ciou': that, and a term for
    unlike shapes (equation 10), whose weight alpha carries no gradient.

    Args:
        predictions: [..., 4] float xyxy.
        targets: [..., 4] float xyxy, with width and height > 0.
        kind: one of IOU_LOSSES.

    Returns:
        [...] float, >= 0 and < 2 ('ciou': < 3); with a gradient that is finite for boxes of any size.
    """
    chex.assert_equal_shape([predictions, targets])
    iou = box_ops.iou(predictions, targets)
    hull_min = jnp.minimum(predictions[..., :2], targets[..., :2])
    hull = jnp.maximum(predictions[..., 2:], targets[..., 2:]) - hull_min  # [..., 2], > 0 as the targets are
    if kind == 'giou':
        union = box_ops.area(predictions) + box_ops.area(targets) - box_ops.intersection(predictions, targets)
        return 1 - iou + 1 - union / hull.prod(axis=-1)
    center1, size1 = jnp.split(box_ops.xyxy_to_cxcywh(predictions), 2, axis=-1)
    center2, size2 = jnp.split(box_ops.xyxy_to_cxcywh(targets), 2, axis=-1)
    loss = 1 - iou + ((center1 - center2) ** 2).sum(axis=-1) / (hull**2).sum(axis=-1)
    if kind == 'diou':
        return loss
    if kind != 'ciou':
        raise ValueError(f'kind is {kind!r}: use one of {", ".join(IOU_LOSSES)}')
    size1 = jnp.maximum(size1, 1e-6)
    angle = jnp.arctan2(size1[..., 0], size1[..., 1]) - jnp.arctan2(size2[..., 0], size2[..., 1])
    unlike = 4 / math.pi**2 * angle**2
    alpha = jax.lax.stop_gradient(unlike / jnp.maximum(1 - iou + unlike, 1e-7))
    return loss + alpha * unlike


def hard_negatives(negative_loss: Array, negative: Array, count: Array) -> Array:
    """Chooses the negatives of one image with the largest loss (SSD, 1512.02325, section 2.2, hard negative mining).

    Args:
        negative_loss: [A] float, the loss of each anchor as background.
        negative: [A] bool, the anchors that may be chosen.
        count: [] int, number of negatives to choose; if there are fewer, all are chosen.

    Returns:
        [A] bool; of equal losses the first are chosen.
    """
    chex.assert_equal_shape([negative_loss, negative])
    order = jnp.argsort(jnp.where(negative, -negative_loss, jnp.inf), stable=True)
    first = jnp.arange(len(order)) < count
    return negative & jnp.zeros_like(negative).at[order].set(first, unique_indices=True)


def normalizer(count: Array, axis_name: str | None) -> Array:
    """Turns a device's count into the divisor of its sums, so that training does not depend on the number of devices.

    Dividing the sums of each device by max(1, total count) / devices and averaging over devices equals one big batch:
    mean_d(sum_d / (N / D)) = sum_d(sum_d) / N. With local means, a positive's weight would depend on its device.

    Args:
        count: [] int or float, number of this device's samples (its positives, for example).
        axis_name: the mapped axis of the devices, or None for a single one.

    Returns:
        [] float32, > 0.
    """
    chex.assert_rank(count, 0)
    count = jnp.asarray(count, jnp.float32)
    if axis_name is None:
        return jnp.maximum(count, 1)
    return jnp.maximum(jax.lax.psum(count, axis_name), 1) / jax.lax.axis_size(axis_name)
