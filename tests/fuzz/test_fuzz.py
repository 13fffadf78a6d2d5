"""A few hundred damaged files for each reader; `fuzzing` says how they are made, and how to run more."""

import gzip
import tracemalloc

import numpy as np
import pytest
from fuzzing import TARGETS, damage, read_or_refuse

from detzoo.data.proposals import read_proposals
from detzoo.evaluation import read_detections

COUNTS = dict(
    pickles=300,
    safetensors=300,
    weights=40,
    cfg=30,
    proposals=100,
    images=150,
    annotations=60,
    lvis_annotations=60,
    voc_objects=60,
    yolo_labels=60,
    yolo_lists=60,
    openimages_boxes=60,
    openimages_classes=100,
    descriptions=100,
)


@pytest.mark.parametrize('name', TARGETS)
def test_damaged_files_are_read_or_refused(name):
    target, random = TARGETS[name](), np.random.RandomState(0)
    assert any([read_or_refuse(target, seed) for seed in target.seeds])
    tracemalloc.start()
    try:
        outcomes = [read_or_refuse(target, damage(target.seeds, random)) for _ in range(COUNTS[name])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert False in outcomes and peak < target.most, peak


def test_a_reader_that_breaks_is_found():
    def read(content):
        if content != b'whole':
            raise KeyError('x')

    target, random = TARGETS['safetensors']()._replace(seeds=[b'whole'], read=read), np.random.RandomState(0)
    with pytest.raises(KeyError):
        [read_or_refuse(target, damage(target.seeds, random)) for _ in range(100)]


@pytest.mark.parametrize('read', [read_proposals, read_detections])
def test_files_that_unpack_to_more_than_memory_are_refused(tmp_path, read):
    path = tmp_path / 'proposals.json.gz'
    path.write_bytes(gzip.compress(b' ' * (2**26 + 1), 1))
    with pytest.raises(ValueError, match='it unpacks to more than 67108864 bytes'):
        read(path)
