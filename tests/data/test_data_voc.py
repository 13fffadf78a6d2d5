"""Tests of preparing PASCAL VOC: pixels counted from 1, difficult objects, and one clear error for what can be wrong."""

import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data import catalog, records
from detzoo.data.pipeline import pad_ground_truth
from detzoo.data.readers import voc
from detzoo.errors import DataError

HEIGHT, WIDTH = 30, 40
OBJECTS = [('tvmonitor', (1, 1, 40, 30), 0), ('aeroplane', (3, 5, 3, 7), 1), ('person', (2.5, 4, 11.75, 20), None)]

NAMES = [name for name, _, _ in OBJECTS]


def picture(height=HEIGHT, width=WIDTH):
    file = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(file, 'JPEG')
    return file.getvalue()


def annotation(objects=OBJECTS, height=HEIGHT, width=WIDTH):
    """VOC's XML; a person has a part, with a name and a box of its own."""
    nodes = ''
    for name, corners, difficult in objects:
        part = '<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>' if name == 'person' else ''
        flag = '' if difficult is None else f'<difficult>{difficult}</difficult>'
        box = ''.join(f'<{key}>{value}</{key}>' for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners))
        nodes += f'<object>{part}<name>{name}</name><truncated>1</truncated>{flag}<bndbox>{box}</bndbox></object>'
    size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    return f'<annotation><filename>other.jpg</filename>{size}{nodes}</annotation>'


LISTS = {'2007': {'trainval': ['000005', '000007'], 'test': ['000001']}, '2012': {'trainval': ['2008_000008']}}


@pytest.fixture
def root(tmp_path):
    """A good VOCdevkit: three training images, the second without objects, and one for validation."""
    for year, lists in LISTS.items():
        folder = tmp_path / 'VOCdevkit' / f'VOC{year}'
        for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (folder / part).mkdir(parents=True)
        for list_name, names in lists.items():
            (folder / 'ImageSets/Main' / f'{list_name}.txt').write_text('\n'.join(names) + '\n\n')
            for name in names:
                (folder / 'JPEGImages' / f'{name}.jpg').write_bytes(picture())
                (folder / 'Annotations' / f'{name}.xml').write_text(annotation([] if name == '000007' else OBJECTS))
    return tmp_path / 'VOCdevkit'


def prepare(root, train=('2007_trainval', '2012_trainval'), validation=('2007_test',), **options):
    return voc.prepare_voc('voc', root, train, validation, data_dir=root.parent / 'data', **options)


def written(root):
    data = root.parent / 'data'
    return sorted(path.name for path in data.rglob('*')) if data.exists() else []


def opened(root, split='train'):
    return catalog.open_dataset('voc', split, root.parent / 'data')


def test_prepare_voc_keeps_lists_and_files(root):
    prepare(root)
    dataset = opened(root)
    assert dataset.class_names == voc.CLASS_NAMES and dataset.category_ids == tuple(range(1, 21))
    names = [record['file_name'] for record in dataset.records]
    assert names == [
        'VOC2007/JPEGImages/000005.jpg',
        'VOC2007/JPEGImages/000007.jpg',
        'VOC2012/JPEGImages/2008_000008.jpg',
    ]
    assert [record['image_id'] for record in dataset.records] == [1, 2, 3]
    assert [len(record['boxes']) for record in dataset.records] == [3, 0, 3]
    assert dataset.records[0]['image'] == (root / names[0]).read_bytes()
    validation = opened(root, 'validation').records
    assert [record['image_id'] for record in validation] == [4]  # no number twice
    truth = records.ground_truth(dataset)
    assert [row['id'] for row in truth['annotations']] == [1, 2, 3, 4, 5, 6]


def test_class_names_are_in_the_order_of_voc():
    assert len(voc.CLASS_NAMES) == 20 and list(voc.CLASS_NAMES) == sorted(voc.CLASS_NAMES)
    assert {'aeroplane', 'diningtable', 'motorbike', 'pottedplant', 'tvmonitor'} < set(voc.CLASS_NAMES)


def test_prepare_voc_turns_inclusive_pixels_from_1_into_continuous_corners(root):
    prepare(root)
    record = opened(root).records[0]
    # Pixels 1..40 are the whole width of 40; pixels 3..3 are one pixel, from 2 to 3.
    expected = [[0, 0, 40, 30], [2, 4, 3, 7], [1.5, 3, 11.75, 20]]
    np.testing.assert_array_equal(xywh_to_xyxy(record['boxes']), expected)
    np.testing.assert_array_equal(record['areas'], [1200, 3, 10.25 * 17])
    assert [voc.CLASS_NAMES[label] for label in record['labels']] == ['tvmonitor', 'aeroplane', 'person']


def test_prepare_voc_stores_difficult_objects_as_crowds(root):
    prepare(root)
    record = opened(root).records[0]
    assert record['is_crowd'].tolist() == [False, True, False]
    gt = pad_ground_truth(xywh_to_xyxy(record['boxes']), record['labels'], record['is_crowd'], 4, cropped=0)
    assert gt.crowd.tolist() == [False, True, False, False]  # what a detector never trains on as an object
    assert [row['iscrowd'] for row in records.ground_truth(opened(root))['annotations'][:3]] == [0, 1, 0]


# What is wrong with one record: how to break the first training image, and what the message must say.


def rewrite(text):
    return lambda folder: (folder / 'Annotations/000005.xml').write_text(text)


def with_object(*changed):
    return rewrite(annotation([changed, *OBJECTS]))


def write_jpeg(data):
    return lambda folder: (folder / 'JPEGImages/000005.jpg').write_bytes(data)


BAD_IMAGES = {
    'no XML': (
        lambda folder: (folder / 'Annotations/000005.xml').unlink(),
        r"there is no file '000005\.xml' in",
    ),
    'cut short': (rewrite(annotation()[:-9]), 'not XML, or cut short'),
    'entities': (
        rewrite('<!DOCTYPE a [<!ENTITY b "wren">]><annotation/>'),
        "not XML, .*document type, 'a', is not read: remove <!DOCTYPE",
    ),
    'unknown encoding': (rewrite('<?xml version="1.0" encoding="klingon"?><annotation/>'), 'not XML'),
    'other root': (rewrite('<html/>'), "its root is 'html'"),
    'size is text': (rewrite(annotation(width='wide')), "size/width must be a finite number, not 'wide'"),
    'half a pixel': (rewrite(annotation(width=40.5)), 'whole pixels'),
    'no pixels': (rewrite(annotation(height=-30)), 'must be positive'),
    'other size': (rewrite(annotation(height=31)), '40 x 30 pixels, the annotations say 40 x 31'),
    'turned': (rewrite(annotation([], height=40, width=30)), 'EXIF'),
    'no image': (lambda folder: (folder / 'JPEGImages/000005.jpg').unlink(), "no image '000005' of any suffix in"),
    'short image': (write_jpeg(picture()[:-99]), 'not a whole image'),
}

BAD_OBJECTS = {
    'unknown class': (
        with_object('unicorn', (1, 2, 3, 4), 0),
        r'\(unicorn\): not one of VOC.s 20 classes; list all classes',
    ),
    'no name': (rewrite(annotation([('', (1, 2, 3, 4), 0), *OBJECTS])), 'not one of VOC.s 20'),
    'degenerate': (with_object('cat', (5, 2, 4, 4), 0), r'\(cat\): bbox .* no positive width'),
    'outside': (with_object('cat', (5, 2, 43, 4), 0), 'leaves the image of 40 x 30'),
    'before the edge': (with_object('cat', (-2, 2, 9, 9), 0), 'leaves the image'),
    'no box': (rewrite(annotation([('cat', (), 0), *OBJECTS])), 'bndbox/xmin must be a finite number, not None'),
    'box is text': (with_object('cat', (1, 2, 'x', 4), 0), "bndbox/xmax must be a finite number, not 'x'"),
    'box is infinite': (with_object('cat', (1, 2, 'inf', 4), 0), "bndbox/xmax must be a finite number, not 'inf'"),
    'difficult': (with_object('cat', (1, 2, 3, 4), 'yes'), "difficult must be 0 or 1, not 'yes'"),
}


def check(root, skip):
    """The checked training split; nothing is written, and labels are still names."""
    rules = voc.Rules(voc.CLASS_NAMES, 'pixels', inside=False, max_pixels=records.MAX_PIXELS)
    return voc.check_split(voc.list_parts(root, ('2007_trainval', '2012_trainval')), itertools.count(1), rules, skip)


@pytest.mark.parametrize('case', BAD_IMAGES)
def test_check_split_refuses_image(root, case):
    spoil, words = BAD_IMAGES[case]
    spoil(root / 'VOC2007')
    with pytest.raises(DataError, match=rf'VOC2007/Annotations/000005\.xml.*{words}.*on_bad_record=.skip'):
        check(root, skip=False)
    examples, skipped, *_ = check(root, skip=True)
    assert [len(example['objects']) for example in examples] == [0, 3]
    assert len(skipped) == 1 and '000005.xml' in skipped[0]


@pytest.mark.parametrize('case', BAD_OBJECTS)
def test_check_split_refuses_object(root, case):
    spoil, words = BAD_OBJECTS[case]
    spoil(root / 'VOC2007')
    with pytest.raises(DataError, match=rf'000005\.xml: object 1 .*{words}.*on_bad_record=.skip'):
        check(root, skip=False)
    examples, skipped, *_ = check(root, skip=True)
    assert [[thing['label'] for thing in example['objects']] for example in examples] == [NAMES, [], NAMES]
    assert len(skipped) == 1 and 'object 1' in skipped[0]


def test_check_split_stores_boxes_of_the_devkit_as_they_are(root):
    with_object('cat', (0, 2, 41, 9), 0)(root / 'VOC2007')
    examples, *_ = check(root, skip=False)
    assert examples[0]['objects'][0]['bbox'].tolist() == [-1, 1, 42, 8]


def test_prepare_voc_writes_nothing_or_leaves_out_what_is_bad(root):
    BAD_OBJECTS['outside'][0](root / 'VOC2007')
    (root / 'VOC2012/JPEGImages/2008_000008.jpg').unlink()
    with pytest.raises(DataError, match='000005'):
        prepare(root)
    assert written(root) == []
    prepared = prepare(root, on_bad_record='skip')
    assert [len(record['boxes']) for record in opened(root).records] == [3, 0]
    listed = json.loads((prepared.folder / 'skipped.json').read_text())
    assert len(listed['train']) == 2 and listed['validation'] == []


def test_prepare_voc_refuses_an_image_listed_twice(root):
    with pytest.raises(DataError, match=r'000005\.xml: the image is listed twice'):
        prepare(root, train=['2007_trainval', '2007_trainval'])
    assert written(root) == []


BAD_LISTS = {
    'no year': (['trainval'], "'trainval' is not a year and a list"),
    'leads out': (['2007_../../x'], 'is not a year and a list'),
    'unknown year': (
        ['2010_trainval'],
        r'VOC2010/ImageSets/Main/trainval\.txt.*must be a list of an unpacked VOCdevkit',
    ),
    'unknown list': (['2007_train'], r'VOC2007/ImageSets/Main/train\.txt'),
    'two columns': (['2007_cat'], r"cat\.txt should list one name of an image a line, but '000005 -1'"),
    'empty': (['2007_empty'], r'empty\.txt .*it is empty'),
    'not text': (['2007_bytes'], r'bytes\.txt: not text in UTF-8'),
}


@pytest.mark.parametrize('case', BAD_LISTS)
def test_prepare_voc_refuses_list(root, case):
    folder = root / 'VOC2007/ImageSets/Main'
    (folder / 'cat.txt').write_text('000005 -1\n')
    (folder / 'empty.txt').write_text('\n')
    (folder / 'bytes.txt').write_bytes(b'\xff\xfe\xff')
    parts, words = BAD_LISTS[case]
    for policy in ('error', 'skip'):
        with pytest.raises(DataError, match=words):
            prepare(root, validation=parts, on_bad_record=policy)
    assert written(root) == []


def test_prepare_voc_refuses_an_existing_name(root):
    prepare(root)
    with pytest.raises(DataError, match='voc exists.*overwrite=True'):
        prepare(root)
    prepare(root, train=['2007_trainval'], overwrite=True)
    assert len(opened(root).records) == 2


def test_prepare_data_script_prepares_voc(run_script, root):
    flags = ['--format=voc', '--name=voc', f'--data_dir={root.parent / "data"}', f'--voc_root={root}']
    splits = ['--train_splits=2007_trainval,2012_trainval', '--validation_splits=2007_test']
    finished = run_script('prepare_data', *flags, *splits)
    assert finished.code == 0, finished.stderr
    assert 'train: 3 images (1 empty), 6 boxes (2 difficult)\nvalidation: 1 images' in finished.stdout
    assert '20 classes: aeroplane, bicycle' in finished.stdout
    for changed, words in (
        (flags[:3] + splits, 'error: --format=voc needs --voc_root or --train_images'),
        (flags[1:] + splits, 'error: --format=coco needs --train_annotations'),
        ([*flags, *splits, '--data_yaml=x'], 'error: --format=voc does not take --data_yaml'),
        (
            [*flags, *splits, '--name=other', '--train_images=x'],
            'error: name voc_root and its lists',
        ),
        ([*flags, *splits], 'voc exists'),
    ):
        finished = run_script('prepare_data', *changed)
        assert finished.code == 1 and words in finished.stderr and finished.stderr.count('error: ') == 1
