"""PASCAL VOC as it is unpacked (a folder VOCdevkit) as a named data set: everything is checked before anything is written.

    read_list     ->  the names of a split's images: '2007_trainval' is VOC2007/ImageSets/Main/trainval.txt
    read_example  ->  an image's XML, and its file
    read_object   ->  an object's class, box, and whether it is difficult
    check_files   ->  every image file: decoded once, whole, of the size that the XML says
    prepare_voc   ->  the data set on disk, for `catalog.open_dataset`

VOC counts pixels from 1, and a box includes those of both its corners: 1..w is the whole width. In continuous
coordinates its box is (xmin - 1, ymin - 1, xmax, ymax), whose plain IoU is VOC's with "+ 1" on every side.

VOC's metric neither asks for an object marked `difficult` nor counts it as a false positive. It is stored as a crowd, which
means the same here: it is never a positive, and what lies in it is ignored, in training and in evaluation. (SSD's authors
train on VOC's difficult objects as on any other; darknet leaves them out, so that they are background.)

VOC names images by text. Their ids are numbers here, 1, 2, ... in the order of the lists, and `file_name` holds the name.
"""

import itertools
import math
import os
import pathlib
import re
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.data.readers import prepare
from detzoo.data.readers.prepare import BadRecords, Prepared, Split
from detzoo.errors import DataError

CLASS_NAMES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse',
    'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip


def prepare_voc(
    name: str,
    voc_root: str | os.PathLike,
    train_splits: Sequence[str],
    validation_splits: Sequence[str],
    *,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    overwrite: bool = False,
) -> Prepared:
    """Checks lists of images with their annotations and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        voc_root: the folder VOCdevkit, with VOC2007 or VOC2012 in it.
        train_splits, validation_splits: the lists that make up each split, year and name: '2007_trainval'.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or object, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        overwrite: replace a data set of that name.

    Raises:
        DataError: something is wrong; the message names the file, the record and the remedy.
    """
    data_dir, root = catalog.data_root(data_dir), pathlib.Path(voc_root)
    prepare.check_request(name, data_dir, on_bad_record, overwrite)
    image_ids = itertools.count(1)
    lists = {
        split: [(part, read_list(root, part)) for part in parts]
        for split, parts in (('train', train_splits), ('validation', validation_splits))
    }
    splits = {
        split: check_split(root, parts, image_ids, on_bad_record == 'skip', max_pixels)
        for split, parts in lists.items()
    }
    categories = dict(enumerate(CLASS_NAMES, start=1))
    return prepare.write(name, categories, splits, data_dir, annotations='PASCAL VOC', overwrite=overwrite)


def read_list(root: pathlib.Path, part: str) -> list[str]:
    """Reads the names of the images of a part like '2007_trainval'."""
    match = re.fullmatch(r'(\d{4})_(\w+)', part)
    if not match:
        raise DataError(f"{part!r} is not a year and a list of VOC's: write 2007_trainval or 2012_val")
    path = root / f'VOC{match[1]}' / 'ImageSets' / 'Main' / f'{match[2]}.txt'
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:  # missing, or not text
        raise DataError(
            f'cannot read {path} ({error}): {root} must be the unpacked VOCdevkit, with VOC{match[1]} in it'
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    wrong = next((name for name in names if not re.fullmatch(r'[\w.-]+', name)), None)
    if wrong is not None or not names:
        found = f'{wrong!r} in it is no name' if names else 'it is empty'
        raise DataError(f'{path} should list one name of an image a line, but {found}; unpack it again')
    return names


def check_split(
    root: pathlib.Path,
    parts: Sequence[tuple[str, Sequence[str]]],
    image_ids: Iterator[int],
    skip: bool,
    max_pixels: int,
) -> Split:
    """Checks all records of a split.

    Args:
        root: the folder VOCdevkit.
        parts: ('2007_trainval', names of its images) each.
        image_ids: the ids to give.
        skip: leave bad records out instead of raising.
        max_pixels: images with more pixels are bad records.

    Raises:
        DataError: a bad record and not `skip`, or no image is left.
    """
    bad, object_ids = BadRecords(skip), itertools.count(1)
    examples: dict[str, dict[str, Any]] = {}
    listed = [(part[:4], name) for part, names in parts for name in names]
    source = ','.join(part for part, _ in parts)
    for year, name in tqdm(listed, desc=f'reading {source}', unit='image'):
        where = str(root / f'VOC{year}' / 'Annotations' / f'{name}.xml')
        try:
            if where in examples:
                raise DataError(f'{where}: the image is listed twice; the lists of a split must not overlap')
            examples[where] = read_example(root, year, name, image_ids, object_ids, bad, max_pixels)
        except DataError as error:
            bad.add(error)
    return prepare.check_files(examples, f'{root}: {source}', bad, max_pixels)


def read_example(
    root: pathlib.Path,
    year: str,
    name: str,
    image_ids: Iterator[int],
    object_ids: Iterator[int],
    bad: BadRecords,
    max_pixels: int,
) -> dict[str, Any]:
    """Reads the XML file of an image; returns an example for `records.features`."""
    folder = root / f'VOC{year}'
    where = str(folder / 'Annotations' / f'{name}.xml')
    annotation = read_annotation(folder / 'Annotations' / f'{name}.xml')
    height, width = (_number(annotation, f'size/{side}', where) for side in ('height', 'width'))
    if not height.is_integer() or not width.is_integer():
        raise DataError(f'{where}: size must be whole pixels, not {width} x {height}')
    prepare.check_size(int(height), int(width), where, max_pixels)
    file_name = f'JPEGImages/{name}.jpg'
    example = {
        'image': prepare.find_file(file_name, folder, where),
        'image_id': next(image_ids),
        'file_name': f'VOC{year}/{file_name}',
        'height': int(height),
        'width': int(width),
        'objects': [],
    }
    for index, node in enumerate(annotation.findall('object'), start=1):
        try:
            thing = read_object(
                node, f'{where}: object {index} ({node.findtext("name")})', example['height'], example['width']
            )
            example['objects'].append({'id': next(object_ids), **thing})
        except DataError as error:
            bad.add(error)
    return example


def read_annotation(path: pathlib.Path) -> xml.etree.ElementTree.Element:
    """Reads an XML file whose root is VOC's `annotation`."""
    try:
        annotation = xml.etree.ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f'{path}: cannot read the annotations: {error.strerror}; unpack them again') from error
    except (xml.etree.ElementTree.ParseError, LookupError, ValueError) as error:  # broken; an encoding nobody knows
        raise DataError(f'{path}: not XML, or cut short ({error}); unpack or export it again') from error
    if annotation.tag != 'annotation':
        raise DataError(
            f"{path}: not VOC's XML: its root is {annotation.tag!r}, not 'annotation'; export as PASCAL VOC"
        )
    return annotation


def read_object(node: xml.etree.ElementTree.Element, where: str, height: int, width: int) -> dict[str, Any]:
    """Reads an `object` of an image of that size; returns an object for `records.features`, without its id."""
    name = node.findtext('name', '').strip()
    if name not in CLASS_NAMES:
        raise DataError(
            f"{where}: not one of VOC's 20 classes; prepare data with other classes from annotations in COCO's format"
        )
    difficult = node.findtext('difficult', '0').strip()
    if difficult not in ('0', '1'):
        raise DataError(f'{where}: difficult must be 0 or 1, not {difficult!r}')
    xmin, ymin, xmax, ymax = (_number(node, f'bndbox/{key}', where) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
    box = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
    prepare.check_box(box, where, height, width)
    return {
        'bbox': np.array(box, np.float64),
        'area': np.float64(box[2] * box[3]),
        'label': CLASS_NAMES.index(name),
        'is_crowd': difficult == '1',
        'segmentation': '',
    }


def _number(node: xml.etree.ElementTree.Element, path: str, where: str) -> float:
    """Reads the finite number in an element below a node."""
    text = node.findtext(path)
    try:
        value = float(text or '')
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: {path} must be a finite number, not {text!r}')
    return value
