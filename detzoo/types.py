"""The types that the parts of detzoo exchange: inputs, ground truth, detections, the contracts of a detector and a segmenter.

Everything here is a NamedTuple, hence a pytree: it passes through `jit`, `vmap`, `pmap` and `jax.tree.map` as it is.

Shape letters, used in every docstring of the project:

    B     images on a device             P    proposals
    H, W  padded canvas, pixels          R    sampled RoIs
    L     pyramid levels                 T    candidates before NMS
    A     anchors of all levels          D    detections (padded)
    M     max ground-truth boxes         S    side of a ground-truth mask in its box's frame
    K     foreground classes

Boxes are xyxy, float32, absolute pixels of the canvas, x1 < x2 and y1 < y2, in continuous coordinates (the first pixel
spans 0..1; no "+1"). Labels are 0..K-1. Padding is marked by a `valid` array, never by a value.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # a nested dict of arrays: what gradients train
ModelState = Any  # a nested dict of arrays that gradients do not train (batch statistics, frozen batch norm)


class Inputs(NamedTuple):
    """The inputs of a detector: a batch of images.

    images: [B, H, W, 3] uint8 or float32, RGB in 0..255. The detector normalises.
    window: [B, 4] float32 xyxy, where the image lies on its canvas. The detector zeroes what is outside.
    proposals: [B, P, 4] float32 boxes from outside (Fast R-CNN), or None.
    proposals_valid: [B, P] bool, or None.
    proposal_masks: [B, P, S, S] bool, the masks of the proposals in their frames, or None.
    """

    images: Array
    window: Array
    proposals: Array | None = None
    proposals_valid: Array | None = None
    proposal_masks: Array | None = None


class GroundTruth(NamedTuple):
    """The annotated objects of images, padded to M rows.

    boxes: [..., M, 4] float32 xyxy.
    labels: [..., M] int32 in 0..K-1.
    valid: [..., M] bool, False on padding rows.
    crowd: [..., M] bool, True where a box stands for a group: no anchor is positive for it, and anchors inside it are ignored.
    dropped: [...] int32, number of the image's objects that are left out because it has more than M.
    cropped: [...] int32, number of the image's objects of which a crop, or what covers them, leaves nothing.
    masks: [..., M, S, S] bool in the frame of each box, or None.
    boxed: [...] bool, False where only a label of the image is known, that of its first row, and no box; None: all have boxes.
    """

    boxes: Array
    labels: Array
    valid: Array
    crowd: Array
    dropped: Array
    cropped: Array
    masks: Array | None = None
    boxed: Array | None = None


class Batch(NamedTuple):
    """Images with their ground truth.

    inputs: Inputs.
    gt: GroundTruth with leading axis B.
    image_id: [B] int32, the dense index of the record in its split (the data's own ids stay on the host).
    valid: [B] bool, False on rows that fill up the last batch.
    """

    inputs: Inputs
    gt: GroundTruth
    image_id: Array
    valid: Array


class Detections(NamedTuple):
    """The detections in an image, best score first, padded to D rows.

    boxes: [..., D, 4] float32 xyxy pixels of the canvas, inside the window.
    scores: [..., D] float32 in 0..1.
    labels: [..., D] int32 in 0..K-1.
    valid: [..., D] bool.
    masks: [..., D, m, m] float32 probabilities in the frame of each box, 0 in rows that are not valid; or None.
    candidates_dropped: [...] int32, number of candidates over the score threshold that the NMS never saw because there was
        no room for them (pre_nms_topk); None: not counted.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array
    masks: Array | None = None
    candidates_dropped: Array | None = None


class PixelClasses(NamedTuple):
    """The class of each pixel of an image: what is kept of a segmenter's probabilities.

    labels: [..., H, W] uint8, or uint16 for more classes, in 0..K, K for background.
    scores: [..., H, W] float32 in 0..1, the probability of that class.
    """

    labels: Array
    scores: Array


class Assignment(NamedTuple):
    """The object that each of a detector's boxes is trained towards.

    boxes: [B, A, 4] float32 xyxy, the boxes that were matched (anchors, cells or proposals).
    matched: [B, A] int32: the row of the ground truth, or NEGATIVE = -1, or IGNORE = -2.
    """

    boxes: Array
    matched: Array


class Detector(NamedTuple):
    """A detector: pure functions, whose arguments its `make` has bound, and flags that say what it needs and finds.

    init(rng, canvas): (params, model_state) for a key and a canvas (H, W).
    loss(params, model_state, batch, rng): (loss [], (model_state, metrics)), metrics a flat dict of scalars.
    predict(params, model_state, inputs): Detections with leading axis B.
    assign(params, model_state, batch, rng): {stage: Assignment}, exactly what `loss` trains on.
    takes_proposals: whether it uses the proposals among the inputs.
    needs_proposals: whether it cannot do without them.
    needs_proposal_masks: whether it cannot do without their masks.
    finds_masks: whether it detects masks, and is trained on ground truth with masks.
    takes_labels: whether it also learns from images of which only a label is known (`GroundTruth.boxed`).
    propose(params, model_state, inputs): the boxes that a first stage hands to the second, as Detections of class 0, best first,
        with scores that say no more than their order; None for a detector of one stage.
    class_agnostic: whether it finds objects whatever their class. All its detections have label 0, and it is evaluated with all
        classes as one.
    extends: name of the detector with whose trained variables it can start: those that both have. '': none but its own.
    oracle(stages): `predict` with the ground truth as a fourth argument, which takes the place of what these stages find:
        'proposals', 'boxes' or 'classes', see `detectors.oracles`; None: no stage can be replaced.
    """

    init: Callable[[Array, tuple[int, int]], tuple[Params, ModelState]]
    loss: Callable[[Params, ModelState, Batch, Array], tuple[Array, tuple[ModelState, dict[str, Array]]]]
    predict: Callable[[Params, ModelState, Inputs], Detections]
    assign: Callable[[Params, ModelState, Batch, Array], dict[str, Assignment]]
    takes_proposals: bool = False
    needs_proposals: bool = False
    finds_masks: bool = False
    takes_labels: bool = False
    propose: Callable[[Params, ModelState, Inputs], Detections] | None = None
    class_agnostic: bool = False
    extends: str = ''
    needs_proposal_masks: bool = False
    oracle: Callable[[Collection[str]], Callable[[Params, ModelState, Inputs, GroundTruth], Detections]] | None = None


class Segmenter(NamedTuple):
    """A segmenter gives each pixel a class: pure functions, as those of a `Detector`, and the same flags.

    It is trained on the ground truth of detectors: the classes of pixels are painted from the masks of objects.

    init(rng, canvas): (params, model_state) for a key and a canvas (H, W).
    loss(params, model_state, batch, rng): (loss [], (model_state, metrics)), metrics a flat dict of scalars.
    predict(params, model_state, inputs): [B, H, W, K + 1] float32, the probabilities of the classes at each pixel of the canvas,
        background last. They sum to 1, and mean nothing outside of the window.
    takes_proposals, needs_proposals, needs_proposal_masks, takes_labels: see `Detector`.
    finds_masks: True, as it is trained on ground truth with masks.
    propose, oracle: None, as it has one stage.
    class_agnostic, extends: see `Detector`.
    """

    init: Callable[[Array, tuple[int, int]], tuple[Params, ModelState]]
    loss: Callable[[Params, ModelState, Batch, Array], tuple[Array, tuple[ModelState, dict[str, Array]]]]
    predict: Callable[[Params, ModelState, Inputs], Array]
    takes_proposals: bool = False
    needs_proposals: bool = False
    finds_masks: bool = True
    takes_labels: bool = False
    propose: None = None
    class_agnostic: bool = False
    extends: str = ''
    needs_proposal_masks: bool = False
    oracle: None = None
