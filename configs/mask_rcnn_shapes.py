"""Mask R-CNN on `shapes`, for a laptop: with split heads on a pyramid, and `:c4` with a joint head on C4.

    detzoo train --config=mask_rcnn_shapes --workdir=runs/mask_rcnn
    detzoo train --config=mask_rcnn_shapes:c4 --workdir=runs/mask_rcnn_c4

Measured, seed 0, on 2 cores of an AMD EPYC: box AP 0.509, AP50 0.773 and mask AP 0.475, AP50 0.738 after 850 steps, which take
5.3 minutes where nothing else runs. `:c4` is for comparing RoI operators, see experiments/roi_features.py.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config: that of the pyramid by default, or 'c4'."""
    if arg not in (None, '', 'c4'):
        raise ConfigError(f"configs/mask_rcnn_shapes.py has the variant 'c4', not {arg!r}")
    c = ml_collections.ConfigDict()
    c.data = dict(name='shapes', canvases=((128, 128),), max_boxes=16, mask_size=56)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25))
    c.model = dict(
        name='mask_rcnn',
        backbone=dict(name='resnet18', width=0.25, norm='batch_norm'),  # 16 channels in the first stage
        fpn_features=48,
        trunk_features=128,
        # Objects are 14 to 70 pixels.
        rpn=dict(
            anchor_sizes=((16.0,), (24.0,), (36.0,), (54.0,), (80.0,)),
            aspect_ratios=(2 / 3, 1.0, 3 / 2),
            samples=64,
            pre_nms_topk=100,
            train_pre_nms_topk=100,
            post_nms_topk=50,
            train_post_nms_topk=100,
        ),
        roi=dict(output_size=5, canonical_size=56.0),
        head=dict(samples=32, score_threshold=0.01, max_detections=32),
        mask_roi=dict(output_size=10, canonical_size=56.0),
        mask=dict(layers=2, features=48),
    )
    if arg == 'c4':
        c.model.fpn_features = None
        c.model.rpn.anchor_sizes = ((16.0, 24.0, 36.0, 54.0, 80.0),)
        c.model.rpn.train_pre_nms_topk = c.model.rpn.pre_nms_topk = 200  # there is one level
        c.model.roi.output_size = 10  # the last stage halves it to 5
        c.model.mask = dict(layers=0, features=48)
    c.training = dict(steps=850, batch_size=16, checkpoint_every=425, evaluate_every=425)
    c.optimizer = dict(name='adamw', learning_rate=3e-3, warmup_steps=50, weight_decay=1e-4, ema_decay=0.995)
    return complete(c)
