"""Detectron2's model zoo as ours: the same arrays under other names, kernels OIHW -> HWIO, anchors in another order.

`PEERS` has the arguments with which our detectors compute what its R-50 baselines compute; `Peer.mapping` says how their files
(.pkl, MODEL_ZOO.md) become our variables. 1x and 3x differ only in their weights. Its conventions:

- Pixels are BGR, minus a mean, not divided. The authors' own ResNet-50 strides in its first 1x1 convolutions.
- A cell's anchors are ordered by size, then aspect ratio; ours by aspect ratio, then size, as torchvision's. It only matters
  where a level has several sizes: C4 and RetinaNet.
- RoIAlign takes as many samples as a bin has cells, at centres. Here `max_samples_per_bin` limits them: enough for any RoI on
  C4, and on a pyramid for RoIs up to 4 times as long as wide. Beyond that, a bin's samples are farther apart.
- Background is the last class of a softmax, as here, and classes are COCO's 80 in their order.

Two details differ: a RoI within a millionth of the size at which it changes its level may lie on either level; and masks are
pasted as torchvision does, on the grid of whole pixels.

Nothing here was run against detectron2 itself, which is in no package index, nor with its published files. It was written from
the source at 02b5c4e2; tests compare names and shapes with lists written from that source, and each convention with their
own arithmetic. Some files also hold their pixels' means, or their anchors: these are compared with the model's.
"""

import re
from collections.abc import Callable
from collections.abc import Mapping as Table
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from detzoo.core.anchors import base_anchors
from detzoo.detectors.retinanet import octave_sizes
from detzoo.weights.mapping import ROI_SIDE, Entries, Mapping, Rule, as_convolution, channels_last, torch_names

TOLERANCE = 1e-3  # pixels, for anchors and means that files hold in float32


class Peer(NamedTuple):
    """A model of detectron2's zoo and our counterpart.

    model: the arguments of `make_detector`.
    mapping: how its weights become our variables.
    divisor: the sides of canvases are multiples of it; 1 for canvases as large as the images.
    """

    model: dict[str, Any]
    mapping: Mapping
    divisor: int


# {pattern of our modules' names, with numbers: a function from these numbers to detectron2's name}.
_Names = Table[str, Callable[..., str]]

_RESNET: _Names = {
    r'stem_conv': lambda: 'stem.conv1',
    r'stem_norm': lambda: 'stem.conv1.norm',
    r'stage(\d)_block(\d+)/conv(\d)': lambda stage, block, i: f'res{stage + 1}.{block - 1}.conv{i}',
    r'stage(\d)_block(\d+)/norm(\d)': lambda stage, block, i: f'res{stage + 1}.{block - 1}.conv{i}.norm',
    r'stage(\d)_block(\d+)/shortcut_conv': lambda stage, block: f'res{stage + 1}.{block - 1}.shortcut',
    r'stage(\d)_block(\d+)/shortcut_norm': lambda stage, block: f'res{stage + 1}.{block - 1}.shortcut.norm',
}
_RCNN: _Names = {
    r'rpn_head/conv': lambda: 'proposal_generator.rpn_head.conv',
    r'rpn_head/objectness': lambda: 'proposal_generator.rpn_head.objectness_logits',
    r'rpn_head/deltas': lambda: 'proposal_generator.rpn_head.anchor_deltas',
    r'box_head/cls_logits': lambda: 'roi_heads.box_predictor.cls_score',
    r'box_head/box_deltas': lambda: 'roi_heads.box_predictor.bbox_pred',
    r'mask_head/conv(\d)': lambda i: f'roi_heads.mask_head.mask_fcn{i}',
    r'mask_head/deconv': lambda: 'roi_heads.mask_head.deconv',
    r'mask_head/logits': lambda: 'roi_heads.mask_head.predictor',
}


def _under(ours: str, theirs: str, names: _Names) -> _Names:
    """Puts the names of a network's modules under those of a part of a larger network."""

    def put(name: Callable[..., str]) -> Callable[..., str]:
        return lambda *numbers: f'{theirs}.{name(*numbers)}'

    return {f'{ours}/{pattern}': put(name) for pattern, name in names.items()}


_FPN_NAMES: _Names = {
    **_under('backbone', 'backbone.bottom_up', _RESNET),
    r'fpn/inner(\d)': lambda i: f'backbone.fpn_lateral{i + 1}',  # from C2 on
    r'fpn/layer(\d)': lambda i: f'backbone.fpn_output{i + 1}',
    r'trunk/fc(\d)': lambda i: f'roi_heads.box_head.fc{i}',
    **_RCNN,
}
_C4_NAMES: _Names = {
    **_under('backbone', 'backbone', _RESNET),
    **_under('trunk', 'roi_heads', _RESNET),
    **_RCNN,
}
_RETINANET_NAMES: _Names = {
    **_under('backbone', 'backbone.bottom_up', _RESNET),
    r'fpn/inner(\d)': lambda i: f'backbone.fpn_lateral{i + 2}',  # from C3 on
    r'fpn/layer(\d)': lambda i: f'backbone.fpn_output{i + 2}',
    r'fpn/extra(\d)': lambda i: f'backbone.top_block.p{i + 5}',
    r'cls_head/conv(\d)': lambda i: f'head.cls_subnet.{2 * i - 2}',  # each second one is a ReLU
    r'cls_head/output': lambda: 'head.cls_score',
    r'box_head/conv(\d)': lambda i: f'head.bbox_subnet.{2 * i - 2}',
    r'box_head/output': lambda: 'head.bbox_pred',
}


def _name(path: str, *, names: _Names) -> str:
    """Names a module of ours: 'backbone/stage1_block2/norm1' -> 'backbone.bottom_up.res2.1.conv1.norm'."""
    for pattern, name in names.items():
        if found := re.fullmatch(pattern, path):
            return name(*map(int, found.groups()))
    raise ValueError(
        f"detectron2's zoo has no such detector: {path} is not in its R-50 baselines. Set the arguments of the "
        'model to those of weights.detectron2.PEERS'
    )


def _aspect_ratios_first(
    array: np.ndarray, name: str, entries: Entries, *, sizes: int, aspect_ratios: int
) -> np.ndarray:
    """Reorders the outputs of a cell's anchors from [sizes, aspect ratios, ...] to our [aspect ratios, sizes, ...]."""
    if len(array) % (sizes * aspect_ratios):  # another head, which `fill` refuses by its shape
        return array
    return array.reshape(sizes, aspect_ratios, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _same_conventions(entries: Entries, *, model: dict[str, Any]) -> Entries:
    """Refuses a file whose pixel mean, deviation or anchors, if it has them, are not those of the model."""
    first_stage = model.get('rpn', model)
    aspect_ratios = first_stage['aspect_ratios']
    expected = {'pixel_mean': model['mean'], 'pixel_std': model['std']}
    for level, sizes in enumerate(first_stage['anchor_sizes']):
        anchors = base_anchors(sizes, aspect_ratios).reshape(len(aspect_ratios), len(sizes), 4).swapaxes(0, 1)
        expected[f'cell_anchors.{level}'] = anchors
    for name, array in entries.items():
        values = expected.get(name.rpartition('anchor_generator.')[2])
        if values is None:
            continue
        if array.size != np.size(values) or not np.allclose(array.ravel(), np.ravel(values), rtol=0, atol=TOLERANCE):
            raise ValueError(
                f'{name} is {array.ravel().tolist()} where the model has {np.ravel(values).tolist()}: not the '
                'weights of this model, though its arrays may have the same shapes. Give a file of the same config'
            )
    return entries


_R50 = {
    'num_classes': 80,
    'backbone': {'name': 'resnet50', 'stride_in_1x1': True, 'norm': 'frozen_batch_norm', 'norm_epsilon': 1e-5},
    'mean': (103.53, 116.28, 123.675),
    'std': (1.0, 1.0, 1.0),  # the weights of the first convolution have it in them
    'bgr': True,
}
_RPN = {
    'aspect_ratios': (0.5, 1.0, 2.0),
    'round_anchors': False,
    'anchor_strides': 'power_of_two',
    'positive_iou': 0.7,
    'negative_iou': 0.3,
    'match_best_anchors': True,
    'samples': 256,
    'positive_share': 0.5,
    'box_loss_beta': 0.0,
    'post_nms_topk': 1000,
    'iou_threshold': 0.7,
    'min_size': 0.0,
}
_ROI = {'operator': 'align', 'samples_per_bin': 0, 'aligned': True}
_FASTER_RCNN = {
    **_R50,
    'name': 'faster_rcnn',
    'class_agnostic': False,
    'head': {
        'positive_iou': 0.5,
        'negative_iou': 0.5,
        'samples': 512,
        'positive_share': 0.25,
        'add_ground_truth': True,
        'delta_weights': (10.0, 10.0, 5.0, 5.0),
        'box_loss_beta': 0.0,
        'pre_nms_topk': 19 * 1000,  # all: at most 19 classes of a proposal have more than 0.05
        'score_threshold': 0.05,
        'iou_threshold': 0.5,
        'max_detections': 100,
        'min_size': 0.0,
    },
}
_FASTER_RCNN_FPN = {
    **_FASTER_RCNN,
    'fpn_features': 256,
    'trunk_features': 1024,
    'rpn': {
        **_RPN,
        'anchor_sizes': ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        'pre_nms_topk': 1000,
        'train_pre_nms_topk': 2000,
        'train_post_nms_topk': 1000,
    },
    'roi': {**_ROI, 'output_size': ROI_SIDE, 'max_samples_per_bin': 8, 'canonical_size': 224.0},
}
_FASTER_RCNN_C4 = {
    **_FASTER_RCNN,
    'fpn_features': None,
    'rpn': {
        **_RPN,
        'anchor_sizes': ((32.0, 64.0, 128.0, 256.0, 512.0),),
        'pre_nms_topk': 6000,
        'train_pre_nms_topk': 12000,
        'train_post_nms_topk': 2000,
    },
    'roi': {**_ROI, 'output_size': 14, 'max_samples_per_bin': 6},  # 14 bins of 6 cells of 16 pixels: 1344 pixels
}
_MASK = {'head': 'fcn', 'features': 256, 'class_agnostic': False, 'activation': 'sigmoid', 'targets': 'point'}
_MASK_RCNN_FPN = {
    **_FASTER_RCNN_FPN,
    'name': 'mask_rcnn',
    'mask_roi': {**_FASTER_RCNN_FPN['roi'], 'output_size': 14},
    'mask': {**_MASK, 'layers': 4},
}
_MASK_RCNN_C4 = {**_FASTER_RCNN_C4, 'name': 'mask_rcnn', 'mask': {**_MASK, 'layers': 0}}
_RETINANET = {
    **_R50,
    'name': 'retinanet',
    'fpn_features': 256,
    'extra_levels_from': 'c5',
    'head_depth': 4,
    'head_norm': None,
    'anchor_sizes': tuple(map(tuple, octave_sizes())),
    'aspect_ratios': (0.5, 1.0, 2.0),
    'round_anchors': False,
    'anchor_strides': 'power_of_two',
    'positive_iou': 0.5,
    'negative_iou': 0.4,
    'match_best_anchors': True,
    'focal_gamma': 2.0,
    'focal_alpha': 0.25,
    'box_loss': 'smooth_l1',
    'box_loss_beta': 0.0,
    'pre_nms_topk': 1000,
    'score_threshold': 0.05,
    'iou_threshold': 0.5,
    'clip_before_nms': False,
    'max_detections': 100,
}

_LEFT = (
    (r'^pixel_(mean|std)$', "compared with the model's"),
    (r'anchor_generator\.cell_anchors\.\d+$', "compared with the model's"),
)
_DECONVOLUTION = Rule(r'mask_head\.deconv\.weight$', as_convolution, 'IOHW -> OIHW, turned by half a turn')
_FLATTENED = Rule(r'box_head\.fc1\.weight$', channels_last, 'inputs C, h, w -> h, w, C')
_ANCHORS = r'(rpn_head\.(objectness_logits|anchor_deltas)|^head\.(cls_score|bbox_pred))\.(weight|bias)$'
_C4_ANCHORS, _RETINANET_ANCHORS = (
    Rule(_ANCHORS, partial(_aspect_ratios_first, sizes=sizes, aspect_ratios=3), f'anchors {sizes} x 3 -> 3 x {sizes}')
    for sizes in (5, 3)
)


def _peer(model: dict[str, Any], names: _Names, rules: tuple[Rule, ...], divisor: int) -> Peer:
    mapping = Mapping(torch_names(partial(_name, names=names)), partial(_same_conventions, model=model), rules, _LEFT)
    return Peer(model, mapping, divisor)


_FASTER_RCNN_C4_PEER, _MASK_RCNN_C4_PEER = (
    _peer(model, _C4_NAMES, (_C4_ANCHORS, _DECONVOLUTION), divisor=1) for model in (_FASTER_RCNN_C4, _MASK_RCNN_C4)
)
_FASTER_RCNN_FPN_PEER, _MASK_RCNN_FPN_PEER = (
    _peer(model, _FPN_NAMES, (_FLATTENED, _DECONVOLUTION), divisor=32) for model in (_FASTER_RCNN_FPN, _MASK_RCNN_FPN)
)
_RETINANET_PEER = _peer(_RETINANET, _RETINANET_NAMES, (_RETINANET_ANCHORS,), divisor=32)

PEERS = {
    'faster_rcnn_R_50_C4_1x': _FASTER_RCNN_C4_PEER,
    'faster_rcnn_R_50_C4_3x': _FASTER_RCNN_C4_PEER,
    'faster_rcnn_R_50_FPN_1x': _FASTER_RCNN_FPN_PEER,
    'faster_rcnn_R_50_FPN_3x': _FASTER_RCNN_FPN_PEER,
    'retinanet_R_50_FPN_1x': _RETINANET_PEER,
    'retinanet_R_50_FPN_3x': _RETINANET_PEER,
    'mask_rcnn_R_50_C4_1x': _MASK_RCNN_C4_PEER,
    'mask_rcnn_R_50_C4_3x': _MASK_RCNN_C4_PEER,
    'mask_rcnn_R_50_FPN_1x': _MASK_RCNN_FPN_PEER,
    'mask_rcnn_R_50_FPN_3x': _MASK_RCNN_FPN_PEER,
}
