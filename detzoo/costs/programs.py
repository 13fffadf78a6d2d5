"""The programs whose costs are counted: the training step and the prediction of a config, lowered for any devices.

train_program, predict_program(config, ...) -> a lowered program, from shapes only: no parameter is made
random_batch(config, ...)                   -> a batch for it
"""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from detzoo.costs.counts import multiply_adds
from detzoo.inference.dataset import make_predict_step
from detzoo.inference.predictor import detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.training import finetune
from detzoo.training.loop import make_train_step
from detzoo.types import Batch, GroundTruth, Inputs


def random_batch(
    config: ml_collections.ConfigDict, canvas: tuple[int, int], count: int, num_classes: int, seed: int = 0
) -> Batch:
    """Draws a batch of noise images with `data.max_boxes` boxes each, and `data.max_proposals` proposals if the config has them.

    Args:
        config: complete config.
        canvas: (H, W), pixels.
        count: number of images.
        num_classes: K.
        seed: seed of the draw.

    Returns:
        Batch, numpy.
    """
    rng = np.random.RandomState(seed)
    (height, width), rows = canvas, config.data.max_boxes

    def draw_boxes(rows: int) -> np.ndarray:
        start = rng.uniform(0, 0.75, (count, rows, 2))
        size = rng.uniform(0.02, 0.25, (count, rows, 2))
        return np.float32(np.concatenate([start, start + size], axis=-1) * [width, height, width, height])

    boxes = draw_boxes(rows)
    labels = rng.randint(0, num_classes, (count, rows)).astype(np.int32)
    none = np.zeros(count, np.int32)
    true = np.ones((count, rows), bool)
    images = rng.randint(0, 256, (count, height, width, 3), np.uint8)
    side = config.data.mask_size
    gt = GroundTruth(
        boxes=boxes,
        labels=labels,
        valid=true,
        crowd=~true,
        dropped=none,
        cropped=none,
        masks=rng.uniform(size=(count, rows, side, side)) < 0.7 if side else None,
    )
    window = np.tile(np.float32([0, 0, width, height]), (count, 1))
    given = ()
    if config.data.train_proposals or config.data.validation_proposals:
        rows, side = config.data.max_proposals, config.data.proposal_mask_size
        given = (
            draw_boxes(rows),
            np.ones((count, rows), bool),
            *([np.ones((count, rows, side, side), bool)] if side else []),
        )
    return Batch(Inputs(images, window, *given), gt, np.arange(count, dtype=np.int32), np.ones(count, bool))


def shapes(tree: Any, *lead: int) -> Any:
    """Replaces arrays by their shapes, and adds leading axes, for example one for the devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)


def state_shapes(config: ml_collections.ConfigDict, num_classes: int) -> Any:
    """Computes the shapes of a config's TrainState, without making parameters or reading files."""
    detector = detector_of(config, num_classes, parallel.AXIS)
    return finetune.state_shapes(config, detector)


def train_program(config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]) -> Any:
    """Lowers the training step on the first canvas for devices, with `training.batch_size` images on all of them.

    With several replicas (`training.num_replicas`), each has that many images.

    Raises:
        ValueError: the batch cannot be split over the devices.
    """
    step, arguments = _train_step(config, num_classes, devices)
    return step.lower(*arguments)


def train_multiply_adds(config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]) -> int:
    """Counts the multiply-adds of `train_program` on each device."""
    step, arguments = _train_step(config, num_classes, devices)
    return multiply_adds(step, *arguments)


def _train_step(
    config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]
) -> tuple[Any, tuple[Any, Any]]:
    """Makes the training step and the shapes of its arguments."""
    lead = len(devices), *filter(lambda count: count > 1, [config.training.num_replicas])
    batch = _share(config, 'training', config.data.canvases[0], num_classes, lead)
    state = state_shapes(config, num_classes)
    detector = detector_of(config, num_classes, parallel.AXIS)
    return make_train_step(config, detector, state, devices=devices), (shapes(state, *lead), batch)


def predict_program(config: ml_collections.ConfigDict, num_classes: int, devices: Sequence[Any]) -> Any:
    """Lowers the evaluation's step on its first canvas for devices, with `evaluation.batch_size` images on all of them.

    Raises:
        ValueError: the batch cannot be split over the devices.
    """
    canvas = evaluation_canvases(config)[0]
    batch = _share(config, 'evaluation', canvas, num_classes, (len(devices),))
    state = state_shapes(config, num_classes)
    detector = detector_of(config, num_classes, parallel.AXIS)
    step = make_predict_step(detector, [canvas], devices=devices)
    return step.lower(*shapes((state.params, state.model_state), len(devices)), batch)


def _share(
    config: ml_collections.ConfigDict, section: str, canvas: tuple[int, int], num_classes: int, lead: tuple[int, ...]
) -> Batch:
    """Splits the batch of a config section over devices, and returns its shapes; `lead`: the leading axes, devices first."""
    count, devices = config[section].batch_size, lead[0]
    if count % devices:
        key = f'{section}.batch_size'
        raise ValueError(f'{key} is {count}, not a multiple of the {devices} devices: change it')
    return shapes(jax.eval_shape(lambda: random_batch(config, canvas, count // devices, num_classes)), *lead)
