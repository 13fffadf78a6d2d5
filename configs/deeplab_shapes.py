"""DeepLabV3 on `shapes`, for a laptop; with `:fcn` torchvision's FCN, whose head is a plain convolution.

    detzoo train --config=deeplab_shapes --workdir=runs/deeplab
    detzoo train --config=deeplab_shapes:fcn --workdir=runs/deeplab_fcn

Mean IoU, panoptic quality and AP are not measured yet.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config: that of DeepLabV3 by default, or 'fcn'."""
    if arg not in (None, '', 'fcn'):
        raise ConfigError(f"configs/deeplab_shapes.py has the variant 'fcn', not {arg!r}")
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, mask_size=56)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='deeplab',
        # 16 channels in the first stage, stride 8 at the last.
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),
        head=arg or 'aspp',
        features=64,
        rates=(2, 4, 6),  # a canvas has 16 cells a side
        auxiliary_features=32,
        dropout=0.1,
    )
    c.training = dict(steps=500, batch_size=16, checkpoint_every=250, evaluate_every=250)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    c.evaluation = dict(min_pixels=20)  # objects have 14 to 70 pixels a side
    return complete(c)
