"""A report of a sweep: what was found, in words, tables, figures and pictures.

    `findings.read_findings` -> Findings -> `sections`: what is said of them -> [document.Section]
      -> DIR/report.md, DIR/report.html, DIR/figures/

Both files say the same. The page is one file, with figures and pictures inside. The same store gives the same bytes.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from detzoo.config import differences, flatten
from detzoo.evaluation.tide import ERRORS
from detzoo.files import write_text
from detzoo.report import plots
from detzoo.report.document import (
    Cell,
    Chooser,
    Drawing,
    Gallery,
    Items,
    Panel,
    Paragraph,
    Section,
    Table,
    Verbatim,
    to_html,
    to_markdown,
)
from detzoo.report.findings import SIGNIFICANT, Findings, Group, Pair, read_findings
from detzoo.sweeps.store import FAILED, FINISHED, Result
from detzoo.visualize import write_image

PAIRS = 28  # of 8 groups; more are shown as a matrix
FEW = 4  # groups to be named in a sentence
SIZES = 'APs', 'APm', 'APl'
NOT = 'not distinguishable'
OVER = {True: 'images only', False: 'images and trainings'}  # of what has, or not, a group of one seed


def write_report(folder: str | os.PathLike, resamples: int = 1000) -> list[pathlib.Path]:
    """Writes report.html, report.md and figures/ into the folder of a sweep.

    Args:
        folder: see `store`.
        resamples: see `read_findings`.

    Returns:
        the two reports.

    Raises:
        FileNotFoundError, ValueError: see `read_findings`.
    """
    findings = read_findings(folder, resamples)
    written, folder = sections(findings), findings.store.folder
    drawings = [block for section in written for block in section.blocks if isinstance(block, Drawing)]
    drawn = {drawing.name: plots.svg(drawing.figure) for drawing in drawings}
    (folder / 'figures').mkdir(exist_ok=True)
    for drawing in drawings:
        write_text(folder / 'figures' / f'{drawing.name}.svg', drawn[drawing.name])
        write_image(folder / 'figures' / f'{drawing.name}.png', plots.picture(drawing.figure))
    title = title_of(findings)
    reports = {'report.html': to_html(title, written, drawn), 'report.md': to_markdown(title, written, folder)}
    for name, text in reports.items():
        write_text(folder / name, text)
    return [folder / name for name in reports]


def title_of(findings: Findings) -> str:
    """Takes the question that the experiment asks: the first paragraph of its docstring; or its name."""
    return ' '.join(findings.sweep['docstring'].strip().partition('\n\n')[0].split()) or findings.sweep['experiment']


def sections(findings: Findings) -> list[Section]:
    """Writes a report, what is missing left out."""
    parts = {
        'Question': _question,
        'Summary': _summary,
        'Results': _results,
        'Comparisons': _comparisons,
        'Figures': _figures,
        'Cost of prediction': _cost_blocks,
        'Training': _training,
        'Precision and recall': _precision,
        'Classes': _classes,
        'Errors': _errors,
        'Differences between runs': _differences,
        'Pictures': _pictures,
        'Assignment': _assignment,
        'Setup': _setup,
    }
    written = [Section(title, write(findings)) for title, write in parts.items()]
    return [section for section in written if section.blocks]


def percent(value: float | None) -> str:
    """Writes 0.4123 as 41.2."""
    return '–' if value is None or np.isnan(value) else f'{100 * value:.1f}'


def name_of(metric: str) -> str:
    """Writes mask_AP50 as mask AP50, and APs with the size in words."""
    name = metric.removeprefix('mask_')
    sizes = {'APs': 'AP small', 'APm': 'AP medium', 'APl': 'AP large'}
    return ('mask ' if metric.startswith('mask_') else '') + sizes.get(name, name)


def p_value(p: float) -> str:
    """Writes a p-value with three digits."""
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def code(value: Any) -> str:
    """Writes a value or a message as code."""
    return '`' + (value if isinstance(value, str) and value else json.dumps(value)).replace('`', "'") + '`'


def listed(words: Iterable[str]) -> str:
    """Joins words: a, b and c."""
    *most, last = words
    return f'{", ".join(most)} and {last}' if most else last


def counted(number: int, noun: str) -> str:
    """Writes 1 run, 2 runs."""
    return f'{number} {noun}' + ('' if number == 1 else 's')


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def _deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of what seeds are a sample of; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _seeds(values: Sequence[float]) -> str:
    """Writes percentages of seeds as mean and standard deviation."""
    deviation = _deviation(values)
    return percent(_mean(values) / 100) + ('' if deviation is None else f' ± {deviation:.1f}')


def _interval(low: float, high: float, sign: str = '') -> str:
    return f'{100 * low:{sign}.1f} to {100 * high:{sign}.1f}'


def _mark_best(
    rows: list[list[Any]], values: Sequence[Sequence[float]], columns: Sequence[int], most: bool = True
) -> None:
    """Marks the best numbers of columns, as they are shown, where not all are equal.

    Args:
        rows: of a table, to be changed.
        values: a row of numbers for each row, NaN where there is none; as many as columns.
        columns: of the table.
        most: whether more is better.
    """
    for place, column in enumerate(columns):
        shown = np.array([np.round(row[place], 1) for row in values], float)
        if len(set(shown[~np.isnan(shown)])) > 1:
            best = np.nanmax(shown) if most else np.nanmin(shown)
            for row, value in zip(rows, shown):
                row[column] = Cell(row[column], best=bool(value == best))


def _question(findings: Findings) -> list[Any]:
    """Gives the experiment's docstring but for its first paragraph."""
    blocks: list[Any] = []
    for part in findings.sweep['docstring'].strip().split('\n\n')[1:]:
        lines = part.strip('\n').splitlines()
        if lines and all(line.startswith('    ') for line in lines):
            blocks.append(Verbatim('\n'.join(line[4:] for line in lines)))
        elif lines:
            blocks.append(Paragraph(' '.join(part.split())))
    return blocks


def _summary(findings: Findings) -> list[Any]:
    """Says in words how many runs there are, which group is best, and which differences are to be believed."""
    runs = [run for group in findings.groups for run in group.runs]
    finished, failed = ([run for run in runs if run.status == status] for status in (FINISHED, FAILED))
    missing = [run for run in runs if run.status not in (FINISHED, FAILED)]
    counts = [f'{len(finished)} of {counted(len(runs), "run")} finished']
    counts += [f'{len(failed)} failed'] if failed else []
    counts += [f'{len(missing)} did not run yet'] if missing else []
    blocks: list[Any] = [Paragraph(', '.join(counts) + '.')]
    if failed:
        blocks.append(Items([_failure(run) for run in failed]))
    if missing:
        blocks.append(Paragraph(f'Not run yet: {listed(run.run for run in missing)}.'))
    if findings.forgotten:
        blocks.append(Paragraph(f'Left out, since the experiment has them no longer: {listed(findings.forgotten)}.'))
    for truth in findings.images:
        blocks += _ranking(findings, truth)
    if findings.intervals:
        blocks.append(Paragraph(_caveat(findings)))
    return blocks


def _ranking(findings: Findings, truth: str) -> list[Paragraph]:
    """Says which group has most on a ground truth, and from which others it can be told."""
    groups = [group for group in findings.groups if group.truth == truth and group.name in findings.intervals]
    if not groups:
        return []
    metric, where = name_of(findings.judged), f' on {truth}' if len(findings.images) > 1 else ''
    best = max(groups, key=lambda group: findings.intervals[group.name].value)
    interval = findings.intervals[best.name]
    ends = _interval(interval.low, interval.high)
    size = f'{percent(interval.value)} (95 % interval over {OVER[best.over_images]}: {ends})'
    if len(groups) == 1:
        return [Paragraph(f'{best.name} has {metric} {size}{where}; there is nothing to compare it with.')]
    sentences = [f'Highest {metric}{where}: {best.name}, {size}.']
    names = {group.name for group in groups}
    for over_images, start, trained in ((False, '', ''), (True, 'Over images only, ', 'the trained ')):
        pairs = [
            pair for pair in findings.pairs if pair.over_images == over_images and {pair.group, pair.other} <= names
        ]
        mine = [pair for pair in pairs if best.name in (pair.group, pair.other)]
        if mine:
            sentences.append(f'{start}{trained}{best.name} is {_verdicts(best.name, mine)}.')
        if rest := [pair for pair in pairs if pair not in mine]:
            differ = sum(pair.differ for pair in rest)
            sentences.append(f'{start}{differ} of {counted(len(rest), "other pair")} can be told apart.')
    return [Paragraph(' '.join(sentences))]


def _verdicts(best: str, pairs: Sequence[Pair]) -> str:
    """Says from which groups the best one is distinguishable, and from which not."""

    def others(differ: bool) -> list[str]:
        nearest_first = sorted(pairs, key=lambda pair: abs(pair.comparison.difference))
        return [
            f'{pair.other if pair.group == best else pair.group} ({abs(100 * pair.comparison.difference):.1f} less)'
            for pair in nearest_first
            if pair.differ == differ
        ]

    same, different = others(differ=False), others(differ=True)
    parts = []
    if len(different) > FEW:
        parts.append(f'distinguishable from {len(different)} others, of which {different[0]} is nearest')
    elif different:
        parts.append(f'distinguishable from {listed(different)}')
    if same:
        parts.append(f'{NOT} from {listed(same)}')
    return ', but '.join(parts)


def _caveat(findings: Findings) -> str:
    """Says what the intervals and p-values are about, and what they are not."""
    judged = [group for group in findings.groups if group.name in findings.intervals]
    single = [group.name for group in judged if group.over_images]
    sentences = []
    if len(single) < len(judged):
        sentences.append(
            'What is over images and trainings is about configurations, trained anew and judged on other images like these.'
        )
    if single:
        named = f' ({listed(single)})' if len(single) <= FEW else ''
        sentences.append(
            'What is over images only is about the very networks that were trained, on other images like these. It supports no '
            'conclusion about their methods: how far another training would be from one is not known of the '
            f'{counted(len(single), "group")} with one seed{named}.'
        )
    if findings.pairs:
        comparisons = counted(len(findings.pairs), 'comparison')
        sentences.append(
            f'{NOT.capitalize()} means that p, adjusted by Holm for {comparisons}, is {SIGNIFICANT:.2f} or more; '
            'it does not mean equal.'
        )
    fewest = min(size['images'] for size in findings.images.values())
    # Images can be swapped in 2^images ways, and each has a mirror image.
    least = max(1 / (1 + findings.permutations), 2.0 ** (1 - fewest))
    if all(pair.over_images for pair in findings.pairs) and least * len(findings.pairs) >= SIGNIFICANT:
        sentences.append(
            f'Nothing can be distinguishable here: for so many comparisons {counted(fewest, "image")} and '
            f'{findings.permutations} permutations are too few.'
        )
    return ' '.join(sentences)


def _results(findings: Findings) -> list[Any]:
    """Tabulates the groups, and what is published beside them."""
    metrics, judged = findings.sweep['metrics'], findings.judged
    prefix = 'mask_' if judged.startswith('mask_') else ''
    sizes = [prefix + size for size in SIZES if prefix + size not in metrics]
    shown = [*metrics, *(size for size in sizes if any(group.values(size) for group in findings.groups))]
    before = ['group', 'seeds', *map(name_of, shown), '95 % interval', 'over', 'steps', 'minutes', 'M params']
    costs = _cost_columns(findings)
    rows, values, prices, notes = [], [], [], {}
    for number, group in enumerate(findings.groups):
        runs, interval = group.finished, findings.intervals.get(group.name)
        values.append([_mean(group.values(metric)) for metric in shown])
        prices.append([price(group) for price in costs.values()])
        rows.append(
            [
                group.name,
                str(len(runs)) if len(runs) == len(group.runs) else f'{len(runs)} of {len(group.runs)}',
                *(_seeds(group.values(metric)) for metric in shown),
                _interval(interval.low, interval.high) if interval else '–',
                OVER[group.over_images] if interval else '–',
                ', '.join(str(steps) for steps in sorted({run.steps for run in runs})) or '–',
                _one_digit(_mean([run.seconds / 60 for run in runs])),
                f'{runs[0].parameters / 1e6:.2f}' if runs else '–',
                *map(_one_digit, prices[-1]),
            ]
        )
        if failed := [_failure(run) for run in group.runs if run.status == FAILED]:
            notes[number] = '; '.join(failed)
    _mark_best(rows, values, range(2, 2 + len(shown)))
    _mark_best(rows, prices, range(len(before), len(before) + len(costs)), most=False)
    caption = (
        f'Metrics in percent, mean and standard deviation over seeds, the highest in bold; the interval is of '
        f'{name_of(judged)}, over {_over(findings)}. '
        'Minutes are of a run, on a machine that may have done other things.'
    )
    if costs:
        caption += ' The last two columns are time and memory of prediction, see its cost.'
    blocks: list[Any] = [Table(caption, [*before, *costs], rows, words=['over'], notes=notes)]
    if shared := [run for group in findings.groups for run in group.finished if run.trained]:
        trainings = listed(dict.fromkeys(run.trained for run in shared))
        blocks.append(
            Paragraph(f'Not trained anew, but with the training of {trainings}: {listed(run.run for run in shared)}.')
        )
    return [*blocks, *_published(findings)]


def _over(findings: Findings) -> str:
    """Says what the intervals of groups are over."""
    kinds = {OVER[group.over_images] for group in findings.groups if group.name in findings.intervals}
    return ' or, of one seed, '.join(sorted(kinds))


def _one_digit(value: float) -> str:
    return '–' if np.isnan(value) else f'{value:.1f}'


def _failure(run: Result) -> str:
    """Says why a run failed."""
    return f'{run.run} failed: {code(run.reason)}'


def _published(findings: Findings) -> list[Table]:
    """Sets what was measured beside what is published, each with its difference to the first row."""
    metrics = [
        metric for metric in findings.sweep['metrics'] if any(metric in _of_paper(group) for group in findings.groups)
    ]
    if not metrics:
        return []
    first = findings.groups[0]
    rows = []
    for group in findings.groups:
        row = [group.name]
        for metric in metrics:
            here, there = _mean(group.values(metric)), _mean(first.values(metric))
            row.append('–' if np.isnan(here) else f'{here:.1f}' + _gain(here - there, group is first))
            paper, base = _of_paper(group).get(metric), _of_paper(first).get(metric)
            row.append(
                '–' if paper is None else f'{paper:.1f}' + ('' if base is None else _gain(paper - base, group is first))
            )
        rows.append(row)
    columns = ['group', *(f'{name_of(metric)} {what}' for metric in metrics for what in ('here', 'published'))]
    caption = f'Beside what is published, percent; in parentheses the difference to {first.name}.'
    return [Table(caption, columns, rows)]


def _of_paper(group: Group) -> dict[str, float]:
    return group.runs[0].published


def _gain(difference: float, first: bool) -> str:
    return '' if first or np.isnan(difference) else f' ({difference:+.1f})'


def _comparisons(findings: Findings) -> list[Any]:
    """Tabulates all pairs, as a matrix if they are many."""
    if not findings.pairs:
        return []
    metric = name_of(findings.judged)
    how = []
    if not all(pair.over_images for pair in findings.pairs):
        how.append(
            f'Over images and trainings: the error of a difference in {metric} has a part of images, which are drawn with '
            'replacement for all trainings alike, and a part of trainings, from what those of a group differ by; interval and '
            "p-value are of Student's t, with as many degrees of freedom as the parts have (`crossed_test` in "
            '`detzoo/evaluation/statistics.py`).'
        )
    if any(pair.over_images for pair in findings.pairs):
        how.append(
            f'Over images only, where a group has one seed: the same images, drawn with replacement for both, give the interval '
            f'of a difference in {metric}; the images of a pair, swapped at random {findings.permutations} times, its p-value. '
            'A difference is one of these trained networks, not of their methods.'
        )
    how.append(f'p-values are adjusted by Holm for {counted(len(findings.pairs), "comparison")}.')
    table = _matrix(findings, metric) if len(findings.pairs) > PAIRS else _pair_table(findings, metric)
    return [Paragraph(' '.join(how)), table]


def _pair_table(findings: Findings, metric: str) -> Table:
    rows = []
    for pair in findings.pairs:
        test = pair.comparison
        rows.append(
            [
                f'{pair.group} − {pair.other}',
                Cell(f'{100 * test.difference:+.1f}', best=pair.differ),
                _interval(test.low, test.high, '+'),
                OVER[pair.over_images],
                p_value(test.p_value),
                p_value(pair.adjusted),
                Cell(NOT, faint=True)
                if not pair.differ
                else 'these networks differ'
                if pair.over_images
                else 'different',
            ]
        )
    columns = ['pair', f'difference in {metric}', '95 % interval', 'over', 'p', 'p, adjusted', 'verdict']
    caption = f'Differences in {metric}, percentage points.'
    if any(pair.over_images for pair in findings.pairs):
        caption += (
            ' Over images only, interval, p-values and verdict are of the trained networks, not of their methods.'
        )
    return Table(caption, columns, rows, words=['over', 'verdict'])


def _matrix(findings: Findings, metric: str) -> Table:
    found = {(pair.group, pair.other): pair for pair in findings.pairs}
    names = list(dict.fromkeys(name for pair in findings.pairs for name in (pair.other, pair.group)))

    def cell(row: str, column: str) -> Cell:
        pair, sign = (found[row, column], 1) if (row, column) in found else (found.get((column, row)), -1)
        if pair is None:
            return Cell('–', faint=True)
        text = f'{100 * sign * pair.comparison.difference:+.1f}' + ('†' if pair.over_images else '')
        return Cell(text, best=True) if pair.differ else Cell(f'{text} n.d.', faint=True)

    rows = [[row, *(cell(row, column) for column in names)] for row in names]
    caption = f'{metric} of the row less that of the column, percentage points. Bold: different; n.d.: {NOT}.'
    if any(pair.over_images for pair in findings.pairs):
        caption += ' †: over images only, of the trained networks, not of their methods.'
    return Table(caption, ['group', *names], rows)


def _figures(findings: Findings) -> list[Any]:
    """Draws the figures that the experiment asks for."""
    blocks = []
    for number, axes in enumerate(findings.sweep['figures'], start=1):
        blocks += _scatter(findings, f'figure-{number}', **axes)
    return blocks


def _scatter(
    findings: Findings, name: str, x: str, y: str, log: bool = False, pareto: bool = False, batch: int = 1
) -> list[Drawing | Paragraph]:
    """Draws a point for each group (see `sweep.Axes`), or says why there is none."""
    x_label, y_label = _label(findings, x, batch), _label(findings, y, batch)
    points, absent = [], []
    for group in findings.groups:
        at, height = _value(findings, group, x, batch), _value(findings, group, y, batch)
        if at is None or height is None or isinstance(height, str):
            absent += [group.name] if group.finished else []
        else:
            points.append(plots.Point(group.name, group.series, at, height, *_ends(findings, group, y)))
    if not points:
        why = 'costs were not measured' if {x, y} & MEASURED and not findings.costs else 'no group has both'
        return [Paragraph(f'No figure of {y_label} over {x_label}: {why}.')]
    caption = f'{y_label} over {x_label}.'
    if any(point.low is not None for point in points):
        interval = f'95 % interval over {_over(findings)}'
        caption += f' Bars: the {interval if y == findings.judged else "standard deviation over seeds"}.'
    if pareto:
        caption += ' Grey: the Pareto front of these numbers.'
    if absent:
        caption += f' Not shown, for want of a number: {listed(absent)}.'
    places = '; '.join(f'{point.group} {_short(point.y)} at {_short(point.x)}' for point in points)
    alt = f'{y_label} over {x_label}: {places}.'
    figure = plots.scatter(points, findings.looks, x_label, y_label, log=log, pareto=pareto)
    return [Drawing(name, caption, alt, figure)]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f'{value:.4g}'


def _value(findings: Findings, group: Group, name: str, batch: int) -> float | str | None:
    """Finds a metric, a cost or a config key of a group; a key that is no number comes as a word."""
    if not group.finished:
        return None
    if name in PRICES:
        return _price(findings, group, name, batch)
    if any(name in run.metrics for run in group.finished):
        values = group.values(name)
        return _mean(values) if values else None
    leaves = _leaves(group.finished[0].config)
    if name not in leaves:
        return None
    value = leaves[name]
    if name == 'data.train_split':
        return images_of_split(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number or isinstance(value, str) else json.dumps(value)


def images_of_split(split: str) -> int | None:
    """Counts the images of a split like 'train[:400]'; None where its text does not say."""
    total = 0
    for part in split.split('+'):
        match = re.fullmatch(r'\w+\[(\d*):(\d+)\]', part.strip())
        if match is None:
            return None
        total += int(match[2]) - int(match[1] or 0)
    return total


def _ends(findings: Findings, group: Group, metric: str) -> tuple[float | None, float | None]:
    """The ends of an error bar: of the interval or, of a metric that has none, the standard deviation over seeds."""
    if metric == findings.judged:
        interval = findings.intervals.get(group.name)
        return (100 * interval.low, 100 * interval.high) if interval else (None, None)
    values = group.values(metric)
    deviation = _deviation(values)
    return (None, None) if deviation is None else (_mean(values) - deviation, _mean(values) + deviation)


def _label(findings: Findings, name: str, batch: int) -> str:
    """Names an axis."""
    if name in PRICES:
        return PRICES[name].label.format(images=counted(batch, 'image'))
    if name == 'data.train_split':
        return 'training images'
    is_metric = any(name in run.metrics for group in findings.groups for run in group.finished)
    return f'{name_of(name)}, %' if is_metric else name


class Price(NamedTuple):
    """A cost of prediction.

    label: of an axis.
    of: finds it in a row of `stages.measure`, in the label's unit.
    """

    label: str
    of: Callable[[dict[str, Any]], float]


MEASURED = {'seconds', 'peak_bytes', 'flops'}
PRICES = {
    'seconds': Price('time for {images}, ms', lambda row: 1e3 * row['p50_seconds']),
    'peak_bytes': Price('peak memory for {images}, MiB', lambda row: row['peak_bytes'] / 2**20),
    'flops': Price('GFLOPs an image', lambda row: row['flops'] / row['batch'] / 1e9),
    'parameters': Price('parameters, millions', lambda row: row['parameters'] / 1e6),
}


def _price(findings: Findings, group: Group, name: str, batch: int) -> float | None:
    """Finds a cost of a group; the number of parameters is known without measuring."""
    if name == 'parameters' and group.finished:
        return group.finished[0].parameters / 1e6
    row = findings.costs.get(group.name, {}).get(batch)
    return PRICES[name].of(row) if row else None


def _cost_columns(findings: Findings) -> dict[str, Callable[[Group], float]]:
    """Columns of the results, with the costs of the fewest images that were measured: {head: number of a group}."""
    if not findings.costs:
        return {}
    batch = min(batch for of_group in findings.costs.values() for batch in of_group)

    def column(name: str) -> Callable[[Group], float]:
        return lambda group: np.nan if (price := _price(findings, group, name, batch)) is None else price

    return {'ms': column('seconds'), 'peak MiB': column('peak_bytes')}


def _cost_blocks(findings: Findings) -> list[Any]:
    """Draws accuracy over time and memory, and tabulates what prediction costs, by stage too."""
    estimated = [_estimate_table(findings.estimates)] if findings.estimates else []
    if not findings.costs:
        return estimated
    measured = [row for of_group in findings.costs.values() for row in of_group.values()]
    batch = min(row['batch'] for row in measured)
    devices = listed(dict.fromkeys(f'{row["device"]}, {row["dtype"]}' for row in measured))
    blocks: list[Any] = [
        Paragraph(
            f'What predicting costs on {devices}, of trained detectors on validation images. Times are of all images at once, '
            'medians of many runs after a warm-up. A stage takes what the program that ends with it takes more than the one '
            'before: next to nothing may come out below 0. Its peak memory is that of this program.'
        )
    ]
    drawn = {(axes['x'], axes['y'], axes['batch']) for axes in findings.sweep['figures']}
    for name, cost, pareto in (('speed-accuracy', 'seconds', True), ('memory-accuracy', 'peak_bytes', False)):
        if (cost, findings.judged, batch) not in drawn:
            blocks += _scatter(findings, name, cost, findings.judged, log=True, pareto=pareto, batch=batch)
    rows = {name: of_group[batch] for name, of_group in findings.costs.items() if batch in of_group}
    times = {
        name: {stage['stage']: max(0.0, 1e3 * stage['p50_seconds']) for stage in row['stages']}
        for name, row in rows.items()
    }
    caption = f'Time of {counted(batch, "image")} by stage, ms.'
    figure = plots.stage_bars(times, 'ms')
    blocks.append(Drawing('stages', caption, f'{caption} The numbers are in the table below.', figure))
    return [*blocks, _stage_table(rows, batch), _cost_table(measured), *estimated]


def _stage_table(rows: Mapping[str, dict[str, Any]], batch: int) -> Table:
    """Tabulates the stages of groups."""
    cells = [
        [
            f'{name}, {stage["stage"]}',
            f'{1e3 * stage["p50_seconds"]:.2f}',
            f'{100 * stage["p50_seconds"] / row["p50_seconds"]:.0f}',
            f'{stage["parameters"] / 1e6:.3f}',
            f'{stage["flops"] / 1e9:.3f}',
            f'{stage["peak_bytes"] / 2**20:.1f}',
        ]
        for name, row in rows.items()
        for stage in row['stages']
    ]
    caption = f'Stages of predicting {counted(batch, "image")}.'
    return Table(caption, ['stage', 'ms', '% of time', 'M params', 'GFLOPs', 'peak MiB'], cells, folded=True)


def _cost_table(measured: Sequence[dict[str, Any]]) -> Table:
    """Tabulates groups by the number of images at once."""
    cells = []
    for row in measured:
        times = (row[f'{part}{quantile}_seconds'] for part in ('', 'network_', 'post_') for quantile in ('p50', 'p90'))
        height, width = row['canvas']
        cells.append(
            [
                row['name'],
                str(row['batch']),
                f'{height} x {width}',
                *(f'{1e3 * seconds:.2f}' for seconds in times),
                f'{PRICES["flops"].of(row):.2f}',
                f'{PRICES["peak_bytes"].of(row):.1f}',
                f'{row["compile_seconds"]:.1f}',
            ]
        )
    caption = 'Median (p50) and 90 % quantile (p90) of times in ms: of all, of the network, and of post-processing.'
    columns = ['group', 'images', 'canvas', 'p50', 'p90', 'network p50', 'network p90', 'post p50', 'post p90']
    return Table(caption, [*columns, 'GFLOPs an image', 'peak MiB', 'compile s'], cells)


def _estimate_table(estimates: Sequence[dict[str, Any]]) -> Table:
    """Tabulates what the TPU compiler says."""
    cells = [
        [
            row['name'],
            f'{row["chips"]} x {row["topology"]}',
            str(row['images'] // row['chips']),
            f'{1e3 * row["total_seconds"]:.3f}',
            f'{row["flops"] / 1e9:.2f}',
            f'{row["peak_bytes"] / 2**20:.1f}',
            ', '.join(f'{stage} {1e3 * seconds:.3f}' for stage, seconds in row['seconds'].items()),
        ]
        for row in estimates
    ]
    caption = (
        'Prediction on TPUs as their compiler estimates it; nothing was measured. Times are lower bounds: sorts, reshapes and '
        'collectives have no figure. FLOPs and memory are of a chip.'
    )
    columns = ['group', 'chips', 'images a chip', 'ms', 'GFLOPs', 'peak MiB', 'ms by stage']
    return Table(caption, columns, cells, words=['chips', 'ms by stage'])


def _training(findings: Findings) -> list[Any]:
    """Draws loss and validation over steps."""
    if not findings.curves:
        return []
    metric, curves = name_of(findings.judged), []
    for group, stored in findings.curves:
        training, validation = stored['training'], stored['validation']
        values = _numbers(validation.get(findings.judged, [None] * len(validation['step'])))
        curves.append(
            plots.Curve(group, training['step'], _numbers(training['loss']), validation['step'], 100 * values)
        )
    caption = (
        f'Training loss, averaged over some steps, and {metric} on the validation images. A line is a run. The losses of '
        'different detectors are not to be compared.'
    )
    last = (f'{curve.group} {percent(curve.validation[-1] / 100)}' for curve in curves if len(curve.validation))
    alt = f'Training loss and validation {metric} over steps. Last {metric}: {"; ".join(last)}.'
    return [Drawing('training', caption, alt, plots.training_curves(curves, findings.looks, f'{metric}, %'))]


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


class _Part(NamedTuple):
    """The groups of one ground truth, of which a sweep rarely has two: then words and the names of files tell it."""

    truth: str
    groups: list[Group]
    where: str
    suffix: str


def _parts(findings: Findings) -> list[_Part]:
    several = len(findings.images) > 1
    return [
        _Part(
            truth,
            [group for group in findings.groups if group.truth == truth],
            where=f' on {truth}' if several else '',
            suffix=f'-{truth}' if several else '',
        )
        for truth in findings.images
    ]


def _precision(findings: Findings) -> list[Any]:
    """Draws precision over recall: of the mean over classes and, if they are few, of each."""
    return [block for part in _parts(findings) for block in _precision_of(findings, part)]


def _precision_of(findings: Findings, part: _Part) -> list[Any]:
    curves = {group.name: findings.precision[group.name] for group in part.groups if group.name in findings.precision}
    if not curves:
        return []
    names = list(next(iter(curves.values())))
    of = 'masks' if findings.judged.startswith('mask_') else 'boxes'
    keys = 'recall', 'precision@50', 'precision@75'
    means = {
        group: {key: np.mean([curve[key] for curve in classes.values()], axis=0) for key in keys}
        for group, classes in curves.items()
    }
    areas = '; '.join(
        f'{group} {" and ".join(percent(mean[key].mean()) for key in keys[1:])}' for group, mean in means.items()
    )
    caption = (
        f'Precision over recall of {of}{part.where}, the mean over classes and seeds, at IoU 0.50 and 0.75. The areas below '
        'are AP50 and AP75.'
    )
    alt = f'Precision-recall curves{part.where}. Areas below at IoU 0.50 and 0.75: {areas}.'
    blocks: list[Any] = [
        Drawing(f'precision-recall{part.suffix}', caption, alt, plots.mean_pr_curves(means, findings.looks))
    ]
    if len(names) > plots.MANY:
        return [*blocks, Paragraph(f'{len(names)} classes are too many for a figure of each; their AP is below.')]
    if len(names) > 1:
        of_classes = {name: {group: classes[name] for group, classes in curves.items()} for name in names}
        caption = f'Precision over recall of each class{part.where}, the mean over seeds.'
        alt = f'Precision-recall curves of {listed(names)}{part.where}; their AP is in the table of classes.'
        figure = plots.class_pr_curves(of_classes, findings.looks)
        blocks.append(Drawing(f'precision-recall-classes{part.suffix}', caption, alt, figure))
    return blocks


def _classes(findings: Findings) -> list[Any]:
    """Draws and tabulates AP by class."""
    return [block for part in _parts(findings) for block in _classes_of(findings, part)]


def _classes_of(findings: Findings, part: _Part) -> list[Any]:
    key = 'mask_AP' if findings.judged.startswith('mask_') else 'AP'
    names = list(dict.fromkeys(name for group in part.groups for run in group.finished for name in run.per_class))
    if len(names) < 2:
        return []
    values = {name: {group.name: _class_mean(group, name, key) for group in part.groups} for name in names}
    rows = []
    for name, of_groups in values.items():
        cells = [[_one_digit(value)] for value in of_groups.values()]
        _mark_best(cells, [[value] for value in of_groups.values()], [0])
        rows.append([name, *(cell for (cell,) in cells)])
    caption = f'{name_of(key)} of each class{part.where}, percent, the mean over seeds.'
    table = Table(caption, ['class', *(group.name for group in part.groups)], rows)
    if all(np.isnan(value) for of_groups in values.values() for value in of_groups.values()):
        return [table]
    figure = plots.class_dots(values, findings.looks, f'{name_of(key)}, %')
    return [Drawing(f'classes{part.suffix}', caption, f'{caption} The numbers are in the table below.', figure), table]


def _class_mean(group: Group, name: str, key: str) -> float:
    """Averages a metric of a class over seeds, in percent; NaN where there is none."""
    return 100 * _mean([value for run in group.finished if (value := run.per_class.get(name, {}).get(key)) is not None])


def _errors(findings: Findings) -> list[Any]:
    """Draws and tabulates the kinds of errors."""
    if not findings.errors:
        return []
    ap50 = 'mask AP50' if findings.judged.startswith('mask_') else 'AP50'
    text = Paragraph(
        f'What each kind of error costs: the {ap50} that would be gained if it alone were fixed (TIDE, arXiv 2008.08115). '
        'A detection has a wrong class, a wrong place, or both, is a second one of its object, or is on background; an object '
        'may be missed. The gains do not add up. A high one says where there is most to win.'
    )
    kinds = {name: {kind: of[kind] for kind in ERRORS} for name, of in findings.errors.items()}
    caption = f'Points of {ap50} that each kind of error costs, the mean over seeds.'
    alt = caption + ' The numbers are in the table below.'
    figure = plots.error_bars(kinds, findings.looks, f'points of {ap50}')
    columns = [*ERRORS, 'false_positives', 'false_negatives']
    rows = [
        [name, *(f'{percent(of[kind] / 100)} ({findings.counts[name][kind]:.0f})' for kind in columns)]
        for name, of in findings.errors.items()
    ]
    _mark_best(
        rows,
        [[of[kind] for kind in columns] for of in findings.errors.values()],
        range(1, 1 + len(columns)),
        most=False,
    )
    table = Table(
        f'{caption} In parentheses: how many there are.', ['group', *(kind.replace('_', ' ') for kind in columns)], rows
    )
    return [text, Drawing('errors', caption, alt, figure), table]


def _differences(findings: Findings) -> list[Any]:
    """Gives the configs of all runs, as far as they differ, and how they differ from the first."""
    runs = [run for group in findings.groups for run in group.runs]
    runs.sort(key=lambda run: [row['run'] for row in findings.sweep['runs']].index(run.run))
    if len(runs) < 2:
        return []
    leaves = {run.run: _leaves(run.config) for run in runs}
    keys = sorted({key for of_run in leaves.values() for key in of_run})
    varied = [key for key in keys if any(of_run.get(key) != leaves[runs[0].run].get(key) for of_run in leaves.values())]
    first = ml_collections.ConfigDict(runs[0].config)
    rows = []
    for run in runs[1:]:
        changed = differences(first, ml_collections.ConfigDict(run.config))
        rows += [[run.run, code(key), code(before), code(here)] for key, (before, here) in changed.items()]
        rows += [[run.run, 'none', '', '']] if not changed else []
    caption = f'Differences to the first run, {runs[0].run}.'
    columns = ['run', 'config key', runs[0].run, 'here']
    return [
        Chooser({run.run: {key: leaves[run.run].get(key) for key in varied} for run in runs}),
        Table(caption, columns, rows, words=columns, folded=True),
    ]


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the values of a config by their dotted keys."""
    return dict(flatten(ml_collections.ConfigDict(config)))


def _pictures(findings: Findings) -> list[Any]:
    """Shows validation images with the objects, and with what each group found."""
    blocks: list[Any] = []
    for part in _parts(findings):
        shown = {group.name: findings.store.results_of(group.finished[0].run) for group in part.groups}
        names = {path.stem for folder in shown.values() for path in (folder / 'panels').glob('*.jpg')}
        for name in sorted(names, key=lambda name: (len(name), name)):  # numbers by their size
            folders = {'ground truth': findings.store.truth(part.truth), **shown}
            paths = {caption: folder / 'panels' / f'{name}.jpg' for caption, folder in folders.items()}
            title = f'Image {name}{part.where}'
            panels = [Panel(path, caption, f'{title}: {caption}') for caption, path in paths.items() if path.exists()]
            blocks.append(Gallery(title, panels))
    text = (
        'Validation images with the objects, and with what was found (score over 0.3); masks are tinted. '
        'Of several seeds: the first.'
    )
    return [Paragraph(text), *blocks] if blocks else []


def _assignment(findings: Findings) -> list[Any]:
    """Shows what each group takes as positive, negative and ignored."""
    panels = []
    for group in (group for group in findings.groups if group.finished):
        for path in sorted((findings.store.results_of(group.finished[0].run) / 'assignment').glob('*.jpg')):
            caption = f'{group.name}: {STAGES.get(path.stem, path.stem)}'
            panels.append(Panel(path, caption, f'Assignment of {caption}'))
    text = (
        'What the loss of each detector takes from the same image. Thick lines: objects; thin lines of the same colour: the '
        'boxes that are to learn them. Dots are the middles of boxes: coloured if positive, white if negative, black if ignored.'
    )
    return [Paragraph(text), Gallery('Positive, negative and ignored', panels)] if panels else []


STAGES = {'rpn': 'anchors of the RPN', 'rois': 'RoIs of the second stage'}  # of which the name alone says too little


def _setup(findings: Findings) -> list[Any]:
    """Says with what the results were made."""
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
    return [Table('With what the results were made.', ['what', 'value'], rows, words=['value'])]
