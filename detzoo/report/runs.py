"""The runs of a sweep: the config keys in which they differ, and their devices, versions and data."""

from typing import Any

from detzoo.config import differences, flatten
from detzoo.report.document import Chooser, Table
from detzoo.report.findings import Findings
from detzoo.report.text import code
from detzoo.report.values import current


def difference_blocks(findings: Findings) -> list[Any]:
    """Lists the config keys in which runs differ from the first one; a page can compare any two."""
    runs = [run for group in findings.groups for run in group.runs]
    runs.sort(key=lambda run: [row['run'] for row in findings.sweep['runs']].index(run.run))
    if len(runs) < 2:
        return []
    configs = {run.run: current(run.config) for run in runs}
    leaves = {name: dict(flatten(config)) for name, config in configs.items()}
    keys = sorted({key for of_run in leaves.values() for key in of_run})
    varied = [key for key in keys if any(of_run.get(key) != leaves[runs[0].run].get(key) for of_run in leaves.values())]
    rows = []
    for run in runs[1:]:
        changed = differences(configs[runs[0].run], configs[run.run])
        rows += [[run.run, code(key), code(before), code(here)] for key, (before, here) in changed.items()]
        rows += [[run.run, 'none', '', '']] if not changed else []
    caption = f'Differences from the first run, {runs[0].run}.'
    columns = ['run', 'config key', runs[0].run, 'here']
    return [
        Chooser({run.run: {key: leaves[run.run].get(key) for key in varied} for run in runs}),
        Table(caption, columns, rows, words=columns, folded=True),
    ]


def setup_blocks(findings: Findings) -> list[Any]:
    """Lists the devices, versions and data of the results."""
    runs = [run for group in findings.groups for run in group.finished]
    rows = [['experiment', code(findings.sweep['experiment'])]]
    rows.append(['command', code(f'python scripts/sweep.py --experiment={findings.sweep["experiment"]} --workdir=DIR')])
    devices = dict.fromkeys(f'{run.device["count"]} x {run.device["kind"]}' for run in runs if run.device)
    rows += [['devices', '; '.join(devices)]] if devices else []
    for name in dict.fromkeys(name for run in runs for name in run.versions):
        versions = list(dict.fromkeys(run.versions[name] for run in runs if name in run.versions))
        rows.append([name, ', '.join(versions) + (' (not all runs have the same)' if len(versions) > 1 else '')])
    for name, size in findings.images.items():
        sizes = f'{size["images"]} images, {size["objects"]} objects, {size["classes"]} classes'
        rows.append([f'validation data {name}', sizes])
    return [Table('How the results were made.', ['what', 'value'], rows, words=['value'])]
