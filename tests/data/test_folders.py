"""Tests of what the readers of folders share."""

import pytest

from detzoo.data.readers import folders
from detzoo.errors import DataError


def test_find_files_follows_links_and_leaves_hidden_files_out(tmp_path):
    store, photos = tmp_path / 'store', tmp_path / 'photos'
    for path in (
        store / 'a1b2',
        store / 'more/4.JPG',
        photos / 'x/2.png',
        photos / '._1.jpg',
        photos / '.thumbs/1.jpg',
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (photos / '1.jpg').symlink_to(store / 'a1b2')
    (photos / 'linked').symlink_to(store / 'more')
    (photos / 'x/back').symlink_to(photos)  # a circle
    assert folders.find_files(photos, folders.IMAGE_SUFFIXES) == ['1.jpg', 'linked/4.JPG', 'x/2.png']
    assert folders.find_files(photos, ('.xml',)) == []
    with pytest.raises(DataError, match='cannot list the folder .*nowhere: No such file'):
        folders.find_files(tmp_path / 'nowhere', ('.xml',))


def test_find_files_refuses_names_that_are_not_unicode(tmp_path):
    (tmp_path / 'a\udcff.jpg').touch()
    with pytest.raises(DataError, match=r"the file name 'a\\udcff.jpg' is not Unicode; rename the file"):
        folders.find_files(tmp_path, ('.jpg',))


def test_stem_of_removes_suffixes_of_images_alone():
    names = 'x/a.b.JPG', 'a.jpeg', 'IMG.001', 'v1.2/a', '.png'
    assert [folders.stem_of(name) for name in names] == ['x/a.b', 'a', 'IMG.001', 'v1.2/a', '']


def test_read_text_reads_a_mark_of_the_byte_order_and_refuses_large_files(tmp_path):
    (tmp_path / 'a.txt').write_text('\ufeff0 1', encoding='utf-8')
    assert folders.read_text(tmp_path / 'a.txt', limit=6) == '0 1'
    with pytest.raises(DataError, match=r'a\.txt: more than 5 bytes'):
        folders.read_text(tmp_path / 'a.txt', limit=5)


def test_fit_box_cuts_what_lies_outside():
    assert folders.fit_box([-1.5, 2, 10, 7.5], 'a', 9, 8) == [0, 2, 8, 7]
    assert folders.fit_box([0.1, 0.2, 0.3, 0.4], 'a', 9, 8) == [0.1, 0.2, 0.3, 0.4]  # to the last bit
    for box, words in (
        ([-1.5, 2, 1, 1], r'a: bbox \[0.0, 2, -0.5, 1\] has no positive width'),
        ([1, 2, 0, 1], 'a: bbox .* has no positive width'),
        ([1, 2, 9.5, 1], 'a: bbox .* leaves the image of 8 x 9 pixels'),
    ):
        with pytest.raises(DataError, match=words):
            folders.fit_box(box, 'a', 9, 8)


def test_check_class_names():
    assert folders.check_class_names(['red cell', 'é'], 'a') == ('red cell', 'é')
    for names, words in (
        ([], 'a: there are no classes'),
        (['x', ''], "a: the class '' must be one line"),
        ([' x'], "a: the class ' x' must be one line of text with no blanks around it"),
        (['x\ny'], 'must be one line'),
        (['x', 'y', 'x'], "a: the class 'x' appears twice"),
    ):
        with pytest.raises(DataError, match=words):
            folders.check_class_names(names, 'a')
