"""Which detector finds most in a given time?

    detzoo sweep --experiment=speed_accuracy --workdir=runs/speed_accuracy --costs
    detzoo report --workdir=runs/speed_accuracy

The paper's answer (Speed/accuracy trade-offs for modern convolutional object detectors, arXiv 1611.10012): SSD and R-FCN
are fastest, Faster R-CNN is most accurate and slower, unless it takes fewer proposals: with 50 instead of 300 it is about as
fast as R-FCN, at little loss. Smaller images cost less and lose most on small objects. YOLO, RetinaNet and Mask R-CNN came
later, or are not in the paper.

Held fixed: data, augmentation, steps, batch size, optimiser and its schedule, how detections are evaluated, seed; the
backbone is a ResNet-18 of 16 channels for all but YOLO, which has its own. Varied: the detector and the canvas; the sizes of
anchors and RoIs follow the canvas. The learning rate is that of the detector's config.

`:histology` compares them on real tissue, with two seeds. `:bccd` compares four of them, all but Mask R-CNN, on photographs of
blood cells of 640 x 480 pixels, which have boxes but no masks; docs/own_data.md says where they come from and how to prepare
them. There SSDLite on MobileNetV2 stands beside them, from scratch and from torchvision's ImageNet classifier, a file in the
folder weights/, or in FOLDER with `:bccd:FOLDER`; it takes 300 steps instead of 900, since one costs three times as much or more.
This has not been run yet; by the times of single steps, all runs take some two and a half hours of one core.

`:coco` is the experiment at full scale, with backbones, canvases and
numbers of proposals; it has not been run yet. Its 50 runs are 22 trainings: runs that differ only in the number of proposals or
in the canvas of prediction share a training. Each training starts from an ImageNet classifier, a file of BACKBONES in the folder
weights/, or in FOLDER with `:coco:FOLDER`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from detzoo.sweeps.sweep import Axes, Run, Sweep, config_of, with_seeds

FIGURES = Axes('seconds', 'AP', log=True, pareto=True), Axes('seconds', 'APs', log=True, pareto=True)
FAMILIES = {
    'retinanet': 'retinanet_{}.py',
    'yolo': 'yolo_{}.py:v3',
    'ssd': 'ssd_{}.py',
    'faster_rcnn': 'faster_rcnn_{}.py',
    'mask_rcnn': 'mask_rcnn_{}.py',
}
SIZED = 'model.anchor_sizes', 'model.rpn.anchor_sizes', 'model.roi.canonical_size', 'model.mask_roi.canonical_size'
SIDES = 128, 96  # pixels; images of `shapes` are 96 to 128 pixels wide and high
# Names of files from torchvision (ResNet50_Weights.IMAGENET1K_V1, ResNet101_Weights.IMAGENET1K_V1,
# VGG16_Weights.IMAGENET1K_FEATURES, MobileNet_V2_Weights.IMAGENET1K_V1) and from darknet's page.
BACKBONES = {
    'r50': 'resnet50-0676ba61.pth',
    'r101': 'resnet101-63fe2227.pth',
    'vgg16': 'vgg16_features-amdegroot-88682ab5.pth',
    'yolov2': 'darknet19_448.conv.23',
    'yolov3': 'darknet53.conv.74',
    'mobilenet_v2': 'mobilenet_v2-b0353104.pth',
}
BUDGET = {
    'training.steps': 1000,
    'training.batch_size': 16,
    'training.checkpoint_every': 250,
    'training.evaluate_every': 500,
}


# Half the size of the photographs: platelets are 13 to 38 pixels there, red cells 32 to 70, white cells 48 to 150.
BCCD = {
    'data.name': 'bccd',
    'data.canvases': ((256, 320),),
    'data.max_boxes': 32,
    'data.recipe.scale_range': (0.8, 1.25),
    'evaluation.canvases': ((256, 320),),
    'training.steps': 900,
    'training.checkpoint_every': 300,
    'training.evaluate_every': 450,
}
LITE_BUDGET = {'training.steps': 300, 'training.checkpoint_every': 100, 'training.evaluate_every': 150}
BCCD_ANCHORS = {
    'retinanet': {},
    'yolo': {
        'model.anchor_sizes': (
            ((20.0, 20.0), (44.0, 42.0), (56.0, 46.0)),
            ((48.0, 54.0), (62.0, 58.0), (106.0, 96.0)),
        )
    },
    'ssd': {'model.anchor_sizes': (20.0, 48.0, 80.0, 120.0)},
    'faster_rcnn': {'model.rpn.anchor_sizes': ((16.0,), (28.0,), (48.0,), (76.0,), (120.0,))},
}


def scaled(value: Any, factor: float) -> Any:
    """Multiplies the numbers in nested tuples."""
    return tuple(scaled(part, factor) for part in value) if isinstance(value, (tuple, list)) else value * factor


def on_canvas(config: str, side: int, before: int) -> dict[str, Any]:
    """Lists the changes that resize a config's square canvases, and all sizes in pixels with them: {key: value}."""
    whole = config_of(Run('', config))
    sized = {key: scaled(value, side / before) for key in SIZED if (value := _get(whole, key)) is not None}
    return {'data.canvases': ((side, side),), **sized}


def _get(config: Any, key: str) -> Any:
    """Reads a dotted key; None if a part of it does not exist."""
    for part in key.split('.'):
        config = config.get(part) if config is not None else None
    return config


def shapes() -> list[Run]:
    """Makes the runs of five detectors on two canvases."""
    configs = {family: f'configs/{file.format("shapes")}' for family, file in FAMILIES.items()}
    return [
        Run(f'{family}_{side}', config, {**BUDGET, **on_canvas(config, side, 128)}, series=family)
        for side in SIDES
        for family, config in configs.items()
    ]


def histology() -> list[Run]:
    """Makes the runs of five detectors with two seeds."""
    runs = [Run(family, f'configs/{file.format("histology")}', series=family) for family, file in FAMILIES.items()]
    return with_seeds(runs, (0, 1))


def bccd(weights: str) -> list[Run]:
    """Makes runs on blood cells with two seeds; weights: folder of BACKBONES."""
    runs = [
        Run(family, f'configs/{FAMILIES[family].format("histology")}', {**BCCD, **anchors}, series=family)
        for family, anchors in BCCD_ANCHORS.items()
    ]
    lite = {**BCCD, 'model.anchor_sizes': (20.0, 55.0, 120.0), **LITE_BUDGET}
    pretrained = {'initialize_backbone': f'{weights}/{BACKBONES["mobilenet_v2"]}'}
    for name, changes in (('ssdlite', lite), ('ssdlite_imagenet', lite | pretrained)):
        runs.append(Run(name, 'configs/ssd_histology.py:mobilenet_v2', changes, series=name))
    return with_seeds(runs, (0, 1))


def coco(weights: str) -> list[Run]:
    """Makes runs of the COCO configs with several backbones, canvases and numbers of proposals; weights: folder of BACKBONES."""

    def backbone(name: str) -> dict[str, Any]:
        return {'initialize_backbone': f'{weights}/{BACKBONES[name]}'}

    runs = []
    for family in ('retinanet', 'faster_rcnn', 'mask_rcnn'):
        config = f'configs/{family}_r50_fpn_coco.py'
        for depth in (50, 101):
            for shorter, longer in ((800, 1333), (600, 1000), (400, 667)):
                name = f'{family}_r{depth}'
                changes = {'model.backbone.name': f'resnet{depth}', **backbone(f'r{depth}'), **resized(shorter, longer)}
                if family == 'retinanet':
                    runs.append(Run(f'{name}_{shorter}', config, changes, series=name))
                else:
                    counts = {
                        f'{name}_{shorter}_{count}': {'model.rpn.post_nms_topk': count} for count in (1000, 300, 50)
                    }
                    runs += sharing(counts, config, changes, series=[f'{name}_{count}' for count in (1000, 300, 50)])
    for side in (300, 512):
        runs.append(Run(f'ssd_{side}', f'configs/ssd_vgg16_coco.py:{side}', backbone('vgg16'), series='ssd'))
    for name in ('yolov2', 'yolov3'):
        canvases = {f'{name}_{side}': {'evaluation.canvases': ((side, side),)} for side in (608, 416, 320)}
        runs += sharing(canvases, f'configs/{name}_coco.py', backbone(name), series=[name] * 3)
    return runs


def resized(shorter: int, longer: int) -> dict[str, Any]:
    """Lists the changes for images with at most these sides, on canvases rounded up to multiples of 32: {key: value}."""
    short, long = (-(-side // 32) * 32 for side in (shorter, longer))
    return {
        'data.recipe.shorter_side': shorter,
        'data.recipe.longer_side': longer,
        'data.canvases': ((long, long),),
        'evaluation.canvases': ((short, long), (long, short)),
    }


def sharing(
    predictions: dict[str, dict[str, Any]], config: str, changes: dict[str, Any], series: Sequence[str]
) -> list[Run]:
    """Makes runs that share the training of the first; predictions: {name: changes for prediction}."""
    trained = next(iter(predictions))
    return [
        Run(name, config, changes | more, series=line, trained=trained if name != trained else '')
        for (name, more), line in zip(predictions.items(), series, strict=True)
    ]


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs of a variant: 'shapes' (the default), 'histology', 'bccd' or 'coco', the last two with a folder of weights."""
    variant, _, weights = (arg or 'shapes').partition(':')
    folder = weights or 'weights'
    variants = dict(shapes=shapes, histology=histology, bccd=partial(bccd, folder), coco=partial(coco, folder))
    if variant not in variants or (weights and variant not in ('bccd', 'coco')):
        raise ValueError(
            f'experiments/speed_accuracy.py has the variants {", ".join(variants)} (bccd:FOLDER, coco:FOLDER), not {arg!r}'
        )
    return Sweep(variants[variant](), ('AP', 'AP50', 'AP75', 'APs', 'APm'), FIGURES)
