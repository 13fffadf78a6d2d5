"""Are things found of which training saw labels, but no boxes? And does a tree of classes help?

    detzoo sweep --experiment=word_tree --workdir=runs/word_tree
    detzoo report --workdir=runs/word_tree

The paper's answer (YOLO9000, arXiv 1612.08242, section 4): yes, where the classes have relatives with boxes. On ImageNet's
detection task it finds 16.0 mAP on the 156 classes without boxes, animals best, clothing and equipment not at all. It does not
compare the tree with one softmax over all classes.

Held fixed: pictures, recipe, steps, and how detections are scored: each class of a box with its probability. Varied: the tree,
and whether pictures with labels are learnt from at all. Read the table of classes: ring and cross have no boxes in training,
ellipse, triangle and rectangle do. `tree_boxes_alone` cannot know rings and crosses: it shows where the others start from.
Three seeds.
"""

from detzoo.sweeps.sweep import Run, Sweep, with_seeds

TREE, FLAT = 'configs/yolo9000_shapes.py', 'configs/yolo9000_shapes.py:flat'
SEEDS = 0, 1, 2
BUDGET = {'training.steps': 900, 'training.checkpoint_every': 300, 'training.evaluate_every': 450}
ROWS = {
    'tree': (TREE, {}),
    'flat': (FLAT, {}),
    'tree_boxes_alone': (TREE, {'data.labelled_split': None}),
}


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/word_tree.py has no variant {arg!r}')
    return Sweep(with_seeds((Run(name, config, BUDGET | changes) for name, (config, changes) in ROWS.items()), SEEDS))
