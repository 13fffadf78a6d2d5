"""The costs of programs on TPUs, as the TPU compiler estimates them; no TPU is needed, and nothing is measured.

    config, topology -> the compiled training step or prediction (see `costs.programs`) -> `estimate`: a row
    python -m detzoo.sweeps.estimates DIR TOPOLOGY: prediction of all groups of a sweep -> DIR/estimates.json

`costs.tpu.TPU_ENVIRONMENT` must be in the environment before jax is imported. A sweep therefore starts this as a process of its
own: its trainings inherit the environment of the sweep.
"""

import json
import sys
import time
from typing import Any

import ml_collections
from tqdm.auto import tqdm

from detzoo.config import from_json
from detzoo.costs.counts import compiled_cost
from detzoo.costs.programs import predict_program, train_program
from detzoo.costs.tpu import topology_devices
from detzoo.costs.tpu_time import estimated_time
from detzoo.files import write_text
from detzoo.sweeps.store import Store

PROGRAMS = {
    'train step': (train_program, 'training'),
    'predict': (predict_program, 'evaluation'),
}


def estimate(config: ml_collections.ConfigDict, num_classes: int, topology: str, program: str) -> dict[str, Any]:
    """Compiles a program of a config for a topology; takes minutes.

    Args:
        config: complete config.
        num_classes: K.
        topology: for example 'v5e:2x4'.
        program: a key of PROGRAMS. The config's batch size is that of all chips together.

    Returns:
        'topology', 'program', 'images' (of all chips), 'chips', 'compile_seconds', the numbers of `counts.Cost` and
        `tpu_time.Estimate`, and 'total_seconds' and 'outside' of the estimate.

    Raises:
        ImportError: libtpu is not installed.
        ValueError: the batch cannot be split over the chips, or the kind of chip is unknown.
    """
    devices = topology_devices(topology)
    lower, section = PROGRAMS[program]
    start = time.perf_counter()
    compiled = lower(config, num_classes, devices).compile()
    seconds = time.perf_counter() - start
    estimated = estimated_time(compiled, topology)
    return dict(
        topology=topology,
        program=program,
        images=config[section].batch_size,
        chips=len(devices),
        compile_seconds=seconds,
        **compiled_cost(compiled)._asdict(),
        **estimated._asdict(),
        total_seconds=estimated.total,
        outside=estimated.outside,
    )


def main(folder: str, topology: str) -> None:
    """Estimates prediction, with one image per chip, for all groups of a sweep without an estimate for the topology."""
    store = Store(folder)
    chips = len(topology_devices(topology))
    for name, result in tqdm(store.first_of_groups().items(), desc=f'compiling for {topology}', unit='group'):
        rows = store.estimates()
        if any((row['name'], row['topology']) == (name, topology) for row in rows):
            continue
        config = from_json(json.dumps(result.config))
        config.evaluation.batch_size = chips
        rows.append({'name': name, **estimate(config, len(result.per_class), topology, 'predict')})
        write_text(store.folder / 'estimates.json', json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except (ImportError, ValueError) as error:
        sys.exit(f'error: {error}')
