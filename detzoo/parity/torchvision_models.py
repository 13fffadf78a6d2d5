"""Torchvision's models: how each is built, and where the tensors on its way, and on ours, are found.

    VIEWS[name]       -> of a detector: its builder, the tensors to compare, what it is trained on
    CLASSIFIERS[name] -> of a classifier: our backbone, the layers to compare
    build_peer, build_classifier -> torch modules
    reduced_peer      -> our counterpart of a detector that is built for small images

What builds a model needs torch and torchvision (the extra `parity`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from detzoo.backbones.mobilenet import mobilenet_v2, mobilenet_v3_large
from detzoo.backbones.resnet import ResNet
from detzoo.core import boxes as box_ops
from detzoo.weights import mapping as weight_mapping
from detzoo.weights import torchvision
from detzoo.weights.torchvision import PEERS, Peer

# Torchvision's arguments of a reduced R-CNN, and ours of the same meaning. Its training draws nothing at random: a small image
# has fewer anchors and RoIs, and fewer positive ones, than are asked for, so that all are taken.
_REDUCED_RCNN = {
    'min_size': 128,
    'max_size': 256,
    'rpn_batch_size_per_image': 20_000,
    'rpn_post_nms_top_n_train': 100,
    'box_batch_size_per_image': 200,
    'box_positive_fraction': 0.1,
    'box_detections_per_img': 50,
}
_OUR_ARGUMENTS = {
    'rpn_batch_size_per_image': ('rpn', 'samples'),
    'rpn_post_nms_top_n_train': ('rpn', 'train_post_nms_topk'),
    'box_batch_size_per_image': ('head', 'samples'),
    'box_positive_fraction': ('head', 'positive_share'),
    'box_detections_per_img': ('head', 'max_detections'),
}


class View(NamedTuple):
    """How a detector of torchvision is built, and where the tensors on its way and on ours are found.

    build: makes torchvision's model from keyword arguments.
    tensors: names of the compared tensors, first to last: feature maps [1, h, w, C], outputs of the heads, anchors and, with
        two stages, proposals [P, 4].
    parts: parts of torchvision's model whose outputs hold these tensors.
    theirs: maps the outputs of these parts to the tensors, torch.
    ours: maps the outputs of our network's parts, and 'anchors', to the tensors.
    divisor: the sides of the canvas are padded to multiples of it.
    background: whether torchvision's first class is background, which is our last class.
    reduced: arguments of `build` for small images, which it then does not resize; see `reduced_peer`.
    losses: {torchvision's name: our name} of the compared losses.
    alone: whether each image is trained on as a batch of its own, since torchvision divides by the positives of an image,
        not of a batch.
    """

    build: Callable[..., Any]
    tensors: tuple[str, ...]
    parts: tuple[str, ...]
    theirs: Callable[[Mapping[str, Any]], list[Any]]
    ours: Callable[[Mapping[str, Any]], list[jax.Array]]
    divisor: int
    background: bool
    reduced: Mapping[str, Any] = MappingProxyType({})
    losses: Mapping[str, str] = MappingProxyType({})
    alone: bool = False


def _frozen_resnet50_fpn(**arguments: Any) -> Any:
    """Builds the backbone as published weights run it: frozen batch norm with epsilon 0.

    Torchvision's own functions do that only when they load a published file; otherwise its batch norm is trainable.
    """
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    norm = partial(FrozenBatchNorm2d, eps=0.0)
    return resnet_fpn_backbone(backbone_name='resnet50', weights=None, norm_layer=norm, **arguments)


def _build_retinanet(**changes: Any) -> Any:
    """Builds retinanet_resnet50_fpn."""
    from torchvision.models.detection import RetinaNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = _frozen_resnet50_fpn(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return RetinaNet(backbone, 91, **changes)


def _build_rcnn(kind: str, **changes: Any) -> Any:
    """Builds fasterrcnn_resnet50_fpn or maskrcnn_resnet50_fpn."""
    from torchvision.models import detection

    return getattr(detection, kind)(_frozen_resnet50_fpn(), 91, **changes)


def _build(name: str, **changes: Any) -> Any:
    """Builds a model with torchvision's function of that name."""
    from torchvision.models import detection

    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91, **changes)


def _build_mobilenet_rcnn(name: str, **changes: Any) -> Any:
    """Builds a Faster R-CNN on MobileNetV3-Large as published weights run it: frozen batch norm, torchvision's epsilon."""
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    model = _build(name, **changes)
    model.backbone = mobilenet_backbone(backbone_name='mobilenet_v3_large', weights=None, fpn=True)
    return model


def _their_levels(*outputs: Mapping[str, Any]) -> list[Any]:
    """Lists the feature maps of parts whose outputs are feature maps by name, channels last."""
    return [x.permute(0, 2, 3, 1) for levels in outputs for x in levels.values()]


def _their_head(outputs: Mapping[str, Any]) -> list[Any]:
    """Lists the outputs of a single-shot detector: cls_logits [1, A, classes], box_deltas [1, A, 4], anchors [A, 4]."""
    return [outputs['head']['cls_logits'], outputs['head']['bbox_regression'], outputs['anchor_generator'][0]]


def _their_stages(outputs: Mapping[str, Any]) -> list[Any]:
    """Lists the outputs of an R-CNN's stages as `_our_stages` does: levels one after the other, no boxes of background."""
    import torch

    def flat(levels: Sequence[Any], size: int) -> Any:
        return torch.cat([x.permute(0, 2, 3, 1).reshape(-1, size) for x in levels])

    objectness_logits, rpn_deltas = outputs['rpn.head']
    (proposals,), _ = outputs['rpn']
    cls_logits, box_deltas = outputs['roi_heads.box_predictor']
    box_deltas = box_deltas.reshape(len(proposals), -1, 4)[:, 1:]
    rpn = [flat(objectness_logits, 1)[:, 0], flat(rpn_deltas, 4), outputs['rpn.anchor_generator'][0]]
    return [*rpn, proposals, cls_logits, box_deltas]


def _our_stages(outputs: Mapping[str, Any]) -> list[jax.Array]:
    """Lists the outputs of an R-CNN's stages for one image, RoIs without padding.

    They are objectness_logits [A], rpn_deltas [A, 4], anchors [A, 4], proposals [P, 4], cls_logits [P, K + 1],
    box_deltas [P, K, 4].
    """
    (objectness_logits,), (rpn_deltas,) = outputs['rpn_head']
    (rois,) = outputs['rois']
    valid = np.asarray(box_ops.area(rois)) > 0
    return [objectness_logits, rpn_deltas, outputs['anchors'], *(x[valid] for x in (rois, *outputs['box_head']))]


_RCNN_LOSSES = {
    'loss_objectness': 'rpn_cls_loss',
    'loss_rpn_box_reg': 'rpn_box_loss',
    'loss_classifier': 'cls_loss',
    'loss_box_reg': 'box_loss',
}
_SSD = View(
    build=partial(_build, 'ssd300_vgg16'),
    tensors=('level1', 'level2', 'level3', 'level4', 'level5', 'level6', 'cls_logits', 'box_deltas', 'anchors'),
    parts=('backbone', 'head', 'anchor_generator'),
    theirs=lambda outputs: [*_their_levels(outputs['backbone']), *_their_head(outputs)],
    ours=lambda outputs: [
        outputs.get('l2_norm', outputs['backbone'][0]),
        outputs['backbone'][1],
        *outputs['extra_layers'],
        outputs['cls_head'],
        outputs['box_head'],
        outputs['anchors'],
    ],
    divisor=1,
    background=True,
)
_RCNN = View(
    build=partial(_build_rcnn, 'FasterRCNN'),
    tensors=(
        *('C2', 'C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5', 'P6'),
        *('objectness_logits', 'rpn_deltas', 'anchors', 'proposals', 'cls_logits', 'box_deltas'),
    ),
    parts=('backbone.body', 'backbone', 'rpn.head', 'rpn.anchor_generator', 'rpn', 'roi_heads.box_predictor'),
    theirs=lambda outputs: [*_their_levels(outputs['backbone.body'], outputs['backbone']), *_their_stages(outputs)],
    ours=lambda outputs: [*outputs['backbone'], *outputs['fpn'], *_our_stages(outputs)],
    divisor=32,
    background=True,
    reduced=_REDUCED_RCNN,
    losses=_RCNN_LOSSES,
)
_MOBILENET_RCNN = _RCNN._replace(
    tensors=('block13', 'last', 'level1', 'level2', 'level3', *_RCNN.tensors[-6:]),
    build=partial(_build_mobilenet_rcnn, 'fasterrcnn_mobilenet_v3_large_fpn'),
)
_RETINANET = View(
    build=_build_retinanet,
    tensors=('C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7', 'cls_logits', 'box_deltas', 'anchors'),
    parts=('backbone.body', 'backbone', 'head', 'anchor_generator'),
    theirs=lambda outputs: [*_their_levels(outputs['backbone.body'], outputs['backbone']), *_their_head(outputs)],
    ours=lambda outputs: [
        *outputs['backbone'],
        *outputs['fpn'],
        outputs['cls_head'],
        outputs['box_head'],
        outputs['anchors'],
    ],
    divisor=32,
    background=False,
    reduced=dict(min_size=96, max_size=128),
)
VIEWS = {
    'retinanet_resnet50_fpn': _RETINANET,
    'ssd300_vgg16': _SSD,
    'ssdlite320_mobilenet_v3_large': _SSD._replace(build=partial(_build, 'ssdlite320_mobilenet_v3_large')),
    'fasterrcnn_resnet50_fpn': _RCNN,
    'maskrcnn_resnet50_fpn': _RCNN._replace(
        build=partial(_build_rcnn, 'MaskRCNN'), losses={**_RCNN_LOSSES, 'loss_mask': 'mask_loss'}
    ),
    # In the second version all batch norms are trained, and published weights run with torchvision's own functions.
    'retinanet_resnet50_fpn_v2': _RETINANET._replace(
        build=partial(_build, 'retinanet_resnet50_fpn_v2'),
        reduced=dict(min_size=128, max_size=256),
        losses={'classification': 'cls_loss', 'bbox_regression': 'box_loss'},
        alone=True,
    ),
    'fasterrcnn_resnet50_fpn_v2': _RCNN._replace(build=partial(_build, 'fasterrcnn_resnet50_fpn_v2')),
    'maskrcnn_resnet50_fpn_v2': _RCNN._replace(
        build=partial(_build, 'maskrcnn_resnet50_fpn_v2'), losses={**_RCNN_LOSSES, 'loss_mask': 'mask_loss'}
    ),
    'fasterrcnn_mobilenet_v3_large_fpn': _MOBILENET_RCNN,
    'fasterrcnn_mobilenet_v3_large_320_fpn': _MOBILENET_RCNN._replace(
        build=partial(_build_mobilenet_rcnn, 'fasterrcnn_mobilenet_v3_large_320_fpn')
    ),
}


class Classifier(NamedTuple):
    """A classifier of torchvision and our backbone of its layers.

    backbone: our backbone.
    mapping: how the classifier's weights become the backbone's variables.
    parts: parts of torchvision's classifier whose outputs are those of our backbone.
    """

    backbone: nn.Module
    mapping: weight_mapping.Mapping
    parts: tuple[str, ...]


_RESNET_STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
CLASSIFIERS = {
    'resnet18': Classifier(ResNet(18), torchvision.RESNET, _RESNET_STAGES),
    'resnet34': Classifier(ResNet(34), torchvision.RESNET, _RESNET_STAGES),
    'resnet50': Classifier(ResNet(50), torchvision.RESNET, _RESNET_STAGES),
    'resnet101': Classifier(ResNet(101), torchvision.RESNET, _RESNET_STAGES),
    'mobilenet_v2': Classifier(
        mobilenet_v2(norm_epsilon=1e-5), torchvision.MOBILENET_V2, ('features.14.conv.0', 'features.18')
    ),
    'mobilenet_v3_large': Classifier(
        mobilenet_v3_large(reduced_tail=False), torchvision.MOBILENET_V3_LARGE, ('features.13.block.0', 'features.16')
    ),
}


def build_peer(name: str, **changes: Any) -> Any:
    """Builds torchvision's model. Needs torchvision.

    Args:
        name: a key of PEERS.
        **changes: arguments of torchvision's RetinaNet, FasterRCNN or MaskRCNN, such as min_size and max_size, the limits of
            the resized image's sides; an SSD takes none. See `View.reduced`.

    Returns:
        the torch module, in evaluation mode.
    """
    return VIEWS[name].build(**changes).eval()


def reduced_peer(name: str) -> Peer:
    """Makes our counterpart of a model that is built with `View.reduced`."""
    peer = PEERS[name]
    model = dict(peer.model)
    for argument, value in VIEWS[name].reduced.items():
        if argument in _OUR_ARGUMENTS:
            group, key = _OUR_ARGUMENTS[argument]
            model[group] = {**model[group], key: value}
    return peer._replace(model=model)


def build_classifier(name: str) -> Any:
    """Builds a classifier of torchvision, a key of CLASSIFIERS, in evaluation mode. Needs torchvision."""
    from torchvision import models

    return getattr(models, name)(weights=None).eval()
