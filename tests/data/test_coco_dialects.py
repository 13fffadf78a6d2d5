"""Property tests of reading COCO: every dialect of a document gives the same records, and no damage goes unnoticed.

The damaged records are a few thousand. `DETZOO_RECORDS=100000 python -m pytest tests/data/test_coco_dialects.py` takes more.
"""

import copy
import json
import os
import random

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest

from detzoo.data import records
from detzoo.data.readers import coco
from detzoo.data.readers.prepare import BadRecords
from detzoo.errors import DataError

RECORDS = int(os.environ.get('DETZOO_RECORDS', 4000))
SIZES = {'a/0.png': (30, 40), 'a/1.png': (1, 50), 'b/deep/2.png': (50, 1), 'b/3.png': (40, 30)}
CATEGORIES = {0: 'hen', 7: 'egg', 90: 'café'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with images of SIZES."""
    folder = tmp_path_factory.mktemp('images')
    for name, (height, width) in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new('RGB', (width, height), (90, 90, 90)).save(folder / name)
    return folder


def draw(rng, count):
    """A document as COCO's own are, of so many annotations."""
    images = [
        {'id': 3 * i, 'file_name': name, 'height': height, 'width': width}
        for i, (name, (height, width)) in enumerate(SIZES.items())
    ]
    annotations = []
    for i in range(count):
        image = rng.choice(images)
        height, width = image['height'], image['width']
        w, h = rng.uniform(0.2, width), rng.uniform(0.2, height)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = [x, y, w, h] if rng.random() < 0.5 else [0, 0, width, height]
        annotation = {'id': i, 'image_id': image['id'], 'category_id': rng.choice(list(CATEGORIES)), 'bbox': box}
        annotation |= {'iscrowd': int(rng.random() < 0.2), 'area': round(rng.uniform(0, 900), 3)}
        if rng.random() < 0.8:
            polygon = [rng.uniform(0, side) for _ in range(rng.randint(3, 6)) for side in (width, height)]
            annotation['segmentation'] = [polygon] if rng.random() < 0.7 else runs(polygon, height, width)
        annotations.append(annotation)
    categories = [{'id': i, 'name': name, 'supercategory': 'all'} for i, name in CATEGORIES.items()]
    return {'info': {}, 'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}


def runs(polygon, height, width):
    """The uncompressed RLE of a polygon."""
    flat = pycocotools.mask.decode(pycocotools.mask.frPyObjects([polygon], height, width))[..., 0].T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]).astype(int)))
    return {'size': [height, width], 'counts': np.diff([0, *edges, flat.size]).tolist()}


def number(rng, value):
    """Another spelling of a number."""
    if isinstance(value, float) and not value.is_integer():
        return rng.choice([value, repr(value), f' {value!r}'])
    whole = int(value)
    return rng.choice([whole, float(whole), str(whole), f'{whole}.0', f'{whole}.'])


def segmentation(rng, value):
    """Another spelling of a mask."""
    if isinstance(value, dict):
        size = [number(rng, side) for side in value['size']]
        compressed = pycocotools.mask.frPyObjects(value, *value['size'])['counts'].decode()
        counts = rng.choice([[number(rng, run) for run in value['counts']], compressed])
        return rng.choice([dict(size=size, counts=counts), [dict(size=size, counts=counts)]])
    (polygon,) = value
    polygon = [number(rng, coordinate) for coordinate in polygon]
    points = [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]
    return rng.choice([[polygon], polygon, points, [points], [polygon, []], [[], polygon]])


def dialect(rng, document):
    """The document as some tool may have written it."""
    document = copy.deepcopy(document)
    spell_ids, spell_boxes, spell_masks, root = (rng.random() < 0.6 for _ in range(4))
    for key in ('info', 'licenses'):
        if rng.random() < 0.5:
            del document[key]
    for image in document['images']:
        name = image['file_name']
        names = [name, name.replace('/', '\\'), f'C:\\data\\{name}', f'/home/ann/{name}', f'../{name}']
        image['file_name'] = rng.choice([*names, name.rpartition('/')[2], f'./{name}'])
        if spell_ids:
            image |= {key: number(rng, image[key]) for key in ('id', 'height', 'width')}
    for annotation in document['annotations']:
        if spell_ids:
            annotation |= {key: number(rng, annotation[key]) for key in ('id', 'image_id', 'category_id')}
        if spell_boxes:
            annotation['bbox'] = [number(rng, value) for value in annotation['bbox']]
            annotation['area'] = number(rng, annotation['area'])
        crowd = annotation.pop('iscrowd')
        annotation['iscrowd'] = rng.choice([1, '1', 1.0, True] if crowd else [0, '0', 0.0, False, None])
        if not crowd and rng.random() < 0.3:
            del annotation['iscrowd']
        if 'segmentation' not in annotation:
            annotation |= rng.choice([{}, {'segmentation': None}, {'segmentation': []}, {'segmentation': {}}])
        elif spell_masks:
            annotation['segmentation'] = segmentation(rng, annotation['segmentation'])
        annotation['attributes'] = {'occluded': False}
    if root:
        document['categories'].insert(rng.randrange(4), {'id': 55, 'name': 'all', 'supercategory': 'none'})
    elif rng.random() < 0.5:
        for category in document['categories']:
            del category['supercategory']
    return json.loads(json.dumps(document))


def read(document, folder, skip=False):
    """The categories and the checked split of a document, and what was left out."""
    (bad, path) = BadRecords(skip), folder / 'a.json'
    categories, _ = coco._common_categories([(path, document)])
    return categories, coco.check_split(path, document, list(categories), folder, bad, records.MAX_PIXELS)


def comparable(examples):
    """The examples with what numpy compares as one text."""
    return json.loads(json.dumps(examples, default=lambda value: getattr(value, 'tolist', lambda: str(value))()))


def test_every_dialect_gives_the_same_records(folder):
    names = set()
    for seed in range(40):
        rng = random.Random(seed)
        document = draw(rng, 12)
        spelled = dialect(rng, document)
        categories, truth = read(document, folder)
        assert not truth.left_out and len(truth.examples) == 4
        expected = comparable(truth.examples)
        got_categories, got = read(spelled, folder)
        assert got_categories == categories == CATEGORIES
        for example, other in zip(comparable(got.examples), expected, strict=True):
            names.add(example['file_name'])
            example['file_name'] = example['file_name'].removeprefix('./')  # such a name exists, and is kept
            assert example == other, f'seed {seed}'
        for kind in got.left_out:
            assert kind.startswith(('folders in file_name', 'parts of masks (empty polygon)')), kind
    assert names >= {'a/0.png', './a/0.png'}


# Damage, and what has to come of it: the record is bad, or its mask is absent, or it is read as it was.

ODD = [None, True, False, 0, -1, 2**63, 2**70, -(2**64), 1e308, float('nan'), float('inf'), 0.5, '', ' ', '1.5', 'nan']
ODD += ['seven', '1_0', '0x1', '٣', 'é\ud800', [], [[]], {}, {'a': []}, [None], [1, 2], 'P' * 3000, [[[[[[[[1]]]]]]]]]
NO_WHOLE = [
    value for value in ODD if value is None or type(value) is bool or type(value) is float or value in ('1.5', 'nan')
]
NO_WHOLE += [2**63, '', 'seven', '1_0', '٣', [], {}, [1, 2], '9' * 30, 1e17]

DAMAGE = [
    *(('bad', {key: value}) for key in ('id', 'image_id', 'category_id') for value in NO_WHOLE),
    *(
        ('bad', {'bbox': value})
        for value in [*ODD, '1 2 3 4', [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -4], [0, 0, 0.5, 1e9]]
    ),
    *(
        ('bad', {'bbox': [0, 0, value, 1]})
        for value in (None, True, float('nan'), float('inf'), 10**400, 'one', [1], -1)
    ),
    *(('bad', {'iscrowd': value}) for value in (2, -1, 'no', '', [], {}, 0.5, float('nan'))),
    *(('bad', {'area': value}) for value in (-1, float('nan'), float('inf'), 'big', '', [], {}, True)),
    *(('bad', fields) for fields in ({'category_id': 1}, {'image_id': 4}, {'image_id': '4'}, {'category_id': '8.0'})),
    *(('mask', {'segmentation': value}) for value in ODD if value not in (None, '', [], {})),
    *(('mask', {'segmentation': [[1, 2, 3, 4, value, 6]]}) for value in (None, True, 1e308, float('nan'), 'x', [1])),
    *(('mask', {'segmentation': {'size': size, 'counts': 'x'}}) for size in (None, [1], [30, 40], 'big', ['x', 'y'])),
    *(('good', {'unknown': value}) for value in ODD),
]


def outcomes(split, count):
    """For each annotation that was checked: 'bad', 'mask' or 'good'; every message names the record's place."""
    found = ['good'] * count
    for kind, messages in (('mask', split.notes), ('bad', split.skipped)):
        for message in messages:
            before, _, after = message.partition('(annotations[')
            assert before.startswith(str(FILE)) and after, message
            found[int(after.partition(']')[0])] = kind
    return found


FILE = 'a.json'


def test_no_damage_goes_unnoticed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tried = 0
    for seed in range(10**9):
        if tried >= RECORDS:
            break
        rng = random.Random(seed)
        document = draw(rng, 400)
        truth = {a['id']: a for a in document['annotations']}
        expected = []
        for annotation in document['annotations']:
            outcome, fields = rng.choice(DAMAGE)
            annotation.update(copy.deepcopy(fields))
            expected.append(outcome)
        tried += len(expected)
        path = folder / 'a.json'
        path.write_text(json.dumps(document))
        split = coco.check_split(
            path.relative_to(folder), coco.read_document(path), list(CATEGORIES), folder, BadRecords(True), 10_000
        )
        got = outcomes(split, len(expected))
        wrong = [
            (e, g, document['annotations'][i]) for i, (e, g) in enumerate(zip(expected, got, strict=True)) if e != g
        ]
        assert not wrong, (seed, wrong[:3])
        assert len(split.skipped) == expected.count('bad')
        kept = {thing['id']: thing for example in split.examples for thing in example['objects']}
        assert len(kept) == len(expected) - expected.count('bad')
        for i, thing in kept.items():
            assert thing['bbox'].tolist() == truth[i]['bbox'] and np.isfinite(thing['area'])
            assert expected[i] != 'mask' or thing['segmentation'] == ''
    assert tried >= RECORDS


IMAGE_DAMAGE = [
    *({key: value} for key in ('id', 'height', 'width') for value in NO_WHOLE),
    *({'height': value} for value in (0, -3, 2**40, '31')),
    *({'file_name': value} for value in ODD if not isinstance(value, str) or not value.strip()),
    *({'file_name': value} for value in ('none.png', '/etc/passwd', '../a.json', 'a', '.', '..', 'a\0b', 'é\ud800')),
    *(
        {'file_name': value}
        for value in ('x' * 5000, 'a/' * 3000 + '0.gif', '\\\\server\\0.gif', '\udce9.png', '~/0.gif')
    ),
    *({'file_name': value} for value in ('b/3.png', '3.png', '/x/3.png')),  # which is another image's
]


def test_no_damage_to_images_goes_unnoticed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for seed, fields in enumerate(IMAGE_DAMAGE):
        document = draw(random.Random(seed), 20)
        document['images'][0].update(fields)
        path = folder / 'a.json'
        path.write_text(json.dumps(document))
        split = coco.check_split(
            path.relative_to(folder), coco.read_document(path), list(CATEGORIES), folder, BadRecords(True), 10_000
        )
        images = [message for message in split.skipped if '(images[0]' in message or 'image 0 (' in message]
        assert len(images) == 1 and images[0].startswith('a.json: image '), (fields, split.skipped)
        orphans = [message for message in split.skipped if 'unknown image_id 0' in message]
        assert len(split.skipped) == 1 + len(orphans) and bool(orphans) == ('id' in fields), fields
        assert [example['image_id'] for example in split.examples] == [3, 6, 9]


def test_a_damaged_file_is_an_error_that_names_it_or_is_read(folder):
    path = folder / 'a.json'
    rng, errors = random.Random(0), 0
    text = json.dumps(draw(rng, 12), ensure_ascii=False).encode()
    for _ in range(RECORDS // 20):
        damaged = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(damaged))
            damaged[i : i + rng.randint(0, 3)] = bytes(rng.choices(b'{}[]",:-.0e9\x00\xff\xe9\\', k=rng.randint(0, 3)))
        path.write_bytes(damaged if rng.random() < 0.9 else damaged[: rng.randrange(len(damaged))])
        try:
            read(coco.read_document(path), folder, skip=rng.random() < 0.5)
        except DataError as error:
            errors += 1
            assert str(path) in str(error) and len(str(error)) < 2000
    assert errors > RECORDS // 40
