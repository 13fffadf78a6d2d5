"""The tables and figures about a data set that `data_page` writes: how much there is, how large it is, and what a config keeps."""

from typing import Any

import numpy as np

from detzoo.data.geometry import choose_canvas, placement, resize_rule
from detzoo.data.statistics import Annotations, count, count_dropped, duplicates, sizes_on_canvas
from detzoo.inference.predictor import evaluation_canvases
from detzoo.report import plots
from detzoo.report.document import Cell, Drawing, Paragraph, Table
from detzoo.report.look import Look

LIMITS = 4, 8, 16, 32  # pixels
FOLDED = 20  # rows of a table from which it is folded
LISTED = 20  # duplicates in a table
OBJECTS = 'share of objects, %'


def split_blocks(look: Look) -> list[Any]:
    """Counts what both splits hold."""
    splits = {'train': look.train.annotations, 'validation': look.validation.annotations}
    counts = {name: count(annotations) for name, annotations in splits.items()}

    def sides(annotations: Annotations, share: float) -> str:
        if not len(annotations.sizes):
            return '–'
        height, width = np.quantile(annotations.sizes, share, axis=0)
        return f'{height:.0f} × {width:.0f}'

    quantities = {
        'images': lambda name: f'{counts[name].images:,}',
        'images without objects': lambda name: f'{counts[name].empty:,}',
        'objects': lambda name: f'{counts[name].objects:,}',
        'crowds': lambda name: f'{counts[name].crowds:,}',
        'classes with objects': lambda name: (
            f'{np.count_nonzero(counts[name].of_class)} of {len(splits[name].class_names)}'
        ),
        'boxes in an image, median': lambda name: (
            f'{np.median(splits[name].rows):.0f}' if len(splits[name].sizes) else '–'
        ),
        'boxes in an image, at most': lambda name: f'{splits[name].rows.max(initial=0)}',
        'objects with masks': lambda name: f'{(splits[name].has_mask & ~splits[name].crowd).sum():,}',
        'height × width, least': lambda name: sides(splits[name], 0),
        'height × width, median': lambda name: sides(splits[name], 0.5),
        'height × width, most': lambda name: sides(splits[name], 1),
    }
    rows = [[quantity, *(value(name) for name in splits)] for quantity, value in quantities.items()]
    return [Table('What the splits hold.', ['', *splits], rows)]


def class_blocks(look: Look) -> list[Any]:
    """Counts the objects of each class."""
    splits = look.train.annotations, look.validation.annotations
    counts = [count(annotations).of_class for annotations in splits]
    rows = []
    for label in np.argsort(-counts[0], kind='stable'):
        cells = [Cell(f'{of_split[label]:,}', faint=not of_split[label]) for of_split in counts]
        shares = [f'{100 * of_split[label] / max(1, of_split.sum()):.1f}' for of_split in counts]
        rows.append([splits[0].class_names[label], cells[0], shares[0], cells[1], shares[1]])
    columns = ['class', 'train', 'train, %', 'validation', 'validation, %']
    return [Table('Objects of each class, without crowds.', columns, rows, folded=len(rows) > FOLDED)]


def size_blocks(look: Look) -> list[Any]:
    """Draws how many objects images have, how large these are, and their shapes."""
    groups = {
        name: split.annotations
        for name, split in (('train', look.train), ('validation', look.validation))
        if split.annotations.objects.any()
    }
    if not groups:
        return []
    objects = {name: ~annotations.crowd for name, annotations in groups.items()}
    on_canvas = {name: canvas_sizes(look, annotations) for name, annotations in groups.items()}
    original = {name: annotations.boxes[objects[name], 2:] for name, annotations in groups.items()}
    most = max(int(annotations.objects.max()) for annotations in groups.values())
    step = max(1, -(-most // 30))
    number, side, shape = 'objects in an image', 'pixels of the image', 'height / width'
    canvas = 'pixels of the canvas'
    areas = {
        side: {name: np.sqrt(sizes.prod(axis=1)) for name, sizes in original.items()},
        canvas: {name: np.sqrt(sizes.prod(axis=1)) for name, sizes in on_canvas.items()},
    }
    low = max(1.0, min(values.min() for values in areas[canvas].values()) / 1.1)
    high = max(values.max() for of_unit in areas.values() for values in of_unit.values()) * 1.1
    sides = np.geomspace(low, max(high, 2 * low), 25)
    counts = plots.histograms(
        {
            number: {name: annotations.objects + 0.0 for name, annotations in groups.items()},
            shape: {name: sizes[:, 1] / sizes[:, 0] for name, sizes in original.items()},
        },
        {number: np.arange(0, most + 2 * step, step) - 0.5, shape: np.geomspace(0.1, 10, 25)},
        'share, %',
    )
    sizes = plots.histograms(areas, dict.fromkeys(areas, sides), OBJECTS)
    medians = '; '.join(
        f'{name}: {np.median(areas[side][name]):.0f} in the image, {np.median(areas[canvas][name]):.0f} on the canvas'
        for name in groups
    )
    return [
        Drawing(
            'objects',
            'Objects in an image (left), and their shapes (right); crowds are left out.',
            f'Histograms; at most {most} objects in an image.',
            counts,
        ),
        Drawing(
            'sizes',
            f'Sizes of objects, the square roots of their areas, in the image and on the canvas. Medians: {medians}.',
            f'Histograms of sizes; medians: {medians}.',
            sizes,
        ),
    ]


def canvas_sizes(look: Look, annotations: Annotations) -> np.ndarray:
    """Returns [n, 2] width and height of the objects on the canvases for evaluation, pixels; crowds are left out."""
    sizes = sizes_on_canvas(annotations, evaluation_canvases(look.config), look.config.data.recipe)
    return sizes[~annotations.crowd]


def kept_blocks(look: Look) -> list[Any]:
    """Counts what the config drops and shrinks."""
    config, splits = look.config, (look.train.annotations, look.validation.annotations)
    sizes = [canvas_sizes(look, annotations) for annotations in splits]
    roots = [np.sqrt(of_split.prod(axis=1)) for of_split in sizes]
    lost = [count_dropped(annotations, config.data.max_boxes) for annotations in splits]

    def shares(name: str, parts: Any, wholes: Any) -> list[str]:
        return [name, *(f'{part:,} ({100 * part / max(1, whole):.1f} %)' for part, whole in zip(parts, wholes))]

    objects, images = [len(of_split) for of_split in sizes], [len(annotations.sizes) for annotations in splits]
    rule = resize_rule(config.data.recipe)
    scales = [
        [
            placement(size, choose_canvas(size, evaluation_canvases(config), rule), rule).scale[0]
            for size in map(tuple, x.sizes)
        ]
        for x in splits
    ]
    rows_kept = f'`max_boxes` = {config.data.max_boxes}'
    rows = [
        shares(f'objects that {rows_kept} drops', [x.objects for x in lost], objects),
        shares(f'crowds that {rows_kept} drops', [x.crowds for x in lost], [count(x).crowds for x in splits]),
        shares('images that lose some', [x.images for x in lost], images),
        ['canvas pixels an image pixel, median', *(f'{np.median(x):.2f}' if x else '–' for x in scales)],
        *(
            shares(f'objects smaller than {limit} × {limit} on the canvas', [(x < limit).sum() for x in roots], objects)
            for limit in LIMITS
        ),
    ]
    if side := config.data.mask_size:
        coarse = [(of_split.max(axis=1, initial=0) > side).sum() for of_split in sizes]
        rows.append(shares(f'objects longer than the {side} cells of `mask_size`', coarse, objects))
    canvases = ', '.join(f'{height} × {width}' for height, width in evaluation_canvases(config))
    crowds = sum(count(x).crowds for x in splits)
    text = f'Canvas: {canvases} (height × width). Sizes are square roots of areas, before augmentation.'
    if crowds:
        text += ' What lies at least half inside a crowd is neither positive nor negative.'
    return [Table('What the config drops and shrinks.', ['', 'train', 'validation'], rows), Paragraph(text)]


def duplicate_blocks(look: Look) -> list[Any]:
    """Lists images that are there twice, in a split or in both."""
    train, validation = look.train.annotations, look.validation.annotations
    pairs = [
        (train.file_names[i], 'train', validation.file_names[j], 'validation') for i, j in duplicates(train, validation)
    ]
    for name, annotations in (('train', train), ('validation', validation)):
        for first, *others in duplicates(annotations):
            pairs += [(annotations.file_names[first], name, annotations.file_names[other], name) for other in others]
    if not pairs:
        return [Paragraph('No two images have the same bytes, neither within a split nor across.')]
    rows = [[f'{pair[0]} ({pair[1]})', f'{pair[2]} ({pair[3]})'] for pair in pairs[:LISTED]]
    more = f' The first {LISTED} are listed.' if len(pairs) > LISTED else ''
    caption = f'{len(pairs):,} pairs of images have the same bytes.{more}'
    return [Table(caption, ['image', 'the same again'], rows, words=['the same again'])]
