"""DeepMask on `shapes`, for a laptop: masks of objects whatever their class.

    detzoo train --config=deepmask_shapes --workdir=runs/deepmask
    detzoo evaluate --workdir=runs/deepmask

Measured, seed 0, after 600 steps: average recall of the best 10 and 100 boxes of an image 0.561 and 0.735, of their masks 0.400 and
0.509. The time was not measured: other programs had most of the machine.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/deepmask_shapes.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, mask_size=56)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='deepmask',
        # 16 channels in the first stage. Not batch norm: each scale would be normalised by statistics of its own in training.
        backbone=dict(name='resnet18', width=0.25, norm='group_norm'),
        backbone_stride=8,
        # In proportion to the paper's 224 pixels and stride of 16. Objects are 14 to 70 pixels, 27 at scale 1.
        windows=dict(
            size=48,
            scales=tuple(2 ** (octave / 2) for octave in range(-3, 3)),
            shift=1 / 12,  # half the distance of two windows, so that each object has one
            negative_shift=1 / 6,
            samples=32,
        ),
        features=48,
        rank=64,
        score_features=64,
        dropout=0.0,
        mask_size=12,
        proposals=dict(pre_nms_topk=200, max_detections=200),
    )
    c.training = dict(steps=600, batch_size=8, checkpoint_every=300, evaluate_every=600)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    return complete(c)
