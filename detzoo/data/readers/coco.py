"""COCO annotations and images as a named data set: everything is checked before anything is written.

    read_document    ->  the JSON file, whole and of COCO's shape
    read_categories  ->  ids and names; labels 0..K-1 follow the ids in ascending order
    check_image      ->  every image entry: its fields, and a file inside the image folder
    check_annotation ->  every annotation: class, image, box, and its mask as one compressed RLE
    check_files      ->  every image file: decoded once, whole, of the size that the JSON says
    prepare_coco     ->  the data set on disk, for `catalog.open_dataset`

A fault of the file as a whole is always an error. A fault of one record is an error too, or with 'skip' leaves the record
out: an image with its annotations, or one annotation. COCO's own train2017 needs that: a few of its boxes have no height.
"""

import collections
import json
import os
import pathlib
from typing import Any, Literal

import hotcoco.mask
import numpy as np
import pycocotools.mask
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.data.readers import prepare
from detzoo.data.readers.prepare import TOLERANCE, BadRecords, Prepared, Split
from detzoo.errors import DataError


def prepare_coco(
    name: str,
    train_annotations: str | os.PathLike,
    train_images: str | os.PathLike,
    validation_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    *,
    validation_share: float | None = None,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    overwrite: bool = False,
) -> Prepared:
    """Checks COCO JSON files with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        train_annotations, validation_annotations: COCO JSON files with the same categories.
        train_images, validation_images: the folders to which `file_name` is relative.
        validation_share: share of the images that validate, drawn at random, where no validation data are named.
        split_seed: seed of that draw.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or annotation, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        overwrite: replace a data set of that name.

    Raises:
        DataError: something is wrong; the message names the file, the record and the remedy.
    """
    data_dir = catalog.data_root(data_dir)
    prepare.check_request(name, data_dir, on_bad_record, overwrite)
    prepare.check_validation((validation_annotations, validation_images), validation_share)
    sources = {'train': (pathlib.Path(train_annotations), pathlib.Path(train_images))}
    if validation_share is None:
        sources['validation'] = (pathlib.Path(validation_annotations), pathlib.Path(validation_images))
    for _, folder in sources.values():
        if not folder.is_dir():
            raise DataError(f'no image folder {folder}; check the path')
    documents = {split: read_document(path) for split, (path, _) in sources.items()}
    categories = _common_categories([(sources[split][0], document) for split, document in documents.items()])
    splits = {
        split: check_split(path, documents[split], list(categories), folder, on_bad_record == 'skip', max_pixels)
        for split, (path, folder) in sources.items()
    }
    if validation_share is not None:
        splits = prepare.divide(splits['train'], validation_share, split_seed)
    return prepare.write(name, categories, splits, data_dir, annotations='COCO', overwrite=overwrite)


def read_document(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a JSON file with COCO's three lists of objects: `images`, `annotations`, `categories`."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f'cannot read the annotations {path}: {error.strerror}; check the path') from error
    except (ValueError, RecursionError) as error:  # broken JSON or UTF-8; lists in lists without end
        raise DataError(f'{path} is not JSON, or was cut short ({error}); copy or export it again') from error
    for key in ('images', 'annotations', 'categories'):
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f'{path} is not COCO-shaped: {key!r} must be a list of objects; export as COCO JSON')
    return document


def read_categories(path: pathlib.Path, document: dict[str, Any]) -> dict[int, str]:
    """Returns the names of the categories by ascending id."""
    names: dict[int, str] = {}
    for i, category in enumerate(document['categories']):
        where = f'{path}: categories[{i}]'
        category_id, name = _integer(category, 'id', where), category.get('name')
        if not isinstance(name, str) or not name.isprintable() or name != name.strip() or not name:
            raise DataError(f'{where}: the name {name!r} must be one line of text with no blanks around it; rename it')
        if category_id in names or name in names.values():
            raise DataError(f'{where}: id {category_id} or name {name!r} appears twice; make both unique')
        names[category_id] = name
    if not names:
        raise DataError(f'{path}: no categories; list at least one')
    return dict(sorted(names.items()))


def check_split(
    path: pathlib.Path,
    document: dict[str, Any],
    category_ids: list[int],
    folder: pathlib.Path,
    skip: bool,
    max_pixels: int,
) -> Split:
    """Checks all records of a split.

    Args:
        path: the JSON file, for messages.
        document: the file's content.
        category_ids: [K] in the order of the labels.
        folder: folder of the images.
        skip: leave bad records out instead of raising.
        max_pixels: images with more pixels are bad records.

    Raises:
        DataError: a bad record and not `skip`, or no image is left.
    """
    bad = BadRecords(skip)
    listed = collections.Counter(entry['id'] for entry in document['images'] if _is_id(entry.get('id')))
    images = {}
    for i, entry in enumerate(document['images']):
        try:
            image = check_image(entry, _where(path, 'image', i, entry), folder, max_pixels)
            if listed[image['image_id']] > 1:  # to which of them would the annotations belong?
                raise DataError(f'{_where(path, "image", i, entry)}: another image has the same id')
            images[image['image_id']] = image
        except DataError as error:
            bad.add(error)

    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    seen: set[int] = set()
    for i, entry in enumerate(tqdm(document['annotations'], desc=f'checking {path.name}', unit='annotation')):
        image_id = entry.get('image_id')
        if _is_id(image_id) and image_id in listed and image_id not in images:
            continue  # its image is bad and was reported
        try:
            where = _where(path, 'annotation', i, entry)
            annotation = check_annotation(entry, where, labels, images)
            if annotation['id'] in seen:
                raise DataError(f'{where}: an annotation before it has the same id')
            seen.add(annotation['id'])
            images[image_id]['objects'].append(annotation)
        except DataError as error:
            bad.add(error)

    named = {f'{path}: image {image_id} ({image["file_name"]})': image for image_id, image in images.items()}
    return prepare.check_files(named, str(path), bad, max_pixels)


def check_image(entry: dict[str, Any], where: str, folder: pathlib.Path, max_pixels: int) -> dict[str, Any]:
    """Checks an entry of `images` and finds its file; returns the example, without objects yet."""
    image_id, height, width = (_integer(entry, key, where) for key in ('id', 'height', 'width'))
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
        raise DataError(f'{where}: file_name must be text, not {name!r}')
    prepare.check_size(height, width, where, max_pixels)
    file = prepare.find_file(name, folder, where)
    return {
        'image': file,
        'image_id': image_id,
        'file_name': name,
        'height': height,
        'width': width,
        'objects': [],
    }


def check_annotation(
    entry: dict[str, Any], where: str, labels: dict[int, int], images: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Checks an entry of `annotations` against its image; returns it as an object of `records.features`."""
    annotation_id, image_id, category_id = (_integer(entry, key, where) for key in ('id', 'image_id', 'category_id'))
    if category_id not in labels:
        raise DataError(f'{where}: unknown category_id {category_id}')
    if image_id not in images:
        raise DataError(f'{where}: unknown image_id {image_id}')
    height, width = images[image_id]['height'], images[image_id]['width']
    box = _box(entry.get('bbox'), where, height, width)
    is_crowd = entry.get('iscrowd', 0)
    if is_crowd not in (0, 1):
        raise DataError(f'{where}: iscrowd must be 0 or 1, not {is_crowd!r}')
    rle = _rle(entry.get('segmentation'), where, height, width)
    area = entry.get('area')
    if area is None:
        area = float(pycocotools.mask.area(rle)) if rle else box[2] * box[3]
    if not _are_numbers([area]) or area < 0:
        raise DataError(f'{where}: area must be a number of at least 0, not {area!r}')
    return {
        'id': annotation_id,
        'bbox': np.array(box, np.float64),
        'area': np.float64(area),
        'label': labels[category_id],
        'is_crowd': bool(is_crowd),
        'segmentation': rle['counts'] if rle else '',
    }


def _common_categories(documents: list[tuple[pathlib.Path, dict[str, Any]]]) -> dict[int, str]:
    """Reads the categories of the files, which must be the same in all."""
    (path, document), *others = documents
    categories = read_categories(path, document)
    for other_path, other in others:
        different = sorted(set(categories.items()) ^ set(read_categories(other_path, other).items()))
        if different:
            raise DataError(f'{path} and {other_path} have different categories: {different} are in one of them only')
    return categories


def _where(path: pathlib.Path, kind: str, index: int, entry: dict[str, Any]) -> str:
    """Names a record in messages: by its id, and by its place in the list, since it may have no id."""
    file_name = f', {entry["file_name"]}' if 'file_name' in entry else ''
    return f'{path}: {kind} {entry.get("id")} ({kind}s[{index}]{file_name})'


def _integer(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not _is_id(value):
        raise DataError(f'{where}: {key} must be an integer of 64 bits, not {value!r}')
    return value


def _is_id(value: Any) -> bool:
    """Tells whether this is an integer of 64 bits; larger ones may share a hash in any number, which makes dicts slow."""
    return type(value) is int and -(2**63) <= value < 2**63  # a bool is an int too


def _are_numbers(values: Any) -> bool:
    """Tells whether this is a list of finite numbers; Python's JSON has NaN, Infinity and integers of any length."""
    return isinstance(values, list) and all(type(v) in (int, float) and abs(v) < 1e300 for v in values)


def _box(box: Any, where: str, height: int, width: int) -> list[float]:
    if not _are_numbers(box) or len(box) != 4:
        raise DataError(f'{where}: bbox must be four finite numbers, not {box!r}')
    prepare.check_box(box, where, height, width)
    return box


def _rle(segmentation: Any, where: str, height: int, width: int) -> dict[str, Any] | None:
    """Turns polygons, or RLE of either kind, into one compressed RLE of the whole image; None where there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                raise DataError(f'{where}: a polygon must be at least three pairs of finite numbers, not {polygon!r}')
            xs, ys = polygon[::2], polygon[1::2]
            if min(polygon) < -TOLERANCE or max(xs) > width + TOLERANCE or max(ys) > height + TOLERANCE:
                raise DataError(f'{where}: a polygon leaves the image of {width} x {height} pixels: {polygon}')
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or segmentation.get('size') != [height, width]:
        raise DataError(f'{where}: segmentation must be polygons, or RLE whose size is [{height}, {width}]')
    counts = segmentation.get('counts')
    try:  # pycocotools may crash on bad counts; hotcoco refuses them
        rle = hotcoco.mask.frPyObjects({'size': [height, width], 'counts': counts}, height, width)
    except (TypeError, ValueError):
        rle = None
    misread = isinstance(counts, str) and rle is not None and rle['counts'] != counts.encode()
    if rle is None or misread or not _fills(rle['counts'], height * width):
        raise DataError(f'{where}: the RLE counts are not the lengths of runs which fill {height} x {width} pixels')
    return rle


def _fills(counts: bytes, pixels: int) -> bool:
    """Tells whether the runs of a compressed RLE, which has at most so many pixels, have as many: one less is too few."""
    try:
        hotcoco.mask.area({'size': [1, pixels - 1], 'counts': counts})
    except ValueError:
        return True
    return False
