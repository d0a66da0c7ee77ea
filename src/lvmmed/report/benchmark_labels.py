"""Curves of a benchmark: scores over the share of the labels that a probe was fitted on."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lvmmed.evaluation.benchmark_table import BenchmarkTable, Column, Encoder
from lvmmed.report.benchmark_figures import axis_title
from lvmmed.report.figures import DASHES, INK, MARKERS, SOFT, STYLE_COLOURS, drawing, to_svg

NUM_COLOURED = 3
"""Methods of a plot that are told apart; the others are grey, their figures stand in the table."""


def label_plot(
    table: BenchmarkTable, curve: Sequence[Column], initialisation: str, *, name: str
) -> str:
    """Draw a probe's score over shares of the labels, a line for each method of one start.

    The reference and the methods with the best mean over the shares are in colour, with their
    intervals; the others are thin and grey.

    Args:
        table: results.
        curve: columns of one of its `label_curves`.
        initialisation: whose methods are drawn.
        name: unique name in the page; ids in the SVG start with it.

    Returns:
        An <svg> element.
    """
    encoders = [e for e in table.encoders_from(initialisation) if _points(table, e, curve)]
    coloured = _coloured(table, encoders, curve)
    with drawing():
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for encoder in encoders:
            if encoder not in coloured:
                shares, means = zip(*_points(table, encoder, curve), strict=True)
                axes.plot(shares, means, color=SOFT, linewidth=0.6, alpha=0.6)
        for style, encoder in enumerate(coloured):
            _draw_coloured(axes, table, encoder, curve, style)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([100 * one.label_share for one in curve]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("labels, percent")
        axes.set_ylabel(axis_title(_whole(curve[-1])))
        axes.set_title(f"{curve[0].task}, from {initialisation}")
        if coloured:
            axes.legend(loc="lower right", frameon=False, labelcolor=INK, fontsize=7)
        return to_svg(figure, name=name, label=f"{curve[0].task}: few labels, {initialisation}")


def _whole(column: Column) -> Column:
    """The column of all labels that a curve leads to, whether it was measured or not."""
    return Column(task=column.task, split=column.split, metric=column.metric_of_all_labels)


def _points(
    table: BenchmarkTable, encoder: Encoder, curve: Sequence[Column]
) -> list[tuple[float, float]]:
    """Share of the labels and mean score, in percent, of the columns that have a score."""
    found = ((column.label_share, table.cell(encoder, column)) for column in curve)
    return [
        (100 * share, 100 * cell.mean) for share, cell in found if cell and cell.mean is not None
    ]


def _coloured(
    table: BenchmarkTable, encoders: Sequence[Encoder], curve: Sequence[Column]
) -> list[Encoder]:
    """The reference first, then the best of the others that have every share."""
    whole = [e for e in encoders if len(_points(table, e, curve)) == len(curve)]
    sign = 1 if curve[0].lower_is_better else -1

    def place(encoder: Encoder) -> tuple[bool, float]:
        mean = float(np.mean([score for _, score in _points(table, encoder, curve)]))
        return encoder.method != table.reference, sign * mean

    return sorted(whole, key=place)[:NUM_COLOURED]


def _draw_coloured(
    axes: Axes, table: BenchmarkTable, encoder: Encoder, curve: Sequence[Column], style: int
) -> None:
    colour = STYLE_COLOURS[style]
    shares, means = zip(*_points(table, encoder, curve), strict=True)
    axes.plot(
        shares,
        means,
        color=colour,
        linewidth=1.4,
        dashes=DASHES[style] or (1, 0),
        marker=MARKERS[style],
        markersize=3.5,
        label=" ".join(encoder.method.split()),
    )
    for column in curve:
        cell = table.cell(encoder, column)
        if cell is not None and cell.ci95 is not None:
            # side by side, not on top of each other
            share = 100 * column.label_share * (1 + 0.04 * (style - 1))
            axes.plot([share] * 2, [100 * end for end in cell.ci95], color=colour, linewidth=0.9)
