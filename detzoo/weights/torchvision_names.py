"""What torchvision calls our modules: one function a network, from a path in our tree to the name of its module.

'stage1_block2/shortcut_norm' -> 'layer1.1.downsample.1'. Torchvision numbers layers by their places in nn.Sequential,
where activations and poolings count too.
"""

import re

from detzoo.backbones import mobilenet

_V2_BLOCKS = sum(count for _, _, count, _ in mobilenet.V2_STAGES)
_VGG_STAGES = (0, 5, 10, 17, 24)  # the places of their first convolutions
_SSD_CUT = 23  # the pooling before VGG's fifth stage, where torchvision's SSD cuts it in two
_SSD_FC = {'fc6': 'backbone.extra.0.7.1', 'fc7': 'backbone.extra.0.7.3'}
_RCNN = {
    'rpn_head/objectness': 'rpn.head.cls_logits',
    'rpn_head/deltas': 'rpn.head.bbox_pred',
    'trunk/fc1': 'roi_heads.box_head.fc6',
    'trunk/fc2': 'roi_heads.box_head.fc7',
    'box_head/cls_logits': 'roi_heads.box_predictor.cls_score',
    'box_head/box_deltas': 'roi_heads.box_predictor.bbox_pred',
    'mask_head/deconv': 'roi_heads.mask_predictor.conv5_mask',
    'mask_head/logits': 'roi_heads.mask_predictor.mask_fcn_logits',
}
_CONVOLUTIONS = {'trunk': 'box_head', 'mask_head': 'mask_head'}
_HEADS = {'cls_head': ('classification', 'cls_logits'), 'box_head': ('regression', 'bbox_reg')}


def resnet(path: str) -> str:
    """Names a part of a ResNet: 'stage1_block2/shortcut_norm' -> 'layer1.1.downsample.1'."""
    _refuse_group_norm(path)
    if '/' not in path:
        return {'stem_conv': 'conv1', 'stem_norm': 'bn1'}[path]
    stage, block, layer = re.fullmatch(r'stage(\d)_block(\d+)/(\w+)', path).groups()
    layer = {'shortcut_conv': 'downsample.0', 'shortcut_norm': 'downsample.1'}.get(layer, layer.replace('norm', 'bn'))
    return f'layer{stage}.{int(block) - 1}.{layer}'


def vgg(path: str) -> str:
    """Names a part of a VGG-16: 'conv2_1/conv' -> 'features.5', 'fc6/conv' -> 'fc6', which torchvision does not have."""
    layer, kind = path.split('/', 1)
    if kind != 'conv':
        raise ValueError(
            "torchvision's VGG-16 of these names has no norms: set the model's norm to None to start from its "
            'weights, or start from none'
        )
    if layer in _SSD_FC:
        return layer
    stage, index = re.fullmatch(r'conv(\d)_(\d)', layer).groups()
    return f'features.{_VGG_STAGES[int(stage) - 1] + 2 * (int(index) - 1)}'  # each second one is a ReLU


def mobilenet_v2(path: str) -> str:
    """Names a part: 'block2/depthwise/norm' -> 'features.2.conv.1.1', 'block2/project/norm' -> 'features.2.conv.3'."""
    _refuse_group_norm(path)
    part, *inner, kind = path.split('/')
    place = _place(kind)
    if part in ('stem', 'last'):
        return f'features.{0 if part == "stem" else _V2_BLOCKS + 1}.{place}'
    number = int(part.removeprefix('block'))
    layers = ['expand', 'depthwise', 'project'][number == 1 :]  # the first has as many channels before as after
    index = layers.index(inner[0])  # convolutions and norms are wrapped, but for the projection's
    return f'features.{number}.conv.{index + place if inner[0] == "project" else f"{index}.{place}"}'


def mobilenet_v3_large(path: str) -> str:
    """Names a part: 'block2/depthwise/norm' -> 'features.2.block.1.1', 'block4/squeeze/expand/conv' -> '4.block.2.fc2'."""
    _refuse_group_norm(path)
    part, *inner, kind = path.split('/')
    place = _place(kind)
    if part in ('stem', 'last'):
        return f'features.{0 if part == "stem" else len(mobilenet.V3_LARGE) + 1}.{place}'
    number = int(part.removeprefix('block'))
    absent = {'expand'} if number == 1 else set()  # it has as many channels before as after
    absent |= set() if mobilenet.V3_LARGE[number - 1].squeeze else {'squeeze'}
    layers = [layer for layer in ('expand', 'depthwise', 'squeeze', 'project') if layer not in absent]
    if inner[0] == 'squeeze':
        place = {'reduce': 'fc1', 'expand': 'fc2'}[inner[1]]
    return f'features.{number}.block.{layers.index(inner[0])}.{place}'


def retinanet(path: str) -> str:
    """Names a part of a RetinaNet: 'cls_head/norm1/norm' -> 'head.classification_head.conv.0.1'."""
    part, rest = path.split('/', 1)
    if part in ('backbone', 'fpn'):
        return _resnet_fpn(part, rest)
    head, output = _HEADS[part]
    if rest == 'output':
        return f'head.{head}_head.{output}'
    kind, number = re.fullmatch(r'(conv|norm)(\d)(?:/norm)?', rest).groups()
    return f'head.{head}_head.conv.{int(number) - 1}.{_place(kind)}'


def rcnn(path: str) -> str:
    """Names a part of a Faster R-CNN or Mask R-CNN on a pyramid: 'trunk/fc1' -> 'roi_heads.box_head.fc6'."""
    part, rest = path.split('/', 1)
    if part in ('backbone', 'fpn'):
        return _resnet_fpn(part, rest)
    if path in _RCNN:
        return _RCNN[path]
    if layer := re.fullmatch(r'rpn_head/conv(\d?)', path):
        return f'rpn.head.conv.{int(layer[1] or 1) - 1}.0'
    if layer := re.fullmatch(r'(trunk|mask_head)/(conv|norm)(\d)', path):
        return f'roi_heads.{_CONVOLUTIONS[layer[1]]}.{int(layer[3]) - 1}.{_place(layer[2])}'
    raise ValueError(
        f"torchvision has no such R-CNN: {path} is not in its models. Set the model's fpn_features and the head of "
        'its mask branch to those of the file'
    )


def rcnn_v2(path: str) -> str:
    """Names a part of an R-CNN of the second version, whose box head has 4 convolutions: 'trunk/fc1' -> 'roi_heads.box_head.5'."""
    return 'roi_heads.box_head.5' if path == 'trunk/fc1' else rcnn(path)


def rcnn_mobilenet_v3_large(path: str) -> str:
    """Names a part of a Faster R-CNN on MobileNetV3-Large: 'backbone/stem/conv' -> 'backbone.body.0.0'."""
    part, rest = path.split('/', 1)
    return f'backbone.body.{mobilenet_v3_large(rest).removeprefix("features.")}' if part == 'backbone' else rcnn(path)


def ssd(path: str) -> str:
    """Names a part of an SSD: 'backbone/conv5_1/conv' -> 'backbone.extra.0.1', 'cls_head/level1/conv' -> '...module_list.0'."""
    part, rest = path.split('/', 1)
    if part == 'backbone':
        name = vgg(rest)
        if name in _SSD_FC:
            return _SSD_FC[name]
        place = int(name.removeprefix('features.'))
        return f'backbone.{name}' if place < _SSD_CUT else f'backbone.extra.0.{place - _SSD_CUT}'
    number, layer, _ = _level(rest)
    if part == 'extra_layers':
        return f'backbone.extra.{number}.{0 if layer == "reduce" else 2}'
    return f'head.{_HEADS[part][0]}_head.module_list.{number - 1}'


def ssdlite(path: str) -> str:
    """Names a part of an SSDLite: 'extra_layers/layer1_depthwise/norm' -> 'backbone.extra.0.1.1'."""
    part, rest = path.split('/', 1)
    if part == 'backbone':
        block, inner = re.fullmatch(r'features\.(\d+)\.(.+)', mobilenet_v3_large(rest)).groups()
        block, cut = int(block), mobilenet.TAIL + 1  # torchvision cuts this block in two, behind its expansion
        if block == cut:
            inner = inner.removeprefix('block.')
            return (
                f'backbone.features.0.{cut}.{inner[2:]}' if inner.startswith('0.') else f'backbone.features.1.0.{inner}'
            )
        return f'backbone.features.0.{block}.{inner}' if block < cut else f'backbone.features.1.{block - cut}.{inner}'
    _refuse_group_norm(path)
    number, layer, kind = _level(rest)
    if part == 'extra_layers':
        return f'backbone.extra.{number - 1}.{("reduce", "depthwise", "").index(layer)}.{_place(kind)}'
    return f'head.{_HEADS[part][0]}_head.module_list.{number - 1}.{f"0.{_place(kind)}" if layer else 1}'


def _resnet_fpn(part: str, rest: str) -> str:
    """Names a part of a ResNet with a pyramid: 'fpn', 'inner1_norm' -> 'backbone.fpn.inner_blocks.0.1'."""
    if part == 'backbone':
        return f'backbone.body.{resnet(rest)}'
    _refuse_group_norm(rest)
    kind, number, norm = re.fullmatch(r'(inner|layer|extra)(\d)(_norm)?', rest).groups()
    if kind == 'extra':
        return f'backbone.fpn.extra_blocks.p{int(number) + 5}'
    return f'backbone.fpn.{kind}_blocks.{int(number) - 1}.{1 if norm else 0}'


def _level(path: str) -> tuple[int, str, str]:
    """Splits 'layer1_reduce/conv' into 1, 'reduce', 'conv', and 'level2/conv' into 2, '', 'conv'."""
    number, layer, kind = re.fullmatch(r'(?:layer|level)(\d)(?:_(\w+))?/(conv|norm)', path).groups()
    return int(number), layer or '', kind


def _place(kind: str) -> int:
    """The place of a convolution or of its norm where the two are wrapped."""
    return ('conv', 'norm').index(kind)


def _refuse_group_norm(path: str) -> None:
    if re.search(r'norm\d?/norm$', path):
        raise ValueError(
            "torchvision has no such network with group norm: set the model's norm to 'frozen_batch_norm' or "
            "'batch_norm' to start from its weights, or start from none"
        )
