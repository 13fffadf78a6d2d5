"""From trained parameters to detections in an image's own pixels and the data's own category ids.

load(workdir) -> Predictor: any image in, detections out
to_image: from the canvas back to the image; `dataset`, `photos` and notebooks use it too
to_coco: detections of an image -> COCO results
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pycocotools.mask

from detzoo.config import read_config
from detzoo.core.masks import paste_masks
from detzoo.data.geometry import Placement, choose_canvas, own_canvas, place, resize_rule
from detzoo.data.proposals import Proposals
from detzoo.detectors import make_detector
from detzoo.errors import DataError
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import Classes, read_classes
from detzoo.types import Detections, Detector, Inputs


class ImageDetections(NamedTuple):
    """What was found in one image, best score first.

    boxes: [N, 4] float64 xyxy, pixels of the image.
    scores: [N] float64 in 0..1.
    labels: [N] int in 0..K-1.
    category_ids: [N] int, the data's own ids.
    class_names: N names.
    masks: [N, h, w] bool, pixels of the image; or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    class_names: tuple[str, ...]
    masks: np.ndarray | None = None

    def at_least(self, score: float) -> 'ImageDetections':
        """Leaves out lower scores."""
        count = int((self.scores >= score).sum())  # they are sorted
        return ImageDetections(*(None if field is None else field[:count] for field in self))


class Predictor:
    """A detector with its parameters: call it with an image."""

    def __init__(self, config: ml_collections.ConfigDict, classes: Classes, step: int, params: Any, model_state: Any):
        """Binds parameters; `load` makes them from a workdir."""
        self.config, self.classes, self.step = config, classes, step
        self.params, self.model_state = params, model_state
        self.detector = detector_of(config, len(classes.class_names))
        self._predict = jax.jit(self.detector.predict)

    def __call__(self, image: np.ndarray, proposals: np.ndarray | None = None) -> ImageDetections:
        """Detects the objects of an image.

        The image goes onto a canvas of the config, see `canvas_for`; a program is compiled for each canvas once.

        Args:
            image: [h, w, 3] uint8, RGB, of any size.
            proposals: [n, 4] xyxy, pixels of the image, at most `data.max_proposals`; a detector of two stages looks there
                instead of where its RPN would, and needs them if it has none.

        Returns:
            ImageDetections.

        Raises:
            ValueError: they are not such arrays.
            DataError: the detector takes no proposals, or needs them.
        """
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not (is_array and image.ndim == 3 and image.shape[2] == 3 and image.size > 0):
            shape = f'{getattr(image, "dtype", type(image).__name__)}{list(np.shape(image))}'
            raise ValueError(f'an image is [h, w, 3] uint8 RGB of at least one pixel, not {shape}')
        check_proposals(self.config, proposals is not None, 'proposals, as in predictor(image, proposals)')
        canvas, rule = canvas_for(image.shape[:2], self.config), resize_rule(self.config.data.recipe)
        pixels, where = place(image, canvas, rule, rounded=not self.config.evaluation.exact)
        given = ()
        if proposals is not None:
            boxes, rows = np.asarray(proposals, np.float64), self.config.data.max_proposals
            if boxes.shape[1:] != (4,) or len(boxes) > rows:
                raise ValueError(
                    f'proposals are [n, 4] xyxy, n at most data.max_proposals={rows}, not {list(boxes.shape)}'
                )
            given = Proposals([boxes], rows).on_canvas(0, where.matrix_to_image[:2], where.window)
        inputs = jax.tree.map(lambda x: x[None], Inputs(pixels, where.window, *given))
        detections = self._predict(self.params, self.model_state, inputs)
        found = jax.tree.map(lambda x: np.asarray(x)[0], detections)
        return to_image(found, where, self.classes, self.config.evaluation.mask_paste)


def load(workdir: str | os.PathLike, step: int | None = None, *, exact: bool | None = None) -> Predictor:
    """Loads a trained detector, with the averaged parameters where the run has them.

    Args:
        workdir: of a run of `train_and_evaluate`, or of imported weights.
        step: of the checkpoint, the newest by default.
        exact: in place of the config's `evaluation.exact`, see `canvas_for`.

    Raises:
        FileNotFoundError: it is no workdir, or has no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').exists():
        raise FileNotFoundError(
            f'{workdir} is not the workdir of a run: it has no config.json. Give a folder that a training, or an import of '
            'weights, has written'
        )
    config = read_config(workdir / 'config.json')
    if exact is not None:
        config.evaluation.exact = exact
    classes = read_classes(workdir / 'classes.json')
    step, variables = Checkpoints(workdir).restore_variables(step)
    return Predictor(config, classes, step, variables.get('ema_params', variables['params']), variables['model_state'])


def detector_of(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None) -> Detector:
    """Makes the detector a config describes."""
    return make_detector(**config.model, num_classes=num_classes, axis_name=axis_name)


def check_proposals(config: ml_collections.ConfigDict, given: bool, what: str) -> None:
    """Refuses proposals for a detector that takes none, and none for one that has no RPN to make them.

    Args:
        config: of the detector.
        given: whether it gets proposals.
        what: to give or to leave out, for the message.

    Raises:
        DataError: it gets what it cannot use, or lacks what it needs.
    """
    if given and 'rpn' not in config.model:
        raise DataError(f'{config.model.name} takes no proposals: leave out {what}')
    if not given and config.model.get('rpn', True) is None:
        raise DataError(
            f'this {config.model.name} has no RPN (model.rpn is None) and detects nothing by itself: give {what}'
        )


def evaluation_canvases(config: ml_collections.ConfigDict) -> Sequence[tuple[int, int]]:
    """The canvases on which images are put for prediction, unless each has its own."""
    return config.evaluation.canvases or config.data.canvases


def canvas_for(size: tuple[int, int], config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Chooses the canvas on which an image of (height, width) is put for prediction.

    It is the one of `evaluation_canvases` on which the image is largest. With `evaluation.exact`, where the recipe limits
    the sides of images, it is one of its own, no larger than its sides rounded up to multiples of `evaluation.divisor`.
    """
    rule = resize_rule(config.data.recipe)
    if config.evaluation.exact and rule.is_limited and rule.resize == 'fit':
        return own_canvas(size, rule, config.evaluation.divisor)
    return choose_canvas(size, evaluation_canvases(config), rule)


def to_image(
    detections: Detections, where: Placement, classes: Classes, mask_paste: str = 'centers'
) -> ImageDetections:
    """Maps the detections of one image, as numpy, from its canvas to its own pixels.

    Args:
        detections: of one image.
        where: the image lies on its canvas.
        classes: of the detector.
        mask_paste: the convention of `core.masks.paste_masks`.
    """
    rows = np.flatnonzero(detections.valid)
    labels = detections.labels[rows]
    boxes = where.to_image(detections.boxes[rows].astype(np.float64))
    size = round(where.size[1] / where.scale[1]), round(where.size[0] / where.scale[0])
    masks = (
        None if detections.masks is None else paste_masks(detections.masks[rows], boxes, size, convention=mask_paste)
    )
    return ImageDetections(
        boxes=boxes,
        scores=detections.scores[rows].astype(np.float64),
        labels=labels,
        category_ids=np.asarray(classes.category_ids)[labels],
        class_names=tuple(classes.class_names[label] for label in labels),
        masks=masks,
    )


def to_coco(detections: ImageDetections, image_id: int) -> list[dict[str, Any]]:
    """Writes the detections of an image in COCO's results format: boxes are xywh, masks compressed RLE."""
    boxes = detections.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {'image_id': int(image_id), 'category_id': int(category), 'bbox': box.tolist(), 'score': float(score)}
        for category, box, score in zip(detections.category_ids, boxes, detections.scores)
    ]
    if detections.masks is not None:
        for result, rle in zip(
            results, pycocotools.mask.encode(np.asfortranarray(detections.masks.transpose(1, 2, 0)))
        ):
            result['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
    return results
