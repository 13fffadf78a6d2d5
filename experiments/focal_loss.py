"""Does a dense detector need the focal loss, or will balanced cross-entropy or hard negatives do?

    detzoo sweep --experiment=focal_loss --workdir=runs/focal_loss
    detzoo report --workdir=runs/focal_loss

The paper's answer (Focal Loss for Dense Object Detection, arXiv 1708.02002, tables 1a and 1b, RetinaNet on ResNet-50-FPN, 600
pixels): focusing gains up to 2.9 AP over the best balanced cross-entropy; gamma 2 is best, and alpha falls as gamma rises. With
hard negatives, three to a positive, RetinaNet on ResNet-101 stays 4.9 AP behind the focal loss (table 1d: 31.1 against 36.0).

Held fixed: the detector, data, recipe, steps, seed. Varied: the loss of classes. Laptop scale: an image of `shapes` has some 3000
anchors instead of 100,000, so that easy negatives overwhelm the loss far less.
"""

from detzoo.sweeps.sweep import Axes, Run, Sweep

CONFIG = 'configs/retinanet_shapes.py'
METRICS = 'AP', 'AP50', 'AP75'
BUDGET = {'training.steps': 1000, 'training.checkpoint_every': 250, 'training.evaluate_every': 500}
# gamma, alpha, and the published AP, AP50, AP75 of tables 1a and 1b.
ROWS = {
    'focal_2': (2.0, 0.25, (34.0, 52.5, 36.5)),
    'focal_5': (5.0, 0.25, (32.2, 49.6, 34.8)),
    'focal_1': (1.0, 0.25, (33.7, 52.0, 36.2)),
    'focal_0.5': (0.5, 0.5, (32.9, 51.7, 35.2)),
    'cross_entropy_0.75': (0.0, 0.75, (31.1, 49.4, 33.0)),
    'cross_entropy_0.5': (0.0, 0.5, (30.2, 46.7, 32.8)),
    'cross_entropy_0.25': (0.0, 0.25, (10.8, 16.0, 11.7)),
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/focal_loss.py has no variant {arg!r}')
    runs = [
        Run(
            name,
            CONFIG,
            {**BUDGET, 'model.focal_gamma': gamma, 'model.focal_alpha': alpha},
            dict(zip(METRICS, published)),
            series='cross_entropy' if gamma == 0 else 'focal',
        )
        for name, (gamma, alpha, published) in ROWS.items()
    ]
    mined = {'model.focal_gamma': 0.0, 'model.focal_alpha': 0.5, 'model.negatives_per_positive': 3.0}
    runs.append(Run('hard_negatives', CONFIG, {**BUDGET, **mined}))
    return Sweep(runs, METRICS, (Axes('model.focal_gamma', 'AP'),))
