"""Proposals from outside, which take the place of those that a detector makes itself (Fast R-CNN, arXiv 1504.08083).

    load_proposals: a file in COCO's results format, or the objects of a split -> Proposals, in the order of its records
    Proposals.on_canvas: those of a record, mapped onto its canvas and padded   -> [P, 4], [P]

The objects themselves, the source 'ground_truth', tell errors of the proposals from those of what follows them.
"""

import collections
import gzip
import json
import os
import pathlib
import sys
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from detzoo.data.augment import MIN_SIDE
from detzoo.data.records import Dataset
from detzoo.errors import DataError

ENTRY = 'a proposal is {"image_id": integer, "bbox": [x, y, width, height] in pixels, "score": number}'


class Proposals(NamedTuple):
    """The proposals of a split.

    boxes: of each record [n, 4] float32 xyxy, pixels of its image, best first, n <= rows.
    rows: P.
    """

    boxes: list[np.ndarray]
    rows: int

    def on_canvas(self, index: int, to_record: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps the proposals of a record onto a canvas, clips them to the window and pads them.

        Args:
            index: of the record.
            to_record: [2, 3] float64, maps (x, y, 1) of the canvas to pixels of the record's image; turns and flips included.
            window: [4] float xyxy, where on the canvas the image lies. What of a proposal is thinner there than MIN_SIDE
                is left out.

        Returns:
            boxes [P, 4] float32 xyxy, canvas pixels, best first, and which rows are valid [P] bool.
        """
        corners = self.boxes[index].reshape(-1, 2, 2)
        corners = (corners - to_record[:, 2]) @ np.linalg.inv(to_record[:, :2]).T
        boxes = np.sort(corners, axis=1).reshape(-1, 4)  # turns and flips make other corners the upper left ones
        boxes = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1)]
        padded = np.zeros((self.rows, 4), np.float32)
        padded[: len(boxes)] = boxes
        return padded, np.arange(self.rows) < len(boxes)


def load_proposals(source: str | None, dataset: Dataset, max_proposals: int) -> Proposals | None:
    """Collects the proposals of a split, and says how many there are and how many find no row.

    Args:
        source: the path of a file as `read_proposals` takes it; or 'ground_truth', the objects of the split but for crowds;
            or None. A file may list other images too.
        dataset: the split.
        max_proposals: P. An image keeps the best by score.

    Returns:
        Proposals; None for None. An image of which the source says nothing has none.

    Raises:
        DataError: the file is not as it should be, or lists no image of the split.
    """
    if source is None:
        return None
    listed = None if source == 'ground_truth' else read_proposals(os.path.expanduser(source))
    boxes, none = [], np.zeros((0, 4))
    count = images = dropped = 0
    for record in tqdm(dataset.records, desc='proposals', unit='image', leave=False):
        xywh = record['boxes'][~record['is_crowd']] if listed is None else listed.get(record['image_id'], none)
        count, images, dropped = (
            count + len(xywh),
            images + (len(xywh) > 0),
            dropped + max(0, len(xywh) - max_proposals),
        )
        xywh = xywh[:max_proposals]
        boxes.append(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32))
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
    return Proposals(boxes, max_proposals)


def read_proposals(path: str | os.PathLike) -> dict[int, np.ndarray]:
    """Reads proposals in COCO's results format, JSON or gzipped JSON: the detections of a detector, for example.

    It is a list of {"image_id", "bbox": [x, y, width, height], "score"}; other keys are ignored. The whole file is held in
    memory while it is read, about 1 kB a proposal.

    Returns:
        {image_id: [n, 4] float64 xywh pixels, best score first}; of equal scores the earlier one.

    Raises:
        DataError: it cannot be read, or something in it is no proposal; the message names the file and the entry.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the proposals {path}: {error.strerror}; give a file's path, or 'ground_truth'"
        ) from error
    try:
        entries = json.loads(gzip.decompress(data) if data.startswith(b'\x1f\x8b') else data)
    except (
        ValueError,
        RecursionError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:  # JSON's and UTF-8's errors, then gzip's
        raise DataError(f'{path} is not JSON, or was cut short ({error}); copy or export it again') from error
    if not isinstance(entries, list):
        raise DataError(f'{path} is no list of proposals: export them in the format of COCO results, where {ENTRY}')
    rows = collections.defaultdict(list)  # of each image (score, x, y, w, h)
    for i, entry in enumerate(entries):
        if reason := _flaw(entry):
            raise DataError(f'{path}: entry {i} (counted from 0): {reason}; {ENTRY}. Mend it or remove it')
        rows[entry['image_id']].append((entry['score'], *entry['bbox']))
    arrays = {image_id: np.array(found, np.float64) for image_id, found in rows.items()}
    return {image_id: array[np.argsort(-array[:, 0], kind='stable'), 1:] for image_id, array in arrays.items()}


def _flaw(entry: Any) -> str | None:
    """Says what is wrong with an entry of a file, if anything is."""
    missing = [key for key in ('image_id', 'bbox', 'score') if not isinstance(entry, dict) or key not in entry]
    if missing:
        return f'there is no {" and no ".join(missing)}'
    image_id, box, score = entry['image_id'], entry['bbox'], entry['score']
    if type(image_id) is not int or not -(2**63) <= image_id < 2**63:  # a bool is an int too
        return f'image_id {image_id!r} is no integer of 64 bits'
    if not _is_number(score):
        return f'score {score!r} is no finite number'
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f'bbox {box!r} is not four finite numbers'
    if min(box[2:]) <= 0:
        return f'bbox {box!r} has no area'
    return None


def _is_number(value: Any) -> bool:
    """Says whether this is a number that float32 can hold; Python's JSON knows NaN, Infinity and integers of any length."""
    return type(value) in (int, float) and abs(value) < 1e38
