"""How many proposals does the second stage need?

    detzoo sweep --experiment=proposals --workdir=runs/proposals --costs
    detzoo report --workdir=runs/proposals

The paper's answer (Speed/accuracy trade-offs for modern convolutional object detectors, arXiv 1611.10012, section 4.1): Faster
R-CNN on Inception ResNet keeps 96 % of its AP with 50 proposals instead of 300, at a third of the time.

Held fixed: the training of Faster R-CNN on `shapes`, which all runs share. Varied: the number of proposals that remain after the
NMS when predicting. An image has 6 shapes at most.
"""

from detzoo.sweeps.sweep import Axes, Run, Sweep

CONFIG = 'configs/faster_rcnn_shapes.py'
COUNTS = 50, 100, 25, 12, 6, 3


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/proposals.py has no variant {arg!r}')
    trained = f'proposals_{COUNTS[0]}'
    runs = [
        Run(
            f'proposals_{count}',
            CONFIG,
            {'model.rpn.post_nms_topk': count},
            series='faster_rcnn',
            trained=trained if count != COUNTS[0] else '',
        )
        for count in COUNTS
    ]
    figures = (
        Axes('model.rpn.post_nms_topk', 'AP', log=True),
        Axes('seconds', 'AP', pareto=True),
        Axes('seconds', 'AR100'),
    )
    return Sweep(runs, ('AP', 'AP50', 'AR100'), figures)
