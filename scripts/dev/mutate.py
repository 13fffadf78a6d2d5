"""Counts how many small faults the tests notice: each fault is put into a copy of the code, and the tests for it are run.

    python scripts/dev/mutate.py --results=/tmp/mutations.jsonl
    python scripts/dev/mutate.py --results=/tmp/mutations.jsonl --again   # retries faults not noticed, after a test was written
    python scripts/dev/mutate.py --list                                   # shows the faults, and runs nothing

    the files of TESTS -> all faults that they could have (`Mutations`) -> a seeded sample, spread evenly over folders and kinds
      -> one fault after the other, in a copy of the repository: make the fault, run its tests until one fails, restore the file;
         the test that failed must pass now
      -> a line of JSON for each fault; faults that the file already has are not run again

Faults are in logic or arithmetic: a comparison, a sign, a constant, an axis, a limit, a mask, a weight, a gradient or a
sum over devices that is lost. Strings, error messages and their conditions, annotations, default values of arguments (data,
not logic) and the layers of networks (whose parameters are counted, and compared with their peers') are left alone.
`mutations.md` lists the results of a run, and says why some faults that no test noticed are left: most have no visible effect.

Tests run in a fork of one process that has imported everything but detzoo. Tests named after the function with the fault
come first; `TESTS` says which files come next.
"""

import argparse
import ast
import collections
import copy
import importlib
import json
import os
import pathlib
import pkgutil
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import pytest
from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 600  # seconds after which a run of pytest is ended; its fault counts as noticed, since it loops

# For each file the runs of pytest, cheap ones first; a run stops at the first test that fails. Only a file's own tests are run:
# the tests of all code that uses it take minutes, and a function's own tests should notice its faults.
STEP = 'training/test_step.py -k "not kind_of_detector"'
RUNS = 'training/test_loop.py training/test_replicas.py -k "not script and not processes"'
TESTS = {
    'detzoo/core/anchors.py': ['core/test_anchors.py'],
    'detzoo/core/box_coding.py': ['core/test_box_coding.py'],
    'detzoo/core/boxes.py': ['core/test_boxes.py', 'core/test_nms.py core/test_matching.py'],
    'detzoo/core/images.py': ['core/test_images.py'],
    'detzoo/core/losses.py': ['core/test_losses.py'],
    'detzoo/core/masks.py': ['core/test_masks.py detectors/test_mask_rcnn.py'],
    'detzoo/core/matching.py': ['core/test_matching.py core/test_sampling.py'],
    'detzoo/core/nms.py': ['core/test_nms.py core/test_postprocess.py'],
    'detzoo/core/postprocess.py': ['core/test_postprocess.py'],
    'detzoo/core/roi_cells.py': ['core/test_roi_features.py -k pool'],
    'detzoo/core/roi_features.py': ['core/test_assign_levels.py core/test_roi_features.py'],
    'detzoo/core/roi_products.py': ['core/test_tpu_formulations.py'],
    'detzoo/core/roi_samples.py': ['core/test_roi_features.py'],
    'detzoo/core/semantic.py': ['core/test_semantic.py'],
    'detzoo/data/augment.py': ['data/test_augment.py data/test_colors.py'],
    'detzoo/data/compose.py': ['data/test_compose.py'],
    'detzoo/data/geometry.py': ['data/test_geometry.py data/test_augment.py'],
    'detzoo/data/objects.py': ['data/test_compose.py'],
    'detzoo/data/pipeline.py': ['data/test_pipeline.py'],
    'detzoo/data/proposals.py': ['data/test_proposals.py'],
    'detzoo/detectors/faster_rcnn.py': ['detectors/test_faster_rcnn.py', 'detectors/test_detectors.py -k faster_rcnn'],
    'detzoo/detectors/chunks.py': ['detectors/test_chunks.py'],
    'detzoo/detectors/deepmask.py': ['detectors/test_deepmask.py', 'detectors/test_detectors.py -k deepmask'],
    'detzoo/detectors/sharpmask.py': ['detectors/test_deepmask.py', 'detectors/test_detectors.py --full -k sharpmask'],
    'detzoo/detectors/windows.py': ['detectors/test_deepmask.py', 'detectors/test_detectors.py -k deepmask'],
    'detzoo/core/roi_warp.py': ['core/test_roi_warp.py'],
    'detzoo/detectors/oracles.py': ['detectors/test_stage_oracles.py --full'],
    'detzoo/detectors/sds.py': ['detectors/test_sds.py'],
    'detzoo/evaluation/oracles.py': ['detectors/test_stage_oracles.py'],
    'detzoo/detectors/mnc.py': ['detectors/test_mnc.py', 'detectors/test_detectors.py --full -k mnc'],
    'detzoo/detectors/mask_rcnn.py': ['detectors/test_mask_rcnn.py', 'detectors/test_detectors.py -k mask_rcnn'],
    'detzoo/detectors/network.py': ['detectors/test_detectors.py -k "yolo_v2 or retinanet"'],
    'detzoo/detectors/rpn.py': ['detectors/test_faster_rcnn.py', 'detectors/test_detectors.py -k faster_rcnn'],
    'detzoo/detectors/stages.py': ['detectors/test_faster_rcnn.py', 'detectors/test_detectors.py -k faster_rcnn'],
    'detzoo/detectors/retinanet.py': ['detectors/test_retinanet.py', 'detectors/test_detectors.py -k retinanet'],
    'detzoo/detectors/ssd.py': ['detectors/test_ssd.py', 'detectors/test_detectors.py -k ssd'],
    'detzoo/detectors/yolo_v1.py': [
        'detectors/test_yolo.py -k "v1 or weights"',
        'detectors/test_detectors.py -k yolo_v1',
    ],
    'detzoo/detectors/yolo_v2.py': [
        'detectors/test_yolo.py -k "v2 or weights"',
        'detectors/test_detectors.py -k yolo_v2',
    ],
    'detzoo/detectors/yolo_v3.py': [
        'detectors/test_yolo.py -k "v3 or weights"',
        'detectors/test_detectors.py -k yolo_v3',
    ],
    'detzoo/segmenters/deeplab.py': [
        'segmenters/test_segmenters.py -k deeplab',
        'parity/test_torchvision_segmentation.py',
    ],
    'detzoo/segmenters/fcn.py': ['segmenters/test_fcn.py', 'segmenters/test_segmenters.py -k fcn'],
    'detzoo/segmenters/pixels.py': ['segmenters/test_segmenters.py -k fcn'],
    'detzoo/segmenters/unet.py': ['segmenters/test_segmenters.py -k unet'],
    'detzoo/evaluation/boundary.py': ['evaluation/test_boundary.py'],
    'detzoo/evaluation/coco.py': ['evaluation/test_evaluation.py'],
    'detzoo/evaluation/semantic.py': ['evaluation/test_evaluation_semantic.py'],
    'detzoo/evaluation/voc.py': ['evaluation/test_evaluation_voc.py'],
    'detzoo/training/checks.py': ['training/test_checks.py', RUNS],
    'detzoo/training/evaluation.py': ['training/test_validation.py', RUNS],
    'detzoo/training/finetune.py': ['training/test_finetune.py', STEP],
    'detzoo/training/loop.py': [STEP, RUNS],
    'detzoo/training/nonfinite.py': ['training/test_nonfinite.py'],
    'detzoo/training/optimizer.py': ['training/test_optimizer.py', STEP],
    'detzoo/training/replicas.py': ['training/test_replicas.py', RUNS],
    'detzoo/run/best.py': ['run/test_best.py', 'training/test_best_checkpoint.py'],
    'detzoo/run/stopping.py': ['training/test_stopping.py'],
    'detzoo/run/parallel.py': [STEP, RUNS, 'training/test_loop.py -k of_two_processes'],
}
MESSAGES = {
    'announce',
    'describe',
    'diverged',
    'format_table',
    'format_voc_table',
    'class_table',
    'show',
}  # functions that make text

OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PAIRS = [
    ('minimum', 'maximum'),
    ('min', 'max'),
    ('argmin', 'argmax'),
    ('floor', 'ceil'),
    ('any', 'all'),
    ('sum', 'mean'),
]
OPPOSITES = dict(PAIRS) | {second: first for first, second in PAIRS}
KEPT_ARGUMENT = {  # {function whose call is dropped: index of the argument that replaces it}
    'stop_gradient': 0, 'psum': 0, 'pmean': 0, 'pmin': 0, 'clip': 0, 'maximum': 0, 'minimum': 0, 'where': 1, 'rint': 0,
    'round': 0, 'floor': 0, 'ceil': 0, 'abs': 0, 'sqrt': 0, 'sign': 0, 'sort': 0, 'int': 0,
}  # fmt: skip


class Mutation(NamedTuple):
    """A fault: the bytes start to end of a file are replaced by `new`; its name does not depend on their place."""

    name: str
    file: str
    line: int
    function: str
    kind: str
    new: str
    start: int
    end: int


class Mutations(ast.NodeVisitor):
    """Lists the faults that a file could have."""

    def __init__(self, file: str, source: str):
        self.file, self.found, self.names, self.functions = file, [], collections.Counter(), ['']
        self.line_starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.visit(ast.parse(source))

    def add(self, kind: str, node: ast.expr, new: ast.expr, parentheses: bool = True) -> None:
        """Notes a fault: a node that is replaced by another one."""
        start = self.line_starts[node.lineno - 1] + node.col_offset
        end = self.line_starts[node.end_lineno - 1] + node.end_col_offset
        old, text = ast.unparse(node), ast.unparse(ast.fix_missing_locations(new))
        if old != text and self.functions[-1] not in MESSAGES:
            text = f'({text})' if parentheses else text
            name = f'{self.file}:{self.functions[-1]}: {old} -> {text}'
            self.names[name] += 1
            name += f' #{self.names[name]}' if self.names[name] > 1 else ''
            self.found.append(Mutation(name, self.file, node.lineno, self.functions[-1], kind, text, start, end))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.functions.append(node.name)
        for statement in node.body:  # neither annotations nor defaults
            self.visit(statement)
        self.functions.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not any(ast.unparse(base) == 'nn.Module' for base in node.bases):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if not all(isinstance(statement, ast.Raise) for statement in node.body):
            self.visit(node.test)
            if isinstance(node.body[-1], ast.Return) and not node.orelse:
                self.add('special case', node.test, ast.Constant(False))
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def skip(self, node: ast.AST) -> None:
        """Leaves alone what is below a node."""

    visit_Raise = visit_Assert = visit_JoinedStr = visit_Import = visit_ImportFrom = skip

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
            self.add('comparison', node, changed(node, ops=[OPERATORS[type(node.ops[0])]()]))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        no_numbers = any(
            isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.Dict) or ast.unparse(side).startswith('dict(')
            for side in (node.left, node.right)
        )
        if type(node.op) in OPERATORS and not no_numbers:
            kind = 'logic' if isinstance(node.op, ast.BitAnd | ast.BitOr) else 'sign'
            self.add(kind, node, changed(node, op=OPERATORS[type(node.op)]()))
            if not isinstance(node.op, ast.FloorDiv):
                self.add('dropped term', node, node.left)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        lists = any(isinstance(part, ast.List) for part in ast.walk(node.value))
        if type(node.op) in OPERATORS and not lists:
            self.add('sign', node, changed(node, op=OPERATORS[type(node.op)]()), parentheses=False)
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.add('logic', node, changed(node, op=OPERATORS[type(node.op)]()))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.add('sign' if isinstance(node.op, ast.USub) else 'logic', node, node.operand)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.add('special case', node, node.body)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        if ast.unparse(node.func).startswith('chex.'):
            return
        arguments = [*node.args]
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in (
            'np',
            'jnp',
            'jax.lax',
            'math',
            'optax',
        ):
            arguments.insert(0, node.func.value)  # a method
        if name in OPPOSITES:
            func = copy.deepcopy(node.func)
            setattr(func, 'attr' if isinstance(func, ast.Attribute) else 'id', OPPOSITES[name])
            self.add('opposite', node, changed(node, func=func), parentheses=False)
        if name in KEPT_ARGUMENT and len(arguments) > KEPT_ARGUMENT[name]:
            self.add('dropped call', node, arguments[KEPT_ARGUMENT[name]])
        for keyword in node.keywords:
            if keyword.arg == 'axis' and isinstance(keyword.value, ast.Constant) and keyword.value.value in (0, 1):
                self.add('axis', keyword.value, ast.Constant(1 - keyword.value.value), parentheses=False)
        self.visit(node.func)
        for value in (
            *node.args,
            *(keyword.value for keyword in node.keywords if keyword.arg not in ('axis', 'strict')),
        ):
            self.visit(value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if isinstance(node.slice, ast.Constant) and node.slice.value in (0, 1) and isinstance(node.ctx, ast.Load):
            self.add('axis', node, changed(node, slice=ast.Constant(1 - node.slice.value)), parentheses=False)
        elif not isinstance(node.slice, ast.Slice | ast.Tuple | ast.Constant):  # their constants are shapes
            self.visit(node.slice)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add('constant', node, ast.Constant(not node.value))
        elif isinstance(node.value, int):
            self.add('constant', node, ast.Constant(node.value + 1))
        elif isinstance(node.value, float):
            self.add('constant', node, ast.Constant(2 * node.value or 1.0))


def changed(node: ast.AST, **fields: Any) -> Any:
    """Copies a node with other fields."""
    node = copy.copy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def sample(files: list[str], count: int, seed: int) -> list[Mutation]:
    """Draws faults, from each folder and kind in turn, as long as there are any."""
    groups = collections.defaultdict(list)
    for file in files:
        for mutation in Mutations(file, (ROOT / file).read_text()).found:
            groups[pathlib.Path(file).parent, mutation.kind].append(mutation)
    rng = random.Random(seed)
    for key in sorted(groups):
        rng.shuffle(groups[key])
    drawn = []
    while len(drawn) < count and any(groups.values()):
        drawn += [groups[key].pop() for key in sorted(groups) if groups[key]]
    return drawn[:count]


class NamedAfter:
    """A plugin of pytest: tests whose names have a function's come first."""

    def __init__(self, function: str):
        self.function = function.strip('_')

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sorts tests."""
        if self.function:
            items.sort(key=lambda item: self.function not in item.name)


def import_all(copy_root: pathlib.Path) -> None:
    """Imports everything that tests use, but leaves detzoo to be imported anew; no device of JAX is opened."""
    os.chdir(copy_root)
    sys.path[:0] = [str(copy_root), str(copy_root / 'tests')]
    importlib.import_module('conftest')  # sets the environment, before jax is imported
    import detzoo

    for module in pkgutil.walk_packages(detzoo.__path__, 'detzoo.'):
        if module.name not in (
            'detzoo.data.made.shapes',
            'detzoo.data.made.histology',
        ):  # TFDS knows a builder of one name once
            importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.split('.')[0] in ('detzoo', 'conftest')]:
        del sys.modules[name]


def run_tests(arguments: str, function: str, log: pathlib.Path) -> tuple[int, str]:
    """Runs pytest in a fork: (its exit status, the first test that failed); after TIMEOUT (-1, 'timeout')."""
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what tests start ends with them
        with log.open('w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        words = [f'tests/{word}' if word.endswith('.py') else word for word in shlex.split(arguments)]
        status = 3
        try:
            options = ['-x', '-q', '--tb=line', '-p', 'no:cacheprovider']
            status = pytest.main([*options, *words], plugins=[NamedAfter(function)])
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                failed = [line for line in log.read_text().splitlines() if line.startswith(('FAILED ', 'ERROR '))]
                return os.waitstatus_to_exitcode(status), failed[0].split(' - ')[0].split(' ', 1)[1] if failed else ''
            time.sleep(0.05)
        return -1, 'timeout'
    finally:
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def try_mutation(mutation: Mutation, copy_root: pathlib.Path, stamp: int) -> str | None:
    """Runs the tests of a file with a fault: the first that fails, or None."""
    path = copy_root / mutation.file
    source = path.read_bytes()
    path.write_bytes(source[: mutation.start] + mutation.new.encode() + source[mutation.end :])
    os.utime(path, (stamp, stamp))  # compiled files go by size and time, and faults of one second may be of one size
    try:
        for arguments in TESTS[mutation.file]:
            status, failed = run_tests(arguments, mutation.function, copy_root / 'log')
            if status not in (0, 5):  # 5: no test was chosen
                return failed or f'exit status {status}'
    finally:
        path.write_bytes(source)
        os.utime(path, (stamp + 1, stamp + 1))
    return None


def copy_of_repository(folder: pathlib.Path) -> pathlib.Path:
    """Copies the files that git tracks to a new folder."""
    names = subprocess.run(['git', 'ls-files'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\n')
    for name in filter(None, names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return folder


def report(mutations: list[Mutation], results: dict[str, dict[str, Any]]) -> str:
    """Writes how many faults of each kind were noticed, and which were not."""
    lines, tried = [], [mutation for mutation in mutations if mutation.name in results]
    for kind in sorted({mutation.kind for mutation in tried}):
        caught = [results[mutation.name]['caught'] is not None for mutation in tried if mutation.kind == kind]
        lines.append(f'{kind:<14} {sum(caught):>4} of {len(caught)}')
    away = [mutation for mutation in tried if results[mutation.name]['caught'] is None]
    share = 100 * (1 - len(away) / max(1, len(tried)))
    lines.append(f'{"all":<14} {len(tried) - len(away):>4} of {len(tried)}: {share:.1f} %')
    return '\n'.join([*lines, *(f'not noticed: {mutation.line}: {mutation.name}' for mutation in away)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--results', type=pathlib.Path, default=pathlib.Path('mutations.jsonl'), help='a line for each fault'
    )
    parser.add_argument('--count', type=int, default=160, help='how many faults')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument('--files', default='', help='only those of files whose path contains this')
    parser.add_argument('--again', action='store_true', help='run those anew that were not noticed')
    parser.add_argument('--list', action='store_true', help='show the faults and end')
    flags = parser.parse_args()

    mutations = [mutation for mutation in sample(list(TESTS), flags.count, flags.seed) if flags.files in mutation.file]
    if flags.list:
        print('\n'.join(f'{mutation.kind:<14} {mutation.line:>4} {mutation.name}' for mutation in mutations))
        return
    lines = flags.results.read_text().splitlines() if flags.results.exists() else []
    results = {row['name']: row for row in map(json.loads, lines)}  # the last of several with one name
    if flags.again:
        results = {name: row for name, row in results.items() if row['caught'] is not None}

    with tempfile.TemporaryDirectory() as folder, flags.results.open('a') as file:
        copy_root = copy_of_repository(pathlib.Path(folder))
        import_all(copy_root)
        sound = set()  # tests that were seen to pass without a fault
        mutations.sort(key=lambda mutation: list(TESTS).index(mutation.file))
        for stamp, mutation in enumerate(tqdm([m for m in mutations if m.name not in results], unit='fault')):
            start = time.monotonic()
            caught = try_mutation(mutation, copy_root, 2 * stamp + 10**9)
            if caught is not None and '::' in caught and caught not in sound:
                if run_tests(shlex.quote(caught), '', copy_root / 'log')[0]:
                    sys.exit(f'{caught} fails without any fault')
                sound.add(caught)
            row = mutation._asdict() | dict(caught=caught, seconds=round(time.monotonic() - start, 1))
            results[mutation.name] = row
            file.write(json.dumps(row) + '\n')
            file.flush()
            if caught is None:
                tqdm.write(f'not noticed: {mutation.line}: {mutation.name}')
    print(report(mutations, results))


if __name__ == '__main__':
    main()
