"""The detectors, each one file: `DETECTORS` names their `make` functions."""

import inspect
from collections.abc import Mapping
from typing import Any

from detzoo.detectors import faster_rcnn, mask_rcnn, retinanet, ssd, yolo_v1, yolo_v2, yolo_v3
from detzoo.errors import nearest
from detzoo.types import Detector

DETECTORS = {
    'faster_rcnn': faster_rcnn.make,
    'mask_rcnn': mask_rcnn.make,
    'retinanet': retinanet.make,
    'ssd': ssd.make,
    'yolo_v1': yolo_v1.make,
    'yolo_v2': yolo_v2.make,
    'yolo_v3': yolo_v3.make,
}
# Arguments of an older detzoo, and what is given instead.
MOVED = {
    'depth': "backbone.name, like 'resnet18'",
    'stages': 'backbone_stride, 2 ** (stages - 1)',
    **{
        name: f'backbone.{name}'
        for name in ('width', 'norm', 'norm_epsilon', 'stride_in_1x1', 'fc6_dilation', 'reduced_tail')
    },
}


def make_detector(name: str, **kwargs: Any) -> Detector:
    """Makes a detector by its name.

    Args:
        name: a key of DETECTORS.
        **kwargs: the keyword arguments of its `make`.

    Returns:
        the Detector.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an unknown keyword argument, or key of a group of them; the message names the nearest known one.
    """
    if name not in DETECTORS:
        raise ValueError(f'unknown detector {name!r}: {", ".join(DETECTORS)} are known')
    parameters = inspect.signature(DETECTORS[name]).parameters
    known = _flat({key: parameter.default for key, parameter in parameters.items()})
    for key in _flat(kwargs):
        if any(argument.startswith(f'{key}.') for argument in known) and kwargs[key] is not None:
            raise TypeError(f'{key} of {name} is {kwargs[key]!r}: it must be a mapping, with arguments like {key}.name')
        if key not in known and key not in parameters:  # a group may be None as a whole
            if key in MOVED:
                raise TypeError(f'{name} takes no argument {key!r} any more: set {MOVED[key]}')
            raise TypeError(
                f'{name} takes no argument {key!r}: the nearest is {nearest(key, known)!r} (all: {", ".join(known)})'
            )
    return DETECTORS[name](**kwargs)


def _flat(arguments: Mapping[str, Any]) -> list[str]:
    """The names of arguments; of one that is a group of them, 'group.name' of each."""
    return [
        name
        for key, value in arguments.items()
        for name in ([f'{key}.{inner}' for inner in value] if hasattr(value, 'keys') else [key])
    ]
