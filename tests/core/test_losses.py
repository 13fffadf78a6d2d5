"""Losses: values by hand, float64 loops, gradients against finite differences, and the normaliser on eight devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import losses

DEVICES = 8
GAMMAS = [0.0, 0.5, 2.0]
ALPHAS = [None, 0.25]
focal = jax.jit(losses.sigmoid_focal, static_argnames='alpha')
smooth_l1 = jax.jit(losses.smooth_l1, static_argnames='beta')


@functools.partial(jax.jit, static_argnames='alpha')
def focal_gradient(logits, targets, gamma, alpha):
    return jax.grad(lambda logits: losses.sigmoid_focal(logits, targets, gamma=gamma, alpha=alpha).sum())(logits)


def focal_oracle(logit, target, gamma, alpha):
    """Equation 5 of the paper as it stands, in float64."""
    p = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (p, alpha) if target else (1 - p, None if alpha is None else 1 - alpha)
    return -(1 if alpha is None else alpha_t) * (1 - p_t) ** gamma * math.log(p_t)


def random_logits(seed=0, count=40):
    rng = np.random.RandomState(seed)
    return rng.uniform(-6, 6, count).astype(np.float32), rng.uniform(size=count) < 0.5


def test_sigmoid_focal_by_hand():
    # p = .5: (1 - p_t)^2 = 1/4 and -log(p_t) = log 2 for both answers, weighed with 1/4 and 3/4. p = .9 (logit log 9),
    # a positive: .1^2 * -log(.9), a hundredth of the cross-entropy, as in the paper's introduction.
    logits, targets = np.float32([0, 0, math.log(9)]), np.array([True, False, True])
    expected = np.array([0.25 / 4 * math.log(2), 0.75 / 4 * math.log(2), 0.25 * 0.01 * -math.log(0.9)])
    np.testing.assert_allclose(focal(logits, targets, gamma=2.0, alpha=0.25), expected, rtol=1e-5)


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('gamma', GAMMAS)
def test_sigmoid_focal_equals_loops(gamma, alpha):
    logits, targets = random_logits()
    expected = [focal_oracle(*pair, gamma, alpha) for pair in zip(logits.tolist(), targets)]
    np.testing.assert_allclose(focal(logits, targets, gamma=gamma, alpha=alpha), expected, rtol=2e-5)


def test_sigmoid_focal_with_gamma_zero_and_no_alpha_is_cross_entropy():
    logits, targets = random_logits()
    z = logits.astype(np.float64)
    expected = np.maximum(z, 0) - z * targets + np.log1p(np.exp(-np.abs(z)))
    np.testing.assert_allclose(focal(logits, targets, gamma=0.0, alpha=None), expected, rtol=1e-5)


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('gamma', GAMMAS)
def test_sigmoid_focal_gradient_equals_finite_differences(gamma, alpha):
    logits, targets = random_logits()
    step = 1e-5
    expected = [
        (focal_oracle(z + step, t, gamma, alpha) - focal_oracle(z - step, t, gamma, alpha)) / (2 * step)
        for z, t in zip(logits.tolist(), targets)
    ]
    np.testing.assert_allclose(focal_gradient(logits, targets, gamma, alpha), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_sigmoid_focal_is_finite_at_extreme_logits(gamma):
    # Certain and wrong: (1 - p_t)^gamma = 1, the loss is the logit and its slope 1, away from the truth. Certain and
    # right: both are 0.
    logits, targets = np.float32([1e4, -1e4, 1e4, -1e4]), np.array([False, True, True, False])
    np.testing.assert_allclose(focal(logits, targets, gamma=gamma, alpha=None), [1e4, 1e4, 0, 0])
    np.testing.assert_allclose(focal_gradient(logits, targets, gamma, None), [1, -1, 0, 0])


def test_sigmoid_focal_takes_any_kind_of_targets():
    logits, targets = random_logits()
    expected = focal(logits, targets, gamma=2.0, alpha=0.25)
    for kind in (np.int32, np.float32):
        np.testing.assert_array_equal(focal(logits, targets.astype(kind), gamma=2.0, alpha=0.25), expected)


def test_smooth_l1_by_hand():
    # beta = 2. |d| = 1: .5 * 1 / 2. |d| = 2, where the pieces meet: 2 - 1. |d| = 5: 5 - 1. Either sign.
    predictions, targets = np.float32([1, 0, 3, -2, 0]), np.float32([0, 1, 1, 3, 0])
    np.testing.assert_allclose(smooth_l1(predictions, targets, beta=2.0), [0.25, 0.25, 1, 4, 0])


def test_smooth_l1_with_beta_zero_is_l1():
    predictions, targets = (random_logits(seed)[0] for seed in (1, 2))
    np.testing.assert_allclose(smooth_l1(predictions, targets, beta=0), np.abs(predictions - targets))
    np.testing.assert_allclose(smooth_l1(predictions, targets, beta=1e-6), np.abs(predictions - targets), atol=1e-6)


@pytest.mark.parametrize('beta', [1 / 9, 1.0])
def test_smooth_l1_equals_loops(beta):
    predictions, targets = (random_logits(seed)[0] for seed in (1, 2))
    predictions[:20] = targets[:20] + np.linspace(-1.5, 1.5, 20).astype(np.float32) * np.float32(beta)  # both pieces
    expected = []
    for difference in np.abs(predictions.astype(np.float64) - targets):
        expected.append(difference**2 / (2 * beta) if difference < beta else difference - beta / 2)
    np.testing.assert_allclose(smooth_l1(predictions, targets, beta=beta), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('beta', [0, 1 / 9])
def test_smooth_l1_gradient_is_bounded(beta):
    # The slope is the sign beyond beta, and 0 where prediction and target are equal.
    predictions = np.float32([-1e4, -1, 0, 1, 1e4])
    gradient = jax.jit(jax.grad(lambda x: losses.smooth_l1(x, jnp.zeros(5), beta=beta).sum()))(predictions)
    np.testing.assert_array_equal(gradient, [-1, -1, 0, 1, 1])


@pytest.mark.parametrize(
    'function',
    [
        functools.partial(losses.sigmoid_focal, gamma=2.0, alpha=0.25),
        functools.partial(losses.smooth_l1, beta=0.5),
    ],
)
def test_losses_of_nothing_without_jit_and_of_unequal_shapes(function):
    assert function(jnp.zeros((0, 4)), jnp.zeros((0, 4))).shape == (0, 4)
    logits, targets = random_logits()
    targets = targets.astype(np.float32)
    np.testing.assert_allclose(function(logits, targets), jax.jit(function)(logits, targets), rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError):
        function(jnp.zeros((3, 4)), jnp.zeros(4))  # would broadcast in silence


def test_normalizer_of_one_device_by_hand():
    assert [float(losses.normalizer(np.int32(count), None)) for count in (0, 1, 7)] == [1, 1, 7]


def test_normalizer_refuses_an_array():
    with pytest.raises(AssertionError):
        losses.normalizer(jnp.ones(3), None)


def loss_and_gradient(weight, values, positive, axis_name=None):
    """A sum over positives by the normaliser, and its gradient, averaged over devices as the training step does."""

    def loss(weight):
        return jnp.where(positive, weight * values, 0).sum() / losses.normalizer(positive.sum(), axis_name)

    result = jax.value_and_grad(loss)(weight)
    return result if axis_name is None else jax.lax.pmean(result, axis_name)


on_devices = jax.pmap(functools.partial(loss_and_gradient, axis_name='batch'), axis_name='batch', in_axes=(None, 0, 0))
on_one = jax.jit(loss_and_gradient)


@pytest.mark.parametrize('share', [0.5, 0.05, 0.0], ids=['many', 'few', 'none'])
def test_normalizer_mean_over_devices_equals_one_big_batch(share):
    # Very unequal counts: with a local mean a positive would weigh by the device it is on. 'few' leaves devices without
    # positives, 'none' all of them.
    rng = np.random.RandomState(0)
    values = rng.normal(size=(DEVICES, 6)).astype(np.float32)
    positive = rng.uniform(size=(DEVICES, 6)) < share * 2 * np.arange(DEVICES)[:, None] / DEVICES
    loss, gradient = on_devices(np.float32(3), values, positive)
    expected_loss, expected_gradient = on_one(np.float32(3), values.reshape(-1), positive.reshape(-1))
    # By the definition: the sum over all positives by their number, at least 1.
    np.testing.assert_allclose(expected_gradient, values[positive].sum() / max(positive.sum(), 1), rtol=1e-5)
    np.testing.assert_allclose(loss, np.full(DEVICES, expected_loss), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.full(DEVICES, expected_gradient), rtol=1e-5)


def test_normalizer_by_hand_on_devices():
    # Counts 0..7: their sum 28 by 8 devices is 3.5 on each, also where there is none. All 0: max(1, 0) / 8.
    normalizer = jax.pmap(lambda count: losses.normalizer(count, 'batch'), axis_name='batch')
    np.testing.assert_array_equal(normalizer(np.arange(DEVICES)), np.full(DEVICES, 3.5))
    np.testing.assert_array_equal(normalizer(np.zeros(DEVICES, int)), np.full(DEVICES, 1 / 8))


# Losses of overlap. Two boxes of 4 x 2: the second is shifted by (2, 0). Shared 2 * 2 = 4, union 8 + 8 - 4 = 12, so
# IoU 1/3. The enclosing box is 6 x 2 = 12: nothing of it is uncovered. Its diagonal squared is 36 + 4, the centres'
# distance squared 4. Against 2 x 2 boxes of the same places the shapes differ.
iou_loss = jax.jit(losses.iou_loss, static_argnames='kind')
SHIFTED = np.float32([[0, 0, 4, 2]]), np.float32([[2, 0, 6, 2]])


@pytest.mark.parametrize(
    'kind, expected', [('giou', 1 - 1 / 3), ('diou', 1 - 1 / 3 + 4 / 40), ('ciou', 1 - 1 / 3 + 4 / 40)]
)
def test_iou_loss_by_hand(kind, expected):
    assert iou_loss(*SHIFTED, kind=kind)[0] == pytest.approx(expected, rel=1e-6)


def test_iou_loss_of_boxes_apart_by_hand():
    # 2 x 2 at 0 and at (4, 0): enclosing 6 x 2 = 12, union 8, so GIoU = 0 - 4/12; centres 4 apart, diagonal 36 + 4.
    one, other = np.float32([[0, 0, 2, 2]]), np.float32([[4, 0, 6, 2]])
    assert iou_loss(one, other, kind='giou')[0] == pytest.approx(1 + 4 / 12, rel=1e-6)
    assert iou_loss(one, other, kind='diou')[0] == pytest.approx(1 + 16 / 40, rel=1e-6)


def unlikeness(first, second):
    """v of 1911.08287, equation 9."""
    angles = [math.atan((x2 - x1) / (y2 - y1)) for x1, y1, x2, y2 in (first, second)]
    return 4 / math.pi**2 * (angles[1] - angles[0]) ** 2


def ciou_alpha(first, second):
    """1911.08287, equation 11; the weight of v."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = first, second
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    iou = shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)
    return unlikeness(first, second) / (1 - iou + unlikeness(first, second))


def iou_loss_oracle(first, second, kind, alpha=None):
    """1 - GIoU of 1902.09630, algorithm 1; 1 - DIoU and 1 - CIoU of 1911.08287, equations 7 to 11; in float64."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = first, second
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    iou = shared / union
    if kind == 'giou':
        enclosing = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
        return 1 - iou + (enclosing - union) / enclosing
    diagonal = (max(ax2, bx2) - min(ax1, bx1)) ** 2 + (max(ay2, by2) - min(ay1, by1)) ** 2
    distance = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    if kind == 'diou':
        return 1 - iou + distance / diagonal
    alpha = ciou_alpha(first, second) if alpha is None else alpha
    return 1 - iou + distance / diagonal + alpha * unlikeness(first, second)


def random_boxes(count, seed):
    rng = np.random.RandomState(seed)
    corner = rng.uniform(0, 20, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize('kind', losses.IOU_LOSSES)
def test_iou_loss_equals_loops(kind):
    first, second = random_boxes(50, 0), random_boxes(50, 1)
    expected = [iou_loss_oracle(*pair, kind) for pair in zip(first.tolist(), second.tolist())]
    np.testing.assert_allclose(iou_loss(first, second, kind=kind), expected, rtol=1e-4)


@pytest.mark.parametrize('kind', losses.IOU_LOSSES)
def test_iou_loss_of_the_target_is_zero_and_gradients_are_finite(kind):
    boxes = random_boxes(20, 2)
    np.testing.assert_allclose(iou_loss(boxes, boxes, kind=kind), 0, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x, y: losses.iou_loss(x, y, kind=kind).sum()))
    empty, huge = boxes.copy(), boxes.copy()
    empty[:, 2:] = empty[:, :2]
    huge[:, 2:] += 1e5
    for predictions in (boxes, empty, huge, boxes + 500):
        assert np.isfinite(gradient(predictions, boxes)).all()


@pytest.mark.parametrize('kind', losses.IOU_LOSSES)
def test_iou_loss_gradient_equals_finite_differences(kind):
    # Of overlapping boxes of other shapes; alpha, the weight of CIoU's last term, is held where it is (1911.08287, section 4).
    first, second = random_boxes(20, 3) + np.float32([0, 0, 20, 5]), random_boxes(20, 4) + np.float32([0, 0, 5, 20])
    step, expected = 1e-5, np.zeros((20, 4))
    for row, pair in enumerate(zip(first.tolist(), second.tolist())):
        alpha = ciou_alpha(*pair)
        for side in range(4):
            moved = [[x + sign * step * (i == side) for i, x in enumerate(pair[0])] for sign in (1, -1)]
            above, below = (iou_loss_oracle(box, pair[1], kind, alpha) for box in moved)
            expected[row, side] = (above - below) / (2 * step)
    gradient = jax.jit(jax.grad(lambda x: losses.iou_loss(x, second, kind=kind).sum()))(first)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize('kind', losses.IOU_LOSSES)
def test_iou_loss_gradient_pulls_boxes_together(kind):
    first, second = random_boxes(30, 3), random_boxes(30, 4) + 15
    step = jax.jit(lambda x: x - jax.grad(lambda x: losses.iou_loss(x, second, kind=kind).sum())(x))
    after = step(first)
    assert (iou_loss(after, second, kind=kind) < iou_loss(first, second, kind=kind)).all()


def test_iou_loss_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'iou'"):
        losses.iou_loss(*SHIFTED, kind='iou')


hard_negatives = jax.jit(losses.hard_negatives)


def test_hard_negatives_by_hand():
    # The largest two of the negatives; the largest loss of all is no negative's.
    loss, negative = np.float32([1, 9, 3, 2, 4]), np.array([True, False, True, True, True])
    assert hard_negatives(loss, negative, 2).tolist() == [False, False, True, False, True]


def test_hard_negatives_takes_the_first_of_equals():
    loss, negative = np.float32([5, 1, 1, 1, 1]), np.array([True, True, False, True, True])
    assert hard_negatives(loss, negative, 3).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize('count, expected', [(0, 0), (3, 3), (9, 3)])
def test_hard_negatives_are_never_more_than_there_are(count, expected):
    negative = np.array([True, False, True, True])
    chosen = np.asarray(hard_negatives(np.zeros(4, np.float32), negative, count))
    assert chosen.sum() == expected and not chosen[1]


def test_hard_negatives_equal_loops():
    rng = np.random.RandomState(0)
    for _ in range(50):
        loss = rng.choice(np.float32([0, 0.5, 1, 3, 1e30, np.inf]), 20)  # many ties
        negative, count = rng.uniform(size=20) < 0.7, rng.randint(20)
        expected, left = np.zeros(20, bool), [i for i in range(20) if negative[i]]
        for _ in range(min(count, len(left))):
            hardest = max(left, key=lambda i: (loss[i], -i))
            expected[hardest] = True
            left.remove(hardest)
        np.testing.assert_array_equal(hard_negatives(loss, negative, count), expected)
        np.testing.assert_array_equal(losses.hard_negatives(loss, negative, count), expected)


def test_hard_negatives_refuses_unequal_shapes():
    with pytest.raises(AssertionError):
        losses.hard_negatives(jnp.zeros(3), jnp.ones((3, 1), bool), 1)
