"""SSD of VGG-16 on COCO: the recipe of *SSD* (arXiv 1512.02325, sections 3.4 and 3.6) as its authors' code has it.

    python scripts/prepare_data.py --name=coco \\
        --train_annotations=annotations/instances_train2017.json --train_images=train2017 \\
        --validation_annotations=annotations/instances_val2017.json --validation_images=val2017 \\
        --on_bad_record=skip
    python scripts/train.py --config=configs/ssd_vgg16_coco.py --workdir=runs/ssd300_coco \\
        --config.initialize_backbone=vgg16_features-amdegroot-88682ab5.pth

`--on_bad_record=skip` leaves out what is wrong with single records and lists it: of train2017 two boxes of height 0 are known
(images 200365 and 550395). A long list means that an archive was not unpacked whole.

`:512` is SSD512. The weights are those of torchvision's VGG16_Weights.IMAGENET1K_FEATURES; see configs/ssd_vgg16_voc.py,
of which this differs in the anchors, which are smaller, and in the number of steps. Images without objects are among those
that are trained, as in the lists that the authors' code makes (data/coco/create_list.py); without positives they choose no
negatives either.

Not trained here. Published: 25.1 AP, 43.1 AP50 (SSD512: 28.8, 48.5) on test-dev (table 6, SSD300* and SSD512*), after
400k steps (github.com/weiliu89/caffe, branch ssd, examples/ssd/ssd_coco.py); trained on trainval35k, which is train2017.
"""

import ml_collections

from detzoo.config import complete
from detzoo.detectors.ssd import SSD300_LAYERS, SSD512_LAYERS
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of a variant: '300', which is the default, or '512'."""
    if arg not in (None, '', '300', '512'):
        raise ConfigError(f"ssd_vgg16_coco has the variants '300' and '512', not {arg!r}")
    side = int(arg or 300)
    two, four = (1 / 2, 2), (1 / 2, 2, 1 / 3, 3)
    c = ml_collections.ConfigDict()

    c.data = dict(name='coco', canvases=((side, side),), max_boxes=100, threads=32)
    c.data.recipe = dict(
        resize='stretch',
        interpolation='bilinear',
        flip=0.5,
        zoom_out=4.0,  # section 3.6
        iou_crop=True,  # section 2.2, data augmentation
        brightness=32.0,
        hue=0.1,
        saturation=(0.5, 1.5),
        exposure=(0.5, 1.5),
        color_probability=0.5,
    )

    c.model = dict(name='ssd', mean=(123, 117, 104), std=(1, 1, 1), dtype='bfloat16')
    c.model.backbone = dict(name='vgg16', norm=None)
    c.model.bipartite = True
    if side == 300:
        c.model.extra_layers = SSD300_LAYERS
        c.model.anchor_strides = (8, 16, 32, 64, 100, 300)
        c.model.aspect_ratios = (two, four, four, four, two, two)
        c.model.anchor_sizes = (21, 45, 99, 153, 207, 261, 315)  # 7 % of the side, then 15 % and steps of 18 %
    else:
        c.model.extra_layers = SSD512_LAYERS
        c.model.anchor_strides = (8, 16, 32, 64, 128, 256, 512)
        c.model.aspect_ratios = (two, four, four, four, four, two, two)
        c.model.anchor_sizes = (
            20.48,
            51.2,
            133.12,
            215.04,
            296.96,
            378.88,
            460.8,
            542.72,
        )  # 4 %, then 10 % and steps of 16 %

    c.training = dict(batch_size=32, steps=400_000, checkpoint_every=10_000, evaluate_every=40_000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=1e-3,
        schedule='steps',
        decay_at=(280 / 400, 360 / 400),
        warmup_steps=500,
        momentum=0.9,
        weight_decay=5e-4,
    )
    c.evaluation = dict(batch_size=32)
    return complete(c)
