"""Detectron2's model zoo: names and shapes by lists written from its source, conventions by arithmetic of their own."""

import functools
import math
import pickle
from collections import Counter

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import OPTIMIZED, with_backbone

from detzoo.backbones import resnet
from detzoo.backbones.norms import FrozenBatchNorm
from detzoo.core.anchors import base_anchors
from detzoo.core.images import normalize
from detzoo.detectors import make_detector
from detzoo.detectors.mask_rcnn import FCNHead
from detzoo.detectors.rpn import make_rpn
from detzoo.detectors.stages import make_roi_reader
from detzoo.types import Inputs
from detzoo.weights.detectron2 import PEERS
from detzoo.weights.files import read_entries
from detzoo.weights.mapping import fill, flatten

FASTER_C4, FASTER_FPN, RETINANET, MASK_C4, MASK_FPN = (name for name in PEERS if name.endswith('1x'))
MEAN = (103.53, 116.28, 123.675)
RATIOS = (0.5, 1.0, 2.0)
SMALL = dict(width=4, pyramid=8, hidden=16, classes=3)  # of `entries_of`


def layer(name, *shape):
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def conv_norm(name, *shape):
    norm = {f'{name}.norm.{leaf}': shape[:1] for leaf in ('weight', 'bias', 'running_mean', 'running_var')}
    return {f'{name}.weight': shape, **norm}


def stages(prefix, first, last, width):
    """The residual stages resFIRST to resLAST of an R-50, whose first convolution has `width` channels."""
    shapes = {}
    for stage in range(first, last + 1):
        inner = width * 2 ** (stage - 2)
        before = width if stage == 2 else 2 * inner
        for block in range((3, 4, 6, 3)[stage - 2]):
            name = f'{prefix}.res{stage}.{block}'
            if block == 0:
                shapes |= conv_norm(f'{name}.shortcut', 4 * inner, before, 1, 1)
            shapes |= conv_norm(f'{name}.conv1', inner, before, 1, 1)
            shapes |= conv_norm(f'{name}.conv2', inner, inner, 3, 3)
            shapes |= conv_norm(f'{name}.conv3', 4 * inner, inner, 1, 1)
            before = 4 * inner
    return shapes


def pyramid_of(levels, width, pyramid):
    shapes = {}
    for level in levels:
        shapes |= layer(f'backbone.fpn_lateral{level}', pyramid, width * 2**level, 1, 1)
        shapes |= layer(f'backbone.fpn_output{level}', pyramid, pyramid, 3, 3)
    return shapes


def shapes_of(name, *, width=64, pyramid=256, hidden=1024, classes=80):
    """The names and shapes of a file of the zoo, by its modules' constructors.

    width: channels of the first convolution. pyramid: of FPN, mask head and RetinaNet's towers. hidden: of the box head.
    """
    last = 32 * width  # res5
    if 'C4' in name:
        shapes = conv_norm('backbone.stem.conv1', width, 3, 7, 7) | stages('backbone', 2, 4, width)
        shapes |= stages('roi_heads', 5, 5, width)
    else:
        shapes = conv_norm('backbone.bottom_up.stem.conv1', width, 3, 7, 7) | stages('backbone.bottom_up', 2, 5, width)
        shapes |= pyramid_of((3, 4, 5) if 'retinanet' in name else (2, 3, 4, 5), width, pyramid)
    if 'retinanet' in name:
        shapes |= layer('backbone.top_block.p6', pyramid, last, 3, 3) | layer(
            'backbone.top_block.p7', pyramid, pyramid, 3, 3
        )
        for place in (0, 2, 4, 6):
            shapes |= layer(f'head.cls_subnet.{place}', pyramid, pyramid, 3, 3)
            shapes |= layer(f'head.bbox_subnet.{place}', pyramid, pyramid, 3, 3)
        return shapes | layer('head.cls_score', 9 * classes, pyramid, 3, 3) | layer('head.bbox_pred', 36, pyramid, 3, 3)
    features, anchors = (last // 2, 15) if 'C4' in name else (pyramid, 3)
    shapes |= layer('proposal_generator.rpn_head.conv', features, features, 3, 3)
    shapes |= layer('proposal_generator.rpn_head.objectness_logits', anchors, features, 1, 1)
    shapes |= layer('proposal_generator.rpn_head.anchor_deltas', 4 * anchors, features, 1, 1)
    if 'FPN' in name:
        shapes |= layer('roi_heads.box_head.fc1', hidden, pyramid * 7 * 7) | layer(
            'roi_heads.box_head.fc2', hidden, hidden
        )
    read = last if 'C4' in name else hidden
    shapes |= layer('roi_heads.box_predictor.cls_score', classes + 1, read)
    shapes |= layer('roi_heads.box_predictor.bbox_pred', 4 * classes, read)
    if 'mask' in name:
        if 'FPN' in name:
            for number in (1, 2, 3, 4):
                shapes |= layer(f'roi_heads.mask_head.mask_fcn{number}', pyramid, pyramid, 3, 3)
        shapes['roi_heads.mask_head.deconv.weight'] = (
            last if 'C4' in name else pyramid,
            pyramid,
            2,
            2,
        )  # torch's order: IOHW
        shapes['roi_heads.mask_head.deconv.bias'] = (pyramid,)
        shapes |= layer('roi_heads.mask_head.predictor', classes, pyramid, 1, 1)
    return shapes


def cell_anchors(sizes):
    """Detectron2's anchors of a cell (DefaultAnchorGenerator.generate_cell_anchors): all ratios of a size, size after size."""
    boxes = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            boxes.append((-width / 2, -ratio * width / 2, width / 2, ratio * width / 2))
    return np.float32(boxes)


def small(name):
    """The model of `shapes_of(name, **SMALL)`."""
    model = PEERS[name].model
    model = with_backbone(model, width=SMALL['width'] / 64) | dict(num_classes=SMALL['classes'])
    if model['fpn_features']:
        model |= dict(fpn_features=SMALL['pyramid'])
    if 'trunk_features' in model:
        model |= dict(trunk_features=SMALL['hidden'])
    if 'mask' in model:
        model |= dict(mask={**model['mask'], 'features': SMALL['pyramid']})
    return model


@functools.cache
def detector_of(name, whole=False):
    """A detector of the zoo, whole or small, and the shapes of its variables."""
    detector = make_detector(**(PEERS[name].model if whole else small(name)))
    return detector, jax.eval_shape(lambda rng: detector.init(rng, (128, 128)), jax.random.key(0))


def drawn(name):
    """Entries of the small model that differ from one another."""
    random = np.random.RandomState(0)
    return {
        entry: random.standard_normal(shape).astype(np.float32) for entry, shape in shapes_of(name, **SMALL).items()
    }


def silent(name):
    """Entries of the small model that give zeros everywhere."""
    entries = {entry: np.zeros(shape, np.float32) for entry, shape in shapes_of(name, **SMALL).items()}
    return {entry: array + 1 if entry.endswith('running_var') else array for entry, array in entries.items()}


def filled(name, entries):
    """The variables of the small model by their paths."""
    return flatten(fill(PEERS[name].mapping, entries, detector_of(name)[1]).variables)


def found_in(name, entries, height, width, proposals=None):
    """What the small model detects in an image of noise: boxes, labels, masks."""
    image = np.random.RandomState(1).randint(0, 256, (1, height, width, 3)).astype(np.uint8)
    given = () if proposals is None else (np.float32([proposals]), np.ones((1, len(proposals)), bool))
    detector, template = detector_of(name)
    inputs = Inputs(image, np.float32([[0, 0, width, height]]), *given)
    found = jax.jit(detector.predict, compiler_options=OPTIMIZED)(
        *fill(PEERS[name].mapping, entries, template).variables, inputs
    )
    boxes, labels, masks = (
        x if x is None else np.asarray(x[0])[np.asarray(found.valid[0])]
        for x in (found.boxes, found.labels, found.masks)
    )
    return boxes, labels, masks


def test_the_zoo_has_ten_models_of_five_kinds():
    assert len(PEERS) == 10
    for name, peer in PEERS.items():
        assert peer is PEERS[name.replace('3x', '1x')]
        assert peer.divisor == (
            1 if 'C4' in name else 32
        )  # size_divisibility: of FPN its last stride, of a ResNet none


@pytest.mark.parametrize('name', [FASTER_C4, FASTER_FPN, RETINANET, MASK_C4, MASK_FPN])
def test_every_entry_of_a_file_fills_a_variable(name):
    entries = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in shapes_of(name).items()}
    if 'retinanet' in name:  # as a file has it that was written in 2020
        entries |= {'pixel_mean': np.float32(MEAN).reshape(3, 1, 1), 'pixel_std': np.ones((3, 1, 1), np.float32)}
    prefix = '' if 'retinanet' in name else 'proposal_generator.'
    octaves = [[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128, 256, 512)]
    sizes = octaves if 'retinanet' in name else [[32, 64, 128, 256, 512]] if 'C4' in name else [[x[0]] for x in octaves]
    entries |= {f'{prefix}anchor_generator.cell_anchors.{i}': cell_anchors(level) for i, level in enumerate(sizes)}
    rows = fill(PEERS[name].mapping, entries, detector_of(name, whole=True)[1]).rows
    assert sorted(row.foreign for row in rows) == sorted(entries)  # each once
    left = {row.foreign for row in rows if not row.ours}
    assert left == {entry for entry in entries if 'cell_anchors' in entry or 'pixel_' in entry}


@pytest.mark.parametrize('name, ours, theirs', [
    (FASTER_FPN, 'params/backbone/stem_conv/kernel', 'backbone.bottom_up.stem.conv1.weight'),
    (FASTER_FPN, 'params/backbone/stage3_block6/conv2/kernel', 'backbone.bottom_up.res4.5.conv2.weight'),
    (FASTER_FPN, 'frozen/backbone/stage2_block1/shortcut_norm/var', 'backbone.bottom_up.res3.0.shortcut.norm.running_var'),
    (FASTER_FPN, 'frozen/backbone/stage1_block3/norm3/mean', 'backbone.bottom_up.res2.2.conv3.norm.running_mean'),
    (FASTER_FPN, 'frozen/backbone/stem_norm/scale', 'backbone.bottom_up.stem.conv1.norm.weight'),
    (FASTER_FPN, 'params/fpn/inner1/kernel', 'backbone.fpn_lateral2.weight'),
    (FASTER_FPN, 'params/fpn/layer4/bias', 'backbone.fpn_output5.bias'),
    (FASTER_FPN, 'params/rpn_head/deltas/bias', 'proposal_generator.rpn_head.anchor_deltas.bias'),  # one size a level
    (FASTER_FPN, 'params/trunk/fc2/kernel', 'roi_heads.box_head.fc2.weight'),
    (MASK_FPN, 'params/mask_head/conv4/kernel', 'roi_heads.mask_head.mask_fcn4.weight'),
    (MASK_FPN, 'params/box_head/cls_logits/bias', 'roi_heads.box_predictor.cls_score.bias'),
    (MASK_FPN, 'params/mask_head/logits/kernel', 'roi_heads.mask_head.predictor.weight'),
    (MASK_C4, 'params/backbone/stage3_block1/shortcut_conv/kernel', 'backbone.res4.0.shortcut.weight'),
    (MASK_C4, 'params/trunk/stage4_block3/conv1/kernel', 'roi_heads.res5.2.conv1.weight'),
    (MASK_C4, 'frozen/trunk/stage4_block2/norm2/bias', 'roi_heads.res5.1.conv2.norm.bias'),
    (RETINANET, 'params/fpn/inner1/kernel', 'backbone.fpn_lateral3.weight'),
    (RETINANET, 'params/fpn/extra1/kernel', 'backbone.top_block.p6.weight'),
    (RETINANET, 'params/fpn/extra2/bias', 'backbone.top_block.p7.bias'),
    (RETINANET, 'params/cls_head/conv4/kernel', 'head.cls_subnet.6.weight'),
    (RETINANET, 'params/box_head/conv2/bias', 'head.bbox_subnet.2.bias'),
])  # fmt: skip
def test_variables_are_their_entries(name, ours, theirs):
    entries = drawn(name)
    value = entries[theirs]
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
    np.testing.assert_array_equal(filled(name, entries)[ours], value.transpose(axes))


def test_fully_connected_layer_reads_channels_last():
    features = np.random.RandomState(2).standard_normal((7, 7, 8)).astype(np.float32)
    entries = drawn(FASTER_FPN)
    expected = entries['roi_heads.box_head.fc1.weight'] @ features.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(
        features.ravel() @ filled(FASTER_FPN, entries)['params/trunk/fc1/kernel'], expected, atol=1e-4
    )


@pytest.mark.parametrize('name', [MASK_C4, MASK_FPN])
def test_deconvolution_spreads_its_inputs_over_its_kernel(name):
    entries = drawn(name)
    variables = {
        path.removeprefix('params/mask_head/'): x for path, x in filled(name, entries).items() if 'mask_head' in path
    }
    weight, bias = (entries[f'roi_heads.mask_head.deconv.{leaf}'] for leaf in ('weight', 'bias'))
    x = np.random.RandomState(3).standard_normal((1, 2, 3, len(weight))).astype(np.float32)
    spread = np.einsum('yxc,coij->yixjo', x[0], weight).reshape(4, 6, -1) + bias  # row 2 y + i, column 2 x + j
    logits = np.maximum(spread, 0) @ variables['logits/kernel'][0, 0] + variables['logits/bias']
    head = FCNHead(SMALL['classes'], 0, SMALL['pyramid'], None, None, jnp.float32)
    params = {
        layer: {leaf: variables[f'{layer}/{leaf}'] for leaf in ('kernel', 'bias')} for layer in ('deconv', 'logits')
    }
    np.testing.assert_allclose(head.apply({'params': params}, x, None, train=False)[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name, sizes, outputs', [
    (MASK_C4, (32, 64, 128, 256, 512), dict(rpn_head__objectness='proposal_generator.rpn_head.objectness_logits',
                                            rpn_head__deltas='proposal_generator.rpn_head.anchor_deltas')),
    (RETINANET, (32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)), dict(cls_head__output='head.cls_score',
                                                                 box_head__output='head.bbox_pred')),
])  # fmt: skip
def test_outputs_go_to_the_anchors_they_were_trained_for(name, sizes, outputs):
    theirs, ours = cell_anchors(sizes), base_anchors(sizes, RATIOS)
    nearest = abs(ours[:, None] - theirs).sum(axis=2).argmin(axis=1)  # the row of each of our anchors among theirs
    np.testing.assert_allclose(ours, theirs[nearest], rtol=1e-6)
    assert (nearest != np.arange(len(ours))).any()
    entries = drawn(name)
    variables = filled(name, entries)
    for path, entry in outputs.items():
        path = f'params/{path.replace("__", "/")}'
        weight, bias = (entries[f'{entry}.{leaf}'] for leaf in ('weight', 'bias'))
        by_anchor = bias.reshape(len(theirs), -1)  # an anchor's values lie together
        np.testing.assert_array_equal(variables[f'{path}/bias'].reshape(len(ours), -1), by_anchor[nearest])
        kernel = variables[f'{path}/kernel'].transpose(3, 2, 0, 1).reshape(len(ours), -1)
        np.testing.assert_array_equal(kernel, weight.reshape(len(theirs), -1)[nearest])


def test_anchors_by_hand():
    # Size 32: ratio 0.5 is 32 sqrt(2) = 45.2548 wide and 22.6274 high; at the second cell of stride 4, 4 pixels to the right.
    model = PEERS[FASTER_FPN].model
    rpn = make_rpn((4, 8, 16, 32, 64), jnp.float32, **model['rpn'])
    grids = [(3, 5), (2, 3), (1, 2), (1, 1), (1, 1)]  # of 9 x 17 pixels: not their multiples
    first, *_, last = rpn.anchors((9, 17), grids)
    np.testing.assert_allclose(first[3], (4 - 22.6274, -11.3137, 4 + 22.6274, 11.3137), atol=1e-4)
    np.testing.assert_allclose(first[-1], (16 - 11.3137, 8 - 22.6274, 16 + 11.3137, 8 + 22.6274), atol=1e-4)
    np.testing.assert_allclose(last, 16 * cell_anchors([32]), rtol=1e-6)


def test_pixels_are_bgr_less_a_mean():
    model = PEERS[RETINANET].model
    image = np.full((2, 3, 3), (10, 20, 30), np.uint8)
    x = normalize(image, np.float32([0, 0, 2, 2]), mean=model['mean'], std=model['std'], bgr=model['bgr'])
    np.testing.assert_allclose(x[0, 1], (30 - 103.53, 20 - 116.28, 10 - 123.675), rtol=1e-6)
    assert not np.any(x[:, 2])  # padding is 0 behind it
    assert {peer.model['mean'] for peer in PEERS.values()} == {MEAN}
    assert all(peer.model['bgr'] and set(peer.model['std']) == {1.0} for peer in PEERS.values())


def align(level, start, extent, bins):
    """RoIAlign by loops: as many samples as a bin has cells, at most 8, of cells whose centres lie at whole numbers."""
    height, width, channels = level.shape
    result = np.zeros((bins, bins, channels))
    samples = np.minimum(np.ceil(extent / bins), 8).astype(int)
    for row in range(bins):
        for column in range(bins):
            for i in range(samples[0]):
                for j in range(samples[1]):
                    y = start[0] + (row + (i + 0.5) / samples[0]) * extent[0] / bins
                    x = start[1] + (column + (j + 0.5) / samples[1]) * extent[1] / bins
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    down, along = y - top, x - left
                    result[row, column] += (1 - down) * ((1 - along) * level[top, left] + along * level[top, right])
                    result[row, column] += down * ((1 - along) * level[bottom, left] + along * level[bottom, right])
    return result / samples.prod()


@pytest.mark.parametrize(
    'name, group, strides',
    [(MASK_FPN, 'roi', (4, 8, 16, 32)), (MASK_FPN, 'mask_roi', (4, 8, 16, 32)), (MASK_C4, 'roi', (16,))],
)
def test_roi_features_are_averages_of_adaptive_samples_of_centres(name, group, strides):
    arguments = PEERS[name].model[group]
    reader = make_roi_reader(strides[0], len(strides), **arguments)
    rois = np.float32(
        [
            (3.3, 5.1, 40.7, 21.9),  # small: P2, 2 x 3 samples a bin of 7
            (10, 10, 133, 133),  # P3
            (0.5, 2, 190, 60),  # long: P2, 7 samples along x, 3 along y
            (20, 30, 250, 255),  # P4
            (1, 1, 5, 3),  # smaller than a cell of most levels
        ]
    )
    random = np.random.RandomState(4)
    levels = [random.standard_normal((256 // stride, 256 // stride, 2)).astype(np.float32) for stride in strides]
    read = jax.jit(reader.read)([level[None] for level in levels], rois[None])[0]
    for roi, features in zip(rois.astype(np.float64), read):
        size = np.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1]))
        level = np.clip(math.floor(4 + math.log2(size / 224 + 1e-8)), 2, 5) - 2 if len(strides) > 1 else 0
        start, extent = roi[1::-1] / strides[level] - 0.5, (roi[3:1:-1] - roi[1::-1]) / strides[level]
        expected = align(levels[level], start, extent, arguments['output_size'])
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_samples_are_enough_for_any_roi_on_c4():
    model = PEERS[FASTER_C4].model
    reader = make_roi_reader(16, 1, **model['roi'])
    largest, larger = np.float32([[[0, 0, 1333, 800]]]), np.float32([[[0, 0, 1345, 800]]])
    assert reader.metrics(largest, np.zeros((1, 1), int))['undersampled_rois'] == 0
    assert reader.metrics(larger, np.zeros((1, 1), int))['undersampled_rois'] == 1


def test_stride_in_1x1_reads_every_other_cell():
    strided, plain = (
        resnet.BottleneckBlock(2, stride, FrozenBatchNorm, jnp.float32, stride_in_1x1=True) for stride in (2, 1)
    )
    x = np.random.RandomState(5).standard_normal((1, 5, 8, 4)).astype(np.float32)
    variables = strided.init(jax.random.key(0), x)
    y = strided.apply(variables, x)
    assert y.shape == (1, 3, 4, 8)
    np.testing.assert_allclose(y, plain.apply(variables, x[:, ::2, ::2]), rtol=1e-6)


def strided_kernels(jaxpr):
    """Counts the sizes of the kernels of all convolutions that stride."""
    kernels = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated' and set(equation.params['window_strides']) != {1}:
            kernels[equation.invars[1].aval.shape[0]] += 1
        inner = [strided_kernels(part) for part in jax.extend.core.jaxprs_in_params(equation.params)]
        if equation.primitive.name == 'cond':  # one branch runs: of a chunk of RoIs, or for a platform
            inner = [max(inner, key=Counter.total)]
        kernels += sum(inner, Counter())
    return kernels


@pytest.mark.parametrize(
    'name, expected',
    [
        (RETINANET, {7: 1, 1: 6, 3: 2}),  # the stem; conv1 and shortcut of res3, res4 and res5; p6 and p7
        (FASTER_FPN, {7: 1, 1: 6}),
        (FASTER_C4, {7: 1, 1: 6}),
        (MASK_C4, {7: 1, 1: 8}),  # res5 runs on detections again
        (MASK_FPN, {7: 1, 1: 6}),
    ],
)
def test_models_stride_in_1x1(name, expected):
    detector, template = detector_of(name)
    image, window = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(detector.predict)(*template, Inputs(image, window))
    assert strided_kernels(jaxpr.jaxpr) == expected


@pytest.mark.parametrize('name', [RETINANET, FASTER_FPN, FASTER_C4])
def test_networks_of_basic_blocks_have_no_1x1_to_stride_in(name):
    with pytest.raises(ValueError, match='stride_in_1x1 is True: it is an argument of resnet50 .* set it to False'):
        make_detector(**with_backbone(small(name), name='resnet18'))


def test_detections_of_a_box_head_by_hand():
    """Class 1 of 3 (background is row 3) moves a proposal of 40 x 40 by 0.1 of its width and halves its width."""
    entries = silent(MASK_FPN)
    entries['roi_heads.box_predictor.cls_score.bias'][:] = (0, 9, 0, 8)
    entries['roi_heads.box_predictor.bbox_pred.bias'][4:8] = (1, 0, 5 * math.log(0.5), 0)
    entries['roi_heads.mask_head.predictor.bias'][:] = (-5, 0.7, 5)
    boxes, labels, masks = found_in(MASK_FPN, entries, 64, 96, proposals=[(10, 20, 50, 60)])
    np.testing.assert_allclose(boxes, [(24, 20, 44, 60)], rtol=1e-5)  # the centre 30 -> 34, the width 40 -> 20
    assert labels.tolist() == [1]
    np.testing.assert_allclose(masks, np.full((1, 28, 28), 1 / (1 + math.exp(-0.7))), rtol=1e-5)
    entries['roi_heads.box_predictor.cls_score.bias'][:] = (0, 0, 0, 9)
    assert not len(found_in(MASK_FPN, entries, 64, 96, proposals=[(10, 20, 50, 60)])[0])


def uncut(boxes, height, width):
    """The boxes that do not touch the border of their image."""
    return boxes[(boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2] < width) & (boxes[:, 3] < height)]


def test_proposals_of_an_rpn_by_hand():
    """C4: of each cell's 15 anchors the one of size 64 and ratio 0.5, row 1 * 3 + 0, twice as high as it is."""
    entries = silent(MASK_C4)
    deltas = entries['proposal_generator.rpn_head.anchor_deltas.bias'].reshape(15, 4)
    deltas[:, 2] = -200  # no width is left, so that none of the others is proposed
    deltas[3] = (0, 0, 0, math.log(2))
    entries['roi_heads.box_predictor.cls_score.bias'][:] = (0, 0, 9, 0)
    boxes, labels, masks = found_in(MASK_C4, entries, 160, 230)
    assert set(labels) == {2} and masks.shape[1:] == (14, 14)
    x1, y1, x2, y2 = uncut(boxes, 160, 230).T
    np.testing.assert_allclose(x2 - x1, 64 * math.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(y2 - y1, 2 * 64 / math.sqrt(2), rtol=1e-5)
    assert len(x1) > 2


def test_detections_of_a_retinanet_by_hand():
    """Of 9 anchors the one of the second size and ratio 2, row 1 * 3 + 2, class 1 of 3; moved by a quarter of its width."""
    entries = silent(RETINANET)
    entries['head.cls_score.bias'][:] = -9
    entries['head.cls_score.bias'][5 * 3 + 1] = 1
    entries['head.bbox_pred.bias'][5 * 4] = 0.25
    boxes, labels, _ = found_in(RETINANET, entries, 128, 128)
    assert set(labels) == {1}
    # All scores are equal, so that the 100 detections are of the finest level, stride 8.
    x1, y1, x2, y2 = uncut(boxes, 128, 128).T
    size = 4 * 8 * 2 ** (1 / 3)
    assert len(x1) > 20
    np.testing.assert_allclose(x2 - x1, size / math.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(y2 - y1, size * math.sqrt(2), rtol=1e-5)
    corner = ((x1 + x2) / 2 - 0.25 * (x2 - x1)) / 8
    np.testing.assert_allclose(corner, np.round(corner), atol=1e-4)


@pytest.fixture
def file(tmp_path):
    """A function: entries -> a file of the zoo's kind."""

    def write(entries):
        path = tmp_path / 'model_final_000000.pkl'
        path.write_bytes(pickle.dumps({'model': entries, '__author__': 'Detectron2 Model Zoo'}, protocol=2))
        return path

    return write


def test_files_of_the_zoo_are_read(file):
    entries = drawn(RETINANET) | {'pixel_mean': np.float32(MEAN).reshape(3, 1, 1)}
    read = read_entries(file(entries))
    assert list(read) == list(entries)
    assert jax.tree.map(np.array_equal, filled(RETINANET, read), filled(RETINANET, entries)) == dict.fromkeys(
        filled(RETINANET, entries), True
    )


@pytest.mark.parametrize('change, words', [
    ({'backbone.top_block.p6.weight': None}, r'missing: backbone\.top_block\.p6\.weight'),
    ({'head.cls_subnet.1.weight': np.ones(8, np.float32)}, r'unused: head\.cls_subnet\.1\.weight'),
    ({'head.cls_score.bias': np.ones(40, np.float32)}, r'of another shape: head\.cls_score\.bias \(40,\) where .* \(27,\)'),
    ({'pixel_mean': np.float32(MEAN[::-1]).reshape(3, 1, 1)}, r'pixel_mean is \[123.* where the model has \[103\.53'),
    ({'pixel_std': np.float32([57.375, 57.12, 58.395])}, r'pixel_std is'),
    ({'anchor_generator.cell_anchors.1': base_anchors([64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)], RATIOS)},
     r'anchor_generator\.cell_anchors\.1 is'),
    ({'anchor_generator.cell_anchors.4': cell_anchors([512])}, r'anchor_generator\.cell_anchors\.4 is'),
])  # fmt: skip
def test_files_of_other_models_are_refused(change, words):
    entries = {name: array for name, array in (drawn(RETINANET) | change).items() if array is not None}
    with pytest.raises(ValueError, match=words):
        filled(RETINANET, entries)


def test_other_detectors_have_no_names():
    model = {**small(FASTER_FPN), 'trunk_conv_layers': 1}
    detector = make_detector(**model)
    template = jax.eval_shape(lambda rng: detector.init(rng, (64, 64)), jax.random.key(0))
    with pytest.raises(ValueError, match=r'no such detector: trunk/conv1 .*Set the arguments'):
        fill(PEERS[FASTER_FPN].mapping, drawn(FASTER_FPN), template)
