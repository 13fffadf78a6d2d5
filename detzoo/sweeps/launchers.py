"""Launchers start the runs of a sweep, as processes on this machine or as jobs of a cluster."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, Protocol

from detzoo.files import write_text
from detzoo.run.stopping import EXIT_CODES
from detzoo.sweeps.attempt import ROOT, attempt_in_job
from detzoo.sweeps.store import STOPPED, Store


class Handle(Protocol):
    """A run that was started."""

    def ended(self) -> str | None:
        """Returns None while the run goes on, then a line that says how it ended: STOPPED if it was asked to stop."""

    def stop(self) -> bool:
        """Asks the run to stop; returns False if it goes on without the process of the sweep."""


class Launcher(Protocol):
    """Starts the runs of a sweep."""

    def start(self, run: str) -> Handle:
        """Starts a run of the sweep's folder."""


class Processes:
    """Runs on this machine; they end with the process of the sweep."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def start(self, run: str) -> Handle:
        """Starts a process whose output goes to runs/RUN.log."""
        (self.folder / 'runs').mkdir(exist_ok=True)
        with open(self.folder / 'runs' / f'{run}.log', 'a') as log:
            process = subprocess.Popen(
                [sys.executable, '-m', 'detzoo.sweeps.attempt', str(self.folder), run],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=process_environment(),
            )
        return _Process(process, self.folder / 'runs' / f'{run}.log')


class _Process:
    def __init__(self, process: subprocess.Popen, log: pathlib.Path):
        self.process, self.log = process, log

    def ended(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        if code in EXIT_CODES.values() or -code in EXIT_CODES:  # the signal itself ends a process that is just starting
            return STOPPED
        if code < 0:
            hint = ', often because memory ran out' if -code == signal.SIGKILL else ''
            return f'killed by {signal.Signals(-code).name}{hint}'
        return f'exit code {code}, see {self.log}'

    def stop(self) -> bool:
        self.process.terminate()
        return True


class Cluster:
    """Submits each run as a job of a cluster, with submitit (pip install 'detzoo[cluster]'); jobs outlive the sweep's process."""

    def __init__(self, folder: pathlib.Path, cluster: str, options: dict[str, Any]):
        """Prepares to submit jobs.

        Args:
            folder: the folder of the sweep, which all nodes must see.
            cluster: 'slurm', or 'local' for processes on this machine.
            options: parameters of submitit, for example {'slurm_partition': 'gpu', 'gpus_per_node': 1, 'timeout_min': 600}. With
                'nodes' or 'tasks_per_node' above 1 a run has a process for each task of its job.

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
            result.unlink(missing_ok=True)  # left by an earlier job
            job = self.executor.submit(attempt_in_job, str(self.folder), run)
            write_text(path, job.job_id)
        return _Job(job, result)


class _Job:
    def __init__(self, job: Any, result: pathlib.Path):
        self.job, self.result = job, result

    def ended(self) -> str | None:
        # The file comes first, since submitit asks the scheduler less and less often.
        done = self.result.exists() or self.job.done()
        if done and self.job.state == 'PREEMPTED':
            return STOPPED
        if done:
            return f'job {self.job.job_id} {self.job.state.lower()}, see {self.job.paths.stderr}'
        return None

    def stop(self) -> bool:
        return False


def process_environment() -> dict[str, str]:
    """Returns the environment for a process that imports this package."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
