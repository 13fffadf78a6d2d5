"""COCO's `segmentation` as one compressed RLE of the whole image; or why it cannot be read.

    read_mask -> polygons (lists of lists, a flat list, lists of points), or RLE of either kind (lists of runs, text)

Polygons become the pixels that pycocotools gives them: what leaves the image is cut off there. A polygon inside the image
that is too thin for any pixel is an empty mask, as in COCO's own annotations.
"""

from typing import Any, NamedTuple

import hotcoco.mask
import pycocotools.mask

from detzoo.data.readers.prepare import TOLERANCE
from detzoo.data.readers.values import is_flat, numbers, whole_numbers

_LONGEST = 2**22  # pixels along a mask's outline: pycocotools takes memory for each of them


class Mask(NamedTuple):
    """What `read_mask` read.

    rle: compressed RLE {'size': [h, w], 'counts': bytes}; None if there is no mask, or none that can be read.
    left_out: kinds of what was left out of the annotation.
    """

    rle: dict[str, Any] | None
    left_out: tuple[str, ...] = ()


class _Unreadable(ValueError):
    """A mask that cannot be read; the message is the kind of its fault."""


def read_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Reads the `segmentation` of an object in an image of that size.

    Args:
        segmentation: any value of JSON.
        height, width: pixels of the image.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        (segmentation,) = segmentation
    if segmentation in (None, '', [], {}):
        return Mask(None)
    try:
        if isinstance(segmentation, list):
            return _from_polygons(segmentation, height, width)
        if isinstance(segmentation, dict):
            return Mask(_from_runs(segmentation, height, width))
        raise _Unreadable('neither polygons nor RLE')
    except _Unreadable as fault:
        return Mask(None, (f'masks ({fault})',))


def _from_polygons(segmentation: list[Any], height: int, width: int) -> Mask:
    """Draws polygons. Beside a good one, those of less than three points are left out: no pixel lies within them."""
    polygons = [_corners(polygon) for polygon in ([segmentation] if _is_one(segmentation) else segmentation)]
    good = [polygon for polygon in polygons if len(polygon) >= 6]
    short = [
        f'polygon of {len(polygon)} numbers' if polygon else 'empty polygon' for polygon in polygons if len(polygon) < 6
    ]
    if not good:
        raise _Unreadable(short[0])
    if max(max(map(abs, polygon)) for polygon in good) > _LONGEST or sum(map(_length, good)) > _LONGEST:
        raise _Unreadable(f'polygons of more than {_LONGEST} pixels')
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(good, height, width))
    if not pycocotools.mask.area(rle) and not all(_is_inside(polygon, height, width) for polygon in good):
        raise _Unreadable('polygons outside the image')
    return Mask(rle, tuple(f'parts of masks ({kind})' for kind in short))


def _is_one(segmentation: list[Any]) -> bool:
    """Tells whether this is a single polygon, not a list of polygons: numbers or points."""
    return is_flat(segmentation) or _are_points(segmentation)


def _are_points(values: list[Any]) -> bool:
    return all(isinstance(point, list) and len(point) == 2 and is_flat(point) for point in values)


def _corners(polygon: Any) -> list[float]:
    """Reads a polygon: x, y, x, y, ..., or a list of points."""
    if isinstance(polygon, list) and polygon and _are_points(polygon):
        polygon = [coordinate for point in polygon for coordinate in point]
    corners = numbers(polygon)
    if corners is None:
        raise _Unreadable('polygon of other things than finite numbers')
    if len(corners) % 2:
        raise _Unreadable('polygon of an odd count of numbers')
    return corners


def _length(polygon: list[float]) -> float:
    """Returns an upper bound on the pixels along a polygon's outline."""
    xs, ys = polygon[::2], polygon[1::2]
    return sum(abs(xs[i] - xs[i - 1]) + abs(ys[i] - ys[i - 1]) + 1 for i in range(len(xs)))


def _is_inside(polygon: list[float], height: int, width: int) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    return min(polygon) >= -TOLERANCE and max(xs) <= width + TOLERANCE and max(ys) <= height + TOLERANCE


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Checks an RLE and compresses it."""
    if whole_numbers(segmentation.get('size')) != [height, width]:
        raise _Unreadable("RLE of another size than the image's")
    counts = segmentation.get('counts')
    runs = whole_numbers(counts) if isinstance(counts, list) else counts
    try:  # pycocotools may crash on bad counts; hotcoco refuses them
        rle = hotcoco.mask.frPyObjects({'size': [height, width], 'counts': runs}, height, width)
    except (TypeError, ValueError):
        rle = None
    misread = isinstance(counts, str) and rle is not None and rle['counts'] != counts.encode()
    if rle is None or misread or not _fills(rle['counts'], height * width):
        raise _Unreadable('RLE whose runs do not fill the image')
    return rle


def _fills(counts: bytes, pixels: int) -> bool:
    """Tells whether the runs of a compressed RLE, which has at most so many pixels, have as many: one less is too few."""
    try:
        hotcoco.mask.area({'size': [1, pixels - 1], 'counts': counts})
    except ValueError:
        return True
    return False
