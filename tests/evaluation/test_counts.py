"""Numbers of objects found, by hand."""

import numpy as np
import pycocotools.mask
import pytest

from detzoo.evaluation.counts import count_metrics


def encode(columns):
    """A mask of 4 x 20 pixels that has these columns."""
    mask = np.zeros((4, 20), np.uint8)
    mask[:, list(columns)] = 1
    encoded = pycocotools.mask.encode(np.asfortranarray(mask))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def row(image, columns, **more):
    box = [float(min(columns)), 0.0, float(max(columns) + 1 - min(columns)), 4.0]
    return dict(image_id=image, category_id=1, bbox=box, segmentation=encode(columns)) | more


def annotation(number, image, columns, crowd=0):
    return row(image, columns, id=number, iscrowd=crowd, area=4 * len(columns))


def truth_of(annotations, images=3):
    return dict(
        images=[dict(id=number, height=4, width=20) for number in range(1, images + 1)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=annotations,
    )


def test_count_metrics_by_hand():
    truth = truth_of([annotation(1, 1, [0]), annotation(2, 1, [2]), annotation(3, 2, [0]), annotation(4, 9, [0])])
    results = [row(1, [0], score=0.5), row(1, [2], score=0.49), row(2, [5], score=0.9), row(2, [0], score=0.6)]
    results += [row(3, [1], score=0.7), row(3, [4], score=0.7) | dict(category_id=2)]
    # Found minus true: 1 - 2, 2 - 1, 2 - 0.
    assert count_metrics(truth, results) == {'count_error': pytest.approx(4 / 3), 'count_bias': pytest.approx(2 / 3)}
    # From 0.4 on: 2 - 2, 2 - 1, 2 - 0.
    assert count_metrics(truth, results, score_threshold=0.4)['count_error'] == pytest.approx(1)
    assert count_metrics(truth, [], 'segm') == {'count_error': 1, 'count_bias': -1}
    assert count_metrics(truth_of([], images=0), []) == {'count_error': None, 'count_bias': None}


def test_count_metrics_leave_out_what_lies_in_crowds():
    truth = truth_of([annotation(1, 1, [0]), annotation(2, 1, [3, 13], crowd=1)], images=1)
    results = [row(1, [0], score=0.9), row(1, [3, 4, 13], score=0.9), row(1, [3, 4], score=0.9)]
    # By masks the second has 2 of 3 columns in the crowd, the third just a half; by boxes, of columns 3 to 13, both lie in it.
    assert count_metrics(truth, results, 'segm')['count_bias'] == 1
    assert count_metrics(truth, results, 'bbox')['count_bias'] == 0
    truth['annotations'][1]['segmentation'] = None  # then its box is the region
    assert count_metrics(truth, results, 'segm')['count_bias'] == 0
