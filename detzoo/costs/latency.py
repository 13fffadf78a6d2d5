"""Measured time of programs on the devices of this machine."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm


def interleaved_latency(
    steps: Mapping[Any, Callable[[], Any]], *, repeats: int, budget: float
) -> dict[Any, np.ndarray]:
    """Times functions that return arrays: each round runs every function once, to its end; a first round is not counted.

    Args:
        steps: {name: function to time}.
        repeats: largest number of rounds.
        budget: seconds after which no further round starts; at least 3 rounds are run.

    Returns:
        {name: [rounds] seconds}.
    """
    for step in tqdm(steps.values(), desc='warming up', unit='program', leave=False):
        jax.block_until_ready(step())
    times: dict[Any, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for done in tqdm(range(repeats), desc='timing', unit='round', leave=False):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def device_name() -> str:
    """Names JAX's first device; for a CPU, its model and number of cores."""
    name = jax.local_devices()[0].device_kind
    if name != 'cpu' or not os.path.exists('/proc/cpuinfo'):
        return name
    with open('/proc/cpuinfo') as file:
        models = [line.partition(':')[2].strip() for line in file if line.startswith('model name')]
    return f'cpu ({models[0] if models else "unknown model"}, {os.cpu_count()} cores)'
