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
        if key not in known and key not in parameters:  # a group may be None as a whole
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
