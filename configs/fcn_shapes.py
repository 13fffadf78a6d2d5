"""FCN-8s on `shapes`, for a laptop, and with `:16s` and `:32s` its coarser forms; the backbone is a ResNet.

    detzoo train --config=fcn_shapes --workdir=runs/fcn
    detzoo train --config=fcn_shapes:32s --workdir=runs/fcn_32s

Measured: mean IoU 0.531, PQ 0.372, mask AP 0.209 after 1000 steps, seed 0, on one core of an AMD EPYC beside other work. The time
was not measured; nor were the coarser forms.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError

STRIDES = {'8s': (8, 16, 32), '16s': (16, 32), '32s': (32,)}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config: '8s' by default, '16s' or '32s'."""
    if (arg or '8s') not in STRIDES:
        raise ConfigError(f'configs/fcn_shapes.py has the variants {", ".join(map(repr, STRIDES))}, not {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, mask_size=56)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='fcn',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        backbone_strides=STRIDES[arg or '8s'],
        dropout=0.1,
    )
    c.training = dict(steps=1000, batch_size=16, checkpoint_every=500, evaluate_every=500)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    c.evaluation = dict(min_pixels=20)  # objects have 14 to 70 pixels a side
    return complete(c)
