"""A progress bar with the speed of a run, and a profile of a few steps."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from tqdm.auto import tqdm

from detzoo.files import AnyPath
from detzoo.run.storage import Mirror


class Progress:
    """A progress bar with loss, images/s, the share of time spent waiting for input, and memory."""

    def __init__(self, config: ml_collections.ConfigDict, start: int):
        """Starts the bar of a run at the step from which it goes on."""
        self._batch_size = config.training.batch_size
        quiet = jax.process_index() > 0
        interval = 0.5 if sys.stderr.isatty() else 10
        self._bar = tqdm(
            total=config.training.steps, initial=start, desc='train', unit='step', disable=quiet, mininterval=interval
        )
        self._since, self._step, self._waited, self._idle = time.perf_counter(), start, 0.0, 0.0

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def waiting(self) -> '_Stopwatch':
        """Measures the time spent waiting for input in a `with` block."""
        return _Stopwatch(lambda seconds: setattr(self, '_waited', self._waited + seconds))

    def paused(self) -> '_Stopwatch':
        """Leaves the time of a `with` block out of the speed."""
        return _Stopwatch(lambda seconds: setattr(self, '_idle', self._idle + seconds))

    def update(self, step: int, metrics: dict[str, float], window: int = 20) -> dict[str, float]:
        """Moves the bar to a step; every `window` steps, returns the speed since the last time, else an empty dict."""
        self._bar.update(step - self._bar.n)
        if step - self._step < window:
            return {}
        seconds = time.perf_counter() - self._since - self._idle
        speed = dict(
            images_per_second=(step - self._step) * self._batch_size / seconds,
            input_wait=self._waited / seconds,
            memory_gb=memory_in_use() / 1e9,
        )
        self._bar.set_postfix_str(
            f'loss {metrics["loss"]:.3f}, {speed["images_per_second"]:.0f} images/s, waits {speed["input_wait"]:.0%}, '
            f'{speed["memory_gb"]:.1f} GB',
            refresh=False,
        )
        self._since, self._step, self._waited, self._idle = time.perf_counter(), step, 0.0, 0.0
        return {f'speed/{name}': value for name, value in speed.items()}


class _Stopwatch:
    """Reports the seconds spent in a `with` block to a function."""

    def __init__(self, report: Callable[[float], None]):
        self._report = report

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._report(time.perf_counter() - self._start)


def memory_in_use() -> float:
    """Returns the peak memory of the first device in bytes, or that of this process where the device does not report it."""
    stats = jax.local_devices()[0].memory_stats()
    return stats['peak_bytes_in_use'] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Profiler:
    """Records a few steps with JAX's profiler, after those that compile."""

    def __init__(self, workdir: AnyPath, start: int, steps: int):
        """Plans the recording.

        Args:
            workdir: folder of the run; the profile goes into its TensorBoard.
            start: step from which the run goes on.
            steps: number of steps to record.
        """
        self._folder, self._first, self._last = workdir / 'tensorboard', start + 4, start + 3 + steps
        self._steps, self._running = steps, False

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def at(self, step: int) -> None:
        """Starts or stops the recording; call it before each step."""
        if self._steps and step == self._first:
            self._mirror = Mirror(self._folder)
            jax.profiler.start_trace(str(self._mirror.path))
            self._running = True
        if step > self._last:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._mirror.store()
            self._mirror.close()
            self._running = False
