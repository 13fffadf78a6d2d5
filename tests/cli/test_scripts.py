"""Command lines: what they write, and one line that says what is wrong where something is."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from detzoo.config import to_json
from detzoo.evaluation import format_voc_table, read_detections, voc_metrics

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = f'--config={ROOT}/configs/retinanet_shapes.py'


def is_one_error(finished, *words):
    """Exit code 1, and one line on stderr with all the words; progress bars may come before."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith('error: ')]
    return finished.code == 1 and len(lines) == 1 and all(word in lines[0] for word in words)


@pytest.fixture
def picture(tmp_path):
    image = np.random.RandomState(0).randint(0, 256, (50, 70, 3)).astype(np.uint8)
    path = tmp_path / 'pictures' / 'a.png'
    path.parent.mkdir()
    PIL.Image.fromarray(image).save(path)
    return path


# train.py: that it trains is shown in test_training.py, by processes that are killed.


def test_train_names_the_data_sets_there_are(run_script, tmp_path):
    workdir = tmp_path / 'run'
    data = ['--config.data.name=birds', f'--config.data.data_dir={tmp_path}']
    finished = run_script('train', SHAPES, f'--workdir={workdir}', *data)
    assert is_one_error(finished, "no data set 'birds'", 'histology, shapes', 'detzoo prepare')
    assert not workdir.exists()


def test_train_refuses_another_config_on_a_workdir(run_script, tiny_run, tiny_config, tmp_path):
    file = tmp_path / 'config.py'
    text = to_json(tiny_config())
    file.write_text(f'from detzoo.config import from_json\n\n\ndef get_config():\n    return from_json({text!r})\n')
    finished = run_script('train', f'--config={file}', f'--workdir={tiny_run}', '--config.seed=5')
    assert is_one_error(finished, 'seed was 0, is 5', 'take a new workdir')


@pytest.mark.parametrize(
    'setting, words',
    [
        ('model.head_dept=2', "error: there is no config key 'model.head_dept': the nearest is 'model.head_depth'"),
        (
            'model.depth=18',
            "error: there is no config key 'model.depth' any more: set model.backbone.name, like 'resnet18'",
        ),
    ],
)
def test_train_names_an_unknown_key(run_script, tmp_path, setting, words):
    finished = run_script('train', SHAPES, f'--workdir={tmp_path}/run', f'--config.{setting}')
    assert is_one_error(finished, words)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'argument, words',
    [
        ('--config.optimizer.schedule=linear', ['optimizer.schedule']),
        ('--config.optimizer.frozen=stem_cell', ['optimizer.frozen']),
        ('--config.model.backbone.norm=batchnorm', ['batchnorm', 'batch_norm']),
        ('--config.training.batch_size=12', ['training.batch_size is 12']),
        ('--config.training.checkpoint_every=0', ['training.checkpoint_every is 0']),
        ('--config.model.name=yolo9000', ['model.name', 'retinanet']),
        ('--config.data.recipe.resize=warp', ['data.recipe.resize', 'stretch']),
        ('--config.data.canvases=()', ['data.canvases is ()', '(height, width)']),
        ('--config.data.mask_size=28', ['data.mask_size is 28', 'retinanet finds no masks']),
        ('--config.training.accumulate=0', ['training.accumulate is 0', 'at least 1']),
        ('--config.training.steps=-5', ['training.steps is -5', 'at least 1']),
        ('--config.optimizer.frozen=(', ['optimizer.frozen', 'a regular expression']),
        ('--config.optimizer.learning_rate=nan', ['optimizer.learning_rate is nan', 'a finite number']),
        ('--config.model.backbone.width=0', ['model.backbone.width is 0.0', 'above 0']),
    ],
)
def test_train_names_a_value_it_cannot_use(run_script, data_dir, tmp_path, argument, words):
    data = ['--config.data.name=toy', f'--config.data.data_dir={data_dir}']
    finished = run_script('train', SHAPES, *data, f'--workdir={tmp_path}/run', argument)
    assert is_one_error(finished, *words)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['evaluate', 'predict'])
def test_scripts_name_what_is_missing(run_script, tmp_path, picture, tiny_run, name):
    others = [f'--images={picture}', f'--output={tmp_path}/output'] if name == 'predict' else []
    finished = run_script(name, f'--workdir={tmp_path}/nothing', *others)
    assert is_one_error(finished, f'{tmp_path}/nothing is not the workdir of a run', 'a training')
    finished = run_script(name, f'--workdir={tiny_run}', '--checkpoint=7', *others)
    assert is_one_error(finished, 'no checkpoint of step 7', '16')
    finished = run_script(name, f'--workdir={tiny_run}', '--checkpoint=best', *others)
    assert is_one_error(finished, f'{tiny_run} keeps no best checkpoint', 'training.keep_best is None')
    finished = run_script(name, f'--workdir={tiny_run}', '--checkpoint=-1', *others)
    assert is_one_error(finished, "'-1' is neither a step nor 'best'")
    assert run_script(name, *others).code == 1  # no --workdir
    assert run_script(name, f'--workdir={tiny_run}', *others, 'a.png').code == 1
    assert not (tmp_path / 'output').exists() and not (tmp_path / 'nothing').exists()


@pytest.mark.parametrize('name', ['config.json', 'classes.json'])
def test_scripts_name_a_file_of_the_workdir_that_was_cut_short(run_script, tiny_run, tmp_path, picture, name):
    for part in ('config.json', 'classes.json'):
        (tmp_path / part).write_bytes(b'' if part == name else (tiny_run / part).read_bytes())
    for script, *others in (('evaluate',), ('predict', f'--images={picture}', f'--output={tmp_path}/output')):
        assert is_one_error(run_script(script, f'--workdir={tmp_path}', *others), f'{tmp_path}/{name}', 'or remove it')


def test_evaluate_names_a_missing_data_set(run_script, tiny_run, tmp_path):
    assert is_one_error(run_script('evaluate', f'--workdir={tiny_run}', f'--data_dir={tmp_path}'), "no data set 'toy'")


def test_evaluate_prints_tables_and_writes_files(run_script, tiny_run, data_dir):
    from detzoo.data.catalog import open_dataset
    from detzoo.data.records import ground_truth

    flags = '--class_agnostic', '--voc', '--boundary', '--panoptic'
    finished = run_script('evaluate', f'--workdir={tiny_run}', *flags)
    assert finished.code == 0, finished.stderr
    assert finished.stdout.count('Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all') == 2
    assert 'all classes as one' in finished.stdout and 'green' in finished.stdout
    assert 'no boundary AP: the run has no masks' in finished.stdout and 'AP^r' not in finished.stdout
    truth = ground_truth(open_dataset('toy', 'validation', data_dir))
    assert format_voc_table(voc_metrics(truth, read_detections(tiny_run / 'detections.json.gz'))) in finished.stdout
    metrics = json.loads((tiny_run / 'evaluation.json').read_text())
    assert (
        set(metrics) == {'step', 'images', 'boxes', 'per_class', 'candidates_dropped', 'counts'}
        and metrics['step'] == 16
    )
    assert f'mean absolute error {metrics["counts"]["count_error"]:.3f}' in finished.stdout
    assert set(metrics['boxes']) == set('AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl'.split())
    assert metrics['boxes']['APl'] is None  # no block is that large
    assert set(metrics['per_class']) == {'red', 'green', 'blue'}
    detections = read_detections(tiny_run / 'detections.json.gz')
    assert set(detections[0]) == {'image_id', 'category_id', 'bbox', 'score'}


def test_evaluate_prints_the_table_where_the_disk_is_full(run_script, tiny_run, tmp_path, monkeypatch):
    def write_bytes(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pathlib.Path, 'write_bytes', write_bytes)
    finished = run_script('evaluate', f'--workdir={tiny_run}', f'--output={tmp_path}/o')
    assert finished.stdout.count('Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all') == 1
    assert is_one_error(finished, 'No space left on device', f'{tmp_path}/o/detections.json.gz')
    assert not list((tmp_path / 'o').iterdir())


def test_check_canvases_compares_both_ways(run_script, tiny_run, data_dir, tmp_path):
    # The recipe of this run limits no sides, so both canvases are one; an image is scaled by whole pixels on the shared one.
    run = shutil.copytree(tiny_run, tmp_path / 'run')
    finished = run_script('dev/check_canvases', f'--workdir={run}', f'--data_dir={data_dir}')
    assert finished.code == 0, finished.stderr
    own, static, *shares = finished.stdout.splitlines()
    count = int(own.split()[-2])
    assert own.startswith('each image on its own canvas: ') and static.startswith('on shared canvases: ') and count > 50
    found, of, total, *words = shares[0].split()
    assert [of, int(total), *words[:8]] == ['of', count, *'with a score over 0 have a partner,'.split()]
    assert int(found) > 0.95 * count and words[-1] > '0.98'
    for way in ('exact', 'static'):
        assert json.loads((run / f'evaluation_{way}.json').read_text())['boxes']['AP'] is not None


def test_evaluate_takes_an_older_checkpoint(run_script, tiny_run):
    before = (tiny_run / 'evaluation.json').read_bytes() if (tiny_run / 'evaluation.json').exists() else None
    assert run_script('evaluate', f'--workdir={tiny_run}', '--checkpoint=10').code == 0
    assert json.loads((tiny_run / 'evaluation.json').read_text())['step'] == 10
    if before is not None:
        (tiny_run / 'evaluation.json').write_bytes(before)


def test_predict_writes_pictures_and_detections(run_script, tiny_run, picture, tmp_path):
    output = tmp_path / 'output'
    arguments = [f'--workdir={tiny_run}', f'--images={picture}', f'--output={output}']
    finished = run_script('predict', *arguments, '--score_threshold=0.001')
    assert finished.code == 0 and finished.stdout == f'1 images -> {output}\n', finished.stderr
    assert sorted(path.name for path in output.iterdir()) == ['a.png', 'detections.json', 'images.json']
    results = json.loads((output / 'detections.json').read_text())
    assert results and {row['image'] for row in results} == {'a.png'}
    for row in results:
        x, y, width, height = row['bbox']
        assert -0.01 <= x <= x + width <= 70.01 and -0.01 <= y <= y + height <= 50.01
        assert (row['category_id'], row['category']) in [(3, 'red'), (8, 'green'), (9, 'blue')]


def test_predict_names_a_bad_image_and_writes_nothing(run_script, tiny_run, picture, tmp_path):
    data = picture.read_bytes()
    (picture.parent / 'b.png').write_bytes(data[: len(data) // 2])
    arguments = ['predict', f'--workdir={tiny_run}', f'--images={picture.parent}', f'--output={tmp_path}/output']
    assert is_one_error(run_script(*arguments), 'b.png: not a whole image')
    assert not (tmp_path / 'output').exists()
    finished = run_script(*arguments, '--on_bad_record=skip')
    assert finished.code == 0 and finished.stdout.endswith('(1 skipped)\n')
    assert 'skipped: ' in finished.stderr and 'b.png: not a whole image' in finished.stderr
    assert is_one_error(run_script(*arguments[:2], f'--images={tmp_path}/none/*.png', arguments[3]), 'no image matches')


@pytest.mark.parametrize(
    'values, patterns',
    [
        (['a.png,d.png'], ['a.png', 'd.png']),
        (['b,c.png'], ['b,c.png']),
        (['b,*.png'], ['b,*.png']),
        (['*.png,e,*.png'], ['*.png', 'e', '*.png']),
        (['d.png', 'b,c.png'], ['d.png', 'b,c.png']),
        (['~/b,c.png'], ['HOME/b,c.png']),
    ],
)
def test_predict_takes_names_with_commas(run_script, picture, monkeypatch, values, patterns):

    monkeypatch.chdir(picture.parent)
    monkeypatch.setenv('HOME', str(picture.parent))
    for name in ('b,c.png', 'd.png'):
        shutil.copy(picture, name)
    monkeypatch.setattr('detzoo.inference.predictor.load', lambda *args, **kwargs: None)
    monkeypatch.setattr(
        'detzoo.inference.photos.predict_files', lambda predictor, patterns, *args, **kwargs: (patterns, [])
    )
    finished = run_script('predict', '--workdir=w', '--output=o', *(f'--images={value}' for value in values))
    assert finished.stdout.replace(str(picture.parent), 'HOME') == f'{patterns} images -> o\n', finished.stderr


def test_predict_runs_as_a_process(tiny_run, tmp_path):
    (tmp_path / 'b.png').write_bytes(b'not a picture')
    arguments = [f'--workdir={tiny_run}', f'--images={tmp_path}', f'--output={tmp_path}/o']
    command = [sys.executable, ROOT / 'scripts' / 'predict.py', *arguments]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 1 and finished.stdout == ''
    assert finished.stderr.splitlines()[-1].startswith(f'error: {tmp_path}/b.png: not a whole image')
    assert 'Traceback' not in finished.stderr and not (tmp_path / 'o').exists()


def test_export_images_writes_the_files_of_a_split(run_script, data_dir, tmp_path):
    from detzoo.data.catalog import open_dataset

    arguments = ['--split=validation[:3]', f'--data_dir={data_dir}', f'--output={tmp_path}/o']
    finished = run_script('export_images', '--name=toy', *arguments)
    assert finished.code == 0 and finished.stdout == f'3 images -> {tmp_path}/o\n'
    for record in open_dataset('toy', 'validation[:3]', data_dir).records:
        assert (tmp_path / 'o' / record['file_name']).read_bytes() == record['image']
    assert is_one_error(run_script('export_images', '--name=birds', *arguments), "no data set 'birds'")
    (tmp_path / 'file').write_text('')
    finished = run_script('export_images', '--name=toy', *arguments[:2], f'--output={tmp_path}/file')
    assert is_one_error(finished, f'{tmp_path}/file')


def test_benchmark_refuses_an_output_before_it_measures(run_script, tmp_path):
    (tmp_path / 'file').write_text('')
    finished = run_script('benchmark', SHAPES, f'--output={tmp_path}/file/rows.json')
    assert is_one_error(finished, f'cannot write into {tmp_path}/file', 'give another --output') and not finished.stdout


def test_sweep_names_a_folder_that_cannot_be_made(run_script, tmp_path):
    (tmp_path / 'file').write_text('')
    finished = run_script('sweep', f'--experiment={ROOT}/experiments/focal_loss.py', f'--workdir={tmp_path}/file/sweep')
    assert is_one_error(finished, f'{tmp_path}/file')


def test_make_anchors_prints_what_a_config_takes(run_script, data_dir):
    import ast

    from detzoo.core.anchors import kmeans_anchors
    from detzoo.data.catalog import open_dataset
    from detzoo.data.geometry import ResizeRule, placement

    data = ['--config.data.name=toy', f'--config.data.data_dir={data_dir}', '--config.data.train_split=train[:9]']
    canvas = ['--config.data.recipe.resize=stretch', '--config.data.canvases=((96,200),)']
    finished = run_script('make_anchors', SHAPES, *data, *canvas, '--clusters=3')
    assert finished.code == 0, finished.stderr
    head, anchors, *table = finished.stdout.splitlines()

    sizes = []
    for record in open_dataset('toy', 'train[:9]', data_dir).records:
        where = placement((record['height'], record['width']), (96, 200), ResizeRule('stretch'))
        sizes += [box[2:] * where.scale for box, crowd in zip(record['boxes'], record['is_crowd']) if not crowd]
    expected, average = kmeans_anchors(np.array(sizes), 3)
    np.testing.assert_allclose(ast.literal_eval(anchors), expected, atol=0.0501)
    assert head == f'{len(sizes)} objects of 9 images; average IoU {average:.3f} with these anchors:'
    averages = dict(line.split() for line in table[2:])
    assert list(averages) == [str(k) for k in range(1, 10)] and averages['3'] == f'{average:.3f}'
    assert float(averages['1']) < float(averages['4']) < float(averages['9'])

    assert is_one_error(run_script('make_anchors', SHAPES, *data, '--clusters=999'), '999 clusters of', 'boxes')
    assert is_one_error(run_script('make_anchors', SHAPES, '--config.data.name=birds', data[1]), "no data set 'birds'")


def test_none_on_the_command_line_takes_a_key_from_the_data(run_script, data_dir):
    from detzoo.data.catalog import open_dataset
    from detzoo.data.statistics import read_annotations
    from detzoo.training.from_data import fit_canvas

    canvas = fit_canvas(read_annotations(open_dataset('toy', 'train', data_dir)))
    config = ['--config=retinanet_histology', '--config.evaluation.canvases=()']  # whose canvas is 256 x 256
    data = [*config, '--config.data.name=toy', f'--config.data.data_dir={data_dir}', '--clusters=3']
    given, taken, usual = (
        run_script('make_anchors', *data, *more).stdout
        for more in ([f'--config.data.canvases=({canvas},)'], ['--config.data.canvases=None'], [])
    )
    assert taken == given != usual and 'average IoU' in taken
    refused = run_script('make_anchors', *data, '--config.data.mask_size=None')
    assert refused.code == 1 and 'data.mask_size' in refused.stderr
