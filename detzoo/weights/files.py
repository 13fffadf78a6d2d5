"""Files of weights: arrays by their names, read without torch and without running anything that a file brings along.

    bytes -> their kind, by what they are, not by the file's name
      safetensors -> arrays
      pickles -> plain values, in which an `_Array` describes each array -> its state dict -> arrays, views of the file's bytes

Pickles are what torch.save writes, since torch 1.6 into a zip file with the storages beside it, before in front of the
storages; and detectron2's .pkl files, which have numpy's arrays in them.

A pickle is a program: what it names is imported, and called. Python's own unpickler can be told what it may import, but
trusts the rest; so `_unpickle` runs the program itself. It knows the steps that weights take, and the few objects they
name, for which our stand-ins are called: `_OBJECTS`. All else is refused where it is named. Sizes that a file declares are
held against the bytes it has before anything is made of them.
"""

import codecs
import dataclasses
import functools
import io
import itertools
import json
import math
import operator
import os
import pathlib
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from detzoo.files import new_file

# Around the state dict: training scripts of torch, Lightning and mmdetection, others, Caffe2.
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'blobs')
_MOST_STEPS = 2_000_000  # of a pickle; a state dict takes some 30 for an array
_MOST_AXES = 32
_MOST_ARGUMENTS = 16  # of what a pickle calls
_MOST_LETTERS = 1000  # of a name in it
_LARGEST_KEY = 2**60  # whole numbers up to here have hashes of their own
_MAGIC = 0x1950A86A20F9469CFC6C  # the first thing in a file of torch before 1.6
_LISTED = 4  # entries of an error message

_AGAIN = 'fetch the file again'
_BIG_ENDIAN = 'written big-endian: on such a machine write it as safetensors'
_SAVE_ALONE = (
    'save the state dict alone. In torch, if you trust the file: x = torch.load(old, weights_only=False); then '
    "torch.save(x['model'], new) if it is a checkpoint of training, torch.save(x.state_dict(), new) if it is a whole model"
)


class _Refusal(Exception):
    """Why a file is not read, and what to do about it."""


# What damaged bytes make of Python's, zipfile's and safetensors' readers.
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    struct.error, zipfile.BadZipFile, safetensors.SafetensorError,
)  # fmt: skip


def read_entries(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a weight file by their names; the kind is found by content, not by suffix.

    Args:
        path: of a .safetensors file, of a state dict or a checkpoint that torch saved (.pth, .pt), or of a pickle of
            numpy's arrays as detectron2 publishes them (.pkl).

    Returns:
        {name: array of the file's own dtype}, in the order of the pickle, of safetensors in that of the names. Arrays may
        be read-only, of any strides, and share their memory where the file shares it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, damaged, or has anything but arrays; the message says what to do.
    """
    return _named(path, lambda data: _reader_of(data)(data))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads what a safetensors file says of itself, {} if nothing; the errors are those of `read_entries`."""

    def metadata(data: bytes) -> dict[str, str]:
        if _reader_of(data) is not _read_safetensors:
            raise _Refusal('only safetensors files have metadata: give one of these')
        with safetensors.safe_open(path, framework='numpy') as file:
            return file.metadata() or {}

    return _named(path, metadata)


def write_entries(path: str | os.PathLike[str], entries: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays to a safetensors file, complete or not at all; the same arrays and metadata give the same bytes.

    The library's own writer puts the metadata in an order that changes from run to run.

    Args:
        path: of the file; one that is there already is replaced.
        entries: {name: array of a dtype that `read_entries` gives}.
        metadata: what the file says of itself.

    Raises:
        ValueError: if safetensors has no such name, dtype or metadata.
    """
    arrays = {name: np.asarray(array) for name, array in entries.items()}
    kinds = {
        name: [kind for kind, dtype in _SAFETENSORS.items() if dtype == array.dtype] for name, array in arrays.items()
    }
    for name, array in arrays.items():
        if not isinstance(name, str) or name == '__metadata__' or not kinds[name]:
            raise ValueError(f'{path}: cannot have {name!r} of dtype {array.dtype}: rename or convert it')
    wrong = [key for key, value in metadata.items() if not (isinstance(key, str) and isinstance(value, str))]
    if wrong:
        raise ValueError(f'{path}: its metadata are texts by their names: make texts of {_listed(wrong)}')

    header, end = {'__metadata__': dict(metadata)}, 0
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))  # so that all are aligned
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {'dtype': kinds[name][0], 'shape': array.shape, 'data_offsets': (start, end)}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)

    with new_file(path) as scratch, open(scratch, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.writelines(array.tobytes() for array in arrays.values())


def _named(path: str | os.PathLike[str], read: Callable[[bytes], Any]) -> Any:
    """Reads the bytes of a file, and puts its name into what is wrong with them."""
    if os.path.isdir(path):
        raise ValueError(f'{path}: a folder: give the file of weights in it')
    data = pathlib.Path(path).read_bytes()
    try:
        return read(data)
    except _Refusal as refusal:
        raise ValueError(f'{path}: {refusal}') from refusal
    except _DAMAGE as error:
        raise ValueError(f'{path}: damaged or cut off ({type(error).__name__}: {error!s:.200}): {_AGAIN}') from error


def _reader_of(data: bytes) -> Callable[[bytes], dict[str, np.ndarray]]:
    """Finds the reader of a file by its first bytes."""
    if data.startswith(b'PK\3\4'):
        return _read_zip
    if data[5:9] == b'\0\0\0{':  # the length of a header in 8 bytes, and the header, JSON
        return _read_safetensors
    if data.startswith((b'\x80', b'(d', b'}q', b'ccollections\n')):  # a protocol, or a dict of protocols 0 and 1
        return _read_pickle
    raise _Refusal(
        what_instead(data)
        or f'no weights that are known (it begins with {data[:8].hex(" ")}): give a .safetensors '
        "file, what torch.save wrote (.pth, .pt), or a pickle of numpy's arrays (.pkl)"
    )


def what_instead(data: bytes) -> str:
    """Says what often lies where weights should, and what to do about it; '' if the bytes are nothing of that."""
    if not data:
        return f'empty: {_AGAIN}'
    if data[:1024].lstrip().lower().startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--')):
        return 'a web page instead of weights: fetch it again from the address of the file itself'
    if data.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS instead of weights: run `git lfs pull` where it lies'
    return ''


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    entries = {}
    for name, tensor in sorted(safetensors.deserialize(data), key=operator.itemgetter(0)):  # they come in no order
        if tensor['dtype'] not in _SAFETENSORS:
            raise _Refusal(f'{name!r} has the dtype {tensor["dtype"]}: convert it to one of {", ".join(_SAFETENSORS)}')
        entries[name] = np.frombuffer(tensor['data'], _SAFETENSORS[tensor['dtype']]).reshape(tensor['shape'])
    return entries


# Pickles, and where their arrays lie.


class _Storage(NamedTuple):
    """A run of numbers that lies outside of the pickle.

    key: its name there; dtype: of the numbers; first, count: which of them, of those under that name.
    """

    key: str
    dtype: np.dtype
    first: int
    count: int


@dataclasses.dataclass(eq=False)
class _Array:
    """An array as a pickle describes it; of numpy's, what is empty here is filled in after it was named.

    storage: what holds its numbers: outside, or bytes in the pickle, as text (latin-1) by some protocols.
    offset, strides: in numbers, not in bytes.
    """

    storage: _Storage | bytes | str | None = None
    dtype: np.dtype | None = None
    offset: int = 0
    shape: Sequence[int] = ()
    strides: Sequence[int] = ()


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    """Reads what torch writes since 1.6: a zip file with FOLDER/data.pkl, FOLDER/data/KEY of each storage, and others."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {record.filename: record for record in archive.infolist()}
        folder = next((name.removesuffix('data.pkl') for name in records if name.endswith('/data.pkl')), None)
        if folder is None:
            raise _Refusal(
                "a zip file, but none of torch's, which have a data.pkl in a folder: unpack it, or convert it"
            )
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise _Refusal('compressed, as torch writes none: unpack it, and zip the folder again by `zip -r -0`')
        if sum(record.file_size for record in records.values()) > len(data):
            raise _Refusal(f'it declares more bytes than it has ({len(data)}): {_AGAIN}')
        if f'{folder}byteorder' in records and archive.read(f'{folder}byteorder') != b'little':
            raise _Refusal(_BIG_ENDIAN)

        def stored(kind: str, dtype: np.dtype, key: str, device: str, count: int) -> _Storage:
            return _Storage(str(_plain(key)), dtype, 0, count)

        def bytes_of(key: str) -> bytes:
            return archive.read(f'{folder}data/{key}')

        tree = _unpickle(io.BytesIO(archive.read(f'{folder}data.pkl')), stored)
        return _arrays(_state_dict(tree), bytes_of)


def _read_pickle(data: bytes) -> dict[str, np.ndarray]:
    """Reads a pickle of arrays; or what torch wrote before 1.6: pickles, and the storages behind them."""
    stream = io.BytesIO(data)
    tree = _unpickle(stream)
    if tree != _MAGIC:
        return _arrays(_state_dict(tree), {}.__getitem__)  # all lie in the pickle

    _, system = _unpickle(stream), _unpickle(stream)
    if not system['little_endian']:
        raise _Refusal(_BIG_ENDIAN)
    dtypes = {}

    def stored(kind: str, dtype: np.dtype, key: str, device: str, count: int, view: tuple | None) -> _Storage:
        dtypes[str(_plain(key))] = dtype
        _, first, count = view or (key, 0, count)  # the oldest make views of storages, too
        return _Storage(str(key), dtype, first, count)

    tree = _unpickle(stream, stored)
    places = {}
    for key in map(_plain, _unpickle(stream)):
        count = int.from_bytes(stream.read(8), 'little')
        start, end = stream.tell(), stream.tell() + count * dtypes[str(key)].itemsize
        places[str(key)] = slice(start, end)
        stream.seek(end)
    return _arrays(_state_dict(tree), lambda key: data[places[key]])


def _state_dict(tree: Any) -> dict[str, _Array]:
    """Finds the arrays by their names in what a pickle holds."""
    if not isinstance(tree, dict):
        raise _Refusal(f'it holds a {type(tree).__name__.strip("_")} and no state dict: {_SAVE_ALONE}')
    tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), dict)), tree)
    entries = {name.decode('latin-1') if isinstance(name, bytes) else name: value for name, value in tree.items()}
    others = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, _Array))]
    if others:
        raise _Refusal(f'among its arrays it has other things: {_listed(others)}: {_SAVE_ALONE}')
    return entries


def _arrays(described: Mapping[str, _Array], bytes_of: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Makes arrays of their descriptions.

    Args:
        described: by their names.
        bytes_of: gives all bytes that lie under a storage's key.
    """
    outside = functools.cache(bytes_of)  # many arrays may lie in one
    inside = functools.cache(lambda text: text.encode('latin-1'))

    def buffer_of(storage: _Storage | bytes | str) -> bytes | memoryview:
        if isinstance(storage, bytes):
            return storage
        return inside(storage) if isinstance(storage, str) else _part(outside(storage.key), storage)

    entries = {}
    for name, array in described.items():
        try:
            entries[name] = _view(array, buffer_of(array.storage))
        except _Refusal as refusal:
            raise _Refusal(f'{name!r:.200}: {refusal}') from refusal
    return entries


def _part(data: bytes, storage: _Storage) -> memoryview:
    """Cuts out the bytes of a storage; refused if there are fewer."""
    first, end = (_checked(n) * storage.dtype.itemsize for n in (storage.first, storage.first + storage.count))
    if not first <= end <= len(data):
        raise _Refusal(f'it lies in bytes {first} to {end} of {len(data)} of its storage: {_AGAIN}')
    return memoryview(data)[first:end]


def _view(array: _Array, data: bytes | memoryview) -> np.ndarray:
    """Makes a read-only array on bytes; refused if they are too few for its shape and strides."""
    axes = list(zip(_checked_axes(array.shape), _checked_axes(array.strides), strict=True))
    item = array.dtype.itemsize
    size, there = math.prod(array.shape), len(data) // item
    if size == 0:
        return np.zeros(array.shape, array.dtype)
    last = _checked(array.offset) + sum((length - 1) * stride for length, stride in axes)
    if last >= there:
        raise _Refusal(
            f'{list(array.shape)} at strides of {list(array.strides)} from {array.offset} takes number {last} '
            f'of {there} (from 0): {_AGAIN}'
        )
    if size > there:  # by strides of 0 there could be any number
        raise _Refusal(f'{list(array.shape)} repeats {there} numbers: save tensor.contiguous()')
    return np.ndarray(array.shape, array.dtype, data, array.offset * item, [stride * item for stride in array.strides])


def _checked_axes(axes: Sequence[Any]) -> Sequence[int]:
    """Gives lengths or strides as they are; refused if they cannot be those of an array."""
    if not isinstance(axes, tuple | list) or len(axes) > _MOST_AXES:
        raise _Refusal(f'its shape or its strides are none: {_AGAIN}')
    return [_checked(number) for number in axes]


def _checked(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise _Refusal(f'a length, a stride or a place is no natural number: {_AGAIN}')
    return number


def _plain(name: Any) -> str | int:
    """Gives a name as it is; refused if it is none: a tuple that holds itself many times has a text larger than any memory."""
    if not isinstance(name, str | int) or isinstance(name, str) and len(name) > _MOST_LETTERS:
        raise _Refusal(f'a {type(name).__name__.strip("_")} in place of a name: {_AGAIN}')
    return name


def _listed(names: Sequence[Any]) -> str:
    more = len(names) - _LISTED
    return ', '.join(f'{name!r:.80}' for name in names[:_LISTED]) + (f' and {more} more' if more > 0 else '')


# What a pickle names, and our stand-ins for it.


def _filled(mapping: dict, keys: Sequence[Any], values: Sequence[Any]) -> dict:
    """Adds items to a dict, if their keys are plain; of larger integers any number have one hash, which makes dicts slow."""
    if not all(isinstance(key, str | bytes | int | float | None) for key in keys):
        raise TypeError('a key that is no text and no number')
    if any(isinstance(key, int) and abs(key) > _LARGEST_KEY for key in keys):
        raise ValueError(f'a key beyond {_LARGEST_KEY}')
    mapping.update(zip(keys, values, strict=True))
    return mapping


def _ordered_dict(*items: list[list[Any]]) -> dict:
    """Python 2 gives a list of [key, value]; it is used up, so that no file multiplies it."""
    ordered = {}
    for pairs in items:
        _filled(ordered, [key for key, _ in pairs], [value for _, value in pairs])
        pairs.clear()
    return ordered


def _encoded(text: str, encoding: str) -> str:
    """Stands for bytes in protocols that have only text; `_arrays` encodes it."""
    if _plain(encoding) not in ('latin1', 'latin-1'):
        raise ValueError(f'bytes as {encoding}')
    return text


def _tensor(
    storage: _Storage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: dict[str, bool] | None = None,
) -> _Array:
    if metadata:
        raise _Refusal(
            f'a tensor of which torch has put off an operation ({_listed(list(map(_plain, metadata)))}): '
            'save tensor.resolve_neg() or resolve_conj()'
        )
    return _Array(storage, storage.dtype, offset, shape, strides)


def _tensor_of_dtype(
    storage: _Storage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool,
    hooks: Any,
    dtype: np.dtype,
    metadata: dict[str, bool] | None = None,
) -> _Array:
    """As `_tensor`, of a storage that does not say the dtype."""
    return dataclasses.replace(_tensor(storage, offset, shape, strides, metadata=metadata), dtype=dtype)


def _numpy_array(data: bytes, dtype: np.dtype, shape: Sequence[int], order: str) -> _Array:
    """An array of protocol 5."""
    return _Array(data, dtype, 0, shape, _strides(shape, fortran=order == 'F'))


def _strides(shape: Sequence[int], *, fortran: bool) -> list[int]:
    """The strides of an array without gaps, in numbers."""
    lengths = _checked_axes(shape) if fortran else _checked_axes(shape)[::-1]
    strides = list(itertools.accumulate(lengths, operator.mul, initial=1))[:-1]
    return strides if fortran else strides[::-1]


def _numpy_dtype(code: str, *_: bool) -> np.dtype:
    if _plain(code) not in _NUMPY:
        raise _Refusal(f'an array of dtype {code!r:.80}: save arrays of numbers only')
    return np.dtype(code)


def _build(target: Any, state: Any) -> None:
    """Takes in what a pickle adds to an object after it has named it."""
    if isinstance(target, np.dtype):
        if state[1] == '>':
            raise _Refusal(_BIG_ENDIAN)
    elif isinstance(target, _Array) and target.storage is None:
        target.shape, target.dtype, fortran, target.storage = state[-4:]
        target.strides = _strides(target.shape, fortran=fortran)
    elif not isinstance(
        target, dict | _Array
    ):  # whose `_metadata`, and what training needs of a parameter, we do without
        raise TypeError(f'more of a {type(target).__name__}')


_NUMPY = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')
_TORCH = {  # {torch's name of a dtype: (of its storages, dtype)}
    'bool': ('Bool', np.dtype(bool)),
    'uint8': ('Byte', np.dtype('u1')),
    'int8': ('Char', np.dtype('i1')),
    'int16': ('Short', np.dtype('<i2')),
    'int32': ('Int', np.dtype('<i4')),
    'int64': ('Long', np.dtype('<i8')),
    'float16': ('Half', np.dtype('<f2')),
    'bfloat16': ('BFloat16', np.dtype(ml_dtypes.bfloat16)),
    'float32': ('Float', np.dtype('<f4')),
    'float64': ('Double', np.dtype('<f8')),
}
_NEW_TORCH = {f'uint{bits}': np.dtype(f'<u{bits // 8}') for bits in (16, 32, 64)}  # without storages of their own
_SAFETENSORS = {
    'BOOL': np.dtype(bool), 'U8': np.dtype('u1'), 'I8': np.dtype('i1'), 'U16': np.dtype('<u2'), 'I16': np.dtype('<i2'),
    'U32': np.dtype('<u4'), 'I32': np.dtype('<i4'), 'U64': np.dtype('<u8'), 'I64': np.dtype('<i8'),
    'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16), 'F32': np.dtype('<f4'), 'F64': np.dtype('<f8'),
}  # fmt: skip

_OBJECTS = {
    'collections.OrderedDict': _ordered_dict,
    '_codecs.encode': _encoded,
    '__builtin__.bytes': lambda: b'',  # protocols 0 to 2 have text for bytes, but for none
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch.nn.parameter.Parameter': lambda tensor, *_: tensor,  # so the oldest published files
    'torch.storage.UntypedStorage': np.dtype('u1'),
    **{f'torch.{name}Storage': dtype for name, dtype in _TORCH.values()},
    **{f'torch.cuda.{name}Storage': dtype for name, dtype in _TORCH.values()},
    **{f'torch.{name}': dtype for name, dtype in _NEW_TORCH.items()},
    'numpy.ndarray': None,
    'numpy.dtype': _numpy_dtype,
    'numpy._core.multiarray._reconstruct': lambda *_: _Array(),
    'numpy.core.multiarray._reconstruct': lambda *_: _Array(),
    'numpy._core.numeric._frombuffer': _numpy_array,
    'numpy.core.numeric._frombuffer': _numpy_array,
}


def _object(name: str) -> Any:
    """Gives the stand-in for an object."""
    if name not in _OBJECTS:
        raise _Refusal(
            f'it asks for {name!r:.200}, which no array needs, and nothing that a file names is run here: {_SAVE_ALONE}'
        )
    return _OBJECTS[name]


# The steps of a pickle.

_LITERALS = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT',
    'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
    'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8',
}  # fmt: skip
_STEPS = {step.code.encode('latin-1'): (step.name, step.arg and step.arg.reader) for step in pickletools.opcodes}
# Bytes, too, in files of Python 2, where pickletools reads ASCII.
_STEPS[b'S'] = (
    'STRING',
    lambda stream: codecs.escape_decode(pickletools.read_stringnl(stream, False))[0].decode('latin-1'),
)


def _unpickle(stream: io.BytesIO, stored: Callable[..., _Storage] | None = None) -> Any:
    """Runs a pickle, with stand-ins for all that it names.

    Args:
        stream: read up to the pickle's end.
        stored: makes a storage of the identity by which the pickle asks for it.

    Returns:
        dicts, lists, tuples, texts, bytes, numbers, None, and `_Array`.

    Raises:
        _Refusal: if it names something else, or has no end.
        any of _DAMAGE: if it is no pickle.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list[Any]:
        values = stack[marks[-1] :]
        del stack[marks.pop() :]
        return values

    for _ in range(_MOST_STEPS):
        step, read = _STEPS[stream.read(1)]
        argument = read(stream) if read else None
        match step:
            case _ if step in _LITERALS:
                stack.append(argument)
            case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                _filled(memo, [argument], [stack[-1]])
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET' | 'GET':
                stack.append(memo[argument])
            case 'MARK':
                marks.append(len(stack))
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[step])
            case 'BYTEARRAY8':
                stack.append(bytes(argument))
            case 'EMPTY_TUPLE' | 'EMPTY_LIST' | 'EMPTY_DICT':
                stack.append({'EMPTY_TUPLE': (), 'EMPTY_LIST': [], 'EMPTY_DICT': {}}[step])
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                stack[-int(step[-1]) :] = [tuple(stack[-int(step[-1]) :])]
            case 'TUPLE':
                stack.append(tuple(since_mark()))
            case 'LIST':
                stack.append(since_mark())
            case 'APPEND':
                value = stack.pop()
                stack[-1].append(value)
            case 'APPENDS':
                values = since_mark()
                stack[-1].extend(values)
            case 'DICT':
                values = since_mark()
                stack.append(_filled({}, values[::2], values[1::2]))
            case 'SETITEM':
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], [key], [value])
            case 'SETITEMS':
                values = since_mark()
                _filled(stack[-1], values[::2], values[1::2])
            case 'GLOBAL':
                stack.append(_object(argument.replace(' ', '.', 1)))
            case 'STACK_GLOBAL':
                name, module = stack.pop(), stack.pop()
                stack.append(_object(f'{_plain(module)}.{_plain(name)}'))
            case 'REDUCE':
                arguments, function = stack.pop(), stack.pop()
                if len(arguments) > _MOST_ARGUMENTS:
                    raise _Refusal(
                        f'it calls something with {len(arguments)} arguments, as no weights do: {_SAVE_ALONE}'
                    )
                stack.append(function(*arguments))
            case 'BUILD':
                state = stack.pop()
                _build(stack[-1], state)
            case 'BINPERSID':
                stack.append(stored(*stack.pop()))
            case 'PROTO' | 'FRAME':
                pass
            case 'STOP':
                return stack.pop()
            case _:
                raise _Refusal(f'its pickle takes the step {step}, as no weights do: {_SAVE_ALONE}')
    raise _Refusal(f'its pickle takes more than {_MOST_STEPS} steps: {_SAVE_ALONE}')
