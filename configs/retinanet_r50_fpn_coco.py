"""RetinaNet R50-FPN on COCO: the recipe of *Focal Loss for Dense Object Detection* (arXiv 1708.02002, sections 4.1 and 5).

    detzoo prepare --name=coco \\
        --train_annotations=annotations/instances_train2017.json --train_images=train2017 \\
        --validation_annotations=annotations/instances_val2017.json --validation_images=val2017 \\
        --on_bad_record=skip
    detzoo train --config=retinanet_r50_fpn_coco --workdir=runs/retinanet_coco \\
        --config.initialize_backbone=resnet50-0676ba61.pth
    detzoo train --config=retinanet_r50_fpn_coco:scratch --workdir=runs/retinanet_coco_scratch

`--on_bad_record=skip` leaves bad records out and lists them. Two boxes of height 0 are known in train2017 (images 200365
and 550395). A long list means that an archive was not unpacked whole.

The first needs torchvision's ImageNet ResNet-50 (ResNet50_Weights.IMAGENET1K_V1), since frozen batch norm without its
statistics does not train; `:scratch` needs no weights: synchronised batch norm, group norm in the heads, three times the
steps.

Meant for 8 TPU chips (v5e-8, v4-16; 2 images each), or as many devices as divide 16. It was not trained here.
Published: 35.7 AP on test-dev (table 1e: ResNet-50, 800 pixels; val2017 are the images of the paper's minival), after 10
to 35 hours on 8 GPUs (section 4.1, the range of the table's models). No result of `:scratch` is published. The cost of a
step on TPUs, estimated on a machine without any:

    detzoo benchmark --config=retinanet_r50_fpn_coco --tpu=v5e:2x4

A step takes 208 ms (5.2 hours for the 90k steps) and 6.3 GB of a chip's 17.2. These are the compiler's estimates, not
measurements, without all-reduce and input pipeline.

One canvas of 1344 x 1344 takes every image as the paper resizes it, at the price of padding: a picture of 640 x 480 becomes
1067 x 800 and fills 47 % of it. Evaluation has one canvas for each orientation, with 60 % of the pixels. Training cannot do
the same: all images of a step share a canvas, and those of the other orientation would shrink.

Where the paper is silent or brief, its authors' code (github.com/facebookresearch/Detectron) decides: warm-up, the longer
side, frozen first layers, best anchors matched, the beta of smooth L1. Differences from that code: biases learn at the same
rate as weights (there at twice the rate); the warm-up starts at 1/500 of the rate (there at 1/3); blocks stride in their
3x3 convolution and pixels are RGB, as torchvision's weights expect. See also the end of `detzoo.detectors.retinanet`'s
docstring.
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError

CANVAS = 1344  # the longer side, rounded up to a multiple of the backbone's stride of 32


def get_config(arg=None):
    if arg not in (None, '', 'scratch'):
        raise ConfigError(f"retinanet_r50_fpn_coco has the variant 'scratch', not {arg!r}")
    scratch = arg == 'scratch'
    c = ml_collections.ConfigDict()

    c.data = ml_collections.ConfigDict()
    c.data.name = 'coco'
    c.data.canvases = ((CANVAS, CANVAS),)
    c.data.max_boxes = 100  # at most 93 objects an image in train2017
    c.data.threads = 32  # a TPU host has 100 or more
    c.data.empty_images = False  # as in Detectron; leaves 117,266 images of train2017
    c.data.recipe = dict(flip=0.5, shorter_side=800, longer_side=1333)  # horizontal flips only (section 4.1)

    c.model = ml_collections.ConfigDict()
    c.model.name = 'retinanet'
    # Batch norm is synchronised over all devices.
    c.model.backbone = dict(name='resnet50', norm='batch_norm' if scratch else 'frozen_batch_norm')
    if scratch:
        c.model.head_norm = 'group_norm'
    c.model.extra_levels_from = 'c5'  # P6 (section 4, footnote 2)
    c.model.prior_probability = 0.01  # pi (section 4.1)
    c.model.focal_gamma = 2.0  # table 1b
    c.model.focal_alpha = 0.25  # table 1b
    # The paper says "the standard smooth L1" of Fast R-CNN, with a beta of 1; Detectron's BBOX_REG_BETA has this value.
    c.model.box_loss_beta = 0.11
    c.model.match_best_anchors = True  # as in Detectron, there from an IoU of 0.4 on; the paper has only the threshold
    c.model.max_detections = 100
    c.model.dtype = 'bfloat16'

    c.training = ml_collections.ConfigDict()
    c.training.batch_size = 16  # 2 per core
    c.training.steps = 270_000 if scratch else 90_000
    c.training.checkpoint_every = 5000
    c.training.evaluate_every = 10_000

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = 'sgd'
    c.optimizer.learning_rate = 0.01
    c.optimizer.schedule = 'steps'
    # 60k and 80k of 90k (section 4.1); with three times the steps the low rates stay short.
    c.optimizer.decay_at = (210 / 270, 250 / 270) if scratch else (60 / 90, 80 / 90)
    c.optimizer.warmup_steps = 1000 if scratch else 500
    c.optimizer.momentum = 0.9
    c.optimizer.weight_decay = 1e-4
    c.optimizer.frozen = '' if scratch else r'backbone/(stem|stage1)'  # as in Detectron

    c.evaluation = dict(batch_size=16, canvases=((800, CANVAS), (CANVAS, 800)))  # each image has the one that fits
    return complete(c)
