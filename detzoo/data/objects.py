"""Objects on a canvas: each knows its record, the way back to it, and what lies over it.

    Object -> pixels_of:     its pixels of the canvas
           -> fit_box:       its box, tight around what is seen of these
           -> object_masks:  what is seen, in the frames of the boxes: what detectors learn

Nothing is sampled before it is needed: a mask stays a run-length code of its record's image until then.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask

from detzoo.data.augment import MIN_SIDE, MIN_VISIBLE
from detzoo.data.geometry import mask_in_frame
from detzoo.errors import DataError

ON_CANVAS = np.eye(3)[:2]  # in place of `to_record`, for masks of the canvas itself


class Object(NamedTuple):
    """An object on a canvas.

    box: [4] float64 xyxy, canvas pixels.
    label: class, 0..K-1.
    crowd: whether it is a crowd, or counts as one.
    record: its record, see `records.Records`.
    row: its index in the record.
    to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image.
    visible: share of it that cuts have left, 0..1.
    cut: whether something was cut off.
    cover: [H, W] bool, True where something else lies over it; or None.
    """

    box: np.ndarray
    label: int
    crowd: bool
    record: Mapping[str, Any]
    row: int
    to_record: np.ndarray
    visible: float = 1.0
    cut: bool = False
    cover: np.ndarray | None = None


def has_mask(thing: Object) -> bool:
    """Tells whether an object's record has its mask."""
    return bool(thing.record['segmentations'][thing.row])


def sample_mask(thing: Object, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Samples an object's mask, as if nothing lay over it, in the frame of a box.

    Args:
        thing: an object; without a mask it fills its own box.
        box: [4] xyxy, canvas pixels.
        size: (columns, rows) of the frame.

    Returns:
        [rows, columns] bool.
    """
    if not has_mask(thing):
        x, y = (low + (np.arange(n) + 0.5) * (high - low) / n for n, low, high in zip(size, box[:2], box[2:]))
        x1, y1, x2, y2 = thing.box
        return ((y > y1) & (y < y2))[:, None] & (x > x1) & (x < x2)
    record = thing.record
    code = {'size': [record['height'], record['width']], 'counts': record['segmentations'][thing.row]}
    return mask_in_frame(pycocotools.mask.decode(code), box, thing.to_record, size)


def place_of(thing: Object) -> tuple[slice, slice]:
    """Returns the rows and the columns of the canvas that an object's box touches."""
    (x1, y1), (x2, y2) = np.floor(thing.box[:2]).astype(int).tolist(), np.ceil(thing.box[2:]).astype(int).tolist()
    return slice(y1, y2), slice(x1, x2)


def pixels_of(thing: Object) -> np.ndarray:
    """Tells which pixels of `place_of` an object are its own, as if nothing lay over it: [rows, columns] bool."""
    rows, columns = place_of(thing)
    box = np.array([columns.start, rows.start, columns.stop, rows.stop])
    return sample_mask(thing, box, (columns.stop - columns.start, rows.stop - rows.start))


def fit_box(thing: Object) -> Object | None:
    """Makes the box of an object that is cut or covered tight around what is seen of it.

    A side moves only if it would by a pixel or more: the others keep their fractions of pixels.

    Returns:
        the object: a crowd if less than `MIN_VISIBLE` of it is seen; None if nothing is.
    """
    rows, columns = place_of(thing)
    is_covered = thing.cover is not None and thing.cover[rows, columns].any()
    if not (thing.cut or is_covered):
        return thing
    own = pixels_of(thing)
    seen = own & ~thing.cover[rows, columns] if is_covered else own
    if not seen.any():
        return None
    if not thing.cut and seen.sum() == own.sum():
        return thing
    (y,), (x,) = np.nonzero(seen.any(axis=1)), np.nonzero(seen.any(axis=0))
    tight = np.array([columns.start + x[0], rows.start + y[0], columns.start + x[-1] + 1, rows.start + y[-1] + 1])
    box = np.where(np.abs(tight - thing.box) < 1, thing.box, tight)
    if (box[2:] - box[:2] <= MIN_SIDE).any():
        return None
    visible = thing.visible * seen.sum() / own.sum()
    return thing._replace(box=box, visible=visible, crowd=thing.crowd or visible < MIN_VISIBLE)


def object_masks(things: Sequence[Object], size: int) -> np.ndarray | None:
    """Samples where objects are seen, in the frames of their boxes.

    Args:
        things: n objects. Crowds get empty masks, which are never used.
        size: S; 0 for no masks.

    Returns:
        [n, S, S] bool; None for size 0.

    Raises:
        DataError: an object has no mask; the message names the file and the annotation.
    """
    if not size:
        return None
    masks = np.zeros((len(things), size, size), bool)
    for i, thing in enumerate(things):
        if thing.crowd:
            continue
        if not has_mask(thing):
            record = thing.record
            raise DataError(
                f'{record["file_name"]}: annotation {record["annotation_ids"][thing.row]} has no mask, but data.mask_size '
                'asks for masks: set it to 0, choose a detector without masks, or prepare data with masks of all objects'
            )
        masks[i] = sample_mask(thing, thing.box, (size, size))
        if thing.cover is not None:
            masks[i] &= ~mask_in_frame(thing.cover, thing.box, ON_CANVAS, (size, size))
    return masks
