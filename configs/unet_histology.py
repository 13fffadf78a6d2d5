"""U-Net on `histology`: nuclei of three kinds in real tissue, for a laptop; connected components are instances.

    detzoo train --config=unet_histology --workdir=runs/unet_histology

There are only 24 training tiles, so augmentation matters most: crops at about twice their size, flips, quarter turns, changes of
colour. Nuclei touch: the line of background between them, and its weight, keep them apart.

Mean IoU, panoptic quality and AP are not measured yet.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/unet_histology.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    # A step sees crops of 256 pixels of tiles enlarged to 384..680; validation sees whole tiles enlarged to 512.
    c.data = dict(name='histology', canvases=((256, 256),), max_boxes=100, mask_size=28)
    c.data.recipe = dict(flip=0.5, rotate90=True, scale_range=(1.5, 2.66), color_jitter=0.2)
    c.evaluation = dict(canvases=((512, 512),), batch_size=4, min_pixels=20)  # nuclei are 9 to 31 pixels
    c.model = dict(
        name='unet',
        backbone=dict(width=0.125, norm='batch_norm'),  # 8 channels at the finest stride
        dropout=0.1,
        class_weights=(4.0, 1.0),  # most pixels are background
    )
    c.training = dict(steps=250, batch_size=8, checkpoint_every=125, evaluate_every=125)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-2, ema_decay=0.99)
    return complete(c)
