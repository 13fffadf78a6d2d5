"""Any detector on your own data: what depends on the data is taken from them.

    detzoo prepare --format=coco --name=birds --train_annotations=a.json --train_images=images --validation_share=0.2
    detzoo train --config=own_data:retinanet --config.data.name=birds --workdir=runs/birds

The argument is a detector: faster_rcnn, mask_rcnn, retinanet, ssd, yolo (YOLO v3) or yolo_v2. It is trained from scratch, small
enough for a CPU. Or it is the workdir of imported weights (docs/weights.md), whose detector is then fine-tuned:

    detzoo train --config=own_data:runs/retinanet_coco --config.data.name=birds --workdir=runs/birds

The keys that are None (canvas, max_boxes, anchors, steps) are filled in when the run begins and stand in the workdir's
config.json; `detzoo browse` shows them first. `detzoo/training/from_data.py` has the rules. Each of them can be set:
--config.data.canvases='((512,512),)'. On a GPU --config.model.backbone.width=1 makes a whole ResNet-18, which can start from
ImageNet's weights: --config.initialize_backbone=resnet18-f37072fd.pth.
"""

import pathlib

import ml_collections

from detzoo.config import complete, read_config
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.errors import ConfigError
from detzoo.segmenters import SEGMENTERS

BACKBONE = dict(name='resnet18', width=0.25, norm='batch_norm')  # 16 channels in the first stage
TWO_STAGES = dict(
    backbone=BACKBONE,
    fpn_features=64,
    trunk_features=256,
    rpn=dict(
        anchor_sizes=None,
        pre_nms_topk=300,
        train_pre_nms_topk=300,
        post_nms_topk=300,
        train_post_nms_topk=300,
    ),
    roi=dict(output_size=7, canonical_size=112.0),
    head=dict(samples=64, positive_share=0.5, score_threshold=0.01, max_detections=200),
)
MODELS = dict(
    faster_rcnn=dict(TWO_STAGES, name='faster_rcnn'),
    mask_rcnn=dict(
        TWO_STAGES,
        name='mask_rcnn',
        mask_roi=dict(output_size=14, canonical_size=112.0),
        mask=dict(layers=2, features=64),
    ),
    retinanet=dict(
        name='retinanet',
        backbone=BACKBONE,
        fpn_features=64,
        head_depth=2,
        head_norm='group_norm',
        anchor_sizes=None,
        max_detections=200,
    ),
    ssd=dict(
        name='ssd',
        backbone=BACKBONE,
        backbone_strides=(8, 16, 32),
        l2_norm_scale=None,  # all levels are normalised alike
        extra_layers=((64, 128, 3, 2, 1),),  # a level of stride 64
        anchor_sizes=None,
        aspect_ratios=((1 / 2, 2),) * 4,
        anchor_strides=(8, 16, 32, 64),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    yolo=dict(
        name='yolo_v3',
        backbone=dict(name='tiny', width=0.5),
        small_head=True,
        head_features=256,
        prior_probability=0.01,
        anchor_sizes=None,
        max_detections=200,
    ),
    yolo_v2=dict(
        name='yolo_v2',
        backbone=dict(name='darknet19', width=0.25),
        backbone_stride=16,  # 32 in the paper
        prior_probability=0.1,
        warm_up_images=1600,
        anchor_sizes=None,
        max_detections=200,
    ),
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of a detector, or of the weights in a workdir."""
    c = ml_collections.ConfigDict()
    c.data = dict(name='', canvases=None, max_boxes=None)
    c.data.recipe = dict(flip=0.5, scale_range=(0.8, 1.25), color_jitter=0.2)
    c.training = dict(steps=None, batch_size=8, checkpoint_every=250, evaluate_every=500)
    c.evaluation = dict(batch_size=8)
    c.optimizer = dict(
        name='adamw', learning_rate=3e-3, warmup_steps=100, weight_decay=1e-2, ema_decay=0.995, clip_norm=10.0
    )
    if arg in MODELS:
        c.model = MODELS[arg]
    else:
        start_from(c, arg)
    side = 28 if arg in MODELS else 112
    c.data.mask_size = side if c.model.name in ('mask_rcnn', *SEGMENTERS) else 0
    return complete(c)


def start_from(c: ml_collections.ConfigDict, workdir: str | None) -> None:
    """Takes over the detector of a workdir, its way of resizing images, and its weights.

    Raises:
        ConfigError: it is no workdir.
    """
    path = pathlib.Path(workdir or '', 'config.json').expanduser()
    if not workdir or not path.exists():
        raise ConfigError(
            f'configs/own_data.py:{workdir or ""} needs one of {", ".join(MODELS)} after the colon, or the workdir of a '
            'run, which has a config.json'
        )
    source = read_config(path)
    c.initialize_from = workdir
    c.model = source.model
    c.data.recipe.update({key: source.data.recipe[key] for key in ('resize', 'interpolation')})
    if source.data.recipe.resize != 'fit':  # made for its canvas
        c.data.canvases = source.data.canvases
    c.evaluation.mask_paste = source.evaluation.mask_paste
    c.optimizer.learning_rate, c.optimizer.ema_decay = 1e-3, 0.99
