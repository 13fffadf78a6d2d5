"""Times detzoo and its peers in turn, on the same weights, images and threads, and writes the tables of docs/performance.md.

    pip install -e '.[parity]'
    python scripts/dev/benchmark_peers.py
    python scripts/dev/benchmark_peers.py --only=predict,train --match=maskrcnn
    python scripts/dev/benchmark_peers.py --render

Every program runs in a process of its own, with as many threads as there are cores, in float32. First each is prepared and
called until it is warm, so that compiling is not timed, and what the two sides compute is checked to be the same. Then they run
in turn, never at once, and the order turns round from round to round. A ratio is the peer's median over detzoo's; its spread is
the lowest and the highest ratio of a round. Torch runs in both of its memory layouts (NCHW, channels_last), and the faster one
is compared. `peers/turns.py` is the stopwatch.

Sections, in the order of --only; the files say exactly what is timed on both sides:

    predict      whole models, from a photograph to detections in its pixels (`peers/models.py`)
    train        whole models, forward, backward and update (`peers/models.py`)
    operations   NMS, RoIAlign with and without gradient, assignment, pasting of masks (`peers/operations.py`)
    trunk        ResNet-50 with its pyramid, with and without gradient; ONNX Runtime beside it (`peers/trunk.py`)
    yolo         YOLO v3 and v3-tiny, with OpenCV's DNN module (`peers/yolo.py`)
    evaluation   COCO's metric, with pycocotools (`peers/operations.py`)
    startup      from the start of a process to the first training step (`peers/startup.py`)
    onnx         whole models in ONNX Runtime, as torch exports them (`peers/trunk.py`)
    darknet      YOLO v3 and v3-tiny, with darknet's own library, if it is there (`peers/yolo.py`)

Memory is the peak of resident memory while the warm program runs, less what the process had when its libraries were imported.

Each row is written to docs/performance.json as soon as it is measured. A run that is called again goes on: rows that the file has
for this commit are kept. --render writes the page from the file.

Nothing else should run. The CPU time that other processes take is measured before the run and in each turn, and a row is marked
if that was more than a tenth of a core. The load average before the run is written beside the figures.
"""

import argparse
import os
import pathlib
import re
import shlex
import sys
import time

import jax
from peers import machine, models, operations, page, startup, trunk, yolo
from peers.results import Results
from peers.turns import CPU_TIME, run_case
from tqdm.auto import tqdm

SECTIONS = ('predict', 'train', 'operations', 'trunk', 'yolo', 'evaluation', 'startup', 'onnx', 'darknet')
DOCS = machine.ROOT / 'docs'


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', default=','.join(SECTIONS), help='sections, separated by commas')
    parser.add_argument('--match', default='', help='a regular expression for the names of rows')
    parser.add_argument(
        '--sizes', default='512,800', help='sides of images, pixels; 800: the default sizes of torchvision'
    )
    parser.add_argument('--images', type=int, default=500, help='images of the evaluation')
    parser.add_argument('--rounds', type=int, help='the largest number of rounds; default: 3 to 9, by section')
    parser.add_argument('--budget', type=float, default=40, help='seconds after which a row begins no further round')
    parser.add_argument('--wait', type=float, default=0, help='seconds to wait for an idle machine')
    parser.add_argument('--again', action='store_true', help='measure rows of this commit again')
    parser.add_argument('--libdarknet', default=yolo.LIBDARKNET, help="darknet's library")
    parser.add_argument('--output', type=pathlib.Path, default=DOCS / 'performance.json', help='the file of results')
    parser.add_argument(
        '--cpu_time', action='store_true', help='time calls by CPU time, for a machine that is not idle; needs --output'
    )
    parser.add_argument('--list', action='store_true', help='print the names of rows, and measure nothing')
    parser.add_argument('--render', action='store_true', help='write docs/performance.md, and measure nothing')
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.output == DOCS / 'performance.json':
        parser.error('--cpu_time: name another file by --output, since the tables of docs/ are by the wall clock')
    unknown = set(arguments.only.split(',')) - set(SECTIONS)
    if unknown:
        parser.error(f'--only: there is no section {", ".join(sorted(unknown))}: use some of {", ".join(SECTIONS)}')
    return arguments


def chosen_cases(arguments: argparse.Namespace) -> list:
    """Lists the cases that the arguments choose, in the order of the sections."""
    sizes = [int(size) for size in arguments.sizes.split(',')]
    every = [*models.cases(sizes), *operations.cases(arguments.images), *trunk.cases(sizes)]
    every += [*yolo.cases(arguments.libdarknet), *startup.cases()]
    return [
        case
        for section in arguments.only.split(',')
        for case in every
        if case.section == section and re.search(arguments.match, case.name)
    ]


def wait_for_idle(seconds: float) -> None:
    """Waits until other processes are idle, and says if they are not."""
    end = time.monotonic() + seconds
    while (busy := machine.busy_cores()) > machine.IDLE and time.monotonic() < end:
        pass
    if busy > machine.IDLE:
        print(
            f'The machine is not idle: other processes keep {busy:.2f} cores busy, more than {machine.IDLE}. '
            'All figures of this run are marked',
            file=sys.stderr,
        )


def measure(arguments: argparse.Namespace) -> list[str]:
    """Measures the chosen cases, and lists those that failed."""
    results, commit, failed = Results(arguments.output), machine.commit(), []
    cases = [
        case for case in chosen_cases(arguments) if arguments.again or not results.has(case.section, case.name, commit)
    ]
    if not cases:
        print(
            f'{arguments.output} has all these rows for commit {commit}: --again measures them again', file=sys.stderr
        )
        return failed
    wait_for_idle(arguments.wait)
    command = shlex.join(['python', 'scripts/dev/benchmark_peers.py', *sys.argv[1:]])
    results.begin({**machine.describe(), 'command': command})
    form = '{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}'  # seconds are not counted alike: no rate
    with tqdm(total=sum(case.expected for case in cases), bar_format=form) as progress:
        for number, case in enumerate(cases, 1):
            progress.set_description(f'{case.section} {number}/{len(cases)}')
            try:
                row = run_case(case, rounds=arguments.rounds, budget=arguments.budget)
                results.add(case.section, case.name, row)
                progress.write(summary(case, row), file=sys.stderr)
            except (AssertionError, RuntimeError, ValueError) as error:
                failed.append(f'{case.section}, {case.name}')
                progress.write(f'{failed[-1]}: {error}', file=sys.stderr)
            progress.update(case.expected)
    return failed


def summary(case, row) -> str:
    """Writes the ratios of a row for the terminal."""
    parts = [page.median(row, page.OURS)]
    for kind in page.peers_of(row):
        label, ratio = page.compare(row, kind)
        parts.append(
            f'{label} {page.median(row, label)}: {ratio.medians:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})'
        )
    return f'{case.section}, {case.name}: {", ".join(parts)}; others busy {row["busy"]:.2f} cores'


def main() -> None:
    arguments = parse_arguments()
    jax.config.update('jax_platforms', 'cpu')  # here, and in the processes that are started
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if arguments.cpu_time:
        os.environ[CPU_TIME] = '1'
    if arguments.list:
        print('\n'.join(f'{case.section:12}{case.name}' for case in chosen_cases(arguments)))
    elif arguments.render:
        path, results = DOCS / 'performance.md', Results(arguments.output)
        path.write_text(page.fill(path.read_text(), results))
        if results.rows:
            (DOCS / page.PICTURE).write_text(page.draw(results))
    else:
        failed = measure(arguments)
        if failed:
            sys.exit(f'these failed, see above: {"; ".join(failed)}')


if __name__ == '__main__':
    main()
