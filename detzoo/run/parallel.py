"""The one place that maps functions over devices, and that counts what is compiled for them.

Replicated trees have a leading axis of local devices, as have the batches that `data.pipeline.shard` splits.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from detzoo.errors import FirstProcessError, RecompilationError

AXIS = 'batch'  # the mapped axis: `axis_name` of every detector that is trained or evaluated here


def parallel(
    function: Callable[..., Any], *, name: str, traces: int, donate_argnums: Sequence[int] = (), devices: Any = None
) -> Callable[..., Any]:
    """Maps a function over all devices with `jax.pmap`, and lets it be traced a given number of times.

    Args:
        function: of one device's share; collectives use the axis AXIS.
        name: how to call it in errors.
        traces: how many compilations are expected, one for each canvas.
        donate_argnums: arguments whose memory the results may take.
        devices: what to map over, all by default.

    Returns:
        the mapped function. One trace more raises RecompilationError, which says which shape changed.
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
                f'{name} would be compiled a {traces + 1}. time, though {traces} canvas(es) were announced: '
                + ('; '.join(changes) or 'no shape changed, but a type, a placement or the structure did')
            )
        seen.append(shapes)
        return function(*args)

    return jax.pmap(counted, axis_name=AXIS, donate_argnums=donate_argnums, devices=devices)


def keep_compilations() -> None:
    """Keeps compiled programs on disk from process to process: a run that goes on starts in seconds.

    They lie in JAX_COMPILATION_CACHE_DIR where that is set, else in ~/.cache/detzoo.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/detzoo'))


def from_first_process(compute: Callable[[], int | None]) -> int:
    """Computes a number on the first process alone, and gives it to all, which call this together; 0 for None.

    Raises:
        FirstProcessError: it failed, and this is another process: no process waits for one that has ended.
        Exception: what it raised, on the first process.
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
            raise FirstProcessError('the first process of the run ended with an error, see what it wrote')
    if error is not None:
        raise error
    return value


def put(batch: Any) -> Any:
    """Sends a tree with leading axis of local devices to them; returns at once, so that it overlaps with computation."""
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
    """Copies the first local device's part of a mapped tree to the host, as numpy.

    Reads the device's own buffer: indexing a mapped array instead would gather it from all devices.
    """
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)
