"""Parity with torchvision: golden outputs, made by scripts/dev/make_parity_fixtures.py, and the names of its weights."""

import functools
import json
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from detzoo.backbones.mobilenet import mobilenet_v3_large
from detzoo.backbones.resnet import ResNet
from detzoo.backbones.vgg import VGG16
from detzoo.detectors import make_detector
from detzoo.parity.compare import count_partners, match_detections
from detzoo.parity.torchvision import (
    CLASSIFIERS,
    VIEWS,
    detector_losses,
    drawn_entries,
    drawn_training,
    in_order_of,
    reduced_peer,
    run_backbone,
    run_detector,
)
from detzoo.training.finetune import read_learnt
from detzoo.weights import torchvision
from detzoo.weights.mapping import fill, flatten, report
from detzoo.weights.torchvision import PEERS, load_backbone

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
(
    RETINANET,
    SSD,
    SSDLITE,
    FASTER_RCNN,
    MASK_RCNN,
    RETINANET_V2,
    FASTER_RCNN_V2,
    MASK_RCNN_V2,
    MOBILENET,
    MOBILENET_320,
) = PEERS


@functools.cache
def template_of(name=RETINANET, **changes):
    """Shapes of (params, model_state) of a counterpart, or of a changed one."""
    detector = make_detector(**{**PEERS[name].model, **changes})
    return jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))


@functools.cache
def golden_of(name):
    """The arrays of a fixture, and 'enlarged', the image that the model saw."""
    golden = dict(np.load(FIXTURES / f'{name}.npz'))
    if name in CLASSIFIERS:
        return golden
    golden['enlarged'] = golden['image'].repeat(golden['repeat'], axis=0).repeat(golden['repeat'], axis=1)
    if 'masks' in golden:
        golden['masks'] = np.unpackbits(golden['masks'], axis=-1, count=golden['enlarged'].shape[1]).astype(bool)
    return golden


@functools.cache
def entries_of(name):
    return drawn_entries(json.loads(str(golden_of(name)['shapes'])))


@functools.cache
def reduced_of(name):
    """(detector, params, model_state) of a counterpart."""
    peer = reduced_peer(name)
    return make_detector(**peer.model), *fill(peer.mapping, entries_of(name), template_of(name))


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


@pytest.fixture(scope='module')
def entries():
    return entries_of(RETINANET)


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


def detections_of(scores, shift=0):
    """Boxes far apart, the best first, the last one `shift` boxes aside."""
    corners = 20 * np.arange(len(scores))
    corners[-1] += 20 * shift
    boxes = np.stack([corners, corners, corners + 10, corners + 10], axis=1).astype(np.float32)
    return dict(boxes=boxes, labels=np.zeros(len(scores), np.int32), scores=np.float32(scores))


@pytest.mark.parametrize(
    'theirs, limit, tied',
    [
        ([0.9, 0.5, 0.5001], 3, 1),  # the limit cuts a list in which 0.5 and 0.5001 may stand in either order
        ([0.9, 0.5, 0.51], 3, 0),  # this one should be there
        ([0.9, 0.5, 0.5001], 4, 0),  # nothing was cut
    ],
)
def test_detections_that_tie_for_the_last_place_may_be_others(theirs, limit, tied):
    agreement = match_detections(detections_of([0.9, 0.5, 0.5], shift=1), detections_of(theirs), limit=limit)
    assert (agreement.matched, agreement.tied) == (2, tied) and agreement.holds() == bool(tied)


@pytest.mark.parametrize('height, shift, apart', [(1, 0.005, 0), (1, 0.02, 1), (100, 0.02, 0)])
def test_boxes_are_the_same_by_their_iou_or_to_a_hundredth_of_a_pixel(height, shift, apart):
    found = dict(boxes=np.float32([[0, 0, 50, height]]), labels=np.zeros(1, int), scores=np.ones(1))
    other = found | dict(boxes=found['boxes'] + np.float32([0, 0, 0, shift]))
    agreement = match_detections(other, found, limit=9)
    assert (agreement.matched, agreement.apart) == (1, apart) and agreement.holds() == (not apart)


@pytest.mark.parametrize('shift, cut', [(0.001, 0), (-0.001, 1)])
def test_masks_are_compared_where_they_are_pasted_into_the_same_pixels(shift, cut):
    # With its border of a pixel of 28 the box reaches from 55 to 85; from 54.999, it is cut to 54 and 84.
    found = dict(
        boxes=np.float32([[56, 56, 84, 84]]), labels=np.zeros(1, int), scores=np.ones(1), masks=np.ones((1, 9, 9), bool)
    )
    other = found | dict(boxes=found['boxes'] + np.float32(shift), masks=~found['masks'])
    agreement = match_detections(other, found, limit=9)
    assert (agreement.matched, agreement.cut, agreement.min_mask_iou) == (1, cut, cut) and agreement.holds() == bool(
        cut
    )


def test_detections_that_are_fewer_are_no_agreement():
    agreement = match_detections(detections_of([0.9]), detections_of([0.9, 0.5, 0.5]), limit=3)
    assert (agreement.ours, agreement.theirs, agreement.matched) == (1, 3, 1) and not agreement.holds()


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
    filled = fill(PEERS[RETINANET].mapping, old, template_of())
    jax.tree.map(np.testing.assert_array_equal, filled, fill(PEERS[RETINANET].mapping, entries, template_of()))
    assert {
        row.foreign for row in report(PEERS[RETINANET].mapping, old, template_of())
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
    rows = {row.foreign: row.transform for row in report(PEERS[RETINANET].mapping, half, template_of())}
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
    filled = fill(PEERS[MASK_RCNN].mapping, old, template_of(MASK_RCNN))
    jax.tree.map(np.testing.assert_array_equal, filled, fill(PEERS[MASK_RCNN].mapping, entries, template_of(MASK_RCNN)))


def test_mask_rcnn_variables_move_background_to_the_end_and_leave_out_its_boxes_and_masks():
    entries = entries_of(MASK_RCNN)
    params, _ = fill(PEERS[MASK_RCNN].mapping, entries, template_of(MASK_RCNN))
    head, predictor = params['box_head'], 'roi_heads.box_predictor'
    scores, boxes = entries[f'{predictor}.cls_score.weight'], entries[f'{predictor}.bbox_pred.weight']
    np.testing.assert_array_equal(head['cls_logits']['kernel'][7], np.append(scores[1:, 7], scores[0, 7]))
    np.testing.assert_array_equal(head['box_deltas']['kernel'][7], boxes[4:, 7])
    masks = entries['roi_heads.mask_predictor.mask_fcn_logits.bias']
    np.testing.assert_array_equal(params['mask_head']['logits']['bias'], masks[1:])


@pytest.mark.parametrize('name, layer', [(FASTER_RCNN, 'fc6'), (FASTER_RCNN_V2, '5')])
def test_faster_rcnn_variables_read_roi_features_channels_last(name, layer):
    entries = entries_of(name)
    params, _ = fill(PEERS[name].mapping, entries, template_of(name))
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
        dict(norm='group_norm'),
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
    params, _ = fill(PEERS[name].mapping, entries, template_of(name))
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


@pytest.fixture(scope='module')
def classifier(entries, tmp_path_factory):
    """A file like those of torchvision's classifiers, and its entries."""
    body = {name.removeprefix('backbone.body.'): value for name, value in entries.items() if 'body' in name}
    extra = {'fc.weight': np.ones((9, 2048)), 'fc.bias': np.ones(9), 'bn1.num_batches_tracked': np.int64([7])}
    path = tmp_path_factory.mktemp('weights') / 'resnet50.safetensors'
    safetensors.numpy.save_file({**body, **extra}, path)
    return str(path), body


def test_load_backbone_fills_frozen_batch_norm(classifier, entries):
    path, _ = classifier
    params, model_state = template_of()
    filled, statistics = load_backbone(path, params, model_state)
    expected, expected_statistics = fill(PEERS[RETINANET].mapping, entries, (params, model_state))
    jax.tree.map(np.testing.assert_array_equal, filled['backbone'], expected['backbone'])
    jax.tree.map(np.testing.assert_array_equal, statistics, expected_statistics)
    assert filled['fpn'] is params['fpn'] and params['backbone'] is not filled['backbone']


def test_load_backbone_fills_batch_norm(classifier):
    path, body = classifier
    filled, statistics = load_backbone(path, *template_of(norm='batch_norm'))
    block = filled['backbone']['stage2_block1']
    np.testing.assert_array_equal(block['shortcut_norm']['scale'], body['layer2.0.downsample.1.weight'])
    np.testing.assert_array_equal(block['norm3']['bias'], body['layer2.0.bn3.bias'])
    np.testing.assert_array_equal(block['conv2']['kernel'][2, 0, 5, 7], body['layer2.0.conv2.weight'][7, 5, 2, 0])
    norm = statistics['batch_stats']['backbone']['stem_norm']
    np.testing.assert_array_equal(norm['mean'], body['bn1.running_mean'])
    np.testing.assert_array_equal(norm['var'], body['bn1.running_var'])
    leaves = len(jax.tree.leaves((filled['backbone'], statistics)))
    assert leaves == len(body)


def test_load_backbone_fills_the_last_stage_that_rois_run_through(classifier):
    detector = make_detector('faster_rcnn', num_classes=3, fpn_features=None, rpn=dict(anchor_sizes=((32.0,),)))
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    filled, statistics = load_backbone(classifier[0], params, model_state)
    whole, whole_statistics = load_backbone(classifier[0], *template_of())
    for expected, found in ((whole, filled), (whole_statistics['frozen'], statistics['frozen'])):
        assert set(found['backbone']) | set(found['trunk']) == set(expected['backbone'])
        assert set(found['trunk']) == {f'stage4_block{i}' for i in (1, 2, 3)}
        for name, module in {**found['backbone'], **found['trunk']}.items():
            jax.tree.map(np.testing.assert_array_equal, module, expected['backbone'][name])
    assert filled['box_head'] is params['box_head']


def test_load_backbone_refuses_group_norm(classifier):
    with pytest.raises(ValueError, match="no such network with group norm: set the model's norm to"):
        load_backbone(classifier[0], *template_of(norm='group_norm'))


def test_load_backbone_of_another_depth_names_file_entries_and_remedy(classifier):
    wrong = r'.*layer2\.0\.conv1\.weight \(128, 256, 1, 1\) where the model has \(128, 64, 3, 3\), .* and \d+ more'
    message = rf'resnet50\.safetensors: .* of another shape: {wrong}; unused: layer1\.0\.bn3\.bias.*\. Give a file'
    with pytest.raises(ValueError, match=message):
        load_backbone(classifier[0], *template_of(depth=18))


def test_load_backbone_of_a_damaged_file_names_it(tmp_path):
    path = tmp_path / 'resnet50.pth'
    path.write_bytes(b'PK' + bytes(100))
    with pytest.raises(ValueError, match=r'resnet50\.pth: '):
        load_backbone(str(path), {'backbone': {}}, {})


def test_a_backbone_whose_end_was_not_written_is_refused(tmp_path):
    detector = make_detector('yolo_v3', num_classes=3, width=0.125, stages=4)
    template = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    path = tmp_path / 'darknet53.conv.74'
    numbers = sum(leaf.size for name, leaf in flatten(template).items() if name.split('/')[1] == 'backbone')
    path.write_bytes(bytes(16) + np.append(np.full(numbers - 100, 0.1), np.full(100, np.nan)).astype('<f4').tobytes())
    config = ml_collections.ConfigDict(dict(initialize_from='', initialize_backbone=str(path)))
    with pytest.raises(
        ValueError, match=r'darknet53\.conv\.74: what becomes params/backbone/\S+ has numbers that are not finite'
    ):
        read_learnt(config, (), template)


def test_load_backbone_of_darknets_fills_that_of_a_yolo(tmp_path):
    detector = make_detector('yolo_v3', num_classes=3, width=0.125, stages=4)
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (64, 64)), jax.random.key(0))
    path = tmp_path / 'darknet53.conv.74'
    path.write_bytes(bytes(20))
    with pytest.raises(ValueError, match=r'darknet53\.conv\.74: not the weights of this backbone: 4 bytes'):
        load_backbone(str(path), params, model_state)


def test_resnet_variables_of_basic_blocks():
    def norm(name, channels):
        return {f'{name}.{leaf}': (channels,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}

    shapes = {'conv1.weight': (8, 3, 7, 7), **norm('bn1', 8)}
    channels = 8
    for stage, width in enumerate((8, 16, 32, 64), 1):
        for block in range(2):
            name = f'layer{stage}.{block}'
            shapes |= {f'{name}.conv1.weight': (width, channels, 3, 3), f'{name}.conv2.weight': (width, width, 3, 3)}
            shapes |= norm(f'{name}.bn1', width) | norm(f'{name}.bn2', width)
            if channels != width:
                shapes |= norm(f'{name}.downsample.1', width) | {f'{name}.downsample.0.weight': (width, channels, 1, 1)}
            channels = width
    network = ResNet(depth=18, width=1 / 8, norm='frozen_batch_norm')
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    params, statistics = fill(torchvision.RESNET, drawn_entries(shapes), (variables.pop('params'), variables))
    assert params['stage2_block1']['shortcut_conv']['kernel'].shape == (1, 1, 8, 16)
    assert len(jax.tree.leaves((params, statistics))) == len(shapes)


VGG16_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of convolutions, in torchvision's vgg16().features
VGG16_FEATURES = [64 // 16 * n for n in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)]


def vgg_classifier():
    """Entries like those of torchvision's vgg16, of a sixteenth of its width, and the template of ours."""
    shapes, channels = {}, 3
    for place, features in zip(VGG16_PLACES, VGG16_FEATURES):
        shapes |= {f'features.{place}.weight': (features, channels, 3, 3), f'features.{place}.bias': (features,)}
        channels = features
    for place, (features, inputs) in {0: (256, 49 * channels), 3: (256, 256), 6: (10, 256)}.items():
        shapes |= {f'classifier.{place}.weight': (features, inputs), f'classifier.{place}.bias': (features,)}
    entries = {name: np.random.RandomState(i).normal(size=shape) for i, (name, shape) in enumerate(shapes.items())}
    network = VGG16(width=1 / 16)
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return entries, (variables['params'], {})


def test_vgg_variables_take_every_fourth_feature_of_the_classifier():
    entries, template = vgg_classifier()
    params, model_state = fill(torchvision.VGG, entries, template)
    assert model_state == {} and len(jax.tree.leaves(params)) == 2 * 15
    kernel = params['conv3_2']['conv']['kernel']
    np.testing.assert_allclose(kernel[2, 0, 3, 9], entries['features.12.weight'][9, 3, 2, 0], rtol=1e-6)
    # fc6: feature 5 is the classifier's 20th; its kernel's row 1 and column 2 are row 3 and column 6 of 7 x 7.
    first = entries['classifier.0.weight'].reshape(256, 32, 7, 7)
    np.testing.assert_allclose(params['fc6']['conv']['kernel'][1, 2, 11, 5], first[20, 11, 3, 6], rtol=1e-6)
    np.testing.assert_allclose(
        params['fc7']['conv']['kernel'][0, 0, 3, 7], entries['classifier.3.weight'][28, 12], rtol=1e-6
    )
    np.testing.assert_allclose(params['fc7']['conv']['bias'], entries['classifier.3.bias'][::4], rtol=1e-6)


@pytest.mark.parametrize(
    'change', [lambda name, x: None, lambda name, x: np.full_like(x, np.nan)], ids=['absent', 'nan']
)
def test_vgg_variables_without_a_classifier_leave_fc6_and_fc7(change):
    entries, template = vgg_classifier()
    entries = {name: change(name, x) if name.startswith('classifier') else x for name, x in entries.items()}
    params, _ = fill(torchvision.VGG, {name: x for name, x in entries.items() if x is not None}, template)
    assert {name: params[name] for name in ('fc6', 'fc7')} == {name: template[0][name] for name in ('fc6', 'fc7')}
    np.testing.assert_allclose(params['conv5_3']['conv']['bias'], entries['features.28.bias'], rtol=1e-6)


@pytest.mark.parametrize('name', ['classifier.0.weight', 'classifier.3.bias'])
def test_vgg_variables_need_the_whole_classifier_or_none(name):
    entries, template = vgg_classifier()
    del entries[name]
    with pytest.raises(ValueError, match=rf'a\.pth: not the weights of a VGG: it has no {name}'):
        fill(torchvision.VGG, entries, template, source='a.pth')


def test_vgg_variables_names_missing_entry():
    entries, template = vgg_classifier()
    del entries['features.28.bias']
    with pytest.raises(ValueError, match=r'missing: features\.28\.bias\. Give'):
        fill(torchvision.VGG, entries, template)


def test_mobilenet_variables_are_those_of_the_detector():
    # Torchvision's SSDLite cuts the classifier's 'features' in two, the 13th block behind its expansion.
    def name_of(name):
        part, index, *rest = name.removeprefix('backbone.features.').split('.')
        if (part, index) == ('0', '13'):
            return '.'.join(('features.13.block.0', *rest))
        if (part, index) == ('1', '0'):
            return '.'.join(('features.13.block', *rest))
        rest = '.'.join(rest)
        return f'features.{int(index) + (13 if part == "1" else 0)}.{rest}'

    body = {name_of(name): value for name, value in entries_of(SSDLITE).items() if name.startswith('backbone.features')}
    assert {
        'features.0.0.weight',
        'features.13.block.2.fc1.bias',
        'features.15.block.3.0.weight',
        'features.16.1.bias',
    } < set(body)
    network = mobilenet_v3_large()
    variables = jax.eval_shape(lambda rng: network.init(rng, np.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    body['classifier.0.weight'] = np.zeros((1280, 480))
    params, statistics = fill(torchvision.MOBILENET_V3_LARGE, body, (variables.pop('params'), variables))
    expected, expected_statistics = fill(PEERS[SSDLITE].mapping, entries_of(SSDLITE), template_of(SSDLITE))
    jax.tree.map(np.testing.assert_array_equal, params, expected['backbone'])
    jax.tree.map(
        np.testing.assert_array_equal, statistics['batch_stats'], expected_statistics['batch_stats']['backbone']
    )


def mobilenet_file(tmp_path):
    """A file like that of torchvision's mobilenet_v3_large, and its entries."""
    entries = {
        name.replace('backbone.body', 'features'): value
        for name, value in entries_of(MOBILENET).items()
        if 'body' in name
    }
    entries |= {
        'classifier.0.weight': np.zeros((1280, 960), np.float32),
        'features.0.1.num_batches_tracked': np.int64([7]),
    }
    path = tmp_path / 'mobilenet_v3_large.safetensors'
    safetensors.numpy.save_file(entries, path)
    return str(path), entries


def test_read_learnt_lists_what_a_classifier_lacks(tmp_path):
    path, entries = mobilenet_file(tmp_path)
    template = template_of(SSDLITE)
    config = ml_collections.ConfigDict(dict(initialize_from='', initialize_backbone=path))
    learnt = read_learnt(config, (), template)
    expand = learnt.arrays['params/backbone/block13/expand/norm/bias']
    np.testing.assert_array_equal(expand, entries['features.13.block.0.1.bias'])
    variance = learnt.arrays['batch_stats/backbone/stem/norm/var']
    np.testing.assert_array_equal(variance, entries['features.0.1.running_var'])
    # The reduced tail: in two blocks 3 convolutions with norms and 2 without, but with biases; one projection, the last layer.
    assert len(learnt.anew) == 2 * (3 * 5 + 2 * 2) + 2 * 5
    assert {path.split('/')[2] for path in learnt.anew} == {'block13', 'block14', 'block15', 'last'}
    whole = {path for path in flatten(template) if path.split('/')[1] == 'backbone'}
    assert {*learnt.arrays, *learnt.anew} == whole


def test_load_backbone_fills_that_of_a_faster_rcnn_on_mobilenet(tmp_path):
    path, entries = mobilenet_file(tmp_path)
    params, model_state = template_of(MOBILENET)
    filled, statistics = load_backbone(path, params, model_state)
    expected, expected_statistics = fill(PEERS[MOBILENET].mapping, entries_of(MOBILENET), (params, model_state))
    jax.tree.map(np.testing.assert_array_equal, filled['backbone'], expected['backbone'])
    jax.tree.map(np.testing.assert_array_equal, statistics, expected_statistics)
    assert filled['fpn'] is params['fpn']


def test_load_backbone_tells_mobilenets_apart(tmp_path):
    path = str(tmp_path / 'mobilenet_v2.safetensors')
    safetensors.numpy.save_file(entries_of('mobilenet_v2'), path)
    arguments = PEERS[SSDLITE].model | dict(backbone='mobilenet_v2')
    detector = make_detector(**arguments)
    params, model_state = jax.eval_shape(lambda key: detector.init(key, (320, 320)), jax.random.key(0))
    filled, _ = load_backbone(path, params, model_state)
    weight = entries_of('mobilenet_v2')['features.3.conv.2.weight']
    np.testing.assert_array_equal(filled['backbone']['block3']['project']['conv']['kernel'][0, 0], weight[:, :, 0, 0].T)
    with pytest.raises(
        ValueError, match='mobilenet_v2.safetensors: not the weights of this model: missing: features.1.block'
    ):
        load_backbone(path, *template_of(SSDLITE))


@pytest.mark.parametrize(
    'model, message',
    [
        (dict(PEERS[SSD].model, norm='batch_norm'), "has no norms: set the model's norm to None"),
        (dict(PEERS[SSDLITE].model, norm='group_norm'), "no such network with group norm: set the model's norm to"),
        (dict(name='yolo_v3', num_classes=3), 'no classifier like the backbone of this model'),
    ],
)
def test_load_backbone_refuses_what_torchvision_has_not(tmp_path, model, message):
    safetensors.numpy.save_file({'x': np.zeros(1)}, tmp_path / 'x.safetensors')
    detector = make_detector(**model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path / 'x.safetensors'), *template)


def test_load_backbone_fills_that_of_an_ssd(tmp_path):
    entries, (backbone, _) = vgg_classifier()
    path = str(tmp_path / 'vgg16.safetensors')
    safetensors.numpy.save_file(entries, path)
    params, model_state = load_backbone(path, {'backbone': backbone, 'l2_norm': None}, {})
    jax.tree.map(np.testing.assert_array_equal, params['backbone'], fill(torchvision.VGG, entries, (backbone, {}))[0])
    assert params['l2_norm'] is None and model_state == {}


def test_count_partners_by_hand():
    def row(image_id, x, category_id=1, score=0.9):
        return dict(image_id=image_id, category_id=category_id, bbox=[x, 0, 10, 10], score=score)

    exact = [row(1, 0), row(1, 20, score=0.2), row(2, 0), row(3, 0)]
    static = [row(1, 2, score=0.1), row(1, 20, category_id=2), row(2, 6), row(4, 0), row(1, 1, score=0.05)]
    # One has a partner, nearer by a pixel than another; the rest another class, an IoU of 1 / 4, or none.
    assert count_partners(exact, static, score=0.0) == (1, 4, pytest.approx(9 / 11))
    assert count_partners(exact, static, score=0.5) == (1, 3, pytest.approx(9 / 11))
    assert count_partners([], static, score=0.0) == (0, 0, 0.0)
