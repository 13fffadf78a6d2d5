"""What precedes the first step of a run.

settle            the keys that a config leaves to its data
training_images   what there is to learn from, and lines about it
announce          a line about the program
"""

import sys

import jax
import ml_collections
from tqdm.auto import tqdm

from detzoo.config import missing
from detzoo.data.catalog import open_split
from detzoo.data.classes import with_labelled
from detzoo.data.records import Dataset, with_objects
from detzoo.data.statistics import Annotations, read_annotations
from detzoo.files import AnyPath
from detzoo.run.checkpoint import TrainState
from detzoo.training.data_checks import summary, warnings
from detzoo.training.finetune import Learnt
from detzoo.training.from_data import fit_to_data, take_stored
from detzoo.training.replicas import split


def settle(
    config: ml_collections.ConfigDict, workdir: AnyPath, data: Dataset
) -> tuple[ml_collections.ConfigDict, list[tuple[ml_collections.ConfigDict, AnyPath]], Annotations | None]:
    """Fills in the keys that a config leaves to its data: from the workdir of a run that goes on, or from the annotations.

    Returns:
        the config; configs and workdirs of the replicas; and the annotations if they were read.
    """
    config = take_stored(config, split(config, workdir)[0][1])
    annotations = read_annotations(data) if missing(config) else None
    config = fit_to_data(config, annotations) if annotations else config
    return config, split(config, workdir), annotations


def training_images(
    config: ml_collections.ConfigDict, data: Dataset, validation: Dataset, annotations: Annotations | None
) -> Dataset:
    """Leaves out images without objects if `data.empty_images` is False, and prints what there is to learn from.

    Images of which only a label is known, if the config names some, come behind the others.

    Args:
        config: config of the program.
        data, validation: the splits.
        annotations: annotations of the training split, if they were read before the config was checked.
    """
    first, everything = jax.process_index() == 0, config.data.empty_images
    if annotations is None and (first or not everything):  # all records: only who needs them reads them
        annotations = read_annotations(data)
    kept = data if everything else with_objects(data, annotations.objects)
    if first:
        others = read_annotations(validation)
        lines = [f'{data.name} {line}' for line in summary(annotations, others)]
        lines += [f'WARNING: {line}' for line in warnings(config, annotations, others)]
        if kept is not data:
            lines.append(
                f'trains on {len(kept.records):,} of {len(data.records):,} images of split {data.split!r} of {data.name!r}: '
                'the others have no objects (data.empty_images)'
            )
        for line in lines:
            tqdm.write(line, file=sys.stderr)
    return with_labelled(kept, open_split(config.data, 'labelled')) if config.data.labelled_split else kept


def announce(config: ml_collections.ConfigDict, state: TrainState, start: int, learnt: Learnt) -> None:
    """Prints the detector, the devices, the steps, the canvases, and what the run starts from."""
    if jax.process_index() == 0:
        count = sum(x.size for x in jax.tree.leaves(state.params))
        canvases = ', '.join(f'{height}x{width}' for height, width in config.data.canvases)
        replicas = f'{config.training.num_replicas} replicas, ' if config.training.num_replicas > 1 else ''
        tqdm.write(
            f'{config.model.name}, {count:,} parameters, {replicas}on {jax.device_count()} x {jax.devices()[0].device_kind}: '
            f'steps {start} to {config.training.steps}; compiles once for each canvas: {canvases}',
            file=sys.stderr,
        )
        source = config.initialize_from or config.initialize_backbone
        if source and not start:
            anew = f'; these start anew: {", ".join(learnt.anew)}' if learnt.anew else ''
            changed = ''.join(f'; {key} was {old!r} there, is {new!r}' for key, (old, new) in learnt.changes.items())
            tqdm.write(f'starts from {source}{anew}{changed}', file=sys.stderr)
