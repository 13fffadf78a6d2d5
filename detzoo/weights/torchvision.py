"""Torchvision's models as ours: the same arrays under other names, kernels OIHW -> HWIO.

`PEERS` has the arguments with which our detectors compute what torchvision's models compute; `Peer.mapping` says how their
weights become our variables (see `weights.mapping`); `parity.torchvision` compares the two.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from detzoo.detectors import ssd
from detzoo.types import ModelState, Params
from detzoo.weights import darknet, torchvision_names
from detzoo.weights.files import read_entries
from detzoo.weights.mapping import (
    LEFT_COUNTERS,
    Entries,
    Mapping,
    Rule,
    Template,
    as_convolution,
    channels_last,
    fill,
    torch_names,
)


def _with_new_names(entries: Entries) -> Entries:
    """Renames the entries of old files: since then each convolution is wrapped together with its activation or norm."""

    def new_name(name: str) -> str:
        new = re.sub(r'((?:inner|layer)_blocks\.\d)\.(weight|bias)$', r'\1.0.\2', name)
        new = re.sub(r'(rpn\.head\.conv)\.(weight|bias)$', r'\1.0.0.\2', new)
        new = re.sub(r'mask_fcn(\d)\.(weight|bias)$', lambda m: f'{int(m[1]) - 1}.0.{m[2]}', new)
        new = re.sub(r'(_head\.conv)\.(\d)\.(weight|bias)$', lambda m: f'{m[1]}.{int(m[2]) // 2}.0.{m[3]}', new)
        return name if new in entries else new  # a file with both: the old name is left over, which is an error

    return {new_name(name): array for name, array in entries.items()}


def _anchors_background_last(array: np.ndarray, name: str, entries: Entries) -> np.ndarray:
    """Moves the first class of each anchor behind the others, in the last convolution of a level."""
    anchors = (
        len(entries[name.replace('classification', 'regression')]) // 4
    )  # without this entry `fill` raises an error
    return np.roll(array.reshape(anchors, -1, *array.shape[1:]), -1, axis=1).reshape(array.shape)


def _vgg_entries(entries: Entries) -> Entries:
    """Derives fc6 and fc7 from the classifier's layers, as SSD does (1512.02325, section 3).

    They take every fourth feature of the fully connected layers, and fc6 every third of their 7 x 7 cells. A file without
    these layers, or with NaNs instead as torchvision's IMAGENET1K_FEATURES, gives no fc6 and fc7.
    """
    kept = {name: array for name, array in entries.items() if not name.startswith('classifier.')}
    classifier = {name: entries[name] for name in entries if re.match(r'classifier\.[03]\.', name)}
    if not classifier or not all(np.isfinite(array).all() for array in classifier.values()):
        return kept
    for name, rank in _VGG_CLASSIFIER.items():
        if name not in classifier or classifier[name].ndim != rank:
            raise ValueError(
                f"not the weights of a VGG: it has no {name} of {rank} axes. Give one of torchvision's files"
            )
    fc6, fc7 = classifier['classifier.0.weight'], classifier['classifier.3.weight']
    fc6 = fc6.reshape(len(fc6), -1, 7, 7)
    kept |= {'fc6.weight': fc6[::4, :, ::3, ::3], 'fc6.bias': classifier['classifier.0.bias'][::4]}
    return kept | {'fc7.weight': fc7[::4, ::4, None, None], 'fc7.bias': classifier['classifier.3.bias'][::4]}


_VGG_CLASSIFIER = {'classifier.0.weight': 2, 'classifier.0.bias': 1, 'classifier.3.weight': 2, 'classifier.3.bias': 1}

# Classifiers, for the backbones of their names.
_CLASSIFIER = 'the classifier after the backbone'
RESNET = Mapping(torch_names(torchvision_names.resnet), left=(LEFT_COUNTERS, (r'^fc\.', _CLASSIFIER)))
MOBILENET_V2 = Mapping(
    torch_names(torchvision_names.mobilenet_v2), left=(LEFT_COUNTERS, (r'^classifier\.', _CLASSIFIER))
)
MOBILENET_V3_LARGE = Mapping(
    torch_names(torchvision_names.mobilenet_v3_large),
    left=(LEFT_COUNTERS, (r'^classifier\.', _CLASSIFIER)),
    anew='^(block13/project|block14|block15|last)/',  # of another shape, if the tail is reduced
)
VGG = Mapping(torch_names(torchvision_names.vgg), prepare=_vgg_entries, anew='^fc[67]/')

# Detectors. RetinaNet keeps torchvision's labels: 91 classes, of which 0, its background, is a class like any other.
RETINANET = Mapping(torch_names(torchvision_names.retinanet), prepare=_with_new_names)
_SSD_RULES = (
    Rule(r'classification_head\.module_list\.\d(\.1)?\.(weight|bias)$', _anchors_background_last, 'background last'),
)
SSD = Mapping(torch_names(torchvision_names.ssd, {'l2_norm/scale': 'backbone.scale_weight'}), rules=_SSD_RULES)
SSDLITE = Mapping(torch_names(torchvision_names.ssdlite), rules=_SSD_RULES)
RCNN = Mapping(
    torch_names(torchvision_names.rcnn),
    prepare=_with_new_names,
    rules=(
        Rule(r'box_head\.(fc6|5)\.weight$', channels_last, 'inputs C, h, w -> h, w, C'),
        Rule(r'box_predictor\.cls_score\.', lambda array, name, entries: np.roll(array, -1, axis=0), 'background last'),
        Rule(r'box_predictor\.bbox_pred\.', lambda array, name, entries: array[4:], "without background's 4 rows"),
        Rule(r'conv5_mask\.weight$', as_convolution, 'IOHW -> OIHW, turned by half a turn'),
        Rule(r'mask_fcn_logits\.', lambda array, name, entries: array[1:], "without background's mask"),
    ),
)
RCNN_V2 = RCNN._replace(name_of=torch_names(torchvision_names.rcnn_v2))
RCNN_MOBILENET_V3_LARGE = RCNN._replace(name_of=torch_names(torchvision_names.rcnn_mobilenet_v3_large))


def load_backbone(path: str, params: Params, model_state: ModelState) -> Template:
    """Reads a classifier into the backbone of a detector.

    Layers that the classifier lacks, or has in another shape, keep their values if its mapping says so: VGG's fc6 and fc7
    without fully connected layers in the file, and the reduced tail of MobileNetV3-Large.

    Args:
        path: a file with torchvision's names, written by torch or safetensors, or one of darknet's ('darknet53.conv.74').
        params: the detector's; its backbone lies under 'backbone', last stages that run on RoIs under 'trunk' and 'masked_trunk'.
        model_state: the detector's, with the same modules in each of its collections.

    Returns:
        (params, model_state) with another backbone; the arguments are not changed.

    Raises:
        ValueError: the file has no weights, torchvision or darknet has no such backbone, or the entries do not fit.
    """
    if _DARKNET.search(path):
        return darknet.backbone_variables(path, params, model_state)
    entries = read_entries(path)
    mapping = next((mapping for layer, mapping in _CLASSIFIERS.items() if layer in params['backbone']), None)
    if mapping is None:
        raise ValueError(
            f'{path}: torchvision has no classifier for the backbone of this model: leave it uninitialised'
        )
    trunks = [part for part in ('trunk', 'masked_trunk') if 'stage4_block1' in params.get(part, ())]
    parts = ['backbone', *trunks]

    def joined(tree: Any) -> Any:
        return {name: module for part in parts for name, module in tree[part].items()}

    def parted(tree: Any, modules: Any) -> Any:
        return {**tree, **{part: {name: modules[name] for name in tree[part]} for part in parts}}

    template = joined(params), {name: joined(tree) for name, tree in model_state.items()}
    modules, statistics = fill(mapping, entries, template, source=path).variables
    return parted(params, modules), {name: parted(tree, statistics[name]) for name, tree in model_state.items()}


_DARKNET = re.compile(r'\.(weights|conv\.\d+)$')  # how the names of darknet's files end
_CLASSIFIERS = {  # by a layer that none of the following classifiers has
    'stem_conv': RESNET,
    'block17': MOBILENET_V2,
    'block15': MOBILENET_V3_LARGE,
    'conv1_1': VGG,
}


class Peer(NamedTuple):
    """A model of torchvision and our counterpart.

    model: the arguments of `make_detector`.
    mapping: how its weights become our variables.
    """

    model: dict[str, Any]
    mapping: Mapping

    @property
    def max_detections(self) -> int:
        """How many detections both keep of an image."""
        return self.model.get('head', self.model)['max_detections']


_FASTER_RCNN = {
    'name': 'faster_rcnn',
    'num_classes': 90,  # background is torchvision's class 0, and none of ours
    'backbone': {
        'name': 'resnet50',
        'norm': 'frozen_batch_norm',
        'norm_epsilon': 0.0,  # set in torchvision's code when it loads its COCO_V1 files; the files do not say
    },
    'fpn_features': 256,
    'trunk_features': 1024,
    'class_agnostic': False,
    'rpn': {
        'anchor_sizes': ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        'aspect_ratios': (0.5, 1.0, 2.0),
        'round_anchors': True,
        'anchor_strides': 'canvas_over_grid',
        'positive_iou': 0.7,
        'negative_iou': 0.3,
        'match_best_anchors': True,
        'samples': 256,
        'positive_share': 0.5,
        'box_loss_beta': 1 / 9,
        'pre_nms_topk': 1000,
        'train_pre_nms_topk': 2000,
        'post_nms_topk': 1000,
        'train_post_nms_topk': 2000,
        'iou_threshold': 0.7,
        'min_size': 1e-3,
    },
    'roi': {
        'operator': 'align',
        'output_size': 7,
        'samples_per_bin': 2,
        'aligned': False,
        'canonical_size': 224.0,
    },
    'head': {
        'positive_iou': 0.5,
        'negative_iou': 0.5,
        'samples': 512,
        'positive_share': 0.25,
        'add_ground_truth': True,
        'delta_weights': (10.0, 10.0, 5.0, 5.0),
        'box_loss_beta': 1 / 9,
        'pre_nms_topk': 19 * 1000,  # all: at most 19 classes of a proposal have more than 0.05
        'score_threshold': 0.05,
        'iou_threshold': 0.5,
        'max_detections': 100,
        'min_size': 1e-2,
    },
    'mean': tuple(255 * x for x in (0.485, 0.456, 0.406)),
    'std': tuple(255 * x for x in (0.229, 0.224, 0.225)),
}

_SECOND_VERSION = {  # of the R-CNNs: batch norm that is trained, in the backbone and behind it
    'backbone': {'name': 'resnet50', 'norm': 'batch_norm', 'norm_epsilon': 1e-5},
    'fpn_norm': 'batch_norm',
    'trunk_conv_layers': 4,
    'trunk_fc_layers': 1,
    'trunk_norm': 'batch_norm',
    'rpn': {**_FASTER_RCNN['rpn'], 'layers': 2},
}
_MASKS = {
    'name': 'mask_rcnn',
    'mask_roi': {**_FASTER_RCNN['roi'], 'output_size': 14},
    'mask': {
        'head': 'fcn',
        'layers': 4,
        'features': 256,
        'class_agnostic': False,
        'activation': 'sigmoid',
        'targets': 'average',
    },
}
_MOBILENET = {
    'backbone': {
        'name': 'mobilenet_v3_large',
        'norm': 'frozen_batch_norm',
        'norm_epsilon': 1e-5,  # of torchvision's frozen batch norm; its classifier has 1e-3
        'reduced_tail': False,
    },
    'backbone_strides': (32, 32),  # the first block and the last layer of stride 32
}
_MOBILENET_RPN = {'anchor_sizes': ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3, 'score_threshold': 0.05}
_RETINANET = {
    'name': 'retinanet',
    'num_classes': 91,
    'backbone': {
        'name': 'resnet50',
        'norm': 'frozen_batch_norm',
        'norm_epsilon': 0.0,  # set in torchvision's code when it loads its COCO_V1 file; the file does not say
    },
    'fpn_features': 256,
    'extra_levels_from': 'p5',
    'head_depth': 4,
    'head_norm': None,
    'anchor_sizes': tuple(tuple(int(x * 2 ** (k / 3)) for k in range(3)) for x in (32, 64, 128, 256, 512)),
    'aspect_ratios': (0.5, 1.0, 2.0),
    'round_anchors': True,
    'anchor_strides': 'canvas_over_grid',
    'pre_nms_topk': 1000,
    'score_threshold': 0.05,
    'iou_threshold': 0.5,
    'max_detections': 300,
    'mean': tuple(255 * x for x in (0.485, 0.456, 0.406)),
    'std': tuple(255 * x for x in (0.229, 0.224, 0.225)),
}

PEERS = {
    'retinanet_resnet50_fpn': Peer(model=_RETINANET, mapping=RETINANET),
    'ssd300_vgg16': Peer(
        model={
            'name': 'ssd',
            'num_classes': 90,  # background is torchvision's class 0, and none of ours
            'backbone': {'name': 'vgg16', 'norm': None, 'fc6_dilation': 6},
            'backbone_strides': (8, 16),
            'l2_norm_scale': 20.0,
            'extra_layers': ssd.SSD300_LAYERS,
            'lite': False,
            'anchor_sizes': tuple(300 * x for x in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
            'aspect_ratios': ((1 / 2, 2), *((1 / 2, 2, 1 / 3, 3),) * 3, *((1 / 2, 2),) * 2),
            'anchor_strides': (8, 16, 32, 64, 100, 300),
            'clip_anchors': True,
            'pre_nms_topk': 400,
            'score_threshold': 0.01,
            'iou_threshold': 0.45,
            'max_detections': 200,
            'mean': tuple(255 * x for x in (0.48235, 0.45882, 0.40784)),
            'std': (1.0, 1.0, 1.0),
        },
        mapping=SSD,
    ),
    'ssdlite320_mobilenet_v3_large': Peer(
        model={
            'name': 'ssd',
            'num_classes': 90,
            'backbone': {
                'name': 'mobilenet_v3_large',
                'norm': 'batch_norm',
                'norm_epsilon': 1e-3,
                'reduced_tail': True,
            },
            'backbone_strides': (16, 32),
            'l2_norm_scale': None,
            'extra_layers': ssd.SSDLITE_LAYERS,
            'lite': True,
            'anchor_sizes': tuple(320 * x for x in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)),
            'aspect_ratios': ((1 / 2, 2, 1 / 3, 3),) * 6,
            'anchor_strides': (),
            'clip_anchors': True,
            'pre_nms_topk': 300,
            'score_threshold': 0.001,
            'iou_threshold': 0.55,
            'max_detections': 300,
            'mean': (127.5,) * 3,
            'std': (127.5,) * 3,
        },
        mapping=SSDLITE,
    ),
    'fasterrcnn_resnet50_fpn': Peer(model=_FASTER_RCNN, mapping=RCNN),
    'maskrcnn_resnet50_fpn': Peer(model={**_FASTER_RCNN, **_MASKS}, mapping=RCNN),
    'retinanet_resnet50_fpn_v2': Peer(
        model={
            **_RETINANET,
            'backbone': {'name': 'resnet50', 'norm': 'batch_norm', 'norm_epsilon': 1e-5},
            'extra_levels_from': 'c5',
            'head_norm': 'group_norm',
            'box_loss': 'giou',
        },
        mapping=RETINANET,
    ),
    'fasterrcnn_resnet50_fpn_v2': Peer(model={**_FASTER_RCNN, **_SECOND_VERSION}, mapping=RCNN_V2),
    'maskrcnn_resnet50_fpn_v2': Peer(
        model={**_FASTER_RCNN, **_SECOND_VERSION, **_MASKS, 'mask': {**_MASKS['mask'], 'norm': 'batch_norm'}},
        mapping=RCNN_V2,
    ),
    'fasterrcnn_mobilenet_v3_large_fpn': Peer(
        model={**_FASTER_RCNN, **_MOBILENET, 'rpn': {**_FASTER_RCNN['rpn'], **_MOBILENET_RPN}},
        mapping=RCNN_MOBILENET_V3_LARGE,
    ),
    'fasterrcnn_mobilenet_v3_large_320_fpn': Peer(
        model={
            **_FASTER_RCNN,
            **_MOBILENET,
            'rpn': {**_FASTER_RCNN['rpn'], **_MOBILENET_RPN, 'pre_nms_topk': 150, 'post_nms_topk': 150},
        },
        mapping=RCNN_MOBILENET_V3_LARGE,
    ),
}
