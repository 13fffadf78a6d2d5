"""Runs the trainings of an experiment, each in a process of its own.

    detzoo sweep --experiment=focal_loss --workdir=runs/focal_loss
    detzoo report --workdir=runs/focal_loss

The same command continues a sweep: finished runs are not repeated, interrupted ones go on, failed ones are tried again. A run
that fails is recorded with its reason and stops no other. After SIGTERM or Ctrl-C the runs save their states, and the command
exits with 42 or 130. Results go to results.jsonl in the workdir; `detzoo/sweeps/store.py` describes the other files.
--config.KEY=VALUE changes every run, for example --config.training.steps=100.

--costs also measures what prediction costs, with the trained weights of each group's first run on validation images, in one
pass that should have the machine to itself. With --tpu=v5e:2x4 the TPU compiler estimates it for such chips too, which need
not be there (pip install 'detzoo[tpu]').

--cluster=slurm submits each run as a job (pip install 'detzoo[cluster]'), from a workdir that all nodes see:

    detzoo sweep --experiment=focal_loss --workdir=/shared/focal_loss --cluster=slurm --jobs=100 \\
        --cluster_options='slurm_partition=gpu,gpus_per_node=1,timeout_min=600'

With nodes=2,tasks_per_node=8,gpus_per_node=8 among these options a run has 16 processes, each with a GPU of its own.
"""

import sys

from absl import flags, logging

from detzoo.cli.paths import define_path
from detzoo.run.stopping import Stopped, StopRequest

EXPERIMENT = define_path(
    'experiment',
    None,
    'An experiment: a name (focal_loss) or the path of a file, with an argument after a colon.',
    required=True,
)
WORKDIR = define_path('workdir', None, 'The folder for everything; the same again continues a sweep.', required=True)
JOBS = flags.DEFINE_integer('jobs', 1, 'The number of runs at once.', lower_bound=1)
COSTS = flags.DEFINE_bool('costs', False, 'Also measure what prediction costs.')
TPU = flags.DEFINE_string('tpu', None, 'With --costs: a topology of TPUs to estimate them for, for example v5e:2x4.')
CLUSTER = flags.DEFINE_enum(
    'cluster', None, ['slurm', 'local'], "Submit runs as jobs; 'local' starts processes here, to try it out."
)
OPTIONS = flags.DEFINE_list('cluster_options', [], 'Parameters of submitit, as KEY=VALUE, separated by commas.')
ERRORS = (ImportError, ValueError)  # an extra that is not installed; a variant that an experiment does not have


STOP = StopRequest()


def before_flags(argv: list[str]) -> None:
    """Takes SIGTERM and SIGINT from the beginning."""
    del argv
    STOP.listen()


def table(rows):
    """Lays out how far the runs are."""
    import rich.table

    def time_left(seconds):
        return '' if seconds is None else f'{seconds / 60:.0f} min'

    left = [row['left'] for row in rows if row['left'] is not None]
    ended = sum(row['status'] in ('finished', 'failed') for row in rows)
    title = f'{ended} of {len(rows)} runs ended' + (f', about {time_left(sum(left) / JOBS.value)} left' if left else '')
    grid = rich.table.Table(title=title)
    for heading in ('run', 'status', 'step', 'left', 'AP', ''):
        grid.add_column(heading, justify='right' if heading in ('step', 'left', 'AP') else 'left')
    for row in rows:
        step = f'{row["step"]} / {row["steps"]}'
        ap = '' if row['AP'] is None else f'{100 * row["AP"]:.1f}'
        grid.add_row(row['run'], row['status'], step, time_left(row['left']), ap, row['reason'])
    return grid


class Shown:
    """The table on a terminal, redrawn; elsewhere a line where a run's status changes."""

    def __enter__(self):
        import rich.console
        import rich.live

        self.status = {}
        self.live = rich.live.Live(console=rich.console.Console(stderr=True), auto_refresh=False)
        if sys.stderr.isatty():
            self.live.start()
        return self

    def __exit__(self, *_):
        self.live.stop()

    def __call__(self, rows):
        if self.live.is_started:
            self.live.update(table(rows), refresh=True)
            return
        for row in rows:
            if self.status.get(row['run'], 'waiting') != row['status']:
                self.status[row['run']] = row['status']
                ap = '' if row['AP'] is None else f', AP {100 * row["AP"]:.1f}'
                reason = f': {row["reason"]}' if row['reason'] else ''
                print(f'{row["run"]}: {row["status"]}{ap}{reason}', file=sys.stderr, flush=True)


def main(settings: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    from detzoo.sweeps.costs import estimate_costs, measure_costs
    from detzoo.sweeps.launchers import Cluster
    from detzoo.sweeps.plan import plan
    from detzoo.sweeps.runner import run_sweep
    from detzoo.sweeps.store import FAILED, Store

    folder = Store(WORKDIR.value).folder
    planned = plan(EXPERIMENT.value, settings)
    launcher = None
    if CLUSTER.value:
        pairs = (option.partition('=') for option in OPTIONS.value)
        options = {key: int(value) if value.isdigit() else value for key, _, value in pairs}
        launcher = Cluster(folder, CLUSTER.value, options)
    try:
        with Shown() as show:
            results = run_sweep(folder, planned, launcher, jobs=JOBS.value, stop=STOP, show=show)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    if COSTS.value:
        measure_costs(Store(folder))
        if TPU.value:
            estimate_costs(Store(folder), TPU.value)
    failed = [result.run for result in results if result.status == FAILED]
    print(f'{len(results) - len(failed)} of {len(results)} runs are finished: detzoo report --workdir={folder}')
    sys.exit(f'error: {len(failed)} failed: {", ".join(failed)}' if failed else 0)
