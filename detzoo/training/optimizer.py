"""Optimisers and their learning rates, from the `optimizer` section of a config."""

import re
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from detzoo.types import Array, Detector, ModelState, Params, Segmenter


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Makes the learning rate as a function of the step: a linear warm-up, then cosine or steps.

    Args:
        config: the config's `optimizer` section. `schedule` is 'cosine' (down to 0 at the end), 'constant', or 'steps', which
            multiplies by 0.1 at each share of the run in `decay_at`.
        steps: number of steps of the whole run.

    Returns:
        a function from the step to the learning rate.

    Raises:
        ValueError: the schedule is unknown.
    """
    after = max(1, steps - config.warmup_steps)
    if config.schedule == 'cosine':
        decay = optax.cosine_decay_schedule(config.learning_rate, after)
    elif config.schedule == 'steps':
        boundaries = {round(share * steps) - config.warmup_steps: 0.1 for share in config.decay_at}
        decay = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    elif config.schedule == 'constant':
        decay = optax.constant_schedule(config.learning_rate)
    else:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}: use 'cosine', 'steps' or 'constant'")
    warmup = optax.linear_schedule(
        config.learning_rate / max(1, config.warmup_steps), config.learning_rate, config.warmup_steps
    )
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: ml_collections.ConfigDict, steps: int, params: Params) -> optax.GradientTransformation:
    """Makes the optimiser: clip by global norm, AdamW or SGD with momentum, weight decay, frozen parameters.

    Weight decay leaves out biases and all vectors: the scales and offsets of norms.

    Args:
        config: the config's `optimizer` section; `frozen` is a regular expression for paths of parameters.
        steps: number of steps of the whole run.
        params: the detector's parameters, for their paths and shapes.

    Returns:
        an optax transformation.

    Raises:
        ValueError: the optimiser is unknown, or `frozen` matches no parameter.
    """
    schedule = make_schedule(config, steps)

    def decays(tree: Any) -> Any:
        # By name too: the bias of a locally connected layer is no vector.
        return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim > 1 and path[-1].key != 'bias', tree)

    if config.name == 'adamw':
        update = optax.adamw(schedule, eps=config.epsilon, weight_decay=config.weight_decay, mask=decays)
    elif config.name == 'sgd':
        # As in torch: the momentum accumulates the decay with the gradient.
        decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
        update = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum or None))
    else:
        raise ValueError(f"optimizer.name is {config.name!r}: use 'adamw' or 'sgd'")
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    if not config.frozen:
        return update
    labels = jax.tree.map(lambda still: 'frozen' if still else 'trained', frozen_parameters(config, params))
    return optax.multi_transform({'trained': update, 'frozen': optax.set_to_zero()}, labels)


def frozen_parameters(config: ml_collections.ConfigDict, params: Params) -> Params:
    """Finds the parameters that stay as they are: a tree of bool.

    Args:
        config: the config's `optimizer` section; `frozen` is a regular expression for paths of parameters, or empty.
        params: the detector's parameters, for their paths.

    Raises:
        ValueError: `frozen` matches no parameter.
    """
    if not config.frozen:
        return jax.tree.map(lambda _: False, params)
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(config.frozen, parameter_path(path)) is not None, params
    )
    if not any(jax.tree.leaves(frozen)):
        names = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(f'optimizer.frozen={config.frozen!r} matches no parameter; their names are like {names[0]!r}')
    return frozen


def parameter_path(path: tuple[Any, ...]) -> str:
    """Writes the path of a parameter in JAX's tree as text, for example 'backbone/stem_conv/kernel'."""
    return '/'.join(key.key for key in path)


def make_loss(
    config: ml_collections.ConfigDict, detector: Detector | Segmenter, params: Params
) -> Callable[..., tuple[Array, tuple[ModelState, dict[str, Array]]]]:
    """Makes a detector's loss with a gradient of 0 for frozen parameters, so that nothing is computed for them.

    Args:
        config: the config's `optimizer` section.
        detector: the detector or segmenter.
        params: its parameters, for their paths.

    Returns:
        a function with the arguments and the result of `detector.loss`.
    """
    frozen = frozen_parameters(config, params)

    def loss_of(params: Params, *arguments: Any) -> tuple[Array, tuple[ModelState, dict[str, Array]]]:
        params = jax.tree.map(lambda x, still: jax.lax.stop_gradient(x) if still else x, params, frozen)
        return detector.loss(params, *arguments)

    return loss_of
