"""How do the five families compare after the same few steps?

    bash scripts/quickstart.sh
    bash scripts/quickstart.sh --detectors=retinanet

Held fixed: data (`shapes`), augmentation, canvas, steps, batch size, seed. Varied: the detector. The budget is small: no
detector has converged, and those that learn fast look best. A single detector is trained as its config says, steps included.
"""

from detzoo.sweeps.sweep import Axes, Run, Sweep

CONFIGS = {
    'retinanet': 'configs/retinanet_shapes.py',
    'mask_rcnn': 'configs/mask_rcnn_shapes.py',  # the longest early: two run at once
    'faster_rcnn': 'configs/faster_rcnn_shapes.py',
    'yolo': 'configs/yolo_shapes.py:v3',
    'ssd': 'configs/ssd_shapes.py',
}
BUDGET = {
    'training.steps': 500,
    'training.batch_size': 16,
    'training.checkpoint_every': 250,
    'training.evaluate_every': 250,
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs of all detectors, or of those in a list of names with commas between."""
    names = arg.split(',') if arg else list(CONFIGS)
    unknown = [name for name in names if name not in CONFIGS]
    if unknown:
        raise ValueError(f'experiments/quickstart.py has the detectors {", ".join(CONFIGS)}, not {unknown[0]!r}')
    runs = [Run(name, CONFIGS[name], BUDGET if len(names) > 1 else {}) for name in names]
    return Sweep(runs, ('AP', 'AP50', 'AP75'), (Axes('seconds', 'AP', pareto=True),))
