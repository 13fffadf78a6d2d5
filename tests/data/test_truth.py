"""The annotations that are written beside the records."""

import gzip
import json

import pytest

from detzoo.data import catalog, records
from detzoo.data.classes import with_classes
from detzoo.errors import DataError

FILE = 'toy/1.0.0/truth_validation.jsonl.gz'


def from_records(dataset):
    """The truth as it is read from the records, whatever lies beside them."""
    return records.ground_truth(dataset._replace(records=list(dataset.records)))


@pytest.fixture()
def copy(mask_dir, tmp_path):
    """The folder of a copy of the toy data with masks."""
    for path in (mask_dir / 'toy').rglob('*'):
        if path.is_file():
            target = tmp_path / path.relative_to(mask_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_ground_truth_from_the_file_equals_that_from_the_records(mask_dir, split, monkeypatch):
    dataset = catalog.open_dataset('toy', split, mask_dir)
    expected = from_records(dataset)
    monkeypatch.setattr(records.Records, '__getitem__', None)  # no record is read
    truth = records.ground_truth(dataset)
    assert json.dumps(truth) == json.dumps(expected)
    assert len(truth['images']) == {'train': 20, 'validation': 10}[split] and 'segmentation' in truth['annotations'][0]


def test_part_of_a_split_and_other_classes_are_read_from_the_records(mask_dir):
    whole, part = (catalog.open_dataset('toy', split, mask_dir) for split in ('validation', 'validation[2:5]'))
    assert records.ground_truth(part)['images'] == records.ground_truth(whole)['images'][2:5]
    renamed = with_classes(whole, ('blue', 'red', 'green', 'white'), {})
    truth, own = records.ground_truth(renamed), records.ground_truth(whole)
    names = {category['id']: category['name'] for category in own['categories']}
    assert [truth['categories'][row['category_id'] - 1]['name'] for row in truth['annotations']] == [
        names[row['category_id']] for row in own['annotations']
    ]


def test_data_of_an_older_detzoo_are_read_from_the_records(copy):
    expected = records.ground_truth(catalog.open_dataset('toy', 'validation', copy))
    (copy / FILE).unlink()
    metadata = copy / 'toy/1.0.0/metadata.json'
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), 'truth': {}}))
    assert records.ground_truth(catalog.open_dataset('toy', 'validation', copy)) == expected


def other_number(content):
    text = gzip.decompress(content)
    assert b'"iscrowd":0' in text
    return gzip.compress(text.replace(b'"iscrowd":0', b'"iscrowd":1', 1))


@pytest.mark.parametrize(
    'change, words',
    [
        (other_number, 'it is not what was written'),
        (lambda content: content[: len(content) // 2], 'no whole gzip file'),
        (lambda content: b'', 'it is not what was written'),
        (lambda content: b'{}', 'no whole gzip file'),
        (lambda content: gzip.compress(gzip.decompress(content) + b'[]'), 'it is not what was written'),
        (lambda content: None, 'No such file'),
    ],
)
def test_a_file_that_does_not_belong_to_the_records_is_refused(copy, change, words):
    content = change((copy / FILE).read_bytes())
    (copy / FILE).unlink()
    if content is not None:
        (copy / FILE).write_bytes(content)
    with pytest.raises(DataError, match=f'truth_validation.jsonl.gz does not belong to the records.*{words}'):
        records.ground_truth(catalog.open_dataset('toy', 'validation', copy))


def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused(copy):
    (copy / FILE).unlink()
    (copy / FILE).write_bytes(gzip.compress(bytes(2**26 + 1)))
    with pytest.raises(DataError, match='it unpacks to more than'):
        records.ground_truth(catalog.open_dataset('toy', 'validation', copy))
