"""Starting from another run: what is taken over, what starts anew, what is refused."""

import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

from detzoo.config import from_json
from detzoo.data.catalog import open_dataset
from detzoo.errors import ConfigError
from detzoo.inference.predictor import detector_of
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.workdir import has_checkpoints
from detzoo.training import finetune
from detzoo.training.checks import check
from detzoo.training.loop import train_and_evaluate
from detzoo.weights.mapping import flatten

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
CLASSES = ('red', 'green', 'blue')
HEADS = {f'params/cls_head/output/{leaf}' for leaf in ('kernel', 'bias')}


@pytest.fixture(scope='module')
def learnt_from(tiny_run):
    """What `tiny_run` has learnt, averaged, by paths."""
    checkpoints = Checkpoints(tiny_run)
    _, variables = checkpoints.restore_variables()
    checkpoints.close()
    return flatten((variables['ema_params'], variables['model_state']))


def shapes_of(config, num_classes):
    state = finetune.state_shapes(config, detector_of(config, num_classes))
    return state.params, state.model_state


def test_all_is_taken_where_classes_are_the_same(tiny_run, tiny_config, learnt_from):
    learnt = finetune.read_run(tiny_run, tiny_config(), CLASSES, shapes_of(tiny_config(), 3))
    assert not learnt.anew and not learnt.changes and learnt.arrays.keys() == learnt_from.keys()
    for path, array in learnt.arrays.items():
        np.testing.assert_array_equal(array, learnt_from[path])


# As many classes with other names, or in another order, are other classes.
@pytest.mark.parametrize('classes', [('cat', 'dog', 'cow'), ('green', 'red', 'blue'), ('red',), (*CLASSES, 'cyan')])
def test_what_depends_on_classes_starts_anew(tiny_run, tiny_config, learnt_from, classes):
    learnt = finetune.read_run(tiny_run, tiny_config(), classes, shapes_of(tiny_config(), len(classes)))
    assert set(learnt.anew) == HEADS and learnt.arrays.keys() == learnt_from.keys() - HEADS


def test_norms_of_batches_become_frozen_ones_and_back(tiny_run, tiny_config, learnt_from):
    config = tiny_config(model__backbone__norm='frozen_batch_norm')
    learnt = finetune.read_run(tiny_run, config, CLASSES, shapes_of(config, 3))
    assert not learnt.anew and list(learnt.changes) == ['model.backbone.norm']
    assert learnt.arrays.keys() != learnt_from.keys()
    for path in (
        'frozen/backbone/stem_norm/var',
        'frozen/backbone/stem_norm/scale',
        'params/backbone/stem_conv/kernel',
    ):
        batch = {'var': 'batch_stats', 'scale': 'params'}.get(path.rpartition('/')[2], 'params')
        np.testing.assert_array_equal(learnt.arrays[path], learnt_from[f'{batch}/{path.partition("/")[2]}'])


def test_replace_keeps_drawn_variables_where_nothing_was_learnt(tiny_run, tiny_config):
    params, model_state = shapes_of(tiny_config(), 4)
    params = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), params)
    learnt = finetune.read_run(tiny_run, tiny_config(), (*CLASSES, 'cyan'), (params, model_state))
    replaced = flatten(finetune.replace(params, model_state, learnt.arrays))
    for path, array in replaced.items():
        np.testing.assert_array_equal(array, 7 if path in HEADS else learnt.arrays[path])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model__backbone__width': 0.25}, r'of another shape: params/backbone/\S+ \(.*\), here \('),
        ({'model__head_depth': 2}, r'missing there: params/\w+_head/conv2'),
        ({'model__head_norm': None}, r'unknown here: params/\w+_head/norm1'),
    ],
)
def test_another_detector_is_refused(tiny_run, tiny_config, changes, message):
    config = tiny_config(initialize_from=str(tiny_run), **changes)
    with pytest.raises(ConfigError, match=message) as error:
        check(config, open_dataset('toy', 'train', config.data.data_dir))
    assert str(tiny_run) in str(error.value) and 'model section' in str(error.value)


@pytest.mark.parametrize('exists', [False, True])
def test_no_run_to_start_from_is_an_error(tmp_path, tiny_config, tiny_run, exists):
    if exists:
        for name in ('config.json', 'classes.json'):
            (tmp_path / name).write_text((tiny_run / name).read_text())
    config = tiny_config(initialize_from=str(tmp_path))
    with pytest.raises(ConfigError, match='no checkpoint' if exists else 'is not the workdir of a run'):
        check(config, open_dataset('toy', 'train', config.data.data_dir))


def test_both_starts_at_once_are_an_error(tiny_run, tiny_config):
    config = tiny_config(initialize_from=str(tiny_run), initialize_backbone='a.safetensors')
    with pytest.raises(ConfigError, match='exclude each other'):
        check(config, open_dataset('toy', 'train', config.data.data_dir))


def test_a_run_starts_from_another_and_freezes_stages(tmp_path, tiny_run, tiny_config, learnt_from, capfd):
    frozen = 'backbone/(stem|stage1)'
    source = shutil.copytree(tiny_run, tmp_path / 'source')
    config = tiny_config(
        initialize_from=str(source),
        optimizer__frozen=frozen,
        optimizer__ema_decay=0.0,
        training__steps=2,
        seed=3,
        model__focal_gamma=1.0,
    )
    metrics = train_and_evaluate(config, tmp_path / 'run')
    error = capfd.readouterr().err
    assert f'starts from {source}; model.focal_gamma was 2.0 there, is 1.0' in error and 'anew' not in error
    checkpoints = Checkpoints(tmp_path / 'run')
    _, variables = checkpoints.restore_variables()
    checkpoints.close()
    trained = flatten((variables['params'], {}))
    same = {path for path in trained if (trained[path] == learnt_from[path]).all()}
    assert same == {path for path in trained if path.startswith(('params/backbone/stem', 'params/backbone/stage1'))}
    near = [path for path in trained if path not in same and path.endswith('kernel')]
    for path in near:  # two small steps from where the other run stood, not from a draw
        assert abs(trained[path] - learnt_from[path]).max() < 0.2 * abs(learnt_from[path]).max()
    # What has begun goes on from its own checkpoint, and does not need the other run any more.
    shutil.rmtree(source)
    assert train_and_evaluate(config, tmp_path / 'run') == metrics
    with pytest.raises(ConfigError, match='which is not the workdir of a run'):
        train_and_evaluate(config, tmp_path / 'another')


def test_a_run_without_a_whole_checkpoint_has_not_begun(tmp_path):
    (tmp_path / 'checkpoints' / '200.orbax-checkpoint-tmp-17').mkdir(parents=True)
    assert not has_checkpoints(tmp_path)
    (tmp_path / 'checkpoints' / '100').mkdir()
    assert not has_checkpoints(tmp_path)
    (tmp_path / 'checkpoints' / '100' / 'some').touch()
    assert has_checkpoints(tmp_path)


def test_a_classifier_that_is_not_there_is_named(tmp_path, tiny_config):
    config = tiny_config(initialize_backbone=str(tmp_path / 'none.pth'))
    with pytest.raises(ConfigError, match=r'none\.pth'):
        check(config, open_dataset('toy', 'train', config.data.data_dir))


def test_finetune_config_takes_the_model_over(tiny_run):
    get_config = runpy.run_path(CONFIGS / 'finetune_histology.py')['get_config']
    config, source = get_config(str(tiny_run)), from_json((tiny_run / 'config.json').read_text())
    assert config.model == source.model and config.initialize_from == str(tiny_run)
    assert config.data.name == 'histology' and config.evaluation.canvases == ((512, 512),)
    with pytest.raises(ConfigError, match="'nowhere' is not one"):
        get_config('nowhere')


def test_imported_weights_are_not_trained_in_place(tmp_path, tiny_run, tiny_config):
    config = tiny_config()
    for name in ('config.json', 'classes.json'):
        (tmp_path / name).write_text((tiny_run / name).read_text())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_variables({'a': np.ones(2, np.float32)}, {})
    checkpoints.close()
    with pytest.raises(ConfigError, match='set initialize_from to it'):
        train_and_evaluate(config, tmp_path)
