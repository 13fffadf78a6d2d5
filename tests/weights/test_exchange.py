"""Weight files into workdirs and back: what arrives, what is reported, and that nothing is left behind by what fails."""

import builtins
import collections
import hashlib
import io
import json
import os

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny import with_backbone

from detzoo.config import differences, from_json
from detzoo.data.geometry import placement, resize_rule
from detzoo.data.readers.voc import CLASS_NAMES
from detzoo.inference.predictor import Predictor, canvas_for, load
from detzoo.run.classes import Classes, read_classes
from detzoo.training.loop import train_and_evaluate
from detzoo.weights import darknet, exchange, zoo
from detzoo.weights.darknet_layers import cfg_text
from detzoo.weights.exchange import export_darknet, export_weights, import_weights
from detzoo.weights.files import read_entries, write_entries
from detzoo.weights.mapping import checksum, flatten
from detzoo.weights.zoo import COCO, MODELS, VOC

TINY = dict(fpn_features=16, head_depth=1)  # of RetinaNet
YOLO = with_backbone(darknet.PUBLISHED['yolov3-tiny'].model, width=0.125) | dict(num_classes=3, head_features=16)
TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # of ours in the file's order


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The entries of a tiny RetinaNet in torchvision's names, which are in `tmp_path/tiny.safetensors`; MODELS knows it."""
    whole = MODELS['retinanet_resnet50_fpn']
    model = whole._replace(
        model=with_backbone(whole.model, name='resnet18', width=0.125) | TINY, canvases=((64, 96), (96, 64))
    )
    model = model._replace(recipe={**model.recipe, 'shorter_side': 64, 'longer_side': 96})
    monkeypatch.setitem(zoo.MODELS, 'tiny', model)
    template = exchange.shapes_of(exchange.config_of(model), 91)
    random, entries = np.random.RandomState(0), {}
    for path, leaf in flatten(template).items():
        shape = [leaf.shape[axis] for axis in TORCH_AXES.get(len(leaf.shape), range(len(leaf.shape)))]
        values = random.uniform(0.5, 1.5, shape) if path.endswith('var') else 0.1 * random.standard_normal(shape)
        entries[model.mapping.name_of(path.partition('/')[2])] = values.astype(np.float32)
    entries['backbone.body.bn1.num_batches_tracked'] = np.array(7)
    safetensors.numpy.save_file(entries, tmp_path / 'tiny.safetensors')
    return entries


def variables_of(workdir):
    predictor = load(workdir)
    return flatten((predictor.params, predictor.model_state))


def image_of(height, width):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_config_of_pastes_masks_as_the_publisher_does():
    pastes = {
        name: exchange.config_of(model).evaluation.mask_paste for name, model in MODELS.items() if 'mask' in model.model
    }
    assert pastes == {name: 'torchvision' if MODELS[name].source == 'torchvision' else 'centers' for name in pastes}
    assert set(pastes.values()) == {'torchvision', 'centers'}


def test_what_a_file_says_of_itself_replaces_nothing(tmp_path, tiny_run):
    export_weights(tiny_run, tmp_path / 'exported')
    path = tmp_path / 'exported' / 'weights.safetensors'
    write_entries(path, read_entries(path), {'step': '7', 'sha256': 'mine', 'source': 'mine'})
    import_weights(tmp_path / 'exported', tmp_path / 'run')
    origin = json.loads((tmp_path / 'run' / 'environment.json').read_text())['imported_from']
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin == {'step': '7', 'sha256': digest, 'source': 'exported', 'model': None}


def test_imported_weights_arrive_with_classes_and_preprocessing(tmp_path, published):
    imported = import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'run', model='tiny')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run', 'tiny.safetensors']
    found = variables_of(tmp_path / 'run')
    np.testing.assert_array_equal(
        found['params/backbone/stem_conv/kernel'], published['backbone.body.conv1.weight'].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(found['frozen/backbone/stem_norm/var'], published['backbone.body.bn1.running_var'])

    predictor = load(tmp_path / 'run')
    assert predictor.classes.category_ids == tuple(range(91)) and predictor.classes.class_names[1] == 'person'
    assert predictor.classes.class_names[90] == 'toothbrush' and predictor.classes.class_names[12] == 'N/A'
    recipe = predictor.config.data.recipe
    assert (recipe.resize, recipe.shorter_side, recipe.longer_side, recipe.interpolation) == ('fit', 64, 96, 'bilinear')
    environment = json.loads((tmp_path / 'run' / 'environment.json').read_text())
    assert (
        environment['imported_from']['source'] == 'tiny.safetensors'
        and len(environment['imported_from']['sha256']) == 64
    )

    names = {row.foreign for row in imported.rows}
    assert names == published.keys() and {row.ours for row in imported.rows} == found.keys() | {''}
    for row in imported.rows:
        if row.ours:
            assert row.shape == found[row.ours].shape and row.checksum == checksum(found[row.ours])
        else:
            assert row.foreign.endswith('num_batches_tracked') and row.transform == 'left: a counter of training'


def test_imported_weights_are_trained_on_other_classes(tmp_path, published, tiny_config, capfd):
    import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'coco', model='tiny')
    config = tiny_config(initialize_from=str(tmp_path / 'coco'), optimizer__frozen='backbone', training__steps=2)
    config.model = from_json((tmp_path / 'coco' / 'config.json').read_text()).model
    train_and_evaluate(config, tmp_path / 'run')
    head = [f'params/cls_head/output/{leaf}' for leaf in ('bias', 'kernel')]
    assert f'these start anew: {", ".join(head)};' in capfd.readouterr().err
    before, after = variables_of(tmp_path / 'coco'), variables_of(tmp_path / 'run')
    assert after['params/cls_head/output/bias'].shape == (9 * 3,)  # anchors, times the classes of the toy data
    for path in before:
        if 'backbone' in path:
            np.testing.assert_array_equal(before[path], after[path])
        elif path not in head:  # two steps away
            np.testing.assert_allclose(after[path], before[path], atol=0.2)
    assert load(tmp_path / 'run').classes.class_names == ('red', 'green', 'blue')


@pytest.mark.parametrize('exact', [False, True])
def test_imported_weights_detect_in_pixels_and_ids_of_the_data(tmp_path, published, exact):
    import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'run', model='tiny')
    predictor = load(tmp_path / 'run', exact=exact)
    predictor.config.model.score_threshold = 0.0
    predictor = Predictor(predictor.config, predictor.classes, 0, predictor.params, predictor.model_state)
    found = predictor(image_of(90, 140))
    assert len(found.boxes) and (found.boxes >= 0).all() and (found.boxes <= [140, 90, 140, 90]).all()
    np.testing.assert_array_equal(
        found.category_ids, found.labels
    )  # torchvision's RetinaNet counts background as class 0


def test_export_and_import_are_inverse_to_the_last_bit(tmp_path, tiny_run):
    export_weights(tiny_run, tmp_path / 'exported')
    assert sorted(path.name for path in (tmp_path / 'exported').iterdir()) == [
        'classes.json',
        'config.json',
        'weights.safetensors',
    ]
    imported = import_weights(tmp_path / 'exported', tmp_path / 'back')
    assert {row.transform for row in imported.rows} == {'as it is'}
    before, after = variables_of(tiny_run), variables_of(tmp_path / 'back')
    assert before.keys() == after.keys()
    for path in before:
        assert before[path].dtype == after[path].dtype
        np.testing.assert_array_equal(before[path], after[path])
    old, new = (from_json((folder / 'config.json').read_text()) for folder in (tiny_run, tmp_path / 'back'))
    assert differences(old, new).keys() == {'data.data_dir'}  # of the machine that trained
    image = image_of(50, 60)
    first, second = load(tiny_run)(image), load(tmp_path / 'back')(image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.class_names == second.class_names


def darknet_files(folder):
    """Writes .weights, .cfg and .names of a tiny YOLO v3 of three classes, with random weights."""
    folder.mkdir()
    config = exchange.config_of(MODELS['yolov3']._replace(model=YOLO, canvases=((64, 96),)))
    random = np.random.RandomState(2)
    template = exchange.shapes_of(config, 3)
    params, model_state = jax.tree_util.tree_map_with_path(
        lambda path, x: (0.02 * random.uniform(size=x.shape) + (path[-1].key == 'var')).astype(x.dtype), template
    )  # small, so that no output overflows
    darknet.write_weights(folder / 'a.weights', YOLO, params, model_state)
    (folder / 'a.cfg').write_text(cfg_text(YOLO, template, (64, 96)))
    (folder / 'a.names').write_text('red\ngreen\nblue\n')


def test_darknet_network_of_its_own_cfg_comes_in_and_goes_out(tmp_path):
    darknet_files(tmp_path / 'in')
    paths = {suffix: tmp_path / 'in' / f'a.{suffix}' for suffix in ('weights', 'cfg', 'names')}
    imported = import_weights(paths['weights'], tmp_path / 'run', cfg=paths['cfg'], names=paths['names'])
    assert [row.transform for row in imported.rows if not row.ours] == ['left: only YOLO v2 counts images; 0']
    predictor = load(tmp_path / 'run')
    assert predictor.classes == Classes(('red', 'green', 'blue'), (1, 2, 3))
    assert predictor.config.data.recipe.resize == 'letterbox' and predictor.config.evaluation.canvases == ((64, 96),)
    assert export_darknet(tmp_path / 'run', tmp_path / 'out') == {}
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        f'yolo_v3.{suffix}' for suffix in sorted(paths)
    ]
    for suffix, path in paths.items():
        assert (tmp_path / 'out' / f'yolo_v3.{suffix}').read_bytes() == path.read_bytes()
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / 'out' / 'yolo_v3.cfg'), str(tmp_path / 'out' / 'yolo_v3.weights'))
    assert len(net.getUnconnectedOutLayersNames()) == 2


@pytest.fixture
def times_opened(monkeypatch):
    """A counter: {name of a file: how often it was opened}."""
    count, open_file = collections.Counter(), open

    def counting(file, *args, **kwargs):
        count[os.path.basename(os.fspath(file)) if not isinstance(file, int) else file] += 1
        return open_file(file, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', counting)
    monkeypatch.setattr(io, 'open', counting)  # pathlib's
    return count


def test_importing_reads_a_file_once_and_assigns_its_entries_once(tmp_path, published, monkeypatch, times_opened):
    model, assigned = MODELS['tiny'], []

    def prepare(entries):
        assigned.append(len(entries))
        return model.mapping.prepare(entries)

    monkeypatch.setitem(zoo.MODELS, 'tiny', model._replace(mapping=model.mapping._replace(prepare=prepare)))
    imported = import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'run', model='tiny')
    assert times_opened['tiny.safetensors'] == 1 and assigned == [len(published)]
    assert imported.entries.keys() == published.keys()  # handed over to who wants to compare

    export_weights(tmp_path / 'run', tmp_path / 'out')
    times_opened.clear()
    import_weights(tmp_path / 'out', tmp_path / 'back')
    assert times_opened['weights.safetensors'] == 1


def test_importing_and_comparing_reads_a_file_once(tmp_path, times_opened, run_script):
    darknet_files(tmp_path / 'in')
    times_opened.clear()
    flags = [
        f'--{flag}={tmp_path}/in/a.{suffix}'
        for flag, suffix in (('source', 'weights'), ('cfg', 'cfg'), ('names', 'names'))
    ]
    finished = run_script('import_weights', *flags, f'--workdir={tmp_path}/run', f'--report={tmp_path}/report.md')
    assert not finished.code and 'level1 ' in finished.stdout, finished  # OpenCV ran, too
    assert times_opened['a.weights'] == 1


def without(entries, name):
    return {key: array for key, array in entries.items() if key != name}


CLS_BIAS = 'head.classification_head.cls_logits.bias'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda entries: without(entries, CLS_BIAS), r'missing: head\.classification_head\.cls_logits\.bias'),
        (lambda entries: {**entries, 'head.third.weight': np.zeros(3, np.float32)}, r'unused: head\.third\.weight'),
        (
            lambda entries: {**entries, CLS_BIAS: np.zeros(9 * 21, np.float32)},
            r'of another shape: head\.classification_head\.cls_logits\.bias \(189,\) where the model has \(819,\)',
        ),
    ],
    ids=['missing', 'unused', 'classes'],
)
def test_a_file_of_another_model_leaves_no_workdir(tmp_path, published, change, message):
    safetensors.numpy.save_file(change(published), tmp_path / 'bad.safetensors')
    with pytest.raises(ValueError, match=rf'bad\.safetensors: .*{message}'):
        import_weights(tmp_path / 'bad.safetensors', tmp_path / 'run', model='tiny')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.safetensors', 'tiny.safetensors']


def test_what_cannot_be_imported_is_one_error_and_no_workdir(tmp_path, published, run_script):
    darknet_files(tmp_path / 'in')
    (tmp_path / 'in' / 'two.names').write_text('red\ngreen\n')
    (tmp_path / 'in' / 'twice.names').write_text('red\ngreen\nred\n')
    (tmp_path / 'in' / 'page.weights').write_text('<!DOCTYPE html><html></html>')
    weights = (tmp_path / 'in' / 'a.weights').read_bytes()
    (tmp_path / 'in' / 'zeros.weights').write_bytes(
        weights[: len(weights) // 2] + bytes(len(weights) - len(weights) // 2)
    )
    (tmp_path / 'in' / 'short.weights').write_bytes((tmp_path / 'in' / 'a.weights').read_bytes()[:-4])
    (tmp_path / 'in' / 'torn.safetensors').write_bytes((tmp_path / 'tiny.safetensors').read_bytes()[:-4])
    before = sorted(tmp_path.rglob('*'))
    mine = (f'--cfg={tmp_path}/in/a.cfg', f'--names={tmp_path}/in/a.names')
    cases = [
        ('tiny.safetensors', ['--model=yolov3-tiny'], "not darknet's, but a file of torch or safetensors"),
        ('tiny.safetensors', ['--model=tiny', f'--report={tmp_path}/none/report.md'], 'no folder for the report'),
        ('tiny.safetensors', ['--model=tiny', '--report=/proc/self/task/a.md'], '/proc/self/task'),
        ('in/page.weights', ['--model=yolov3-tiny'], 'page.weights: a web page instead of weights'),
        ('tiny.safetensors', ['--model=fasterrcnn_resnet50_fpn'], 'missing: '),
        ('tiny.safetensors', ['--model=resnet50'], "no model is called 'resnet50'"),
        ('tiny.safetensors', [], 'not a folder of export_weights'),
        ('in/torn.safetensors', ['--model=tiny'], 'torn.safetensors'),
        ('nothing.pth', ['--model=tiny'], 'nothing.pth'),
        ('nothing', [], 'no such file or folder'),
        ('in/short.weights', mine, 'short.weights: not the weights of this model: it ends after'),
        ('in/a.weights', [mine[0]], 'both a .cfg and a .names'),
        ('in/a.weights', [mine[0], f'--names={tmp_path}/in/two.names'], 'names 2 classes'),
        ('in/a.weights', [mine[0], f'--names={tmp_path}/in/twice.names'], 'names twice: red'),
        ('in/a.weights', [mine[0], f'--names={tmp_path}/in/a.weights'], 'not text in UTF-8'),
        ('in/zeros.weights', mine, 'is all zero: fetch the file again'),
    ]
    for source, arguments, message in cases:
        finished = run_script(
            'import_weights', f'--source={tmp_path / source}', f'--workdir={tmp_path}/run', *arguments
        )
        assert finished.code == 1 and finished.stderr.startswith('error: ') and message in finished.stderr, finished
        assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('value', [np.nan, -1.0])
def test_numbers_that_no_training_leaves_are_refused(tmp_path, published, value):
    name = 'backbone.body.bn1.running_var'
    safetensors.numpy.save_file({**published, name: np.full_like(published[name], value)}, tmp_path / 'bad.safetensors')
    with pytest.raises(
        ValueError, match=r'bad\.safetensors: the entry for frozen/backbone/stem_norm/var .* fetch the file again'
    ):
        import_weights(tmp_path / 'bad.safetensors', tmp_path / 'run', model='tiny')
    assert not (tmp_path / 'run').exists()


def test_torchvisions_files_are_known_by_their_checksums(tmp_path, published, monkeypatch):
    source = tmp_path / 'tiny.safetensors'
    with open(source, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    other = MODELS['ssd300_vgg16']
    with monkeypatch.context() as patch:
        patch.setitem(
            zoo.MODELS, 'other', other._replace(published=other.published._replace(file=f'a-{digest[:8]}.pth'))
        )
        with pytest.raises(ValueError, match="this is torchvision's file of other: give that as the model"):
            import_weights(source, tmp_path / 'run', model='tiny')
    named = source.rename(tmp_path / other.published.file)
    with pytest.raises(ValueError, match=f'damaged: its SHA-256 begins with {digest[:8]}, .*: fetch it again'):
        import_weights(named, tmp_path / 'run', model='tiny')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'text, message',
    [
        ('[]', 'cannot read the classes of this run'),
        ('{"class_names": ["a"]}', 'cannot read the classes of this run'),
        ('{"class_names": ["a", "b"', 'cannot read the classes of this run'),
        ('[' * 100_000, 'cannot read the classes of this run'),
        ('{"class_names": ["a", "b"], "category_ids": [1]}', '2 class_names but 1 category_ids'),
    ],
)
def test_classes_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / 'classes.json').write_text(text)
    with pytest.raises(ValueError, match=rf'classes\.json: {message}'):
        read_classes(tmp_path / 'classes.json')


def test_classes_are_read_by_their_names(tmp_path):
    (tmp_path / 'classes.json').write_text('{"category_ids": [7, 8], "class_names": ["a", "b"], "more": 1}')
    assert read_classes(tmp_path / 'classes.json') == Classes(('a', 'b'), (7, 8))


@pytest.mark.parametrize(
    'text, message',
    [
        ('[]', 'was cut short, or is no config'),
        (
            '{"model": {"name": "retinanet", "depth": "deep"}}',
            "exported/config.json: model.backbone.name is 'resnetdeep'",
        ),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, tiny_run, text, message):
    export_weights(tiny_run, tmp_path / 'exported')
    (tmp_path / 'exported' / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        import_weights(tmp_path / 'exported', tmp_path / 'back')


def test_a_yolo_v2_keeps_its_counter(tmp_path):
    model = MODELS['yolov2-tiny-voc']
    small = with_backbone(model.model, width=0.125) | dict(head_features=(16, 16))
    model = model._replace(model=small, canvases=((64, 64),))
    config = exchange.config_of(model)
    random = np.random.RandomState(3)
    variables = jax.tree.map(
        lambda x: (1 + random.uniform(size=x.shape)).astype(x.dtype), exchange.shapes_of(config, 20)
    )
    exchange.write_workdir(tmp_path / 'run', exchange.Imported(config, VOC, *variables, []))
    export_weights(tmp_path / 'run', tmp_path / 'exported')
    import_weights(tmp_path / 'exported', tmp_path / 'back')
    before, after = variables_of(tmp_path / 'run'), variables_of(tmp_path / 'back')
    assert before['counters/images_seen'].shape == after['counters/images_seen'].shape == ()
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_names_of_coco_have_its_ids(tmp_path):
    names = ['motorbike' if name == 'motorcycle' else name for name in COCO.class_names]
    model = {**YOLO, 'num_classes': 80}
    (tmp_path / 'a.cfg').write_text(
        cfg_text(
            model,
            exchange.shapes_of(exchange.config_of(MODELS['yolov3']._replace(model=model, canvases=((64, 96),))), 80),
            (64, 96),
        )
    )
    (tmp_path / 'a.names').write_text('\ufeff' + '\n'.join(names), 'utf-8')
    config, classes = exchange._described(tmp_path / 'a.cfg', tmp_path / 'a.names')
    assert classes == COCO and config.data.name == 'coco'


def test_images_are_resized_as_letter_box_of_the_cfg_says(tmp_path, caplog, monkeypatch):
    darknet_files(tmp_path / 'in')
    cfg = tmp_path / 'in' / 'a.cfg'
    text = cfg.read_text()

    def resize_of(line):
        caplog.clear()
        cfg.write_text(text.replace('channels=3\n', f'channels=3\n{line}\n'))
        return exchange._described(cfg, tmp_path / 'in' / 'a.names')[0].data.recipe.resize

    with caplog.at_level('WARNING', logger='absl'):
        assert resize_of('letter_box=0') == 'stretch' and not caplog.text
        assert resize_of('letter_box=1') == 'letterbox' and not caplog.text
        assert resize_of('') == 'letterbox'
        assert (
            'a.cfg: [net] has no letter_box: images are letterboxed' in caplog.text
            and 'write letter_box=0' in caplog.text
        )
        of_v1 = darknet.Described({'name': 'yolo_v1', 'num_classes': 3}, (448, 448), letter_box=None)
        monkeypatch.setattr(darknet, 'model_of_cfg', lambda cfg: of_v1)
        assert resize_of('') == 'stretch' and not caplog.text  # as both programs do


def test_an_existing_folder_is_not_overwritten(tmp_path, published, tiny_run):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').write_text('mine')
    for act in (
        lambda: import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'full', model='tiny'),
        lambda: export_weights(tiny_run, tmp_path / 'full'),
    ):
        with pytest.raises(ValueError, match='full exists and is not empty'):
            act()
    assert [path.name for path in (tmp_path / 'full').iterdir()] == ['mine']


def test_only_yolos_go_to_darknet(tmp_path, tiny_run):
    with pytest.raises(ValueError, match='retinanet'):
        export_darknet(tiny_run, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_scripts_import_report_and_export(tmp_path, published, run_script):
    source, run = tmp_path / 'tiny.safetensors', tmp_path / 'run'
    finished = run_script(
        'import_weights', f'--source={source}', '--model=tiny', f'--workdir={run}', f'--report={tmp_path}/report.md'
    )
    assert not finished.code and '91 classes' in finished.stdout and '1 entries left' in finished.stdout
    lines = (tmp_path / 'report.md').read_text().splitlines()
    assert len(lines) == 2 + len(published)
    row = next(line for line in lines if line.startswith('| backbone.body.conv1.weight '))
    assert row.split(' | ')[1:4] == ['params/backbone/stem_conv/kernel', '7 x 7 x 3 x 8', 'OIHW -> HWIO']
    finished = run_script('export_weights', f'--workdir={run}', f'--output={tmp_path}/out')
    assert not finished.code and (tmp_path / 'out' / 'weights.safetensors').exists()


@pytest.mark.parametrize('name', MODELS)
def test_every_model_has_a_config_and_as_many_classes_as_outputs(name):
    model = MODELS[name]
    config = exchange.config_of(model)
    names, ids = model.classes
    assert len(names) == len(ids) == model.model['num_classes'] and list(ids) == sorted(set(ids))
    known = dict(zip(COCO.category_ids, COCO.class_names) if config.data.name == 'coco' else enumerate(CLASS_NAMES, 1))
    assert {number: name for number, name in zip(ids, names) if name != 'N/A'} == known
    assert config.evaluation.divisor == model.divisor
    assert all(side > 0 for canvas in config.evaluation.canvases for side in canvas)
    # Photos of any shape are as large on one of the canvases as the recipe makes them alone.
    # Torchvision's segmenters have no limit for the longer side, so no canvas fits all: up to 16 : 9.
    long = ((1000, 200), (50, 2000)) if config.data.recipe.longer_side else ((9, 16),)
    for size in ((480, 640), (640, 427), (333, 333), *long):
        static = placement(size, canvas_for(size, config), resize_rule(config.data.recipe))
        config.evaluation.exact = True
        exact = placement(size, canvas_for(size, config), resize_rule(config.data.recipe))
        config.evaluation.exact = False
        assert static.size == exact.size
