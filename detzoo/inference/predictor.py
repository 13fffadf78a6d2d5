"""From trained parameters to detections in pixels of the image, with the data's own category ids.

A detector finds `Detections` on a canvas. A segmenter finds `PixelClasses`, whose connected components are detections with masks.
The two are told apart by `prediction_of` and `interpret` alone.

load(workdir)   -> Predictor
Predictor       an image -> its canvas (`canvas_for`) -> `prediction_of` -> back to the image (`interpret`) -> ImageDetections
to_coco         ImageDetections -> COCO results; `from_coco` undoes it
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pycocotools.mask

from detzoo.config import read_config
from detzoo.core.boxes import xywh_to_xyxy, xyxy_to_xywh
from detzoo.core.masks import paste_masks
from detzoo.data.geometry import Placement, choose_canvas, own_canvas, place, resize_rule
from detzoo.data.proposals import Proposals
from detzoo.detectors import make_detector
from detzoo.errors import DataError
from detzoo.evaluation.semantic import instances_of
from detzoo.files import as_path
from detzoo.run.best import best_step
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import OBJECT, Classes, read_classes
from detzoo.segmenters import SEGMENTERS, make_segmenter
from detzoo.types import Array, Detections, Detector, Inputs, PixelClasses, Segmenter


class ImageDetections(NamedTuple):
    """The detections of one image, best score first.

    boxes: [N, 4] float64 xyxy, pixels of the image.
    scores: [N] float64 in 0..1.
    labels: [N] int in 0..K-1.
    category_ids: [N] int, ids of the classes in the data.
    class_names: N names.
    masks: [N, h, w] bool, pixels of the image; or None.
    class_map: [h, w] int labels of a segmenter, 0..K, K for background; None for a detector.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    class_names: tuple[str, ...]
    masks: np.ndarray | None = None
    class_map: np.ndarray | None = None

    def at_least(self, score: float) -> 'ImageDetections':
        """Leaves out the detections with lower scores."""
        count = int((self.scores >= score).sum())  # they are sorted
        *fields, class_map = self
        return ImageDetections(*(None if field is None else field[:count] for field in fields), class_map)


class Predictor:
    """A detector or segmenter with its parameters: a function from images to detections."""

    def __init__(self, config: ml_collections.ConfigDict, classes: Classes, step: int, params: Any, model_state: Any):
        """Binds the variables of a checkpoint; see `load`.

        Args:
            config: config of the run.
            classes: classes of the run; a class-agnostic detector's detections have the class OBJECT instead.
            step: step of the checkpoint.
            params, model_state: the detector's variables.
        """
        self.config, self.step = config, step
        self.params, self.model_state = params, model_state
        self.detector = detector_of(config, len(classes.class_names))
        self.classes = OBJECT if self.detector.class_agnostic else classes
        self._predict = jax.jit(prediction_of(self.detector))

    def __call__(self, image: np.ndarray, proposals: np.ndarray | None = None) -> ImageDetections:
        """Detects the objects of an image.

        A program is compiled for each canvas once, see `canvas_for`.

        Args:
            image: [h, w, 3] uint8, RGB, of any size.
            proposals: [n, 4] xyxy, pixels of the image, n at most `data.max_proposals`. A two-stage detector classifies them in
                place of its RPN's proposals; one without an RPN needs them.

        Returns:
            ImageDetections.

        Raises:
            ValueError: the image or the proposals are not such an array.
            DataError: the detector takes no proposals, or needs them.
        """
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not (is_array and image.ndim == 3 and image.shape[2] == 3 and image.size > 0):
            shape = f'{getattr(image, "dtype", type(image).__name__)}{list(np.shape(image))}'
            raise ValueError(f'an image is [h, w, 3] uint8 RGB of at least one pixel, not {shape}')
        what = 'proposals, as in predictor(image, proposals)'
        check_proposals(self.detector, self.config.model.name, proposals is not None, what)
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
        found = self._predict(self.params, self.model_state, inputs)
        found = jax.tree.map(lambda x: np.asarray(x)[0], found)
        return interpret(found, where, image.shape[:2], self.classes, self.config.evaluation)


def load(workdir: str | os.PathLike, step: int | str | None = None, *, exact: bool | None = None) -> Predictor:
    """Loads a trained detector, with the averaged parameters if the run has them.

    Args:
        workdir: folder of a run, trained or imported.
        step: step of the checkpoint, or 'best' (see `training.keep_best`); the newest by default.
        exact: replaces the config's `evaluation.exact` if given, see `canvas_for`.

    Raises:
        FileNotFoundError: the folder is no workdir, or has no such checkpoint.
    """
    workdir = as_path(workdir)
    if not (workdir / 'config.json').exists():
        raise FileNotFoundError(
            f'{workdir} is not the workdir of a run: it has no config.json. Give a folder that a training, or an import of '
            'weights, has written'
        )
    config = read_config(workdir / 'config.json')
    if exact is not None:
        config.evaluation.exact = exact
    classes = read_classes(workdir / 'classes.json')
    if step == 'best':
        step = best_step(workdir, config.training.keep_best)
    step, variables = Checkpoints(workdir).restore_variables(step)
    return Predictor(config, classes, step, variables.get('ema_params', variables['params']), variables['model_state'])


def detector_of(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> Detector | Segmenter:
    """Makes the detector, or the segmenter, that a config describes."""
    make = make_segmenter if config.model.name in SEGMENTERS else make_detector
    return make(**config.model, num_classes=num_classes, axis_name=axis_name)


def prediction_of(detector: Detector | Segmenter) -> Callable[..., Detections | PixelClasses]:
    """Returns what runs on devices: a detector's `predict`, or a segmenter's with the best class of each pixel alone."""
    if isinstance(detector, Detector):
        return detector.predict

    def predict(params: Any, model_state: Any, inputs: Inputs) -> PixelClasses:
        return best_classes(detector.predict(params, model_state, inputs))

    return predict


def best_classes(probabilities: Array) -> PixelClasses:
    """Reduces probabilities [..., K + 1] to the best class of each pixel and its probability."""
    dtype = jnp.uint8 if probabilities.shape[-1] <= 256 else jnp.uint16
    return PixelClasses(probabilities.argmax(axis=-1).astype(dtype), probabilities.max(axis=-1))


def check_proposals(detector: Detector | Segmenter, name: str, given: bool, what: str) -> None:
    """Checks that a detector gets proposals if it needs them, and none if it takes none.

    Args:
        detector: the detector or segmenter.
        name: its name, for the message.
        given: whether it gets proposals.
        what: what to give or to leave out, for the message.

    Raises:
        DataError: the detector takes no proposals, or needs them.
    """
    if given and not detector.takes_proposals:
        raise DataError(f'{name} takes no proposals: leave out {what}')
    if not given and detector.needs_proposals:
        raise DataError(f'this {name} has no RPN and detects nothing by itself: give {what}')


def evaluation_canvases(config: ml_collections.ConfigDict) -> Sequence[tuple[int, int]]:
    """Returns the canvases for prediction; with `evaluation.exact` images have canvases of their own, see `canvas_for`."""
    return config.evaluation.canvases or config.data.canvases


def canvas_for(size: tuple[int, int], config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Chooses the canvas for prediction on an image of (height, width).

    It is the one of `evaluation_canvases` on which the image is largest. With `evaluation.exact`, and a recipe that limits the
    sides of images, the image gets its own canvas: its resized sides, rounded up to multiples of `evaluation.divisor`.
    """
    rule = resize_rule(config.data.recipe)
    if config.evaluation.exact and rule.is_limited and rule.resize == 'fit':
        return own_canvas(size, rule, config.evaluation.divisor)
    return choose_canvas(size, evaluation_canvases(config), rule)


def interpret(
    found: Detections | PixelClasses,
    where: Placement,
    size: tuple[int, int],
    classes: Classes,
    evaluation: ml_collections.ConfigDict,
) -> ImageDetections:
    """Maps what was found on the canvas of one image to detections in the image.

    Args:
        found: numpy arrays without a batch axis, see `prediction_of`.
        where: position of the image on its canvas.
        size: (height, width) of the image.
        classes: classes of the detector.
        evaluation: the group `evaluation` of the config.
    """
    if isinstance(found, Detections):
        return to_image(found, where, classes, evaluation.mask_paste)
    labels, scores = pixels_of_image(found, where, size)
    results = instances_of(labels, scores, 0, classes.category_ids, min_pixels=evaluation.min_pixels)
    return from_coco(results, classes)._replace(class_map=labels)


def pixels_of_image(found: PixelClasses, where: Placement, size: tuple[int, int]) -> PixelClasses:
    """Gives each pixel of an image the class of the canvas's pixel on which its centre lies: [h, w] each.

    Args:
        found: [H, W], pixels of the canvas.
        where: position of the image on its canvas.
        size: h, w.
    """
    (height, width), (left, top, right, bottom) = found.labels.shape, where.window
    columns = np.floor(where.offset[0] + (np.arange(size[1]) + 0.5) * where.scale[0])
    rows = np.floor(where.offset[1] + (np.arange(size[0]) + 0.5) * where.scale[1])
    columns = np.clip(columns, max(0, left), min(width, right) - 1).astype(int)
    rows = np.clip(rows, max(0, top), min(height, bottom) - 1).astype(int)
    return PixelClasses(*(x[rows[:, None], columns] for x in found))


def to_image(
    detections: Detections, where: Placement, classes: Classes, mask_paste: str = 'centers'
) -> ImageDetections:
    """Maps the detections of one image from its canvas to pixels of the image.

    Args:
        detections: numpy arrays without a batch axis.
        where: position of the image on its canvas.
        classes: classes of the detector.
        mask_paste: convention of `core.masks.paste_masks`.
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
    results = [
        {'image_id': int(image_id), 'category_id': int(category), 'bbox': box.tolist(), 'score': float(score)}
        for category, box, score in zip(detections.category_ids, xyxy_to_xywh(detections.boxes), detections.scores)
    ]
    if detections.masks is not None:
        encoded = pycocotools.mask.encode(np.asfortranarray(detections.masks.transpose(1, 2, 0)))
        for result, rle in zip(results, encoded):
            result['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
    return results


def from_coco(results: Sequence[Mapping[str, Any]], classes: Classes) -> ImageDetections:
    """Reads the detections of one image from COCO's results format: undoes `to_coco`.

    Args:
        results: the image's results, in any order.
        classes: the classes of the detector.
    """
    results = sorted(results, key=lambda result: -result['score'])
    labels = np.array([classes.category_ids.index(result['category_id']) for result in results], int)
    boxes = np.array([result['bbox'] for result in results], np.float64).reshape(-1, 4)
    has_masks = bool(results) and 'segmentation' in results[0]
    return ImageDetections(
        boxes=xywh_to_xyxy(boxes),
        scores=np.array([result['score'] for result in results], np.float64),
        labels=labels,
        category_ids=np.asarray(classes.category_ids)[labels],
        class_names=tuple(classes.class_names[label] for label in labels),
        masks=decode_masks([result['segmentation'] for result in results]) if has_masks else None,
    )


def decode_masks(encoded: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Decodes masks of one image from COCO's run lengths: [N, h, w] bool; there is at least one."""
    return pycocotools.mask.decode(encoded).transpose(2, 0, 1).astype(bool)
