"""YOLO v1 on Pascal VOC: the recipe of *You Only Look Once* (arXiv 1506.02640, section 2.2), as cfg/yolov1.cfg of darknet
and cfg/yolov1-tiny.cfg have it.

    detzoo prepare --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test
    detzoo train --config=yolov1_voc --workdir=runs/yolov1_voc \\
        --config.initialize_backbone=extraction.conv.weights
    detzoo evaluate --workdir=runs/yolov1_voc --voc
    detzoo train --config=yolov1_voc:tiny --workdir=runs/yolov1_tiny_voc

Not trained here. Published: 63.4 mAP on VOC 2007 test, 52.7 for the small net (table 1, there called Fast YOLO), with 20
layers that were trained on ImageNet first: extraction.weights of darknet's page, which `darknet partial` cuts after layer
24. Without `initialize_backbone` the net starts from random weights: expect less.

Differences from darknet: the learning rate rises linearly (there in three steps, or four for the small net, to ten and
twenty times the first rate of the cfg); the area outside a moved image is gray (there the border is repeated); an object of
which less than a quarter is visible is ignored (there it counts); objects marked difficult are ignored (there they are
background, see `detzoo.data.readers.voc`); batch norm normalises over all 64 images (there over 8 at a time).
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of the full net, or of the small one: 'tiny'."""
    if arg not in (None, '', 'tiny'):
        raise ConfigError(f"yolov1_voc has the variant 'tiny', not {arg!r}")
    c = ml_collections.ConfigDict()
    tiny = arg == 'tiny'
    color = 4 / 3 if tiny else 1.5
    c.data = dict(name='voc', canvases=((448, 448),), max_boxes=64, threads=32)
    c.data.recipe = dict(
        resize='stretch',
        interpolation='bilinear',  # darknet's sampling points differ by half a pixel at most
        flip=0.5,
        jitter=0.2,
        hue=0.1,
        saturation=(1 / color, color),
        exposure=(1 / color, color),
    )
    c.model = dict(name='yolo_v1', boxes_per_cell=3)  # cfg/yolov1.cfg; the paper and the small net have 2
    if tiny:
        c.model = dict(name='yolo_v1', backbone=dict(name='tiny'), head_features=(1024, 256), local_features=None)
    c.model.update(pad_value=0.5, clip_before_nms=False)
    c.training = dict(batch_size=64, steps=40_000, checkpoint_every=1000, evaluate_every=5000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=0.01 if tiny else 0.005,
        schedule='steps',
        decay_at=(20_000 / 40_000, 30_000 / 40_000),
        warmup_steps=800 if tiny else 600,
        momentum=0.9,
        weight_decay=5e-4,
    )
    return complete(c)
