"""Measures the post-processing of each family at the size of COCO, and of RetinaNet on the made-up data set 'shapes'.

    taskset -c 1 python scripts/dev/benchmark_postprocess.py

The outputs of the network are drawn: anchors that overlap one of a few objects score high for its class, all others low. For each
family and batch it prints the processor time of the quickest run, in milliseconds, from logits and deltas to detections (or to
proposals), and the same for programs that end earlier:

    select   the candidates for the NMS, with softmax or sigmoid before it where scores are compared across classes
    decode   their boxes, clipped
    whole    with the NMS

So the difference of two columns is what a stage takes, except for what the compiler joins across their border.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core import boxes as box_ops
from detzoo.core import postprocess
from detzoo.core.anchors import base_anchors, pyramid_anchors
from detzoo.detectors import retinanet, rpn, ssd, stages

CLASSES, OBJECTS = 80, 20
STRIDES, RATIOS = (8, 16, 32, 64, 128), (0.5, 1.0, 2.0)


def draw_outputs(anchors, canvas, columns, background):
    """Draws logits [A, columns] and deltas [A, 4]."""
    rng = np.random.RandomState(0)
    size = np.exp(rng.uniform(np.log(24), np.log(0.6 * canvas), (OBJECTS, 2)))
    corner = rng.uniform(0, 1, (OBJECTS, 2)) * (canvas - size)
    objects = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    iou = np.asarray(jax.jit(box_ops.pairwise_iou)(objects, anchors))
    best, labels = iou.max(axis=0), rng.randint(0, columns, OBJECTS)[iou.argmax(axis=0)]
    logits = rng.normal(background, 1.0, (len(anchors), columns)).astype(np.float32)
    near = np.flatnonzero(best > 0.4)
    logits[near, labels[near]] += 4 + 6 * best[near]
    return logits, rng.normal(0, 0.1, (len(anchors), 4)).astype(np.float32)


def with_background(logits):
    """Makes the last column background, which scores low where another class scores high."""
    logits[:, -1] = np.where((logits[:, :-1] > -1).any(axis=1), 0, 4)
    return logits


def retinanet_case(canvas, classes, base):
    """RetinaNet on a square canvas with `classes` classes; the smallest anchor of a level has `base` strides."""
    grids = [(-(-canvas // stride),) * 2 for stride in STRIDES]
    bases = [base_anchors(sizes, RATIOS, rounded=False) for sizes in retinanet.octave_sizes(base)]
    anchors = pyramid_anchors((canvas, canvas), grids, bases, strides=STRIDES)
    limits = dict(pre_nms_topk=1000, score_threshold=0.05, iou_threshold=0.5, max_detections=100)
    window = jnp.float32([0, 0, canvas, canvas])
    outputs = draw_outputs(np.concatenate(anchors), canvas, classes, background=-7)
    detect = functools.partial(retinanet.detect, anchors=anchors, clip_before_nms=True, **limits)
    return lambda logits, deltas: detect(logits, deltas, window), outputs


def ssd_case():
    """SSD300."""
    two, four = (1 / 2, 2), (1 / 2, 2, 1 / 3, 3)
    anchors = ssd.make_anchors(
        (300, 300),
        [(side, side) for side in (38, 19, 10, 5, 3, 1)],
        sizes=(21, 45, 99, 153, 207, 261, 315),
        aspect_ratios=(two, four, four, four, two, two),
        strides=(8, 16, 32, 64, 100, 300),
        clip=False,
    )
    limits = dict(pre_nms_topk=400, score_threshold=0.01, iou_threshold=0.45, max_detections=200)
    detect = functools.partial(ssd.detect, anchors=anchors, delta_weights=(10, 10, 5, 5), **limits)
    logits, deltas = draw_outputs(anchors, 300, CLASSES + 1, background=-7)
    window = jnp.float32([0, 0, 300, 300])
    return lambda logits, deltas: detect(logits, deltas, window), (with_background(logits), deltas)


def rpn_anchors():
    """The RPN of a pyramid on 800 x 800 pixels, and its anchors."""
    network = rpn.make_rpn((4, 8, 16, 32, 64), jnp.float32)
    return network, network.anchors((800, 800), [(side, side) for side in (200, 100, 50, 25, 13)])


def rpn_case():
    """The proposals of an RPN."""
    network, anchors = rpn_anchors()
    window = jnp.float32([0, 0, 800, 800])
    logits, deltas = draw_outputs(np.concatenate(anchors), 800, 1, background=-4)
    propose = functools.partial(network.propose, anchors=anchors, train=False)
    return lambda logits, deltas: propose(logits, deltas, window), (logits[:, 0], deltas)


def box_head_case():
    """The detections of a box head from 1000 proposals."""
    _, anchors = rpn_anchors()
    anchors = np.random.RandomState(1).permutation(np.concatenate(anchors))
    logits, _ = draw_outputs(anchors, 800, CLASSES + 1, background=-7)
    best = np.argsort(-logits.max(axis=1))[:1000]
    proposals, valid = jnp.asarray(np.clip(anchors[best], 0, 800)), jnp.ones(1000, bool)
    deltas = np.random.RandomState(2).normal(0, 0.5, (1000, CLASSES, 4)).astype(np.float32)
    head, window = stages.make_roi_head(CLASSES), jnp.float32([0, 0, 800, 800])
    return lambda logits, deltas: head.detect(logits, deltas, proposals, valid, window), (
        with_background(logits[best]),
        deltas,
    )


CASES = {
    'RetinaNet 800': functools.partial(retinanet_case, 800, CLASSES, 4),
    'RetinaNet shapes': functools.partial(retinanet_case, 128, 3, 2),
    'SSD300': ssd_case,
    'RPN 800': rpn_case,
    'box head 1000': box_head_case,
}


def first_stages(detect, last):
    """Makes a function that ends with a stage, 'select' or 'decode': what it has made then, before the NMS."""

    def stop(boxes, scores, labels, valid, *, max_detections, **_):
        made = (scores, labels) if last == 'select' else (boxes, scores, labels, valid)
        raise _Stopped(made)

    def function(*arguments):
        nms, postprocess.nms = postprocess.nms, stop
        try:
            detect(*arguments)
        except _Stopped as stopped:
            return stopped.args[0]
        finally:
            postprocess.nms = nms

    return function


class _Stopped(Exception):
    """Carries the arrays that are there when tracing stops."""


def processor_time(functions, arguments, repeats):
    """Runs functions in turn: {name: least processor time, milliseconds}."""
    least = dict.fromkeys(functions, np.inf)
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            jax.block_until_ready(function(*arguments))
            least[name] = min(least[name], 1e3 * (time.process_time() - start))
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=9, help='timed runs of each program')
    parser.add_argument('--batches', type=int, nargs='+', default=(1, 4), help='images')
    args = parser.parse_args()

    print(f'{jax.devices()[0].device_kind}, JAX {jax.__version__}')
    print(f'{"":>18}{"batch":>7}{"select ms":>12}{"decode ms":>12}{"whole ms":>12}')
    for name, make in CASES.items():
        detect, outputs = make()
        for batch in args.batches:
            data = jax.device_put([np.stack([x] * batch) for x in outputs])
            programs = {last: first_stages(detect, last) for last in ('select', 'decode')} | {'whole': detect}
            programs = {last: jax.jit(jax.vmap(program)).lower(*data).compile() for last, program in programs.items()}
            for program in programs.values():
                jax.block_until_ready(program(*data))
            times = processor_time(programs, data, args.repeats)
            print(f'{name:>18}{batch:>7}' + ''.join(f'{ms:>12.2f}' for ms in times.values()), flush=True)


if __name__ == '__main__':
    main()
