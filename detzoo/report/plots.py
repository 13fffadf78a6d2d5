"""Figures that compare groups of runs: matplotlib without windows, the same bytes for the same numbers.

    {group: series} -> `styles`: a look for each group, the same in all figures
    numbers by group, styles -> training_curves, mean_pr_curves, class_pr_curves, class_dots, reliability_curves,
      error_bars, stage_bars, histograms
      -> Figure -> `svg`: a file, which `inline` makes a part of a page; or `picture`: an array for `visualize.write_image`
    `settings`, `new_figure`, `plain`, `shaded`: what other modules draw figures of the same look with (`points`, `matrices`)

Each series has a hue, and each of its groups a shade of it, a marker and a line style of its own. The hues are those of Okabe
and Ito, which colour-blind readers can tell apart. AP and precision are in percent; None is a missing number.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

HUES = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#555555'
MARKERS = 'o', 's', '^', 'D', 'v', 'P', 'X', '<'  # one more than hues, so that pairs of both repeat late
LINES = '-', '--', '-.', ':'
PARTS = '#77AADD', '#EE8866', '#EEDD88', '#FFAABB', '#44BB99', '#BBCC33', '#DDDDDD'  # of bars' parts, not of groups
INK = '#333333'
DOT = dict(markersize=7, markeredgecolor='white', markeredgewidth=0.6)
WIDTH = 7.5  # inches
MANY = 12  # largest number of classes that have a plot each
SETTINGS = {
    'axes.axisbelow': True,
    'axes.edgecolor': '#888888',
    'axes.grid': True,
    'axes.labelcolor': INK,
    'axes.labelsize': 9.5,
    'axes.linewidth': 0.8,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 9.5,
    'font.sans-serif': ['DejaVu Sans'],  # comes with matplotlib; wide, so that others fit in its place
    'font.size': 9,
    'grid.color': '#E4E4E4',
    'grid.linewidth': 0.7,
    'legend.frameon': False,
    'legend.fontsize': 9,
    'lines.linewidth': 1.5,
    'lines.markersize': 5,
    'svg.fonttype': 'none',  # text stays text, which can be searched, copied and edited
    'svg.hashsalt': 'detzoo',
    'text.color': INK,
    'text.parse_math': False,  # a name may hold a dollar
    'xtick.color': INK,
    'xtick.labelsize': 8.5,
    'ytick.color': INK,
    'ytick.labelsize': 8.5,
}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, 'DejaVu Sans', sans-serif"  # fonts of pages


class Style(NamedTuple):
    """How a group looks."""

    color: str
    marker: str
    line: str


class Curve(NamedTuple):
    """A run's loss and validation AP over steps; missing numbers are NaN."""

    group: str
    steps: Sequence[float]
    loss: Sequence[float]
    validation_steps: Sequence[float]
    validation: Sequence[float]


def styles(series: Mapping[str, str]) -> dict[str, Style]:
    """Chooses the looks of groups: {group: series}, in their order -> {group: Style}."""
    names = list(dict.fromkeys(series.values()))
    looks = {}
    for group, name in series.items():
        members = [other for other in series if series[other] == name]
        index, member = names.index(name), members.index(group)
        shade = 0.0 if len(members) == 1 else 0.4 * (2 * member / (len(members) - 1) - 1)
        looks[group] = Style(
            color=shaded(HUES[index % len(HUES)], shade),
            marker=MARKERS[(index + member) % len(MARKERS)],
            line=LINES[(member + index // len(HUES)) % len(LINES)],
        )
    return looks


def svg(figure: Figure) -> str:
    """Writes a figure as an SVG file, its text as text."""
    file = io.StringIO()
    with settings():
        figure.savefig(file, format='svg', metadata={key: None for key in ('Creator', 'Date', 'Format', 'Type')})
    return re.sub(r'<[^>]+>', _rounded, re.sub(r'\n +', '\n', file.getvalue()))


def _rounded(tag: re.Match) -> str:
    """Rounds the numbers of an SVG tag to hundredths of a point, which halves the file."""
    return re.sub(r'\d+\.\d{3,}', lambda number: f'{float(number[0]):.2f}'.rstrip('0').rstrip('.'), tag[0])


def inline(file: str, prefix: str) -> str:
    """Turns an SVG file into an <svg> element that can be in a page with others.

    Args:
        file: an SVG file, from `svg`.
        prefix: prefix of the ids in it, different for each figure of a page.
    """
    text = file[file.index('<svg') :]
    width = float(re.search(r' width="([\d.]+)pt"', text)[1])
    if width > 72 * WIDTH:  # its text would become too small: a page scrolls it instead
        text = text.replace('<svg ', f'<svg style="min-width: {width:.0f}pt" ', 1)
    # A <style> would apply to the whole page, and HTML needs no namespaces.
    text = re.sub(r'<style.*?</style>|<!--.*?-->| xmlns(:xlink)?="[^"]*"', '', text, flags=re.S)
    text = text.replace('xlink:href', 'href').replace("'DejaVu Sans', sans-serif", FONTS)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else '', text)
    return re.sub(r'(href="#|url\(#)', rf'\g<1>{prefix}-', text)


def picture(figure: Figure) -> np.ndarray:
    """Draws a figure at 200 dots an inch: [h, w, 3] uint8."""
    with settings():
        figure.set_dpi(200)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def training_curves(curves: Sequence[Curve], looks: Mapping[str, Style], metric: str) -> Figure:
    """Draws the training loss and a validation metric of all runs over steps; all seeds of a group look alike."""
    with settings():
        figure, (left, right) = new_figure(3.6, columns=2, sharex=True)
        for curve in curves:
            look = looks[curve.group]
            style = dict(color=look.color, marker=look.marker, linestyle=look.line, linewidth=1.2, markersize=4)
            every = max(1, len(curve.steps) // 8)
            left.plot(curve.steps, curve.loss, markevery=(every // 2, every), label=curve.group, **style)
            right.plot(curve.validation_steps, curve.validation, label=curve.group, **style)
        if any(np.nanmin(curve.loss, initial=math.inf) > 0 for curve in curves):
            left.set_yscale('log')
            plain(left.yaxis)
        left.set(xlabel='step', ylabel='training loss')
        right.set(xlabel='step', ylabel=metric)
        right.set_ylim(bottom=0)
        _legend(figure, left)
        return figure


def mean_pr_curves(curves: Mapping[str, Mapping[str, np.ndarray]], looks: Mapping[str, Style]) -> Figure:
    """Draws precision over recall, the mean of all classes, at IoU .5 and .75.

    Args:
        curves: {group: {'recall': [101], 'precision@50': [101], 'precision@75': [101]}}, 0..1.
        looks: looks of groups, from `styles`.
    """
    with settings():
        figure, panels = new_figure(3.9, columns=2, sharey=True)
        for axes, at in zip(panels, (50, 75)):
            for group, curve in curves.items():
                _pr_curve(axes, curve, at, looks[group], group)
            axes.set(xlabel='recall, %', title=f'IoU 0.{at}', xlim=(0, 100), ylim=(0, 102))
        panels[0].set_ylabel('precision, %')
        _legend(figure, panels[0])
        return figure


def class_pr_curves(curves: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], looks: Mapping[str, Style]) -> Figure:
    """Draws precision over recall of each class, at IoU .5 above and at .75 below.

    Args:
        curves: {class: {group: curve}}, see `mean_pr_curves`; at most MANY classes.
        looks: looks of groups, from `styles`.
    """
    with settings():
        columns = min(4, len(curves))
        bands = math.ceil(len(curves) / columns)
        figure, panels = new_figure(0.5 + 3.6 * bands, rows=2 * bands, columns=columns, sharex=True, sharey=True)
        panels = np.reshape(panels, (2 * bands, columns))
        for index, (name, of_groups) in enumerate(curves.items()):
            band, column = divmod(index, columns)
            for row, at in ((2 * band, 50), (2 * band + 1, 75)):
                axes = panels[row, column]
                for group, curve in of_groups.items():
                    _pr_curve(axes, curve, at, looks[group], group)
                axes.set(title=f'{name}, IoU 0.{at}', xlim=(0, 100), ylim=(0, 102))
        for axes in panels.flat[-columns:]:
            axes.set_xlabel('recall, %')
        for axes in panels[:, 0]:
            axes.set_ylabel('precision, %')
        for index in range(len(curves), bands * columns):
            for row in (-2, -1):
                panels[row, index % columns].set_visible(False)
        _legend(figure, panels[0, 0])
        return figure


def class_dots(values: Mapping[str, Mapping[str, float]], looks: Mapping[str, Style], label: str) -> Figure:
    """Draws a row for each class with a marker for each group: {class: {group: percent, or NaN}}."""
    with settings():
        figure, axes = new_figure(1.1 + 0.32 * len(values))
        for group in next(iter(values.values())):
            look, dots = looks[group], [of_groups[group] for of_groups in values.values()]
            axes.plot(dots, range(len(values)), color=look.color, marker=look.marker, linestyle='', label=group, **DOT)
        _rows(axes, values)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        _legend(figure, axes)
        return figure


def reliability_curves(curves: Mapping[str, Mapping[str, np.ndarray]], looks: Mapping[str, Style]) -> Figure:
    """Draws precision over confidence, and how many detections have which confidence.

    Args:
        curves: {group: {'confidence': [n], 'precision': [n], 'share': [n]}}, 0..1; NaN where there are no detections.
        looks: looks of groups, from `styles`.
    """
    with settings():
        figure, (left, right) = new_figure(3.9, columns=2)
        left.plot([0, 100], [0, 100], color='#999999', linewidth=1, linestyle=':')
        for group, curve in curves.items():
            style = dict(
                color=looks[group].color, marker=looks[group].marker, linestyle=looks[group].line, linewidth=1.2
            )
            for axes, key in ((left, 'precision'), (right, 'share')):
                axes.plot(100 * curve['confidence'], 100 * curve[key], label=group, **style)
        left.set(xlabel='confidence, %', ylabel='precision, %', xlim=(0, 100), ylim=(0, 102))
        right.set(xlabel='confidence, %', ylabel='share of detections, %', xlim=(0, 100))
        right.set_ylim(bottom=0)
        _legend(figure, left)
        return figure


def error_bars(errors: Mapping[str, Mapping[str, float]], looks: Mapping[str, Style], label: str) -> Figure:
    """Draws a panel for each kind of error with a bar for each group: {group: {kind: percent, or NaN}}."""
    with settings():
        kinds = list(next(iter(errors.values())))
        columns = min(3, len(kinds))
        rows = math.ceil(len(kinds) / columns)
        height = 0.5 + rows * (0.55 + 0.22 * len(errors))
        figure, panels = new_figure(height, rows=rows, columns=columns, sharex=True, sharey=True, squeeze=False)
        for axes, kind in zip(panels.flat, kinds):
            values = [of_kind[kind] for of_kind in errors.values()]
            bars = axes.barh(range(len(errors)), values, color=[looks[group].color for group in errors], height=0.7)
            axes.bar_label(bars, ['' if np.isnan(value) else f'{value:.1f}' for value in values], padding=3, fontsize=8)
            axes.set_title(kind)
            axes.grid(axis='y', visible=False)
        _rows(panels.flat[0], errors)
        widest = np.nanmax([list(of_kind.values()) for of_kind in errors.values()], initial=1.0)
        panels.flat[0].set_xlim(0, 1.3 * widest)
        for axes in panels[-1]:
            axes.set_xlabel(label)
        return figure


def stage_bars(stages: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """Draws a bar for each group, cut into its stages: {group: {stage: cost}}."""
    with settings():
        figure, axes = new_figure(1.2 + 0.32 * len(stages))
        longest_first = sorted(stages.values(), key=len, reverse=True)  # its order of stages is the most complete
        names = list(dict.fromkeys(name for of_group in longest_first for name in of_group))
        left = np.zeros(len(stages))
        for index, name in enumerate(names):
            values = np.array([of_group.get(name, 0.0) for of_group in stages.values()])
            style = dict(
                color=PARTS[index % len(PARTS)], edgecolor='white', hatch='//' if index >= len(PARTS) else None
            )
            axes.barh(range(len(stages)), values, left=left, label=name, height=0.7, **style)
            left += values
        _rows(axes, stages)
        axes.set_xlabel(label)
        axes.grid(axis='y', visible=False)
        _legend(figure, axes)
        return figure


def histograms(panels: Mapping[str, Mapping[str, np.ndarray]], edges: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draws a panel for each quantity with the shares of values between edges, an outline for each group.

    Args:
        panels: {quantity with its unit: {group: [n] values}}; values beyond the outer edges count in the outer bins.
        edges: {quantity: [bins + 1] ascending}; a quantity whose edges grow by equal factors has a logarithmic axis.
        label: what a group's values are, for the vertical axis.
    """
    with settings():
        figure, axes_of = new_figure(3.1, columns=len(panels), squeeze=False)
        for axes, (quantity, groups) in zip(axes_of.flat, panels.items()):
            bins = edges[quantity]
            for color, line, (group, values) in zip(HUES, LINES, groups.items()):
                counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
                shares = 100 * counts / max(1, counts.sum())
                axes.stairs(shares, bins, color=color, linestyle=line, linewidth=1.5, label=group)
                axes.stairs(shares, bins, color=color, fill=True, alpha=0.12)
            if bins[0] > 0 and np.allclose(np.diff(np.log(bins)), np.log(bins[1] / bins[0])):
                axes.set_xscale('log')
                plain(axes.xaxis)
            axes.set(xlabel=quantity, xlim=(bins[0], bins[-1]))
        axes_of.flat[0].set_ylabel(label)
        _legend(figure, axes_of.flat[0])
        return figure


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Replaces matplotlib's settings, the user's included, by those of this module."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(height: float, width: float = WIDTH, **grid: Any) -> tuple[Figure, Any]:
    """Makes a figure with axes, or a grid of them, that draws itself with Agg; sizes in inches."""
    names = {'rows': 'nrows', 'columns': 'ncols'}
    figure = Figure(figsize=(width, height), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.05)
    return figure, figure.subplots(**{names.get(key, key): value for key, value in grid.items()})


def _rows(axes: Axes, names: Iterable[str]) -> None:
    """Names rows from top to bottom."""
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def shaded(color: str, shade: float) -> str:
    """Mixes a colour with black (shade < 0) or white (shade > 0)."""
    return to_hex((1 - abs(shade)) * np.array(to_rgb(color)) + max(0.0, shade))


def _pr_curve(axes: Axes, curve: Mapping[str, np.ndarray], at: int, look: Style, label: str) -> None:
    """Draws a curve up to its fall to 0."""
    precision = 100 * curve[f'precision@{at}']
    reached = min(len(precision), np.count_nonzero(precision) + 1)
    axes.plot(
        100 * curve['recall'][:reached],
        precision[:reached],
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markevery=(5, 10),
        markersize=3.5,
        linewidth=1.2,
        label=label,
    )


def plain(axis: Any, values: Sequence[float] = ()) -> None:
    """Writes 0.02 instead of 2 x 10^-2 at a logarithmic axis; if values are few and far apart, only they have ticks."""
    low, high = axis.get_view_interval()
    places = sorted(set(values))
    apart = all(after / before > 1.25 for before, after in zip(places, places[1:]))
    if 1 < len(places) <= 8 and apart:
        axis.set_major_locator(FixedLocator(places))
    elif high < 8 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.3g}' if value < 1000 else f'{value:.0f}'))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    """Names each look once in a legend at the bottom, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(reversed(labels), reversed(handles)))  # keeps the first of each name
    names = list(dict.fromkeys(labels))
    columns = max(1, min(len(names), int(95 // (max(map(len, names), default=0) + 7))))
    if names:
        figure.legend([unique[name] for name in names], names, loc='outside lower center', ncols=columns)
