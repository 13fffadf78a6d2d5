"""The command `detzoo`: help without JAX, names of commands and configs, and one line about what is wrong."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from detzoo.cli import main

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob('scripts/*.py'))


@pytest.fixture
def detzoo(monkeypatch, capsys):
    """A function: arguments of `detzoo` that end before a command runs -> (exit code, stdout, stderr or the message)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['detzoo', *arguments])
        try:
            main.main()
            code, message = 0, ''
        except SystemExit as end:
            code, message = (1, end.code) if isinstance(end.code, str) else (end.code or 0, '')
        output = capsys.readouterr()
        return code, output.out, output.err + message

    return run


def test_detzoo_lists_its_commands_with_one_line_each(detzoo):
    code, text, _ = detzoo('--help')
    listed = dict(re.findall(r'^  (\w+) +(\S.*)$', text, re.MULTILINE))
    assert code == 0 and list(listed) == list(main.COMMANDS)
    assert listed['evaluate'] == 'Evaluates a checkpoint on the validation split.'
    assert all(line.endswith('.') and len(line) < 90 for line in listed.values())
    assert detzoo()[:2] == (0, text)


def test_detzoo_names_the_nearest_command(detzoo):
    code, _, message = detzoo('trian', '--config=retinanet_shapes')
    assert code == 1 and message.startswith("error: there is no command 'trian': the nearest is 'train'")


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_commands_that_explain_themselves(run_script, script):
    command = re.search(r"run\('(\w+)'\)", script.read_text())[1]
    assert f'`python scripts/{script.name}` is `detzoo {command}`' in script.read_text()
    finished = run_script(script.stem, '--help')
    assert finished.code == 0 and f'\n    detzoo {command} --' in finished.stdout, finished.stderr
    folder = ROOT / 'detzoo' / 'cli'
    source = (folder / f'{main.COMMANDS[command]}.py').read_text()
    if 'define_hosts()' in source:
        source += (folder / 'host_flags.py').read_text()
    defined = re.findall(r"(?:DEFINE_\w+|define_path)\(\s*'(\w+)'", source)
    defined += [name for name in ('config', 'checkpoint') if f'define_{name}' in source]
    listed = re.findall(r'^  --(?:\[no\])?(\w+) ', finished.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(defined)  # and none of absl's own
    entries = re.split(r'\n  (?=--)', finished.stdout.partition('\nFlags:')[2])[1:]
    required = [entry.rstrip().endswith('(required)') for entry in entries]
    assert len(entries) == len(listed) and required[0] and required == sorted(required, reverse=True)


def test_commands_are_all_scripts_too():
    assert set(main.COMMANDS) == {re.search(r"run\('(\w+)'\)", script.read_text())[1] for script in SCRIPTS}


def test_help_imports_no_jax():
    code = (
        'import importlib, sys; from absl import flags; from detzoo.cli import main; before = set(flags.FLAGS)\n'
        'for module in main.COMMANDS.values():\n'
        "    main.help_of(importlib.import_module(f'detzoo.cli.{module}'))\n"
        '    [delattr(flags.FLAGS, flag) for flag in set(flags.FLAGS) - before]\n'
        "print(sorted({'jax', 'flax', 'grain', 'cv2', 'tensorflow_datasets', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, '-c', code]
    finished = subprocess.run(command, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert finished.stdout == '[]\n', finished.stderr


def place(address, num_processes, process_id):
    """The flags that say which of several processes one is."""
    return f'--coordinator_address={address}', f'--num_processes={num_processes}', f'--process_id={process_id}'


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['train', '--workdir=w'], 'detzoo train needs --config .see detzoo train --help'),
        (['evaluate', '--workdri=w'], "'workdri'. Did you mean: workdir"),
        (['evaluate', '--workdir=w', 'a.png'], "unexpected argument 'a.png': arguments have the form --FLAG=VALUE"),
        (['sweep', '--experiment=e', '--workdir=w', '--setps=5'], "unexpected argument '--setps=5'"),
        (
            ['train', '--config=retinanet_shape', '--workdir=w'],
            "no config 'retinanet_shape'.*nearest is 'retinanet_shapes'",
        ),
        (['train', '--config=ssd_shapes:c4', '--workdir=w'], "ssd_shapes.py has no variant 'c4'"),
        (
            ['evaluate', '--workdir=w', '--process_id=1'],
            'go together: --coordinator_address and --num_processes must be',
        ),
        (['evaluate', '--workdir=w', *place('one', 2, 1)], "is 'one': write HOST:PORT"),
        (['evaluate', '--workdir=w', *place('one:1', 2, 2)], 'no process 2 of 2: their numbers are 0 to 1'),
        (['export', '--output=w'], 'give either --workdir'),
        (['export', '--output=w', '--workdir=w', '--name=shapes'], 'give either --workdir'),
    ],
)
def test_commands_say_in_one_line_what_is_wrong(run_script, arguments, words):
    names = {'export': 'export_weights'}
    finished = run_script(names.get(arguments[0], arguments[0]), *arguments[1:])
    assert (
        finished.code == 1 and re.search(f'^error: .*{words}', finished.stderr) and 'Traceback' not in finished.stderr
    )


@pytest.mark.parametrize('error', main.MENDABLE)
def test_one_line_errors_end_with_the_message(error):
    with pytest.raises(SystemExit, match='^error: take another$'), main.one_line_errors():
        raise error('take another')


def test_one_line_errors_leave_other_errors_alone():
    with pytest.raises(ValueError), main.one_line_errors():
        raise ValueError('a fault of detzoo')
    with pytest.raises(SystemExit), main.one_line_errors([ValueError]):
        raise ValueError('a damaged file')


def test_train_finds_configs_by_name_from_anywhere(run_script, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = ['--config.data.name=birds', f'--config.data.data_dir={tmp_path}', '--config.model.rpn.samples=8']
    finished = run_script('train', '--config=mask_rcnn_shapes:c4', '--workdir=w', *data)
    assert finished.code == 1 and "error: no data set 'birds'" in finished.stderr


def test_train_shows_where_a_config_fails(run_script, tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text("def get_config():\n    return int('one')\n")
    finished = run_script('train', f'--config={path}', '--workdir=w')
    assert finished.code == 1 and "return int('one')" in finished.stderr
    assert finished.stderr.splitlines()[-1] == f'RuntimeError: {path} is a config with an error'


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc is of Linux')
def test_read_flags_names_the_process_without_a_space(run_script):
    before = pathlib.Path('/proc/self/comm').read_text()
    run_script('train', '--workdir=w')
    assert pathlib.Path('/proc/self/comm').read_text() == 'detzoo-train\n'
    pathlib.Path('/proc/self/comm').write_text(before)
