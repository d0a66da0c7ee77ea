"""Plots of a benchmark: scores with intervals, and mean ranks with the critical difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lvmmed.evaluation.benchmark_table import BenchmarkTable, CellScore, Column
from lvmmed.evaluation.ranking import Ranking
from lvmmed.report.benchmark_text import column_detail
from lvmmed.report.figures import GRID, INK, MARKERS, SOFT, STYLE_COLOURS, drawing, to_svg
from lvmmed.report.scores import write_number

_ROW_IN = 0.28
"""Height of a method's row in inches."""

_WIDTH_IN, _MIN_AXIS_IN, _AXIS_IN = 7.4, 4.0, 0.72
"""Least width of a rank plot and of its axis, and height at which the axis stands."""

_LEADER_IN, _BAR_IN = 0.2, 0.12
"""Distance of labels, and of bars, below each other."""

_LETTER_IN = 0.072
"""Width of a letter in labels, on average."""


def score_plot(table: BenchmarkTable, column: Column, *, name: str) -> str:
    """Draw one column: a row for each method, a dot with its interval for each initialisation.

    Args:
        table: results.
        column: column to draw.
        name: unique name in the page; ids in the SVG start with it.

    Returns:
        An <svg> element; initialisations have colours and markers 0, 1, ... in order.
    """
    methods = list(dict.fromkeys(encoder.method for encoder in table.encoders))
    starts = table.initialisations
    with drawing():
        figure = Figure(figsize=(4.4, 0.66 + _ROW_IN * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        for encoder in table.encoders:
            cell = table.cell(encoder, column)
            style = starts.index(encoder.initialisation)
            offset = 0.5 * ((style + 0.5) / len(starts) - 0.5)
            if cell is not None and cell.mean is not None:
                _draw_cell(axes, methods.index(encoder.method) + offset, cell, style)
        _label_methods(axes, methods, table.reference)
        axes.set_title(column.task)
        axes.set_xlabel(axis_title(column))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.06)
        return to_svg(figure, name=name, label=f"{column.task}: {column_detail(column)}")


def axis_title(column: Column) -> str:
    """What an axis of a column's scores holds, with its unit; plots show 100 times the score."""
    is_share = write_number(0.5, column.metric.rpartition(".")[2]) != "0.500"
    return f"{column_detail(column)}, {'percent' if is_share else 'times 100'}"


def _draw_cell(axes: Axes, place: float, cell: CellScore, style: int) -> None:
    colour = STYLE_COLOURS[style % len(STYLE_COLOURS)]
    marker = MARKERS[style % len(MARKERS)]
    if cell.ci95 is not None:
        ends = [100 * end for end in cell.ci95]
        axes.plot(ends, [place, place], color=colour, linewidth=1.3, solid_capstyle="butt")
    seeds = [100 * value for value in cell.per_seed if value is not None]
    if len(seeds) > 1:
        axes.plot(
            seeds,
            [place] * len(seeds),
            linestyle="none",
            marker="|",
            markersize=5,
            markeredgewidth=0.7,
            color=colour,
            alpha=0.7,
        )
    axes.plot([100 * (cell.mean or 0.0)], [place], marker=marker, markersize=4, color=colour)


def _label_methods(axes: Axes, methods: Sequence[str], reference: str | None) -> None:
    axes.set_yticks(range(len(methods)), [" ".join(method.split()) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    for label, method in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_fontweight("bold" if method == reference else "normal")
    for row in range(1, len(methods), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.3, linewidth=0)


def rank_plot(ranking: Ranking, *, reference: str | None, label: str, name: str) -> str:
    """Draw mean ranks on an axis, best left, with bars that join methods that do not differ.

    Args:
        ranking: mean ranks and their critical difference.
        reference: method to set in bold.
        label: alternative text.
        name: unique name in the page; ids in the SVG start with it.

    Returns:
        An <svg> element.

    Source:
        Demsar, Statistical comparisons of classifiers over multiple data sets (2006), figure 1.
    """
    layout = _rank_layout(ranking)
    with drawing():
        figure = Figure(figsize=(layout.width, layout.height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, layout.width)
        axes.set_ylim(layout.height, 0)  # inches from the top
        _draw_axis(axes, layout, len(ranking.names))
        _draw_critical_difference(axes, layout, ranking)
        for clique, level in zip(ranking.cliques, layout.levels, strict=True):
            left, right = (layout.x(rank) for rank in _ends(ranking, clique))
            y = _AXIS_IN + 0.14 + _BAR_IN * level
            axes.plot(
                [left - 0.04, right + 0.04],
                [y, y],
                color=STYLE_COLOURS[0],
                linewidth=3,
                solid_capstyle="butt",
            )
        for place in range(len(ranking.names)):
            _draw_leader(axes, layout, ranking, place, reference)
        return to_svg(figure, name=name, label=label)


@dataclass(frozen=True, kw_only=True, slots=True)
class _RankLayout:
    """Where things stand in a rank plot, in inches from the top left.

    Attributes:
        width: width of the plot.
        margin: width left for labels on either side.
        rank_in: width of one rank.
        levels: line of each clique's bar, counted from the axis.
        first_leader: height of the first labels.
        height: height of the plot.
    """

    width: float
    margin: float
    rank_in: float
    levels: tuple[int, ...]
    first_leader: float
    height: float

    def x(self, rank: float) -> float:
        """Place of a rank."""
        return self.margin + self.rank_in * (rank - 1)


def _rank_layout(ranking: Ranking) -> _RankLayout:
    num = len(ranking.names)
    margin = 0.35 + _LETTER_IN * (6 + max(len(method) for method in ranking.names))
    width = max(_WIDTH_IN, 2 * margin + _MIN_AXIS_IN)
    levels = _bar_levels(ranking)
    first_leader = _AXIS_IN + 0.3 + _BAR_IN * (1 + max(levels, default=-1))
    return _RankLayout(
        width=width,
        margin=margin,
        rank_in=(width - 2 * margin) / (num - 1),
        levels=levels,
        first_leader=first_leader,
        height=first_leader + _LEADER_IN * (num // 2 + 1),
    )


def _ends(ranking: Ranking, clique: Sequence[str]) -> tuple[float, float]:
    """Best and worst mean rank of a clique."""
    ranks = [ranking.mean_ranks[ranking.names.index(method)] for method in clique]
    return min(ranks), max(ranks)


def _bar_levels(ranking: Ranking) -> tuple[int, ...]:
    """Put each bar on the first line where it touches no other."""
    last_end: list[float] = []
    levels = []
    for low, high in (_ends(ranking, clique) for clique in ranking.cliques):
        gap = 0.04 * len(ranking.names)
        free = [level for level, end in enumerate(last_end) if low - end > gap]
        level = free[0] if free else len(last_end)
        last_end[level : level + 1] = [high]
        levels.append(level)
    return tuple(levels)


def _draw_axis(axes: Axes, layout: _RankLayout, num: int) -> None:
    axes.plot([layout.x(1), layout.x(num)], [_AXIS_IN, _AXIS_IN], color=SOFT, linewidth=0.8)
    step = max(1, math.ceil(num / 12))
    for rank in range(1, num + 1):
        x, tick = layout.x(rank), 0.07 if (rank - 1) % step == 0 else 0.04
        axes.plot([x, x], [_AXIS_IN - tick, _AXIS_IN], color=SOFT, linewidth=0.8)
        if (rank - 1) % step == 0:
            axes.text(x, _AXIS_IN - 0.11, f"{rank}", ha="center", va="bottom", color=SOFT)


def _draw_critical_difference(axes: Axes, layout: _RankLayout, ranking: Ranking) -> None:
    fits = ranking.critical_difference <= len(ranking.names) - 1
    length = ranking.critical_difference if fits else len(ranking.names) - 1
    ends, y = (layout.x(1), layout.x(1 + length)), 0.3
    axes.plot(ends, [y, y], color=INK, linewidth=1.2)
    for x in ends if fits else ends[:1]:
        axes.plot([x, x], [y - 0.05, y + 0.05], color=INK, linewidth=1.2)
    beyond = "" if fits else ", longer than the axis"
    text = f"critical difference {ranking.critical_difference:.2f}{beyond}"
    axes.text(layout.x(1), y - 0.09, text, ha="left", va="bottom", color=INK)


def _draw_leader(
    axes: Axes, layout: _RankLayout, ranking: Ranking, place: int, reference: str | None
) -> None:
    """Join a mean rank with its label: the better half on the left, the worse on the right."""
    num, rank = len(ranking.names), ranking.mean_ranks[place]
    method = " ".join(ranking.names[place].split())  # on one line
    is_left = place < (num + 1) // 2
    depth = place if is_left else num - 0.5 - place  # never level with one on the other side
    y = layout.first_leader + _LEADER_IN * depth
    x = layout.x(rank)
    edge = layout.margin - 0.12 if is_left else layout.width - layout.margin + 0.12
    axes.plot([x, x, edge], [_AXIS_IN, y, y], color=SOFT, linewidth=0.7)
    axes.text(
        edge + (-0.06 if is_left else 0.06),
        y,
        f"{method}  {rank:.2f}" if is_left else f"{rank:.2f}  {method}",
        ha="right" if is_left else "left",
        va="center",
        fontweight="bold" if ranking.names[place] == reference else "normal",
    )
