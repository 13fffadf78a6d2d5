"""The data sets by name: the only door through which the project opens data.

builders()                -> detzoo's own data sets, which are prepared on first use
open_dataset(name, split) -> Dataset: class names, category ids, and records with random access
open_split(settings, split) -> the same, for the group `data` of a config
"""

import os
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from detzoo.data.classes import with_classes
from detzoo.data.made import histology, shapes, shapes_spaced, shapes_tree
from detzoo.data.records import DESCRIPTION, Dataset, Records, data_source, write_dataset
from detzoo.data.truth import Stored, file_name
from detzoo.errors import DataError
from detzoo.files import AnyPath, as_path


def open_dataset(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens a split of a data set; detzoo's own are prepared on first use.

    Args:
        name: 'shapes', 'histology', or a name given to `detzoo prepare`.
        split: 'train' or 'validation', or a slice of them in TFDS's notation ('train[:10%]').
        data_dir: folder of all data sets; None is TFDS's default (~/tensorflow_datasets, or $TFDS_DATA_DIR).

    Raises:
        DataError: there is no such data set or split, or it was not prepared by detzoo.
    """
    data_dir = data_root(data_dir)
    make_builder = builders().get(name)
    folder = _prepared_on_first_use(make_builder, data_dir) if make_builder else _newest_version(name, data_dir)
    builder = tfds.builder_from_directory(folder)
    if 'category_ids' not in (builder.info.metadata or {}):
        raise DataError(f'{folder} was not prepared by detzoo; prepare it under another name: {_remedy("NEW_NAME")}')
    try:
        source = data_source(builder, split)
    except ValueError as error:
        raise DataError(f'data set {name!r} has no records for split {split!r}: {error}') from error
    frequencies = builder.info.metadata.get('frequencies')
    return Dataset(
        name=name,
        split=split,
        class_names=tuple(builder.info.features['objects']['label'].names),
        category_ids=tuple(builder.info.metadata['category_ids']),
        records=Records(source, _stored_truth(builder, split)),
        checksum=builder.info.metadata.get('checksum'),
        frequencies=None if frequencies is None else tuple(frequencies),
    )


def open_split(settings: Mapping[str, Any], split: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens a split of the data of a config, under the classes that it names.

    Args:
        settings: the group `data` of a config.
        split: 'train', 'validation' or 'labelled': `{split}_split` is the key that names it.
        data_dir: folder of all data sets; None is the config's.

    Raises:
        DataError: as `open_dataset`, or the classes do not fit.
    """
    name = settings['labelled_name'] or settings['name'] if split == 'labelled' else settings['name']
    dataset = open_dataset(name, settings[f'{split}_split'], data_dir or settings['data_dir'])
    return with_classes(dataset, settings['class_names'], dict(settings['renamed']))


def data_root(data_dir: str | os.PathLike | None) -> AnyPath:
    """Returns the folder of all data sets: the given one, or TFDS's default."""
    return as_path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def builders() -> dict[str, type[tfds.core.DatasetBuilder]]:
    """Returns the builders of detzoo's own data sets, which need nothing from the user."""
    return {
        'shapes': shapes.Shapes,
        'shapes_tree': shapes_tree.ShapesTree,
        'shapes_apart': shapes_spaced.ShapesApart,
        'shapes_touching': shapes_spaced.ShapesTouching,
        'shapes_overlapping': shapes_spaced.ShapesOverlapping,
        'histology': histology.Histology,
    }


def _prepared_on_first_use(make_builder: type[tfds.core.DatasetBuilder], data_dir: AnyPath) -> AnyPath:
    folder = data_dir / make_builder.name / str(make_builder.VERSION)
    if not (folder / DESCRIPTION).exists():
        try:
            write_dataset(make_builder, data_dir)
        except OSError:
            if not (folder / DESCRIPTION).exists():  # otherwise another process was quicker, with the same records
                raise
    return folder


def _stored_truth(builder: tfds.core.DatasetBuilder, split: str) -> tuple[AnyPath, Stored] | None:
    """Finds the file of a split's annotations; None for part of a split, and where an older detzoo prepared the data."""
    stored = builder.info.metadata.get('truth', {}).get(split)
    return None if stored is None else (builder.data_path / file_name(split), Stored(*stored))


def _newest_version(name: str, data_dir: AnyPath) -> AnyPath:
    versions = [path.parent for path in data_dir.glob(f'[!.]*/*/{DESCRIPTION}')]
    folders = [folder for folder in versions if folder.parent.name == name]
    if not folders:
        names = sorted({folder.parent.name for folder in versions} | set(builders()))
        raise DataError(f'no data set {name!r} in {data_dir}; there: {", ".join(names)}. To add it: {_remedy(name)}')
    return max(folders, key=lambda folder: tfds.core.Version(folder.name))


def _remedy(name: str) -> str:
    return (
        f'detzoo prepare --format=coco --name={name} --train_annotations=A.json --train_images=DIR '
        '--validation_annotations=B.json --validation_images=DIR'
    )
