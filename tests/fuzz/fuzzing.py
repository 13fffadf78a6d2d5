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
import itertools
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
from detzoo.data.readers import coco, lvis, openimages, voc, yolo
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


def _through_a_file(
    read: Callable[[pathlib.Path], object], name: str = 'file', **others: bytes
) -> Callable[[bytes], object]:
    """Makes a function of bytes of one of a path.

    Args:
        read: the function.
        name: name of the file, in a folder of its own.
        others: contents of the other files in the folder; __ in a name stands for a dot.
    """

    def write_and_read(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            for other, data in others.items():
                pathlib.Path(folder, other.replace('__', '.')).write_bytes(data)
            path = pathlib.Path(folder, name)
            path.write_bytes(content)
            return read(path)

    return write_and_read


def _picture() -> bytes:
    """Makes an image file, 30 x 20 pixels."""
    PIL.Image.new('RGB', (30, 20)).save(buffer := io.BytesIO(), 'PNG')
    return buffer.getvalue()


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


def _coco_document(**lists: list[int]) -> bytes:
    """Writes COCO's JSON, of the images 0.png and 1.png with boxes and masks of all kinds; `lists` are LVIS's lists of an image."""
    encoded = pycocotools.mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
    masks = [[[1, 1, 9, 1, 9, 9]], [[1, 1], [9, 1], [9, 9]], {'size': [20, 30], 'counts': [100, 60, 440]}, None]
    masks.append({'size': [20, 30], 'counts': encoded['counts'].decode()})
    rows = [
        dict(id=i, image_id=i % 2, category_id=3, bbox=[1, 1, 8, 8.5], area=64, iscrowd=i % 2, segmentation=mask)
        for i, mask in enumerate(masks)
    ]
    images = [dict(id=i, file_name=f'{i}.png', height=20, width=30) | lists for i in range(2)]
    categories = [dict(id=3, name='a', frequency='r'), dict(id=5, name='b', frequency='f')]
    return json.dumps(dict(images=images, annotations=rows, categories=categories)).encode()


def annotations() -> Target:
    """COCO's JSON."""

    def read(path: pathlib.Path) -> object:
        document = coco.read_document(path)
        categories = list(coco.read_categories(path, document))
        return coco.check_split(path, document, categories, path.parent, BadRecords(skip=True), max_pixels=2**20)

    return Target([_coco_document()], _through_a_file(read, **{'0__png': _picture(), '1__png': _picture()}))


def lvis_annotations() -> Target:
    """LVIS's JSON."""
    text = _coco_document(neg_category_ids=[5], not_exhaustive_category_ids=[3])
    seeds = [text, text.replace(b'"file_name": "', b'"coco_url": "http://images.cocodataset.org/val2017/')]

    def read(path: pathlib.Path) -> object:
        document = lvis.read_document(path)
        categories = coco.read_categories(path, document)
        lvis.read_frequencies(path, document)
        return lvis.check_split(path, document, categories, path.parent, BadRecords(skip=True), max_pixels=2**20)

    return Target(seeds, _through_a_file(read, **{'0__png': _picture(), '1__png': _picture()}))


def voc_objects() -> Target:
    """PASCAL VOC's XML of an image."""
    box = '<bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>20</xmax><ymax>18</ymax></bndbox>'
    things = (
        f'<object><name>wren</name><difficult>1</difficult>{box}</object><object><name>a robin</name>{box}</object>'
    )
    size = '<size><width>30</width><height>20</height><depth>3</depth></size>'
    text = f'<annotation><filename>a.png</filename>{size}{things}</annotation>'
    seeds = [text, f'<?xml version="1.0" encoding="utf-8"?>\n{text.replace(size, "")}', text.replace('>', '>\n')]
    seeds.append('<!DOCTYPE a [<!ENTITY b "wren"><!ENTITY c "&b;&b;&b;">]>' + text.replace('a robin', '&c;'))

    def read(path: pathlib.Path) -> object:
        rules = voc.Rules(None, 'pixels', inside=True, max_pixels=2**20)
        split = voc.check_split(voc.list_tree(path.parent, None), itertools.count(1), rules, skip=True)
        return voc.number_classes({'train': split}, None)

    return Target([seed.encode() for seed in seeds], _through_a_file(read, 'a.xml', a__png=_picture()))


def _read_yolo(listed: yolo.Listed) -> object:
    yolo.report_unused({'train': listed})
    return yolo.check_split(listed, itertools.count(1), yolo.Rules(3, 2, max_pixels=2**20), skip=True)


def yolo_labels() -> Target:
    """YOLO's label file of an image."""
    text = '0 0.5 0.5 0.25 0.5\n2 .1 .1 .9 .1 .9 9e-1\n\n1 0.5 0.5 1 1 0.25 0.75\n'
    read = _through_a_file(lambda path: _read_yolo(yolo.list_place(path.parent, None)), 'a.txt', a__png=_picture())
    return Target([text.encode(), text.replace('\n', '\r\n').encode()], read)


def yolo_lists() -> Target:
    """A file that lists YOLO's images."""
    others = dict(a__png=_picture(), b__png=_picture(), a__txt=b'0 0.5 0.5 0.25 0.5\n')
    read = _through_a_file(lambda path: _read_yolo(yolo.list_place(path, None)), 'train.list', **others)
    return Target([b'a.png\nb.png\n', b'./a.png\r\n\r\ndata\\b.png'], read)


def openimages_boxes() -> Target:
    """Open Images' CSV of boxes."""
    text = (
        'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n'
        'a,xclick,/m/01,1,0.1,0.75,0.25,1,0,1\nb,xclick,/m/02,1,0,1,0,1,0,0\nc,"x,y",/m/02,1,0,1,0,1,0,0\n'
    )

    def read(path: pathlib.Path) -> object:
        split = openimages.check_split(path, path.parent, None, itertools.count(1), True, 2**20)
        return openimages.number_classes({'train': split}, None)

    return Target([text.encode()], _through_a_file(read, a__png=_picture(), b__png=_picture()))


def openimages_classes() -> Target:
    """Open Images' CSV of codes and names."""
    seeds = [b'/m/01,Wren\n/m/02,"Robin, red"\n', b'LabelName,DisplayName\n/m/01,Wren\n']
    return Target(seeds, _through_a_file(openimages.read_descriptions))


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
    lvis_annotations=lvis_annotations,
    voc_objects=voc_objects,
    yolo_labels=yolo_labels,
    yolo_lists=yolo_lists,
    openimages_boxes=openimages_boxes,
    openimages_classes=openimages_classes,
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
    counts, slowest, end, begun = collections.Counter(), 0.0, time.monotonic() + arguments.seconds, time.process_time()
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
    print(
        f'{arguments.target}: {dict(counts)} in {arguments.seconds:g} s, {time.process_time() - begun:.0f} s of a processor; '
        f'slowest {slowest:.2f} s, peak {peak:.0f} MiB of memory'
    )


if __name__ == '__main__':
    main()
