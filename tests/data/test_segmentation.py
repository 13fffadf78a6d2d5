"""Tests of reading masks: the pixels that pycocotools gives, or no mask and the kind of its fault."""

import json

import numpy as np
import pycocotools.mask
import pytest

from detzoo.data.readers.segmentation import read_mask

HEIGHT, WIDTH = 30, 40
POLYGON = [3.5, 2.25, 20, 4, 15.75, 21.5]
OTHER = [30, 5, 38, 5, 38, 20, 30, 20]
SPECKLE = np.asfortranarray(np.random.RandomState(0).rand(HEIGHT, WIDTH) < 0.3)


def drawn(*polygons, height=HEIGHT, width=WIDTH):
    """The pixels [h, w] that pycocotools gives polygons."""
    rles = pycocotools.mask.frPyObjects(list(polygons), height, width)
    return pycocotools.mask.decode(pycocotools.mask.merge(rles)).astype(bool)


def runs(mask):
    """The lengths of runs down the columns of a mask [h, w], background first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
    return np.diff([0, *edges, flat.size]).tolist()


def rle(counts, size=(HEIGHT, WIDTH)):
    return {'size': list(size), 'counts': counts}


TEXT = pycocotools.mask.encode(SPECKLE)['counts'].decode()
ONES = pycocotools.mask.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), bool)))['counts'].decode()
POINTS = [[3.5, 2.25], [20, 4], [15.75, 21.5]]

READ = {
    'polygons': ([POLYGON, OTHER], drawn(POLYGON, OTHER)),
    'flat': (POLYGON, drawn(POLYGON)),
    'polygon of text': ([['3.5', '2.25', '20.0', '4', '15.75', ' 21.5']], drawn(POLYGON)),
    'points': (POINTS, drawn(POLYGON)),
    'polygons of points': ([POINTS, [[30, 5], [38, 5], [38, 20], [30, 20]]], drawn(POLYGON, OTHER)),
    'runs': (rle(runs(SPECKLE)), SPECKLE),
    'runs of floats': (rle([float(run) for run in runs(SPECKLE)], (30.0, '40')), SPECKLE),
    'runs of text': (rle([str(run) for run in runs(SPECKLE)]), SPECKLE),
    'compressed': (rle(TEXT), SPECKLE),
    'a list of one RLE': ([rle(TEXT)], SPECKLE),
}


@pytest.mark.parametrize('case', READ)
def test_read_mask_gives_the_pixels_that_are_meant(case):
    segmentation, expected = READ[case]
    mask = read_mask(json.loads(json.dumps(segmentation)), HEIGHT, WIDTH)
    assert mask.left_out == ()
    np.testing.assert_array_equal(pycocotools.mask.decode(mask.rle), expected)


@pytest.mark.parametrize('segmentation', [None, [], {}, ''])
def test_read_mask_takes_none_for_no_mask(segmentation):
    assert read_mask(segmentation, HEIGHT, WIDTH) == (None, ())


UNREADABLE = {
    'nothing inside': ([[]], 'empty polygon'),
    'two points': ([[1, 2, 3, 4]], 'polygon of 4 numbers'),
    'a flat box': ([10, 12, 40, 32], 'polygon of 4 numbers'),
    'seven numbers': ([[1, 2, 3, 4, 5, 6, 7]], 'polygon of an odd count of numbers'),
    'a bad one beside a good one': ([POLYGON, [1, 2, None, 4, 5, 6]], 'polygon of other things than finite numbers'),
    'nan': ([[1, 2, float('nan'), 4, 5, 6]], 'polygon of other things than finite numbers'),
    'bools': ([[True, 2, 3, 4, 5, 6]], 'polygon of other things than finite numbers'),
    'huge': ([[1, 2, 10**400, 4, 5, 6]], 'polygon of other things than finite numbers'),
    'text inside': (['1 2 3 4 5 6'], 'polygon of other things than finite numbers'),
    'two RLEs': ([rle(TEXT), rle(ONES)], 'polygon of other things than finite numbers'),
    'outside': ([[50, 2, 60, 2, 60, 20]], 'polygons outside the image'),
    'far': ([[1, 2, 3, 4, 1e9, 6]], 'polygons of more than 4194304 pixels'),
    'far and small': ([[1e12, 2, 1e12, 4, 1e12 + 9, 6]], 'polygons of more than 4194304 pixels'),
    'other size': (rle(TEXT, (WIDTH, HEIGHT)), "RLE of another size than the image's"),
    'no size': ({'counts': TEXT}, "RLE of another size than the image's"),
    'runs too short': (rle([30, 40]), 'RLE whose runs do not fill the image'),
    'runs negative': (rle([-1, 1201]), 'RLE whose runs do not fill the image'),
    'runs of huge numbers': (rle([2**31, 2**31, 1200]), 'RLE whose runs do not fill the image'),
    'runs of fractions': (rle([600.5, 599.5]), 'RLE whose runs do not fill the image'),
    'no runs': (rle(None), 'RLE whose runs do not fill the image'),
    'no compressed runs': (rle('zzz~'), 'RLE whose runs do not fill the image'),
    'compressed short': (rle('02'), 'RLE whose runs do not fill the image'),
    'compressed, a number in 8 letters': (rle('PPPPPPP' + ONES), 'RLE whose runs do not fill the image'),
    'compressed, cut': (rle(ONES + 'P'), 'RLE whose runs do not fill the image'),
    'half a character': (rle('\ud800'), 'RLE whose runs do not fill the image'),
    'a number': (7, 'neither polygons nor RLE'),
    'false': (False, 'neither polygons nor RLE'),
    'text': ('[[1, 2, 3, 4, 5, 6]]', 'neither polygons nor RLE'),
}


@pytest.mark.parametrize('case', UNREADABLE)
def test_read_mask_names_the_kind_of_what_it_cannot_read(case):
    segmentation, kind = UNREADABLE[case]
    assert read_mask(segmentation, HEIGHT, WIDTH) == (None, (f'masks ({kind})',))


def test_read_mask_leaves_out_what_has_no_area_beside_a_good_polygon():
    mask = read_mask([[], POLYGON, [1, 2, 3, 4]], HEIGHT, WIDTH)
    np.testing.assert_array_equal(pycocotools.mask.decode(mask.rle), drawn(POLYGON))
    assert mask.left_out == ('parts of masks (empty polygon)', 'parts of masks (polygon of 4 numbers)')


def test_read_mask_cuts_polygons_off_at_the_edges_of_the_image():
    """As if drawn in a larger image of which this one is the middle, but for pycocotools' rounding of negative numbers."""
    rng, margin, seen = np.random.RandomState(0), 25, 0
    for _ in range(50):
        polygon = np.stack([rng.uniform(-20, WIDTH + 20, 5), rng.uniform(-20, HEIGHT + 20, 5)], axis=1)
        larger = drawn((polygon + margin).ravel().tolist(), height=HEIGHT + 2 * margin, width=WIDTH + 2 * margin)
        middle = larger[margin : margin + HEIGHT, margin : margin + WIDTH]
        mask = read_mask([polygon.ravel().tolist()], HEIGHT, WIDTH)
        if not middle.any():
            assert mask == (None, ('masks (polygons outside the image)',))
            continue
        assert (pycocotools.mask.decode(mask.rle) != middle).sum() < 15
        seen += larger.sum() - 50 > middle.sum() > 100
    assert seen > 30


def test_read_mask_keeps_an_empty_mask_of_a_thin_polygon():
    mask = read_mask([[5, 5, 5.1, 5, 5.1, 5.1]], HEIGHT, WIDTH)
    assert mask.left_out == () and pycocotools.mask.area(mask.rle) == 0


def test_read_mask_takes_no_memory_for_an_outline_without_end():
    zigzag = [0, 0, 10_000, 10_000] * 1000  # pycocotools would take 2 GB
    assert read_mask([zigzag], 10_000, 10_000).left_out == ('masks (polygons of more than 4194304 pixels)',)
    parts = [[0, 0, 10_000, 10_000, 0, 1]] * 300
    assert read_mask(parts, 10_000, 10_000).left_out == ('masks (polygons of more than 4194304 pixels)',)


def test_read_mask_takes_the_runs_that_pycocotools_writes():
    # Up to 6 characters a number; the differences alternate in sign, and a run may take the whole of a large image.
    lengths = [0, 1, 15, 16, 511, 512, 2**20, 3, 2**29 - 1, 2**20, 7, 2**29 - 1, 0, 5]
    height, width = 1, sum(lengths)
    compressed = pycocotools.mask.frPyObjects(rle(lengths, (height, width)), height, width)
    for counts in (lengths, compressed['counts'].decode()):
        assert read_mask(rle(counts, (height, width)), height, width).rle == compressed
        for other in (width - 1, width + 1):
            kind = 'masks (RLE whose runs do not fill the image)'
            assert read_mask(rle(counts, (height, other)), height, other) == (None, (kind,))


@pytest.mark.parametrize('letter', ['P', 'o', '0', '1', '~', 'é', '\0'])
def test_read_mask_refuses_long_texts(letter):
    # A number of 400,000 letters takes Python's integers most of a minute; nothing here makes such a number.
    assert read_mask(rle(400_000 * letter), HEIGHT, WIDTH).rle is None
