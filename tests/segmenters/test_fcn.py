"""What is special to FCN, DeepLabV3 and U-Net: the kernels that enlarge scores, where heads read, and what U-Net is trained on."""

import functools
import math

import jax
import numpy as np
import pytest

from detzoo.core.matching import IGNORE
from detzoo.segmenters import fcn, make_segmenter, pixels
from detzoo.types import Batch, GroundTruth, Inputs


def spread_by_loops(x, kernels, stride):
    """A transposed convolution: each cell adds the kernel, half a stride beyond its own area on each side."""
    height, width, channels = x.shape
    whole = np.zeros(((height + 1) * stride, (width + 1) * stride, channels))
    for i, j in np.ndindex(height, width):
        whole[i * stride : (i + 2) * stride, j * stride : (j + 2) * stride] += x[i, j] * kernels
    edge = stride // 2
    return whole[edge : edge + height * stride, edge : edge + width * stride]


@pytest.mark.parametrize('stride', [2, 4])
def test_enlarge_by_kernels_equals_loops(stride):
    rng = np.random.RandomState(0)
    x, kernels = rng.normal(size=(2, 3, 5, 2)), rng.normal(size=(2 * stride, 2 * stride, 2))
    found = np.asarray(jax.jit(fcn.enlarge_by_kernels)(x.astype(np.float32), kernels.astype(np.float32)))
    for one, image in zip(found, x):
        np.testing.assert_allclose(one, spread_by_loops(image, kernels, stride), atol=1e-5)


def test_bilinear_kernel_by_hand():
    # f = 2, centre 1.5: 1 - 1.5 / 2, 1 - 0.5 / 2 and so on, an outer product (the paper's code).
    np.testing.assert_allclose(fcn.bilinear_kernel(2), np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25]))
    kernel = fcn.bilinear_kernel(8)
    assert kernel.shape == (16, 16) and kernel[7, 7] == kernel[8, 8] == (15 / 16) ** 2


@pytest.mark.parametrize('stride', [2, 8])
def test_bilinear_kernels_interpolate_linearly_inside(stride):
    x = np.random.RandomState(0).normal(size=(1, 5, 6, 3)).astype(np.float32)
    kernels = np.repeat(fcn.bilinear_kernel(stride)[..., None], 3, axis=2)
    found = np.asarray(fcn.enlarge_by_kernels(x, kernels))
    expected, edge = np.asarray(pixels.enlarge(x, found.shape[1:3])), stride // 2
    np.testing.assert_allclose(found[:, edge:-edge, edge:-edge], expected[:, edge:-edge, edge:-edge], atol=1e-5)


def test_fcn_starts_from_scores_of_0_and_bilinear_kernels():
    segmenter = make_segmenter('fcn', num_classes=3, backbone=dict(width=0.125), backbone_strides=(4, 8, 16))
    params, _ = jax.jit(segmenter.init, static_argnums=1)(jax.random.key(0), (32, 32))
    assert sorted(name for name in params if name != 'backbone') == [
        *('score1', 'score2', 'score3', 'upsampling1', 'upsampling2')
    ]
    assert not any(np.any(leaf) for number in (1, 2, 3) for leaf in jax.tree.leaves(params[f'score{number}']))
    np.testing.assert_array_equal(params['upsampling2'][..., 1], fcn.bilinear_kernel(2))
    fixed = make_segmenter(
        'fcn', num_classes=3, backbone=dict(width=0.125), backbone_strides=(4, 8, 16), learn_upsampling=False
    )
    shapes = jax.eval_shape(lambda key: fixed.init(key, (32, 32)), jax.random.key(0))[0]
    assert sorted(name for name in shapes if name != 'backbone') == ['score1', 'score2', 'score3']


def test_unet_of_the_paper_has_its_parameters():
    # 1505.04597, figure 1, but for three channels of the image: convolutions 3x3 with biases in pairs, 2x2 up, a 1x1 for 2 classes.
    widths = [64, 128, 256, 512, 1024]
    pairs = [(3, 64), *zip(widths, widths[1:])]
    expected = sum(9 * a * b + b + 9 * b * b + b for a, b in pairs)
    expected += sum(4 * b * a + a + 9 * 2 * a * a + a + 9 * a * a + a for a, b in zip(widths, widths[1:]))
    segmenter = make_segmenter('unet', num_classes=1)
    params, state = jax.eval_shape(lambda key: segmenter.init(key, (64, 64)), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == expected + 64 * 2 + 2 and not state


def two_blocks(between):
    """One image of 16 x 16: two objects with columns of background between them, in a window of 15 x 16."""
    boxes = np.float32([[[0, 0, 8 - between, 16], [8, 0, 16, 16]]])
    gt = GroundTruth(
        boxes=boxes,
        labels=np.int32([[0, 1]]),
        valid=np.ones((1, 2), bool),
        crowd=np.zeros((1, 2), bool),
        dropped=np.zeros(1, np.int32),
        cropped=np.zeros(1, np.int32),
        masks=np.ones((1, 2, 4, 4), bool),
    )
    inputs = Inputs(np.zeros((1, 16, 16, 3), np.uint8), np.float32([[0, 0, 15, 16]]))
    return Batch(inputs, gt, np.zeros(1, np.int32), np.ones(1, bool))


@functools.cache
def unet_loss(**changes):
    """The loss of a U-Net whose logits are all 0 but for their bias (0, 1, 2), as a function of the batch."""
    segmenter = make_segmenter(
        'unet', num_classes=2, backbone=dict(width=1 / 32), backbone_strides=(1, 2), dropout=0.0, **changes
    )
    shapes, state = jax.eval_shape(lambda key: segmenter.init(key, (16, 16)), jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    params['logits']['bias'] = np.float32([0, 1, 2])
    loss = jax.jit(segmenter.loss)
    return lambda batch: float(loss(params, state, batch, jax.random.key(0))[0])


@pytest.mark.parametrize('between', [0, 2])
def test_unet_loss_by_hand(between):
    # With 2 columns of background between the objects: distances 1 + 2 and 2 + 1. With none the first object, which is the earlier
    # one of equal size, loses its last column, whose distances are 1 + 1.
    gap = 2 if between else 1
    entropy = [math.log(1 + math.e + math.e**2) - z for z in (0, 1, 2)]
    columns = 8 - gap, 7, gap  # of each class; the last column is outside of the window
    distance = 3 if between else 2
    border = 10 * math.exp(-(distance**2) / (2 * 5**2))
    plain = sum(n * e for n, e in zip(columns, entropy)) / 15
    assert unet_loss(border_weight=0.0)(two_blocks(between)) == pytest.approx(plain, rel=1e-5)
    whole = plain + gap * border * entropy[2] / 15
    assert unet_loss()(two_blocks(between)) == pytest.approx(whole, rel=1e-5)
    weighted = sum(n * e * w for n, e, w in zip(columns, entropy, (1, 2, 3))) / 15
    found = unet_loss(border_weight=0.0, class_weights=(1.0, 2.0, 3.0))(two_blocks(between))
    assert found == pytest.approx(weighted, rel=1e-5)
    of_two = unet_loss(border_weight=0.0, class_weights=(2.0, 3.0))(two_blocks(between))
    alike = sum(n * e * w for n, e, w in zip(columns, entropy, (2, 2, 3))) / 15
    assert of_two == pytest.approx(alike, rel=1e-5)


def test_unet_keeps_objects_together_if_asked():
    entropy = [math.log(1 + math.e + math.e**2) - z for z in (0, 1, 2)]
    expected = (8 * entropy[0] + 7 * entropy[1]) / 15
    assert unet_loss(separate_objects=False)(two_blocks(0)) == pytest.approx(expected, rel=1e-5)


def test_labels_of_pads_and_crops_nothing():
    batch = two_blocks(2)
    labels = np.asarray(pixels.labels_of(pixels.paint_batch(batch), batch, 2))[0]
    np.testing.assert_array_equal(labels, np.tile([0] * 6 + [2] * 2 + [1] * 7 + [IGNORE], (16, 1)))


def test_pad_to_multiple_pads_below_and_on_the_right():
    x = np.ones((1, 5, 8, 3), np.float32)
    padded = np.asarray(pixels.pad_to_multiple(x, 4))
    assert padded.shape == (1, 8, 8, 3) and (padded[:, :5] == 1).all() and not padded[:, 5:].any()


@pytest.mark.parametrize('name, strides', [('fcn', (4, 8, 16)), ('unet', (1, 2, 4))])
def test_any_canvas_gives_its_own_pixels(name, strides):
    segmenter = make_segmenter(name, num_classes=2, backbone=dict(width=1 / 16), backbone_strides=strides)
    variables = jax.eval_shape(lambda key: segmenter.init(key, (32, 32)), jax.random.key(0))
    inputs = Inputs(jax.ShapeDtypeStruct((2, 37, 50, 3), np.uint8), jax.ShapeDtypeStruct((2, 4), np.float32))
    assert jax.eval_shape(segmenter.predict, *variables, inputs).shape == (2, 37, 50, 3)


def test_drop_zeroes_a_share_and_keeps_the_mean():
    x, keys = np.ones((4, 30, 30, 5), np.float32), jax.random.split(jax.random.key(0), 4)
    found = np.asarray(pixels.drop(x, keys, 0.25))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)} and abs((found == 0).mean() - 0.25) < 0.02
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(np.asarray(pixels.drop(x[::-1], keys[::-1], 0.25))[::-1], found)
    np.testing.assert_array_equal(pixels.drop(x, None, 0.25), x)
