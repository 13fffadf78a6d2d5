"""Open Images' CSV files and images as a named data set: everything is checked before anything is written.

    read_descriptions  ->  the classes: names of Open Images' codes, such as /m/01g317
    read_boxes         ->  the rows of the images that are there
    check_split        ->  their objects, in pixels
    check_files        ->  every image file: decoded once, whole
    prepare_openimages ->  the data set on disk, for `catalog.open_dataset`

The image of a row is the file that is called as its ImageID. Most people download some of the images: an image without
rows, and rows without an image, are one bad record each for all of a split. A box around a group (`IsGroupOf`) is a crowd.
The class hierarchy, and which classes were looked for in an image, are not read.

Open Images names images by text. Their ids are numbers here, 1, 2, ... in the order of the names, and `file_name` holds the name.
A category's id is the number of its line in the descriptions.
"""

import csv
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

from detzoo.data import catalog, records
from detzoo.data.readers import folders, prepare
from detzoo.data.readers.folders import ImageFolder
from detzoo.data.readers.prepare import BadRecords, Prepared, Split
from detzoo.errors import DataError

COLUMNS = 'ImageID', 'LabelName', 'XMin', 'XMax', 'YMin', 'YMax'
LONGEST_LINE = 2**16  # characters


class Row(NamedTuple):
    """A row of a CSV file, as text.

    where: name of the row in messages: file and line.
    code: LabelName.
    sides: XMin, XMax, YMin, YMax.
    group: IsGroupOf; '' without that column.
    """

    where: str
    code: str
    sides: tuple[str, ...]
    group: str


class Boxes(NamedTuple):
    """The rows of a CSV file.

    rows: by stem of their image, for images that are there.
    missing: number of rows of each other image.
    problems: messages about rows that cannot be read.
    """

    rows: dict[str, list[Row]]
    missing: dict[str, int]
    problems: list[str]


def prepare_openimages(
    name: str,
    train_annotations: str | os.PathLike,
    train_images: str | os.PathLike,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    *,
    class_descriptions: str | os.PathLike | None = None,
    validation_share: float | None = None,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    bit_depth: int | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Checks CSV files of boxes with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        train_annotations, validation_annotations: CSV files of boxes: train-annotations-bbox.csv.
        train_images, validation_images: the folders of their images.
        class_descriptions: CSV file of codes and names: class-descriptions-boxable.csv. None names classes by their codes.
        validation_share: share of the images that validate, drawn at random, where no validation data are named.
        split_seed: seed of that draw.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or object, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        bit_depth: bits of the pixels in image files of 16 bits, which are stored in 8; see `records.decode_image`.
        overwrite: replace a data set of that name.

    The classes are those of the objects, in the order of the descriptions, or of their codes.

    Raises:
        DataError: something is wrong; the message names the file, the line and the remedy.
    """
    data_dir = catalog.data_root(data_dir)
    prepare.check_request(name, data_dir, on_bad_record, overwrite)
    prepare.check_validation((validation_annotations, validation_images), validation_share)
    names = None if class_descriptions is None else read_descriptions(pathlib.Path(class_descriptions))
    sources = {'train': (train_annotations, train_images)}
    if validation_share is None:
        sources['validation'] = (validation_annotations, validation_images)
    image_ids = itertools.count(1)
    splits = {
        split: check_split(
            pathlib.Path(path), pathlib.Path(folder), names, image_ids, on_bad_record == 'skip', max_pixels, bit_depth
        )
        for split, (path, folder) in sources.items()
    }
    splits = prepare.divide(splits, validation_share, split_seed)
    categories = number_classes(splits, names)
    return prepare.write(
        name, categories, splits, data_dir, annotations='Open Images', overwrite=overwrite, bit_depth=bit_depth
    )


def read_descriptions(path: pathlib.Path) -> dict[str, str]:
    """Reads the names of the classes by their codes: a line `/m/01g317,Person` each, with or without a header."""
    names: dict[str, str] = {}
    for number, row in _rows(path):
        where = f'{path}:{number}'
        if len(row) != 2:
            raise DataError(f'{where}: {len(row)} columns; it must have two, a code and a name')
        if row == ['LabelName', 'DisplayName']:
            continue
        if row[0] in names:
            raise DataError(f'{where}: the code {row[0]!r} appears twice; name each class once')
        names[row[0]] = row[1].strip()
    folders.check_class_names(list(names.values()), str(path))
    return names


def read_boxes(path: pathlib.Path, images: ImageFolder) -> Boxes:
    """Reads the rows of a CSV file, and keeps those of the images that are there."""
    boxes = Boxes({}, {}, [])
    lines = _rows(path)
    _, header = next(lines, (1, []))
    absent = [column for column in COLUMNS if column not in header]
    if absent:
        raise DataError(f'{path}: its first line must name the columns {", ".join(COLUMNS)}; {absent[0]} is missing')
    image, code, *sides = (header.index(column) for column in COLUMNS)
    group = header.index('IsGroupOf') if 'IsGroupOf' in header else None
    for number, row in lines:
        where = f'{path}:{number}'
        if len(row) != len(header):
            boxes.problems.append(f'{where}: {len(row)} columns instead of {len(header)}')
        elif row[image] in images.by_base:
            read = Row(where, row[code], tuple(row[i] for i in sides), '' if group is None else row[group])
            boxes.rows.setdefault(row[image], []).append(read)
        else:
            boxes.missing[row[image]] = boxes.missing.get(row[image], 0) + 1
    return boxes


def check_split(
    path: pathlib.Path,
    folder: pathlib.Path,
    names: dict[str, str] | None,
    image_ids: Iterator[int],
    skip: bool,
    max_pixels: int,
    bit_depth: int | None = None,
) -> Split:
    """Checks all records of a split; the label of an object is its code, until `number_classes`.

    Args:
        path: the CSV file.
        folder: folder of the images.
        names: names of the classes by their codes; None allows any code.
        image_ids: the ids to give.
        skip: leave bad records out instead of raising.
        max_pixels: images with more pixels are bad records.
        bit_depth: see `records.decode_image`.

    Raises:
        DataError: a bad record and not `skip`, or no image is left.
    """
    bad, object_ids = BadRecords(skip), itertools.count(1)
    images = folders.index_images(folder)
    boxes = read_boxes(path, images)
    for problem in boxes.problems + _unmatched(path, images, boxes):
        bad.add(DataError(problem))
    examples = {}
    for stem, rows in sorted(boxes.rows.items(), key=lambda pair: images.by_base[pair[0]]):
        try:
            file_name, *others = images.by_base[stem]
            if others:
                raise DataError(f'{folder}: {file_name!r} and {others[0]!r} are both the image {stem!r}; remove one')
            file = folder / file_name
            height, width = folders.image_size(file, str(file), max_pixels, bit_depth)
            examples[str(file)] = {
                'image': file,
                'image_id': next(image_ids),
                'file_name': file_name,
                'height': height,
                'width': width,
                'objects': [],
            }
        except DataError as error:
            bad.add(error)
            continue
        examples[str(file)]['objects'] = read_objects(rows, height, width, names, object_ids, bad)
    return prepare.check_files(examples, str(path), bad, max_pixels, bit_depth)


def read_objects(
    rows: Sequence[Row],
    height: int,
    width: int,
    names: dict[str, str] | None,
    object_ids: Iterator[int],
    bad: BadRecords,
) -> list[dict[str, Any]]:
    """Reads the rows of an image of that size; returns objects for `records.features`."""
    objects = []
    for row in rows:
        try:
            thing = read_object(row, height, width, names)
            objects.append({'id': next(object_ids), **thing})
        except DataError as error:
            bad.add(error)
    return objects


def read_object(row: Row, height: int, width: int, names: dict[str, str] | None) -> dict[str, Any]:
    """Reads a row of an image of that size; returns an object for `records.features`, without its id."""
    if names is not None and row.code not in names:
        raise DataError(f'{row.where}: the class descriptions do not name the class {row.code!r}; add a line for it')
    if not row.code or not row.code.isprintable() or row.code != row.code.strip():
        raise DataError(f'{row.where}: LabelName must be a code such as /m/01g317, not {row.code!r}')
    if row.group not in ('1', '0', '-1', ''):  # -1: not known
        raise DataError(f'{row.where}: IsGroupOf must be 0 or 1, not {row.group!r}')
    left, right, top, bottom = (_share(text, row.where) for text in row.sides)
    box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
    box = folders.fit_box(box, row.where, height, width)
    return {
        'bbox': np.array(box, np.float64),
        'area': np.float64(box[2] * box[3]),
        'label': row.code,
        'is_crowd': row.group == '1',
        'segmentation': '',
    }


def number_classes(splits: dict[str, Split], names: dict[str, str] | None) -> dict[int, str]:
    """Replaces the codes of all objects by labels.

    Args:
        splits: the splits by name; their objects are changed in place.
        names: names of the classes by their codes; None names them by their codes.

    Returns:
        [K] names of the classes that objects have, by ascending category id.
    """
    things = [thing for split in splits.values() for example in split.examples for thing in example['objects']]
    used = {thing['label'] for thing in things}
    codes = list(names) if names is not None else sorted(used)
    categories = {number: code for number, code in enumerate(codes, start=1) if code in used}
    labels = {code: label for label, code in enumerate(categories.values())}
    for thing in things:
        thing['label'] = labels[thing['label']]
    if not things:
        raise DataError('no image has a good box; correct the rows of the CSV files')
    return {number: code if names is None else names[code] for number, code in categories.items()}


def _unmatched(path: pathlib.Path, images: ImageFolder, boxes: Boxes) -> list[str]:
    """Describes the images without rows, and the rows without an image."""
    messages = []
    without = [name for name in images.names if folders.stem_of(name).rpartition('/')[2] not in boxes.rows]
    if without:
        messages.append(
            f'{path}: no row for {len(without)} images of {images.path}, such as {without[0]!r}; remove them'
        )
    if boxes.missing:
        count, first = sum(boxes.missing.values()), next(iter(boxes.missing))
        messages.append(
            f'{path}: {count} rows of {len(boxes.missing)} images, such as {first!r}, have no file in {images.path}; '
            'download the images'
        )
    return messages


def _rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Reads the rows of a CSV file with the numbers of their lines; empty lines are left out."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.reader(_lines(file, path))
            for row in reader:
                if row:
                    yield reader.line_num, row
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}; check the path') from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'{path}: not a CSV file in UTF-8 ({error}); download or export it again') from error


def _lines(file: TextIO, path: pathlib.Path) -> Iterator[str]:
    """Reads lines that are not too long."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise DataError(f'{path}: a line has {LONGEST_LINE} characters or more; this is not a CSV file of boxes')
        yield line


def _share(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: a side of the box must be a finite number, not {text[:40]!r}')
    return value
