"""Weights of torchvision in ours: the same arrays under other names, kernels OIHW -> HWIO.

    file -> entries {name: array} -> for each of our variables: its name there -> transposed -> (params, model_state)

Our tree leads: each variable asks for its entry, so nothing can be left out, and what nobody asked for is an error too.
`PEERS` says with which arguments our detectors compute what torchvision's models compute; `Peer.mapping` how their
weights come over; `weights.torchvision_parity` compares the two.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from detzoo.detectors import ssd
from detzoo.types import ModelState, Params
from detzoo.weights import torchvision_names

Entries = Mapping[str, np.ndarray]
Template = tuple[Params, ModelState]  # arrays or shapes, as `Detector.init` or `jax.eval_shape` of it return them

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # torch's axes in our order: OIHW -> HWIO, OI -> IO
_OTHERS = {'l2_norm/scale': 'backbone.scale_weight'}  # entries that are not named by module and leaf
_LISTED = 4  # entries a kind of an error message


def resnet_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a ResNet from a classifier of torchvision (`conv1.weight`, `layer1.0.bn1.running_var`, ...; `fc` is left).

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `backbones.resnet.ResNet`, with batch norm, frozen or not.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if the template has group norm.
    """
    return _fill(template, entries, torchvision_names.resnet, source, ignored='fc.')


def mobilenet_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a MobileNetV3-Large from a classifier of torchvision (`features.0.0.weight`, ...; `classifier` is left).

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `backbones.mobilenet.MobileNetV3Large`, with batch norm, frozen or not; a
            classifier's tail is not reduced.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if the template has group norm.
    """
    return _fill(template, entries, torchvision_names.mobilenet_v3_large, source, ignored='classifier.')


def vgg_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a VGG-16 from a classifier of torchvision (`features.0.weight`, ...).

    fc6 and fc7 take every fourth feature of the fully connected layers, fc6 every third of their 7 x 7 cells, as SSD does
    (1512.02325, section 3). A file without those layers, or with NaN in their place as torchvision's
    IMAGENET1K_FEATURES, leaves fc6 and fc7 as they are: to be trained from scratch.

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `backbones.vgg.VGG16` without a norm.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy but for what is left as it is.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if the template has a norm.
    """
    params, model_state = template
    classifier = {name: entries[name] for name in entries if re.match(r'classifier\.[03]\.', name)}
    entries = {name: array for name, array in entries.items() if not name.startswith('classifier.')}
    if classifier and all(np.isfinite(array).all() for array in classifier.values()):
        fc6, fc7 = classifier['classifier.0.weight'], classifier['classifier.3.weight']
        fc6 = fc6.reshape(len(fc6), -1, 7, 7)
        entries |= {'fc6.weight': fc6[::4, :, ::3, ::3], 'fc6.bias': classifier['classifier.0.bias'][::4]}
        entries |= {'fc7.weight': fc7[::4, ::4, None, None], 'fc7.bias': classifier['classifier.3.bias'][::4]}
        return _fill(template, entries, torchvision_names.vgg, source)
    kept = {name: params[name] for name in ('fc6', 'fc7')}
    convolutions = {name: tree for name, tree in params.items() if name not in kept}
    filled, model_state = _fill((convolutions, model_state), entries, torchvision_names.vgg, source)
    return filled | kept, model_state


def retinanet_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a RetinaNet from torchvision's: ResNet, FPN and heads, by the names of old files or of new ones.

    Torchvision's label indices stay: 91 classes, of which 0, its background, is one like any other.

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `detectors.retinanet`.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if the template has group norm.
    """
    return _fill(template, _with_new_names(entries), torchvision_names.retinanet, source)


def ssd_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills an SSD from torchvision's ssd300_vgg16 or ssdlite320_mobilenet_v3_large.

    Background, first among torchvision's classes, becomes the last.

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `detectors.ssd`.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if torchvision has no such norm.
    """
    lite = 'conv1_1' not in template[0]['backbone']
    return _fill(template, _with_background_last(entries), torchvision_names.ssdlite if lite else torchvision_names.ssd, source)


def faster_rcnn_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a Faster R-CNN on a pyramid from torchvision's, by the names of old files or of new ones.

    Background, first among torchvision's classes, becomes the last; the boxes that torchvision regresses for it are left
    out.

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `detectors.faster_rcnn`.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if torchvision has no such R-CNN.
    """
    return _fill(template, _with_our_rois(_with_new_names(entries)), torchvision_names.rcnn, source)


def mask_rcnn_variables(entries: Entries, template: Template, *, source: str = 'the entries') -> Template:
    """Fills a Mask R-CNN on a pyramid from torchvision's, by the names of old files or of new ones.

    As `faster_rcnn_variables` does, without the mask of background.

    Args:
        entries: arrays by torchvision's names.
        template: (params, model_state) of a `detectors.mask_rcnn`.
        source: what an error calls the entries, for example their file.

    Returns:
        (params, model_state) like the template, numpy.

    Raises:
        ValueError: if an entry is missing, of another shape, or left over; or if torchvision has no such R-CNN.
    """
    return _fill(template, _with_our_masks(_with_our_rois(_with_new_names(entries))), torchvision_names.rcnn, source)


def load_backbone(path: str, params: Params, model_state: ModelState) -> Template:
    """Reads a classifier of torchvision's names from a `.safetensors` file into the backbone of a detector.

    Args:
        path: of the file.
        params: of the detector; its backbone lies under 'backbone', a last stage that RoIs run through under 'trunk'.
        model_state: of the detector, likewise in each of its collections.

    Returns:
        (params, model_state) with another backbone; the arguments stay as they are.

    Raises:
        ValueError: if the file is no safetensors file, if torchvision has no such backbone, or if the entries do not fit.
    """
    try:
        entries = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path}: not a safetensors file ({error}); from a .pth file make one with '
                         'safetensors.torch.save_file(torch.load(path), new_path)') from error
    fill = next((fill for first, fill in _CLASSIFIERS.items() if first in params['backbone']), None)
    if fill is None:
        raise ValueError(f'{path}: torchvision has no classifier like the backbone of this model: initialise none')
    parts = ['backbone', 'trunk'] if 'stage4_block1' in params.get('trunk', ()) else ['backbone']

    def joined(tree: Any) -> Any:
        return {name: module for part in parts for name, module in tree[part].items()}

    def parted(tree: Any, modules: Any) -> Any:
        return {**tree, **{part: {name: modules[name] for name in tree[part]} for part in parts}}

    template = joined(params), {name: joined(tree) for name, tree in model_state.items()}
    modules, statistics = fill(entries, template, source=path)
    return parted(params, modules), {name: parted(tree, statistics[name]) for name, tree in model_state.items()}


def _fill(
    template: Template, entries: Entries, torch_module: Callable[[str], str], source: str, ignored: str | None = None
) -> Template:
    """Looks up every variable of the template.

    Args:
        template: what to fill.
        entries: arrays by torchvision's names.
        torch_module: from the path of one of our modules ('stage1_block1/conv1') to its name ('layer1.0.conv1').
        source: what an error calls the entries.
        ignored: the first letters of entries that may be left over.

    Returns:
        (params, model_state), numpy.
    """
    params, model_state = template
    asked, missing, misshapen = set(), [], []

    def take(path, leaf):
        _, *modules, variable = (key.key for key in path)  # the first is the collection
        name = _OTHERS.get('/'.join((*modules, variable)))
        name = name or f'{torch_module("/".join(modules))}.{_LEAVES[variable]}'
        axes = _AXES[len(leaf.shape)]
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(len(axes)))
        asked.add(name)
        if name not in entries:
            missing.append(name)
        elif entries[name].shape != shape:
            misshapen.append(f'{name} {entries[name].shape} where the model has {shape}')
        else:
            return np.ascontiguousarray(entries[name].transpose(axes), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(take, {'params': params, **model_state})
    unused = [name for name in entries if name not in asked and not name.endswith('num_batches_tracked')]
    unused = [name for name in unused if ignored is None or not name.startswith(ignored)]
    problems = {'missing': missing, 'of another shape': misshapen, 'unused': unused}
    if any(problems.values()):
        listed = '; '.join(f'{kind}: {_listed(names)}' for kind, names in problems.items() if names)
        raise ValueError(f'{source}: not the weights of this model: {listed}. Set depth, width, norm and num_classes '
                         'of the model to those of the file, or give a file of that model')
    return variables.pop('params'), variables


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ', '.join(names[:_LISTED]) + (f' and {more} more' if more > 0 else '')


def _with_new_names(entries: Entries) -> dict[str, np.ndarray]:
    """Renames the entries of old files: each convolution is wrapped now, with its activation or norm beside it."""

    def new_name(name: str) -> str:
        new = re.sub(r'((?:inner|layer)_blocks\.\d)\.(weight|bias)$', r'\1.0.\2', name)
        new = re.sub(r'(rpn\.head\.conv)\.(weight|bias)$', r'\1.0.0.\2', new)
        new = re.sub(r'mask_fcn(\d)\.(weight|bias)$', lambda m: f'{int(m[1]) - 1}.0.{m[2]}', new)
        new = re.sub(r'(_head\.conv)\.(\d)\.(weight|bias)$', lambda m: f'{m[1]}.{int(m[2]) // 2}.0.{m[3]}', new)
        return name if new in entries else new  # twice there: the old one is left over, and an error says so

    return {new_name(name): array for name, array in entries.items()}


def _with_background_last(entries: Entries) -> dict[str, np.ndarray]:
    """Moves the first class of each anchor behind the others, in the last convolution of each level."""

    def moved(name: str, array: np.ndarray) -> np.ndarray:
        if not re.search(r'classification_head\.module_list\.\d(\.1)?\.(weight|bias)$', name):
            return array
        anchors = len(entries[name.replace('classification', 'regression')]) // 4
        return np.roll(array.reshape(anchors, -1, *array.shape[1:]), -1, axis=1).reshape(array.shape)

    return {name: moved(name, array) for name, array in entries.items()}


def _with_our_rois(entries: Entries) -> dict[str, np.ndarray]:
    """Brings the box head to our order: RoI features as [s, s, C], background last and without boxes."""

    def ours(name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith('box_head.fc6.weight') and pyramid in entries:
            channels = len(entries[pyramid])
            side = math.isqrt(array.shape[1] // channels)
            return array.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(array.shape)
        if 'box_predictor.cls_score.' in name:
            return np.roll(array, -1, axis=0)
        return array[4:] if 'box_predictor.bbox_pred.' in name else array

    pyramid = 'backbone.fpn.layer_blocks.0.0.bias'
    return {name: ours(name, array) for name, array in entries.items()}


def _with_our_masks(entries: Entries) -> dict[str, np.ndarray]:
    """Drops the mask of background, and turns the deconvolution's kernel into the one of a convolution.

    Torch's deconvolution spreads each input over the kernel, IOHW; ours convolves a grid with zeros between the inputs,
    where the kernel's first cell meets the input that torch's last one spread: OIHW, turned by half a turn.
    """

    def ours(name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith('conv5_mask.weight'):
            return array.swapaxes(0, 1)[:, :, ::-1, ::-1]
        return array[1:] if 'mask_fcn_logits.' in name else array

    return {name: ours(name, array) for name, array in entries.items()}


_CLASSIFIERS = {'stem_conv': resnet_variables, 'stem': mobilenet_variables, 'conv1_1': vgg_variables}  # by a first layer


class Peer(NamedTuple):
    """A model of torchvision and our counterpart.

    model: the arguments of `make_detector`.
    mapping: (entries, template, source=) -> (params, model_state).
    """

    model: dict[str, Any]
    mapping: Callable[..., Template]

    @property
    def max_detections(self) -> int:
        """How many detections both keep of an image."""
        return self.model.get('head', self.model)['max_detections']


_FASTER_RCNN = {
    'name': 'faster_rcnn',
    'num_classes': 90,  # background is torchvision's class 0, and none of ours
    'depth': 50,
    'norm': 'frozen_batch_norm',
    'norm_epsilon': 0.0,  # set in torchvision's code when it loads its COCO_V1 files; the files do not say
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

PEERS = {
    'retinanet_resnet50_fpn': Peer(
        model={
            'name': 'retinanet',
            'num_classes': 91,
            'depth': 50,
            'norm': 'frozen_batch_norm',
            'norm_epsilon': 0.0,  # set in torchvision's code when it loads its COCO_V1 file; the file does not say
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
        },
        mapping=retinanet_variables,
    ),
    'ssd300_vgg16': Peer(
        model={
            'name': 'ssd',
            'num_classes': 90,  # background is torchvision's class 0, and none of ours
            'backbone': 'vgg16',
            'norm': None,
            'fc6_dilation': 6,
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
        mapping=ssd_variables,
    ),
    'ssdlite320_mobilenet_v3_large': Peer(
        model={
            'name': 'ssd',
            'num_classes': 90,
            'backbone': 'mobilenet_v3_large',
            'reduced_tail': True,
            'norm': 'batch_norm',
            'norm_epsilon': 1e-3,
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
        mapping=ssd_variables,
    ),
    'fasterrcnn_resnet50_fpn': Peer(model=_FASTER_RCNN, mapping=faster_rcnn_variables),
    'maskrcnn_resnet50_fpn': Peer(
        model={
            **_FASTER_RCNN,
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
        },
        mapping=mask_rcnn_variables,
    ),
}
