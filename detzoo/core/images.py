"""Images: pixels are normalised for a network."""

from collections.abc import Sequence

import chex
import jax.numpy as jnp

from detzoo.types import Array


def normalize(
    image: Array,
    window: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    bgr: bool = False,
    pad_value: float = 0.0,
) -> Array:
    """Subtracts the mean, divides by the standard deviation, and overwrites the pixels outside the window.

    They are overwritten after normalising: with zeros, the first convolution cannot tell them from its own zero padding.

    Args:
        image: [H, W, 3] uint8 or float32, RGB in 0..255.
        window: [4] float xyxy, where the image lies on the canvas.
        mean: mean of each channel, in the order in which the network reads them, in 0..255.
        std: standard deviation of each channel, likewise.
        bgr: whether the network reads BGR.
        pad_value: normalised value of the pixels outside the window.

    Returns:
        [H, W, 3] float32.
    """
    chex.assert_shape(image, (None, None, 3))
    height, width, _ = image.shape
    image = image.astype(jnp.float32)[..., ::-1] if bgr else image.astype(jnp.float32)
    image = (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
    y, x = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
    inside = ((y > window[1]) & (y < window[3]))[:, None] & ((x > window[0]) & (x < window[2]))[None, :]
    return jnp.where(inside[..., None], image, pad_value)
