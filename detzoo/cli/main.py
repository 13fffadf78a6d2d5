"""The command `detzoo`: finds a command, explains it, and runs it.

    detzoo COMMAND --flag=value ...

The files of scripts/ are the same commands. A command is a module of this folder. Its docstring is its help. Importing it
defines its flags, and imports nothing that takes long, so that help comes at once. It has

    main(settings)      does the work; `settings` are the KEY=VALUE of --config.KEY=VALUE, for commands of HANDS_ON
    ERRORS              optional: exceptions whose message is all that a user needs, besides those of MENDABLE
    before_flags(argv)  optional: what has to happen before flags are read
"""

import ast
import contextlib
import functools
import importlib
import pathlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import app, command_name, flags

import detzoo
from detzoo.errors import ConfigError, DataError, FirstProcessError, InUseError, RecompilationError, nearest
from detzoo.run.memory import keep_memory

# The module of each command.
COMMANDS = {
    'train': 'train',
    'evaluate': 'evaluate',
    'predict': 'predict',
    'prepare': 'prepare',
    'browse': 'browse',
    'anchors': 'anchors',
    'proposals': 'proposals',
    'sweep': 'sweep',
    'report': 'report',
    'benchmark': 'benchmark',
    'import': 'import_weights',
    'export': 'export',
}
HANDS_ON = ('sweep',)  # commands whose --config.KEY=VALUE are for the trainings that they start
MENDABLE = (ConfigError, DataError, FirstProcessError, FloatingPointError, InUseError, OSError, RecompilationError)
WIDTH = 100  # columns of help


def main() -> None:
    """Runs `detzoo COMMAND --flag=value ...`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ('--help', '-h', 'help'):
        print(overview())
    elif arguments[0] == '--version':
        print(f'detzoo {detzoo.__version__}')
    elif arguments[0] not in COMMANDS:
        sys.exit(
            f'error: there is no command {arguments[0]!r}: the nearest is {nearest(arguments[0], COMMANDS)!r}; '
            'detzoo --help lists them all'
        )
    else:
        sys.argv = [f'detzoo {arguments[0]}', *arguments[1:]]
        run(arguments[0])


def run(command: str) -> None:
    """Runs a command with the flags in sys.argv, and ends the process.

    Args:
        command: a key of COMMANDS.
    """
    module = importlib.import_module(f'detzoo.cli.{COMMANDS[command]}')
    if {'--help', '-h'} & set(sys.argv[1:]):
        print(help_of(module))
        sys.exit()
    keep_memory()
    if hasattr(module, 'before_flags'):
        module.before_flags(sys.argv)
    with one_line_errors(getattr(module, 'ERRORS', ())):
        app.run(module.main, flags_parser=functools.partial(read_flags, command))


@contextlib.contextmanager
def one_line_errors(more: Sequence[type[Exception]] = ()) -> Iterator[None]:
    """Ends the process with one line on stderr, and no traceback, where a user can mend what is wrong."""
    try:
        yield
    except (*MENDABLE, *more) as error:
        sys.exit(f'error: {error}')


def read_flags(command: str, argv: Sequence[str]) -> list[str]:
    """Sets the flags of a command, and returns the settings that it hands on; see the top of this file."""
    # absl has named the process 'detzoo train'. SLURM (proctrack/linuxproc) sends no signals to a name with a space.
    command_name.set_kernel_process_name(f'detzoo-{command}')
    hands_on = command in HANDS_ON
    try:
        rest = flags.FLAGS(argv, known_only=hands_on)[1:]
    except flags.Error as error:
        missing = [f'--{flag.name}' for flag in flags_of(COMMANDS[command]) if is_required(flag) and flag.value is None]
        about_missing = str(error).endswith('must have a value other than None.')
        what = f'detzoo {command} needs {" and ".join(missing)}' if about_missing else error
        if isinstance(error.__context__, ConfigError):  # its message says which config or key, absl's says --config
            what = error.__context__
        sys.exit(f'error: {what} (see detzoo {command} --help)')
    settings = [argument.removeprefix('--config.') for argument in rest if argument.startswith('--config.')]
    others = [argument for argument in rest if not (hands_on and argument.startswith('--config.'))]
    if others:
        sys.exit(
            f'error: unexpected argument {others[0]!r}: arguments have the form --FLAG=VALUE, with quotes around a value '
            f'that has spaces or * (see detzoo {command} --help)'
        )
    return settings


def overview() -> str:
    """Lists the commands, each with the first line of its docstring."""
    lines = [detzoo.__doc__, '', 'Usage: detzoo COMMAND --FLAG=VALUE ...', '', 'Commands:']
    for command, module in COMMANDS.items():
        source = pathlib.Path(__file__).with_name(f'{module}.py').read_text(encoding='utf-8')
        lines.append(f'  {command:11}{ast.get_docstring(ast.parse(source)).splitlines()[0]}')
    lines += ['', 'detzoo COMMAND --help explains a command and lists its flags.']
    return '\n'.join(lines)


def help_of(module: ModuleType) -> str:
    """Writes the docstring of a command, and its flags: first those that it needs."""
    listed = sorted(flags_of(module.__name__), key=lambda flag: not is_required(flag))
    width = max(len(name_of(flag)) for flag in listed) + 4
    rows = [
        textwrap.fill(
            describe(flag), WIDTH, initial_indent=f'  {name_of(flag)}'.ljust(width), subsequent_indent=' ' * width
        )
        for flag in listed
    ]
    return '\n'.join([module.__doc__.rstrip(), '', 'Flags:', *rows])


def flags_of(module: str) -> list[flags.Flag]:
    """Lists the flags that a module of this folder defines, in its order."""
    return flags.FLAGS.get_key_flags_for_module(f'detzoo.cli.{module.rpartition(".")[2]}')


def is_required(flag: flags.Flag) -> bool:
    """Whether a command does nothing without the flag."""
    return flag.default is None and not all(validator.checker(None) for validator in flag.validators)


def name_of(flag: flags.Flag) -> str:
    """Writes the name of a flag as it is typed."""
    return f'--[no]{flag.name}' if flag.boolean else f'--{flag.name}'


def describe(flag: flags.Flag) -> str:
    """Writes what a flag means, and its default."""
    if is_required(flag):
        note = ' (required)'
    else:
        note = '' if flag.default in (None, False, []) else f' (default: {flag.default_as_str.strip(chr(39))})'
    return ' '.join(flag.help.split()) + note
