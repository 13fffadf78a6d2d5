"""Ultralytics' data.yaml: the names of the classes, and where the images of each split are.

path: ../coco8        the folder of the data
train: images/train   a folder, a file that lists images, or a list of both kinds
val: images/val
names: {0: person, 1: bicycle}
"""

import os
import pathlib
from typing import Any, NamedTuple

import yaml

from detzoo.data.readers import folders
from detzoo.errors import DataError

LARGEST, DEEPEST = 2**19, 20  # bytes; lists in lists


class Description(NamedTuple):
    """What data.yaml says.

    class_names: [K].
    keypoints: numbers that follow a box in its line.
    root: the folder to which its paths are relative.
    entries: folders and lists of each split: {'train': ..., 'validation': ...}; a split that it does not name is missing.
    """

    class_names: tuple[str, ...]
    keypoints: int
    root: pathlib.Path
    entries: dict[str, list[str]]


def read_description(path: pathlib.Path) -> Description:
    """Reads data.yaml.

    Raises:
        DataError: it cannot be read, or says something else.
    """
    text = folders.read_text(path, LARGEST)
    try:
        strange = _strange_part(text)
        content = None if strange else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's, for bad YAML
        raise DataError(f'{path}: not YAML ({_short(error)}); copy or export it again') from error
    if strange:
        raise DataError(f'{path}: {strange} cannot be read; write the values out')
    if not isinstance(content, dict):
        raise DataError(f'{path}: it must have the keys train, val and names; name the data.yaml of the data set')
    entries = {
        split: _entries(content[key], f'{path}: {key}')
        for split, key in (('train', 'train'), ('validation', 'val'))
        if content.get(key) is not None
    }
    if 'train' not in entries:
        raise DataError(f'{path}: it names no training images; add `train: FOLDER`')
    names = _class_names(content.get('names'), path)
    if content.get('nc', len(names)) != len(names):
        raise DataError(
            f'{path}: nc is {_short(content["nc"])}, but names has {len(names)} classes; correct one of them'
        )
    return Description(names, _keypoints(content.get('kpt_shape'), path), _root(content.get('path'), path), entries)


def _strange_part(text: str) -> str:
    """Names what makes a small YAML file take long to read, if it has any: aliases, which repeat what they name, or nesting."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            return f'the alias *{_short(event.anchor)}'
        if depth > DEEPEST:
            return f'lists nested more than {DEEPEST} deep'
    return ''


def _root(value: Any, path: pathlib.Path) -> pathlib.Path:
    """Returns the folder that `path` names, relative to data.yaml or to the working folder; data.yaml's own if it is not there."""
    if value is not None and not isinstance(value, str):
        raise DataError(f'{path}: path must be text, not {_short(value)}')
    tried = [path.parent / (value or '.'), pathlib.Path(value or '.')]
    return pathlib.Path(os.path.abspath(next(filter(os.path.isdir, tried), path.parent)))


def _entries(value: Any, where: str) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(f'{where} must be a path or a list of paths, not {_short(value)}')
    return entries


def _class_names(names: Any, path: pathlib.Path) -> tuple[str, ...]:
    """Reads names by number, or in their order."""
    if isinstance(names, dict):
        by_number = {
            int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key: name
            for key, name in names.items()
        }
        if len(by_number) != len(names) or any(type(key) is not int for key in by_number):
            raise DataError(f'{path}: the keys of names must be different whole numbers')
        if set(by_number) != set(range(len(by_number))):
            raise DataError(f'{path}: the keys of names must be 0 to {len(by_number) - 1}, with none left out')
        names = [by_number[number] for number in range(len(by_number))]
    if not isinstance(names, list):
        raise DataError(f'{path}: names must list the classes, not {_short(names)}')
    for name in names:
        if not isinstance(name, str) and type(name) not in (int, float):
            raise DataError(f'{path}: the class name {_short(name)} is not text to YAML; put it in quotes')
    return folders.check_class_names([str(name) for name in names], f'{path}: names')


def _keypoints(shape: Any, path: pathlib.Path) -> int:
    """Returns how many numbers of key points follow a box."""
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or any(type(n) is not int or not 0 < n < 10**6 for n in shape):
        raise DataError(f'{path}: kpt_shape must be two whole numbers, not {_short(shape)}')
    return shape[0] * shape[1]


def _short(value: Any) -> str:
    """Writes a value, or an error's message, as one line that is not long."""
    text = ' '.join(str(value).split())
    return text if len(text) < 100 else f'{text[:100]}...'
