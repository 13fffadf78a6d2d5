"""Finds the anchors that fit the objects of a data set best.

    detzoo anchors --config=retinanet_shapes --clusters=5

Clusters the sizes of the objects by k-means (YOLO9000, 1612.08242, section 2). The objects are those of the config's training
split without crowds, resized to its canvases for evaluation, without augmentation. Prints the anchors as (width, height) in
canvas pixels, the smallest first, ready to paste into a config. Also prints the average IoU of an object with the anchor
that fits it best, for this number of clusters and for 1 to 9.
"""

from absl import flags, logging

from detzoo.cli.config_flag import define_config

CONFIG = define_config()
CLUSTERS = flags.DEFINE_integer('clusters', 5, 'The number of anchors.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'The seed of the first cluster centres.')
ERRORS = (ValueError,)  # more clusters than objects


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    from detzoo.config import complete
    from detzoo.core.anchors import kmeans_anchors
    from detzoo.data.catalog import open_split
    from detzoo.data.statistics import read_annotations, sizes_on_canvas
    from detzoo.inference.predictor import evaluation_canvases
    from detzoo.training.from_data import fit_to_data

    config = complete(CONFIG.value)
    dataset = open_split(config.data, 'train')
    annotations = read_annotations(dataset)
    config = fit_to_data(config, annotations)
    sizes = sizes_on_canvas(annotations, evaluation_canvases(config), config.data.recipe)[~annotations.crowd]
    anchors, average_iou = kmeans_anchors(sizes, CLUSTERS.value, seed=SEED.value)
    print(f'{len(sizes)} objects of {len(dataset.records)} images; average IoU {average_iou:.3f} with these anchors:')
    print(f'({", ".join(f"({width:.1f}, {height:.1f})" for width, height in anchors)},)')
    print('\nclusters  average IoU')
    for k in range(1, min(9, len(sizes)) + 1):
        print(f'{k:8}  {kmeans_anchors(sizes, k, seed=SEED.value)[1]:11.3f}')
