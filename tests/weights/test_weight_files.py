"""Files of weights: equal to torch's own reading of them, by files that scripts/dev/make_weight_file_fixtures.py made, and
refused where they are damaged, or ask for more than arrays. Pickles of other versions, and hostile ones, are put together
here, step by step: pickle.dumps makes the plain values, the rest is written out.
"""

import codecs
import io
import json
import os
import pathlib
import pickle
import random
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from detzoo.weights import files
from detzoo.weights.files import read_entries, read_metadata, write_entries

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'weights'
MAGIC = 0x1950A86A20F9469CFC6C
NUMBERS = np.arange(6, dtype='<f4')


@pytest.fixture
def read(tmp_path):
    """A function: the bytes of a file -> its entries."""

    def read(data):
        (tmp_path / 'file').write_bytes(data)
        return read_entries(tmp_path / 'file')

    return read


@pytest.fixture
def refused(read, tmp_path):
    """A function: the bytes of a file, part of the error -> the whole error, which names the file."""

    def refused(data, match):
        with pytest.raises(ValueError, match=match) as caught:
            read(data)
        assert str(caught.value).startswith(f'{tmp_path}/file: ')
        return str(caught.value)

    return refused


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


# What torch wrote.


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


def test_read_entries_says_how_to_save_a_checkpoint_with_other_objects():
    match = r"arguments\.pth: it asks for 'argparse\.Namespace', .*torch\.save\(x\['model'\], new\)"
    with pytest.raises(ValueError, match=match):
        read_entries(FIXTURES / 'arguments.pth')


@pytest.mark.parametrize('make', [zipped, lambda steps: legacy(steps.replace(b'K\x06tQ', b'K\x06NtQ'))])
def test_read_entries_of_handmade_files(read, make):
    steps = dict_of(
        a=tensor(), b=tensor((2, 2), (1, 2), offset=1), c=tensor((), (), offset=5), d=tensor((3, 0), (9, 1), offset=6)
    )
    entries = read(make(steps))
    np.testing.assert_array_equal(entries['a'], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(entries['b'], [[1, 3], [2, 4]])
    assert entries['c'] == 5 and entries['c'].shape == () and entries['d'].shape == (3, 0)


def test_read_entries_of_the_oldest_published_files(read):
    """A Parameter on a tensor of the first version, in Python 2's OrderedDict, on a GPU, in a view of a storage."""
    stored = storage(kind='torch.cuda FloatStorage', view=(('1', 2, 3),))
    old = b'ctorch._utils\n_rebuild_tensor\n(' + stored + pickled(1) + pickled((2,)) + pickled((1,)) + b'tR'
    parameter = b'ctorch.nn.parameter\nParameter\n(' + old + b'tR' + pickled((True, False, None)) + b'b'
    steps = b'ccollections\nOrderedDict\n(](](' + b'U\x06conv.w' + parameter + b'eetR'
    entries = read(legacy(steps))
    assert list(entries) == ['conv.w']
    np.testing.assert_array_equal(entries['conv.w'], [3, 4])


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'model_state_dict', 'blobs'])
def test_read_entries_unwraps_checkpoints(read, wrapper):
    steps = dict_of(epoch=pickled(3), **{wrapper: dict_of(a=tensor()), 'optimizer': pickled({'state': {0: [0.5]}})})
    assert list(read(zipped(steps))) == ['a']


# Pickles of numpy's arrays.

ARRAYS = {
    'matrix': np.arange(6, dtype=np.float32).reshape(2, 3),
    'fortran': np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2)),
    'bytes': np.arange(256, dtype=np.uint8),  # all of them pass through text in protocols 0 to 2
    'scalar': np.array(-7, np.int64),
    'empty': np.zeros((0, 3), np.float16),
    'mask': np.array([True, False]),
}


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('numpy_version', [1, 2])
def test_read_entries_of_detectron2(read, protocol, numpy_version):
    data = pickle.dumps({'model': ARRAYS, '__author__': 'Detectron2 Model Zoo', 'matching_heuristics': True}, protocol)
    if numpy_version == 1:  # a name of protocol 4 and later has its length in front
        for module in (b'numpy._core.multiarray', b'numpy._core.numeric'):
            old = module.replace(b'_core', b'core')
            data = data.replace(b'\x8c' + bytes([len(module)]) + module, b'\x8c' + bytes([len(old)]) + old)
            data = data.replace(b'c' + module, b'c' + old)
    assert (b'numpy._core' in data) == (numpy_version == 2)
    entries = read(data)
    assert list(entries) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert entries[name].dtype == array.dtype
        np.testing.assert_array_equal(entries[name], array)


@pytest.mark.parametrize(
    'text',
    [
        lambda x: b"S'" + codecs.escape_encode(x)[0] + b"'\n",  # protocol 0
        lambda x: b'U' + bytes([len(x)]) + x,
        lambda x: b'T' + len(x).to_bytes(4, 'little') + x,
    ],
)
def test_read_entries_of_python_2(read, text):
    dtype = b'cnumpy\ndtype\n(' + text(b'f4') + b'I0\nI1\ntR(I3\n' + text(b'<') + b'NNNI-1\nI-1\nI0\ntb'
    state = b'(I1\n(I2\nI3\nt' + dtype + b'I00\n' + text((-NUMBERS).tobytes()) + b'tb'  # minus: bytes that are no ASCII
    array = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt' + text(b'b') + b'tR' + state
    entries = read(b'(dp0\n' + text(b'conv1_w') + array + b's.')
    assert list(entries) == ['conv1_w']
    np.testing.assert_array_equal(entries['conv1_w'], [[0, -1, -2], [-3, -4, -5]])


def test_read_entries_decodes_names_that_are_bytes(read):
    assert list(read(pickle.dumps({b'caf\xe9': np.ones(1)}, 4))) == ['café']


def test_read_entries_gives_an_array_of_two_names_once(read):
    entries = read(pickle.dumps({'a': ARRAYS['matrix'], 'b': ARRAYS['matrix']}, 2))
    assert np.shares_memory(entries['a'], entries['b'])


# What asks for more than arrays.


class Hostile:
    """Its pickle makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('wrap', [lambda x: {'a': x}, lambda x: {'model': {'a': np.ones(3)}, 'rest': [{'x': (x,)}]}])
def test_read_entries_runs_nothing_of_a_pickle(refused, tmp_path, protocol, wrap):
    data = pickle.dumps(wrap(Hostile(tmp_path / 'made')), protocol)
    message = refused(data, r"it asks for 'posix\.mkdir', which no array needs")
    assert 'torch.save(' in message and not (tmp_path / 'made').exists()
    pickle.loads(data)
    assert (tmp_path / 'made').is_dir()  # it would have


@pytest.mark.parametrize('make', [zipped, legacy])
def test_read_entries_runs_nothing_of_torch_files(refused, tmp_path, make):
    steps = dict_of(a=b'cposix\nmkdir\n(' + pickled(str(tmp_path / 'made')) + b'tR')
    refused(make(steps), r"it asks for 'posix\.mkdir'")
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('name', ['builtins eval', 'builtins getattr', 'torch.serialization load', 'numpy load',
                                  'collections OrderedDict.fromkeys', 'torch ComplexFloatStorage'])  # fmt: skip
def test_read_entries_names_objects_it_refuses(refused, name):
    refused(zipped(b'c' + name.replace(' ', '\n').encode() + b'\n'), f"it asks for '{name.replace(' ', '.')}'")


@pytest.mark.parametrize('steps, match', [
    (b'(iposix\nmkdir\n', "takes the step INST, as no weights do: .*torch.save"),
    (b'\x82\x01', 'takes the step EXT1'),
    (b'ccollections\nOrderedDict\n' + pickled({'__module__': 'x'}) + b'b', 'more of a function'),  # changes our stand-in
    (b'cnumpy\nndarray\n)R', 'not callable'),
    (b'c_codecs\nencode\n(' + pickled('a') + pickled('bz2') + b'tR', 'bytes as bz2'),
    (pickled([np.ones(1)])[:-1] + b'}\x85\x85' + b'R', 'damaged'),
    (b'}' + b'(' + b')' + b'\x85' * 100_000 + b'Nu', 'a key that is no text and no number'),  # whose hash would crash
])  # fmt: skip
def test_read_entries_refuses_other_steps(refused, steps, match):
    refused(zipped(steps), match)


@pytest.mark.parametrize(
    'value, match',
    [
        (
            {'a': np.ones(2), 'epoch': 3, 'net': {'b': np.ones(2)}},
            r"other things: 'epoch', 'net': save the state dict alone",
        ),
        ({'model': {'a': np.ones(2), 'steps': [1]}}, "other things: 'steps'"),
        ({0: np.ones(2)}, 'other things: 0'),
        ([np.ones(2)], r'holds a list and no state dict: .*x\.state_dict\(\)'),
        (np.ones(2), 'holds a Array and no state dict'),
        ({'a': np.array(['text'])}, "an array of dtype 'U4': save arrays of numbers only"),
        ({'a': np.array([None])}, "an array of dtype 'O8'"),
        ({'a': np.ones(2, '>f4')}, 'written big-endian: .*safetensors'),
        ({'a': np.ones(2, [('x', 'f4')])}, "an array of dtype 'V4'"),
    ],
)
def test_read_entries_refuses_other_values(refused, value, match):
    refused(pickle.dumps(value, 2), match)


def test_read_entries_refuses_operations_that_torch_put_off(refused):
    refused(
        zipped(dict_of(a=tensor(rest=(False, None, {'neg': True})))), r"put off an operation \('neg'\): .*resolve_neg"
    )


def test_read_entries_refuses_big_endian_storages(refused):
    refused(zipped(dict_of(a=tensor()), byteorder='big'), 'written big-endian: .*safetensors')
    refused(legacy(dict_of(a=tensor()), little_endian=False), 'written big-endian: .*safetensors')


# What is damaged, or lies.

FAR = 2**62
WRONG_PLACES = {
    'too long': (
        tensor((7,), (1,)),
        r"'a': \[7\] at strides of \[1\] from 0 takes number 6 of 6 .*: fetch the file again",
    ),
    'too far': (tensor((2,), (1,), offset=5), r'takes number 6 of 6'),
    'too wide': (tensor((2, 3), (4, 1)), r'takes number 6 of 6'),
    'far away': (tensor((1,), (1,), offset=FAR), f'takes number {FAR} of 6'),
    'backwards': (tensor((2,), (-1,), offset=3), 'no natural number'),
    'before it': (tensor((2,), (1,), offset=-1), 'no natural number'),
    'no length': (tensor((-2,), (1,)), 'no natural number'),
    'a fraction': (tensor((2.0,), (1,)), 'no natural number'),
    'a text': (tensor('12', (1, 1)), 'its shape or its strides are none'),
    'repeated': (tensor((FAR, FAR), (0, 0)), r"'a': \[.*\] repeats 6 numbers: save tensor\.contiguous\(\)"),
    'huge': (tensor((10**30,), (1,)), 'no natural number'),
    'huge and empty': (tensor((0, FAR, FAR), (1, 1, 1)), 'damaged or cut off'),
    'other axes': (tensor((2, 3), (1,)), 'shorter'),
    'many axes': (tensor((1,) * 33, (1,) * 33), 'its shape or its strides are none'),
    'more declared': (tensor(stored=storage(count=7)), r"'a': it lies in bytes 0 to 28 of 24 of its storage: fetch"),
    'none declared': (tensor(stored=storage(count=-1)), 'no natural number'),
    'less declared': (tensor(stored=storage(count=5)), r'takes number 5 of 5'),
    'wider numbers': (tensor(stored=storage(kind='torch DoubleStorage')), r'bytes 0 to 48 of 24'),
    'elsewhere': (tensor(stored=storage(key='1')), r'damaged or cut off .*data/1'),
}


@pytest.mark.parametrize('steps, match', WRONG_PLACES.values(), ids=WRONG_PLACES)
def test_read_entries_refuses_wrong_places(refused, steps, match):
    refused(zipped(dict_of(a=steps)), match)


@pytest.mark.parametrize(
    'view, match',
    [
        (('1', 4, 3), 'bytes 16 to 28 of 24'),
        (('1', -1, 3), 'no natural number'),
        (('1', 3, -1), r'bytes 12 to 8 of 24'),
    ],
)
def test_read_entries_refuses_wrong_views_of_storages(refused, view, match):
    refused(legacy(dict_of(a=tensor(stored=storage(view=(view,))))), match)


def test_read_entries_holds_storages_against_the_end_of_the_file(refused):
    steps = dict_of(a=tensor(stored=storage(view=(None,))))
    refused(legacy(steps, {'0': (6, NUMBERS.tobytes()[:-1])}), 'bytes 0 to 24 of 23')
    refused(legacy(steps, {'0': (2**64 - 1, NUMBERS.tobytes())}), 'damaged or cut off .OverflowError')
    refused(legacy(steps, {'1': (6, NUMBERS.tobytes())}), 'damaged or cut off .KeyError')


def test_read_entries_refuses_numpy_arrays_of_too_few_bytes(refused):
    data = pickle.dumps({'a': np.arange(6, dtype='u1')}, 2)
    assert data.count(b'K\x06\x85') == 1  # (6,)
    refused(data.replace(b'K\x06\x85', b'K\x07\x85'), r"'a': \[7\] at strides of \[1\] from 0 takes number 6 of 6")


def test_read_entries_finds_a_flipped_bit_in_a_zip(refused):
    data = bytearray(zipped(dict_of(a=tensor())))
    data[data.index(NUMBERS.tobytes()) + 3] ^= 1
    refused(bytes(data), r'damaged or cut off \(BadZipFile: Bad CRC-32.*fetch the file again')


def test_read_entries_refuses_compressed_zips(refused):
    refused(
        zipped(dict_of(a=tensor()), compression=zipfile.ZIP_DEFLATED), 'compressed, as torch writes none: .*zip -r -0'
    )


def test_read_entries_refuses_zips_that_declare_more_than_they_have(refused):
    data = zipped(dict_of(a=tensor()), {'0': b'?' * 321})
    size = (321).to_bytes(4, 'little')
    assert data.count(size * 2) == 2  # its sizes, as stored and as it is, in the record's head and in the directory
    refused(data.replace(size * 2, (2**31).to_bytes(4, 'little') * 2), r'declares more bytes than it has \(\d+\)')


HUGE = (2**40).to_bytes(8, 'little')
EMPTY_ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n)R'
PAIRS = b'](' + b''.join(b'](' + pickled(i) + b'Ne' for i in range(1000)) + b'e'
TUPLES = b'X\x64\0\0\0' + b'x' * 100 + b'q\x05h\x05\x86' * 20  # a pair of one text, a pair of this pair, and so on
BOMBS = {  # files of some bytes that tell to make many
    'bytes': zipped(b'\x8e' + HUGE),
    'bytearray': zipped(b'\x96' + HUGE),
    'text': zipped(b'\x8d' + HUGE),
    'number': zipped(b'\x8b\xff\xff\xff\x7f'),
    'memo': zipped(b'Nr\xff\xff\xff\x7f'),
    'repeated text': zipped(dict_of(a=tensor(('ab', 10**10), (1, 1)))),
    'repeated text in numpy': zipped(dict_of(a=EMPTY_ARRAY + pickled((1, ('ab', 10**10), None, False, b'')) + b'b')),
    'repeated storage': zipped(
        dict_of(**{str(i): tensor((1,), (1,), stored=storage(count=i)) for i in range(1, 200)}), {'0': bytes(100_000)}
    ),
    'repeated rest': legacy(
        dict_of(**{str(i): tensor((1,), (1,), stored=storage(str(i), view=(None,), count=1)) for i in range(200)}),
        {str(i): (1, bytes(4)) for i in range(199)} | {'199': (25_000, bytes(100_000))},
    ),
    **{
        f'tuple of tuples {place}': zipped(steps)
        for place, steps in {
            'as a name': b'X\x01\0\0\0a' + TUPLES + b'X\x01\0\0\0b\x93',
            'as a dtype': b'cnumpy\ndtype\n' + TUPLES + b'\x85R',
            'as an encoding': b'c_codecs\nencode\nX\x01\0\0\0a' + TUPLES + b'\x86R',
            'as a key': dict_of(a=tensor(stored=storage().replace(pickled('0'), TUPLES))),
            'as metadata': dict_of(a=tensor().removesuffix(b'tR') + TUPLES + b'tR'),
        }.items()
    },
    'repeated dicts': zipped(
        b'](ccollections\nOrderedDict\nq\x02' + PAIRS + b'q\x01' + b'h\x02h\x01\x85R' * 1000 + b'e'
    ),
}


@pytest.mark.parametrize('data', BOMBS.values(), ids=BOMBS)
def test_read_entries_makes_nothing_larger_than_the_file(read, data):
    tracemalloc.start()
    try:
        read(data)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    'steps',
    [
        b'}' + pickled(2**61 - 1) + b'Ns',
        b'}(' + pickled(1 - 2**61) + b'Nu',
        b'(' + pickled(2**70) + b'Nd',
        b'ccollections\nOrderedDict\n](](' + pickled(2**64) + b'Nee\x85R',
        b'}p' + str(2**61 - 1).encode() + b'\n',
    ],
)
def test_read_entries_refuses_keys_that_would_share_a_hash(refused, steps):
    # Of n integers that are equal modulo 2**61 - 1 a dict compares each with all before it.
    refused(program(steps), f'a key beyond {2**60}')


def test_read_entries_takes_the_keys_of_optimizers(read):
    # Numbers of parameters; before torch 1.0 their addresses.
    steps = dict_of(model=dict_of(a=tensor()), optimizer=b'}(' + pickled(0) + b'N' + pickled(2**47) + b'Nu')
    assert list(read(zipped(steps))) == ['a']


def test_read_entries_ends(refused, monkeypatch):
    monkeypatch.setattr(files, '_MOST_STEPS', 100)
    refused(program(b'N' * 100), 'takes more than 100 steps')
    refused(program(b'N' * 98), 'holds a NoneType')


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'plain.safetensors', 'model.pkl'])
def test_read_entries_refuses_what_is_cut_off(refused, name):
    data = pickle.dumps({'model': ARRAYS}, 4) if name == 'model.pkl' else (FIXTURES / name).read_bytes()
    for end in range(16, len(data), len(data) // 60):
        refused(data[:end], 'damaged or cut off|bytes .* of its storage|fetch the file again')


def test_read_entries_raises_nothing_but_value_errors(read):
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
    (b'\x89HDF\r\n\x1a\n', r'no weights that are known \(it begins with 89 48 44 46 0d 0a 1a 0a\): give a \.safetensors'),
    (b'\0\0\0\0\x02\0\0\0\0\0\0\0' + bytes(100), 'no weights that are known'),
])  # fmt: skip
def test_read_entries_says_what_a_file_is_instead(refused, data, match):
    refused(data, match)


def test_read_entries_refuses_other_zips(refused):
    np.savez(buffer := io.BytesIO(), a=np.ones(3))
    refused(buffer.getvalue(), "a zip file, but none of torch's")


def test_read_entries_names_a_path_without_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth'):
        read_entries(tmp_path / 'none.pth')
    with pytest.raises(ValueError, match=f'{tmp_path}: a folder: give the file of weights in it'):
        read_entries(str(tmp_path))


def safetensors_file(dtype, shape, size):
    header = json.dumps({'a': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, size]}}).encode()
    return len(header).to_bytes(8, 'little') + header + bytes(size)


def test_read_entries_refuses_safetensors_of_other_dtypes(read, refused):
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


def test_write_entries_is_read_back(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    entries = read_entries(tmp_path / 'a')
    assert list(entries) == sorted(WRITTEN)
    for name, array in WRITTEN.items():
        assert entries[name].dtype == array.dtype and entries[name].shape == array.shape
        np.testing.assert_array_equal(entries[name], array)
    assert read_metadata(tmp_path / 'a') == METADATA


def test_write_entries_is_read_by_the_library(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    with safetensors.safe_open(tmp_path / 'a', 'numpy') as file:
        assert file.metadata() == METADATA
        np.testing.assert_array_equal(file.get_tensor('turned'), WRITTEN['turned'])
    write_entries(tmp_path / 'a', {}, {})
    assert safetensors.numpy.load_file(tmp_path / 'a') == {} and read_metadata(tmp_path / 'a') == {}


def test_write_entries_gives_the_same_bytes_in_any_order(tmp_path):
    write_entries(tmp_path / 'a', WRITTEN, METADATA)
    write_entries(tmp_path / 'b', dict(reversed(WRITTEN.items())), METADATA)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_write_entries_aligns_arrays(tmp_path):
    """Each begins at a multiple of its item's size, in the file too."""
    write_entries(tmp_path / 'a', WRITTEN, {'odd': 'x'})
    data = (tmp_path / 'a').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    for name, array in WRITTEN.items():
        assert (8 + size + header[name]['data_offsets'][0]) % array.itemsize == 0


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
        ({'a': np.array(['x'])}, {}, "cannot have 'a' of dtype <U1: rename or convert it"),
        ({'a': np.ones(2, '>f4')}, {}, "cannot have 'a' of dtype >f4"),
        ({'a': np.ones(2, 'c8')}, {}, "cannot have 'a' of dtype complex64"),
        ({'__metadata__': np.ones(2)}, {}, "cannot have '__metadata__'"),
        ({3: np.ones(2)}, {}, 'cannot have 3 of'),
        ({}, {'steps': 3}, "its metadata are texts by their names: make texts of 'steps'"),
    ],
)
def test_write_entries_refuses_what_safetensors_lacks(tmp_path, entries, metadata, match):
    with pytest.raises(ValueError, match=f'{tmp_path}/a: {match}'):
        write_entries(tmp_path / 'a', entries, metadata)
    assert not (tmp_path / 'a').exists()


def test_read_metadata_of_the_library(tmp_path):
    assert read_metadata(FIXTURES / 'plain.safetensors') == {'made by': 'torch'}
    safetensors.numpy.save_file({'a': np.ones(2)}, tmp_path / 'a')
    assert read_metadata(tmp_path / 'a') == {}


def test_read_metadata_refuses_other_files():
    with pytest.raises(ValueError, match=r'zip\.pth: only safetensors files have metadata: give one of these'):
        read_metadata(FIXTURES / 'zip.pth')
