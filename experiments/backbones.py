"""Does the order of detectors depend on the backbone under them?

    detzoo sweep --experiment=backbones --workdir=runs/backbones --costs
    detzoo report --workdir=runs/backbones

The paper's answer (Speed/accuracy trade-offs for modern convolutional object detectors, arXiv 1611.10012, section 4.1): the better
a feature extractor classifies ImageNet, the better Faster R-CNN and R-FCN detect with it; SSD depends less on it, and with
light ones it is ahead on large objects. The paper compares six extractors under three detectors; RetinaNet and YOLO v3 came later.

Held fixed: data, augmentation, steps, batch size, optimiser and its schedule, each detector's heads and anchors, norms. Varied:
the detector and its backbone, which has 16 channels in its first layer; two seeds. Laptop scale: nothing is trained on ImageNet
first. What counts is how well a backbone learns from 1600 pictures, not how well it classified before.
"""

from typing import Any

from detzoo.sweeps.sweep import Axes, Run, Sweep, with_seeds

CONFIGS = {
    'retinanet': 'configs/retinanet_shapes.py',
    'ssd': 'configs/ssd_shapes.py',
    'yolo': 'configs/yolo_shapes.py:v3',
    'faster_rcnn': 'configs/faster_rcnn_shapes.py',
}
WIDTHS = {'resnet18': 1 / 4, 'vgg16': 1 / 4, 'mobilenet_v2': 1 / 2}  # each makes 16 channels in the first layer
HEAD_FEATURES = 128  # features of YOLO's head, which also has the backbone's width
BUDGET = {
    'training.steps': 1000,
    'training.batch_size': 16,
    'training.checkpoint_every': 250,
    'training.evaluate_every': 500,
}
FIGURES = Axes('model.backbone.name', 'AP'), Axes('seconds', 'AP', log=True, pareto=True)


def on_backbone(detector: str, backbone: str) -> Run:
    """Makes a run of a detector on a backbone."""
    changes: dict[str, Any] = {
        'model.backbone.name': backbone,
        'model.backbone.width': WIDTHS[backbone],
        'model.backbone.norm': 'batch_norm',
        'model.backbone.norm_epsilon': 1e-5,
    }
    if backbone == 'vgg16':
        changes['model.backbone.fc6_dilation'] = 2  # the canvas has 4 x 4 cells of stride 32
    if detector == 'yolo':
        changes['model.head_features'] = round(HEAD_FEATURES / WIDTHS[backbone])
    return Run(f'{detector}_{backbone}', CONFIGS[detector], BUDGET | changes, series=detector)


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/backbones.py has no variant {arg!r}')
    runs = [on_backbone(detector, backbone) for backbone in WIDTHS for detector in CONFIGS]
    return Sweep(with_seeds(runs, (0, 1)), ('AP', 'AP50', 'AP75'), FIGURES)
