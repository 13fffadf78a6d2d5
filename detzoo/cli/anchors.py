"""Finds the anchors that fit the objects of a data set best: k-means on their sizes (YOLO9000, 1612.08242, section 2).

    python scripts/make_anchors.py --config=configs/retinanet_shapes.py --clusters=5

Sizes are those of the config's training split on its canvases for evaluation, resized by its recipe and not varied;
crowds are left out. Prints the anchors as (width, height) in canvas pixels, the smallest first, to be pasted into a config, and
the average IoU of an object with the anchor of its best fit: for that many clusters, and for 1 to 9.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/, with an argument after a colon.')
CLUSTERS = flags.DEFINE_integer('clusters', 5, 'How many anchors.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws with which k-means starts.')
flags.mark_flag_as_required('config')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(logging.WARNING)
    from detzoo.config import complete
    from detzoo.core.anchors import kmeans_anchors
    from detzoo.data.catalog import open_dataset
    from detzoo.data.pipeline import object_sizes
    from detzoo.errors import ConfigError, DataError
    from detzoo.inference.predictor import evaluation_canvases

    try:
        config = complete(CONFIG.value)
        dataset = open_dataset(config.data.name, config.data.train_split, config.data.data_dir)
        sizes = object_sizes(dataset, evaluation_canvases(config), config.data.recipe)
        anchors, average_iou = kmeans_anchors(sizes, CLUSTERS.value, seed=SEED.value)
    except (ConfigError, DataError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(sizes)} objects of {len(dataset.records)} images; average IoU {average_iou:.3f} with these anchors:')
    print(f'({", ".join(f"({width:.1f}, {height:.1f})" for width, height in anchors)},)')
    print('\nclusters  average IoU')
    for k in range(1, min(9, len(sizes)) + 1):
        print(f'{k:8}  {kmeans_anchors(sizes, k, seed=SEED.value)[1]:11.3f}')


if __name__ == '__main__':
    app.run(main)
