"""What the PNG of matchings shows, read back pixel by pixel at places worked out by hand."""

import numpy as np
import pytest
from PIL import Image
from reference.run_folders import make_images

from lvmmed.report.matching_picture import (
    ARCS,
    CARRIED,
    DPI,
    EDGE,
    FOOT,
    GAP,
    GRAPH,
    LEGEND,
    LINES,
    NODE,
    ROW,
    STYLES,
    TITLE,
    draw_matchings,
)
from lvmmed.report.pictures import MatchedGraph, MatchedPair


def _graph(partners, first_orders, *, edges_s=(), edges_t=(), seed=0):
    pairs = zip(partners, first_orders, strict=True)
    images = np.full((len(partners), 8, 8, 3), 255, np.uint8)  # white: all colour is ours
    images[:, 2:6, 2:6] = make_images(len(partners), side=4, seed=seed) // 255 * 255
    return MatchedGraph(
        images_s=images,
        images_t=images,
        pairs=tuple(
            MatchedPair(node=node, partner=partner, first_order=first)
            for node, (partner, first) in enumerate(pairs)
        ),
        edges_s=frozenset(edges_s),
        edges_t=frozenset(edges_t),
    )


def _drawn(tmp_path, *graphs, title="a run, step 3"):
    draw_matchings(graphs, tmp_path / "a.png", title=title)
    return np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)


def _rgb(text):
    return np.array([int(text[at : at + 2], 16) for at in (1, 3, 5)])


def _has(pixels, colour, *, x, y, within=5.0):
    """Whether the colour occurs near a place, given in hundredths of an inch."""
    scale = DPI / 100
    rows = slice(round((y - within) * scale), round((y + within) * scale))
    columns = slice(round((x - within) * scale), round((x + within) * scale))
    return bool((np.abs(pixels[rows, columns] - _rgb(colour)).max(2) < 40).any())


def _middle(row):
    return LEGEND + TITLE + ROW * (row + 0.5)


FROM = ARCS + NODE + GAP


def test_the_picture_has_a_row_for_every_node_and_two_graphs_a_line(tmp_path):
    one, two = _graph([0, 1], [0, 1]), _graph([0, 1, 2], [0, 1, 2])
    scale = DPI / 100
    around = LEGEND + FOOT
    sizes = {
        (one,): (GRAPH, around + TITLE + 2 * ROW),
        (one, two): (2 * GRAPH, around + TITLE + 3 * ROW),
        (one, two, one): (2 * GRAPH, around + 2 * TITLE + 3 * ROW + 2 * ROW),
    }
    for graphs, (width, height) in sizes.items():
        found = _drawn(tmp_path, *graphs).shape
        assert found[:2] == pytest.approx((height * scale, width * scale), abs=1)


def test_each_kind_has_its_colour_on_the_line_from_node_to_partner(tmp_path):
    # 0 right; 1 and 2 corrected; 3 and 4 spoilt, so they cross; 5 and 6 wrong both ways
    pixels = _drawn(tmp_path, _graph([0, 1, 2, 4, 3, 6, 5], [0, 2, 1, 3, 4, 6, 5]))
    colour = {kind: style["color"] for kind, style in STYLES.items()}
    for share in (0.37, 0.63):
        x = FROM + share * LINES
        assert _has(pixels, colour["right"], x=x, y=_middle(0))
        assert _has(pixels, colour["corrected"], x=x, y=_middle(1))
        assert _has(pixels, colour["corrected"], x=x, y=_middle(2))
        assert _has(pixels, colour["spoilt"], x=x, y=_middle(3) + share * ROW)
        assert _has(pixels, colour["spoilt"], x=x, y=_middle(4) - share * ROW)
        assert _has(pixels, colour["wrong"], x=x, y=_middle(5) + share * ROW)
        assert not _has(pixels, colour["wrong"], x=x, y=_middle(0))


def test_lines_of_different_kinds_differ_in_more_than_colour():
    looks = [{k: v for k, v in style.items() if k != "color"} for style in STYLES.values()]
    assert all(looks.count(look) == 1 for look in looks)
    dashes = [
        str(style.get("linestyle", "-")) + style.get("marker", "") for style in STYLES.values()
    ]
    assert len(set(dashes)) == 4


def test_edges_that_are_carried_over_are_dark_and_lie_outside(tmp_path):
    graph = _graph([0, 1, 2, 3], [0, 1, 2, 3], edges_s=[(0, 3), (1, 2)], edges_t=[(0, 3)])
    pixels = _drawn(tmp_path, graph)
    # the arc of n rows reaches 10 + (ARCS - 16) * n / (num_nodes - 1) beyond the nodes
    far, near = ARCS - (10 + ARCS - 16), ARCS - (10 + (ARCS - 16) / 3)
    level = (_middle(1) + _middle(2)) / 2
    assert _has(pixels, CARRIED, x=far, y=level)
    assert not _has(pixels, CARRIED, x=near, y=level)
    assert _has(pixels, EDGE, x=near, y=level)
    right = GRAPH - far
    assert _has(pixels, CARRIED, x=right, y=level)
    assert not _has(pixels, EDGE, x=GRAPH - near, y=level)


def test_the_same_graphs_give_the_same_bytes(tmp_path):
    graph = _graph([1, 0, 2], [0, 1, 2], edges_s=[(0, 1), (1, 2)], edges_t=[(1, 2)])
    written = []
    for name in ("a.png", "b.png"):
        draw_matchings([graph], tmp_path / name, title="a run")
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("num_nodes", [1, 40])
def test_graphs_of_any_size_are_drawn(tmp_path, num_nodes):
    nodes = list(range(num_nodes))
    edges = [(node, (node + 1) % num_nodes) for node in nodes if num_nodes > 1]
    pixels = _drawn(tmp_path, _graph(nodes, nodes, edges_s=edges, edges_t=edges))
    assert _has(pixels, STYLES["right"]["color"], x=FROM + LINES / 2, y=_middle(num_nodes - 1))


def test_titles_are_plain_text_and_long_ones_keep_their_end(tmp_path):
    graph = _graph([0], [0])
    assert _drawn(tmp_path, graph, title="run $x_1$ and $").size
    long, longer, other = (
        _drawn(tmp_path, graph, title=title)
        for title in ("x" * 90 + ", step 5", "x" * 200 + ", step 5", "x" * 90 + ", step 6")
    )
    assert np.array_equal(long, longer)
    assert not np.array_equal(long, other)
    assert (long[:, -4:] == 255).all()  # nothing runs out of the picture
