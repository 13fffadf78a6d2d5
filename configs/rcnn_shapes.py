"""R-CNN on `shapes`, for a laptop.

    detzoo proposals --data=shapes --output=proposals
    detzoo train --config=rcnn_shapes --workdir=runs/rcnn

Both commands want the same current folder, in which the files of proposals lie. The variant `rcnn_shapes:selective_search` reads
those that `--method=selective_search` has written; docs/own_data.md says what it needs.

Measured, seed 0, after 500 steps, with selective search: AP 0.581, AP50 0.793, in 6.5 minutes on two cores of an AMD EPYC, beside
other work. Not measured with windows.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; arg: 'sliding_window' (the default) or 'selective_search', where the proposals come from."""
    if arg not in (None, '', 'sliding_window', 'selective_search'):
        raise ConfigError(f"configs/rcnn_shapes.py has no variant {arg!r}: use 'sliding_window' or 'selective_search'")
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, max_proposals=500)
    c.data.train_proposals = f'proposals/shapes_{arg or "sliding_window"}_train.json.gz'
    c.data.validation_proposals = f'proposals/shapes_{arg or "sliding_window"}_validation.json.gz'
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='rcnn',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        backbone_stride=8,
        crop_size=56,  # 7 x 7 cells of features
        context=4,
        trunk_features=128,
        head=dict(samples=32, score_threshold=0.01),
    )
    c.training = dict(steps=500, batch_size=16, checkpoint_every=250, evaluate_every=0)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.99)
    return complete(c)
