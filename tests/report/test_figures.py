"""SVG charts: well formed, in the page's colours, ids that cannot meet, names escaped."""

import re
from xml.etree import ElementTree

from reference.run_folders import figure, training_rows, write_judging, write_pretrain

from lvmmed.report.figures import curve_panel, interval_plot
from lvmmed.report.groups import pretrain_groups
from lvmmed.report.run import read_runs
from lvmmed.report.scores import data_sets

NAME = "<script>alert(1)</script> $x_1$ & co"


def _curve(tmp_path, name="curve-0", column="matching_accuracy"):
    rows = training_rows({column: [0.1, 0.2, 0.4]})
    folders = [write_pretrain(tmp_path / f"{name}{s}", seed=s, rows=rows) for s in (0, 1)]
    groups = pretrain_groups(read_runs(folders))
    return curve_panel(groups, {"lvm-med": 0}, column=column, title="Matching", name=name)


def _ids(svg):
    return [
        element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")
    ]


def test_a_curve_is_well_formed_and_says_what_it_is(tmp_path):
    root = ElementTree.fromstring(_curve(tmp_path))
    assert root.tag.endswith("svg")
    assert root.get("aria-label") == "Matching over training steps"
    assert root.get("viewBox")
    assert root.get("width") is None
    texts = {"".join(element.itertext()) for element in root.iter() if "text" in element.tag}
    assert {"Matching", "step", "chance 1/4"} <= texts


def test_runs_are_thin_and_their_mean_is_thick(tmp_path):
    svg = _curve(tmp_path)
    lines = re.findall(r'style="fill: none; stroke: var\(--s0\);([^"]*)"', svg)
    widths = sorted(float(re.search(r"stroke-width: ([\d.]+)", line)[1]) for line in lines)
    assert widths == [0.6, 0.6, 1.6]


def test_two_charts_share_no_id_and_every_reference_resolves(tmp_path):
    first, second = _curve(tmp_path, "one"), _curve(tmp_path, "two")
    assert not set(_ids(first)) & set(_ids(second))
    for svg in (first, second):
        ids = _ids(svg)
        assert len(ids) == len(set(ids))
        used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
        assert used
        assert set(used) <= set(ids)


def test_colours_are_the_pages_own(tmp_path):
    svg = _curve(tmp_path)
    assert "var(--ink)" in svg
    assert "var(--line)" in svg
    assert not re.findall(r"#0[1-4]0[0-9a-f]{3}\b", svg)


def test_intervals_name_heads_and_encoders_and_escape_names(tmp_path):
    metrics = {
        "test": {"linear.accuracy": figure(0.8, 0.7, 0.9, [0.78, 0.82]), "knn.accuracy": 0.7}
    }
    folder = write_judging(tmp_path / "a", weights="gone", metrics=metrics, result={"recipe": NAME})
    (data,) = data_sets(read_runs([folder]), ())
    keys = [("linear", "test", "accuracy"), ("knn", "test", "accuracy")]
    svg = interval_plot(data, {NAME: 3}, keys=keys, title=NAME, name="plot")
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter() if "text" in element.tag]
    assert texts.count(NAME) == 3  # its title, and its row under either head
    assert {"Linear probe", "kNN probe", "percent"} <= set(texts)
    assert root.get("aria-label") == NAME
    assert "var(--s3)" in svg
