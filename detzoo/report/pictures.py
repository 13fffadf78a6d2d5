"""Pictures of validation images, with detections and with training assignments."""

from typing import Any

from detzoo.report.document import Gallery, Panel, Paragraph
from detzoo.report.findings import Findings, Part, parts_by_truth

STAGES = {'rpn': 'anchors of the RPN', 'rois': 'RoIs of the second stage'}  # stages whose names alone say too little


def picture_blocks(findings: Findings) -> list[Any]:
    """Shows validation images with their objects, and with the detections of each group."""
    blocks: list[Any] = []
    for part in parts_by_truth(findings):
        blocks += _galleries(findings, part, 'panels', 'Image')
    text = (
        'Validation images with their objects, and with the detections of each group (scores above 0.3); masks are tinted. '
        'Of several seeds, the first is shown.'
    )
    if findings.packed and not blocks:
        return [Paragraph('Pictures of detections and assignments are not kept with these results.')]
    return [Paragraph(text), *blocks, *_pixel_blocks(findings)] if blocks else []


def _pixel_blocks(findings: Findings) -> list[Any]:
    """Shows the class of each pixel, as it is and as each group predicts it."""
    blocks: list[Any] = []
    for part in parts_by_truth(findings):
        blocks += _galleries(findings, part, 'pixels', 'Pixels of image')
    text = (
        'The class that each group gives each pixel. A segmenter predicts it; of a detector, masks are painted, the best score on '
        'top, from the score on that counts for panoptic quality.'
    )
    return [Paragraph(text), *blocks] if blocks else []


def _galleries(findings: Findings, part: Part, kind: str, what: str) -> list[Gallery]:
    """Makes a gallery of each image: the truth, and the picture of each group, from the folders of a kind."""
    shown = {group.name: findings.store.results_of(group.finished[0].run) for group in part.groups}
    names = {path.stem for folder in shown.values() for path in (folder / kind).glob('*.jpg')}
    galleries = []
    for name in sorted(names, key=lambda name: (len(name), name)):  # numbers by their size
        folders = {'ground truth': findings.store.truth(part.truth), **shown}
        paths = {caption: folder / kind / f'{name}.jpg' for caption, folder in folders.items()}
        title = f'{what} {name}{part.where}'
        panels = [Panel(path, caption, f'{title}: {caption}') for caption, path in paths.items() if path.exists()]
        galleries.append(Gallery(title, panels))
    return galleries


def assignment_blocks(findings: Findings) -> list[Any]:
    """Shows which anchors, cells or RoIs are positive, negative and ignored."""
    panels = []
    for group in (group for group in findings.groups if group.finished):
        for path in sorted((findings.store.results_of(group.finished[0].run) / 'assignment').glob('*.jpg')):
            caption = f'{group.name}: {STAGES.get(path.stem, path.stem)}'
            panels.append(Panel(path, caption, f'Assignment of {caption}'))
    text = (
        'What the loss of each detector makes of the same image. Thick lines are objects, thin lines of the same colour the boxes '
        'that learn them. Dots are the centres of boxes: coloured if positive, white if negative, black if ignored.'
    )
    return [Paragraph(text), Gallery('Positive, negative and ignored', panels)] if panels else []
