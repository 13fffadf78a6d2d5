"""The means to show that torchvision's weights compute here what they compute at home; see `weights.parity`.

    drawn_entries -> load_state_dict  -> run_peer     -> tensors, detections, and the image as torchvision resizes it
                  -> Peer.mapping     -> run_detector -> the same of our detector, on that image
    the same weights, drawn_training -> peer_losses, detector_losses -> what both are trained on
    run_classifier, run_backbone -> the same of a classifier's layers

What runs the peer needs torch and torchvision (the extra `parity`).
"""

import contextlib
import operator
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from detzoo.backbones.mobilenet import mobilenet_v2, mobilenet_v3_large
from detzoo.backbones.resnet import ResNet
from detzoo.core import boxes as box_ops
from detzoo.core.masks import paste_masks
from detzoo.detectors import make_detector
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.parity.compare import differences, drawn_objects, pair_boxes, predict_with_intermediates
from detzoo.types import Batch, Detector, GroundTruth, Inputs, ModelState, Params
from detzoo.weights import mapping as weight_mapping
from detzoo.weights import torchvision
from detzoo.weights.files import read_entries
from detzoo.weights.torchvision import PEERS, Peer

# The deviation of a convolution's output, for inputs that had deviation 1 before a ReLU; 1.7 where none is named.
_GAINS = {
    'backbone.body.13.block.3.': 0.8,  # the two layers of a MobileNet that go into a pyramid
    'backbone.body.16.': 1.1,
    'rpn.head.bbox_pred': 0.1,
    'box_predictor.bbox_pred': 0.4,
    'cls_score': 1.5,
    'conv5_mask': 3.4,  # torch's IOHW: an output has a quarter of the inputs that its shape tells
    'mask_fcn_logits': 3.0,
    'extra_blocks': 1.2,
    'fpn.': 0.6,
    'bbox_reg': 0.15,
    'cls_logits': 0.8,
    'classification_head.module_list': 1.5,
    'regression_head.module_list': 0.8,
    '.fc1.': 2.0,  # of squeeze-and-excitation
    '.fc2.': 2.0,
    '.block.': 1.3,  # of MobileNet: not all of its convolutions have an activation behind them
    'features.1.': 1.3,
    'head.conv.': 1.7,
    '.conv.': 1.2,  # of MobileNetV2, likewise, whose activations end at 6
}

# Torchvision's arguments of a reduced R-CNN, and ours of the same meaning. Its training draws nothing at random: of a small
# image it takes all anchors and all RoIs, since there are fewer of them, and fewer positive ones, than are asked for.
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
_OBJECT_SIDE = 56  # of drawn objects, pixels


def drawn_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws weights for a network of torch's layout, each entry from a stream of its own that its name seeds.

    They keep activations of like size through bottleneck blocks, let scores spread over 0..1, and leave boxes on the
    image.

    Args:
        shapes: of the entries by their names; convolutions are OIHW.

    Returns:
        float32 arrays by the same names, without the counters `num_batches_tracked`.
    """
    return {name: _draw(name, shape) for name, shape in shapes.items() if not name.endswith('num_batches_tracked')}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws one entry; the streams of RandomState are frozen for good, those of default_rng are not."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) in (2, 4):
        kernel = random.standard_normal(shape)
        if not re.search(r'conv1\.weight$', name) and shape[1] not in (1, 3):
            # Inputs have been through a ReLU: without their common mean the outputs would hardly vary over the image.
            kernel -= kernel.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        gain = next((gain for part, gain in _GAINS.items() if part in name), 1.7)
        if name == 'backbone.features.0.weight':
            gain /= 150  # the pixels of an SSD of VGG are not divided by their deviation
        values = kernel * gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('running_var'):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith('scale_weight'):
        values = random.uniform(15, 25, shape)
    elif name.endswith('.weight'):
        # The last norm of a bottleneck is small, so that sixteen residuals do not add up to an explosion. RetinaNet's norms
        # are all that makes its scores vary.
        values = random.uniform(0.8, 1.2, shape) * (0.25 if 'bn3' in name else 3.5 if '_head.conv.' in name else 1)
    else:
        values = random.standard_normal(shape) * 0.1 + _shift(name, shape)
    return values.astype(np.float32)


def _shift(name: str, shape: tuple[int, ...]) -> np.ndarray | float:
    """The mean of drawn biases: few scores are high, and proposals are larger than anchors, hence of all levels."""
    if name.endswith('classification_head.cls_logits.bias'):
        return -9
    if name.endswith('cls_score.bias'):
        return np.eye(1, *shape)[0] * 8  # background
    if name.endswith('rpn.head.bbox_pred.bias'):
        return np.resize([0, 0, 1, 1], shape)
    return 0


class View(NamedTuple):
    """How a model of torchvision is built, and where the tensors on its way and on ours are found.

    build: torchvision's model, by keyword arguments.
    tensors: names of what is compared: feature maps [1, h, w, C], outputs of the heads, anchors and, of two stages,
        proposals [P, 4]; in the order of the way.
    parts: of torchvision's model, whose outputs hold them.
    theirs: from the outputs of these parts to the tensors, torch.
    ours: from the outputs of our network's parts, and 'anchors', to the tensors.
    divisor: of the sides of the canvas, which is padded.
    background: whether torchvision's first class is background, which is our last one.
    reduced: arguments of `build` for small images, which it does not resize; see `reduced_peer`.
    losses: our names of the losses that are compared, by torchvision's.
    alone: whether each image is trained on as a batch of its own, as torchvision divides by an image's positives, not by a
        batch's.
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
    """Builds the backbone as published weights run: frozen batch norm with epsilon 0.

    Torchvision's own functions do that only when they load a published file; else they make a trainable batch norm.
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
    """Builds a model by the function of torchvision that bears its name."""
    from torchvision.models import detection

    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91, **changes)


def _build_mobilenet_rcnn(name: str, **changes: Any) -> Any:
    """Builds a Faster R-CNN on MobileNetV3-Large as published weights run: frozen batch norm, with torchvision's epsilon."""
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    model = _build(name, **changes)
    model.backbone = mobilenet_backbone(backbone_name='mobilenet_v3_large', weights=None, fpn=True)
    return model


def _their_levels(*outputs: Mapping[str, Any]) -> list[Any]:
    """The feature maps of parts that put out several by name, channels last."""
    return [x.permute(0, 2, 3, 1) for levels in outputs for x in levels.values()]


def _their_head(outputs: Mapping[str, Any]) -> list[Any]:
    """What a single-shot detector puts out: cls_logits [1, A, classes], box_deltas [1, A, 4], anchors [A, 4]."""
    return [outputs['head']['cls_logits'], outputs['head']['bbox_regression'], outputs['anchor_generator'][0]]


def _their_stages(outputs: Mapping[str, Any]) -> list[Any]:
    """What the stages of an R-CNN put out: as `_our_stages`, of levels one after the other; no boxes of background."""
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
    """What the stages of an R-CNN put out of one image, RoIs without padding.

    Objectness_logits [A], rpn_deltas [A, 4], anchors [A, 4], proposals [P, 4], cls_logits [P, K + 1],
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
        *outputs['backbone'][1:],
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

    backbone: ours.
    mapping: of its weights.
    parts: of torchvision's classifier, which put out what our backbone does.
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


def build_classifier(name: str) -> Any:
    """Builds a classifier of torchvision, a key of CLASSIFIERS, evaluating. Needs torchvision."""
    from torchvision import models

    return getattr(models, name)(weights=None).eval()


def run_classifier(name: str, model: Any, image: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's classifier on an image [h, w, 3] uint8.

    Returns:
        what its parts put out, [1, h', w', C] each; and logits [1, 1000].
    """
    import torch

    with _outputs_of(model, CLASSIFIERS[name].parts) as outputs, torch.inference_mode():
        logits = model(torch.from_numpy(_pixels(image)).permute(0, 3, 1, 2)).numpy()
    return {part: outputs[part].permute(0, 2, 3, 1).numpy() for part in CLASSIFIERS[name].parts}, logits


def classify(model: Any, features: np.ndarray) -> np.ndarray:
    """Lets the last layers of torchvision's classifier tell the classes of features [1, h, w, C]: logits [1, 1000]."""
    import torch

    layers = model.fc if hasattr(model, 'fc') else model.classifier
    with torch.inference_mode():
        return layers(torch.from_numpy(features.mean(axis=(1, 2)))).numpy()


def run_backbone(name: str, entries: Mapping[str, np.ndarray], image: np.ndarray) -> dict[str, np.ndarray]:
    """Runs our backbone of a classifier's entries: as `run_classifier`, but without logits."""
    backbone, mapping, parts = CLASSIFIERS[name]
    pixels = _pixels(image)
    variables = jax.eval_shape(partial(backbone.init, train=False), jax.random.key(0), pixels)
    params, model_state = weight_mapping.fill(mapping, entries, (variables.pop('params'), variables))
    outputs = jax.jit(partial(backbone.apply, train=False))({'params': params, **model_state}, pixels)
    return dict(zip(parts, jax.device_get(outputs), strict=True))


def _pixels(image: np.ndarray) -> np.ndarray:
    """Normalises an image as classifiers see it: [1, h, w, 3] float32."""
    return ((image[None] - np.array(IMAGENET_MEAN)) / IMAGENET_STD).astype(np.float32)


def build_peer(name: str, **changes: Any) -> Any:
    """Builds torchvision's model. Needs torchvision.

    Args:
        name: a key of PEERS.
        **changes: of torchvision's RetinaNet, FasterRCNN or MaskRCNN, for example min_size and max_size, limits of the
            resized image's sides; none of an SSD. See `View.reduced`.

    Returns:
        the torch module, evaluating.
    """
    return VIEWS[name].build(**changes).eval()


def reduced_peer(name: str) -> Peer:
    """Our counterpart of a model that is built with `View.reduced`."""
    peer = PEERS[name]
    model = dict(peer.model)
    for argument, value in VIEWS[name].reduced.items():
        if argument in _OUR_ARGUMENTS:
            group, key = _OUR_ARGUMENTS[argument]
            model[group] = {**model[group], key: value}
    return peer._replace(model=model)


def class_names(name: str) -> list[str]:
    """The names of ImageNet's classes. Needs torchvision."""
    from torchvision import models

    return models.get_model_weights(name).DEFAULT.meta['categories']


def fill_peer(model: Any, path: str) -> dict[str, np.ndarray]:
    """Fills torchvision's model with the entries of a file, and returns them. Needs torch."""
    import torch

    entries = read_entries(path)
    model.load_state_dict({name: torch.tensor(value) for name, value in entries.items()})
    return entries


def draw_peer(model: Any) -> dict[str, np.ndarray]:
    """Fills torchvision's model with drawn weights. Needs torch.

    Args:
        model: of `build_peer`.

    Returns:
        its entries.
    """
    import torch

    entries = drawn_entries({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(value) for name, value in entries.items()}, strict=False)  # no counters
    return entries


def run_peer(
    name: str, model: Any, image: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's model on one image and keeps the tensors on the way. Needs torch.

    Args:
        name: a key of PEERS.
        model: of `build_peer`.
        image: [h, w, 3] uint8 RGB.

    Returns:
        tensors: those of `View.tensors`, by name; as to classes, in our order.
        detections: boxes [n, 4] xyxy pixels of the image, scores [n], labels [n], of a Mask R-CNN masks [n, h, w] bool; as
            to classes, in our order.
        resized: [h', w', 3] float32 in 0..255, the image as the model resizes it.
    """
    import torch

    view = VIEWS[name]
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    with _outputs_of(model, view.parts) as outputs, torch.inference_mode():
        (detections,) = model([pixels])
        resized, _ = model.transform.resize(pixels)
        tensors = dict(zip(view.tensors, view.theirs(outputs), strict=True))
    if view.background:
        tensors['cls_logits'] = tensors['cls_logits'].roll(-1, dims=-1)
        detections['labels'] = detections['labels'] - 1
    if 'masks' in detections:
        detections['masks'] = detections['masks'][:, 0] > 0.5
    tensors, detections = ({key: x.numpy() for key, x in found.items()} for found in (tensors, detections))
    return tensors, detections, 255 * resized.permute(1, 2, 0).numpy()


@contextlib.contextmanager
def _outputs_of(model: Any, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Keeps what parts of a torch module put out while it runs."""
    outputs = {}

    def keep(part: str) -> Any:
        return model.get_submodule(part).register_forward_hook(
            lambda module, args, output: outputs.update({part: output})
        )

    hooks = [keep(part) for part in parts]
    yield outputs
    for hook in hooks:
        hook.remove()


def run_detector(
    name: str, detector: Detector, params: Params, model_state: ModelState, resized: np.ndarray, size: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs our detector on the peer's canvas: the resized image, padded to a multiple of the peer's divisor.

    Args:
        name: a key of PEERS.
        detector, params, model_state: the counterpart of the peer.
        resized: [h', w', 3] float32 in 0..255, as the peer resizes the image.
        size: (h, w) of the image before, to whose pixels boxes are mapped as the peer does.

    Returns:
        tensors and detections, as `run_peer` returns them.
    """
    view = VIEWS[name]
    height, width = resized.shape[:2]
    canvas = np.pad(resized, ((0, -height % view.divisor), (0, -width % view.divisor), (0, 0)))
    inputs = Inputs(canvas[None], np.float32([[0, 0, width, height]]))
    found, outputs = jax.jit(partial(predict_with_intermediates, detector))(params, model_state, inputs)
    outputs['anchors'] = _anchors(detector, params, model_state, inputs)
    tensors = {key: np.asarray(x) for key, x in zip(view.tensors, view.ours(outputs), strict=True)}
    valid = np.asarray(found.valid[0])
    detections = {
        key: np.asarray(x[0])[valid]
        for key, x in found._replace(candidates_dropped=None)._asdict().items()
        if x is not None
    }
    detections['boxes'] *= np.tile(np.float32([size[1] / width, size[0] / height]), 2)
    if 'masks' in detections:
        detections['masks'] = paste_masks(detections['masks'], detections['boxes'], size, convention='torchvision')
    return tensors, detections


def in_order_of(proposals: np.ndarray, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Brings the tensors of RoIs to the order of a peer's proposals, since near ties of scores may change it.

    Args:
        proposals: [P, 4], of the peer.
        tensors: of `run_detector` for an R-CNN.

    Returns:
        the tensors; proposals, cls_logits and box_deltas have a row for each of the peer's proposals, NaN where it is none
        of ours.
    """
    rows, _ = pair_boxes(tensors['proposals'], proposals, min_iou=0.99)

    def ordered(tensor: np.ndarray) -> np.ndarray:
        found = (rows >= 0).reshape(-1, *[1] * (tensor.ndim - 1))
        return np.where(found, tensor[rows], np.nan)

    return {**tensors, **{name: ordered(tensors[name]) for name in ('proposals', 'cls_logits', 'box_deltas')}}


def compare_entries(
    name: str, entries: Mapping[str, np.ndarray], params: Params, model_state: ModelState, image: np.ndarray
) -> dict[str, float]:
    """Runs torchvision's model with the entries of a file, and ours with the variables made of them. Needs torch.

    Args:
        name: a key of PEERS.
        entries: by torchvision's names, old or new.
        params, model_state: of our detector.
        image: [h, w, 3] uint8 RGB.

    Returns:
        the largest difference of each tensor of `View.tensors`, over its maximum.
    """
    import torch

    model = build_peer(name)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in entries.items()}, strict=False)
    theirs, _, resized = run_peer(name, model, image)
    ours, _ = run_detector(name, make_detector(**PEERS[name].model), params, model_state, resized, image.shape[:2])
    return differences(in_order_of(theirs['proposals'], ours) if 'proposals' in theirs else ours, theirs)


def drawn_training(image: np.ndarray, num_classes: int) -> tuple[list[np.ndarray], GroundTruth]:
    """Makes three images of one, with four, three and no objects.

    Args:
        image: [h, w, 3] uint8, with h < w.
        num_classes: K.

    Returns:
        the images, of which the second is narrower, and their ground truth; see `drawn_objects`.
    """
    images = [image, image[:, : image.shape[1] // 3 * 2][:, ::-1], image[::-1]]
    sizes = [x.shape[:2] for x in images]
    return images, drawn_objects(sizes, (4, 3, 0), side=_OBJECT_SIDE, num_classes=num_classes, seed=0)


def peer_losses(name: str, model: Any, images: Sequence[np.ndarray], gt: GroundTruth) -> dict[str, float]:
    """Computes the losses of torchvision's model. Needs torch.

    Args:
        name: a key of PEERS.
        model: of `build_peer` with `View.reduced`.
        images: each [h, w, 3] uint8 RGB.
        gt: of these images, with masks of as many cells as their boxes have pixels.

    Returns:
        the losses of `View.losses` by our names.
    """
    import torch

    view = VIEWS[name]

    def target(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
        pasted = np.zeros((len(boxes), *image.shape[:2]), np.uint8)
        for canvas, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes.astype(int)):
            canvas[y1:y2, x1:x2] = mask
        labels = labels.astype(np.int64) + view.background
        return {'boxes': torch.tensor(boxes), 'labels': torch.tensor(labels), 'masks': torch.tensor(pasted)}

    rows = zip(gt.boxes, gt.labels, gt.masks, gt.valid)
    targets = [target(image, *(x[valid] for x in objects)) for image, (*objects, valid) in zip(images, rows)]
    pixels = [torch.tensor(image.copy()).permute(2, 0, 1) / 255 for image in images]
    model.train()
    with torch.no_grad():
        found = [model(pixels[batch], targets[batch]) for batch in _batches(view, len(images))]
    model.eval()
    return {name: sum(losses[key].item() for losses in found) / len(found) for key, name in view.losses.items()}


def detector_losses(
    name: str,
    detector: Detector,
    params: Params,
    model_state: ModelState,
    images: Sequence[np.ndarray],
    gt: GroundTruth,
) -> dict[str, float]:
    """Computes the losses of our detector on the peer's canvas.

    Args:
        name: a key of PEERS.
        detector, params, model_state: the counterpart of the peer, see `reduced_peer`.
        images, gt: as for `peer_losses`.

    Returns:
        as `peer_losses`.
    """
    view, loss = VIEWS[name], jax.jit(detector.loss)
    found = []
    for rows in _batches(view, len(images)):
        batch = _padded_batch(images[rows], jax.tree.map(operator.itemgetter(rows), gt), view.divisor)
        _, (_, metrics) = loss(params, model_state, batch, jax.random.key(0))
        found.append(metrics)
    return {name: sum(float(metrics[name]) for metrics in found) / len(found) for name in view.losses.values()}


def _batches(view: View, count: int) -> list[slice]:
    """The rows of images that are trained on together."""
    return [slice(row, row + 1) for row in range(count)] if view.alone else [slice(count)]


def _padded_batch(images: Sequence[np.ndarray], gt: GroundTruth, divisor: int) -> Batch:
    """Puts images on a canvas that holds them all."""
    sizes = np.array([image.shape[:2] for image in images])
    canvas = np.zeros((len(images), *-(-sizes.max(axis=0) // divisor) * divisor, 3), np.float32)
    for place, image in zip(canvas, images):
        place[: image.shape[0], : image.shape[1]] = image
    window = np.concatenate([np.zeros_like(sizes), sizes[:, ::-1]], axis=1).astype(np.float32)
    return Batch(Inputs(canvas, window), gt, np.arange(len(images), dtype=np.int32), np.ones(len(images), bool))


def _anchors(detector: Detector, params: Params, model_state: ModelState, inputs: Inputs) -> jax.Array:
    """The anchors of a canvas, [A, 4]: what `assign` matches first. The compiler drops the network: they need it not."""
    row = np.zeros((1, 1), bool)
    counts = np.zeros(1, np.int32)
    gt = GroundTruth(np.zeros((1, 1, 4), np.float32), row.astype(np.int32), row, row, counts, counts)
    batch = Batch(inputs, gt, counts, np.ones(1, bool))

    @jax.jit
    def assign(params: Params, model_state: ModelState, batch: Batch) -> jax.Array:
        stages = detector.assign(params, model_state, batch, jax.random.key(0))
        return stages['rpn' if 'rpn' in stages else 'anchors'].boxes[0]

    return assign(params, model_state, batch)
