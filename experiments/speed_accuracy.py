"""Which detector finds most in a given time?

    python scripts/sweep.py --experiment=experiments/speed_accuracy.py --workdir=runs/speed_accuracy --costs
    python scripts/report.py --workdir=runs/speed_accuracy

The paper's answer (Speed/accuracy trade-offs for modern convolutional object detectors, arXiv 1611.10012): SSD and R-FCN
are fastest, Faster R-CNN is most accurate and slower, unless it takes fewer proposals: with 50 instead of 300 it is about as
fast as R-FCN, at little loss. Smaller images cost less and lose most on small objects. YOLO, RetinaNet and Mask R-CNN came
after it, or are not in it.

Held fixed: data, augmentation, steps, batch size, optimiser and its schedule, how detections are evaluated, seed; the
backbone is a ResNet-18 of 16 channels for all but YOLO, which has its own. Varied: the detector and the canvas; the sizes of
anchors and RoIs follow the canvas. The learning rate is that of the detector's config.

`:histology` compares on real tissue, with two seeds. `:coco` is the experiment at scale: backbones, canvases and
numbers of proposals; nobody trained it yet.
"""

from typing import Any

from detzoo.comparison.sweep import Axes, Run, Sweep, config_of, with_seeds

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
BUDGET = {'training.steps': 1000, 'training.batch_size': 16, 'training.checkpoint_every': 250, 'training.evaluate_every': 500}


def scaled(value: Any, factor: float) -> Any:
    """Multiplies the numbers in nested tuples."""
    return tuple(scaled(part, factor) for part in value) if isinstance(value, (tuple, list)) else value * factor


def on_canvas(config: str, side: int, before: int) -> dict[str, Any]:
    """The changes that bring a config from square canvases of one side to those of another, with all that is as large."""
    whole = config_of(Run('', config))
    sized = {key: scaled(value, side / before) for key in SIZED if (value := _get(whole, key)) is not None}
    return {'data.canvases': ((side, side),), **sized}


def _get(config: Any, key: str) -> Any:
    """Reads a dotted key, or None where a part of it is not there."""
    for part in key.split('.'):
        config = config.get(part) if config is not None else None
    return config


def shapes() -> list[Run]:
    """Five detectors on two canvases."""
    configs = {family: f'configs/{file.format("shapes")}' for family, file in FAMILIES.items()}
    return [
        Run(f'{family}_{side}', config, {**BUDGET, **on_canvas(config, side, 128)}, series=family)
        for side in SIDES
        for family, config in configs.items()
    ]


def histology() -> list[Run]:
    """Five detectors, two seeds."""
    runs = [Run(family, f'configs/{file.format("histology")}', series=family) for family, file in FAMILIES.items()]
    return with_seeds(runs, (0, 1))


def coco() -> list[Run]:
    """The detectors' recipes, with backbones, canvases and numbers of proposals."""
    runs = []
    for family in ('retinanet', 'faster_rcnn', 'mask_rcnn'):
        config = f'configs/{family}_r50_fpn_coco.py'
        for depth in (50, 101):
            for shorter, longer in ((800, 1344), (600, 1024), (400, 672)):
                changes = {
                    'model.depth': depth,
                    'data.canvases': ((longer, longer),),
                    'data.recipe.shorter_side': shorter,
                    'data.recipe.longer_side': longer,
                    'evaluation.canvases': ((-(-shorter // 32) * 32, longer), (longer, -(-shorter // 32) * 32)),
                }
                proposals = (1000,) if family == 'retinanet' else (1000, 300, 50)
                for count in proposals:
                    name = f'{family}_r{depth}_{shorter}'
                    if family == 'retinanet':
                        runs.append(Run(name, config, changes, series=f'{family}_r{depth}'))
                    else:
                        more = {'model.rpn.post_nms_topk': count}
                        runs.append(Run(f'{name}_{count}', config, changes | more, series=f'{family}_r{depth}_{count}'))
    runs += [Run(f'ssd_{side}', f'configs/ssd_vgg16_coco.py:{side}', series='ssd') for side in (300, 512)]
    for version in ('v2', 'v3'):
        for side in (320, 416, 608):
            changes = {'evaluation.canvases': ((side, side),)}
            runs.append(Run(f'yolo{version}_{side}', f'configs/yolo{version}_coco.py', changes, series=f'yolo{version}'))
    return runs


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs: of 'shapes', the default, 'histology' or 'coco'."""
    variants = dict(shapes=shapes, histology=histology, coco=coco)
    if (arg or 'shapes') not in variants:
        raise ValueError(f'experiments/speed_accuracy.py has the variants {", ".join(variants)}, not {arg!r}')
    return Sweep(variants[arg or 'shapes'](), ('AP', 'AP50', 'AP75', 'APs', 'APm'), FIGURES)
