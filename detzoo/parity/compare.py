"""Shows that foreign weights compute the same here as in their own program.

Weights are drawn, not downloaded: `parity.torchvision` and `parity.darknet` draw them from the names or places and the shapes of
a file's entries, and run a peer and our detector on the same canvas. This module has what both need:

    drawn_image, drawn_objects -> what is detected in, and trained on
    predict_with_intermediates -> detections, and the tensors on the way
    differences, pair_boxes, match_detections, count_partners -> how far two sides agree
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import pycocotools.mask

from detzoo.core import boxes as box_ops
from detzoo.core.masks import torchvision_frames
from detzoo.types import Detections, Detector, GroundTruth, Inputs

_TIE = 2e-4  # closer scores may change places: float32 arithmetic in another order moves them by half as much
_SAME_IOU = 0.999
# Clipping leaves slivers a pixel thin, whose IoU falls to `_SAME_IOU` with a thousandth of a pixel.
_SAME_PIXELS = 0.01
_MASK_SIZE = 28  # the peers' masks
_DETECTION = ('boxes', 'labels', 'scores', 'masks')


def drawn_image(height: int, width: int, seed: int) -> np.ndarray:
    """Draws a picture of waves of many lengths, directions and colours: something to see at every scale.

    Args:
        height, width: pixels.
        seed: seed for the waves.

    Returns:
        [height, width, 3] uint8.
    """
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 128.0)
    for wavelength in np.geomspace(6, max(height, width), 24):
        angle, phase = random.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
        image += 40 * wave[..., None] * random.uniform(-1, 1, 3)
    return image.clip(0, 255).astype(np.uint8)


def drawn_objects(
    sizes: Sequence[tuple[int, int]], counts: Sequence[int], *, side: int, num_classes: int, seed: int
) -> GroundTruth:
    """Draws ground truth with masks: squares at whole pixels, so that each cell of a mask is a pixel.

    Args:
        sizes: height and width of each image.
        counts: number of objects of each image.
        side: S, the side of the squares and of their masks, pixels.
        num_classes: K.
        seed: seed for places, labels and masks.

    Returns:
        the ground truth of all images, numpy, with as many rows as the largest number of objects.
    """
    random = np.random.RandomState(seed)
    rows = len(counts), max(counts)
    gt = GroundTruth(
        boxes=np.zeros((*rows, 4), np.float32),
        labels=np.zeros(rows, np.int32),
        valid=np.arange(max(counts)) < np.array(counts)[:, None],
        crowd=np.zeros(rows, bool),
        dropped=np.zeros(len(counts), np.int32),
        cropped=np.zeros(len(counts), np.int32),
        masks=np.zeros((*rows, side, side), bool),
    )
    for image, row in np.argwhere(gt.valid):
        height, width = sizes[image]
        corner = random.randint(width - side + 1), random.randint(height - side + 1)
        gt.boxes[image, row] = np.add((0, 0, side, side), corner * 2)
        gt.labels[image, row] = random.randint(num_classes)
        gt.masks[image, row] = drawn_image(side, side, random.randint(2**31))[..., 0] > 128
    return gt


def predict_with_intermediates(
    detector: Detector, params: Any, model_state: Any, inputs: Inputs
) -> tuple[Detections, dict[str, Any]]:
    """Predicts, and also returns the outputs of the network's parts; works under `jit`.

    Args:
        detector: a detector.
        params, model_state: the detector's variables.
        inputs: B images.

    Returns:
        the detections, and the outputs of the network's direct submodules by their names ('backbone', 'cls_head', ...), but not
        of those that run on valid rows only ('trunk', 'mask_head'); with two stages also 'rois' [B, P, 4], the boxes whose
        features the second stage reads.
    """
    outputs, scopes = {}, []

    def keep_output(method, args, kwargs, context):
        scopes.append(context.module.scope.root)
        output = method(*args, **kwargs)
        in_network = scopes[0] is context.module.scope.root  # not in a part that runs in a loop, by itself
        if context.method_name == '__call__' and len(context.module.path) == 1 and in_network:
            outputs[context.module.path[0]] = output
        if context.method_name == 'roi_features':
            outputs['rois'] = args[1]
        return output

    with nn.intercept_methods(keep_output):
        detections = detector.predict(params, model_state, inputs)
    return detections, outputs


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Computes for each tensor of theirs the largest difference to ours of the same name, over the tensor's maximum."""

    def difference(name: str, tensor: np.ndarray) -> float:
        largest = abs(ours[name] - tensor).max()
        return float(largest / abs(tensor).max()) if largest else 0.0  # a tensor may be all zeros

    return {name: difference(name, tensor) for name, tensor in theirs.items()}


def pair_boxes(
    ours: np.ndarray, theirs: np.ndarray, *, alike: np.ndarray | bool = True, min_iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs the boxes of two implementations: each of theirs, in order, with the unpaired box of ours of largest IoU.

    Args:
        ours: [m, 4] xyxy.
        theirs: [n, 4] xyxy.
        alike: [n, m] bool, which boxes may be a pair.
        min_iou: pairs have a larger IoU.

    Returns:
        [n] int, the row of our box for each of theirs, or -1; and [n] float64, the IoU of each pair, or 0.
    """
    both = [box_ops.xyxy_to_xywh(boxes).astype(float) for boxes in (theirs, ours)]
    # In float64, and without compiling for every number of boxes.
    iou = pycocotools.mask.iou(*both, np.zeros(len(ours), np.uint8))
    iou = np.where(alike, np.reshape(iou, (len(theirs), len(ours))), 0)
    rows, ious = np.full(len(theirs), -1), np.zeros(len(theirs))
    for row in range(len(theirs) if len(ours) else 0):
        best = iou[row].argmax()
        if iou[row, best] > min_iou:
            rows[row], ious[row] = best, iou[row, best]
            iou[:, best] = 0
    return rows, ious


def count_partners(
    results: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], *, score: float
) -> tuple[int, int, float]:
    """Counts the detections that have a partner among others: on the same image, of the same class, with an IoU over 0.5.

    Args:
        results: detections of a split, as COCO's results.
        others: likewise; each of them is the partner of one detection at most.
        score: only results with a higher score count.

    Returns:
        how many detections have a partner, how many there are, and the mean IoU of the pairs.
    """
    images = collections.defaultdict(lambda: ([], []))
    for side, rows in enumerate((results, others)):
        for row in sorted(rows, key=lambda row: -row['score']):
            if side or row['score'] > score:
                left, top, width, height = row['bbox']
                images[row['image_id']][side].append((left, top, left + width, top + height, row['category_id']))
    count, ious = 0, []
    for sides in images.values():
        ours, theirs = (np.array(side, float).reshape(-1, 5) for side in sides)
        rows, overlaps = pair_boxes(theirs[:, :4], ours[:, :4], alike=ours[:, 4:] == theirs[:, 4])
        count += len(ours)
        ious.extend(overlaps[rows >= 0])
    return len(ious), count, float(np.mean(ious)) if ious else 0.0


class Agreement(NamedTuple):
    """How far two lists of detections are the same.

    ours, theirs: lengths of the lists.
    matched: how many of theirs have a partner of their own in ours.
    tied: how many of theirs have no partner because others of ours, with nearly the same score, took the last places.
    empty: how many of theirs had no area and were left out.
    min_iou, max_score_difference: the extremes over all pairs.
    apart: in how many pairs the boxes have an IoU of 0.999 or less, and a corner more than 0.01 pixels away.
    min_mask_iou: the least IoU of masks over the pairs that are pasted into the same whole pixels; 1 without masks.
    cut: how many pairs are not: frames are cut to whole pixels, so that a tiny difference may move them by a row.
    """

    ours: int
    theirs: int
    matched: int
    tied: int
    empty: int
    min_iou: float
    apart: int
    max_score_difference: float
    min_mask_iou: float
    cut: int

    def holds(self, *, score: float = 1e-3, mask_iou: float = 0.99) -> bool:
        """Tells whether the lists are the same, one to one, within tolerances."""
        complete = self.ours == self.theirs == self.matched + self.tied
        alike = self.apart == 0 and self.max_score_difference <= score and self.min_mask_iou > mask_iou
        return complete and alike


def match_detections(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, limit: int) -> Agreement:
    """Pairs detections of two implementations: theirs, in order, with the unpaired one of ours of that label and largest IoU.

    Boxes that clipping left without area are left out: torchvision's RetinaNet keeps them, we never do. If their list is full,
    such boxes took the places of as many others, so the same number is left out at the end of ours.

    Args:
        ours: 'boxes' [n, 4] xyxy, 'labels' [n], 'scores' [n], best first, without padding; with some models also 'masks'
            [n, h, w] bool, pixels of the image.
        theirs: likewise.
        limit: how many detections both keep of an image.

    Returns:
        the Agreement; a pair has an IoU above 0.5.
    """
    solid = np.asarray(box_ops.area(theirs['boxes'])) > 0
    end = solid.sum() if len(solid) == limit else len(ours['boxes'])
    ours = {name: ours[name][:end] for name in _DETECTION if name in ours}
    theirs = {name: theirs[name][solid] for name in _DETECTION if name in theirs}
    rows, ious = pair_boxes(ours['boxes'], theirs['boxes'], alike=theirs['labels'][:, None] == ours['labels'])
    alone = np.concatenate([ours['scores'][~np.isin(np.arange(len(ours['boxes'])), rows)], theirs['scores'][rows < 0]])
    tied = len(rows) == limit and alone.max(initial=0) < theirs['scores'].min(initial=1) + _TIE
    our = {name: x[rows[rows >= 0]] for name, x in ours.items()}
    their = {name: x[rows >= 0] for name, x in theirs.items()}
    far = abs(our['boxes'] - their['boxes']).max(axis=1, initial=0) > _SAME_PIXELS
    mask_iou, in_place = np.ones(0), np.ones(0, bool)
    if 'masks' in our:
        mask_iou = _mask_iou(our['masks'], their['masks'])
        frames = [torchvision_frames(side['boxes'], _MASK_SIZE) for side in (our, their)]
        in_place = (frames[0] == frames[1]).all(axis=1)
    return Agreement(
        ours=len(ours['boxes']),
        theirs=len(rows),
        matched=len(our['boxes']),
        tied=int((rows < 0).sum()) if tied else 0,
        empty=int((~solid).sum()),
        min_iou=float(ious[rows >= 0].min(initial=1)),
        apart=int((far & (ious[rows >= 0] <= _SAME_IOU)).sum()),
        max_score_difference=float(abs(our['scores'] - their['scores']).max(initial=0)),
        min_mask_iou=float(mask_iou[in_place].min(initial=1)),
        cut=int((~in_place).sum()),
    )


def _mask_iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Computes the IoU [n] of each pair of masks [n, h, w] bool; 1 where both are empty."""
    shared, union = (x.sum(axis=(1, 2)) for x in (ours & theirs, ours | theirs))
    return np.where(union > 0, shared / np.maximum(union, 1), 1)
