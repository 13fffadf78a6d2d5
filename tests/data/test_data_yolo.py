"""Tests of preparing YOLO's label files: the places of images and labels, boxes and polygons, and clear errors."""

import itertools
import json
import shutil

import hotcoco
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
from drawn_pictures import CLASSES, PICTURES, check_truth, draw, mutate

from detzoo.data import catalog, records
from detzoo.data.readers import yolo
from detzoo.data.readers.data_yaml import read_description
from detzoo.data.readers.prepare import BadRecords
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics
from detzoo.inference.dataset import predict_dataset
from detzoo.types import Detections

RULES = yolo.Rules(classes=2, keypoints=0, max_pixels=records.MAX_PIXELS)


def lines(name, polygons=False):
    """The label file of a picture; shares with all their digits."""
    _, (height, width), objects = PICTURES[name]
    text = ''
    for kind, x, y, w, h in objects:
        numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        if polygons:
            corners = (x, y), (x + w, y), (x + w, y + h), (x, y + h)
            numbers = [share for px, py in corners for share in (px / width, py / height)]
        text += f'{CLASSES.index(kind)} {" ".join(map(repr, numbers))}\n'
    return text


def write_labels(folder, names=tuple(PICTURES), **options):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if PICTURES[name][2]:
            (folder / f'{name}.txt').write_text(lines(name, **options))


@pytest.fixture
def root(tmp_path):
    """Ultralytics' folders, with data.yaml; the picture without objects has no label file."""
    root = tmp_path / 'cells'
    for split in ('train', 'val'):
        draw(root / 'images' / split)
        write_labels(root / 'labels' / split)
    (root / 'data.yaml').write_text('path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: red cell\n')
    return root


def prepare(root, **options):
    return yolo.prepare_yolo('cells', **options, data_dir=root / 'data')


def opened(root, split='train'):
    return catalog.open_dataset('cells', split, root / 'data')


def check(listed, skip, rules=RULES):
    """The checked records of a split; nothing is written."""
    yolo.report_unused({'train': listed})
    return yolo.check_split(listed, itertools.count(1), rules, skip)


def test_prepare_yolo_reads_data_yaml(root):
    prepare(root, data_yaml=root / 'data.yaml')
    for split, folder in (('train', 'train'), ('validation', 'val')):
        check_truth(opened(root, split), atol=1e-12)
        names = [record['file_name'] for record in opened(root, split).records]
        assert names == sorted(f'images/{folder}/{name}{suffix}' for name, (suffix, *_) in PICTURES.items())
    assert opened(root).class_names == CLASSES and opened(root).category_ids == (1, 2)
    ids = [record['image_id'] for split in ('train', 'validation') for record in opened(root, split).records]
    assert ids == list(range(1, 9))


def roboflow(root):
    (root / 'images/train').rename(root / 'images/images')
    (root / 'labels/train').rename(root / 'labels/labels')
    for split in ('train', 'valid'):
        shutil.copytree(root / 'images/images', root / split / 'images')
        shutil.copytree(root / 'labels/labels', root / split / 'labels')
    return "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'red cell']\n"


def cvat(root):
    for split in ('train', 'val'):
        names = [f'data/images/{split}/{name}{suffix}\n' for name, (suffix, *_) in PICTURES.items()]
        (root / f'{split}.txt').write_text(''.join(names))
    return 'path: .\ntrain: train.txt\nval: val.txt\nnames: {0: cat, 1: red cell}\n'


def absolute(root):
    (root / 'train.txt').write_text(''.join(f'{file}\n' for file in sorted((root / 'images/train').iterdir())) + '\n')
    return f'path: {root}\ntrain: {root}/train.txt\nval: [images/val]\nnames: {{"0": cat, "1": red cell}}\n'


def beside(root):
    for split in ('train', 'val'):
        shutil.copytree(root / 'images' / split, root / split)
        shutil.copytree(root / 'labels' / split, root / split, dirs_exist_ok=True)
    shutil.rmtree(root / 'images')
    shutil.rmtree(root / 'labels')
    (root / 'train/classes.txt').write_text('cat\nred cell\n')
    return 'path: /kaggle/working/cells\ntrain: train\nval: [./val/]\nnames: [cat, red cell]\n'


def windows(root):
    (root / 'images/train/list.txt').write_text(
        ''.join(f'.\\{name}{suffix}\r\n' for name, (suffix, *_) in PICTURES.items())
    )
    return '\ufeffpath: ../cells\r\ntrain: images\\train\\list.txt\r\nval: images\\val\r\nnames: [cat, red cell]\r\n'


@pytest.mark.parametrize('layout', [roboflow, cvat, absolute, beside, windows])
def test_prepare_yolo_reads_the_layout_of_a_tool(root, layout):
    (root / 'data.yaml').write_text(layout(root))
    prepare(root, data_yaml=root / 'data.yaml')
    check_truth(opened(root), atol=1e-12)
    check_truth(opened(root, 'validation'), atol=1e-12)


def test_prepare_yolo_reads_folders(root, tmp_path):
    (root / 'classes.txt').write_text('cat\nred cell\n\n')  # Label Studio's
    prepare(root, train_images=root / 'images/train', validation_images=root / 'images/val')
    check_truth(opened(root), atol=1e-12)
    check_truth(opened(root, 'validation'), atol=1e-12)
    assert opened(root).class_names == CLASSES
    prepare(root, train_images=root / 'images', validation_share=0.5, classes=['a', 'b'], overwrite=True)
    assert [len(opened(root, split).records) for split in ('train', 'validation')] == [4, 4]
    assert opened(root).class_names == ('a', 'b')
    shutil.copytree(root / 'images/train', tmp_path / 'photos')
    shutil.copytree(root / 'labels/train', tmp_path / 'texts')
    places = dict(train_images=tmp_path / 'photos', train_annotations=tmp_path / 'texts', validation_share=0.2)
    with pytest.raises(DataError, match='photos have no names: give `classes`, or put classes.txt'):
        prepare(root, **places, overwrite=True)
    (tmp_path / 'texts/classes.txt').write_text('cat\nred cell\n')
    prepare(root, **places, overwrite=True)
    assert sum(len(opened(root, split).records) for split in ('train', 'validation')) == 4


def test_prepare_yolo_reads_a_list_beside_its_folder(root):
    """CVAT's export for darknet."""
    shutil.copytree(root / 'images/train', root / 'export/obj_train_data')
    shutil.copytree(root / 'labels/train', root / 'export/obj_train_data', dirs_exist_ok=True)
    names = [f'data/obj_train_data/{name}{suffix}\n' for name, (suffix, *_) in PICTURES.items()]
    (root / 'export/train.txt').write_text(''.join(names))
    (root / 'export/obj.names').write_text('cat\nred cell\n')
    prepare(root, train_images=root / 'export/train.txt', validation_images=root / 'export/train.txt')
    check_truth(opened(root), atol=1e-12)
    assert [record['file_name'] for record in opened(root).records][0] == 'obj_train_data/my cell 1.png'


def test_prepare_yolo_turns_polygons_into_boxes_and_masks(root):
    write_labels(root / 'labels/train', polygons=True)
    star = '1 0.1 0.1  0.9 0.5  0.1 0.9'
    (root / 'labels/val/my cell 1.txt').write_text(f'{star}\n')
    prepare(root, data_yaml=root / 'data.yaml')
    check_truth(opened(root), atol=1e-12)
    for record in opened(root).records:
        for (x, y, w, h), counts, area in zip(record['boxes'], record['segmentations'], record['areas']):
            mask = pycocotools.mask.decode({'size': [record['height'], record['width']], 'counts': counts})
            expected = np.zeros_like(mask)
            expected[round(y) : round(y + h), round(x) : round(x + w)] = 1
            np.testing.assert_array_equal(mask, expected)
            assert area == w * h
    record = next(record for record in opened(root, 'validation').records if 'cell' in record['file_name'])
    np.testing.assert_allclose(record['boxes'], [[4, 3, 32, 24]])
    assert 300 < record['areas'][0] < 450  # half of the box, 384


def test_prepare_yolo_agrees_with_hotcoco(root):
    (root / 'labels/train/data.yaml').write_text('nc: 2\nnames: [cat, red cell]\n')
    prepare(root, data_yaml=root / 'data.yaml')
    theirs = hotcoco.COCO.from_yolo(str(root / 'labels/train'), str(root / 'images/train')).dataset
    stems = {row['id']: row['file_name'] for row in theirs['images']}
    kinds = {row['id']: row['name'] for row in theirs['categories']}
    expected = sorted((stems[row['image_id']], kinds[row['category_id']], row['bbox']) for row in theirs['annotations'])
    found = sorted(
        (record['file_name'].rpartition('/')[2].rpartition('.')[0], CLASSES[label], box.tolist())
        for record in opened(root).records
        for label, box in zip(record['labels'], record['boxes'])
    )
    assert len(found) == 7 and [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=1e-9)


def test_prepare_yolo_turns_images_as_exif_says(root):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when shown
    PIL.Image.new('RGB', (30, 40)).save(root / 'images/train/my cell 1.png', exif=exif)
    prepare(root, data_yaml=root / 'data.yaml')
    check_truth(opened(root), atol=1e-12)


def test_prepare_yolo_leaves_key_points_out(root):
    for path in (root / 'labels').glob('*/*.txt'):
        path.write_text(''.join(f'{line} 0.5 0.5 2 0 0 0\n' for line in path.read_text().splitlines()))
    (root / 'data.yaml').write_text((root / 'data.yaml').read_text() + 'kpt_shape: [2, 3]\n')
    prepare(root, data_yaml=root / 'data.yaml')
    check_truth(opened(root), atol=1e-12)


BAD_LINES = {
    'confidence': ('0 0.5 0.5 0.2 0.2 0.9', '5 numbers after the class.*A confidence at the end'),
    'polygon with confidence': ('0 0.1 0.1 0.9 0.1 0.5 0.5 0.9', '7 numbers after the class.*A confidence'),
    'class alone': ('0', '0 numbers after the class; a box has 4'),
    'two points': ('0 0.5 0.5', '2 numbers after the class; a box has 4'),
    'class too large': ('2 0.5 0.5 0.2 0.2', "the class '2' must be a number from 0 to 1"),
    'negative class': ('-1 0.5 0.5 0.2 0.2', "the class '-1' must be"),
    'half a class': ('0.5 0.5 0.5 0.2 0.2', "the class '0.5' must be"),
    'name': ('cat 0.5 0.5 0.2 0.2', "'cat' is not a finite number"),
    'not a number': ('0 nan 0.5 0.2 0.2', "'nan' is not a finite number"),
    'infinite': ('0 0.5 inf 0.2 0.2', "'inf' is not a finite number"),
    'commas': ('0, 0.5, 0.5, 0.2, 0.2', "'0,' is not a finite number"),
    'pixels': ('0 20 15 10 10', "20.0 must be a share of the image's width or height"),
    'percent': ('0 50 50 20 20', 'must be a share'),
    'no width': ('0 0.5 0.5 0 0.2', 'no positive width'),
    'negative width': ('0 0.5 0.5 -0.02 0.2', 'no positive width'),
    'leaves the image': ('0 0.9 0.5 0.4 0.2', 'leaves the image of 40 x 30'),
    'flat polygon': ('0 0.1 0.1 0.5 0.1 0.9 0.1', 'no positive width and height'),
    'polygon outside': ('0 0.1 0.1 1.2 0.1 0.9 0.9', '1.2 must be a share'),
}


@pytest.mark.parametrize('case', BAD_LINES)
def test_read_labels_refuses_line(case):
    line, words = BAD_LINES[case]
    text = f'0 0.5 0.5 1 1\n\n{line}\n1 0.25 0.5 0.5 1\n'
    with pytest.raises(DataError, match=rf'^a.txt:3: .*{words}.*on_bad_record=.skip'):
        yolo.read_labels(text, 'a.txt', 30, 40, itertools.count(1), BadRecords(False), RULES)
    bad = BadRecords(True)
    objects = yolo.read_labels(text, 'a.txt', 30, 40, itertools.count(1), bad, RULES)
    assert [(thing['id'], thing['label'], *thing['bbox']) for thing in objects] == [
        (1, 0, 0, 0, 40, 30),
        (2, 1, 0, 0, 20, 30),
    ]
    assert len(bad.messages) == 1 and bad.messages[0].startswith('a.txt:3: ')


def test_read_line_cuts_rounding_errors():
    thing = yolo.read_line('1 0.0125 0.5 0.0251 1.0', '', 30, 40, RULES)
    np.testing.assert_allclose(thing['bbox'], [0, 0, 0.0125 * 40 + 0.0251 * 20, 30], atol=1e-12)
    thing = yolo.read_line('1 0 0 1.001 0 1.001 1 0 1', '', 30, 40, RULES)
    np.testing.assert_array_equal(thing['bbox'], [0, 0, 40, 30])


def test_read_line_refuses_outlines_that_take_too_much_memory():
    line = '0' + ' 0 0 1 1' * 2000
    with pytest.raises(DataError, match='the polygon is longer than'):
        yolo.read_line(line, 'a.txt:1', 2000, 2000, RULES)


def test_check_split_lists_what_belongs_to_nothing(root):
    train = root / 'images/train'
    (root / 'labels/train/gone.txt').write_text('0 0.5 0.5 0.2 0.2\n')
    (root / 'labels/train/notes.txt').write_text('annotated by me\n')
    shutil.copy(root / 'labels/train/tall.txt', train / 'tall.txt')
    (train / 'broken.png').write_bytes(b'\x89PNG')
    (train / '._tall.jpeg').write_bytes(b'macOS')
    with pytest.raises(DataError, match='on_bad_record=.skip'):
        check(yolo.list_images(root, ['images/train']), skip=False)
    examples, skipped = check(yolo.list_images(root, ['images/train']), skip=True)[:2]
    names = [example['file_name'] for example in examples]
    assert names == ['images/train/b.wide.JPG', 'images/train/empty.webp', 'images/train/my cell 1.png']
    assert len(skipped) == 3
    assert 'gone.txt: there is no image for this label file' in skipped[0]
    assert 'broken.png: ' in skipped[1] and 'is not a whole image' in skipped[1]
    assert 'tall.jpeg: both' in skipped[2] and 'are its label file; keep one' in skipped[2]


def test_check_split_lists_missing_and_repeated_images(root):
    (root / 'some.txt').write_text('images/train/tall.jpeg\nimages/gone.jpg\n./images/train/tall.jpeg\n')
    examples, skipped = check(yolo.list_images(root, ['some.txt']), skip=True)[:2]
    assert [example['file_name'] for example in examples] == ['images/train/tall.jpeg']
    assert [message.removeprefix(str(root)) for message in skipped] == [
        "/some.txt:2: there is no image 'images/gone.jpg'",
        '/some.txt:3: the image is listed twice',
    ]


BAD_YAML = {
    'not YAML': ('names: [', 'not YAML'),
    'not UTF-8': (b'names: \xff', 'not text in UTF-8'),
    'a list': ('[1, 2]', 'must have the keys train, val and names'),
    'no training images': ('names: [a]', 'it names no training images'),
    'number': ('train: 3\nnames: [a]', 'train must be a path or a list of paths, not 3'),
    'no names': ('train: a\nnc: 2', 'names must list the classes, not None'),
    'other count': ('train: a\nnc: 2\nnames: [a]', 'nc is 2, but names has 1 classes'),
    'holes': ('train: a\nnames: {0: a, 2: b}', 'the keys of names must be 0 to 1'),
    'named keys': ('train: a\nnames: {a: 0}', 'the keys of names must be different whole numbers'),
    'same keys': ('train: a\nnames: {0: a, "0": b}', 'the keys of names must be different whole numbers'),
    'yes': ('train: a\nnames: [no, yes]', 'the class name False is not text to YAML; put it in quotes'),
    'twice': ('train: a\nnames: [a, a]', "names: the class 'a' appears twice"),
    'empty': ('train: a\nnames: []', 'names: there are no classes'),
    'path': ('path: [a]\ntrain: a\nnames: [a]', 'path must be text'),
    'key points': ('train: a\nnames: [a]\nkpt_shape: 17', 'kpt_shape must be two whole numbers, not 17'),
    'aliases': ('a: &a [1, 1]\ntrain: *a\nnames: [a]', r'the alias \*a cannot be read; write the values out'),
    'objects': ('train: !!python/object/apply:os.getcwd []', 'not YAML'),
    'nested': ('[' * 2000, 'lists nested more than 20 deep cannot be read'),
    'broken bool': ('train: !!bool x', 'not YAML'),
    'broken date': ('train: !!timestamp x', 'not YAML'),
    'large': ('a' * 2**21, 'more than 524288 bytes'),
    'no folder': ('train: a\nnames: [a]', 'there is no folder or list of images .*/a; correct the path'),
}


@pytest.mark.parametrize('case', BAD_YAML)
def test_prepare_yolo_refuses_data_yaml(tmp_path, case):
    text, words = BAD_YAML[case]
    path = tmp_path / 'data.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        prepare(tmp_path, data_yaml=path, validation_share=0.2)


def test_prepare_yolo_refuses_other_requests(root):
    for options, words in (
        (dict(), 'name data_yaml alone, or else the images'),
        (dict(data_yaml=root / 'data.yaml', classes=['a']), 'name data_yaml alone'),
        (
            dict(train_images=root / 'images', validation_annotations=root / 'labels', validation_share=0.5),
            'name data_yaml alone',
        ),
        (dict(data_yaml=root / 'data.yaml', validation_share=0.5), 'name the validation data whole'),
        (dict(train_images=root / 'images/train', classes=['a']), 'name the validation data whole'),
        (dict(data_yaml=root / 'none.yaml'), 'none.yaml: cannot read'),
        (dict(train_images=root / 'gone', classes=['a'], validation_share=0.5), 'no folder or list of images .*gone'),
        (
            dict(train_images=root / 'images', train_annotations=root / 'gone', classes=['a'], validation_share=0.5),
            'no folder of label files .*gone',
        ),
        (dict(train_images=root / 'labels', classes=['a'], validation_share=0.5), 'no images in this place'),
    ):
        with pytest.raises(DataError, match=words):
            prepare(root, **options)
    (root / 'labels/val/gone.txt').write_text(lines('tall'))
    with pytest.raises(DataError, match='val/gone.txt: there is no image for this label file'):
        prepare(root, data_yaml=root / 'data.yaml')
    shutil.rmtree(root / 'labels')
    with pytest.raises(DataError, match='no image has a label file; there is no .*/labels/train/b.wide.txt nor'):
        prepare(root, data_yaml=root / 'data.yaml', on_bad_record='skip')
    assert not (root / 'data').exists()


def test_prepare_data_script_prepares_yolo(run_script, root):
    flags = ['--format=yolo', '--name=cells', f'--data_dir={root / "data"}']
    finished = run_script('prepare_data', *flags, f'--data_yaml={root / "data.yaml"}')
    assert finished.code == 0, finished.stderr
    assert 'train: 4 images (1 empty), 7 boxes (0 crowds)\n' in finished.stdout
    assert '2 classes: cat, red cell\n' in finished.stdout
    finished = run_script('prepare_data', *flags)
    assert finished.code == 1 and 'error: --format=yolo needs --data_yaml or --train_images\n' == finished.stderr
    listed = root / 'images/train'
    finished = run_script(
        'prepare_data', *flags, '--overwrite', f'--train_images={listed}', '--classes=x,y z', '--validation_share=0.4'
    )
    assert finished.code == 0 and '2 classes: x, y z\n' in finished.stdout
    (root / 'labels/val/tall.txt').write_text('7 0.5 0.5 0.2 0.2\n')
    finished = run_script(
        'prepare_data', *flags, '--overwrite', f'--data_yaml={root / "data.yaml"}', '--on_bad_record=skip'
    )
    skipped = json.loads((root / 'data/cells/1.0.0/skipped.json').read_text())
    assert finished.code == 0 and len(skipped['validation']) == 1 and skipped['train'] == []


def check_mutation(root, text, rng):
    """Puts a spoilt label file beside good ones: each line is read, or its fault is named."""
    path = root / 'labels/my cell 1.txt'
    path.write_bytes(mutate(text.encode(), rng))
    examples, skipped = check(yolo.list_images(root, ['images']), skip=True)[:2]
    try:
        check(yolo.list_images(root, ['images']), skip=False)
        assert not skipped
    except DataError as error:
        assert skipped and str(path) in str(error) and str(error).count('on_bad_record') == 1
    assert all(str(path) in message for message in skipped)
    things = [thing for example in examples if 'my cell' in example['file_name'] for thing in example['objects']]
    if len(examples) == 2:
        content = path.read_bytes().decode('utf-8-sig')
        assert len(things) + len(skipped) == sum(bool(line.strip()) for line in content.splitlines())
    else:
        assert len(examples) == len(skipped) == 1
    for x, y, w, h in (thing['bbox'] for thing in things):
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 40 and y + h <= 30
    return bool(skipped)


def drawn_labels(root):
    """A folder for `check_mutation`, and the text to spoil."""
    draw(root / 'images', ['my cell 1', 'tall'])
    write_labels(root / 'labels', ['tall'])
    return lines('my cell 1') + lines('my cell 1', polygons=True)


def test_check_split_survives_broken_files(tmp_path):
    text, rng = drawn_labels(tmp_path), np.random.default_rng(0)
    bad = sum(check_mutation(tmp_path, text, rng) for _ in range(150))
    assert 50 < bad < 150  # of both kinds


def test_read_description_survives_broken_files(tmp_path):
    path, rng, read = tmp_path / 'data.yaml', np.random.default_rng(0), 0
    for _ in range(150):
        path.write_bytes(
            mutate(b'path: .\ntrain: [a, b]\nval: c\nnc: 2\nnames: {0: cat, 1: red}\nkpt_shape: [2, 3]\n', rng)
        )
        try:
            said = read_description(path)
            read += 1
            assert said.entries['train'] and len(set(said.class_names)) == len(said.class_names) > 0
        except DataError as error:
            assert str(path) in str(error)
    assert 10 < read < 150


CANVASES = {
    'fit': (dict(resize='fit'), ((96, 128), (128, 96))),
    'letterbox': (dict(resize='letterbox', interpolation='darknet'), ((160, 160),)),
    'stretch': (dict(resize='stretch'), ((160, 112),)),
}


@pytest.mark.parametrize('rule', CANVASES)
def test_ground_truth_comes_back_from_every_canvas(root, tiny_config, rule):
    """Pictures of 1 x 300 and 300 x 1 pixels among them."""
    prepare(root, data_yaml=root / 'data.yaml')
    changes, canvases = CANVASES[rule]
    config = tiny_config(
        evaluation__canvases=canvases, **{f'data__recipe__{key}': value for key, value in changes.items()}
    )

    def predict_step(params, model_state, batch):
        batch = jax.tree.map(np.asarray, batch)
        gt = batch.gt
        found = Detections(gt.boxes, gt.valid.astype(np.float32), gt.labels, gt.valid)
        gathered = found, batch.image_id, batch.valid
        return jax.tree.map(lambda x: jnp.asarray(x.reshape(1, -1, *x.shape[2:])), gathered)  # as from all devices

    truth = records.ground_truth(opened(root))
    results = predict_dataset(predict_step, {}, {}, opened(root), truth, config)
    assert len(results) == 7
    assert coco_metrics(truth, results)['boxes']['AP'] == pytest.approx(1, abs=1e-12)
