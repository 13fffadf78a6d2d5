"""YOLO v2 on Pascal VOC: the recipe of *YOLO9000* (arXiv 1612.08242, section 3), as darknet's cfg/yolov2-voc.cfg has it.

    detzoo prepare --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test
    detzoo train --config=yolov2_voc --workdir=runs/yolov2_voc \\
        --config.initialize_backbone=darknet19_448.conv.23
    detzoo evaluate --workdir=runs/yolov2_voc --voc

Not trained here. Published: 76.8 mAP on VOC 2007 test at 416 x 416 (table 3), with a Darknet-19 that was trained on
ImageNet, whose file darknet's page offers. Without `initialize_backbone` the net starts from random weights: expect less.

Multi-scale training draws one of ten canvases every ten steps (section 2); each is compiled once. Differences from darknet:
the learning rate warms up linearly (there with the fourth power of the step); canvases are drawn until the end (there the
last 200 steps use the largest); batch norm normalises over all 64 images (there over 8 at a time); colours change before the
image is placed on gray (there afterwards, so that the gray becomes lighter or darker too); objects marked difficult are
ignored (there they are background, see `detzoo.data.readers.voc`).
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'yolov2_voc has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='voc', max_boxes=64, threads=32)
    c.data.canvases = tuple((side, side) for side in range(320, 609, 32))
    c.data.canvas_steps = 10
    c.data.recipe = dict(
        resize='letterbox',
        interpolation='bilinear',  # darknet's sampling points differ by half a pixel at most
        flip=0.5,
        aspect_jitter=0.3,
        hue=0.1,
        saturation=(1 / 1.5, 1.5),
        exposure=(1 / 1.5, 1.5),
    )
    c.evaluation = dict(canvases=((416, 416),), batch_size=64)
    c.model = dict(
        name='yolo_v2',
        pad_value=0.5,
        clip_before_nms=False,
        anchor_sizes=tuple(
            (32 * width, 32 * height)  # the cfg has them in cells
            for width, height in (
                (1.3221, 1.73145),
                (3.19275, 4.00944),
                (5.05587, 8.09892),
                (9.47112, 4.84053),
                (11.2364, 10.0071),
            )
        ),
    )
    c.training = dict(batch_size=64, steps=80_200, checkpoint_every=1000, evaluate_every=10_000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=0.001,
        schedule='steps',
        decay_at=(40_000 / 80_200, 60_000 / 80_200),
        warmup_steps=1000,
        momentum=0.9,
        weight_decay=5e-4,
    )
    return complete(c)
