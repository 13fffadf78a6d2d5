"""The workdir of a run: what it keeps of its config and data, and what it refuses without touching a file."""

import copy
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from tiny import ROOT

from detzoo.data.catalog import open_dataset
from detzoo.data.records import checksum
from detzoo.errors import ConfigError, StorageError
from detzoo.run.checkpoint import Checkpoints, TrainState
from detzoo.run.classes import read_classes
from detzoo.run.storage import held
from detzoo.run.workdir import check_workdir, write_workdir


def prepare_workdirs(runs, data, validation):
    """As a training does: checks all, then writes all."""
    for config, workdir in runs:
        check_workdir(workdir, config, data, validation)
    for config, workdir in runs:
        workdir.mkdir(exist_ok=True)
        write_workdir(workdir, config, data, validation)


@pytest.fixture(scope='module')
def begun_run(tmp_path_factory, tiny_config, data_dir):
    """The config, the two splits and the workdir of a run that has saved a checkpoint."""
    splits = [open_dataset('toy', split, data_dir) for split in ('train', 'validation')]
    config, workdir = tiny_config(), tmp_path_factory.mktemp('begun') / 'run'
    prepare_workdirs([(config, workdir)], *splits)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(TrainState(np.int32(5), dict(w=np.ones(2)), {}, dict(m=np.ones(2)), None))
    checkpoints.close()
    return config, *splits, workdir


@pytest.fixture
def prepared(tmp_path, begun_run):
    """A function: whether checkpoints were saved -> (config, data, validation, workdir) of a run that was started."""
    *run, saved = begun_run

    def start(*, begun=True):
        workdir = pathlib.Path(shutil.copytree(saved, tmp_path / 'run'))
        if not begun:
            shutil.rmtree(workdir / 'checkpoints')
        return *copy.deepcopy(run[:1]), *run[1:], workdir

    return start


def files(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob('*') if path.is_file()}


def test_prepare_workdirs_keeps_which_data_they_are(prepared):
    _, data, validation, workdir = prepared()
    assert json.loads((workdir / 'data.json').read_text()) == dict(
        images=20, validation_images=10, checksum=data.checksum
    )
    assert (
        data.checksum
        == validation.checksum
        == checksum({data.split: data.records, validation.split: validation.records})
    )


def changed(dataset, **changes):
    return dataset._replace(**{key: change(getattr(dataset, key)) for key, change in changes.items()})


@pytest.mark.parametrize('change, change_of_validation, words', [
    (dict(class_names=lambda x: x[::-1]), {}, "class_names was ['red', 'green', 'blue'], is ['blue', 'green', 'red']"),
    (dict(class_names=lambda x: (*x, 'pink'), category_ids=lambda x: (*x, 12)), {}, 'category_ids was [3, 8, 9], is [3, 8, 9, 12]'),
    (dict(records=lambda x: x[:9]), {}, '(images was 20, is 9)'),
    ({}, dict(records=lambda x: x[:9]), '(validation_images was 10, is 9)'),
    (dict(checksum=lambda x: f'0{x[1:]}'), {}, "(checksum was '"),
], ids=['order of classes', 'one class more', 'images', 'validation images', 'contents'])  # fmt: skip
def test_prepare_workdirs_refuses_other_data_and_touches_nothing(prepared, change, change_of_validation, words):
    config, data, validation, workdir = prepared()
    data, validation = (split._replace(records=list(split.records)) for split in (data, validation))
    before = files(workdir)
    new = workdir.parent / 'new'
    with pytest.raises(ConfigError) as raised:
        others = changed(data, **change), changed(validation, **change_of_validation)
        prepare_workdirs([(config, new), (config, workdir)], *others)
    message = str(raised.value)
    assert (
        message.startswith(f"{workdir} belongs to a run on other data: data set 'toy' has changed since (")
        and words in message
    )
    assert message.endswith('Take a new workdir, or bring back the data that the run began with')
    assert files(workdir) == before and not new.exists()
    prepare_workdirs([(config, workdir)], data, validation)  # the former data, and the run goes on


def test_prepare_workdirs_takes_other_data_and_another_config_before_the_first_checkpoint(prepared):
    config, data, validation, workdir = prepared(begun=False)
    config.optimizer.learning_rate = 0.001
    prepare_workdirs([(config, workdir)], changed(data, class_names=lambda x: x[::-1]), validation)
    assert read_classes(workdir / 'classes.json').class_names == ('blue', 'green', 'red')
    assert json.loads((workdir / 'config.json').read_text())['optimizer']['learning_rate'] == 0.001


def test_prepare_workdirs_adds_what_an_older_run_does_not_say(prepared):
    config, data, validation, workdir = prepared()
    now = (workdir / 'data.json').read_text()
    (workdir / 'data.json').unlink()
    prepare_workdirs([(config, workdir)], data, validation)
    assert (workdir / 'data.json').read_text() == now
    (workdir / 'data.json').write_text('{"images": 20, "validation_images": 10, "checksum": null}')
    prepare_workdirs([(config, workdir)], data, validation)
    assert (workdir / 'data.json').read_text() == now
    with pytest.raises(ConfigError, match="class_names was .'red'"):  # these an older run says too
        (workdir / 'data.json').unlink()
        prepare_workdirs([(config, workdir)], changed(data, class_names=lambda x: x[::-1]), validation)


def test_prepare_workdirs_keeps_a_checksum_that_other_data_lack(prepared):
    config, data, validation, workdir = prepared()
    now = (workdir / 'data.json').read_text()
    prepare_workdirs([(config, workdir)], data._replace(checksum=None), validation)  # prepared by an older detzoo
    assert (workdir / 'data.json').read_text() == now
    with pytest.raises(ConfigError, match='checksum was'):
        prepare_workdirs([(config, workdir)], changed(data, checksum=lambda x: f'0{x[1:]}'), validation)


def test_held_names_a_place_that_cannot_be_a_workdir(tmp_path):
    (tmp_path / 'file').touch()
    with (
        pytest.raises(StorageError, match=f'cannot make the folder {tmp_path}/file: File exists'),
        held(tmp_path / 'file'),
    ):
        pass


@pytest.mark.parametrize('name', ['config.json', 'classes.json', 'data.json'])
@pytest.mark.parametrize('keep', [0, 20])
def test_prepare_workdirs_names_a_file_that_was_cut_short(prepared, name, keep):
    config, data, validation, workdir = prepared()
    path, text = workdir / name, (workdir / name).read_bytes()
    path.write_bytes(text[:keep])
    with pytest.raises(ConfigError) as raised:
        prepare_workdirs([(config, workdir)], data, validation)
    assert str(raised.value).startswith(f'{path} was cut short') and 'remove it' in str(raised.value)
    path.unlink()  # as the message says
    prepare_workdirs([(config, workdir)], data, validation)
    assert path.read_bytes() == text


def test_checksum_is_that_of_the_records(toy):
    def of(*indices, **changes):
        return checksum({'train': [dict(toy().records[index]) | changes for index in indices]})

    first = of(1, 2)
    assert first == of(1, 2) and len(first) == 64
    boxes = toy().records[1]['boxes'].copy()
    boxes[0, 2] += 1e-9
    others = [
        of(2, 1),
        of(1),
        of(1, 2, image=b''),
        of(1, boxes=boxes),
        of(1, file_name='b.png'),
        of(1, is_crowd=[False] * 3),
        checksum({'validation': [dict(toy().records[index]) for index in (1, 2)]}),
    ]
    assert len({first, *others}) == 8


def test_paths_of_flags_begin_at_home(run_script, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    others_of = {
        'predict': ('--images=a.png', '--output=~/output'),
        'evaluate': (),
        'export_weights': ('--output=~/output',),
    }
    for name, others in others_of.items():
        finished = run_script(name, '--workdir=~/nothing', *others)
        assert finished.code == 1 and f'error: {tmp_path}/nothing is not the workdir of a run' in finished.stderr
    assert not pathlib.Path('~').exists()


def test_scripts_define_paths_as_such():
    paths = '(workdir|output|data_dir|source|report|proposals|voc_root|photos|[a-z_]*_(annotations|images))'
    scripts = [*ROOT.glob('scripts/**/*.py'), *ROOT.glob('detzoo/cli/*.py')]
    assert len(scripts) > 20
    for script in scripts:
        assert not re.search(rf"DEFINE_string\(\s*'{paths}'", script.read_text()), script
