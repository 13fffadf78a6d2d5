"""Experiments: every run of every file can start, and the table says what was found beside what is published."""

import json
import pathlib
import runpy

import jax
import pytest

from detzoo.config import differences
from detzoo.costs.programs import random_batch
from detzoo.data.records import Dataset
from detzoo.errors import ConfigError
from detzoo.inference.predictor import detector_of
from detzoo.run import parallel
from detzoo.sweeps.sweep import Run, config_of, load_sweep, with_seeds
from detzoo.training import checks

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = 5
EXPERIMENTS = sorted(ROOT.glob('experiments/*.py'))
ARGUMENTS = (
    'speed_accuracy.py:histology',
    'speed_accuracy.py:bccd',
    'speed_accuracy.py:coco',
    'augmentation.py:histology',
)
VARIANTS = [*map(str, EXPERIMENTS), *(f'{ROOT}/experiments/{name}' for name in ARGUMENTS)]


def different_runs():
    """The runs of all experiments, but of those with one network on the same canvases only the first; large ones with --full."""
    runs = {}
    for path in VARIANTS:
        for run in load_sweep(path)[0].runs:
            config = config_of(run)
            marks = [pytest.mark.full] if path.endswith((':bccd', ':coco')) else []
            about = [
                config.model.to_dict(),
                config.data.canvases,
                config.evaluation.to_dict(),
                config.training.batch_size,
                bool(config.initialize_backbone),
            ]
            runs.setdefault(json.dumps(about), pytest.param(run, id=run.name, marks=marks))
    return runs.values()


EXPERIMENT = """
from detzoo.sweeps.sweep import Run, Sweep

def get_sweep(arg=None):
    config = 'configs/retinanet_shapes.py'
    runs = [Run('focal', config, {}, {'AP': 31.0}), Run('cross_entropy', config, {KEY: 0.0}, {'AP': 30.5})]
    return Sweep(runs, ('AP',))
"""


@pytest.fixture
def experiment(tmp_path):
    """A function: the key that the second run changes -> the path of an experiment."""

    def write(key='model.focal_gamma'):
        path = tmp_path / 'focal.py'
        path.write_text(EXPERIMENT.replace('KEY', repr(key)))
        return path

    return write


@pytest.fixture(scope='module')
def with_weights(tmp_path_factory, write_classifier):
    """A function: the config of a run -> the same, narrow, with the file of a classifier to start from, if it does."""
    folder = tmp_path_factory.mktemp('weights')

    def give(config):
        if config.initialize_backbone:
            path = folder / pathlib.Path(config.initialize_backbone).name
            config.initialize_backbone, config.model.backbone.width = str(path), 1 / 16
            if not path.exists():
                init = detector_of(config, CLASSES).init
                write_classifier(
                    path, jax.eval_shape(lambda rng: init(rng, config.data.canvases[0]), jax.random.key(0))
                )
        return config

    return give


@pytest.fixture
def check(monkeypatch, request):
    """A function: a config -> its detector and the shapes of its state, after the checks with which training begins.

    What training can predict on, which traces a network for each canvas, is checked with --full alone.
    """
    monkeypatch.setattr(parallel, 'AXIS', None)  # so that the loss can be traced alone
    if not request.config.getoption('--full'):
        monkeypatch.setattr(checks, 'check_canvases', lambda config, detector: None)

    def run(config):
        monkeypatch.setattr(jax, 'device_count', lambda: 8 if config.data.name == 'coco' else 1)
        names = tuple(map(str, range(len(config.model.get('tree') or range(CLASSES)))))
        data = Dataset('any', 'train', names, tuple(range(len(names))), [])
        detector, state, learnt = checks.check(config, data)
        assert bool(learnt.arrays) == bool(config.initialize_backbone)
        return detector, state

    return run


@pytest.mark.parametrize('run', different_runs())
def test_every_run_of_an_experiment_can_take_a_step(run, with_weights, check):
    config = with_weights(config_of(run))
    detector, state = check(config)
    batch = random_batch(config, config.data.canvases[0], 2, CLASSES)
    loss, _ = jax.eval_shape(detector.loss, state.params, state.model_state, batch, jax.random.key(0))
    assert loss.shape == ()


def test_every_run_of_speed_accuracy_on_coco_passes_the_checks(with_weights, check):
    """One for each network and classifier: the others differ from it in canvases, and in what predicts."""
    sweep, _ = load_sweep(f'{ROOT}/experiments/speed_accuracy.py:coco')
    checked = {}
    for run in sweep.runs:
        config = config_of(run)
        first = checked.setdefault((run.config, config.model.backbone.name), config)
        if first is config:
            check(with_weights(config.copy_and_resolve_references()))
        assert set(differences(first, config)) <= {
            'model.rpn.post_nms_topk',
            'data.canvases',
            'evaluation.canvases',
            'data.recipe.shorter_side',
            'data.recipe.longer_side',
        }
        sides = [side for key in ('data', 'evaluation') for canvas in config[key].canvases for side in canvas]
        assert not any(side % 32 for side in sides) or config.model.name == 'ssd'
    assert len(checked) == 10


@pytest.mark.parametrize('path', VARIANTS, ids=lambda path: path.rpartition('/')[2])
def test_runs_of_an_experiment_differ_in_what_they_change_alone(path):
    sweep, docstring = load_sweep(path)
    assert docstring.splitlines()[0].endswith('?')  # it asks something
    bases = {run.config: config_of(Run('base', run.config)) for run in sweep.runs}
    for run in sweep.runs:
        changed = differences(bases[run.config], config_of(run))
        assert set(changed) <= set(run.changes)  # a change may be to the base's own value
    configs = [json.dumps(config_of(run).to_dict()) for run in sweep.runs]
    assert len(set(configs)) == len(configs)
    assert all(set(run.published) <= set(sweep.metrics) for run in sweep.runs)


def test_load_sweep_refuses_what_cannot_run(experiment, tmp_path):
    with pytest.raises(ConfigError, match="there is no experiment 'nothing.py'"):
        load_sweep('nothing.py')
    with pytest.raises(
        ConfigError, match="'cross_entropy': there is no config key 'model.gamma': the nearest is 'model.focal_gamma'"
    ):
        load_sweep(str(experiment('model.gamma')))
    path = tmp_path / 'twice.py'
    path.write_text(EXPERIMENT.replace('KEY', "'model.focal_gamma'").replace("'cross_entropy'", "'focal'"))
    with pytest.raises(ConfigError, match="more than one run is called 'focal'"):
        load_sweep(str(path))


def test_speed_accuracy_on_coco_trains_each_model_once():
    sweep, _ = load_sweep(f'{ROOT}/experiments/speed_accuracy.py:coco')
    configs = {run.name: config_of(run) for run in sweep.runs}
    shared = {run.name: run.trained for run in sweep.runs if run.trained}
    assert (len(configs), len(shared)) == (50, 28) and not shared.keys() & set(shared.values())
    for name, trained in shared.items():
        assert set(differences(configs[trained], configs[name])) in (
            {'model.rpn.post_nms_topk'},
            {'evaluation.canvases'},
        )
    recipe = config_of(Run('recipe', 'configs/mask_rcnn_r50_fpn_coco.py'))
    changed = differences(recipe, configs['mask_rcnn_r50_800_1000'])
    assert changed == {'initialize_backbone': (None, 'weights/resnet50-0676ba61.pth')}
    assert configs['mask_rcnn_r101_600_50'].initialize_backbone == 'weights/resnet101-63fe2227.pth'
    assert configs['mask_rcnn_r101_600_50'].evaluation.canvases == ((608, 1024), (1024, 608))


def test_speed_accuracy_refuses_variants_that_it_does_not_have():
    for argument in ('voc', 'shapes:weights', 'histology:weights'):
        with pytest.raises(ValueError, match=rf"variants shapes, histology, bccd, coco \(.*\), not '{argument}'"):
            load_sweep(f'{ROOT}/experiments/speed_accuracy.py:{argument}')
    sweep, _ = load_sweep(f'{ROOT}/experiments/speed_accuracy.py:coco:/data/weights')
    assert config_of(sweep.runs[-1]).initialize_backbone == '/data/weights/darknet53.conv.74'
    sweep, _ = load_sweep(f'{ROOT}/experiments/speed_accuracy.py:bccd:/data/weights')
    assert config_of(sweep.runs[-1]).initialize_backbone == '/data/weights/mobilenet_v2-b0353104.pth'


def test_with_seeds_repeats_runs_under_their_names():
    runs = with_seeds([Run('a', '', {'x': 1}), Run('b', '', group='c', trained='a', initialized='d')], (0, 7))
    assert [(run.name, run.group, run.changes) for run in runs] == [
        ('a_seed0', 'a', {'x': 1, 'seed': 0}),
        ('a_seed7', 'a', {'x': 1, 'seed': 7}),
        ('b_seed0', 'c', {'seed': 0}),
        ('b_seed7', 'c', {'seed': 7}),
    ]
    assert [(run.trained, run.initialized) for run in runs[1:]] == [
        ('', ''),
        ('a_seed0', 'd_seed0'),
        ('a_seed7', 'd_seed7'),
    ]


@pytest.mark.parametrize(
    'argument, key, value',
    [
        ('training.steps=7', 'steps', 7),
        ('training.checkpoint_every=0x10', 'checkpoint_every', 16),
    ],
)
def test_config_of_takes_settings(argument, key, value):
    assert config_of(Run('', 'configs/retinanet_shapes.py'), [argument]).training[key] == value


def test_config_of_takes_settings_of_every_type():
    settings = [
        'model.head_norm=group_norm',
        'data.data_dir=/a b',
        'optimizer.clip_norm=1',
        'data.recipe.rotate90=true',
        'data.canvases=((64, 64), (96, 96))',
        'model.focal_alpha=None',
        'optimizer.frozen=1',
    ]
    config = config_of(Run('', 'configs/retinanet_shapes.py'), settings)
    assert config.model.head_norm == 'group_norm' and config.data.data_dir == '/a b' and config.optimizer.frozen == '1'
    assert config.optimizer.clip_norm == 1.0 and isinstance(config.optimizer.clip_norm, float)
    assert config.data.recipe.rotate90 is True and config.data.canvases == ((64, 64), (96, 96))
    assert config.model.focal_alpha is None


def test_speed_accuracy_scales_what_is_as_large_as_objects():
    sweep, _ = load_sweep(f'{ROOT}/experiments/speed_accuracy.py')
    runs = {run.name: config_of(run) for run in sweep.runs}
    large, small = runs['mask_rcnn_128'], runs['mask_rcnn_96']
    assert large.model.rpn.anchor_sizes == ((16.0,), (24.0,), (36.0,), (54.0,), (80.0,))
    assert small.model.rpn.anchor_sizes == ((12.0,), (18.0,), (27.0,), (40.5,), (60.0,))
    assert (small.model.roi.canonical_size, small.model.mask_roi.canonical_size) == (42.0, 42.0)
    changed = set(differences(large, small))
    assert changed == {
        'data.canvases',
        'model.rpn.anchor_sizes',
        'model.roi.canonical_size',
        'model.mask_roi.canonical_size',
    }
    assert (
        len({(run.training.steps, run.training.batch_size, run.seed, str(run.data.recipe)) for run in runs.values()})
        == 1
    )


def test_experiments_say_their_command():
    for path in EXPERIMENTS:
        doc = runpy.run_path(str(path))['__doc__']
        assert f'--experiment={path.stem} ' in doc or 'bash scripts/quickstart.sh' in doc
