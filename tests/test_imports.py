"""Imports run one way: no circle of files, no circle of rooms, and the rooms stand in the order of ROOMS."""

import ast
import graphlib
import pathlib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The rule of the house. A room, a folder of detzoo/ or a file beside them, imports from rooms of lower floors and from itself;
# files on one floor are rooms of their own, and do not import each other.
FLOORS = (
    ('types', 'errors', 'files'),
    ('core',),
    ('backbones', 'visualize'),
    ('detectors', 'allowed'),
    ('segmenters',),  # above detectors, whose `network` they share; no detector is imported
    ('data', 'evaluation'),
    ('config',),
    ('run',),
    ('inference',),
    ('weights',),
    ('training',),  # above weights: a run may start from a classifier's file
    ('costs', 'parity'),
    ('sweeps',),
    ('report',),
    ('cli',),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY = {'core': {'types'}}  # rooms that import from no other rooms than these
IMPORTED_BY = {'parity': {'cli'}, 'cli': set()}  # rooms that no other rooms than these import from


class Import(NamedTuple):
    """A line of a module that imports another one.

    source, target: modules, such as 'detzoo.core.boxes'.
    line: its number in the file of the source.
    """

    source: str
    target: str
    line: int


def room(module):
    """The folder or file of detzoo/ that a module lies in; the package itself is no room."""
    return module.split('.')[1] if '.' in module else None


def module_files(root):
    """{module: file} of the package."""
    found = {}
    for path in sorted((root / 'detzoo').rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def read_imports(modules):
    """Lists the imports of the package's own modules, also those inside functions; those of detzoo/__init__.py are left out.

    It imports two functions when they are first used, so that `detzoo.load` works; no module uses them from there.
    """
    found = []
    for source, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text('utf-8'))) if source != 'detzoo' else ():
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{path}, line {node.lineno}: relative import: write the whole name'
                names = [f'{node.module}.{alias.name}' for alias in node.names]
                targets = [name if name in modules else node.module for name in names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            found += [Import(source, target, node.lineno) for target in targets if target.split('.')[0] == 'detzoo']
    return sorted(set(found))


def circle(pairs):
    """Finds a circle among pairs (importer, imported): the names along it; None where there is none."""
    graph = {}
    for importer, imported in pairs:
        if importer != imported:
            graph.setdefault(importer, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return None


def broken_rules(imports):
    """Lists the imports that the rule forbids."""
    problems = []
    for source, target, line in imports:
        importer, imported = room(source), room(target)
        if imported is None or importer == imported:
            continue
        reason = None
        if FLOOR_OF[imported] >= FLOOR_OF[importer]:
            reason = f'{imported} is not below {importer}'
        elif importer in ONLY and imported not in ONLY[importer]:
            reason = f'{importer} imports from {", ".join(ONLY[importer])} alone'
        elif imported in IMPORTED_BY and importer not in IMPORTED_BY[imported]:
            reason = f'{imported} is imported from {", ".join(IMPORTED_BY[imported]) or "nowhere"}'
        elif importer == 'training' and target.startswith('detzoo.detectors.'):
            reason = 'training names no detector: take make_detector from detzoo.detectors'
        if reason:
            problems.append(f'{source}, line {line}, imports {target}: {reason}')
    return problems


@pytest.fixture(scope='module')
def imports():
    found = read_imports(module_files(ROOT))
    assert len(found) > 300
    return found


def test_every_room_has_a_floor():
    rooms = {room(module) for module in module_files(ROOT)} - {None}
    assert rooms == set(FLOOR_OF)


def test_no_circle_of_files(imports):
    assert circle((each.source, each.target) for each in imports) is None


def test_no_circle_of_rooms(imports):
    pairs = [(room(each.source), room(each.target)) for each in imports if room(each.target)]
    assert circle(pairs) is None


def test_imports_go_down(imports):
    assert broken_rules(imports) == []


def test_only_version_and_docstring_are_taken_from_the_package_itself(imports):
    # `import detzoo` gives its users `load` and `train_and_evaluate`; a module that used them would hide what it imports.
    for source in {each.source for each in imports if each.target == 'detzoo'}:
        tree = ast.parse(module_files(ROOT)[source].read_text('utf-8'))
        used = [
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'detzoo'
        ]
        assert set(used) <= {'__doc__', '__version__'}, source


@pytest.mark.parametrize(
    'folder, line, words',
    [
        ('core', 'from detzoo.training import loop', 'training is not below core'),
        ('data', 'from detzoo.evaluation.coco import coco_metrics', 'evaluation is not below data'),
        ('core', 'from detzoo.errors import DataError', 'core imports from types alone'),
        ('report', 'def f():\n    import detzoo.parity.compare', 'parity is imported from cli'),
        ('training', 'from detzoo.detectors.ssd import make', 'take make_detector from detzoo.detectors'),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, folder, line, words):
    path = tmp_path / 'detzoo' / folder / 'new.py'
    path.parent.mkdir(parents=True)
    path.write_text(line)
    (problem,) = broken_rules(read_imports(module_files(tmp_path)))
    assert problem.startswith(f'detzoo.{folder}.new, line ') and problem.endswith(words)


def test_a_circle_is_found():
    assert circle([('a', 'b'), ('b', 'c'), ('b', 'b')]) is None
    assert set(circle([('a', 'b'), ('b', 'c'), ('c', 'a')])) == {'a', 'b', 'c'}
