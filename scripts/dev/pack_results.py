"""Packs the results of a finished sweep for the repository.

    python scripts/dev/pack_results.py --workdir=runs/roi_features --output=experiments/results/roi_features

Keeps the files that the report is rendered from: sweep.json, results.jsonl, costs, curves, and the judgements of detections
(`detzoo/report/judgement.py`). Renders report.md and figures/ into the new folder, and prints the size of its files. Weights,
detections, pictures and report.html stay where they are. `detzoo report --workdir=experiments/results/NAME` renders the same
tables again.
"""

import sys

from absl import app, flags

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a sweep.', required=True)
OUTPUT = define_path('output', None, 'The new folder, for example experiments/results/NAME.', required=True)
RESAMPLES = flags.DEFINE_integer('resamples', 1000, 'Draws of the bootstrap, as for the report.', lower_bound=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: arguments have the form --FLAG=VALUE')
    from detzoo.report.pack import pack

    try:
        folder = pack(WORKDIR.value, OUTPUT.value, RESAMPLES.value)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    sizes = [path.stat().st_size for path in folder.rglob('*') if path.is_file()]
    print(f'{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.2f} MB')


if __name__ == '__main__':
    app.run(main)
