"""What a run says about its data before the first step: how much there is, and, loudly, what it would lose.

summary    the counts of both splits, a line each
warnings   objects that training drops, classes that it never sees, objects without masks,
           crowds alone, the same images in both splits
"""

import ml_collections
import numpy as np

from detzoo.data.statistics import Annotations, count, count_dropped, duplicates, sizes_on_canvas
from detzoo.errors import listed
from detzoo.inference.predictor import evaluation_canvases

NAMED = 5  # classes that a warning names
TINY = 4.0  # pixels on the canvas, the square root of an area
MANY = 0.1  # share of tiny objects from which they are worth a warning


def summary(train: Annotations, validation: Annotations) -> list[str]:
    """Counts the images, objects and crowds of both splits."""
    lines = []
    for name, annotations in (('train', train), ('validation', validation)):
        counts = count(annotations)
        seen = np.count_nonzero(counts.of_class)
        lines.append(
            f'{name}: {counts.images:,} images ({counts.empty:,} without objects), {counts.objects:,} objects of '
            f'{seen} of {len(annotations.class_names)} classes, at most {annotations.rows.max(initial=0)} in an image, '
            f'{counts.crowds:,} crowds'
        )
    return lines


def warnings(config: ml_collections.ConfigDict, train: Annotations, validation: Annotations) -> list[str]:
    """Lists what training on a split would lose, each with its remedy.

    Args:
        config: config of the run, without missing keys.
        train, validation: annotations of the two splits.

    Returns:
        sentences; none where nothing is lost.
    """
    found = [*dropped(config, train), *tiny(config, train)]
    if not config.data.labelled_split:  # which may have the labels that have no boxes
        found += unseen(train, validation)
    counts = count(train)
    lacking = ~train.has_mask & ~train.crowd
    if config.data.mask_size and lacking.any():
        found.append(
            f'{lacking.sum():,} of {counts.objects:,} training objects have no mask, and training ends at the first of them: '
            'prepare masks of all objects, or take a detector without masks'
        )
    if counts.crowds and not counts.objects:
        found.append(
            f'all {counts.crowds:,} boxes of the training split are crowds, so nothing is ever positive: see `iscrowd` in the '
            'annotations (an export of masks as RLE often sets it) and prepare them again'
        )
    elif not counts.objects:
        found.append('the training split has no objects: prepare annotations that have some')
    if shared := {second for _, second in duplicates(train, validation)}:
        found.append(
            f'{len(shared):,} of {len(validation.sizes):,} validation images are in the training split too, to the byte: '
            'what is measured on them is not what new images would give'
        )
    return found


def dropped(config: ml_collections.ConfigDict, train: Annotations) -> list[str]:
    """Tells what finds no row in `data.max_boxes`."""
    lost = count_dropped(train, config.data.max_boxes)
    if not lost.objects + lost.crowds:
        return []
    whole = count(train)
    kinds = [(lost.objects, whole.objects, 'objects'), (lost.crowds, whole.crowds, 'crowds')]
    parts = [f'{part:,} of {all_of_them:,} {kind}' for part, all_of_them, kind in kinds if part]
    return [
        f'training drops {listed(parts)}, in {lost.images:,} of {whole.images:,} images, and takes them for background: '
        f'data.max_boxes is {config.data.max_boxes}, and an image has up to {lost.largest}. '
        f'Set --config.data.max_boxes={lost.largest}'
    ]


def unseen(train: Annotations, validation: Annotations) -> list[str]:
    """Tells which classes are validated but never trained."""
    missing = (count(train).of_class == 0) & (count(validation).of_class > 0)
    names = [repr(name) for name, absent in zip(train.class_names, missing) if absent]
    if not names:
        return []
    return [
        f'validation has objects of {listed(names, NAMED)}, and training has none: their AP stays 0. '
        'Split the images in another way, or leave these classes out'
    ]


def tiny(config: ml_collections.ConfigDict, train: Annotations) -> list[str]:
    """Tells whether many objects all but vanish on the canvas."""
    sizes = sizes_on_canvas(train, evaluation_canvases(config), config.data.recipe)[~train.crowd]
    small = np.sqrt(sizes.prod(axis=1)) < TINY
    if not len(small) or small.mean() < MANY:
        return []
    return [
        f'{small.sum():,} of {len(small):,} training objects are smaller than {TINY:g} x {TINY:g} pixels on the canvas: '
        'take larger data.canvases, or cut the images into tiles'
    ]
