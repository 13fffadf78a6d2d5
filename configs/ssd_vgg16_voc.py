"""SSD of VGG-16 on Pascal VOC: the recipe of *SSD* (arXiv 1512.02325, sections 3.1 and 3.6) as its authors' code has it.

    detzoo prepare --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test
    detzoo train --config=ssd_vgg16_voc --workdir=runs/ssd300_voc \\
        --config.initialize_backbone=vgg16_features-amdegroot-88682ab5.pth
    detzoo evaluate --workdir=runs/ssd300_voc --voc

`:512` is SSD512. The weights are those of torchvision's VGG16_Weights.IMAGENET1K_FEATURES, made by VGG's authors: pixels
are not divided by a standard deviation. The file has no fc6 and fc7, which start from random weights. Without these weights, a
VGG without norms hardly learns.

Not trained here. Published: 77.2 mAP (SSD512: 79.8) on VOC 2007 test (table 6, SSD300* and SSD512*), after 120k steps.

Where the paper is brief, the code (github.com/weiliu89/caffe, branch ssd, examples/ssd/ssd_pascal.py) decides: steps,
anchors of whole pixels, colours. Differences from that code: training begins with a short warm-up (there none); biases
learn at the same rate as weights (there at twice the rate); training resizes linearly, as evaluation does (there by a
random method); objects marked difficult are treated as `detzoo.data.readers.voc` says.
"""

import ml_collections

from detzoo.config import complete
from detzoo.detectors.ssd import SSD300_LAYERS, SSD512_LAYERS
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of a variant: '300', which is the default, or '512'."""
    if arg not in (None, '', '300', '512'):
        raise ConfigError(f"ssd_vgg16_voc has the variants '300' and '512', not {arg!r}")
    side = int(arg or 300)
    two, four = (1 / 2, 2), (1 / 2, 2, 1 / 3, 3)
    c = ml_collections.ConfigDict()

    c.data = dict(name='voc', canvases=((side, side),), max_boxes=64, threads=32)
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
        c.model.anchor_sizes = (30, 60, 111, 162, 213, 264, 315)  # 10 % of the side, then 20 % and steps of 17 %
    else:
        c.model.extra_layers = SSD512_LAYERS
        c.model.anchor_strides = (8, 16, 32, 64, 128, 256, 512)
        c.model.aspect_ratios = (two, four, four, four, four, two, two)
        c.model.anchor_sizes = (
            35.84,
            76.8,
            153.6,
            230.4,
            307.2,
            384.0,
            460.8,
            537.6,
        )  # 7 %, then 15 % and steps of 15 %

    c.training = dict(batch_size=32, steps=120_000, checkpoint_every=5000, evaluate_every=20_000)
    c.optimizer = dict(
        name='sgd',
        learning_rate=1e-3,
        schedule='steps',
        decay_at=(80 / 120, 100 / 120),
        warmup_steps=500,
        momentum=0.9,
        weight_decay=5e-4,
    )
    c.evaluation = dict(batch_size=32)
    return complete(c)
