"""What tests of all detectors share: tiny variants of each, compiled once, and the batch that they see.

A detector joins with an entry in VARIANTS: a tiny variant of it, and which metrics of its loss count what `assign` says.
"""

import collections
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tiny import (
    OPTIMIZED,
    TINY_DEEPMASK,
    TINY_FASTER_RCNN,
    TINY_FASTER_RCNN_C4,
    TINY_FASTER_RCNN_MOBILENET,
    TINY_MASK_RCNN,
    TINY_MASK_RCNN_C4,
    TINY_MASK_RCNN_V2,
    TINY_MNC,
    TINY_RCNN,
    TINY_RETINANET,
    TINY_SHARPMASK,
    TINY_SSD,
    TINY_SSD_RESNET,
    TINY_SSDLITE,
    TINY_YOLO_V1,
    TINY_YOLO_V2,
    TINY_YOLO_V3,
    draw_blocks,
    with_backbone,
)

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import make_detector
from detzoo.types import Batch, GroundTruth, Inputs

BATCH, CANVAS, ROWS, CLASSES = 8, (64, 64), 4, 3


class Variant(NamedTuple):
    """A tiny detector.

    arguments: of make_detector.
    counts: {stage of assign: {metric of the loss: function of matched [B, A]}}.
    any_canvas: whether its parameters serve every canvas.
    learns_from_nothing: whether a batch without objects teaches what background is.
    rates: the first and the last learning rate with which it learns a batch by heart; steps: how many it takes; AP: which it
        then exceeds.
    rounding: how far 8 devices may be from one, of the largest value.
    """

    arguments: dict[str, Any]
    counts: dict[str, dict[str, Callable]]
    any_canvas: bool = True
    learns_from_nothing: bool = True
    rates: tuple[float, float] = (8e-3, 1e-3)
    steps: int = 250
    AP: float = 0.95
    rounding: float = 2e-6


COUNTS = {'positives': lambda matched: matched >= 0, 'ignored': lambda matched: matched == IGNORE}


SAMPLES = {'positives': COUNTS['positives'], 'negatives': lambda matched: matched == NEGATIVE}


def ssd_variant(arguments):
    """SSD takes three negatives for each positive: of an image without objects it learns nothing."""
    return Variant(arguments, {'anchors': COUNTS | SAMPLES}, learns_from_nothing=False)


def rcnn_variant(arguments):
    """What a second stage is trained on depends on the first: both want to settle."""
    counts = {'rpn': {f'rpn_{name}': count for name, count in SAMPLES.items()}, 'rois': SAMPLES}
    # Proposals are float32 always. On C4 the norms of the last stage divide what rounding makes of RoIs in a flat background by
    # next to nothing: two programs of one device are as far apart.
    rounding = 0.2 if arguments.get('fpn_features', 0) is None else Variant._field_defaults['rounding']
    return Variant(arguments, counts, rates=(4e-3, 1e-4), rounding=rounding)


VARIANTS = {
    'deepmask': Variant(
        TINY_DEEPMASK, {'windows': SAMPLES}, steps=150, AP=0.5
    ),  # boxes around masks of 16 x 16 cells a window
    'faster_rcnn': rcnn_variant(TINY_FASTER_RCNN),
    'mask_rcnn': rcnn_variant(TINY_MASK_RCNN),
    'rcnn': Variant(TINY_RCNN, {'rois': SAMPLES}, rates=(4e-3, 1e-4), steps=300, AP=0.9),
    'retinanet': Variant(TINY_RETINANET, {'anchors': COUNTS}),
    'ssd': ssd_variant(TINY_SSD),
    'yolo_v1': Variant(TINY_YOLO_V1, {'cells': COUNTS}, any_canvas=False),
    'yolo_v2': Variant(TINY_YOLO_V2, {'anchors': COUNTS}),
    'yolo_v3': Variant(TINY_YOLO_V3, {'anchors': COUNTS}),
}


# The contract of these runs with --full only.
MORE_VARIANTS = {
    'sharpmask': Variant(TINY_SHARPMASK, {'windows': SAMPLES}, steps=400, AP=0.4),
    'retinanet_giou': Variant(
        with_backbone(TINY_RETINANET, norm='group_norm') | dict(box_loss='giou'), {'anchors': COUNTS}
    ),
    'faster_rcnn_c4': rcnn_variant(TINY_FASTER_RCNN_C4),
    # Its cells have 32 pixels: several objects may overlap one anchor most, which proposes one of them.
    'faster_rcnn_mobilenet': rcnn_variant(TINY_FASTER_RCNN_MOBILENET)._replace(AP=0.75),
    'mask_rcnn_c4': rcnn_variant(TINY_MASK_RCNN_C4),
    'mask_rcnn_v2': rcnn_variant(TINY_MASK_RCNN_V2)._replace(steps=500),
    # With boxes_learn the RPN's boxes follow three losses, and do not come to rest in so few steps.
    'mnc': rcnn_variant(TINY_MNC | dict(boxes_learn=False, rounds=1))._replace(rounding=0.2),
    'ssd_resnet18': ssd_variant(TINY_SSD_RESNET),
    'ssdlite': ssd_variant(TINY_SSDLITE),
    'yolo_v1_local': Variant(
        with_backbone(TINY_YOLO_V1, name='extraction')
        | dict(head_features=(256, 256), local_features=128, dropout=0.1),
        {'cells': COUNTS},
        any_canvas=False,
        steps=500,
        AP=0.65,  # dropout's noise stays in the boxes
    ),
    'yolo_v2_tiny': Variant(
        with_backbone(TINY_YOLO_V2, name='tiny', width=0.25)
        | dict(head_features=(256, 256), passthrough_features=None),
        {'anchors': COUNTS},
    ),
    'yolo_v3_tiny': Variant(
        with_backbone(TINY_YOLO_V3, name='tiny', width=0.25) | dict(small_head=True), {'anchors': COUNTS}
    ),
    'yolo_v3_ciou': Variant(
        with_backbone(TINY_YOLO_V3, norm='group_norm') | dict(box_loss='ciou'), {'anchors': COUNTS}
    ),
}


DISC = np.hypot(*(np.mgrid[:8, :8] - 3.5)) < 4  # of all objects, in the frames of their boxes


def make_batch(rows=ROWS):
    """Images of blocks on canvases which they do not fill; the third without objects, the fourth with a crowd."""
    images = np.zeros((BATCH, *CANVAS, 3), np.uint8)
    gt = GroundTruth(
        boxes=np.zeros((BATCH, rows, 4), np.float32),
        labels=np.zeros((BATCH, rows), np.int32),
        valid=np.zeros((BATCH, rows), bool),
        crowd=np.zeros((BATCH, rows), bool),
        dropped=np.zeros(BATCH, np.int32),
        cropped=np.zeros(BATCH, np.int32),
        masks=np.zeros((BATCH, rows, 8, 8), bool),
    )
    window = np.zeros((BATCH, 4), np.float32)
    for i in range(BATCH):
        height, width = 64 - 3 * i, 50 + 2 * i
        images[i, :height, :width], boxes, labels = draw_blocks(50 + i, height, width, 0 if i == 2 else 3)
        count = len(boxes)
        gt.boxes[i, :count] = boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0)))
        gt.labels[i, :count], gt.valid[i, :count], gt.masks[i, :count] = labels, True, DISC
        window[i, 2:] = width, height
    gt.crowd[3, 0] = True
    return Batch(Inputs(images, window), gt, np.arange(BATCH, dtype=np.int32), np.ones(BATCH, bool))


BLOCKS = make_batch()


NOTHING = BLOCKS._replace(gt=BLOCKS.gt._replace(valid=np.zeros_like(BLOCKS.gt.valid)))


# Windows of four shapes all over the canvas, for detectors that need proposals.
SHAPES = np.array([(w, h) for w in (12, 22) for h in (12, 22)])
PLACES = np.stack(np.meshgrid(np.arange(0, 60, 6), np.arange(0, 60, 6)), axis=-1).reshape(-1, 1, 2)
WINDOWS = np.concatenate(np.broadcast_arrays(PLACES, PLACES + SHAPES), axis=-1).reshape(-1, 4).astype(np.float32)


def with_windows(detector):
    """A detector that needs no proposals: if it did, it now gets WINDOWS where they lie in the image's window."""
    if not detector.needs_proposals:
        return detector

    def given(inputs):
        boxes = jax.numpy.clip(
            WINDOWS, jax.numpy.tile(inputs.window[:, None, :2], 2), inputs.window[:, None, [2, 3, 2, 3]]
        )
        valid = (boxes[..., 2:] - boxes[..., :2] > 4).all(axis=-1)
        return inputs._replace(proposals=boxes, proposals_valid=valid)

    def loss(params, model_state, batch, rng):
        return detector.loss(params, model_state, batch._replace(inputs=given(batch.inputs)), rng)

    def predict(params, model_state, inputs):
        return detector.predict(params, model_state, given(inputs))

    def assign(params, model_state, batch, rng):
        return detector.assign(params, model_state, batch._replace(inputs=given(batch.inputs)), rng)

    return detector._replace(loss=loss, predict=predict, assign=assign)


@functools.cache
def tiny_variant(name):
    """A variant's detector, its parameters, and its functions compiled; `traces` counts their traces."""
    variant = (VARIANTS | MORE_VARIANTS)[name]
    detector = with_windows(make_detector(num_classes=CLASSES, **variant.arguments))
    traces = collections.Counter()

    def compiled(name, function, options=None):
        def counted(*args):
            traces[name] += 1
            return function(*args)

        return jax.jit(counted, compiler_options=options)

    params, model_state = jax.jit(detector.init, static_argnums=1)(jax.random.key(0), CANVAS)
    step = compiled('loss', jax.value_and_grad(detector.loss, has_aux=True), OPTIMIZED)  # to learn a batch by heart
    return types.SimpleNamespace(
        variant=variant,
        detector=detector,
        params=params,
        model_state=model_state,
        traces=traces,
        value_and_grad=step,
        gradient=lambda batch, seed=0: step(params, model_state, batch, jax.random.key(seed)),
        predict=compiled('predict', detector.predict),
        assign=compiled('assign', detector.assign),
    )


def shapes_of(detector, canvas=CANVAS):
    return jax.eval_shape(lambda key: detector.init(key, canvas), jax.random.key(0))
