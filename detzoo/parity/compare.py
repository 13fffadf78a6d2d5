"""The means to show that foreign weights compute here what they compute at home.

Parity is shown with weights that are drawn, not downloaded: `weights.torchvision_parity` and `weights.darknet_parity` draw
them from nothing but the names or places and shapes of a file's entries, and run a peer and our detector on the same
canvas. Here is what both need: `drawn_image` and `drawn_objects`, and `predict_with_intermediates`, `pair_boxes` and
`match_detections`, with which the tensors on the way and what comes out are compared.
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

_TIE = 2e-4  # scores that differ less are in no order: float32 arithmetic in another order moves them by half as much
_SAME_IOU = 0.999
_SAME_PIXELS = (
    0.01  # of a sliver a pixel thin, which clipping leaves, a thousandth of a pixel is as much as the IoU may lack
)
_MASK_SIZE = 28  # of the peers that have masks
_DETECTION = ('boxes', 'labels', 'scores', 'masks')


def drawn_image(height: int, width: int, seed: int) -> np.ndarray:
    """Draws a picture of waves of many lengths, directions and colours: something to see at every scale.

    Args:
        height, width: pixels.
        seed: of the waves.

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
        counts: objects of each.
        side: S, pixels; of the squares and of their masks.
        num_classes: K.
        seed: of places, labels and masks.

    Returns:
        the ground truth of all images, numpy, with as many rows as the most objects.
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
    """Predicts, and returns what the parts of the network put out on the way; works under `jit`.

    Args:
        detector: any.
        params, model_state: of the detector.
        inputs: B images.

    Returns:
        the detections, and the outputs of the network's direct submodules by their names ('backbone', 'cls_head', ...); of
        two stages also 'rois' [B, P, 4], the boxes whose features the second one reads.
    """
    outputs = {}

    def keep_output(method, args, kwargs, context):
        output = method(*args, **kwargs)
        if context.method_name == '__call__' and len(context.module.path) == 1:
            outputs[context.module.path[0]] = output
        if context.method_name == 'roi_features':
            outputs['rois'] = args[1]
        return output

    with nn.intercept_methods(keep_output):
        detections = detector.predict(params, model_state, inputs)
    return detections, outputs


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each tensor of theirs to ours of its name, over its own maximum."""
    return {name: float(abs(ours[name] - tensor).max() / abs(tensor).max()) for name, tensor in theirs.items()}


def pair_boxes(
    ours: np.ndarray, theirs: np.ndarray, *, alike: np.ndarray | bool = True, min_iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs boxes of two implementations: each of theirs, in order, with our free one of most IoU.

    Args:
        ours: [m, 4] xyxy.
        theirs: [n, 4] xyxy.
        alike: [n, m] bool, which may be a pair.
        min_iou: the IoU of a pair is above it.

    Returns:
        [n] int, the row of ours for each of theirs, or -1; and [n] float64, the IoU of each pair, or 0.
    """
    both = [
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float) for boxes in (theirs, ours)
    ]
    iou = pycocotools.mask.iou(
        *both, np.zeros(len(ours), np.uint8)
    )  # in float64, and nothing to compile for every count
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
        results: COCO's results of a split.
        others: likewise; a detection of these is the partner of one.
        score: only results above it count.

    Returns:
        how many have a partner, how many there are, and the mean IoU of the pairs.
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
    """How far two lists of detections are the same one.

    ours, theirs: their lengths; matched: how many of theirs have a partner of their own in ours.
    tied: how many of theirs have none, since others of ours with all but the same score took the last places.
    empty: how many of theirs had no area and were left out.
    min_iou, max_score_difference: over the partners.
    apart: how many partners' boxes have an IoU of 0.999 or less, and a corner more than 0.01 pixels from the other's.
    min_mask_iou: over the partners whose masks are pasted into the same whole pixels; 1 without masks.
    cut: how many partners' masks are not: what falls between two pixels is cut, so that next to nothing makes a row of them.
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
        """Tells whether the lists are the same one to one, within tolerances."""
        complete = self.ours == self.theirs == self.matched + self.tied
        alike = self.apart == 0 and self.max_score_difference <= score and self.min_mask_iou > mask_iou
        return complete and alike


def match_detections(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, limit: int) -> Agreement:
    """Pairs detections of two implementations: each of theirs, in order, with our free one of its label and most IoU.

    Boxes that clipping left without area, which torchvision's RetinaNet keeps and we never do, are left out. Where the
    limit was reached they took the places of as many others, the last of ours, which are left out with them.

    Args:
        ours: 'boxes' [n, 4] xyxy, 'labels' [n], 'scores' [n], best first, without padding; of some models 'masks'
            [n, h, w] bool, pixels of the image.
        theirs: likewise.
        limit: how many detections the two keep of an image.

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
    """The IoU of each pair of masks [n, h, w] bool, 1 where both are empty: [n]."""
    shared, union = (x.sum(axis=(1, 2)) for x in (ours & theirs, ours | theirs))
    return np.where(union > 0, shared / np.maximum(union, 1), 1)
