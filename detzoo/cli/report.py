"""Reports a sweep from what is stored of it; nothing is trained.

    python scripts/report.py --workdir=runs/focal_loss

Writes report.html (one page with everything inside), report.md, and figures/ as SVG and PNG into the workdir. Intervals and
p-values come from images drawn at random, --resamples times, and from how far the seeds of a group are apart, where it has
several; the same again gives the same bytes.
"""

import sys

from absl import app, flags

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a sweep.', required=True)
RESAMPLES = flags.DEFINE_integer(
    'resamples', 1000, 'Draws of the bootstrap and, at least, of the tests.', lower_bound=1
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    try:
        from detzoo.report.page import write_report
    except ModuleNotFoundError as error:
        if error.name not in ('jinja2', 'markupsafe', 'matplotlib'):
            raise
        sys.exit("error: reports need matplotlib and jinja2: pip install 'detzoo[plots]'")
    try:
        paths = write_report(WORKDIR.value, RESAMPLES.value)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(' '.join(map(str, paths)))


if __name__ == '__main__':
    app.run(main)
