"""All backbones by name; detectors make theirs here.

    name, strides -> `make_backbone` -> a module: images [B, H, W, 3] -> one feature map [B, H / stride, W / stride, C] per stride
    name          -> `make_last_stage` -> a module: features of RoIs at stride 16 -> features at stride 32 (C4 of the R-CNNs)

A detector chooses the strides. The other arguments are one group of config keys, `model.backbone`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from detzoo.backbones import darknet, mobilenet, resnet, unet, vgg
from detzoo.errors import listed


class Backbone(NamedTuple):
    """A backbone.

    make: makes its module from `strides` and the arguments of `make_backbone`.
    strides: strides of its feature maps, pixels, finest first; a stride with two feature maps is listed twice. A dilated
        ResNet has others, see `strides_of`.
    own: the arguments of `make_backbone` that only some backbones have, and this one does.
    make_last_stage: makes the module of its last stage alone; None: it has no stage that could run on RoIs.
    """

    make: Callable[..., nn.Module]
    strides: Sequence[int]
    own: Sequence[str] = ()
    make_last_stage: Callable[..., nn.Module] | None = None


def _resnet(depth: int, *own: str) -> Backbone:
    return Backbone(
        partial(resnet.ResNet, depth),
        resnet.STRIDES,
        ('dilation', *own),
        make_last_stage=partial(resnet.LastStage, depth),
    )


def _darknet(architecture: str, strides: Sequence[int] = darknet.STRIDES) -> Backbone:
    return Backbone(partial(darknet.Darknet, architecture), strides)


BACKBONES = {
    'resnet18': _resnet(18),
    'resnet34': _resnet(34),
    'resnet50': _resnet(50, 'stride_in_1x1'),
    'resnet101': _resnet(101, 'stride_in_1x1'),
    'vgg16': Backbone(vgg.VGG16, (*vgg.STRIDES, 32), ('fc6_dilation',)),
    'mobilenet_v2': Backbone(mobilenet.mobilenet_v2, [stride for stride, _ in mobilenet.V2_OUTPUTS]),
    'mobilenet_v3_large': Backbone(
        mobilenet.mobilenet_v3_large, [stride for stride, _ in mobilenet.V3_OUTPUTS], ('reduced_tail',)
    ),
    'unet': Backbone(unet.ContractingPath, unet.STRIDES),
    'tiny': _darknet('tiny'),
    'extraction': _darknet('extraction', darknet.STRIDES[1:]),
    'darknet19': _darknet('darknet19'),
    'darknet53': _darknet('darknet53'),
}
WITHOUT_NORM = ('vgg16', 'unet')  # backbones that may have no norm


def make_backbone(
    strides: Sequence[int],
    dtype: Any,
    axis_name: str | None,
    *,
    name: str = 'resnet50',
    width: float = 1.0,
    norm: str | None = 'batch_norm',
    norm_epsilon: float = 1e-5,
    dilation: int = 1,
    stride_in_1x1: bool = False,
    fc6_dilation: int = 6,
    reduced_tail: bool = True,
) -> nn.Module:
    """Makes a backbone.

    Args:
        strides: strides of the feature maps to return, pixels, finest first.
        dtype: dtype of the computation.
        axis_name: the mapped axis over which batch statistics are synchronised, or None.
        name: a key of BACKBONES.
        width: factor on all channels.
        norm: normalisation after each convolution: 'batch_norm' (synchronised over devices), 'frozen_batch_norm', 'group_norm',
            or None, for vgg16 and unet only.
        norm_epsilon: number added to variances.
        dilation: by how much the last stages of a ResNet are dilated instead of striding: 1, not at all; 2, the fourth, whose
            stride is then 16; 4, the third and fourth, whose stride is then 8. The parameters are the same.
        stride_in_1x1: whether blocks of resnet50 and resnet101 stride in their first 1x1 convolution (the paper, detectron2)
            or in their 3x3 convolution (torchvision).
        fc6_dilation: dilation of vgg16's fc6 at stride 16, see `VGG16`.
        reduced_tail: whether mobilenet_v3_large has half the channels from C4 on, see `mobilenet.mobilenet_v3_large`.

    Returns:
        a module that maps [B, H, W, 3] to one [B, H / stride, W / stride, C] for each of the strides.

    Raises:
        ValueError: there is no such backbone, it does not have these strides, or an argument is another backbone's.
    """
    own = dict(dilation=dilation, stride_in_1x1=stride_in_1x1, fc6_dilation=fc6_dilation, reduced_tail=reduced_tail)
    backbone = _checked(name, norm, own)
    if not has_strides(strides_of(name, dilation), strides):
        able = ', '.join(other for other in BACKBONES if has_strides(strides_of(other), strides))
        dilated = f' and backbone.dilation {dilation}' if dilation > 1 else ''
        raise ValueError(
            f'backbone.name is {name!r}{dilated}: it has feature maps of the strides '
            f'{listed(map(str, strides_of(name, dilation)))}, and the model needs {listed(map(str, strides))}: '
            f'{f"use one of {able}" if able else "no backbone has these, ask for others"}'
            f'{", with backbone.dilation 1" if dilated and able else ""}'
        )
    shared = dict(strides=tuple(strides), width=width, norm=norm, norm_epsilon=norm_epsilon)
    return backbone.make(**shared, **{key: own[key] for key in backbone.own}, axis_name=axis_name, dtype=dtype)


def make_last_stage(dtype: Any, axis_name: str | None, *, name: str, **arguments: Any) -> nn.Module:
    """Makes the last stage of a backbone alone, which runs on features of RoIs at stride 16.

    Args:
        dtype, axis_name, name, **arguments: all arguments of `make_backbone`, which has checked them.

    Returns:
        a module that maps [N, h, w, C] to [N, h / 2, w / 2, C'].

    Raises:
        ValueError: the backbone has no such stage.
    """
    backbone = BACKBONES[name]
    if backbone.make_last_stage is None:
        able = ', '.join(other for other, row in BACKBONES.items() if row.make_last_stage is not None)
        raise ValueError(
            f'backbone.name is {name!r}: it has no last stage that could run on the features of RoIs: use one of {able}'
        )
    if arguments['dilation'] > 1:
        raise ValueError(
            f'backbone.dilation is {arguments["dilation"]}: the last stage runs on the features of RoIs here, and is not '
            'dilated: set it to 1'
        )
    own = [key for key in backbone.own if key != 'dilation']
    kept = {key: arguments[key] for key in ('width', 'norm', 'norm_epsilon', *own)}
    return backbone.make_last_stage(**kept, axis_name=axis_name, dtype=dtype)


def strides_of(name: str, dilation: int = 1) -> Sequence[int]:
    """Lists the strides of a backbone's feature maps, pixels, finest first; a stride with two of them is listed twice."""
    return BACKBONES[name].strides if dilation == 1 else resnet.stage_strides(dilation)


def has_strides(present: Sequence[int], strides: Sequence[int]) -> bool:
    """Tells whether all strides are present, and one that is listed twice is present twice."""
    return all(list(strides).count(stride) <= list(present).count(stride) for stride in strides)


def _checked(name: str, norm: str | None, own: Mapping[str, Any]) -> Backbone:
    """Finds a backbone, and refuses arguments that only other backbones have."""
    if name not in BACKBONES:
        raise ValueError(f'backbone.name is {name!r}: use one of {", ".join(BACKBONES)}')
    if norm is None and name not in WITHOUT_NORM:
        raise ValueError(
            f'backbone.norm is None: {name} needs one, only {" and ".join(WITHOUT_NORM)} have none in their papers'
        )
    for key, value in own.items():
        default = make_backbone.__kwdefaults__[key]
        if value != default and key not in BACKBONES[name].own:
            owners = ' and '.join(other for other, row in BACKBONES.items() if key in row.own)
            raise ValueError(
                f'backbone.{key} is {value!r}: it is an argument of {owners}, and not of {name}: set it to {default!r}'
            )
    return BACKBONES[name]
