"""PASCAL VOC's XML files and their images as a named data set: everything is checked before anything is written.

    list_devkit, list_folders, list_tree  ->  the XML files of a split, and the folder of their images
    read_example  ->  the XML of an image, and the image's file and size
    read_object   ->  an object's class, box, and whether it is difficult
    check_files   ->  every image file: decoded once, whole, of the size that the XML says
    prepare_voc   ->  the data set on disk, for `catalog.open_dataset`

Three layouts are read: VOCdevkit, whose lists are named with their year; a folder with Annotations, JPEGImages and ImageSets/Main;
and any tree of images and XML files. The image of an XML file is the one of its name, whatever the suffix; if there is none,
the one that `<filename>` names.

VOC counts pixels from 1, and a box includes those of both its corners: 1..w is the whole width. In continuous
coordinates its box is (xmin - 1, ymin - 1, xmax, ymax), whose plain IoU is VOC's with "+ 1" on every side. Some tools write
continuous coordinates instead: labelImg cuts them off to whole pixels of at least 1, CVAT writes them as they are. The files
do not tell which; `coordinates` does.

VOC's metric neither asks for an object marked `difficult` nor counts it as a false positive. It is stored as a crowd, which
means the same here: it is never a positive, and what lies in it is ignored, in training and in evaluation. (SSD's authors
train on VOC's difficult objects as on any other; darknet leaves them out, so that they are background.)

VOC names images by text. Their ids are numbers here, 1, 2, ... in the order of the lists or names, and `file_name` holds the
name.
"""

import collections
import itertools
import math
import os
import pathlib
import re
import xml.etree.ElementTree
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.data.readers import folders, prepare
from detzoo.data.readers.folders import ImageFolder
from detzoo.data.readers.prepare import BadRecords, Prepared, Split
from detzoo.errors import DataError

CLASS_NAMES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse',
    'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
DIFFICULT = {'': False, '0': False, 'false': False, '1': True, 'true': True}


class Part(NamedTuple):
    """Some of the XML files of a split.

    source: where they come from, for messages.
    annotations: folder of the XML files.
    stems: their paths relative to the folder, without suffix.
    images: the images among which theirs are.
    prefix: what comes before an image's name in `file_name`.
    listed: whether a list names the images; otherwise all images of the folder belong to the split.
    """

    source: str
    annotations: pathlib.Path
    stems: list[str]
    images: ImageFolder
    prefix: str
    listed: bool


class Rules(NamedTuple):
    """How objects are read.

    classes: the classes that may occur; None for any.
    coordinates: see `prepare_voc`.
    inside: whether boxes that leave their images by a rounding error are cut; otherwise they are stored as they are.
    max_pixels: images with more pixels are bad records.
    bit_depth: see `records.decode_image`.
    """

    classes: Sequence[str] | None
    coordinates: Literal['pixels', 'edges']
    inside: bool
    max_pixels: int
    bit_depth: int | None = None


def prepare_voc(
    name: str,
    voc_root: str | os.PathLike | None = None,
    train_splits: Sequence[str] | None = None,
    validation_splits: Sequence[str] | None = None,
    *,
    train_images: str | os.PathLike | None = None,
    train_annotations: str | os.PathLike | None = None,
    validation_images: str | os.PathLike | None = None,
    validation_annotations: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    coordinates: Literal['pixels', 'edges'] = 'pixels',
    validation_share: float | None = None,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    bit_depth: int | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Checks XML files with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        voc_root: the folder VOCdevkit, or one with Annotations, JPEGImages and ImageSets in it.
        train_splits, validation_splits: the lists of ImageSets/Main that make up each split: 'train'. VOCdevkit's are written
            with their year: '2007_trainval'.
        train_images, validation_images: folders of images, in place of `voc_root`.
        train_annotations, validation_annotations: folders of their XML files; None if these lie beside the images.
        classes: [K] names in the order of the labels. None takes VOC's 20 classes for VOCdevkit, and otherwise the names in
            the XML files of all splits, sorted.
        coordinates: 'pixels' as VOC has them, counted from 1, with those of both corners inside the box; 'edges' for continuous
            coordinates, where a box of xmin 10 and xmax 40 is 30 wide.
        validation_share: share of the images that validate, drawn at random, where no validation data are named.
        split_seed: seed of that draw.
        data_dir: folder of all data sets; None is TFDS's default.
        on_bad_record: 'error' stops at the first bad image or object, 'skip' leaves them out and lists them in
            `skipped.json` in the data set's folder.
        max_pixels: images with more pixels are bad records.
        bit_depth: bits of the pixels in image files of 16 bits, which are stored in 8; see `records.decode_image`.
        overwrite: replace a data set of that name.

    Raises:
        DataError: something is wrong; the message names the file, the record and the remedy.
    """
    data_dir = catalog.data_root(data_dir)
    prepare.check_request(name, data_dir, on_bad_record, overwrite)
    if coordinates not in ('pixels', 'edges'):
        raise DataError(f"coordinates must be 'pixels' or 'edges', not {coordinates!r}")
    if voc_root is not None:
        fits = train_splits and not (train_images or train_annotations or validation_images or validation_annotations)
    else:
        fits = train_images and not (train_splits or validation_splits)
    if not fits or (validation_annotations and not validation_images):
        raise DataError(
            'name voc_root and its lists (train_splits, validation_splits), or else folders of images (train_images, '
            'validation_images) and, where they lie elsewhere, of their annotations'
        )
    prepare.check_validation((validation_splits if voc_root else validation_images,), validation_share)
    if voc_root is not None:
        parts = [list_parts(pathlib.Path(voc_root), lists or ()) for lists in (train_splits, validation_splits)]
    else:
        parts = [list_tree(train_images, train_annotations), list_tree(validation_images, validation_annotations)]
    is_devkit = voc_root is not None and not _has_lists(pathlib.Path(voc_root))
    if classes is not None:
        classes = folders.check_class_names(classes, 'classes')
    elif is_devkit:
        classes = CLASS_NAMES
    rules, image_ids = Rules(classes, coordinates, not is_devkit, max_pixels, bit_depth), itertools.count(1)
    splits = {
        split: check_split(of_split, image_ids, rules, on_bad_record == 'skip')
        for split, of_split in zip(('train', 'validation'), parts, strict=True)
        if of_split
    }
    splits = prepare.divide(splits, validation_share, split_seed)
    categories = dict(enumerate(number_classes(splits, classes), start=1))
    return prepare.write(
        name, categories, splits, data_dir, annotations='PASCAL VOC', overwrite=overwrite, bit_depth=bit_depth
    )


def list_parts(root: pathlib.Path, lists: Sequence[str]) -> list[Part]:
    """Finds the XML files that lists of ImageSets/Main name.

    Args:
        root: the folder VOCdevkit, or one with Annotations, JPEGImages and ImageSets in it.
        lists: names of lists, with their year for VOCdevkit: '2007_trainval'.
    """
    images: dict[pathlib.Path, ImageFolder] = {}
    parts = []
    for part in lists:
        folder, name, prefix = root, part, 'JPEGImages/'
        if not _has_lists(root):
            match = re.fullmatch(r'(\d{4})_(\w+)', part)
            if not match:
                raise DataError(
                    f'{part!r} is not a year and a list, as VOCdevkit has them: write 2007_trainval or 2012_val. '
                    f'Lists without a year lie in {root}/ImageSets/Main, which does not exist'
                )
            folder, name, prefix = root / f'VOC{match[1]}', match[2], f'VOC{match[1]}/JPEGImages/'
        annotations = folder / 'Annotations'
        stems = [_stem_in(annotations, line) for line in read_list(folder / 'ImageSets' / 'Main' / f'{name}.txt')]
        if folder not in images:
            images[folder] = folders.index_images(folder / 'JPEGImages')
        parts.append(Part(f'{root}: {part}', annotations, stems, images[folder], prefix, listed=True))
    return parts


def list_tree(images: str | os.PathLike | None, annotations: str | os.PathLike | None) -> list[Part]:
    """Finds all XML files below a folder; none if no images are named.

    Args:
        images: the folder of the images.
        annotations: the folder of the XML files; None if it is the same.
    """
    if images is None:
        return []
    annotations = pathlib.Path(images if annotations is None else annotations)
    stems = [name[: -len('.xml')] for name in folders.find_files(annotations, ('.xml',))]
    if not stems:
        raise DataError(f'{annotations}: no XML file in this folder or below; name the folder of the annotations')
    return [Part(str(annotations), annotations, stems, folders.index_images(pathlib.Path(images)), '', listed=False)]


def read_list(path: pathlib.Path) -> list[str]:
    """Reads a list of images, one name a line; quotes around a name are removed."""
    try:
        lines = folders.read_text(path).splitlines()
    except DataError as error:
        raise DataError(
            f'{error}. It must be a list of an unpacked VOCdevkit, or of a folder with ImageSets/Main, Annotations and '
            'JPEGImages'
        ) from error
    names = [line.strip().strip('"') for line in lines if line.strip()]
    of_class = next(
        (name for name in names if re.search(r'\s-1$', name)), None
    )  # a list of one class: name and 1, 0 or -1
    if of_class is not None or not names:
        found = f'{of_class!r} in it has two columns' if names else 'it is empty'
        raise DataError(f'{path} should list one name of an image a line, but {found}; name another list')
    return names


def check_split(parts: Sequence[Part], image_ids: Iterator[int], rules: Rules, skip: bool) -> Split:
    """Checks all records of a split; the label of an object is its name, until `number_classes`.

    Args:
        parts: the XML files.
        image_ids: the ids to give.
        rules: how objects are read.
        skip: leave bad records out instead of raising.

    Raises:
        DataError: a bad record and not `skip`, or no image is left.
    """
    bad, object_ids = BadRecords(skip), itertools.count(1)
    examples: dict[str, dict[str, Any]] = {}
    source = ', '.join(part.source for part in parts)
    listed = [(part, stem) for part in parts for stem in part.stems]
    for part, stem in tqdm(listed, desc=f'reading {source}', unit='image'):
        where = str(part.annotations / f'{stem}.xml')
        try:
            if where in examples:
                raise DataError(f'{where}: the image is listed twice; the lists of a split must not overlap')
            examples[where], annotation = read_example(part, stem, image_ids, rules)
        except DataError as error:
            bad.add(error)
            continue
        examples[where]['objects'] = read_objects(annotation, where, examples[where], object_ids, bad, rules)
    described = collections.Counter(example['image'] for example in examples.values())
    alone = [file for part in parts if not part.listed for file in _without_annotations(part, examples, described)]
    for file in alone:
        bad.add(DataError(f'{file}: no XML file describes this image; save one without objects, or remove the image'))
    for where in [where for where, example in examples.items() if described[example['image']] > 1]:
        example = examples.pop(where)
        bad.add(DataError(f'{where}: another XML file describes {example["file_name"]!r} too; keep one of them'))
    return prepare.check_files(examples, source, bad, rules.max_pixels, rules.bit_depth)


def read_example(
    part: Part, stem: str, image_ids: Iterator[int], rules: Rules
) -> tuple[dict[str, Any], xml.etree.ElementTree.Element]:
    """Reads the XML file of an image; returns an example for `records.features`, without objects yet, and the XML."""
    where = str(part.annotations / f'{stem}.xml')
    annotation = read_annotation(prepare.find_file(f'{stem}.xml', part.annotations, where))
    name = find_image(part.images, stem, annotation.findtext('filename', ''), where)
    height, width = read_size(annotation, part.images.path / name, where, rules)
    example = {
        'image': part.images.path / name,
        'image_id': next(image_ids),
        'file_name': part.prefix + name,
        'height': height,
        'width': width,
        'objects': [],
    }
    return example, annotation


def read_objects(
    annotation: xml.etree.ElementTree.Element,
    where: str,
    example: dict[str, Any],
    object_ids: Iterator[int],
    bad: BadRecords,
    rules: Rules,
) -> list[dict[str, Any]]:
    """Reads the objects of an image; returns those that are good."""
    objects = []
    for index, node in enumerate(annotation.findall('object'), start=1):
        named = f'{where}: object {index} ({node.findtext("name")})'
        try:
            thing = read_object(node, named, example['height'], example['width'], rules)
            objects.append({'id': next(object_ids), **thing})
        except DataError as error:
            bad.add(error)
    return objects


def read_annotation(path: pathlib.Path) -> xml.etree.ElementTree.Element:
    """Reads an XML file whose root is VOC's `annotation`."""
    parser = xml.etree.ElementTree.XMLParser(target=_Tree())
    try:
        annotation = xml.etree.ElementTree.fromstring(folders.read_bytes(path), parser)
    except (xml.etree.ElementTree.ParseError, LookupError, ValueError) as error:  # broken; an encoding nobody knows
        raise DataError(f'{path}: not XML, or cut short ({error}); unpack or export it again') from error
    if annotation.tag != 'annotation':
        raise DataError(
            f"{path}: not VOC's XML: its root is {annotation.tag!r}, not 'annotation'; export as PASCAL VOC"
        )
    return annotation


def find_image(images: ImageFolder, stem: str, filename: str, where: str) -> str:
    """Finds the image of an XML file: the one of its name, or else the one that `<filename>` names, whatever the suffix.

    Args:
        images: the images to choose from.
        stem: the XML file's path relative to its folder, without suffix.
        filename: the text of `<filename>`.
        where: name of the XML file in messages.

    Returns:
        the image's name in `images`.
    """
    filename = filename.strip().replace('\\', '/').rpartition('/')[2]
    found = _same_name(images, stem) or images.by_base.get(folders.stem_of(filename), [])
    if len(found) > 1:
        found = [name for name in found if name.rpartition('/')[2] == filename] or found
    if not found:
        raise DataError(f'{where}: there is no image {stem!r} of any suffix in {images.path}, nor {filename!r}')
    if len(found) > 1:
        raise DataError(f'{where}: {found[0]!r} and {found[1]!r} in {images.path} may both be its image; rename one')
    return found[0]


def read_size(
    annotation: xml.etree.ElementTree.Element, file: pathlib.Path, where: str, rules: Rules
) -> tuple[int, int]:
    """Reads height and width of an image from its XML, or where that lacks them or says 0, from the image's file."""
    stated = [annotation.findtext(f'size/{side}', '').strip() for side in ('height', 'width')]
    sides = [
        _number(annotation, f'size/{side}', where) if text else 0.0 for side, text in zip(('height', 'width'), stated)
    ]
    if not all(sides):
        return folders.image_size(file, where, rules.max_pixels, rules.bit_depth)
    height, width = sides
    if not height.is_integer() or not width.is_integer():
        raise DataError(f'{where}: size must be whole pixels, not {width} x {height}')
    prepare.check_size(int(height), int(width), where, rules.max_pixels)
    return int(height), int(width)


def read_object(
    node: xml.etree.ElementTree.Element, where: str, height: int, width: int, rules: Rules
) -> dict[str, Any]:
    """Reads an `object` of an image of that size; returns an object for `records.features`, without its id."""
    name = ' '.join(node.findtext('name', '').split())
    if rules.classes is not None and name not in rules.classes:
        known = "VOC's 20 classes" if rules.classes is CLASS_NAMES else f'the classes {", ".join(rules.classes)}'
        raise DataError(f'{where}: not one of {known}; list all classes of the data in `classes`')
    if not name or not name.isprintable():
        raise DataError(f'{where}: the name {name!r} must be a line of text; name the object')
    difficult = node.findtext('difficult', '').strip().lower()
    if difficult not in DIFFICULT:
        raise DataError(f'{where}: difficult must be 0 or 1, not {difficult!r}')
    xmin, ymin, xmax, ymax = (_number(node, f'bndbox/{key}', where) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
    first = 1 if rules.coordinates == 'pixels' else 0
    box = [xmin - first, ymin - first, xmax - xmin + first, ymax - ymin + first]
    if rules.inside:
        box = folders.fit_box(box, where, height, width)
    else:
        prepare.check_box(box, where, height, width)
    return {
        'bbox': np.array(box, np.float64),
        'area': np.float64(box[2] * box[3]),
        'label': name,
        'is_crowd': DIFFICULT[difficult],
        'segmentation': '',
    }


def number_classes(splits: dict[str, Split], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Replaces the names of all objects by labels.

    Args:
        splits: the splits by name; their objects are changed in place.
        classes: [K] names in the order of the labels; None takes those of the objects, sorted.

    Returns:
        [K] names.
    """
    things = [thing for split in splits.values() for example in split.examples for thing in example['objects']]
    if classes is None:
        classes = folders.check_class_names(sorted({thing['label'] for thing in things}), 'the XML files')
    labels = {name: label for label, name in enumerate(classes)}
    for thing in things:
        thing['label'] = labels[thing['label']]
    return tuple(classes)


class _Tree(xml.etree.ElementTree.TreeBuilder):
    """Builds the elements of an XML file without entities, which would make a large text of a small one."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ValueError(f'a document type, {name[:40]!r}, is not read: remove <!DOCTYPE ...>')


def _has_lists(root: pathlib.Path) -> bool:
    """Tells whether a folder has lists of its own; VOCdevkit has a folder for each year, with lists in it."""
    return (root / 'ImageSets').is_dir()


def _stem_in(annotations: pathlib.Path, line: str) -> str:
    """Turns a line of a list into the name of an XML file without suffix: some tools list images with their suffix."""
    return line if os.path.exists(annotations / f'{line}.xml') else folders.stem_of(line)


def _same_name(images: ImageFolder, stem: str) -> list[str]:
    """Lists the images of an XML file's name: in the same place of their folder, or else anywhere in it."""
    return images.by_stem.get(stem) or images.by_base.get(stem.rpartition('/')[2], [])


def _without_annotations(part: Part, read: Collection[str], described: Collection[pathlib.Path]) -> list[pathlib.Path]:
    """Lists the images of a folder that belong to no XML file, not even to a bad one.

    Args:
        part: the folder.
        read: the XML files that were good.
        described: the images that they describe.
    """
    spoilt = [stem for stem in part.stems if str(part.annotations / f'{stem}.xml') not in read]
    theirs = {name for stem in spoilt for name in _same_name(part.images, stem)}
    files = [part.images.path / name for name in part.images.names if name not in theirs]
    return [file for file in files if file not in described]


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
