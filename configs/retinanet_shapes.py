"""RetinaNet on `shapes`, for a laptop."""

import ml_collections

from detzoo.config import complete


def get_config(arg=None):
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='retinanet', depth=18, width=0.25, norm='batch_norm',
        fpn_features=48, head_depth=2, head_norm='group_norm',
        anchor_sizes=tuple((1.5 * s, 1.5 * s * 2 ** 0.5) for s in (8, 16, 32, 64, 128)),
    )
    c.training = dict(steps=1500, batch_size=16, checkpoint_every=500, evaluate_every=500)
    c.optimizer = dict(name='adamw', learning_rate=2e-3, warmup_steps=100, weight_decay=1e-4, ema_decay=0.998)
    return complete(c)
