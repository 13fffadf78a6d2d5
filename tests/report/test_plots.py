"""Tests of figures: what they show, and that a page can hold several."""

import re

from detzoo.report import plots
from detzoo.report.points import Point, pareto_front, scatter


def test_pareto_front_keeps_what_none_beats():
    points = [(3, 5), (1, 2), (2, 2), (2, 4), (4, 5), (3, 6), (0.5, 1)]
    assert pareto_front(points) == [6, 1, 3, 5]  # (2, 2) costs more than (1, 2), (3, 5) finds less than (3, 6)
    assert pareto_front([(1, 1), (1, 1)]) == [0] and pareto_front([]) == []


def test_styles_give_a_series_one_hue_and_each_group_a_look_of_its_own():
    looks = plots.styles({'a1': 'a', 'a2': 'a', 'a3': 'a', 'b': 'b'})
    assert looks['a2'].color == plots.HUES[0].lower() and looks['b'].color == plots.HUES[1].lower()
    blues = [int(looks[name].color[1:], 16) for name in ('a1', 'a2', 'a3')]
    assert blues == sorted(blues) and len(set(blues)) == 3  # ever lighter
    assert (
        len({looks[name].marker for name in ('a1', 'a2', 'a3')}) == len({looks[f'a{i}'].line for i in (1, 2, 3)}) == 3
    )
    many = plots.styles({f'g{index}': f'g{index}' for index in range(56)})
    assert len({(look.color, look.marker) for look in many.values()}) == 56


def test_scatter_takes_words_and_zeros():
    looks = plots.styles({'a': 'a', 'b': 'a', 'c': 'c'})
    words = [Point('a', 'a', 'relu', 1.0), Point('b', 'a', 'gelu', 2.0), Point('c', 'c', 'relu', 3.0)]
    figure = scatter(words, looks, 'x', 'y', log=True, pareto=False)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ['relu', 'gelu']

    def joined(figure):
        return [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]

    assert not joined(figure)
    (line,) = joined(scatter(words, looks, 'x', 'y', ordered=True))  # of the series a, from relu to gelu
    assert list(line.get_xdata()) == [0, 1] and list(line.get_ydata()) == [1, 2]
    zero = [Point('a', 'a', 0.0, 1.0), Point('b', 'a', 1.0, 2.0, 1.5, 2.5)]
    assert scatter(zero, looks, 'x', 'y', log=True, pareto=True).axes[0].get_xscale() == 'linear'
    equal = [Point('a', 'a', 3, 1.0), Point('b', 'a', 3, 2.0)]
    assert scatter(equal, looks, 'x', 'y', log=True, pareto=False).axes[0].get_xscale() == 'linear'
    positive = [Point('a', 'a', 100, 1.0), Point('b', 'a', 1600, 2.0)]
    axes = scatter(positive, looks, 'x', 'y', log=True, pareto=False).axes[0]
    assert axes.get_xscale() == 'log' and list(axes.get_xticks()) == [100, 1600]


def test_inline_svg_names_are_of_one_figure_and_text_is_text():
    points = [Point('a $1$', 's', 1.0, 2.0)]
    figure = scatter(points, plots.styles({'a $1$': 's'}), 'cost', 'AP, %', log=False, pareto=False)
    text = plots.inline(plots.svg(figure), 'mine')
    ids = re.findall(r' id="([^"]+)"', text)
    assert ids and all(name.startswith('mine-') for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(ids)
    assert '>a $1$</text>' in text and '>cost</text>' in text and '<style' not in text


def test_stage_bars_keep_the_order_of_stages():
    short, long = {'backbone': 2.0, 'heads': 1.0, 'post': 1.0}, {'backbone': 1.0, 'rpn': 2.0, 'heads': 1.0, 'post': 3.0}
    axes = plots.stage_bars({'one': short, 'two': long}, 'ms').axes[0]
    assert axes.get_legend_handles_labels()[1] == ['backbone', 'rpn', 'heads', 'post']
    ends = {bars.get_label(): [bar.get_x() + bar.get_width() for bar in bars] for bars in axes.containers}
    assert ends == {'backbone': [2, 1], 'rpn': [2, 3], 'heads': [3, 4], 'post': [4, 7]}
