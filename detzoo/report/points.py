"""Figures of one number over another, in the look of `plots`: a named point for each group."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from detzoo.report.plots import DOT, Style, new_figure, plain, settings


class Point(NamedTuple):
    """A group in a scatter plot.

    x, y: numbers; or words as the x of all points.
    low, high: ends of the error bar of y, or None.
    """

    group: str
    series: str
    x: float | str
    y: float
    low: float | None = None
    high: float | None = None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points that no other point beats in x (less is better) or y (more is better) without being worse in the other.

    Returns:
        indices of these points, in the order of x.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def scatter(
    points: Sequence[Point],
    looks: Mapping[str, Style],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    pareto: bool = False,
    ordered: bool = False,
) -> Figure:
    """Draws a named point for each group, joins the points of a series by a line, and marks the Pareto front.

    Args:
        points: at least one point.
        looks: looks of groups, from `styles`.
        x_label, y_label: labels of the axes, with units.
        log: whether x is logarithmic; ignored if an x is a word, 0 or less, or if all are equal.
        pareto: whether to draw the front; less x and more y are better.
        ordered: whether lines join points whose x are words too.
    """
    with settings():
        figure, axes = new_figure(4.4)
        words = any(isinstance(point.x, str) for point in points)
        order = list(dict.fromkeys(str(point.x) for point in points))
        places = [order.index(str(point.x)) if words else float(point.x) for point in points]
        if words:
            axes.set_xticks(range(len(order)), order)
            axes.set_xlim(-0.5, len(order) - 0.5)
        elif log and 0 < min(places) < max(places):
            axes.set_xscale('log')
        if pareto:
            front = pareto_front(list(zip(places, (point.y for point in points))))
            steps = [(places[index], points[index].y) for index in front]
            axes.step(
                *zip(*steps), where='post', color='#BBBBBB', linewidth=5, alpha=0.6, zorder=1, label='Pareto front'
            )
        for name in dict.fromkeys(point.series for point in points):
            members = sorted((x, point.y, point.group) for x, point in zip(places, points) if point.series == name)
            if len({x for x, *_ in members}) > 1 and (ordered or not words):
                color = looks[members[len(members) // 2][2]].color
                axes.plot(*zip(*[(x, y) for x, y, _ in members]), color=color, linewidth=1, zorder=2)
        for x, point in zip(places, points):
            look = looks[point.group]
            if point.low is not None and point.high is not None:
                ends = [[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]]
                axes.errorbar(x, point.y, ends, color=look.color, capsize=3, linewidth=1, alpha=0.7, zorder=2)
            axes.plot(x, point.y, color=look.color, marker=look.marker, zorder=3, **DOT)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(y=0.14) if words else axes.margins(0.12, 0.14)
        if min(point.y if point.low is None else point.low for point in points) >= 0:
            axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        if axes.get_xscale() == 'log':
            plain(axes.xaxis, places)
        _name_points(figure, axes, [(x, point.y, point.group) for x, point in zip(places, points)])
        if pareto:
            axes.legend(loc='lower right')
        return figure


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes names beside points, each at the place where it hides least."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    middles = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in middles]
    places = [(7, 4, 'left', 'bottom'), (7, -4, 'left', 'top'), (-7, 4, 'right', 'bottom'), (-7, -4, 'right', 'top'),
              (0, 8, 'center', 'bottom'), (0, -8, 'center', 'top'), (7, 14, 'left', 'bottom'), (7, -14, 'left', 'top'),
              (-7, 14, 'right', 'bottom'), (-7, -14, 'right', 'top')]  # fmt: skip

    def hidden(box: Bbox) -> float:
        shared = (Bbox.intersection(box, other) for other in taken)
        inside = Bbox.intersection(box, frame)
        beyond = box.width * box.height - (inside.width * inside.height if inside else 0.0)
        return 2 * beyond + sum(part.width * part.height for part in shared if part)

    for x, y, name in points:
        tried = []
        for dx, dy, horizontal, vertical in places:
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords='offset points', ha=horizontal, va=vertical, fontsize=8.5
            )
            tried.append((text, text.get_window_extent(renderer)))
        best = min(range(len(tried)), key=lambda index: hidden(tried[index][1]))
        taken.append(tried[best][1])
        for index, (text, _) in enumerate(tried):
            if index != best:
                text.remove()
