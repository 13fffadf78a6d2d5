"""Single operations: detzoo's, compiled, and torchvision's or pycocotools', on the same arrays, with the same results.

nms         candidates clustered like those of a detector -> the rows that are kept, at most D; torchvision finds all, and the first
            D are taken, as its detectors do
roi_align   RoIs on a pyramid of 800 x 800, levels chosen by size, legacy coordinates, 2 x 2 samples -> features; with the
            gradient of all levels
assignment  anchors and boxes -> the box of each anchor: torchvision's `box_iou` and `Matcher`, detzoo's `match_by_threshold`
paste       masks of 28 x 28 cells -> masks of 480 x 640 pixels, bool: torchvision's `paste_masks_in_image` and a threshold
evaluation  COCO results and ground truth, as Python lists -> the twelve numbers: pycocotools' `COCO`, `loadRes` and `COCOeval`,
            detzoo's `coco_metrics`, with its checks of the inputs
"""

import contextlib
import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from peers.machine import cores
from peers.turns import OURS, Case, Program, Side

# Candidates, the number that is kept at most, classes, IoU: a level of RetinaNet, an RPN, a crowded image, a box head.
NMS = ((1000, 100, 1, 0.5), (2000, 1000, 1, 0.7), (5000, 100, 1, 0.5), (1000, 100, 80, 0.5))
ROI_ALIGN = ((512, 7), (128, 14))  # RoIs, bins
CANVAS, STRIDES, CHANNELS, SAMPLES = 800, (4, 8, 16, 32), 256, 2
ANCHORS, BOXES = 100_000, 100
IOUS = 0.7, 0.3  # of an RPN: positive from, negative below
MASKS, CELLS, IMAGE = 100, 28, (480, 640)
CATEGORIES, OBJECTS, DETECTIONS = 80, 7, 100  # of an evaluation, the last two for each image
LIBRARIES = {OURS: ('jax', 'detzoo.evaluation.coco'), 'torchvision': ('torch', 'torchvision'), 'pycocotools': ()}


def cases(images: int) -> list[Case]:
    """Lists the cases of the sections operations and evaluation; images: number of images of the evaluation."""
    listed = [
        case(
            f'NMS at {iou}, {candidates} boxes of {classes} class{"es" if classes > 1 else ""}, the best {kept}',
            'nms',
            check_equal,
            candidates=candidates,
            kept=kept,
            classes=classes,
            iou=iou,
        )
        for candidates, kept, classes, iou in NMS
    ]
    for rois, size in ROI_ALIGN:
        for gradient in (False, True):
            name = f'RoIAlign, {rois} RoIs, {size} x {size} x {CHANNELS}{", with gradient" if gradient else ""}'
            listed.append(case(name, 'roi_align', check_close, rois=rois, size=size, gradient=gradient))
    listed.append(case(f'assignment, {ANCHORS} anchors, {BOXES} boxes', 'assignment', check_mostly_equal))
    listed.append(case(f'{MASKS} masks into {IMAGE[0]} x {IMAGE[1]}', 'paste', check_mostly_equal))
    evaluation = case(f'{images} images, {DETECTIONS} detections each', 'evaluation', check_close, images=images)
    return [*listed, evaluation._replace(section='evaluation', rounds=3, expected=images / 25)]


def case(name: str, operation: str, check: Any, **arguments: Any) -> Case:
    """Makes the case of an operation: the functions detzoo_OPERATION and torchvision_OPERATION or pycocotools_OPERATION."""
    peer = 'pycocotools' if operation == 'evaluation' else 'torchvision'
    sides = {
        side: Side(f'peers.operations:{side}_{operation}', arguments, LIBRARIES[side], side) for side in (peer, OURS)
    }
    return Case('operations', name, sides, check, rounds=9, expected=15)


def pair(results: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns detzoo's result and the peer's."""
    (theirs,) = (result for label, result in results.items() if label != OURS)
    return results[OURS], theirs


def check_equal(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that two arrays are the same."""
    ours, theirs = pair(results)
    np.testing.assert_array_equal(ours, theirs)
    return {'results': len(ours)}


def check_close(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that arrays differ by at most a thousandth of the largest number."""
    difference = 0.0
    for ours, theirs in zip(*pair(results), strict=True):
        largest = abs(theirs).max() or 1.0  # the gradient of a level without RoIs is zero
        difference = max(difference, float(abs(ours - theirs).max() / largest))
    assert difference < 1e-3, f'the results differ by {difference:g} of the largest number'
    return {'difference': difference}


def check_mostly_equal(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that arrays are the same but for ties and pixels that rounding decides: at most a thousandth of the numbers."""
    ours, theirs = pair(results)
    different = float((ours != theirs).mean())
    assert ours.shape == theirs.shape and different < 1e-3, f'a share of {different:g} of the results differs'
    return {'different': different}


def clustered(count: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws candidates around objects, ten to an object: boxes [count, 4], scores, labels."""
    rng = np.random.RandomState(0)
    objects = rng.randint(0, count // 10, count)
    center = rng.uniform(0, 1000, (count // 10, 2))[objects]
    side = np.exp(rng.uniform(np.log(16), np.log(256), (count // 10, 2)))[objects]
    center = center + rng.normal(size=center.shape) * 0.15 * side
    side = side * np.exp(rng.normal(size=side.shape) * 0.15)
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32)
    return boxes, rng.permutation(count).astype(np.float32) / count, rng.randint(0, classes, count).astype(np.int32)


def detzoo_nms(candidates: int, kept: int, classes: int, iou: float) -> Program:
    """Prepares detzoo's NMS."""
    import jax

    from detzoo.core.nms import nms

    arrays = jax.device_put((*clustered(candidates, classes), np.ones(candidates, bool)))
    select = jax.jit(partial(nms, iou_threshold=iou, max_detections=kept))

    def shown(found: Any) -> np.ndarray:
        rows, valid = map(np.asarray, found)
        return rows[valid]

    return Program(lambda: jax.block_until_ready(select(*arrays)), shown)


def torchvision_nms(candidates: int, kept: int, classes: int, iou: float) -> Program:
    """Prepares torchvision's NMS."""
    import torch
    from torchvision.ops import batched_nms, nms

    torch.set_num_threads(cores())
    boxes, scores, labels = map(torch.tensor, clustered(candidates, classes))
    select = partial(nms, boxes, scores, iou) if classes == 1 else partial(batched_nms, boxes, scores, labels, iou)

    return Program(lambda: select()[:kept], lambda rows: rows.numpy())


def pyramid(rois: int, size: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Draws levels [h, w, C], RoIs [rois, 4] of 32 to 400 pixels, and a gradient [rois, size, size, C]."""
    rng = np.random.RandomState(0)
    levels = [rng.standard_normal((CANVAS // stride,) * 2 + (CHANNELS,)).astype(np.float32) for stride in STRIDES]
    side = np.exp(rng.uniform(np.log(32), np.log(400), (rois, 2)))
    corner = rng.uniform(0, CANVAS - side)
    gradient = rng.standard_normal((rois, size, size, CHANNELS)).astype(np.float32)
    return levels, np.concatenate([corner, corner + side], axis=1).astype(np.float32), gradient


def detzoo_roi_align(rois: int, size: int, gradient: bool) -> Program:
    """Prepares detzoo's RoIAlign."""
    import jax

    from detzoo.core.roi_features import assign_levels, roi_align

    levels, boxes, outer = jax.device_put(pyramid(rois, size))

    def align(levels: Any) -> Any:
        level = assign_levels(boxes, min_level=2, max_level=5)
        return roi_align(
            levels, boxes, level, strides=STRIDES, output_size=size, samples_per_bin=SAMPLES, aligned=False
        )

    def both(levels: Any) -> Any:
        features, backward = jax.vjp(align, levels)
        return features, *backward(outer)[0]

    run = jax.jit(both if gradient else lambda levels: (align(levels),))
    return Program(lambda: jax.block_until_ready(run(levels)), lambda found: [np.asarray(x) for x in found])


def torchvision_roi_align(rois: int, size: int, gradient: bool) -> Program:
    """Prepares torchvision's RoIAlign, in NCHW: its kernel takes no other layout."""
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    torch.set_num_threads(cores())
    levels, boxes, outer = pyramid(rois, size)
    names = [str(stride) for stride in STRIDES]
    tensors = {
        name: torch.tensor(x.transpose(2, 0, 1)[None].copy(), requires_grad=gradient) for name, x in zip(names, levels)
    }
    outer, boxes = torch.tensor(outer.transpose(0, 3, 1, 2).copy()), [torch.tensor(boxes)]
    pooler = MultiScaleRoIAlign(names, size, SAMPLES)

    def step() -> Any:
        features = pooler(tensors, boxes, [(CANVAS, CANVAS)])
        if gradient:
            return features, *torch.autograd.grad(features, list(tensors.values()), outer)
        return (features,)

    def shown(found: Any) -> list[np.ndarray]:
        features, *gradients = (x.detach().permute(0, 2, 3, 1).numpy() for x in found)
        return [features, *(x[0] for x in gradients)]

    return Program(step, shown)


def anchors_and_boxes() -> tuple[np.ndarray, np.ndarray]:
    """Draws anchors and boxes on a canvas of 1000 pixels, xyxy."""
    rng = np.random.RandomState(0)

    def drawn(count: int) -> np.ndarray:
        side = np.exp(rng.uniform(np.log(16), np.log(512), (count, 2)))
        corner = rng.uniform(0, 1000, (count, 2)) - side / 2
        return np.concatenate([corner, corner + side], axis=1).astype(np.float32)

    return drawn(ANCHORS), drawn(BOXES)


def detzoo_assignment() -> Program:
    """Prepares detzoo's assignment; `matching` has torchvision's numbers for negative and ignored."""
    import jax

    from detzoo.core.matching import match_by_threshold
    from detzoo.types import GroundTruth

    anchors, boxes = anchors_and_boxes()
    none, rows = np.int32(0), np.zeros(BOXES, bool)
    gt = GroundTruth(boxes, rows.astype(np.int32), ~rows, rows, none, none)
    positive, negative = IOUS
    match = jax.jit(partial(match_by_threshold, positive_iou=positive, negative_iou=negative, match_best_anchors=True))
    arrays = jax.device_put((anchors, gt))
    return Program(lambda: jax.block_until_ready(match(*arrays)), np.asarray)


def torchvision_assignment() -> Program:
    """Prepares torchvision's assignment."""
    import torch
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    torch.set_num_threads(cores())
    anchors, boxes = map(torch.tensor, anchors_and_boxes())
    matcher = Matcher(*IOUS, allow_low_quality_matches=True)
    return Program(lambda: matcher(box_iou(boxes, anchors)), lambda matched: matched.numpy())


def soft_masks() -> tuple[np.ndarray, np.ndarray]:
    """Draws ellipses that end softly, and boxes of 16 to 400 pixels: [MASKS, CELLS, CELLS] and [MASKS, 4]."""
    rng = np.random.RandomState(0)
    cells = np.mgrid[:CELLS, :CELLS] / (CELLS - 1) * 2 - 1
    stretch = rng.uniform(0.7, 1.2, (MASKS, 2, 1, 1))
    masks = 1 / (1 + np.exp(8 * (np.hypot(*(cells[:, None] / stretch.transpose(1, 0, 2, 3))) - 0.9)))
    side = np.exp(rng.uniform(np.log(16), np.log(400), (MASKS, 2)))
    corner = rng.uniform(0, np.maximum(np.flip(IMAGE) - side, 1))
    return masks.astype(np.float32), np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def detzoo_paste() -> Program:
    """Prepares detzoo's pasting, by torchvision's convention."""
    from detzoo.core.masks import paste_masks

    masks, boxes = soft_masks()
    return Program(lambda: paste_masks(masks, boxes, IMAGE, convention='torchvision'))


def torchvision_paste() -> Program:
    """Prepares torchvision's pasting."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    torch.set_num_threads(cores())
    masks, boxes = map(torch.tensor, soft_masks())
    step = lambda: (paste_masks_in_image(masks[:, None], boxes, IMAGE) > 0.5)[:, 0]
    return Program(step, lambda pasted: pasted.numpy())


def coco_data(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draws ground truth and results as COCO has them; half of the detections are near an object."""
    rng = np.random.RandomState(0)
    annotations, results = [], []
    for image in range(1, images + 1):
        side = np.exp(rng.uniform(np.log(10), np.log(300), (OBJECTS, 2)))
        boxes = np.concatenate([rng.uniform(0, 400, (OBJECTS, 2)), side], axis=1)
        labels = rng.randint(1, CATEGORIES + 1, OBJECTS)
        for box, label in zip(boxes.tolist(), labels.tolist()):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
        near = rng.randint(0, OBJECTS, DETECTIONS)
        found = boxes[near] * np.exp(rng.normal(size=(DETECTIONS, 4)) * 0.1)
        guessed = np.where(rng.uniform(size=DETECTIONS) < 0.5, labels[near], rng.randint(1, CATEGORIES + 1, DETECTIONS))
        rows = zip(found.tolist(), guessed.tolist(), rng.uniform(size=DETECTIONS).tolist())
        results += [dict(image_id=image, category_id=label, bbox=box, score=score) for box, label, score in rows]
    listed = [dict(id=image, width=640, height=480) for image in range(1, images + 1)]
    categories = [dict(id=number, name=f'class {number}') for number in range(1, CATEGORIES + 1)]
    return dict(images=listed, annotations=annotations, categories=categories), results


def detzoo_evaluation(images: int) -> Program:
    """Prepares detzoo's evaluation."""
    from detzoo.evaluation.coco import coco_metrics

    truth, results = coco_data(images)
    return Program(
        lambda: coco_metrics(truth, results), lambda metrics: [np.array(list(metrics['boxes'].values()), float)]
    )


def pycocotools_evaluation(images: int) -> Program:
    """Prepares pycocotools' evaluation; what it prints is dropped."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = coco_data(images)

    def step() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO()
            data.dataset = truth
            data.createIndex()
            evaluator = COCOeval(data, data.loadRes([dict(row) for row in results]), 'bbox')  # it changes the rows
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator.stats

    return Program(step, lambda stats: [stats])
