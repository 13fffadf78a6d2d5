"""The results of a sweep as the repository keeps them: the files that their report is rendered from, and little more.

    DIR of a sweep -> `pack` -> another folder: sweep.json, results.jsonl, costs.json, estimates.json,
      results/RUN/{judgement.json.xz, curves.json}, truth/NAME/size.json, report.md and its figures

Detections, ground truths, pictures and report.html are left out, and also PNGs, except those of figures that the experiment
asks for. `detzoo report` renders the same tables from either folder.
"""

import json
import os

from detzoo.files import AnyPath, as_path, new_folder, write_text
from detzoo.report.findings import SIZE, Group, judged_metric, judgements_of, kind_of, read_groups, truth_size
from detzoo.report.judgement import JUDGEMENT, write_judgement
from detzoo.report.page import write_report
from detzoo.sweeps.store import Store

COPIED = 'sweep.json', 'results.jsonl', 'costs.json', 'estimates.json'


def pack(folder: str | os.PathLike, output: str | os.PathLike, resamples: int = 1000) -> AnyPath:
    """Packs the results of a sweep into a new folder, and renders its report there.

    Args:
        folder: the folder of the sweep, or of results that were packed before.
        output: the new folder.
        resamples: see `read_findings`.

    Raises:
        FileNotFoundError: the folder holds no sweep, or lacks files of a finished run.
        ValueError: a file of it cannot be read, or `output` exists already.
        OSError: nothing can be written there.
    """
    store = Store(folder)
    sweep, groups, _ = read_groups(store)
    with new_folder(output) as scratch:
        packed = Store(scratch)
        for name in COPIED:
            _copy(store.folder / name, packed.folder / name)
        for group in groups:
            _pack_group(store, packed, group, judged_metric(sweep['metrics']))
        page, _ = write_report(scratch, resamples)
        page.unlink()
        for path in (scratch / 'figures').glob('*.png'):
            if not path.name.startswith('figure-'):
                path.unlink()
    return as_path(output)


def _pack_group(store: Store, packed: Store, group: Group, judged: str) -> None:
    """Writes the files that a report needs of a group's finished runs into another store."""
    for run in group.finished:
        packed.results_of(run.run).mkdir(parents=True)
        _copy(store.results_of(run.run) / 'curves.json', packed.results_of(run.run) / 'curves.json')
        packed.truth(run.truth).mkdir(parents=True, exist_ok=True)
        write_text(packed.truth(run.truth) / SIZE, json.dumps(truth_size(store, run.truth)) + '\n')
    if group.has(judged):
        for run, judgement in zip(group.finished, judgements_of(store, group, kind_of(judged)), strict=True):
            write_judgement(packed.results_of(run.run) / JUDGEMENT, judgement)


def _copy(source: AnyPath, target: AnyPath) -> None:
    """Copies a file, if it exists."""
    if source.exists():
        target.write_bytes(source.read_bytes())
