"""Pictures of a detector's training samples in an image: its anchors, cells or RoIs as `Detector.assign` matches them.

Predictor, Dataset -> one image on its canvas, as in evaluation -> Detector.assign -> a picture of each stage
"""

import jax
import numpy as np

from detzoo.data.pipeline import evaluation_batches
from detzoo.data.proposals import load_proposals
from detzoo.data.records import Dataset
from detzoo.inference.predictor import Predictor, canvas_for
from detzoo.run.parallel import options_to_run_once
from detzoo.types import Segmenter
from detzoo.visualize import draw_assignment


def draw_assignments(predictor: Predictor, dataset: Dataset, index: int = 0) -> dict[str, np.ndarray]:
    """Draws how a trained detector's stages match an image, as a training step would.

    Args:
        predictor: a trained detector, from `predictor.load`.
        dataset: a split with annotations.
        index: number of the image in the split.

    Returns:
        {stage: [h, w, 3] uint8}, see `visualize.draw_assignment`; none for a segmenter, which has no boxes to match.
    """
    if isinstance(predictor.detector, Segmenter):
        return {}
    config = predictor.config
    record = dataset.records[index]
    part = dataset._replace(records=[record])
    batch = next(
        evaluation_batches(
            part,
            [canvas_for((record['height'], record['width']), config)],
            max_boxes=config.data.max_boxes,
            recipe=config.data.recipe,
            batch_size=1,
            rounded=not config.evaluation.exact,
            mask_size=config.data.mask_size,
            proposals=load_proposals(
                config.data.validation_proposals, part, config.data.max_proposals, config.data.proposal_mask_size
            ),
            threads=1,
        )
    )
    assign = jax.jit(predictor.detector.assign, compiler_options=options_to_run_once())
    stages = assign(predictor.params, predictor.model_state, batch, jax.random.key(config.seed))
    gt = jax.tree.map(lambda x: np.asarray(x)[0], batch.gt)
    x1, y1, x2, y2 = np.round(batch.inputs.window[0]).astype(int)
    image = np.clip(np.round(batch.inputs.images[0]), 0, 255).astype(np.uint8)[y1:y2, x1:x2]
    origin = np.float32([x1, y1, x1, y1])
    return {
        stage: draw_assignment(
            image,
            np.asarray(assignment.boxes[0]) - origin,
            np.asarray(assignment.matched[0]),
            gt.boxes[gt.valid] - origin,
            crowd=gt.crowd[gt.valid],
        )
        for stage, assignment in stages.items()
    }
