"""The findings of a sweep, computed from its stored results: nothing is trained, and no detector is run.

    Store -> `read_findings`: means over seeds, intervals, comparisons of pairs, curves, kinds of errors -> Findings

A comparison with a group of one seed is over images only: it is about this trained network, not about its method. The other
modules of `report` put the findings into words, tables and figures.
"""

import functools
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from detzoo.evaluation import read_detections, statistics
from detzoo.evaluation.calibration import Reliability, pooled
from detzoo.evaluation.statistics import Comparison, Interval, Matches
from detzoo.report import plots
from detzoo.report.judgement import JUDGEMENT, Judgement, judge, read_judgement
from detzoo.sweeps.store import FINISHED, Result, Store, read_file

SIGNIFICANT = 0.05
PERMUTATIONS = 10_000  # largest number of permutations
# IoU thresholds of the metrics that intervals and comparisons can be computed for.
THRESHOLDS = {'AP': statistics.THRESHOLDS, 'AP50': (0.5,), 'AP75': (0.75,)}
OBJECTS = 'count_error', 'count_bias'  # metrics in objects of an image, not shares
DETECTIONS = 'detections.json.gz'
SIZE = 'size.json'  # the size of a ground truth that is not kept itself
SWEEP = 'experiment', 'docstring', 'metrics', 'figures', 'runs'  # keys of sweep.json


class Group(NamedTuple):
    """Runs that differ only in their seed."""

    name: str
    series: str
    runs: list[Result]

    @property
    def finished(self) -> list[Result]:
        return [run for run in self.runs if run.status == FINISHED]

    @property
    def over_images(self) -> bool:
        """Whether its interval is over images only, since it has one seed."""
        return len(self.finished) == 1

    @property
    def truth(self) -> str:
        """Name of the ground truth; '' if no run is finished."""
        return self.finished[0].truth if self.finished else ''

    def values(self, metric: str) -> list[float]:
        """Lists a metric of the finished runs, in percent, or one of OBJECTS as it is; those that lack it are left out."""
        factor = 1 if metric in OBJECTS else 100
        return [factor * value for run in self.finished if (value := run.metrics.get(metric)) is not None]

    def has(self, metric: str) -> bool:
        """Whether all finished runs, one at least, have a metric."""
        return bool(self.finished) and all(run.metrics.get(metric) is not None for run in self.finished)


class Pair(NamedTuple):
    """The difference of two groups: that of `group` minus `other`.

    comparison: comparison over images and trainings or, if either group has one seed, over images only.
    adjusted: the p-value, adjusted for all pairs.
    """

    group: str
    other: str
    comparison: Comparison
    adjusted: float
    over_images: bool

    @property
    def differ(self) -> bool:
        return self.adjusted < SIGNIFICANT


class Confused(NamedTuple):
    """What the detections of a group take objects for.

    class_names: [K].
    counts: [K + 1, K + 1] float64, see `confusion.confusion_matrix`, the mean over seeds.
    thresholds: the score threshold of each seed.
    """

    class_names: list[str]
    counts: np.ndarray
    thresholds: list[float]


class Findings(NamedTuple):
    """All numbers of a report, by the names of groups, in the order of the sweep.

    sweep: contents of sweep.json.
    judged: the metric that has intervals and comparisons: the sweep's first metric, if it can have them, or else AP.
    intervals, pairs, precision, errors, counts: results of the groups that have this metric; groups without masks, or without
        objects, may lack it.
    permutations: number of permutations of each comparison over images only.
    curves: [(group, run's curves.json)].
    precision: {group: {class: curve of `pr_curves`, the mean over seeds}}.
    errors: {group: {kind: AP that it costs, percent}}, the mean over seeds.
    counts: {group: {kind: number}}, likewise.
    confusions: {group: Confused}; groups packed by an older detzoo are missing.
    reliability: {group: the detections of all seeds together}, likewise.
    costs: {group: {batch: row of costs.json, see `stages.measure`}}.
    estimates: rows of estimates.json, see `estimates.estimate`, in the order of groups.
    images: {ground truth: its numbers of 'images', 'objects' and 'classes'}.
    forgotten: runs that have results but are no longer in the sweep.
    packed: whether judgements are kept in place of detections and pictures, see `pack`.
    looks: {group: its Style in figures}.
    """

    store: Store
    sweep: dict[str, Any]
    groups: list[Group]
    judged: str
    intervals: dict[str, Interval]
    pairs: list[Pair]
    permutations: int
    curves: list[tuple[str, dict[str, Any]]]
    precision: dict[str, dict[str, dict[str, np.ndarray]]]
    errors: dict[str, dict[str, float]]
    counts: dict[str, dict[str, float]]
    confusions: dict[str, Confused]
    reliability: dict[str, Reliability]
    costs: dict[str, dict[int, dict[str, Any]]]
    estimates: list[dict[str, Any]]
    images: dict[str, dict[str, int]]
    forgotten: list[str]
    packed: bool
    looks: dict[str, plots.Style]


def read_findings(folder: str | os.PathLike, resamples: int = 1000) -> Findings:
    """Reads a store and computes the numbers of its report.

    Args:
        folder: the folder of a sweep.
        resamples: number of resamples of the bootstrap, and least number of permutations.

    Raises:
        FileNotFoundError: the folder holds no sweep, or lacks the detections or the ground truth of a finished run.
        ValueError: a file of it cannot be read.
    """
    store = Store(folder)
    sweep, groups, forgotten = read_groups(store)
    finished = [group for group in groups if group.finished]
    judged = judged_metric(sweep['metrics'])
    judgements = {group.name: judgements_of(store, group, kind_of(judged)) for group in finished if group.has(judged)}
    matches = {name: [seed.matches for seed in seeds] for name, seeds in judgements.items()}
    thresholds = THRESHOLDS[judged.removeprefix('mask_')]
    intervals = {name: _interval(seeds, resamples, thresholds) for name, seeds in matches.items()}
    pairs, permutations = _compare(matches, {group.name: group.truth for group in finished}, resamples, thresholds)
    estimates = read_file(store.folder / 'estimates.json', store.estimates)
    return Findings(
        store=store,
        sweep=sweep,
        groups=groups,
        judged=judged,
        intervals=intervals,
        pairs=pairs,
        permutations=permutations,
        curves=[
            (group.name, curves) for group in finished for run in group.finished if (curves := _curves(store, run.run))
        ],
        precision={name: _mean_curves([seed.precision for seed in seeds]) for name, seeds in judgements.items()},
        errors={name: _mean_of([seed.errors['dAP'] for seed in seeds], 100) for name, seeds in judgements.items()},
        counts={name: _mean_of([seed.errors['counts'] for seed in seeds]) for name, seeds in judgements.items()},
        confusions={
            name: _confused(seeds) for name, seeds in judgements.items() if all(seed.confusion for seed in seeds)
        },
        reliability={
            name: pooled([seed.reliability for seed in seeds])
            for name, seeds in judgements.items()
            if all(seed.reliability for seed in seeds)
        },
        costs=_costs(store, finished),
        estimates=[row for group in finished for row in estimates if row['name'] == group.name],
        images={
            name: truth_size(store, name)
            for name in dict.fromkeys(run.truth for group in finished for run in group.finished)
        },
        forgotten=forgotten,
        packed=any(is_packed(store, run) for group in finished for run in group.finished),
        looks=plots.styles({group.name: group.series for group in groups}),
    )


def read_groups(store: Store) -> tuple[dict[str, Any], list[Group], list[str]]:
    """Reads the plan and the results: sweep.json, the groups, and the runs that are no longer in the sweep.

    Raises:
        FileNotFoundError, ValueError: see `read_findings`.
    """
    sweep = read_file(store.folder / 'sweep.json', lambda: {key: store.sweep()[key] for key in SWEEP})
    results = {result.run: result for result in read_file(store.folder / 'results.jsonl', store.results)}
    planned = read_file(store.folder / 'sweep.json', lambda: [Result(**row) for row in sweep['runs']])
    runs = [_as_planned(results.get(run.run, run), run) for run in planned]
    groups = [
        Group(name, next(run.series for run in runs if run.group == name), [run for run in runs if run.group == name])
        for name in dict.fromkeys(run.group for run in runs)
    ]
    return sweep, groups, sorted(results.keys() - {run.run for run in planned})


def _as_planned(result: Result, plan: Result) -> Result:
    """Takes group, series and published metrics from the plan: the experiment may have changed them since."""
    return result._replace(group=plan.group, series=plan.series, published=plan.published)


def judged_metric(metrics: Sequence[str]) -> str:
    """Chooses the metric that intervals and comparisons are computed for."""
    return metrics[0] if metrics and metrics[0].removeprefix('mask_') in THRESHOLDS else 'AP'


def kind_of(metric: str) -> str:
    """Returns the kind of a metric: 'bbox' or 'segm'."""
    return 'segm' if metric.startswith('mask_') else 'bbox'


def is_packed(store: Store, run: Result) -> bool:
    """Tells whether the judgement of a run is kept in place of its detections."""
    folder = store.results_of(run.run)
    return (folder / JUDGEMENT).exists() and not (folder / DETECTIONS).exists()


def judgements_of(store: Store, group: Group, kind: str) -> list[Judgement]:
    """Reads the judgements of a group's runs, or compares their detections with the ground truth."""
    truth = None
    judgements = []
    for run in group.finished:
        folder = store.results_of(run.run)
        if is_packed(store, run):
            path = folder / JUDGEMENT
            judgements.append(read_file(path, functools.partial(read_judgement, path, kind)))
        else:
            path, truth = folder / DETECTIONS, truth or _ground_truth(store, group.truth)
            judgements.append(read_file(path, lambda path=path, truth=truth: judge(truth, read_detections(path), kind)))
    return judgements


def truth_size(store: Store, name: str) -> dict[str, int]:
    """Reads or counts the 'images', 'objects' and 'classes' of a ground truth."""
    path = store.truth(name) / SIZE
    if path.exists():
        return read_file(path, lambda: json.loads(path.read_text()))
    truth = _ground_truth(store, name)
    objects = sum(not row.get('iscrowd', 0) for row in truth['annotations'])
    return dict(images=len(truth['images']), objects=objects, classes=len(truth['categories']))


def _ground_truth(store: Store, name: str) -> dict[str, Any]:
    return read_file(store.truth(name) / 'ground_truth.json.gz', lambda: store.ground_truth(name))


def _interval(seeds: Sequence[Matches], resamples: int, thresholds: Sequence[float]) -> Interval:
    """Finds the interval of a group: over images and trainings or, if it has one seed, over images only."""
    find = statistics.bootstrap if len(seeds) == 1 else statistics.crossed_interval
    return find(seeds, resamples, thresholds=thresholds)


def _compare(
    matches: Mapping[str, list[Matches]], truths: Mapping[str, str], resamples: int, thresholds: Sequence[float]
) -> tuple[list[Pair], int]:
    """Compares all pairs of groups that share a ground truth; returns them and the number of permutations.

    The least p-value is 1 / (1 + permutations), and n times this value after adjustment for n pairs. The number of
    permutations is large enough for the least p-value to be significant.
    """
    names = [(other, name) for other, name in itertools.combinations(matches, 2) if truths[name] == truths[other]]
    permutations = min(PERMUTATIONS, max(resamples, round(2 * len(names) / SIGNIFICANT)))
    over_images = [1 in (len(matches[name]), len(matches[other])) for other, name in names]
    tests = []
    for (other, name), single in zip(
        tqdm(names, desc='comparing', unit='pair', leave=False, disable=None), over_images
    ):
        a, b = matches[name], matches[other]
        if single:
            tests.append(statistics.paired_test(a, b, resamples, permutations, thresholds=thresholds))
        else:
            tests.append(statistics.crossed_test(a, b, resamples, thresholds=thresholds))
    adjusted = statistics.holm([test.p_value for test in tests])
    pairs = [
        Pair(name, other, test, float(p), single)
        for (other, name), test, p, single in zip(names, tests, adjusted, over_images)
    ]
    return pairs, permutations


def _curves(store: Store, run: str) -> dict[str, Any] | None:
    """Reads the curves of a run, if it has any."""
    path = store.results_of(run) / 'curves.json'
    if not path.exists():
        return None

    def read() -> dict[str, Any] | None:
        curves = json.loads(path.read_text())
        return curves if curves['training']['step'] or curves['validation']['step'] else None

    return read_file(path, read)


def _mean_curves(curves: Sequence[dict[str, dict[str, np.ndarray] | None]]) -> dict[str, dict[str, np.ndarray]]:
    """Averages the precision-recall curves of seeds; classes without objects are left out."""
    names = [name for name, curve in curves[0].items() if curve is not None]
    return {name: {key: np.mean([of[name][key] for of in curves], axis=0) for key in curves[0][name]} for name in names}


def _mean_of(rows: Sequence[Mapping[str, float | None]], factor: float = 1.0) -> dict[str, float]:
    """Averages numbers by name; an average is NaN if one of its numbers is missing."""
    return {key: factor * float(np.mean([np.nan if row[key] is None else row[key] for row in rows])) for key in rows[0]}


def _confused(seeds: Sequence[Judgement]) -> Confused:
    """Averages the confusion matrices of seeds."""
    matrices = [seed.confusion for seed in seeds]
    return Confused(
        list(seeds[0].precision),
        np.mean([matrix.counts for matrix in matrices], axis=0),
        [matrix.score_threshold for matrix in matrices],
    )


def _costs(store: Store, groups: Sequence[Group]) -> dict[str, dict[int, dict[str, Any]]]:
    """Reads the costs of groups by batch size."""

    def read() -> dict[str, dict[int, dict[str, Any]]]:
        costs: dict[str, dict[int, dict[str, Any]]] = {}
        for row in store.costs():
            costs.setdefault(row['name'], {})[row['batch']] = row
        return costs

    costs = read_file(store.folder / 'costs.json', read)
    return {group.name: costs[group.name] for group in groups if group.name in costs}


class Part(NamedTuple):
    """The groups that share a ground truth. Most sweeps have one ground truth; with several, titles and file names name it."""

    truth: str
    groups: list[Group]
    where: str
    suffix: str


def parts_by_truth(findings: Findings) -> list[Part]:
    """Lists the groups by their ground truth."""
    several = len(findings.images) > 1
    return [
        Part(
            truth,
            [group for group in findings.groups if group.truth == truth],
            where=f' on {truth}' if several else '',
            suffix=f'-{truth}' if several else '',
        )
        for truth in findings.images
    ]
