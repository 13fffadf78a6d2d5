"""Times prediction and training step of four detectors, with torchvision's weights and arguments, on this machine's devices.

    python scripts/dev/benchmark_gpu.py --output=DIR [--compile_seconds=130] [--seconds=1.5] [--tiny] [--profile=REGEX]

The programs are those that `detzoo evaluate` and `detzoo train` run, for one device. They are compiled in threads, the most
important ones first, and timed afterwards. Rows go to DIR/results.jsonl, see gpu_cases.py.

With --profile=REGEX, DIR/profile.txt lists for the programs of these cases which kernels and which stages took the device's time.
"""

import argparse
import collections
import concurrent.futures
import functools
import glob
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from gpu_cases import OBJECTS, ROWS, Case, all_cases, described, draw_pictures, side_of, timed, write_row

from detzoo.config import complete
from detzoo.costs.counts import compiled_cost
from detzoo.costs.programs import predict_program, random_batch, state_shapes, train_program
from detzoo.costs.scopes import OTHER, stage_in
from detzoo.data.pipeline import shard
from detzoo.parity.torchvision import drawn_entries
from detzoo.run import parallel
from detzoo.types import Batch
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision import PEERS

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'fixtures'
PROFILED_STEPS = 3
LISTED_KERNELS = 25
GRACE = 25  # seconds for what is still being compiled when time is up: it would disturb the timing


def config_of(case: Case, side: int) -> tuple[ml_collections.ConfigDict, int]:
    """Makes the config of torchvision's model on a square canvas, and its number of classes."""
    model = dict(PEERS[case.model].model)
    num_classes = model.pop('num_classes')
    config = ml_collections.ConfigDict()
    config.data = dict(canvases=((side, side),), max_boxes=ROWS, mask_size=112 if 'mask' in case.model else 0)
    config.model = model | dict(dtype=case.dtype)
    config.training = dict(batch_size=case.batch)
    # So small a rate that the drawn weights do not change while they are timed.
    config.optimizer = dict(name='sgd', learning_rate=1e-9, schedule='constant', warmup_steps=0, momentum=0.9)
    config.evaluation = dict(batch_size=case.batch)
    return complete(config), num_classes


def make_batch(case: Case, config: ml_collections.ConfigDict, num_classes: int, side: int) -> Batch:
    """Draws the pictures of a case, with their ground truth in the first of `data.max_boxes` rows."""
    batch = random_batch(config, (side, side), case.batch, num_classes)
    pictures = draw_pictures(case.batch, side)
    gt = batch.gt._replace(valid=np.broadcast_to(np.arange(ROWS) < OBJECTS, (case.batch, ROWS)))
    gt.boxes[:, :OBJECTS], gt.labels[:, :OBJECTS] = pictures.boxes, pictures.labels
    if gt.masks is not None:
        gt.masks[:, :OBJECTS] = pictures.masks
    return batch._replace(inputs=batch.inputs._replace(images=pictures.images), gt=gt)


@functools.cache
def make_state(model: str, side: int) -> Any:
    """Makes the state of a model's training at step 0, with drawn weights, numpy."""
    config, num_classes = config_of(Case(model, 'train', 1, 'float32'), side)
    template = state_shapes(config, num_classes)
    shapes = json.loads(str(np.load(FIXTURES / f'{model}.npz')['shapes']))
    filled = fill(PEERS[model].mapping, drawn_entries(shapes), (template.params, template.model_state), source='')
    params, model_state = filled.variables
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    return zeros._replace(params=params, model_state=model_state)


def compile_case(case: Case, side: int) -> tuple[Any, float]:
    """Compiles the program of a case: (compiled, seconds)."""
    start = time.perf_counter()
    config, num_classes = config_of(case, side)
    program = train_program if case.program == 'train' else predict_program
    compiled = program(config, num_classes, jax.local_devices()[:1]).compile()
    return compiled, time.perf_counter() - start


def runner(case: Case, side: int, compiled: Any) -> Any:
    """Makes a function that runs a case once, and waits for it."""
    config, num_classes = config_of(case, side)
    batch = parallel.put(shard(make_batch(case, config, num_classes, side), 1))
    state = parallel.replicate(make_state(case.model, side))
    if case.program == 'predict':
        return lambda: jax.block_until_ready(compiled(state.params, state.model_state, batch))

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        if not jnp.isfinite(metrics['loss']).all():
            raise FloatingPointError(f'the loss is {metrics["loss"]}')

    return step


def profile(run: Any, output: pathlib.Path, title: str) -> None:
    """Lists where the device's time goes in a few runs, by stage and by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_STEPS):
                run()
        (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    stages: collections.Counter[str] = collections.Counter()
    kernels: collections.Counter[tuple[str, str]] = collections.Counter()
    for plane in data.planes:
        if not plane.name.startswith('/device:'):
            continue
        for line in plane.lines:
            if not line.name.startswith('Stream'):
                continue
            for event in line.events:
                stats = {key: str(value) for key, value in event.stats}
                scopes = stats.get('name') or stats.get('hlo_op', '')
                stage = stage_in(scopes) or OTHER
                milliseconds = event.duration_ns / 1e6 / PROFILED_STEPS
                stages[stage] += milliseconds
                kernels[stage, f'{event.name[:60]} | {scopes[-90:]}'] += milliseconds
    with (output / 'profile.txt').open('a') as file:
        print(f'== {title}: {sum(stages.values()):.1f} ms of kernels a run', file=file)
        for stage, milliseconds in stages.most_common():
            print(f'{milliseconds:9.2f} ms  {stage}', file=file)
        for (stage, kernel), milliseconds in kernels.most_common(LISTED_KERNELS):
            print(f'    {milliseconds:9.2f} ms  {stage:9} {kernel}', file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--output', type=pathlib.Path, required=True, help='folder of results.jsonl')
    parser.add_argument(
        '--cases', default='', help='regular expression of the names, like ssd300_vgg16-train-8-float32'
    )
    parser.add_argument('--compile_seconds', type=float, default=130, help='what is not compiled by then is left out')
    parser.add_argument('--seconds', type=float, default=1.5, help='time for the runs of each program')
    parser.add_argument('--threads', type=int, default=4, help='programs compiled at once')
    parser.add_argument('--tiny', action='store_true', help='a small image, to try the script')
    parser.add_argument('--profile', help='regular expression: list the kernels of these cases')
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    cases = [case for case in all_cases(args.tiny) if re.search(args.cases, case.name)]
    pool, begin = concurrent.futures.ThreadPoolExecutor(args.threads), time.perf_counter()
    jobs = {case: pool.submit(compile_case, case, side_of(case, args.tiny)) for case in cases}
    for model, side in {case.model: side_of(case, args.tiny) for case in cases}.items():
        make_state(model, side)  # meanwhile
    concurrent.futures.wait(jobs.values(), timeout=max(0, args.compile_seconds - (time.perf_counter() - begin)))
    pool.shutdown(wait=False, cancel_futures=True)
    concurrent.futures.wait([job for job in jobs.values() if job.running()], timeout=GRACE)
    count = sum(job.done() and not job.cancelled() for job in jobs.values())
    print(f'{count} programs in {time.perf_counter() - begin:.0f} s', flush=True)

    for case, job in jobs.items():
        try:
            compiled, seconds = job.result(timeout=0)
            run = runner(case, side_of(case, args.tiny), compiled)
            memory = compiled_cost(compiled).peak_bytes
            result = timed(run, args.seconds)
            busy = sum(job.running() for job in jobs.values())  # programs that are still compiled, which disturbs
            write_row(args.output, case, 'detzoo', **result, peak_bytes=memory, compile_seconds=seconds, busy=busy)
            if args.profile and re.search(args.profile, case.name):
                profile(run, args.output, case.name)
        except TimeoutError:
            write_row(args.output, case, 'detzoo', error=f'not compiled after {args.compile_seconds:.0f} s')
        except (Exception, concurrent.futures.CancelledError) as error:
            write_row(args.output, case, 'detzoo', error=described(error))
        del job
    sys.stdout.flush()
    os._exit(0)  # without waiting for what is still being compiled


if __name__ == '__main__':
    main()
