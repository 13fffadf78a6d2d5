"""COCO as its configs document it, on a few pictures in its own layout: archives, prepare, train, evaluate, predict."""

import ast
import contextlib
import functools
import json
import pathlib
import re
import shlex
import shutil

import cv2
import jax
import numpy as np
import pycocotools.mask
import pytest

from detzoo.inference.predictor import detector_of
from detzoo.run.metrics import read_metrics
from detzoo.sweeps.sweep import Run, config_of
from detzoo.weights.zoo import COCO

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob('configs/*_coco.py'))
SIZES = [(60, 80), (80, 60), (64, 64), (48, 90)]  # (height, width) of the pictures, in turn
OBJECTS = [(1, (10, 8, 30, 24)), (44, (4, 30, 22, 14)), (90, (30.25, 20.5, 16.5, 22.75))]  # category, box of a picture
FLAT = dict(
    id=918,
    category_id=62,
    iscrowd=0,
    area=0.0,
    bbox=[29.65, 18.33, 1.03, 0.0],
    segmentation=[[29.65, 18.33, 29.65, 18.33, 30.68, 18.33, 30.68, 18.33]],
)

# What makes a recipe small enough for a test: a narrow ResNet-18, few RoIs, an image of 64 pixels.
SMALL = {
    'data.threads': 2,
    'data.canvases': ((64, 64),),
    'evaluation.canvases': ((64, 64),),
    'evaluation.batch_size': 8,
    'training.batch_size': 8,
    'training.steps': 1,
    'model.backbone.width': 1 / 16,
}
RESNET = {'model.backbone.name': 'resnet18', 'model.fpn_features': 16}
RCNN = {
    'model.backbone.name': 'resnet18',
    'model.trunk_features': 16,
    'model.rpn.samples': 16,
    'model.rpn.train_pre_nms_topk': 32,
    'model.rpn.train_post_nms_topk': 16,
    'model.rpn.pre_nms_topk': 32,
    'model.rpn.post_nms_topk': 16,
    'model.head.samples': 16,
    'model.head.max_detections': 8,
}
PYRAMID = RCNN | RESNET
FAMILIES = {
    'faster_rcnn_r50_c4_coco': RCNN,
    'faster_rcnn_r50_fpn_coco': PYRAMID,
    'mask_rcnn_r50_c4_coco': RCNN | {'model.mask.features': 8},
    'mask_rcnn_r50_fpn_coco': PYRAMID | {'model.mask.features': 8},
    'retinanet_r50_fpn_coco': RESNET,
    'ssd_vgg16_coco': {
        'data.canvases': ((300, 300),),
        'evaluation.canvases': ((300, 300),),
    },  # its extra layers need them
    'yolov2_coco': {'model.head_features': (32, 32, 32)},
    'yolov3_coco': {'model.head_features': 64},
}


def commands(path):
    """The commands in the docstring of a config: the name of a script, and its arguments."""
    text = ast.get_docstring(ast.parse(path.read_text())).replace('\\\n', ' ')
    return [
        (script, shlex.split(rest)) for script, rest in re.findall(r'^ +python scripts/(\w+)\.py (.*)$', text, re.M)
    ]


def annotated(image_id, size, empty):
    """Makes a picture, and the annotations of its objects: masks as polygons, as RLE, and a crowd in every third picture."""
    picture = np.random.RandomState(image_id).randint(90, 130, (*size, 3)).astype(np.uint8)
    annotations = []
    for k, (category, (x, y, w, h)) in enumerate([] if empty else OBJECTS):
        picture[int(y) : int(y + h), int(x) : int(x + w)] = np.roll((220, 30, 30), k)
        mask = np.zeros(size, np.uint8, order='F')
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
        crowd = int(k == 2 and image_id % 3 == 0)
        segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if crowd:  # runs of background and object in turn, down the columns
            flat = mask.ravel('F').astype(int)
            runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size])
            segmentation = {'size': list(size), 'counts': runs.tolist()}
        elif k == 1:
            segmentation = {'size': list(size), 'counts': pycocotools.mask.encode(mask)['counts'].decode()}
        annotations.append(dict(id=1000 * image_id + k, image_id=image_id, category_id=category, iscrowd=crowd, area=w * h * 0.9,
                                bbox=[x, y, w, h], segmentation=segmentation))  # fmt: skip
    return picture, annotations


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A folder with COCO's layout, unpacked from archives like COCO's: 10 training pictures, one of them empty, and 4 others."""
    packed, unpacked = (tmp_path_factory.mktemp(name) for name in ('packed', 'coco'))
    (packed / 'all' / 'annotations').mkdir(parents=True)
    categories = [dict(id=i, name=name, supercategory='any') for i, name in zip(COCO.category_ids, COCO.class_names)]
    for split, image_ids in (('train2017', range(9, 19)), ('val2017', range(139, 143))):
        folder = packed / split / split
        folder.mkdir(parents=True)
        document = dict(info={}, licenses=[], images=[], annotations=[], categories=categories)
        for image_id in image_ids:
            size = SIZES[image_id % len(SIZES)]
            picture, annotations = annotated(image_id, size, empty=image_id in (11, 140))
            name = f'{image_id:012}.jpg'
            cv2.imwrite(str(folder / name), picture)
            document['images'].append(dict(id=image_id, file_name=name, height=size[0], width=size[1], license=1))
            document['annotations'] += annotations
        if split == 'train2017':
            document['annotations'].append(dict(FLAT, image_id=12))
        (packed / 'all' / 'annotations' / f'instances_{split}.json').write_text(json.dumps(document))
        shutil.make_archive(packed / split, 'zip', packed / split)
    shutil.make_archive(packed / 'annotations_trainval2017', 'zip', packed / 'all')
    for archive in packed.glob('*.zip'):
        shutil.unpack_archive(archive, unpacked)
    return unpacked


@pytest.fixture(scope='module')
def prepared(tree, run_script):
    """What the command printed that the configs document, in the folder of the data."""
    documented = {
        tuple(arguments) for path in CONFIGS for script, arguments in commands(path) if script == 'prepare_data'
    }
    (arguments,) = documented  # one for all
    with contextlib.chdir(tree):
        return run_script('prepare_data', *arguments, f'--data_dir={tree / "data"}')


def test_the_documented_command_prepares_coco_and_lists_what_it_left_out(tree, prepared):
    assert prepared.code == 0, prepared.stderr
    assert 'train: 10 images (1 empty), 27 boxes (4 crowds)\n' in prepared.stdout
    assert 'validation: 4 images (1 empty), 9 boxes (1 crowds)\n' in prepared.stdout
    assert f'annotation 918 (annotations[27]): bbox {FLAT["bbox"]} has no positive width and height' in prepared.stdout
    (listed,) = json.loads((tree / 'data' / 'coco' / '1.0.0' / 'skipped.json').read_text())['train']
    assert 'annotation 918 ' in listed and 'skipped 1 records' in prepared.stdout


@pytest.fixture(scope='module')
def train(tree, prepared, run_script, write_classifier, tmp_path_factory):
    """A function: a config file -> the workdir and the output of the documented training, made small; it is run once."""

    @functools.cache
    def run(path):
        arguments = next(arguments for script, arguments in commands(path) if script == 'train')
        flags = dict(argument.removeprefix('--').split('=', 1) for argument in arguments)
        folder, changes = (
            tmp_path_factory.mktemp(path.stem),
            SMALL | FAMILIES[path.stem] | {'data.data_dir': str(tree / 'data')},
        )
        config = config_of(Run('', flags['config'], changes))
        weights = folder / flags['config.initialize_backbone']
        if weights.suffix == '.pth':  # darknet's classifiers fit no narrow network
            init = detector_of(config, len(COCO.class_names)).init
            write_classifier(weights, jax.eval_shape(lambda rng: init(rng, config.data.canvases[0]), jax.random.key(0)))
            changes['initialize_backbone'] = str(weights)
        changes = [f'--config.{key}={value}' for key, value in changes.items()]
        with contextlib.chdir(ROOT):
            return folder / 'run', run_script(
                'train', f'--config={flags["config"]}', f'--workdir={folder / "run"}', *changes
            )

    return run


def recipes(default):
    """The config files; those that are not named run with --full."""
    return [
        pytest.param(path, marks=() if path.stem in default else pytest.mark.full, id=path.stem) for path in CONFIGS
    ]


@pytest.mark.parametrize('path', recipes(default=('mask_rcnn_r50_c4_coco', 'retinanet_r50_fpn_coco', 'yolov2_coco')))
def test_a_recipe_trains_and_ends_with_an_evaluation(path, train):
    workdir, trained = train(path)
    assert trained.code == 0, trained.stderr
    assert ('mask' if path.stem.startswith('mask') else 'AP') in trained.stdout
    left_out = "trains on 9 of 10 images of split 'train' of 'coco'" in trained.stderr
    assert left_out == (path.stem != 'ssd_vgg16_coco')
    first, last = read_metrics(workdir)
    assert first['step'] == last['step'] == 1 and np.isfinite([first['loss'], last['validation/loss']]).all()


@pytest.mark.parametrize('path', recipes(default=('yolov2_coco',)))
def test_a_run_of_a_recipe_evaluates_and_predicts(path, train, tree, run_script, tmp_path):
    workdir, _ = train(path)
    evaluated = run_script('evaluate', f'--workdir={workdir}')
    assert evaluated.code == 0, evaluated.stderr
    result = json.loads((workdir / 'evaluation.json').read_text())
    assert result['step'] == 1 and ('masks' in result) == path.stem.startswith('mask')
    predicted = run_script(
        'predict', f'--workdir={workdir}', f'--images={tree / "val2017"}', f'--output={tmp_path / "pictures"}'
    )
    assert predicted.code == 0, predicted.stderr
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 4 + 1  # and the overview


def test_recipes_of_coco_are_all_rehearsed():
    assert set(FAMILIES) == {path.stem for path in CONFIGS}
