"""Files and functions stay short enough to be read in one go."""

import ast
import itertools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ('detzoo', 'scripts', 'configs', 'experiments', 'tests')
FILE, FUNCTION = 500, 80  # lines


def function_lines(node, path):
    """The lines of a function. A model's `make` lists all its arguments twice; its signature and docstring do not count."""
    if node.name == 'make' and path.parent.name in ('detectors', 'segmenters'):
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        return node.end_lineno - body[0].lineno + 1 if body else 0
    return node.end_lineno - node.lineno + 1


def too_long(path):
    """Lists the file, if it is too long, and its functions that are, nested ones and methods too."""
    text = path.read_text('utf-8')
    lines = text.splitlines()
    problems = [f'{path} has {len(lines)} lines, at most {FILE} are allowed'] if len(lines) > FILE else []
    # Parsing takes most of the time. A long function needs a long way between the definitions of its file.
    starts = [i for i, line in enumerate(lines) if line.startswith(('def ', 'class ', '@'))]
    if all(end - start <= FUNCTION for start, end in itertools.pairwise([*starts, len(lines)])):
        return problems
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (count := function_lines(node, path)) > FUNCTION:
            problems.append(
                f'{path}, line {node.lineno}: {node.name} has {count} lines, at most {FUNCTION} are allowed'
            )
    return problems


def test_no_file_and_no_function_is_too_long():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob('*.py'))]
    assert len(paths) > 200
    assert [problem for path in paths for problem in too_long(path)] == []


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('a.py', 'x = 1\n' * 501, ['has 501 lines, at most 500']),
        ('a.py', 'x = 1\n' * 500, []),
        ('a.py', 'def f():\n' + '    x = 1\n' * 80, ['line 1: f has 81 lines, at most 80']),
        ('a.py', 'def f():\n' + '    x = 1\n' * 79, []),
        ('a.py', 'class A:\n    def f(self):\n' + '        x = 1\n' * 80, ['line 2: f has 81 lines']),
        (
            'a.py',
            'def make(\n' + '    *,\n' + '    x,\n    y,\n):\n' + '    x = 1\n' * 76,
            ['line 1: make has 81 lines'],
        ),
        ('detectors/a.py', 'def make():\n    """Makes.\n\n    x.\n    """\n' + '    x = 1\n' * 80, []),
        ('detectors/a.py', 'def make():\n    """Makes."""\n' + '    x = 1\n' * 81, ['line 1: make has 81 lines']),
        ('detectors/a.py', 'def f():\n    """Makes."""\n' + '    x = 1\n' * 79, ['line 1: f has 81 lines']),
    ],
)
def test_what_is_too_long_is_found(tmp_path, name, text, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    found = too_long(path)
    assert len(found) == len(words) and all(word in problem for word, problem in zip(words, found))
