"""Plots of a benchmark: what is written in them, in which colours, and where it stands."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from reference.benchmark_tables import ACCURACY, KAPPA, NASTY, make_small_table

from lvmmed.evaluation.ranking import rank_methods
from lvmmed.report.benchmark_figures import rank_plot, score_plot


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("}text")]


def _places(svg):
    """Text -> (x, y) of its anchor in an SVG, for texts that stand upright."""
    found = {}
    for element in ElementTree.fromstring(svg).iter():
        if element.tag.endswith("}text") and element.get("x"):
            place = (float(element.get("x")), float(element.get("y")))
            found["".join(element.itertext()).strip()] = place
    return found


@pytest.fixture(scope="module")
def plot():
    return score_plot(make_small_table(), ACCURACY, name="score-0")


def test_a_score_plot_names_task_methods_and_score(plot):
    texts = _texts(plot)
    assert {"breast", "lvm-med", "dino", "Accuracy, linear probe, percent"} <= set(texts)
    assert any("<i>" in text for text in texts)
    assert "<i>" not in plot
    assert ElementTree.fromstring(plot).get("aria-label") == "breast: Accuracy, linear probe"


def test_each_initialisation_has_its_colour_and_both_are_the_pages_own(plot):
    assert "var(--s0)" in plot
    assert "var(--s1)" in plot
    assert not re.findall(r"#0[1-4]0[0-9a-f]{3}\b", plot)


def test_the_reference_alone_is_bold_among_the_methods(plot):
    bold = re.findall(r'<text style="[^"]*(?:700|bold)[^"]*"[^>]*>([^<]*)<', plot)
    assert bold == ["lvm-med", "breast"]  # a method and the title


def test_a_kappa_is_not_called_percent_and_missing_cells_are_left_out():
    svg = score_plot(make_small_table(), KAPPA, name="score-1")
    assert "Quadratic kappa, times 100" in _texts(svg)
    # one interval, of the first method; two dots, dino is undefined and the third is missing
    assert len(re.findall(r"stroke-width: 1.3", svg)) == 1


def _ranking(ranks, names=None):
    ranks = np.asarray(ranks, dtype=float)
    return rank_methods(ranks, names or [f"m{i}" for i in range(ranks.shape[1])])


def test_a_rank_plot_writes_names_ranks_and_critical_difference():
    ranking = _ranking([[1, 2, 3, 4]] * 10, ["a", "b", NASTY, "d"])
    svg = rank_plot(ranking, reference="a", label="Mean ranks", name="ranks-0")
    texts = [" ".join(text.split()) for text in _texts(svg)]
    assert {"1", "2", "3", "4", "a 1.00", "b 2.00", "4.00 d"} <= set(texts)
    assert f"3.00 {' '.join(NASTY.split())}" in texts
    # 2.569 sqrt(4 x 5 / 60) = 1.483
    assert "critical difference 1.48" in texts
    assert ElementTree.fromstring(svg).get("aria-label") == "Mean ranks"


def test_each_clique_has_a_bar_and_overlapping_ones_stand_below_each_other():
    svg = rank_plot(_ranking([[1, 2, 3, 4]] * 10), reference=None, label="l", name="n")
    bars = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n?"[^>]*stroke-width: 3', svg)
    spans = [(float(x0), float(x1), float(y)) for x0, y, x1, _ in bars]
    assert len(spans) == 3  # a-b, b-c, c-d
    for i, (x0, x1, y) in enumerate(spans):
        for u0, u1, v in spans[i + 1 :]:
            assert y != v or x1 < u0 or u1 < x0


@pytest.mark.parametrize("num_methods", [2, 3, 11, 24])
def test_labels_of_a_rank_plot_do_not_overlap_and_stay_inside(num_methods):
    generator = np.random.default_rng(num_methods)
    ranks = np.argsort(generator.random((6, num_methods)), axis=1) + 1.0
    names = [f"method number {i}" for i in range(num_methods)]
    svg = rank_plot(_ranking(ranks, names), reference=None, label="l", name="n")
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    places = {text: place for text, place in _places(svg).items() if "method" in text}
    assert len(places) == num_methods
    for is_left in (True, False):
        ys = sorted(y for x, y in places.values() if (x < width / 2) == is_left)
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(ys))
        assert all(0 < y < height for y in ys)
    letters = 8 * 0.6 * max(map(len, places))  # width of the longest label in points
    assert min(x for x, _ in places.values()) - letters > 0
    assert max(x for x, _ in places.values() if x > width / 2) + letters < width


def test_a_critical_difference_beyond_the_axis_is_told():
    svg = rank_plot(_ranking([[1, 2, 3]]), reference=None, label="l", name="n")
    assert "critical difference 3.31, longer than the axis" in _texts(svg)
