"""Tests of preparing anyone's COCO data: exact round trips, and one clear error for everything that can be wrong."""

import copy
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest

from detzoo.data import catalog, records
from detzoo.data.readers import coco
from detzoo.errors import DataError

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'prepare_data.py'
HEIGHT, WIDTH = 30, 40


def disk(y, x, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def encode(mask):
    """Encodes a mask [h, w] as COCO's compressed RLE, as JSON has it."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    return {'size': list(mask.shape), 'counts': rle['counts'].decode()}


def runs(mask):
    """Encodes a mask [h, w] as COCO's uncompressed RLE: lengths of runs down the columns, background first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
    return {'size': list(mask.shape), 'counts': np.diff([0, *edges, flat.size]).tolist()}


SPECKLE = disk(9, 9, 8) & (np.random.RandomState(0).rand(HEIGHT, WIDTH) < 0.5)  # runs of many lengths
POLYGON = [3.5, 2.25, 20, 4, 15.75, 21.5]
CATEGORIES = [{'id': 90, 'name': 'toothbrush'}, {'id': 2, 'name': 'traffic light'}, {'id': 17, 'name': 'café'}]
IMAGES = [{'id': i, 'file_name': f'set/{i}.png', 'height': HEIGHT, 'width': WIDTH} for i in (2**40, 7, 5)]
ANNOTATIONS = [
    {'id': 11, 'image_id': 7, 'category_id': 90, 'bbox': [1 / 3, 0.1, 10.7, 2e-3], 'area': 0.1, 'iscrowd': 0},
    {'id': 2**50, 'image_id': 2**40, 'category_id': 2, 'bbox': [3, 2, 17, 20], 'area': 150.5},
    {'id': 3, 'image_id': 7, 'category_id': 17, 'bbox': [-1.5, 3, 30, 28.5], 'area': 9, 'iscrowd': 1},
    {'id': 4, 'image_id': 7, 'category_id': 2, 'bbox': [5, 5, 9, 9], 'area': 60, 'segmentation': encode(SPECKLE)},
]
ANNOTATIONS[1]['segmentation'] = [POLYGON]
ANNOTATIONS[2]['segmentation'] = runs(disk(15, 14, 12) | disk(3, 35, 2))


def noise(image_format='PNG', height=HEIGHT, width=WIDTH):
    file = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


@pytest.fixture
def tree(tmp_path):
    """A good data set: `write(train, validation)` puts the documents there; `arguments` are those of prepare_coco."""
    for split in ('train', 'validation'):
        (tmp_path / split / 'set').mkdir(parents=True)
        for image in IMAGES:
            (tmp_path / split / image['file_name']).write_bytes(noise())
    write(tmp_path, document())
    return tmp_path


def document():
    return copy.deepcopy({'images': IMAGES, 'annotations': ANNOTATIONS, 'categories': CATEGORIES})


def write(tree, train):
    (tree / 'train.json').write_text(json.dumps(train))
    (tree / 'validation.json').write_text(json.dumps(document()))


def prepare(tree, **options):
    sources = (tree / 'train.json', tree / 'train', tree / 'validation.json', tree / 'validation')
    return coco.prepare_coco('birds', *sources, data_dir=tree / 'data', **options)


def written(tree):
    return sorted(path.name for path in (tree / 'data').rglob('*')) if (tree / 'data').exists() else []


def test_prepare_coco_keeps_everything_exactly(tree):
    prepare(tree)
    dataset = catalog.open_dataset('birds', 'train', tree / 'data')
    truth = records.ground_truth(dataset)

    assert dataset.class_names == ('traffic light', 'café', 'toothbrush')  # by ascending id: 2, 17, 90
    assert dataset.category_ids == (2, 17, 90)
    assert truth['categories'] == sorted(CATEGORIES, key=lambda category: category['id'])
    assert truth['images'] == IMAGES  # the image without annotations too
    assert len(truth['annotations']) == len(ANNOTATIONS)
    originals = {annotation['id']: annotation for annotation in ANNOTATIONS}
    for annotation in truth['annotations']:
        original = originals[annotation['id']]
        for key in ('image_id', 'category_id', 'bbox', 'area'):
            assert annotation[key] == original[key]  # floats to the last bit
        assert annotation['iscrowd'] == original.get('iscrowd', 0)
        assert ('segmentation' in annotation) == ('segmentation' in original)


def test_prepare_coco_keeps_masks_exactly(tree):
    prepare(tree)
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    masks = {a['id']: pycocotools.mask.decode(a['segmentation']) for a in truth['annotations'] if 'segmentation' in a}
    polygon = pycocotools.mask.decode(pycocotools.mask.frPyObjects([POLYGON], HEIGHT, WIDTH))[..., 0]
    np.testing.assert_array_equal(masks[2**50], polygon)
    np.testing.assert_array_equal(masks[3], disk(15, 14, 12) | disk(3, 35, 2))
    np.testing.assert_array_equal(masks[4], SPECKLE)


def test_prepare_coco_keeps_image_files_byte_for_byte(tree):
    prepare(tree)
    record = catalog.open_dataset('birds', 'validation', tree / 'data').records[0]
    assert record['image'] == (tree / 'validation' / IMAGES[0]['file_name']).read_bytes()


def test_prepare_coco_takes_one_file_for_both_splits(tree):
    coco.prepare_coco('birds', *[tree / 'train.json', tree / 'train'] * 2, data_dir=tree / 'data')
    train, validation = (catalog.open_dataset('birds', split, tree / 'data') for split in ('train', 'validation'))
    assert records.ground_truth(train) == records.ground_truth(validation)


def test_prepare_coco_without_area_takes_the_mask(tree):
    train = document()
    del train['annotations'][0]['area'], train['annotations'][3]['area']
    write(tree, train)
    prepare(tree)
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    areas = {annotation['id']: annotation['area'] for annotation in truth['annotations']}
    assert areas[11] == 10.7 * 2e-3
    assert areas[4] == SPECKLE.sum()


def test_prepare_coco_refuses_an_existing_name_unless_told(tree):
    prepare(tree)
    with pytest.raises(DataError, match='birds exists.*overwrite=True'):
        prepare(tree)
    train = document()
    train['annotations'].clear()
    write(tree, train)
    prepare(tree, overwrite=True)
    assert not records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))['annotations']


@pytest.mark.parametrize('name', ['../birds', 'Birds', 'two words', '', 'shapes'])
def test_prepare_coco_refuses_names(tree, name):
    with pytest.raises(DataError, match='name'):
        coco.prepare_coco(name, *[tree / 'train.json', tree / 'train'] * 2, data_dir=tree / 'data')


def test_prepare_coco_leaves_nothing_when_writing_fails(tree, monkeypatch):
    def fail(self, name):
        raise OSError('No space left on device')

    monkeypatch.setattr(coco.prepare.Checked, '_generate_examples', fail)
    with pytest.raises(DataError, match='No space left'):
        prepare(tree)
    assert written(tree) == []


# What is wrong with one record: how to break the training document or its files, and what the message must say.

SECOND = IMAGES[1]['file_name']


def change(kind, index, **fields):
    return lambda train, folder: train[kind][index].update(fields)


def drop(kind, index, key):
    return lambda train, folder: train[kind][index].pop(key)


def replace(data):
    return lambda train, folder: (folder / SECOND).write_bytes(data)


BAD_ANNOTATIONS = {
    'no width': (change('annotations', 0, bbox=[1, 2, 0, 4]), 'positive width'),
    'negative height': (change('annotations', 0, bbox=[1, 2, 3, -4]), 'positive width'),
    'nan': (change('annotations', 0, bbox=[1, 2, float('nan'), 4]), 'finite'),
    'infinite': (change('annotations', 0, bbox=[1, 2, float('inf'), 4]), 'finite'),
    'huge integer': (change('annotations', 0, bbox=[1, 2, 10**400, 4]), 'finite'),
    'three numbers': (change('annotations', 0, bbox=[1, 2, 3]), 'four'),
    'text': (change('annotations', 0, bbox='1 2 3 4'), 'four'),
    'no box': (drop('annotations', 0, 'bbox'), 'bbox'),
    'outside': (change('annotations', 0, bbox=[50, 2, 3, 4]), 'leaves the image of 40 x 30'),
    'overrun': (change('annotations', 0, bbox=[30, 2, 12.1, 4]), 'leaves the image of 40 x 30'),
    'before the edge': (change('annotations', 0, bbox=[2, -2.1, 3, 4]), 'leaves the image of 40 x 30'),
    'unknown category': (change('annotations', 0, category_id=3), 'unknown category_id 3'),
    'unknown image': (change('annotations', 0, image_id=99), 'unknown image_id 99'),
    'image id is text': (change('annotations', 0, image_id='seven'), 'image_id must be an integer'),
    'image id is a fraction': (change('annotations', 0, image_id='7.5'), 'image_id must be an integer'),
    'image id is a bool': (change('annotations', 0, image_id=True), 'image_id must be an integer'),
    'image id of 65 bits': (change('annotations', 0, image_id=2**64), 'image_id must be an integer'),
    'image id is a list': (change('annotations', 0, image_id=[7]), 'image_id must be an integer'),
    'area': (change('annotations', 0, area=-1), 'area'),
    'crowd': (change('annotations', 0, iscrowd='no'), 'iscrowd'),
}

BAD_IMAGES = {
    'no width': (drop('images', 1, 'width'), 'width must be an integer'),
    'zero height': (change('images', 1, height=0), 'must be positive'),
    'no file name': (drop('images', 1, 'file_name'), 'file_name must be text'),
    'up and out': (change('images', 1, file_name='../validation.json'), 'leads out'),
    'absolute': (change('images', 1, file_name='/etc/hostname'), 'leads out'),
    'no file': (change('images', 1, file_name='set/none.png'), 'no file'),
    'no name of a file': (change('images', 1, file_name='a\0b'), 'no file'),
    'a folder': (change('images', 1, file_name='set'), 'not a file'),
    'other size': (replace(noise(width=41)), '41 x 30 pixels, the annotations say 40 x 30'),
    'turned': (replace(noise(height=40, width=30)), 'EXIF'),
    'no image': (replace(b'<html>not found</html>'), 'not a whole image'),
    'empty file': (replace(b''), 'not a whole image'),
    'short PNG': (replace(noise()[:-500]), 'not a whole image'),
    'short JPEG': (replace(noise('JPEG')[:-100]), 'not a whole image'),
    'too large': (change('images', 1, height=2**14, width=2**14), 'max_pixels'),
}


@pytest.mark.parametrize('case', BAD_ANNOTATIONS)
def test_prepare_coco_refuses_annotation(tree, case):
    train, (spoil, words) = document(), BAD_ANNOTATIONS[case]
    spoil(train, tree / 'train')
    write(tree, train)
    with pytest.raises(DataError, match=rf'train\.json: annotation 11 .*{words}.*on_bad_record=.skip'):
        prepare(tree)
    assert written(tree) == []

    prepared = prepare(tree, on_bad_record='skip')
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    assert sorted(annotation['id'] for annotation in truth['annotations']) == [3, 4, 2**50]
    assert truth['images'] == IMAGES
    listed = json.loads((prepared.folder / 'skipped.json').read_text())
    assert [len(listed[split]) for split in ('train', 'validation')] == [1, 0]
    assert 'annotation 11' in listed['train'][0]


def test_prepare_coco_leaves_out_a_box_of_height_0_alone(tree):
    """As COCO's train2017 has two: its image keeps the objects beside it."""
    train = document()
    train['annotations'].append(ANNOTATIONS[0] | {'id': 918, 'bbox': [29.65, 18.33, 1.03, 0.0], 'area': 0.0})
    write(tree, train)
    prepared = prepare(tree, on_bad_record='skip')
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    assert sorted(annotation['id'] for annotation in truth['annotations']) == [3, 4, 11, 2**50]
    (message,) = prepared.splits['train'].skipped
    assert 'annotation 918 ' in message and 'no positive width and height' in message


@pytest.mark.parametrize('case', BAD_IMAGES)
def test_prepare_coco_refuses_image(tree, case):
    train, (spoil, words) = document(), BAD_IMAGES[case]
    spoil(train, tree / 'train')
    write(tree, train)
    with pytest.raises(DataError, match=rf'train\.json: image 7 .*{words}.*on_bad_record=.skip'):
        prepare(tree)
    assert written(tree) == []

    prepared = prepare(tree, on_bad_record='skip')
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    assert [image['id'] for image in truth['images']] == [2**40, 5]
    assert [annotation['id'] for annotation in truth['annotations']] == [2**50]  # the others were on the bad image
    assert len(prepared.splits['train'].skipped) == 1


def test_prepare_coco_refuses_repeated_image_ids(tree):
    train = document()
    train['images'].append(IMAGES[1] | {'file_name': IMAGES[2]['file_name']})
    write(tree, train)
    with pytest.raises(DataError, match=r'image 7 \(images\[1\].*another image has the same id'):
        prepare(tree)
    assert written(tree) == []
    prepare(tree, on_bad_record='skip')  # leaves out both: to which one do the annotations belong?
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    assert [image['id'] for image in truth['images']] == [2**40, 5]


def test_prepare_coco_refuses_repeated_annotation_ids(tree):
    train = document()
    train['annotations'][2]['id'] = 11
    write(tree, train)
    with pytest.raises(DataError, match=r'annotation 11 \(annotations\[2\]\).*same id'):
        prepare(tree)
    assert written(tree) == []
    prepare(tree, on_bad_record='skip')  # leaves out the second
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    assert sorted(annotation['id'] for annotation in truth['annotations']) == [4, 11, 2**50]


def test_prepare_coco_refuses_decoding_over_max_pixels(tree):
    with pytest.raises(DataError, match='image 1099511627776 .*max_pixels=1199'):
        prepare(tree, max_pixels=HEIGHT * WIDTH - 1)
    prepare(tree, max_pixels=HEIGHT * WIDTH)


# What is wrong with a file as a whole, which 'skip' does not forgive.

BAD_FILES = {
    'no annotations': (lambda tree: (tree / 'train.json').unlink(), r'train\.json.*No such file'),
    'no folder': (lambda tree: (tree / 'train').rename(tree / 'other'), 'no image folder .*train'),
    'cut short': (lambda tree: (tree / 'train.json').write_text('{"images": ['), r'train\.json.*cut short'),
    'Latin-1': (
        lambda tree: (tree / 'train.json').write_text(json.dumps(document(), ensure_ascii=False), 'latin-1'),
        r'train\.json is not UTF-8 text: byte \d+ is 0xe9.*iconv -f LATIN1 -t UTF-8 train\.json',
    ),
    'lists in lists': (lambda tree: (tree / 'train.json').write_text('[' * 100_000), r'train\.json.*not JSON'),
    'a list': (lambda tree: write(tree, ANNOTATIONS), r"train\.json is not COCO-shaped: 'images'"),
    'no images key': (lambda tree: write(tree, {'annotations': [], 'categories': []}), "'images' must be a list"),
    'not a list': (lambda tree: write(tree, document() | {'annotations': {}}), "'annotations' must be a list"),
    'not objects': (lambda tree: write(tree, document() | {'categories': ['car']}), "'categories' must be a list"),
    'no categories': (lambda tree: write(tree, document() | {'categories': []}), 'no categories'),
    'category id twice': (
        lambda tree: write(tree, document() | {'categories': [*CATEGORIES, {'id': 17, 'name': 'car'}]}),
        r'categories\[3\].*17.*twice',
    ),
    'category name twice': (
        lambda tree: write(tree, document() | {'categories': [*CATEGORIES, {'id': 18, 'name': 'café'}]}),
        r'categories\[3\].*café.*twice',
    ),
    'category name of two lines': (
        lambda tree: write(tree, document() | {'categories': [{'id': 1, 'name': 'a\nb'}]}),
        r'categories\[0\].*one line',
    ),
    'category without id': (
        lambda tree: write(tree, document() | {'categories': [{'name': 'a'}]}),
        r'categories\[0\]: id must be an integer',
    ),
    'different categories': (
        lambda tree: write(tree, document() | {'categories': CATEGORIES[:2]}),
        r'train\.json and .*validation\.json have different categories.*café',
    ),
    'no images': (lambda tree: write(tree, document() | {'images': [], 'annotations': []}), 'not one good image'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_prepare_coco_refuses_file(tree, case):
    spoil, words = BAD_FILES[case]
    spoil(tree)
    for policy in ('error', 'skip'):
        with pytest.raises(DataError, match=words):
            prepare(tree, on_bad_record=policy)
    assert written(tree) == []


def run_script(tree, *flags):
    sources = {'train_annotations': 'train.json', 'train_images': 'train'}
    sources |= {'validation_annotations': 'validation.json', 'validation_images': 'validation'}
    paths = [f'--{flag}={tree / path}' for flag, path in sources.items()]
    command = [sys.executable, SCRIPT, '--format=coco', '--name=birds', f'--data_dir={tree / "data"}', *paths, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prepare_data_script_prints_counts_and_the_flag_to_use(tree):
    finished = run_script(tree)
    assert finished.returncode == 0
    assert 'train: 3 images (1 empty), 4 boxes (1 crowds)' in finished.stdout
    assert '3 classes: traffic light, café, toothbrush' in finished.stdout
    assert f'--config.data.name=birds --config.data.data_dir={tree / "data"}' in finished.stdout


@pytest.fixture
def prepare_data(tree, run_script):
    """A function: more flags -> what `detzoo prepare` did with the tree."""
    splits = [
        f'--{split}_{kind}={tree / split}{end}'
        for split in ('train', 'validation')
        for kind, end in (('annotations', '.json'), ('images', ''))
    ]
    return lambda *flags: run_script('prepare_data', '--name=birds', f'--data_dir={tree / "data"}', *splits, *flags)


def test_prepare_data_script_lists_the_first_of_many_bad_records(tree, prepare_data):
    train = document()
    train['annotations'] += [ANNOTATIONS[0] | {'id': 1000 + i, 'bbox': [1, 2, 3, 0]} for i in range(25)]
    write(tree, train)
    finished = prepare_data('--on_bad_record=skip')
    assert finished.code == 0 and finished.stdout.count('  skipped: ') == 20
    path = tree / 'data' / 'birds' / '1.0.0' / 'skipped.json'
    assert f'skipped 25 records; all are listed in {path}\n' in finished.stdout
    assert len(json.loads(path.read_text())['train']) == 25


def test_prepare_data_script_counts_what_it_left_out_by_kind(tree, prepare_data):
    train = document()
    train['annotations'][0]['segmentation'] = [[1, 2, 3, 4]]
    train['annotations'][1]['segmentation'] = [5, 6, 7, 8]
    train['annotations'][3]['segmentation'] = [[]]
    write(tree, train)
    finished = prepare_data()
    train_part, validation_part = finished.stdout.split('validation: ')
    assert 'train: 3 images (1 empty), 4 boxes (1 crowds)\n' in train_part
    assert '  left out: 2 masks (polygon of 4 numbers)\n  left out: 1 masks (empty polygon)\n' in train_part
    assert 'left out' not in validation_part and 'warning' not in finished.stdout
    path = tree / 'data' / 'birds' / '1.0.0' / 'left_out.json'
    assert f'listed in {path}\n' in train_part
    listed = json.loads(path.read_text())
    assert (
        listed['train'][0]
        == f'{tree}/train.json: annotation 11 (annotations[0]): left out: masks (polygon of 4 numbers)'
    )
    assert len(listed['train']) == 3 and listed['validation'] == []
    truth = records.ground_truth(catalog.open_dataset('birds', 'train', tree / 'data'))
    masks = {annotation['id']: 'segmentation' in annotation for annotation in truth['annotations']}
    assert masks == {11: False, 2**50: False, 3: True, 4: False}


def test_prepare_data_script_warns_where_all_objects_are_crowds(tree, prepare_data):
    train = document()
    for annotation in train['annotations']:
        annotation['iscrowd'] = 1
    write(tree, train)
    train_part, validation_part = prepare_data().stdout.split('validation: ')
    assert 'warning: all objects of train are crowds' in train_part and 'warning' not in validation_part


def test_prepare_data_script_ends_on_bad_data_with_one_line(tree):
    (tree / 'train.json').write_text('{')
    finished = run_script(tree)
    assert finished.returncode == 1
    assert finished.stderr.startswith('error: ') and len(finished.stderr.splitlines()) == 1
    assert not finished.stdout


def test_prepare_coco_draws_validation_images_by_seed(tree):
    def ids(name, **options):
        prepared = coco.prepare_coco(name, tree / 'train.json', tree / 'train', data_dir=tree / 'data', **options)
        return {split: [e['image_id'] for e in s.examples] for split, s in prepared.splits.items()}

    everything = [image['id'] for image in json.loads((tree / 'train.json').read_text())['images']]
    first = ids('first', validation_share=0.34)
    assert sorted(first['train'] + first['validation']) == sorted(everything)
    assert len(first['validation']) == max(1, round(0.34 * len(everything)))
    assert ids('again', validation_share=0.34) == first
    drawn = {tuple(ids(f's{seed}', validation_share=0.34, split_seed=seed)['validation']) for seed in range(6)}
    assert len(drawn) > 1


@pytest.mark.parametrize('share', [None, 0.0, 1.0, float('nan')])
def test_prepare_coco_needs_validation_data_or_a_share(tree, share):
    with pytest.raises(DataError, match='validation_share'):
        coco.prepare_coco('b', tree / 'train.json', tree / 'train', validation_share=share, data_dir=tree / 'data')
    with pytest.raises(DataError, match='validation_share'):
        sources = [tree / 'train.json', tree / 'train'] * 2
        coco.prepare_coco('b', *sources, validation_share=0.5, data_dir=tree / 'data')
