"""Records the memory of a long training, with evaluations and checkpoints all along, and says whether it grows.

    PYTHONPATH=tests python scripts/dev/memory_run.py --workdir=/tmp/memory

`scripts/train.py` trains a tiny YOLO on the tests' toy data. Every second its resident memory goes into memory.jsonl of the
workdir, with the step. The growth is from the median of the second tenth of the steps to that of the last tenth; beyond --most
the exit code is 1.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

from faults import Trainer, make_training
from tiny import TINY_YOLO_V1
from toy import prepare_toy, toy_config
from tqdm import tqdm


def resident(pid: int) -> int:
    """Returns the resident memory of a process, bytes."""
    return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def last_step(path: pathlib.Path) -> int:
    """Returns the step of the last whole line of metrics.jsonl; 0 if there is none."""
    if not path.exists():
        return 0
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b'\n')[:-1]
    return json.loads(lines[-1])['step'] if lines else 0


def record(trainer: Trainer, metrics: pathlib.Path, file: pathlib.Path, steps: int) -> list[tuple[int, int]]:
    """Samples (step, bytes) each second until a training ends, into a list and a file."""
    samples, (process,) = [], trainer.processes
    with file.open('a') as lines, tqdm(total=steps, unit='step') as bar:
        while trainer.running():
            time.sleep(1.0)
            step = last_step(metrics)
            bar.update(step - bar.n)
            if step and trainer.running():
                samples.append((step, resident(process.pid)))
                lines.write(json.dumps(dict(step=step, bytes=samples[-1][1])) + '\n')
                lines.flush()
    trainer.end([0])
    return samples


def tenths(samples: list[tuple[int, int]], steps: int) -> list[float]:
    """Returns the median memory in each tenth of the steps, MB."""
    return [
        statistics.median(size for step, size in samples if step * 10 // (steps + 1) == tenth) / 1e6
        for tenth in range(10)
    ]


def main() -> None:
    """Trains and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='a new folder')
    parser.add_argument('--steps', type=int, default=20_000)
    parser.add_argument('--checkpoint_every', type=int, default=200)
    parser.add_argument('--evaluate_every', type=int, default=400)
    parser.add_argument('--most', type=float, default=0.02, help='growth that is allowed')
    arguments = parser.parse_args()
    workdir, steps = arguments.workdir.resolve(), arguments.steps
    (workdir / 'data').mkdir(parents=True)
    config = toy_config(
        prepare_toy(workdir / 'data'),
        TINY_YOLO_V1,
        optimizer__learning_rate=5e-4,
        training__steps=steps,
        training__batch_size=2,
        training__checkpoint_every=arguments.checkpoint_every,
        training__evaluate_every=arguments.evaluate_every,
        evaluation__batch_size=2,
    )
    trainer = Trainer(make_training(config, workdir / 'config.py', workdir / 'run'), workdir / 'run')
    samples = record(trainer, workdir / 'run' / 'metrics.jsonl', workdir / 'memory.jsonl', steps)
    medians = tenths(samples, steps)
    growth = medians[-1] / medians[1] - 1
    print(f'resident memory in each tenth of {steps:,} steps, MB: {", ".join(f"{size:.0f}" for size in medians)}')
    print(f'{steps // arguments.evaluate_every} evaluations; growth after the first tenth: {growth:+.1%}')
    sys.exit(growth > arguments.most)


if __name__ == '__main__':
    main()
