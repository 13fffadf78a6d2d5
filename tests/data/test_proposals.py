"""Proposals from outside: read, mapped as objects are, padded; and each kind of bad file named."""

import gzip
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.config import defaults
from detzoo.core.boxes import xywh_to_xyxy
from detzoo.data.augment import augment
from detzoo.data.catalog import open_dataset
from detzoo.data.proposals import Proposals, load_proposals, read_proposals
from detzoo.data.records import decode_image
from detzoo.errors import DataError
from detzoo.evaluation import write_detections
from detzoo.training import loop
from detzoo.types import Detections, Detector

CANVASES = ((48, 64), (64, 48))
PLAIN = defaults().data.recipe.to_dict() | dict(flip=0.0)  # nothing is varied
VARIATIONS = {
    'flip': dict(flip=1.0),
    'rotate90': dict(rotate90=True),
    'scale': dict(scale_range=(0.6, 2.5)),
    'letterbox': dict(resize='letterbox', aspect_jitter=0.3),
    'jitter': dict(resize='stretch', jitter=0.3),
    'zoom_out': dict(zoom_out=3.0),
    'all': dict(flip=0.5, rotate90=True, zoom_out=2.0, jitter=0.2, iou_crop=True, scale_range=(0.5, 2.0)),
}


def entries(dataset):
    """The objects of a data set, crowds too, as COCO results; an earlier one has the better score."""
    return [
        dict(image_id=record['image_id'], category_id=3, bbox=box.tolist(), score=1 / (1 + i))
        for record in dataset.records
        for i, box in enumerate(record['boxes'])
    ]


def written(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_read_proposals_by_hand(tmp_path):
    found = read_proposals(
        written(
            tmp_path / 'p.json',
            [
                dict(image_id=7, bbox=[1, 2, 3, 4], score=0.25),
                dict(image_id=9, bbox=[0, 0, 10.5, 2], score=-3, category_id=1, segmentation='x'),
                dict(image_id=7, bbox=[5, 6, 7, 8], score=1),
                dict(image_id=7, bbox=[9, 9, 9, 9], score=0.25),
            ],
        )
    )
    assert set(found) == {7, 9}
    np.testing.assert_array_equal(
        found[7].boxes, [[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]]
    )  # of equal scores the earlier one
    np.testing.assert_array_equal(found[9].boxes, [[0, 0, 10.5, 2]])
    assert found[7].entries == [2, 0, 3] and found[9].segmentations == ['x'] and found[7].segmentations == [None] * 3


def test_read_proposals_reads_what_evaluation_writes(toy, tmp_path):
    write_detections(tmp_path / 'detections.json.gz', entries(toy()))
    found, expected = (
        read_proposals(tmp_path / 'detections.json.gz'),
        read_proposals(written(tmp_path / 'p', entries(toy()))),
    )
    assert set(found) == set(expected) == {record['image_id'] for record in toy().records if len(record['boxes'])}
    for record in toy().records[1:]:
        np.testing.assert_array_equal(found[record['image_id']].boxes, record['boxes'])
        np.testing.assert_array_equal(expected[record['image_id']].boxes, record['boxes'])


GOOD = dict(image_id=7, bbox=[1, 2, 3, 4], score=0.5)


@pytest.mark.parametrize(
    'entry, words',
    [
        ('box', 'there is no image_id and no bbox and no score'),
        ({key: GOOD[key] for key in ('image_id', 'bbox')}, 'there is no score'),
        (GOOD | dict(image_id='7'), "image_id '7' is not an integer of 64 bits"),
        (GOOD | dict(image_id=True), 'image_id True is not an integer of 64 bits'),
        (GOOD | dict(image_id=2**63), 'is not an integer of 64 bits'),
        (GOOD | dict(score=None), 'score None is not a finite number'),
        (GOOD | dict(score=float('nan')), 'score nan is not a finite number'),
        (GOOD | dict(bbox=[1, 2, 3]), r'bbox \[1, 2, 3\] is not four finite numbers'),
        (GOOD | dict(bbox=[1, 2, 3, float('inf')]), 'is not four finite numbers'),
        (GOOD | dict(bbox=[1, 2, 3, 10**400]), 'is not four finite numbers'),
        (GOOD | dict(bbox='1234'), 'is not four finite numbers'),
        (GOOD | dict(bbox=[1, 2, 3, 0]), r'bbox \[1, 2, 3, 0\] has no area'),
        (GOOD | dict(bbox=[1, 2, -3, 4]), 'has no area'),
    ],
)
def test_read_proposals_names_a_bad_entry(tmp_path, entry, words):
    path = written(tmp_path / 'p.json', [GOOD, entry])
    with pytest.raises(
        DataError, match=rf'p\.json: entry 1 \(counted from 0\): .*{words}; a proposal is .* Fix or remove the entry'
    ):
        read_proposals(path)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'[{"image_id": 7,', 'p is not JSON, or was cut short'),
        (b'\xff[]', 'p is not JSON, or was cut short'),
        (b'[' * 100_000, 'p is not JSON, or was cut short'),
        (gzip.compress(json.dumps([GOOD] * 99).encode())[:-20], 'p is not JSON, or was cut short'),
        (b'\x1f\x8bnothing of gzip', 'p is not JSON, or was cut short'),
        (b'{"annotations": []}', 'p is not a list of proposals: export it in the format of COCO results'),
        (None, "cannot read the proposals .*p: No such file.*; give a file's path, or 'ground_truth'"),
    ],
)
def test_read_proposals_names_a_bad_file(tmp_path, content, words):
    if content is not None:
        (tmp_path / 'p').write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_proposals(tmp_path / 'p')


def test_load_proposals_keeps_the_best_and_says_what_it_keeps(toy, tmp_path, capsys):
    dataset, rng = toy(4), np.random.RandomState(0)
    rows = [
        dict(image_id=image_id, bbox=[float(score), 0, 5, 5], score=float(score))
        for image_id in (101, 103, 999)  # the last is not of the split
        for score in rng.permutation(6)
    ]
    path = written(tmp_path / 'p.json', rows)
    proposals = load_proposals(path, dataset, 4)
    assert proposals.rows == 4 and [len(boxes) for boxes in proposals.boxes] == [0, 4, 0, 4]
    for index in (1, 3):
        np.testing.assert_array_equal(proposals.boxes[index], [[left, 0, left + 5, 5] for left in (5, 4, 3, 2)])
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"{path}: 12 proposals for 2 of the 4 images of split 'train' of 'toy'; 4 over data.max_proposals=4 are left out"
        )
    )
    assert '; 0 over' in (load_proposals(path, dataset, 6), capsys.readouterr().err)[1]


def test_load_proposals_refuses_those_of_other_images(toy, tmp_path):
    path = written(tmp_path / 'p.json', entries(toy(3, first=20)))
    with pytest.raises(DataError, match=r"no proposals for any image of split 'train' of 'toy', .* is 100 \(0\.png\)"):
        load_proposals(path, toy(), 8)
    with pytest.raises(DataError, match='no proposals for any image'):
        load_proposals(written(tmp_path / 'p.json', []), toy(), 8)


def test_load_proposals_of_the_ground_truth_leaves_crowds_out(toy):
    dataset = toy()
    assert dataset.records[1]['is_crowd'].any()
    proposals = load_proposals('ground_truth', dataset, 8)
    for boxes, record in zip(proposals.boxes, dataset.records, strict=True):
        np.testing.assert_array_equal(boxes, xywh_to_xyxy(record['boxes'])[~record['is_crowd']])
    assert load_proposals('ground_truth', toy(1), 8).boxes[0].shape == (0, 4)  # no object: no proposal
    assert load_proposals(None, dataset, 8) is None


def test_on_canvas_by_hand():
    # An image 20 wide and 10 high, flipped, at twice its size, 4 px from the top of a canvas that ends at 38 px.
    to_record = np.array([[-0.5, 0, 20], [0, 0.5, -2]])
    boxes = np.float32([[1, 2, 5, 10], [-3, -3, 2, 1], [0, 0, 0.5, 3], [21, 0, 30, 5], [4, 3, 4.004, 8]])
    proposals = Proposals([np.zeros((0, 4), np.float32), boxes], 6)
    placed, valid = proposals.on_canvas(1, to_record, np.float32([0, 4, 38, 24]))
    # x: 2 * (20 - x), y: 2 * y + 4. The third lies beyond 38, the fourth beyond the image, the fifth is 0.008 px wide.
    np.testing.assert_array_equal(placed, [[30, 8, 38, 24], [36, 4, 38, 6], [0] * 4, [0] * 4, [0] * 4, [0] * 4])
    assert valid.tolist() == [True, True, False, False, False, False]
    assert placed.dtype == np.float32 and valid.dtype == bool
    placed, valid = proposals.on_canvas(0, to_record, np.float32([0, 4, 38, 24]))
    assert placed.shape == (6, 4) and not placed.any() and not valid.any()


@pytest.mark.parametrize('name', VARIATIONS)
def test_proposals_follow_the_objects_that_augmentation_moves(toy, tmp_path, name):
    # Objects as proposals: what augmentation keeps of them lies where it puts them, in their order.
    dataset, recipe = toy(), PLAIN | VARIATIONS[name]
    proposals = load_proposals(written(tmp_path / 'p.json', entries(dataset)), dataset, 16)
    compared = gone = 0
    for index, seed in itertools.product(range(10), range(6)):
        record = dataset.records[index]
        arguments = dict(canvas=CANVASES[seed % 2], recipe=recipe, rng=np.random.RandomState([seed, index]))
        result = augment(
            decode_image(record['image'], name=''),
            xywh_to_xyxy(record['boxes']),
            record['is_crowd'],
            **arguments,
        )
        boxes, valid = proposals.on_canvas(index, result.to_record, result.window)
        if recipe['iou_crop']:  # by the paper's rule some objects are dropped of which a part is seen
            assert all(np.abs(boxes[valid] - box).max(axis=1).min() < 1e-4 for box in result.boxes)
        else:
            np.testing.assert_allclose(boxes[valid], result.boxes, atol=1e-4)
        assert not boxes[~valid].any() and not valid[valid.sum() :].any()
        compared, gone = compared + len(result.boxes), gone + (len(result.boxes) < len(record['boxes']))
    assert compared > 60 and (gone > 0 or name not in ('scale', 'all'))


def test_train_and_evaluate_gives_each_split_its_own_proposals(data_dir, tiny_config, tmp_path, monkeypatch):
    # A detector whose loss is how many proposals an image has, and which finds them all, as objects of the first class.
    def loss(params, model_state, batch, rng):
        return batch.inputs.proposals_valid.sum(axis=1).mean() + 0 * params['w'].sum(), (model_state, {})

    def predict(params, model_state, inputs):
        ones = jnp.ones(inputs.proposals.shape[:2])
        return Detections(inputs.proposals, ones, 0 * ones.astype(int), inputs.proposals_valid)

    init = lambda rng, canvas: ({'w': jnp.ones(2)}, {})
    detector = Detector(init, loss, predict, None, takes_proposals=True, needs_proposals=True)
    for module in ('detzoo.training.checks', 'detzoo.inference.predictor'):
        monkeypatch.setattr(f'{module}.detector_of', lambda *args: detector)
    train, validation = (open_dataset('toy', split, data_dir) for split in ('train', 'validation'))
    path = written(
        tmp_path / 'p.json',
        [
            dict(image_id=record['image_id'], bbox=[0, 0, 500, 500], score=score)
            for record in train.records
            for score in (1, 2, 3)
        ],
    )
    config = tiny_config(
        training__steps=2,
        data__max_proposals=6,
        data__recipe__scale_range=(1.0, 1.0),
        data__train_proposals=path,
        data__validation_proposals='ground_truth',
    )
    metrics = loop.train_and_evaluate(config, tmp_path / 'run')
    # All objects of the first class are found, of the three classes.
    assert metrics['per_class']['red']['AP50'] > 0.1 and metrics['boxes']['AR100'] == pytest.approx(1 / 3)
    rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert [row['loss'] for row in rows if 'loss' in row] == [3, 3]
    objects = [(~record['is_crowd']).sum() for record in validation.records]
    assert [row['validation/loss'] for row in rows if 'validation/loss' in row] == [pytest.approx(np.mean(objects[:8]))]


def test_train_and_evaluate_makes_no_workdir_for_bad_proposals(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'check', lambda *args, **kwargs: (None, None, None))
    for key in ('train_proposals', 'validation_proposals'):
        with pytest.raises(DataError, match='cannot read the proposals nowhere.json'):
            loop.train_and_evaluate(tiny_config(**{f'data__{key}': 'nowhere.json'}), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
