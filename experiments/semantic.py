"""What does an instance segmenter know that a semantic one does not?

    detzoo sweep --experiment=semantic --workdir=runs/semantic
    detzoo report --workdir=runs/semantic

No paper that we know compares the two on equal terms. A U-Net (arXiv 1505.04597) gives each pixel a class, and connected
components of a class are taken as objects; it learns to leave a line of background between objects that touch. A Mask R-CNN
(1703.06870) finds objects first, and their pixels within. A guess: where objects stand apart, the U-Net is as good, and cheaper;
where they overlap, an object that another one cuts in two, or whose outline is hidden, is no component any more.

Held fixed: within each data set pictures, recipe, and how many of them training sees. Varied: the network, and how close objects
stand: `shapes_apart`, `shapes_touching` and `shapes_overlapping` show the same shapes, of one class in a picture, closer and closer
together. `histology` has nuclei that touch, in real tissue. Read mask AP, panoptic quality (PQ), mean IoU, and the error of the
number of objects. PQ and counts are of results with scores of 0.5 or more, and so are the masks from which Mask R-CNN's mean IoU
is painted. Three seeds. Laptop scale.
"""

from detzoo.sweeps.sweep import Axes, Run, Sweep, with_seeds

DATA = 'shapes_apart', 'shapes_touching', 'shapes_overlapping', 'histology'
NETWORKS = 'unet', 'mask_rcnn'
STEPS = {'shapes': 600, 'histology': 250}  # of 16 and of 8 images
SEEDS = 0, 1, 2


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/semantic.py has no variant {arg!r}')
    runs = with_seeds((run(network, data) for data in DATA for network in NETWORKS), SEEDS)
    metrics = 'mask_AP', 'PQ', 'mean_iou', 'count_error', 'count_bias'
    return Sweep(runs, metrics, tuple(Axes('data.name', metric, ordered=True) for metric in metrics[:4]))


def run(network: str, data: str) -> Run:
    """Makes the run of a network on a data set."""
    family, _, spacing = data.partition('_')
    steps = STEPS[family]
    changes = {
        'data.name': data,
        'evaluation.panoptic': True,
        'training.steps': steps,
        'training.checkpoint_every': steps // 2,
        'training.evaluate_every': steps // 2,
    }
    series = network if family == 'shapes' else f'{network}_{family}'
    return Run(f'{network}_{spacing or family}', f'configs/{network}_{family}.py', changes, series=series)
