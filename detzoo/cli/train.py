"""Trains and evaluates the detector of a config.

    detzoo train --config=retinanet_shapes --workdir=runs/shapes

Each key of the config can be set: --config.training.steps=500 --config.data.name=NAME. An interrupted run goes on with the same
command on the same workdir. On a pod, start the command with --multihost on every host. Where JAX finds no cluster by itself,
say which process each one is:

    detzoo train ... --coordinator_address=HOST:PORT --num_processes=2 --process_id=0      on HOST
    detzoo train ... --coordinator_address=HOST:PORT --num_processes=2 --process_id=1      on the other one

If one of them is gone, the others end with exit code 242; start all of them again.

A run whose loss or gradient is not finite ends, and writes the batch and the state before it into nonfinite/ of its workdir.
This repeats the step, and says which losses, images and gradients are not finite:

    detzoo train --replay=runs/shapes/nonfinite/120.safetensors

SIGTERM and Ctrl-C end the run after its step, with a checkpoint. It exits with 42 after SIGTERM, with 130 after Ctrl-C. A second
Ctrl-C ends it at once, and so does either during start-up.
"""

import sys
from typing import Any

from absl import flags, logging

from detzoo.cli.config_flag import define_config
from detzoo.cli.host_flags import define_hosts, quieten
from detzoo.cli.paths import define_path
from detzoo.run.stopping import GRACE as DEFAULT_GRACE
from detzoo.run.stopping import Stopped, StopRequest

CONFIG = define_config(required=False)  # not for --replay, see below
WORKDIR = define_path('workdir', None, 'The folder for checkpoints, metrics and the config.')
PROFILE = flags.DEFINE_integer(
    'profile', 0, 'The number of steps to record with the profiler, for TensorBoard.', lower_bound=0
)
HOSTS = define_hosts()
GRACE = flags.DEFINE_float(
    'grace',
    DEFAULT_GRACE,
    'The seconds that the system leaves the process after SIGTERM. A step or a compilation that takes them all is given up: '
    'the run then ends without a new checkpoint.',
    lower_bound=0.0,
)
REPLAY = define_path('replay', None, 'A file in nonfinite/ of a workdir: its step is repeated, and nothing is trained.')
replay_flag = flags.FLAGS['replay']
for required in ('config', 'workdir'):
    flags.register_validator(
        required,
        lambda value: value is not None or replay_flag.value is not None,
        f'Flag --{required} must have a value other than None.',  # absl's words for a required flag
    )
STOP = StopRequest()


def before_flags(argv: list[str]) -> None:
    """Takes SIGTERM and SIGINT from the beginning; libraries swallow KeyboardInterrupt."""
    quieten(argv)
    STOP.listen()


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.FATAL)  # libraries log every step of a checkpoint, and errors that are raised as well
    sys.unraisablehook = show_unraisable
    with HOSTS.joined():
        train()


def train() -> None:
    """Trains, or replays a step, and prints what came out."""
    import jax

    from detzoo.evaluation.coco import format_table
    from detzoo.run.parallel import keep_compilations
    from detzoo.training.loop import train_and_evaluate

    keep_compilations()
    if REPLAY.value is not None:
        from detzoo.training.nonfinite import describe, replay

        print(describe(replay(REPLAY.value)))
        return
    STOP.grace = GRACE.value
    try:
        metrics = train_and_evaluate(CONFIG.value, WORKDIR.value, profile_steps=PROFILE.value, stop=STOP)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    if jax.process_index() == 0:
        print(format_table(metrics))


def show_unraisable(raised: Any) -> None:
    """Leaves out what tensorstore says of every later write once a checkpoint's first write has failed."""
    if 'Event loop is closed' not in str(raised.exc_value):
        sys.__unraisablehook__(raised)
