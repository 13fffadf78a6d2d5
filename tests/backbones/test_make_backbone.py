"""The door to the backbones: which strides each has, what it makes of them, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval
from networks import count, shapes_of

from detzoo.backbones import BACKBONES, make_backbone, make_last_stage
from detzoo.backbones.vgg import VGG16

WHOLE = dict(name='resnet50', width=1 / 8, norm='batch_norm', norm_epsilon=1e-5, stride_in_1x1=False)


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
        ((64,), dict(name='tiny'), 'of the strides 1, 2, 4, 8, 16 and 32, and the detector needs 64: no backbone has'),
        ((1, 2), dict(name='resnet18'), 'strides 4, 8, 16 and 32, .* needs 1 and 2: use one of vgg16, tiny, darknet19'),
        ((32, 32), dict(name='resnet18'), 'needs 32 and 32: use one of mobilenet_v2, mobilenet_v3_large$'),
        (
            (8,),
            dict(name='resnet34', stride_in_1x1=True),
            'stride_in_1x1 is True: it is an argument of resnet50 and resnet101, and not of resnet34: set it to False',
        ),
        ((8,), dict(name='tiny', fc6_dilation=2), 'fc6_dilation is 2: it is an argument of vgg16, .*: set it to 6'),
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
