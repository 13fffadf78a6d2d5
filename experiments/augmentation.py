"""What does each augmentation give, alone?

    detzoo sweep --experiment=augmentation --workdir=runs/augmentation
    detzoo sweep --experiment=augmentation:histology --workdir=runs/augmentation_histology
    detzoo report --workdir=runs/augmentation

The papers' answers, on COCO and with long trainings: large-scale jitter gains, copy-paste gains on top of it, and both gain more
where images are few (2012.07177); mosaic (YOLOv4, 2004.10934) and mixup (1902.04103) gain too. Cutout (1708.04552) is for
classification.

Held fixed: Mask R-CNN, data, steps, batch size, flips, rows of ground truth. Varied: one augmentation; three seeds each. `none` has
flips alone, at the scale of evaluation. `recipe` is the recipe of the config, for comparison: it varies the scale, on `histology`
turns and colours too. Trainings are short, which is against strong augmentation: 8 epochs of `shapes`, 300 of the 24 images of
`histology`.

It has not been run yet. By the times in docs/results.md, on 2 cores that do nothing else, it takes 2 hours on `shapes` (21 runs of
5.3 minutes) and 3 on `histology` (21 of up to 9).
"""

from typing import Any

from detzoo.sweeps.sweep import Run, Sweep, with_seeds

SEEDS = 0, 1, 2
METRICS = 'AP', 'AP50', 'mask_AP', 'mask_AP50'
CONFIGS = {'shapes': 'configs/mask_rcnn_shapes.py', 'histology': 'configs/mask_rcnn_histology.py'}
# The factor of the scale at which images are evaluated: a tile of `histology` is enlarged to twice the side of a training canvas.
SCALES = {'shapes': 1.0, 'histology': 2.0}
MAX_BOXES = {'shapes': 48, 'histology': 250}  # for the objects of several images


def augmentations(scale: float) -> dict[str, dict[str, Any]]:
    """Lists the keys of the recipe that each run changes, given the factor of the scale: {name: {key: value}}."""
    plain = dict(rotate90=False, color_jitter=0.0, scale_range=(scale, scale))
    jitter = dict(scale_range=(0.1 * scale, 2.0 * scale), uniform_scale=True, tight_boxes=True)
    return {
        'none': plain,
        'recipe': {},
        'large_scale_jitter': plain | jitter,
        'mosaic': plain | dict(mosaic=0.5),
        'mixup': plain | dict(mixup=0.5),
        'copy_paste': plain | dict(copy_paste=0.5),
        'cutout': plain | dict(cutout=0.5),
    }


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs on a data set: 'shapes' (the default) or 'histology'."""
    data = arg or 'shapes'
    if data not in CONFIGS:
        raise ValueError(f'experiments/augmentation.py has the variants {", ".join(CONFIGS)}, not {arg!r}')
    runs = [
        Run(
            name,
            CONFIGS[data],
            {'data.max_boxes': MAX_BOXES[data]} | {f'data.recipe.{key}': value for key, value in changes.items()},
        )
        for name, changes in augmentations(SCALES[data]).items()
    ]
    return Sweep(with_seeds(runs, SEEDS), METRICS)
