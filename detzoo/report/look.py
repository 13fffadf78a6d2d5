"""What `data_page` shows: both splits with their annotations, the config, and how its anchors fit."""

from typing import NamedTuple

import ml_collections
import numpy as np

from detzoo.config import complete, differences, missing
from detzoo.data.catalog import open_split
from detzoo.data.records import Dataset, with_objects
from detzoo.data.statistics import Annotations, read_annotations
from detzoo.training.anchor_fit import AnchorFit, fit_of_anchors
from detzoo.training.from_data import fit_to_data, suggest

MATCHED = 100  # images whose objects are matched to anchors


class Split(NamedTuple):
    """A split, and its annotations."""

    dataset: Dataset
    annotations: Annotations


class Look(NamedTuple):
    """A look at data through a config.

    config: the config, without missing keys.
    taken: its keys that were taken from the data.
    suggested: a config that suits the data better, see `from_data.suggest`.
    train, validation: the splits; of training, the images that are trained on.
    fits: {stage: AnchorFit} of the images `matched`.
    suggested_fits: the same with the suggested config; empty where it is the same config.
    matched: indices of images of the training split.
    """

    config: ml_collections.ConfigDict
    taken: list[str]
    suggested: ml_collections.ConfigDict
    train: Split
    validation: Split
    fits: dict[str, AnchorFit]
    suggested_fits: dict[str, AnchorFit]
    matched: list[int]


def look_at(config: ml_collections.ConfigDict) -> Look:
    """Reads both splits of a config's data, and matches its anchors to the objects of some training images.

    Args:
        config: a config; its missing keys are taken from the data.

    Raises:
        ConfigError, DataError: the config or the data cannot be used.
    """
    config = complete(config)
    splits = [open_split(config.data, split) for split in ('train', 'validation')]
    train, validation = (Split(dataset, read_annotations(dataset)) for dataset in splits)
    taken, config = missing(config), fit_to_data(config, train.annotations)
    if not config.data.empty_images:
        objects = train.annotations.objects
        train = Split(with_objects(train.dataset, objects), train.annotations.take(np.flatnonzero(objects)))
    images = np.flatnonzero(train.annotations.objects)
    matched = (
        images[np.unique(np.linspace(0, len(images) - 1, MATCHED).round().astype(int))].tolist() if len(images) else []
    )
    rows = int(train.annotations.rows.max(initial=1))
    suggested = suggest(config, train.annotations) if matched else config
    fits, suggested_fits = (
        fit_of_anchors(each, train.dataset, matched, rows) if matched and differs else {}
        for each, differs in ((config, True), (suggested, bool(differences(config, suggested))))
    )
    return Look(config, taken, suggested, train, validation, fits, suggested_fits, matched)
