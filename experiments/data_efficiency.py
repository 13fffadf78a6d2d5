"""Which detector learns most from few images?

    detzoo sweep --experiment=data_efficiency --workdir=runs/data_efficiency
    detzoo report --workdir=runs/data_efficiency

No paper compares these families in this way. A guess: the fewer images, the more a detector gains from what is built in,
such as anchors that fit the data.

Held fixed: augmentation, steps, batch size, validation images, seed. Varied: the detector and the share of the 1600 training
images: all, a quarter, a sixteenth. The learning rate is that of the detector's config.
"""

from detzoo.sweeps.sweep import Axes, Run, Sweep

CONFIGS = {
    'retinanet': 'configs/retinanet_shapes.py',
    'yolo': 'configs/yolo_shapes.py:v3',
    'ssd': 'configs/ssd_shapes.py',
    'faster_rcnn': 'configs/faster_rcnn_shapes.py',
    'mask_rcnn': 'configs/mask_rcnn_shapes.py',
}
IMAGES = 1600, 400, 100
BUDGET = {
    'training.steps': 1000,
    'training.batch_size': 16,
    'training.checkpoint_every': 250,
    'training.evaluate_every': 500,
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/data_efficiency.py has no variant {arg!r}')
    runs = [
        Run(f'{family}_{count}', config, {**BUDGET, 'data.train_split': f'train[:{count}]'}, series=family)
        for count in IMAGES
        for family, config in CONFIGS.items()
    ]
    return Sweep(runs, ('AP', 'AP50', 'AP75'), (Axes('data.train_split', 'AP', log=True),))
