"""Trains and evaluates the detector of a config.

    python scripts/train.py --config=configs/retinanet_shapes.py --workdir=runs/shapes

Each key of the config can be set: --config.training.steps=500 --config.data.name=NAME. The same command on the same
workdir goes on where the run was, however it ended. On a pod, start it on every host.
"""

import signal
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from detzoo.cli.paths import define_path

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment: a file of configs/, with an argument after a colon.'
)
WORKDIR = define_path('workdir', None, 'Where checkpoints, metrics and the config go.')
PROFILE = flags.DEFINE_integer(
    'profile', 0, 'How many steps to record with the profiler, for TensorBoard.', lower_bound=0
)
MULTIHOST = flags.DEFINE_bool('multihost', False, 'Whether this is one of several processes of a run (TPU pod, SLURM).')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(
        logging.FATAL
    )  # libraries tell every step of a checkpoint otherwise, and its errors, which are raised
    sys.unraisablehook = show_unraisable
    import jax

    if MULTIHOST.value:
        jax.config.update('jax_enable_preemption_service', False)  # it would keep SIGTERM from ending the process
        jax.distributed.initialize()
    from detzoo.errors import ConfigError, DataError, FirstProcessError, InUseError, RecompilationError
    from detzoo.evaluation.coco import format_table
    from detzoo.run.parallel import keep_compilations
    from detzoo.training.loop import train_and_evaluate

    keep_compilations()
    try:
        metrics = train_and_evaluate(CONFIG.value, WORKDIR.value, profile_steps=PROFILE.value)
    except (
        ConfigError,
        DataError,
        FirstProcessError,
        FloatingPointError,
        InUseError,
        OSError,
        RecompilationError,
    ) as error:
        sys.exit(f'error: {error}')
    if jax.process_index() == 0:
        print(format_table(metrics))


def show_unraisable(raised: Any) -> None:
    """Leaves out what tensorstore's writes say one by one where a checkpoint's first one has failed and ended their loop."""
    if 'Event loop is closed' not in str(raised.exc_value):
        sys.__unraisablehook__(raised)


if __name__ == '__main__':
    # Ends at once, as by SIGTERM: checkpoints are whole at any moment, and libraries have swallowed a KeyboardInterrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    app.run(main)
