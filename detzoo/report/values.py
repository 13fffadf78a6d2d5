"""The numbers of a group that a figure can show: a metric, a cost of prediction or a config key.

Findings, Group, name -> `value_of`, `error_bar`; `label_of`: the name of the axis
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from detzoo.config import flatten, migrate
from detzoo.report.findings import OBJECTS, Findings, Group
from detzoo.report.text import counted, deviation_of, mean, name_of

MEASURED = {'seconds', 'peak_bytes', 'flops'}


class Price(NamedTuple):
    """A cost of prediction.

    label: name of the axis.
    of: function that reads the cost from a row of `stages.measure`, in the unit of the label.
    """

    label: str
    of: Callable[[dict[str, Any]], float]


PRICES = {
    'seconds': Price('time for {images}, ms', lambda row: 1e3 * row['p50_seconds']),
    'peak_bytes': Price('peak memory for {images}, MiB', lambda row: row['peak_bytes'] / 2**20),
    'flops': Price('GFLOPs an image', lambda row: row['flops'] / row['batch'] / 1e9),
    'parameters': Price('parameters, millions', lambda row: row['parameters'] / 1e6),
}


def price_of(findings: Findings, group: Group, name: str, batch: int) -> float | None:
    """Finds a cost of a group; the number of parameters is known without measuring."""
    if name == 'parameters' and group.finished:
        return group.finished[0].parameters / 1e6
    row = findings.costs.get(group.name, {}).get(batch)
    return PRICES[name].of(row) if row else None


def value_of(findings: Findings, group: Group, name: str, batch: int) -> float | str | None:
    """Finds a metric, a cost or a config key of a group; a key that is not a number becomes a word."""
    if not group.finished:
        return None
    if name in PRICES:
        return price_of(findings, group, name, batch)
    if any(name in run.metrics for run in group.finished):
        values = group.values(name)
        return mean(values) if values else None
    config = group.finished[0].config
    stored, now = flatten(ml_collections.ConfigDict(config)), flatten(current(config))
    leaves = dict([*stored, *now])  # a figure of an old sweep may ask for a key by its old name
    if name not in leaves:
        return None
    value = leaves[name]
    if name == 'data.train_split':
        return images_of_split(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number or isinstance(value, str) else json.dumps(value)


def images_of_split(split: str) -> int | None:
    """Counts the images of a split like 'train[:400]'; None if its text does not tell."""
    total = 0
    for part in split.split('+'):
        match = re.fullmatch(r'\w+\[(\d*):(\d+)\]', part.strip())
        if match is None:
            return None
        total += int(match[2]) - int(match[1] or 0)
    return total


def error_bar(findings: Findings, group: Group, metric: str) -> tuple[float | None, float | None]:
    """Finds the ends of an error bar: the interval of the judged metric, or the standard deviation over seeds of another one."""
    if metric == findings.judged:
        interval = findings.intervals.get(group.name)
        return (100 * interval.low, 100 * interval.high) if interval else (None, None)
    values = group.values(metric)
    deviation = deviation_of(values)
    return (None, None) if deviation is None else (mean(values) - deviation, mean(values) + deviation)


def label_of(findings: Findings, name: str, batch: int) -> str:
    """Names an axis."""
    if name in PRICES:
        return PRICES[name].label.format(images=counted(batch, 'image'))
    if name == 'data.train_split':
        return 'training images'
    if name == 'data.name':
        return 'data'
    if name in OBJECTS:
        return f'{name_of(name)}, objects of an image'
    is_metric = any(name in run.metrics for group in findings.groups for run in group.finished)
    return f'{name_of(name)}, %' if is_metric else name


def current(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Reads a stored config of this or an older version of detzoo, with the keys of this version."""
    return migrate(ml_collections.ConfigDict(config))
