"""Damages files at random and reads them: a reader may refuse a file with its own error, and do nothing else that is unusual.

    PYTHONPATH=tests python tests/fuzz/fuzzing.py --target=pickles --seconds=600

runs a reader for ten minutes. It may take 2 GiB of address space more than at the start, and 20 seconds of processor time a file.
Another exception, a longer time or more memory is a finding: the file is written to the folder --findings, and the error is
printed. tests/fuzz/test_fuzz.py runs each reader on a few hundred files.
"""

import argparse
import collections
import gzip
import io
import json
import pathlib
import pickle
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import pycocotools.mask
from darknet_models import CANVAS, model_of, template_of
from weight_files import ARRAYS, FIXTURES, dict_of, legacy, tensor, zipped

from detzoo.data.proposals import read_proposals
from detzoo.data.readers import coco
from detzoo.data.readers.data_yaml import read_description
from detzoo.data.readers.prepare import BadRecords
from detzoo.data.records import decode_image
from detzoo.weights.darknet import model_of_cfg, parse_weights
from detzoo.weights.darknet_layers import cfg_text
from detzoo.weights.files import parse_entries

NAME = 'the/file'
SECONDS = 20  # of processor time that reading a file may take
EDGES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = (
    b'-1',
    b'0',
    b'1e999',
    b'NaN',
    b'999999',
    b'99999999999999999999',
    b'null',
    b'[]',
    b'{}',
    b'"',
    b'\n',
    b'=',
    b'\xff',
)


class Target(NamedTuple):
    """A reader, and files that it reads.

    seeds: contents of files.
    read: reads a content; it raises a ValueError (DataError is one) for what it refuses.
    most: most bytes of memory that reading may take, as `tracemalloc` counts them.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    most: int = 32 * 2**20


def damage(seeds: Sequence[bytes], random: np.random.RandomState) -> bytes:
    """Makes a damaged file of one or two whole ones, by one to four changes."""
    data = bytearray(seeds[random.randint(len(seeds))])
    for _ in range(random.randint(1, 5)):
        place = random.randint(len(data) + 1)
        kind = random.randint(7)
        if kind == 0:
            data[place : place + 1] = bytes([random.randint(256)])
        elif kind == 1:  # an edge of some width
            width = random.choice([1, 2, 4, 8])
            number = EDGES[random.randint(len(EDGES))] % 2 ** (8 * int(width))
            data[place : place + width] = number.to_bytes(width, ('little', 'big')[random.randint(2)])
        elif kind == 2:
            del data[place : place + random.randint(1, 9)]
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            data[place:place] = data[random.randint(len(data) + 1) :][: random.randint(1, 65)]
        elif kind == 5:
            data[place : place + random.randint(9)] = WORDS[random.randint(len(WORDS))]
        else:
            other = seeds[random.randint(len(seeds))]
            data[place : place + random.randint(65)] = other[random.randint(len(other) + 1) :][: random.randint(1, 65)]
    return bytes(data)


def _through_a_file(read: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
    """Makes a function of bytes of one of a path."""

    def write_and_read(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, 'file')
            path.write_bytes(content)
            return read(path)

    return write_and_read


def pickles() -> Target:
    """Files of torch, old and new, and pickles of numpy's arrays."""
    steps = dict_of(a=tensor(), b=tensor((2, 2), (1, 2), offset=1))
    seeds = [zipped(steps), legacy(steps), *(pickle.dumps(dict(model=ARRAYS), protocol) for protocol in (0, 2, 4))]
    seeds += [(FIXTURES / name).read_bytes() for name in ('zip.pth', 'legacy.pth', 'checkpoint.pth')]
    return Target(seeds, lambda content: parse_entries(content, NAME))


def safetensors() -> Target:
    """Files of safetensors."""
    return Target([(FIXTURES / 'plain.safetensors').read_bytes()], lambda content: parse_entries(content, NAME))


def _tiny_yolo():
    """Returns the arguments of a narrow YOLO, and the shapes of its variables."""
    model = model_of('yolov3-tiny', num_classes=3)
    return model, template_of(model, CANVAS)


def weights() -> Target:
    """Darknet's .weights files."""
    model, template = _tiny_yolo()
    size = sum(leaf.size for leaf in jax.tree.leaves(template))
    header = np.int32([0, 2, 0]).tobytes() + np.int64(7).tobytes()
    seeds = [header + np.ones(size, '<f4').tobytes(), header[:12] + bytes(4) + np.ones(size, '<f4').tobytes(), header]
    return Target(seeds, lambda content: parse_weights(content, model, template, source=NAME))


def cfg() -> Target:
    """Darknet's .cfg files."""
    model, template = _tiny_yolo()
    return Target([cfg_text(model, template, CANVAS).encode()], _through_a_file(model_of_cfg))


def proposals() -> Target:
    """Proposals, as JSON and as gzipped JSON."""
    entries = [dict(image_id=i // 2, bbox=[1.5, 2, 30, 4e1], score=0.5) for i in range(6)]
    text = json.dumps(entries).encode()
    return Target([text, gzip.compress(text), json.dumps(entries, indent=1).encode()], _through_a_file(read_proposals))


def images() -> Target:
    """Images of several formats, decoded as photographs are."""
    picture = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    seeds = []
    for kind in ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'PPM'):
        for image in (PIL.Image.fromarray(picture), PIL.Image.fromarray(picture[..., 0])):
            image.save(buffer := io.BytesIO(), kind)
            seeds.append(buffer.getvalue())
    return Target(seeds, lambda content: decode_image(content, name=NAME, max_pixels=2**20, strict=True))


def annotations() -> Target:
    """COCO's JSON, of two images with boxes and masks of all kinds."""
    PIL.Image.new('RGB', (30, 20)).save(picture := io.BytesIO(), 'PNG')
    encoded = pycocotools.mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
    masks = [[[1, 1, 9, 1, 9, 9]], [[1, 1], [9, 1], [9, 9]], {'size': [20, 30], 'counts': [100, 60, 440]}, None]
    masks.append({'size': [20, 30], 'counts': encoded['counts'].decode()})
    rows = [
        dict(id=i, image_id=i % 2, category_id=3, bbox=[1, 1, 8, 8.5], area=64, iscrowd=i % 2, segmentation=mask)
        for i, mask in enumerate(masks)
    ]
    listed = [dict(id=i, file_name=f'{i}.png', height=20, width=30) for i in range(2)]
    text = json.dumps(dict(images=listed, annotations=rows, categories=[dict(id=3, name='a'), dict(id=5, name='b')]))

    def read(path: pathlib.Path) -> object:
        for image in listed:
            (path.parent / image['file_name']).write_bytes(picture.getvalue())
        document = coco.read_document(path)
        categories = list(coco.read_categories(path, document))
        return coco.check_split(path, document, categories, path.parent, BadRecords(skip=True), max_pixels=2**20)

    return Target([text.encode()], _through_a_file(read))


def descriptions() -> Target:
    """YOLO's data.yaml."""
    text = (
        'path: ../birds\ntrain: [images/a, images/b]\nval: images/v\nnc: 2\n'
        'names:\n  0: wren\n  1: "robin"\nkpt_shape: [17, 3]\n'
    )
    return Target([text.encode()], _through_a_file(read_description))


TARGETS = dict(
    pickles=pickles,
    safetensors=safetensors,
    weights=weights,
    cfg=cfg,
    proposals=proposals,
    images=images,
    annotations=annotations,
    descriptions=descriptions,
)


def read_or_refuse(target: Target, content: bytes) -> bool:
    """Reads a file: whether it was read and not refused. What else it raises is a finding."""
    try:
        target.read(content)
    except ValueError as error:
        if not str(error).strip():
            raise AssertionError('an error without a message') from error
        return False
    return True


def _too_long(*_: object) -> None:
    raise TimeoutError(f'{SECONDS} seconds for a file')


def main() -> None:
    """Runs one target until its time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--target', choices=TARGETS, required=True)
    parser.add_argument('--seconds', type=float, default=600)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--findings', default='fuzz_findings')
    arguments = parser.parse_args()
    target, random = TARGETS[arguments.target](), np.random.RandomState(arguments.seed)
    for seed in target.seeds:
        read_or_refuse(target, seed)  # what is imported late is imported now
    used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _too_long)
    counts, slowest, end = collections.Counter(), 0.0, time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        content, start = damage(target.seeds, random), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            counts['read' if read_or_refuse(target, content) else 'refused'] += 1
        except Exception as error:
            counts['findings'] += 1
            path = pathlib.Path(arguments.findings, f'{arguments.target}-{counts["findings"]}')
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            print(path, ''.join(traceback.format_exception(error, limit=-3)), flush=True)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f'{arguments.target}: {dict(counts)}, slowest {slowest:.2f} s, peak {peak:.0f} MiB of memory')


if __name__ == '__main__':
    main()
