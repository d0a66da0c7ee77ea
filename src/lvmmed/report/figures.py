"""Line charts and dot-and-interval plots as inline SVG that follows the page's colours."""

import io
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lvmmed.report.groups import NUM_STYLES, Group
from lvmmed.report.scores import DataSet, Key, Score, head_title, write_number
from lvmmed.report.training import SHARED_SCALE, graph_size, mean_curve, series, thinned

INK, SOFT, GRID = "#010101", "#020202", "#030303"
STYLE_COLOURS = tuple(f"#0400{number:02x}" for number in range(NUM_STYLES))
_CSS_NAMES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--line)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(STYLE_COLOURS)},
}
"""Stand-in colours of the drawing -> the page's variables, which change with light and dark."""

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 1.6),
    (1.2, 1.4),
    (6, 1.5, 1.2, 1.5),
    (8, 2),
    (3, 1.2),
    (6, 1.5, 1.2, 1.5, 1.2, 1.5),
    (2, 2),
)
"""Dash lengths of each style in line widths, so that colour is never alone."""

MARKERS = "osD^vPXo"
_DRAWING: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lvmmed",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
}


def drawing() -> AbstractContextManager[None]:
    """Settings of matplotlib for every figure of the page, while the context lasts."""
    return mpl.rc_context(_DRAWING)


def curve_panel(
    groups: Sequence[Group], styles: Mapping[str, int], *, column: str, title: str, name: str
) -> str:
    """Draw one column of metrics.jsonl over steps: runs thin, their mean thick.

    Args:
        groups: pre-training groups.
        styles: label -> number of colour and line style.
        column: column of metrics.jsonl.
        title: heading of the panel.
        name: unique name in the page; ids in the SVG start with it.

    Returns:
        An <svg> element.
    """
    with drawing():
        figure = Figure(figsize=(3.7, 2.25))
        axes = figure.add_axes((0.125, 0.185, 0.86, 0.7))  # the same in all, so that panels align
        for group in groups:
            _draw_group(axes, group, styles[group.label], column)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.margins(x=0.01)
        if column in SHARED_SCALE:
            axes.set_ylim(0, 1)
            _draw_chance(axes, groups)
        elif column == "learning_rate":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
            axes.set_ylim(bottom=0)
        elif column == "effective_rank":
            axes.set_ylim(bottom=0)
        return to_svg(figure, name=name, label=f"{title} over training steps")


def _draw_group(axes: Axes, group: Group, style: int, column: str) -> None:
    curves = [curve for run in group.runs if len((curve := series(run, column))[0])]
    colour = STYLE_COLOURS[style]
    for curve in curves if len(curves) > 1 else []:
        axes.plot(*thinned(*curve), color=colour, linewidth=0.6, alpha=0.4)
    steps, values = mean_curve(curves)
    axes.plot(
        *thinned(steps, values),
        color=colour,
        linewidth=1.6 if len(curves) > 1 else 1.4,
        linestyle=(0, DASHES[style]) if DASHES[style] else "-",
        marker="o" if len(steps) == 1 else None,
        markersize=3,
    )


def _draw_chance(axes: Axes, groups: Sequence[Group]) -> None:
    for size in sorted({size for group in groups if (size := graph_size(group.runs[0]))}):
        chance = 1 / size
        axes.axhline(chance, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            f"chance 1/{size}",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7,
            color=SOFT,
        )


def interval_plot(
    data: DataSet, styles: Mapping[str, int], *, keys: Sequence[Key], title: str, name: str
) -> str:
    """Draw one metric on one split: a row for each head and encoder, dot, interval and seeds.

    Args:
        data: data set with its judged groups.
        styles: label -> number of colour and marker.
        keys: head, split and metric of each block of rows, all of one metric.
        title: heading of the panel.
        name: unique name in the page; ids in the SVG start with it.

    Returns:
        An <svg> element.
    """
    blocks = [(key, [judged for judged in data.groups if key in judged.scores]) for key in keys]
    num_rows = sum(1 + len(members) for _, members in blocks)
    with drawing():
        figure = Figure(figsize=(4.4, 0.66 + 0.2 * num_rows), layout="constrained")
        axes = figure.add_subplot()
        labels: list[str] = []
        for key, members in blocks:
            labels.append(head_title(key[0]))
            for judged in members:
                _draw_score(axes, len(labels), judged.scores[key], styles[judged.group.label])
                labels.append(judged.group.label)
        _label_rows(axes, labels, {head_title(key[0]) for key in keys})
        axes.set_title(title)
        is_share = write_number(0.5, keys[0][2]) != "0.500"
        axes.set_xlabel("percent" if is_share else "times 100")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.06)
        return to_svg(figure, name=name, label=title)


def _label_rows(axes: Axes, labels: Sequence[str], headings: Set[str]) -> None:
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    for label in axes.get_yticklabels():
        if label.get_text() in headings:
            label.set_color(SOFT)


def _draw_score(axes: Axes, place: float, score: Score, style: int) -> None:
    colour, marker = STYLE_COLOURS[style], MARKERS[style]
    if score.low is not None and score.high is not None:
        axes.plot(
            [100 * score.low, 100 * score.high],
            [place, place],
            color=colour,
            linewidth=1.5,
            solid_capstyle="butt",
        )
    seeds = score.per_seed if len(score.per_seed) > 1 else ()
    axes.plot(
        [100 * seed for seed in seeds],
        [place] * len(seeds),
        linestyle="none",
        marker="|",
        markersize=7,
        markeredgewidth=0.8,
        color=colour,
        alpha=0.7,
    )
    axes.plot([100 * score.mean], [place], marker=marker, markersize=5, color=colour)


def to_svg(figure: Figure, *, name: str, label: str) -> str:
    """Turn a figure into an inline SVG element whose ids no other figure of the page has.

    Args:
        figure: drawn with the stand-in colours of this module.
        name: prefix of every id; letters, digits and dashes.
        label: alternative text.

    Returns:
        The <svg> element, scaling to the width it is given.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", text)
    for colour, variable in _CSS_NAMES.items():
        text = text.replace(colour, variable)
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return re.sub(r"\n\s*", "\n", text.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1))
