"""Torchvision's names of weights, and what becomes of each entry of its detectors."""

import jax
import numpy as np
import pytest
from tiny import with_backbone
from torchvision_golden import (
    FASTER_RCNN,
    FASTER_RCNN_V2,
    MASK_RCNN,
    MASK_RCNN_V2,
    MOBILENET,
    RETINANET,
    SSD,
    SSDLITE,
    entries_of,
    template_of,
)

from detzoo.detectors import make_detector
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision import PEERS


@pytest.fixture(scope='module')
def entries():
    return entries_of(RETINANET)


def old_name(name):
    """The name of an entry in a file from before convolutions were wrapped."""
    parts = name.split('.')
    if 'inner_blocks' in parts or 'layer_blocks' in parts:
        return '.'.join(parts[:-2] + parts[-1:])
    if name.startswith('rpn.head.conv'):
        return f'rpn.head.conv.{parts[-1]}'
    if 'mask_head' in parts:
        return f'roi_heads.mask_head.mask_fcn{int(parts[2]) + 1}.{parts[-1]}'
    if parts[0] == 'head' and parts[2] == 'conv':
        return '.'.join([*parts[:3], str(2 * int(parts[3])), parts[-1]])  # every second one was a ReLU
    return name


def test_retinanet_variables_of_old_names_are_those_of_new_names(entries):
    old = {old_name(name): value for name, value in entries.items()}
    assert 'backbone.fpn.inner_blocks.0.weight' in old and 'head.regression_head.conv.6.bias' in old
    assert len(old) == len(entries)
    filled = fill(PEERS[RETINANET].mapping, old, template_of()).variables
    jax.tree.map(
        np.testing.assert_array_equal, filled, fill(PEERS[RETINANET].mapping, entries, template_of()).variables
    )
    assert {
        row.foreign for row in fill(PEERS[RETINANET].mapping, old, template_of()).rows
    } == old.keys()  # as the file names them


def test_retinanet_variables_names_missing_entry(entries):
    del (entries := dict(entries))['head.regression_head.bbox_reg.bias']
    with pytest.raises(ValueError, match=r'a\.pth: .*missing: head\.regression_head\.bbox_reg\.bias\. Give a file'):
        fill(PEERS[RETINANET].mapping, entries, template_of(), source='a.pth')


def test_retinanet_variables_are_not_those_of_a_quantised_file(entries):
    name = 'head.regression_head.bbox_reg.weight'
    with pytest.raises(ValueError, match=r'quantised: head\.regression_head\.bbox_reg\.weight int8\. '):
        fill(PEERS[RETINANET].mapping, {**entries, name: entries[name].astype(np.int8)}, template_of())
    half = {**entries, name: entries[name].astype(np.float16)}
    rows = {row.foreign: row.transform for row in fill(PEERS[RETINANET].mapping, half, template_of()).rows}
    assert rows[name] == 'OIHW -> HWIO; float16 -> float32'


def test_variables_without_a_wrapper_in_their_names(entries):
    with pytest.raises(ValueError, match=r"All names begin with 'module\.': save the state dict without it"):
        fill(PEERS[RETINANET].mapping, {f'module.{name}': value for name, value in entries.items()}, template_of())


@pytest.mark.parametrize('change', [None, lambda x: x[:3], lambda x: x[0, 0, 0, 0]], ids=['absent', 'cut', 'scalar'])
def test_ssd_variables_name_what_their_anchors_are_counted_by(change):
    entries = dict(entries_of(SSDLITE))
    name = 'head.regression_head.module_list.0.1.weight'
    whole = entries.pop(name)
    if change:
        entries[name] = np.asarray(change(whole))
    with pytest.raises(
        ValueError, match=r'a\.pth: not the weights of this model: .*\.module_list\.0\.1\.(weight|bias)'
    ):
        fill(PEERS[SSDLITE].mapping, entries, template_of(SSDLITE), source='a.pth')


def test_retinanet_variables_names_unused_entry(entries):
    with pytest.raises(ValueError, match=r'unused: head\.third\.weight\. '):
        fill(PEERS[RETINANET].mapping, {**entries, 'head.third.weight': np.zeros(3)}, template_of())


def test_retinanet_variables_names_entry_of_both_names(entries):
    name = 'backbone.fpn.layer_blocks.2.weight'
    with pytest.raises(ValueError, match=r'unused: backbone\.fpn\.layer_blocks\.2\.weight\. '):
        fill(
            PEERS[RETINANET].mapping, {**entries, name: entries['backbone.fpn.layer_blocks.2.0.weight']}, template_of()
        )


def test_retinanet_variables_names_entry_of_another_shape(entries):
    message = r'of another shape: head\.classification_head\.cls_logits\.bias \(819,\) where the model has \(27,\)'
    with pytest.raises(ValueError, match=message):
        fill(PEERS[RETINANET].mapping, entries, template_of(num_classes=3))


def test_retinanet_variables_of_a_deeper_file_lists_a_few_unused_entries(entries):
    deeper = {f'backbone.body.layer3.{block}.conv1.weight': np.zeros((256, 1024, 1, 1)) for block in range(6, 23)}
    with pytest.raises(ValueError, match=r'unused: backbone\.body\.layer3\.6\.conv1\.weight, .* and 13 more\. '):
        fill(PEERS[RETINANET].mapping, {**entries, **deeper}, template_of())


def test_rcnns_have_the_published_counts_of_parameters_without_boxes_and_masks_of_background():
    # Torchvision lists 41,755,286 and 44,401,393 trained and frozen ones, of which 4 * (1024 + 1) are background's box, and
    # 256 + 1 its mask; here norms are no parameters.
    norms = sum(2 * len(value) for name, value in entries_of(FASTER_RCNN).items() if name.endswith('running_mean'))
    counts = [sum(x.size for x in jax.tree.leaves(template_of(name)[0])) for name in (FASTER_RCNN, MASK_RCNN)]
    assert norms == 53_120
    assert counts == [41_755_286 - 4 * 1025, 44_401_393 - 4 * 1025 - 257]


def test_mask_rcnn_variables_of_old_names_are_those_of_new_names():
    entries = entries_of(MASK_RCNN)
    old = {old_name(name): value for name, value in entries.items()}
    assert {'backbone.fpn.inner_blocks.0.weight', 'rpn.head.conv.bias', 'roi_heads.mask_head.mask_fcn4.weight'} < set(
        old
    )
    assert len(old) == len(entries)
    filled = fill(PEERS[MASK_RCNN].mapping, old, template_of(MASK_RCNN)).variables
    jax.tree.map(
        np.testing.assert_array_equal, filled, fill(PEERS[MASK_RCNN].mapping, entries, template_of(MASK_RCNN)).variables
    )


def test_mask_rcnn_variables_move_background_to_the_end_and_leave_out_its_boxes_and_masks():
    entries = entries_of(MASK_RCNN)
    params, _ = fill(PEERS[MASK_RCNN].mapping, entries, template_of(MASK_RCNN)).variables
    head, predictor = params['box_head'], 'roi_heads.box_predictor'
    scores, boxes = entries[f'{predictor}.cls_score.weight'], entries[f'{predictor}.bbox_pred.weight']
    np.testing.assert_array_equal(head['cls_logits']['kernel'][7], np.append(scores[1:, 7], scores[0, 7]))
    np.testing.assert_array_equal(head['box_deltas']['kernel'][7], boxes[4:, 7])
    masks = entries['roi_heads.mask_predictor.mask_fcn_logits.bias']
    np.testing.assert_array_equal(params['mask_head']['logits']['bias'], masks[1:])


@pytest.mark.parametrize('name, layer', [(FASTER_RCNN, 'fc6'), (FASTER_RCNN_V2, '5')])
def test_faster_rcnn_variables_read_roi_features_channels_last(name, layer):
    entries = entries_of(name)
    params, _ = fill(PEERS[name].mapping, entries, template_of(name)).variables
    theirs = entries[f'roi_heads.box_head.{layer}.weight'].reshape(1024, 256, 7, 7)
    ours = params['trunk']['fc1']['kernel'].reshape(7, 7, 256, 1024)
    np.testing.assert_array_equal(ours[2, 5, 9], theirs[:, 9, 2, 5])


@pytest.mark.parametrize(
    'name, missing',
    [
        (FASTER_RCNN, 'rpn.head.bbox_pred.weight'),
        (FASTER_RCNN, 'roi_heads.box_predictor.cls_score.bias'),
        (MASK_RCNN, 'roi_heads.mask_predictor.conv5_mask.weight'),
        (MASK_RCNN, 'backbone.fpn.layer_blocks.0.0.weight'),
        (FASTER_RCNN_V2, 'rpn.head.conv.1.0.weight'),
        (MASK_RCNN_V2, 'backbone.fpn.inner_blocks.3.1.running_mean'),
        (MASK_RCNN_V2, 'roi_heads.box_head.2.1.weight'),
        (MASK_RCNN_V2, 'roi_heads.mask_head.3.0.weight'),
        (MOBILENET, 'backbone.body.13.block.2.fc1.bias'),
    ],
)
def test_rcnn_variables_name_missing_entry(name, missing):
    del (entries := dict(entries_of(name)))[missing]
    with pytest.raises(ValueError, match=rf'a\.pth: .*missing: {missing}.*\. Give a file'):
        fill(PEERS[name].mapping, entries, template_of(name), source='a.pth')


def test_faster_rcnn_variables_name_entries_of_a_mask_rcnn_as_unused():
    message = r'unused: roi_heads\.mask_head\.0\.0\.weight, .* and 8 more\. Give a file'
    with pytest.raises(ValueError, match=message):
        fill(PEERS[FASTER_RCNN].mapping, entries_of(MASK_RCNN), template_of(FASTER_RCNN))


def test_faster_rcnn_variables_name_entries_of_another_number_of_classes():
    wrong = r'cls_score\.bias \(91,\) where the model has \(4,\)'
    with pytest.raises(ValueError, match=rf'of another shape: .*roi_heads\.box_predictor\.{wrong}'):
        fill(PEERS[FASTER_RCNN].mapping, entries_of(FASTER_RCNN), template_of(FASTER_RCNN, num_classes=3))


@pytest.mark.parametrize(
    'changes',
    [
        dict(fpn_features=None, rpn=dict(anchor_sizes=((32.0,),))),
        with_backbone(PEERS[MASK_RCNN].model, norm='group_norm'),
        dict(mask=dict(head='mlp', layers=1)),
        dict(fpn_norm='group_norm'),
        dict(trunk_conv_layers=1, trunk_norm='group_norm'),
    ],
    ids=['C4', 'group_norm', 'mlp', 'fpn_norm', 'trunk_norm'],
)
def test_mask_rcnn_variables_refuse_what_torchvision_has_not(changes):
    detector = make_detector(**{**PEERS[MASK_RCNN].model, **changes})
    template = jax.eval_shape(lambda rng: detector.init(rng, (64, 64)), jax.random.key(0))
    with pytest.raises(ValueError, match='torchvision has no such'):
        fill(PEERS[MASK_RCNN].mapping, entries_of(MASK_RCNN), template)


@pytest.mark.parametrize('name', [SSD, SSDLITE])
def test_ssd_variables_move_background_to_the_end(name):
    entries = entries_of(name)
    params, _ = fill(PEERS[name].mapping, entries, template_of(name)).variables
    place = 'head.classification_head.module_list.2' + ('.1' if name == SSDLITE else '')
    theirs, ours = entries[f'{place}.bias'].reshape(6, 91), params['cls_head']['level3']['conv']['bias'].reshape(6, 91)
    np.testing.assert_array_equal(ours[:, :90], theirs[:, 1:])
    np.testing.assert_array_equal(ours[:, 90], theirs[:, 0])
    kernel = params['cls_head']['level3']['conv']['kernel'][0, 0, 5].reshape(6, 91)
    np.testing.assert_array_equal(kernel[3, 90], entries[f'{place}.weight'][3 * 91, 5, 0, 0])


@pytest.mark.parametrize(
    'name, missing',
    [
        (SSD, 'backbone.scale_weight'),
        (SSD, 'backbone.extra.0.7.3.bias'),
        (SSDLITE, 'backbone.features.1.0.2.fc1.bias'),
    ],
)
def test_ssd_variables_names_missing_entry(name, missing):
    del (entries := dict(entries_of(name)))[missing]
    with pytest.raises(ValueError, match=f'missing: {missing}. Give a file'):
        fill(PEERS[name].mapping, entries, template_of(name))
