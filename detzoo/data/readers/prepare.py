"""What the readers of annotation formats share: checks of records, and writing them as a data set.

    check_request -> name, place and policy, before anything is read
    find_file, check_box, check_pixels: an image's file, a box in its image, a file's pixels
    check_files   -> decodes every image of a split, in threads
    divide        -> a validation split drawn from one list of images
    write         -> the data set for `catalog.open_dataset`, all of it or nothing

A fault of one record raises DataError. `BadRecords` raises it again, with the remedy, or with 'skip' keeps it as a line of
`skipped.json` in the data set's folder. A fault of what a detector can do without, such as a mask, leaves the record in:
`BadRecords.leave_out` counts it by its kind, and `left_out.json` lists it.
"""

import collections
import concurrent.futures
import functools
import itertools
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
from detzoo.files import AnyPath

TOLERANCE = (
    2.0  # pixels by which a box or polygon may leave its image, as rounding does in COCO; it is stored unchanged
)


class Split(NamedTuple):
    """The checked records of a split.

    examples: one dict an image as `records.features` takes it, with the path of its file as `image`.
    skipped: a message for each record that was left out.
    left_out: how many parts of records that stay were left out, by kind: {'masks (polygon of 4 numbers)': 3}.
    notes: a message for each of these parts.
    """

    examples: list[dict[str, Any]]
    skipped: list[str]
    left_out: dict[str, int] = {}
    notes: Sequence[str] = ()


class Prepared(NamedTuple):
    """A data set that `write` wrote.

    folder: the data set's folder.
    class_names: [K].
    splits: the splits by name.
    """

    folder: AnyPath
    class_names: tuple[str, ...]
    splits: dict[str, Split]


class Checked(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder of a data set whose name and checked records are given to it."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(
        self,
        *,
        name: str,
        categories: dict[int, str],
        splits: dict[str, Split],
        annotations: str,
        bit_depth: int | None = None,
        **kwargs: Any,
    ):
        """Takes, besides TFDS's own arguments, those of `write`."""
        self.name = name
        self._categories = categories
        self._splits = splits
        self._annotations = annotations
        self._bit_depth = bit_depth
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=list(self._categories.values()),
            category_ids=list(self._categories),
            description=f'Prepared by detzoo from {self._annotations} annotations.',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        lists = {'skipped.json': {name: split.skipped for name, split in self._splits.items()}}
        if any(split.notes for split in self._splits.values()):
            lists['left_out.json'] = {name: list(split.notes) for name, split in self._splits.items()}
        for name, messages in lists.items():
            (self.data_path / name).write_text(json.dumps(messages, indent=2))
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, example in enumerate(tqdm(self._splits[name].examples, desc=f'writing {name}', unit='image')):
            if self._bit_depth is None:
                yield i, example
            else:
                data = example['image'].read_bytes()
                image = records.to_8_bits(data, name=str(example['image']), bit_depth=self._bit_depth)
                yield i, example | {'image': image}


class BadRecords:
    """What is wrong with the records of a split.

    `add` takes what is wrong with a whole record: it raises, or with `skip` keeps the message in `messages`.
    `leave_out` takes what is wrong with a part that a detector can do without: it counts in `left_out`, by kind, and keeps a
    message in `notes`.
    """

    def __init__(self, skip: bool):
        self.skip = skip
        self.messages: list[str] = []
        self.left_out: collections.Counter[str] = collections.Counter()
        self.notes: list[str] = []

    def add(self, error: DataError) -> None:
        if not self.skip:
            raise DataError(f"{error}. Fix the record, or leave bad records out with on_bad_record='skip'") from error
        self.messages.append(str(error))

    def leave_out(self, kind: str, where: str) -> None:
        self.left_out[kind] += 1
        self.notes.append(f'{where}: left out: {kind}')


class FilesBelow:
    """The visible files of a folder and of all folders below it, by base name; they are listed when first asked for."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def named(self, base_name: str) -> list[pathlib.Path]:
        """Returns the files of that name, in order; links are followed."""
        return list(filter(os.path.isfile, self._paths.get(base_name, [])))

    @functools.cached_property
    def _paths(self) -> dict[str, list[pathlib.Path]]:
        paths: dict[str, list[pathlib.Path]] = {}
        seen = set()
        for parent, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith('.'))
            if os.path.realpath(parent) in seen:  # a link to it was there already; or links lead in a circle
                folders.clear()
                continue
            seen.add(os.path.realpath(parent))
            for name in names:
                if not name.startswith('.'):
                    paths.setdefault(name, []).append(pathlib.Path(parent, name))
        return paths


def check_request(name: str, data_dir: AnyPath, on_bad_record: str, overwrite: bool) -> None:
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


def divide(splits: dict[str, Split], share: float | None, seed: int) -> dict[str, Split]:
    """Divides the training images at random into training and validation, where a share of them is to validate.

    Args:
        splits: the checked splits by name; what was left out stays with the training split.
        share: the share of the images that validate, in (0, 1); at least one validates, and at least one trains. None leaves
            the splits as they are.
        seed: seed of the draw.

    Raises:
        DataError: there are fewer than two images.
    """
    if share is None:
        return splits
    split = splits['train']
    count = len(split.examples)
    if count < 2:
        raise DataError(f'validation_share needs at least two good images, not {count}; name validation data instead')
    drawn = np.random.RandomState(seed).permutation(count)[: min(max(round(share * count), 1), count - 1)]
    validates = np.isin(np.arange(count), drawn)
    examples = {
        name: [example for example, chosen in zip(split.examples, validates, strict=True) if chosen == wanted]
        for name, wanted in (('train', False), ('validation', True))
    }
    return {'train': split._replace(examples=examples['train']), 'validation': Split(examples['validation'], [])}


def check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    """Refuses sizes that annotations give an image."""
    if height < 1 or width < 1 or height * width > max_pixels:
        raise DataError(f'{where}: {width} x {height} pixels must be positive and at most max_pixels={max_pixels}')


def find_file(name: str, folder: pathlib.Path, where: str, below: FilesBelow | None = None) -> pathlib.Path:
    """Finds the file that annotations name, inside a folder; links that the user has put there are followed anywhere.

    Backslashes separate folders where no file has them in its name. A name under which no file is found, because annotations
    were made in other folders or on another computer, is searched for by its last part; of several files so called, by more parts.

    Args:
        name: path relative to the folder. One that is absolute or has '..' is never followed.
        folder: folder of the images.
        where: name of the record in messages.
        below: the files in which to search for the last part; None to do without.

    Raises:
        DataError: there is no such file, or several may be meant.
    """
    slashes = name.replace('\\', '/')
    leads_out = pathlib.PurePath(slashes).is_absolute() or '..' in pathlib.PurePath(slashes).parts
    for spelling in () if leads_out else dict.fromkeys((name, slashes)):
        if os.path.exists(folder / spelling):
            if not os.path.isfile(folder / spelling):
                raise DataError(f'{where}: {folder / spelling} is not a file')
            return folder / spelling
    base_name = pathlib.PurePath(slashes).name
    found = below.named(base_name) if below else []
    shared = [_shared_parts(path, pathlib.PurePath(slashes)) for path in found]
    found = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
    if len(found) > 1:
        raise DataError(
            f'{where}: {name!r} may be {found[0]} or {found[1]}; write into file_name which, from {folder} on'
        )
    if found:
        return found[0]
    if leads_out:
        raise DataError(
            f'{where}: file_name {name!r} leads out of {folder}, in which no file is called {base_name!r}; '
            'use paths inside it'
        )
    raise DataError(f'{where}: there is no file {name!r} in {folder}')


def _shared_parts(path: pathlib.PurePath, other: pathlib.PurePath) -> int:
    """Counts the parts, from the last one on, that two paths have in common."""
    pairs = zip(reversed(path.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def check_box(box: Sequence[float], where: str, height: int, width: int) -> None:
    """Refuses a box (x, y, width, height) of finite numbers that has no area or leaves its image."""
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise DataError(f'{where}: bbox {box} has no positive width and height')
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        raise DataError(f'{where}: bbox {box} (x, y, width, height) leaves the image of {width} x {height} pixels')


def check_pixels(example: dict[str, Any], where: str, max_pixels: int, bit_depth: int | None = None) -> None:
    """Decodes an image file to the end and compares its size with that of the annotations."""
    try:
        data = example['image'].read_bytes()
    except OSError as error:
        raise DataError(f'{where}: cannot read the file: {error.strerror}') from error
    image = records.decode_image(data, name=where, max_pixels=max_pixels, strict=True, bit_depth=bit_depth)
    height, width = image.shape[:2]
    if (height, width) != (example['height'], example['width']):
        turned = '; its EXIF orientation may turn it: annotate it as it is seen, or remove the tag'
        raise DataError(
            f'{where}: the file has {width} x {height} pixels, the annotations say '
            f'{example["width"]} x {example["height"]}'
            f'{turned if (width, height) == (example["height"], example["width"]) else ""}'
        )


def check_files(
    examples: dict[str, dict[str, Any]], source: str, bad: BadRecords, max_pixels: int, bit_depth: int | None = None
) -> Split:
    """Checks the pixels of all images of a split.

    Args:
        examples: the records, by their names in messages.
        source: name of the split in messages.
        bad: the split's bad records, to which others are added.
        max_pixels: images with more pixels are bad records.
        bit_depth: see `records.decode_image`.

    Returns:
        the good records, in their order.

    Raises:
        DataError: a record is bad and not to be skipped, or no image is left.
    """
    good = []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        try:
            checks = [
                pool.submit(check_pixels, example, where, max_pixels, bit_depth) for where, example in examples.items()
            ]
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
    return Split(good, bad.messages, bad.left_out, bad.notes)


def write(
    name: str,
    categories: dict[int, str],
    splits: dict[str, Split],
    data_dir: AnyPath,
    *,
    annotations: str,
    overwrite: bool,
    bit_depth: int | None = None,
) -> Prepared:
    """Writes checked splits as a data set.

    Args:
        name: name of the data set.
        categories: [K] names by ascending id.
        splits: the splits by name.
        data_dir: folder of all data sets.
        annotations: the annotations' format, for the description: 'COCO'.
        overwrite: replace a data set of that name.
        bit_depth: images of 16 bits are stored in 8, from so many; None stores every file as it is.

    Raises:
        DataError: it cannot be written.
    """

    def make_builder(**kwargs: Any) -> Checked:
        return Checked(
            name=name, categories=categories, splits=splits, annotations=annotations, bit_depth=bit_depth, **kwargs
        )

    try:
        folder = records.write_dataset(make_builder, data_dir, overwrite=overwrite)
    except OSError as error:
        raise DataError(f'data set {name!r} was not written: {error}') from error
    return Prepared(folder, tuple(categories.values()), splits)
