"""Functions mapped over devices, and how often they are compiled.

Nothing else calls `jax.pmap`. Replicated trees have a leading axis of local devices, as have the batches that
`data.pipeline.shard` splits.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from detzoo.errors import FirstProcessError, RecompilationError

AXIS = 'batch'  # the axis of devices: `axis_name` of every detector that is trained or evaluated


def parallel(
    function: Callable[..., Any], *, name: str, traces: int, donate_argnums: Sequence[int] = (), devices: Any = None
) -> Callable[..., Any]:
    """Maps a function over devices with `jax.pmap`, and limits how often it is traced.

    Args:
        function: function of one device's share; its collectives use the axis AXIS.
        name: its name in errors.
        traces: number of compilations to allow: one for each canvas.
        donate_argnums: positions of the arguments whose memory the results may take.
        devices: devices to map over; all by default.

    Returns:
        the mapped function. It raises RecompilationError, which names the shapes that changed, where it would be compiled once
        more.
    """
    seen: list[dict[str, str]] = []

    def counted(*args: Any) -> Any:
        leaves, _ = jax.tree_util.tree_flatten_with_path(args)
        shapes = {jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}' for path, x in leaves}
        if len(seen) == traces:
            changes = [
                f'{key} was {seen[-1].get(key)}, is {shape}'
                for key, shape in shapes.items()
                if shape != seen[-1].get(key)
            ]
            raise RecompilationError(
                f'{name} is compiled once for each canvas ({traces} here), and would now be compiled once more: '
                + ('; '.join(changes) or 'no shape changed, but a type, a placement or the structure did')
            )
        seen.append(shapes)
        return function(*args)

    return jax.pmap(counted, axis_name=AXIS, donate_argnums=donate_argnums, devices=devices)


def keep_compilations() -> None:
    """Keeps compiled programs on disk, so that a run that goes on starts in seconds.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else ~/.cache/detzoo.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/detzoo'))


def options_to_run_once() -> dict[str, int]:
    """Makes compiler options for a program that runs once: XLA's optimisation would take longer than it saves.

    A level in XLA_FLAGS is left as it is, and so are accelerators.
    """
    if jax.default_backend() != 'cpu' or 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', ''):
        return {}
    return {'xla_backend_optimization_level': 1}


def from_first_process(compute: Callable[[], int | None]) -> int:
    """Computes a number on the first process, and returns it on all; all processes have to call this.

    Args:
        compute: returns the number, or None for 0.

    Raises:
        Exception: on the first process, what `compute` raised.
        FirstProcessError: on the others, where it raised: no process waits for one that has ended.
    """
    value, error = 0, None
    if jax.process_index() == 0:
        try:
            value = compute() or 0
        except Exception as raised:
            error = raised
    if jax.process_count() > 1:
        failed, value = multihost_utils.broadcast_one_to_all(np.int32([error is not None, value])).tolist()
        if failed and error is None:
            raise FirstProcessError('the first process of the run ended with an error: see its output')
    if error is not None:
        raise error
    return value


class LargestNumber:
    """The largest of the numbers that the processes of a run have, known to all of them at the same call.

    With several processes it is that of the numbers of the call before. The devices find it behind the work that they were
    given before, and the processes do not wait for it: a call costs one small all-reduce, and nothing with one process.
    """

    def __init__(self) -> None:
        self._find = jax.pmap(lambda number: jax.lax.pmax(number, AXIS), axis_name=AXIS)
        self._before: Any = None

    def __call__(self, number: int) -> int:
        """Returns the largest number; all processes have to call this equally often."""
        if jax.process_count() == 1:
            return number
        before, self._before = self._before, self._find(np.full(jax.local_device_count(), number, np.int32))
        return 0 if before is None else int(first_replica(before))


def put(batch: Any) -> Any:
    """Sends a tree with a leading axis of local devices to these devices; returns at once, so that computation goes on."""
    devices = np.array(jax.local_devices())
    if jax.process_count() > 1:  # pmap builds the global array itself
        return batch
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, (AXIS,)), jax.sharding.PartitionSpec(AXIS))
    return jax.device_put(batch, sharding)


def replicate(tree: Any) -> Any:
    """Copies a tree to each local device, with a leading axis of devices."""
    count = jax.local_device_count()
    return put(jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *np.shape(x))), tree))


def first_replica(tree: Any) -> Any:
    """Copies the first local device's part of a mapped tree to the host, as numpy arrays.

    It reads the device's own buffer; indexing a mapped array would gather it from all devices.
    """
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)
