"""The classes of a run: classes.json in its workdir."""

import json
import os
from typing import NamedTuple

from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.files import as_path


class Classes(NamedTuple):
    """The classes that a detector was trained on.

    class_names: [K] names, in the order of the labels.
    category_ids: [K] ids of the classes in the data.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def to_json(self) -> str:
        """Writes the text of classes.json."""
        return json.dumps(self._asdict(), indent=2) + '\n'


OBJECT = Classes(
    ('object',), (1,)
)  # of a detector that finds objects whatever their class, see `evaluation.coco.class_agnostic`


def classes_of(dataset: Dataset) -> Classes:
    """Takes the classes of a data set."""
    return Classes(dataset.class_names, dataset.category_ids)


def read_classes(path: str | os.PathLike) -> Classes:
    """Reads a workdir's classes.json.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is damaged.
    """
    try:
        content = json.loads(as_path(path).read_bytes())
        names, ids = (tuple(content[field]) for field in Classes._fields)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(
            f'{path}: cannot read the classes of this run ({type(error).__name__}: {error}). Restore the file from a copy; or '
            'remove it and train on in this workdir on the same data, which writes it again'
        ) from error
    if len(names) != len(ids):
        raise ConfigError(f'{path}: {len(names)} class_names but {len(ids)} category_ids: each class needs one of each')
    return Classes(names, ids)
