"""DeepMask and SharpMask: windows, their objects, losses, masks and refinement, against slow renderings of the rules in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import BLOCKS, CANVAS, tiny_variant
from tiny import TINY_DEEPMASK, TINY_SHARPMASK

from detzoo.core import masks as mask_ops
from detzoo.core import matching
from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import deepmask, make_detector, sharpmask, windows

RULES = dict(object_share=128 / 224, shift=16 / 224, octaves=0.25, negative_shift=32 / 224, negative_octaves=1.0)
match = jax.jit(lambda boxes, gt: matching.match_windows(boxes, gt, **RULES))


def match_by_hand(boxes, gt):
    """The paper's rule for windows of 224 pixels, one window and one object at a time."""
    matched = []
    for x1, y1, x2, y2 in boxes.astype(np.float64):
        unit_x, unit_y = (x2 - x1) / 224, (y2 - y1) / 224  # a pixel of the window
        best, row, clear, in_crowd = np.inf, None, True, False
        for m in np.flatnonzero(gt.valid):
            left, top, right, bottom = gt.boxes[m].astype(np.float64)
            if gt.crowd[m]:
                shared = max(0, min(right, x2) - max(left, x1)) * max(0, min(bottom, y2) - max(top, y1))
                in_crowd |= shared >= 0.5 * (x2 - x1) * (y2 - y1)
                continue
            off = max(abs(left + right - x1 - x2) / 2 / unit_x, abs(top + bottom - y1 - y2) / 2 / unit_y)
            ratio = max((right - left) / unit_x, (bottom - top) / unit_y) / 128
            octaves = abs(np.log2(ratio))
            distance = max(off / 16, octaves / 0.25)
            if distance < best:
                best, row = distance, m
            clear &= off >= 32 or octaves >= 1
        matched.append(row if best <= 1 else IGNORE if in_crowd or not clear else NEGATIVE)
    return matched


def test_match_windows_equals_loops(make_ground_truth):
    rng, seen = np.random.RandomState(0), set()
    for _ in range(4):
        center, side = rng.uniform(0, 200, (300, 2)), rng.uniform(60, 160, (300, 2))
        boxes = np.float32(np.concatenate([center - side / 2, center + side / 2], axis=1))
        middle, size = rng.uniform(20, 180, (6, 2)), rng.uniform(25, 100, (6, 2))
        objects = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
        objects[5] = 0, 0, 90, 200
        gt = make_ground_truth(objects, crowd=np.arange(6) == 5, rows=8)
        # Windows in whose middle an object of nearly the canonical size lies.
        at = center[:60] = middle[rng.randint(5, size=60)] + rng.uniform(-9, 9, (60, 2))
        boxes[:60] = np.concatenate([at - 60, at + 60], axis=1)
        found = np.asarray(match(boxes, gt))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, match_by_hand(boxes, gt))
        seen |= set(found.tolist())
    assert {IGNORE, NEGATIVE} < seen and len(seen) > 5


def test_match_windows_at_the_limits(make_ground_truth):
    # A window of 224 pixels around (300, 300), and an object of 128.
    box, gt = np.float32([[188, 188, 412, 412]]), lambda *rows: make_ground_truth(rows)

    def of(x, y, size):
        return int(match(box, gt((300 + x - size / 2, 300 + y - 10, 300 + x + size / 2, 300 + y + 10)))[0])

    assert [of(x, 0, 128) for x in (0, 16, -16, 17, 31, 32)] == [0, 0, 0, IGNORE, IGNORE, NEGATIVE]
    assert [of(0, y, 128) for y in (16, -31, -32)] == [0, IGNORE, NEGATIVE]
    assert [of(0, 0, 128 * 2**x) for x in (0.25, -0.25, 0.3, -0.99, 1, -1)] == [
        0,
        0,
        IGNORE,
        IGNORE,
        NEGATIVE,
        NEGATIVE,
    ]
    two = gt((236, 240, 364, 360), (240, 236, 368, 364))  # the first one is 0 pixels off, the second 4
    assert int(match(box, two)[0]) == 0
    nobody = gt()._replace(boxes=np.zeros((0, 4), np.float32), valid=np.zeros(0, bool), crowd=np.zeros(0, bool))
    assert match(box, nobody).tolist() == [NEGATIVE]


def test_windows_lie_where_their_cells_are():
    # Each cell of a map holds the place of its middle on the canvas: a window's cells have its middle and its sides.
    canvas, stride, cells, scales = (48, 80), 8, 4, (0.5, 1.0, 1.3)
    placed = windows.place_windows(canvas, scales=scales, stride=stride, cells=cells)
    sizes = [windows.scaled_canvas(canvas, scale, stride) for scale in scales]
    assert sizes == [(24, 40), (48, 80), (64, 104)]  # 62.4 and 104 are rounded to whole cells
    assert len(placed.boxes) == 4 * 6 + 7 * 11 + 9 * 14
    for factor in (1, 2):
        maps = []
        for height, width in sizes:
            step = stride / factor * canvas[0] / height, stride / factor * canvas[1] / width
            pad = factor * cells // 2
            y, x = np.mgrid[-pad : height * factor // stride + pad, -pad : width * factor // stride + pad] + 0.5
            maps.append(jnp.float32(np.stack([x * step[1], y * step[0]], axis=-1))[None])
        chosen = np.random.RandomState(0).permutation(len(placed.boxes))[None]
        cut = np.asarray(windows.cut_windows(maps, placed, jnp.asarray(chosen), cells=cells, factor=factor))[0]
        assert cut.shape[1:] == (factor * cells, factor * cells, 2)
        boxes = placed.boxes[chosen[0]]
        np.testing.assert_allclose(cut.mean(axis=(1, 2)), (boxes[:, :2] + boxes[:, 2:]) / 2, atol=1e-4)
        first, last = cut[:, 0, 0], cut[:, -1, -1]
        share = 1 - 1 / (factor * cells)
        np.testing.assert_allclose(last - first, (boxes[:, 2:] - boxes[:, :2]) * share, rtol=1e-5)
    corners = {(0, 0), (80, 48), (0, 48), (80, 0)}
    assert corners <= {tuple(center) for center in (placed.boxes[:, :2] + placed.boxes[:, 2:]).tolist() and
                       ((placed.boxes[:, :2] + placed.boxes[:, 2:]) / 2).round(4).tolist()}  # fmt: skip


def test_codes_of_windows_alone_are_those_of_the_whole_map():
    tiny = tiny_variant('deepmask')
    parts = deepmask.make_parts(
        num_classes=3, **{k: v for k, v in TINY_DEEPMASK.items() if k not in ('name', 'mask_size')}
    )
    network, placed = deepmask.DeepMask(parts.network, 16), parts.windows.place(CANVAS)
    chosen = np.stack([np.random.RandomState(i).permutation(len(placed.boxes))[:40] for i in range(2)])
    few = jax.tree.map(lambda x: x[:2], BLOCKS.inputs)

    def both(net, x, *, train):
        reduced, _ = net.base.maps(x, train=train)
        return net.base.codes(reduced), net.base.codes_of(reduced, placed, jnp.asarray(chosen))

    (whole, alone), _ = jax.jit(lambda *variables: parts.apply(network, *variables, few, train=False, method=both))(
        tiny.params, tiny.model_state
    )
    assert whole.shape == (2, len(placed.boxes), 32)
    expected = np.take_along_axis(np.asarray(whole), chosen[..., None], axis=1)
    np.testing.assert_allclose(alone, expected, atol=1e-5 * np.abs(expected).max())
    assert np.std(expected, axis=1).min() > 1e-3  # codes of windows differ


def test_a_window_alone_scores_as_in_its_image():
    # A cell of stride 4 sees 21 pixels around it: an image that is cut 24 pixels around a window tells as much of it.
    tiny = tiny_variant('deepmask')
    arguments = {k: v for k, v in TINY_DEEPMASK.items() if k not in ('name', 'mask_size')}
    parts = deepmask.make_parts(
        num_classes=3, **arguments | dict(windows=dict(TINY_DEEPMASK['windows'], scales=(1.0,)))
    )
    network = deepmask.DeepMask(parts.network, 16)
    image = np.float32(np.random.RandomState(0).normal(size=(1, 128, 128, 3)))

    def score(x):
        def run(net, x):
            codes = net.base.codes(net.base.maps(x, train=False)[0])
            return net.base.scores(codes, None), net.masks(codes, None, None, None)

        return network.apply({'params': tiny.params, **tiny.model_state}, x, method=run)

    whole = [np.asarray(y)[0].reshape(33, 33, *y.shape[2:]) for y in jax.jit(score)(image)]
    alone = jax.jit(score)
    for row, column in ((14, 12), (19, 17)):  # middles of windows, in cells
        top, left = 4 * row - 40, 4 * column - 40
        crop = [
            np.asarray(y)[0].reshape(21, 21, *y.shape[2:]) for y in alone(image[:, top : top + 80, left : left + 80])
        ]
        for here, there in zip(crop, whole):
            np.testing.assert_allclose(here[10, 10], there[row, column], atol=1e-5 * np.abs(there).max())
            assert np.abs(here[1, 10] - there[row - 9, column]).max() > 1e-4  # at the border, zeros are seen instead


def test_losses_equal_the_papers_formula(make_ground_truth):
    # (1 + y) / 2wh * sum of log(1 + exp(-m f)) over cells, averaged over positives; log(1 + exp(-y s)), averaged over samples.
    rng = np.random.RandomState(0)
    gt = make_ground_truth([[10, 20, 50, 60], [30, 5, 70, 45], [0, 0, 9, 9]], crowd=[False, False, True], rows=5)
    gt = jax.tree.map(lambda x: np.asarray(x)[None], gt._replace(masks=rng.uniform(size=(5, 6, 6)) < 0.5))
    boxes = np.float32([[[0, 8, 64, 72], [20, -4, 84, 60], [4, 8, 68, 72], [100, 100, 164, 164], [0, 0, 9, 9]]])
    matched = np.int32([[0, 1, 0, NEGATIVE, IGNORE]])
    scores, masks = rng.normal(size=(1, 5)), rng.normal(size=(1, 4, 6, 6))
    trained = deepmask.Trained(None, None, boxes, jnp.asarray(matched), jnp.asarray(scores), jnp.asarray(masks))
    found = deepmask.sum_losses(trained, gt, None)

    mask_losses = []
    for r in range(3):
        (x1, y1, x2, y2), row = boxes[0, r], matched[0, r]
        left, top, right, bottom = gt.boxes[0, row]
        total = 0
        for i in range(6):
            for j in range(6):
                x, y = x1 + (x2 - x1) * (j + 0.5) / 6, y1 + (y2 - y1) * (i + 0.5) / 6
                inside = left <= x <= right and top <= y <= bottom
                at = np.clip([(y - top) / (bottom - top) * 6 - 0.5, (x - left) / (right - left) * 6 - 0.5], 0, 5)
                (a, b), (u, v) = at % 1, at.astype(int)
                mask = np.pad(gt.masks[0, row], (0, 1)).astype(float)
                value = (1 - a) * ((1 - b) * mask[u, v] + b * mask[u, v + 1])
                value += a * ((1 - b) * mask[u + 1, v] + b * mask[u + 1, v + 1])
                m = 1 if inside and value >= 0.5 else -1
                total += np.log(1 + np.exp(-m * masks[0, r, i, j]))
        mask_losses.append(total / 36)
    y = np.array([1, 1, 1, -1])
    assert float(found['mask_loss']) == pytest.approx(np.mean(mask_losses), rel=1e-5)
    assert float(found['score_loss']) == pytest.approx(np.mean(np.log(1 + np.exp(-y * scores[0, :4]))), rel=1e-5)
    assert (found['positives'], found['negatives'], found['missed_objects']) == (3, 1, 0)
    nothing = deepmask.sum_losses(trained._replace(of_sampled=jnp.full((1, 5), NEGATIVE)), gt, None)
    assert nothing['mask_loss'] == 0 and nothing['missed_objects'] == 2


def test_loss_weighs_the_scores():
    tiny = tiny_variant('deepmask')
    _, (_, metrics) = tiny.gradient(BLOCKS)[0]
    loss = tiny.gradient(BLOCKS)[0][0]
    assert float(loss) == pytest.approx(float(metrics['mask_loss'] + 1.0 * metrics['score_loss']), rel=1e-6)
    default = make_detector('deepmask', num_classes=3)
    assert deepmask.make_parts.__kwdefaults__['score_loss_weight'] == 1 / 32
    assert default.class_agnostic and default.finds_masks and not default.extends
    assert make_detector('sharpmask', num_classes=3).extends == 'deepmask'


def smooth_masks(count, size, seed=0):
    """Probabilities that vary smoothly between cells."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size]
    center, radius = (
        rng.uniform(0.3 * size, 0.7 * size, (count, 2, 1, 1)),
        rng.uniform(1.5, 0.4 * size, (count, 2, 1, 1)),
    )
    distance = np.hypot((y - center[:, 0]) / radius[:, 0], (x - center[:, 1]) / radius[:, 1])
    return np.float32(1 / (1 + np.exp(4 * (distance - 1))))


def test_tight_boxes_are_those_of_masks_that_are_enlarged():
    masks, frames = smooth_masks(12, 10), np.float32([[10, 20, 110, 70]]).repeat(12, axis=0)
    masks[0], masks[1] = 0.1, 0.9  # nothing, and all of the frame
    boxes, found = map(
        np.asarray, jax.jit(mask_ops.tight_boxes, static_argnames='threshold')(masks, frames, threshold=0.5)
    )
    assert found.tolist() == [False] + [True] * 11
    np.testing.assert_allclose(boxes[1], frames[1])
    for mask, frame, box in zip(masks[2:], frames[2:], boxes[2:]):
        points = (np.arange(1000) + 0.5) / 100 - 0.5  # a hundred points a cell
        weights = np.maximum(1 - abs(np.clip(points, 0, 9)[:, None] - np.arange(10)), 0)
        rows, columns = np.nonzero(weights @ mask @ weights.T >= 0.5)
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 1000
        expected = np.tile(frame[:2], 2) + edges * np.tile(frame[2:] - frame[:2], 2)
        assert np.abs(box - expected).max() < 0.1 * 10  # a tenth of a cell, which is 10 x 5 pixels
        assert np.abs(box - expected).mean() < 0.3


def test_tight_boxes_by_hand():
    mask = np.float32([[[0, 0, 0, 0], [0, 0.75, 1, 0.25], [0, 0.75, 1, 0.25], [0, 0.75, 1, 0.25]]])
    box, found = mask_ops.tight_boxes(mask, np.float32([[0, 0, 40, 80]]), threshold=0.5)
    # Along x 0.5 lies at 2/3 of the way from the middle of the first column to that of the second, and at 2/3 from the third to
    # the fourth; along y at half of the way from the first row to the second, and the last row reaches the frame.
    np.testing.assert_allclose(box, [[5 + 20 / 3, 10 + 10, 25 + 20 / 3, 80]], rtol=1e-6)
    assert found.tolist() == [True]


def test_resample_masks_keeps_what_lies_in_the_new_frame():
    masks, frames = smooth_masks(5, 10), np.float32([[0, 0, 100, 100]]).repeat(5, axis=0)
    same = mask_ops.resample_masks(masks, frames, frames, size=10)
    np.testing.assert_allclose(same, masks, atol=1e-6)
    part = mask_ops.resample_masks(masks, frames, np.float32([[30, 40, 60, 90]]).repeat(5, axis=0), size=5)
    weights_x, weights_y = (
        np.maximum(1 - abs((low + (np.arange(5) + 0.5) * side / 5)[:, None] / 10 - 0.5 - np.arange(10)), 0)
        for low, side in ((30, 30), (40, 50))
    )
    np.testing.assert_allclose(part, weights_y @ masks @ weights_x.T, atol=1e-5)


def test_proposals_are_the_best_windows_cut_at_the_threshold():
    choose, _ = deepmask.make_proposals(mask_threshold=0.2, pre_nms_topk=6, max_detections=8)
    probabilities = smooth_masks(6, 12, seed=3)
    probabilities[4] = 0.1  # nothing reaches 0.2
    boxes = np.float32(
        [[0, 0, 48, 48], [20, 10, 68, 58], [-24, -24, 24, 24], [5, 5, 53, 53], [0, 0, 48, 48], [200, 200, 248, 248]]
    )
    scores = np.float32([3, 2, 1, 0, -1, -2])
    logits = np.log(probabilities / (1 - probabilities))
    found = jax.tree.map(np.asarray, jax.jit(choose)(boxes, scores, logits, np.float32([0, 0, 100, 90])))
    assert found.valid.tolist() == [True] * 4 + [False] * 4  # the last window lies outside of the image
    np.testing.assert_allclose(found.scores[:4], 1 / (1 + np.exp(-scores[:4])), rtol=1e-5)
    assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= [100, 90]).all() and not found.labels.any()
    pasted = mask_ops.paste_masks(found.masks[:4], found.boxes[:4], (90, 100))
    for mask, window, pixels in zip(probabilities, boxes, pasted):
        y, x = ((np.arange(side) + 0.5 - window[axis]) / 48 * 12 - 0.5 for side, axis in ((90, 1), (100, 0)))
        weights = [
            np.where((p >= -0.5) & (p <= 11.5), 1, 0)[:, None]
            * np.maximum(1 - abs(np.clip(p, 0, 11)[:, None] - np.arange(12)), 0)
            for p in (y, x)
        ]
        expected = weights[0] @ mask @ weights[1].T >= 0.2
        union = (pixels | expected).sum()
        assert union > 200 and (pixels & expected).sum() > 0.95 * union
    suppressed = deepmask.make_proposals(iou_threshold=0.1, pre_nms_topk=6, max_detections=8)[0](
        boxes, scores, logits, np.float32([0, 0, 100, 90])
    )
    assert suppressed.valid.sum() < 4


def convolve_3x3(x, kernel, bias):
    """A 3x3 convolution of [h, w, C] whose outermost cells are repeated around it."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode='edge')
    height, width, _ = x.shape
    return bias + sum(padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def test_refinement_equals_numpy():
    # Two steps for two windows of one scale: 2 x 2 cells of stride 8, and 4 x 4 of stride 4.
    rng, relu = np.random.RandomState(0), lambda x: np.maximum(x, 0)
    parts = deepmask.make_parts(
        (4,),
        num_classes=3,
        backbone=dict(name='resnet18', width=0.125, norm='batch_norm'),
        backbone_stride=8,
        windows=dict(size=16, scales=(1.0,)),
        rank=5,
    )
    network = sharpmask.SharpMask(parts.network, (4, 8), 4, (6, 3))
    placed = parts.windows.place((24, 32))
    codes, chosen = np.float32(rng.normal(size=(1, 2, 5))), np.array([[6, 19]])  # at rows 1 and 3, columns 1 and 4
    assert placed.row[chosen[0]].tolist() == [1, 3] and placed.column[chosen[0]].tolist() == [1, 4]
    maps = [np.float32(rng.normal(size=(1, 6, 8, 2))), np.float32(rng.normal(size=(1, 3, 4, 3)))]
    find = lambda net: net.masks(codes, [maps], placed, jnp.asarray(chosen))
    params = network.init(jax.random.key(0), method=find)['params']
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), params)
    assert {
        name: [layer['kernel'].shape[2:] for layer in params[name].values()] for name in sorted(params) if '_' in name
    } == {
        'horizontal_0': [(3, 6), (6, 4), (4, 2)],
        'horizontal_1': [(2, 3), (3, 2), (2, 1)],
        'vertical_0': [(4, 4), (4, 2)],
        'vertical_1': [(2, 2), (2, 1)],
    }
    found = np.asarray(network.apply({'params': params}, method=find))
    assert found.shape == (1, 2, 8, 8)

    def layers(name, x):
        for i, layer in enumerate(params[name].values()):
            x = convolve_3x3(x if i == 0 else relu(x), layer['kernel'], layer['bias'])
        return x

    for window, (row, column) in enumerate(((1, 1), (3, 4))):
        mask = (codes[0, window] @ params['coarse']['kernel'] + params['coarse']['bias']).reshape(2, 2, 4)
        for step, (features, factor) in enumerate(((maps[1][0], 1), (maps[0][0], 2))):
            pad, side = factor, 2 * factor
            horizontal = np.pad(layers(f'horizontal_{step}', features), ((pad, pad), (pad, pad), (0, 0)))
            horizontal = horizontal[row * factor :, column * factor :][:side, :side]
            mask = np.kron(relu(horizontal + layers(f'vertical_{step}', mask)), np.ones((2, 2, 1)))
        expected = convolve_3x3(mask, params['output']['kernel'], params['output']['bias'])[..., 0]
        np.testing.assert_allclose(found[0, window], expected, atol=1e-4 * np.abs(expected).max())
        assert expected.std() > 0.1


@pytest.mark.parametrize(
    'model, changes, words',
    [
        (TINY_DEEPMASK, dict(windows=dict(size=36)), r'windows\.size is 36: it must be a multiple of 8'),
        (TINY_DEEPMASK, dict(windows=dict(size=32, negative_shift=0.05)), r'negative_shift is 0\.05 .* at least shift'),
        (TINY_SHARPMASK, dict(backbone_stride=16), 'each must be twice the one before'),
        (TINY_SHARPMASK, dict(hidden_features=(8,)), 'a number for each of the 2 steps'),
        (TINY_SHARPMASK, dict(refine_features=6), 'refine_features is 6: it must be a multiple of 4'),
    ],
)  # fmt: skip
def test_windows_and_steps_that_do_not_fit_are_refused(model, changes, words):
    with pytest.raises(ValueError, match=words):
        make_detector(num_classes=3, **model | changes)


def test_ground_truth_without_masks_is_refused():
    tiny = tiny_variant('deepmask')
    with pytest.raises(ValueError, match='set data.mask_size'):
        batch = BLOCKS._replace(gt=BLOCKS.gt._replace(masks=None))
        jax.eval_shape(tiny.detector.loss, tiny.params, tiny.model_state, batch, jax.random.key(0))
