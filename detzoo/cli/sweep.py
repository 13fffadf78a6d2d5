"""Runs the trainings of an experiment, each in a process of its own.

    python scripts/sweep.py --experiment=experiments/focal_loss.py --workdir=runs/focal_loss
    python scripts/report.py --workdir=runs/focal_loss

What is finished is not repeated, what was cut goes on, what fails is recorded with its reason and ends nothing else; the
same command tries it again. Results go to results.jsonl in the workdir; `detzoo/sweeps/store.py` tells what else is
there. Further arguments go to every run, for example --config.training.steps=100 --config.data.data_dir=DIR.

--costs then measures what prediction costs, of each group's first run, with its trained weights on validation images, in one
pass that should have the machine for itself; with --tpu=v5e:2x4 the TPU compiler also estimates it for such chips, which need
not be there (pip install 'detzoo[tpu]').

--cluster=slurm submits a job for each run instead (pip install 'detzoo[cluster]'), from a workdir that all nodes see:

    python scripts/sweep.py --experiment=... --workdir=... --cluster=slurm --jobs=100 \
        --cluster_options='slurm_partition=gpu,gpus_per_node=1,timeout_min=600'
"""

import sys

from absl import app, flags, logging

from detzoo.cli.paths import define_path

EXPERIMENT = define_path('experiment', None, 'A file of experiments/, with an argument after a colon.', required=True)
WORKDIR = define_path('workdir', None, 'Where everything goes; the same again goes on where it was.', required=True)
JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at once.', lower_bound=1)
COSTS = flags.DEFINE_bool('costs', False, 'Also measure what prediction costs.')
TPU = flags.DEFINE_string('tpu', None, 'With --costs: a topology of TPUs to estimate them for, for example v5e:2x4.')
CLUSTER = flags.DEFINE_enum(
    'cluster', None, ['slurm', 'local'], "Submit runs as jobs; 'local' are processes, for a trial."
)
OPTIONS = flags.DEFINE_list('cluster_options', [], 'Parameters of submitit, KEY=VALUE each.')


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


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    from detzoo.errors import ConfigError
    from detzoo.sweeps.costs import estimate_costs, measure_costs
    from detzoo.sweeps.launchers import Cluster
    from detzoo.sweeps.plan import plan
    from detzoo.sweeps.runner import run_sweep
    from detzoo.sweeps.store import FAILED, Store

    folder = Store(WORKDIR.value).folder
    try:
        planned = plan(EXPERIMENT.value, argv[1:])
        launcher = None
        if CLUSTER.value:
            pairs = (option.partition('=') for option in OPTIONS.value)
            options = {key: int(value) if value.isdigit() else value for key, _, value in pairs}
            launcher = Cluster(folder, CLUSTER.value, options)
        with Shown() as show:
            results = run_sweep(folder, planned, launcher, jobs=JOBS.value, show=show)
        if COSTS.value:
            measure_costs(Store(folder))
            if TPU.value:
                estimate_costs(Store(folder), TPU.value)
    except (ConfigError, ImportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    failed = [result.run for result in results if result.status == FAILED]
    print(
        f'{len(results) - len(failed)} of {len(results)} runs are finished: python scripts/report.py --workdir={folder}'
    )
    sys.exit(f'error: {len(failed)} failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
