"""The page that explains the method: its pictures are there and small, its figures are theirs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from lvmmed.recipes.alarms import DROWNING_NOISE, SATURATED_ACCURACY, SPOILING_EDGES
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL, LvmMedConfig

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "explanation" / "method.md").read_text(encoding="utf-8")
IMAGES = DOCS / "explanation" / "images"
FIGURES = json.loads((IMAGES / "figures.json").read_text(encoding="utf-8"))
MAX_BYTES = 150_000


def test_every_picture_is_shown_and_every_one_shown_is_there():
    shown = re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in IMAGES.glob("*.png"))


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.png")), ids=lambda path: path.name)
def test_a_picture_is_a_small_png(path):
    assert path.stat().st_size < MAX_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 500 <= image.width <= 1200


@pytest.mark.parametrize(
    "words",
    [
        "(90 steps of a ten-layer network",
        "{graphs.edges_in_both} of {graphs.edges} edges are in both",
        "{matching.right_with_edges:.2f} of the nodes right with edges, "
        "{matching.right_first_order:.2f} without; "
        "{matching.corrected} corrected, {matching.spoilt} spoilt",
        "On all {matching.nodes} images",
        "({noise.1.margin.0:.0%} of all",
        "{noise.0.margin.0:.0%} are right without noise",
        "hardly any does ({noise.0.05.margin.1:.0%})",
        "have a mean cosine of {centring.plain.mean:.2f}",
        "standardised over the batch, of {centring.centred.mean:.2f}",
        "mean cosine {smoothing.plain.mean:.2f} here",
        "nearest for {smoothing.plain.nearest_is_own:.2f} of the nodes",
        "where it was for {smoothing.before.nearest_is_own:.2f} before",
        "survives: {smoothing.residual.mean:.2f}, and {smoothing.residual.nearest_is_own:.2f} of",
    ],
)
def test_figures_in_the_text_are_those_of_the_pictures(words):
    def value(found):
        number = FIGURES[found[1]]
        return f"{number:{found[2] or ''}}".replace("%", " %")

    text = re.sub(r"\{([\w.]+)(?::([^}]+))?\}", value, words)
    assert " ".join(text.split()) in " ".join(PAGE.split())
    assert FIGURES["steps"] == 90


def _as_text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"mean over {value}s"
    return "infinite" if value == float("inf") else f"{value:g}"


def test_the_table_of_changes_has_the_values_of_the_code():
    rows = dict(re.findall(r"^\| `method\.(\w+)` \| (.+) \|$", PAGE, flags=re.MULTILINE))
    assert set(rows) == set(PAPER_LITERAL)
    for name, printed in PAPER_LITERAL.items():
        cells = rows[name].split(" | ")
        assert cells[0] == _as_text(printed), name
        assert cells[1].split(" (")[0] == _as_text(getattr(LvmMedConfig(), name)), name


def test_the_table_of_alarms_has_the_limits_of_the_code():
    assert f"over {SATURATED_ACCURACY:.0%}".replace("%", " %") in PAGE
    assert f"`noise_to_affinity` over {DROWNING_NOISE:g}" in PAGE
    assert f"{100 * SPOILING_EDGES:g} points more right without edges" in PAGE


@pytest.mark.slow
def test_the_pictures_can_be_made_again(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("docs_pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "docs_pictures", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "IMAGES", tmp_path)
    monkeypatch.setattr(module, "NUM_STEPS", 1)
    module.main()
    made = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(made) == set(FIGURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in IMAGES.iterdir()
    )
    # what is drawn of the untrained encoder does not depend on the length of the training
    for name in ("centring.png", "smoothing.png"):
        assert (tmp_path / name).stat().st_size == pytest.approx(
            (IMAGES / name).stat().st_size, rel=0.1
        )
