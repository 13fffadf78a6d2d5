"""Matching: which anchor is trained towards which ground-truth box.

A matcher returns [A] int32: the row of the ground truth an anchor is positive for, NEGATIVE, or IGNORE.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from detzoo.core import boxes as box_ops
from detzoo.core import losses
from detzoo.types import Array, GroundTruth

NEGATIVE = -1
IGNORE = -2
TIE = 1e-6  # IoUs with a smaller relative difference are equal: a compiled program may round one expression in two ways
CROWD_COVERAGE = 0.5  # a box with at least this share of its area inside a crowd is neither an object nor background


def match_by_threshold(
    anchors: Array, gt: GroundTruth, *, positive_iou: float, negative_iou: float, match_best_anchors: bool
) -> Array:
    """Matches each anchor to the box it overlaps most (RetinaNet, 1708.02002, section 4; Faster R-CNN, 1506.01497, 3.1.2).

    An anchor whose best IoU is at least positive_iou is positive for its best box. It is negative if its best IoU is below
    negative_iou, and ignored between the two. With match_best_anchors, all anchors that tie for the best IoU of some box are
    positive as well, each for *its own* best box, so that every object has anchors. Crowds are never matched; anchors that
    are not positive and lie at least half inside a crowd are ignored.

    Args:
        anchors: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.
        positive_iou: least IoU of a positive anchor, in 0..1.
        negative_iou: IoU below which an anchor is negative, in 0..positive_iou.
        match_best_anchors: whether the best anchors of each box are positive, however small their (non-zero) IoU.

    Returns:
        matched: [A] int32, a row of gt, NEGATIVE or IGNORE.
    """
    chex.assert_shape([anchors, gt.boxes], (None, 4))
    one_by_one = overlap_one_by_one if len(gt.boxes) else overlap_at_once
    arrays = jax.lax.stop_gradient((anchors, gt))
    found = jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=overlap_at_once)
    positive = found.iou >= positive_iou
    if match_best_anchors:
        positive |= found.best
    unmatched = jnp.where((found.iou < negative_iou) & ~found.in_crowd, NEGATIVE, IGNORE)
    return jnp.where(positive, found.row, unmatched)


class Overlap(NamedTuple):
    """How anchors overlap the ground truth of an image.

    iou: [A] float, the largest IoU with an object; -1 without objects.
    row: [A] int32, the first object with this IoU.
    best: [A] bool, whether no other anchor has a larger IoU with some object that it overlaps.
    in_crowd: [A] bool, whether at least half of the anchor lies inside a crowd.
    """

    iou: Array
    row: Array
    best: Array
    in_crowd: Array


def overlap_at_once(anchors: Array, gt: GroundTruth) -> Overlap:
    """Compares anchors [A, 4] with the ground truth of one image, all pairs at once."""
    iou = _candidate_iou(anchors, gt)
    best_of_box = iou.max(axis=1, initial=-1, keepdims=True)  # [M, 1]
    best = ((iou >= best_of_box * (1 - TIE)) & (best_of_box > 0)).any(axis=0)
    row = iou.argmax(axis=0).astype(jnp.int32)
    return Overlap(iou.max(axis=0, initial=-1), row, best, inside_crowd(anchors, gt))


@jax.custom_batching.sequential_vmap  # each image stops at its own last row
def overlap_one_by_one(anchors: Array, gt: GroundTruth) -> Overlap:
    """Computes `overlap_at_once`, anchors [A, 4] with one of the M > 0 rows after the other, up to the last valid one.

    On a CPU this takes a tenth of the time: a row's IoUs stay in the cache, and a coordinate of all anchors lies in one vector.
    """
    corners = tuple(anchors.T)
    own = _area_of_corners(corners)
    rows = jnp.where(gt.valid, jnp.arange(1, len(gt.valid) + 1), 0).max()

    def compare(row: Array, found: Overlap) -> Overlap:
        box, valid, crowd = gt.boxes[row], gt.valid[row], gt.crowd[row]
        shared_corners = (*map(jnp.maximum, corners[:2], box[:2]), *map(jnp.minimum, corners[2:], box[2:]))
        shared = _area_of_corners(shared_corners)
        union = box_ops.area(box) + own - shared
        iou = jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)
        largest, candidate = iou.max(initial=-1), valid & ~crowd
        best_from = jnp.where(candidate & (largest > 0), largest * (1 - TIE), jnp.inf)
        inside = (shared >= CROWD_COVERAGE * own) & (own > 0)
        return Overlap(
            iou=jnp.where(candidate, jnp.maximum(iou, found.iou), found.iou),
            row=jnp.where(candidate & (iou > found.iou), row, found.row),
            best=found.best | (iou >= best_from),
            in_crowd=found.in_crowd | (valid & crowd & inside),
        )

    nowhere = jnp.zeros(len(anchors), bool)
    start = Overlap(jnp.full(len(anchors), -1, own.dtype), jnp.zeros(len(anchors), jnp.int32), nowhere, nowhere)
    return jax.lax.fori_loop(0, rows, compare, start)


def _area_of_corners(corners: tuple[Array, Array, Array, Array]) -> Array:
    """Computes areas as `box_ops.area` does, from x1, y1, x2 and y2, each [A]."""
    return jnp.maximum(corners[2] - corners[0], 0) * jnp.maximum(corners[3] - corners[1], 0)


def match_and_reassign(anchors: Array, gt: GroundTruth, *, positive_iou: float, bipartite: bool = False) -> Array:
    """Matches each anchor to the box it overlaps most, then each box to its best anchor (SSD, 1512.02325, section 2.2).

    An anchor with IoU >= positive_iou is positive for its best box. Then each box takes the anchor it overlaps most (the
    first of equals), however small the non-zero IoU, even if the anchor was positive for another box; if several boxes
    take one anchor, the last of them keeps it. If bipartite, each box takes an anchor of its own instead (`match_bipartite`).
    Crowds are never matched; anchors that are not positive and lie at least half inside a crowd are ignored.

    Args:
        anchors: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.
        positive_iou: least IoU of a positive anchor, in 0..1.
        bipartite: whether each box takes an anchor that no other box takes.

    Returns:
        matched: [A] int32, a row of gt, NEGATIVE or IGNORE.
    """
    matched = match_by_threshold(
        anchors, gt, positive_iou=positive_iou, negative_iou=positive_iou, match_best_anchors=False
    )
    iou = _candidate_iou(anchors, gt)
    if bipartite:
        reassigned = match_bipartite(iou)
    else:
        best_of_box = iou.max(axis=1, initial=-1)  # [M]
        best = (iou >= best_of_box[:, None] * (1 - TIE)).argmax(axis=1)
        reassigned = last_winner(best, best_of_box > 0, len(anchors))
    return jnp.where(reassigned >= 0, reassigned, matched)


def match_bipartite(iou: Array) -> Array:
    """Matches boxes and anchors one to one, the pair that overlaps most first (MultiBox, 1312.2249; SSD's authors' code).

    The free box and the free anchor with the largest IoU are matched, and this is repeated until no free box overlaps a free
    anchor. Among equal IoUs the anchor with the lowest index comes first, and among its boxes the lowest row.

    Args:
        iou: [M, A] float, 0 or less for pairs that must not be matched.

    Returns:
        matched: [A] int32, a row of the boxes, or NEGATIVE.
    """
    matched = jnp.full(iou.shape[1], NEGATIVE, jnp.int32)
    if not iou.size:
        return matched

    def match_best_pair(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        free, matched = state  # [A, M], [A]
        best = free.max()
        anchor, row = jnp.divmod((free >= best * (1 - TIE)).argmax(), free.shape[1])
        matched = matched.at[anchor].set(jnp.where(best > 0, row, matched[anchor]))
        return free.at[anchor].set(0).at[:, row].set(0), matched

    return jax.lax.fori_loop(0, iou.shape[0], match_best_pair, (jnp.maximum(iou, 0).T, matched))[1]


def match_by_cell(
    anchors: Array, strides: Array, predicted: Array, gt: GroundTruth, *, ignore_iou: float
) -> tuple[Array, Array]:
    """Matches each box to one anchor of the cells its centre lies in (YOLO v2, 1612.08242, section 2; v3, 1804.02767, 2.1).

    A box takes one of the anchors, of all levels, in whose cells its centre lies: the one closest to it in shape (the first of
    equals). If several boxes take one anchor, the last of them keeps it. The other anchors are negative, or ignored if their
    predicted box overlaps some object by more than ignore_iou. Crowds take no anchors; an anchor that no box takes is
    ignored if it, or its predicted box, lies at least half inside a crowd.

    Args:
        anchors: [A, 4] float xyxy, each in the middle of its cell.
        strides: [A, 2] float, width and height of the cells, pixels.
        predicted: [A, 4] float xyxy, the boxes that the network predicts at the anchors now.
        gt: the ground truth of one image, M rows.
        ignore_iou: IoU above which a predicted box keeps its anchor from being negative, in 0..1.

    Returns:
        matched: [A] int32, a row of gt, NEGATIVE or IGNORE.
        taken: [M] int32, the anchor each box takes; A: none.
    """
    chex.assert_shape([anchors, predicted, gt.boxes], (None, 4))
    candidate = gt.valid & ~gt.crowd
    anchor, box = box_ops.xyxy_to_cxcywh(anchors), box_ops.xyxy_to_cxcywh(gt.boxes)[:, None]
    in_cell = (jnp.floor(box[..., :2] / strides) == jnp.floor(anchor[:, :2] / strides)).all(axis=-1)  # [M, A]
    shared = jnp.minimum(box[..., 2:], anchor[:, 2:]).prod(axis=-1)
    alike = shared / (box[..., 2:].prod(axis=-1) + anchor[:, 2:].prod(axis=-1) - shared)  # the IoU at one centre
    taken = jnp.where(in_cell, alike, -1).argmax(axis=1)
    matched = last_winner(taken, candidate, len(anchors))

    overlap = jnp.where(candidate[:, None], box_ops.pairwise_iou(gt.boxes, predicted), 0).max(axis=0, initial=0)
    ignored = (overlap > ignore_iou) | inside_crowd(anchors, gt) | inside_crowd(predicted, gt)
    matched = jnp.where((matched == NEGATIVE) & ignored, IGNORE, matched)
    return matched, jnp.where(candidate, taken, len(anchors)).astype(jnp.int32)


def match_windows(
    windows: Array,
    gt: GroundTruth,
    *,
    object_share: float,
    shift: float,
    octaves: float,
    negative_shift: float,
    negative_octaves: float,
) -> Array:
    """Matches each window to the object that lies in its middle and has the canonical size (DeepMask, 1506.06204, section 3.1).

    An object's place is the distance of its centre from that of the window along x or y, the larger one, in sides of the window;
    its size is that of its longer side. A window is positive for the object that is nearest to the canonical place and size, in
    units of shift and octaves, if both are within these. It is negative if each object is at least negative_shift or
    negative_octaves away, and ignored otherwise. Crowds are never matched; windows that lie at least half inside a crowd are not
    negative.

    Args:
        windows: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.
        object_share: the canonical size, in sides of the window.
        shift: largest distance of a positive window, in its sides.
        octaves: largest ratio of an object's size to the canonical one, or of that to it, of a positive window; its logarithm to
            base 2.
        negative_shift, negative_octaves: distance and ratio from which on a window is negative, likewise.

    Returns:
        matched: [A] int32, a row of gt, NEGATIVE or IGNORE.
    """
    chex.assert_shape([windows, gt.boxes], (None, 4))
    if not len(gt.boxes):
        return jnp.full(len(windows), NEGATIVE, jnp.int32)
    candidate = (gt.valid & ~gt.crowd)[:, None]
    window, box = box_ops.xyxy_to_cxcywh(windows), box_ops.xyxy_to_cxcywh(gt.boxes)[:, None]
    place = (abs(box[..., :2] - window[:, :2]) / window[:, 2:]).max(axis=-1)  # [M, A]
    size = abs(jnp.log2((box[..., 2:] / window[:, 2:]).max(axis=-1) / object_share))
    distance = jnp.where(candidate, jnp.maximum(place / shift, size / octaves), jnp.inf)
    near = candidate & (place < negative_shift * (1 - TIE)) & (size < negative_octaves * (1 - TIE))
    unmatched = jnp.where(near.any(axis=0) | inside_crowd(windows, gt), IGNORE, NEGATIVE)
    return jnp.where(distance.min(axis=0) <= 1 + TIE, distance.argmin(axis=0), unmatched).astype(jnp.int32)


def last_winner(best: Array, candidate: Array, num_anchors: int) -> Array:
    """Gives each anchor to the last of the boxes that chose it.

    Args:
        best: [M] int, the anchor each box chose.
        candidate: [M] bool, which boxes choose.
        num_anchors: A.

    Returns:
        matched: [A] int32, a row of the boxes, or NEGATIVE where no box chose the anchor.
    """
    # A maximum over rows, since duplicate indices in a scatter have no order.
    chosen = candidate[:, None] & (best[:, None] == jnp.arange(num_anchors))  # [M, A]
    return (
        jnp.where(chosen, jnp.arange(best.shape[0])[:, None], NEGATIVE).max(axis=0, initial=NEGATIVE).astype(jnp.int32)
    )


def sample_balanced(matched: Array, key: Array, *, count: int, positive_share: float) -> Array:
    """Draws some of the positives and negatives of an image (Faster R-CNN, 1506.01497, section 3.1.3; Fast R-CNN, 2.3).

    Args:
        matched: [A] int32, as a matcher returns it.
        key: key of the draw; the random number of a row does not depend on A.
        count: number of samples; if there are fewer entries, all are drawn.
        positive_share: largest share of positives among them; negatives fill the rest.

    Returns:
        [A] bool, the entries that are drawn.
    """
    noise = jax.random.uniform(key, matched.shape)

    def draw(candidate: Array, limit: Array | int) -> Array:
        value, row = jax.lax.top_k(jnp.where(candidate, noise, -1), min(count, len(matched)))
        drawn = (value >= 0) & (jnp.arange(len(row)) < limit)
        return jnp.zeros_like(candidate).at[row].set(drawn, unique_indices=True)

    positive = draw(matched >= 0, int(count * positive_share))
    return positive | draw(matched == NEGATIVE, count - positive.sum())


def keep_hard_negatives(matched: Array, negative_loss: Array, negatives_per_positive: float) -> Array:
    """Keeps the hardest negatives, some for each positive, and ignores the others (SSD, 1512.02325, 2.2; OHEM 1:3 in 1708.02002).

    Args:
        matched: [A] int32, a row of the ground truth, NEGATIVE or IGNORE.
        negative_loss: [A] float, the loss of each anchor as background; it gets no gradient.
        negatives_per_positive: number of negatives kept for each positive; an image without positives keeps none.

    Returns:
        matched: [A] int32.
    """
    negative, count = matched == NEGATIVE, negatives_per_positive * (matched >= 0).sum()
    chosen = losses.hard_negatives(jax.lax.stop_gradient(negative_loss), negative, count)
    return jnp.where(negative & ~chosen, IGNORE, matched)


def inside_crowd(boxes: Array, gt: GroundTruth) -> Array:
    """Tells which boxes lie at least half inside a crowd of the ground truth.

    Args:
        boxes: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.

    Returns:
        [A] bool.
    """
    crowd = (gt.valid & gt.crowd)[:, None]
    return (crowd & (box_ops.pairwise_coverage(gt.boxes, boxes) >= CROWD_COVERAGE)).any(axis=0)


def gather_targets(matched: Array, anchors: Array, gt: GroundTruth, *, background: int) -> tuple[Array, Array]:
    """Looks up the label and the box that each anchor is trained towards.

    Args:
        matched: [A] int32, as a matcher returns it.
        anchors: [A, 4] float xyxy.
        gt: the ground truth of one image, M rows.
        background: the label of negative and ignored anchors.

    Returns:
        labels: [A] int32.
        boxes: [A, 4] float xyxy; the anchor itself where it is not positive, so that `box_coding.encode` never takes the
            logarithm of a padding row's size.
    """
    positive, row = matched >= 0, jnp.maximum(matched, 0)
    return jnp.where(positive, gt.labels[row], background), jnp.where(positive[:, None], gt.boxes[row], anchors)


def _candidate_iou(anchors: Array, gt: GroundTruth) -> Array:
    """Computes the IoU [M, A] of boxes and anchors; rows of boxes that must not be matched are -1."""
    chex.assert_shape([anchors, gt.boxes], (None, 4))
    return jnp.where((gt.valid & ~gt.crowd)[:, None], box_ops.pairwise_iou(gt.boxes, anchors), -1)
