"""What all detectors and segmenters do with their network: draw its variables, and run it on inputs."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.backbones.conv import Conv
from detzoo.core import box_coding, images
from detzoo.core.postprocess import Candidates
from detzoo.errors import nearest
from detzoo.types import Array, Inputs, ModelState, Params

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Arguments(dict):
    """Arguments of a function with their defaults: a group of a config's keys.

    make: the function, whose annotations tell what each may be.
    """

    def __init__(self, make: Callable, defaults: Mapping[str, Any]):
        super().__init__(defaults)
        self.make = make

    def __or__(self, changes: Mapping[str, Any]) -> 'Arguments':
        """Changes defaults."""
        return Arguments(self.make, {**self, **changes})


def arguments_of(make: Callable) -> Arguments:
    """Lists the arguments of a function that have defaults."""
    parameters = inspect.signature(make).parameters.values()
    return Arguments(make, {x.name: x.default for x in parameters if x.default is not x.empty})


def with_arguments_of(inner: Callable) -> Callable[[Callable], Callable]:
    """Makes a decorator for a function that hands its `**kwargs` on: its signature lists the keywords of `inner` too.

    Configs take their keys from the signature of a detector's `make`. So an argument list is written once, where it is used.

    Args:
        inner: the function that gets the `**kwargs`.
    """

    def decorate(outer: Callable) -> Callable:
        own = [x for x in inspect.signature(outer).parameters.values() if x.kind is not x.VAR_KEYWORD]
        handed_on = [x for x in inspect.signature(inner).parameters.values() if x.kind is x.KEYWORD_ONLY]
        outer.__signature__ = inspect.signature(outer).replace(parameters=[*own, *handed_on])
        return outer

    return decorate


def check_arguments(
    name: str, make: Callable, arguments: Mapping[str, Any], moved: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuses arguments that a model does not take.

    Args:
        name: the model's name, for the message.
        make: the function that makes it.
        arguments: keyword arguments for it; groups of arguments are mappings.
        moved: {an argument of an older detzoo: what is set instead}.

    Raises:
        TypeError: an argument, or a key of a group of them, is unknown; the message names the nearest known one.
    """
    parameters = inspect.signature(make).parameters
    known = _flat({key: parameter.default for key, parameter in parameters.items()})
    for key in _flat(arguments):
        if any(argument.startswith(f'{key}.') for argument in known) and arguments[key] is not None:
            raise TypeError(
                f'{key} of {name} is {arguments[key]!r}: it must be a mapping, with arguments like {key}.name'
            )
        if key not in known and key not in parameters:  # a group may be None as a whole
            if key in moved:
                raise TypeError(f'{name} takes no argument {key!r} any more: set {moved[key]}')
            raise TypeError(
                f'{name} takes no argument {key!r}: the nearest is {nearest(key, known)!r} (all: {", ".join(known)})'
            )


def _flat(arguments: Mapping[str, Any]) -> list[str]:
    """The names of arguments; of one that is a group of them, 'group.name' of each."""
    return [
        name
        for key, value in arguments.items()
        for name in ([f'{key}.{inner}' for inner in value] if hasattr(value, 'keys') else [key])
    ]


def prior_bias(probability: float) -> float:
    """Computes the logit of a probability: the bias with which a sigmoid gives it before anything is learnt.

    RetinaNet, 1708.02002, section 4.1. The logits of 0 and 1 are infinite.
    """
    if probability in (0, 1):
        return math.copysign(math.inf, probability - 0.5)
    return -math.log((1 - probability) / probability)


def init(network: nn.Module, rng: Array, canvas: tuple[int, int]) -> tuple[Params, ModelState]:
    """Draws the parameters and the state of a network for images of a canvas (H, W)."""
    variables = dict(network.lazy_init(rng, jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32), train=False))
    return variables.pop('params'), variables


def cell_output(num_anchors: int, num_classes: int, prior_probability: float, dtype: Any) -> partial:
    """Binds a YOLO's output convolution: for each of a cell's n anchors tx, ty, tw, th, objectness, class logits.

    Args:
        num_anchors: n.
        num_classes: K.
        prior_probability: probability of an object before training.
        dtype: data type of the computation.

    Returns:
        a constructor that takes `name`; it makes n * (5 + K) values a cell, anchor by anchor.
    """
    bias = np.zeros((num_anchors, 5 + num_classes), np.float32)
    bias[:, 4] = prior_bias(prior_probability)
    return partial(
        Conv,
        bias.size,
        (1, 1),
        kernel_init=nn.initializers.normal(0.01),
        dtype=dtype,
        bias_init=lambda key, shape, dtype=jnp.float32: jnp.asarray(bias.reshape(shape), dtype),
    )


def decode_candidates(outputs: Array, anchors: Array, strides: Array, candidates: Candidates) -> Array:
    """Decodes the boxes of candidates alone: [T, 4].

    Args:
        outputs: [A, 5 + K], a YOLO's outputs, box deltas first.
        anchors: [A, 4].
        strides: [A, 2], width and height of the cells, pixels.
        candidates: T of the A anchors.
    """
    return box_coding.decode_cells(*(jnp.asarray(x)[candidates.row] for x in (outputs[:, :4], anchors, strides)))


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
    pad_value: float = 0.0,
    **kwargs: Any,
) -> tuple[Any, ModelState]:
    """Normalises images and runs the network.

    Args:
        network: network that is called with images [B, H, W, 3], `train` and kwargs.
        params, model_state: variables of the network.
        inputs: B images with their windows.
        train: whether batch statistics are taken from the batch.
        mean, std, bgr, pad_value: arguments of `images.normalize`.

    Returns:
        what the network returns, and the new model_state.
    """
    normalize = partial(images.normalize, mean=mean, std=std, bgr=bgr, pad_value=pad_value)
    x = jax.vmap(normalize)(*inputs[:2])
    return network.apply({'params': params, **model_state}, x, train=train, mutable=list(model_state), **kwargs)
