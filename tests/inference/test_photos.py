"""Image files in; pictures, images.json and detections.json out."""

import json
import os
import pathlib
import socket

import cv2
import numpy as np
import PIL.Image
import pytest
from pycocotools.coco import COCO

from detzoo.errors import DataError
from detzoo.inference.photos import find_images, picture_names, predict_files, read_image, split_patterns
from detzoo.inference.predictor import ImageDetections
from detzoo.run.classes import Classes

CLASSES = Classes(('red', 'green', 'blue'), (3, 8, 9))


class Corners:
    """Finds in each image its upper left quarter, surely, and the whole, hardly."""

    classes = CLASSES

    def __call__(self, image):
        height, width = image.shape[:2]
        boxes = np.array([[0, 0, width / 2, height / 2], [0, 0, width, height]])
        return ImageDetections(boxes, np.array([0.9, 0.2]), np.array([1, 2]), np.array([8, 9]), ('green', 'blue'))


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures: a.png of 40 x 20, a.jpg of 30 x 50, sub/b.png of 8 x 6, and a text."""
    folder = tmp_path / 'pictures'
    (folder / 'sub').mkdir(parents=True)
    for name, size in (('a.png', (40, 20)), ('a.jpg', (30, 50)), ('sub/b.png', (8, 6))):
        PIL.Image.new('RGB', size, (90, 90, 90)).save(folder / name)
    (folder / 'notes.txt').write_text('no picture')
    return folder


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


class Seen:
    """Fails: an error that can be known before comes too late."""

    classes = CLASSES

    def __call__(self, image):
        raise AssertionError('an image was predicted')


def test_predict_files_lists_detections_that_pycocotools_reads(pictures, tmp_path):
    output = tmp_path / 'new' / 'output'
    assert predict_files(Corners(), [str(pictures), str(pictures / 'sub/*.png')], output) == (3, [])
    results = json.loads((output / 'detections.json').read_text())
    assert [row['image'] for row in results] == ['a.jpg', 'a.png', 'sub/b.png']
    named = dict(image='a.png', category='green')
    assert results[1] == dict(image_id=1, category_id=8, bbox=[0, 0, 20, 10], score=0.9) | named

    images = [
        (row['file_name'], row['width'], row['height'], row['picture'])
        for row in json.loads((output / 'images.json').read_text())['images']
    ]
    assert images == [('a.jpg', 30, 50, 'a.png'), ('a.png', 40, 20, 'a.png.png'), ('sub/b.png', 8, 6, 'sub/b.png')]
    read = COCO(str(output / 'images.json')).loadRes(str(output / 'detections.json'))
    assert [read.anns[i]['area'] for i in sorted(read.anns)] == [15 * 25, 20 * 10, 4 * 3]


def test_predict_files_draws_each_image(pictures, tmp_path):
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], tmp_path / 'output')
    aspect_ratios = {}
    pictures_drawn = set((tmp_path / 'output').rglob('*.png')) - {tmp_path / 'output/overview.png'}
    for path in pictures_drawn:
        with PIL.Image.open(path) as image:
            aspect_ratios[str(path.relative_to(tmp_path / 'output'))] = image.height / image.width
            assert (np.asarray(image) != 90).any()  # something is drawn
    with (
        PIL.Image.open(tmp_path / 'output/overview.png') as overview,
        PIL.Image.open(tmp_path / 'output/a.png') as first,
    ):
        assert overview.width > first.width and overview.height >= first.height
    assert aspect_ratios == {'a.png': 50 / 30, 'a.png.png': 20 / 40, 'sub/b.png': 6 / 8}


def test_predict_files_keeps_the_picture_of_an_image_called_overview(pictures, tmp_path):
    (pictures / 'a.png').rename(pictures / 'overview.png')
    predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    names = {path.name for path in (tmp_path / 'output').glob('*.png')}
    assert names == {'a.png', 'overview.png', 'overview.png.png'}


def test_predict_files_leaves_out_low_scores(pictures, tmp_path):
    for threshold, count in ((0.95, 0), (0.5, 1), (0.1, 2)):
        predict_files(Corners(), [str(pictures / 'a.png')], tmp_path / 'output', score_threshold=threshold)
        assert len(json.loads((tmp_path / 'output/detections.json').read_text())) == count


@pytest.mark.parametrize('content', [b'', b'<html>', 'truncated'])
def test_predict_files_writes_nothing_where_an_image_is_bad(pictures, tmp_path, content):
    data = (pictures / 'a.png').read_bytes()
    (pictures / 'z.png').write_bytes(data[: len(data) // 2] if content == 'truncated' else content)
    with pytest.raises(DataError, match=r'z\.png: not a whole image'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pictures']
    written, skipped = predict_files(Corners(), [str(pictures)], tmp_path / 'output', on_bad_record='skip')
    assert written == 2 and len(skipped) == 1 and 'z.png' in skipped[0]
    results = json.loads((tmp_path / 'output/detections.json').read_text())
    assert [(row['image_id'], row['image']) for row in results] == [(0, 'a.jpg'), (1, 'a.png')]


def test_predict_files_refuses_large_images(pictures, tmp_path):
    with pytest.raises(DataError, match=r'a\.jpg: 30 x 50 pixels are over max_pixels=1000'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output', max_pixels=1000)


def test_predict_files_gives_the_output_the_usual_permissions(pictures, tmp_path):
    (tmp_path / 'usual').mkdir()
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], tmp_path / 'output')
    for folder in ('output', 'output/sub'):
        assert (tmp_path / folder).stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_predict_files_replaces_what_an_earlier_prediction_wrote_and_nothing_else(pictures, tmp_path):
    output = tmp_path / 'output'
    output.mkdir()
    (output / 'notes.txt').write_text('mine')
    (output / 'mine.png').write_text('mine')
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], output, score_threshold=0.95)
    lists = ['detections.json', 'images.json', 'mine.png', 'notes.txt']
    assert files_in(output) == ['a.png', 'a.png.png', *lists, 'overview.png', 'sub/b.png']
    predict_files(Corners(), [str(pictures), str(pictures / 'sub')], output)
    assert files_in(output) == ['a.png', 'a.png.png', *lists, 'overview.png', 'sub/b.png']
    assert len(json.loads((output / 'detections.json').read_text())) == 3
    # Of one image there is no overview, and the pictures of the others go; one has gone already.
    (output / 'a.png.png').unlink()
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    assert files_in(output) == ['a.png', *lists]
    (output / 'overview.png').write_text('mine')
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    assert files_in(output) == ['a.png', *lists, 'overview.png']
    assert {(output / name).read_text() for name in ('notes.txt', 'mine.png', 'overview.png')} == {'mine'}


def test_predict_files_that_was_killed_while_it_moved_files_can_be_done_again(pictures, tmp_path, monkeypatch):
    output, real = tmp_path / 'output', os.replace
    predict_files(Corners(), [str(pictures)], output)

    def replace(source, target):
        if target.name == 'b.png':
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
        predict_files(Corners(), [str(pictures / 'sub'), str(pictures / 'a.png')], output)
    monkeypatch.undo()
    predict_files(Corners(), [str(pictures / 'sub')], output)
    assert files_in(output) == ['b.png', 'detections.json', 'images.json']


@pytest.mark.parametrize(
    'name', ['a.png', 'a.png.png', 'overview.png', 'detections.json', 'images.json', 'sub', 'sub/b.png']
)
def test_predict_files_keeps_what_no_prediction_wrote(pictures, tmp_path, name):
    output = tmp_path / 'output'
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text('{"images": []}')
    with pytest.raises(DataError, match=f'output/{name} is in the way, and not from an earlier prediction'):
        predict_files(Seen(), [str(pictures), str(pictures / 'sub')], output)
    assert files_in(output) == [name] and (output / name).read_text() == '{"images": []}'


def test_predict_files_refuses_an_output_that_cannot_be_before_it_predicts(pictures, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'link').symlink_to('nowhere')
    for name, match in (
        ('file', 'file is not a folder'),
        ('link', 'link is not a folder'),
        ('file/x', 'cannot write into .*/file .*: choose another folder'),
    ):
        with pytest.raises((DataError, OSError), match=match):
            predict_files(Seen(), [str(pictures)], tmp_path / name)
    assert files_in(tmp_path) == sorted(['file', *(f'pictures/{name}' for name in files_in(pictures))])


def test_predict_files_keeps_the_images(pictures, tmp_path):
    # a.jpg's picture would be a.png, which is an image as well.
    before = {path: path.read_bytes() for path in pictures.iterdir() if path.is_file()}
    with pytest.raises(DataError, match='pictures/a.png is in the way'):
        predict_files(Seen(), [str(pictures)], pictures)
    assert {path: path.read_bytes() for path in pictures.iterdir() if path.is_file()} == before
    # Nor is a picture of an earlier prediction both read and replaced.
    output = tmp_path / 'output'
    predict_files(Corners(), [str(pictures / 'sub')], output)
    before = (output / 'b.png').read_bytes()
    for pattern in (output, output / 'b.png'):
        with pytest.raises(DataError, match='output/b.png is one of the images'):
            predict_files(Seen(), [str(pattern), str(pictures / 'a.jpg')], output)
    assert (output / 'b.png').read_bytes() == before


def test_predict_files_removes_nothing_outside_of_the_output(pictures, tmp_path):
    output = tmp_path / 'output'
    predict_files(Corners(), [str(pictures / 'a.jpg')], output)
    (tmp_path / 'mine').write_text('mine')
    (output / 'images.json').write_text(json.dumps({'files': ['../mine', str(tmp_path / 'mine'), 'a.png']}))
    predict_files(Corners(), [str(pictures / 'sub')], output)
    assert (tmp_path / 'mine').exists() and files_in(output) == ['b.png', 'detections.json', 'images.json']
    (output / 'b.png').unlink()
    (output / 'b.png').mkdir()
    with pytest.raises(DataError, match='output/b.png is in the way'):
        predict_files(Seen(), [str(pictures / 'sub')], output)


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), OSError(5, 'Input/output error')])
def test_predict_files_skips_files_that_cannot_be_read(pictures, tmp_path, monkeypatch, error):
    real = pathlib.Path.read_bytes

    def read_bytes(path):
        if path.name == 'a.png':
            raise error
        return real(path)

    monkeypatch.setattr(pathlib.Path, 'read_bytes', read_bytes)
    (pictures / 'nowhere.png').symlink_to('none.png')
    monkeypatch.chdir(pictures)
    with socket.socket(socket.AF_UNIX) as unread:  # as a pipe, which a test that fails would wait for
        unread.bind('socket.png')
    (pictures / 'folder.png').mkdir()  # no image
    with pytest.raises(DataError, match=f'a.png: cannot read the file: {error.strerror}'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    written, skipped = predict_files(Corners(), [str(pictures)], tmp_path / 'output', on_bad_record='skip')
    assert written == 1 and files_in(tmp_path / 'output') == ['a.png', 'detections.json', 'images.json']
    for message, words in zip(
        skipped, (error.strerror, 'nowhere.png: cannot read the file: No such', 'socket.png: not a file'), strict=True
    ):
        assert words in message


def test_predict_files_names_the_picture_that_does_not_fit_on_the_disk(pictures, tmp_path, monkeypatch):
    def write_bytes(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pathlib.Path, 'write_bytes', write_bytes)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'"):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    assert [path.name for path in tmp_path.iterdir()] == ['pictures']


def test_picture_names_are_all_different():
    names = ['a.png.bmp', 'a.jpg', 'a.png', 'A.gif', 'sub/a.jpg', 'b.jpg', 'b.png/c.jpg', 'overview.jpg']
    pictures = picture_names([pathlib.PurePath(name) for name in ['overview.png', *names]])
    assert list(map(str, pictures)) == [
        'overview.png',
        'a.png.png',
        'a.png',
        'a.png.png.png',
        'A.gif.png',
        'sub/a.png',
        'b.jpg.png',
        'b.png/c.png',
        'overview.jpg.png',
    ]


def test_find_images_takes_files_folders_and_globs(pictures):
    def names(*patterns):
        found = find_images([str(pictures / pattern) for pattern in patterns])
        return [str(path.relative_to(pictures)) for path in found]

    assert names('') == ['a.jpg', 'a.png']
    assert names('**/*.png') == ['a.png', 'sub/b.png']
    assert names('sub', 'a.png', '*.png') == ['sub/b.png', 'a.png']  # each once, in order
    with pytest.raises(DataError, match="no image matches '.*c.png'"):
        names('a.png', 'c.png')


def test_find_images_takes_a_file_whose_name_looks_like_a_glob(pictures):
    (pictures / 'scan[1].png').write_bytes((pictures / 'a.png').read_bytes())
    path = pictures / 'scan[1].png'
    assert find_images([str(path)]) == [path]
    path.unlink()
    path.symlink_to('nowhere')
    assert find_images([str(path)]) == [path]


def test_find_images_gives_links_the_names_that_the_user_sees(pictures, monkeypatch):
    (pictures / 'linked.png').symlink_to('a.png')
    (pictures / 'other').symlink_to('sub')
    (pictures / 'lost.png').symlink_to('none.png')
    monkeypatch.chdir(pictures)
    found = find_images(['.', 'other', 'sub/../a.png', './linked.png'])
    assert [str(path.relative_to(pictures)) for path in found] == [
        'a.jpg',
        'a.png',
        'linked.png',
        'lost.png',
        'other/b.png',
    ]
    assert find_images(['other/../a.png']) == [pictures / 'a.png']  # the folder that holds sub, not the link
    assert find_images(['*st.png']) == [pictures / 'lost.png']
    monkeypatch.setenv('HOME', str(pictures))
    assert find_images(['~/sub']) == [pictures / 'sub/b.png']


def test_find_images_finds_images_of_all_kinds_and_no_hidden_files(tmp_path):
    names = ['a.JPG', 'b.jfif', 'c.gif', 'd.heic', 'e.Tiff', 'f.avif']
    for name in [*names, '._a.JPG', '.b.png', 'notes.txt']:
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == names
    with pytest.raises(DataError, match='no images are given'):
        find_images([])


def test_split_patterns_keeps_the_commas_of_names_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'b, c').mkdir()
    for name in ('a.jpg', 'b, c/1.jpg', 'x,y', 'x'):
        (tmp_path / name).touch()
    for patterns in (
        ['a.jpg', 'b, c/*.jpg', 'a.jpg'],
        ['b, c/1.jpg', '~/b, c'],
        ['a.jpg', 'none.jpg', 'a.jpg'],
        ['x,y'],
        ['a.jpg', 'x', 'y'],  # the shorter name, where both exist
        ['none.jpg'],
    ):
        assert split_patterns(','.join(patterns)) == [pattern.replace('~', str(tmp_path)) for pattern in patterns]


def test_read_image_reads_gif_and_jfif(tmp_path):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[:, 3:] = 255
    for name, kind in (('a.gif', 'GIF'), ('b.jfif', 'JPEG')):
        PIL.Image.fromarray(pixels).save(tmp_path / name, kind)
        assert np.abs(read_image(tmp_path / name, 100).astype(int) - pixels).max() < 30


def test_read_image_reads_12_bits_in_files_of_16_where_told(tmp_path, pictures):
    pixels = np.full((5, 7, 3), 3520, np.uint16)
    cv2.imwrite(str(pictures / 'a.png'), pixels)
    with pytest.raises(DataError, match=r'a\.png: the brightest .* is 3520: .*bit_depth'):
        predict_files(Corners(), [str(pictures)], tmp_path / 'output')
    assert predict_files(Corners(), [str(pictures)], tmp_path / 'output', bit_depth=12) == (2, [])
    assert (read_image(pictures / 'a.png', 100, 12) == 220).all()
