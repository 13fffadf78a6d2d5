"""Who proposes masks of objects better: windows that are scored and segmented, or a Mask R-CNN whose classes are ignored?

    detzoo sweep --experiment=mask_proposals --workdir=runs/mask_proposals
    detzoo report --workdir=runs/mask_proposals

DeepMask and SharpMask (arXiv 1506.06204, 1603.08695) were compared with each other, and with proposals from superpixels, not with a
region proposal network on the same backbone. On COCO, SharpMask's paper has an average recall of 27.6 for the masks of 100
proposals, and of 25.8 for DeepMask on the same backbone.

Held fixed: data, recipe, backbone, number of training images (SharpMask's second stage comes on top), 1000 proposals an image at
most. Varied: the detector, and for DeepMask and SharpMask whether an NMS removes proposals of the same object. The RPN always has
one, they have none in the papers. Average recall counts objects whatever their class, over IoU 0.50 to 0.95: of boxes (object AR),
of masks (mask object AR), and of the boxes that the RPN hands to the second stage (proposal AR). The detections of Mask R-CNN are
those of all classes, after the NMS within each.

No results are recorded yet, and its time is not measured.
"""

from detzoo.sweeps.sweep import Run, Sweep, with_seeds

SEEDS = 0, 1, 2
METRICS = tuple(f'{what}_AR{count}' for what in ('object', 'mask_object', 'proposal') for count in (10, 100, 1000))
BUDGET = {
    'training.steps': 600,
    'training.batch_size': 8,
    'training.checkpoint_every': 300,
    'training.evaluate_every': 0,
}
MANY = {'model.proposals.pre_nms_topk': 1000, 'model.proposals.max_detections': 1000}
NMS = {'model.proposals.iou_threshold': 0.7}
DEEPMASK, SHARPMASK = 'configs/deepmask_shapes.py', 'configs/sharpmask_shapes.py'
# The sweep fills in the run to start from.
SECOND_STAGE = BUDGET | MANY | {'training.steps': 300, 'initialize_from': None}
MASK_RCNN = {
    'model.backbone.norm': 'group_norm',
    'model.rpn.pre_nms_topk': 1000,
    'model.rpn.post_nms_topk': 1000,
    'model.head.max_detections': 1000,
    'model.head.pre_nms_topk': 5000,
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/mask_proposals.py has no variant {arg!r}')
    runs = [
        Run('deepmask', DEEPMASK, BUDGET | MANY),
        Run('deepmask_nms', DEEPMASK, BUDGET | MANY | NMS, trained='deepmask'),
        Run('sharpmask', SHARPMASK, SECOND_STAGE, initialized='deepmask'),
        Run('sharpmask_nms', SHARPMASK, SECOND_STAGE | NMS, trained='sharpmask', initialized='deepmask'),
        Run('mask_rcnn', 'configs/mask_rcnn_shapes.py', BUDGET | MASK_RCNN),
    ]
    return Sweep(with_seeds(runs, SEEDS), METRICS)
