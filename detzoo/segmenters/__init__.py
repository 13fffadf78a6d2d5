"""The segmenters, each one file: `SEGMENTERS` names their `make` functions."""

from typing import Any

from detzoo.detectors.network import check_arguments
from detzoo.segmenters import deeplab, fcn, unet
from detzoo.types import Segmenter

SEGMENTERS = {
    'deeplab': deeplab.make,
    'fcn': fcn.make,
    'unet': unet.make,
}


def make_segmenter(name: str, **kwargs: Any) -> Segmenter:
    """Makes a segmenter by its name.

    Args:
        name: a key of SEGMENTERS.
        **kwargs: the keyword arguments of its `make`.

    Returns:
        the Segmenter.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an unknown keyword argument, or key of a group of them; the message names the nearest known one.
    """
    if name not in SEGMENTERS:
        raise ValueError(f'unknown segmenter {name!r}: {", ".join(SEGMENTERS)} are known')
    check_arguments(name, SEGMENTERS[name], kwargs)
    return SEGMENTERS[name](**kwargs)
