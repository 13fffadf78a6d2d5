"""Class-agnostic detectors from a config to proposals: training that goes on, all classes as one, SharpMask's second stage."""

import json

import jax
import numpy as np
import pytest
from linear import assert_same, saved
from tiny import TINY_DEEPMASK, TINY_SHARPMASK

from detzoo.config import complete
from detzoo.data.catalog import open_split
from detzoo.data.proposals import load_proposals
from detzoo.errors import ConfigError
from detzoo.evaluation import is_recall, object_recall, read_detections, recall_numbers
from detzoo.inference.dataset import Tally, evaluate_workdir
from detzoo.inference.predictor import detector_of, load
from detzoo.run.classes import OBJECT
from detzoo.sweeps import attempt
from detzoo.sweeps.store import FINISHED, Result, Store
from detzoo.training import finetune, loop
from detzoo.training.checks import check
from detzoo.weights.mapping import flatten

NUMBERS = [f'{what}AR{count}' for what in ('object_', 'mask_object_') for count in (1, 10, 100, 1000)]


@pytest.fixture(scope='module')
def make_config(tiny_config, mask_dir):
    """A function: arguments of a detector, {dotted key: value} -> a config on the toy data with masks."""

    def make(model, **changes):
        config = tiny_config(training__steps=4, training__checkpoint_every=2, training__evaluate_every=2)
        config.data.update(data_dir=str(mask_dir), mask_size=8)
        config = complete(type(config)({**config.to_dict(), 'model': model}))
        config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return config

    return make


@pytest.fixture(scope='module')
def run(make_config, tmp_path_factory):
    """The workdir of a finished run of DeepMask, and its last metrics."""
    workdir = tmp_path_factory.mktemp('runs') / 'deepmask'
    return workdir, loop.train_and_evaluate(make_config(TINY_DEEPMASK), workdir)


def test_training_that_was_cut_ends_with_the_same_bits(run, make_config, tmp_path):
    workdir, metrics = run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tally, 'metrics', lambda *args: 1 / 0)  # the first evaluation, behind the checkpoint of step 2
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(make_config(TINY_DEEPMASK), tmp_path)
    assert saved(tmp_path)[0] == 2
    assert loop.train_and_evaluate(make_config(TINY_DEEPMASK), tmp_path) == metrics
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (workdir / 'metrics.jsonl').read_bytes()
    assert_same(saved(tmp_path), saved(workdir))


def test_all_classes_are_one_in_the_evaluation(run, mask_dir):
    workdir, metrics = run
    found, truth, results = evaluate_workdir(workdir)
    assert found == {'step': 4, **metrics} and list(found['per_class']) == ['object']
    assert truth['categories'] == [{'id': 1, 'name': 'object'}]
    assert len({row['image_id'] for row in results}) > 5 and {row['category_id'] for row in results} == {1}
    assert all('segmentation' in row for row in results)
    assert found['recall'] == object_recall(truth, results) and found['mask_recall'] == object_recall(
        truth, results, 'segm'
    )
    assert found['recall']['per_image'] > 1
    last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    numbers = recall_numbers(found)
    assert list(numbers) == NUMBERS and all(map(is_recall, NUMBERS)) and not is_recall('AR100')
    assert {name: last[f'validation/{name}'] for name in NUMBERS} == numbers

    predictor = load(workdir)
    image = np.zeros((50, 60, 3), np.uint8)
    detected = predictor(image)
    assert (
        predictor.classes == OBJECT and set(detected.class_names) <= {'object'} and detected.masks.shape[1:] == (50, 60)
    )


def test_detections_on_the_training_images_are_proposals(run, make_config):
    workdir, _ = run
    _, _, results = evaluate_workdir(workdir, split='train')
    assert not (workdir / 'detections.json.gz').exists() or read_detections(workdir / 'detections.json.gz') != results
    path = workdir / 'detections_train.json.gz'
    assert read_detections(path) == results
    train = open_split(make_config(TINY_DEEPMASK).data, 'train')
    proposals = load_proposals(str(path), train, 10)
    assert sum(map(len, proposals.boxes)) == len(results) > 20
    of_first = [row['bbox'] for row in results if row['image_id'] == train.records[1]['image_id']]
    x, y, width, height = np.array(of_first).T
    np.testing.assert_allclose(proposals.boxes[1], np.stack([x, y, x + width, y + height], axis=1), rtol=1e-5)


def test_sharpmask_starts_from_all_that_deepmask_has_but_its_mask_head(run, make_config):
    workdir, _ = run
    stage = TINY_SHARPMASK | dict(
        backbone_stride=4, refine_strides=(), hidden_features=(8,)
    )  # the trunk is that of the run
    config = make_config(stage, initialize_from=str(workdir))
    state = finetune.state_shapes(config, detector_of(config, 3))
    template = state.params, state.model_state
    learnt = finetune.read_run(workdir, config, ('other', 'classes'), template, 'deepmask')
    parts = {path.split('/')[1] for path in learnt.arrays}
    assert parts == {'backbone', 'reduce', 'code', 'score_hidden', 'score'}
    assert {path.split('/')[1] for path in learnt.anew} == {'coarse', 'horizontal_0', 'vertical_0', 'output'}
    assert learnt.arrays.keys() | set(learnt.anew) == flatten(template).keys()
    assert learnt.changes['model.name'] == ('deepmask', 'sharpmask')
    with pytest.raises(ConfigError, match='whose detector is another one'):
        finetune.read_run(workdir, config, ('other', 'classes'), template)
    train = open_split(config.data, 'train')
    assert set(check(config, train)[2].anew) == set(learnt.anew)


def test_a_sweep_names_another_truth_for_all_classes_as_one(run, make_config, tmp_path):
    workdir, metrics = run
    store = Store(tmp_path)
    store.workdir('a').parent.mkdir()
    store.workdir('a').symlink_to(workdir)
    config = make_config(TINY_DEEPMASK).to_dict()
    planned = Result('b', 'b', 'b', 'waiting', '', config, {}, 0, {}, trained='a')
    (tmp_path / 'sweep.json').write_text(json.dumps({'runs': [planned._asdict()], 'metrics': ['mask_object_AR100']}))
    assert attempt.attempt(str(tmp_path), 'b')
    result = Result(**json.loads((store.results_of('b') / 'result.json').read_text()))
    assert result.status == FINISHED and result.truth == 'toy-validation-objects'
    assert {name: result.metrics[name] for name in NUMBERS} == recall_numbers(metrics)
    assert list(result.per_class) == ['object']
    assert store.ground_truth(result.truth)['categories'] == [{'id': 1, 'name': 'object'}]


@pytest.mark.full
def test_the_second_stage_changes_the_refinement_alone(run, make_config, tmp_path):
    workdir, _ = run
    stage = TINY_SHARPMASK | dict(backbone_stride=4, refine_strides=(), hidden_features=(8,))
    stage['backbone'] = stage['backbone'] | dict(norm='frozen_batch_norm')
    frozen = '^(backbone|reduce|code|score_hidden|score)/'
    config = make_config(stage, initialize_from=str(workdir), optimizer__frozen=frozen)
    metrics = loop.train_and_evaluate(config, tmp_path / 'sharpmask')
    assert metrics['mask_recall']['per_image'] > 1
    before, after = load(workdir), load(tmp_path / 'sharpmask')
    for part in ('reduce', 'code', 'score_hidden', 'score'):
        assert_same(after.params[part], before.params[part])
    np.testing.assert_array_equal(
        after.params['backbone']['stem_conv']['kernel'], before.params['backbone']['stem_conv']['kernel']
    )
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), after.params))
