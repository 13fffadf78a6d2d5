"""What a GPU computes in another way than a CPU, computed on the CPU: the same results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_matching import random_case as matching_case
from test_nms import oracle, random_case
from test_roi_features import GOLDEN, LEVEL, LEVELS, OPERATIONS, ROIS, SETTINGS, run, with_gradients

from detzoo.core import matching
from detzoo.core import nms as nms_module


@pytest.fixture(autouse=True)
def formulations_for_gpus(monkeypatch):
    """Makes programs that are traced from now on take the formulations for GPUs."""

    def choose(*args, default, cuda=None, **others):
        return (default if cuda is None else cuda)(*args)

    monkeypatch.setattr(jax.lax, 'platform_dependent', choose)


@pytest.mark.parametrize('rounds', [1, 3])
def test_nms_equals_loops_and_ends_early(monkeypatch, rounds):
    monkeypatch.setattr(nms_module, 'GPU_TILE', 20)  # three tiles, the last one padded
    monkeypatch.setattr(nms_module, 'GPU_ROUNDS', rounds)
    cases = [random_case(seed) for seed in range(6)]
    cases[2][3][:] = False
    batch = [np.stack(x) for x in zip(*cases)]
    for threshold, max_detections in ((0.1, 48), (0.5, 48), (0.3, 5)):
        function = functools.partial(nms_module.nms, iou_threshold=threshold, max_detections=max_detections)
        indices, kept = jax.jit(jax.vmap(function))(*batch)
        for i, case in enumerate(cases):
            assert indices[i][kept[i]].tolist() == oracle(*case, threshold, max_detections)


@pytest.mark.parametrize('name', ['align', 'align_adaptive_max', 'pool'])
def test_roi_features_and_their_gradients_are_those_of_the_cpu(name, monkeypatch):
    function = jax.jit(jax.vmap(functools.partial(with_gradients.__wrapped__(name, **SETTINGS))))
    levels = [np.stack([x, x[::-1]]) for x in LEVELS]
    batch = levels, np.stack([ROIS, ROIS[::-1]]), np.stack([LEVEL, LEVEL[::-1]]), np.stack([GOLDEN['gradient']] * 2)
    result, gradients, _ = function(*batch)
    monkeypatch.undo()
    for i in range(2):
        expected, its_gradients = run(name, [x[i] for x in levels], *(x[i] for x in batch[1:]))
        np.testing.assert_allclose(result[i], expected, atol=2e-6)
        for ours, theirs in zip(gradients, its_gradients):
            assert np.any(ours[i])
            np.testing.assert_allclose(ours[i], theirs, atol=2e-5)


@pytest.mark.parametrize('name', ['align_adaptive_max', 'pool'])
def test_the_gradient_goes_to_the_first_of_equals(name):
    roi = np.float32([[16, 16, 47, 63]])  # one bin with cells of rows 1..3 and columns 1..2, or samples of them
    settings = dict(strides=(16,), output_size=1)
    total = lambda feature: OPERATIONS[name]([feature], roi, np.zeros(1, np.int32), **settings).sum()
    gradient = jax.jit(jax.grad(total))(jnp.zeros((5, 5, 1), jnp.float32))
    assert gradient[1, 1] > 0 and gradient.sum() == pytest.approx(1) and not gradient[3:].any()


@pytest.mark.parametrize('match_best_anchors', [False, True])
def test_matching_equals_that_of_the_cpu(monkeypatch, match_best_anchors, make_ground_truth):
    cases = [matching_case(make_ground_truth, seed) for seed in range(20)]
    cases[3][1].valid[0] = False  # a row of padding before the objects
    batch = jax.tree.map(lambda *rows: np.stack(rows), *cases)
    rule = dict(positive_iou=0.5, negative_iou=0.3, match_best_anchors=match_best_anchors)
    match_all = jax.vmap(functools.partial(matching.match_by_threshold, **rule))
    matched = match_all(*batch)
    monkeypatch.undo()
    np.testing.assert_array_equal(matched, match_all(*batch))
    assert {matching.NEGATIVE, matching.IGNORE, 0, 1, 2} <= set(np.unique(matched))
