"""Times the convolutions of detectors on this CPU, in each formulation that `detzoo.backbones.convolution` has.

    python scripts/dev/benchmark_convolutions.py --models=retinanet_r50_fpn_coco:512,ssd_vgg16_coco:300 --images=1

The convolutions are those of the configs' training step, on a square canvas of the size after the colon, each shape once. Printed
are milliseconds, the least of several runs on all cores of a machine that does nothing else, forward, for the gradient of the
input and for that of the kernel; a star marks what `choose` takes. The last lines sum them up, each shape as often as it occurs:
all in XLA's way, all as chosen, and all in the fastest way.

    python scripts/dev/benchmark_convolutions.py --step --models=retinanet_shapes:128,mask_rcnn_shapes:128 --images=16 \\
        --classes=5

--step times the loss and its gradients instead, of the whole model, as chosen and in XLA's way, in turn.
"""

import collections
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tqdm.auto import tqdm

MODELS = flags.DEFINE_list('models', ['retinanet_shapes:128'], 'Configs, each with the side of its canvas, pixels.')
IMAGES = flags.DEFINE_integer('images', 1, 'Images of a batch.', lower_bound=1)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each program.', lower_bound=1)
CLASSES = flags.DEFINE_integer('classes', 80, 'Classes of the models.', lower_bound=1)
STEP = flags.DEFINE_bool('step', False, 'Whether to time whole training steps, not single convolutions.')
PARTS = {
    'forward': ('xla', 'padded', 'winograd', 'dots', 'columns'),
    'input_gradient': ('xla', 'winograd', 'dots'),
    'kernel_gradient': ('xla', 'winograd', 'dots', 'columns'),
}


def open_model(model: str) -> tuple[Callable[..., Any], Any, Any]:
    """Makes the loss of a model of --models, the shapes of its state, and a batch."""
    from detzoo.config import complete, load_config
    from detzoo.costs.programs import random_batch, state_shapes
    from detzoo.inference.predictor import detector_of

    name, _, side = model.partition(':')
    config = complete(load_config(name))
    config.model.dtype = 'float32'
    batch = random_batch(config, (int(side), int(side)), IMAGES.value, CLASSES.value)
    return detector_of(config, CLASSES.value, None).loss, state_shapes(config, CLASSES.value), batch


def shapes_of(model: str) -> collections.Counter:
    """Counts the (shape of x, shape of the kernel, geometry) of the convolutions in a config's training step."""
    from detzoo.backbones import convolution

    found: collections.Counter = collections.Counter()

    def record(*shape) -> convolution.Ways:
        found[shape] += 1
        return convolution.XLA

    loss, state, batch = open_model(model)
    with mock.patch.object(convolution, 'choose', record):
        jax.eval_shape(loss, state.params, state.model_state, batch, jax.random.key(0))
    return found


def time_step(model: str) -> str:
    """Times the loss of a model and its gradients, as chosen and in XLA's way, and describes the least times."""
    from detzoo.backbones import convolution

    loss, state, batch = open_model(model)
    rng = np.random.RandomState(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.05, x.shape) ** 2, x.dtype), state)
    arguments = drawn.params, drawn.model_state, batch, jax.random.key(0)
    programs = {}
    for name, choose in (('as chosen', convolution.choose), ("XLA's own", lambda *shape: convolution.XLA)):
        with mock.patch.object(convolution, 'choose', choose):
            step = jax.jit(lambda *arguments: jax.value_and_grad(loss, has_aux=True)(*arguments))
            programs[name] = step.lower(*arguments).compile()
        jax.block_until_ready(programs[name](*arguments))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(REPEATS.value):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
    return f'{model}: ' + ', '.join(f'{name} {1e3 * min(least):.0f} ms' for name, least in seconds.items())


def least_time(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Compiles and runs a function, and returns the least time of a run, seconds."""
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(x_shape, kernel_shape, geometry) -> dict[str, dict[str, float]]:
    """Times a convolution: {part: {formulation: seconds}}."""
    from detzoo.backbones import convolution

    rng = np.random.RandomState(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x_shape, kernel_shape))
    seconds: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    for part, ways in PARTS.items():
        for way in ways:
            if way == 'winograd' and not convolution.suits_winograd(kernel_shape, geometry):
                continue
            if way == 'padded' and not convolution.suits_padding(kernel_shape):
                continue
            convolve = partial(convolution.convolve_on_cpu, geometry, convolution.Ways(way, way, way))
            gradient = jnp.asarray(rng.normal(size=jax.eval_shape(convolve, x, kernel).shape), jnp.float32)
            program = {
                'forward': lambda x, kernel, gradient, f=convolve: f(x, kernel),
                'input_gradient': lambda x, kernel, gradient, f=convolve: jax.vjp(f, x, kernel)[1](gradient)[0],
                'kernel_gradient': lambda x, kernel, gradient, f=convolve: jax.vjp(f, x, kernel)[1](gradient)[1],
            }[part]
            seconds[part][way] = least_time(program, x, kernel, gradient)
    return seconds


def main(_) -> None:
    from detzoo.backbones.convolution import choose
    from detzoo.run.memory import keep_memory

    keep_memory()
    logging.set_verbosity(logging.WARNING)
    if STEP.value:
        for model in MODELS.value:
            print(time_step(model), flush=True)
        return
    shapes = sum((shapes_of(model) for model in MODELS.value), collections.Counter())
    totals: collections.Counter = collections.Counter()
    for shape, count in tqdm(sorted(shapes.items()), unit='convolution'):
        (batch, height, width, channels), (rows, columns, _, features), geometry = shape
        strides, padding, dilation = geometry
        line = f'{count} x {batch} x {height} x {width}, {channels} -> {features}, {rows}x{columns}'
        line += f', stride {strides[0]}, padding {padding[0][0]}, dilation {dilation[0]}'
        for part, seconds in measure(*shape).items():
            chosen = getattr(choose(*shape), part)
            ways = ', '.join(f'{way} {1e3 * s:.2f}{"*" * (way == chosen)}' for way, s in seconds.items())
            line += f'\n    {part:<16}{ways}'
            for name, value in dict(xla=seconds['xla'], chosen=seconds[chosen], fastest=min(seconds.values())).items():
                totals[part, name] += count * value
        tqdm.write(line)
    for part in PARTS:
        print(
            f'{part:<20}',
            ', '.join(f'{name} {1e3 * totals[part, name]:.1f} ms' for name in ('xla', 'chosen', 'fastest')),
        )


if __name__ == '__main__':
    app.run(main)
