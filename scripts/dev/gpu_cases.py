"""What scripts/dev/gpu_check.sh measures: the cases, their inputs, how a case is timed, and the table of results.

    python scripts/dev/gpu_cases.py DIR      # prints the table of DIR/results.jsonl

benchmark_gpu.py and benchmark_gpu_torch.py append a row to that file for each measurement.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from detzoo.parity.compare import drawn_image

SIDES = {
    'retinanet_resnet50_fpn': 800,
    'maskrcnn_resnet50_fpn': 800,
    'fasterrcnn_resnet50_fpn': 800,
    'ssd300_vgg16': 300,
}
OBJECTS = 16  # objects an image
ROWS = 100  # rows of detzoo's padded ground truth
MASK_SIDE = 112
TINY_SIDE = 64


class Case(NamedTuple):
    """What is measured.

    model: a key of `weights.torchvision.PEERS`.
    program: 'predict' or 'train'.
    batch: number of images.
    dtype: 'float32' or 'bfloat16'.
    """

    model: str
    program: str
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return '-'.join(map(str, self))


class Pictures(NamedTuple):
    """Inputs and ground truth of both sides.

    images: [B, H, W, 3] uint8.
    boxes: [B, n, 4] float32 xyxy.
    labels: [B, n] int32, 0..89.
    masks: [B, n, S, S] float32, ellipses in the frames of the boxes.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def all_cases(tiny: bool) -> list[Case]:
    """Lists the cases, the most important ones first."""
    if tiny:
        return [Case('retinanet_resnet50_fpn', program, 1, 'float32') for program in ('train', 'predict')]
    kinds = (8, 'float32'), (8, 'bfloat16'), (2, 'float32')
    return [
        Case(model, program, batch, dtype)
        for batch, dtype in kinds
        for program in ('train', 'predict')
        for model in SIDES
    ]


def side_of(case: Case, tiny: bool) -> int:
    """Returns the side of a case's square images, pixels."""
    return TINY_SIDE if tiny else SIDES[case.model]


def draw_pictures(batch: int, side: int) -> Pictures:
    """Draws images with objects of a twelfth to half of the side."""
    rng = np.random.RandomState(0)
    size = side * np.exp(rng.uniform(np.log(1 / 12), np.log(1 / 2), (batch, OBJECTS, 2)))
    corner = rng.uniform(0, side - size)
    y, x = (np.mgrid[:MASK_SIDE, :MASK_SIDE] + 0.5) / MASK_SIDE - 0.5
    ellipse = (x**2 + y**2 < 0.25).astype(np.float32)
    return Pictures(
        images=np.stack([drawn_image(side, side, seed) for seed in range(batch)]),
        boxes=np.concatenate([corner, corner + size], axis=-1).astype(np.float32),
        labels=rng.randint(0, 90, (batch, OBJECTS)).astype(np.int32),
        masks=np.broadcast_to(ellipse, (batch, OBJECTS, MASK_SIDE, MASK_SIDE)),
    )


def timed(run: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Times a function that waits for the device: three runs to warm up, then at least 5 and at most 40.

    Args:
        run: the function.
        seconds: time after which no further run begins.

    Returns:
        'milliseconds', the median; 'least', the shortest; 'spread', half of the distance of the quartiles over the median; 'runs'.
    """
    for _ in range(3):
        run()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (len(times) < 40 and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(times, n=4)
    return dict(milliseconds=1e3 * median, least=1e3 * min(times), spread=(high - low) / 2 / median, runs=len(times))


def write_row(output: pathlib.Path, case: Case, variant: str, **values: Any) -> None:
    """Appends a measurement to the results, and prints it."""
    row = dict(variant=variant, **case._asdict(), **values)
    with (output / 'results.jsonl').open('a') as file:
        file.write(json.dumps(row) + '\n')
    shown = {key: f'{value:.4g}' if isinstance(value, float) else value for key, value in values.items()}
    print(case.name, variant, *(f'{key}={value}' for key, value in shown.items()), flush=True)


def described(error: BaseException) -> str:
    """Writes an error as one short line."""
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]


def read_rows(output: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the measurements of `write_row`."""
    path = output / 'results.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Writes the measurements as a Markdown table, a line for each case.

    Of several measurements of torchvision in eager mode, whose memory layouts differ, the fastest counts. A star marks
    programs that were timed while others were still being compiled.
    """
    best: dict[Case, dict[str, dict[str, Any]]] = {}
    for row in rows:
        of_case = best.setdefault(Case(*(row[key] for key in Case._fields)), {})
        kind = row['variant'].partition(' ')[0]
        if row.get('milliseconds', np.inf) <= of_case.get(kind, {}).get('milliseconds', np.inf):
            of_case[kind] = row
    lines = [
        '| model | program | batch | dtype | detzoo, ms | eager, ms | compiled, ms | eager / detzoo | compiled / detzoo '
        '| detzoo, GiB | eager, GiB | compile, s |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for case, found in best.items():
        ours, eager, compiled = (found.get(kind, {}) for kind in ('detzoo', 'eager', 'compiled'))
        cells = [
            *map(str, case),
            _number(ours.get('milliseconds'), '.1f') + ('*' if ours.get('busy') else ''),
            *(_number(side.get('milliseconds'), '.1f') for side in (eager, compiled)),
            *(_ratio(side.get('milliseconds'), ours.get('milliseconds')) for side in (eager, compiled)),
            *(_number(side.get('peak_bytes'), '.1f', 2**30) for side in (ours, eager)),
            _number(ours.get('compile_seconds'), '.0f'),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    errors = [
        f'{row["variant"]} {row["model"]} {row["program"]} {row["batch"]} {row["dtype"]}: {row["error"]}'
        for row in rows
        if 'error' in row
    ]
    return '\n'.join([*lines, *(['', 'Not measured:', *errors] if errors else [])])


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return '-' if value is None else format(value / unit, form)


def _ratio(theirs: float | None, ours: float | None) -> str:
    return '-' if theirs is None or ours is None else f'{theirs / ours:.2f}'


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        sys.exit('usage: python scripts/dev/gpu_cases.py DIR')
    print(table(read_rows(pathlib.Path(argv[1]))))


if __name__ == '__main__':
    main(sys.argv)
