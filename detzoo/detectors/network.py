"""What all detectors do with their network: draw its variables, and run it on inputs."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.core import images
from detzoo.types import Array, Inputs, ModelState, Params

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def init(network: nn.Module, rng: Array, canvas: tuple[int, int]) -> tuple[Params, ModelState]:
    """Draws the parameters and the state of a network for images of a canvas (H, W)."""
    variables = dict(network.lazy_init(rng, jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32), train=False))
    return variables.pop('params'), variables


def apply(
    network: nn.Module,
    params: Params,
    model_state: ModelState,
    inputs: Inputs,
    *,
    train: bool,
    mean: Sequence[float],
    std: Sequence[float],
    bgr: bool = False,
    **kwargs: Any,
) -> tuple[Any, ModelState]:
    """Normalises images and runs the network.

    Args:
        network: called with images [B, H, W, 3], `train` and kwargs.
        params, model_state: its variables.
        inputs: B images with their windows.
        train: whether batch statistics are taken from the batch.
        mean, std, bgr: of `images.normalize`.

    Returns:
        what the network returns, and the new model_state.
    """
    x = jax.vmap(lambda image, window: images.normalize(image, window, mean=mean, std=std, bgr=bgr))(*inputs[:2])
    return network.apply({'params': params, **model_state}, x, train=train, mutable=list(model_state), **kwargs)
