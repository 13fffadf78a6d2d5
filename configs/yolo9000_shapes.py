"""YOLO9000 on `shapes_tree`, for a laptop: are things found of which training saw labels, but no boxes?

    detzoo train --config=yolo9000_shapes --workdir=runs/yolo9000
    detzoo train --config=yolo9000_shapes:flat --workdir=runs/flat

Ellipses, triangles and rectangles have boxes. Rings and crosses only have labels of pictures: they are learnt as round and
angular things of a certain kind (arXiv 1612.08242, section 4). `:flat` has one softmax over all classes in place of the tree.
Every class of the tree is reported for every box, each with its probability, so that both are evaluated alike;
`--config.model.descent=paper` reports one class a box.
"""

import ml_collections

from detzoo.config import complete, load_config
from detzoo.data.made.shapes_tree import PARENTS
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config of the detector with the tree, or of the 'flat' one."""
    if arg not in (None, '', 'flat'):
        raise ConfigError(f"yolo9000_shapes has the variant 'flat', not {arg!r}")
    c = load_config('yolo_shapes:v2')
    c.data.name = 'shapes_tree'
    c.data.labelled_split, c.data.labelled_share = 'labelled', 0.5
    c.model.descent = None
    if arg != 'flat':
        c.model.tree = PARENTS
    return complete(c)
