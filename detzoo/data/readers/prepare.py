"""What the readers of annotation formats share: checks of records, and writing them as a data set.

    check_request -> name, place and policy, before anything is read
    find_file, check_box, check_pixels: an image's file, a box in its image, a file's pixels
    check_files   -> decodes every image of a split, in threads
    divide        -> a validation split drawn from one list of images
    write         -> the data set for `catalog.open_dataset`, all of it or nothing

A fault of one record raises DataError. `BadRecords` raises it again, with the remedy, or with 'skip' keeps it as a line of
`skipped.json` in the data set's folder.
"""

import concurrent.futures
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from detzoo.data import catalog, records
from detzoo.errors import DataError

TOLERANCE = (
    2.0  # pixels by which a box or polygon may leave its image, as rounding does in COCO; it is stored unchanged
)


class Split(NamedTuple):
    """The checked records of a split.

    examples: one dict an image as `records.features` takes it, with the path of its file as `image`.
    skipped: a message for each record that was left out.
    """

    examples: list[dict[str, Any]]
    skipped: list[str]


class Prepared(NamedTuple):
    """A data set that `write` wrote.

    folder: the data set's folder.
    class_names: [K].
    splits: the splits by name.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    splits: dict[str, Split]


class Checked(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder of a data set whose name and checked records are given to it."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(
        self, *, name: str, categories: dict[int, str], splits: dict[str, Split], annotations: str, **kwargs: Any
    ):
        """Takes, besides TFDS's own arguments, `categories` by ascending id, the splits, and the annotations' format."""
        self.name = name
        self._categories = categories
        self._splits = splits
        self._annotations = annotations
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=list(self._categories.values()),
            category_ids=list(self._categories),
            description=f'Prepared by detzoo from {self._annotations} annotations.',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        skipped = {name: split.skipped for name, split in self._splits.items()}
        (self.data_path / 'skipped.json').write_text(json.dumps(skipped, indent=2))
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(tqdm(self._splits[name].examples, desc=f'writing {name}', unit='image'))


class BadRecords:
    """The bad records of a split: `add` raises, or with `skip` keeps the message in `messages`."""

    def __init__(self, skip: bool):
        self.skip = skip
        self.messages: list[str] = []

    def add(self, error: DataError) -> None:
        if not self.skip:
            raise DataError(f"{error}. Fix the record, or leave bad records out with on_bad_record='skip'") from error
        self.messages.append(str(error))


def check_request(name: str, data_dir: pathlib.Path, on_bad_record: str, overwrite: bool) -> None:
    """Refuses a name that a new data set cannot have, and an unknown policy."""
    if on_bad_record not in ('error', 'skip'):
        raise DataError(f"on_bad_record must be 'error' or 'skip', not {on_bad_record!r}")
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise DataError(f'name {name!r} must be lower-case letters, digits and underscores, a letter first')
    if name in catalog.builders():
        raise DataError(f"{name!r} is one of detzoo's own data sets; choose another name")
    if (data_dir / name).exists() and not overwrite:
        raise DataError(f'{data_dir / name} exists; choose another name, or replace it (overwrite=True)')


def check_validation(given: Sequence[Any], share: float | None) -> None:
    """Refuses a request that names the validation data twice, in part, or not at all.

    Args:
        given: the arguments that name validation data; None where not given.
        share: the share of the training data that is to validate instead, or None.
    """
    if (
        any(argument is not None for argument in given)
        if share is not None
        else any(not argument for argument in given)
    ):
        raise DataError('name the validation data whole, or give validation_share to draw them from the training data')
    if share is not None and not 0 < share < 1:
        raise DataError(f'validation_share must be between 0 and 1, not {share}')


def divide(split: Split, share: float, seed: int) -> dict[str, Split]:
    """Divides one list of images at random into training and validation.

    Args:
        split: the checked records; what was skipped stays with the training split.
        share: the share of the images that validate, in (0, 1); at least one validates, and at least one trains.
        seed: seed of the draw.

    Raises:
        DataError: there are fewer than two images.
    """
    count = len(split.examples)
    if count < 2:
        raise DataError(f'validation_share needs at least two good images, not {count}; name validation data instead')
    drawn = np.random.RandomState(seed).permutation(count)[: min(max(round(share * count), 1), count - 1)]
    validates = np.isin(np.arange(count), drawn)
    examples = {
        name: [example for example, chosen in zip(split.examples, validates, strict=True) if chosen == wanted]
        for name, wanted in (('train', False), ('validation', True))
    }
    return {'train': Split(examples['train'], split.skipped), 'validation': Split(examples['validation'], [])}


def check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    """Refuses sizes that annotations give an image."""
    if height < 1 or width < 1 or height * width > max_pixels:
        raise DataError(f'{where}: {width} x {height} pixels must be positive and at most max_pixels={max_pixels}')


def find_file(name: str, folder: pathlib.Path, where: str) -> pathlib.Path:
    """Finds a file by its name inside a folder, and nowhere else."""
    try:
        file = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # missing; links in a circle; no name of a file at all
        raise DataError(f'{where}: there is no file {name!r} in {folder}') from error
    if pathlib.PurePath(name).is_absolute() or not file.is_relative_to(folder.resolve()):
        raise DataError(f'{where}: file_name leads out of {folder}; use paths inside it')
    if not file.is_file():
        raise DataError(f'{where}: {file} is not a file')
    return file


def check_box(box: Sequence[float], where: str, height: int, width: int) -> None:
    """Refuses a box (x, y, width, height) of finite numbers that has no area or leaves its image."""
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise DataError(f'{where}: bbox {box} has no positive width and height')
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        raise DataError(f'{where}: bbox {box} (x, y, width, height) leaves the image of {width} x {height} pixels')


def check_pixels(example: dict[str, Any], where: str, max_pixels: int) -> None:
    """Decodes an image file to the end and compares its size with that of the annotations."""
    try:
        data = example['image'].read_bytes()
    except OSError as error:
        raise DataError(f'{where}: cannot read the file: {error.strerror}') from error
    height, width = records.decode_image(data, name=where, max_pixels=max_pixels, strict=True).shape[:2]
    if (height, width) != (example['height'], example['width']):
        turned = '; its EXIF orientation may turn it: annotate it as it is seen, or remove the tag'
        raise DataError(
            f'{where}: the file has {width} x {height} pixels, the annotations say '
            f'{example["width"]} x {example["height"]}'
            f'{turned if (width, height) == (example["height"], example["width"]) else ""}'
        )


def check_files(examples: dict[str, dict[str, Any]], source: str, bad: BadRecords, max_pixels: int) -> Split:
    """Checks the pixels of all images of a split.

    Args:
        examples: the records, by their names in messages.
        source: name of the split in messages.
        bad: the split's bad records, to which others are added.
        max_pixels: images with more pixels are bad records.

    Returns:
        the good records, in their order.

    Raises:
        DataError: a record is bad and not to be skipped, or no image is left.
    """
    good = []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        try:
            checks = [pool.submit(check_pixels, example, where, max_pixels) for where, example in examples.items()]
            pairs = zip(checks, examples.values(), strict=True)
            for check, example in tqdm(pairs, desc='decoding', total=len(examples), unit='image'):
                try:
                    check.result()
                    good.append(example)
                except DataError as error:
                    bad.add(error)
        finally:
            pool.shutdown(cancel_futures=True)
    if not good:
        raise DataError(f'{source}: not one good image; {len(bad.messages)} bad records')
    return Split(good, bad.messages)


def write(
    name: str,
    categories: dict[int, str],
    splits: dict[str, Split],
    data_dir: pathlib.Path,
    *,
    annotations: str,
    overwrite: bool,
) -> Prepared:
    """Writes checked splits as a data set.

    Args:
        name: name of the data set.
        categories: [K] names by ascending id.
        splits: the splits by name.
        data_dir: folder of all data sets.
        annotations: the annotations' format, for the description: 'COCO'.
        overwrite: replace a data set of that name.

    Raises:
        DataError: it cannot be written.
    """

    def make_builder(**kwargs: Any) -> Checked:
        return Checked(name=name, categories=categories, splits=splits, annotations=annotations, **kwargs)

    try:
        folder = records.write_dataset(make_builder, data_dir, overwrite=overwrite)
    except OSError as error:
        raise DataError(f'data set {name!r} was not written: {error}') from error
    return Prepared(folder, tuple(categories.values()), splits)
