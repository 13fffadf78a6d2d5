"""Foreign weights in our variables: which entry of a file each of them takes, and what is done to it on the way.

    entries {name: array} -> prepared -> rules -> for each of our variables: its entry -> transposed -> (params, model_state)

Our tree leads: each variable asks for its entry, so nothing can be left out, and what nobody asked for is an error too,
unless the mapping declares that it is left. `fill` makes the variables, `report` a table of what it did.
"""

import os
import re
import zlib
from collections import abc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from detzoo.types import ModelState, Params

Entries = abc.Mapping[str, np.ndarray]
Template = tuple[Params, ModelState]  # arrays or shapes, as `Detector.init` or `jax.eval_shape` of it return them

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_TORCH_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}  # by rank, torch's axes in our order: OIHW -> HWIO, OI -> IO
_TRANSPOSED = {4: 'OIHW -> HWIO', 2: 'OI -> IO'}
_LISTED = 4  # entries a kind of an error message
ROI_SIDE = 7  # of the features of a RoI, cells, that fully connected layers read, in all published R-CNNs
LEFT_COUNTERS = (r'num_batches_tracked$', 'a counter of training')


class Rule(NamedTuple):
    """A change of entries that is more than another order of axes.

    pattern: a regular expression that is searched in their names.
    change: (array, name, entries) -> array.
    says: what it does, for the report.
    """

    pattern: str
    change: Callable[[np.ndarray, str, Entries], np.ndarray]
    says: str


class Mapping(NamedTuple):
    """How the entries of a kind of file become the variables of a kind of detector.

    name_of: from the path of one of our variables, without its collection ('backbone/stem_conv/kernel'), to the name of its
        entry; ValueError where the other side has no such layer.
    prepare: renames entries, or derives some from others; ValueError where they tell that they are another model's.
    rules: what is done to them.
    left: (pattern of names, reason) of entries that may be left over.
    anew: a pattern of our paths that keep the template's values where an entry is missing or of another shape; '' for none.
    transpose: whether kernels have torch's order of axes.
    """

    name_of: Callable[[str], str]
    prepare: Callable[[Entries], Entries] = lambda entries: entries
    rules: tuple[Rule, ...] = ()
    left: tuple[tuple[str, str], ...] = (LEFT_COUNTERS,)
    anew: str = ''
    transpose: bool = True


class Row(NamedTuple):
    """A line of the report.

    foreign: the name in the file, '' for a variable that starts anew.
    ours: the path of our variable, its collection first; '' for an entry that is left.
    shape: of our variable, or of the entry that is left.
    transform: what was done.
    checksum: of our variable, see `checksum`.
    """

    foreign: str
    ours: str
    shape: tuple[int, ...]
    transform: str
    checksum: str


def torch_names(module_of: Callable[[str], str], others: abc.Mapping[str, str] = {}) -> Callable[[str], str]:  # noqa: B006
    """Names entries as torch does: by their module, and 'weight', 'bias', 'running_mean' or 'running_var'.

    Args:
        module_of: from the path of one of our modules ('stage1_block1/conv1') to its name ('layer1.0.conv1').
        others: names of entries by the paths of our variables, where they are no module's leaves.

    Returns:
        `Mapping.name_of`.
    """

    def name_of(path: str) -> str:
        module, _, leaf = path.rpartition('/')
        return others.get(path) or f'{module_of(module)}.{_LEAVES[leaf]}'

    return name_of


def channels_last(array: np.ndarray, name: str, entries: Entries) -> np.ndarray:
    """Brings the inputs of the fully connected layer that reads RoIs from [C, s, s] to our [s, s, C]: a `Rule.change`."""
    if array.ndim != 2 or array.shape[1] % ROI_SIDE**2:  # another head, which is an error of its own
        return array
    return array.reshape(len(array), -1, ROI_SIDE**2).swapaxes(1, 2).reshape(array.shape)


def as_convolution(array: np.ndarray, name: str, entries: Entries) -> np.ndarray:
    """Turns the kernel of a deconvolution into the one of a convolution: a `Rule.change`.

    Torch's deconvolution spreads each input over the kernel, IOHW; ours convolves a grid with zeros between the inputs,
    where the kernel's first cell meets the input that torch's last one spread: OIHW, turned by half a turn.
    """
    return array.swapaxes(0, 1)[..., ::-1, ::-1]


def fill(mapping: Mapping, entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Makes variables of entries.

    Args:
        mapping: which of them where.
        entries: arrays by the names of their file.
        template: (params, model_state) of the detector, or of its backbone.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy but for what starts anew.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if the other side has no such detector.
    """
    variables = {path: value for path, value, _, _ in _assign(mapping, entries, template, source)}
    variables = flax.traverse_util.unflatten_dict(variables, sep='/')
    params = variables.pop('params')
    return params, {collection: variables.get(collection, {}) for collection in template[1]}


def report(mapping: Mapping, entries: Entries, template: Template, *, source: str = 'the entries') -> list[Row]:
    """Says of each variable where it is from and of each other entry why it is left; the arguments and errors are `fill`'s."""
    assigned = list(_assign(mapping, entries, template, source))
    in_file, taken = {id(array): name for name, array in entries.items()}, {name for _, _, name, _ in assigned}
    entries = mapping.prepare(entries)

    def written(name: str) -> str:
        """The name that an entry has in the file, unless it was derived from several."""
        return in_file.get(id(entries.get(name)), name)

    rows = [
        Row(written(name), path, tuple(value.shape), transform, checksum(value) if name else '')
        for path, value, name, transform in assigned
    ]
    left = [(name, _reason_to_leave(mapping, name)) for name in entries if name not in taken]
    return rows + [Row(written(name), '', entries[name].shape, f'left: {reason}', '') for name, reason in left]


def checksum(value: np.ndarray) -> str:
    """The CRC-32 of an array's bytes in C order, 8 hexadecimal digits."""
    return f'{zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}'


def check_values(arrays: abc.Mapping[str, np.ndarray], source: str | os.PathLike[str]) -> None:
    """Refuses, by a ValueError, what no training leaves, but a transfer that was broken off: no numbers, or zeros.

    Args:
        arrays: by their paths, such as 'params/backbone/stem_conv/kernel'.
        source: the file that they are from, for the message.
    """
    for path, value in arrays.items():
        kind = path.rpartition('/')[2]
        if not np.isfinite(value).all():
            what = 'has numbers that are not finite'
        elif kind == 'var' and (value < 0).any():
            what = 'is a variance, and negative'
        elif kind == 'kernel' and not value.any():
            what = 'is all zero'
        else:
            continue
        raise ValueError(f'{source}: what becomes {path} {what}: fetch the file again')


def flatten(variables: Template) -> dict[str, Any]:
    """Lists the leaves of (params, model_state) by their paths, which begin with the collection."""
    params, model_state = variables
    return flax.traverse_util.flatten_dict({'params': params, **model_state}, sep='/')


def _assign(mapping: Mapping, entries: Entries, template: Template, source: str) -> Iterator[tuple[str, Any, str, str]]:
    """Finds for each variable its path, value, the name of its entry ('' if it starts anew) and what was done to it."""
    try:
        entries = mapping.prepare(entries)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    found, asked, missing, misshapen, quantised = [], set(), [], [], []
    for path, leaf in flatten(template).items():
        path_in_collection = path.partition('/')[2]
        name = mapping.name_of(path_in_collection)
        asked.add(name)
        value, done = _changed(mapping, name, entries, source) if name in entries else (None, [])
        shape = None if value is None else value.shape
        if value is not None and value.dtype.kind in 'biu' and np.issubdtype(leaf.dtype, np.floating):
            quantised.append(f'{name} {value.dtype}')
        if value is not None and mapping.transpose and value.ndim in _TORCH_AXES:
            value, done = value.transpose(_TORCH_AXES[value.ndim]), [*done, _TRANSPOSED[value.ndim]]
        if value is not None and value.shape == tuple(leaf.shape):
            if value.dtype != leaf.dtype:
                done = [*done, f'{value.dtype} -> {leaf.dtype}']
            found.append((path, np.asarray(value, leaf.dtype, order='C'), name, '; '.join(done) or 'as it is'))
        elif mapping.anew and re.search(mapping.anew, path_in_collection):
            found.append(
                (path, leaf, '', 'starts anew: ' + ('no entry' if value is None else f'{name} is {list(shape)}'))
            )
        elif value is None:
            missing.append(name)
        else:
            misshapen.append(f'{name} {shape} where the model has {_in_file_order(mapping, tuple(leaf.shape))}')
    unused = [name for name in entries if name not in asked and _reason_to_leave(mapping, name) is None]
    problems = {'missing': missing, 'of another shape': misshapen, 'quantised': quantised, 'unused': unused}
    if any(problems.values()):
        listed = '; '.join(f'{kind}: {_listed(names)}' for kind, names in problems.items() if names)
        raise ValueError(
            f'{source}: not the weights of this model: {listed}. Give a file of this model, or set its '
            f'backbone.name, backbone.width, backbone.norm and num_classes to those of the file{_common_prefix(list(entries))}'
        )
    yield from found


def _changed(mapping: Mapping, name: str, entries: Entries, source: str) -> tuple[np.ndarray, list[str]]:
    """Applies the rules that concern an entry: the array, and what they say."""
    array, done = entries[name], []
    for rule in mapping.rules:
        if re.search(rule.pattern, name):
            try:
                array, done = rule.change(array, name, entries), [*done, rule.says]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f'{source}: not the weights of this model: {name} {entries[name].shape}, of which "{rule.says}" '
                    f'cannot be made ({error}). Give a file of this model'
                ) from error
    return array, done


def _common_prefix(names: list[str]) -> str:
    """A hint at names that all begin alike, as wrappers around a model make them."""
    prefix = names[0].partition('.')[0] + '.' if names else ''
    alike = len(names) > 1 and all(name.startswith(prefix) for name in names)
    return f'. All names begin with {prefix!r}: save the state dict without it' if alike else ''


def _reason_to_leave(mapping: Mapping, name: str) -> str | None:
    return next((reason for pattern, reason in mapping.left if re.search(pattern, name)), None)


def _in_file_order(mapping: Mapping, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an entry of a file has for a variable of ours."""
    axes = _TORCH_AXES.get(len(shape)) if mapping.transpose else None
    return shape if axes is None else tuple(shape[axes.index(axis)] for axis in range(len(axes)))


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ', '.join(names[:_LISTED]) + (f' and {more} more' if more > 0 else '')
