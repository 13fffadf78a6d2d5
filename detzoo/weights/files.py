"""Weight files: arrays by their names, read without torch and without running anything that a file asks for.

    path -> read_bytes -> bytes -> parse_entries  -> {name: array}; the kind of file is told by its content, not its name
                                -> parse_metadata -> what a safetensors file says about itself
    {name: array} -> write_entries -> a safetensors file

A caller that needs the bytes for more than one thing (a checksum, say) reads them once and parses them; `read_entries` does
both. Safetensors are read here, pickles in `pickles`.
"""

import json
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from detzoo.errors import listed
from detzoo.files import as_path, new_file
from detzoo.weights.pickles import DAMAGE, FETCH_AGAIN, Refusal, read_pickle, read_zip

Path = str | os.PathLike[str]

# The library's own reader of bytes lacks bfloat16.
_DTYPES = {
    'BOOL': np.dtype(bool), 'U8': np.dtype('u1'), 'I8': np.dtype('i1'), 'U16': np.dtype('<u2'), 'I16': np.dtype('<i2'),
    'U32': np.dtype('<u4'), 'I32': np.dtype('<i4'), 'U64': np.dtype('<u8'), 'I64': np.dtype('<i8'),
    'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16), 'F32': np.dtype('<f4'), 'F64': np.dtype('<f8'),
}  # fmt: skip


def read_entries(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a weight file.

    Args:
        path: a .safetensors file, a state dict or checkpoint that torch saved (.pth, .pt), or a pickle of numpy's arrays as
            detectron2 publishes them (.pkl).

    Returns:
        {name: array of the file's own dtype}: in a pickle's order, of safetensors sorted by name. Arrays may be read-only and
        of any strides, and share memory where the file shares it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, is damaged, or holds anything but arrays; the message names the remedy.
    """
    return parse_entries(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder.
    """
    path = as_path(path)
    if path.is_dir():
        raise ValueError(f'{path}: a folder: give the file of weights in it')
    return path.read_bytes()


def parse_entries(content: bytes, source: Path) -> dict[str, np.ndarray]:
    """Finds the arrays in the bytes of a weight file.

    Args:
        content: bytes of the file.
        source: its name in error messages.

    Returns:
        as `read_entries`.

    Raises:
        ValueError: as `read_entries`.
    """
    return _parse(content, source, lambda content: _reader_of(content)(content))


def parse_metadata(content: bytes, source: Path) -> dict[str, str]:
    """Finds what a safetensors file says about itself: texts by their names, none if it says nothing.

    Args:
        content: bytes of the file.
        source: its name in error messages.

    Raises:
        ValueError: it is not a safetensors file, or is damaged.
    """

    def metadata(content: bytes) -> dict[str, str]:
        if _reader_of(content) is not _read_safetensors:
            raise Refusal('only safetensors files have metadata: give one of these')
        # The library gives metadata for paths only.
        return json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')]).get('__metadata__', {})

    return _parse(content, source, metadata)


def write_entries(path: Path, entries: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays to a safetensors file, complete or not at all.

    Args:
        path: the file to write; it replaces one that exists.
        entries: {name: array}, of dtypes that `read_entries` can return.
        metadata: what the file says about itself.

    Raises:
        ValueError: a name, dtype or metadata cannot be stored.
    """
    # The library writes an array's memory in its order, whatever the strides are.
    arrays = {name: np.asarray(array, order='C') for name, array in entries.items()}
    for name, array in arrays.items():
        if not isinstance(name, str) or name == '__metadata__' or array.dtype not in _DTYPES.values():
            raise ValueError(f'{path}: cannot store {name!r} of dtype {array.dtype}: rename or convert it')
    wrong = [key for key, value in metadata.items() if not (isinstance(key, str) and isinstance(value, str))]
    if wrong:
        raise ValueError(f'{path}: metadata must be texts by their names: make texts of {listed(map(repr, wrong))}')
    # Its `save_file` makes files that only their owner may read; and without arrays an empty mapping is written wrongly.
    content = safetensors.numpy.save(arrays, dict(metadata) or None)
    with new_file(path) as scratch:
        scratch.write_bytes(content)


def _parse(content: bytes, source: Path, parse: Callable[[bytes], Any]) -> Any:
    """Parses the bytes of a file; errors begin with the file's name."""
    try:
        return parse(content)
    except Refusal as refusal:
        raise ValueError(f'{source}: {refusal}') from refusal
    except (*DAMAGE, safetensors.SafetensorError) as error:
        raise ValueError(
            f'{source}: damaged or cut off ({type(error).__name__}: {error!s:.200}): {FETCH_AGAIN}'
        ) from error


def _reader_of(content: bytes) -> Callable[[bytes], dict[str, np.ndarray]]:
    """Finds the reader of a file by its first bytes."""
    if content.startswith(b'PK\3\4'):
        return read_zip
    if content[5:9] == b'\0\0\0{':  # the header's length in 8 bytes, then the header, JSON
        return _read_safetensors
    if content.startswith((b'\x80', b'(d', b'}q', b'ccollections\n')):  # a protocol, or a dict of protocols 0 and 1
        return read_pickle
    raise Refusal(
        what_instead(content)
        or f'not a known kind of weight file (it begins with {content[:8].hex(" ")}): give a .safetensors file, what '
        "torch.save wrote (.pth, .pt), or a pickle of numpy's arrays (.pkl)"
    )


def what_instead(content: bytes) -> str:
    """Says which common mistake the bytes of a file are, and its remedy; '' if they are none."""
    if not content:
        return f'empty: {FETCH_AGAIN}'
    if content[:1024].lstrip().lower().startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--')):
        return 'a web page instead of weights: fetch it again from the address of the file itself'
    if content.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS instead of weights: run `git lfs pull` where it lies'
    return ''


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Reads a safetensors file, sorted by name: the library returns arrays in no order."""
    entries = {}
    for name, tensor in sorted(safetensors.deserialize(content), key=operator.itemgetter(0)):
        if tensor['dtype'] not in _DTYPES:
            raise Refusal(f'{name!r} has the dtype {tensor["dtype"]}: convert it to one of {", ".join(_DTYPES)}')
        entries[name] = np.frombuffer(tensor['data'], _DTYPES[tensor['dtype']]).reshape(tensor['shape'])
    return entries
