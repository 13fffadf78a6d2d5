"""Tests of preparing VOC's XML from other places than VOCdevkit: labelImg's and CVAT's folders, own classes, own lists."""

import itertools
import json
import shutil

import hotcoco
import numpy as np
import PIL.Image
import pytest
from drawn_pictures import CLASSES, PICTURES, check_truth, draw, mutate

from detzoo.data import catalog, records
from detzoo.data.readers import voc
from detzoo.data.readers.prepare import Split
from detzoo.errors import DataError


def xml(name, first=1, filename=None):
    """labelImg's XML of a picture; `first` is the number of its first pixel, 0 for continuous coordinates."""
    suffix, (height, width), objects = PICTURES[name]
    text = f'<annotation verified="yes"><folder>old</folder><filename>{filename or name + suffix}</filename>'
    text += f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    for kind, x, y, w, h in objects:
        corners = x + first, y + first, x + w, y + h
        sides = ''.join(f'<{key}>{value}</{key}>' for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners))
        text += f'<object><name>{kind}</name><difficult/><bndbox>{sides}</bndbox></object>'
    return text + '</annotation>'


def write_xml(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (folder / f'{name}.xml').write_text(xml(name, **changes))


@pytest.fixture
def tree(tmp_path):
    """labelImg's folder: XML beside the pictures."""
    draw(tmp_path / 'photos')
    write_xml(tmp_path / 'photos')
    return tmp_path / 'photos'


def prepare(folder, **options):
    options = {'train_images': folder, 'validation_images': folder, **options}
    return voc.prepare_voc('cells', **options, data_dir=folder.parent / 'data')


def opened(folder, split='train'):
    return catalog.open_dataset('cells', split, folder.parent / 'data')


def check(folder, skip):
    """The checked records of a folder; nothing is written, and labels are still names."""
    rules = voc.Rules(None, 'pixels', inside=True, max_pixels=records.MAX_PIXELS)
    return voc.check_split(voc.list_tree(folder, None), itertools.count(1), rules, skip)


def test_prepare_voc_reads_a_folder_of_labelimg(tree):
    (tree / '._tall.xml').write_bytes(b'\0\5\x16\7')  # macOS's
    (tree / '._tall.jpeg').write_bytes(b'\0\5\x16\7')
    prepare(tree)
    for split in ('train', 'validation'):
        check_truth(opened(tree, split))
    assert opened(tree).class_names == CLASSES and opened(tree).category_ids == (1, 2)
    names = [record['file_name'] for record in opened(tree).records]
    assert names == sorted(name + suffix for name, (suffix, *_) in PICTURES.items())
    assert [record['image_id'] for record in opened(tree).records] == [1, 2, 3, 4]


def test_prepare_voc_reads_lists_of_any_folder(tmp_path):
    root = tmp_path / 'own'
    draw(root / 'JPEGImages')
    write_xml(root / 'Annotations')
    (root / 'ImageSets/Main').mkdir(parents=True)
    (root / 'ImageSets/Main/mine.txt').write_text('tall\n"my cell 1"\r\n')  # CVAT's quotes
    (root / 'ImageSets/Main/other.txt').write_text('b.wide.JPG\n')
    options = dict(data_dir=tmp_path / 'data', voc_root=root)
    voc.prepare_voc('cells', **options, train_splits=['mine'], validation_splits=['other'])
    check_truth(opened(root), ('tall', 'my cell 1'))
    check_truth(opened(root, 'validation'), ('b.wide',))
    assert [record['file_name'] for record in opened(root).records] == [
        'JPEGImages/tall.jpeg',
        'JPEGImages/my cell 1.png',
    ]
    voc.prepare_voc('cells', **options, train_splits=['mine', 'other'], validation_share=0.3, overwrite=True)
    assert (len(opened(root).records), len(opened(root, 'validation').records)) == (2, 1)
    for wrong, words in (('../Main/mine', 'tall'), ('absent', r'Main/absent\.txt: cannot read')):
        with pytest.raises(DataError, match=words):
            voc.prepare_voc('other', **options, train_splits=['mine', wrong], validation_splits=['other'])


def test_prepare_voc_reads_annotations_in_a_folder_of_their_own(tmp_path):
    for part in ('train', 'more/validation'):
        draw(tmp_path / 'images' / part, ['tall', 'empty'])
        (tmp_path / 'labels' / part).mkdir(parents=True)
        for name in ('tall', 'empty'):
            (tmp_path / 'labels' / part / f'{name}.xml').write_text(xml(name))
    prepare(
        tmp_path / 'images',
        train_annotations=tmp_path / 'labels',
        validation_images=tmp_path / 'images/train',
        validation_annotations=tmp_path / 'labels/train',
    )
    names = [record['file_name'] for record in opened(tmp_path / 'images').records]
    assert names == ['more/validation/empty.webp', 'more/validation/tall.jpeg', 'train/empty.webp', 'train/tall.jpeg']
    check_truth(opened(tmp_path / 'images', 'validation'), ('tall', 'empty'))


def test_prepare_voc_reads_continuous_coordinates(tree):
    write_xml(tree, first=0)
    prepare(tree, coordinates='edges')
    check_truth(opened(tree))
    prepare(tree, overwrite=True)  # as pixels, each box has one column and row more, and what lies outside is cut
    record = next(record for record in opened(tree).records if record['file_name'].startswith('my cell'))
    np.testing.assert_array_equal(record['boxes'], [[0, 0, 40, 30], [2, 4, 11, 8], [38, 28, 2, 2]])
    with pytest.raises(DataError, match="coordinates must be 'pixels' or 'edges', not 'corners'"):
        prepare(tree, coordinates='corners', overwrite=True)


def test_check_split_cuts_boxes_that_begin_at_0(tree):
    (tree / 'my cell 1.xml').write_text(
        xml('my cell 1').replace('<xmin>1<', '<xmin>0<').replace('<xmax>40<', '<xmax>41<')
    )
    example = next(example for example in check(tree, skip=False).examples if 'cell' in example['file_name'])
    assert [thing['bbox'].tolist() for thing in example['objects'][:1]] == [[0, 0, 40, 30]]


def test_prepare_voc_agrees_with_hotcoco(tree):
    shutil.copytree(tree, tree.parent / 'devkit/Annotations')
    prepare(tree)
    ours, theirs = records.ground_truth(opened(tree)), hotcoco.COCO.from_voc(str(tree.parent / 'devkit')).dataset
    files = [{row['id']: row['file_name'] for row in truth['images']} for truth in (ours, theirs)]
    kinds = [{row['id']: row['name'] for row in truth['categories']} for truth in (ours, theirs)]
    boxes = [
        sorted((file[row['image_id']], kind[row['category_id']], row['bbox']) for row in truth['annotations'])
        for truth, file, kind in zip((ours, theirs), files, kinds)
    ]
    assert len(boxes[0]) == 7 and boxes[0] == boxes[1]


def test_prepare_voc_takes_classes_in_their_order(tree):
    prepare(tree, classes=['red cell', 'dog', 'cat'])
    assert opened(tree).class_names == ('red cell', 'dog', 'cat')
    check_truth(opened(tree))
    with pytest.raises(DataError, match=r'b\.wide\.xml: object 1 \(cat\): not one of the classes red cell; list all'):
        prepare(tree, classes=['red cell'], overwrite=True)
    with pytest.raises(DataError, match="classes: the class 'cat' appears twice"):
        prepare(tree, classes=['cat', 'cat'], overwrite=True)


def test_number_classes_sorts_the_names_of_all_splits():
    names = ['e', 'c', 'A', 'd', 'b', 'f']
    splits = {
        'train': Split([{'objects': [{'label': name} for name in names[:4]]}], []),
        'validation': Split([{'objects': []}, {'objects': [{'label': name} for name in names[4:]]}], []),
    }
    assert voc.number_classes(splits, None) == ('A', 'b', 'c', 'd', 'e', 'f')
    assert [thing['label'] for thing in splits['train'].examples[0]['objects']] == [4, 2, 0, 3]
    assert [thing['label'] for thing in splits['validation'].examples[1]['objects']] == [1, 5]


KEPT = {
    'difficult': (lambda text: text.replace('<difficult/>', '<difficult> 0 </difficult>')),
    'no flag': (lambda text: text.replace('<difficult/>', '')),
    'no size': (lambda text: text.replace('size>', 'sides>')),
    'size of 0': (lambda text: text.replace('<height>30', '<height>0')),
    'empty size': (lambda text: text.replace('<width>40</width>', '<width></width>')),
    'blanks': (lambda text: text.replace('<name>red cell', '<name>\n red\t cell\n')),
    'other suffix': (lambda text: text.replace('1.png', '1.jpg')),
    'no suffix': (lambda text: text.replace('1.png', '1')),
    'no file name': (lambda text: text.replace('filename', 'file')),
    'other file': (lambda text: text.replace('my cell 1.png', r'C:\photos\other.png')),
    'floats': (lambda text: text.replace('<xmax>40', '<xmax>40.0').replace('<width>40', '<width>40.0')),
    'polygon': (lambda text: text.replace('</object>', '<polygon><x1>7</x1><y1>-9</y1></polygon></object>')),
}


@pytest.mark.parametrize('case', KEPT)
def test_check_split_reads_what_is_plainly_meant(tree, case):
    path = tree / 'my cell 1.xml'
    text = path.read_text()
    path.write_text(KEPT[case](text))
    assert path.read_text() != text
    (example,) = [example for example in check(tree, skip=False).examples if example['file_name'] == 'my cell 1.png']
    size, objects = PICTURES['my cell 1'][1:]
    assert (example['height'], example['width']) == size
    assert [(thing['label'], *thing['bbox'], thing['is_crowd']) for thing in example['objects']] == [
        (*thing, False) for thing in objects
    ]


# XML file, its <filename>, all images, and the one that is meant, or words of the error.
MEANT = {
    'its name': ('a', 'b.png', ['a.jpg', 'b.png'], 'a.jpg'),
    'its folder': ('x/a', 'a.jpg', ['a.jpg', 'x/a.jpg'], 'x/a.jpg'),
    'another folder': ('a', 'old.png', ['x/a.jpg'], 'x/a.jpg'),
    'file name': ('0001', r'C:\old\b.PNG', ['a.png', 'x/b.PNG'], 'x/b.PNG'),
    'file name without suffix': ('0001', 'b.1', ['b.1.png', 'b.png'], 'b.1.png'),
    'file name with another suffix': ('0001', 'b.bmp', ['b.png'], 'b.png'),
    'two suffixes': ('a', 'a.png', ['a.jpg', 'a.png'], 'a.png'),
    'which suffix': ('a', 'a.bmp', ['a.jpg', 'a.png'], "'a.jpg' and 'a.png' in .* may both be its image; rename one"),
    'which folder': ('a', 'a.jpg', ['x/a.jpg', 'y/a.jpg'], "'x/a.jpg' and 'y/a.jpg'"),
    'none': ('a', 'b.jpg', ['c.jpg'], "there is no image 'a' of any suffix in .*, nor 'b.jpg'"),
    'no image': ('a', '', ['a.txt'], "there is no image 'a'"),
}


@pytest.mark.parametrize('case', MEANT)
def test_find_image(tmp_path, case):
    stem, filename, files, meant = MEANT[case]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    images = voc.folders.index_images(tmp_path)
    if ' ' in meant:
        with pytest.raises(DataError, match=f'^here: {meant}'):
            voc.find_image(images, stem, filename, 'here')
    else:
        assert voc.find_image(images, stem, filename, 'here') == meant


def test_check_split_lists_what_belongs_to_nothing(tree):
    shutil.copy(tree / 'tall.jpeg', tree / 'new.png')  # not annotated yet
    (tree / 'gone.xml').write_text(xml('tall', filename='gone.jpeg'))
    (tree / 'copy of tall.xml').write_text(xml('tall'))
    (tree / 'empty.xml').write_text('<annotation>')
    with pytest.raises(DataError, match='on_bad_record=.skip'):
        check(tree, skip=False)
    examples, skipped = check(tree, skip=True)[:2]
    assert [example['file_name'] for example in examples] == ['b.wide.JPG', 'my cell 1.png']
    words = [
        r"copy of tall.xml: another XML file describes 'tall.jpeg' too",
        r'empty.xml: not XML',
        r"gone.xml: there is no image 'gone'",
        r'new.png: no XML file describes this image',
        r"tall.xml: another XML file describes 'tall.jpeg' too",
    ]
    skipped = sorted(message[len(str(tree)) + 1 :] for message in skipped)
    assert all(message.startswith(start) for message, start in zip(skipped, words, strict=True)), skipped


def test_prepare_voc_refuses_other_requests(tree):
    for options, words in (
        (dict(voc_root=tree, train_splits=['a']), 'name voc_root and its lists .*, or else folders of images'),
        (dict(train_splits=['a']), 'name voc_root'),
        (dict(validation_images=None, validation_annotations=tree, validation_share=0.5), 'name voc_root'),
        (dict(train_images=None), 'name voc_root'),
        (dict(train_images=None, validation_images=None, voc_root=tree), 'name voc_root'),
        (dict(validation_images=None), 'name the validation data whole, or give validation_share'),
        (dict(validation_share=0.5), 'name the validation data whole'),
        (dict(train_annotations=tree.parent / 'nowhere'), 'cannot list the folder .*nowhere'),
        (dict(train_images=tree.parent / 'nowhere'), 'cannot list the folder .*nowhere'),
        (dict(train_annotations=tree.parent / 'none'), 'no XML file in this folder or below'),
    ):
        (tree.parent / 'none').mkdir(exist_ok=True)
        with pytest.raises(DataError, match=words):
            prepare(tree, **options)
    for path in tree.glob('*.xml'):
        path.write_text('<annotation/>')
    with pytest.raises(DataError, match='the XML files: there are no classes'):
        prepare(tree)
    assert not (tree.parent / 'data').exists()


def test_prepare_voc_lists_skipped_objects(tree):
    (tree / 'tall.xml').write_text(xml('tall').replace('<xmax>1<', '<xmax>nan<', 1))
    prepared = prepare(tree, on_bad_record='skip')
    (message,) = json.loads((prepared.folder / 'skipped.json').read_text())['train']
    assert "tall.xml: object 1 (red cell): bndbox/xmax must be a finite number, not 'nan'" in message


def check_mutation(folder, text, rng):
    """Puts a spoilt XML file beside good ones: it is read, or each fault is named, and nothing is lost unseen."""
    path = folder / 'my cell 1.xml'
    path.write_bytes(mutate(text.encode(), rng))
    examples, skipped = check(folder, skip=True)[:2]
    try:
        check(folder, skip=False)
        assert not skipped
    except DataError as error:
        assert skipped and str(path) in str(error) and str(error).count('on_bad_record') == 1
    assert all(str(path) in message for message in skipped)
    things = [thing for example in examples if example['file_name'] == 'my cell 1.png' for thing in example['objects']]
    if len(examples) == 2:
        assert len(things) + len(skipped) == len(voc.read_annotation(path).findall('object'))
    else:
        assert len(examples) == 1 and skipped
    for x, y, w, h in (thing['bbox'] for thing in things):
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 40 and y + h <= 30
    return bool(skipped)


def test_check_split_survives_broken_files(tmp_path):
    draw(tmp_path, ['my cell 1', 'empty'])
    (tmp_path / 'empty.xml').write_text(xml('empty'))
    rng = np.random.default_rng(0)
    bad = sum(check_mutation(tmp_path, xml('my cell 1'), rng) for _ in range(150))
    assert 50 < bad < 150  # of both kinds


def test_prepare_voc_stores_pictures_of_a_camera_of_12_bits(tree):
    gray = np.random.RandomState(0).randint(0, 256, (30, 40)).astype(np.uint16)
    PIL.Image.fromarray(gray * 16).save(tree / 'my cell 1.png')
    with pytest.raises(DataError, match=r'my cell 1\.xml: the brightest pixel of this 16-bit file is'):
        prepare(tree)
    prepare(tree, bit_depth=12)
    check_truth(opened(tree))
    record = next(record for record in opened(tree).records if record['file_name'] == 'my cell 1.png')
    np.testing.assert_array_equal(records.decode_image(record['image'], name='')[..., 0], gray)
