"""Pictures of validation images: what was found in them, and what each detector would learn from them."""

from typing import Any

from detzoo.report.document import Gallery, Panel, Paragraph
from detzoo.report.findings import Findings, parts_by_truth

STAGES = {'rpn': 'anchors of the RPN', 'rois': 'RoIs of the second stage'}  # of which the name alone says too little


def picture_blocks(findings: Findings) -> list[Any]:
    """Shows validation images with the objects, and with what each group found."""
    blocks: list[Any] = []
    for part in parts_by_truth(findings):
        shown = {group.name: findings.store.results_of(group.finished[0].run) for group in part.groups}
        names = {path.stem for folder in shown.values() for path in (folder / 'panels').glob('*.jpg')}
        for name in sorted(names, key=lambda name: (len(name), name)):  # numbers by their size
            folders = {'ground truth': findings.store.truth(part.truth), **shown}
            paths = {caption: folder / 'panels' / f'{name}.jpg' for caption, folder in folders.items()}
            title = f'Image {name}{part.where}'
            panels = [Panel(path, caption, f'{title}: {caption}') for caption, path in paths.items() if path.exists()]
            blocks.append(Gallery(title, panels))
    text = (
        'Validation images with the objects, and with what was found (score over 0.3); masks are tinted. '
        'Of several seeds: the first.'
    )
    if findings.packed and not blocks:
        return [Paragraph('Pictures of detections and assignments are not kept with these results.')]
    return [Paragraph(text), *blocks] if blocks else []


def assignment_blocks(findings: Findings) -> list[Any]:
    """Shows what each group takes as positive, negative and ignored."""
    panels = []
    for group in (group for group in findings.groups if group.finished):
        for path in sorted((findings.store.results_of(group.finished[0].run) / 'assignment').glob('*.jpg')):
            caption = f'{group.name}: {STAGES.get(path.stem, path.stem)}'
            panels.append(Panel(path, caption, f'Assignment of {caption}'))
    text = (
        'What the loss of each detector takes from the same image. Thick lines: objects; thin lines of the same colour: the '
        'boxes that are to learn them. Dots are the middles of boxes: coloured if positive, white if negative, black if ignored.'
    )
    return [Paragraph(text), Gallery('Positive, negative and ignored', panels)] if panels else []
