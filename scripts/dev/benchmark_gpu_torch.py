"""Times prediction and training step of torchvision's detectors on this machine's GPU, in eager mode and compiled.

    python scripts/dev/benchmark_gpu_torch.py --output=DIR [--limit=90] [--seconds=1] [--tiny]

Float32 means TF32 in convolutions and matrix products, as in JAX's default; bfloat16 is autocast. `cudnn.benchmark` is on.
All parameters are trained, by SGD with momentum. 'eager' is measured with channels last and with channels first. In 'compiled'
the parts whose shapes do not depend on the images are compiled by `torch.compile`: the backbone with its FPN, and the heads
on its levels; proposals, RoI heads and post-processing run in eager mode, since their shapes change with each image.

Rows go to DIR/results.jsonl, see gpu_cases.py.
"""

import argparse
import contextlib
import copy
import functools
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'  # detzoo only draws weights and pictures here

import torch
from gpu_cases import SIDES, Case, Pictures, all_cases, described, draw_pictures, side_of, timed, write_row

from detzoo.parity.torchvision import draw_peer
from detzoo.parity.torchvision_models import build_peer

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CASE_LIMIT = 90  # seconds


@functools.lru_cache(maxsize=len(SIDES))
def build(name: str, side: int) -> Any:
    """Builds a model with drawn weights, all of them trained."""
    model = build_peer(name, **({} if 'ssd' in name else dict(min_size=side, max_size=2 * side)))
    draw_peer(model)
    return model.requires_grad_(True)


def compile_parts(model: Any) -> None:
    """Compiles the parts of a model whose shapes do not depend on the images."""
    model.backbone.compile()
    (model.rpn.head if hasattr(model, 'rpn') else model.head).compile()


def make_targets(pictures: Pictures, with_masks: bool) -> list[dict[str, torch.Tensor]]:
    """Converts ground truth to torchvision's targets; a mask is the box of its object."""
    side, targets = pictures.images.shape[1], []
    for boxes, labels in zip(pictures.boxes, pictures.labels):
        target = dict(boxes=torch.tensor(boxes), labels=torch.tensor(labels).long() + 1)
        if with_masks:
            masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
                mask[y1:y2, x1:x2] = 1
            target['masks'] = masks
        targets.append({key: value.to(DEVICE) for key, value in target.items()})
    return targets


def runner(case: Case, model: Any, pictures: Pictures) -> Callable[[], None]:
    """Makes a function that runs a case once, and waits for it."""
    images = [torch.tensor(image).permute(2, 0, 1).contiguous().to(DEVICE) / 255 for image in pictures.images]
    autocast = functools.partial(torch.autocast, DEVICE, torch.bfloat16, enabled=case.dtype == 'bfloat16')
    synchronize = torch.cuda.synchronize if DEVICE == 'cuda' else (lambda: None)
    if case.program == 'predict':
        model.eval()

        def predict() -> None:
            with torch.inference_mode(), autocast():
                model(images)
            synchronize()

        return predict

    model.train()
    targets = make_targets(pictures, 'mask' in case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        synchronize()

    return train


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f'not done after {seconds} s')

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure(case: Case, variant: str, args: argparse.Namespace) -> None:
    """Measures a case, and writes its row."""
    if DEVICE == 'cuda':
        torch.cuda.empty_cache()
    side = side_of(case, args.tiny)
    layout = torch.contiguous_format if 'first' in variant else torch.channels_last
    model = copy.deepcopy(build(case.model, side)).to(DEVICE, memory_format=layout)
    if 'compiled' in variant:
        compile_parts(model)
    run = runner(case, model, draw_pictures(case.batch, side))
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if DEVICE == 'cuda':
        torch.cuda.reset_peak_memory_stats()  # without what cuDNN needed to choose its algorithms
    result = timed(run, args.seconds)
    memory = torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else None
    write_row(args.output, case, variant, **result, peak_bytes=memory, compile_seconds=first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--output', type=pathlib.Path, required=True, help='folder of results.jsonl')
    parser.add_argument(
        '--cases', default='', help='regular expression of the names, like ssd300_vgg16-train-8-float32'
    )
    parser.add_argument('--limit', type=float, default=90, help='seconds after which no further case begins')
    parser.add_argument('--seconds', type=float, default=1.0, help='time for the runs of each program')
    parser.add_argument('--tiny', action='store_true', help='a small image, to try the script')
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    cases = [case for case in all_cases(args.tiny) if re.search(args.cases, case.name)]
    large = [case for case in cases if case.batch != 2]
    plan = [(case, 'eager channels last') for case in large]
    plan += [(case, 'compiled channels last') for case in large]
    plan += [(case, 'eager channels first') for case in large]
    plan += [(case, 'eager channels last') for case in cases if case.batch == 2]
    args.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    for case, variant in plan:
        if time.perf_counter() - begin > args.limit:
            write_row(args.output, case, variant, error=f'no time left after {args.limit:.0f} s')
            continue
        try:
            with limited(CASE_LIMIT):
                measure(case, variant, args)
        except Exception as error:
            write_row(args.output, case, variant, error=described(error))


if __name__ == '__main__':
    main()
