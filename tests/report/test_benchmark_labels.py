"""Curves over shares of the labels: whose they are, where their points lie."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reference.benchmark_tables import ACCURACY, NASTY, make_score, make_table

from lvmmed.evaluation.benchmark_table import Encoder
from lvmmed.report.benchmark_labels import label_plot

SHARES = ("@1%", "@10%", "")
CURVE = [replace(ACCURACY, metric=f"linear{share}.accuracy") for share in SHARES]
MEANS = {
    "own": (0.30, 0.40, 0.50),
    "best": (0.60, 0.70, 0.80),
    NASTY: (0.50, 0.60, 0.70),
    "worst": (0.20, 0.30, 0.40),
    "partial": (0.90, None, 0.95),
}


def _plot(means, *, reference="own"):
    encoders = [Encoder(method=name, initialisation="scratch") for name in means]
    scores = [
        make_score(encoder, column, mean, ci95=None if mean is None else (mean - 0.1, mean + 0.1))
        for encoder, values in zip(encoders, means.values(), strict=True)
        for column, mean in zip(CURVE, values, strict=True)
    ]
    table = make_table(encoders, CURVE, scores, reference=reference)
    return label_plot(table, CURVE, "scratch", name="labels-0")


@pytest.fixture(scope="module")
def svg():
    return _plot(MEANS)


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("}text")]


def test_the_reference_and_the_best_that_have_every_share_are_named(svg):
    named = [text for text in _texts(svg) if text in {" ".join(name.split()) for name in MEANS}]
    assert named == ["own", "best", " ".join(NASTY.split())]
    assert "<i>" not in svg


def test_axes_say_what_is_drawn(svg):
    texts = _texts(svg)
    assert {"1", "10", "100", "labels, percent", "breast, from scratch"} <= set(texts)
    assert "Accuracy, linear probe, percent" in texts


def test_coloured_lines_have_an_interval_a_share_and_the_others_are_thin(svg):
    assert len(re.findall(r"stroke-width: 0\.9", svg)) == 3 * len(SHARES)
    # and two lines in grey, of "worst" and "partial"
    assert len(re.findall(r"stroke-opacity: 0\.6[^>]*stroke-width: 0\.6", svg)) == 2


def test_more_is_higher(svg):
    """The reference rises from 30 to 50 %: its line goes up, which is down in SVG coordinates."""
    line = re.search(r'd="(M [^"]*)"[^>]*var\(--s0\); stroke-width: 1\.4', svg)
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", line.group(1))]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], rel=0.01)
    assert heights[0] > heights[2]


def test_without_scores_the_axes_stand_alone():
    svg = _plot({"own": (None, None, None)})
    assert "var(--s0)" not in svg
    assert "labels, percent" in _texts(svg)
