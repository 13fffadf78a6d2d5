"""Checkpoints: what was saved comes back, the newest stay, and nothing is saved that is not finite."""

import jax
import numpy as np
import pytest
from linear import assert_same, state_of

from detzoo.run.checkpoint import Checkpoints


@pytest.mark.parametrize('ema', [None, {'w': np.full((2, 3), 0.25, np.float32)}])
def test_checkpoints_restore_what_was_saved(tmp_path, ema):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    for step in (5, 10):
        checkpoints.save(state_of(step, step / 3, ema))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state_of(0, 0, ema))
    assert_same(restored, state_of(10, 10 / 3, ema))
    assert jax.tree.structure(restored) == jax.tree.structure(state_of(0, 0, ema))
    assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {np.dtype('int32'), np.dtype('float32')}
    for step in (5, None):
        found, variables = checkpoints.restore_variables(step)
        assert found == (step or 10)
        assert set(variables) == {'params', 'model_state'} | ({'ema_params'} if ema else set())
        np.testing.assert_array_equal(variables['params']['w'], np.full((2, 3), np.float32(found / 3)))
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 7 .*there are: \[5, 10\]'):
        checkpoints.restore_variables(7)
    checkpoints.close()


def test_checkpoints_keep_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 3):
        checkpoints.save(state_of(step))
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']


def test_checkpoints_keep_the_best_until_its_successor_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(state_of(step))
        checkpoints.best = min(step, 2)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 4]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)  # as a run that goes on
    checkpoints.best = 2
    checkpoints.save(state_of(5))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.best = 5
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(state_of(6))
    checkpoints.close()
    assert checkpoints.steps() == [5, 6]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_checkpoints_refuse_what_is_not_finite(tmp_path, bad):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(5))
    with pytest.raises(FloatingPointError, match=r"after step 6, .*params\['w'\] is not finite.*that of step 5"):
        checkpoints.save(state_of(6, bad))
    checkpoints.close()
    assert Checkpoints(tmp_path).latest_step() == 5
