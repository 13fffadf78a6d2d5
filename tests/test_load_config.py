"""Configs and experiments by name or path: where they are looked up, and what is changed in them."""

import pathlib

import pytest

from detzoo.config import find_file, load_config, own_folder
from detzoo.errors import ConfigError
from detzoo.sweeps.sweep import full_name

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "from detzoo.config import load_config\n\n\ndef get_config():\n    return load_config('retinanet_shapes')\n"


def test_load_config_takes_names_variants_and_changes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plain = load_config('mask_rcnn_shapes')
    for name in ('mask_rcnn_shapes:c4', 'mask_rcnn_shapes.py:c4', 'configs/mask_rcnn_shapes.py:c4'):
        c4 = load_config(name, {'training.steps': 7, 'seed': 3})
        assert plain.model.fpn_features == 48 and c4.model.fpn_features is None
        assert (c4.training.steps, c4.seed) == (7, 3)


def test_load_config_takes_a_file_of_the_current_folder_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'ssd_shapes.py').write_text(CONFIG)
    assert load_config('configs/ssd_shapes.py').model.name == 'retinanet'
    assert load_config(f'{tmp_path}/configs/ssd_shapes.py').model.name == 'retinanet'
    assert load_config('ssd_shapes').model.name == 'ssd'  # a name is one of detzoo


@pytest.mark.parametrize(
    'name, changes, words',
    [
        ('retinanet_shape', {}, "no config 'retinanet_shape': .* nearest is 'retinanet_shapes'"),
        ('elsewhere/retinanet_shapes.py', {}, "no config 'elsewhere/retinanet_shapes.py'"),
        ('ssd_shapes:c4', {}, "has no variant 'c4'"),
        (
            'ssd_shapes',
            {'model.backbone.widht': 0.5},
            "no config key 'model.backbone.widht': the nearest is 'model.backbone.width'",
        ),
        ('ssd_shapes', {'training.steps': 'many'}, "training.steps cannot be 'many'"),
        ('ssd_shapes', {'training.steps': 0}, 'training.steps is 0: it must be'),
    ],
)
def test_load_config_refuses_what_is_not_there(name, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(name, changes)


def test_load_config_refuses_a_file_that_is_no_config(tmp_path):
    (tmp_path / 'a.py').write_text('x = 1\n')
    with pytest.raises(ConfigError, match='a.py is not a config: it has no function get_config'):
        load_config(f'{tmp_path}/a.py')


def test_own_folder_prefers_what_is_installed_with_the_package(monkeypatch, tmp_path):
    assert own_folder('configs') == ROOT / 'configs'
    (tmp_path / 'detzoo' / 'configs').mkdir(parents=True)
    (tmp_path / 'configs').mkdir()  # of another package
    monkeypatch.setattr('detzoo.config.__file__', f'{tmp_path}/detzoo/config.py')
    assert own_folder('configs') == tmp_path / 'detzoo' / 'configs'


def test_full_name_is_the_same_from_everywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ('quickstart:ssd', 'experiments/quickstart.py:ssd', f'{ROOT}/experiments/quickstart.py:ssd'):
        assert full_name(name) == 'experiments/quickstart.py:ssd'
    (tmp_path / 'mine.py').touch()
    assert full_name('mine.py') == f'{tmp_path}/mine.py'
    assert find_file('experiments', 'focal_loss') == (ROOT / 'experiments' / 'focal_loss.py', '')
