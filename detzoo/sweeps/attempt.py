"""One run of a sweep, in a process of its own: it is trained, evaluated and drawn, and its results are written.

`attempt`: train_and_evaluate in runs/RUN -> results/RUN/{detections.json.gz, curves.json, panels/, pixels/, assignment/}
  -> result.json, at the end, even if the run failed

python -m detzoo.sweeps.attempt DIR RUN       the command of a run's process; it stops with its parent
attempt_in_job                                the same in a job of a cluster, which may have several processes
"""

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
from typing import Any

from detzoo.config import from_json
from detzoo.files import write_text
from detzoo.run.metrics import read_metrics
from detzoo.run.stopping import Stopped, StopRequest
from detzoo.run.workdir import has_checkpoints
from detzoo.sweeps.curves import curves
from detzoo.sweeps.store import FAILED, FINISHED, Result, Store, truth_name

ROOT = pathlib.Path(__file__).parents[2]  # the checkout, or the folder of installed packages


def attempt_in_job(folder: str, run: str) -> bool:
    """Makes an attempt in a job of a cluster: in one process, or in as many as SLURM has tasks in the job."""
    if int(os.environ.get('SLURM_NTASKS', 1)) == 1:
        return attempt(folder, run)
    from detzoo.run.hosts import joined

    with joined():
        return attempt(folder, run, first=os.environ['SLURM_PROCID'] == '0')


def attempt(folder: str, run: str, stop: StopRequest | None = None, *, first: bool = True) -> bool:
    """Trains, evaluates and draws a run of a sweep, and writes its result.json, unless the process is killed.

    Args:
        folder: the folder of the sweep.
        run: its name.
        stop: may ask the run to stop.
        first: whether this is the first of the run's processes, or the only one. The others write nothing.

    Returns:
        whether it is finished.

    Raises:
        Stopped: the run was asked to stop; there is no result.json.
        Exception: what ended the run, in a process that is not the first.
    """
    store = Store(folder)
    planned = next(Result(**row) for row in store.sweep()['runs'] if row['run'] == run)
    if not first:
        return _train(store, planned, stop).status == FINISHED
    runs = store.workdir(run).parent
    runs.mkdir(parents=True, exist_ok=True)
    store.results_of(run).mkdir(parents=True, exist_ok=True)
    with open(runs / f'{run}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier attempt may be about to end
        path = store.results_of(run) / 'result.json'
        path.unlink(missing_ok=True)
        with _Clock(runs / f'{run}.seconds') as clock:
            try:
                result = _train(store, planned, stop)
            except Stopped:
                raise
            except Exception as error:
                lines = str(error).splitlines() or ['']
                result = planned._replace(status=FAILED, reason=f'{type(error).__name__}: {lines[0]}')
                sys.excepthook(type(error), error, error.__traceback__)  # into the log
        result = result._replace(seconds=clock.seconds())
        write_text(path, json.dumps(result._asdict(), indent=1) + '\n')
    return result.status == FINISHED


class _Clock:
    """Counts the seconds of all attempts at a run, in a file that is written every 5 seconds: the process may be killed."""

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
        """Returns the seconds of this attempt so far and of all earlier ones."""
        return round(self.before + time.monotonic() - self.start, 1)

    def _count(self) -> None:
        while not self.end.wait(5):
            write_text(self.path, str(self.seconds()))
        write_text(self.path, str(self.seconds()))


def _train(store: Store, planned: Result, stop: StopRequest | None) -> Result:
    """Trains a run; the first process writes the files that its report needs."""
    import jax

    from detzoo.costs.counts import parameter_count
    from detzoo.costs.latency import device_name
    from detzoo.evaluation import write_detections
    from detzoo.inference.dataset import further_numbers
    from detzoo.inference.predictor import load
    from detzoo.run.memory import keep_memory
    from detzoo.run.parallel import from_first_process, keep_compilations
    from detzoo.training.loop import train_and_evaluate

    keep_memory()
    keep_compilations()
    config = from_json(json.dumps(planned.config))
    workdir, folder = store.workdir(planned.run), store.results_of(planned.run)
    if planned.trained:
        from_first_process(lambda: _take_training(store.workdir(planned.trained), workdir))
    if planned.initialized:
        config.initialize_from = str(store.workdir(planned.initialized).absolute())
    results: list[Any] = []
    train_and_evaluate(config, workdir, stop=stop, on_results=lambda *last: results.extend(last))
    metrics, truth, detections = results
    predictor = load(workdir)
    metrics |= _wanted_recalls(store, workdir, metrics)
    if jax.process_index() > 0:
        return planned._replace(status=FINISHED)

    whole = '-objects' if predictor.detector.class_agnostic else ''  # another ground truth: all classes are one
    name = truth_name(config.data.name, config.data.validation_split + whole)
    store.write_ground_truth(name, truth)
    write_detections(folder / 'detections.json.gz', detections)
    write_text(folder / 'curves.json', json.dumps(curves(read_metrics(workdir))) + '\n')
    _draw(store, name, planned.run, predictor, detections)
    if 'panoptic' in metrics:
        _draw_pixels(store, name, planned.run, predictor, truth, detections)
    environment = json.loads((workdir / 'environment.json').read_text())
    masks = {f'mask_{key}': value for key, value in metrics.get('masks', {}).items()}
    return planned._replace(
        status=FINISHED,
        versions={'python': environment['python'], **environment['versions'], 'commit': code_version()},
        device={'kind': device_name(), 'count': environment['devices']},
        steps=predictor.step,
        parameters=parameter_count(predictor.params),
        metrics=metrics['boxes'] | masks | further_numbers(metrics),
        per_class=metrics['per_class'],
        truth=name,
    )


def _wanted_recalls(store: Store, workdir: pathlib.Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Computes the recalls of objects whatever their class, if the sweep names some that the metrics of the training lack."""
    from detzoo.evaluation import is_recall, recall_numbers
    from detzoo.evaluation.recall import RECALLS
    from detzoo.inference.dataset import evaluate_workdir

    wanted = {name for name in store.sweep()['metrics'] if is_recall(name)}
    if wanted <= recall_numbers(metrics).keys():
        return {}
    found, _, _ = evaluate_workdir(workdir, recall=True)
    return {key: found[key] for key in RECALLS if key in found}


def _take_training(source: pathlib.Path, workdir: pathlib.Path) -> None:
    """Copies the checkpoints of another run, unless that run has none or this one has its own."""
    if has_checkpoints(workdir) or not has_checkpoints(source):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / 'metrics.jsonl', workdir)
    scratch = workdir / 'checkpoints.tmp'
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source / 'checkpoints', scratch)
    shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)  # all checkpoints in it are damaged or unfinished
    scratch.rename(workdir / 'checkpoints')


def _draw(store: Store, truth: str, run: str, predictor: Any, detections: Any) -> None:
    """Draws the first images with their objects and with the detections, and the first one with its training assignments."""
    from detzoo.data.catalog import open_split
    from detzoo.sweeps.assignments import draw_assignments
    from detzoo.training.evaluation import draw_objects, draw_results

    config = predictor.config
    dataset = open_split(config.data, 'validation')
    _write_pictures(store.truth(truth) / 'panels', draw_objects(dataset))
    _write_pictures(store.results_of(run) / 'panels', draw_results(dataset, detections, predictor.classes))
    _write_pictures(store.results_of(run) / 'assignment', draw_assignments(predictor, dataset))


def _draw_pixels(store: Store, name: str, run: str, predictor: Any, truth: Any, detections: Any) -> None:
    """Draws the classes of pixels of the first images, the true ones and those that are predicted."""
    from detzoo.data.catalog import open_split
    from detzoo.training.evaluation import draw_labels, draw_true_labels
    from detzoo.types import Segmenter

    config = predictor.config
    dataset = open_split(config.data, 'validation')
    threshold = 0.0 if isinstance(predictor.detector, Segmenter) else config.evaluation.panoptic_score
    _write_pictures(store.truth(name) / 'pixels', draw_true_labels(dataset, truth))
    _write_pictures(store.results_of(run) / 'pixels', draw_labels(dataset, detections, threshold))


def _write_pictures(folder: pathlib.Path, pictures: dict[str, Any]) -> None:
    from detzoo.visualize import write_image

    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_image(folder / f'{name}.jpg', picture)


def code_version() -> str:
    """Names the commit of the code, with '+' where files differ from it; 'unknown' outside of a checkout."""
    if not (ROOT / '.git').exists():  # installed: the folder may lie in another project's repository
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


def _stop_with(parent: int, stop: StopRequest) -> None:
    """Asks this process to stop when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    stop.ask(signal.SIGTERM)


def main(folder: str, run: str) -> int:
    """Makes an attempt in a process of its own, and returns its exit code."""
    stop = StopRequest()
    stop.listen()
    threading.Thread(target=_stop_with, args=[os.getppid(), stop], daemon=True).start()
    try:
        return 0 if attempt(folder, run, stop) else 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)  # into the log
        return stopped.exit_code


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
