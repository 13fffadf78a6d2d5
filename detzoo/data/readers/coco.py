"""COCO annotations and images as a named data set: everything is checked before anything is written.

    read_document    ->  the JSON file, whole and of COCO's shape
    read_categories  ->  ids and names; labels 0..K-1 follow the ids in ascending order
    check_image      ->  every image entry: its fields, and a file inside the image folder
    check_annotation ->  every annotation: class, image, box, and its mask as one compressed RLE
    check_files      ->  every image file: decoded once, whole, of the size that the JSON says
    prepare_coco     ->  the data set on disk, for `catalog.open_dataset`

What a detector learns from is read strictly: sizes, ids, classes, boxes. A fault of the file as a whole is always an error. A
fault of one record is an error too, or with 'skip' leaves the record out: an image with its annotations, or one annotation.
COCO's own train2017 needs that: a few of its boxes have no height.

What tools write differently, and what a detector can do without, is read as it is meant, or left out and counted: numbers as
text or floats, missing `iscrowd` and `area`, masks that cannot be read, the root of the categories, folders in `file_name`.
"""

import collections
import json
import os
import pathlib
from collections.abc import Set
from typing import Any, Literal

import numpy as np
import pycocotools.mask
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.data.readers import prepare
from detzoo.data.readers.prepare import BadRecords, FilesBelow, Prepared, Split
from detzoo.data.readers.segmentation import read_mask
from detzoo.data.readers.values import number, numbers, shown, whole_number
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
    bit_depth: int | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Checks COCO JSON files with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        train_annotations, validation_annotations: COCO JSON files with the same categories.
        train_images, validation_images: the folders in which `find_file` looks for `file_name`.
        validation_share: share of the images that validate, drawn at random, where no validation data are named.
        split_seed: seed of that draw.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or annotation, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        bit_depth: bits of the pixels in image files of 16 bits, see `records.decode_image`; they are stored in 8 bits.
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
    categories, root = _common_categories([(sources[split][0], document) for split, document in documents.items()])
    splits = {}
    for split, (path, folder) in sources.items():
        bad = BadRecords(on_bad_record == 'skip')
        if root is not None:
            bad.leave_out(f'root category ({root!r}, the supercategory of all others, without objects)', str(path))
        splits[split] = check_split(path, documents[split], list(categories), folder, bad, max_pixels, bit_depth)
    splits = prepare.divide(splits, validation_share, split_seed)
    return prepare.write(
        name, categories, splits, data_dir, annotations='COCO', overwrite=overwrite, bit_depth=bit_depth
    )


def read_document(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a JSON file with COCO's three lists of objects: `images`, `annotations`, `categories`."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f'cannot read the annotations {path}: {error.strerror}; check the path') from error
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}. Save it as UTF-8; if it is '
            f'Latin-1, by: iconv -f LATIN1 -t UTF-8 {path.name} > utf8.json'
        ) from error
    except (ValueError, RecursionError) as error:  # broken JSON; lists in lists without end
        raise DataError(f'{path} is not JSON, or was cut short ({error}); copy or export it again') from error
    for key in ('images', 'annotations', 'categories'):
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f'{path} is not COCO-shaped: {key!r} must be a list of objects; export as COCO JSON')
    return document


def find_root(document: dict[str, Any], used: Set[int | None]) -> tuple[int, str] | None:
    """Finds the category that stands for the root, as Roboflow exports it: all others have it as their supercategory.

    Args:
        document: a file's content.
        used: ids of the categories that have objects, in this file or in that of another split.

    Returns:
        the root's id and name; None if there is none without objects.
    """
    categories = document['categories']
    ids = [whole_number(category.get('id')) for category in categories]
    parents = [category.get('supercategory') for category in categories]
    children = collections.Counter(parent for parent in parents if isinstance(parent, str))
    for category_id, category, parent in zip(ids, categories, parents, strict=True):
        name = category.get('name')
        if isinstance(name, str) and category_id is not None and category_id not in used:
            if children[name] - (parent == name) == len(categories) - 1 > 0:
                return (category_id, name) if ids.count(category_id) == 1 else None
    return None


def read_categories(
    path: pathlib.Path, document: dict[str, Any], root: tuple[int, str] | None = None
) -> dict[int, str]:
    """Returns the names of the categories by ascending id, without the root that `find_root` found."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for i, category in enumerate(document['categories']):
        where = f'{path}: categories[{i}]'
        category_id, name = _integer(category, 'id', where), category.get('name')
        if (category_id, name) == root:
            continue
        if not isinstance(name, str) or not name.isprintable() or name != name.strip() or not name:
            raise DataError(
                f'{where}: the name {shown(name)} must be one line of text with no blanks around it; rename it'
            )
        if category_id in names or name in taken:
            raise DataError(f'{where}: id {category_id} or name {shown(name)} appears twice; make both unique')
        names[category_id] = name
        taken.add(name)
    if not names:
        raise DataError(f'{path}: no categories; list at least one')
    return dict(sorted(names.items()))


def check_split(
    path: pathlib.Path,
    document: dict[str, Any],
    category_ids: list[int],
    folder: pathlib.Path,
    bad: BadRecords,
    max_pixels: int,
    bit_depth: int | None = None,
) -> Split:
    """Checks all records of a split.

    Args:
        path: the JSON file, for messages.
        document: the file's content.
        category_ids: [K] in the order of the labels.
        folder: folder of the images.
        bad: the split's bad records, to which others are added.
        max_pixels: images with more pixels are bad records.
        bit_depth: see `records.decode_image`.

    Raises:
        DataError: a record is bad and not to be skipped, or no image is left.
    """
    images, bad_images = check_images(path, document['images'], folder, bad, max_pixels)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    seen: set[int] = set()
    for i, entry in enumerate(tqdm(document['annotations'], desc=f'checking {path.name}', unit='annotation')):
        if whole_number(entry.get('image_id')) in bad_images:
            continue  # the image was reported
        try:
            where = _where(path, 'annotation', i, entry)
            if whole_number(entry.get('id')) in seen:
                raise DataError(f'{where}: an annotation before it has the same id')
            image_id, annotation = check_annotation(entry, where, labels, images, bad)
            seen.add(annotation['id'])
            images[image_id]['objects'].append(annotation)
        except DataError as error:
            bad.add(error)

    named = {f'{path}: image {image_id} ({_name(image["file_name"])})': image for image_id, image in images.items()}
    return prepare.check_files(named, str(path), bad, max_pixels, bit_depth)


def check_images(
    path: pathlib.Path, entries: list[dict[str, Any]], folder: pathlib.Path, bad: BadRecords, max_pixels: int
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Checks all entries of `images`; see `check_split`.

    Returns:
        the examples, without objects yet, by id; and the ids of bad images.
    """
    ids = collections.Counter(whole_number(entry.get('id')) for entry in entries)
    below = FilesBelow(folder)
    images: dict[int, dict[str, Any]] = {}
    users = collections.defaultdict(list)  # by file: (id, name in messages, whether it was found by its base name)
    for i, entry in enumerate(entries):
        where = _where(path, 'image', i, entry)
        try:
            image = check_image(entry, where, below, max_pixels)
            if ids[image['image_id']] > 1:  # to which of them would the annotations belong?
                raise DataError(f'{where}: another image has the same id')
            images[image['image_id']] = image
            path_given = pathlib.PurePath(entry['file_name'].replace('\\', '/'))
            elsewhere = image['file_name'] != entry['file_name'] and path_given != pathlib.PurePath(image['file_name'])
            users[image['image']].append((image['image_id'], where, elsewhere))
        except DataError as error:
            bad.add(error)
    for file, images_of_file in users.items():
        for image_id, where, elsewhere in images_of_file:
            if elsewhere and len(images_of_file) > 1:
                bad.add(DataError(f'{where}: another image has the same file, {file}; write its path into file_name'))
                del images[image_id]
            elif elsewhere:
                bad.leave_out('folders in file_name (the file was found by its base name)', where)
    return images, {image_id for image_id in ids if image_id is not None and image_id not in images}


def check_image(entry: dict[str, Any], where: str, below: FilesBelow, max_pixels: int) -> dict[str, Any]:
    """Checks an entry of `images` and finds its file; returns the example, without objects yet.

    `file_name` is kept, or is the path from the folder on where the file was found elsewhere.
    """
    image_id, height, width = (_integer(entry, key, where) for key in ('id', 'height', 'width'))
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
        raise DataError(f'{where}: file_name must be text, not {shown(name)}')
    prepare.check_size(height, width, where, max_pixels)
    file = prepare.find_file(name, below.folder, where, below)
    as_it_is = not pathlib.PurePath(name).is_absolute() and file == below.folder / name
    file_name = name if as_it_is else file.relative_to(below.folder).as_posix()
    try:
        file_name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'{where}: the name of the file is not UTF-8; rename it') from error
    return {
        'image': file,
        'image_id': image_id,
        'file_name': file_name,
        'height': height,
        'width': width,
        'objects': [],
    }


def check_annotation(
    entry: dict[str, Any], where: str, labels: dict[int, int], images: dict[int, dict[str, Any]], bad: BadRecords
) -> tuple[int, dict[str, Any]]:
    """Checks an entry of `annotations` against its image; a mask that cannot be read is left out.

    Returns:
        the image's id, and an object of `records.features`.
    """
    annotation_id, image_id, category_id = (_integer(entry, key, where) for key in ('id', 'image_id', 'category_id'))
    if category_id not in labels:
        raise DataError(f'{where}: unknown category_id {category_id}')
    if image_id not in images:
        raise DataError(f'{where}: unknown image_id {image_id}')
    height, width = images[image_id]['height'], images[image_id]['width']
    box = numbers(entry.get('bbox'))
    if box is None or len(box) != 4:
        raise DataError(f'{where}: bbox must be four finite numbers, not {shown(entry.get("bbox"))}')
    prepare.check_box(box, where, height, width)
    is_crowd = entry.get('iscrowd')
    if is_crowd is not None and not isinstance(is_crowd, bool) and whole_number(is_crowd) not in (0, 1):
        raise DataError(f'{where}: iscrowd must be 0 or 1, not {shown(is_crowd)}')
    mask = read_mask(entry.get('segmentation'), height, width)
    area = entry.get('area')
    if area is None:
        area = float(pycocotools.mask.area(mask.rle)) if mask.rle else box[2] * box[3]
    if number(area) is None or number(area) < 0:
        raise DataError(f'{where}: area must be a number of at least 0, not {shown(area)}')
    for kind in mask.left_out:
        bad.leave_out(kind, where)
    return image_id, {
        'id': annotation_id,
        'bbox': np.array(box, np.float64),
        'area': np.float64(number(area)),
        'label': labels[category_id],
        'is_crowd': bool(whole_number(is_crowd) or is_crowd is True),
        'segmentation': mask.rle['counts'] if mask.rle else '',
    }


def _common_categories(documents: list[tuple[pathlib.Path, dict[str, Any]]]) -> tuple[dict[int, str], str | None]:
    """Reads the categories of the files, which must be the same in all; returns them, and the name of the root if there is one."""
    used = {whole_number(entry.get('category_id')) for _, document in documents for entry in document['annotations']}
    roots = {find_root(document, used) for _, document in documents}
    root = roots.pop() if len(roots) == 1 else None
    (path, document), *others = documents
    categories = read_categories(path, document, root)
    for other_path, other in others:
        different = sorted(set(categories.items()) ^ set(read_categories(other_path, other, root).items()))
        if different:
            raise DataError(f'{path} and {other_path} have different categories: {different} are in one of them only')
    return categories, root and root[1]


def _where(path: pathlib.Path, kind: str, index: int, entry: dict[str, Any]) -> str:
    """Names a record in messages: by its id, and by its place in the list, since it may have no id."""
    read = whole_number(entry.get('id'))
    file_name = f', {_name(entry["file_name"])}' if 'file_name' in entry else ''
    return f'{path}: {kind} {shown(entry.get("id")) if read is None else read} ({kind}s[{index}]{file_name})'


def _name(file_name: Any) -> str:
    """Writes the name of a file into a message: as it is, unless that would take more than a line."""
    plain = isinstance(file_name, str) and file_name.isprintable() and len(file_name) <= 200
    return file_name if plain else shown(file_name)


def _integer(entry: dict[str, Any], key: str, where: str) -> int:
    value = whole_number(entry.get(key))
    if value is None:
        raise DataError(f'{where}: {key} must be an integer of 64 bits, not {shown(entry.get(key))}')
    return value
