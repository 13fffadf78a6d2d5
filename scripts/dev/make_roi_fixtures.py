"""Makes the golden arrays of tests/core/test_roi_features.py and test_masks.py with torchvision; the tests do not need torch.

  pip install torch torchvision
  python scripts/dev/make_roi_fixtures.py

tests/fixtures/roi_features.npz has four levels of features, RoIs on their canvas, and torchvision's features of the RoIs:

    level_0 .. level_3  [h, w, C] float32, with strides 4, 8, 16 and 32
    relu                [h, w, C] float32, with stride 8: few different values, many of them 0, so that most maxima are tied
    rois                [R, 4] float32 xyxy: in the map, across its border, outside, larger than the map, smaller than a
                        cell, empty, with corners at halves of a cell; then random ones
    gradient            [R, size, size, C], the gradient with respect to the result, the same for all cases
    CASE                [R, size, size, C], the result of CASE: align (aligned=False, 2 samples), align_aligned, align_adaptive,
                        align_adaptive_aligned, all on level_1; pool, on relu; pyramid, on all levels, chosen by size
    CASE.gradient       the gradient with respect to the features; for pyramid an array per level, pyramid.gradient_0 and so on
    level               [R] int64, the level of each RoI in pyramid

tests/fixtures/masks.npz has masks that torchvision pastes, and its mask targets:

    masks       [D, m, m] float32, probabilities
    boxes       [D, 4] float32 xyxy: in the image, across its border, smaller than a pixel
    image_size  [2], H and W
    pasted      the probabilities above 0.5, [D, H, W] packed to bits
    gt_masks, gt_boxes, matched, rois, average_targets: the arguments and the result of `masks.average_mask_targets`
"""

import functools
import pathlib

import numpy as np
import torch
from absl import app
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

FIXTURES = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures'
CANVAS = (96, 128)
STRIDES = (4, 8, 16, 32)
CHANNELS, SIZE = 3, 4
CANONICAL_SIZE = 56  # a square of it is at stride 16: all four levels have RoIs
ROIS = (
    (0, 0, 128, 96), (-40, -30, 200, 150), (-100, -80, 150, 140),  # as large as the map, and larger
    (8, 16, 72, 64), (20.3, 11.7, 77.1, 90.2), (-20.5, -9, 30, 41), (100, 70, 150, 130),  # inside, across the border
    (-60, -50, -20, -12), (140, 10, 190, 60), (30, 104, 60, 140), (127, 95, 129, 97),  # outside, at the last corner
    (40, 40, 42, 43), (33.2, 17.9, 34, 18.1), (50, 30, 50, 30), (60, 20, 60, 70), (4, 90, 90, 90),  # small, without area
    (4, 12, 60, 68), (12, 20, 12, 20), (-4, -12, 28, 44), (-12, 4, -4, 20), (92, 60, 124, 92), (36, 36, 92, 92),  # halves
    (4, 4, 12, 12), (11.999, 12.001, 59.999, 60.001), (0, 0, 56, 56), (10, 10, 66.0001, 66), (10, 10, 65.99, 66),  # levels
)  # fmt: skip


def feature_arrays() -> dict[str, np.ndarray]:
    """Makes the arrays of roi_features.npz."""
    rng = np.random.RandomState(0)
    levels = [rng.normal(size=(CANVAS[0] // s, CANVAS[1] // s, CHANNELS)).astype(np.float32) for s in STRIDES]
    relu = np.maximum(rng.randint(-3, 3, levels[1].shape), 0).astype(np.float32)
    corner, sides = rng.uniform(-10, 90, (12, 2)), np.exp(rng.uniform(1, 5, (12, 2)))
    rois = np.concatenate([ROIS, np.concatenate([corner, corner + sides], axis=1)]).astype(np.float32)
    gradient = rng.normal(size=(len(rois), SIZE, SIZE, CHANNELS)).astype(np.float32)

    def run(function, *features):
        """Returns the results and the gradients of a function of features [1, C, h, w], with channels last."""
        features = [torch.tensor(x.transpose(2, 0, 1)[None].copy(), requires_grad=True) for x in features]
        result = function(*features)
        result.backward(torch.tensor(gradient.transpose(0, 3, 1, 2).copy()))
        return result.detach().numpy().transpose(0, 2, 3, 1), [x.grad[0].numpy().transpose(1, 2, 0) for x in features]

    boxes = [torch.tensor(rois)]
    golden = {f'level_{i}': x for i, x in enumerate(levels)} | dict(relu=relu, rois=rois, gradient=gradient)
    on_level = dict(boxes=boxes, output_size=SIZE, spatial_scale=1 / STRIDES[1])
    for name, samples, aligned in (
        ('align', 2, False),
        ('align_aligned', 2, True),
        ('align_adaptive', 0, False),
        ('align_adaptive_aligned', 0, True),
    ):
        function = functools.partial(roi_align, **on_level, sampling_ratio=samples, aligned=aligned)
        golden[name], (golden[f'{name}.gradient'],) = run(function, levels[1])
    golden['pool'], (golden['pool.gradient'],) = run(functools.partial(roi_pool, **on_level), relu)

    names = [str(i) for i in range(len(levels))]
    pooler = MultiScaleRoIAlign(names, SIZE, 2, canonical_scale=CANONICAL_SIZE)
    golden['pyramid'], gradients = run(lambda *x: pooler(dict(zip(names, x)), boxes, [CANVAS]), *levels)
    golden |= {f'pyramid.gradient_{i}': x for i, x in enumerate(gradients)}
    golden['level'] = pooler.map_levels(boxes).numpy()

    return golden


def mask_arrays() -> dict[str, np.ndarray]:
    """Makes the arrays of masks.npz."""
    rng = np.random.RandomState(1)
    size, count = (60, 90), 30
    masks = rng.uniform(size=(count, 14, 14)).astype(np.float32)
    corner, sides = rng.uniform(-20, 55, (count, 2)), np.exp(rng.uniform(-1, 4.5, (count, 2)))
    boxes = np.concatenate([corner, corner + sides], axis=1)
    boxes[:10] = np.clip(boxes[:10], 0, [*size[::-1], *size[::-1]])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)  # torchvision has no boxes outside the image
    boxes = boxes.astype(np.float32)
    pasted = paste_masks_in_image(torch.tensor(masks)[:, None], torch.tensor(boxes), size)[:, 0].numpy()
    return dict(
        masks=masks, boxes=boxes, image_size=np.array(size), pasted=np.packbits(pasted > 0.5), **target_arrays()
    )


def target_arrays() -> dict[str, np.ndarray]:
    """Makes masks with a cell for each pixel of their boxes, RoIs around them, and torchvision's targets."""
    rng = np.random.RandomState(2)
    side, count = 40, 12
    gt_masks = np.kron(rng.uniform(size=(2, 8, 8)) < 0.6, np.ones((5, 5))).astype(bool)
    gt_boxes = np.float32([[12, 8, 12 + side, 8 + side], [45, 15, 45 + side, 15 + side]])
    matched = rng.randint(0, 2, count)
    rois = (gt_boxes[matched] + rng.normal(size=(count, 4)) * 8).astype(np.float32)
    rois[:2, 2:] = rois[:2, :2] + [[9, 5], [0.5, 70]]  # cells smaller than a pixel; narrower than one
    whole = np.zeros((2, 70, 110), np.float32)
    for mask, pixels, (x1, y1, x2, y2) in zip(gt_masks, whole, gt_boxes.astype(int)):
        pixels[y1:y2, x1:x2] = mask
    rows = torch.tensor(np.concatenate([matched[:, None], rois], axis=1).astype(np.float32))
    targets = roi_align(torch.tensor(whole)[:, None], rows, 14, 1.0)[:, 0].numpy()
    return dict(gt_masks=gt_masks, gt_boxes=gt_boxes, matched=matched, rois=rois, average_targets=targets)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    for name, arrays in (('roi_features', feature_arrays()), ('masks', mask_arrays())):
        path = FIXTURES / f'{name}.npz'
        np.savez_compressed(path, **arrays)
        print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    app.run(main)
