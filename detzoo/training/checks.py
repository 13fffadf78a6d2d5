"""The checks before a run computes or writes anything: config, detector, data and devices have to fit together.

check            a config -> the detector, the shapes of its state, and the variables that it starts from
check_given      the masks and proposals that the config brings
check_canvases   the network on each canvas, by shapes alone
"""

import jax
import ml_collections

from detzoo.data.compose import check_masks
from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.inference.predictor import check_proposals, detector_of, evaluation_canvases
from detzoo.run import parallel
from detzoo.run.checkpoint import TrainState
from detzoo.training.finetune import Learnt, read_learnt, state_shapes
from detzoo.types import Detector, Segmenter


def check(
    config: ml_collections.ConfigDict, data: Dataset, *, begun: bool = False
) -> tuple[Detector | Segmenter, TrainState, Learnt]:
    """Makes the detector of a run, and checks its config. Nothing is computed or written.

    Args:
        config: config of the program.
        data: the split to train on.
        begun: whether all replicas have checkpoints, and so need nothing else to start from.

    Returns:
        the detector, the shapes of its state, and the learnt variables that it starts from.

    Raises:
        ConfigError: the detector, the devices or the run to start from do not fit the config.
        DataError: the detector lacks proposals, or takes none; objects are to be pasted and none has a mask.
    """
    if config.model.backbone.norm == 'frozen_batch_norm' and not (config.initialize_backbone or config.initialize_from):
        raise ConfigError(
            "model.backbone.norm is 'frozen_batch_norm', which without the statistics of trained weights normalises nothing: "
            "set initialize_backbone to a classifier's file, initialize_from to a workdir, or model.backbone.norm to 'batch_norm'"
        )
    try:
        detector = detector_of(config, len(data.class_names), parallel.AXIS)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    check_given(config, detector)
    if config.data.recipe.copy_paste > 0:
        check_masks(data)
    try:
        check_canvases(config, detector)
        state = state_shapes(config, detector)
        template = state.params, state.model_state
        learnt = Learnt() if begun else read_learnt(config, data.class_names, template, detector.extends)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(str(error)) from error
    if config.training.num_replicas > 1 and len(config.data.canvases) > 1:
        raise ConfigError(
            'training.num_replicas needs a single canvas in data.canvases: each seed draws its own at a step'
        )
    if config.training.early_stopping_patience:
        check_patience(config)
    devices = jax.device_count()
    for key, size, parts in (
        ('training.batch_size', config.training.batch_size, devices * config.training.accumulate),
        ('evaluation.batch_size', config.evaluation.batch_size, devices),
    ):
        if size % parts:
            raise ConfigError(
                f'{key} is {size}, not a multiple of {parts} (devices, times training.accumulate for training): '
                f'set it to {max(1, round(size / parts)) * parts}, for example'
            )
    return detector, state, learnt


def check_patience(config: ml_collections.ConfigDict) -> None:
    """Checks that a run can tell when it has stopped getting better.

    Raises:
        ConfigError: no metric is named; nothing is evaluated before the end; or several seeds would end at different steps.
    """
    key = 'training.early_stopping_patience'
    if config.training.keep_best is None:
        raise ConfigError(f"{key} needs a metric to wait for: set training.keep_best, to 'AP' for example")
    if not config.training.evaluate_every:
        raise ConfigError(f'{key} needs evaluations before the end: set training.evaluate_every')
    if config.training.num_replicas > 1:
        raise ConfigError(f'{key} needs training.num_replicas of 1: one program cannot end a single seed')


def check_given(config: ml_collections.ConfigDict, detector: Detector | Segmenter) -> None:
    """Checks that the data bring the masks and the proposals that the detector needs, and none that it cannot use.

    Raises:
        ConfigError: the masks do not fit the detector.
        DataError: the proposals do not.
    """
    name, side = config.model.name, config.data.mask_size
    if detector.finds_masks and not side:
        raise ConfigError(
            f'data.mask_size is 0, and {name} learns masks: set it to the side of a mask, to 112 for example'
        )
    if side and not detector.finds_masks:
        raise ConfigError(f'data.mask_size is {side}, and {name} finds no masks: set it to 0')
    if config.data.labelled_split and not detector.takes_labels:
        raise ConfigError(
            f'data.labelled_split is {config.data.labelled_split!r}, and {name} needs boxes: set it to None'
        )
    for key in ('train_proposals', 'validation_proposals'):
        check_proposals(detector, name, config.data[key] is not None, f'data.{key}')
    side = config.data.proposal_mask_size
    if side and not detector.needs_proposal_masks:
        raise ConfigError(f'data.proposal_mask_size is {side}, and {name} reads no masks of proposals: set it to 0')
    if detector.needs_proposal_masks and not side:
        raise ConfigError(
            f'data.proposal_mask_size is 0, and {name} reads masks of proposals: set it, to 56 for example'
        )


def check_canvases(config: ml_collections.ConfigDict, detector: Detector | Segmenter) -> None:
    """Checks that the network fits all canvases with the same parameters.

    Raises:
        ConfigError: it does not fit a canvas, or its parameters have other shapes there than on the first.
    """
    shapes, first = {}, tuple(config.data.canvases[0])
    for canvas in dict.fromkeys(map(tuple, (*config.data.canvases, *evaluation_canvases(config)))):
        side = f'{canvas[0]} x {canvas[1]}'
        try:
            # Jitted as in `initial_state`, which then finds the trace of its canvas.
            variables = jax.eval_shape(jax.jit(detector.init, static_argnums=1), jax.random.key(0), canvas)
        except (ValueError, TypeError) as error:
            raise ConfigError(f'this {config.model.name} does not fit a canvas of {side}: {error}') from error
        except ZeroDivisionError as error:  # an initialiser divides by the number of channels
            raise ConfigError(
                f'a layer of this {config.model.name} has no channels: raise model.backbone.width or its features'
            ) from error
        shapes[canvas] = jax.tree.map(lambda x: x.shape, variables)
        if shapes[canvas] != shapes[first]:
            raise ConfigError(
                f'the parameters of this {config.model.name} depend on the canvas, and fit one alone: data.canvases begins '
                f'with {first[0]} x {first[1]}; remove {side}, from evaluation.canvases too'
            )
