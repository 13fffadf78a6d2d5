"""The pictures of a data set that `data_page` shows: images as they are, as training sees them, and objects no anchor fits."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from detzoo.core.boxes import xywh_to_xyxy
from detzoo.core.masks import paste_masks
from detzoo.data.geometry import place, resize_rule
from detzoo.data.pipeline import train_batches
from detzoo.data.records import Dataset, decode_image
from detzoo.inference.predictor import canvas_for, decode_masks
from detzoo.report import plots
from detzoo.report.document import Drawing, Gallery, Panel, Paragraph, Table
from detzoo.report.look import Look
from detzoo.report.pictures import STAGES
from detzoo.report.text import counted
from detzoo.training.anchor_fit import AnchorFit
from detzoo.visualize import draw_boxes, write_image

IMAGES = 6  # of each split
SAMPLES = 12
WORST = 12
LARGEST = 1200  # pixels of the longer side of a picture
AROUND = 4  # side of a picture of an object, in those of the object


def image_blocks(look: Look, folder: pathlib.Path) -> list[Any]:
    """Shows images of both splits with their annotations."""
    blocks: list[Any] = []
    for name, split in (('train', look.train), ('validation', look.validation)):
        count = len(split.dataset.records)
        indices = np.unique(np.linspace(0, max(0, count - 1), IMAGES).round().astype(int)) if count else []
        panels = []
        for index in indices:
            record = split.dataset.records[int(index)]
            path = folder / f'{name}_{index}.jpg'
            write_image(path, draw_record(split.dataset, int(index)))
            objects = int((~record['is_crowd']).sum())
            caption = f'{record["file_name"]}: {counted(objects, "object")}'
            panels.append(Panel(path, caption, f'{name} image {caption}'))
        blocks += [Gallery(f'Images of {name}', panels)] if panels else []
    return [Paragraph('Annotations as they are stored; crowds are dashed.'), *blocks] if blocks else []


def draw_record(dataset: Dataset, index: int) -> np.ndarray:
    """Draws the annotations of a record: [h, w, 3] uint8."""
    record = dataset.records[index]
    size, masks = [record['height'], record['width']], None
    if record['segmentations'] and all(record['segmentations']):
        masks = decode_masks([{'size': size, 'counts': counts} for counts in record['segmentations']])
    image = decode_image(record['image'], name=record['file_name'])
    scale = LARGEST / max(size) if max(size) > LARGEST else None
    boxes = xywh_to_xyxy(record['boxes'])
    return draw_boxes(
        image, boxes, record['labels'], None, dataset.class_names, crowd=record['is_crowd'], masks=masks, scale=scale
    )


def sample_blocks(look: Look, folder: pathlib.Path) -> list[Any]:
    """Shows the first samples of training, exactly as the network gets them."""
    data, panels = look.config.data, []
    if not len(look.train.dataset.records):
        return []
    batches = train_batches(
        look.train.dataset,
        canvases=data.canvases,
        max_boxes=data.max_boxes,
        recipe=data.recipe.to_dict(),
        batch_size=look.config.training.batch_size,
        seed=look.config.seed,
        mask_size=data.mask_size,
        canvas_steps=data.canvas_steps,
        threads=data.threads,
    )
    while len(panels) < SAMPLES:
        batch = next(batches)
        for row in range(min(SAMPLES - len(panels), len(batch.image_id))):
            gt = batch.gt._replace(masks=None)
            valid = gt.valid[row]
            boxes, labels, crowd = (values[row][valid] for values in (gt.boxes, gt.labels, gt.crowd))
            image, masks = batch.inputs.images[row], None
            if batch.gt.masks is not None and len(boxes):
                masks = paste_masks(batch.gt.masks[row][valid].astype(np.float32), boxes, image.shape[:2])
            path = folder / f'sample_{len(panels)}.jpg'
            names = look.train.dataset.class_names
            write_image(path, draw_boxes(image, boxes, labels, None, names, crowd=crowd, masks=masks))
            name = look.train.annotations.file_names[int(batch.image_id[row])]
            left_out = f', {gt.dropped[row]} dropped' if gt.dropped[row] else ''
            caption = f'{name}: {counted(int((~crowd).sum()), "object")}{left_out}'
            panels.append(Panel(path, caption, f'training sample of {caption}'))
    batches.close()
    masks = ' and masks' if data.mask_size else ''
    text = (
        f'The first {len(panels)} samples of a training with seed {look.config.seed}: resized, augmented and padded, with the '
        f'boxes{masks} that the loss gets. Crowds, and objects of which a crop leaves little, are dashed.'
    )
    return [Paragraph(text), Gallery('Training samples', panels)]


def anchor_blocks(look: Look, folder: pathlib.Path) -> list[Any]:
    """Tells and shows how the anchors fit the objects."""
    if not look.fits:
        return [Paragraph('No stage of this detector has boxes before anything is learnt.')] if look.matched else []
    rows = [anchor_row(STAGES.get(stage, stage), fit) for stage, fit in look.fits.items()]
    rows += [anchor_row(f'{STAGES.get(stage, stage)}, as suggested', fit) for stage, fit in look.suggested_fits.items()]
    values = {STAGES.get(stage, stage): fit.best_iou for stage, fit in look.fits.items() if fit.best_iou is not None}
    columns = [
        'stage',
        'objects',
        'positives an object',
        'objects without',
        'best IoU, mean',
        '5 % below',
        'below 0.5, %',
    ]
    caption = (
        f'Objects of {counted(len(look.matched), "training image")} on the canvas, as the loss matches them to boxes before '
        'anything is learnt. The best IoU is that of an object with the anchor that fits it best.'
    )
    blocks: list[Any] = [Table(caption, columns, rows)]
    if values:
        label = 'best IoU'
        figure = plots.histograms({label: values}, {label: np.linspace(0, 1, 26)}, 'share of objects, %')
        alt = '; '.join(f'{name}: mean {best.mean():.3f}' for name, best in values.items())
        blocks.append(
            Drawing('anchors', 'The best IoU that an anchor reaches with an object.', f'Histogram; {alt}.', figure)
        )
    for stage, fit in look.fits.items():
        title = f'Objects that {STAGES.get(stage, stage)} fit worst'
        blocks.append(Gallery(title, worst_panels(look, fit, folder, stage)))
    return blocks


def anchor_row(name: str, fit: AnchorFit) -> list[str]:
    """Sums up how the boxes of a stage fit: a row of the table."""
    counts = [f'{len(fit.image):,}', f'{fit.positives.mean():.1f}', f'{(fit.positives == 0).sum():,}']
    if fit.best_iou is None:
        return [name, *counts, '–', '–', '–']
    worst, below = np.quantile(fit.best_iou, 0.05), 100 * (fit.best_iou < 0.5).mean()
    return [name, *counts, f'{fit.best_iou.mean():.3f}', f'{worst:.3f}', f'{below:.1f}']


def worst_panels(look: Look, fit: AnchorFit, folder: pathlib.Path, stage: str) -> list[Panel]:
    """Draws the objects with the fewest positives and the lowest IoU, each in its surroundings on the canvas."""
    order = np.argsort(fit.positives if fit.best_iou is None else fit.best_iou, kind='stable')
    dataset, panels = look.train.dataset, []
    for row in order[:WORST]:
        record, box = dataset.records[int(fit.image[row])], fit.boxes[row]
        image = decode_image(record['image'], name=record['file_name'])
        canvas, where = place(image, canvas_for(image.shape[:2], look.config), resize_rule(look.config.data.recipe))
        x1, y1, x2, y2 = surroundings(box, canvas.shape[:2])
        part, moved = canvas[y1:y2, x1:x2], box - np.float32([x1, y1, x1, y1])
        path = folder / f'worst_{stage}_{len(panels)}.jpg'
        write_image(path, draw_boxes(part, moved[None], fit.labels[row : row + 1], None, dataset.class_names))
        iou = '' if fit.best_iou is None else f', IoU {fit.best_iou[row]:.2f}'
        width, height = box[2:] - box[:2]
        name = dataset.class_names[int(fit.labels[row])]
        caption = f'{name}, {height:.0f} × {width:.0f} pixels{iou}, {counted(int(fit.positives[row]), "positive")}'
        panels.append(Panel(path, caption, f'{record["file_name"]}: {caption}'))
    return panels


def surroundings(box: np.ndarray, canvas: Sequence[int]) -> tuple[int, int, int, int]:
    """Chooses the part of a canvas (H, W) around an xyxy box: x1, y1, x2, y2, whole pixels."""
    side = max(AROUND * float(max(box[2:] - box[:2])), 64.0)
    x, y = (box[:2] + box[2:]) / 2
    left, top = (
        int(np.clip(middle - side / 2, 0, max(0, length - side))) for middle, length in zip((x, y), canvas[::-1])
    )
    return left, top, min(canvas[1], int(left + side) + 1), min(canvas[0], int(top + side) + 1)
