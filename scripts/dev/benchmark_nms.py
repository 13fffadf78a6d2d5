"""Compares the speed of several formulations of greedy NMS with detzoo's own, interleaved in one run.

    python scripts/dev/benchmark_nms.py

All are exactly greedy, and are checked to select the same boxes before they are timed:

    tiled      `detzoo.core.nms.nms`: boxes in order of score, tile by tile; boxes that a kept one of an earlier tile overlaps
               are dropped, a fixpoint decides inside the tile, and the loop ends when enough boxes are kept
    tiles64    the same with tiles of 64 boxes
    tiles256   the same with tiles of 256 boxes
    argmax     a round for each box that is kept, with one row of IoU per round
    fixpoint   the IoU of all pairs, then "kept unless a better kept box overlaps it" repeated until nothing changes

Boxes are clustered like those of a detector. Times are medians without compiling. Ratios are relative to tiled; above 1 is
slower.
"""

import argparse
import functools
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core import boxes as box_ops
from detzoo.core.nms import nms

CASES = ((1000, 100), (2000, 1000), (5000, 100))  # candidates T, detections D: one level, an RPN, a one-stage detector


def in_order(boxes, scores, labels, valid):
    """Sorts candidates by score, ties by row, the invalid last: (order, boxes, labels, valid)."""
    valid = valid & ~jnp.isnan(scores)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    return order, boxes[order], labels[order], valid[order]


def overlaps(boxes1, labels1, boxes2, labels2, iou_threshold):
    """Tells which pairs can't both be kept: [M, A] bool."""
    return (box_ops.pairwise_iou(boxes1, boxes2) > iou_threshold) & (labels1[:, None] == labels2[None, :])


def settle(conflict, candidate):
    """Keeps each candidate that no earlier kept one conflicts with.

    After n rounds the first n rows are final, and the only fixpoint is the greedy choice; it ends after about as many
    rounds as the longest chain of boxes that drop each other.
    """
    conflict &= jnp.triu(jnp.ones_like(conflict), 1)

    def again(state):
        kept, _ = state
        new = candidate & ~(conflict & kept[:, None]).any(axis=0)
        return new, (new != kept).any()

    return jax.lax.while_loop(lambda state: state[1], again, (candidate, True))[0]


def first_kept(order, kept, max_detections):
    """Turns a mask over sorted candidates into what `nms` returns."""
    rank = jnp.where(kept, jnp.cumsum(kept) - 1, max_detections)
    indices = jnp.zeros(max_detections, jnp.int32).at[rank].set(order.astype(jnp.int32), mode='drop')
    return indices, jnp.arange(max_detections) < kept.sum()


def fixpoint(boxes, scores, labels, valid, *, iou_threshold, max_detections):
    """Greedy NMS over the matrix of all pairs."""
    order, boxes, labels, valid = in_order(boxes, scores, labels, valid)
    kept = settle(overlaps(boxes, labels, boxes, labels, iou_threshold), valid)
    return first_kept(order, kept, max_detections)


def argmax(boxes, scores, labels, valid, *, iou_threshold, max_detections):
    """Greedy NMS, one kept box a round."""

    def keep_best(state):
        step, remaining, indices = state
        best = jnp.argmax(remaining)
        dropped = overlaps(boxes[best][None], labels[best][None], boxes, labels, iou_threshold)[0]
        # The box itself goes too, even where it is empty and its IoU with itself 0.
        remaining = jnp.where(dropped, -jnp.inf, remaining).at[best].set(-jnp.inf)
        return step + 1, remaining, indices.at[step].set(best)

    def any_left(state):
        step, remaining, _ = state
        return (step < max_detections) & (remaining > -jnp.inf).any()

    remaining = jnp.where(valid & ~jnp.isnan(scores), scores, -jnp.inf)
    count, _, indices = jax.lax.while_loop(any_left, keep_best, (0, remaining, jnp.zeros(max_detections, jnp.int32)))
    return indices, jnp.arange(max_detections) < count


def in_tiles(size):
    """Makes detzoo's NMS with tiles of another size on a CPU."""
    return mock.patch('detzoo.core.nms.CPU_TILE', size)(nms)


FORMULATIONS = {
    'tiled': nms,
    'tiles64': in_tiles(64),
    'tiles256': in_tiles(256),
    'argmax': argmax,
    'fixpoint': fixpoint,
}


def clustered(batch, count, num_classes, seed=0):
    """Draws candidates around objects, ten to an object, on a canvas of 1000 pixels."""
    rng = np.random.RandomState(seed)
    objects = rng.randint(0, count // 10, (batch, count))[..., None]
    center = np.take_along_axis(rng.uniform(0, 1000, (batch, count // 10, 2)), objects, 1)
    size = np.take_along_axis(np.exp(rng.uniform(np.log(16), np.log(256), (batch, count // 10, 2))), objects, 1)
    center = center + rng.normal(size=center.shape) * 0.15 * size
    size = size * np.exp(rng.normal(size=size.shape) * 0.15)
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=-1).astype(np.float32)
    labels = rng.randint(0, num_classes, (batch, count)).astype(np.int32)
    return boxes, rng.uniform(size=(batch, count)).astype(np.float32), labels, np.ones((batch, count), bool)


def measure(functions, arguments, repeats):
    """Times functions in turn, so that other load affects all of them alike: {name: median milliseconds}."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=15, help='timed runs of each formulation')
    parser.add_argument('--iou-threshold', type=float, default=0.7)
    parser.add_argument('--classes', type=int, default=1)
    parser.add_argument('--batches', type=int, nargs='+', default=(1, 4), help='images; more than 1 are vmapped')
    args = parser.parse_args()

    print(f'{jax.devices()[0].device_kind}, JAX {jax.__version__}, IoU {args.iou_threshold}, {args.classes} classes')
    print(
        f'{"T":>6}{"D":>6}{"batch":>7}{"kept":>7}'
        + ''.join(f'{name + " ms":>14}' for name in FORMULATIONS)
        + ''.join(f'{name:>11}' for name in FORMULATIONS if name != 'tiled')
    )
    for count, max_detections in CASES:
        for batch in args.batches:
            data = clustered(batch, count, args.classes)
            data = jax.device_put(data if batch > 1 else tuple(x[0] for x in data))
            functions, results = {}, {}
            for name, function in FORMULATIONS.items():
                function = functools.partial(function, iou_threshold=args.iou_threshold, max_detections=max_detections)
                functions[name] = jax.jit(jax.vmap(function) if batch > 1 else function).lower(*data).compile()
                results[name] = jax.tree.map(np.asarray, functions[name](*data))  # also the warm-up
            for name, result in results.items():
                for ours, expected in zip(result, results['tiled']):
                    np.testing.assert_array_equal(ours, expected, err_msg=f'{name} selects other boxes than tiled')
            times = measure(functions, data, args.repeats)
            kept = results['tiled'][1].sum() / batch
            print(
                f'{count:>6}{max_detections:>6}{batch:>7}{kept:>7.0f}'
                + ''.join(f'{ms:>14.2f}' for ms in times.values())
                + ''.join(f'{ms / times["tiled"]:>11.2f}' for name, ms in times.items() if name != 'tiled')
            )


if __name__ == '__main__':
    main()
