"""Weight files that are put together by hand, step by step: pickle.dumps makes plain values, the rest is written out."""

import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from detzoo.weights.files import parse_entries

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'weights'
MAGIC = 0x1950A86A20F9469CFC6C
NUMBERS = np.arange(6, dtype='<f4')
ARRAYS = {
    'matrix': np.arange(6, dtype=np.float32).reshape(2, 3),
    'fortran': np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2)),
    'bytes': np.arange(256, dtype=np.uint8),  # all of them pass through text in protocols 0 to 2
    'scalar': np.array(-7, np.int64),
    'empty': np.zeros((0, 3), np.float16),
    'mask': np.array([True, False]),
}


def refused(content, match):
    """Checks that the bytes of a file are refused with an error that names the file and matches; returns the error."""
    with pytest.raises(ValueError, match=match) as caught:
        parse_entries(content, 'the/file')
    assert str(caught.value).startswith('the/file: ')
    return str(caught.value)


def read(content):
    """The entries in the bytes of a file."""
    return parse_entries(content, 'the/file')


def pickled(value):
    """The steps that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def program(steps):
    return b'\x80\x02' + steps + b'.'


def storage(key='0', count=6, kind='torch FloatStorage', view=()):
    """Steps for a storage; `view` is (None,) or (tuple,) in the format before torch 1.6, which has one item more."""
    name = b'c' + kind.replace(' ', '\n').encode() + b'\n'
    values = b''.join(map(pickled, (key, 'cpu', count, *view)))
    return b'(' + pickled('storage') + name + values + b'tQ'


def tensor(shape=(2, 3), strides=(3, 1), offset=0, stored=None, rest=(False, None)):
    """Steps for a tensor."""
    values = b''.join(map(pickled, (offset, shape, strides, *rest)))
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + (stored or storage()) + values + b'tR'


def dict_of(**entries):
    """Steps for a dict of steps."""
    return b'}(' + b''.join(pickled(name) + steps for name, steps in entries.items()) + b'u'


def zipped(steps, storages=None, compression=zipfile.ZIP_STORED, **records):
    """A file of torch since 1.6, with 'data/KEY' of each of the storages and with other records."""
    storages = {'0': NUMBERS.tobytes()} if storages is None else storages
    with zipfile.ZipFile(buffer := io.BytesIO(), 'w', compression) as archive:
        archive.writestr('weights/data.pkl', program(steps))
        for name, content in ({f'data/{key}': content for key, content in storages.items()} | records).items():
            archive.writestr(f'weights/{name}', content)
    return buffer.getvalue()


def legacy(steps, storages=None, little_endian=True):
    """A file of torch before 1.6; storages are {key: (number of items, bytes)}."""
    storages = {'0': (6, NUMBERS.tobytes())} if storages is None else storages
    system = {'protocol_version': 1001, 'little_endian': little_endian}
    head = b''.join(pickle.dumps(value, 2) for value in (MAGIC, 1001, system))
    tail = b''.join(count.to_bytes(8, 'little') + content for count, content in storages.values())
    return head + program(steps) + pickle.dumps(list(storages), 2) + tail
