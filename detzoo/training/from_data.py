"""The keys that a config leaves to its data: `None` in `data.canvases`, `data.max_boxes`, anchor sizes and `training.steps`.

    take_stored(config, workdir)   a run that goes on keeps the values that it began with
    fit_to_data(config, ...)       the others, from the annotations of the training split
    suggest(config, ...)           what would suit the data, also where a config says otherwise

A config without None comes back as it is.

canvas         objects are at least SMALL pixels on it, except for the smallest tenth
max_boxes      the most boxes of an image, times the images that an augmented sample shows, rounded up to a multiple of ROWS
anchor sizes   where shapes are given apart (`aspect_ratios`), sizes that double from level to level and begin where a
               twentieth of objects is smaller; else k-means of widths and heights (YOLO9000, 1612.08242, section 2)
steps          EPOCHS times over the images
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from detzoo.config import FROM_DATA, detector_defaults, flatten, missing, read_config
from detzoo.core.anchors import kmeans_anchors
from detzoo.data.compose import images_of_sample
from detzoo.data.statistics import Annotations, sizes_on_canvas
from detzoo.errors import DataError
from detzoo.files import AnyPath
from detzoo.inference.predictor import detector_of, evaluation_canvases
from detzoo.run.workdir import has_checkpoints
from detzoo.training.checks import check_canvases

SMALL = 20.0  # pixels on the canvas, the square root of an area
LONGER_SIDE = 640  # pixels, of the largest canvas
USUAL_SIDE = 256  # pixels; images that have them are not shrunk further
ENLARGED = 2.0  # largest factor by which images are enlarged
DIVISOR = 32  # of the sides of canvases
ROWS = 8
EPOCHS, STEPS = 40, (1000, 20000)  # the smallest and the largest number of steps


def take_stored(config: ml_collections.ConfigDict, workdir: AnyPath) -> ml_collections.ConfigDict:
    """Fills in missing keys with those of the run in a workdir, if it has checkpoints."""
    keys = missing(config)
    if not keys or not has_checkpoints(workdir) or not (workdir / 'config.json').exists():
        return config
    stored = dict(flatten(read_config(workdir / 'config.json')))
    return replaced(config, {key: stored[key] for key in keys if key in stored})


def fit_to_data(config: ml_collections.ConfigDict, annotations: Annotations) -> ml_collections.ConfigDict:
    """Fills in missing keys from the annotations of the training split.

    Args:
        config: config with every key.
        annotations: annotations of the split.

    Returns:
        a config without missing keys; the same one if none is missing.

    Raises:
        DataError: there are no objects to take a key from, or fewer than anchors.
    """
    return fill(config, missing(config), annotations, detector_defaults(config.model.name))


def suggest(config: ml_collections.ConfigDict, annotations: Annotations) -> ml_collections.ConfigDict:
    """Takes from the data what suits them, also where a config says otherwise.

    Anchors keep their form and their number, and their sizes where learnt weights go with them. Canvases for evaluation alone
    go with crops in training, and stay with those.

    Args:
        config: config without missing keys.
        annotations: annotations of the training split, with objects.

    Returns:
        a config whose canvas, max_boxes and anchors suit the data. The canvas stays if the detector does not fit another one, and
        all stays if there are too few objects to cluster.
    """
    leaves = dict(flatten(config))
    kept = {'training.steps'}
    kept |= {'data.canvases'} if config.evaluation.canvases else set()
    kept |= {'model.anchor_sizes', 'model.rpn.anchor_sizes'} if config.initialize_from else set()
    keys = [key for key in FROM_DATA if key in leaves and key not in kept]
    for tried in (keys, [key for key in keys if key != 'data.canvases']):
        try:
            suggested = fill(config, tried, annotations, leaves)
            check_canvases(suggested, detector_of(suggested, len(annotations.class_names)))
            return suggested
        except ValueError:
            continue
    return config


def fill(
    config: ml_collections.ConfigDict, keys: Sequence[str], annotations: Annotations, forms: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Computes keys from annotations.

    Args:
        config: config of the run.
        keys: keys to compute, in the order of FROM_DATA: anchors need canvases.
        annotations: annotations of the training split.
        forms: {key: anchors whose form and number are taken over}.

    Raises:
        DataError: see `fit_to_data`.
    """
    if keys and not annotations.objects.any():
        raise DataError(
            f'there are no objects in the training split to take {", ".join(keys)} from: set them, or look at the annotations'
        )
    for key in keys:
        config = replaced(config, {key: value_of(key, config, annotations, forms)})
    return config


def replaced(config: ml_collections.ConfigDict, values: dict[str, Any]) -> ml_collections.ConfigDict:
    """Copies a config with other values of some dotted keys."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(values)
    return changed


def value_of(key: str, config: ml_collections.ConfigDict, annotations: Annotations, forms: Mapping[str, Any]) -> Any:
    """Computes the value of a key from annotations; see `fill`."""
    if key == 'data.canvases':
        return (fit_canvas(annotations, turned=config.data.recipe.rotate90),)
    if key == 'data.max_boxes':
        most = annotations.rows.max() * images_of_sample(config.data.recipe)
        return math.ceil(most / ROWS) * ROWS
    if key == 'training.steps':
        epochs = EPOCHS * len(annotations.sizes) / config.training.batch_size
        return int(np.clip(100 * math.ceil(epochs / 100), *STEPS))
    group = key.rpartition('.')[0]
    sizes = sizes_on_canvas(annotations, evaluation_canvases(config), config.data.recipe)[~annotations.crowd]
    leaves = dict(flatten(config))
    return fit_anchors(sizes, forms[key], leaves.get(f'{group}.aspect_ratios'))


def fit_canvas(annotations: Annotations, *, turned: bool = False) -> tuple[int, int]:
    """Chooses the canvas of a data set.

    Images keep their aspect ratio, of which the canvas has the median, or is square where that suits more images. Its longer
    side makes all but the smallest tenth of objects at least SMALL pixels large, within limits.

    Args:
        annotations: annotations of the training split, with objects.
        turned: whether training turns images by quarters.

    Returns:
        (H, W), multiples of DIVISOR.
    """
    longer = annotations.sizes.max(axis=1)
    objects = ~annotations.crowd
    shares = np.sqrt(annotations.boxes[objects, 2:].prod(axis=1)) / longer[annotations.image[objects]]
    usual = float(np.median(longer))
    low, high = min(USUAL_SIDE, usual), min(ENLARGED * usual, LONGER_SIDE)
    side = float(np.clip(SMALL / np.quantile(shares, 0.1), low, high))

    ratios = annotations.sizes[:, 0] / annotations.sizes[:, 1]  # height / width
    ratios = np.concatenate([ratios, 1 / ratios]) if turned else ratios

    def filled(ratio: float) -> float:
        """The share of the canvas that an image fills, of the tenth of images that fill least."""
        return float(np.quantile(np.minimum(ratios / ratio, ratio / ratios), 0.1))

    ratio = max(float(np.exp(np.median(np.log(ratios)))), 1.0, key=filled)
    height, width = side * min(1.0, ratio), side * min(1.0, 1 / ratio)
    return tuple(max(1, math.ceil(round(length, 3) / DIVISOR)) * DIVISOR for length in (height, width))


def fit_anchors(sizes: np.ndarray, default: Sequence[Any], aspect_ratios: Sequence[Any] | None) -> tuple[Any, ...]:
    """Chooses anchors for the sizes of objects, in the form in which a detector takes them.

    Args:
        sizes: [N, 2] width and height, canvas pixels.
        default: anchors of the same form: numbers, one more than levels; or for each level numbers; or pairs of width and height,
            for each level or for one. It gives the form and the number of anchors.
        aspect_ratios: the shapes of anchors, for each level if numbers of levels are asked for; None for anchors that have
            a width and a height.

    Returns:
        anchors, the smallest first, rounded to a tenth of a pixel.

    Raises:
        DataError: there are fewer objects than anchors to cluster.
    """
    if aspect_ratios is None:
        return cluster(sizes, default)
    areas = np.sqrt(sizes.prod(axis=1))
    smallest, largest = np.quantile(areas, (0.05, 0.95)).tolist()
    if not isinstance(default[0], Sequence):
        return doubling(smallest, largest, len(aspect_ratios) + 1)
    levels, count = len(default), len(default[0])
    return in_levels(doubling(smallest, largest, levels * count, count), levels)


def doubling(smallest: float, largest: float, count: int, per_level: int = 1) -> tuple[float, ...]:
    """Makes sizes that double from level to level, as strides do.

    Args:
        smallest, largest: sizes to cover, pixels. Where they are too far apart, those in their middle are covered.
        count: number of sizes.
        per_level: number of sizes of a level.
    """
    ratio = 2 ** (1 / per_level)
    start = max(smallest, math.sqrt(smallest * largest) / ratio ** ((count - 1) / 2))
    return tuple(round(start * ratio**k, 1) for k in range(count))


def cluster(sizes: np.ndarray, default: Sequence[Any]) -> tuple[Any, ...]:
    """Clusters widths and heights into as many anchors as a default has, on as many levels."""
    levels = len(default) if isinstance(default[0][0], Sequence) else 1
    count = len(default[0]) if levels > 1 else len(default)
    if levels * count > len(sizes):
        raise DataError(f'{levels * count} anchors cannot be found from {len(sizes)} objects: set model.anchor_sizes')
    anchors, _ = kmeans_anchors(sizes, levels * count)
    flat = tuple(tuple(round(side, 1) for side in anchor) for anchor in anchors.tolist())
    return flat if levels == 1 else in_levels(flat, levels)


def in_levels(flat: tuple[Any, ...], levels: int) -> tuple[tuple[Any, ...], ...]:
    """Cuts anchors into levels of equally many."""
    count = len(flat) // levels
    return tuple(flat[level * count : (level + 1) * count] for level in range(levels))
