"""What the segmenters share: labels of pixels from a batch of objects, the loss over them, enlarged logits, dropout.

batch -> `paint_batch` -> rows of objects [B, H, W] -> labels -> `mean_cross_entropy` of logits [B, H, W, K + 1]
logits of a coarse grid -> `enlarge` -> logits of the canvas -> softmax
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from detzoo.core import losses, semantic
from detzoo.core.matching import IGNORE
from detzoo.types import Array, Batch


def paint_batch(batch: Batch) -> Array:
    """Paints the objects of each image: [B, H, W] int32, see `semantic.paint`."""
    return jax.vmap(partial(semantic.paint, canvas=batch.inputs.images.shape[1:3]))(batch.gt, batch.inputs.window)


def labels_of(rows: Array, batch: Batch, num_classes: int) -> Array:
    """Looks up the classes of painted pixels: [B, H, W] int32, 0..K-1, K for background, or IGNORE."""
    return jax.vmap(partial(semantic.pixel_labels, background=num_classes))(rows, batch.gt)


def mean_cross_entropy(logits: Array, labels: Array, axis_name: str | None, weights: Array | float = 1.0) -> Array:
    """Averages the cross-entropy over the labelled pixels of the images on all devices.

    Args:
        logits: [B, H, W, K + 1].
        labels: [B, H, W], see `labels_of`.
        axis_name: the mapped axis of the devices, or None.
        weights: [B, H, W], the weight of each pixel. The sum is divided by the number of pixels, whatever their weights.
    """
    total = (weights * semantic.pixel_cross_entropy(logits, labels)).sum()
    return total / losses.normalizer((labels != IGNORE).sum(), axis_name)


def accuracy(logits: Array, labels: Array, axis_name: str | None) -> Array:
    """Computes the share of labelled pixels whose class has the largest logit; arguments are those of `mean_cross_entropy`."""
    return (logits.argmax(axis=-1) == labels).sum() / losses.normalizer((labels != IGNORE).sum(), axis_name)


def enlarge(x: Array, canvas: tuple[int, int]) -> Array:
    """Interpolates [B, h, w, C] linearly to [B, *canvas, C]: cells are areas, and the border's value goes on to the edge."""
    return x if x.shape[1:3] == tuple(canvas) else jax.image.resize(x, (len(x), *canvas, x.shape[-1]), 'linear')


def pad_to_multiple(x: Array, divisor: int) -> Array:
    """Pads images [B, H, W, C] with zeros at the bottom and on the right, so that their sides are multiples of a number."""
    return jnp.pad(x, ((0, 0), *((0, -size % divisor) for size in x.shape[1:3]), (0, 0)))


def image_keys(rng: Array, batch: Batch) -> Array:
    """Makes a key for each image, [B], which depends on the image's id and not on its place in the batch."""
    return jax.vmap(partial(jax.random.fold_in, rng))(batch.image_id)


def drop(x: Array, keys: Array | None, rate: float) -> Array:
    """Zeroes a share of the values of [B, h, w, C] and scales up the others; keys: [B], None for none."""
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(partial(jax.random.bernoulli, p=1 - rate, shape=x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def check_doubling(strides: Sequence[int]) -> None:
    """Refuses strides of feature maps of which one is not twice the one before.

    Raises:
        ValueError: there is none, or one is not.
    """
    if not strides or any(coarser != 2 * finer for finer, coarser in itertools.pairwise(strides)):
        raise ValueError(f'backbone_strides is {strides}: each must be twice the one before it')
