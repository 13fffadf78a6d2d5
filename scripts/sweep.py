"""Runs an experiment: each of its trainings in a process of its own, one after the other.

    python scripts/sweep.py --experiment=experiments/roi_features.py --workdir=runs/roi_features

A run that is finished is not repeated, one that was cut goes on, one that fails is reported and does not end the others.
Further arguments go to every run, for example --config.training.steps=100 --config.data.data_dir=DIR. Prints a table of
what was found beside what is published, and writes it to results.md in the workdir.
"""

import json
import pathlib
import subprocess
import sys

from absl import app, flags
from tqdm.auto import tqdm

EXPERIMENT = flags.DEFINE_string('experiment', None, 'A file of experiments/, with an argument after a colon.', required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the runs go, each into a folder of its own.', required=True)


def final_metrics(workdir: pathlib.Path) -> dict[str, float] | None:
    """Reads the last evaluation of a run from its log, or None where the run is not finished."""
    path = workdir / 'metrics.jsonl'
    if not path.exists():
        return None
    steps = json.loads((workdir / 'config.json').read_text())['training']['steps']
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = [row for row in rows if row['step'] == steps and 'validation/AP' in row]
    return {name.removeprefix('validation/'): value for name, value in last[-1].items()} if last else None


def main(argv: list[str]) -> None:
    from detzoo.comparison.sweep import ROOT, format_results, load_sweep
    from detzoo.config import ConfigError

    try:
        sweep = load_sweep(EXPERIMENT.value)
    except ConfigError as error:
        sys.exit(f'error: {error}')
    folder = pathlib.Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    results, failed = {}, []
    for run in tqdm(sweep.runs, desc='runs', unit='run'):
        workdir = folder / run.name
        if final_metrics(workdir) is None:
            command = [sys.executable, str(ROOT / 'scripts' / 'train.py'), f'--workdir={workdir}', *run.flags(), *argv[1:]]
            with open(folder / f'{run.name}.log', 'a') as log:
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        metrics = final_metrics(workdir)
        if metrics is None:
            failed.append(run.name)
            tqdm.write(f'{run.name} failed: see {folder / run.name}.log', file=sys.stderr)
        else:
            results[run.name] = metrics
    table = format_results(sweep, results)
    (folder / 'results.md').write_text(table + '\n')
    print(table)
    sys.exit(f'error: {len(failed)} of {len(sweep.runs)} runs failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
