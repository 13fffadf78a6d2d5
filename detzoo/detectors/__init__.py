"""The detectors, each one file: `DETECTORS` names their `make` functions."""

from typing import Any

from detzoo.detectors import (
    deepmask,
    faster_rcnn,
    mask_rcnn,
    mnc,
    rcnn,
    retinanet,
    sds,
    sharpmask,
    ssd,
    yolo_v1,
    yolo_v2,
    yolo_v3,
)
from detzoo.detectors.network import check_arguments
from detzoo.types import Detector

DETECTORS = {
    'deepmask': deepmask.make,
    'faster_rcnn': faster_rcnn.make,
    'mask_rcnn': mask_rcnn.make,
    'mnc': mnc.make,
    'rcnn': rcnn.make,
    'retinanet': retinanet.make,
    'sds': sds.make,
    'sharpmask': sharpmask.make,
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
    check_arguments(name, DETECTORS[name], kwargs, moved=MOVED)
    return DETECTORS[name](**kwargs)
