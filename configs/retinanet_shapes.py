"""RetinaNet on `shapes`, for a laptop.

    python scripts/train.py --config=configs/retinanet_shapes.py --workdir=runs/shapes

Measured: AP 0.554, AP50 0.797 after 1400 steps, seed 0, in 4.5 minutes on 2 cores of an x86-64 machine (0.16 s a step).
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/retinanet_shapes.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='retinanet',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        fpn_features=48,
        head_depth=1,
        head_norm='group_norm',
        # Objects are 14 to 70 pixels: half the paper's sizes, 2 strides of each level times 2^(0/3), 2^(1/3), 2^(2/3).
        anchor_sizes=tuple(tuple(2 * stride * 2 ** (k / 3) for k in range(3)) for stride in (8, 16, 32, 64, 128)),
    )
    c.training = dict(steps=1400, batch_size=16, checkpoint_every=350, evaluate_every=700)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    return complete(c)
