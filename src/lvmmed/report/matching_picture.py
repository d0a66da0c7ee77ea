"""Matched graphs as a PNG: nodes as pictures, nearest-neighbour edges, matches by kind.

Lengths are in hundredths of an inch, x to the right and y down.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from lvmmed.files import write_atomically
from lvmmed.report.pictures import MatchedGraph

DPI = 140
NODE, ROW, TITLE, LEGEND, FOOT = 42, 50, 42, 122, 10
"""Side of a node; heights of its row, of a graph's title, of the legend above all, of the rest."""
ARCS, GAP, LINES = 92, 22, 310
"""Widths for the edges of a view, for the number beside a node, and for the matches."""
GRAPH = 2 * (ARCS + NODE + GAP) + LINES
TITLE_LETTERS = 56
"""Letters of the heading that fit over one graph."""
INK, SOFT, EDGE, CARRIED = "#1a2027", "#59646f", "#c3cbd2", "#3a4650"
STYLES: dict[str, dict[str, Any]] = {
    "right": {"color": "#0072b2", "linewidth": 1.5},
    "corrected": {"color": "#00805c", "linewidth": 2.8, "marker": "D"},
    "wrong": {"color": "#c94f00", "linewidth": 1.7, "linestyle": (0, (5, 3))},
    "spoilt": {"color": "#a0478a", "linewidth": 1.9, "linestyle": (0, (6, 2, 1, 2)), "marker": "X"},
}
"""Kind of a match -> how its line is drawn; colour is never alone."""
MEANINGS = {
    "right": "right",
    "corrected": "right, wrong without edges (corrected)",
    "wrong": "wrong",
    "spoilt": "wrong, right without edges (spoilt)",
}
FIRST: dict[str, Any] = {"color": SOFT, "linewidth": 1.0, "linestyle": (0, (1, 2.5))}
MARKER_AT = 0.2
"""Where on a line its marker stands, as a share of the way from view s."""


def draw_matchings(graphs: Sequence[MatchedGraph], out: Path, *, title: str) -> None:
    """Draw graphs with their matchings into a PNG.

    Each graph is two columns of pictures: its images in view s and in view t, row for row. A match
    is right when it is level. Edges to nearest neighbours bow outwards, dark where the matching
    carries them over to edges of the other view.

    Args:
        graphs: at least one.
        out: file to write; its folder exists.
        title: heading of the picture; of a long one the end is shown.
    """
    columns = min(2, len(graphs))
    rows = [graphs[start : start + columns] for start in range(0, len(graphs), columns)]
    heights = [TITLE + ROW * max(len(graph.pairs) for graph in row) for row in rows]
    width, height = columns * GRAPH, LEGEND + sum(heights) + FOOT
    with mpl.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(width / 100, height / 100), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        longest = TITLE_LETTERS * columns
        _draw_legend(axes, graphs, title if len(title) <= longest else f"... {title[-longest:]}")
        top = LEGEND
        for start, (row, row_height) in enumerate(zip(rows, heights, strict=True)):
            for place, graph in enumerate(row):
                corner = (place * GRAPH, top)
                _draw_graph(axes, graph, corner, number=start * columns + place + 1)
            top += row_height
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write_atomically(out, lambda temporary: temporary.write_bytes(content.getvalue()))


def _draw_graph(
    axes: Axes, graph: MatchedGraph, corner: tuple[float, float], *, number: int
) -> None:
    left, top = corner[0] + ARCS, corner[1] + TITLE
    right = left + NODE + 2 * GAP + LINES
    num_nodes = len(graph.pairs)
    text = (
        f"graph {number}: {graph.count('right', 'corrected')} of {num_nodes} right with edges, "
        f"{graph.count('right', 'spoilt')} without"
    )
    axes.text(corner[0] + GRAPH / 2, corner[1] + 16, text, color=INK, fontsize=9, ha="center")
    for x, view in ((left, "view s"), (right, "view t")):
        axes.text(x + NODE / 2, top - 4, view, color=SOFT, fontsize=8, ha="center")
    middles = [top + ROW * (row + 0.5) for row in range(num_nodes)]
    partner = {pair.node: pair.partner for pair in graph.pairs}
    carried_s = graph.carried_edges
    carried_t = frozenset((partner[i], partner[j]) for i, j in carried_s)
    _draw_edges(axes, graph.edges_s, carried_s, left, middles, outward=-1)
    _draw_edges(axes, graph.edges_t, carried_t, right + NODE, middles, outward=1)
    _draw_matches(axes, graph, (left + NODE + GAP, right - GAP), middles)
    is_right = {pair.node: pair.is_right for pair in graph.pairs}
    is_found = {pair.partner: pair.is_right for pair in graph.pairs}
    for row, middle in enumerate(middles):
        _draw_node(axes, graph.images_s[row], (left, middle), is_right=is_right[row])
        _draw_node(axes, graph.images_t[row], (right, middle), is_right=is_found.get(row, False))
        for x, side in ((left + NODE + 5, "left"), (right - 5, "right")):
            axes.text(x, middle, str(row + 1), color=SOFT, fontsize=7, ha=side, va="center")


def _draw_node(
    axes: Axes, image: UInt8[np.ndarray, "H W 3"], place: tuple[float, float], *, is_right: bool
) -> None:
    """Draw a picture with its left side at place[0], its middle at place[1], and a frame."""
    x, y = place[0], place[1] - NODE / 2
    extent = (x, x + NODE, y + NODE, y)
    axes.imshow(image, extent=extent, aspect="auto", interpolation="antialiased", zorder=3)
    style = STYLES["right" if is_right else "wrong"]
    axes.add_patch(
        Rectangle(
            (x, y),
            NODE,
            NODE,
            fill=False,
            edgecolor=style["color"],
            linestyle=style.get("linestyle", "-"),
            linewidth=1.6,
            zorder=4,
        )
    )


def _draw_edges(
    axes: Axes,
    edges: frozenset[tuple[int, int]],
    carried: frozenset[tuple[int, int]],
    x: float,
    middles: Sequence[float],
    *,
    outward: int,
) -> None:
    """Draw arcs beside a column; one arc for both directions, those carried over on top."""
    dark = {(min(edge), max(edge)) for edge in carried}
    for pair in sorted({(min(edge), max(edge)) for edge in edges}, key=lambda pair: pair in dark):
        length = (pair[1] - pair[0]) / max(1, len(middles) - 1)
        # twice the wanted width, because a quadratic curve goes half way to its control point
        reach = x + outward * 2 * (10 + (ARCS - 16) * length)
        ends = (middles[pair[0]], middles[pair[1]])
        points = [(x, ends[0]), (reach, (ends[0] + ends[1]) / 2), (x, ends[1])]
        is_dark = pair in dark
        axes.add_patch(
            PathPatch(
                Curve(points, [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]),
                fill=False,
                edgecolor=CARRIED if is_dark else EDGE,
                linewidth=1.1 if is_dark else 0.7,
                zorder=2 if is_dark else 1,
            )
        )


def _draw_matches(
    axes: Axes, graph: MatchedGraph, ends: tuple[float, float], middles: Sequence[float]
) -> None:
    for pair in graph.pairs:
        start, stop = middles[pair.node], middles[pair.partner]
        if pair.first_order != pair.partner:
            axes.plot(ends, (start, middles[pair.first_order]), zorder=1, **FIRST)
        style = {key: value for key, value in STYLES[pair.kind].items() if key != "marker"}
        axes.plot(ends, (start, stop), zorder=2, solid_capstyle="butt", **style)
        if "marker" in STYLES[pair.kind]:
            x = ends[0] + MARKER_AT * (ends[1] - ends[0])
            y = start + MARKER_AT * (stop - start)
            marker, colour = STYLES[pair.kind]["marker"], STYLES[pair.kind]["color"]
            axes.plot([x], [y], marker, color=colour, markersize=8, markeredgecolor="w", zorder=3)


def _draw_legend(axes: Axes, graphs: Sequence[MatchedGraph], title: str) -> None:
    total = sum(len(graph.pairs) for graph in graphs)
    right = sum(graph.count("right", "corrected") for graph in graphs)
    first = sum(graph.count("right", "spoilt") for graph in graphs)
    axes.text(14, 17, title, color=INK, fontsize=10.5, weight="bold", va="center")
    accuracy = f"right: {right / total:.2f} with edges, {first / total:.2f} by first order alone"
    axes.text(14, 37, f"{accuracy} ({total} nodes)", color=INK, fontsize=9.5, va="center")
    entries = [
        (f"{sum(graph.count(kind) for graph in graphs)} {MEANINGS[kind]}", style)
        for kind, style in STYLES.items()
    ]
    entries += [
        ("match without edges, where it differs", FIRST),
        ("edge to a nearest neighbour", {"color": EDGE, "linewidth": 1.0}),
    ]
    if any(graph.carried_edges for graph in graphs):
        entries.append(("edge carried over by the matching", {"color": CARRIED, "linewidth": 1.3}))
    spots = [(14 + 300 * (place % 2), 58 + 16 * (place // 2)) for place in range(len(entries))]
    for (text, style), (x, y) in zip(entries, spots, strict=True):
        drawn = {"markersize": 6, "markeredgecolor": "w", **style}
        axes.add_line(Line2D((x, x + 18, x + 36), (y, y, y), markevery=[1], **drawn))
        axes.text(x + 44, y, text, color=INK, fontsize=8.5, va="center")
