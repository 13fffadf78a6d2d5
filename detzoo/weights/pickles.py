"""Pickles of arrays, read without running anything that they ask for.

    a zip file of torch, a file of torch before 1.6, or a plain pickle
      -> plain values, in which an `_Array` describes each array
      -> the state dict among them -> arrays, views of the file's bytes

torch.save writes pickles: since torch 1.6 into a zip file with the storages beside them, before that in front of the
storages. Detectron2's .pkl files are pickles of numpy's arrays.

A pickle is a program: it imports and calls whatever it names. Python's own unpickler can restrict the imports, but trusts
the rest. So a `_Machine` runs the program itself: it knows the steps that weights need, and calls our stand-ins for the few
objects that they name (`_OBJECTS`). Anything else is refused where it is named. Sizes that a file declares are checked
against the bytes that it has before anything of that size is made.
"""

import codecs
import dataclasses
import functools
import io
import itertools
import math
import operator
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from detzoo.errors import listed

# The key of the state dict in checkpoints of torch's training scripts, Lightning and mmdetection, others, Caffe2.
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'blobs')
_MAX_STEPS = 2_000_000  # a state dict takes some 30 steps for an array
_MAX_AXES = 32
_MAX_ARGUMENTS = 16  # of one call
_MAX_LETTERS = 1000  # of a name
_LARGEST_KEY = 2**60  # integers up to here have hashes of their own
_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file of torch before 1.6
_LISTED = 4  # names in an error message

FETCH_AGAIN = 'fetch the file again'
_BIG_ENDIAN = 'written big-endian: on such a machine write it as safetensors'
_SAVE_ALONE = (
    'save the state dict alone. In torch, if you trust the file: x = torch.load(old, weights_only=False); then '
    "torch.save(x['model'], new) if it is a checkpoint of training, torch.save(x.state_dict(), new) if it is a whole model"
)


class Refusal(Exception):
    """Why a file is refused, and the remedy."""


# What Python's and zipfile's readers raise on damaged bytes.
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


class _Storage(NamedTuple):
    """Numbers that lie outside of the pickle.

    key: the name under which they lie there.
    dtype: the type of the numbers.
    first, count: the first of the numbers under that name, and how many.
    """

    key: str
    dtype: np.dtype
    first: int
    count: int


@dataclasses.dataclass(eq=False)
class _Array:
    """An array as a pickle describes it; for arrays of numpy a later step fills in what is empty here.

    storage: what holds the numbers: a storage outside, or bytes in the pickle, which some protocols write as latin-1 text.
    offset, strides: in numbers, not in bytes.
    """

    storage: _Storage | bytes | str | None = None
    dtype: np.dtype | None = None
    offset: int = 0
    shape: Sequence[int] = ()
    strides: Sequence[int] = ()


def read_zip(data: bytes) -> dict[str, np.ndarray]:
    """Reads what torch writes since 1.6: a zip file with FOLDER/data.pkl, FOLDER/data/KEY for each storage, and more.

    Args:
        data: bytes of the file.

    Returns:
        arrays by their names, in the pickle's order.

    Raises:
        Refusal: it holds anything but arrays, or lies about its sizes.
        one of DAMAGE: the bytes are damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {record.filename: record for record in archive.infolist()}
        folder = next((name.removesuffix('data.pkl') for name in records if name.endswith('/data.pkl')), None)
        if folder is None:
            raise Refusal("a zip file, but not torch's, which has a data.pkl in a folder: unpack it, or convert it")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise Refusal('compressed, which torch never writes: unpack it, and zip the folder again with `zip -r -0`')
        if sum(record.file_size for record in records.values()) > len(data):
            raise Refusal(f'it declares more bytes than it has ({len(data)}): {FETCH_AGAIN}')
        if f'{folder}byteorder' in records and archive.read(f'{folder}byteorder') != b'little':
            raise Refusal(_BIG_ENDIAN)

        def stored(kind: str, dtype: np.dtype, key: str, device: str, count: int) -> _Storage:
            return _Storage(str(_plain(key)), dtype, 0, count)

        def bytes_of(key: str) -> bytes:
            return archive.read(f'{folder}data/{key}')

        tree = _unpickle(io.BytesIO(archive.read(f'{folder}data.pkl')), stored)
        return _arrays(_state_dict(tree), bytes_of)


def read_pickle(data: bytes) -> dict[str, np.ndarray]:
    """Reads a pickle of arrays, or what torch wrote before 1.6: pickles with the storages after them; see `read_zip`."""
    stream = io.BytesIO(data)
    tree = _unpickle(stream)
    if tree != _MAGIC:
        return _arrays(_state_dict(tree), {}.__getitem__)  # all numbers lie in the pickle

    _, system = _unpickle(stream), _unpickle(stream)
    if not system['little_endian']:
        raise Refusal(_BIG_ENDIAN)
    dtypes = {}

    def stored(kind: str, dtype: np.dtype, key: str, device: str, count: int, view: tuple | None) -> _Storage:
        dtypes[str(_plain(key))] = dtype
        _, first, count = view or (key, 0, count)  # the oldest files also have views of storages
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
    """Finds the state dict in the value of a pickle: arrays by their names."""
    if not isinstance(tree, dict):
        raise Refusal(f'it holds a {type(tree).__name__.strip("_")}, not a state dict: {_SAVE_ALONE}')
    tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), dict)), tree)
    entries = {name.decode('latin-1') if isinstance(name, bytes) else name: value for name, value in tree.items()}
    others = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, _Array))]
    if others:
        raise Refusal(f'it has other things than arrays: {_quoted(others)}: {_SAVE_ALONE}')
    return entries


def _arrays(described: Mapping[str, _Array], bytes_of: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Makes arrays from their descriptions.

    Args:
        described: descriptions by the arrays' names.
        bytes_of: gives all bytes under a storage's key.
    """
    outside = functools.cache(bytes_of)  # many arrays may share a storage
    inside = functools.cache(lambda text: text.encode('latin-1'))

    def buffer_of(storage: _Storage | bytes | str) -> bytes | memoryview:
        if isinstance(storage, bytes):
            return storage
        return inside(storage) if isinstance(storage, str) else _part(outside(storage.key), storage)

    entries = {}
    for name, array in described.items():
        try:
            entries[name] = _view(array, buffer_of(array.storage))
        except Refusal as refusal:
            raise Refusal(f'{name!r:.200}: {refusal}') from refusal
    return entries


def _part(data: bytes, storage: _Storage) -> memoryview:
    """Cuts out the bytes of a storage; refuses one that reaches beyond them."""
    first, end = (_checked(n) * storage.dtype.itemsize for n in (storage.first, storage.first + storage.count))
    if not first <= end <= len(data):
        raise Refusal(f'it lies in bytes {first} to {end} of {len(data)} of its storage: {FETCH_AGAIN}')
    return memoryview(data)[first:end]


def _view(array: _Array, data: bytes | memoryview) -> np.ndarray:
    """Makes a read-only array on bytes; refuses too few bytes for its shape and strides."""
    axes = list(zip(_checked_axes(array.shape), _checked_axes(array.strides), strict=True))
    item = array.dtype.itemsize
    size, there = math.prod(array.shape), len(data) // item
    if size == 0:
        return np.zeros(array.shape, array.dtype)
    last = _checked(array.offset) + sum((length - 1) * stride for length, stride in axes)
    if last >= there:
        raise Refusal(
            f'{list(array.shape)} at strides of {list(array.strides)} from {array.offset} takes number {last} '
            f'of {there} (from 0): {FETCH_AGAIN}'
        )
    if size > there:  # with strides of 0 a few bytes could make any number of items
        raise Refusal(f'{list(array.shape)} repeats {there} numbers: save tensor.contiguous()')
    return np.ndarray(array.shape, array.dtype, data, array.offset * item, [stride * item for stride in array.strides])


def _checked_axes(axes: Sequence[Any]) -> Sequence[int]:
    """Returns lengths or strides; refuses what no array can have."""
    if not isinstance(axes, tuple | list) or len(axes) > _MAX_AXES:
        raise Refusal(f'its shape or its strides are not a list of at most {_MAX_AXES} numbers: {FETCH_AGAIN}')
    return [_checked(number) for number in axes]


def _checked(number: Any) -> int:
    """Returns a length, stride or offset; refuses what is no natural number."""
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise Refusal(f'a length, stride or offset is not a natural number: {FETCH_AGAIN}')
    return number


def _plain(name: Any) -> str | int:
    """Returns a name; refuses other values: the text of a tuple that holds itself many times would fill any memory."""
    if not isinstance(name, str | int) or isinstance(name, str) and len(name) > _MAX_LETTERS:
        raise Refusal(f'it has a {type(name).__name__.strip("_")} where a name should be: {FETCH_AGAIN}')
    return name


def _quoted(names: Sequence[Any]) -> str:
    """Lists names for a message: 'a', 'b' and 3 more."""
    return listed((f'{name!r:.80}' for name in names), most=_LISTED)


# Our stand-ins for the objects that a pickle names.


def _filled(mapping: dict, keys: Sequence[Any], values: Sequence[Any]) -> dict:
    """Adds items to a dict whose keys are plain; any number of huge integers may share a hash, which makes a dict slow."""
    if not all(isinstance(key, str | bytes | int | float | None) for key in keys):
        raise TypeError('a key that is neither text nor a number')
    if any(isinstance(key, int) and abs(key) > _LARGEST_KEY for key in keys):
        raise ValueError(f'a key beyond {_LARGEST_KEY}')
    mapping.update(zip(keys, values, strict=True))
    return mapping


def _ordered_dict(*items: list[list[Any]]) -> dict:
    """Makes a dict from the lists of [key, value] that Python 2 writes; they are emptied, so that no file can repeat them."""
    ordered = {}
    for pairs in items:
        _filled(ordered, [key for key, _ in pairs], [value for _, value in pairs])
        pairs.clear()
    return ordered


def _encoded(text: str, encoding: str) -> str:
    """Returns the text that stands for bytes in protocols without bytes; `_arrays` encodes it."""
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
    """Describes a tensor of torch."""
    if metadata:
        raise Refusal(
            f'it has a tensor with a pending operation ({_quoted(list(map(_plain, metadata)))}): '
            'save tensor.resolve_neg() or tensor.resolve_conj()'
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
    """Describes a tensor whose storage does not say the dtype."""
    return dataclasses.replace(_tensor(storage, offset, shape, strides, metadata=metadata), dtype=dtype)


def _numpy_array(data: bytes, dtype: np.dtype, shape: Sequence[int], order: str) -> _Array:
    """Describes an array of numpy as protocol 5 writes it."""
    return _Array(data, dtype, 0, shape, _strides(shape, fortran=order == 'F'))


def _strides(shape: Sequence[int], *, fortran: bool) -> list[int]:
    """Computes the strides of an array without gaps, in numbers."""
    lengths = _checked_axes(shape) if fortran else _checked_axes(shape)[::-1]
    strides = list(itertools.accumulate(lengths, operator.mul, initial=1))[:-1]
    return strides if fortran else strides[::-1]


def _numpy_dtype(code: str, *_: bool) -> np.dtype:
    """Returns a dtype of numpy; refuses what holds no numbers."""
    if _plain(code) not in _NUMPY:
        raise Refusal(f'it has an array of dtype {code!r:.80}: save arrays of numbers only')
    return np.dtype(code)


def _build(target: Any, state: Any) -> None:
    """Adds to an object what a pickle says about it after naming it."""
    if isinstance(target, np.dtype):
        if state[1] == '>':
            raise Refusal(_BIG_ENDIAN)
    elif isinstance(target, _Array) and target.storage is None:
        target.shape, target.dtype, fortran, target.storage = state[-4:]
        target.strides = _strides(target.shape, fortran=fortran)
    elif not isinstance(target, dict | _Array):  # `_metadata` of a dict, and gradients of a parameter, are not needed
        raise TypeError(f'more of a {type(target).__name__}')


_NUMPY = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')
_TORCH = {  # torch's name of a dtype: the name of its storages, the dtype
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

_OBJECTS = {
    'collections.OrderedDict': _ordered_dict,
    '_codecs.encode': _encoded,
    '__builtin__.bytes': lambda: b'',  # protocols 0 to 2 write bytes as text, but empty ones so
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch.nn.parameter.Parameter': lambda tensor, *_: tensor,  # in the oldest published files
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
    """Returns the stand-in for an object."""
    if name not in _OBJECTS:
        raise Refusal(f'it asks for {name!r:.200}, which no array needs and which is not run: {_SAVE_ALONE}')
    return _OBJECTS[name]


# The steps of a pickle.

_LITERALS = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT',
    'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
    'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8',
}  # fmt: skip
_STEPS = {step.code.encode('latin-1'): (step.name, step.arg and step.arg.reader) for step in pickletools.opcodes}
# In files of Python 2 these may be any bytes; pickletools reads only ASCII.
_STEPS[b'S'] = (
    'STRING',
    lambda stream: codecs.escape_decode(pickletools.read_stringnl(stream, False))[0].decode('latin-1'),
)


@dataclasses.dataclass(eq=False)
class _Machine:
    """What runs a pickle, step by step, with stand-ins for the objects that it names.

    stored: makes a storage from the identity by which the pickle asks for it.
    stack: values that are being made.
    marks: heights of the stack that the pickle marked.
    memo: values that the pickle may ask for again.
    """

    stored: Callable[..., _Storage] | None
    stack: list[Any] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        """Takes the values above the last mark from the stack."""
        values = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return values

    def take(self, step: str, argument: Any) -> None:
        """Takes a step; refuses those that weights do not need."""
        stack = self.stack
        match step:
            case _ if step in _LITERALS:
                stack.append(argument)
            case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                _filled(self.memo, [argument], [stack[-1]])
            case 'MEMOIZE':
                self.memo[len(self.memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET' | 'GET':
                stack.append(self.memo[argument])
            case 'MARK':
                self.marks.append(len(stack))
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[step])
            case 'BYTEARRAY8':
                stack.append(bytes(argument))
            case 'EMPTY_TUPLE' | 'EMPTY_LIST' | 'EMPTY_DICT':
                stack.append({'EMPTY_TUPLE': (), 'EMPTY_LIST': [], 'EMPTY_DICT': {}}[step])
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                stack[-int(step[-1]) :] = [tuple(stack[-int(step[-1]) :])]
            case 'TUPLE':
                stack.append(tuple(self.since_mark()))
            case 'LIST':
                stack.append(self.since_mark())
            case 'APPEND':
                value = stack.pop()
                stack[-1].append(value)
            case 'APPENDS':
                values = self.since_mark()
                stack[-1].extend(values)
            case 'DICT':
                values = self.since_mark()
                stack.append(_filled({}, values[::2], values[1::2]))
            case 'SETITEM':
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], [key], [value])
            case 'SETITEMS':
                values = self.since_mark()
                _filled(stack[-1], values[::2], values[1::2])
            case 'GLOBAL':
                stack.append(_object(argument.replace(' ', '.', 1)))
            case 'STACK_GLOBAL':
                name, module = stack.pop(), stack.pop()
                stack.append(_object(f'{_plain(module)}.{_plain(name)}'))
            case 'REDUCE':
                arguments, function = stack.pop(), stack.pop()
                if len(arguments) > _MAX_ARGUMENTS:
                    raise Refusal(
                        f'it makes a call with {len(arguments)} arguments, which no weights do: {_SAVE_ALONE}'
                    )
                stack.append(function(*arguments))
            case 'BUILD':
                state = stack.pop()
                _build(stack[-1], state)
            case 'BINPERSID':
                stack.append(self.stored(*stack.pop()))
            case 'PROTO' | 'FRAME':
                pass
            case _:
                raise Refusal(f'its pickle takes the step {step}, which no weights do: {_SAVE_ALONE}')


def _unpickle(stream: io.BytesIO, stored: Callable[..., _Storage] | None = None) -> Any:
    """Runs a pickle.

    Args:
        stream: the pickle; it is read up to the pickle's end.
        stored: makes a storage from the identity by which the pickle asks for it.

    Returns:
        the pickle's value, made of dicts, lists, tuples, texts, bytes, numbers, None and `_Array`.

    Raises:
        Refusal: it names an object that no array needs, or does not end.
        one of DAMAGE: it is no pickle.
    """
    machine = _Machine(stored)
    for _ in range(_MAX_STEPS):
        step, read = _STEPS[stream.read(1)]
        argument = read(stream) if read else None
        if step == 'STOP':
            return machine.stack.pop()
        machine.take(step, argument)
    raise Refusal(f'its pickle takes more than {_MAX_STEPS} steps: {_SAVE_ALONE}')
