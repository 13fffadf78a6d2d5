"""The documents: each command, flag, config, experiment, variant, config key, file, extra and link that they name exists.

Text is looked at where it is code: in Markdown in fenced blocks and between backticks, in docstrings in indented lines and
between backticks. What is in capitals (DIR, configs/NAME.py), or begins with `my`, stands for something of the reader's.
"""

import ast
import functools
import importlib
import itertools
import json
import pathlib
import re
import runpy
import shlex
import sys
from typing import NamedTuple

import pytest
from absl import flags

import detzoo
from detzoo.cli.main import COMMANDS, flags_of, is_required
from detzoo.config import find_file, flatten, load_config, own_folder
from detzoo.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
MARKDOWN = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *ROOT.glob('docs/*.md'), *ROOT.glob('scripts/dev/*.md')]
SOURCES = [
    path
    for folder in ('detzoo/cli', 'configs', 'experiments', 'scripts', 'scripts/dev')
    for path in sorted(ROOT.glob(f'{folder}/*.py'))
]
DOCUMENTS = [*MARKDOWN, *SOURCES, *sorted(ROOT.glob('experiments/*.ipynb')), *sorted(ROOT.glob('scripts/*.sh'))]
SETUP = (ROOT / 'setup.py').read_text()
FOLDERS = 'detzoo|configs|experiments|scripts|docs|tests'
KEY = re.compile(r'(data|model|training|optimizer|evaluation)(\.(?!jsonl?$)\w+)+')
NOT_HERE = ('utils.py',)  # files that are named because they are not wanted
OURS = re.compile(r'[A-Z]{2,}|^my|^\.\.\.|\$')  # something of the reader's


class Fragment(NamedTuple):
    """A piece of code in a document: a line of a block, or what stands between backticks."""

    text: str
    whole: bool  # a line of a block: a command in it is complete


def markdown_fragments(text):
    """The fragments of a Markdown text; blocks of Python are left out."""
    fragments = []
    for language, block in re.findall(r'^ *```(\w*)\n(.*?)^ *```', text, re.MULTILINE | re.DOTALL):
        if language != 'python':
            fragments += [Fragment(line.strip(), True) for line in block.replace('\\\n', ' ').splitlines()]
    prose = re.sub(r'^ *```.*?^ *```', '', text, flags=re.MULTILINE | re.DOTALL)
    return fragments + [Fragment(' '.join(span.split()), False) for span in re.findall(r'`([^`]+)`', prose)]


def docstring_fragments(text):
    """The fragments of a docstring."""
    lines = text.replace('\\\n', ' ').splitlines()
    spans = re.findall(r'`([^`]+)`', text)
    return [Fragment(line.strip(), True) for line in lines if line.startswith('  ')] + [
        Fragment(' '.join(span.split()), False) for span in spans
    ]


def fragments_of(path):
    """The fragments of a document."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        return markdown_fragments(text)
    if path.suffix == '.py':
        return docstring_fragments(ast.get_docstring(ast.parse(text)) or '')
    if path.suffix == '.sh':
        return docstring_fragments('\n'.join(line[2:] for line in text.splitlines() if line.startswith('# ')))
    cells = json.loads(text)['cells']
    return [
        each
        for cell in cells
        if cell['cell_type'] == 'markdown'
        for each in markdown_fragments(''.join(cell['source']))
    ]


@pytest.fixture(scope='module')
def command_flags():
    """{command: {flag: absl's flag}}; each module of a command is imported once more, and its flags are taken away again."""
    found, before = {}, set(flags.FLAGS)
    for command, module in COMMANDS.items():
        sys.modules.pop(f'detzoo.cli.{module}', None)
        importlib.import_module(f'detzoo.cli.{module}')
        found[command] = {flag.name: flag for flag in flags_of(module)}
        del sys.modules[f'detzoo.cli.{module}']
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
    return found


@functools.cache
def other_flags(path):
    """The flags that a script, or the tests, define for themselves, by their text."""
    pattern = r"(?:DEFINE_\w+|define_path)\(\s*'(\w+)'|(?:add_argument\(\s*'|addoption\('|^ +)--(\w+)"
    return {name for pair in re.findall(pattern, path.read_text(), re.MULTILINE) for name in pair if name}


def keys_of(config):
    """The keys and the groups of keys of a config."""
    keys = [key for key, _ in flatten(config)]
    return set(keys) | {key[: dot.start()] for key in keys for dot in re.finditer(r'\.', key)}


@functools.cache
def all_keys():
    """The keys of all configs of detzoo."""
    configs = [named_config(path.stem)[0] for path in own_folder('configs').glob('*.py')]
    return set().union(*(keys_of(config) for config in configs if config))


@functools.cache
def named_config(name):
    """A config by its name or path, None where it takes something of the reader's; and what is wrong with the name."""
    path, _, argument = name.partition(':')
    if OURS.search(path.rpartition('/')[2]):
        return None, []
    try:
        find_file('configs', name)
        return (None if '/' in argument or OURS.search(argument) else load_config(name)), []
    except ConfigError as error:
        return None, [f'{name}: {error}']


@functools.cache
def wrong_experiment(name):
    """What is wrong with the name or path of an experiment, and its argument."""
    path, _, argument = name.partition(':')
    if OURS.search(path.rpartition('/')[2]):
        return []
    try:
        file, argument = find_file('experiments', name)
        runpy.run_path(str(file))['get_sweep'](argument if not OURS.search(argument) else None)
    except ValueError as error:
        return [f'{name}: {error}']
    return []


def commands_in(fragment):
    """The commands of a fragment: (command of detzoo, or path of a script, its arguments)."""
    try:
        words = shlex.split(fragment.text, comments=True)
    except ValueError:  # an apostrophe
        words = fragment.text.split()
    for i, word in enumerate(words):
        folder, _, name = word.rpartition('/')
        rest = list(itertools.takewhile(lambda w: w not in ('&&', '||', '|', ';', '>'), words[i + 1 :]))
        if name == 'detzoo' and (not folder or folder.endswith('bin')) and rest and re.fullmatch('[a-z]+', rest[0]):
            yield rest[0], rest[1:]
        elif name.endswith(('.py', '.sh')) and not OURS.search(name):
            path = ROOT / (word if folder else f'scripts/{name}')
            if folder.startswith('scripts') or path.exists():
                yield path, rest


def wrong_command(program, arguments, whole, command_flags):
    """What is wrong with a command."""
    if isinstance(program, pathlib.Path):
        if not program.exists():
            return [f'there is no {program.relative_to(ROOT)}']
        command = re.search(r"run\('(\w+)'\)", program.read_text())
        if not command:
            return wrong_flags(arguments, other_flags(program) | other_flags(ROOT / 'tests' / 'conftest.py'))
        program = command[1]
    if program not in command_flags:
        return [f'there is no command detzoo {program}']
    known = command_flags[program]
    values = dict(
        argument.removeprefix('--').partition('=')[::2] for argument in arguments if argument.startswith('--')
    )
    config, wrong = None, []
    if 'config' in known and 'config' in values:
        config, wrong = named_config(values['config'])
    if 'experiment' in known and 'experiment' in values:
        wrong = wrong_experiment(values['experiment'])
    wrong = list(wrong)
    with_keys = 'config' in known or program == 'sweep'
    wrong += wrong_flags(arguments, set(known), (keys_of(config) if config else all_keys()) if with_keys else set())
    for name, value in values.items():
        if name in known and value and name != 'config' and not OURS.search(value):
            try:
                known[name].parser.parse(value)
            except ValueError as error:
                wrong.append(f'--{name}={value}: {error}')
    if whole and '...' not in arguments:
        needed = [] if 'replay' in values else [name for name in known if is_required(known[name])]
        wrong += [f'{program} needs --{name}' for name in needed if name not in values]
        wrong += [f'{program} takes no {word!r}' for word in arguments if not word.startswith('--')]
    return wrong


def wrong_flags(arguments, known, keys=None):
    """Which flags among the arguments there are not; `keys` are those of the config, by default of all configs."""
    keys, wrong = all_keys() if keys is None else keys, []
    for argument in arguments:
        if argument.startswith('--config.'):
            key = argument.removeprefix('--config.').partition('=')[0]
            if key not in keys and not OURS.search(key):
                wrong.append(f'there is no config key {key}')
        elif argument.startswith('--'):
            name = argument.removeprefix('--').partition('=')[0]
            if not {name, name.removeprefix('no')} & known:
                wrong.append(f'there is no flag --{name}')
    return wrong


def wrong_name(text):
    """What is wrong with a file, a variant or a config key that stands alone between backticks."""
    wrong = []
    path, _, variant = text.partition(':')
    if text.startswith('-') or path in NOT_HERE:
        return []
    if re.fullmatch(rf'(?:{FOLDERS})/[\w./*-]*', path):
        if not list(ROOT.glob(re.sub('[A-Z]{2,}', '*', path.rstrip('/')))):
            wrong.append(f'there is no {path}')
    elif re.fullmatch(r'\w+\.py', path) and not OURS.search(path):
        if not any(list(ROOT.glob(f'{folder}/**/{path}')) for folder in FOLDERS.split('|')):
            wrong.append(f'there is no {path}')
    key = KEY.fullmatch(text.partition('=')[0].strip())
    if key and key[0] not in all_keys() and not OURS.search(key[0]):
        if not (
            ROOT / 'detzoo' / f'{"/".join(key[0].split(".")[:2])}.py'
        ).exists():  # a function like data.pipeline.shard
            wrong.append(f'there is no config key {key[0]}')
    stem = path.rpartition('/')[2].removesuffix('.py')
    if variant and not wrong:
        wrong += named_config(text)[1] if (own_folder('configs') / f'{stem}.py').exists() else []
        wrong += wrong_experiment(text) if (own_folder('experiments') / f'{stem}.py').exists() else []
    return wrong


def wrong_in(fragments, command_flags):
    """What is wrong in the fragments of a document."""
    everything = set().union(*command_flags.values(), {'help', 'version'})
    for path in [*ROOT.glob('scripts/dev/*.py'), *ROOT.glob('scripts/*.sh'), ROOT / 'tests' / 'conftest.py']:
        everything |= other_flags(path)
    wrong = []
    for fragment in fragments:
        for program, arguments in commands_in(fragment):
            wrong += wrong_command(program, arguments, fragment.whole, command_flags)
        if fragment.text.startswith('--'):
            wrong += wrong_flags(fragment.text.split(), everything)
        for word in fragment.text.split() if fragment.whole else [fragment.text]:
            wrong += wrong_name(word)
        for extras in re.findall(r'(?:detzoo|\.)\[([\w,]+)\]', fragment.text):
            wrong += [f'there is no extra {extra}' for extra in extras.split(',') if f"'{extra}': " not in SETUP]
    return sorted(set(wrong))


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_names_what_there_is(path, command_flags):
    assert wrong_in(fragments_of(path), command_flags) == []


def wrong_python(source):
    """What is wrong with the names of detzoo in a piece of Python: what it imports, and the configs that it loads."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.partition('.')[0] == 'detzoo':
            module = importlib.import_module(node.module)
            wrong += [f'there is no {node.module}.{name.name}' for name in node.names if not hasattr(module, name.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'detzoo':
            wrong += [] if hasattr(detzoo, node.attr) else [f'there is no detzoo.{node.attr}']
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'load_config':
            wrong += named_config(ast.literal_eval(node.args[0]))[1]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            wrong += wrong_name(node.value)
    return wrong


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_a_document_names_what_there_is(path):
    blocks = re.findall(r'^```python\n(.*?)^```', path.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    assert [wrong for block in blocks for wrong in wrong_python(block)] == []


@pytest.mark.parametrize(
    'source, words',
    [
        ('from detzoo.config import load_confg', 'no detzoo.config.load_confg'),
        ('detzoo.laod("runs/a")', 'no detzoo.laod'),
        ('load_config("retinanet_shape")', "no config 'retinanet_shape'"),
        ('load_config("ssd_shapes", {"training.stesp": 5})', 'no config key training.stesp'),
    ],
)
def test_what_is_wrong_in_python_is_found(source, words):
    (wrong,) = wrong_python(source)
    assert words in wrong


@pytest.mark.parametrize('path', sorted(ROOT.glob('experiments/*.ipynb')), ids=lambda path: path.stem)
def test_notebook_code_names_what_there_is(path):
    wrong = []
    for cell in json.loads(path.read_text())['cells']:
        if cell['cell_type'] == 'code':
            for node in ast.walk(ast.parse(''.join(cell['source']))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    wrong += wrong_name(node.value)
    assert wrong == []


def headings(path):
    """The anchors of a Markdown file, as GitHub makes them of its headings."""
    text = re.sub(r'^ *```.*?^ *```', '', path.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ +(.+?) *$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def wrong_links(text, folder):
    """The relative links of a Markdown text that lead nowhere, seen from a folder."""
    wrong = []
    for link in re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', text):
        target, _, anchor = ''.join(link).partition('#')
        if re.match(r'[a-z]+:', target):
            continue
        path = folder / target
        if not path.exists() or (anchor and path.suffix == '.md' and anchor not in headings(path)):
            wrong.append(''.join(link))
    return wrong


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_lead_somewhere(path):
    text = path.read_text(encoding='utf-8')
    assert wrong_links(re.sub(r'\]\(#', f']({path.name}#', text), path.parent) == []


@pytest.mark.parametrize(
    'text, words',
    [
        ('```bash\ndetzoo trian --workdir=w\n```', 'no command detzoo trian'),
        ('```bash\npython scripts/trian.py --workdir=w\n```', 'no scripts/trian.py'),
        ('```bash\ndetzoo evaluate --workdir=w --vocc\n```', 'no flag --vocc'),
        ('```bash\ndetzoo evaluate --voc\n```', 'evaluate needs --workdir'),
        ('```bash\ndetzoo evaluate --workdir=w a.png\n```', "evaluate takes no 'a.png'"),
        ('```bash\ndetzoo train --config=retinanet_shape \\\n    --workdir=w\n```', 'no config .retinanet_shape'),
        ('```bash\ndetzoo train --config=yolo_shapes:v4 --workdir=w\n```', 'has the variants v1, v2, v3'),
        (
            '```bash\ndetzoo train --config=ssd_shapes --workdir=w --config.model.depht=5\n```',
            'no config key model.depht',
        ),
        (
            '```bash\ndetzoo train --config=ssd_shapes --workdir=w --config.model.rpn.samples=5\n```',
            'no config key model.rpn',
        ),
        ('```bash\ndetzoo sweep --experiment=focal_los --workdir=w\n```', 'no experiment .focal_los'),
        ('```bash\ndetzoo sweep --experiment=speed_accuracy:voc --workdir=w\n```', 'variants shapes'),
        ('```bash\nbash scripts/quickstart.sh --detector=ssd\n```', 'no flag --detector'),
        ('```bash\npython scripts/dev/check_parity.py --modle=x\n```', 'no flag --modle'),
        ("```bash\npip install 'detzoo[plot]'\n```", 'no extra plot'),
        ('```text\ndetzoo/cores/    pure functions\n```', 'no detzoo/cores'),
        ('With `--on_bad_recrod=skip`.', 'no flag --on_bad_recrod'),
        ('With `detzoo export --workdir=w --format=onnx`.', '--format=onnx'),
        ('With `training.num_replica`.', 'no config key training.num_replica'),
        ('With `--config.data.mask_sizes=5`.', 'no config key data.mask_sizes'),
        ('See `detzoo/core/nmss.py`.', 'no detzoo/core/nmss.py'),
        ('See `retinanett.py`.', 'no retinanett.py'),
        ('See `yolo_shapes.py:v4`.', 'has the variants v1, v2, v3'),
        ('See `configs/*_imagenet.py`.', r'no configs/\*_imagenet.py'),
    ],
)
def test_what_is_wrong_in_a_document_is_found(command_flags, text, words):
    wrong = wrong_in(markdown_fragments(text), command_flags)
    assert len(wrong) == 1 and re.search(words, wrong[0]), wrong


def test_links_that_lead_nowhere_are_found():
    text = 'See [a](README.md#use), [b](docs/nothing.md), [c](README.md#nothing), <img src="docs/x.jpg"> [d](https://x.org)'
    assert wrong_links(text, ROOT) == ['docs/nothing.md', 'README.md#nothing', 'docs/x.jpg']


def test_ruff_of_the_hooks_is_that_of_the_constraints():
    (version,) = re.findall(r'^ruff==(\S+)', (ROOT / 'constraints.txt').read_text(), re.MULTILINE)
    assert set(re.findall(r'ruff==([\d.]+)', (ROOT / '.pre-commit-config.yaml').read_text())) == {version}
