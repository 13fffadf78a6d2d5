"""How well a detector's anchors fit the objects of a split: what its loss makes of them before anything is learnt.

config, dataset -> each image on its canvas, as in evaluation -> Detector.assign, whatever its parameters
  -> for each stage and object: number of positives, and the best IoU with a box of the stage

Stages whose boxes depend on parameters, such as RoIs, say nothing yet and are left out.
"""

import itertools
from collections.abc import Sequence
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
from detzoo.types import Array, Batch, Detector, Segmenter


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
        detector that needs proposals, and for a segmenter.
    """
    detector = detector_of(config, len(dataset.class_names))
    if isinstance(detector, Segmenter) or detector.needs_proposals:
        return {}
    part = dataset._replace(records=SelectedRecords(dataset.records, np.asarray(images)))
    canvases = [canvas_for((record['height'], record['width']), config) for record in part.records]
    batches = evaluation_batches(
        part, canvases, max_boxes=max_boxes, recipe=config.data.recipe, batch_size=1, threads=config.data.threads
    )
    shapes = jax.eval_shape(jax.jit(detector.init, static_argnums=1), jax.random.key(0), tuple(canvases[0]))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # which the fixed boxes do not depend on
    first = next(batches)
    fixed = fixed_stages(detector, shapes, first)

    @jax.jit
    def measure(batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Returns for each row of ground truth the number of positives [M] and the best IoU [M]."""
        assigned = detector.assign(*variables, batch, jax.random.key(config.seed))
        return {
            stage: (
                (assigned[stage].matched[0][:, None] == jnp.arange(max_boxes)).sum(axis=0),
                pairwise_iou(assigned[stage].boxes[0], batch.gt.boxes[0]).max(axis=0),
            )
            for stage in fixed
        }

    found: dict[str, list[tuple[np.ndarray, ...]]] = {stage: [] for stage in fixed}
    for batch in itertools.chain([first], batches):
        gt = jax.tree.map(lambda x: x[0], batch.gt)
        rows = gt.valid & ~gt.crowd
        image = np.full(rows.sum(), images[int(batch.image_id[0])])
        for stage, measured in measure(batch).items():
            found[stage].append((image, gt.boxes[rows], gt.labels[rows], *(np.asarray(x)[rows] for x in measured)))
    fits = {stage: AnchorFit(*map(np.concatenate, zip(*parts))) for stage, parts in found.items()}
    has_anchors = any(key.endswith('anchor_sizes') for key, _ in flatten(config.model))
    return fits if has_anchors else {stage: fit._replace(best_iou=None) for stage, fit in fits.items()}


def fixed_stages(detector: Detector, variables: Any, batch: Batch) -> list[str]:
    """Lists the stages of a detector whose boxes do not depend on its parameters.

    Args:
        detector: the detector.
        variables: shapes of its (params, model_state).
        batch: any batch.
    """

    def boxes(variables: Any) -> dict[str, Array]:
        assigned = detector.assign(*variables, batch, jax.random.key(0))
        return {stage: assignment.boxes for stage, assignment in assigned.items()}

    program, shapes = jax.make_jaxpr(boxes, return_shape=True)(variables)
    fixed = []
    for stage, result in zip(sorted(shapes), program.jaxpr.outvars, strict=True):  # a dict is flattened by its keys
        needed = {id(result)}
        for equation in reversed(program.jaxpr.eqns):
            if needed & set(map(id, equation.outvars)):
                needed |= set(map(id, equation.invars))
        if not needed & set(map(id, program.jaxpr.invars)):
            fixed.append(stage)
    return fixed
