"""How much do RoIs that are not rounded matter, and does it matter how a bin is reduced?

    detzoo sweep --experiment=roi_features --workdir=runs/roi_features
    detzoo report --workdir=runs/roi_features

The paper's answer (Mask R-CNN, arXiv 1703.06870, table 2c, ResNet-50-C4): RoIAlign gains three points of mask AP and five
of AP75 over RoIPool, because it does not round; RoIWarp, which interpolates but rounds, gains next to nothing. Maximum or
average makes no difference.

Held fixed: the detector (joint head on C4, as there), data, recipe, steps, seed. Varied: the RoI operator and its
reduction. Laptop scale: objects of 14 to 70 pixels are one to four cells wide at stride 16, so rounding changes them more than in
the paper.
"""

from detzoo.sweeps.sweep import Run, Sweep

CONFIG = 'configs/mask_rcnn_shapes.py:c4'
BUDGET = {'training.steps': 700, 'training.checkpoint_every': 350, 'training.evaluate_every': 350}
METRICS = 'mask_AP', 'mask_AP50', 'mask_AP75'
# Published: mask AP, AP50, AP75 of table 2c.
ROWS = {
    'pool_max': (dict(operator='pool'), (26.9, 48.8, 26.4)),
    'warp_max': (dict(operator='warp', reduce='max'), (27.2, 49.2, 27.1)),
    'warp_average': (dict(operator='warp', reduce='average'), (27.1, 48.9, 27.1)),
    'align_max': (dict(operator='align', reduce='max'), (30.2, 51.0, 31.8)),
    'align_average': (dict(operator='align', reduce='average'), (30.3, 51.2, 31.5)),
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/roi_features.py has no variant {arg!r}')
    runs = [
        Run(
            name,
            CONFIG,
            BUDGET | {f'model.roi.{key}': value for key, value in changes.items()},
            dict(zip(METRICS, published)),
        )
        for name, (changes, published) in ROWS.items()
    ]
    return Sweep(runs, METRICS)
