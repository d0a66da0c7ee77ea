"""The parts of the matching layer's benchmark that decide what it says; nothing is timed here."""

import argparse

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def layer_stages(script):
    return script("layer_stages")


class Ticks:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def sync(self):
        pass

    def between_ms(self, start, end):
        return end - start


def test_a_stage_is_timed_without_those_inside_it(layer_stages):
    clock = Ticks()
    stages = layer_stages.Stages(clock)

    def spend(ms, *parts):
        def work():
            clock.now += ms
            for part in parts:
                part()

        return work

    solver = stages("solve", spend(100))
    nodes = stages("global", spend(7))
    loss = stages("loss", spend(20, solver))
    # what the matching of the whole batch calls belongs to it
    batch = stages("batch", spend(1, nodes, loss))
    stages("rest", spend(3, nodes, loss, batch))()
    found = stages.collect()
    assert {name: ms for name, ms in found.items() if ms} == {
        "rest": 3,
        "global": 7,
        "solve": 100,
        "loss": 20,
        "batch": 1 + 7 + 20 + 100,
    }
    assert not any(stages.collect().values())


def test_least_bytes_and_operations_by_hand(layer_stages):
    """Two graphs of 3 from 6 images, 2 neighbours, 4 channels in 5 regions, projections of 7."""
    sizes = layer_stages.Sizes(
        images=6,
        batch_part=6,
        graphs=2,
        nodes=3,
        neighbors=2,
        width=4,
        regions=5,
        projection=7,
        layers=2,
        map_bytes=2,
        effort=(4, 16),
        region_matchings=8,
    )
    found = layer_stages.demands(sizes)
    # 12 images of both views
    assert found["projector"] == (4 * (12 * 4 + 4 * 7 + 12 * 7), 2 * 12 * 4 * 7)
    assert found["messages"] == (
        4 * (2 * 12 * 7 + 2 * 49),
        2 * 12 * (2 * 7 * 7 + 2 * 3 * 7),  # two layers: weights, neighbours
    )
    # cosines of 2 x 9 pairs of nodes, 2 x 36 pairs of edges, 2 x 9 x 25 pairs of regions
    assert found["global"] == (4 * (12 * 7 + 18), 2 * 18 * 7)
    assert found["edges"] == (4 * (12 * 7 + 72), 2 * 72 * 7)
    assert found["local"] == (2 * 12 * 5 * 4 + 4 * 18, 2 * 450 * 4)
    # four rows of 9 and two entries for 3 pairs, of 2 graphs x 4 searches x 16 exchanges
    assert found["solve"][0] == 4 * (36 + 6) * 2 * 4 * 16
    # 60 regions projected, 6 x 25 distances, eight times 6 x 6 cosines
    assert found["region_matching"] == (
        4 * (60 * 4 + 4 * 7 + 60 * 7 + 8 * 36),
        2 * 60 * 4 * 7 + 2 * 6 * 25 * 7 + 8 * 2 * 36 * 7,
    )
    assert set(found) | {"rest"} == set(layer_stages.STAGES)


@pytest.mark.parametrize(
    ("percent", "words"), [(3.0, "aim reached"), (3.1, "above the aim"), (5.1, "a defect")]
)
def test_a_share_is_judged_by_the_aim(script, percent, words):
    assert script("matching_layer").verdict(percent) == words


@pytest.mark.parametrize(
    ("recipe", "absent"),
    [("lvm-med", {"region_matching"}), ("lvm-med-regions", {"regions", "local"})],
)
def test_stages_of_a_real_layer_are_all_met_and_change_nothing(script, recipe, absent):
    matching_layer = script("matching_layer")
    arguments = argparse.Namespace(
        recipe=recipe,
        backbone="resnet10t",
        size=32,
        batch_size=32,
        partitions=2,
        bf16=False,
        compile=False,
    )
    step, clock = matching_layer.Step(arguments, CPU), matching_layer.Clock(CPU)
    features = step.detached()
    expected = float(step.loss(features).detach())
    spent = matching_layer.measure_stages(step, features, clock, 1)
    assert {name for name, ms in spent.items() if ms <= 0} == absent
    assert float(step.loss(features).detach()) == expected
    sizes = step.sizes(features)
    assert (sizes.images, sizes.graphs, sizes.nodes) == (32, 4, 16)
