"""The machine that a benchmark runs on: what it is, and whether anything else keeps it busy."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from typing import Any, NamedTuple

IDLE = 0.1  # cores that other processes may keep busy on an idle machine
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'torchvision', 'onnxruntime', 'opencv-python-headless'),
    *('hotcoco', 'pycocotools'),
)
ROOT = pathlib.Path(__file__).parents[3]


class Clock(NamedTuple):
    """CPU seconds since the machine started.

    busy: of all processes on all cores.
    stolen: taken by the host of a virtual machine.
    """

    busy: float
    stolen: float


def read_clock() -> Clock:
    """Reads the kernel's account of CPU time."""
    with open('/proc/stat') as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    user, nice, system, _, _, irq, softirq, stolen = (tick / os.sysconf('SC_CLK_TCK') for tick in ticks)
    return Clock(user + nice + system + irq + softirq, stolen)


def busy_cores(seconds: float = 3) -> float:
    """Measures how many cores other processes keep busy, while this one sleeps."""
    before = read_clock()
    time.sleep(seconds)
    return (sum(read_clock()) - sum(before)) / seconds


def cores() -> int:
    """Counts the cores that this process may use: the number of threads of every program."""
    return len(os.sched_getaffinity(0))


def commit() -> str:
    """Names the commit of the checkout; a plus sign says that the package differs from it."""
    try:
        name = _git('rev-parse', '--short=10', 'HEAD')
        return name + ('+' if _git('status', '--porcelain', '--', 'detzoo') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def describe() -> dict[str, Any]:
    """Describes the machine and the software: what each run writes beside its figures."""
    from detzoo.costs.latency import device_name  # imports JAX, which a peer's process does without

    return {
        'date': datetime.date.today().isoformat(),
        'commit': commit(),
        'machine': device_name(),
        'memory_gb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9, 1),
        'system': f'{platform.system()} {platform.release()}',
        'threads': cores(),
        'load': round(os.getloadavg()[0], 2),
        'busy': round(busy_cores(), 2),
        'python': platform.python_version(),
        'versions': {name: version for name in PACKAGES if (version := _version(name))},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(['git', *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
