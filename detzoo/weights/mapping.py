"""Foreign weights as our variables: which entry of a file becomes which variable, and how it is changed.

    entries {name: array} -> prepare -> for each of our variables: its entry -> rules -> transpose -> (params, model_state)

Our tree leads: each variable asks for its entry, so no variable is left out. An entry that no variable asked for is an
error too, unless the mapping says that it is left. `fill` makes the variables and reports what it did, row by row.
"""

import os
import re
import zlib
from collections import abc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from detzoo.errors import listed
from detzoo.types import ModelState, Params

Entries = abc.Mapping[str, np.ndarray]
Template = tuple[Params, ModelState]  # arrays or shapes, as `Detector.init` or `jax.eval_shape` of it return them

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_TORCH_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}  # by rank, torch's axes in our order: OIHW -> HWIO, OI -> IO
_TRANSPOSED = {4: 'OIHW -> HWIO', 2: 'OI -> IO'}
_LISTED = 4  # entries of a kind in an error message
ROI_SIDE = 7  # cells along a side of the RoI features that fully connected layers read, in all published R-CNNs
LEFT_COUNTERS = (r'num_batches_tracked$', 'a counter of training')


class Rule(NamedTuple):
    """A change of entries beyond another order of axes.

    pattern: a regular expression, searched for in the entries' names.
    change: (array, name, entries) -> array.
    says: what the rule does, for the report.
    """

    pattern: str
    change: Callable[[np.ndarray, str, Entries], np.ndarray]
    says: str


class Mapping(NamedTuple):
    """How the entries of a kind of file become the variables of a kind of detector.

    name_of: maps the path of one of our variables, without its collection ('backbone/stem_conv/kernel'), to the name of its
        entry; raises ValueError where the other side has no such layer.
    prepare: renames entries, or derives some from others; raises ValueError if they are visibly another model's.
    rules: changes of entries.
    left: (pattern of names, reason) for entries that may be left over.
    anew: pattern of our paths; these keep the template's values if their entry is missing or has another shape. '' for none.
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

    foreign: the entry's name in the file; '' for a variable that starts anew.
    ours: the path of our variable, its collection first; '' for an entry that is left.
    shape: our variable's shape, or that of the entry that is left.
    transform: what was done.
    checksum: our variable's `checksum`.
    """

    foreign: str
    ours: str
    shape: tuple[int, ...]
    transform: str
    checksum: str


class Filled(NamedTuple):
    """Variables made from a file.

    variables: (params, model_state).
    rows: the report: where each variable comes from, and what of the file is left.
    """

    variables: Template
    rows: list[Row]


def torch_names(module_of: Callable[[str], str], others: abc.Mapping[str, str] = {}) -> Callable[[str], str]:  # noqa: B006
    """Makes a `Mapping.name_of` for torch's names: a module's, then 'weight', 'bias', 'running_mean' or 'running_var'.

    Args:
        module_of: maps the path of one of our modules ('stage1_block1/conv1') to torch's name of it ('layer1.0.conv1').
        others: entries' names by the paths of our variables, for those that are named otherwise.
    """

    def name_of(path: str) -> str:
        module, _, leaf = path.rpartition('/')
        return others.get(path) or f'{module_of(module)}.{_LEAVES[leaf]}'

    return name_of


def channels_last(array: np.ndarray, name: str, entries: Entries) -> np.ndarray:
    """Reorders the inputs of the fully connected layer that reads RoIs from [C, s, s] to our [s, s, C]; a `Rule.change`."""
    if array.ndim != 2 or array.shape[1] % ROI_SIDE**2:  # another head, which `fill` refuses by its shape
        return array
    return array.reshape(len(array), -1, ROI_SIDE**2).swapaxes(1, 2).reshape(array.shape)


def as_convolution(array: np.ndarray, name: str, entries: Entries) -> np.ndarray:
    """Turns the kernel of a deconvolution into that of a convolution; a `Rule.change`.

    Torch's deconvolution spreads each input over the kernel (IOHW). Ours convolves a grid with zeros between the inputs, so
    the kernel's first cell meets the input that torch's last cell spreads: OIHW, rotated by half a turn.
    """
    return array.swapaxes(0, 1)[..., ::-1, ::-1]


def fill(
    mapping: Mapping, entries: Entries, template: Template, *, source: str | os.PathLike = 'the entries'
) -> Filled:
    """Makes variables from entries.

    Args:
        mapping: which entries become which variables.
        entries: arrays by their names in the file.
        template: (params, model_state) of the detector, or of its backbone.
        source: name of the file in error messages.

    Returns:
        variables like the template, numpy except for those that start anew; and the report.

    Raises:
        ValueError: an entry is missing, has another shape, or is left over; or the other side has no such detector.
    """
    try:
        prepared = mapping.prepare(entries)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    assigned = _assign(mapping, prepared, template, source)
    variables = flax.traverse_util.unflatten_dict({each.path: each.value for each in assigned}, sep='/')
    params = variables.pop('params')
    model_state = {collection: variables.get(collection, {}) for collection in template[1]}
    return Filled((params, model_state), _report(mapping, entries, prepared, assigned))


def checksum(value: np.ndarray) -> str:
    """The CRC-32 of an array's bytes in C order, 8 hexadecimal digits."""
    return f'{zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}'


def check_values(arrays: abc.Mapping[str, np.ndarray], source: str | os.PathLike[str]) -> None:
    """Refuses numbers that no training leaves, but an incomplete download may: NaNs, negative variances, kernels of zeros.

    Args:
        arrays: variables by their paths, such as 'params/backbone/stem_conv/kernel'.
        source: name of the file in the error message.

    Raises:
        ValueError: there are such numbers.
    """
    for path, value in arrays.items():
        kind = path.rpartition('/')[2]
        if not np.isfinite(value).all():
            what = 'has numbers that are not finite'
        elif kind == 'var' and (value < 0).any():
            what = 'has negative variances'
        elif kind == 'kernel' and not value.any():
            what = 'is all zero'
        else:
            continue
        raise ValueError(f'{source}: the entry for {path} {what}: fetch the file again')


def flatten(variables: Template) -> dict[str, Any]:
    """Lists the leaves of (params, model_state) by their paths, which begin with the collection."""
    params, model_state = variables
    return flax.traverse_util.flatten_dict({'params': params, **model_state}, sep='/')


class _Assigned(NamedTuple):
    """A variable and where it comes from.

    path: the variable's path, its collection first.
    value: an array; the template's leaf if the variable starts anew.
    name: the entry's name, '' if the variable starts anew.
    transform: what was done.
    """

    path: str
    value: Any
    name: str
    transform: str


def _assign(mapping: Mapping, entries: Entries, template: Template, source: str | os.PathLike) -> list[_Assigned]:
    """Gives each variable of the template its prepared entry; the errors are those of `fill`."""
    assigned, asked, missing, misshapen, quantised = [], set(), [], [], []
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
            value = np.asarray(value, leaf.dtype, order='C')
            assigned.append(_Assigned(path, value, name, '; '.join(done) or 'as it is'))
        elif mapping.anew and re.search(mapping.anew, path_in_collection):
            why = 'no entry' if value is None else f'{name} is {list(shape)}'
            assigned.append(_Assigned(path, leaf, '', f'starts anew: {why}'))
        elif value is None:
            missing.append(name)
        else:
            misshapen.append(f'{name} {shape} where the model has {_in_file_order(mapping, tuple(leaf.shape))}')
    unused = [name for name in entries if name not in asked and _reason_to_leave(mapping, name) is None]
    problems = {'missing': missing, 'of another shape': misshapen, 'quantised': quantised, 'unused': unused}
    if any(problems.values()):
        found = '; '.join(f'{kind}: {listed(names, most=_LISTED)}' for kind, names in problems.items() if names)
        raise ValueError(
            f'{source}: not the weights of this model: {found}. Give a file of this model, or set its '
            f'backbone.name, backbone.width, backbone.norm and num_classes to those of the file{_common_prefix(list(entries))}'
        )
    return assigned


def _report(mapping: Mapping, entries: Entries, prepared: Entries, assigned: Iterable[_Assigned]) -> list[Row]:
    """Lists where each variable comes from, then why each remaining entry is left."""
    in_file, taken = {id(array): name for name, array in entries.items()}, {each.name for each in assigned}

    def written(name: str) -> str:
        """The name that an entry has in the file, unless it was derived from several."""
        return in_file.get(id(prepared.get(name)), name)

    rows = [
        Row(
            written(each.name),
            each.path,
            tuple(each.value.shape),
            each.transform,
            checksum(each.value) if each.name else '',
        )
        for each in assigned
    ]
    left = [(name, _reason_to_leave(mapping, name)) for name in prepared if name not in taken]
    return rows + [Row(written(name), '', prepared[name].shape, f'left: {reason}', '') for name, reason in left]


def _changed(mapping: Mapping, name: str, entries: Entries, source: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """Applies the rules for an entry: returns the array, and what the rules say."""
    array, done = entries[name], []
    for rule in mapping.rules:
        if re.search(rule.pattern, name):
            try:
                array, done = rule.change(array, name, entries), [*done, rule.says]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f'{source}: not the weights of this model: the rule "{rule.says}" fails for {name} '
                    f'{entries[name].shape} ({error}). Give a file of this model'
                ) from error
    return array, done


def _common_prefix(names: list[str]) -> str:
    """Adds a hint if all names begin alike, as a wrapper around the model makes them."""
    prefix = names[0].partition('.')[0] + '.' if names else ''
    alike = len(names) > 1 and all(name.startswith(prefix) for name in names)
    return f'. All names begin with {prefix!r}: save the state dict without it' if alike else ''


def _reason_to_leave(mapping: Mapping, name: str) -> str | None:
    """Why an entry may be left over; None if it may not."""
    return next((reason for pattern, reason in mapping.left if re.search(pattern, name)), None)


def _in_file_order(mapping: Mapping, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a variable of ours as its entry in the file has it."""
    axes = _TORCH_AXES.get(len(shape)) if mapping.transpose else None
    return shape if axes is None else tuple(shape[axes.index(axis)] for axis in range(len(axes)))
