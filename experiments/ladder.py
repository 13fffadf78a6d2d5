"""What did each step from R-CNN to Faster R-CNN gain: in AP, in the time of an image, in the time of training?

    detzoo proposals --data=shapes --output=proposals --method=selective_search --width=128
    detzoo sweep --experiment=ladder --workdir=runs/ladder --costs
    detzoo report --workdir=runs/ladder

The papers' answers, on PASCAL VOC 2007 with proposals by selective search: R-CNN 58.5 mAP and 13 s an image on a GPU (1311.2524);
SPP-net 59.2 and convolutions in 0.3 s instead of 14 (1406.4729); Fast R-CNN, on a deeper network, 66.9, trained in one stage with
gradients through the RoIs (1504.08083); Faster R-CNN 69.9, without the seconds that the proposals took (1506.01497).

Held fixed: data, recipe, steps, batch size, optimiser; a ResNet-18 of 16 channels up to stride 8 and two fully connected layers,
which read 7 x 7 cells, in R-CNN of a crop and else of a RoI; sampled RoIs, losses, NMS; and the proposals, which all but `faster`
take from the same files. Varied: what the layers are run on, and what learns. `rcnn` runs them on each crop. `spp` runs the
backbone once an image, pools a pyramid of bins, and trains nothing below. `spp_trained` trains all. `fast` pools one grid, by
RoIPool. `faster` makes its own proposals. Three seeds.

There is no backbone that was trained before, so what `spp` pools stays as it was drawn; --config.initialize_backbone=FILE changes
that for all. Times of an image are without selective search, which takes 0.07 s of a core for an image of `shapes`.

`:histology` compares them on real tissue. `:shapes:sliding_window` and `:histology:sliding_window` take windows as proposals, which
need no other OpenCV: detzoo proposals --data=shapes --output=proposals. The files of proposals lie in the current folder.

It has not been run yet.
"""

from typing import Any

from detzoo.sweeps.sweep import Axes, Run, Sweep, with_seeds

SEEDS = 0, 1, 2
METRICS = 'AP', 'AP50', 'AP75'
FIGURES = (Axes('seconds', 'AP', log=True, pareto=True),)
METHODS = 'selective_search', 'sliding_window'
RCNN, FAST, FASTER = 'configs/rcnn_shapes.py', 'configs/fast_rcnn_shapes.py', 'configs/faster_rcnn_shapes.py'
BUDGET = {
    'training.steps': 500,
    'training.checkpoint_every': 250,
    'training.evaluate_every': 0,
    'optimizer.ema_decay': 0.99,
    'model.head.positive_share': 0.5,
    'model.head.iou_threshold': 0.5,
}
# What a config of another data set changes on each of the three.
DATA: dict[str, dict[str, Any]] = {
    'shapes': {'data.max_proposals': 500, 'model.head.samples': 16},
    'histology': {
        'data.name': 'histology',
        'data.canvases': ((256, 256),),
        'data.max_boxes': 100,
        'data.max_proposals': 1000,
        'data.recipe.rotate90': True,
        'data.recipe.scale_range': (1.5, 2.66),
        'data.recipe.color_jitter': 0.2,
        'evaluation.canvases': ((512, 512),),
        'evaluation.batch_size': 4,
        'training.batch_size': 8,
        'optimizer.weight_decay': 1e-2,
        'model.head.samples': 32,
        'model.head.max_detections': 200,
    },
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    'rcnn': (RCNN, {}),
    'spp': (f'{FAST}:spp', {}),
    'spp_trained': (f'{FAST}:spp', {'model.roi.stop_gradient': False}),
    'fast': (FAST, {}),
    'faster': (
        FASTER,
        {
            'model.backbone_strides': (8,),
            'model.fpn_features': None,
            'model.trunk_last_stage': False,
            'model.rpn.anchor_sizes': ((16.0, 24.0, 36.0, 54.0, 80.0),),
            'model.roi.operator': 'pool',
            'model.roi.output_size': 7,
        },
    ),
}
# Nuclei lie close to each other, and there are many.
RPN_HISTOLOGY = {
    'model.rpn.samples': 128,
    'model.rpn.pre_nms_topk': 300,
    'model.rpn.train_pre_nms_topk': 200,
    'model.rpn.post_nms_topk': 300,
    'model.rpn.train_post_nms_topk': 200,
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; arg: 'shapes' (the default) or 'histology', and after a colon one of METHODS, the first by default."""
    data, _, method = (arg or 'shapes').partition(':')
    method = method or METHODS[0]
    if data not in DATA or method not in METHODS:
        raise ValueError(f'experiments/ladder.py has the variants DATA:METHOD of {[*DATA]} and {METHODS}, not {arg!r}')
    runs = []
    for name, (config, changes) in ROWS.items():
        own = DATA[data] | changes
        if name != 'faster':
            own |= {
                f'data.{split}_proposals': f'proposals/{data}_{method}_{split}.json.gz'
                for split in ('train', 'validation')
            }
        elif data == 'histology':
            own |= RPN_HISTOLOGY
        runs.append(Run(name, config, BUDGET | own))
    return Sweep(with_seeds(runs, SEEDS), METRICS, FIGURES)
