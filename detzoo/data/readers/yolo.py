"""YOLO's images and label files as a named data set: everything is checked before anything is written.

    data_yaml.read_description  ->  class names, and where the images of each split are
    list_images       ->  the images of a split: a folder, or a file that lists them
    find_labels       ->  the label file of an image
    read_labels       ->  its objects, a line each
    check_files       ->  every image file: decoded once, whole
    prepare_yolo      ->  the data set on disk, for `catalog.open_dataset`

A line of a label file is `class cx cy w h`, a box, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, in shares of the image's width
and height. With `kpt_shape` in data.yaml, key points follow the box; they are not read. The labels of `a/images/b/1.jpg` are
in `a/labels/b/1.txt`, or beside the image. An image without a label file has no objects, as for the tools that write
them; a split without any label file is an error.

Images have no ids in this format: theirs are 1, 2, ... in the order of their names.
"""

import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pycocotools.mask
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.data.readers import folders, prepare
from detzoo.data.readers.data_yaml import read_description
from detzoo.data.readers.prepare import TOLERANCE, BadRecords, Prepared, Split
from detzoo.errors import DataError

IMAGE_FOLDERS = 'images', 'JPEGImages'  # in whose place the folder `labels` has the label files
NAMES_FILES = 'classes.txt', 'obj.names'  # in which labelImg, Label Studio and CVAT write the names of the classes
LARGEST_LIST = 2**28  # bytes
LONGEST_OUTLINE = 2**22  # pixels of a polygon; the memory that drawing takes grows with it


class Listed(NamedTuple):
    """The images of a split.

    source: where they come from, for messages.
    root: the folder to which their names are relative.
    files: {file_name: file}.
    folders: the folders that were listed whole.
    labels: folder of the label files; None for YOLO's own places.
    problems: messages about images that are missing or listed twice, and about labels without an image.
    """

    source: str
    root: pathlib.Path
    files: dict[str, pathlib.Path]
    folders: list[pathlib.Path]
    labels: pathlib.Path | None
    problems: list[str]


class Rules(NamedTuple):
    """How lines are read.

    classes: number of classes.
    keypoints: numbers that follow a box in its line.
    max_pixels: images with more pixels are bad records.
    bit_depth: see `records.decode_image`.
    """

    classes: int
    keypoints: int
    max_pixels: int
    bit_depth: int | None = None


def prepare_yolo(
    name: str,
    data_yaml: str | os.PathLike | None = None,
    *,
    train_images: str | os.PathLike | None = None,
    train_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    validation_annotations: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    validation_share: float | None = None,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    bit_depth: int | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Checks label files with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        data_yaml: Ultralytics' description of a data set, with `path`, `train`, `val` and `names`.
        train_images, validation_images: folders of images, or files that list them, in place of `data_yaml`.
        train_annotations, validation_annotations: folders of their label files; None for YOLO's own places.
        classes: [K] names in the order of their numbers, without `data_yaml`. None reads classes.txt or obj.names, in the
            folder of the training images or label files, or up to two folders above.
        validation_share: share of the images that validate, drawn at random, where no validation data are named.
        split_seed: seed of that draw.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or object, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        bit_depth: bits of the pixels in image files of 16 bits, which are stored in 8; see `records.decode_image`.
        overwrite: replace a data set of that name.

    Raises:
        DataError: something is wrong; the message names the file, the line and the remedy.
    """
    data_dir = catalog.data_root(data_dir)
    prepare.check_request(name, data_dir, on_bad_record, overwrite)
    given = train_images, train_annotations, validation_images, validation_annotations, classes
    fits = not any(given) if data_yaml is not None else train_images is not None
    if not fits or (validation_annotations and not validation_images):
        raise DataError(
            'name data_yaml alone, or else the images (train_images, validation_images), the classes, and where they lie '
            'elsewhere, the annotations'
        )
    if data_yaml is not None:
        said = read_description(pathlib.Path(data_yaml))
        prepare.check_validation((said.entries.get('validation'),), validation_share)
        listed = {split: list_images(said.root, entries) for split, entries in said.entries.items()}
        class_names, keypoints = said.class_names, said.keypoints
    else:
        prepare.check_validation((validation_images,), validation_share)
        listed = {'train': list_place(train_images, train_annotations)}
        if validation_images:
            listed['validation'] = list_place(validation_images, validation_annotations)
        class_names, keypoints = given_classes(classes, listed['train']), 0
    report_unused(listed)
    rules, image_ids = Rules(len(class_names), keypoints, max_pixels, bit_depth), itertools.count(1)
    splits = {
        split: check_split(of_split, image_ids, rules, on_bad_record == 'skip') for split, of_split in listed.items()
    }
    splits = prepare.divide(splits, validation_share, split_seed)
    categories = dict(enumerate(class_names, start=1))
    return prepare.write(
        name, categories, splits, data_dir, annotations='YOLO', overwrite=overwrite, bit_depth=bit_depth
    )


def list_place(images: str | os.PathLike, labels: str | os.PathLike | None) -> Listed:
    """Lists the images of a split that is one folder, or one file that lists images.

    Args:
        images: the folder or file.
        labels: folder of the label files; None for YOLO's own places.
    """
    images = pathlib.Path(images)
    if labels is not None and not pathlib.Path(labels).is_dir():
        raise DataError(f'there is no folder of label files {labels}; check the path')
    root, entry = (images, '.') if images.is_dir() else (images.parent, images.name)
    return list_images(root, [entry], None if labels is None else pathlib.Path(os.path.abspath(labels)))


def list_images(root: pathlib.Path, entries: Sequence[str], labels: pathlib.Path | None = None) -> Listed:
    """Lists the images of a split.

    Args:
        root: the folder to which entries and names are relative.
        entries: folders, or files that list images, a path a line.
        labels: folder of the label files; None for YOLO's own places.

    Raises:
        DataError: an entry does not exist, is no such list, or has no images.
    """
    root = pathlib.Path(os.path.abspath(root))
    listed = Listed(', '.join(str(root / entry) for entry in entries), root, {}, [], labels, [])
    for entry in entries:
        place = _find(entry, [root])
        if place is None:
            raise DataError(f'there is no folder or list of images {root / entry}; correct the path')
        if place.is_dir():
            listed.folders.append(place)
            for name in folders.find_files(place, folders.IMAGE_SUFFIXES):
                _add(listed, place / name, str(place / name))
            continue
        for number, line in enumerate(folders.read_text(place, LARGEST_LIST).splitlines(), start=1):
            if line.strip():
                file = _find(line.strip(), [place.parent, root, pathlib.Path()])
                if file is None:
                    listed.problems.append(f'{place}:{number}: there is no image {line.strip()!r}')
                else:
                    _add(listed, file, f'{place}:{number}')
    if not listed.files and not listed.problems:
        raise DataError(f'{listed.source}: no images in this place; correct the path')
    return listed


def find_labels(name: str, listed: Listed) -> pathlib.Path | None:
    """Finds the label file of an image; None if it has none.

    Raises:
        DataError: there are two.
    """
    found = [path for path in label_places(name, listed) if path.is_file()]
    if len(found) > 1:
        raise DataError(f'{listed.files[name]}: both {found[0]} and {found[1]} are its label file; keep one')
    return found[0] if found else None


def label_places(name: str, listed: Listed) -> list[pathlib.Path]:
    """Lists the paths that the label file of an image may have."""
    if listed.labels is not None:
        return [listed.labels / f'{folders.stem_of(name)}.txt']
    file = listed.files[name]
    beside = file.with_name(f'{folders.stem_of(file.name)}.txt')
    return list(dict.fromkeys([_in_labels(beside), beside]))


def report_unused(listed: dict[str, Listed]) -> None:
    """Adds to the problems of each split the label files in its folders whose images are missing.

    Args:
        listed: the images of each split; one folder of labels may serve several.
    """
    used = {path for split in listed.values() for name in split.files for path in label_places(name, split)}
    for split in listed.values():
        whole = {split.labels} if split.labels else {*map(_in_labels, split.folders), *split.folders}
        for folder in sorted(filter(pathlib.Path.is_dir, whole)) if split.folders else ():
            for path in (folder / name for name in folders.find_files(folder, ('.txt',))):
                if path not in used and _has_labels(path):
                    used.add(path)  # once
                    split.problems.append(f'{path}: there is no image for this label file')


def check_split(listed: Listed, image_ids: Iterator[int], rules: Rules, skip: bool) -> Split:
    """Checks all records of a split.

    Args:
        listed: the images.
        image_ids: the ids to give.
        rules: how lines are read.
        skip: leave bad records out instead of raising.

    Raises:
        DataError: a bad record and not `skip`, no image is left, or there is no label file at all.
    """
    bad, object_ids = BadRecords(skip), itertools.count(1)
    for problem in listed.problems:
        bad.add(DataError(problem))
    examples, labelled = {}, 0
    for name, file in tqdm(listed.files.items(), desc=f'reading {listed.source}', unit='image'):
        try:
            labels = find_labels(name, listed)
            labelled += labels is not None
            text = '' if labels is None else folders.read_text(labels)
            height, width = folders.image_size(file, str(file), rules.max_pixels, rules.bit_depth)
            examples[str(file)] = {
                'image': file,
                'image_id': next(image_ids),
                'file_name': name,
                'height': height,
                'width': width,
                'objects': [],
            }
        except DataError as error:
            bad.add(error)
            continue
        examples[str(file)]['objects'] = read_labels(text, str(labels), height, width, object_ids, bad, rules)
    if listed.files and not labelled:
        places = ' nor '.join(map(str, label_places(next(iter(listed.files)), listed)))
        raise DataError(f'{listed.source}: no image has a label file; there is no {places}, for example')
    return prepare.check_files(examples, listed.source, bad, rules.max_pixels, rules.bit_depth)


def read_labels(
    text: str, where: str, height: int, width: int, object_ids: Iterator[int], bad: BadRecords, rules: Rules
) -> list[dict[str, Any]]:
    """Reads the text of a label file, for an image of that size; returns objects for `records.features`."""
    objects = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                thing = read_line(line, f'{where}:{number}', height, width, rules)
                objects.append({'id': next(object_ids), **thing})
            except DataError as error:
                bad.add(error)
    return objects


def read_line(line: str, where: str, height: int, width: int, rules: Rules) -> dict[str, Any]:
    """Reads the object in a line; returns an object for `records.features`, without its id."""
    numbers = [_number(word, where) for word in line.split()]
    label, shares = numbers[0], numbers[1:]
    if not label.is_integer() or not 0 <= label < rules.classes:
        raise DataError(f'{where}: the class {line.split()[0]!r} must be a number from 0 to {rules.classes - 1}')
    if rules.keypoints and len(shares) == 4 + rules.keypoints:
        shares = shares[:4]
    if len(shares) % 2:
        raise DataError(
            f'{where}: {len(shares)} numbers after the class; a box has 4, a polygon pairs of x and y. A confidence at the '
            'end belongs to predictions: export annotations, without it'
        )
    if len(shares) < 4:
        raise DataError(f'{where}: {len(shares)} numbers after the class; a box has 4, a polygon 6 or more')
    sides = [width, height] * (len(shares) // 2)
    pixels = [share * side for share, side in zip(shares, sides, strict=True)]
    for share, pixel, side in zip(shares, pixels, sides, strict=True):
        if not -TOLERANCE <= pixel <= side + TOLERANCE:
            raise DataError(f"{where}: {share} must be a share of the image's width or height, from 0 to 1")
    if len(pixels) == 4:
        x, y, w, h = pixels
        box, counts = folders.fit_box([x - w / 2, y - h / 2, w, h], where, height, width), ''
        area = box[2] * box[3]
    else:
        box, counts, area = read_polygon(pixels, where, height, width)
    return {
        'bbox': np.array(box, np.float64),
        'area': np.float64(area),
        'label': int(label),
        'is_crowd': False,
        'segmentation': counts,
    }


def read_polygon(pixels: Sequence[float], where: str, height: int, width: int) -> tuple[list[float], str, float]:
    """Turns a polygon x1, y1, x2, y2, ... in pixels into its box, COCO's compressed RLE, and the area of that mask."""
    points = np.reshape(pixels, (-1, 2))
    low, high = points.min(0), points.max(0)
    box = folders.fit_box([*low.tolist(), *(high - low).tolist()], where, height, width)
    if np.abs(points - np.roll(points, 1, 0)).sum() > LONGEST_OUTLINE:
        raise DataError(f'{where}: the polygon is longer than {LONGEST_OUTLINE} pixels; draw it with fewer points')
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects([points.ravel().tolist()], height, width))
    return box, rle['counts'].decode(), float(pycocotools.mask.area(rle))


def given_classes(classes: Sequence[str] | None, listed: Listed) -> tuple[str, ...]:
    """Returns the names of the classes that were given, or those of a file near the images or label files."""
    if classes is not None:
        return folders.check_class_names(classes, 'classes')
    starts = [folder for folder in (listed.labels, _in_labels(listed.root), listed.root) if folder is not None]
    near = [place for start in starts for place in (start, *start.parents[:2])]
    for path in (folder / name for folder in near for name in NAMES_FILES):
        if path.is_file():
            lines = folders.read_text(path).rstrip().splitlines()
            return folders.check_class_names([line.strip() for line in lines], str(path))
    raise DataError(
        f'the classes of {listed.source} have no names: give `classes`, or put classes.txt beside the images'
    )


def _in_labels(path: pathlib.Path) -> pathlib.Path:
    """Puts the folder `labels` in the place of the last folder of images in a path; a path without one stays as it is."""
    parts = path.parts
    places = [i for i, part in enumerate(parts) if part in IMAGE_FOLDERS]
    return pathlib.Path(*parts[: places[-1]], 'labels', *parts[places[-1] + 1 :]) if places else path


def _find(name: str, roots: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """Finds a path of data.yaml or of a list, as several tools write it.

    Windows writes backslashes; Roboflow's exports begin with `../` though they lie beside data.yaml, and CVAT's with `data/`.
    """
    plain = name.replace('\\', '/')
    for text in dict.fromkeys((name, plain, re.sub(r'^(\.\./|data/)', '', plain))):
        for root in roots:
            if os.path.exists(root / text):
                return pathlib.Path(os.path.abspath(root / text))
    return None


def _add(listed: Listed, file: pathlib.Path, where: str) -> None:
    """Adds an image under its path relative to the root; under its whole path if it lies elsewhere."""
    name = file.relative_to(listed.root if file.is_relative_to(listed.root) else file.anchor).as_posix()
    if name in listed.files:
        listed.problems.append(f'{where}: the image is listed twice')
    listed.files.setdefault(name, file)


def _has_labels(path: pathlib.Path) -> bool:
    """Tells whether the first line of a text file is an object; other files have names of classes, or notes."""
    try:
        with open(path, 'rb') as file:
            words = file.read(4096).strip().split(b'\n')[0].split()
        return len([float(word) for word in words]) >= 5
    except (OSError, ValueError):
        return False


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: {word[:40]!r} is not a finite number; a line is a class and shares of the image')
    return value
