"""The classes of a run: what classes.json in its workdir holds."""

import json
import os
import pathlib
from typing import NamedTuple

from detzoo.errors import ConfigError


class Classes(NamedTuple):
    """The classes a detector was trained on.

    class_names: [K], in the order of the labels.
    category_ids: [K], the data's own ids.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_classes(path: str | os.PathLike) -> Classes:
    """Reads a workdir's classes.json.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it holds something else.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text('utf-8'))
        names, ids = (tuple(content[field]) for field in Classes._fields)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(
            f'{path}: cannot read the classes of this run ({type(error).__name__}: {error}). Restore the file from a copy, or '
            'remove it and train on in this workdir on the same data, which writes it anew'
        ) from error
    if len(names) != len(ids):
        raise ConfigError(f'{path}: {len(names)} class_names but {len(ids)} category_ids: each class needs one of each')
    return Classes(names, ids)
