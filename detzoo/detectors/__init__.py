"""The detectors, each one file: `DETECTORS` names their `make` functions."""

import difflib
import inspect
from typing import Any

from detzoo.detectors import retinanet, ssd, yolo_v1, yolo_v2, yolo_v3
from detzoo.types import Detector

DETECTORS = {
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
        TypeError: for an unknown keyword argument; the message names the nearest known one.
    """
    if name not in DETECTORS:
        raise ValueError(f'unknown detector {name!r}: {", ".join(DETECTORS)} are known')
    known = list(inspect.signature(DETECTORS[name]).parameters)
    for key in kwargs:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, cutoff=0)
            raise TypeError(f'{name} takes no argument {key!r}: the nearest is {nearest[0]!r} (all: {", ".join(known)})')
    return DETECTORS[name](**kwargs)
