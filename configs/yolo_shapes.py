"""YOLO v1, v2 and v3 on `shapes`, for a laptop.

    detzoo train --config=yolo_shapes:v3 --workdir=runs/yolo_v3

`:v1` and `:v2` are the other two.

Measured, seed 0, in 3.3 (v2) to 3.8 minutes each on 2 cores of an AMD EPYC: v3 AP 0.495, AP50 0.810 and v2 AP 0.495, AP50 0.808
after 1100 steps; v1 AP 0.166, AP50 0.463 after 5800. v1 would go on learning: on one core AP50 0.560 after 8000.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of a version: 'v1', 'v2' or 'v3', which is the default."""
    models = dict(
        v1=dict(
            name='yolo_v1',
            backbone=dict(name='tiny', width=0.5),
            backbone_stride=8,  # the head pools once more: a grid of 4 x 4 cells of 16 pixels
            head_features=(256, 128),
            local_features=None,
            class_scale=2.0,
        ),
        v2=dict(
            name='yolo_v2',
            backbone=dict(name='darknet19', width=0.25),
            backbone_stride=8,  # 32 in the paper, for objects about three times as large
            head_features=(320, 320, 320),
            passthrough_features=32,
            prior_probability=0.05,
            warm_up_images=3200,
            # Close to the k-means anchors that scripts/make_anchors.py prints for this data, but not the same.
            anchor_sizes=((17.9, 18.3), (26.9, 25.6), (32.9, 38.1), (47.1, 42.3), (57.8, 60.0)),
        ),
        v3=dict(
            name='yolo_v3',
            backbone=dict(name='tiny', width=0.5),
            backbone_stride=16,  # cells of 8 and 16 pixels
            small_head=True,
            head_features=256,
            prior_probability=0.01,
            # Close to the k-means anchors that scripts/make_anchors.py prints for this data, but not the same.
            anchor_sizes=(((17.5, 18.1), (25.6, 23.9), (30.6, 33.9)), ((45.3, 36.6), (41.1, 51.6), (60.8, 58.6))),
        ),
    )
    version = arg or 'v3'
    if version not in models:
        raise ConfigError(f'yolo_shapes has the variants {", ".join(models)}, not {arg!r}')
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = models[version]
    c.training = dict(steps=1100, batch_size=16, checkpoint_every=275, evaluate_every=550)
    c.optimizer = dict(name='adamw', learning_rate=6e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    if version == 'v1':  # many steps on small pictures
        c.data.canvases = ((64, 64),)
        c.data.recipe.scale_range = (0.7, 1.4)
        c.data.recipe.rotate90 = True  # shapes lie at any angle
        c.training = dict(steps=5800, batch_size=16, checkpoint_every=1450, evaluate_every=2900)
        c.optimizer.learning_rate, c.optimizer.ema_decay = 5e-3, 0.998
        # The connected layer has weights from each cell to the outputs of all others. Most of their gradients are small noise.
        # Adam would scale it up to steps of full size, and weights that only memorise images would stay: with the other
        # versions' epsilon and decay, at a rate of 1.5e-3, AP50 was 0.287 (with a larger head and without turned pictures).
        c.optimizer.epsilon, c.optimizer.weight_decay = 1e-4, 1e-1
    return complete(c)
