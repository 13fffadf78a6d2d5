"""What becomes of matches: targets, a balanced sample, hard negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import matching
from detzoo.core.matching import IGNORE, NEGATIVE


def test_gather_targets_by_hand(make_ground_truth):
    anchors = np.float32([[0, 0, 8, 8], [1, 1, 9, 9], [2, 2, 7, 7], [3, 3, 6, 6]])
    gt = make_ground_truth([[0, 0, 5, 5], [1, 0, 6, 5]], labels=[4, 2], rows=3)
    gt.boxes[2] = np.nan
    labels, boxes = matching.gather_targets(np.int32([1, NEGATIVE, 0, IGNORE]), anchors, gt, background=9)
    assert labels.tolist() == [2, 9, 4, 9]
    np.testing.assert_array_equal(boxes, [gt.boxes[1], anchors[1], gt.boxes[0], anchors[3]])


MIXED = np.array([NEGATIVE] * 40 + [IGNORE] * 10 + [0, 1, 2, 0, 1, 2, 0, 1, 2, 3] + [NEGATIVE] * 40, np.int32)
sample = jax.jit(matching.sample_balanced, static_argnames=('count', 'positive_share'))


@pytest.mark.parametrize(
    'matched, count, share, positives, negatives',
    [
        (MIXED, 16, 0.5, 8, 8),
        (MIXED, 16, 0.25, 4, 12),
        (MIXED, 15, 0.25, 3, 12),  # 3.75 positives at most
        (MIXED, 60, 0.5, 10, 50),  # there are no more positives: negatives fill up
        (MIXED, 100, 0.5, 10, 80),
        (MIXED, 16, 0.0, 0, 16),
        (np.where(MIXED == NEGATIVE, IGNORE, MIXED), 16, 0.5, 8, 0),  # positives do not
        (np.full(7, IGNORE, np.int32), 4, 0.5, 0, 0),
    ],
)
def test_sample_balanced_counts(matched, count, share, positives, negatives):
    for seed in range(5):
        drawn = np.asarray(sample(matched, jax.random.key(seed), count=count, positive_share=share))
        assert drawn.dtype == bool and drawn.shape == matched.shape
        assert (drawn & (matched >= 0)).sum() == positives and (drawn & (matched == NEGATIVE)).sum() == negatives
        assert not drawn[matched == IGNORE].any()


def test_sample_balanced_is_fair():
    # Of 10 positives 4 are drawn, of 80 negatives 12, 2000 times: shares of 0.4 and 0.15, deviations of 0.011 and 0.008.
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.jit(jax.vmap(lambda key: matching.sample_balanced(MIXED, key, count=16, positive_share=0.25)))(keys)
    share = np.asarray(drawn).mean(axis=0)
    np.testing.assert_allclose(share[MIXED >= 0], 0.4, atol=0.05)
    np.testing.assert_allclose(share[MIXED == NEGATIVE], 0.15, atol=0.04)
    assert not (np.asarray(drawn)[0] == np.asarray(drawn)[1]).all()


def test_sample_balanced_does_not_depend_on_rows_that_follow():
    longer = np.concatenate([MIXED, np.full(30, IGNORE, np.int32)])
    draws = [sample(matched, jax.random.key(1), count=16, positive_share=0.5) for matched in (MIXED, longer)]
    np.testing.assert_array_equal(draws[0], draws[1][: len(MIXED)])


def test_keep_hard_negatives_by_hand():
    # Two positives keep 1.5 x 2 = 3 negatives, those of losses 9, 5 and 4; what was ignored or positive stays.
    matched = np.int32([NEGATIVE, 3, NEGATIVE, NEGATIVE, IGNORE, 0, NEGATIVE, NEGATIVE])
    loss = np.float32([5, 99, 1, 9, 99, 99, 4, 0])
    kept = jax.jit(matching.keep_hard_negatives, static_argnums=2)(matched, loss, 1.5)
    assert kept.tolist() == [NEGATIVE, 3, IGNORE, NEGATIVE, IGNORE, 0, NEGATIVE, IGNORE]
    assert kept.dtype == np.int32


def test_keep_hard_negatives_without_positives_keeps_none():
    matched = np.int32([NEGATIVE, IGNORE, NEGATIVE])
    assert matching.keep_hard_negatives(matched, np.ones(3, np.float32), 3.0).tolist() == [IGNORE] * 3


def test_keep_hard_negatives_gives_the_loss_no_gradient():
    matched = np.int32([NEGATIVE, 0, NEGATIVE])

    def total(loss):
        return jnp.where(matching.keep_hard_negatives(matched, loss, 1.0) == NEGATIVE, loss, 0).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([1.0, 5.0, 2.0])), [0, 0, 1])
