"""LVIS: its official layout is read whole, its lists and frequencies are kept, and what cannot be used is refused."""

import copy
import io
import json

import numpy as np
import PIL.Image
import pytest

from detzoo.data import catalog, records
from detzoo.data.readers.lvis import prepare_lvis
from detzoo.errors import DataError
from detzoo.evaluation import coco_metrics, format_table

HEIGHT, WIDTH = 24, 32
URL = 'http://images.cocodataset.org/{}/{:012d}.jpg'
CATEGORIES = [
    {
        'id': 1,
        'name': 'aerosol_can',
        'synset': 'aerosol.n.02',
        'frequency': 'c',
        'image_count': 64,
        'def': 'a dispenser',
    },
    {'id': 3, 'name': 'Band_Aid', 'synset': 'band_aid.n.01', 'frequency': 'r', 'image_count': 2, 'def': 'a bandage'},
    {'id': 7, 'name': 'zebra', 'synset': 'zebra.n.01', 'frequency': 'f', 'image_count': 1674, 'def': 'a striped horse'},
]


def image_of(image_id, folder, absent, inexhaustive):
    """An image as lvis_v1_train.json has it: there is no `file_name`."""
    return {
        'date_captured': '2013-11-15 00:00:00',
        'neg_category_ids': absent,
        'id': image_id,
        'license': 1,
        'height': HEIGHT,
        'width': WIDTH,
        'flickr_url': '',
        'coco_url': URL.format(folder, image_id),
        'not_exhaustive_category_ids': inexhaustive,
    }


def annotation_of(annotation_id, image_id, category_id, x):
    """An annotation as lvis_v1_train.json has it: there is no `iscrowd`."""
    polygon = [x, 4.0, x + 10, 4.0, x + 10, 14.0, x, 14.0]
    row = {'area': 100.0, 'id': annotation_id, 'segmentation': [polygon], 'image_id': image_id}
    return row | {'bbox': [x, 4.0, 10.0, 10.0], 'category_id': category_id}


DOCUMENTS = {  # both splits have images of both folders
    'train': dict(
        images=[image_of(30, 'train2017', [3], []), image_of(40, 'val2017', [], [7])],
        annotations=[annotation_of(1, 30, 1, 2.0), annotation_of(2, 40, 7, 8.0)],
        categories=CATEGORIES,
    ),
    'val': dict(
        images=[image_of(50, 'train2017', [1, 7], [3]), image_of(60, 'val2017', [1], [])],
        annotations=[annotation_of(4, 50, 3, 1.0), annotation_of(5, 60, 7, 12.0), annotation_of(6, 60, 3, 20.0)],
        categories=CATEGORIES,
    ),
}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """The folder with train2017 and val2017 in it."""
    folder = tmp_path_factory.mktemp('coco')
    pixels = np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, 'JPEG')
    for document in DOCUMENTS.values():
        for image in document['images']:
            path = folder / '/'.join(image['coco_url'].split('/')[-2:])
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.getvalue())
    return folder


@pytest.fixture
def prepare(images, tmp_path):
    """A function: a change of the documents, and arguments of `prepare_lvis` -> Prepared."""

    def run(change=lambda documents: None, **arguments):
        documents = {split: copy.deepcopy(document) for split, document in DOCUMENTS.items()}
        change(documents)
        for split, document in documents.items():
            (tmp_path / f'lvis_v1_{split}.json').write_text(json.dumps(document))
        files = [tmp_path / f'lvis_v1_{split}.json' for split in DOCUMENTS]
        return prepare_lvis('lvis', files[0], images, files[1], images, data_dir=tmp_path / 'data', **arguments)

    return run


def test_lvis_is_read_as_it_was_written(prepare, tmp_path):
    prepared = prepare()
    assert prepared.class_names == ('aerosol_can', 'Band_Aid', 'zebra')
    assert [split.skipped + list(split.notes) for split in prepared.splits.values()] == [[], []]
    for split, name in (('train', 'train'), ('validation', 'val')):
        dataset = catalog.open_dataset('lvis', split, tmp_path / 'data')
        assert (
            dataset.frequencies == ('c', 'r', 'f') and dataset.category_ids == (1, 3, 7) and len(dataset.checksum) == 64
        )
        truth, document = records.ground_truth(dataset), DOCUMENTS[name]
        keys = 'id', 'height', 'width', *records.FEDERATED
        assert [{key: image[key] for key in keys} for image in truth['images']] == [
            {key: image[key] for key in keys} for image in document['images']
        ]
        assert [image['file_name'] for image in truth['images']] == [
            '/'.join(image['coco_url'].split('/')[-2:]) for image in document['images']
        ]
        assert truth['categories'] == [{key: row[key] for key in ('id', 'name', 'frequency')} for row in CATEGORIES]
        by_image = sorted(document['annotations'], key=lambda row: (row['image_id'], row['id']))
        for row, expected in zip(truth['annotations'], by_image, strict=True):
            assert {key: row[key] for key in ('id', 'image_id', 'category_id', 'bbox', 'area')} == {
                key: expected[key] for key in ('id', 'image_id', 'category_id', 'bbox', 'area')
            }
            assert row['iscrowd'] == 0 and row['segmentation']['size'] == [HEIGHT, WIDTH]


def test_lvis_is_evaluated_as_lvis_does(prepare, tmp_path):
    prepare()
    truth = records.ground_truth(catalog.open_dataset('lvis', 'validation', tmp_path / 'data'))
    detections = [{**row, 'score': 0.5} for row in truth['annotations']]
    elsewhere = {'bbox': [22.0, 15.0, 5.0, 5.0], 'score': 0.9}
    # Image 50 has some of class 3 only, and lacks classes 1 and 7: a detection of class 3 does not count, one of class 7 does.
    unknown = [{'image_id': 50, 'category_id': 3, **elsewhere}]
    wrong = [{'image_id': 50, 'category_id': 7, **elsewhere}]
    for kinds in (('bbox',), ('bbox', 'segm')):
        masks = [{**row, 'segmentation': truth['annotations'][0]['segmentation']} for row in unknown + wrong]
        numbers = coco_metrics(truth, detections + masks[:1], kinds)['boxes']
        assert [numbers[name] for name in ('AP', 'APr', 'APc', 'APf')] == pytest.approx([1, 1, None, 1])
        metrics = coco_metrics(truth, detections + masks, kinds)
        assert [metrics['boxes'][name] for name in ('AP', 'APr', 'APf')] == pytest.approx([0.75, 1, 0.5])
    assert 'frequent classes' in format_table(metrics) and metrics['masks']['APr'] == pytest.approx(1)


def test_other_data_sets_stay_as_they_are(toy):
    assert not set(records.FEDERATED) & set(records.features(['a']))
    truth = records.ground_truth(toy(3))
    assert set(truth['images'][0]) == {'id', 'file_name', 'height', 'width'}
    assert set(truth['categories'][0]) == {'id', 'name'} and toy(3).frequencies is None


def change_image(**values):
    return lambda documents: documents['val']['images'][0].update(values)


def remove(key, table='images'):
    def change(documents):
        for document in documents.values():
            del document[table][0][key]

    return change


@pytest.mark.parametrize(
    'change, message',
    [
        (
            remove('neg_category_ids'),
            r'train.json: image 30 \(train2017/.*30.jpg\): neg_category_ids must be a list of cat',
        ),
        (
            change_image(neg_category_ids=3),
            'val.json: image 50 .*: neg_category_ids must be a list of category ids, not 3',
        ),
        (change_image(not_exhaustive_category_ids=[3, 2]), 'not_exhaustive_category_ids has the unknown category id 2'),
        (
            change_image(not_exhaustive_category_ids=['x']),
            "not_exhaustive_category_ids has the unknown category id 'x'",
        ),
        (change_image(not_exhaustive_category_ids=[None]), 'has the unknown category id None'),
        (remove('coco_url'), 'train.json: image 30 .*: file_name must be text, not None'),
        (change_image(coco_url='http://[broken'), "image 50 .*: file_name must be text, not ''"),
        (change_image(coco_url='http://x/train2017/none.jpg'), "there is no file 'train2017/none.jpg'"),
        (
            remove('frequency', 'categories'),
            r'categories\[0\]: frequency must be "r", "c" or "f", not None: take .* LVIS v1',
        ),
        (
            lambda documents: documents['val']['categories'][2].update(frequency='c'),
            r"have different categories: \[\(7, 'zebra', 'c'\), \(7, 'zebra', 'f'\)\]",
        ),
        (
            lambda documents: documents['val']['annotations'][0].update(category_id=2),
            'annotation 4 .*: unknown category',
        ),
    ],
)
def test_what_lvis_needs_is_refused_without(prepare, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        prepare(change)
    assert not (tmp_path / 'data' / 'lvis').exists()


def test_bad_images_are_left_out_with_their_objects(prepare, tmp_path):
    prepared = prepare(change_image(neg_category_ids=None), on_bad_record='skip')
    assert len(prepared.splits['validation'].skipped) == 1
    truth = records.ground_truth(catalog.open_dataset('lvis', 'validation', tmp_path / 'data'))
    assert [image['id'] for image in truth['images']] == [60] and [row['id'] for row in truth['annotations']] == [5, 6]
    listed = json.loads((prepared.folder / 'skipped.json').read_text())
    assert 'image 50' in listed['validation'][0] and listed['train'] == []

    def no_lists(documents):
        for image in documents['val']['images']:
            del image['not_exhaustive_category_ids']

    with pytest.raises(DataError, match='lvis_v1_val.json: not one good image; 2 bad records'):
        prepare(no_lists, on_bad_record='skip', overwrite=True)


def test_detzoo_prepare_reads_lvis(prepare, images, run_script, tmp_path):
    prepare()  # writes the files
    sources = [
        f'--{split}_annotations={tmp_path}/lvis_v1_{name}.json'
        for split, name in (('train', 'train'), ('validation', 'val'))
    ]
    sources += [f'--{split}_images={images}' for split in ('train', 'validation')]
    finished = run_script('prepare_data', '--format=lvis', '--name=again', *sources, f'--data_dir={tmp_path}/data')
    assert finished.code == 0, finished.stderr
    assert 'validation: 2 images (0 empty), 3 boxes (0 crowds)' in finished.stdout
    checksums = {catalog.open_dataset(name, 'train', tmp_path / 'data').checksum for name in ('lvis', 'again')}
    assert len(checksums) == 1
    finished = run_script('prepare_data', '--format=lvis', '--name=third', *sources[:3], f'--data_dir={tmp_path}/data')
    assert finished.code == 1 and 'error: --format=lvis needs --validation_images' in finished.stderr
