"""Proposals from outside, in place of those that a detector makes itself (Fast R-CNN, arXiv 1504.08083).

    `detzoo proposals`: sliding windows, selective search or an RPN -> a file        (data.windows)
    load_proposals: a file in COCO's results format, or the objects of a split -> Proposals, in the order of the records
    Proposals.on_canvas: a record's proposals, mapped onto its canvas and padded -> [P, 4], [P], and their masks [P, S, S]

With the objects themselves as proposals (the source 'ground_truth'), errors of the proposals can be told from errors of the
stages after them.
"""

import collections
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pycocotools.mask
from tqdm.auto import tqdm

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.augment import MIN_SIDE
from detzoo.data.geometry import mask_in_frame
from detzoo.data.readers.segmentation import read_mask
from detzoo.data.records import Dataset
from detzoo.errors import DataError
from detzoo.files import as_path, unpacked

METHODS = ('sliding_window', 'selective_search', 'rpn')  # of `detzoo proposals`
ENTRY = 'a proposal is {"image_id": integer, "bbox": [x, y, width, height] in pixels, "score": number}'


MAX_CELLS = 2**27  # of the masks of an image's proposals, a byte each


class Proposals(NamedTuple):
    """The proposals of a split.

    boxes: for each record [n, 4] float32 xyxy, pixels of its image, best first, n <= rows.
    rows: P, to which they are padded.
    mask_size: S, side of their masks, cells; 0: they have none.
    masks: for each record n masks, run-length codes of its image; empty if mask_size is 0.
    """

    boxes: list[np.ndarray]
    rows: int
    mask_size: int = 0
    masks: Sequence[Sequence[Mapping[str, Any]]] = ()

    def on_canvas(self, index: int, to_record: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, ...]:
        """Maps the proposals of a record onto a canvas, clips them to the window and pads them.

        Args:
            index: index of the record.
            to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image; includes turns and flips.
            window: [4] float xyxy, where on the canvas the image lies. Proposals of which it shows less than MIN_SIDE are
                left out.

        Returns:
            boxes [P, 4] float32 xyxy, canvas pixels, best first; which rows are valid [P] bool; and, unless mask_size is 0, the
            masks in the frames of these boxes, [P, S, S] bool.
        """
        corners = self.boxes[index].reshape(-1, 2, 2)
        corners = (corners - to_record[:, 2]) @ np.linalg.inv(to_record[:, :2]).T
        boxes = np.sort(corners, axis=1).reshape(-1, 4)  # turns and flips make other corners the upper left ones
        boxes = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
        (kept,) = np.nonzero((boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1))
        padded = np.zeros((self.rows, 4), np.float32)
        padded[: len(kept)] = boxes[kept]
        valid = np.arange(self.rows) < len(kept)
        if not self.mask_size:
            return padded, valid
        size = self.mask_size, self.mask_size
        masks = np.zeros((self.rows, *size), bool)
        for row, proposal in enumerate(kept):
            mask = pycocotools.mask.decode(self.masks[index][proposal])
            masks[row] = mask_in_frame(mask, padded[row], to_record, size)
        return padded, valid, masks


def load_proposals(source: str | None, dataset: Dataset, max_proposals: int, mask_size: int = 0) -> Proposals | None:
    """Collects the proposals of a split, and prints how many there are and how many are left out.

    Args:
        source: path of a file for `read_proposals`, which may list other images too; 'ground_truth' for the objects of the
            split without crowds; or None.
        dataset: the split.
        max_proposals: P. An image keeps those with the best scores.
        mask_size: S, side of the masks of proposals, cells; 0 for no masks.

    Returns:
        Proposals, none for an image that the source does not list; None if the source is None.

    Raises:
        DataError: the file is malformed, or lists no image of the split; a proposal has no mask, or one that is not of its
            image; masks would take too much memory.
    """
    if source is None:
        return None
    if max_proposals * mask_size**2 > MAX_CELLS:
        raise DataError(
            f'{max_proposals} proposals with masks of {mask_size} x {mask_size} cells are more than {MAX_CELLS} cells an image: '
            'lower data.max_proposals or data.proposal_mask_size'
        )
    listed = None if source == 'ground_truth' else read_proposals(os.path.expanduser(source), data=dataset.name)
    boxes, masks, none = [], [], Listed(np.zeros((0, 4)), [], [])
    count = images = dropped = 0
    for record in tqdm(dataset.records, desc='proposals', unit='image', leave=False):
        found = _objects(record) if listed is None else listed.get(record['image_id'], none)
        count += len(found.boxes)
        images += len(found.boxes) > 0
        dropped += max(0, len(found.boxes) - max_proposals)
        found = Listed(*(values[:max_proposals] for values in found))
        boxes.append(xywh_to_xyxy(found.boxes).astype(np.float32))
        if mask_size:
            masks.append(_masks(found, record, source))
    split = f'split {dataset.split!r} of {dataset.name!r}'
    if listed is not None and not images:
        first = dataset.records[0]
        raise DataError(
            f'{source} has no proposals for any image of {split}, the first of which is {first["image_id"]} '
            f'({first["file_name"]}): give proposals whose image_id are those of this split'
        )
    if jax.process_index() == 0:
        tqdm.write(
            f'{source}: {count} proposals for {images} of the {len(boxes)} images of {split}; '
            f'{dropped} over data.max_proposals={max_proposals} are left out',
            file=sys.stderr,
        )
    return Proposals(boxes, max_proposals, mask_size, masks)


class Listed(NamedTuple):
    """The proposals of an image, best first.

    boxes: [n, 4] float64 xywh, pixels of the image.
    segmentations: what the source has as their masks, unchecked; None where it has nothing.
    entries: where in the source they stand, for messages.
    """

    boxes: np.ndarray
    segmentations: list[Any]
    entries: list[int]


def _objects(record: Mapping[str, Any]) -> Listed:
    """Takes the objects of a record, without crowds, for proposals."""
    rows = np.flatnonzero(~record['is_crowd']).tolist()
    size = [record['height'], record['width']]
    codes = [record['segmentations'][row] for row in rows]
    segmentations = [{'size': size, 'counts': code} if code else None for code in codes]
    return Listed(record['boxes'][rows], segmentations, record['annotation_ids'][rows].tolist())


def _masks(found: Listed, record: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Checks the masks of a record's proposals, and compresses them."""
    masks = []
    for entry, segmentation in zip(found.entries, found.segmentations):
        mask = read_mask(segmentation, record['height'], record['width'])
        if mask.rle is None:
            what = mask.left_out[0] if mask.left_out else "no 'segmentation'"
            raise DataError(
                f'{source}: entry {entry}, of {record["file_name"]} ({record["height"]} x {record["width"]} pixels): {what}; '
                'data.proposal_mask_size asks for the masks of proposals: give each its COCO segmentation, or set it to 0'
            )
        masks.append(mask.rle)
    return masks


def read_proposals(path: str | os.PathLike, data: str = 'NAME') -> dict[int, Listed]:
    """Reads proposals in COCO's results format, JSON or gzipped JSON: the detections of a detector, for example.

    The file is a list of {"image_id", "bbox": [x, y, width, height], "score"}, of which each may have a "segmentation"; other
    keys are ignored. It is held in memory while it is read, about 1 kB a proposal without its mask.

    Args:
        path: the file.
        data: name of the data set, for the message about a file that is missing.

    Returns:
        {image_id: its proposals}; of equal scores the earlier one comes first.

    Raises:
        DataError: it cannot be read, or an entry is malformed; the message names the file and the entry.
    """
    try:
        data = as_path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the proposals {path}: {error.strerror}; give a file's path, or 'ground_truth'. To write such files: "
            f'{_command(pathlib.Path(path), data)}'
        ) from error
    try:
        entries = json.loads(unpacked(data) if data.startswith(b'\x1f\x8b') else data)
    except (ValueError, RecursionError) as error:  # gzip's, JSON's and UTF-8's errors
        raise DataError(f'{path} is not JSON, or was cut short ({error}); copy or export it again') from error
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a list of proposals: export it in the format of COCO results, where {ENTRY}')
    numbers = collections.defaultdict(list)  # of the entries of each image
    for i, entry in enumerate(entries):
        if reason := _flaw(entry):
            raise DataError(f'{path}: entry {i} (counted from 0): {reason}; {ENTRY}. Fix or remove the entry')
        numbers[entry['image_id']].append(i)
    listed = {}
    for image_id, rows in numbers.items():
        rows.sort(key=lambda i: -entries[i]['score'])
        boxes = np.array([entries[i]['bbox'] for i in rows], np.float64)
        listed[image_id] = Listed(boxes, [entries[i].get('segmentation') for i in rows], rows)
    return listed


def file_name(data: str, method: str, split: str) -> str:
    """Names the file of a split's proposals: 'coco', 'rpn', 'train[:10%]' -> 'coco_rpn_train-10.json.gz'."""
    return f'{data}_{method}_{re.sub("[^A-Za-z0-9.]+", "-", split).strip("-")}.json.gz'


def _command(path: pathlib.Path, data: str) -> str:
    """Writes the command that makes a file, as far as its name tells."""
    method = next((name for name in METHODS if f'_{name}_' in path.name), METHODS[0])
    return f'detzoo proposals --data={data} --method={method} --output={path.parent}'


def _flaw(entry: Any) -> str | None:
    """Says what is wrong with an entry of a file; None if nothing is."""
    missing = [key for key in ('image_id', 'bbox', 'score') if not isinstance(entry, dict) or key not in entry]
    if missing:
        return f'there is no {" and no ".join(missing)}'
    image_id, box, score = entry['image_id'], entry['bbox'], entry['score']
    if type(image_id) is not int or not -(2**63) <= image_id < 2**63:  # a bool is an int too
        return f'image_id {image_id!r} is not an integer of 64 bits'
    if not _is_number(score):
        return f'score {score!r} is not a finite number'
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f'bbox {box!r} is not four finite numbers'
    if min(box[2:]) <= 0:
        return f'bbox {box!r} has no area'
    return None


def _is_number(value: Any) -> bool:
    """Tells whether this is a number that float32 can hold; Python's JSON has NaN, Infinity and integers of any length."""
    return type(value) in (int, float) and abs(value) < 1e38
