"""Tests of what a COCO file may say about its images and classes: links, other folders, the root of the categories, 16 bits."""

import json
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest

from detzoo.data import catalog, records
from detzoo.data.readers import coco
from detzoo.data.readers.prepare import FilesBelow, find_file
from detzoo.errors import DataError

PICTURE = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)


@pytest.fixture
def images(tmp_path):
    """A folder with a/0.png and b/1.png."""
    folder = tmp_path / 'images'
    for name in ('a/0.png', 'b/1.png'):
        (folder / name).parent.mkdir(parents=True)
        cv2.imwrite(str(folder / name), PICTURE)
    return folder


def document(names, categories=((1, 'hen'),)):
    images = [{'id': i, 'file_name': name, 'height': 20, 'width': 30} for i, name in enumerate(names)]
    objects = [{'id': i, 'image_id': i, 'category_id': 1, 'bbox': [1, 2, 3, 4]} for i in range(len(names))]
    categories = [dict(zip(('id', 'name', 'supercategory'), category, strict=False)) for category in categories]
    return {'images': images, 'annotations': objects, 'categories': categories}


def prepare(folder, content, **options):
    path = folder.parent / 'a.json'
    path.write_text(json.dumps(content))
    sources = [path, folder] * 2
    return coco.prepare_coco('birds', *sources, data_dir=folder.parent / 'data', overwrite=True, **options)


def file_names(folder, names, **options):
    prepared = prepare(folder, document(names), **options)
    return [example['file_name'] for example in prepared.splits['train'].examples]


def test_prepare_coco_follows_links_under_the_names_that_the_user_sees(images, tmp_path):
    (tmp_path / 'store').mkdir()
    (images / 'a/0.png').rename(tmp_path / 'store' / '5feceb66')
    (images / 'a/0.png').symlink_to('../../store/5feceb66')
    (images / 'b').rename(tmp_path / 'elsewhere')
    (images / 'b').symlink_to(tmp_path / 'elsewhere')
    assert file_names(images, ['a/0.png', 'b/1.png']) == ['a/0.png', 'b/1.png']
    record = catalog.open_dataset('birds', 'train', tmp_path / 'data').records[0]
    assert record['file_name'] == 'a/0.png' and record['image'] == (tmp_path / 'store' / '5feceb66').read_bytes()
    (images / 'a/0.png').unlink()
    (images / 'a/0.png').symlink_to('nowhere')
    with pytest.raises(DataError, match=r"image 0 .*there is no file 'a/0\.png'"):
        file_names(images, ['a/0.png', 'b/1.png'])


@pytest.mark.parametrize(
    'name', ['/home/ann/0.png', 'C:\\data\\0.png', '../../0.png', '0.png', 'train/0.png', '/c/0.png']
)
def test_prepare_coco_finds_a_file_by_its_base_name_and_says_so(images, name):
    prepared = prepare(images, document([name, 'b\\1.png']))
    for split in prepared.splits.values():
        assert [example['file_name'] for example in split.examples] == ['a/0.png', 'b/1.png']
        assert split.left_out == {'folders in file_name (the file was found by its base name)': 1}
        assert len(split.notes) == 1 and 'image 0 (images[0]' in split.notes[0]


def test_prepare_coco_refuses_a_base_name_that_several_files_have(images):
    (images / 'b/0.png').write_bytes((images / 'a/0.png').read_bytes())
    with pytest.raises(
        DataError, match=r"image 0 .*'x/0\.png' may be .*/a/0\.png or .*/b/0\.png; write into file_name"
    ):
        file_names(images, ['x/0.png', 'b/1.png'])
    assert file_names(images, ['x/0.png', 'b/1.png'], on_bad_record='skip') == ['b/1.png']


def test_prepare_coco_finds_one_of_several_files_by_more_of_its_path(images):
    (images / 'b/0.png').write_bytes((images / 'a/0.png').read_bytes())
    for names in (['/home/ann/a/0.png', 'C:\\data\\b\\0.png'], [str(images / 'a/0.png'), '../../images/b/0.png']):
        assert file_names(images, names) == ['a/0.png', 'b/0.png']


def test_prepare_coco_refuses_one_file_for_two_names(images):
    for names in (
        ['x/0.png', 'y/0.png', 'b/1.png'],
        ['a/0.png', 'y/0.png', 'b/1.png'],
        ['x/0.png', 'a/0.png', 'b/1.png'],
    ):
        with pytest.raises(DataError, match=r'another image has the same file, .*a/0\.png'):
            file_names(images, names)
        good = [name for name in names if name in ('a/0.png', 'b/1.png')]
        assert file_names(images, names, on_bad_record='skip') == good
    assert file_names(images, ['a/0.png', 'a/0.png']) == ['a/0.png'] * 2  # no guess is made here


def test_prepare_coco_refuses_a_file_whose_name_is_not_text(images):
    name = '\udce9.png'  # as Python reads Latin-1's é in the name of a file
    (images / name).write_bytes((images / 'a/0.png').read_bytes())
    with pytest.raises(
        DataError, match=r"image 0 \(images\[0\], '\\udce9.png'\): the name of the file is not UTF-8; rename it"
    ):
        file_names(images, [name, 'b/1.png'])


def test_find_file_takes_a_name_with_a_backslash_as_it_is_where_it_exists(images):
    (images / 'b\\1.png').write_bytes(b'')
    assert find_file('b\\1.png', images, 'x') == images / 'b\\1.png'
    with pytest.raises(DataError, match="x: there is no file '0.png'"):
        find_file('0.png', images, 'x')  # nobody asked to search


def test_files_below_are_visible_and_each_is_found_once(images):
    (images / 'a/._0.png').write_bytes(b'')
    (images / '.trash').mkdir()
    (images / '.trash/0.png').write_bytes(b'')
    (images / 'a/round').symlink_to(images)
    (images / 'b/again').symlink_to(images / 'a')
    below = FilesBelow(images)
    assert below.named('0.png') == [images / 'a/0.png'] and below.named('._0.png') == []


ROOT = [(0, 'birds', 'none'), (1, 'hen', 'birds'), (2, 'egg', 'birds')]


def class_names(folder, categories):
    return prepare(folder, document(['a/0.png', 'b/1.png'], categories)).class_names


def test_prepare_coco_leaves_out_the_root_of_the_categories(images):
    assert class_names(images, ROOT) == ('hen', 'egg')
    assert class_names(images, [ROOT[1], ROOT[0]]) == ('hen',)  # whatever the order
    for parent in ('none', 'hen'):  # called as its only class
        assert class_names(images, [(0, 'hen', parent), (1, 'hen', 'hen')]) == ('hen',)
    prepared = prepare(images, document(['a/0.png'], ROOT))
    kind = "root category ('birds', the supercategory of all others, without objects)"
    assert [split.left_out for split in prepared.splits.values()] == [{kind: 1}] * 2


def test_prepare_coco_keeps_categories_that_are_no_root(images):
    for categories in (
        [(1, 'birds', 'none'), (0, 'hen', 'birds'), (2, 'egg', 'birds')],  # it has objects
        [*ROOT, (3, 'cat', 'none')],  # not all are below it
        [(0, 'birds'), (1, 'hen'), (2, 'egg')],
        [(1, 'hen', 'hen')],  # COCO's person is a person
    ):
        assert len(class_names(images, categories)) == len(categories)
    for categories in (
        [(1, 'hen', 'none'), (2, 'hen', 'none')],
        [*ROOT, (0, 'cat', 'birds')],
        [*ROOT, (3, 'egg', 'birds')],
    ):
        with pytest.raises(DataError, match='appears twice'):
            class_names(images, categories)


def test_prepare_coco_keeps_a_root_that_has_objects_in_one_split(images):
    content = document(['a/0.png'], ROOT)
    paths = [images.parent / name for name in ('a.json', 'b.json')]
    paths[0].write_text(json.dumps(content))
    content['annotations'][0]['category_id'] = '0'
    paths[1].write_text(json.dumps(content))
    prepared = coco.prepare_coco('birds', paths[0], images, paths[1], images, data_dir=images.parent / 'data')
    assert prepared.class_names == ('birds', 'hen', 'egg')


def test_prepare_coco_stores_pictures_of_12_bits_in_8(images, tmp_path):
    deep = np.random.RandomState(0).randint(0, 2**12, (20, 30, 3)).astype(np.uint16)
    cv2.imwrite(str(images / 'a/0.png'), deep)
    with pytest.raises(DataError, match=r'image 0 \(a/0.png\): the brightest .* 40\d\d: .*bit_depth'):
        file_names(images, ['a/0.png', 'b/1.png'])
    with pytest.raises(DataError, match=r'image 0 .* more than bit_depth=10'):
        file_names(images, ['a/0.png', 'b/1.png'], bit_depth=10)
    for bit_depth in (12, 16):
        file_names(images, ['a/0.png', 'b/1.png'], bit_depth=bit_depth)
        first, second = catalog.open_dataset('birds', 'train', tmp_path / 'data').records
        stored = records.decode_image(first['image'], name='stored')  # as training does
        checked = records.decode_image((images / 'a/0.png').read_bytes(), name='checked', bit_depth=bit_depth)
        np.testing.assert_array_equal(stored, checked)
        assert second['image'] == (images / 'b/1.png').read_bytes()


@pytest.mark.parametrize('name', ['a.gif', 'a.jfif', 'a.tif', 'a.webp', 'a.PNG'])
def test_prepare_coco_takes_images_of_any_kind(images, name):
    suffix = pathlib.Path(name).suffix.lower()
    kind = {'.jfif': 'JPEG', '.tif': 'TIFF'}.get(suffix, suffix[1:].upper())
    PIL.Image.fromarray(PICTURE).save(images / name, kind)
    file_names(images, [name, 'b/1.png'])
    record = catalog.open_dataset('birds', 'train', images.parent / 'data').records[0]
    assert record['image'] == (images / name).read_bytes()
    assert records.decode_image(record['image'], name=name).shape == PICTURE.shape
