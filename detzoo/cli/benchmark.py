"""Measures what a config's detector costs on this machine, or estimates it for TPUs.

    detzoo benchmark --config=retinanet_shapes --num_classes=3
    detzoo benchmark --config=retinanet_r50_fpn_coco --tpu=v5e:2x4,v4:2x2x1

The first prints, for prediction (for each of --batch_sizes) and for the training step, the FLOPs (two for each multiply-add of
convolutions and matrix products, as papers count), the memory that the compiler plans, and measured times: medians and 90 %
quantiles after a warm-up, without compiling. Prediction is also broken down by stage (`detzoo/costs/stages.py` says how).
Weights and images are drawn, so no data set is needed. The score threshold is 0, which gives the NMS the most work.

The second compiles the same programs for each topology (minutes; needs libtpu: pip install 'detzoo[tpu]') and prints the
memory and FLOPs of a chip, and the compiler's estimate of the time by stage. Nothing is run, and no parameters are made.
"""

import json
import os
import sys
import time

from absl import flags, logging

from detzoo.cli.config_flag import define_config
from detzoo.cli.paths import define_path

CONFIG = define_config()
NUM_CLASSES = flags.DEFINE_integer('num_classes', 80, 'The number of classes; no data set is opened.', lower_bound=1)
BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['1', '8'], 'Images at once of the measured predictions.')
REPEATS = flags.DEFINE_integer('repeats', 50, 'The largest number of timed runs of a program.', lower_bound=3)
BUDGET = flags.DEFINE_float(
    'budget',
    60,
    'Seconds for the timed runs of all predictions, and again for the training step; 3 runs are always made.',
)
TPU = flags.DEFINE_list('tpu', [], 'Topologies to compile for instead, for example v5e:2x4,v4:2x2x1.')
OUTPUT = define_path('output', None, 'A JSON file for the numbers, in bytes, FLOPs and seconds.')
ERRORS = (ImportError, ValueError)  # libtpu is not installed; a topology that does not exist

START = time.perf_counter()


def progress(message: str) -> None:
    """Prints to stderr, with the seconds since the start."""
    print(f'[{time.perf_counter() - START:5.0f} s] {message}', file=sys.stderr, flush=True)


def estimate(config, num_classes: int, topology: str):
    """Compiles for a topology: yields a row for the training step and for prediction."""
    from detzoo.sweeps import estimates

    for name in estimates.PROGRAMS:
        progress(f'{topology}, {name}: compiling')
        row = estimates.estimate(config, num_classes, topology, name)
        progress(f'{topology}, {name}: compiled in {row["compile_seconds"]:.0f} s')
        replicas = config.training.num_replicas if name == 'train step' else 1
        images = f'{replicas} x {row["images"]}' if replicas > 1 else row['images']
        yield row | {'program': f'{topology}, {name}, {images} images on {row["chips"]} chips'}


def print_estimate(row) -> None:
    from detzoo.costs.tpu import chip_of

    chip = chip_of(row['topology'])
    gigabytes = {key: row[f'{key}_bytes'] / 1e9 for key in ('argument', 'temporary', 'peak')}
    stages = ', '.join(f'{stage} {1e3 * seconds:.2f}' for stage, seconds in row['seconds'].items())
    print(f'{row["program"]} (compiled in {row["compile_seconds"]:.0f} s)')
    print(
        f'  HBM a chip, GB: {gigabytes["argument"]:.3f} arguments, {gigabytes["temporary"]:.3f} temporary, '
        f'{gigabytes["peak"]:.3f} peak of {chip.memory / 1e9:.1f}'
    )
    print(f'  a chip: {row["flops"] / 1e9:.1f} GFLOP, {row["bytes_accessed"] / 1e9:.2f} GB accessed')
    print(f"  compiler's estimate, ms at {chip.clock / 1e9:g} GHz: {1e3 * row['total_seconds']:.2f} = {stages}")
    print(f'    outside of backbone and neck: {100 * row["outside"]:.0f} %')
    print(f'    loops taken at their bound: {row["bounded_loops"]}, counted once: {row["loops_counted_once"]}')
    for stage, kinds in row['not_counted'].items():
        print(f'    without a figure: {stage}: {", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))}')
    print(
        f'    {100 * row["flops"] / row["total_seconds"] / chip.peak:.0f} % of the peak of {chip.peak / 1e12:.0f} TFLOP/s',
        flush=True,
    )


def measure(config, num_classes: int):
    """Compiles for this machine and runs: yields a row for each prediction and for the training step."""
    import jax
    import numpy as np

    from detzoo.costs import stages
    from detzoo.costs.counts import compiled_cost
    from detzoo.costs.latency import interleaved_latency
    from detzoo.costs.programs import random_batch, train_multiply_adds, train_program
    from detzoo.data.pipeline import shard
    from detzoo.inference.predictor import detector_of
    from detzoo.run import parallel
    from detzoo.training.finetune import initial_state
    from detzoo.training.replicas import stack

    progress('predict: compiling, stage by stage')
    prepared = stages.prepare(config, num_classes, tuple(map(int, BATCH_SIZES.value)))
    progress('predict: compiled')
    for row in stages.measure({'predict': prepared}, repeats=REPEATS.value, budget=BUDGET.value):
        yield {'program': f'predict, {row["batch"]} images', **row}

    devices, count, replicas = jax.local_devices(), config.training.batch_size, config.training.num_replicas
    name = f'train step, {count} images' + (f' x {replicas}' if replicas > 1 else '')
    progress(f'{name}: compiling')
    start = time.perf_counter()
    program = train_program(config, num_classes, devices).compile()
    compile_seconds = time.perf_counter() - start
    progress(f'{name}: compiled in {compile_seconds:.0f} s')
    cost = compiled_cost(program)._replace(flops=2.0 * train_multiply_adds(config, num_classes, devices))
    batch = shard(random_batch(config, config.data.canvases[0], count, num_classes), len(devices))
    batch = parallel.put(stack([batch] * replicas, axis=1))
    state = initial_state(config, detector_of(config, num_classes, parallel.AXIS))
    state = parallel.replicate(stack([state] * replicas))

    def train():
        nonlocal state
        state, metrics = program(state, batch)
        return metrics

    (seconds,) = interleaved_latency({'': train}, repeats=REPEATS.value, budget=BUDGET.value).values()
    p50, p90 = np.quantile(seconds, (0.5, 0.9)).tolist()
    times = {'compile_seconds': compile_seconds, 'p50_seconds': p50, 'p90_seconds': p90, 'runs': len(seconds)}
    yield {'program': name, **cost._asdict(), **times}


def print_measured(row) -> None:
    print(
        f'{row["program"]:<24}{row["flops"] / 1e9:>10.3f}{row["argument_bytes"] / 1e6:>11.1f}'
        f'{row["temporary_bytes"] / 1e6:>11.1f}{row["peak_bytes"] / 1e6:>10.1f}{row["compile_seconds"]:>11.1f}'
        f'{1e3 * row["p50_seconds"]:>10.1f}{1e3 * row["p90_seconds"]:>10.1f}{row["runs"]:>6}',
        flush=True,
    )
    for stage in row.get('stages', []):
        print(
            f'  {stage["stage"]:<22}{stage["flops"] / 1e9:>10.3f}{"":>22}{stage["peak_bytes"] / 1e6:>10.1f}{"":>11}'
            f'{1e3 * stage["p50_seconds"]:>10.1f}{"":>16}{stage["parameters"]:>14,} parameters',
            flush=True,
        )


def before_flags(argv: list[str]) -> None:
    """Sets the environment in which programs for TPUs are compiled, before the config imports JAX."""
    if any(argument.startswith(('--tpu', '-tpu')) for argument in argv):
        from detzoo.costs.tpu import TPU_ENVIRONMENT

        os.environ.update(TPU_ENVIRONMENT)


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    import jax

    from detzoo.config import check_whole, complete
    from detzoo.costs.counts import parameter_count
    from detzoo.costs.latency import device_name
    from detzoo.costs.programs import state_shapes
    from detzoo.files import absolute, as_path, check_writable, new_file
    from detzoo.inference.predictor import evaluation_canvases

    CONFIG.value.initialize_backbone = ''  # may be required, but no weights are read here
    config, num_classes = complete(CONFIG.value), NUM_CLASSES.value
    check_whole(config)
    if OUTPUT.value:
        check_writable(absolute(as_path(OUTPUT.value)).parent, 'give another --output')
    canvases = config.data.canvases[0], evaluation_canvases(config)[0]
    sizes = ' and '.join(f'{height}x{width}' for height, width in dict.fromkeys(canvases))
    parameters = parameter_count(state_shapes(config, num_classes).params)
    print(
        f'{config.model.name}, {parameters:,} parameters, {num_classes} classes, canvas {sizes}, JAX {jax.__version__}'
    )
    if TPU.value:
        rows = (row for topology in TPU.value for row in estimate(config, num_classes, topology))
        show = print_estimate
    else:
        print(f'{jax.local_device_count()} x {device_name()}; FLOPs and memory are of one device')
        print(
            f'{"program":<24}{"GFLOP":>10}{"args MB":>11}{"temp. MB":>11}{"peak MB":>10}{"compile s":>11}'
            f'{"p50 ms":>10}{"p90 ms":>10}{"runs":>6}'
        )
        rows, show = measure(config, num_classes), print_measured
    results = {'config': config.to_dict(), 'parameters': parameters, 'jax': jax.__version__, 'rows': []}
    for row in rows:
        show(row)
        results['rows'].append(row)
    if OUTPUT.value:
        with new_file(OUTPUT.value) as scratch:
            scratch.write_text(json.dumps(results, indent=1))
