"""How many anchors does a cell need, and must they fit the data?

    detzoo sweep --experiment=anchors --workdir=runs/anchors
    detzoo report --workdir=runs/anchors

The papers' answers. RetinaNet (arXiv 1708.02002, table 1c): three aspect ratios gain 2.1 AP over one, two sizes another 1.8,
and more than 2 sizes x 3 ratios nothing. YOLO v2 (arXiv 1612.08242, table 1): five anchors clustered by IoU cover the data's boxes
as well (average IoU 0.610) as nine made by hand (0.609).

Held fixed: the detector, data, recipe, steps, seed. Varied: anchors. `yolo_kmeans` has the six anchors of its config, `yolo_hand`
one size and three aspect ratios per level, as a detector on a pyramid would.
"""

from detzoo.sweeps.sweep import Run, Sweep

RETINANET, YOLO = 'configs/retinanet_shapes.py', 'configs/yolo_shapes.py:v3'
METRICS = 'AP', 'AP50', 'AP75'
BUDGET = {'training.steps': 1000, 'training.checkpoint_every': 250, 'training.evaluate_every': 500}
STRIDES = 8, 16, 32, 64, 128
# Numbers of sizes and aspect ratios per cell, and the published AP, AP50, AP75 of table 1c.
ROWS = [
    (3, 3, (34.0, 52.5, 36.5)),
    (2, 3, (34.2, 53.1, 36.5)),
    (1, 3, (32.4, 52.3, 33.9)),
    (3, 1, (31.8, 49.4, 33.7)),
    (2, 1, (31.9, 50.0, 34.0)),
    (1, 1, (30.3, 49.0, 31.8)),
]


def retinanet(sizes: int, ratios: int, published: tuple[float, ...]) -> Run:
    """Makes a run of RetinaNet with this number of anchor sizes, in equal steps of an octave, and of aspect ratios."""
    changes = {
        'model.anchor_sizes': tuple(tuple(2 * stride * 2 ** (k / sizes) for k in range(sizes)) for stride in STRIDES),
        'model.aspect_ratios': {1: (1.0,), 3: (0.5, 1.0, 2.0)}[ratios],
    }
    name = f'retinanet_{sizes}x{ratios}'
    return Run(name, RETINANET, {**BUDGET, **changes}, dict(zip(METRICS, published)), series='retinanet')


def yolo_by_hand() -> tuple[tuple[tuple[float, float], ...], ...]:
    """Makes sizes (w, h) of one area and three aspect ratios per level: 24 pixels square at stride 8, 48 at stride 16."""
    return tuple(tuple((side / ratio**0.5, side * ratio**0.5) for ratio in (0.5, 1.0, 2.0)) for side in (24.0, 48.0))


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/anchors.py has no variant {arg!r}')
    yolo = [
        Run('yolo_kmeans', YOLO, BUDGET, series='yolo'),
        Run('yolo_hand', YOLO, {**BUDGET, 'model.anchor_sizes': yolo_by_hand()}, series='yolo'),
    ]
    return Sweep([*(retinanet(*row) for row in ROWS), *yolo], METRICS)
