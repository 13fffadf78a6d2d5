"""Torchvision's segmenters as ours: the same arrays under other names, kernels OIHW -> HWIO, background last.

`PEERS` has the arguments with which our segmenters compute what torchvision's models compute, and the mapping of their weights (see
`weights.mapping`); `parity.torchvision_segmentation` compares the two. The published files have the twenty classes of PASCAL VOC.
"""

import re
from functools import partial
from typing import Any

import numpy as np

from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.weights import torchvision_names
from detzoo.weights.mapping import Mapping, Rule, torch_names
from detzoo.weights.torchvision import Peer

_LAYERS = {'conv': 0, 'norm': 1}
_POOLED = 4  # of ASPP's branches in torchvision; its layers come after the pooling


def name_of(path: str, *, first: int) -> str:
    """Names a part of torchvision's model: 'head/aspp/branch2/conv' -> 'classifier.0.convs.1.0'.

    Args:
        path: path of our module.
        first: place of the head's 3x3 convolution in torchvision's head: 0, or 1 after ASPP.

    Raises:
        ValueError: torchvision has no such part.
    """
    part, _, rest = path.partition('/')
    if part == 'backbone':
        return f'backbone.{torchvision_names.resnet(rest)}'
    name, first = {'head': ('classifier', first), 'auxiliary_head': ('aux_classifier', 0)}[part]
    if rest == 'logits':
        return f'{name}.4'
    *layers, kind = rest.split('/')
    if kind not in _LAYERS or layers[-1] in _LAYERS and layers != ['conv']:
        raise ValueError(f"torchvision has no {path}: set the model's head_norm to 'batch_norm'")
    place = _LAYERS[kind]
    if layers == ['conv']:
        return f'{name}.{first + place}'
    if layers[-1] == 'project':
        return f'{name}.0.project.{place}'
    if layers[-1] == 'pooled':
        return f'{name}.0.convs.{_POOLED}.{1 + place}'
    number = int(re.fullmatch(r'branch(\d)', layers[-1])[1])
    return f'{name}.0.convs.{number - 1}.{place}'


_RULES = (
    Rule(r'classifier\.4\.', lambda array, name, entries: np.roll(array, -1, axis=0), 'background last'),
)  # of both heads
FCN = Mapping(torch_names(partial(name_of, first=0)), rules=_RULES)
DEEPLAB = Mapping(torch_names(partial(name_of, first=1)), rules=_RULES)


def _model(backbone: str, **head: Any) -> dict[str, Any]:
    return {
        'name': 'deeplab',
        'num_classes': 20,  # background is torchvision's class 0, and our last one
        'backbone': {'name': backbone, 'norm': 'batch_norm', 'norm_epsilon': 1e-5, 'dilation': 4},
        'backbone_strides': (8, 8),
        'head_norm': 'batch_norm',
        'auxiliary_features': 256,
        'auxiliary_dropout': 0.1,
        'auxiliary_loss_weight': 0.5,
        'mean': IMAGENET_MEAN,
        'std': IMAGENET_STD,
        **head,
    }


_FCN = {'head': 'fcn', 'features': 512, 'dropout': 0.1}
_DEEPLAB = {'head': 'aspp', 'features': 256, 'rates': (12, 24, 36), 'dropout': 0.5}
PEERS = {
    'fcn_resnet50': Peer(_model('resnet50', **_FCN), FCN),
    'fcn_resnet101': Peer(_model('resnet101', **_FCN), FCN),
    'deeplabv3_resnet50': Peer(_model('resnet50', **_DEEPLAB), DEEPLAB),
    'deeplabv3_resnet101': Peer(_model('resnet101', **_DEEPLAB), DEEPLAB),
}
