"""The costs of prediction of all groups of a sweep, measured on this machine or estimated for TPUs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from detzoo.costs.tpu import TPU_ENVIRONMENT
from detzoo.files import write_text
from detzoo.sweeps.launchers import process_environment
from detzoo.sweeps.store import Store


def measure_costs(store: Store, batch_sizes: Sequence[int] = (1, 8)) -> list[dict[str, Any]]:
    """Measures the costs of prediction of all groups in one pass, and writes costs.json.

    A group's first finished run is measured, with its trained weights. Nothing is measured if costs.json already has these
    groups at these batch sizes.

    Returns:
        the rows of `stages.measure`; 'name' is the group.

    Raises:
        FileNotFoundError: a run's workdir no longer exists.
        DataError: its data set cannot be used.
    """
    from detzoo.costs import stages
    from detzoo.inference.predictor import load

    groups = store.first_of_groups()
    wanted = {(group, size) for group in groups for size in batch_sizes}
    if {(row['name'], row['batch']) for row in store.costs()} != wanted:
        prepared = {
            group: stages.prepare_trained(load(store.workdir(result.run)), batch_sizes)
            for group, result in tqdm(groups.items(), desc='compiling for costs', unit='group', leave=False)
        }
        rows = stages.measure(prepared)
        write_text(store.folder / 'costs.json', json.dumps(rows, indent=1) + '\n')
    return store.costs()


def estimate_costs(store: Store, topology: str) -> None:
    """Estimates the costs of prediction on TPUs of all groups with a finished run, and writes estimates.json.

    Raises:
        ValueError: the process that estimates has failed; it has printed the reason.
    """
    command = [sys.executable, '-m', 'detzoo.sweeps.estimates', str(store.folder), topology]
    if subprocess.run(command, env=process_environment() | TPU_ENVIRONMENT, check=False).returncode:
        raise ValueError(f'no estimates for {topology}: see above')
