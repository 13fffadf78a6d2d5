"""Pickles of arrays: those that torch and numpy write are read, hostile ones and damaged ones are refused."""

import codecs
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from weight_files import (
    ARRAYS,
    FIXTURES,
    NUMBERS,
    dict_of,
    legacy,
    pickled,
    program,
    read,
    refused,
    storage,
    tensor,
    zipped,
)

from detzoo.weights import pickles
from detzoo.weights.files import read_entries

# What torch wrote.


def test_read_entries_says_how_to_save_a_checkpoint_with_other_objects():
    match = r"arguments\.pth: it asks for 'argparse\.Namespace', .*torch\.save\(x\['model'\], new\)"
    with pytest.raises(ValueError, match=match):
        read_entries(FIXTURES / 'arguments.pth')


@pytest.mark.parametrize('make', [zipped, lambda steps: legacy(steps.replace(b'K\x06tQ', b'K\x06NtQ'))])
def test_read_entries_of_handmade_files(make):
    steps = dict_of(
        a=tensor(), b=tensor((2, 2), (1, 2), offset=1), c=tensor((), (), offset=5), d=tensor((3, 0), (9, 1), offset=6)
    )
    entries = read(make(steps))
    np.testing.assert_array_equal(entries['a'], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(entries['b'], [[1, 3], [2, 4]])
    assert entries['c'] == 5 and entries['c'].shape == () and entries['d'].shape == (3, 0)


def test_read_entries_of_the_oldest_published_files():
    """A Parameter on a tensor of the first version, in Python 2's OrderedDict, on a GPU, in a view of a storage."""
    stored = storage(kind='torch.cuda FloatStorage', view=(('1', 2, 3),))
    old = b'ctorch._utils\n_rebuild_tensor\n(' + stored + pickled(1) + pickled((2,)) + pickled((1,)) + b'tR'
    parameter = b'ctorch.nn.parameter\nParameter\n(' + old + b'tR' + pickled((True, False, None)) + b'b'
    steps = b'ccollections\nOrderedDict\n(](](' + b'U\x06conv.w' + parameter + b'eetR'
    entries = read(legacy(steps))
    assert list(entries) == ['conv.w']
    np.testing.assert_array_equal(entries['conv.w'], [3, 4])


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'model_state_dict', 'blobs'])
def test_read_entries_unwraps_checkpoints(wrapper):
    steps = dict_of(epoch=pickled(3), **{wrapper: dict_of(a=tensor()), 'optimizer': pickled({'state': {0: [0.5]}})})
    assert list(read(zipped(steps))) == ['a']


# Pickles of numpy's arrays.


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('numpy_version', [1, 2])
def test_read_entries_of_detectron2(protocol, numpy_version):
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
def test_read_entries_of_python_2(text):
    dtype = b'cnumpy\ndtype\n(' + text(b'f4') + b'I0\nI1\ntR(I3\n' + text(b'<') + b'NNNI-1\nI-1\nI0\ntb'
    state = b'(I1\n(I2\nI3\nt' + dtype + b'I00\n' + text((-NUMBERS).tobytes()) + b'tb'  # minus: bytes that are no ASCII
    array = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt' + text(b'b') + b'tR' + state
    entries = read(b'(dp0\n' + text(b'conv1_w') + array + b's.')
    assert list(entries) == ['conv1_w']
    np.testing.assert_array_equal(entries['conv1_w'], [[0, -1, -2], [-3, -4, -5]])


def test_read_entries_decodes_names_that_are_bytes():
    assert list(read(pickle.dumps({b'caf\xe9': np.ones(1)}, 4))) == ['café']


def test_read_entries_gives_an_array_of_two_names_once():
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
def test_read_entries_runs_nothing_of_a_pickle(tmp_path, protocol, wrap):
    data = pickle.dumps(wrap(Hostile(tmp_path / 'made')), protocol)
    message = refused(data, r"it asks for 'posix\.mkdir', which no array needs")
    assert 'torch.save(' in message and not (tmp_path / 'made').exists()
    pickle.loads(data)
    assert (tmp_path / 'made').is_dir()  # it would have


@pytest.mark.parametrize('make', [zipped, legacy])
def test_read_entries_runs_nothing_of_torch_files(tmp_path, make):
    steps = dict_of(a=b'cposix\nmkdir\n(' + pickled(str(tmp_path / 'made')) + b'tR')
    refused(make(steps), r"it asks for 'posix\.mkdir'")
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('name', ['builtins eval', 'builtins getattr', 'torch.serialization load', 'numpy load',
                                  'collections OrderedDict.fromkeys', 'torch ComplexFloatStorage'])  # fmt: skip
def test_read_entries_names_objects_it_refuses(name):
    refused(zipped(b'c' + name.replace(' ', '\n').encode() + b'\n'), f"it asks for '{name.replace(' ', '.')}'")


@pytest.mark.parametrize('steps, match', [
    (b'(iposix\nmkdir\n', "takes the step INST, which no weights do: .*torch.save"),
    (b'\x82\x01', 'takes the step EXT1'),
    (b'ccollections\nOrderedDict\n' + pickled({'__module__': 'x'}) + b'b', 'more of a function'),  # changes our stand-in
    (b'cnumpy\nndarray\n)R', 'not callable'),
    (b'c_codecs\nencode\n(' + pickled('a') + pickled('bz2') + b'tR', 'bytes as bz2'),
    (pickled([np.ones(1)])[:-1] + b'}\x85\x85' + b'R', 'damaged'),
    (b'}' + b'(' + b')' + b'\x85' * 100_000 + b'Nu', 'a key that is neither text nor a number'),  # whose hash would crash
])  # fmt: skip
def test_read_entries_refuses_other_steps(steps, match):
    refused(zipped(steps), match)


@pytest.mark.parametrize(
    'value, match',
    [
        (
            {'a': np.ones(2), 'epoch': 3, 'net': {'b': np.ones(2)}},
            r"other things than arrays: 'epoch' and 'net': save the state dict alone",
        ),
        ({'model': {'a': np.ones(2), 'steps': [1]}}, "other things than arrays: 'steps'"),
        ({0: np.ones(2)}, 'other things than arrays: 0'),
        ([np.ones(2)], r'holds a list, not a state dict: .*x\.state_dict\(\)'),
        (np.ones(2), 'holds a Array, not a state dict'),
        ({'a': np.array(['text'])}, "an array of dtype 'U4': save arrays of numbers only"),
        ({'a': np.array([None])}, "an array of dtype 'O8'"),
        ({'a': np.ones(2, '>f4')}, 'written big-endian: .*safetensors'),
        ({'a': np.ones(2, [('x', 'f4')])}, "an array of dtype 'V4'"),
    ],
)
def test_read_entries_refuses_other_values(value, match):
    refused(pickle.dumps(value, 2), match)


def test_read_entries_refuses_operations_that_torch_put_off():
    refused(
        zipped(dict_of(a=tensor(rest=(False, None, {'neg': True})))),
        r"a tensor with a pending operation \('neg'\): .*resolve_neg",
    )


def test_read_entries_refuses_big_endian_storages():
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
    'backwards': (tensor((2,), (-1,), offset=3), 'not a natural number'),
    'before it': (tensor((2,), (1,), offset=-1), 'not a natural number'),
    'no length': (tensor((-2,), (1,)), 'not a natural number'),
    'a fraction': (tensor((2.0,), (1,)), 'not a natural number'),
    'a text': (tensor('12', (1, 1)), 'its shape or its strides are not a list of at most 32 numbers'),
    'repeated': (tensor((FAR, FAR), (0, 0)), r"'a': \[.*\] repeats 6 numbers: save tensor\.contiguous\(\)"),
    'huge': (tensor((10**30,), (1,)), 'not a natural number'),
    'huge and empty': (tensor((0, FAR, FAR), (1, 1, 1)), 'damaged or cut off'),
    'other axes': (tensor((2, 3), (1,)), 'shorter'),
    'many axes': (tensor((1,) * 33, (1,) * 33), 'its shape or its strides are not a list of at most 32 numbers'),
    'more declared': (tensor(stored=storage(count=7)), r"'a': it lies in bytes 0 to 28 of 24 of its storage: fetch"),
    'none declared': (tensor(stored=storage(count=-1)), 'not a natural number'),
    'less declared': (tensor(stored=storage(count=5)), r'takes number 5 of 5'),
    'wider numbers': (tensor(stored=storage(kind='torch DoubleStorage')), r'bytes 0 to 48 of 24'),
    'elsewhere': (tensor(stored=storage(key='1')), r'damaged or cut off .*data/1'),
}


@pytest.mark.parametrize('steps, match', WRONG_PLACES.values(), ids=WRONG_PLACES)
def test_read_entries_refuses_wrong_places(steps, match):
    refused(zipped(dict_of(a=steps)), match)


@pytest.mark.parametrize(
    'view, match',
    [
        (('1', 4, 3), 'bytes 16 to 28 of 24'),
        (('1', -1, 3), 'not a natural number'),
        (('1', 3, -1), r'bytes 12 to 8 of 24'),
    ],
)
def test_read_entries_refuses_wrong_views_of_storages(view, match):
    refused(legacy(dict_of(a=tensor(stored=storage(view=(view,))))), match)


def test_read_entries_holds_storages_against_the_end_of_the_file():
    steps = dict_of(a=tensor(stored=storage(view=(None,))))
    refused(legacy(steps, {'0': (6, NUMBERS.tobytes()[:-1])}), 'bytes 0 to 24 of 23')
    refused(legacy(steps, {'0': (2**64 - 1, NUMBERS.tobytes())}), 'damaged or cut off .OverflowError')
    refused(legacy(steps, {'1': (6, NUMBERS.tobytes())}), 'damaged or cut off .KeyError')


def test_read_entries_refuses_numpy_arrays_of_too_few_bytes():
    data = pickle.dumps({'a': np.arange(6, dtype='u1')}, 2)
    assert data.count(b'K\x06\x85') == 1  # (6,)
    refused(data.replace(b'K\x06\x85', b'K\x07\x85'), r"'a': \[7\] at strides of \[1\] from 0 takes number 6 of 6")


def test_read_entries_finds_a_flipped_bit_in_a_zip():
    data = bytearray(zipped(dict_of(a=tensor())))
    data[data.index(NUMBERS.tobytes()) + 3] ^= 1
    refused(bytes(data), r'damaged or cut off \(BadZipFile: Bad CRC-32.*fetch the file again')


def test_read_entries_refuses_compressed_zips():
    refused(
        zipped(dict_of(a=tensor()), compression=zipfile.ZIP_DEFLATED),
        'compressed, which torch never writes: .*zip -r -0',
    )


def test_read_entries_refuses_zips_that_declare_more_than_they_have():
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
def test_read_entries_makes_nothing_larger_than_the_file(data):
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
def test_read_entries_refuses_keys_that_would_share_a_hash(steps):
    # Of n integers that are equal modulo 2**61 - 1 a dict compares each with all before it.
    refused(program(steps), f'a key beyond {2**60}')


def test_read_entries_takes_the_keys_of_optimizers():
    # Numbers of parameters; before torch 1.0 their addresses.
    steps = dict_of(model=dict_of(a=tensor()), optimizer=b'}(' + pickled(0) + b'N' + pickled(2**47) + b'Nu')
    assert list(read(zipped(steps))) == ['a']


def test_read_entries_ends(monkeypatch):
    monkeypatch.setattr(pickles, '_MAX_STEPS', 100)
    refused(program(b'N' * 100), 'takes more than 100 steps')
    refused(program(b'N' * 98), 'holds a NoneType')
