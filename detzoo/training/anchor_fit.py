"""How well a detector's anchors fit the objects of a split: what its loss makes of them before anything is learnt.

config, dataset -> each image on its canvas, as in evaluation -> Detector.assign, with parameters that stand for any
  -> for each stage and object: number of positives, and the best IoU with a box of the stage

Stages whose boxes depend on parameters, such as RoIs, say nothing yet and are left out.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from detzoo.config import flatten
from detzoo.core.boxes import pairwise_iou
from detzoo.data.pipeline import evaluation_batches
from detzoo.data.records import Dataset, SelectedRecords
from detzoo.inference.predictor import canvas_for, detector_of
from detzoo.types import Array, Batch


class AnchorFit(NamedTuple):
    """How the boxes of one stage fit n objects; crowds are left out.

    image: [n] int, the index of the object's record.
    boxes: [n, 4] float32 xyxy, the object on its canvas, pixels.
    labels: [n] int in 0..K-1.
    positives: [n] int, number of the stage's boxes that are trained towards the object.
    best_iou: [n] float32, the largest IoU of the object with a box of the stage; None if the detector has no anchors.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    positives: np.ndarray
    best_iou: np.ndarray | None


def fit_of_anchors(
    config: ml_collections.ConfigDict, dataset: Dataset, images: Sequence[int], max_boxes: int
) -> dict[str, AnchorFit]:
    """Matches the boxes of a detector's stages to objects, image by image.

    Args:
        config: config of the detector.
        dataset: the split.
        images: indices of the images to look at; at least one.
        max_boxes: M, as many rows of ground truth as an image needs: `data.max_boxes` drops nothing here.

    Returns:
        {stage: AnchorFit}, objects in the order of `images`; without stages whose boxes depend on parameters, and empty for a
        detector that needs proposals.
    """
    detector = detector_of(config, len(dataset.class_names))
    if detector.needs_proposals:
        return {}
    part = dataset._replace(records=SelectedRecords(dataset.records, np.asarray(images)))
    canvases = [canvas_for((record['height'], record['width']), config) for record in part.records]
    batches = evaluation_batches(
        part, canvases, max_boxes=max_boxes, recipe=config.data.recipe, batch_size=1, threads=config.data.threads
    )
    shapes = jax.eval_shape(jax.jit(detector.init, static_argnums=1), jax.random.key(0), tuple(canvases[0]))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    others = jax.tree.map(lambda x: x + jnp.asarray(0.01, x.dtype), zeros)

    @partial(jax.jit, static_argnames='stages')
    def measure(variables: Any, batch: Batch, stages: tuple[str, ...] | None = None) -> dict[str, tuple[Array, ...]]:
        """Returns of each stage its boxes [A, 4], and of each row of ground truth the positives [M] and the best IoU [M]."""
        assigned = detector.assign(*variables, batch, jax.random.key(config.seed))
        return {
            stage: (
                assigned[stage].boxes[0],
                (assigned[stage].matched[0][:, None] == jnp.arange(max_boxes)).sum(axis=0),
                pairwise_iou(assigned[stage].boxes[0], batch.gt.boxes[0]).max(axis=0),
            )
            for stage in stages or assigned
        }

    fixed: tuple[str, ...] | None = None
    found: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for batch in batches:
        if fixed is None:
            first, second = measure(zeros, batch), measure(others, batch)
            fixed = tuple(stage for stage in first if np.array_equal(first[stage][0], second[stage][0]))
        if not fixed:
            return {}
        gt = jax.tree.map(lambda x: x[0], batch.gt)
        rows = gt.valid & ~gt.crowd
        for stage, (_, positives, best) in measure(zeros, batch, fixed).items():  # the network itself is not computed
            image = np.full(rows.sum(), images[int(batch.image_id[0])])
            measured = np.asarray(positives)[rows], np.asarray(best)[rows]
            found.setdefault(stage, []).append((image, gt.boxes[rows], gt.labels[rows], *measured))
    fits = {stage: AnchorFit(*map(np.concatenate, zip(*parts))) for stage, parts in found.items()}
    has_anchors = any(key.endswith('anchor_sizes') for key, _ in flatten(config.model))
    return fits if has_anchors else {stage: fit._replace(best_iou=None) for stage, fit in fits.items()}
