"""Prints a table of the backbones that each detector can have, and writes it to docs/backbones.md.

    python scripts/dev/backbones.py

Each pair is built, with the detector's default strides; tests/detectors/test_pairs.py trains the pairs.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import app

from detzoo.backbones import BACKBONES, strides_of
from detzoo.config import complete
from detzoo.detectors import make_detector
from detzoo.errors import listed

PATH = pathlib.Path(__file__).parents[2] / 'docs' / 'backbones.md'
C4 = {'fpn_features': None, 'rpn': {'anchor_sizes': ((32.0, 64.0, 128.0, 256.0, 512.0),)}}
ROWS: Mapping[str, dict[str, Any]] = {
    'RetinaNet': {'name': 'retinanet'},
    'SSD': {'name': 'ssd'},
    'YOLO v1': {'name': 'yolo_v1'},
    'YOLO v2': {'name': 'yolo_v2'},
    'YOLO v3': {'name': 'yolo_v3'},
    'Faster R-CNN, pyramid': {'name': 'faster_rcnn'},
    'Faster R-CNN, C4': {'name': 'faster_rcnn', **C4},
    'Mask R-CNN, pyramid': {'name': 'mask_rcnn'},
    'Mask R-CNN, C4': {'name': 'mask_rcnn', **C4},
    'DeepMask': {'name': 'deepmask'},
    'SharpMask': {'name': 'sharpmask'},
    'R-CNN': {'name': 'rcnn'},
}
TEXT = """# Backbones under detectors

Every detector has its backbone in one group of config keys, `model.backbone`, so that `--config.model.backbone.name=NAME` puts
another one under it. The pairs below can be made with the strides that detectors have by default; a number refers to the reason
why one cannot. `python scripts/dev/backbones.py` prints this page.

{pairs}

{reasons}

MNC can have those of Faster R-CNN on C4, SDS those of Faster R-CNN on a pyramid or on C4.

The strides of a backbone's feature maps, in pixels, and the keys of `model.backbone` that it alone has:

{backbones}

A detector asks for the strides that it needs. RetinaNet's are fixed; `model.backbone_strides` changes those of SSD and of a
pyramid under an R-CNN, `model.backbone_stride` the last one of a YOLO and of R-CNN, and the only one of a DeepMask. The MobileNets
have two feature maps of stride 32, which `model.backbone_strides = (32, 32)` puts into a pyramid, as torchvision does.

`dilation` of a ResNet keeps its last stages at a finer stride, with the same parameters: with 2 its strides are {two}, with 4 they
are {four}.

`width`, `norm` and `norm_epsilon` belong to all backbones. `norm = None` is for VGG-16, which is the default under SSD, and for
U-Net's contracting path: with another backbone there, set `model.backbone.norm` too. In a YOLO the head follows the backbone's
width and norm, in SSD the extra layers follow its norm.
"""


def reason(model: Mapping[str, Any], backbone: str) -> str:
    """Says why a detector cannot have a backbone; or '' where it can."""
    whole = complete(
        ml_collections.ConfigDict({'model': {**model, 'backbone': {'name': backbone, 'norm': 'batch_norm'}}})
    )
    try:
        make_detector(**whole.model, num_classes=80)
    except ValueError as error:
        return str(error).replace(f'{backbone!r}', 'NAME')
    return ''


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lays out a table in Markdown."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


def page() -> str:
    """Writes the page."""
    reasons: list[str] = []
    pairs = []
    for title, model in ROWS.items():
        row = [title]
        for backbone in BACKBONES:
            why = reason(model, backbone)
            if why and why not in reasons:
                reasons.append(why)
            row.append(str(reasons.index(why) + 1) if why else 'yes')
        pairs.append(row)
    backbones = [
        [f'`{name}`', listed(map(str, backbone.strides)), ', '.join(f'`{key}`' for key in backbone.own)]
        for name, backbone in BACKBONES.items()
    ]
    return TEXT.format(
        pairs=table(['', *(f'`{name}`' for name in BACKBONES)], pairs),
        reasons='\n'.join(f'{number}. {why}' for number, why in enumerate(reasons, 1)),
        backbones=table(['backbone', 'strides', 'own keys'], backbones),
        two=listed(map(str, strides_of('resnet50', 2))),
        four=listed(map(str, strides_of('resnet50', 4))),
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}')
    text = page()
    print(text)
    PATH.write_text(text)


if __name__ == '__main__':
    app.run(main)
