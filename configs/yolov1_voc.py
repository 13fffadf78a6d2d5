"""YOLO v1 on Pascal VOC: the recipe of *You Only Look Once* (arXiv 1506.02640, section 2.2), as darknet's cfg/yolov1.cfg has it.

    python scripts/prepare_data.py --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test
    python scripts/train.py --config=configs/yolov1_voc.py --workdir=runs/yolov1_voc
    python scripts/evaluate.py --workdir=runs/yolov1_voc --voc
    python scripts/train.py --config=configs/yolov1_voc.py:tiny --workdir=runs/yolov1_tiny_voc

Not trained here. Published: 63.4 mAP on VOC 2007 test, 52.7 for the small net (table 1, there called Fast YOLO), from a
network whose first 20 layers were trained on ImageNet first; this one starts from nothing, so expect less.

The learning rate rises over 600 steps in a line (there in three steps), to ten times that of the cfg's first line.
"""

import ml_collections

from detzoo.config import ConfigError, complete


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of the full net, or of the small one: 'tiny'."""
    if arg not in (None, '', 'tiny'):
        raise ConfigError(f"yolov1_voc has the variant 'tiny', not {arg!r}")
    c = ml_collections.ConfigDict()
    c.data = dict(name='voc', canvases=((448, 448),), max_boxes=64, threads=32)
    c.data.recipe = dict(
        resize='stretch',
        flip=0.5,
        jitter=0.2,
        hue=0.1,
        saturation=(1 / 1.5, 1.5),
        exposure=(1 / 1.5, 1.5),
    )
    c.model = dict(name='yolo_v1', boxes_per_cell=3)  # cfg/yolov1.cfg; the paper and the small net have 2
    if arg == 'tiny':
        c.model = dict(name='yolo_v1', backbone='tiny', head_features=(1024, 256), local_features=None)
    c.training = dict(batch_size=64, steps=40_000, checkpoint_every=1000, evaluate_every=5000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=0.005,
        schedule='steps',
        decay_at=(20_000 / 40_000, 30_000 / 40_000),
        warmup_steps=600,
        momentum=0.9,
        weight_decay=5e-4,
    )
    return complete(c)
