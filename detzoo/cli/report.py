"""Reports a sweep from what is stored of it; nothing is trained.

    detzoo report --workdir=runs/focal_loss

Writes report.html (one page with everything inside), report.md, and figures/ as SVG and PNG into the workdir. Intervals and
p-values come from --resamples draws of images and, for a group with several seeds, from how much its seeds differ. The same
command writes the same bytes again.
"""

import sys

from absl import flags

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a sweep.', required=True)
RESAMPLES = flags.DEFINE_integer(
    'resamples', 1000, 'Draws of the bootstrap and, at least, of the tests.', lower_bound=1
)
ERRORS = (ValueError,)  # a stored file that is damaged


def main(settings: list[str]) -> None:
    del settings
    try:
        from detzoo.report.page import write_report
    except ModuleNotFoundError as error:
        if error.name not in ('jinja2', 'markupsafe', 'matplotlib'):
            raise
        sys.exit("error: reports need matplotlib and jinja2: pip install 'detzoo[plots]'")
    print(' '.join(map(str, write_report(WORKDIR.value, RESAMPLES.value))))
