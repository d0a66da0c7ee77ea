"""The script that times steps by their parts: what it writes hangs together."""

import functools
import json
import time

import pytest
import torch


@pytest.fixture(scope="module")
def rows(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("step") / "out.json"
    module = script("method_step")
    arguments = ["--backbone", "resnet10t", "--size", "32", "--batch-size", "16", "--repeats", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["method_step.py", str(out), *arguments, "--only", *RECIPES])
        module.main()
    return {row["recipe"]: row for row in json.loads(out.read_text())["rows"]}


RECIPES = ("lvm-med-regions", "byol", "deepcluster")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_ratio_is_that_of_the_parts(rows, recipe):
    row = rows[recipe]
    alone = row["encoder_ms"] + row["teacher_ms"]
    assert row["ratio"] == pytest.approx((row["encoder_ms"] + row["method_ms"]) / alone, abs=1e-3)


def test_a_teacher_is_time_of_the_encoder_and_clustering_stands_by_itself(rows):
    assert rows["byol"]["teacher_ms"] > 1
    assert rows["lvm-med-regions"]["teacher_ms"] < 1
    assert rows["deepcluster"]["ratio_with_clusters"] >= rows["deepcluster"]["ratio"]
    assert "cluster_ms" not in rows["byol"]


def test_a_part_is_called_once_to_warm_up_and_then_in_turn(script):
    calls = []

    def part(name):
        calls.append(name)
        time.sleep(0.002)

    names = ("encoder_ms", "teacher_ms", "method_ms")
    parts = {name: functools.partial(part, name) for name in names}
    script("method_step").timed(parts, torch.nn.Linear(1, 1), lambda: None, 2)
    assert calls == list(names) * 3
