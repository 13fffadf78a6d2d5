"""YOLO v3 on COCO: the recipe of *YOLOv3: An Incremental Improvement* (arXiv 1804.02767), as darknet's cfg/yolov3.cfg has it.

    detzoo prepare --name=coco \\
        --train_annotations=annotations/instances_train2017.json --train_images=train2017 \\
        --validation_annotations=annotations/instances_val2017.json --validation_images=val2017 \\
        --on_bad_record=skip
    detzoo train --config=yolov3_coco --workdir=runs/yolov3_coco \\
        --config.initialize_backbone=darknet53.conv.74
    detzoo train --config=yolov3_coco:tiny --workdir=runs/yolov3_coco_tiny

`--on_bad_record=skip` leaves bad records out and lists them. Two boxes of height 0 are known in train2017 (images 200365
and 550395). A long list means that an archive was not unpacked whole.

Not trained here. Published, with a backbone that was trained on ImageNet first: AP 33.0, AP50 57.9 at 608 x 608 on test-dev
(table 3); AP50 33.1 for the small net at 416 (darknet's page). Without `initialize_backbone` the net starts from random
weights: expect less.

Multi-scale training draws one of ten canvases every ten steps; each is compiled once. Differences from darknet: the
learning rate warms up linearly (there with the fourth power of the step); canvases are drawn until the end (there the last 200
steps use the largest); batch norm normalises over all 64 images (there over 4 at a time); colours change before the image is
placed on gray (there afterwards, so that the gray becomes lighter or darker too).
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of the full net, or of the small one: 'tiny'."""
    if arg not in (None, '', 'tiny'):
        raise ConfigError(f"yolov3_coco has the variant 'tiny', not {arg!r}")
    tiny = arg == 'tiny'
    c = ml_collections.ConfigDict()
    c.data = dict(name='coco', max_boxes=100, threads=32)  # at most 93 objects an image in train2017
    c.data.empty_images = False  # darknet's list of COCO (trainvalno5k of scripts/get_coco_dataset.sh) has none
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
    side = 416 if tiny else 608
    c.evaluation = dict(canvases=((side, side),), batch_size=64)
    c.model = dict(name='yolo_v3', pad_value=0.5, clip_before_nms=False)
    if tiny:
        anchor_sizes = (((10, 14), (23, 27), (37, 58)), ((81, 82), (135, 169), (344, 319)))
        c.model.update(small_head=True, head_features=256, anchor_sizes=anchor_sizes)
        c.model.backbone = dict(name='tiny')
    c.training = dict(batch_size=64, steps=500_200, checkpoint_every=5000, evaluate_every=50_000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=0.001,
        schedule='steps',
        decay_at=(400_000 / 500_200, 450_000 / 500_200),
        warmup_steps=1000,
        momentum=0.9,
        weight_decay=5e-4,
    )
    return complete(c)
