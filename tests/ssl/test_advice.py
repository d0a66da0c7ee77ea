"""Every method brings remedies of its own, which can be followed; chances by counting."""

import re

import pytest
from reference.ssl_batches import build_method, make_views, small_backbone

from lvmmed.config import LogConfig, ModelConfig, TrainConfig, ViewsConfig
from lvmmed.ssl.advice import FIGURES, Advice, chance_of
from lvmmed.ssl.table import METHODS

GROUPS = {"views": ViewsConfig, "model": ModelConfig, "train": TrainConfig, "log": LogConfig}
FIELD = re.compile(r"\b(method|views|model|train|log|data)\.(\w+)")

every_method = pytest.mark.parametrize("name", METHODS)


def _texts(name):
    advice = METHODS[name].advice
    return [advice.collapse, *([advice.chance] if advice.chance else [])]


@every_method
def test_advice_names_fields_that_the_method_has(name):
    groups = {**GROUPS, "method": METHODS[name].config}
    for text in _texts(name):
        named = FIELD.findall(text) or [("", "")]
        for group, field in named:
            assert field in groups[group].model_fields, f"{group}.{field}"
        assert len(text) < 250
        assert not text.endswith(".")


@every_method
def test_recipes_and_graphs_are_advised_where_graphs_are_matched(name):
    is_graph = "graph_size" in METHODS[name].config.model_fields
    assert any("centering" in text for text in _texts(name)) == is_graph
    assert any("recipe lvm-med" in text for text in _texts(name)) == is_graph


@every_method
def test_the_figure_that_alarms_read_is_one_that_the_method_gives(name, generator):
    figure = METHODS[name].advice.figure
    if figure is None:
        assert name == "mae"
        return
    backbone = small_backbone()
    fields = {"queue_length": 16} if name == "moco" else {}
    if name in ("swav", "deepcluster"):
        fields = {"num_prototypes": 4 if name == "swav" else (4,)}
    method = build_method(name, fields, backbone, num_images=16)
    views = list(make_views(16))
    features = method.encode(backbone, views, generator=generator)
    if METHODS[name].needs_memory:
        method.remember(views, features)
    found = method.diagnostics(views, features, step=0, generator=generator)
    assert 0 <= found[figure] <= 1


@pytest.mark.parametrize(
    ("figure", "graph_size", "chance"),
    [
        ("partner_accuracy", 4, 1 / 8),  # the other views of 8 images
        ("contrast_accuracy", 4, 1 / 15),  # 16 views but the one itself
        ("matching_accuracy", 4, 1 / 4),  # nodes of a graph
        ("matching_accuracy", 16, 1 / 8),  # 8 images fill no graph of 16
    ],
)
def test_chance_is_one_over_the_candidates(figure, graph_size, chance):
    assert chance_of(figure, batch_size=8, graph_size=graph_size) == pytest.approx(chance)
    assert figure in FIGURES


def test_a_figure_and_its_remedy_come_together():
    with pytest.raises(ValueError, match="figure: got 'knn', need one of partner_accuracy"):
        Advice(collapse="x", figure="knn", chance="y")
    with pytest.raises(ValueError, match="chance: give a remedy"):
        Advice(collapse="x")
    with pytest.raises(ValueError, match="chance: give a remedy"):
        Advice(collapse="x", figure=None, chance="y")
