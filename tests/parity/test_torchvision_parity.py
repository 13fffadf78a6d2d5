"""Parity with torchvision: our outputs and losses against those that scripts/dev/make_parity_fixtures.py stored."""

import functools

import numpy as np
import pytest
from torchvision_golden import MASK_RCNN, MASK_RCNN_V2, entries_of, golden_of, template_of

from detzoo.detectors import make_detector
from detzoo.parity.compare import match_detections
from detzoo.parity.torchvision import detector_losses, drawn_training, in_order_of, run_backbone, run_detector
from detzoo.parity.torchvision_models import VIEWS, reduced_peer
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision import PEERS


@functools.cache
def reduced_of(name):
    """(detector, params, model_state) of a counterpart."""
    peer = reduced_peer(name)
    return make_detector(**peer.model), *fill(peer.mapping, entries_of(name), template_of(name)).variables


@functools.cache
def outputs_of(name):
    """Tensors and detections of a counterpart on the stored image, RoIs in the order of the stored proposals."""
    golden = golden_of(name)
    image = golden['enlarged'].astype(np.float32)
    tensors, detections = run_detector(name, *reduced_of(name), image, image.shape[:2])
    if 'proposals' in tensors:
        proposals = golden['proposals.values'].reshape(-1, 4)
        assert len(tensors['proposals']) == len(proposals)
        tensors = in_order_of(proposals, tensors)
    return tensors, detections


@pytest.mark.parametrize('name, stage', [(name, stage) for name in PEERS for stage in VIEWS[name].tensors])
def test_tensors_are_torchvisions(name, stage):
    golden, tensor = golden_of(name), outputs_of(name)[0][stage].ravel()
    values, limit = golden[f'{stage}.values'], (1e-6 if stage == 'anchors' else 1e-4) * golden[f'{stage}.max']
    assert abs(tensor[:: golden[f'{stage}.step']] - values).max() <= limit
    assert abs(tensor).max() == pytest.approx(golden[f'{stage}.max'], rel=1e-4)  # of all values, not of the stored ones


@pytest.mark.parametrize('name', PEERS)
def test_detections_are_torchvisions(name):
    golden = golden_of(name)
    agreement = match_detections(outputs_of(name)[1], golden, limit=reduced_peer(name).max_detections)
    assert agreement.theirs + agreement.empty == len(golden['scores']) >= 50
    assert agreement.holds(), agreement


@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v2'])
def test_backbones_compute_what_torchvisions_classifiers_compute(name):
    golden = golden_of(name)
    outputs = run_backbone(name, entries_of(name), golden['image'])
    assert [f'{part}.step' in golden for part in outputs] == [True] * len(outputs) and len(outputs) >= 2
    for part, output in outputs.items():
        values = output.ravel()[:: golden[f'{part}.step']]
        np.testing.assert_allclose(
            values, golden[f'{part}.values'], rtol=0, atol=1e-4 * golden[f'{part}.max'], err_msg=part
        )
        assert abs(output).max() == pytest.approx(golden[f'{part}.max'], rel=1e-4)


@pytest.mark.parametrize('name', [MASK_RCNN, MASK_RCNN_V2])
def test_detections_of_mask_rcnn_have_masks_that_vary(name):
    golden = golden_of(name)
    boxes, masks = golden['boxes'], golden['masks']
    share = masks.sum(axis=(1, 2)) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert masks.shape == (50, *golden['enlarged'].shape[:2])
    assert np.quantile(share, 0.1) < 0.5 < np.quantile(share, 0.9)  # else their IoU would say nothing
    assert len(set(golden['labels'])) > 20


@pytest.mark.parametrize('name', [name for name in PEERS if VIEWS[name].losses])
def test_losses_are_torchvisions(name):
    golden = golden_of(name)
    losses = detector_losses(
        name, *reduced_of(name), *drawn_training(golden['enlarged'], PEERS[name].model['num_classes'])
    )
    assert losses.keys() == {key.removeprefix('loss.') for key in golden if key.startswith('loss.')}
    assert losses == {key: pytest.approx(golden[f'loss.{key}'].item(), rel=1e-3) for key in losses}
