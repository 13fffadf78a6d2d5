"""Mask R-CNN R50-C4 on COCO: *Mask R-CNN* (arXiv 1703.06870).

    detzoo prepare --name=coco \\
        --train_annotations=annotations/instances_train2017.json --train_images=train2017 \\
        --validation_annotations=annotations/instances_val2017.json --validation_images=val2017 \\
        --on_bad_record=skip
    detzoo train --config=mask_rcnn_r50_c4_coco --workdir=runs/mask_rcnn_r50_c4_coco \\
        --config.initialize_backbone=resnet50-0676ba61.pth

`--on_bad_record=skip` leaves bad records out and lists them. Two boxes of height 0 are known in train2017 (images 200365
and 550395). A long list means that an archive was not unpacked whole.

It needs torchvision's ImageNet ResNet-50 (ResNet50_Weights.IMAGENET1K_V1), since frozen batch norm without its statistics
does not train. Meant for 8 TPU chips (2 images each), or as many devices as divide 16. It was not trained here.
Published: 35.8 box AP and 31.4 mask AP on val2017 (Detectron's model zoo, R-50-C4, 1x: there 1 image a device, half the rate,
twice the steps); in the paper 30.3 mask AP (table 2a).

One canvas of 1344 x 1344 takes every image as the paper resizes it, at the price of padding; evaluation has one for each
orientation.

Where the papers are silent or brief, their authors' code (github.com/facebookresearch/Detectron, its config
12_2017_baselines/e2e_mask_rcnn_R-50-C4_1x) decides. Differences from that code: biases learn at the same rate as weights
(there at twice the rate); the warm-up starts at 1/500 of the rate (there at 1/3); anchors that leave the image are trained
too; blocks stride in their 3x3 convolution and pixels are RGB, as torchvision's weights expect; mask logits start at a
deviation of 0.01 (there from He's initialisation).
"""

import ml_collections

from detzoo.config import complete
from detzoo.errors import ConfigError

CANVAS = 1344  # the longer side, rounded up to a multiple of the backbone's stride of 32


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config; it has no variants."""
    if arg:
        raise ConfigError(f'configs/mask_rcnn_r50_c4_coco.py has no variant {arg!r}')
    c = ml_collections.ConfigDict()

    c.data = ml_collections.ConfigDict()
    c.data.name = 'coco'
    c.data.canvases = ((CANVAS, CANVAS),)
    c.data.max_boxes = 100  # at most 93 objects an image in train2017
    c.data.mask_size = 112  # cells along a side of a mask
    c.data.threads = 32  # a TPU host has 100 or more
    c.data.empty_images = False  # as in Detectron; leaves 117,266 images of train2017
    c.data.recipe = dict(flip=0.5, shorter_side=800, longer_side=1333)  # horizontal flips only

    c.model = ml_collections.ConfigDict()
    c.model.name = 'mask_rcnn'
    c.model.backbone = dict(name='resnet50', norm='frozen_batch_norm')
    c.model.fpn_features = None  # C4: RoIs are read at stride 16, and the ResNet's last stage runs on each
    c.model.rpn = dict(
        anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
        train_pre_nms_topk=12000,
        train_post_nms_topk=2000,
        pre_nms_topk=6000,
        post_nms_topk=1000,
    )
    # As many samples as a RoI's size needs, but at most 4 x 4 per bin. RoIs that need more (from 897 pixels on) are counted.
    c.model.roi = dict(output_size=14, samples_per_bin=0, max_samples_per_bin=4, aligned=False)
    c.model.head = dict(samples=512, positive_share=0.25, box_loss_beta=1.0)
    c.model.mask = dict(layers=0, features=256)  # figure 4, left: a deconvolution alone, masks of 14 x 14
    c.model.dtype = 'bfloat16'

    c.training = ml_collections.ConfigDict()
    c.training.batch_size = 16  # 2 per chip
    c.training.steps = 90_000
    c.training.checkpoint_every = 5000
    c.training.evaluate_every = 10_000

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = 'sgd'
    c.optimizer.learning_rate = 0.02
    c.optimizer.schedule = 'steps'
    c.optimizer.decay_at = (60 / 90, 80 / 90)
    c.optimizer.warmup_steps = 500
    c.optimizer.momentum = 0.9
    c.optimizer.weight_decay = 1e-4
    c.optimizer.frozen = r'backbone/(stem|stage1)'

    c.evaluation = dict(batch_size=16, canvases=((800, CANVAS), (CANVAS, 800)))  # each image has the one that fits
    return complete(c)
