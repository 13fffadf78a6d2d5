"""YOLO9000: 9,418 classes in a tree, learnt from COCO's boxes and ImageNet's labels (arXiv 1612.08242, section 4).

    detzoo train --config=yolo9000:DARKNET --workdir=runs/yolo9000 \\
        --config.initialize_backbone=darknet19_448.conv.23

`DARKNET` is a folder with data/9k.tree, data/9k.names and data/coco9k.map, a checkout of github.com/pjreddie/darknet for
example. Two data sets are needed: `coco` (see configs/yolov2_coco.py), and `imagenet9k`: images whose only object is the image
itself, of classes with the names of 9k.names. (585 of these stand for several classes: see `weights.darknet_tree.distinct_names`.)

Not trained here. Published, on ImageNet's detection task: mAP 19.7, and 16.0 on the 156 classes of which no box was learnt from.
`detzoo import --source=yolo9000.weights --cfg=DARKNET/cfg/yolo9000.cfg --names=DARKNET/data/9k.names --workdir=DIR` reads the
authors' weights.

After cfg/yolo9000.cfg: three anchors, a canvas of 544, no passthrough. Four images with a label come to one with boxes.
Differences from darknet: the learning rate warms up linearly (there with the fourth power of the step); the cfg
says a batch of 1, which predicts; here it is the 64 of yolov2.cfg.
"""

import pathlib

import ml_collections

from detzoo.config import complete, load_config
from detzoo.errors import ConfigError
from detzoo.weights.darknet_tree import distinct_names, read_tree
from detzoo.weights.zoo import COCO

CELLS = ((0.77871, 1.14074), (3.00525, 4.31277), (9.22725, 9.61974))  # anchors, in cells of 32 pixels


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config with the tree in a folder of darknet's files."""
    folder = pathlib.Path(arg or 'darknet').expanduser() / 'data'
    try:
        parents = read_tree(folder / '9k.tree').parents
        names = distinct_names((folder / '9k.names').read_text().splitlines(), parents)
        nodes = [int(line) for line in (folder / 'coco9k.map').read_text().split()]
        renamed = tuple((name, names[node]) for name, node in zip(COCO.class_names, nodes, strict=True))
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f'{error}: yolo9000:FOLDER needs a folder of darknet with data/9k.tree') from error
    c = load_config('yolov2_coco')
    c.data.class_names, c.data.renamed = names, renamed
    c.data.labelled_name, c.data.labelled_split, c.data.labelled_share = 'imagenet9k', 'train', 0.8
    c.data.canvases = ((544, 544),)
    c.evaluation.canvases = ()
    c.model.update(
        tree=parents,
        head_features=None,
        passthrough_features=None,
        anchor_sizes=tuple((32 * width, 32 * height) for width, height in CELLS),
    )
    return complete(c)
