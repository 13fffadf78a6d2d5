"""Fast R-CNN on `shapes`, and SPP-net as `fast_rcnn_shapes:spp`, for a laptop.

    detzoo proposals --data=shapes --output=proposals
    detzoo train --config=fast_rcnn_shapes --workdir=runs/fast_rcnn
    detzoo train --config=fast_rcnn_shapes:spp --workdir=runs/spp

All commands want the same current folder, in which the files of proposals lie. Both are built as they were published, on one
feature map without a pyramid, with RoIPool or a pyramid of bins. SPP-net's backbone does not learn from RoIs. Here it starts from
nothing, so its features stay as they were drawn; `initialize_backbone` or `initialize_from` give it better ones.

Measured, seed 0, after 1000 steps: Fast R-CNN AP 0.452, AP50 0.709, SPP-net AP 0.212, AP50 0.371, in 2.9 and 2.4 minutes on two
cores of an AMD EPYC, beside other work. The proposals were those of `detzoo proposals --data=shapes --output=proposals
--method=selective_search --width=128`, named by `data.train_proposals` and `data.validation_proposals`. Not measured with windows.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError

VARIANTS = {
    'fast': dict(operator='pool', output_size=7),
    'spp': dict(operator='pyramid', pyramid=(1, 2, 3, 6), stop_gradient=True),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; arg: 'fast' (the default) or 'spp'."""
    if (arg or 'fast') not in VARIANTS:
        raise ConfigError(f"configs/fast_rcnn_shapes.py has no variant {arg!r}: use 'fast' or 'spp'")
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, max_proposals=500)
    c.data.train_proposals = 'proposals/shapes_sliding_window_train.json.gz'
    c.data.validation_proposals = 'proposals/shapes_sliding_window_validation.json.gz'
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='faster_rcnn',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        backbone_strides=(8,),
        fpn_features=None,
        trunk_last_stage=False,
        trunk_features=128,
        rpn=None,
        roi=VARIANTS[arg or 'fast'],
        head=dict(samples=32, score_threshold=0.01),
    )
    c.training = dict(steps=1000, batch_size=16, checkpoint_every=250, evaluate_every=500)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.99)
    return complete(c)
