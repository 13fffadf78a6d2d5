"""The annotations of a split in the form of COCO's JSON: read from its records, or from a file that was written beside them.

    rows_of(record)            -> a row: the image, and its annotations
    write_rows(path, rows)     -> truth_SPLIT.jsonl.gz, a row a line; and Stored, which the description of the data set keeps
    read_rows(path, stored)    -> the same rows again, or an error

A file is read only if it is the one that the description of the data set names, by its size and its SHA-256: so it belongs to
these records. Data that were prepared without such files have their rows read from the records.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detzoo.errors import DataError
from detzoo.files import AnyPath, unpacked

# Keys of images that are annotated for some of the classes only.
FEDERATED = ('neg_category_ids', 'not_exhaustive_category_ids')

Row = tuple[dict[str, Any], list[dict[str, Any]]]


class Stored(NamedTuple):
    """What the description of a data set says of a file of rows.

    size: bytes of its text, unpacked.
    sha256: SHA-256 of its text, as 64 hexadecimal digits.
    """

    size: int
    sha256: str


def rows_of(record: Mapping[str, Any], category_ids: Sequence[int]) -> Row:
    """Describes a record, see `records.Records`, as one of COCO's images and its annotations.

    Args:
        record: the record; its image is not decoded.
        category_ids: [K] the data's own id of each label.
    """
    image = {'id': record['image_id']} | {key: record[key] for key in ('file_name', 'height', 'width')}
    image |= {key: record[key].tolist() for key in FEDERATED if key in record}
    annotations = []
    for i, counts in enumerate(record['segmentations']):
        annotation = {
            'id': int(record['annotation_ids'][i]),
            'image_id': record['image_id'],
            'category_id': category_ids[record['labels'][i]],
            'bbox': record['boxes'][i].tolist(),
            'area': float(record['areas'][i]),
            'iscrowd': int(record['is_crowd'][i]),
        }
        if counts:
            annotation['segmentation'] = {'size': [record['height'], record['width']], 'counts': counts}
        annotations.append(annotation)
    return image, annotations


def file_name(split: str) -> str:
    """Names the file of a split's rows, in the folder of its data set."""
    return f'truth_{split}.jsonl.gz'


def write_rows(path: AnyPath, rows: Iterable[Row]) -> Stored:
    """Writes rows, in their order; the same rows make the same file."""
    digest, size = hashlib.sha256(), 0
    with (
        path.open('wb') as file,
        gzip.GzipFile(fileobj=file, mode='wb', filename='', mtime=0, compresslevel=6) as packed,
    ):
        for row in rows:
            line = json.dumps(row, separators=(',', ':')).encode() + b'\n'
            digest.update(line)
            size += len(line)
            packed.write(line)
    return Stored(size, digest.hexdigest())


def read_rows(path: AnyPath, stored: Stored) -> Iterator[Row]:
    """Yields the rows of a file, equal to the last bit to those that were written.

    Raises:
        DataError: the file is not there, is damaged, or belongs to other records.
    """
    try:
        text = unpacked(path.read_bytes())
        if (len(text), hashlib.sha256(text).hexdigest()) != stored:
            raise ValueError('it is not what was written')
    except (OSError, ValueError) as error:
        raise DataError(
            f'{path} does not belong to the records beside it ({error}): prepare the data again; or take "truth" out of '
            'metadata.json in that folder, and the annotations are read from the records'
        ) from error
    for line in io.BytesIO(text):
        image, annotations = json.loads(line)
        yield image, annotations
