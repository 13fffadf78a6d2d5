"""From the start of a process to the first training step.

detzoo: `python scripts/train.py --config=retinanet_shapes`, until metrics.jsonl has its first line: imports, data, compilation,
two steps (a step is logged while the next one runs). Cold: with an empty folder of compiled programs; warm: with the folder that
an earlier run has filled. Torch: `torch_start`, in eager mode, which compiles nothing, until it prints that its step is done.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from peers.machine import ROOT
from peers.turns import OURS, Case, Program, Side

SECONDS = 600  # after which a run that has made no step has failed


def cases() -> list[Case]:
    """Lists the cases of the section startup."""
    theirs = Side('peers.startup:torch', {}, (), 'torch')
    return [
        Case(
            'startup',
            f'first step of retinanet_shapes, {name}',
            {OURS: Side('peers.startup:detzoo', {'warm': name == 'warm'}, (), OURS), 'torch': theirs},
            lambda results: {},
            rounds=2 if name == 'cold' else 3,
            expected=120 if name == 'cold' else 60,
        )
        for name in ('cold', 'warm')
    ]


def detzoo(warm: bool) -> Program:
    """Prepares starts of `detzoo train`."""
    compiled = tempfile.TemporaryDirectory()
    command = [sys.executable, str(ROOT / 'scripts' / 'train.py'), '--config=retinanet_shapes']
    command += [f'--config.training.{key}' for key in ('steps=1000', 'checkpoint_every=1000', 'evaluate_every=0')]

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = compiled.name if warm else f'{folder}/compiled'
            metrics = pathlib.Path(folder) / 'run' / 'metrics.jsonl'
            process = start([*command, f'--workdir={folder}/run'], {'JAX_COMPILATION_CACHE_DIR': cache})
            begin = time.perf_counter()
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - begin > SECONDS:
                    end(process)
                    raise RuntimeError(f'{" ".join(command)} made no step: run it by hand')
                time.sleep(0.01)
            end(process)

    return Program(step)


def torch() -> Program:
    """Prepares starts of torch."""
    command = [sys.executable, '-c', 'from peers.torch_start import first_step; first_step()']

    def step() -> None:
        process = start(command, {'PYTHONPATH': os.pathsep.join(sys.path)})
        line = process.stdout.readline()
        end(process)
        if not line.startswith('step 1'):
            raise RuntimeError(f'{" ".join(command)} made no step: run it by hand in scripts/dev')

    return Program(step)


def start(command: list[str], environment: Mapping[str, str]) -> Any:
    """Starts a process; only its output is read."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=quiet, text=True)


def end(process: Any) -> None:
    """Ends a process; its CPU seconds are then counted as ours."""
    process.kill()
    process.communicate()
