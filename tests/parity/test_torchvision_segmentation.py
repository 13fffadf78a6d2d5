"""Parity with torchvision's segmenters: our outputs and losses against those that scripts/dev/make_parity_fixtures.py stored."""

import functools

import jax
import numpy as np
import pytest
from torchvision_golden import entries_of, golden_of

from detzoo.core.matching import IGNORE
from detzoo.parity import torchvision_segmentation as segmentation
from detzoo.segmenters import make_segmenter
from detzoo.segmenters.pixels import labels_of, paint_batch
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision_segmentation import PEERS

NAMES = ('fcn_resnet50', 'deeplabv3_resnet50')


@functools.cache
def variables_of(name):
    return segmentation.fill_segmenter(name, entries_of(name))


def template_of(name, **changes):
    segmenter = make_segmenter(**PEERS[name].model | changes)
    return jax.eval_shape(lambda rng: segmenter.init(rng, (64, 64)), jax.random.key(0))


@pytest.mark.parametrize('name', NAMES)
def test_tensors_are_torchvisions(name):
    golden = golden_of(name)
    tensors = segmentation.run_segmenter(name, *variables_of(name), golden['image'])
    assert tensors['probabilities'].shape == (1, 61, 93, 21)
    for key, tensor in tensors.items():
        values, largest = golden[f'{key}.values'], golden[f'{key}.max']
        assert abs(tensor.ravel()[:: golden[f'{key}.step']] - values).max() <= 1e-4 * largest, key
        assert abs(tensor).max() == pytest.approx(largest, rel=1e-4), key
    assert len(np.unique(tensors['probabilities'].argmax(axis=-1))) > 5


def test_losses_are_torchvisions():
    name = 'fcn_resnet50'
    golden = golden_of(name)
    batch, labels = segmentation.drawn_training(*golden['trained'].tolist())
    np.testing.assert_array_equal(labels_of(paint_batch(batch), batch, 20), labels)
    assert {IGNORE, 20} < set(np.unique(labels))
    losses = segmentation.segmenter_losses(name, *variables_of(name), batch)
    assert losses == {key: pytest.approx(golden[f'loss.{key}'].item(), rel=1e-3) for key in losses}


@pytest.mark.parametrize(
    'name, parameters',  # torchvision 0.29.1, num_params of the published weights
    [
        ('fcn_resnet50', 35_322_218),
        ('fcn_resnet101', 54_314_346),
        ('deeplabv3_resnet50', 42_004_074),
        ('deeplabv3_resnet101', 60_996_202),
    ],
)
def test_parameter_counts_are_torchvisions(name, parameters):
    params, _ = template_of(name)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize('name', NAMES)
def test_fill_leaves_counters_alone(name):
    entries = entries_of(name) | {'backbone.bn1.num_batches_tracked': np.int64(7)}
    left = [row for row in fill(PEERS[name].mapping, entries, template_of(name)).rows if not row.ours]
    assert [row.transform for row in left] == ['left: a counter of training']


def test_fill_refuses_other_models():
    with pytest.raises(ValueError, match='not the weights of this model: missing: '):
        fill(PEERS['deeplabv3_resnet50'].mapping, entries_of('fcn_resnet50'), template_of('deeplabv3_resnet50'))
    with pytest.raises(ValueError, match="set the model's head_norm to 'batch_norm'"):
        fill(
            PEERS['fcn_resnet50'].mapping,
            entries_of('fcn_resnet50'),
            template_of('fcn_resnet50', head_norm='group_norm'),
        )
