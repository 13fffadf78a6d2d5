"""The sweeps that the repository keeps: they are light, their configs can be read, and their judgements match their results."""

import json
import pathlib

import pytest

from detzoo.config import from_json
from detzoo.evaluation.statistics import average_precision
from detzoo.report.findings import THRESHOLDS, judged_metric, judgements_of, kind_of, read_groups, truth_size
from detzoo.sweeps.store import Store

FOLDERS = sorted((pathlib.Path(__file__).parents[2] / 'experiments' / 'results').iterdir())


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_recorded_sweep_can_be_read(folder):
    sweep, groups, forgotten = read_groups(Store(folder))
    judged = judged_metric(sweep['metrics'])
    runs = [run for group in groups for run in group.runs]
    assert runs and not forgotten
    for run, planned in zip(runs, sweep['runs'], strict=True):
        assert from_json(json.dumps(run.config)).model.name == run.config['model']['name']
        assert from_json(json.dumps(planned['config'])).seed == planned['seed']
    thresholds = THRESHOLDS[judged.removeprefix('mask_')]
    for group in (group for group in groups if group.has(judged)):
        for run, judgement in zip(group.finished, judgements_of(Store(folder), group, kind_of(judged)), strict=True):
            assert float(average_precision(judgement.matches, thresholds=thresholds)) == pytest.approx(
                run.metrics[judged], abs=1e-9
            )
            images = truth_size(Store(folder), run.truth)['images']
            assert images == len(judgement.matches.image_ids) == judgement.matches.objects.shape[1]


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_recorded_sweep_is_light(folder):
    assert sum(path.stat().st_size for path in folder.rglob('*') if path.suffix != '.html') < 1.5e6
