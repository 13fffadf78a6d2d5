"""What tests of several rooms name: the tiny variant of each detector, and the toy data's classes."""

import pathlib

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
OPTIMIZED = {'xla_backend_optimization_level': 1}  # compiler options of jit

COLORS = np.array([(230, 40, 40), (40, 230, 40), (40, 40, 230)], np.uint8)  # the toy data's classes: blocks of a colour
CATEGORY_IDS = (3, 8, 9)


def draw_blocks(seed, height, width, count):
    """Draws blocks that do not touch, on gray noise.

    Returns:
        [height, width, 3] uint8, boxes [n, 4] float64 xywh with whole coordinates, labels [n]; n <= count.
    """
    rng = np.random.RandomState(seed)
    image = np.repeat(rng.randint(90, 150, (height, width, 1)), 3, axis=2).astype(np.uint8)
    taken = np.zeros((height, width), bool)
    boxes, labels = [], []
    for _ in range(4 * count):
        w, h = rng.randint(10, 28, 2).clip(max=(width, height))
        x, y = rng.randint(width - w + 1), rng.randint(height - h + 1)
        label = rng.randint(len(COLORS))
        if len(boxes) < count and not taken[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2].any():
            taken[y : y + h, x : x + w] = True
            image[y : y + h, x : x + w] = COLORS[label]
            boxes.append([x, y, w, h])
            labels.append(label)
    return image, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def with_backbone(model, **changes):
    """The arguments of a detector, of which those in its group `backbone` are changed."""
    return model | dict(backbone={**model.get('backbone', {}), **changes})


# The one network all tests of RetinaNet, of training and of prediction compile: 64 x 64, 8 images of at most 4 objects.
TINY_RETINANET = dict(
    name='retinanet',
    backbone=dict(name='resnet18', width=0.125, norm='batch_norm'),
    fpn_features=24,
    head_depth=1,
    head_norm='group_norm',
    anchor_sizes=((12.0,), (20.0,), (32.0,), (48.0,), (64.0,)),
    score_threshold=0.001,
    max_detections=10,
)
TINY_FASTER_RCNN = dict(
    name='faster_rcnn',
    backbone=dict(name='resnet18', width=0.125, norm='batch_norm'),
    fpn_features=24,
    trunk_features=64,
    rpn=dict(
        anchor_sizes=((8.0,), (12.0,), (20.0,), (32.0,), (48.0,)),
        samples=64,
        train_pre_nms_topk=64,
        pre_nms_topk=64,
        train_post_nms_topk=48,
        post_nms_topk=32,
    ),
    roi=dict(output_size=4, canonical_size=32.0),
    head=dict(samples=32, positive_share=0.5, score_threshold=0.001, max_detections=10),
)
TINY_FASTER_RCNN_C4 = TINY_FASTER_RCNN | dict(
    fpn_features=None,
    rpn=TINY_FASTER_RCNN['rpn'] | dict(anchor_sizes=((8.0, 12.0, 20.0, 32.0, 48.0),)),
    roi=dict(output_size=6),
)
# As torchvision's second version: norms everywhere, convolutions in the head, two in the RPN.
TINY_FASTER_RCNN_V2 = TINY_FASTER_RCNN | dict(
    fpn_norm='batch_norm',
    trunk_conv_layers=2,
    trunk_fc_layers=1,
    trunk_norm='batch_norm',
    rpn=TINY_FASTER_RCNN['rpn'] | dict(layers=2),
)
TINY_FASTER_RCNN_MOBILENET = TINY_FASTER_RCNN | dict(
    backbone=dict(name='mobilenet_v3_large', width=0.35, norm='batch_norm', reduced_tail=False),
    backbone_strides=(32, 32),
    rpn=TINY_FASTER_RCNN['rpn'] | dict(anchor_sizes=((8.0, 12.0, 20.0, 32.0, 48.0),) * 3, score_threshold=0.05),
)
# As Fast R-CNN was published: one feature map, and fully connected layers; its bins are those of SPP-net.
TINY_SPP = TINY_FASTER_RCNN | dict(
    fpn_features=None,
    trunk_last_stage=False,
    backbone_strides=(8,),
    rpn=TINY_FASTER_RCNN['rpn'] | dict(anchor_sizes=((8.0, 12.0, 20.0, 32.0, 48.0),)),
    roi=dict(operator='pyramid', pyramid=(1, 2, 3)),
)
TINY_RCNN = dict(
    name='rcnn',
    backbone=dict(name='tiny', width=0.25, norm='batch_norm'),
    backbone_stride=8,
    crop_size=32,
    context=4,
    trunk_features=64,
    head=dict(samples=24, positive_share=0.5, score_threshold=0.001, max_detections=10),
)
TINY_MASK_RCNN = TINY_FASTER_RCNN | dict(
    name='mask_rcnn',
    mask_roi=dict(output_size=4, canonical_size=32.0),
    mask=dict(layers=1, features=24),
)
TINY_MASK_RCNN_C4 = TINY_FASTER_RCNN_C4 | dict(name='mask_rcnn', mask=dict(layers=0, features=24))
TINY_MASK_RCNN_V2 = (
    TINY_MASK_RCNN | TINY_FASTER_RCNN_V2 | dict(name='mask_rcnn', mask=dict(layers=1, features=24, norm='batch_norm'))
)
TINY_DEEPMASK = dict(
    name='deepmask',
    backbone=dict(name='resnet18', width=0.125, norm='batch_norm'),
    backbone_stride=4,
    windows=dict(
        size=32,
        scales=(0.75, 1.5),
        object_share=0.6,
        shift=0.1,
        octaves=0.5,
        negative_shift=0.2,
        samples=24,
    ),
    features=24,
    rank=32,
    score_features=32,
    dropout=0.0,
    score_loss_weight=1.0,
    mask_size=16,
    proposals=dict(mask_threshold=0.5, pre_nms_topk=64, iou_threshold=0.5, max_detections=10),
)
TINY_SHARPMASK = {
    **{key: value for key, value in TINY_DEEPMASK.items() if key != 'mask_size'},
    **dict(name='sharpmask', backbone_stride=8, refine_strides=(4,), refine_features=8, hidden_features=(8, 8)),
    'windows': TINY_DEEPMASK['windows'] | dict(shift=0.13, negative_shift=0.26),  # windows lie twice as far apart
}
TINY_MNC = dict(
    name='mnc',
    backbone=TINY_FASTER_RCNN['backbone'],
    rpn=TINY_FASTER_RCNN_C4['rpn'],
    output_size=6,
    mask_features=24,
    head=TINY_FASTER_RCNN['head'],
)
TINY_SDS = dict(
    name='sds',
    backbone=TINY_FASTER_RCNN['backbone'],
    fpn_features=24,
    trunk_features=64,
    roi=TINY_FASTER_RCNN['roi'],
    head=dict(samples=16, positive_share=0.5, score_threshold=0.001, max_detections=10),
)
TINY_SSD = dict(
    name='ssd',
    backbone=dict(name='vgg16', width=0.125, norm='batch_norm', fc6_dilation=2),
    extra_layers=((16, 32, 3, 2, 1),),
    anchor_sizes=(12, 20, 28, 36),
    aspect_ratios=((1 / 2, 2),) * 3,
    anchor_strides=(8, 16, 32),
    std=(58, 57, 57),
    score_threshold=0.001,
    max_detections=10,
)
TINY_SSD_RESNET = TINY_SSD | dict(
    backbone=dict(name='resnet18', width=0.125, norm='batch_norm'),
    backbone_strides=(8, 16, 32),
    l2_norm_scale=None,
    extra_layers=(),
)
TINY_SSDLITE = TINY_SSD | dict(
    backbone=dict(name='mobilenet_v3_large', width=0.35, norm='batch_norm', norm_epsilon=1e-3),
    backbone_strides=(16, 32),
    l2_norm_scale=None,
    lite=True,
    anchor_strides=(),
)
# Strides of 4 to 8, so that few of the toy objects share a cell.
TINY_YOLO_V1 = dict(
    name='yolo_v1',
    backbone=dict(name='tiny', width=0.25),
    backbone_stride=4,
    head_features=(256, 32),
    local_features=None,
    score_threshold=1e-6,
    max_detections=10,  # products of two numbers that start near 0
)
TINY_YOLO_V2 = dict(
    name='yolo_v2',
    backbone=dict(name='darknet19', width=0.125),
    backbone_stride=8,
    head_features=(256, 256, 256),
    warm_up_images=16,
    anchor_sizes=((12.0, 12.0), (20.0, 20.0), (14.0, 24.0), (24.0, 14.0)),
    score_threshold=0.001,
    max_detections=10,
)
TINY_YOLO_V3 = dict(
    name='yolo_v3',
    backbone=dict(name='darknet53', width=0.125),
    backbone_stride=8,
    head_features=256,
    prior_probability=0.01,
    anchor_sizes=(((12.0, 12.0), (12.0, 20.0), (20.0, 12.0)), ((18.0, 18.0), (24.0, 24.0), (28.0, 28.0))),
    score_threshold=0.001,
    max_detections=10,
)
