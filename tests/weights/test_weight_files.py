"""Files of weights: equal to torch's own reading of them, by files that scripts/dev/make_weight_file_fixtures.py made; refused
where they are damaged or no weights; and written.
"""

import io
import json
import os
import pickle
import random

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from weight_files import ARRAYS, FIXTURES, dict_of, legacy, read, refused, storage, tensor, zipped

from detzoo.weights.files import parse_metadata, read_entries, write_entries


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'checkpoint.pth', 'plain.safetensors'])
def test_read_entries_equals_torch(name):
    with np.load(FIXTURES / 'expected.npz') as file:
        expected = dict(file)
    dtypes = dict(line.split() for line in expected.pop('dtypes'))
    entries = read_entries(FIXTURES / name)
    assert len(dtypes) == 24 and {name: array.dtype.name for name, array in entries.items()} == dtypes
    for key, array in entries.items():
        assert array.shape == expected[key].shape
        np.testing.assert_array_equal(array.astype(expected[key].dtype), expected[key], err_msg=key)


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_read_entries_shares_memory_as_the_file_does(name):
    entries = read_entries(FIXTURES / name)
    np.testing.assert_array_equal(entries['tied'].T, entries['turned'])
    np.testing.assert_array_equal(entries['tied'][1:4, 1::2], entries['part'])
    assert np.shares_memory(entries['tied'], entries['turned']) and np.shares_memory(entries['tied'], entries['part'])
    assert not np.shares_memory(entries['half'], entries['brain'])


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'plain.safetensors', 'model.pkl'])
def test_read_entries_refuses_what_is_cut_off(name):
    data = pickle.dumps({'model': ARRAYS}, 4) if name == 'model.pkl' else (FIXTURES / name).read_bytes()
    for end in range(16, len(data), len(data) // 60):
        refused(data[:end], 'damaged or cut off|bytes .* of its storage|fetch the file again')


def test_read_entries_raises_nothing_but_value_errors():
    """Bits and whole steps of files are changed at random, of zips also in the pickle, past their checksums."""
    rng = random.Random(0)
    steps = dict_of(a=tensor(), b=tensor((2,), (1,), stored=storage(kind='torch HalfStorage')))
    originals = [
        (steps, zipped),
        (zipped(steps), bytes),
        (legacy(steps.replace(b'K\x06tQ', b'K\x06NtQ')), bytes),
        ((FIXTURES / 'plain.safetensors').read_bytes(), bytes),
        *((pickle.dumps({'model': ARRAYS}, protocol), bytes) for protocol in range(6)),
    ]
    caught = 0
    for _ in range(400):
        data, make = rng.choice(originals)
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            read(make(changed))
        except ValueError:
            caught += 1
    assert 200 < caught < 400  # some changes are of numbers, and no error


# Other files.


@pytest.mark.parametrize('data, match', [
    (b'', 'empty: fetch the file again'),
    (b'\n <!DOCTYPE html><html><head>', 'a web page instead of weights: fetch it again from the address of the file itself'),
    (b'<HTML lang=en>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0123', 'a pointer of Git LFS .*: run `git lfs pull`'),
    (b'\x89HDF\r\n\x1a\n', r'not a known kind of weight file \(it begins with 89 48 44 46 0d 0a 1a 0a\): give a \.safetensors'),
    (b'\0\0\0\0\x02\0\0\0\0\0\0\0' + bytes(100), 'not a known kind of weight file'),
])  # fmt: skip
def test_read_entries_says_what_a_file_is_instead(data, match):
    refused(data, match)


def test_read_entries_refuses_other_zips():
    np.savez(buffer := io.BytesIO(), a=np.ones(3))
    refused(buffer.getvalue(), "a zip file, but not torch's")


def test_read_entries_names_a_path_without_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth'):
        read_entries(tmp_path / 'none.pth')
    with pytest.raises(ValueError, match=f'{tmp_path}: a folder: give the file of weights in it'):
        read_entries(str(tmp_path))


def safetensors_file(dtype, shape, size):
    header = json.dumps({'a': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, size]}}).encode()
    return len(header).to_bytes(8, 'little') + header + bytes(size)


def test_read_entries_refuses_safetensors_of_other_dtypes():
    refused(safetensors_file('F8_E4M3', [4], 4), "'a' has the dtype F8_E4M3: convert it to one of BOOL, ")
    refused(safetensors_file('F32', [4], 12), 'damaged or cut off .SafetensorError')
    assert read(safetensors_file('U16', [2, 3], 12))['a'].shape == (2, 3)


# Written.

WRITTEN = {
    'z': np.arange(6, dtype=np.float32).reshape(2, 3),
    'turned': np.arange(6, dtype=np.float64).reshape(2, 3).T,
    'brain': np.arange(3).astype(ml_dtypes.bfloat16),
    'scalar': np.array(3, np.int64),
    'longlong': np.arange(2, dtype=np.longlong),
    'empty': np.zeros((0, 4), np.float16),
    'bool': np.array([True, False, True]),
    **{name: np.array([1, 100], name) for name in ('u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8')},
}
METADATA = {f'key {i}': f'é {i}' for i in range(9)}


def metadata_of(path):
    return parse_metadata(path.read_bytes(), path)


def test_write_entries_is_read_back(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    entries = read_entries(tmp_path / 'a')
    assert list(entries) == sorted(WRITTEN)
    for name, array in WRITTEN.items():
        assert entries[name].dtype == array.dtype and entries[name].shape == array.shape
        np.testing.assert_array_equal(entries[name], array)
    assert metadata_of(tmp_path / 'a') == METADATA


def test_write_entries_is_read_by_the_library(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    with safetensors.safe_open(tmp_path / 'a', 'numpy') as file:
        assert file.metadata() == METADATA
        np.testing.assert_array_equal(file.get_tensor('turned'), WRITTEN['turned'])
    write_entries(tmp_path / 'a', {}, {})
    assert safetensors.numpy.load_file(tmp_path / 'a') == {} and metadata_of(tmp_path / 'a') == {}


def test_write_entries_makes_files_like_any_other(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    (tmp_path / 'b').touch()
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


def test_write_entries_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / 'a'
    path.write_text('old')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('no space')))
    with pytest.raises(OSError, match='no space'):
        write_entries(path, WRITTEN, {})
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'entries, metadata, match',
    [
        ({'a': np.array(['x'])}, {}, "cannot store 'a' of dtype <U1: rename or convert it"),
        ({'a': np.ones(2, '>f4')}, {}, "cannot store 'a' of dtype >f4"),
        ({'a': np.ones(2, 'c8')}, {}, "cannot store 'a' of dtype complex64"),
        ({'__metadata__': np.ones(2)}, {}, "cannot store '__metadata__'"),
        ({3: np.ones(2)}, {}, 'cannot store 3 of'),
        ({}, {'steps': 3}, "metadata must be texts by their names: make texts of 'steps'"),
    ],
)
def test_write_entries_refuses_what_safetensors_lacks(tmp_path, entries, metadata, match):
    with pytest.raises(ValueError, match=f'{tmp_path}/a: {match}'):
        write_entries(tmp_path / 'a', entries, metadata)
    assert not (tmp_path / 'a').exists()


def test_parse_metadata_of_the_library(tmp_path):
    assert metadata_of(FIXTURES / 'plain.safetensors') == {'made by': 'torch'}
    safetensors.numpy.save_file({'a': np.ones(2)}, tmp_path / 'a')
    assert metadata_of(tmp_path / 'a') == {}


def test_parse_metadata_refuses_other_files():
    with pytest.raises(ValueError, match=r'zip\.pth: only safetensors files have metadata: give one of these'):
        metadata_of(FIXTURES / 'zip.pth')
