"""Tests of what all data sets share: opening, reading, writing and decoding."""

import concurrent.futures
import io
import pathlib
import pickle
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from detzoo.data import catalog, records
from detzoo.data.readers import prepare
from detzoo.data.statistics import read_annotations
from detzoo.errors import DataError


def encoded(image, image_format='PNG', **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


GRADIENT = np.stack(np.broadcast_arrays(*np.ogrid[0:240:8, 0:200:5], 99), axis=-1).astype(np.uint8)  # [30, 40, 3]
PICTURE = PIL.Image.fromarray(GRADIENT)


def write(data_dir, name='toy', version='1.0.0', images=4, **options):
    """Writes a data set whose image i has i objects, and says what is in them."""
    path = data_dir / 'picture.png'
    data_dir.mkdir(exist_ok=True)
    path.write_bytes(encoded(PICTURE))
    examples = []
    for i in range(images):
        same = {'area': 1 / 7, 'segmentation': ''}
        objects = [
            {'id': 10 * i + j, 'bbox': [j, 1 / 3, 5, 6], 'label': j % 2, 'is_crowd': j == 1} | same for j in range(i)
        ]
        image = {'image': path, 'image_id': 100 + i, 'file_name': f'{i}é.png', 'height': 30, 'width': 40}
        examples.append(image | {'objects': objects})

    class Toy(prepare.Checked, skip_registration=True):
        VERSION = tfds.core.Version(version)

    def make_builder(**kwargs):
        splits = {split: prepare.Split(examples, []) for split in ('train', 'validation')}
        return Toy(name=name, categories={3: 'hen', 8: 'egg'}, splits=splits, annotations='toy', **kwargs)

    return records.write_dataset(make_builder, data_dir, **options)


def test_write_dataset_says_nothing_on_stdout_and_leaves_nothing_else(tmp_path, capsys):
    folder = write(tmp_path)
    assert capsys.readouterr().out == ''
    assert folder == tmp_path / 'toy' / '1.0.0'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['picture.png', 'toy']


def test_write_dataset_replaces_only_if_told(tmp_path):
    write(tmp_path)
    with pytest.raises(OSError):
        write(tmp_path, images=2)
    assert len(catalog.open_dataset('toy', 'train', tmp_path).records) == 4
    write(tmp_path, images=2, overwrite=True)
    assert len(catalog.open_dataset('toy', 'train', tmp_path).records) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ['picture.png', 'toy']


def test_write_dataset_puts_back_what_it_was_about_to_replace(tmp_path, monkeypatch):
    folder, rename = write(tmp_path), pathlib.Path.rename

    def fails(path, target):
        if target == folder and path.suffix != '.replaced':
            raise SystemExit(143)
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, 'rename', fails)
    with pytest.raises(SystemExit):
        write(tmp_path, images=2, overwrite=True)
    assert len(catalog.open_dataset('toy', 'train', tmp_path).records) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ['picture.png', 'toy']


def test_open_dataset_serves_records_as_arrays(tmp_path):
    write(tmp_path)
    dataset = catalog.open_dataset('toy', 'validation', tmp_path)
    assert dataset[:4] == ('toy', 'validation', ('hen', 'egg'), (3, 8))
    record = dataset.records[3]
    assert record['image'] == encoded(PICTURE)
    assert (record['image_id'], record['file_name'], record['height'], record['width']) == (103, '3é.png', 30, 40)
    assert record['boxes'].tolist() == [[0, 1 / 3, 5, 6], [1, 1 / 3, 5, 6], [2, 1 / 3, 5, 6]]  # exact: not float32
    assert record['areas'].tolist() == [1 / 7] * 3
    assert record['labels'].tolist() == [0, 1, 0]
    assert record['is_crowd'].tolist() == [False, True, False]
    assert record['annotation_ids'].tolist() == [30, 31, 32]
    assert record['segmentations'] == ['', '', '']


def test_open_dataset_gives_empty_images_the_same_shapes_and_types(tmp_path):
    write(tmp_path)
    empty, full = (catalog.open_dataset('toy', 'train', tmp_path).records[i] for i in (0, 3))
    assert empty['boxes'].shape == (0, 4)
    for key in ('boxes', 'labels', 'is_crowd', 'areas', 'annotation_ids'):
        assert len(empty[key]) == 0 and empty[key].dtype == full[key].dtype


def test_open_dataset_slices(tmp_path):
    write(tmp_path)
    sliced = catalog.open_dataset('toy', 'train[25%:75%]', tmp_path).records
    assert [record['image_id'] for record in sliced] == [101, 102]


def test_open_dataset_takes_the_newest_version(tmp_path):
    for version, images in (('9.0.0', 1), ('10.0.0', 2), ('2.0.0', 3)):
        write(tmp_path, version=version, images=images)
    assert len(catalog.open_dataset('toy', 'train', tmp_path).records) == 2


def test_open_dataset_names_what_is_there_and_the_remedy(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError) as raised:
        catalog.open_dataset('birds', 'train', tmp_path)
    for words in (
        "'birds'",
        str(tmp_path),
        'histology, shapes, shapes_apart, shapes_overlapping, shapes_touching, shapes_tree, toy',
        'detzoo prepare --format=coco --name=birds',
    ):
        assert words in str(raised.value)


@pytest.mark.parametrize('split', ['test', 'train[', 'train[:0%]'])
def test_open_dataset_refuses_split(tmp_path, split):
    write(tmp_path)
    with pytest.raises(DataError, match="'toy' has no records for split"):
        catalog.open_dataset('toy', split, tmp_path)


def test_open_dataset_refuses_what_others_prepared(tmp_path):
    folder = write(tmp_path)
    (folder / 'metadata.json').unlink()
    with pytest.raises(DataError, match='not prepared by detzoo'):
        catalog.open_dataset('toy', 'train', tmp_path)


def test_records_serve_many_threads_and_survive_pickling(tmp_path):
    write(tmp_path)
    source = pickle.loads(pickle.dumps(catalog.open_dataset('toy', 'train', tmp_path).records))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: source[i % 4]['image_id'], range(200)))
    assert ids == [100, 101, 102, 103] * 50


def test_records_end(tmp_path):
    write(tmp_path)
    source = catalog.open_dataset('toy', 'train', tmp_path).records
    assert len(source) == len(list(source)) == 4
    for index in (4, -1):
        with pytest.raises(IndexError):
            source[index]


def test_with_objects_leaves_out_images_without_and_those_of_crowds_alone(toy):
    dataset = toy()  # record 0 has no object, record 1 one crowd among others
    assert 0 < dataset.records[1]['is_crowd'].sum() < len(dataset.records[1]['is_crowd'])
    crowds = dataset.records[3] | {'is_crowd': np.ones(len(dataset.records[3]['boxes']), bool)}
    dataset = dataset._replace(records=[*dataset.records[:3], crowds, *dataset.records[4:]])
    kept = records.with_objects(dataset, read_annotations(dataset).objects)
    assert [record['image_id'] for record in kept.records] == [101, 102, 104, 105, 106, 107, 108, 109]
    assert kept._replace(records=None) == dataset._replace(records=None)
    for index in (-1, 8):
        with pytest.raises(IndexError):
            kept.records[index]


def test_with_objects_refuses_a_split_without_any(toy):
    empty = toy(1)
    with pytest.raises(DataError, match="'train' of 'toy': none of 1 images.*data.empty_images to True"):
        records.with_objects(empty, read_annotations(empty).objects)


def test_records_need_no_tensorflow(tmp_path):
    write(tmp_path)
    program = (
        'import sys; from detzoo.data import catalog, records; from detzoo.data.readers import coco, voc; '
        f'records.ground_truth(catalog.open_dataset("toy", "train", {str(tmp_path)!r})); '
        'print("tensorflow" in sys.modules)'
    )
    finished = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True)
    assert finished.stdout == 'False\n'


def test_ground_truth_has_coco_form(tmp_path):
    write(tmp_path)
    truth = records.ground_truth(catalog.open_dataset('toy', 'train', tmp_path))
    assert truth['categories'] == [{'id': 3, 'name': 'hen'}, {'id': 8, 'name': 'egg'}]
    assert truth['images'][2] == {'id': 102, 'file_name': '2é.png', 'height': 30, 'width': 40}
    expected = {'id': 21, 'image_id': 102, 'category_id': 8, 'bbox': [1, 1 / 3, 5, 6], 'area': 1 / 7, 'iscrowd': 1}
    assert truth['annotations'][2] == expected


GRAY = np.asarray(PICTURE.convert('L'))
DECODED = {
    'PNG': (encoded(PICTURE), GRADIENT),
    'gray': (encoded(PICTURE.convert('L')), np.stack([GRAY] * 3, axis=-1)),
    'alpha': (encoded(PICTURE.convert('RGBA')), GRADIENT),
    'gray with alpha': (encoded(PICTURE.convert('LA')), np.stack([GRAY] * 3, axis=-1)),
    'palette': (encoded(PICTURE.quantize(8)), np.asarray(PICTURE.quantize(8).convert('RGB'))),
    '16 bit': (cv2.imencode('.png', GRADIENT[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), GRADIENT),
    'JPEG': (encoded(PICTURE, 'JPEG', quality=100), GRADIENT),
    'CMYK': (encoded(PICTURE.convert('CMYK'), 'JPEG', quality=100), GRADIENT),
    'BMP': (encoded(PICTURE, 'BMP'), GRADIENT),
    'WEBP': (encoded(PICTURE, 'WEBP', lossless=True), GRADIENT),
}


@pytest.mark.parametrize('kind', DECODED)
def test_decode_image_gives_8_bit_rgb(kind):
    data, expected = DECODED[kind]
    image = records.decode_image(data, name=kind, strict=True)
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    tolerance = {'JPEG': 8, 'CMYK': 8}.get(kind, 1)
    assert np.abs(image.astype(int) - expected).max() <= tolerance


def test_decode_image_applies_exif_orientation():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "the top of the scene is on the right": a quarter turn clockwise shows it upright
    image = records.decode_image(encoded(PICTURE, 'JPEG', quality=100, exif=exif), name='turned')
    assert np.abs(image.astype(int) - np.rot90(GRADIENT, -1)).max() <= 8


def test_decode_image_refuses_large_images_before_decoding(monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', None)
    for strict in (False, True):
        with pytest.raises(DataError, match=r'big\.png: 40 x 30 pixels are over max_pixels=1199'):
            records.decode_image(encoded(PICTURE), name='big.png', max_pixels=1199, strict=strict)


@pytest.mark.parametrize('data', [b'', b'<html>', encoded(PICTURE)[:20]])
def test_decode_image_refuses_what_is_no_image(data):
    with pytest.raises(DataError, match=r'a\.jpg: not a whole image.*replace'):
        records.decode_image(data, name='a.jpg')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'CMYK'])
def test_decode_image_strictly_notices_missing_bytes(kind):
    data = DECODED[kind][0]
    with pytest.raises(DataError, match='a: not a whole image'):
        records.decode_image(data[: len(data) * 2 // 3], name='a', strict=True)


def test_decode_image_strictly_notices_missing_scans():
    data = encoded(PICTURE, 'JPEG', progressive=True)
    with pytest.raises(DataError, match='a: not a whole image'):
        records.decode_image(data[:-200], name='a', strict=True)


def test_decode_image_knows_no_limit_of_pixels_but_its_own(monkeypatch):
    monkeypatch.setattr(
        PIL.Image, 'MAX_IMAGE_PIXELS', 100
    )  # Pillow refuses twice as many, as it would a large panorama
    for strict in (False, True):
        assert records.decode_image(encoded(PICTURE), name='wide', strict=strict).shape == (30, 40, 3)
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(io.BytesIO(encoded(PICTURE)))  # the limit stays for others


def test_decode_image_says_what_opencv_cannot_decode():
    data = encoded(PIL.Image.new('1', (2**20 + 1, 1)), 'BMP')
    with pytest.raises(DataError, match='a: OpenCV cannot decode this image'):
        records.decode_image(data, name='a')


def deep(bits, suffix='.png', picture=GRADIENT):
    """A file of 16 bits that holds a picture as a camera of so many bits takes it."""
    return cv2.imencode(suffix, picture[..., ::-1].astype(np.uint16) << (bits - 8))[1].tobytes()


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14])
def test_decode_image_asks_which_of_16_bits_are_used(bits, suffix):
    for strict in (False, True):  # training and the check before it see the same
        with pytest.raises(DataError, match=r'a: the brightest pixel of this 16-bit file is \d+: .*bit_depth'):
            records.decode_image(deep(bits, suffix), name='a', strict=strict)
        image = records.decode_image(deep(bits, suffix), name='a', strict=strict, bit_depth=bits)
        np.testing.assert_array_equal(image, GRADIENT)
    dark = records.decode_image(deep(bits, suffix), name='a', bit_depth=16)
    np.testing.assert_allclose(dark, GRADIENT / 2.0 ** (16 - bits), atol=1)
    if bits > 8:
        with pytest.raises(DataError, match=f'a: its brightest pixel is .* more than bit_depth={bits - 1} allows'):
            records.decode_image(deep(bits, suffix), name='a', bit_depth=bits - 1)


def test_decode_image_takes_what_uses_all_16_bits_as_before():
    pixels = np.random.RandomState(0).randint(0, 2**14 + 1, (30, 40, 3)).astype(np.uint16)
    pixels[3, 4, 1] = 2**14  # the least that is not asked about
    data = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
    for bit_depth in (None, 16):
        image = records.decode_image(data, name='a', bit_depth=bit_depth)
        np.testing.assert_array_equal(image, pixels >> 8)
    for depth in (None, 12):
        black = records.decode_image(deep(12, picture=GRADIENT * 0), name='a', bit_depth=depth)
        assert not black.any()  # in any number of bits
    assert records.decode_image(encoded(PICTURE), name='a', bit_depth=12).tolist() == GRADIENT.tolist()
    with pytest.raises(ValueError, match='bit_depth must be 8 to 16, not 17'):
        records.decode_image(encoded(PICTURE), name='a', bit_depth=17)


def test_to_8_bits_keeps_other_files_and_stores_what_decode_image_reads():
    assert records.to_8_bits(encoded(PICTURE, 'JPEG'), name='a', bit_depth=12) == encoded(PICTURE, 'JPEG')
    stored = records.to_8_bits(deep(12, '.tif'), name='a', bit_depth=12)
    np.testing.assert_array_equal(records.decode_image(stored, name='a'), GRADIENT)
