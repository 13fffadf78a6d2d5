"""U-Net on `shapes`, for a laptop: the class of each pixel, and connected components as instances.

    detzoo train --config=unet_shapes --workdir=runs/unet

Measured after the 600 steps, seed 0, on two cores of an AMD EPYC beside other work: mean IoU 0.444, PQ 0.339, mask AP 0.204; 0.384,
0.270 and 0.150 half-way. Where classes weigh no more than background (`--config.model.class_weights='()'`) it was 0.407, 0.227 and
0.113. The time was not measured.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/unet_shapes.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, mask_size=56)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='unet',
        # 8 channels at the finest stride, the paper's 64 times width. With 16 a step takes thrice the time.
        backbone=dict(width=0.125, norm='batch_norm'),
        dropout=0.1,
        class_weights=(4.0, 1.0),  # most pixels are background
    )
    c.training = dict(steps=600, batch_size=16, checkpoint_every=300, evaluate_every=300)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    c.evaluation = dict(min_pixels=20)  # objects have 14 to 70 pixels a side
    return complete(c)
