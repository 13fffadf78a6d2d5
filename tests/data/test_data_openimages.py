"""Tests of preparing Open Images: CSV files, codes of classes, images that are not there, and clear errors."""

import itertools
import json

import hotcoco
import numpy as np
import pytest
from drawn_pictures import PICTURES, check_truth, draw

from detzoo.data import catalog, records
from detzoo.data.readers import openimages
from detzoo.errors import DataError

CODES = {'cat': '/m/01yrx', 'red cell': '/m/0zzz', 'dog': '/m/0bt9lr'}
DESCRIPTIONS = ''.join(f'{CODES[name]},{name}\n' for name in ('red cell', 'dog', 'cat'))
HEADER = (
    'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n'
)


def rows(group='0', names=tuple(PICTURES)):
    """The rows of the pictures; shares with all their digits."""
    text = ''
    for name in names:
        _, (height, width), objects = PICTURES[name]
        for kind, x, y, w, h in objects:
            sides = f'{x / width!r},{(x + w) / width!r},{y / height!r},{(y + h) / height!r}'
            text += f'{name},xclick,{CODES[kind]},1,{sides},0,1,{group},0,-1\n'
    return text


DRAWN = tuple(name for name in PICTURES if PICTURES[name][2])


@pytest.fixture
def root(tmp_path):
    for split in ('train', 'validation'):
        draw(tmp_path / split, DRAWN, suffix='.jpg')
        (tmp_path / f'{split}-annotations-bbox.csv').write_text(HEADER + rows())
    (tmp_path / 'class-descriptions-boxable.csv').write_text(DESCRIPTIONS)
    return tmp_path


def arguments(root):
    files = {f'{split}_annotations': root / f'{split}-annotations-bbox.csv' for split in ('train', 'validation')}
    return files | dict(train_images=root / 'train', validation_images=root / 'validation')


def prepare(root, descriptions='class-descriptions-boxable.csv', **options):
    options = arguments(root) | {'class_descriptions': descriptions and root / descriptions} | options
    return openimages.prepare_openimages('open', **options, data_dir=root / 'data')


def opened(root, split='train'):
    return catalog.open_dataset('open', split, root / 'data')


def check(root, skip):
    """The checked training split; nothing is written, and labels are still codes."""
    names = openimages.read_descriptions(root / 'class-descriptions-boxable.csv')
    path, folder = root / 'train-annotations-bbox.csv', root / 'train'
    return openimages.check_split(path, folder, names, itertools.count(1), skip, records.MAX_PIXELS)


def test_prepare_openimages_reads_csv(root):
    prepare(root)
    for split in ('train', 'validation'):
        check_truth(opened(root, split), DRAWN, atol=1e-12)
    dataset = opened(root)
    assert dataset.class_names == ('red cell', 'cat') and dataset.category_ids == (1, 3)  # no object is a dog
    assert [record['file_name'] for record in dataset.records] == ['b.wide.jpg', 'my cell 1.jpg', 'tall.jpg']
    ids = [record['image_id'] for split in ('train', 'validation') for record in opened(root, split).records]
    assert ids == [1, 2, 3, 4, 5, 6]
    (root / 'class-descriptions-boxable.csv').write_text('LabelName,DisplayName\n' + DESCRIPTIONS)  # since version 7
    prepare(root, overwrite=True)
    assert opened(root).category_ids == (1, 3)


def test_prepare_openimages_names_classes_by_codes_without_descriptions(root):
    prepare(root, None, validation_annotations=None, validation_images=None, validation_share=0.3)
    assert opened(root).class_names == ('/m/01yrx', '/m/0zzz')
    assert [len(opened(root, split).records) for split in ('train', 'validation')] == [2, 1]


def test_prepare_openimages_stores_groups_as_crowds(root):
    text = HEADER + rows(group='1', names=['tall']) + rows(names=['b.wide']) + rows(group='-1', names=['my cell 1'])
    (root / 'train-annotations-bbox.csv').write_text(text)
    prepare(root)
    crowds = {record['file_name']: record['is_crowd'].tolist() for record in opened(root).records}
    assert crowds == {'b.wide.jpg': [False] * 2, 'my cell 1.jpg': [False] * 3, 'tall.jpg': [True] * 2}


def test_prepare_openimages_agrees_with_hotcoco(root):
    prepare(root)
    theirs = hotcoco.COCO.from_oid(
        str(root / 'train-annotations-bbox.csv'), str(root / 'class-descriptions-boxable.csv'), str(root / 'train')
    ).dataset
    stems = {row['id']: row['file_name'] for row in theirs['images']}
    kinds = {row['id']: row['name'] for row in theirs['categories']}
    expected = sorted((stems[row['image_id']], kinds[row['category_id']], row['bbox']) for row in theirs['annotations'])
    dataset = opened(root)
    found = sorted(
        (record['file_name'].removesuffix('.jpg'), dataset.class_names[label], box.tolist())
        for record in dataset.records
        for label, box in zip(record['labels'], record['boxes'])
    )
    assert len(found) == 7 and [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-9)


def test_check_split_lists_images_without_rows_and_rows_without_images(root):
    draw(root / 'train', ['empty'], suffix='.jpg')
    with open(root / 'train-annotations-bbox.csv', 'a') as file:
        file.writelines(f'gone{i // 2},xclick,/m/01yrx,1,0,1,0,1,0,0,0,0,0\n' for i in range(6))
    with pytest.raises(DataError, match=r"no row for 1 images of .*train, such as 'empty.jpg'.*on_bad_record=.skip"):
        check(root, skip=False)
    examples, skipped = check(root, skip=True)[:2]
    assert len(examples) == 3 and len(skipped) == 2
    assert "6 rows of 3 images, such as 'gone0', have no file in" in skipped[1]


BAD_ROWS = {
    'short': ('tall,xclick', '2 columns instead of 13'),
    'unknown class': ('tall,x,/m/0,1,0,1,0,1,0,0,0,0,0', "the class descriptions do not name the class '/m/0'"),
    'not a number': ('tall,x,/m/01yrx,1,0,nan,0,1,0,0,0,0,0', "must be a finite number, not 'nan'"),
    'text': ('tall,x,/m/01yrx,1,0,1,left,1,0,0,0,0,0', "must be a finite number, not 'left'"),
    'no width': ('tall,x,/m/01yrx,1,0.5,0.5,0,1,0,0,0,0,0', 'no positive width'),
    'outside': ('tall,x,/m/01yrx,1,0,1,0.5,1.5,0,0,0,0,0', 'leaves the image of 1 x 300'),
    'group': ('tall,x,/m/01yrx,1,0,1,0,1,0,0,yes,0,0', "IsGroupOf must be 0 or 1, not 'yes'"),
}


@pytest.mark.parametrize('case', BAD_ROWS)
def test_check_split_refuses_row(root, case):
    row, words = BAD_ROWS[case]
    (root / 'train-annotations-bbox.csv').write_text(HEADER + row + '\n' + rows())
    with pytest.raises(DataError, match=rf'train-annotations-bbox\.csv:2: .*{words}.*on_bad_record=.skip') as caught:
        check(root, skip=False)
    assert str(caught.value).count('on_bad_record') == 1
    examples, skipped = check(root, skip=True)[:2]
    assert sum(len(example['objects']) for example in examples) == 7
    assert len(skipped) == 1 and 'bbox.csv:2: ' in skipped[0]


BAD_FILES = {
    'missing': (None, 'cannot read .*: No such file'),
    'empty': ('', 'must name the columns ImageID, LabelName, .*; ImageID is missing'),
    'other columns': ('ImageID,LabelName,XMin,YMin,XMax\n', 'YMax is missing'),
    'not UTF-8': (HEADER.encode() + b'\xff\n', 'not a CSV file in UTF-8'),
    'long line': (HEADER + 'a' * 2**17, 'a line has 65536 characters or more'),
    'no row of the images': (HEADER, 'no row for 3 images'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_prepare_openimages_refuses_file(root, case):
    text, words = BAD_FILES[case]
    path = root / 'validation-annotations-bbox.csv'
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        prepare(root)
    assert not (root / 'data').exists()


def test_prepare_openimages_refuses_other_requests(root):
    (root / 'three.csv').write_text('/m/01yrx,cat,Cat\n')
    (root / 'twice.csv').write_text('/m/01yrx,cat\n/m/01yrx,dog\n')
    (root / 'same.csv').write_text('/m/01yrx,cat\n/m/0zzz,cat\n')
    for options, words in (
        (dict(descriptions='three.csv'), r'three\.csv:1: 3 columns; it must have two'),
        (dict(descriptions='twice.csv'), r"twice\.csv:2: the code '/m/01yrx' appears twice"),
        (dict(descriptions='same.csv'), r"same\.csv: the class 'cat' appears twice"),
        (dict(validation_share=0.2), 'name the validation data whole'),
        (dict(validation_images=None), 'name the validation data whole'),
        (dict(train_images=root / 'gone'), 'cannot list the folder .*gone'),
    ):
        with pytest.raises(DataError, match=words):
            prepare(root, **options)
    draw(root / 'train', ['tall'], suffix='.png')
    with pytest.raises(DataError, match="'tall.jpg' and 'tall.png' are both the image 'tall'; remove one"):
        prepare(root)


def test_prepare_data_script_prepares_openimages(run_script, root):
    flags = [f'--{name}={path}' for name, path in arguments(root).items()]
    flags += ['--format=openimages', '--name=open', f'--data_dir={root / "data"}', '--on_bad_record=skip']
    (root / 'validation/tall.jpg').unlink()
    finished = run_script('prepare_data', *flags, f'--class_descriptions={root / "class-descriptions-boxable.csv"}')
    assert finished.code == 0, finished.stderr
    assert 'train: 3 images (0 empty), 7 boxes (0 groups)\nvalidation: 2 images' in finished.stdout
    assert '2 classes: red cell, cat\n' in finished.stdout
    assert len(json.loads((root / 'data/open/1.0.0/skipped.json').read_text())['validation']) == 1
    finished = run_script('prepare_data', *flags, '--name=other', '--classes=cat')
    assert finished.code == 1 and 'error: --format=openimages does not take --classes\n' == finished.stderr
