"""YOLO v1, v2 and v3 on `histology`: nuclei of three kinds in real tissue, for a laptop.

    detzoo train --config=yolo_histology:v3 --workdir=runs/yolo_v3_histology

`:v1` and `:v2` are the other two. There are only 24 training tiles, so augmentation matters most: crops, flips, quarter turns,
changes of colour.

Measured, seed 0, in about 8 minutes each on 2 cores of an x86-64 machine that others shared: v3 AP 0.334, AP50 0.653 and
v2 AP 0.332, AP50 0.654 after 900 steps; v1 AP 0.016, AP50 0.060 after 4000.
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
            backbone_stride=8,  # the head pools once more: a grid of 8 x 8 cells of 16 pixels, each for one nucleus
            head_features=(512, 64),  # each of the last 64 is connected to every cell
            local_features=None,
        ),
        v2=dict(
            name='yolo_v2',
            backbone=dict(name='darknet19', width=0.25),
            backbone_stride=8,
            head_features=(512, 512, 512),
            prior_probability=0.1,
            warm_up_images=1600,
            anchor_sizes=((20.0, 20.0), (28.0, 28.0), (36.0, 28.0), (28.0, 36.0), (48.0, 48.0)),
        ),
        v3=dict(
            name='yolo_v3',
            backbone=dict(name='tiny', width=0.5),
            backbone_stride=16,  # cells of 8 and 16 pixels
            small_head=True,
            head_features=256,
            prior_probability=0.01,
            anchor_sizes=(((20.0, 20.0), (26.0, 32.0), (32.0, 26.0)), ((36.0, 36.0), (44.0, 44.0), (56.0, 56.0))),
        ),
    )
    version = arg or 'v3'
    if version not in models:
        raise ConfigError(f'yolo_histology has the variants {", ".join(models)}, not {arg!r}')
    c = ml_collections.ConfigDict()
    c.model = dict(models[version], max_detections=200)
    # A step sees crops of 256 pixels of tiles enlarged to 384..680; validation sees whole tiles enlarged to 512.
    c.data = dict(name='histology', canvases=((256, 256),), max_boxes=100)
    c.data.recipe = dict(flip=0.5, rotate90=True, scale_range=(1.5, 2.66), color_jitter=0.2)
    c.evaluation = dict(canvases=((512, 512),), batch_size=4)
    c.training = dict(steps=900, batch_size=8, checkpoint_every=250, evaluate_every=450)
    c.optimizer = dict(name='adamw', learning_rate=6e-3, warmup_steps=50, weight_decay=1e-2, ema_decay=0.995)
    # v1 predicts only on the canvas that it is trained on, so training sees whole tiles, in many steps on small canvases.
    if version == 'v1':
        c.data.canvases = ((128, 128),)
        c.data.recipe.scale_range = (0.9, 1.3)
        c.evaluation = dict(canvases=(), batch_size=4)
        c.training = dict(steps=4000, batch_size=8, checkpoint_every=1000, evaluate_every=2000)
        c.optimizer.learning_rate, c.optimizer.ema_decay = 1.5e-3, 0.998
    return complete(c)
