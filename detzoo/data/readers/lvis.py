"""LVIS annotations and COCO's images as a named data set (arXiv:1908.03195): COCO's format, with images annotated in part.

    read_document     ->  the JSON file, as `readers.coco` reads it; `file_name` from `coco_url`
    read_frequencies  ->  'r', 'c' or 'f' for each category
    check_split       ->  images and annotations, as `readers.coco` checks them, and the lists of each image
    prepare_lvis      ->  the data set on disk, for `catalog.open_dataset`

LVIS differs from COCO in this: there are no crowds; an image is named by its `coco_url` alone; it has `neg_category_ids`, the
classes that are known to be absent, and `not_exhaustive_category_ids`, those of which only some objects are annotated; and a
category has a `frequency`. The data set keeps all of them, so that detections can be judged as LVIS does (`evaluation.federated`).
"""

import os
import pathlib
from typing import Any, Literal
from urllib.parse import urlsplit

import tensorflow_datasets as tfds

from detzoo.data import catalog, records
from detzoo.data.readers import coco, prepare
from detzoo.data.readers.prepare import BadRecords, Prepared, Split
from detzoo.data.readers.values import shown, whole_number
from detzoo.errors import DataError

LISTS = records.FEDERATED


class Federated(prepare.Checked, skip_registration=True):
    """The TFDS builder of a data set whose images are annotated for some of the classes only."""

    def __init__(self, *, frequencies: list[str], **kwargs: Any):
        """Takes, besides the arguments of `Checked`, the frequency of each category."""
        self._frequencies = frequencies
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=list(self._categories.values()),
            category_ids=list(self._categories),
            frequencies=self._frequencies,
            description=f'Prepared by detzoo from {self._annotations} annotations.',
        )


def prepare_lvis(
    name: str,
    train_annotations: str | os.PathLike,
    train_images: str | os.PathLike,
    validation_annotations: str | os.PathLike,
    validation_images: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    on_bad_record: Literal['error', 'skip'] = 'error',
    max_pixels: int = records.MAX_PIXELS,
    overwrite: bool = False,
) -> Prepared:
    """Checks LVIS JSON files with their images and writes them as one data set: all of it, or nothing.

    Args:
        name: name of the data set: lower-case letters, digits and underscores.
        train_annotations, validation_annotations: LVIS JSON files with the same categories.
        train_images, validation_images: folders with train2017 and val2017 in them: both splits have images of both.
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
    sources = {
        'train': (pathlib.Path(train_annotations), pathlib.Path(train_images)),
        'validation': (pathlib.Path(validation_annotations), pathlib.Path(validation_images)),
    }
    for _, folder in sources.values():
        if not folder.is_dir():
            raise DataError(f'no image folder {folder}; check the path')
    documents = {split: read_document(path) for split, (path, _) in sources.items()}
    categories, frequencies = _common_categories([(sources[split][0], documents[split]) for split in sources])
    splits = {
        split: check_split(path, documents[split], categories, folder, BadRecords(on_bad_record == 'skip'), max_pixels)
        for split, (path, folder) in sources.items()
    }

    def make_builder(**kwargs: Any) -> Federated:
        return Federated(
            name=name, categories=categories, frequencies=frequencies, splits=splits, annotations='LVIS', **kwargs
        )

    try:
        folder = records.write_dataset(make_builder, data_dir, overwrite=overwrite)
    except OSError as error:
        raise DataError(f'data set {name!r} was not written: {error}') from error
    return Prepared(folder, tuple(categories.values()), splits)


def read_document(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a JSON file with COCO's three lists of objects, and gives images without `file_name` that of their `coco_url`.

    Raises:
        DataError: see `coco.read_document`.
    """
    document = coco.read_document(path)
    for entry in document['images']:
        if 'file_name' not in entry and isinstance(entry.get('coco_url'), str):
            entry['file_name'] = '/'.join(_path_of(entry['coco_url'])[-2:])
    return document


def _path_of(url: str) -> list[str]:
    """Returns the parts of the path of a URL; none of what is no URL."""
    try:
        return [part for part in urlsplit(url).path.split('/') if part]
    except ValueError:
        return []


def read_frequencies(path: pathlib.Path, document: dict[str, Any]) -> dict[int, str]:
    """Reads the frequency of each category by its id; call `coco.read_categories` first.

    Raises:
        DataError: a category has none.
    """
    frequencies = {}
    for i, category in enumerate(document['categories']):
        frequency = category.get('frequency')
        if frequency not in ('r', 'c', 'f'):
            raise DataError(
                f'{path}: categories[{i}]: frequency must be "r", "c" or "f", not {shown(frequency)}: take the annotations of '
                'LVIS v1, or format=coco for files without'
            )
        frequencies[whole_number(category['id'])] = frequency
    return frequencies


def check_split(
    path: pathlib.Path,
    document: dict[str, Any],
    categories: dict[int, str],
    folder: pathlib.Path,
    bad: BadRecords,
    max_pixels: int,
) -> Split:
    """Checks all records of a split, and gives each image its lists.

    Args:
        path: the JSON file, for messages.
        document: the file's content.
        categories: [K] names by ascending id.
        folder: folder of the images.
        bad: the split's bad records, to which others are added.
        max_pixels: images with more pixels are bad records.

    Raises:
        DataError: a record is bad and not to be skipped, or no image is left.
    """
    split = coco.check_split(path, document, list(categories), folder, bad, max_pixels)
    entries = {whole_number(entry.get('id')): entry for entry in document['images']}
    examples = []
    for example in split.examples:
        image_id = example['image_id']
        where = f'{path}: image {image_id} ({example["file_name"]})'
        try:
            lists = {key: _category_ids(entries[image_id], key, where, categories) for key in LISTS}
            examples.append(example | lists)
        except DataError as error:
            bad.add(error)
    if not examples:
        raise DataError(f'{path}: not one good image; {len(bad.messages)} bad records')
    return split._replace(examples=examples)


def _category_ids(entry: dict[str, Any], key: str, where: str, categories: dict[int, str]) -> list[int]:
    """Reads a list of an image: ids of categories."""
    values = entry.get(key)
    if not isinstance(values, list):
        raise DataError(f'{where}: {key} must be a list of category ids, not {shown(values)}')
    ids = [whole_number(value) for value in values]
    for value, category_id in zip(values, ids, strict=True):
        if category_id not in categories:
            raise DataError(f'{where}: {key} has the unknown category id {shown(value)}')
    return sorted(set(ids))


def _common_categories(documents: list[tuple[pathlib.Path, dict[str, Any]]]) -> tuple[dict[int, str], list[str]]:
    """Reads the categories of the files, which must be the same in all; returns their names by id, and their frequencies."""
    (path, document), (other_path, other) = documents
    categories, frequencies = coco.read_categories(path, document), read_frequencies(path, document)
    pairs = {(i, name, frequencies[i]) for i, name in categories.items()}
    others = read_frequencies(other_path, other)
    different = sorted(pairs ^ {(i, name, others[i]) for i, name in coco.read_categories(other_path, other).items()})
    if different:
        raise DataError(f'{path} and {other_path} have different categories: {different[:4]} are in one of them only')
    return categories, [frequencies[category_id] for category_id in categories]
