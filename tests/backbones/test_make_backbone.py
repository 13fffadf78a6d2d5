"""The door to the backbones: which strides each has, what it makes of them, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval
from networks import count, shapes_of

from detzoo.backbones import BACKBONES, make_backbone, make_last_stage, strides_of
from detzoo.backbones.vgg import VGG16

WHOLE = dict(name='resnet50', width=1 / 8, norm='batch_norm', norm_epsilon=1e-5, dilation=1, stride_in_1x1=False)


def made(*strides, **arguments):
    return make_backbone(strides, jnp.float32, None, **{'width': 1 / 8} | arguments)


@pytest.mark.parametrize('name', BACKBONES)
def test_make_backbone_gives_a_map_for_each_stride(name):
    strides = BACKBONES[name].strides
    maps, variables = shapes_of(made(*strides, name=name), (2, 64, 96, 3), train=True)
    assert [x.shape[:3] for x in maps] == [(2, 64 // stride, 96 // stride) for stride in strides]
    assert set(variables) == {'params', 'batch_stats'}
    (one,), fewer = shapes_of(made(8, name=name), (2, 64, 96, 3), train=True)
    assert one.shape == next(x.shape for x in maps if x.shape[1] == 8)
    assert count(fewer) < count(variables)


@pytest.mark.parametrize(
    'name, stride',
    [('resnet18', 8), ('vgg16', 8), ('mobilenet_v2', 4), ('mobilenet_v3_large', 16), ('tiny', 8), ('darknet53', 4)],
)
def test_make_backbone_leaves_out_layers_that_nothing_reads(name, stride):
    module = made(stride, name=name, norm='frozen_batch_norm')
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    _, variables = shapes_of(module, image.shape, train=False)
    program = jax.make_jaxpr(lambda variables: module.apply(variables, jnp.zeros(image.shape), train=False))(variables)
    _, used = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    assert len(used) == len(jax.tree.leaves(variables)) and all(used)


@pytest.mark.parametrize('strides, dilations', [((8, 16), {6}), ((16, 32), {3}), ((4, 8), set())])
def test_vgg16_dilates_fc6_by_its_stride(strides, dilations):
    # fc6 has every third of the 7 x 7 cells of stride 32 that VGG's fully connected layer sees.
    module = VGG16(width=1 / 16, strides=strides)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    _, variables = shapes_of(module, image.shape, train=False)
    program = jax.make_jaxpr(
        lambda x: module.apply(jax.tree.map(lambda v: jnp.zeros(v.shape), variables), x, train=False)
    )
    found = set(map(int, re.findall(r'rhs_dilation=\((\d+),', str(program(image)))))
    assert found == {1} | dilations


def test_vgg16_of_stride_16_alone_is_that_of_ssd():
    whole, _ = shapes_of(made(8, 16, 32, name='vgg16', width=1.0), (1, 64, 64, 3), train=False)
    ssd, _ = shapes_of(made(8, 16, name='vgg16', width=1.0), (1, 64, 64, 3), train=False)
    assert [x.shape[-1] for x in whole] == [512, 512, 1024] and [x.shape[-1] for x in ssd] == [512, 1024]


@pytest.mark.parametrize(
    'strides, arguments, words',
    [
        ((8,), dict(name='resnet19'), "backbone.name is 'resnet19': use one of resnet18, .*darknet53"),
        ((8,), dict(name='resnet18', norm=None), 'backbone.norm is None: resnet18 needs one'),
        ((64,), dict(name='tiny'), 'of the strides 1, 2, 4, 8, 16 and 32, and the model needs 64: no backbone has'),
        (
            (1, 2),
            dict(name='resnet18'),
            'strides 4, 8, 16 and 32, .* needs 1 and 2: use one of vgg16, unet, tiny, dark',
        ),
        ((32, 32), dict(name='resnet18'), 'needs 32 and 32: use one of mobilenet_v2, mobilenet_v3_large$'),
        (
            (8,),
            dict(name='resnet34', stride_in_1x1=True),
            'stride_in_1x1 is True: it is an argument of resnet50 and resnet101, and not of resnet34: set it to False',
        ),
        ((8,), dict(name='tiny', fc6_dilation=2), 'fc6_dilation is 2: it is an argument of vgg16, .*: set it to 6'),
        ((8,), dict(name='vgg16', dilation=2), 'dilation is 2: it is an argument of resnet18 and .*: set it to 1'),
        (
            (8, 32),
            dict(name='resnet50', dilation=4),
            'dilation 4: it has .* strides 4, 8, 8 and 8, .* with backbone.dilation 1',
        ),
        ((8,), dict(name='vgg16', reduced_tail=False), 'an argument of mobilenet_v3_large, and not of vgg16'),
    ],
)
def test_make_backbone_refuses_what_a_backbone_does_not_have(strides, arguments, words):
    with pytest.raises(ValueError, match=words):
        made(*strides, **arguments)


def test_make_last_stage_halves_what_a_backbone_gives_at_stride_16():
    (c4,), _ = shapes_of(made(16, name='resnet50'), (1, 64, 64, 3), train=False)
    last = make_last_stage(jnp.float32, None, **WHOLE | dict(stride_in_1x1=True))
    c5, _ = shapes_of(last, c4.shape, train=False)
    assert last.stride_in_1x1 and c5.shape == (1, 2, 2, 2 * c4.shape[-1])
    with pytest.raises(ValueError, match='vgg16.: it has no last stage .*: use one of resnet18, resnet34, resnet50'):
        make_last_stage(jnp.float32, None, **WHOLE | dict(name='vgg16'))


@pytest.mark.parametrize(
    'dilation, strides, sizes',
    [(2, (4, 8, 16, 16), [24, 12, 6, 6]), (4, (4, 8, 8, 8), [24, 12, 12, 12]), (4, (8, 8), [12, 12])],
)
def test_dilated_resnet_keeps_the_parameters_and_a_finer_stride(dilation, strides, sizes):
    maps, variables = shapes_of(made(*strides, name='resnet50', dilation=dilation), (1, 96, 64, 3), train=False)
    undilated, expected = shapes_of(made(4, 8, 16, 32, name='resnet50'), (1, 96, 64, 3), train=False)
    assert [x.shape[1] for x in maps] == sizes and variables == expected
    assert [x.shape[-1] for x in maps] == [x.shape[-1] for x in undilated][-len(maps) :]


def test_one_map_of_a_dilated_resnet_is_the_last_of_its_stride():
    (c5,), _ = shapes_of(made(8, name='resnet18', dilation=4), (1, 64, 64, 3), train=False)
    assert c5.shape == (1, 8, 8, 64)


@pytest.mark.parametrize(
    'dilation, expected',
    [(1, [1] * 16), (2, [1] * 14 + [2, 2]), (4, [1] * 8 + [2] * 5 + [2, 4, 4])],
)
def test_dilated_resnet_dilates_as_torchvisions_replace_stride_with_dilation(dilation, expected):
    # [False, False, True] and [False, True, True]: the first block of a stage has the dilation of the stage before.
    module = made(*strides_of('resnet50', dilation), name='resnet50', dilation=dilation)
    _, variables = shapes_of(module, (1, 64, 64, 3), train=False)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), variables)
    program = str(jax.make_jaxpr(lambda x: module.apply(zeros, x, train=False))(jnp.zeros((1, 64, 64, 3))))
    # The 3x3 convolutions in their order are those with a padding, after the stem.
    found = re.findall(
        r'padding=\(\(([1-9]), \1\), \(\1, \1\)\)\s+precision=\w+\s+preferred\w+=\w+\s+rhs_dilation=\((\d)', program
    )
    assert [int(dilated) for _, dilated in found][-16:] == expected, found


def test_make_last_stage_refuses_a_dilated_backbone():
    with pytest.raises(ValueError, match='backbone.dilation is 2: the last stage runs on the features of RoIs'):
        make_last_stage(jnp.float32, None, **WHOLE | dict(dilation=2))
