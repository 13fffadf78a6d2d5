"""RetinaNet on `histology`: real tissue, on a laptop."""

import ml_collections

from detzoo.config import complete


def get_config(arg=None):
    c = ml_collections.ConfigDict()
    # Crops of about half a tile at twice its size train; whole tiles at that size validate.
    c.data = dict(name='histology', canvases=((256, 256),), max_boxes=100)
    c.data.recipe = dict(flip=0.5, rotate90=True, scale_range=(1.5, 2.7), color_jitter=0.2)
    c.evaluation = dict(canvases=((512, 512),), batch_size=4)
    c.model = dict(
        name='retinanet', depth=18, width=0.25, norm='batch_norm',
        fpn_features=64, head_depth=2, head_norm='group_norm',
        anchor_sizes=tuple((2.0 * s, 2.0 * s * 2 ** 0.5) for s in (8, 16, 32, 64, 128)),
    )
    c.training = dict(steps=1000, batch_size=8, checkpoint_every=500, evaluate_every=250)
    c.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=100, weight_decay=1e-3, ema_decay=0.995)
    return complete(c)
