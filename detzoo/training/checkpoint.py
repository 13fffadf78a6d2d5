"""Checkpoints: a training state on disk, whole or not at all.

Orbax writes into a temporary folder and renames it, so that a kill at any moment leaves the last whole checkpoint. The
position in the data is the step (see data/pipeline.py), so nothing else needs to be kept.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from detzoo.types import ModelState, Params


class TrainState(NamedTuple):
    """What a run is at a step; together with its config, all that decides how it goes on.

    step: [] int32, how many updates were made.
    params, model_state: of the detector.
    opt_state: of the optimiser.
    ema_params: the moving average of params, or None.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    ema_params: Params | None


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 3):
        """Opens `workdir/checkpoints`.

        Args:
            workdir: of the run.
            keep: how many of the newest checkpoints stay.
        """
        self.folder = pathlib.Path(workdir).resolve() / 'checkpoints'
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def cut_back(self, step: int) -> None:
        """Removes the checkpoints beyond a step."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def save(self, state: TrainState) -> None:
        """Starts writing a state of numpy arrays; `close`, or the next `save`, waits for its end.

        Raises:
            FloatingPointError: it holds a number that is not finite; nothing is written.
        """
        step = int(state.step)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if not np.isfinite(leaf).all():
                raise FloatingPointError(
                    f'after step {step}, {jax.tree_util.keystr(path)} is not finite: no checkpoint was written; '
                    f'the last good one is that of step {self.latest_step()} in {self.folder}'
                )
        if step != self.latest_step():
            variables, optimizer = _split(state)
            save = ocp.args.StandardSave
            self._manager.save(step, args=ocp.args.Composite(variables=save(variables), optimizer=save(optimizer)))

    def save_variables(self, params: Params, model_state: ModelState) -> None:
        """Writes variables that come from elsewhere, as those of step 0; there is no optimiser to go on with."""
        variables = ocp.args.StandardSave(dict(params=params, model_state=model_state))
        self._manager.save(0, args=ocp.args.Composite(variables=variables))

    def restore(self, template: TrainState) -> TrainState:
        """Reads the newest state, as numpy arrays of the template's structure, shapes and dtypes."""
        variables, optimizer = (ocp.args.StandardRestore(_zeros(part)) for part in _split(template))
        args = ocp.args.Composite(variables=variables, optimizer=optimizer)
        restored = self._manager.restore(self.latest_step(), args=args)
        return TrainState(
            step=restored.optimizer['step'],
            opt_state=restored.optimizer['opt_state'],
            params=restored.variables['params'],
            model_state=restored.variables['model_state'],
            ema_params=restored.variables.get('ema_params'),
        )

    def restore_variables(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Reads what a prediction needs, without the optimiser.

        Args:
            step: of the checkpoint, the newest by default.

        Returns:
            the step, and 'params', 'model_state' and, where there are any, 'ema_params'.

        Raises:
            FileNotFoundError: there is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise FileNotFoundError(f'no checkpoint in {self.folder} yet: the run was stopped before its first one')
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(f'no checkpoint of step {step} in {self.folder}; there are: {steps}')
        variables = ocp.args.StandardRestore()
        return step, self._manager.restore(step, args=ocp.args.Composite(variables=variables)).variables

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a state into what predictions need and what only training does: the two items of a checkpoint."""
    variables = dict(params=state.params, model_state=state.model_state)
    if state.ema_params is not None:
        variables['ema_params'] = state.ema_params
    return variables, dict(step=state.step, opt_state=state.opt_state)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
