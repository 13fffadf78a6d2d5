"""Weights of torchvision in ours: the same arrays under other names, convolutions OIHW -> HWIO.

    file -> entries {name: array} -> for each of our variables: its name there -> transposed -> (params, model_state)

Our tree leads: each variable asks for its entry, so nothing can be left out, and what nobody asked for is an error too.
`PEERS` says with which arguments our detectors compute what torchvision's models compute; `Peer.mapping` how their
weights come over; `weights.parity` compares the two.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from detzoo.types import ModelState, Params

Entries = Mapping[str, np.ndarray]
Template = tuple[Params, ModelState]  # arrays or shapes, as `Detector.init` or `jax.eval_shape` of it return them

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
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
    return _fill(template, entries, _resnet_module, source, ignored='fc.')


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
    return _fill(template, _with_new_names(entries), _retinanet_module, source)


def load_backbone(path: str, params: Params, model_state: ModelState) -> Template:
    """Reads a ResNet of torchvision's names from a `.safetensors` file into the backbone of a detector.

    Args:
        path: of the file.
        params: of the detector; its backbone lies under 'backbone'.
        model_state: of the detector, likewise in each of its collections.

    Returns:
        (params, model_state) with another backbone; the arguments stay as they are.

    Raises:
        ValueError: if the file is no safetensors file, or as `resnet_variables`.
    """
    try:
        entries = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path}: not a safetensors file ({error}); from a .pth file make one with '
                         'safetensors.torch.save_file(torch.load(path), new_path)') from error
    template = params['backbone'], {name: tree['backbone'] for name, tree in model_state.items()}
    backbone, statistics = resnet_variables(entries, template, source=path)
    model_state = {name: {**tree, 'backbone': statistics[name]} for name, tree in model_state.items()}
    return {**params, 'backbone': backbone}, model_state


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
        name = f'{torch_module("/".join(modules))}.{_LEAVES[variable]}'
        shape = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1)) if len(leaf.shape) == 4 else leaf.shape
        asked.add(name)
        if name not in entries:
            missing.append(name)
        elif entries[name].shape != shape:
            misshapen.append(f'{name} {entries[name].shape} where the model has {shape}')
        else:
            value = entries[name].transpose(2, 3, 1, 0) if len(shape) == 4 else entries[name]
            return np.ascontiguousarray(value, leaf.dtype)

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


def _resnet_module(path: str) -> str:
    """'stage1_block2/shortcut_norm' -> 'layer1.1.downsample.1'."""
    if path.endswith('norm/norm') or re.search(r'norm\d/norm$', path):
        raise ValueError("torchvision has no ResNet with group norm: set the model's norm to 'frozen_batch_norm' or "
                         "'batch_norm' to start from its weights, or start from none")
    if '/' not in path:
        return {'stem_conv': 'conv1', 'stem_norm': 'bn1'}[path]
    stage, block, layer = re.fullmatch(r'stage(\d)_block(\d+)/(\w+)', path).groups()
    layer = {'shortcut_conv': 'downsample.0', 'shortcut_norm': 'downsample.1'}.get(layer, layer.replace('norm', 'bn'))
    return f'layer{stage}.{int(block) - 1}.{layer}'


def _fpn_module(path: str) -> str:
    """'inner1' -> 'inner_blocks.0.0', 'layer1' -> 'layer_blocks.0.0', 'extra1' -> 'extra_blocks.p6'."""
    kind, index = path[:-1], int(path[-1]) - 1
    return f'extra_blocks.p{index + 6}' if kind == 'extra' else f'{kind}_blocks.{index}.0'


def _retinanet_module(path: str) -> str:
    """'cls_head/conv1' -> 'head.classification_head.conv.0.0'; 'cls_head/norm1/norm' -> '...conv.0.1'."""
    part, rest = path.split('/', 1)
    if part == 'backbone':
        return f'backbone.body.{_resnet_module(rest)}'
    if part == 'fpn':
        return f'backbone.fpn.{_fpn_module(rest)}'
    head, output = {'cls_head': ('classification', 'cls_logits'), 'box_head': ('regression', 'bbox_reg')}[part]
    if rest == 'output':
        return f'head.{head}_head.{output}'
    kind, number = re.fullmatch(r'(conv|norm)(\d)(?:/norm)?', rest).groups()
    return f'head.{head}_head.conv.{int(number) - 1}.{("conv", "norm").index(kind)}'


def _with_new_names(entries: Entries) -> dict[str, np.ndarray]:
    """Renames the entries of old files: each convolution is wrapped now, with its activation or norm beside it."""

    def new_name(name: str) -> str:
        new = re.sub(r'((?:inner|layer)_blocks\.\d)\.(weight|bias)$', r'\1.0.\2', name)
        new = re.sub(r'(_head\.conv)\.(\d)\.(weight|bias)$', lambda m: f'{m[1]}.{int(m[2]) // 2}.0.{m[3]}', new)
        return name if new in entries else new  # twice there: the old one is left over, and an error says so

    return {new_name(name): array for name, array in entries.items()}


class Peer(NamedTuple):
    """A model of torchvision and our counterpart.

    model: the arguments of `make_detector`.
    mapping: (entries, template, source=) -> (params, model_state).
    backbone: the name of its ResNet.
    """

    model: dict[str, Any]
    mapping: Callable[..., Template]
    backbone: str


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
        backbone='resnet50',
    ),
}
