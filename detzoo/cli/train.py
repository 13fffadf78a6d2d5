"""Trains and evaluates the detector of a config.

    detzoo train --config=retinanet_shapes --workdir=runs/shapes

Each key of the config can be set: --config.training.steps=500 --config.data.name=NAME. An interrupted run goes on with the same
command on the same workdir. On a pod, start the command on every host.
"""

import signal
import sys
from typing import Any

from absl import flags, logging

from detzoo.cli.config_flag import define_config
from detzoo.cli.paths import define_path

CONFIG = define_config()
WORKDIR = define_path('workdir', None, 'The folder for checkpoints, metrics and the config.', required=True)
PROFILE = flags.DEFINE_integer(
    'profile', 0, 'The number of steps to record with the profiler, for TensorBoard.', lower_bound=0
)
MULTIHOST = flags.DEFINE_bool('multihost', False, 'Whether this is one of several processes of a run (TPU pod, SLURM).')


def before_flags(argv: list[str]) -> None:
    """Lets Ctrl-C end the process at once, as SIGTERM does: checkpoints are whole, and libraries swallow KeyboardInterrupt."""
    del argv
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.FATAL)  # libraries log every step of a checkpoint, and errors that are raised as well
    sys.unraisablehook = show_unraisable
    import jax

    if MULTIHOST.value:
        jax.config.update('jax_enable_preemption_service', False)  # it would keep SIGTERM from ending the process
        jax.distributed.initialize()
    from detzoo.evaluation.coco import format_table
    from detzoo.run.parallel import keep_compilations
    from detzoo.training.loop import train_and_evaluate

    keep_compilations()
    metrics = train_and_evaluate(CONFIG.value, WORKDIR.value, profile_steps=PROFILE.value)
    if jax.process_index() == 0:
        print(format_table(metrics))


def show_unraisable(raised: Any) -> None:
    """Leaves out what tensorstore says of every later write once a checkpoint's first write has failed."""
    if 'Event loop is closed' not in str(raised.exc_value):
        sys.__unraisablehook__(raised)
