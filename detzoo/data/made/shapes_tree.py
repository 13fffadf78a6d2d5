"""`shapes_tree`: the pictures of `shapes` in a tree of classes, most of which no training picture has boxes of.

    round              angular
      ellipse *          triangle *
      ring               rectangle *
                         cross

    train       1600 pictures with boxes, of the classes with a star alone
    labelled    1600 pictures of one shape of any class, whose only box is the whole picture: what is known is the label
    validation  the 200 pictures of `shapes`, with boxes of all classes

What is learnt from labels shows in rings and crosses (YOLO9000, arXiv 1612.08242, section 4).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from detzoo.data import records
from detzoo.data.made import shapes

# The tree as `core.hierarchy` takes it: (class, its parent's index).
NODES = (
    ('round', -1), ('angular', -1), ('ellipse', 0), ('ring', 0), ('triangle', 1), ('rectangle', 1), ('cross', 1),
)  # fmt: skip
CLASS_NAMES = tuple(name for name, _ in NODES)
PARENTS = tuple(parent for _, parent in NODES)
BOXED = 'ellipse', 'triangle', 'rectangle'
SIZES = {'train': 1600, 'labelled': 1600, 'validation': shapes.SIZES['validation']}


class ShapesTree(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of `shapes_tree`."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=CLASS_NAMES,
            category_ids=range(1, len(CLASS_NAMES) + 1),
            description='Drawn shapes in a tree of classes; rings and crosses have boxes in the validation split alone.',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in tqdm(range(SIZES[split]), desc=f'drawing shapes_tree {split}', unit='image'):
            yield index, _example(split, index)


def draw(split: str, index: int) -> tuple[np.ndarray, list[shapes.Object]]:
    """Draws one picture; returns what `shapes.draw` returns, with the labels of `NODES`."""
    if split == 'validation':
        image, objects = shapes.draw(split, index)
    elif split == 'train':
        rng = np.random.RandomState([shapes.SEED, 2, index])
        image, objects = shapes.paint(rng, [shapes.CLASS_NAMES.index(name) for name in BOXED], shapes.MAX_SHAPES)
    else:
        rng, objects = np.random.RandomState([shapes.SEED, 3, index]), []
        while len(objects) != 1 or objects[0].is_crowd:
            image, objects = shapes.paint(rng, range(len(shapes.CLASS_NAMES)), most=1)
        objects = [objects[0]._replace(mask=np.ones(image.shape[:2], bool))]
    return image, [thing._replace(label=CLASS_NAMES.index(shapes.CLASS_NAMES[thing.label])) for thing in objects]


def _example(split: str, index: int) -> dict[str, Any]:
    return shapes.describe(*draw(split, index), split, index)
