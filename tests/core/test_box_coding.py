"""Box coding: hand-computed deltas, encode and decode as inverses, the limit on growth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import box_coding, losses

encode = jax.jit(box_coding.encode, static_argnames='weights')
decode = jax.jit(box_coding.decode, static_argnames='weights')
WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5)]


def random_boxes(count, seed):
    rng = np.random.RandomState(seed)
    corner, size = rng.uniform(-20, 100, (count, 2)), rng.uniform(1, 80, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


@pytest.mark.parametrize('weights', WEIGHTS)
def test_encode_by_hand(weights):
    # The anchor: centre (5, 10), size 10 x 20. The box: centre (15, 15), size 20 x 10.
    # Hence (15 - 5) / 10 = 1, (15 - 10) / 20 = 1/4, log(20 / 10), log(10 / 20).
    anchors, boxes = np.float32([[0, 0, 10, 20]]), np.float32([[5, 10, 25, 20]])
    expected = np.multiply([[1, 0.25, math.log(2), -math.log(2)]], weights)
    np.testing.assert_allclose(encode(boxes, anchors, weights=weights), expected, rtol=1e-6)
    np.testing.assert_allclose(decode(np.float32(expected), anchors, weights=weights), boxes, rtol=1e-6)


@pytest.mark.parametrize('weights', WEIGHTS)
def test_encode_equals_loops(weights):
    boxes, anchors = random_boxes(30, 0), random_boxes(30, 1)
    expected = []
    for (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) in zip(boxes.tolist(), anchors.tolist()):
        width, height = ax2 - ax1, ay2 - ay1
        deltas = [
            ((x1 + x2) / 2 - (ax1 + ax2) / 2) / width,
            ((y1 + y2) / 2 - (ay1 + ay2) / 2) / height,
            math.log((x2 - x1) / width),
            math.log((y2 - y1) / height),
        ]
        expected.append([delta * weight for delta, weight in zip(deltas, weights)])
    ours = encode(boxes, anchors, weights=weights)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(box_coding.encode(boxes, anchors, weights=weights), ours, rtol=1e-5, atol=1e-5)  # no jit


def test_encode_with_rcnn_weights_equals_ssd_variances():
    boxes, anchors = random_boxes(30, 0), random_boxes(30, 1)
    plain = encode(boxes, anchors, weights=(1, 1, 1, 1))
    np.testing.assert_allclose(
        encode(boxes, anchors, weights=(10, 10, 5, 5)), plain / np.float32([0.1, 0.1, 0.2, 0.2]), rtol=1e-5
    )


def test_encode_of_the_anchors_is_zero():
    anchors = random_boxes(30, 1)
    np.testing.assert_array_equal(encode(anchors, anchors, weights=WEIGHTS[1]), np.zeros((30, 4)))


def test_encode_on_padding_leaves_loss_and_gradient_finite():
    # The idiom of the detectors: what is matched to nothing gets itself as a target, not a padding row, whose width is
    # 0.
    anchors, deltas = np.float32([[0, 0, 8, 8], [4, 4, 12, 20]]), np.full((2, 4), 0.5, np.float32)
    positive, boxes = np.array([True, False]), np.float32([[0, 0, 8, 8], [0, 0, 0, 0]])

    def loss(deltas, anchors):
        targets = box_coding.encode(jnp.where(positive[:, None], boxes, anchors), anchors)
        return jnp.where(positive[:, None], losses.smooth_l1(deltas, targets, beta=0), 0).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(deltas, anchors)
    assert value == 2  # four deltas of 0.5, each 0.5 off; the second anchor adds nothing
    np.testing.assert_array_equal(gradients[0], [[1, 1, 1, 1], [0, 0, 0, 0]])
    assert np.isfinite(gradients[1]).all()  # a learned proposal as the anchor


@pytest.mark.parametrize('weights', WEIGHTS)
def test_decode_inverts_encode(weights):
    boxes, anchors = random_boxes(200, 2), random_boxes(200, 3)  # scales up to 80: beyond the limit of 62.5
    width = boxes[:, 2:] - boxes[:, :2]
    small = (width / (anchors[:, 2:] - anchors[:, :2]) < 62).all(axis=1)
    assert small.sum() > 150
    decoded = decode(encode(boxes, anchors, weights=weights), anchors, weights=weights)
    np.testing.assert_allclose(decoded[small], boxes[small], rtol=1e-5, atol=1e-3)


def test_decode_of_zeros_is_the_anchor():
    anchors = np.float32([[0, 2, 10, 20], [-7, 3, 1, 4]])
    np.testing.assert_array_equal(decode(np.zeros((2, 4), np.float32), anchors), anchors)


def test_decode_limits_growth():
    # Below the limit exp(4) = 54.6 is kept; above, a side grows 1000 / 16 = 62.5 times, here around the centre (8, 8).
    anchors = np.float32([[0, 0, 16, 16]] * 3)
    deltas = np.float32([[0, 0, 4, 0], [0, 0, 5, 0], [0, 0, 0, 1e4]])
    decoded = decode(deltas, anchors)
    half = 8 * math.exp(4)
    np.testing.assert_allclose(
        decoded, [[8 - half, 0, 8 + half, 16], [-492, 0, 508, 16], [0, -492, 16, 508]], rtol=1e-5
    )


def test_decode_limits_growth_after_the_weights():
    # A delta of 10 with weight 5 is a scale of 2, below the limit of log(62.5) = 4.14.
    decoded = decode(np.float32([[0, 0, 10, 0]]), np.float32([[0, 0, 2, 2]]), weights=(10, 10, 5, 5))
    np.testing.assert_allclose(decoded[0, 2] - decoded[0, 0], 2 * math.exp(2), rtol=1e-5)


@pytest.mark.parametrize('value', [-1e4, 0.0, 1e4])
def test_decode_gradient_is_finite(value):
    anchors = np.float32([[0, 0, 16, 16]])
    gradient = jax.jit(jax.grad(lambda deltas: box_coding.decode(deltas, anchors).sum()))(
        np.full((1, 4), value, np.float32)
    )
    assert np.isfinite(gradient).all()


def test_coding_without_boxes():
    none = np.zeros((0, 4), np.float32)
    assert encode(none, none).shape == decode(none, none).shape == (0, 4)


@pytest.mark.parametrize('function', [box_coding.encode, box_coding.decode])
def test_coding_refuses_unequal_counts(function):
    with pytest.raises(AssertionError):
        function(jnp.ones((1, 4)), jnp.ones((3, 4)))  # would broadcast in silence


# Grid cells: an anchor of 10 x 20 in the middle of the cell (20, 40) .. (28, 48), which is 8 wide and 8 high.
CELL_ANCHOR, CELL_STRIDE = np.float32([[19, 34, 29, 54]]), np.float32([[8, 8]])
encode_cells, decode_cells = jax.jit(box_coding.encode_cells), jax.jit(box_coding.decode_cells)


def test_encode_cells_by_hand():
    # The box: centre (26, 41), size 20 x 10. Its centre is (26 - 20) / 8 and (41 - 40) / 8 into the cell.
    boxes = np.float32([[16, 36, 36, 46]])
    expected = [[0.75, 0.125, math.log(2), -math.log(2)]]
    np.testing.assert_allclose(encode_cells(boxes, CELL_ANCHOR, CELL_STRIDE), expected, rtol=1e-6)


def test_decode_cells_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(-log 7) = 1/8: the box above.
    outputs = np.float32([[math.log(3), -math.log(7), math.log(2), -math.log(2)]])
    np.testing.assert_allclose(decode_cells(outputs, CELL_ANCHOR, CELL_STRIDE), [[16, 36, 36, 46]], rtol=1e-6)


def test_decode_cells_of_zero_is_the_anchor():
    np.testing.assert_allclose(decode_cells(np.zeros((1, 4), np.float32), CELL_ANCHOR, CELL_STRIDE), CELL_ANCHOR)


def test_decode_cells_inverts_encode_cells():
    anchors, strides = random_boxes(30, 1), np.random.RandomState(2).uniform(4, 32, (30, 2)).astype(np.float32)
    outputs = np.random.RandomState(3).normal(0, 1.5, (30, 4)).astype(np.float32)
    back = encode_cells(decode_cells(outputs, anchors, strides), anchors, strides)
    reached = np.concatenate([1 / (1 + np.exp(-outputs[:, :2])), outputs[:, 2:]], axis=1)
    np.testing.assert_allclose(back, reached, atol=2e-4)


def test_decode_cells_keeps_the_centre_in_its_cell_and_the_size_finite():
    outputs = np.float32([[-1e3, 1e3, 1e3, -1e3]])
    x1, y1, x2, y2 = np.asarray(decode_cells(outputs, CELL_ANCHOR, CELL_STRIDE))[0]
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == (20, 48)
    assert x2 - x1 == pytest.approx(625, rel=1e-5) and y2 == y1  # 62.5 times the anchor, and nothing of it
