"""COCO evaluation: pycocotools is the oracle, except where it fails or is known to be wrong."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detzoo.evaluation import (
    class_agnostic,
    coco_metrics,
    format_table,
    pr_curves,
    read_detections,
    write_detections,
)

SIDE = 200  # pixels of a random image: wide enough for large objects
NAMES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')


def pycocotools_eval(ground_truth, detections, kind='bbox', use_cats=1):
    """Runs pycocotools on copies and returns its COCOeval and what it printed."""
    detections = copy.deepcopy(detections)
    if kind == 'segm':
        for row in detections:
            del row['bbox']  # or it takes the area from the box
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(detections), kind)
        evaluator.params.useCats = use_cats
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator, printed.getvalue()


def assert_equal_numbers(ours, theirs):
    assert list(ours) == list(NAMES)
    values = [-1 if value is None else value for value in ours.values()]
    np.testing.assert_allclose(values, theirs, rtol=0, atol=1e-9)


def ellipse(box):
    """The mask of the ellipse in an xywh box, as compressed RLE with text counts, as in a JSON file."""
    x, y, width, height = box
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    encoded = rle.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def random_case(seed, images=12, classes=4, masks=False, crowded_image=False):
    """Objects of all areas, some crowds, an image and a class without any; jittered detections with many tied scores."""
    random = np.random.RandomState(seed)
    image_ids = [int(i) for i in random.choice(10_000, images, replace=False)]  # neither sorted nor contiguous
    category_ids = [int(i) for i in random.choice(100, classes, replace=False) + 1]
    annotations, detections = [], []
    for index, image_id in enumerate(image_ids):
        for _ in range(0 if index == 0 else random.randint(1, 9)):
            size = np.exp(random.uniform(np.log(6), np.log(130), 2))
            box = [*random.uniform(0, SIDE - size), *size]
            category_id = category_ids[random.randint(classes - 1)]
            crowd = int(random.rand() < 0.15)
            area = float(size.prod() * random.uniform(0.5, 1))
            row = {'image_id': image_id, 'category_id': category_id, 'bbox': list(map(float, box))}
            annotations.append({**row, 'id': len(annotations) + 1, 'area': area, 'iscrowd': crowd})
            for _ in range(random.randint(4)):
                if random.rand() < 0.2:
                    category_id = category_ids[random.randint(classes)]
                moved = np.array(box) + random.randn(4) * 0.08 * np.tile(size, 2)
                moved[2:] = np.maximum(moved[2:], 2)
                score = float(random.randint(1, 8)) / 8
                detection = {'image_id': image_id, 'category_id': category_id, 'score': score}
                detections.append({**detection, 'bbox': list(map(float, moved))})
    if crowded_image:  # more than 100 detections of one class in an image, all of one score
        target = annotations[0]
        for _ in range(130):
            box = [float(v) for v in np.array(target['bbox']) + random.randn(4)]
            detections.append({**{k: target[k] for k in ('image_id', 'category_id')}, 'bbox': box, 'score': 0.5})
    if masks:
        for row in annotations + detections:
            row['segmentation'] = ellipse(row['bbox'])
    ground_truth = {
        'images': [{'id': i, 'width': SIDE, 'height': SIDE} for i in image_ids],
        'categories': [{'id': i, 'name': f'class {i}'} for i in category_ids],
        'annotations': annotations,
    }
    return ground_truth, detections


def tiny_case(detection_boxes=((0, 0, 10, 6),), scores=(0.9,)):
    """One object of 10 x 10 pixels in image 7, and detections of its class."""
    ground_truth = {
        'images': [{'id': 7, 'width': 50, 'height': 50}],
        'categories': [{'id': 3, 'name': 'cell'}, {'id': 1, 'name': 'absent'}],
        'annotations': [
            {'id': 1, 'image_id': 7, 'category_id': 3, 'bbox': [5.0, 5.0, 10.0, 10.0], 'area': 100.0, 'iscrowd': 0}
        ],
    }
    detections = [
        {'image_id': 7, 'category_id': 3, 'bbox': [x + 5.0, y + 5.0, float(w), float(h)], 'score': score}
        for (x, y, w, h), score in zip(detection_boxes, scores, strict=True)
    ]
    return ground_truth, detections


@pytest.mark.parametrize('seed', range(8))
def test_coco_metrics_equal_pycocotools(seed):
    ground_truth, detections = random_case(seed, crowded_image=seed % 2 == 1)
    metrics = coco_metrics(ground_truth, detections)
    oracle, _ = pycocotools_eval(ground_truth, detections)
    assert_equal_numbers(metrics['boxes'], oracle.stats)
    assert metrics['images'] == 12
    names = [f'class {i}' for i in oracle.params.catIds]
    assert sorted(metrics['per_class']) == sorted(names)
    for index, name in enumerate(names):
        precision = oracle.eval['precision'][:, :, index, 0, -1]
        expected = {'AP': precision.mean(), 'AP50': precision[0].mean()}
        ours = {key: -1 if value is None else value for key, value in metrics['per_class'][name].items()}
        assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('seed', range(3))
def test_coco_metrics_of_masks_equal_pycocotools(seed):
    ground_truth, detections = random_case(seed, masks=True)
    metrics = coco_metrics(ground_truth, detections, ('bbox', 'segm'))
    assert_equal_numbers(metrics['boxes'], pycocotools_eval(ground_truth, detections)[0].stats)
    oracle, _ = pycocotools_eval(ground_truth, detections, 'segm')
    assert_equal_numbers(metrics['masks'], oracle.stats)
    assert metrics['boxes'] != metrics['masks']
    for index, category_id in enumerate(oracle.params.catIds):
        row = metrics['per_class'][f'class {category_id}']
        expected = oracle.eval['precision'][:, :, index, 0, -1].mean()
        assert (-1 if row['mask_AP'] is None else row['mask_AP']) == pytest.approx(expected, abs=1e-9)
        assert list(row) == ['AP', 'AP50', 'mask_AP', 'mask_AP50']


def test_coco_metrics_counts_the_thresholds_a_box_passes():
    # The detection covers the upper 10 x 6.2 of the object's 10 x 10: intersection 62, union 100, IoU .62 (not .60, so
    # that rounding cannot decide). It is a hit at .50, .55 and .60: precision 1 at all recalls for 3 of 10 thresholds.
    metrics = coco_metrics(*tiny_case([(0, 0, 10, 6.2)]))
    expected = {'AP': 0.3, 'AP50': 1, 'AP75': 0, 'APs': 0.3, 'AR1': 0.3, 'AR10': 0.3, 'AR100': 0.3, 'ARs': 0.3}
    present = {key: value for key, value in metrics['boxes'].items() if value is not None}
    assert present == pytest.approx(expected)
    assert metrics['per_class']['cell'] == pytest.approx({'AP': 0.3, 'AP50': 1})
    assert metrics['per_class']['absent'] == {'AP': None, 'AP50': None}


def test_coco_metrics_absent_numbers_are_none():
    ground_truth, detections = tiny_case()
    metrics = coco_metrics(ground_truth, detections)
    assert {key for key, value in metrics['boxes'].items() if value is None} == {'APm', 'APl', 'ARm', 'ARl'}
    nothing = coco_metrics({**ground_truth, 'annotations': []}, detections)
    assert set(nothing['boxes'].values()) == {None}
    assert coco_metrics({'images': [], 'categories': [], 'annotations': []}, [])['per_class'] == {}


def test_coco_metrics_without_detections_are_zero_where_objects_are():
    ground_truth, detections = random_case(0)
    metrics = coco_metrics(ground_truth, [])
    # What pycocotools says of a detection that finds nothing, for it refuses an empty list.
    nowhere = [{**detections[0], 'bbox': [5000.0, 5000.0, 1.0, 1.0]}]
    assert_equal_numbers(metrics['boxes'], pycocotools_eval(ground_truth, nowhere)[0].stats)
    assert metrics['boxes']['AP'] == 0


def test_coco_metrics_of_listed_images_ignore_other_annotations():
    ground_truth, detections = random_case(1)
    part = {**ground_truth, 'images': ground_truth['images'][:5]}
    ids = {image['id'] for image in part['images']}
    detections = [row for row in detections if row['image_id'] in ids]
    metrics = coco_metrics(part, detections)
    assert metrics['images'] == 5
    assert_equal_numbers(metrics['boxes'], pycocotools_eval(part, detections)[0].stats)
    assert metrics['boxes']['AR100'] > coco_metrics(ground_truth, detections)['boxes']['AR100']


def test_coco_metrics_matches_an_annotation_with_id_zero():
    ground_truth, detections = tiny_case([(0, 0, 10, 10)])
    ground_truth['annotations'][0]['id'] = 0
    assert coco_metrics(ground_truth, detections)['boxes']['AP'] == pytest.approx(1)
    assert pycocotools_eval(ground_truth, detections)[0].stats[0] == 0  # the reason to differ


def test_coco_metrics_keeps_its_inputs_and_prints_nothing(capfd):
    ground_truth, detections = random_case(2, masks=True)
    before = copy.deepcopy((ground_truth, detections))
    coco_metrics(ground_truth, detections, ('bbox', 'segm'))
    class_agnostic(ground_truth, detections)
    pr_curves(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('function', [coco_metrics, class_agnostic, pr_curves])
@pytest.mark.parametrize(
    'change, message',
    [
        ({'image_id': 8}, 'detection 1: image_id 8 is not in the ground truth'),
        ({'category_id': 2}, 'detection 1: category_id 2 is not in the ground truth'),
        ({'score': float('nan')}, 'detection 1: score nan and box .* must be finite'),
        ({'bbox': [0.0, 0.0, float('inf'), 1.0]}, 'detection 1: score .* must be finite'),
    ],
)
def test_detections_that_cannot_count_raise(function, change, message):
    ground_truth, detections = tiny_case([(0, 0, 10, 6), (0, 0, 5, 5)], scores=(0.9, 0.8))
    detections[1].update(change)
    with pytest.raises(ValueError, match=message):
        function(ground_truth, detections)


def test_coco_metrics_ambiguous_ground_truth_raises():
    ground_truth, detections = tiny_case()
    annotation = ground_truth['annotations'][0]
    without_area = {key: value for key, value in annotation.items() if key != 'area'}
    for change, message in (
        ({'annotations': [annotation] * 2}, '2 annotations have the id 1'),
        ({'images': ground_truth['images'] * 3}, '3 images have the id 7'),
        ({'categories': [{'id': 3, 'name': 'a'}, {'id': 4, 'name': 'a'}]}, "2 categories have the name 'a'"),
        ({'annotations': [{**annotation, 'category_id': 9}]}, 'annotation 1: category_id 9'),
        ({'annotations': [without_area]}, "annotation 1: it has no 'area'"),
    ):
        with pytest.raises(ValueError, match=message):
            coco_metrics({**ground_truth, **change}, detections)


def test_coco_metrics_kinds_and_masks_are_checked():
    ground_truth, detections = tiny_case()
    with pytest.raises(ValueError, match="not 'bbox'"):
        coco_metrics(ground_truth, detections, 'bbox')
    more = {**ground_truth['annotations'][0], 'segmentation': ellipse([5.0, 5.0, 10.0, 10.0])}
    others = [
        {**more, 'id': 2},
        {**more, 'id': 3, 'iscrowd': 1, 'segmentation': None},
        {**more, 'id': 4, 'image_id': 99},
    ]
    with pytest.raises(ValueError, match=r"annotation 1 of image 7: .* no 'segmentation' \(1 of 2 objects have none\)"):
        coco_metrics({**ground_truth, 'annotations': ground_truth['annotations'] + others}, detections, ('segm',))
    ground_truth['annotations'][0]['segmentation'] = ellipse([5.0, 5.0, 10.0, 10.0])
    with pytest.raises(ValueError, match="detection 0: masks are evaluated, but it has no 'segmentation'"):
        coco_metrics(ground_truth, detections, ('segm',))


def test_coco_metrics_take_a_crowd_without_a_mask_for_its_box():
    ground_truth, detections = random_case(2, masks=True)
    assert sum(row['iscrowd'] for row in ground_truth['annotations']) > 3
    expected = copy.deepcopy(ground_truth)
    for row in ground_truth['annotations']:
        if row['iscrowd']:
            row['segmentation'] = []
    for row in expected['annotations']:
        if row['iscrowd']:
            region = rle.frPyObjects(np.array([row['bbox']]), SIDE, SIDE)[0]
            row['segmentation'] = {'size': region['size'], 'counts': region['counts'].decode()}
    metrics = coco_metrics(ground_truth, detections, ('segm',))
    assert metrics == coco_metrics(expected, detections, ('segm',))
    for row in expected['annotations']:
        row['iscrowd'] = 0
    assert metrics['masks'] != coco_metrics(expected, detections, ('segm',))['masks']


@pytest.mark.parametrize('seed', range(4))
def test_class_agnostic_equals_pycocotools_without_categories(seed):
    ground_truth, detections = random_case(seed, crowded_image=seed == 3)
    metrics = coco_metrics(*class_agnostic(ground_truth, detections))
    assert_equal_numbers(metrics['boxes'], pycocotools_eval(ground_truth, detections, use_cats=0)[0].stats)
    assert list(metrics['per_class']) == ['object']


def test_class_agnostic_counts_a_second_class_as_false_positive():
    # Object found under the wrong class first, then under the right one: the first is the hit.
    ground_truth, detections = tiny_case([(0, 0, 10, 10), (0, 0, 10, 10)], scores=(0.8, 0.9))
    detections[1]['category_id'] = 1
    assert coco_metrics(*class_agnostic(ground_truth, detections))['boxes']['AP'] == pytest.approx(1)
    # With a better ranked false positive elsewhere every precision is halved.
    detections[1]['bbox'] = [40.0, 40.0, 5.0, 5.0]
    assert coco_metrics(*class_agnostic(ground_truth, detections))['boxes']['AP'] == pytest.approx(0.5)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_pr_curves_equal_pycocotools(kind):
    ground_truth, detections = random_case(5, masks=True)
    curves = pr_curves(ground_truth, detections, kind)
    oracle, _ = pycocotools_eval(ground_truth, detections, kind)
    absent = []
    for index, category_id in enumerate(oracle.params.catIds):
        curve = curves[f'class {category_id}']
        precision = oracle.eval['precision'][:, :, index, 0, -1]
        if curve is None:
            absent.append(category_id)
            assert (precision == -1).all()
            continue
        np.testing.assert_allclose(curve['recall'], oracle.params.recThrs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(curve['precision@50'], precision[0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(curve['precision@75'], precision[5], rtol=0, atol=1e-9)
    assert len(absent) == 1


def test_format_table_prints_the_lines_of_pycocotools():
    ground_truth, detections = random_case(3, masks=True)
    table = format_table(coco_metrics(ground_truth, detections, ('bbox', 'segm'))).splitlines()
    assert (table[0], table[14]) == ('boxes, 12 images', 'masks, 12 images')
    for kind, start in (('bbox', 1), ('segm', 15)):
        printed = pycocotools_eval(ground_truth, detections, kind)[1].splitlines()
        assert table[start : start + 12] == [line for line in printed if 'Average' in line]


def test_format_table_sorts_classes_and_shows_absent_ones_last():
    per_class = {
        'b': {'AP': 0.25, 'AP50': 0.5},
        'c': {'AP': 0.125, 'AP50': 0.75},  # by AP it comes after b
        'none': {'AP': None, 'AP50': None},
        'a long name': {'AP': 1.0, 'AP50': 1},
    }
    metrics = {'images': 1, 'boxes': dict.fromkeys(NAMES), 'per_class': per_class}
    table = format_table(metrics)
    assert table.splitlines()[1].endswith('maxDets=100 ] = -')
    assert format_table(metrics | {'candidates_dropped': 0.0}) == table
    assert format_table(metrics | {'candidates_dropped': 2.5}).startswith(
        f'{table}\n\n2.5 candidates an image were over '
    )
    assert table.split('\n\n')[1].splitlines() == [
        'class               AP       AP50',
        'a long name      1.000      1.000',
        'b                0.250      0.500',
        'c                0.125      0.750',
        'none                 -          -',
    ]


def test_write_detections_round_trip_is_exact(tmp_path):
    _, detections = random_case(4, masks=True)
    path = tmp_path / 'detections.json.gz'
    write_detections(path, detections)
    assert read_detections(path) == detections
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_write_detections_same_bytes_at_another_time_and_name(tmp_path, monkeypatch):
    _, detections = tiny_case()
    write_detections(tmp_path / 'a', detections)
    monkeypatch.setattr('time.time', lambda: 2e9)
    write_detections(tmp_path / 'b', detections)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_write_detections_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / 'detections.json.gz'
    _, detections = tiny_case()
    write_detections(path, detections)
    with pytest.raises(ValueError):
        write_detections(path, [{**detections[0], 'score': float('nan')}])
    assert read_detections(path) == detections
