"""Runs a sweep: each training in a process of its own, so that one that fails, or is killed, ends no other.

    Sweep -> plan: what each Result is to be of -> sweep.json
      -> run_sweep: starts what is not finished, here or as jobs of a cluster, and shows how far they are
           attempt (in the process of a run): train, evaluate, draw -> results/RUN/, last result.json
      -> results.jsonl

A sweep that was cut, by whatever, goes on with the same call: what is finished stays, what was cut goes on from its last
checkpoint. A run that failed is tried again.

    python -m detzoo.sweeps.runner DIR RUN       what the processes run
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from detzoo.config import MUTABLE, differences, from_json
from detzoo.costs import TPU_ENVIRONMENT
from detzoo.errors import ConfigError
from detzoo.files import write_text
from detzoo.run.metrics import read_metrics
from detzoo.run.workdir import has_checkpoints
from detzoo.sweeps.store import FAILED, FINISHED, Result, Store, read_file, truth_name
from detzoo.sweeps.sweep import config_of, full_name, load_sweep

ROOT = pathlib.Path(__file__).parents[2]  # the checkout, or the folder of installed packages
WAITING = 'waiting'
POINTS = 300  # of a training curve, at most


class Handle(Protocol):
    """A run that was started."""

    def ended(self) -> str | None:
        """None while it runs; then how its process ended, should it have left no result."""


class Launcher(Protocol):
    """Where runs go."""

    def start(self, run: str) -> Handle:
        """Starts a run of the sweep's folder."""


def plan(experiment: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Writes an experiment as the contents of sweep.json.

    Args:
        experiment: a name or the path of a file, with an argument after a colon.
        settings: changes of every run's config as text, for example 'training.steps=100'.

    Raises:
        ConfigError: see `load_sweep` and `config_of`; or a run has replicas.
    """
    sweep, docstring = load_sweep(experiment)
    configs = [config_of(run, settings) for run in sweep.runs]
    runs = []
    for run, config in zip(sweep.runs, configs):
        if config.training.num_replicas > 1:
            raise ConfigError(
                f'run {run.name!r}: a run is one training, not {config.training.num_replicas} replicas: list seeds'
            )
        group = run.group or run.name
        runs.append(
            Result(
                run=run.name,
                group=group,
                series=run.series or group,
                status=WAITING,
                reason='',
                config=config.to_dict(),
                changes={key: list(pair) for key, pair in differences(configs[0], config).items()},
                seed=config.seed,
                published=run.published,
                trained=run.trained,
            )._asdict()
        )
    return dict(
        experiment=full_name(experiment),
        docstring=docstring,
        metrics=list(sweep.metrics),
        figures=[axes._asdict() for axes in sweep.figures],
        runs=runs,
    )


def run_sweep(
    folder: str | os.PathLike,
    planned: dict[str, Any],
    launcher: Launcher | None = None,
    *,
    jobs: int = 1,
    show: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[Result]:
    """Trains what a sweep has not finished.

    Args:
        folder: of the sweep.
        planned: of `plan`.
        launcher: where runs go; processes on this machine by default.
        jobs: runs at once, at most.
        show: is called twice a second with a row for each run: 'run', 'status', 'step', 'steps', 'left' (seconds, or
            None), 'AP', 'reason'.

    Returns:
        the results of all runs, in their order.

    Raises:
        ConfigError: the folder holds another sweep, or results of other configs; or a sweep is running there.
    """
    store = Store(folder)
    launcher = launcher or Processes(store.folder)
    with _only_one(store):
        done = _check(store, planned)
        write_text(store.folder / 'sweep.json', json.dumps(planned, indent=1) + '\n')
        runs = [Result(**row) for row in planned['runs']]
        waiting = [run for run in runs if run.run not in done]
        running: dict[str, tuple[Result, Handle]] = {}
        board = _Board(store, runs)
        while waiting or running:
            for run in [run for run in waiting if not run.trained or run.trained in done][: jobs - len(running)]:
                waiting.remove(run)
                running[run.run] = run, launcher.start(run.run)
            for name, (run, handle) in list(running.items()):
                how = handle.ended()
                if how is not None:
                    result = _left_by(store, name) or run._replace(status=FAILED, reason=how)
                    store.write_result(result)
                    done[name] = result
                    del running[name]
            show(board.rows(running, done))
            if running:
                time.sleep(0.5)
        show(board.rows(running, done))
    return [done[run.run] for run in runs]


@contextlib.contextmanager
def _only_one(store: Store) -> Iterator[None]:
    """Holds the folder of a sweep; the system lets go of it however the process ends."""
    store.folder.mkdir(parents=True, exist_ok=True)
    with open(store.folder / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f'a sweep is running in {store.folder}: wait for it, or take another folder') from error
        yield


def _check(store: Store, planned: dict[str, Any]) -> dict[str, Result]:
    """Finds the runs that need nothing any more, and refuses a folder whose results are of something else."""
    with contextlib.suppress(FileNotFoundError):
        before = read_file(store.folder / 'sweep.json', lambda: store.sweep()['experiment'])
        if before != planned['experiment']:
            raise ConfigError(
                f'{store.folder} holds the sweep of {before}: take another folder for {planned["experiment"]}'
            )
    done = {}
    for row in planned['runs']:
        result = _left_by(store, row['run']) or next((r for r in store.results() if r.run == row['run']), None)
        if result is None or result.status == FAILED:
            continue
        changed = differences(*(from_json(json.dumps(config)) for config in (result.config, row['config'])))
        refused = {key: pair for key, pair in changed.items() if key not in MUTABLE}
        if refused:
            keys = '; '.join(f'{key} was {old!r}, is {new!r}' for key, (old, new) in refused.items())
            raise ConfigError(
                f'{store.folder}: run {result.run!r} was finished with another config ({keys}): take another folder'
            )
        if result.steps >= row['config']['training']['steps']:
            store.write_result(result)  # it may have been left by a run that outlived its sweep
            done[result.run] = result
    return done


def _left_by(store: Store, run: str) -> Result | None:
    """Reads what a run left as its result."""
    path = store.results_of(run) / 'result.json'
    return read_file(path, lambda: Result(**json.loads(path.read_text()))) if path.exists() else None


class _Board:
    """How far the runs are, read from their logs."""

    def __init__(self, store: Store, runs: list[Result]):
        self.store, self.runs = store, runs
        self.first: dict[str, tuple[float, int]] = {}  # when a run was first seen to step, and at which step
        self.pace: dict[str, float] = {}  # seconds a step

    def rows(self, running: dict[str, Any], done: dict[str, Result]) -> list[dict[str, Any]]:
        """Makes a row for each run."""
        rows = []
        for run in self.runs:
            row = dict(
                run=run.run,
                status=WAITING,
                step=0,
                steps=run.config['training']['steps'],
                left=None,
                AP=None,
                reason='',
            )
            if run.run in running:
                row |= dict(status='running', step=self._step(run.run))
            elif run.run in done:
                result = done[run.run]
                row |= dict(status=result.status, step=result.steps, AP=result.metrics.get('AP'), reason=result.reason)
            rows.append(row)
        pace = np.mean(list(self.pace.values())) if self.pace else None
        for row in rows:
            if row['status'] in (WAITING, 'running') and pace is not None:
                row['left'] = (row['steps'] - row['step']) * self.pace.get(row['run'], pace)
        return rows

    def _step(self, run: str) -> int:
        """Reads the last step of a run, and times it."""
        path = self.store.workdir(run) / 'metrics.jsonl'
        try:
            with open(path, 'rb') as file:
                file.seek(max(0, path.stat().st_size - 4096))
                step = json.loads(file.read().splitlines()[-1])['step']
        except (OSError, ValueError, IndexError, KeyError):  # not there yet, or a line that is being written
            return self.first.get(run, (0.0, 0))[1]
        now = time.monotonic()
        since, start = self.first.setdefault(run, (now, step))
        if step > start:
            self.pace[run] = (now - since) / (step - start)
        return step


class Processes:
    """Runs on this machine; they end with the process of the sweep."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def start(self, run: str) -> Handle:
        """Starts a process whose output goes to runs/RUN.log."""
        (self.folder / 'runs').mkdir(exist_ok=True)
        with open(self.folder / 'runs' / f'{run}.log', 'a') as log:
            process = subprocess.Popen(
                [sys.executable, '-m', 'detzoo.sweeps.runner', str(self.folder), run],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        return _Process(process, self.folder / 'runs' / f'{run}.log')


class _Process:
    def __init__(self, process: subprocess.Popen, log: pathlib.Path):
        self.process, self.log = process, log

    def ended(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        if code < 0:
            hint = ', as the system does where memory is short' if -code == signal.SIGKILL else ''
            return f'killed by {signal.Signals(-code).name}{hint}'
        return f'exit code {code}, see {self.log}'


class Cluster:
    """Jobs of a cluster, one a run, by submitit (pip install 'detzoo[cluster]'); they outlive the process of the sweep."""

    def __init__(self, folder: pathlib.Path, cluster: str, options: dict[str, Any]):
        """Prepares to submit jobs.

        Args:
            folder: of the sweep; where all nodes see it.
            cluster: 'slurm', or 'local' for processes of this machine.
            options: submitit's parameters, for example {'slurm_partition': 'gpu', 'gpus_per_node': 1, 'timeout_min': 600}.

        Raises:
            ImportError: submitit is not installed.
        """
        try:
            import submitit
        except ImportError as error:
            raise ImportError("a cluster needs submitit: pip install 'detzoo[cluster]'") from error
        self.folder = folder.resolve()
        self.executor = submitit.AutoExecutor(folder=self.folder / 'jobs', cluster=cluster)
        self.executor.update_parameters(**options)
        self.job = {'slurm': submitit.SlurmJob, 'local': submitit.LocalJob}[cluster]

    def start(self, run: str) -> Handle:
        """Submits a job, or takes up the one that an earlier process of the sweep submitted."""
        path, result = self.folder / 'runs' / f'{run}.job', Store(self.folder).results_of(run) / 'result.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        job = self.job(self.folder / 'jobs', path.read_text()) if path.exists() else None
        if job is None or job.done(force_check=True):
            result.unlink(missing_ok=True)  # of an earlier job
            job = self.executor.submit(attempt, str(self.folder), run)
            write_text(path, job.job_id)
        return _Job(job, result)


class _Job:
    def __init__(self, job: Any, result: pathlib.Path):
        self.job, self.result = job, result

    def ended(self) -> str | None:
        if self.result.exists() or self.job.done():  # the scheduler is asked ever more seldom
            return f'job {self.job.job_id} {self.job.state.lower()}, see {self.job.paths.stderr}'
        return None


def attempt(folder: str, run: str) -> bool:
    """Trains, evaluates and draws a run of a sweep, in the process of the run; returns whether it is finished.

    Whatever happens but the death of the process, its result.json says what came out.
    """
    store = Store(folder)
    planned = next(Result(**row) for row in store.sweep()['runs'] if row['run'] == run)
    runs = store.workdir(run).parent
    runs.mkdir(parents=True, exist_ok=True)
    store.results_of(run).mkdir(parents=True, exist_ok=True)
    with open(runs / f'{run}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier attempt may be about to end
        path = store.results_of(run) / 'result.json'
        path.unlink(missing_ok=True)
        with _Clock(runs / f'{run}.seconds') as clock:
            try:
                result = _train(store, planned)
            except Exception as error:
                lines = str(error).splitlines() or ['']
                result = planned._replace(status=FAILED, reason=f'{type(error).__name__}: {lines[0]}')
                sys.excepthook(type(error), error, error.__traceback__)  # into the log
        result = result._replace(seconds=clock.seconds())
        write_text(path, json.dumps(result._asdict(), indent=1) + '\n')
    return result.status == FINISHED


class _Clock:
    """Counts the seconds of all attempts at a run, in a file that is as old as a few seconds when the process is killed."""

    def __init__(self, path: pathlib.Path):
        self.path, self.start, self.end = path, time.monotonic(), threading.Event()
        self.before = float(path.read_text()) if path.exists() else 0.0
        self.thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> '_Clock':
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.end.set()
        self.thread.join()

    def seconds(self) -> float:
        """Counts till now."""
        return round(self.before + time.monotonic() - self.start, 1)

    def _count(self) -> None:
        while not self.end.wait(5):
            write_text(self.path, str(self.seconds()))
        write_text(self.path, str(self.seconds()))


def _train(store: Store, planned: Result) -> Result:
    """Trains a run and writes the files from which it is reported."""
    from detzoo.costs.cost import device_name, parameter_count
    from detzoo.evaluation import write_detections
    from detzoo.inference.dataset import evaluate_workdir
    from detzoo.inference.predictor import load
    from detzoo.run.parallel import keep_compilations
    from detzoo.training.loop import train_and_evaluate

    keep_compilations()
    config = from_json(json.dumps(planned.config))
    workdir, folder = store.workdir(planned.run), store.results_of(planned.run)
    if planned.trained:
        _take_training(store.workdir(planned.trained), workdir)
    train_and_evaluate(config, workdir)
    metrics, truth, detections = evaluate_workdir(workdir)
    predictor = load(workdir)

    name = truth_name(config.data.name, config.data.validation_split)
    store.write_ground_truth(name, truth)
    write_detections(folder / 'detections.json.gz', detections)
    write_text(folder / 'curves.json', json.dumps(curves(read_metrics(workdir))) + '\n')
    _draw(store, name, planned.run, predictor, truth, detections)
    environment = json.loads((workdir / 'environment.json').read_text())
    masks = {f'mask_{key}': value for key, value in metrics.get('masks', {}).items()}
    return planned._replace(
        status=FINISHED,
        versions={'python': environment['python'], **environment['versions'], 'commit': code_version()},
        device={'kind': device_name(), 'count': environment['devices']},
        steps=metrics['step'],
        parameters=parameter_count(predictor.params),
        metrics=metrics['boxes'] | masks,
        per_class=metrics['per_class'],
        truth=name,
    )


def _take_training(source: pathlib.Path, workdir: pathlib.Path) -> None:
    """Copies what another run has trained, all or a part, if there is such and this run has none of its own yet."""
    if has_checkpoints(workdir) or not has_checkpoints(source):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / 'metrics.jsonl', workdir)
    scratch = workdir / 'checkpoints.tmp'
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source / 'checkpoints', scratch)
    shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)  # of damaged or unfinished ones, in the way of these
    scratch.rename(workdir / 'checkpoints')


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Makes the curves of a run from the lines of its metrics.jsonl; the training loss is averaged to POINTS points."""
    training = [row for row in rows if 'loss' in row]
    parts = np.array_split(np.arange(len(training)), min(POINTS, max(1, len(training))))
    parts = [part for part in parts if len(part)]
    validation = [row for row in rows if 'validation/loss' in row]
    names = ['step', *(name for name in (validation[0] if validation else {}) if name.startswith('validation/'))]
    return dict(
        training=dict(
            step=[training[part[-1]]['step'] for part in parts],
            loss=[float(np.mean([training[index]['loss'] for index in part])) for part in parts],
        ),
        validation={name.removeprefix('validation/'): [row[name] for row in validation] for name in names},
    )


def _draw(store: Store, truth: str, run: str, predictor: Any, ground_truth: dict[str, Any], detections: Any) -> None:
    """Draws the first images with the objects, with what was found, and with what training would learn from."""
    from detzoo.data.catalog import open_dataset
    from detzoo.sweeps.assignments import draw_assignments
    from detzoo.training.loop import draw_pictures
    from detzoo.visualize import write_image

    config = predictor.config
    dataset = open_dataset(config.data.name, config.data.validation_split, config.data.data_dir)
    for folder, pictures in (
        (store.truth(truth) / 'panels', draw_pictures(dataset, ground_truth['annotations'])),
        (store.results_of(run) / 'panels', draw_pictures(dataset, detections)),
        (store.results_of(run) / 'assignment', draw_assignments(predictor, dataset)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            write_image(folder / f'{name}.jpg', picture)


def measure_costs(store: Store, batch_sizes: Sequence[int] = (1, 8)) -> list[dict[str, Any]]:
    """Measures what prediction costs, of all groups with a finished run in one pass, and writes costs.json.

    The first finished run of a group predicts, with its trained weights. Nothing is measured if costs.json has these groups
    already.

    Returns:
        the rows of `stages.measure`; 'name' is the group.

    Raises:
        FileNotFoundError: a run's workdir is not there any more.
        DataError: its data set cannot be used.
    """
    from detzoo.costs import stages
    from detzoo.inference.predictor import load

    groups = store.first_of_groups()
    if {row['name'] for row in store.costs()} != set(groups):
        prepared = {
            group: stages.prepare_trained(load(store.workdir(result.run)), batch_sizes)
            for group, result in tqdm(groups.items(), desc='compiling for costs', unit='group', leave=False)
        }
        rows = stages.measure(prepared)
        write_text(store.folder / 'costs.json', json.dumps(rows, indent=1) + '\n')
    return store.costs()


def estimate_costs(store: Store, topology: str) -> None:
    """Estimates what prediction would cost on TPUs, of all groups with a finished run, and writes estimates.json.

    Raises:
        ValueError: it did not work; the process said why.
    """
    command = [sys.executable, '-m', 'detzoo.sweeps.estimates', str(store.folder), topology]
    if subprocess.run(command, env=_environment() | TPU_ENVIRONMENT, check=False).returncode:
        raise ValueError(f'no estimates for {topology}: see above')


def _environment() -> dict[str, str]:
    """The environment of a process that finds this package."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return os.environ | {'PYTHONPATH': os.pathsep.join(paths)}


def code_version() -> str:
    """Names the commit of the code, with '+' where files differ from it; 'unknown' outside of a checkout."""
    if not (ROOT / '.git').exists():  # installed: the folder may lie in a repository of something else
        return 'unknown'
    git = ['git', '-C', str(ROOT)]
    try:
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, 'status', '--porcelain', '-uno'], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return commit[:12] + ('+' if changed.strip() else '')


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == '__main__':
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    sys.exit(0 if attempt(*sys.argv[1:]) else 1)
