"""TPUs that programs can be compiled for on a machine without any: kinds of chips, and their topologies (needs libtpu).

    TPU_ENVIRONMENT               -> into the environment, before jax is imported
    topology_devices('v5e:2x4')   -> devices to compile for

This module can be imported before the environment is set: it imports jax where it needs it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

# Environment variables for compiling for TPUs on a machine that has none; jax must be imported after they are set. libtpu then
# asks no metadata server, and several processes can load it at once (otherwise it leaves a lock file behind that stops the next
# one). JAX's own device is the CPU.
TPU_ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',  # the pretended host; programs may be compiled for other TPUs
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Chip(NamedTuple):
    """A kind of TPU chip, one device of JAX.

    clock: clock rate, Hz. It is not published: it is the published peak divided by the FLOPs of the matrix units per cycle.
    peak: FLOPs per second in bfloat16.
    memory: bytes of HBM.
    options: options for making its topologies. They make the two cores of a v4 one device of JAX, as they are on a real TPU.
    """

    clock: float
    peak: float
    memory: int
    options: dict[str, str] = {}


CHIPS = {
    'v4': Chip(1.05e9, 275e12, 32 * 2**30, {'chip_config_name': 'megacore'}),
    'v5e': Chip(1.5e9, 197e12, 16 * 2**30),
    'v6e': Chip(1.75e9, 918e12, 32 * 2**30),
}


def topology_devices(topology: str) -> Sequence[Any]:
    """Describes TPUs to compile for; they need not exist, and nothing can run on these descriptions.

    `TPU_ENVIRONMENT` must have been in the environment when jax was imported.

    Args:
        topology: as Google Cloud calls it, for example 'v5e:2x4', 'v4:2x2x1' or 'v6e:2x2'.

    Raises:
        ImportError: libtpu is not installed.
        ValueError: the kind of chip is unknown.
    """
    chip_of(topology)
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError("compiling for TPUs needs libtpu: pip install 'detzoo[tpu]' (Linux, 500 MB)") from error
    from jax.experimental import topologies

    options = chip_of(topology).options
    return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices


def chip_of(topology: str) -> Chip:
    """Looks up the chip of a topology; raises ValueError where it is not in CHIPS."""
    kind = topology.partition(':')[0]
    if kind not in CHIPS:
        raise ValueError(
            f'topology {topology!r} has an unknown chip: use one of {", ".join(CHIPS)}, for example v5e:2x4'
        )
    return CHIPS[kind]
