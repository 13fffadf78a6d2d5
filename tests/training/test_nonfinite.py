"""Steps that are not finite: what is written of them, what a replay finds, and steps that are skipped."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import AskedAt, assert_same, first_batches, linear_detector, losses_of, saved

from detzoo.errors import DataError
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import Stopped
from detzoo.training import loop, nonfinite

BAD = 7  # the image whose loss is the root of a negative number


def poisoned(axis_name, bad=BAD):
    """The linear detector, whose loss has a second term: NaN for some images, 0 for others."""
    detector = linear_detector(axis_name)

    def loss(params, model_state, batch, rng):
        total, (model_state, metrics) = detector.loss(params, model_state, batch, rng)
        is_bad = batch.image_id == BAD if bad == BAD else batch.image_id >= 0
        # The roots of other images are those of 1, so that their gradients stay 0.
        roots = jnp.sqrt(jnp.where(is_bad, -1.0 - total**2, 1.0)).sum() - len(is_bad)
        return total + roots, (model_state, metrics | {'roots': roots})

    return detector._replace(loss=loss)


@pytest.fixture
def poison(monkeypatch):
    """A function: every config describes the linear detector that fails on some images, one or all."""

    def set_detector(bad=BAD):
        for module in ('training.checks', 'training.nonfinite', 'inference.predictor'):
            make = lambda config, num_classes, axis_name=None: poisoned(axis_name, bad)
            monkeypatch.setattr(f'detzoo.{module}.detector_of', make)

    set_detector()
    return set_detector


SEED, STEP = 5, 3  # the first step with the bad image; with the next seed it is the second


def bad_steps(config):
    """The steps whose batch has the bad image."""
    return [step for step, batch in enumerate(first_batches(config, 6), start=1) if BAD in batch.image_id]


@pytest.mark.parametrize('replicas', [1, 2])
def test_train_and_evaluate_writes_the_state_before_the_step(tmp_path, tiny_config, poison, replicas):
    config = tiny_config(seed=SEED, training__num_replicas=replicas)
    step, seed = (STEP, SEED) if replicas == 1 else (STEP - 1, SEED + 1)  # the second replica fails first
    with pytest.raises(Stopped):  # with a checkpoint, after which a step is made again
        loop.train_and_evaluate(config, tmp_path / 'run', stop=AskedAt(1))
    with pytest.raises(FloatingPointError, match=f'step {step}: the loss is nan.*What led to it is in ') as raised:
        loop.train_and_evaluate(config, tmp_path / 'run')
    (path,) = (tmp_path / 'run').rglob('nonfinite/*')
    assert str(path) in str(raised.value) and path.name == f'{step}.safetensors'
    workdir = path.parents[1].relative_to(tmp_path / 'run')
    assert str(workdir) == ('.' if replicas == 1 else f'seed_{seed}')

    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path / 'until', stop=AskedAt(step - 1))
    _, before = saved(tmp_path / 'until' / workdir)
    record = nonfinite.read_record(path)
    assert_same(record.params, before['variables']['params'])
    assert_same(record.model_state, before['variables']['model_state'])
    batch = first_batches(tiny_config(seed=seed), step)[-1]
    assert BAD in batch.image_id and record.config.seed == seed
    assert_same(record.batch, batch)
    assert record.image_ids == [100 + index for index in batch.image_id]


def test_replay_names_terms_images_gradients_and_the_operation(tmp_path, tiny_config, poison, run_script, monkeypatch):
    config = tiny_config(seed=SEED)
    with pytest.raises(FloatingPointError):
        loop.train_and_evaluate(config, tmp_path)
    path, batch = tmp_path / 'nonfinite' / f'{STEP}.safetensors', first_batches(config, STEP)[-1]
    found = nonfinite.replay(path)
    assert found.terms == ['loss', 'roots'] and np.isnan([found.loss, found.grad_norm]).all()
    assert found.images == {index: ['loss', 'roots', 'gradient'] for index in np.flatnonzero(batch.image_id == BAD)}
    assert found.parameters == ['head/bias', 'head/kernel', 'neck/bias', 'neck/kernel']  # from the loss to the image
    assert re.fullmatch(r'sqrt in .*test_nonfinite.py, line \d+: roots = .*', found.operation)
    said = nonfinite.describe(found)
    assert f'image {100 + BAD}, a batch of its own, has no finite loss, roots, gradient' in said
    assert 'the gradient of head/bias is the first that is not finite, of 4 that are not' in said
    finished = run_script('train', f'--replay={path}')
    assert (finished.code, finished.stdout) == (0, said + '\n')

    def refuse(*arguments, **options):
        raise ValueError('Checkify does not support batched while-loops')

    monkeypatch.setattr(nonfinite.checkify, 'checkify', refuse)
    record = nonfinite.read_record(path)
    assert nonfinite.first_nan(record, record.batch) == ''


def test_replay_of_a_step_that_is_finite_here_says_so(tmp_path, tiny_config, linear, monkeypatch):
    config, data = tiny_config(), loop.open_split(tiny_config().data, 'train')
    state = loop.initial_state(config, linear_detector(None))
    nonfinite.write_record(tmp_path / 'a' / '1.safetensors', config, data, 1, state, first_batches(config, 1)[0])
    monkeypatch.setattr(
        nonfinite, 'detector_of', lambda config, num_classes, axis_name=None: linear_detector(axis_name)
    )
    found = nonfinite.replay(tmp_path / 'a' / '1.safetensors')
    assert np.isfinite([found.loss, found.grad_norm]).all() and 'everything is finite here' in nonfinite.describe(found)


def test_read_record_names_what_it_cannot_read(tmp_path, tiny_config, linear, run_script):
    (tmp_path / 'cut').write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1')
    with pytest.raises(DataError, match=f'{tmp_path}/cut'):
        nonfinite.read_record(tmp_path / 'cut')
    nonfinite.write_entries(tmp_path / 'other', {'a': np.ones(2)}, {'step': '3'})
    with pytest.raises(DataError, match='other holds no batch: give a file that a training wrote into nonfinite/'):
        nonfinite.read_record(tmp_path / 'other')
    config, data = tiny_config(), loop.open_split(tiny_config().data, 'train')
    state = loop.initial_state(config, linear_detector(None))  # and the config is that of a RetinaNet
    nonfinite.write_record(tmp_path / 'a' / '1', config, data, 1, state, first_batches(config, 1)[0])
    with pytest.raises(DataError, match='a/1 is damaged .its variables are not those of its config'):
        nonfinite.read_record(tmp_path / 'a' / '1')
    finished = run_script('train', f'--replay={tmp_path}/nothing')
    assert finished.code == 1 and f'{tmp_path}/nothing' in finished.stderr
    finished = run_script('train')
    assert finished.code == 1 and 'detzoo train needs --config and --workdir' in finished.stderr


def test_skip_nonfinite_leaves_out_the_update_and_goes_on(tmp_path, tiny_config, poison):
    config = tiny_config(seed=SEED, training__skip_nonfinite=1, training__steps=STEP + 1)
    assert bad_steps(config) == [STEP]
    states = []
    for look in (STEP - 1, 1):
        with pytest.raises(Stopped):
            loop.train_and_evaluate(config, tmp_path, stop=AskedAt(look))
        states.append(saved(tmp_path)[1])
    before, after = states
    assert_same(after['variables'], before['variables'])
    assert (before['optimizer']['step'], after['optimizer']['step']) == (STEP - 1, STEP)
    loop.train_and_evaluate(config, tmp_path)
    rows = [row for row in read_metrics(tmp_path) if 'skipped' in row]
    assert [(row['step'], row['skipped']) for row in rows] == [(1, 0), (2, 0), (3, 1), (4, 0)]
    assert rows[STEP - 1]['loss'] is None and rows[STEP]['loss'] is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved(tmp_path)[1]))


def test_skip_nonfinite_ends_the_run_after_so_many_in_a_row(tmp_path, tiny_config, poison):
    poison(bad=None)  # all images
    config = tiny_config(training__skip_nonfinite=3)
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, stop=AskedAt(2))
    for _ in range(2):  # the log counts, also when the run goes on
        with pytest.raises(FloatingPointError, match='step 4, after 3 that were skipped: the loss is nan'):
            loop.train_and_evaluate(config, tmp_path)
        assert losses_of(tmp_path) == [None] * 3
    assert [path.name for path in (tmp_path / 'nonfinite').iterdir()] == ['4.safetensors']


def test_make_train_step_skips_nothing_by_default(tmp_path, tiny_config, linear):
    loop.train_and_evaluate(tiny_config(training__steps=1), tmp_path)
    assert 'skipped' not in read_metrics(tmp_path)[0]
