"""SSD on `shapes`, for a laptop.

    python scripts/train.py --config=configs/ssd_shapes.py --workdir=runs/ssd_shapes

Not measured yet.
"""

import ml_collections

from detzoo.config import ConfigError, complete


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/ssd_shapes.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='ssd',
        backbone='vgg16',
        width=0.125,  # 8 channels in the first stage
        norm='batch_norm',
        fc6_dilation=2,  # the grid of fc6 has 8 x 8 cells
        l2_norm_scale=None,  # all levels are normalised alike
        extra_layers=((32, 64, 3, 2, 1),),  # a grid of 4 x 4 cells
        # Objects are 14 to 70 pixels, and squarer than COCO's. Squares of 18 and 25, 36 and 46, 60 and 73 pixels are two
        # strides and more, as in the paper.
        anchor_sizes=(18.0, 36.0, 60.0, 90.0),
        aspect_ratios=((2 / 3, 3 / 2),) * 3,
        anchor_strides=(8, 16, 32),
    )
    c.training = dict(steps=1400, batch_size=16, checkpoint_every=350, evaluate_every=700)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    return complete(c)
