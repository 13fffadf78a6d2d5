"""What should a mask head look like: joint or split or before the class, classes that compete or not, convolutions or not?

    detzoo sweep --experiment=mask_heads --workdir=runs/mask_heads
    detzoo report --workdir=runs/mask_heads

The paper's answers (Mask R-CNN, arXiv 1703.06870): the split head on a pyramid is better than the joint one on C4 (table 2a);
masks per class by a sigmoid each are far better than a softmax over classes (2b), and one mask for all classes is nearly as good as
one a class (section 4.2); convolutions are better than fully connected layers (2e).

MNC (arXiv 1512.04412) finds the mask before the class, which sees the object without its background: `cascade`, on C4 like the
joint heads. Besides, it reads RoIs by RoIWarp, and its masks have 12 x 12 cells, those of the joint heads 10 x 10. It was not among
the recorded runs.

Held fixed: data, recipe, steps, seed, and within each pair all but one thing. Varied: one thing per pair. As in the paper, 2b and
class-agnostic masks are on C4, 2e is on the pyramid. Laptop scale.
"""

from detzoo.sweeps.sweep import Run, Sweep

PYRAMID, C4, CASCADE = 'configs/mask_rcnn_shapes.py', 'configs/mask_rcnn_shapes.py:c4', 'configs/mnc_shapes.py'
BUDGET = {'training.steps': 700, 'training.checkpoint_every': 350, 'training.evaluate_every': 350}
METRICS = 'mask_AP', 'mask_AP50', 'mask_AP75'
# Published: mask AP, AP50, AP75 of tables 2a, 2b and 2e; for class-agnostic masks only AP.
ROWS = {
    'joint_sigmoid': (C4, {}, (30.3, 51.2, 31.5)),
    'joint_softmax': (C4, {'model.mask.activation': 'softmax'}, (24.8, 44.1, 25.1)),
    'joint_class_agnostic': (C4, {'model.mask.class_agnostic': True}, (29.7,)),
    'split_fcn': (PYRAMID, {}, (33.6, 55.2, 35.3)),
    'split_mlp': (PYRAMID, {'model.mask.head': 'mlp', 'model.mask.features': 256}, (31.5, 53.7, 32.8)),
    'cascade': (CASCADE, {}, ()),
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/mask_heads.py has no variant {arg!r}')
    runs = [
        Run(name, config, BUDGET | changes, dict(zip(METRICS, published)))
        for name, (config, changes, published) in ROWS.items()
    ]
    return Sweep(runs, METRICS)
