"""Compares the speed of detzoo's RoIAlign and RoIPool with torchvision's and with a single gather, interleaved in one run.

    pip install torch torchvision
    python scripts/dev/benchmark_roi_features.py

One image of 800 x 800 with RoIs of 32 to 400 pixels, on one level of stride 16 or on a pyramid of strides 4 to 32, chosen
by size. All are checked to give the same results before they are timed:

    detzoo       `detzoo.core.roi_features`
    torchvision  `roi_align`, `MultiScaleRoIAlign`, `roi_pool`
    gather       RoIAlign as one expression: all samples and corners gathered at once, differentiated by JAX

Times are medians without compiling, of the forward pass alone and with the gradient of the features. Ratios are relative to
detzoo; above 1 is slower. Memory is the temporary memory of the compiled program.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from detzoo.core import roi_features

CANVAS = 800
SIZE, SAMPLES = 7, 2
MIN_LEVEL = {1: 4, 4: 2}  # {number of levels: the finest level}


def drawn_rois(count, seed=0):
    """Draws RoIs inside of the canvas, their sides uniform in the logarithm."""
    rng = np.random.RandomState(seed)
    side = np.exp(rng.uniform(np.log(32), np.log(400), (count, 2)))
    corner = rng.uniform(0, CANVAS - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def align(levels, rois, *, strides, min_level):
    """detzoo's RoIAlign."""
    level = roi_features.assign_levels(rois, min_level=min_level, max_level=min_level + len(levels) - 1)
    settings = dict(strides=strides, output_size=SIZE, samples_per_bin=SAMPLES, aligned=False)
    return roi_features.roi_align(levels, rois, level, **settings)


def pool(levels, rois, *, strides, min_level):
    """detzoo's RoIPool, of one level."""
    del min_level
    return roi_features.roi_pool(levels, rois, jnp.zeros(len(rois), jnp.int32), strides=strides, output_size=SIZE)


def gather(levels, rois, *, strides, min_level):
    """RoIAlign of RoIs inside of the canvas, in one gather."""
    level = roi_features.assign_levels(rois, min_level=min_level, max_level=min_level + len(levels) - 1)
    sides = np.array([x.shape[:2] for x in levels])
    start = jnp.asarray(np.cumsum([0, *sides.prod(axis=1)])[:-1])[level]
    scaled = rois / jnp.asarray(strides, jnp.float32)[level][:, None]

    def taps(first, last, count):
        """Indices and weights of the two cells at each point: [R, SIZE, SAMPLES, 2]."""
        steps = (jnp.arange(SIZE * SAMPLES).reshape(SIZE, SAMPLES) + 0.5) / (SIZE * SAMPLES)
        point = first[:, None, None] + jnp.maximum(last - first, 1)[:, None, None] * steps
        point = jnp.clip(point, 0, (count - 1)[:, None, None])
        low = jnp.floor(point).astype(jnp.int32)
        high = jnp.minimum(low + 1, (count - 1)[:, None, None])
        return jnp.stack([low, high], -1), jnp.stack([1 - (point - low), point - low], -1)

    height, width = jnp.asarray(sides)[level].T
    (y, weight_y), (x, weight_x) = taps(*scaled.T[1::2], height), taps(*scaled.T[::2], width)
    index = start.reshape(-1, 1, 1, 1, 1, 1, 1) + y[:, :, :, :, None, None, None] * width.reshape(-1, 1, 1, 1, 1, 1, 1)
    cells = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in levels])[index + x[:, None, None, None]]
    return jnp.einsum('risajtbc,risa,rjtb->rijc', cells, weight_y, weight_x) / SAMPLES**2


def compiled(function, levels, rois, gradient, **settings):
    """Compiles a function of JAX: (forward, forward and gradient, their megabytes)."""
    function = functools.partial(function, **settings)

    def both(levels, rois, gradient):
        result, backward = jax.vjp(lambda levels: function(levels, rois), levels)
        return result, backward(gradient)[0]

    levels, rois, gradient = jax.device_put((levels, rois, gradient))
    forward = jax.jit(function).lower(levels, rois).compile()
    both = jax.jit(both).lower(levels, rois, gradient).compile()
    megabytes = [x.memory_analysis().temp_size_in_bytes / 1e6 for x in (forward, both)]
    return (
        lambda: jax.block_until_ready(forward(levels, rois)),
        lambda: jax.block_until_ready(both(levels, rois, gradient)),
        megabytes,
    )


def torchvisions(operation, levels, rois, gradient, *, strides, min_level):
    """Makes the same functions with torchvision; their memory is not measured."""
    levels = [torch.tensor(x.transpose(2, 0, 1)[None].copy(), requires_grad=True) for x in levels]
    gradient, boxes = torch.tensor(gradient.transpose(0, 3, 1, 2).copy()), [torch.tensor(rois)]
    names = [str(i) for i in range(len(levels))]
    pooler = MultiScaleRoIAlign(names, SIZE, SAMPLES)

    def function():
        if operation == 'pool':
            return roi_pool(levels[0], boxes, SIZE, 1 / strides[0])
        return pooler(dict(zip(names, levels)), boxes, [(CANVAS, CANVAS)])

    def forward():
        with torch.no_grad():
            return function().numpy().transpose(0, 2, 3, 1)

    def both():
        for x in levels:
            x.grad = None
        result = function()
        result.backward(gradient)
        gradients = [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in levels]  # None: no RoI is there
        return result.detach().numpy().transpose(0, 2, 3, 1), [x[0].transpose(1, 2, 0) for x in gradients]

    return forward, both, [float('nan')] * 2


def measure(functions, repeats):
    """Times functions in turn, so that other load affects all of them alike: {name: median milliseconds}."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=9, help='timed runs of each')
    parser.add_argument('--rois', type=int, default=512)
    parser.add_argument('--channels', type=int, default=256)
    args = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f'{device}, JAX {jax.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads')
    print(f'{args.rois} RoIs, {args.channels} channels, {SIZE} x {SIZE} bins, {SAMPLES} x {SAMPLES} samples')
    columns = ('forward ms', 'ratio', 'MB', 'both ms', 'ratio', 'MB')
    print(f'{"":>10}{"levels":>8}{"":>13}' + ''.join(f'{x:>12}' for x in columns))
    rng = np.random.RandomState(1)
    rois = drawn_rois(args.rois)
    gradient = rng.normal(size=(args.rois, SIZE, SIZE, args.channels)).astype(np.float32)
    for operation, strides in (('align', (16,)), ('align', (4, 8, 16, 32)), ('pool', (16,))):
        sides = [CANVAS // stride for stride in strides]
        levels = [rng.normal(size=(side, side, args.channels)).astype(np.float32) for side in sides]
        settings = dict(strides=strides, min_level=MIN_LEVEL[len(strides)])
        ours = {'align': dict(detzoo=align, gather=gather), 'pool': dict(detzoo=pool)}[operation]
        programs = {name: compiled(function, levels, rois, gradient, **settings) for name, function in ours.items()}
        programs['torchvision'] = torchvisions(operation, levels, rois, gradient, **settings)
        results = {name: jax.tree.leaves(both()) for name, (_, both, _) in programs.items()}  # also the warm-up
        for name, result in results.items():
            for found, expected in zip(result, results['detzoo'], strict=True):
                np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=f'{name} is not the same as detzoo')
        times = [measure({name: program[i] for name, program in programs.items()}, args.repeats) for i in (0, 1)]
        for name, (_, _, megabytes) in programs.items():
            print(
                f'{operation:>10}{len(strides):>8}{name:>13}'
                + ''.join(
                    f'{t[name]:>12.1f}{t[name] / t["detzoo"]:>12.2f}{m:>12.0f}' for t, m in zip(times, megabytes)
                ),
                flush=True,
            )


if __name__ == '__main__':
    main()
